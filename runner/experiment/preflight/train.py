"""Preflight of training: one step of a made-up batch through model, loss, metrics and optimizer."""

import dataclasses
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from runner.config.check.rules.rule import SUPERVISED
from runner.config.check.rules.train import PLATEAU, find_metric_names
from runner.config.schema import Config, Sample
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core import device as devices
from runner.core.durations import Duration
from runner.core.errors import Mistake, RunError
from runner.experiment.builders import model as model_builder
from runner.experiment.builders import train as train_builder
from runner.experiment.builders.instantiate import InstantiationError, Trust, instantiate
from runner.experiment.preflight.report import (
    Preflight,
    describe_shapes,
    find_named_arguments,
    has_any,
    is_meta_error,
    locate_user_code,
)
from runner.train import broadcasting, evaluation, remedies
from runner.train.lr_schedule import ConstantLR
from runner.train.oom import is_out_of_memory
from runner.train.optimizer_step.closure import is_custom_step, needs_closure
from runner.train.optimizer_step.several_optimizers import get_members
from runner.train.optimizer_step.split_on_oom import count_samples, cut
from runner.train.step_outputs import RESERVED
from runner.train.steps import get_output

MOST_NUMBERS = 100_000_000  # of a model that is built a second time, to be sure that a refusal is not the meta device's


STEPS_PER_EPOCH = 100  # a stand-in: the data is not touched yet


def check_metrics(config: Config, metrics: Mapping[str, Any], found: Preflight, wrong: Container[str]) -> None:
    """Check that metrics have their three methods, and that the keys that name a metric name one of them."""
    for name, metric in metrics.items():
        lacks = [part for part in ("update", "compute", "reset") if not callable(getattr(metric, part, None))]
        if lacks:
            rule = f"must have `update`, `compute` and `reset`, and has no `{'`, no `'.join(lacks)}`"
            found.mistakes.append(Mistake(f"metrics.{name}", rule, type(metric).__name__, kind="type"))
    _check_metric_names(config, metrics, found)
    if not has_any(wrong, "scheduler", "train"):
        _check_direction(config, metrics, found)


def _check_metric_names(config: Config, metrics: Mapping[str, Any], found: Preflight) -> None:
    """Check objective and monitor against the names that a built MetricCollection gives."""
    for key, wanted in (("train.objective", config.train.objective), ("scheduler.monitor", config.scheduler.monitor)):
        split, _, name = (wanted or "").partition("/")
        collection: Any = metrics.get(name.partition("/")[0])
        if type(collection).__name__ != "MetricCollection":
            continue
        names = [f"{split}/{name.partition('/')[0]}/{inner}" for inner in collection.keys()]  # noqa: SIM118  no mapping
        if wanted not in names:
            right = find_nearest(wanted or "", names) or names[0]
            rule = f"must be one of {', '.join(f'`{known}`' for known in names)}"
            found.mistakes.append(Mistake(key, rule, wanted, remedy=format_suggestion(right), suggestion=right))


def _check_direction(config: Config, metrics: Mapping[str, Any], found: Preflight) -> None:
    """Check that the `mode` of ReduceLROnPlateau agrees with its metric's direction."""
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


def check_device(config: Config, found: Preflight) -> None:
    """Check that this machine has the device, and enough GPUs for `device.parallel`."""
    try:
        device = devices.choose(config.device.type)
    except ValueError as error:
        remedy = "take `device.type=auto` or `cpu`"
        found.mistakes.append(
            Mistake("device.type", f"cannot be had ({error})", config.device.type, remedy=remedy, kind="unavailable")
        )
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device.parallel == "data_parallel" and config.device.type in ("auto", "cuda") and count < 2:
        rule = f"has nothing to split batches over: torch sees {count} CUDA device{'s' * (count != 1)} here"
        found.mistakes.append(
            Mistake(
                "device.parallel",
                rule,
                "data_parallel",
                remedy="leave it at `none`",
                suggestion="none",
                kind="unavailable",
            )
        )
    wanted = config.device.precision
    if reason := devices.explain_cannot_compute(device, wanted):
        rule = f"cannot be had on {device.type}: {reason}"
        found.mistakes.append(
            Mistake("device.precision", rule, wanted, remedy="take fp32", suggestion="fp32", kind="unavailable")
        )
    if config.device.compile and (reason := devices.explain_cannot_compile(device)):
        rule = f"cannot be had here: {reason}"
        found.mistakes.append(
            Mistake("device.compile", rule, config.device.compile, suggestion="false", kind="unavailable")
        )


