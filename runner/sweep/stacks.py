"""Plan of stacks: jobs that train as one model with a leading dimension, and why others do not."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from runner.config.check.check import to_resolved_data
from runner.config.identity import compute_stack_id
from runner.config.schema import Config
from runner.sweep.executors import memory_limit
from runner.sweep.jobs import PlannedJob, SweepPlan
from runner.sweep.launcher_settings import OURS, get_launcher_name

LEAST_AUTO = 4  # jobs of a stack below which `auto` does not try: two small kernels gain little over two slots
MOST_JOBS = 64  # of one stack: beyond it the caches of a CPU gain nothing more

OPTIMIZERS = ("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW", "torch.optim.RMSprop")

# A key of the config, whether it keeps a job out of every stack, and why.
REASONS: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    (
        "optimizer",
        lambda config: str(config.optimizer.get("_target_")) not in OPTIMIZERS,
        "only SGD, Adam, AdamW and RMSprop have a setting per job",
    ),
    ("device.compile", lambda config: bool(config.device.compile), "a compiled model cannot be mapped by torch.vmap"),
    ("device.precision", lambda config: config.device.precision == "fp16", "fp16 scales each loss by its own factor"),
    (
        "device.parallel",
        lambda config: config.device.parallel not in ("none", "auto"),
        "several devices train one model",
    ),
    ("train.detect_anomaly", lambda config: config.train.detect_anomaly, "it follows the backward of one job"),
    ("train.split_on_oom", lambda config: config.train.split_on_oom, "it splits the batch of one job"),
    ("loader.bad_samples", lambda config: config.loader.bad_samples != "error", "batches would differ in their size"),
    ("loader.sampler", lambda config: config.loader.sampler is not None, "a sampler has an order of its own"),
    (
        "loader.batch_sampler",
        lambda config: config.loader.batch_sampler is not None,
        "its batches may differ in their size",
    ),
    ("log.gradient_norm", lambda config: config.log.gradient_norm, "it looks into the steps of one job"),
    ("log.hooks", lambda config: any(config.log.hooks.values()), "they look into the steps of one job"),
    ("log.histograms", lambda config: config.log.histograms is not None, "it looks into the steps of one job"),
    ("log.profile", lambda config: config.log.profile is not None, "it looks into the steps of one job"),
    ("log.graph", lambda config: config.log.graph and config.log.tensorboard, "it traces the model of one job"),
    *(
        (f"log.{name}", lambda config, name=name: bool(getattr(config.log, name)), "it measures the steps of one job")
        for name in ("throughput", "data_wait", "memory", "mfu")
    ),
)


@dataclass(frozen=True)
class StackGroup:
    """Jobs that may train as one, and of how many a stack consists."""

    jobs: tuple[str, ...]
    size: int


@dataclass
class StackPlan:
    """Stacks of a sweep.

    Attributes:
        keys: of each job that may join one: the hash that jobs of one stack share.
        most: of each job that has left a stack: the most jobs that its next one may have.
        reasons: of jobs that join none: key and reason → how many.
        sizes: of the stacks of a group: by its key, the most jobs that it may have, and the step at which it stands.
    """

    plan: SweepPlan
    keys: dict[str, str] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    sizes: dict[tuple[str, int, int], int] = field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        """Whether `sweep.vectorize` and the executor allow stacks at all."""
        return explain_no_stacks(self.plan) == ""

    def add(self, job: PlannedJob) -> None:
        """Take a job into the plan."""
        if not self.wanted or job.id in self.keys:
            return
        reason = explain_job_apart(job.config)
        if reason:
            self.reasons[reason] += 1
        else:
            self.keys[job.id] = compute_stack_id(to_resolved_data(job.config))

    def choose(self, waiting: Sequence[PlannedJob], steps: Callable[[PlannedJob], int]) -> list[PlannedJob]:
        """Choose the jobs that train with the first of those that wait; it alone without a stack.

        `steps` gives the step at which a job stands: those of one stack stand at one step.
        """
        first = waiting[0]
        key = self.keys.get(first.id)
        most = self.most.get(first.id, MOST_JOBS)
        if key is None or most < 2:
            return [first]
        step = steps(first)
        alike = [
            job
            for job in waiting
            if self.keys.get(job.id) == key and self.most.get(job.id, MOST_JOBS) == most and steps(job) == step
        ]
        place = (key, most, step)
        if place not in self.sizes:  # of all that wait at first: those that are left fill the last slot
            self.sizes[place] = compute_stack_size(len(alike), self.count_slots(first.config))
        size = min(self.sizes[place], most)
        least = LEAST_AUTO if self.plan.settings.vectorize == "auto" and most == MOST_JOBS else 2
        return alike[:size] if size >= least else [first]

    def count_slots(self, config: Config) -> int:
        """Count the stacks that run at a time."""
        if isinstance(self.plan.settings.slots, int):
            return self.plan.settings.slots
        if config.device.type not in ("cpu", "auto"):
            return 1
        return max(1, memory_limit.count_cores() // max(1, config.device.threads))

    def part(self, jobs: Sequence[str], *, alone: bool) -> None:
        """Let jobs that have left a stack without an end try again: alone, or in stacks of half the size."""
        for job in jobs:
            self.most[job] = 1 if alone else max(1, math.ceil(len(jobs) / 2) if len(jobs) > 1 else 1)

    def groups(self, jobs: Iterable[PlannedJob]) -> list[StackGroup]:
        """Return the groups of the jobs, as `check -m` shows them."""
        by_key: dict[str, list[PlannedJob]] = {}
        for job in jobs:
            if job.id in self.keys:
                by_key.setdefault(self.keys[job.id], []).append(job)
        return [
            StackGroup(
                tuple(job.id for job in members),
                compute_stack_size(len(members), self.count_slots(members[0].config)),
            )
            for members in by_key.values()
        ]


def compute_stack_size(jobs: int, slots: int) -> int:
    """Compute the size of a stack: an equal share for each slot, MOST_JOBS at most."""
    share = math.ceil(jobs / slots)
    return math.ceil(share / math.ceil(share / MOST_JOBS))


def explain_no_stacks(plan: SweepPlan) -> str:
    """Explain why a sweep has no stacks; empty where it may have some."""
    if plan.settings.vectorize == "off":
        return "sweep.vectorize=off"
    if plan.settings.processes > 1:
        return "sweep.processes: several processes train one model"
    if get_launcher_name(plan.sweep.base) in OURS:
        return "hydra/launcher: jobs of a queue run one by one"
    return ""


def explain_job_apart(config: Config) -> str:
    """Explain by its config why a job joins no stack: the key and the reason; empty where it may."""
    return next((f"{key}: {why}" for key, holds, why in REASONS if holds(config)), "")


def describe_stacks(plan: StackPlan, jobs: Sequence[PlannedJob]) -> Iterator[str]:
    """Yield lines that say which jobs train as one, and for the others why not."""
    if not plan.wanted:
        return
    least = LEAST_AUTO if plan.plan.settings.vectorize == "auto" else 2
    for group in plan.groups(jobs):
        if group.size >= least:
            yield (
                f"vectorize: {len(group.jobs):,} jobs train as one model each {group.size:,}"
                if group.size < len(group.jobs)
                else f"vectorize: {len(group.jobs):,} jobs train as one model"
            )
    for reason, count in plan.reasons.items():
        yield f"vectorize: {count:,} job{'s' * (count != 1)} alone: {reason}"
