"""Recipes of text, segmentation and detection, and other people's libraries from YAML alone."""

import importlib.util
import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from tests.support import EXTRAS, Ran, write_files

PAGE = Path(__file__).parents[2] / "docs" / "cookbook" / "guides" / "libraries.md"
QUICK = ("device.type=cpu", "log=quiet")
TRUST = ("--trust", "transformers.*", "--trust", "datasets.*", "--trust", "timm.*")
WITHOUT = [name for name, package in EXTRAS.items() if importlib.util.find_spec(package) is None]
needs_extra = pytest.mark.skipif(bool(WITHOUT), reason="needs the extra `hf`: timm, transformers and datasets")


@pytest.mark.parametrize(("name", "trust"), [(name, trust) for name in WITHOUT for trust in ((), TRUST)][:3:2])
def test_a_recipe_without_its_extra_is_refused_by_the_name_of_the_extra(
    runner: Callable[..., Ran], name: str, trust: tuple[str, ...]
) -> None:
    ran = runner("check", f"experiment={name}", *trust)

    assert ran.status == 2
    assert "pip install 'yaml-experiment-runner[hf]'" in ran.out
    assert not list(Path().iterdir())


def test_the_text_recipe_learns_words_and_has_them_again(runner: Callable[..., Ran]) -> None:
    """The vocabulary comes from the checkpoint in an evaluation and in predictions."""
    ran = runner("experiment=text_classifier", "dataset.source.count=250", "train.duration=1ep", *QUICK)
    again = runner("evaluate", str(ran.folder), "--json")
    predicted = runner("predict", str(ran.folder), "--split", "val", "--out", "p.csv")

    assert (ran.status, again.status, predicted.status) == (0, 0, 0)
    assert json.loads(again.out)["metrics"].items() >= ran.result["metrics"].items()
    assert len(Path("p.csv").read_text().splitlines()) == 51


@pytest.mark.exhaustive
def test_the_text_recipe_resumes_and_learns(runner: Callable[..., Ran]) -> None:
    ran = runner("experiment=text_classifier", *QUICK)

    assert ran.result["metrics"]["val/accuracy"] > 0.75
    assert runner("check", "resume", "experiment=text_classifier", *QUICK).status == 0


@pytest.mark.exhaustive
def test_the_segmentation_recipe_runs_small(runner: Callable[..., Ran]) -> None:
    small = ("dataset.source.count=8", "dataset.source.size=32", "loader.batch_size=4", "train.duration=1st")
    more = ("dataset.sample=null", "train.average=null", "train.evaluate_every=null")
    ran = runner("experiment=segmentation", *small, *more, *QUICK)

    assert ran.status == 0, ran.err
    assert 0 <= ran.result["metrics"]["val/miou"] <= 1


def test_a_loss_beside_the_models_own_is_refused(runner: Callable[..., Ran]) -> None:
    ran = runner("check", "step=model_loss")

    assert ran.status == 2
    assert "loss._target_ has no effect" in ran.out


def test_a_backbone_that_would_be_downloaded_is_refused(runner: Callable[..., Ran]) -> None:
    ran = runner("check", "experiment=null", "model._target_=torchvision.models.segmentation.fcn_resnet50")

    assert ran.status == 2
    assert "model.weights_backbone must be given" in ran.out


FACTORY = """
import torch


def make_noise(scale):
    return lambda image: image + scale * torch.rand_like(image)
"""


def test_a_function_that_makes_a_transform(elsewhere: Path, runner: Callable[..., Ran]) -> None:
    """`_partial_: false` calls it at once, and its arguments are checked as those of a class."""
    write_files(elsewhere, {"factory.py": FACTORY})
    node = "++transform.train.noise={_target_: factory.make_noise, %s: 0.1, _partial_: false}"
    ran = runner("experiment=digits_mlp", node % "scale", "train.duration=1st", *QUICK)
    wrong = runner("check", "experiment=digits_mlp", node % "scal")

    assert ran.status == 0, ran.err
    assert "did you mean `transform.train.noise.scale`?" in wrong.out


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["segmentation", "detection"])
def test_a_recipe_of_torchvision_is_resumed_evaluated_and_predicted(runner: Callable[..., Ran], name: str) -> None:
    small = ("dataset.source.count=20", "loader.batch_size=4", "train.duration=1ep", "train.checkpoint_every=2st")
    resumed = runner("check", "resume", f"experiment={name}", *small, *QUICK)
    ran = runner(f"experiment={name}", *small, *QUICK)
    again = runner("evaluate", str(ran.folder), "--json")

    assert resumed.status == 0, resumed.err
    assert json.loads(again.out)["metrics"].items() >= ran.result["metrics"].items()
    assert runner("predict", str(ran.folder), "--split", "val", "--out", "p.jsonl").status == 0