def check_optimizer(
    config: Config, groups: list[dict[str, Any]], found: Preflight, trust: Trust, *, schedule: bool
) -> None:
    """Check optimizer, saved optimizer state and, if `schedule`, the schedule on the meta device."""
    with found.catching("optimizer"):
        optimizer = make_stand_in_optimizer(config, groups, trust)
        found.mistakes += find_unsupported_settings(config, optimizer, trust)
        if found.pretrained is not None and found.pretrained.optimizer is not None:
            with found.catching("pretrained.optimizer"):
                matched = train_builder.match_saved_optimizer(config, found.pretrained, optimizer, trust)
                found.plan += [f"pretrained: {line}" for line in (*found.pretrained.begins, *matched.said)]
        if not schedule:
            return
        with found.catching("scheduler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            steps = Duration.parse(config.train.duration).steps(STEPS_PER_EPOCH)
            rated = [group for group in optimizer.param_groups if "lr" in group]
            before = {group.get("name", str(i)): float(group["lr"]) for i, group in enumerate(rated)}
            rates = train_builder.make_schedule(config, optimizer, STEPS_PER_EPOCH, steps, trust)
            _check_rates(config, before, rates, found)
            rates.step()  # some arguments are refused at the first step only
            rates.epoch()


def make_stand_in_optimizer(config: Config, groups: list[dict[str, Any]], trust: Trust = ()) -> torch.optim.Optimizer:
    """Make the optimizer over empty CPU tensors in the groups: fused optimizers refuse meta tensors."""
    stand_ins = [
        group | {"params": [(name, nn.Parameter(torch.empty([0] * p.dim(), dtype=p.dtype))) for name, p in members]}
        for group in groups
        if (members := group["params"])
    ]
    return train_builder.make_optimizer(config, stand_ins, torch.device("cpu"), trust)


def _check_rates(config: Config, before: Mapping[str, float], rates: ConstantLR, found: Preflight) -> None:
    """Refuse one `max_lr` of OneCycleLR or CyclicLR for groups with different rates."""
    scheduler, given = getattr(rates, "scheduler", None), config.scheduler.arguments.get("max_lr")
    sets = isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR | torch.optim.lr_scheduler.CyclicLR)
    if sets and len(set(before.values())) > 1 and isinstance(given, int | float):
        first = next(iter(before.values()))
        own = ", ".join(f"{name} {rate:g}" for name, rate in before.items())
        rule = f"would be the rate of every parameter group, so that their own ({own}) had no effect"
        each = [float(f"{given * rate / first:g}") for rate in before.values()] if first else []
        remedy = f"write one for each group, such as `{each}`"
        found.mistakes.append(Mistake("scheduler.max_lr", rule, given, remedy=remedy, kind="conflict"))


