"""What can be known about a config without data: the model on the meta device, one made-up sample through everything.

Plain meta tensors have shapes and dtypes but no numbers, so even a large model is built and run in a moment.
"""

import dataclasses
import re
import traceback
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import default_collate

from runner import build, build_data, build_looks, fit, remedies, rng, surgery
from runner import device as devices
from runner.closure import is_own, needs_closure
from runner.component import Refused, Trust, component
from runner.config.effects import PLATEAU, SUPERVISED, produced
from runner.config.names import did_you_mean, nearest
from runner.config.schema import Config, Freeze, Sample
from runner.errors import ConfigError, Mistake, RunError
from runner.fields import KNOWN
from runner.freeze import Frozen, freeze
from runner.init import Row, plan_rules
from runner.inside import chosen
from runner.memory import cut, is_out_of_memory, samples
from runner.meta import meta_copy, to_meta
from runner.optimizer import Constant
from runner.pretrained import Plan
from runner.schedule import Duration
from runner.step import part_of
from runner.sync_norm import batch_norms

MOST_NUMBERS = 100_000_000  # of a model that is built a second time, to be sure that a refusal is not the meta device's
STEPS_PER_EPOCH = 100  # a stand-in: the data is not touched yet


@dataclass
class Preflight:
    """What was found: the model and a batch of two samples on the meta device, if possible; mistakes; notes."""

    model: nn.Module | None = None
    batch: Any = None
    eval_batch: Any = None  # where training's transforms and evaluation's make different things
    train_shapes: list[str] = field(default_factory=list)  # of that batch, where this one is of an evaluation
    init_rows: list[Row] = field(default_factory=list)
    pretrained: Plan | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is left for the first real batch to show, and why
    plan: list[str] = field(default_factory=list)  # which transforms run on whole batches, and why not all

    def inputs(self, config: Config) -> Any:
        """What the model is called with: the member or members of the batch that the step's `input` names."""
        place = config.step.get("input", 0)
        if isinstance(place, dict):
            return {name: self.batch[member] for name, member in place.items()}
        return [self.batch[member] for member in place] if isinstance(place, list) else self.batch[place]

    def one_sample(self, config: Config) -> Any:
        """The same for a batch of one."""
        inputs = self.inputs(config)
        if isinstance(inputs, dict):
            return {name: member[:1] for name, member in inputs.items()}
        return [member[:1] for member in inputs] if isinstance(inputs, list) else inputs[:1]

    @contextmanager
    def catching(self, key: str) -> Iterator[None]:
        """Turn what a constructor refuses into a mistake."""
        try:
            yield
        except Refused as error:
            self.mistakes.append(refusal(error))
        except ConfigError as error:
            self.mistakes += error.mistakes
        except (RunError, ValueError, TypeError, ArithmeticError) as error:
            self.mistakes.append(Mistake(key, f"is refused ({type(error).__name__}: {error})"))


def refusal(error: Refused) -> Mistake:
    """What a constructor refused, at the argument that its message speaks of by name or by value, if that is one."""
    scalars, named, valued = _spoken_of(error.node, error.cause)
    rule, where = f"is refused ({error.said})", raised_in(error.cause)
    for candidates in (named & valued, valued, named):
        if len(candidates) == 1:
            name = candidates.pop()
            return Mistake(f"{error.key}.{name}", rule, scalars[name], where)
    return Mistake(error.key, rule, error.node["_target_"], where)


def _spoken_of(node: Mapping[str, Any], error: Exception) -> tuple[dict[str, Any], set[str], set[str]]:
    """A component's plain arguments, and those of them whose name or whose value stands in an error's message."""
    words = set(re.findall(r"[^\s:,;=()'\"`]+", str(error)))
    scalars = {name: value for name, value in node.items() if isinstance(value, bool | int | float | str)}
    scalars.pop("_target_", None)
    named = {name for name in scalars if name in words}
    return scalars, named, {name for name, value in scalars.items() if str(value) in words}


