"""Every flag of torchvision's reference classification script has a counterpart, and the counterpart does that."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from runner.config.check.check import check
from runner.config.compose import compose
from runner.config.schema import Config
from runner.core.errors import ConfigError
from runner.experiment.builders import data as data_builder
from runner.experiment.builders.instantiate import instantiate
from runner.experiment.preview import train as train_preview
from tests.support import read_result

TEXT = (Path(__file__).parents[2] / "docs" / "cookbook" / "guides" / "torchvision_reference.md").read_text()
ROWS = re.findall(r"^\| `(--[a-z0-9-]+)` \| `(.*?)` \|", TEXT, re.MULTILINE)
HERE = {flag: line.replace("\\|", "|") for flag, line in ROWS}
FLAGS = """
data-path model device batch-size epochs workers opt lr momentum weight-decay norm-weight-decay
bias-weight-decay transformer-embedding-decay label-smoothing mixup-alpha cutmix-alpha lr-scheduler
lr-warmup-epochs lr-warmup-method lr-warmup-decay lr-step-size lr-gamma lr-min print-freq output-dir resume
start-epoch cache-dataset sync-bn test-only auto-augment ra-magnitude augmix-severity random-erase amp
world-size dist-url model-ema model-ema-steps model-ema-decay use-deterministic-algorithms interpolation
val-resize-size val-crop-size train-crop-size clip-grad-norm ra-sampler ra-reps weights backend use-v2
"""


def test_every_flag_is_in_the_table() -> None:
    """The 51 long flags of the script's `get_args_parser`, in its order, each once."""
    assert [f"--{name}" for name in FLAGS.split()] == [flag for flag, _ in ROWS]


def config_of(line: str) -> Config:
    """The shipped recipe with a line of the table added."""
    return check(compose(["experiment=imagenet_resnet50", *shlex.split(line)]))


def transform(config: Config, which: str, name: str) -> Any:
    return data_builder.make_transforms(config, which)[name]


def decays(config: Config) -> dict[str, float]:
    """Weight decay by parameter name, as the optimizer has it."""
    groups = train_preview.make_optimizer(config).param_groups
    return {name: group["weight_decay"] for group in groups for name in group["param_names"]}


def rates(config: Config, epochs: int = 90) -> list[float]:
    """The rate of each epoch."""
    planned = train_preview.plan(config, steps_per_epoch=2)
    return [rate for rates in planned["lr"].values() for rate in rates][0 : 2 * epochs : 2]