def find_unsupported_settings(config: Config, optimizer: torch.optim.Optimizer, trust: Trust = ()) -> list[Mistake]:
    """Find settings that a closure optimizer (LBFGS) or a step with its own update cannot support."""
    train, precision = config.train, config.device.precision
    set_so = {
        "train.accumulate": train.accumulate if train.accumulate > 1 else None,
        "train.split_on_oom": train.split_on_oom or None,
        "train.clip_norm": train.clip_norm,
        "train.clip_value": train.clip_value,
        "device.precision": precision if precision in ("bf16", "fp16") else None,
        "device.parallel": config.device.parallel if config.device.parallel not in ("none", "auto") else None,
    }
    if is_custom_step(instantiate(config.step, "step", trust=trust, call=False)):
        reason = f"has no place where the step does its own backward and update, as `{config.step['_target_']}` does"
    elif needs_closure(optimizer):
        reason = f"has no place where the optimizer evaluates the loss itself, as `{config.optimizer['_target_']}` does"
        set_so["device.precision"] = precision if precision == "fp16" else None
    else:
        rule = "must not be one of several optimizers: it evaluates the loss itself"
        return [
            Mistake(f"optimizer.{name}._target_", rule, config.optimizer[name]["_target_"], kind="conflict")
            for name, member in get_members(optimizer).items()
            if needs_closure(member)
        ]
    return [Mistake(key, reason, value, kind="conflict") for key, value in set_so.items() if value is not None]