def raised_in(error: BaseException) -> str:
    """`file:line` of the last line of the user's own code that an error passed through; empty where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(Path.cwd()) and "site-packages" not in f.filename]
    theirs = [f for f in own if not Path(f.filename).is_relative_to(Path(__file__).parent)]
    return f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""


def preflight(config: Config, trust: Trust = (), wrong: Container[str] = ()) -> Preflight:
    """Build model, loss, metrics, optimizer, scheduler; send a sample of zeros through transforms, model, loss.

    `wrong` holds the top-level keys in which `check` found mistakes: what depends on these is left out.
    """
    found = Preflight()
    with rng.isolated():
        if not _any(wrong, "dataset", "loader", "transform"):
            found.mistakes += build_data.mistakes(config, trust)
            found.notes += build_data.downloads_to_come(config)
        if "device" not in wrong:
            _check_device(config, found)
        if "metrics" not in wrong:
            with found.catching("metrics"):
                _check_metrics(config, build.make_metrics(config, torch.device("cpu"), trust), found, wrong)
        loss = None
        if "loss" not in wrong and config.loss is not None:
            with found.catching("loss"):
                loss = component(config.loss, "loss", trust=trust, call=False)
        if "model" not in wrong:
            found.model = meta_model(config, found, trust)
        groups: list[dict[str, Any]] | None = [
            {"params": [("stand-in", torch.empty(1, 1))], "name": name}
            for name in surgery.several(config) or ["default"]
        ]
        if found.model is not None and not _any(wrong, "init", "pretrained", "freeze", "param_groups", "optimizer"):
            groups = _check_surgery(config, found.model, found, trust, loss)
        _check_hooks(config, found, trust, wrong)
        if groups is not None and "optimizer" not in wrong:
            _check_optimizer(config, groups, found, trust, schedule=not _any(wrong, "scheduler", "train"))
        if not _any(wrong, "dataset", "transform", "step"):
            found.batch = _sample_batch(config, found, trust)
        without = config.dataset.steps_per_epoch is not None and config.step.get("_target_") != SUPERVISED
        known = found.batch is not None or without
        if found.model is not None and known and not _any(wrong, "dataset", "step", "loss", "optimizer"):
            _try_step(config, found, loss, trust, groups)
    return found


def outline(config: Config, trust: Trust = ()) -> Preflight:
    """What the model's table is made from, of a config that has been examined: no mistake is looked for again."""
    found = Preflight(notes=build_data.downloads_to_come(config))
    with rng.isolated():
        found.model = meta_model(config, found, trust)
        if found.model is not None:
            freeze(found.model, config.freeze.params, norm_stats=config.freeze.norm_stats)
        found.batch = _sample_batch(config, found, trust)
    return found


def _any(wrong: Container[str], *keys: str) -> bool:
    return any(key in wrong for key in keys)


def _check_metrics(config: Config, metrics: Mapping[str, Any], found: Preflight, wrong: Container[str]) -> None:
    for name, metric in metrics.items():
        lacks = [part for part in ("update", "compute", "reset") if not callable(getattr(metric, part, None))]
        if lacks:
            rule = f"must have `update`, `compute` and `reset`, and has no `{'`, no `'.join(lacks)}`"
            found.mistakes.append(Mistake(f"metrics.{name}", rule, type(metric).__name__))
    _check_metric_names(config, metrics, found)
    if not _any(wrong, "scheduler", "train"):
        _check_direction(config, metrics, found)


def _check_metric_names(config: Config, metrics: Mapping[str, Any], found: Preflight) -> None:
    """A collection names its metrics itself (torchmetrics' `MetricCollection`), which only the built one knows."""
    for key, wanted in (("train.objective", config.train.objective), ("scheduler.monitor", config.scheduler.monitor)):
        split, _, name = (wanted or "").partition("/")
        collection: Any = metrics.get(name.partition("/")[0])
        if type(collection).__name__ != "MetricCollection":
            continue
        names = [f"{split}/{name.partition('/')[0]}/{inner}" for inner in collection.keys()]  # noqa: SIM118  no mapping
        if wanted not in names:
            right = nearest(wanted or "", names) or names[0]
            rule = f"must be one of {', '.join(f'`{known}`' for known in names)}"
            found.mistakes.append(Mistake(key, rule, wanted, remedy=did_you_mean(right), suggestion=right))


def _check_direction(config: Config, metrics: Mapping[str, Any], found: Preflight) -> None:
    """A plateau lowers the rate when its metric does not get better, so it must know what is better."""
    monitor, chosen = config.scheduler.monitor, config.scheduler
    if monitor is None or not (chosen._target_ or "").endswith(f".{PLATEAU}"):
        return
    name, _, inner = monitor.partition("/")[2].partition("/")
    metric: Any = metrics.get(name)
    if type(metric).__name__ == "MetricCollection" and inner in metric:
        metric = metric[inner]
    higher = False if name == "loss" else getattr(metric, "higher_is_better", None)
    reason = "lower is better" if higher is False else "higher is better"
    if config.train.mode is not None and monitor == config.train.objective:
        higher, reason = config.train.mode == "max", f"train.mode is {config.train.mode}"
    mode = chosen.arguments.get("mode", "min")
    right = "max" if higher else "min"
    if isinstance(higher, bool) and mode in ("min", "max") and mode != right:
        rule = f"must be `{right}` for `{monitor}`, of which {reason}"
        found.mistakes.append(Mistake("scheduler.mode", rule, mode, remedy=f"write `mode: {right}`", suggestion=right))