def by_hand(make: Callable[[SGD], Any], epochs: int = 90) -> list[float]:
    """The same from a scheduler stepped after each epoch."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.1, momentum=0.9)
    scheduler, seen = make(optimizer), []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def warmup(factor: float) -> Callable[[SGD], Any]:
    """As `train.py` makes it."""

    def make(optimizer: SGD) -> Any:
        first = lr_scheduler.LinearLR(optimizer, start_factor=factor, total_iters=5)
        rest = lr_scheduler.CosineAnnealingLR(optimizer, T_max=85)
        return lr_scheduler.SequentialLR(optimizer, schedulers=[first, rest], milestones=[5])

    return make


def only(config: Config, *, without: float, names: str) -> bool:
    """Whether exactly the parameters that match have this weight decay."""
    found = decays(config)
    chosen = {name for name in found if re.fullmatch(names, name)}
    return bool(chosen) and chosen == {name for name, decay in found.items() if decay == without}


CHECKS: dict[str, Callable[[Config], object]] = {
    "--data-path": lambda c: (c.dataset.train or {})["root"] == "/images/train",
    "--model": lambda c: "layer1.1.bn2.weight" in decays(c) and "layer1.2.bn2.weight" not in decays(c),
    "--device": lambda c: c.device.type == "cuda",
    "--batch-size": lambda c: data_builder.make_loader_settings(c, "train", [0], None).batch_size == 32,
    "--epochs": lambda c: train_preview.plan(c, steps_per_epoch=2)["steps"] == 180,
    "--workers": lambda c: data_builder.make_loader_settings(c, "train", [0], None).num_workers == 16,
    "--opt": lambda c: (
        isinstance(made := train_preview.make_optimizer(c), torch.optim.RMSprop)
        and (made.defaults["eps"], made.defaults["alpha"], made.defaults["momentum"]) == (0.0316, 0.9, 0.9)
    ),
    "--lr": lambda c: train_preview.make_optimizer(c).defaults["lr"] == 0.5,
    "--momentum": lambda c: train_preview.make_optimizer(c).defaults["momentum"] == 0.8,
    "--weight-decay": lambda c: set(decays(c).values()) == {2e-5},
    "--norm-weight-decay": lambda c: only(c, without=0, names=r".*(bn\d|downsample\.1)\.(weight|bias)"),
    "--bias-weight-decay": lambda c: only(c, without=0, names=r".*\.bias"),
    "--transformer-embedding-decay": lambda c: only(c, without=0, names=r"class_token|encoder\.pos_embedding"),
    "--label-smoothing": lambda c: instantiate(c.loss, "loss", call=False).label_smoothing == 0.1,
    "--mixup-alpha": lambda c: type(t := transform(c, "batch", "mix")).__name__ == "MixUp" and t.alpha == 0.2,
    "--cutmix-alpha": lambda c: type(t := transform(c, "batch", "mix")).__name__ == "CutMix" and t.alpha == 1.0,
    "--lr-scheduler": lambda c: rates(c) == by_hand(lambda o: lr_scheduler.CosineAnnealingLR(o, 90)),
    "--lr-warmup-epochs": lambda c: (
        rates(c)[5:] == by_hand(lambda o: lr_scheduler.CosineAnnealingLR(o, 85))[:85] and rates(c)[0] < 0.02
    ),
    "--lr-warmup-method": lambda c: rates(c) == by_hand(warmup(0.01)),
    "--lr-warmup-decay": lambda c: rates(c) == by_hand(warmup(0.033)),
    "--lr-step-size": lambda c: rates(c) == by_hand(lambda o: lr_scheduler.StepLR(o, 20, 0.1)),
    "--lr-gamma": lambda c: rates(c) == by_hand(lambda o: lr_scheduler.StepLR(o, 30, 0.2)),
    "--lr-min": lambda c: rates(c) == by_hand(lambda o: lr_scheduler.CosineAnnealingLR(o, 90, 0.001)),
    "--print-freq": lambda c: c.log.every == "10st",
    "--cache-dataset": lambda c: data_builder.make_loader_settings(c, "train", [0], None).in_memory is True,
    "--sync-bn": lambda c: c.device.sync_batchnorm,
    "--auto-augment": lambda c: type(transform(c, "train", "augment")).__name__ == "AutoAugment",
    "--ra-magnitude": lambda c: transform(c, "train", "augment").magnitude == 5,
    "--augmix-severity": lambda c: transform(c, "train", "augment").severity == 5,
    "--random-erase": lambda c: transform(c, "train", "erase").p == 0.1,
    "--amp": lambda c: c.device.precision == "fp16",
    "--model-ema": lambda c: c.train.ema == 0.99998,
    "--model-ema-steps": lambda c: c.train.ema_every == "32st",
    "--model-ema-decay": lambda c: c.train.ema == 0.999,
    "--use-deterministic-algorithms": lambda c: c.device.deterministic == "strict",
    "--interpolation": lambda c: (
        {transform(c, "train", "crop").interpolation.value, transform(c, "eval", "resize").interpolation.value}
        == {"bicubic"}
    ),
    "--val-resize-size": lambda c: transform(c, "eval", "resize").size == [232],
    "--val-crop-size": lambda c: tuple(transform(c, "eval", "crop").size) == (192, 192),
    "--train-crop-size": lambda c: tuple(transform(c, "train", "crop").size) == (176, 176),
    "--clip-grad-norm": lambda c: c.train.clip_norm == 1,
    "--ra-sampler": lambda c: (c.loader.sampler or {})["_target_"] == "datasets.samplers.Repeated",
    "--ra-reps": lambda c: instantiate(c.loader.sampler or {}, "loader.sampler", range(8)).repetitions == 4,
    "--weights": lambda c: (c.pretrained.strategy, c.pretrained.path) == ("partial", "IMAGENET1K_V1"),
    "--backend": lambda c: next(iter(data_builder.make_transforms(c, "train"))) == "image",
    "--use-v2": lambda c: type(transform(c, "train", "flip")).__module__ == "torchvision.transforms.transforms",
}
COMMANDS = ("--output-dir", "--resume", "--start-epoch", "--test-only", "--world-size", "--dist-url")


@pytest.fixture
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the page."""
    monkeypatch.chdir(tmp_path)
    for file, content in re.findall(r"```yaml\n# (\S+)\n(.*?)```", TEXT, re.DOTALL):
        Path(file).parent.mkdir(parents=True)
        Path(file).write_text(content)


@pytest.mark.usefixtures("_project")
@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")  # torch's own SequentialLR calls step(0)
@pytest.mark.parametrize("flag", [flag for flag in HERE if flag not in COMMANDS])
def test_the_line_changes_what_the_flag_changes(flag: str) -> None:
    """In the optimizer, schedule, transforms or loader that are made of it; without the line it is not so."""
    try:
        config = config_of(HERE[flag])
    except ConfigError as error:
        if "not built yet" in str(error):
            pytest.skip(str(error))
        raise

    assert CHECKS[flag](config)
    if flag != "--epochs":  # whose line says the default
        assert not _holds(CHECKS[flag], config_of(""))


def _holds(asked: Callable[[Config], object], config: Config) -> bool:
    try:
        return bool(asked(config))
    except (KeyError, AttributeError):
        return False


def test_the_commands(runner: Callable[..., Any], tmp_path: Path) -> None:
    """A folder of one's own; continuing there, at its epoch; evaluating what came of it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    quiet = ("log=quiet", "device=cpu")
    first = runner(HERE["--output-dir"].replace("FOLDER", str(folder)), "train.duration=1ep", *quiet)
    resumed = runner(*_words("--resume", folder), "train.duration=2ep", "--schedule", "follow")
    evaluated = runner(*_words("--test-only", folder), "--json")

    assert (0, folder) == (first.status, first.folder)
    assert (0, 34) == (resumed.status, read_result(folder)["steps"])
    assert HERE["--start-epoch"] == HERE["--resume"]
    assert json.loads(evaluated.out)["metrics"] == read_result(folder)["metrics"]


def _words(flag: str, run: Path) -> list[str]:
    return [str(run) if word == "RUN" else word for word in shlex.split(HERE[flag])[3:]]


@pytest.mark.parametrize("flag", ["--world-size", "--dist-url"])
def test_several_processes(flag: str, runner: Callable[..., Any]) -> None:
    """Without torchrun the run is refused with the command to give. (What ranks do: test_parallel.py.)"""
    *_, setting = shlex.split(HERE[flag])
    ran = runner(setting)

    assert ran.status == 2
    assert "torchrun" in ran.err