@pytest.fixture
def hub(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with reviews, tagged words, shards, and a model with its tokenizer, all of them made here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(elsewhere / "cache"))
    from datasets.text import MadeReviews, split_words

    reviews = [MadeReviews(200)[index] for index in range(200)]
    words = sorted({word for review in reviews for word in split_words(review["text"])})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    table = "\n".join(["text,label", *[f'"{review["text"]}",{review["label"]}' for review in reviews]])
    tags = [
        json.dumps({"words": said, "tags": [int(word in ("film", "plot")) for word in said]})
        for said in (split_words(review["text"]) for review in reviews[:80])
    ]
    write_files(elsewhere, {"data/reviews.csv": table, "data/tags.jsonl": "\n".join(tags)})
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(names), **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained("data/bert")
    transformers.BertTokenizerFast(vocab={word: number for number, word in enumerate(names)}).save_pretrained(
        "data/bert"
    )
    write_shards(elsewhere / "data")
    return elsewhere


def write_shards(folder: Path) -> None:
    """Write two shards of eight pictures each, dark and bright ones."""
    from PIL import Image

    for shard in range(2):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as tar:
            for number in range(8):
                picture = io.BytesIO()
                Image.new("RGB", (32, 32), (200 * (number % 2),) * 3).save(picture, "PNG")
                for ending, content in (("png", picture.getvalue()), ("cls", b"%d" % (number % 2))):
                    entry = tarfile.TarInfo(f"{shard}{number:03d}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


@pytest.mark.exhaustive
@needs_extra
def test_the_text_recipe_of_hugging_face(hub: Path, runner: Callable[..., Ran]) -> None:
    """Trained, evaluated, predicted, and resumed to the bit."""
    quick = ("experiment=text_classifier_hf", "optimizer.lr=0.003", "train.duration=2ep", *QUICK, *TRUST)
    ran = runner(*quick)
    again = runner("evaluate", str(ran.folder), "--json", *TRUST)
    predicted = runner("predict", str(ran.folder), "--split", "val", "--out", "p.csv", *TRUST)

    assert ran.status == 0, ran.err
    assert json.loads(again.out)["metrics"].items() >= ran.result["metrics"].items()
    assert predicted.status == 0, predicted.err
    assert len(Path("p.csv").read_text().splitlines()) == 41
    assert runner("check", "resume", *quick).status == 0


@pytest.mark.exhaustive
@needs_extra
def test_the_recipe_of_timm(hub: Path, runner: Callable[..., Ran]) -> None:
    """Its weights are those of the file, but for the head."""
    import timm
    from safetensors.torch import save_file

    Path("data/timm").mkdir()
    save_file(timm.create_model("resnet18").state_dict(), "data/timm/model.safetensors")
    quick = ("experiment=finetune_timm", "dataset.limit=64", "train.duration=4st", *QUICK, *TRUST)
    quick += ("scheduler.warmup=1st",)
    explained = json.loads(runner("explain", *quick, "--json").out)["tensors"]
    ran = runner(*quick)

    assert ran.status == 0, ran.err
    assert {row["name"] for row in explained if not row["pretrained"]} == {"fc.weight", "fc.bias"}
    assert runner("check", "resume", *quick).status == 0


@pytest.mark.exhaustive
@needs_extra
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_every_example_of_the_page_runs(
    hub: Path,
    runner: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = PAGE.read_text()
    for name, content in re.findall(r"```yaml\n# (\S+)\n(.*?)```", text, re.DOTALL):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
        assert yaml.safe_load(content)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line)[3:]
        ran = runner(*words, *(() if words[0] == "trust" else QUICK))
        assert ran.status == 0, (line, ran.err)