def try_step(config: Config, found: Preflight, loss: Any, trust: Trust, groups: list[dict[str, Any]] | None) -> None:
    """Send the batch through model, step and metrics, as training and evaluation do.

    Whose fault an error is shows in which of them raises.
    """
    model = found.model
    assert model is not None
    step = instantiate(config.step, "step", trust=trust, call=False)
    given: dict[str, Any] = {}
    if is_custom_step(step):
        if groups is None or found.mistakes:
            return
        own = [dict(group) for group in groups]  # an optimizer changes them
        given["optimizer"] = train_builder.make_optimizer(config, own, torch.device("cpu"), trust)
    training = model.training
    on_meta = loss.to("meta") if isinstance(loss, nn.Module) else loss
    before = len(found.mistakes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever is to be said of the real data is said when it comes
        try:
            if not isinstance(config.dataset.sample, Sample):
                broadcasting.filter_broadcast_warnings()
            outcomes = {"train": _run_step(config, found, step, model.train(), on_meta, given, trust)}
            if len(found.mistakes) == before:
                _check_outcome(config, found, outcomes["train"], own=bool(given))
            if len(found.mistakes) == before and found.eval_batch is not None:
                evaluated = dataclasses.replace(
                    found, batch=found.eval_batch, train_shapes=describe_shapes(found.batch)
                )
                without = dict.fromkeys(given)
                outcomes["eval"] = _run_step(config, evaluated, step, model.eval(), on_meta, without, trust)
            if len(found.mistakes) == before and not found.left_open:
                try_metrics(config, found, outcomes, trust)
            if len(found.mistakes) == before and config.loader.batch_size == 1 and not given:
                _try_one_sample(found, step, model.train(), on_meta)
        finally:
            model.train(training)


def _run_step(
    config: Config,
    found: Preflight,
    step: Any,
    model: nn.Module,
    loss: Any,
    given: Mapping[str, Any],
    trust: Trust,
) -> Mapping[str, Any] | None:
    """Run the step with the model in its current mode; None if a part refuses the batch."""
    before = len(found.mistakes)
    made = None
    if config.step["_target_"] == SUPERVISED:
        made = _try_model(config, found, model, trust)
        if len(found.mistakes) > before:
            return None
        for name in ("output", "auxiliary"):
            if model.training and isinstance(made, torch.Tensor) and config.step.get(name) is not None:
                rule = "has no effect: the model gives one tensor while it trains"
                found.mistakes.append(
                    Mistake(f"step.{name}", rule, config.step[name], remedy="leave it out", kind="no-effect")
                )
                return None
        if _check_broadcast(config, found, made, loss):
            return None

    def with_numbers() -> Any:
        on_cpu = None if config.loss is None else instantiate(config.loss, "loss", trust=trust, call=False)
        return step(remedies.make_zeros(found.batch), _build_cpu_model(config, model, trust), on_cpu)

    named = loss is None or bool(given)
    key, verb = ("step", "refuses") if named else ("loss", "or the step refuses")
    outcome: Mapping[str, Any] | None = _try_action(
        found,
        key,
        verb,
        lambda: step(found.batch, model, loss, **given),
        config.loss,
        _make_remedy(config, found, made),
        None if given else with_numbers,
    )
    return outcome


def _check_broadcast(config: Config, found: Preflight, made: Any, loss: Any) -> bool:
    """Record a mistake and return True if the loss broadcasts; leave it open if the target is assumed."""
    try:
        target, output = found.batch[config.step.get("target", 1)], config.step.get("output")
        made = made if output is None or isinstance(made, torch.Tensor) else get_output(made, output)
    except (LookupError, TypeError):
        return False
    mistake = check_loss_broadcast(loss, made, target)
    if mistake is not None and isinstance(config.dataset.sample, Sample):  # which says nothing of the target
        found.left_open = True
        return False
    found.mistakes += [mistake] if mistake is not None else []
    return mistake is not None


def check_loss_broadcast(loss: Any, output: Any, target: Any) -> Mistake | None:
    """Return a mistake if the loss compares every output with every target, else None."""
    if loss is None or not isinstance(output, torch.Tensor) or not isinstance(target, torch.Tensor):
        return None
    shape = broadcasting.find_broadcast_shape(lambda: loss(output, target), output, target)
    if shape is None:
        return None
    remedy = remedies.suggest_squeeze(output, target) or remedies.suggest_for_loss(output, target)
    return Mistake("loss", broadcasting.describe_broadcast(shape, output, target), remedy=remedy, kind="conflict")


def _build_cpu_model(config: Config, model: nn.Module, trust: Trust) -> nn.Module:
    """Build the model on the CPU in the mode of `model`, to try again what the meta device refused.

    Raises:
        MemoryError: it is too large to be built for a check.
    """
    if sum(parameter.numel() for parameter in model.parameters()) > MOST_NUMBERS:
        raise MemoryError
    return model_builder.make_model(config, trust).train(model.training)


def _make_remedy(config: Config, found: Preflight, made: Any) -> Callable[[BaseException], str]:
    """Make a function from an error to a remedy, for a loss that refuses the model's output."""
    if made is None or config.step["_target_"] != SUPERVISED:
        return lambda _: ""
    place, output = config.step.get("target", 1), config.step.get("output")
    try:
        target = found.batch[place]
        made = made if output is None or isinstance(made, torch.Tensor) else get_output(made, output)
    except (LookupError, TypeError):
        return lambda _: remedies.suggest_members(found.batch) or remedies.suggest_output(made)
    return lambda error: remedies.suggest_for_loss(made, target, error)


def _try_model(config: Config, found: Preflight, model: nn.Module, trust: Trust) -> Any:
    """Run the batch through the model; return the output, or None if it is not known."""
    try:
        inputs = found.inputs(config)
    except (LookupError, TypeError) as error:
        rule = (
            f"must name what a sample has ({', '.join(describe_shapes(found.batch))}): {type(error).__name__}: {error}"
        )
        found.mistakes.append(Mistake("step.input", rule, config.step.get("input", 0), kind="no-match"))
        return None
    key, verb = "model", "refuses" if model.training else "refuses in an evaluation"
    if not model.training and found.train_shapes != describe_shapes(found.batch):
        key, verb = "transform.eval", "makes what the model refuses,"
    return _try_action(
        found,
        key,
        verb,
        lambda: call_model(model, inputs),
        remedy=lambda error: remedies.suggest_for_model(model, inputs, found.batch, error),
        with_numbers=lambda: call_model(_build_cpu_model(config, model, trust), remedies.make_zeros(inputs)),
    )


def _try_one_sample(found: Preflight, step: Any, model: nn.Module, loss: Any) -> None:
    """Try a batch of one sample, which batch norm may refuse, for `loader.batch_size=1`."""
    error = find_one_sample_error(found.batch, lambda batch: step(batch, model, loss))
    if error is not None:
        rule = f"must be larger: {_describe_one_sample_error(error)}"
        remedy = "take `loader.batch_size=2` or more, and `loader.drop_last=true` where one sample is left over"
        found.mistakes.append(Mistake("loader.batch_size", rule, 1, remedy=remedy))


def _describe_one_sample_error(error: Exception) -> str:
    return f"the model cannot train on a batch of one sample ({type(error).__name__}: {error})"


def find_one_sample_error(batch: Any, step: Callable[[Any], Any]) -> Exception | None:
    """Return the step's error for the first sample alone if the step takes the whole batch, else None."""
    try:
        step(batch)
    except Exception:  # noqa: BLE001  a user's model may raise anything
        return None
    try:
        step(cut(batch, count_samples(batch))[0])
    except Exception as error:  # noqa: BLE001  a user's model may raise anything
        return None if is_meta_error(error) or is_out_of_memory(error) else error
    return None


def try_metrics(
    config: Config, found: Preflight, outcomes: Mapping[str, Mapping[str, Any] | None], trust: Trust
) -> None:
    """Send made-up outputs and targets of the step's shapes through each metric."""
    for name, node in config.metrics.items():
        if node is None or any(mistake.key == f"metrics.{name}" for mistake in found.mistakes):
            continue
        if any(name in outcome.keys() - RESERVED for outcome in outcomes.values() if isinstance(outcome, Mapping)):
            rule = f"must have another name: the step has a field `{name}` of its own"
            found.mistakes.append(
                Mistake(f"metrics.{name}", rule, remedy=f"name it `metrics.own_{name}`, for instance", kind="conflict")
            )
            continue
        for which, outcome in outcomes.items():
            if not isinstance(outcome, Mapping) or not {"output", "target"} <= outcome.keys():
                continue
            mistake = check_metric_fit(
                name, node, outcome["output"], outcome["target"], trust, training=which == "train"
            )
            if mistake is not None:
                found.mistakes.append(mistake)
                break


def check_metric_fit(
    name: str, node: Mapping[str, Any], output: Any, target: Any, trust: Trust = (), *, training: bool = False
) -> Mistake | None:
    """Return a mistake if a new metric refuses made-up outputs and targets of these shapes and dtypes.

    It gets several made-up ones (logits, shares, zeros), and is refused where it takes none of them.
    """
    key, given = f"metrics.{name}", f"output {remedies.spell(output)}, target {remedies.spell(target)}"
    if training and not isinstance(output, torch.Tensor):
        rule = f"needs one tensor as the output, and the model gives several while it trains ({given})"
        return Mistake(key, rule, remedy=remedies.suggest_output(output), kind="conflict")
    refused: Exception | None = None
    spread: tuple[int, ...] | None = None
    for made in (remedies.make_logits, remedies.make_probabilities, remedies.make_zeros):
        try:
            metric: Any = instantiate(node, key, trust=trust)
            metric.reset()
            outputs, targets = made(output), remedies.make_targets(target, output)
            with broadcasting.BroadcastTracker(outputs, targets) as seen:
                metric.update(outputs, targets)
            spread = seen.shape
        except Exception as error:  # noqa: BLE001  a metric may raise anything
            refused = refused or error
            continue
        try:
            evaluation.flatten_metric(key, metric.compute())
        except Exception as error:  # noqa: BLE001
            refused = refused or error
            continue
        if spread is None:
            return None
        remedy = remedies.suggest_squeeze(output, target) or remedies.suggest_for_loss(output, target)
        return Mistake(key, broadcasting.describe_broadcast(spread, output, target), remedy=remedy, kind="conflict")
    assert refused is not None
    said = str(refused) if isinstance(refused, RunError) else f"{type(refused).__name__}: {refused}"
    if isinstance(refused, InstantiationError):
        return None  # said already
    wanted, classes = node.get("num_classes"), output.shape[1] if getattr(output, "ndim", 0) > 1 else 0
    where = locate_user_code(refused)
    if isinstance(wanted, int) and classes > 1 and wanted != classes:
        rule = f"must be {classes}, as many as the model gives ({given}): {said}"
        return Mistake(f"{key}.num_classes", rule, wanted, where, f"write `{classes}`", str(classes), kind="conflict")
    remedy = "its `update(output, target)` gets both in this order, unnamed" if isinstance(refused, TypeError) else ""
    if isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor) and output.shape != target.shape:
        remedy = remedy or remedies.suggest_squeeze(output, target)
    return Mistake(
        key, f"does not fit what the step gives ({given}): {said}", where=where, remedy=remedy, kind="refused"
    )


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call the model with a tensor, a list of arguments, or a mapping of named arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list) else model(inputs)


