"""Preflight of a step: a made-up batch through model, loss, optimizer step and metrics."""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from runner.config.check.rules.train import find_metric_names, find_stop_names
from runner.config.component_settings import list_components, list_derived, read_sources, split_settings
from runner.config.schema import Config, Sample
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import Mistake, RunError
from runner.core.trees import count_samples
from runner.experiment.builders import model as model_builder
from runner.experiment.builders import train as train_builder
from runner.experiment.builders.instantiate import InstantiationError, Trust, instantiate
from runner.experiment.preflight.report import (
    Preflight,
    describe_shapes,
    find_named_arguments,
    is_meta_error,
    locate_user_code,
)
from runner.experiment.preflight.train import check_saving
from runner.train import broadcasting, evaluation, remedies
from runner.train.loss_weights import KINDS
from runner.train.oom import is_out_of_memory
from runner.train.optimizer_step.closure import has_parameter, is_custom_step
from runner.train.optimizer_step.named_updates import NO_UPDATE, CheckedUpdate
from runner.train.optimizer_step.split_on_oom import cut
from runner.train.step_outputs import NO_NUMBERS, RESERVED
from runner.train.steps import get_output, needs_input_and_target

MOST_NUMBERS = 100_000_000  # of a model that is built a second time, to be sure that a refusal is not the meta device's


def try_step(
    config: Config,
    found: Preflight,
    loss: Any,
    trust: Trust,
    groups: list[dict[str, Any]] | None,
    *,
    names: bool = True,
) -> None:
    """Send the batch through model, step and metrics, as training and evaluation do.

    Whose fault an error is shows in which of them raises. `names`: whether all metrics are known, so that the names
    which other keys have for them can be compared.
    """
    model = found.model
    assert model is not None
    step = instantiate(config.step, "step", trust=trust, call=False)
    if is_custom_step(step) and (groups is None or found.mistakes):
        return
    given = _make_stand_ins(config, step, groups or (), trust)
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
                _check_outcome(found, outcomes["train"], own=bool(given))
            if len(found.mistakes) == before and found.eval_batch is not None:
                evaluated = dataclasses.replace(
                    found, batch=found.eval_batch, train_shapes=describe_shapes(found.batch)
                )
                without = {name: NO_UPDATE if name == "update" else None for name in given}
                outcomes["eval"] = _run_step(config, evaluated, step, model.eval(), on_meta, without, trust)
            if len(found.mistakes) == before and outcomes["train"] is not None and names:
                _check_names(config, found, outcomes["train"], outcomes.get("eval") or outcomes["train"])
            if len(found.mistakes) == before and not found.left_open:
                try_metrics(config, found, outcomes, trust)
            if len(found.mistakes) == before and config.loader.batch_size == 1 and not given:
                _try_one_sample(found, step, model.train(), on_meta)
        finally:
            model.train(training)


def _make_stand_ins(config: Config, step: Any, groups: Sequence[Mapping[str, Any]], trust: Trust) -> dict[str, Any]:
    """Make the optimizer, or the update, that a step of one's own asks for."""
    given: dict[str, Any] = {}
    if has_parameter(step, "optimizer"):
        own = [dict(group) for group in groups]  # an optimizer changes them
        given["optimizer"] = train_builder.make_optimizer(config, own, torch.device("cpu"), trust)
    if has_parameter(step, "update"):
        given["update"] = CheckedUpdate(model_builder.find_member_optimizers(config))
    return given


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
    if needs_input_and_target(step):
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

    def taken() -> Any:
        if needs_input_and_target(step):
            return step(found.batch, model, loss)
        outcome, mistake = watch_step(lambda: step(found.batch, model, loss, **given), model, found.batch)
        found.left_open |= _keep_spread(config, found, mistake)
        return outcome

    outcome: Mapping[str, Any] | None = _try_action(
        found,
        key,
        verb,
        taken,
        config.loss,
        _make_remedy(config, found, made),
        None if given else with_numbers,
    )
    return outcome if len(found.mistakes) == before else None


def _keep_spread(config: Config, found: Preflight, mistake: Mistake | None) -> bool:
    """Keep the mistake of a loss that spreads, and return whether only the first real batch shows it."""
    if mistake is not None and isinstance(config.dataset.sample, Sample):  # which says nothing of the target
        return True
    found.mistakes += [mistake] if mistake is not None else []
    return False