def _check_device(config: Config, found: Preflight) -> None:
    try:
        device = devices.choose(config.device.type)
    except ValueError as error:
        remedy = "take `device.type=auto` or `cpu`"
        found.mistakes.append(Mistake("device.type", f"cannot be had ({error})", config.device.type, remedy=remedy))
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device.parallel == "data_parallel" and config.device.type in ("auto", "cuda") and count < 2:
        rule = f"has nothing to split batches over: torch sees {count} CUDA device{'s' * (count != 1)} here"
        found.mistakes.append(
            Mistake("device.parallel", rule, "data_parallel", remedy="leave it at `none`", suggestion="none")
        )
    wanted = config.device.precision
    if reason := devices.cannot_compute(device, wanted):
        rule = f"cannot be had on {device.type}: {reason}"
        found.mistakes.append(Mistake("device.precision", rule, wanted, remedy="take fp32", suggestion="fp32"))
    if config.device.compile and (reason := devices.cannot_compile(device)):
        rule = f"cannot be had here: {reason}"
        found.mistakes.append(Mistake("device.compile", rule, config.device.compile, suggestion="false"))


def meta_model(config: Config, found: Preflight, trust: Trust) -> nn.Module | None:
    """The model on the meta device; None, with a mistake or a note, where it cannot be built there."""
    try:
        with torch.device("meta"):
            model: Any = component(config.model, "model", trust=trust)
    except Refused as error:
        model = _on_cpu(config, found, trust, error)
        if model is None:
            return None
    if not isinstance(model, nn.Module):
        rule = f"must give an nn.Module, but gives {type(model).__name__}"
        found.mistakes.append(Mistake("model", rule, config.model["_target_"]))
        return None
    if config.device.sync_batchnorm and not batch_norms(model):
        rule = "has no effect: the model has no batch normalisation"
        found.mistakes.append(Mistake("device.sync_batchnorm", rule, value=True, suggestion="false"))
    return model


def _on_cpu(config: Config, found: Preflight, trust: Trust, refused: Refused) -> Any:
    """The model built with its numbers, and then without: what a constructor does may need them (weights of a file).

    Where the CPU refuses it too, that is the mistake; None then.
    """
    try:
        model: Any = surgery.make_model(config, trust)
    except Refused as error:
        found.mistakes.append(refusal(error))
        return None
    found.notes.append(f"the model cannot be built on the meta device ({refused.said}): it was built with its numbers")
    return meta_copy(model) if isinstance(model, nn.Module) else model


def _about_meta(error: BaseException | None) -> bool:
    """Whether an error only says that there are no numbers on the meta device."""
    without_forward = 'missing the required "forward"' in str(error)
    return (isinstance(error, NotImplementedError) and not without_forward) or "meta" in str(error).lower()


def _check_hooks(config: Config, found: Preflight, trust: Trust, wrong: Container[str]) -> None:
    if found.model is not None and "log" not in wrong:
        with found.catching("log.hooks"):
            chosen(found.model, build_looks.make_hooks(config, trust))


def _check_surgery(
    config: Config, model: nn.Module, found: Preflight, trust: Trust, loss: Any
) -> list[dict[str, Any]] | None:
    """Match every pattern, read the keys of a checkpoint that is at hand; the optimizer's groups, if any."""
    with found.catching("init"):
        found.init_rows = plan_rules(model, surgery.init_rules(config, trust))
    if config.init.apply is not None and not found.mistakes:
        _try_init_function(config, found, trust)
    with found.catching("pretrained"):
        found.pretrained = surgery.plan_pretrained(config, model, download=False)
        if found.pretrained is None and config.pretrained.strategy != "none":
            found.notes.append(f"the weights {config.pretrained.path} are not on this machine yet")
        if found.pretrained is not None:
            found.plan.append(found.pretrained.summary())
    frozen = Frozen()
    groups: list[dict[str, Any]] | None = None
    with found.catching("freeze"):
        frozen = freeze(model, config.freeze.params, norm_stats=config.freeze.norm_stats)
    if config.freeze.until is not None and not config.freeze.params:
        found.mistakes.append(Mistake("freeze.until", "has no effect without `freeze.params`", config.freeze.until))
    with found.catching("param_groups"):
        groups = surgery.make_groups(config, model, frozen, trust, loss)
    return groups  # noqa: RET504  None where that was refused