def _try_action(
    found: Preflight,
    key: str,
    verb: str,
    action: Callable[[], Any],
    node: Mapping[str, Any] | None = None,
    remedy: Callable[[BaseException], str] = lambda _: "",
    with_numbers: Callable[[], Any] | None = None,
) -> Any:
    """Run an action on the meta device; None, with a note or a mistake, if it raises.

    A refusal counts where the same `with_numbers`, on the CPU, is refused as well.
    """
    try:
        return action()
    except Exception as error:  # noqa: BLE001  a user's model may raise anything
        said = f"{type(error).__name__}: {error}"
        made, ran = _run_action(with_numbers)
        if ran:
            found.notes.append(f"the {key} does not run on the meta device ({said}): it was tried on the CPU")
            return made
        if is_meta_error(error) or is_out_of_memory(error):
            found.notes.append(
                f"the {key} does not run on the meta device ({said}); it meets the first real batch first"
            )
        else:
            scalars, named, _ = find_named_arguments(node or {}, error)
            if len(named) == 1:
                name = named.pop()
                found.mistakes.append(Mistake(f"{key}.{name}", f"is refused ({said})", scalars[name], kind="refused"))
                return None
            batch = (
                "no data"
                if found.batch is None
                else f"a batch of two samples ({', '.join(describe_shapes(found.batch))})"
            )
            rule = f"{verb} {batch}: {said}"
            found.mistakes.append(
                Mistake(key, rule, where=locate_user_code(error), remedy=remedy(error), kind="refused")
            )
        return None