def _check_broadcast(config: Config, found: Preflight, made: Any, loss: Any) -> bool:
    """Record a mistake and return True if the loss broadcasts; leave it open if the target is assumed."""
    try:
        target, output = found.batch[config.step.get("target", 1)], config.step.get("output")
        made = made if output is None or isinstance(made, torch.Tensor) else get_output(made, output)
    except (LookupError, TypeError):
        return False
    mistake = check_loss_broadcast(loss, made, target)
    found.left_open |= _keep_spread(config, found, mistake)
    return mistake is not None and not found.left_open


def check_loss_broadcast(loss: Any, output: Any, target: Any) -> Mistake | None:
    """Return a mistake if the loss compares every output with every target, else None."""
    if loss is None:
        return None
    seen = broadcasting.find_broadcast_shape(lambda: loss(output, target), output, target)
    if seen.error is not None and seen.shape is None:  # the meta device alone may refuse it
        with_numbers = remedies.make_zeros(output), remedies.make_zeros(target)
        seen = broadcasting.find_broadcast_shape(lambda: loss(*with_numbers), *with_numbers)
    return _spread("loss", seen)


def watch_step(step: Callable[[], Any], model: nn.Module, batch: Any) -> tuple[Any, Mistake | None]:
    """Run a custom step; return its outcome, and the mistake of outputs that broadcast."""
    with broadcasting.watch_broadcasts(model, batch) as seen:
        outcome = step()
    return outcome, _spread("step", seen)


def _spread(key: str, seen: broadcasting.BroadcastTracker) -> Mistake | None:
    if seen.shape is None or seen.output is None or seen.target is None:
        return None
    remedy = remedies.suggest_squeeze(seen.output, seen.target) or remedies.suggest_for_loss(seen.output, seen.target)
    return Mistake(key, broadcasting.describe_broadcast(seen), remedy=remedy, kind="conflict")


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
    if made is None:
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
    for name, whole in list_components(config.metrics).items():
        node, settings = split_settings("metric", whole)
        if any(mistake.key == f"metrics.{name}" for mistake in found.mistakes):
            continue
        if any(name in outcome.keys() - RESERVED for outcome in outcomes.values() if isinstance(outcome, Mapping)):
            rule = f"must have another name: the step has a field `{name}` of its own"
            found.mistakes.append(
                Mistake(f"metrics.{name}", rule, remedy=f"name it `metrics.own_{name}`, for instance", kind="conflict")
            )
            continue
        take = train_builder.make_metric_input(config, name, None)
        for which, outcome in outcomes.items():
            if not isinstance(outcome, Mapping) or settings.get("on", "both") not in (which, "both"):
                continue
            try:
                given = [*take.select(outcome)]
            except RunError as error:
                key, _, rule = str(error).partition(": ")
                found.mistakes.append(Mistake(key.partition("=")[0], rule, kind="no-match"))
                break
            mistake = check_metric_fit(name, node, given[0], trust, training=which == "train") if given else None
            if mistake is not None:
                found.mistakes.append(mistake)
                break