def _try_init_function(config: Config, found: Preflight, trust: Trust) -> None:
    """Hand the user's function to a real model: whether it changes anything shows in the numbers only."""
    with found.catching("init.apply"):
        try:
            without_freeze = dataclasses.replace(config, freeze=Freeze())
            surgery.operate(without_freeze, surgery.make_model(config, trust), trust, weights=False)
        except (RunError, ConfigError):
            raise
        except Exception as error:  # noqa: BLE001  a user's function may raise anything
            rule = f"is refused ({type(error).__name__}: {error})"
            found.mistakes.append(Mistake("init.apply", rule, where=raised_in(error)))


def _check_optimizer(
    config: Config, groups: list[dict[str, Any]], found: Preflight, trust: Trust, *, schedule: bool
) -> None:
    with found.catching("optimizer"):
        optimizer = stand_in_optimizer(config, groups, trust)
        found.mistakes += refused_beside(config, optimizer, trust)
        if not schedule:
            return
        with found.catching("scheduler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            steps = Duration.parse(config.train.duration).steps(STEPS_PER_EPOCH)
            rated = [group for group in optimizer.param_groups if "lr" in group]
            before = {group.get("name", str(i)): float(group["lr"]) for i, group in enumerate(rated)}
            rates = build.make_schedule(config, optimizer, STEPS_PER_EPOCH, steps, trust)
            _check_rates(config, before, rates, found)
            rates.step()  # some arguments are refused at the first step only
            rates.epoch()


def stand_in_optimizer(config: Config, groups: list[dict[str, Any]], trust: Trust = ()) -> torch.optim.Optimizer:
    """The config's optimizer over empty CPU tensors in place of the groups' parameters: fused ones refuse meta ones."""
    stand_ins = [
        group | {"params": [(name, nn.Parameter(torch.empty([0] * p.dim(), dtype=p.dtype))) for name, p in members]}
        for group in groups
        if (members := group["params"])
    ]
    return build.make_optimizer(config, stand_ins, torch.device("cpu"), trust)


def _check_rates(config: Config, before: Mapping[str, float], rates: Constant, found: Preflight) -> None:
    """Two of torch's schedulers set rates instead of scaling them: one number would be the rate of every group."""
    scheduler, given = getattr(rates, "scheduler", None), config.scheduler.arguments.get("max_lr")
    sets = isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR | torch.optim.lr_scheduler.CyclicLR)
    if sets and len(set(before.values())) > 1 and isinstance(given, int | float):
        first = next(iter(before.values()))
        own = ", ".join(f"{name} {rate:g}" for name, rate in before.items())
        rule = f"would be the rate of every parameter group, so that their own ({own}) had no effect"
        each = [float(f"{given * rate / first:g}") for rate in before.values()] if first else []
        remedy = f"write one for each group, such as `{each}`"
        found.mistakes.append(Mistake("scheduler.max_lr", rule, given, remedy=remedy))


def refused_beside(config: Config, optimizer: torch.optim.Optimizer, trust: Trust = ()) -> list[Mistake]:
    """What cannot be had where the optimizer calls a closure (LBFGS), or where the step itself calls the optimizer."""
    train, precision = config.train, config.device.precision
    set_so = {
        "train.accumulate": train.accumulate if train.accumulate > 1 else None,
        "train.split_on_oom": train.split_on_oom or None,
        "train.clip_norm": train.clip_norm,
        "train.clip_value": train.clip_value,
        "device.precision": precision if precision in ("bf16", "fp16") else None,
        "device.parallel": config.device.parallel if config.device.parallel not in ("none", "auto") else None,
    }
    if is_own(component(config.step, "step", trust=trust, call=False)):
        reason = f"has no place where the step does its own backward and update, as `{config.step['_target_']}` does"
    elif needs_closure(optimizer):
        reason = f"has no place where the optimizer evaluates the loss itself, as `{config.optimizer['_target_']}` does"
        set_so["device.precision"] = precision if precision == "fp16" else None
    else:
        inner = getattr(optimizer, "optimizers", {})
        rule = "must not be one of several optimizers: it evaluates the loss itself"
        return [
            Mistake(f"optimizer.{name}._target_", rule, config.optimizer[name]["_target_"])
            for name, member in inner.items()
            if needs_closure(member)
        ]
    return [Mistake(key, reason, value) for key, value in set_so.items() if value is not None]


def zeros(sample: Sample) -> Any:
    """A raw sample's member of zeros: a tensor, or a black PIL image."""
    if sample.mode is not None:
        from PIL import Image

        width, height = sample.size or [1, 1]
        return Image.new(sample.mode, (width, height))
    return torch.zeros(sample.shape or [], dtype=getattr(torch, sample.dtype or "float32"))