def _run_action(action: Callable[[], Any] | None) -> tuple[Any, bool]:
    """Run an action; return its result and True, or None and False if it is None or raises."""
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
            Mistake("step", f"must return a mapping with `loss`, but returns {type(outcome).__name__}", kind="type")
        )
    elif not isinstance(outcome["loss"], torch.Tensor):
        rule = f"must give a tensor to call `backward` on, but gives {type(outcome['loss']).__name__}"
        found.mistakes.append(Mistake("loss", rule, kind="type"))
    elif outcome["loss"].numel() != 1:
        shape = list(outcome["loss"].shape)
        found.mistakes.append(
            Mistake("loss", f"must give one number to call `backward` on, but gives the shape {shape}", kind="type")
        )
    elif not own and not outcome["loss"].requires_grad:
        rule = "must depend on a parameter that trains, but has no gradient (a `detach`, or all that it uses is frozen)"
        found.mistakes.append(Mistake("loss", rule))
    elif any(config.metrics.values()) and not {"output", "target"} <= outcome.keys():
        found.mistakes.append(
            Mistake(
                "step",
                f"must return `output` and `target` for the metrics, but returns {', '.join(outcome)}",
                kind="missing",
            )
        )
    else:
        _check_names(config, found, [name for name in outcome if name not in RESERVED])


def _check_names(config: Config, found: Preflight, fields: Sequence[str]) -> None:
    """Check that objective and monitor name produced metrics or the step's own fields."""
    known, prefixes = find_metric_names(config)
    splits = list(dict.fromkeys(name.partition("/")[0] for name in known))
    known += [f"{split}/{field}" for split in splits for field in fields]
    for key, wanted in (("train.objective", config.train.objective), ("scheduler.monitor", config.scheduler.monitor)):
        if wanted is not None and wanted not in known and not wanted.startswith(tuple(prefixes)):
            right = find_nearest(wanted, known)
            rule = f"must be one of {', '.join(f'`{name}`' for name in known)}: nothing else is produced"
            found.mistakes.append(Mistake(key, rule, wanted, remedy=format_suggestion(right), suggestion=right))