def check_metric_fit(
    name: str, node: Mapping[str, Any], members: tuple[Any, ...], trust: Trust = (), *, training: bool = False
) -> Mistake | None:
    """Return a mistake if a new metric refuses made-up outputs and targets of these shapes and dtypes.

    It gets several made-up ones (logits, shares, zeros; targets: shares or classes, else labels of 0 and 1), and is
    refused where it takes none of them. `members` are the output and, unless the metric gets the output alone, the
    target.
    """
    output, target = members[0], members[1] if len(members) > 1 else None
    key, given = f"metrics.{name}", f"output {remedies.spell(output)}"
    given += f", target {remedies.spell(target)}" if len(members) > 1 else ""
    refused: Exception | None = None
    spread: Mistake | None = None
    made_up = (remedies.make_logits, remedies.make_probabilities, remedies.make_zeros)
    for aim, made in itertools.product((remedies.make_targets, remedies.make_labels), made_up):
        try:
            metric: Any = instantiate(node, key, trust=trust)
            metric.reset()
            outputs, targets = made(output), aim(target, output)
            with broadcasting.BroadcastTracker(outputs, targets) as seen:
                metric.update(*(outputs, targets)[: len(members)])
                spread = _spread(key, seen)
        except Exception as error:  # noqa: BLE001  a metric may raise anything
            refused = refused or error
            continue
        try:
            with seen:
                evaluation.flatten_metric(key, metric.compute())
        except Exception as error:  # noqa: BLE001
            refused = refused or error
            continue
        return spread or _spread(key, seen) or check_saving(key, metric, instantiate(node, key, trust=trust))
    assert refused is not None
    said = str(refused) if isinstance(refused, RunError) else f"{type(refused).__name__}: {refused}"
    if isinstance(refused, InstantiationError):
        return None  # said already
    wanted, classes = node.get("num_classes"), output.shape[1] if getattr(output, "ndim", 0) > 1 else 0
    where = locate_user_code(refused)
    if training and not isinstance(output, torch.Tensor):
        rule = f"refuses several outputs, which the model gives while it trains ({given}): {said}"
        return Mistake(key, rule, where=where, remedy=remedies.suggest_output(output), kind="conflict")
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


def _check_outcome(found: Preflight, outcome: Any, *, own: bool = False) -> None:
    if outcome is None:
        return
    if not isinstance(outcome, Mapping) or "loss" not in outcome:
        found.mistakes.append(
            Mistake("step", f"must return a mapping with `loss`, but returns {type(outcome).__name__}", kind="type")
        )
    elif outcome.get("loss_is") not in (None, *KINDS):
        rule = "must give `loss_is: mean` or `loss_is: sum`, or leave it out"
        found.mistakes.append(Mistake("step", rule, outcome["loss_is"]))
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


def _check_sources(config: Config, found: Preflight, known: set[str]) -> None:
    """Check that numbers are derived from what is produced in some split."""
    open_ended = list_components(config.metrics)
    for name, number in list_derived(config.metrics).items():
        for source in read_sources(number).values():
            if source not in known and source.partition("/")[0] not in open_ended:
                right = find_nearest(source, known)
                rule = f"must be one of {', '.join(f'`{one}`' for one in sorted(known))}: nothing else is produced"
                found.mistakes.append(
                    Mistake(f"metrics.{name}.of", rule, source, remedy=format_suggestion(right), suggestion=right)
                )


def _check_names(config: Config, found: Preflight, trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> None:
    """Check that objective and monitor name produced metrics or the step's own fields."""
    known, prefixes = find_metric_names(config)
    for split in list(dict.fromkeys(name.partition("/")[0] for name in known)):
        outcome = trained if split == "train" else evaluated
        known += [f"{split}/{field}" for field in outcome if field not in RESERVED | NO_NUMBERS]
        if outcome.get("loss") is None:
            known.remove(f"{split}/loss")
        for name in list_components(config.metrics):
            with suppress(RunError):
                if f"{split}/{name}" in known and not [
                    *train_builder.make_metric_input(config, name, None).select(outcome)
                ]:
                    known.remove(f"{split}/{name}")
                    prefixes = [prefix for prefix in prefixes if prefix != f"{split}/{name}/"]
                    found.notes.append(f"metrics.{name}: the step gives no output of {split}, so it has no value there")
    for name, number in list_derived(config.metrics).items():
        for split in {one.partition("/")[0] for one in known}:
            there = {f"{split}/{source.partition('/')[0]}" for source in read_sources(number).values()}
            if not there <= {*known, *(f"{split}/{field}" for field in trained)} and f"{split}/{name}" in known:
                known.remove(f"{split}/{name}")
    _check_sources(config, found, {name.partition("/")[2] for name in known})
    objective = config.train.objective or next(name for name in find_metric_names(config)[0] if name.endswith("/loss"))
    uses = {"train.objective": objective, "scheduler.monitor": config.scheduler.monitor}
    for key, wanted in (uses | find_stop_names(config)).items():
        if wanted is not None and wanted not in known and not wanted.startswith(tuple(prefixes)):
            right = find_nearest(wanted, known)
            rule = f"must be one of {', '.join(f'`{name}`' for name in known)}: nothing else is produced"
            found.mistakes.append(Mistake(key, rule, wanted, remedy=format_suggestion(right), suggestion=right))