def _sample_batch(config: Config, found: Preflight, trust: Trust) -> Any:
    """Two samples of zeros, transformed on the CPU and collated, on the meta device."""
    stated = config.dataset.sample
    if config.dataset.steps_per_epoch is not None:
        return None
    if stated is None:
        found.notes.append(
            "the dataset states no `sample`, so transforms, model and loss meet the first real batch first"
        )
        return None
    if isinstance(stated, Sample):
        stated = [stated, Sample(shape=[], dtype="int64")]
    sample: Any = (
        {name: zeros(member) for name, member in stated.items()}
        if isinstance(stated, dict)
        else tuple(zeros(member) for member in stated)
    )
    if config.transform.on != "sample" and _misses_a_member(config, found, sample):
        return None
    found.eval_batch = to_meta(_collated(config, found, "eval", sample, trust))
    batch = None if found.eval_batch is None else _collated(config, found, "train", sample, trust)
    if batch is None:
        return None
    try:
        transforms = build_data.make_transforms(config, "batch", trust)
    except Refused as error:
        found.mistakes.append(refusal(error))
        return None
    for name, transform in transforms.items():
        try:
            batch = transform(batch)
        except Exception as error:  # noqa: BLE001  a user's transform may raise anything
            rule = f"refuses a batch of two samples of zeros: {type(error).__name__}: {error}"
            found.mistakes.append(Mistake(f"transform.batch.{name}", rule))
            return None
    return to_meta(batch)


def _misses_a_member(config: Config, found: Preflight, sample: Any) -> bool:
    """Whether `input` or `target` of the supervised step names a member that the sample does not have."""
    known = list(sample) if isinstance(sample, dict) else list(range(len(sample)))
    for name in ("input", "target") if config.step["_target_"] == "runner.step.supervised" else ():
        place = config.step.get(name)
        wanted = place.values() if isinstance(place, dict) else place if isinstance(place, list) else [place]
        if any(member is not None and member not in known for member in wanted):
            rule = f"must name members of a sample, which are {', '.join(map(str, known))}"
            found.mistakes.append(Mistake(f"step.{name}", rule, place))
            return True
    return False


def _collated(config: Config, found: Preflight, which: Literal["train", "eval"], sample: Any, trust: Trust) -> Any:
    """Two of the sample, each transformed, as a batch; None where that was refused or is not known."""
    try:
        pipeline = build_data.make_pipeline(config, which, trust)
        found.plan.append(f"transform.{which}: {build_data.foreseen(config, pipeline, sample)}")
        transformed = pipeline.apply(sample)
    except Refused as error:
        found.mistakes.append(refusal(error))
        return None
    except Exception as error:  # noqa: BLE001  a user's transform may raise anything
        rule = f"refuses a sample of zeros: {type(error).__name__}: {error}"
        found.mistakes.append(Mistake(f"transform.{which}", rule, where=raised_in(error)))
        return None
    try:
        return default_collate([transformed, transformed])
    except TypeError:
        _not_collated(config, found, which, transformed)
        return None


def _not_collated(config: Config, found: Preflight, which: str, transformed: Any) -> None:
    """Note what is no tensor: a mistake, unless the user's own function makes the batches."""
    if config.loader.collate_fn is not None:
        found.notes.append("the transformed sample is no tensor, so model and loss meet the first real batch first")
        return
    members = transformed.values() if isinstance(transformed, dict) else transformed
    kinds = ", ".join(type(member).__name__ for member in members)
    rule = f"must end with what can be joined into a batch (tensors, numbers), but makes {kinds} of a sample"
    remedy = "torchvision.transforms.v2.ToImage, then ToDtype with dtype: torch.float32 and scale: true, make tensors"
    found.mistakes.append(Mistake(f"transform.{which}", rule, remedy=remedy))


def _try_step(config: Config, found: Preflight, loss: Any, trust: Trust, groups: list[dict[str, Any]] | None) -> None:
    """Send the batch through model and step, as training and evaluation do, and what comes of it through the metrics.

    Whose fault an error is shows in which of them raises.
    """
    model = found.model
    assert model is not None
    step = component(config.step, "step", trust=trust, call=False)
    given: dict[str, Any] = {}
    if is_own(step):
        if groups is None or found.mistakes:
            return
        own = [dict(group) for group in groups]  # an optimizer changes them
        given["optimizer"] = build.make_optimizer(config, own, torch.device("cpu"), trust)
    training = model.training
    on_meta = loss.to("meta") if isinstance(loss, nn.Module) else loss
    before = len(found.mistakes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever is to be said of the real data is said when it comes
        try:
            outcomes = {"train": _outcome(config, found, step, model.train(), on_meta, given, trust)}
            if len(found.mistakes) == before:
                _check_outcome(config, found, outcomes["train"], own=bool(given))
            if len(found.mistakes) == before and found.eval_batch is not None:
                evaluated = dataclasses.replace(found, batch=found.eval_batch, train_shapes=_shapes(found.batch))
                without = dict.fromkeys(given)
                outcomes["eval"] = _outcome(config, evaluated, step, model.eval(), on_meta, without, trust)
            if len(found.mistakes) == before:
                _try_metrics(config, found, outcomes, trust)
            if len(found.mistakes) == before and config.loader.batch_size == 1 and not given:
                _try_one_sample(found, step, model.train(), on_meta)
        finally:
            model.train(training)


def _outcome(
    config: Config,
    found: Preflight,
    step: Any,
    model: nn.Module,
    loss: Any,
    given: Mapping[str, Any],
    trust: Trust,
) -> Mapping[str, Any] | None:
    """What the step says of the batch with the model in the mode that it is in; None where something refuses it."""
    before = len(found.mistakes)
    made = None
    if config.step["_target_"] == SUPERVISED:
        made = _try_model(config, found, model, trust)
        if len(found.mistakes) > before:
            return None
        for name in ("output", "auxiliary"):
            if model.training and isinstance(made, torch.Tensor) and config.step.get(name) is not None:
                rule = "has no effect: the model gives one tensor while it trains"
                found.mistakes.append(Mistake(f"step.{name}", rule, config.step[name], remedy="leave it out"))
                return None

    def with_numbers() -> Any:
        on_cpu = None if config.loss is None else component(config.loss, "loss", trust=trust, call=False)
        return step(remedies.zeros(found.batch), _with_numbers(config, model, trust), on_cpu)

    named = loss is None or bool(given)
    key, verb = ("step", "refuses") if named else ("loss", "or the step refuses")
    outcome: Mapping[str, Any] | None = _trying(
        found,
        key,
        verb,
        lambda: step(found.batch, model, loss, **given),
        config.loss,
        _remedy(config, found, made),
        None if given else with_numbers,
    )
    return outcome


def _with_numbers(config: Config, model: nn.Module, trust: Trust) -> nn.Module:
    """The same model on the CPU and in the same mode, for what the meta device alone may have refused.

    Raises:
        MemoryError: it is too large to be built for a check.
    """
    if sum(parameter.numel() for parameter in model.parameters()) > MOST_NUMBERS:
        raise MemoryError
    return surgery.make_model(config, trust).train(model.training)


def _remedy(config: Config, found: Preflight, made: Any) -> Callable[[BaseException], str]:
    """What to change where the supervised step refuses the model's output beside the target."""
    if made is None or config.step["_target_"] != SUPERVISED:
        return lambda _: ""
    place, output = config.step.get("target", 1), config.step.get("output")
    try:
        target = found.batch[place]
        made = made if output is None or isinstance(made, torch.Tensor) else part_of(made, output)
    except (LookupError, TypeError):
        return lambda _: remedies.for_members(found.batch) or remedies.for_output(made)
    return lambda error: remedies.for_loss(made, target, error)


def _try_model(config: Config, found: Preflight, model: nn.Module, trust: Trust) -> Any:
    """The batch through the model; its output, None where that is not known."""
    try:
        inputs = found.inputs(config)
    except (LookupError, TypeError) as error:
        rule = f"must name what a sample has ({', '.join(_shapes(found.batch))}): {type(error).__name__}: {error}"
        found.mistakes.append(Mistake("step.input", rule, config.step.get("input", 0)))
        return None
    key, verb = "model", "refuses" if model.training else "refuses in an evaluation"
    if not model.training and found.train_shapes != _shapes(found.batch):
        key, verb = "transform.eval", "makes what the model refuses,"
    return _trying(
        found,
        key,
        verb,
        lambda: call(model, inputs),
        remedy=lambda error: remedies.for_model(model, inputs, found.batch, error),
        with_numbers=lambda: call(_with_numbers(config, model, trust), remedies.zeros(inputs)),
    )


def _try_one_sample(found: Preflight, step: Any, model: nn.Module, loss: Any) -> None:
    """A batch of one, as `loader.batch_size=1` makes it: batch norm cannot train on a single number a channel."""
    error = refuses_one(found.batch, lambda batch: step(batch, model, loss))
    if error is not None:
        rule = f"must be larger: {_one_sample(error)}"
        remedy = "take `loader.batch_size=2` or more, and `loader.drop_last=true` where one sample is left over"
        found.mistakes.append(Mistake("loader.batch_size", rule, 1, remedy=remedy))


def _one_sample(error: Exception) -> str:
    return f"the model cannot train on a batch of one sample ({type(error).__name__}: {error})"


def refuses_one(batch: Any, step: Callable[[Any], Any]) -> Exception | None:
    """What a step says that refuses the first sample of a batch on the meta device, where it takes the whole batch."""
    try:
        step(batch)
    except Exception:  # noqa: BLE001  a user's model may raise anything
        return None
    try:
        step(cut(batch, samples(batch))[0])
    except Exception as error:  # noqa: BLE001  a user's model may raise anything
        return None if _about_meta(error) or is_out_of_memory(error) else error
    return None


def _try_metrics(
    config: Config, found: Preflight, outcomes: Mapping[str, Mapping[str, Any] | None], trust: Trust
) -> None:
    """Outputs and targets of the shapes that the step gives, with made-up numbers, through each metric."""
    for name, node in config.metrics.items():
        if node is None or any(mistake.key == f"metrics.{name}" for mistake in found.mistakes):
            continue
        for which, outcome in outcomes.items():
            if not isinstance(outcome, Mapping) or not {"output", "target"} <= outcome.keys():
                continue
            mistake = misfit(name, node, outcome["output"], outcome["target"], trust, training=which == "train")
            if mistake is not None:
                found.mistakes.append(mistake)
                break


def misfits(
    config: Config,
    model: nn.Module,
    loss: Any,
    batch: Any,
    trust: Trust,
    *,
    rest: bool,
    size: int,
    metrics: bool = False,
) -> list[Mistake]:
    """What a run of the supervised step would come upon only after its first step, of a batch on the meta device.

    Args:
        config: the checked config.
        model: on the meta device; it is put into training mode.
        loss: of the run.
        batch: on the meta device.
        trust: patterns of names trusted on the command line.
        rest: whether an epoch has a batch of one sample.
        size: the samples of an epoch.
        metrics: whether to send what comes of the batch through the metrics.
    """
    step = component(config.step, "step", trust=trust, call=False)
    found = Preflight(model=model, batch=batch)
    with rng.isolated(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_meta = meta_copy(loss) if isinstance(loss, nn.Module) else loss
        model.train()
        if metrics:
            with suppress(Exception):  # the real step comes next, and says it of real numbers
                outcome = step(batch, model, on_meta)
                _try_metrics(config, found, {"train": outcome}, trust)
        error = refuses_one(batch, lambda part: step(part, model, on_meta)) if rest else None
    if error is not None:
        whole = config.loader.batch_size
        sizes = f"{size:,} samples in batches of {whole:,} leave a last batch of one" if whole > 1 else "each has one"
        rule = f"makes a batch that the model cannot train on: {sizes} ({type(error).__name__}: {error})"
        remedy = (
            f"take `loader.drop_last=true` or another size, such as `loader.batch_size={_without_rest(size, whole)}`"
        )
        if whole == 1:
            remedy = "take `loader.batch_size=2` or more"
        found.mistakes.append(Mistake("loader.batch_size", rule, whole, remedy=remedy))
    return found.mistakes


def _without_rest(size: int, batch_size: int) -> int:
    """The nearest smaller batch size, else larger, that leaves no batch of a single sample."""
    smaller = range(batch_size - 1, 1, -1)
    return next((other for other in smaller if size % other != 1), batch_size + 1)


def misfit(
    name: str, node: Mapping[str, Any], output: Any, target: Any, trust: Trust = (), *, training: bool = False
) -> Mistake | None:
    """What a new metric says of outputs and targets of these shapes and dtypes, whatever numbers they have.

    It gets several made-up ones (logits, shares, zeros), and is refused where it takes none of them.
    """
    key, given = f"metrics.{name}", f"output {remedies.spell(output)}, target {remedies.spell(target)}"
    if training and not isinstance(output, torch.Tensor):
        rule = f"needs one tensor as the output, and the model gives several while it trains ({given})"
        return Mistake(key, rule, remedy=remedies.for_output(output))
    refused: Exception | None = None
    for made in (remedies.logits, remedies.shares, remedies.zeros):
        try:
            metric: Any = component(node, key, trust=trust)
            metric.reset()
            metric.update(made(output), remedies.labels(target, output))
        except Exception as error:  # noqa: BLE001  a metric may raise anything
            refused = refused or error
            continue
        try:
            fit.flat(key, metric.compute())
        except Exception as error:  # noqa: BLE001
            refused = refused or error
            continue
        return None
    assert refused is not None
    said = str(refused) if isinstance(refused, RunError) else f"{type(refused).__name__}: {refused}"
    if isinstance(refused, Refused):
        return None  # said already
    wanted, classes = node.get("num_classes"), output.shape[1] if getattr(output, "ndim", 0) > 1 else 0
    where = raised_in(refused)
    if isinstance(wanted, int) and classes > 1 and wanted != classes:
        rule = f"must be {classes}, as many as the model gives ({given}): {said}"
        return Mistake(f"{key}.num_classes", rule, wanted, where, f"write `{classes}`", str(classes))
    remedy = "its `update(output, target)` gets both in this order, unnamed" if isinstance(refused, TypeError) else ""
    return Mistake(key, f"does not fit what the step gives ({given}): {said}", where=where, remedy=remedy)


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output for a tensor, a list of arguments, or a mapping of named ones."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list) else model(inputs)


def _trying(
    found: Preflight,
    key: str,
    verb: str,
    action: Callable[[], Any],
    node: Mapping[str, Any] | None = None,
    remedy: Callable[[BaseException], str] = lambda _: "",
    with_numbers: Callable[[], Any] | None = None,
) -> Any:
    """What an action on the meta device gives; None, with a note or a mistake, where it raises.

    A refusal counts where the same `with_numbers`, on the CPU, is refused as well.
    """
    try:
        return action()
    except Exception as error:  # noqa: BLE001  a user's model may raise anything
        said = f"{type(error).__name__}: {error}"
        made, ran = _ran(with_numbers)
        if ran:
            found.notes.append(f"the {key} does not run on the meta device ({said}): it was tried on the CPU")
            return made
        if _about_meta(error) or is_out_of_memory(error):
            found.notes.append(
                f"the {key} does not run on the meta device ({said}); it meets the first real batch first"
            )
        else:
            scalars, named, _ = _spoken_of(node or {}, error)
            if len(named) == 1:
                name = named.pop()
                found.mistakes.append(Mistake(f"{key}.{name}", f"is refused ({said})", scalars[name]))
                return None
            batch = "no data" if found.batch is None else f"a batch of two samples ({', '.join(_shapes(found.batch))})"
            rule = f"{verb} {batch}: {said}"
            found.mistakes.append(Mistake(key, rule, where=raised_in(error), remedy=remedy(error)))
        return None


def _ran(action: Callable[[], Any] | None) -> tuple[Any, bool]:
    """What an action gives, and whether it does; not where it raises, or there is none."""
    if action is None:
        return None, False
    try:
        return action(), True
    except Exception:  # noqa: BLE001  a user's model may raise anything
        return None, False


def _check_outcome(config: Config, found: Preflight, outcome: Any, *, own: bool = False) -> None:
    if outcome is None:
        return
    if not isinstance(outcome, Mapping) or "loss" not in outcome:
        found.mistakes.append(
            Mistake("step", f"must return a mapping with `loss`, but returns {type(outcome).__name__}")
        )
    elif not isinstance(outcome["loss"], torch.Tensor):
        rule = f"must give a tensor to call `backward` on, but gives {type(outcome['loss']).__name__}"
        found.mistakes.append(Mistake("loss", rule))
    elif outcome["loss"].numel() != 1:
        shape = list(outcome["loss"].shape)
        found.mistakes.append(
            Mistake("loss", f"must give one number to call `backward` on, but gives the shape {shape}")
        )
    elif not own and not outcome["loss"].requires_grad:
        rule = "must depend on a parameter that trains, but has no gradient (a `detach`, or all that it uses is frozen)"
        found.mistakes.append(Mistake("loss", rule))
    elif any(config.metrics.values()) and not {"output", "target"} <= outcome.keys():
        found.mistakes.append(
            Mistake("step", f"must return `output` and `target` for the metrics, but returns {', '.join(outcome)}")
        )
    else:
        _check_names(config, found, [name for name in outcome if name not in KNOWN])


def _check_names(config: Config, found: Preflight, fields: Sequence[str]) -> None:
    """A metric that is waited for is one of the step's own fields, where it is no metric."""
    known, prefixes = produced(config)
    splits = list(dict.fromkeys(name.partition("/")[0] for name in known))
    known += [f"{split}/{field}" for split in splits for field in fields]
    for key, wanted in (("train.objective", config.train.objective), ("scheduler.monitor", config.scheduler.monitor)):
        if wanted is not None and wanted not in known and not wanted.startswith(tuple(prefixes)):
            right = nearest(wanted, known)
            rule = f"must be one of {', '.join(f'`{name}`' for name in known)}: nothing else is produced"
            found.mistakes.append(Mistake(key, rule, wanted, remedy=did_you_mean(right), suggestion=right))


def _shapes(batch: Any) -> list[str]:
    items = batch.items() if isinstance(batch, dict) else enumerate(batch)
    return [f"{place}: {list(member.shape)} {member.dtype}" for place, member in items if hasattr(member, "shape")]
