"""Plan of stacks: jobs that train as one model with a leading dimension, and why others do not."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from runner.config.check.check import to_resolved_data
from runner.config.identity import compute_stack_id
from runner.config.schema import Config, Sweep
from runner.core.durations import Duration
from runner.sweep.executors import memory_limit
from runner.sweep.verdicts import Verdict
from runner.train.vectorized import LEAST_STEPS

LEAST_AUTO = 4  # jobs of a stack below which `auto` does not try: two small kernels gain little over two slots
MOST_JOBS = 64  # of one stack: beyond it the caches of a CPU gain nothing more

Place = tuple[int, str]  # the step of a job's newest checkpoint, and the names of the jobs that it was together with

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


@dataclass
class StackPlan:
    """Stacks of a sweep.

    Attributes:
        settings: of the sweep.
        queued: whether the jobs go to a queue or to a launcher of Hydra, one by one.
        configs: of each job that may join a stack.
        keys: of the same jobs: the hash that jobs of one stack share.
        most: of each job that has left a stack: the most jobs that its next one may have.
        sizes: of the stacks of a group: by its key, the most jobs that it may have, and where it stands.
        alone: keys of groups whose jobs cannot be together, or are slower so.
        fitting: of groups whose stacks were too large for the memory: by key, the most jobs that one may have.
        reasons: of jobs that join none: key and reason → how many.
        verdicts: what was decided about each group, by its key; see `recall`.
        recalled: keys of groups that an earlier invocation has decided about, until that is said.
        gpus: of this machine, where they are known.
    """

    settings: Sweep
    queued: bool = False
    configs: dict[str, Config] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    sizes: dict[tuple[str, int, Place], int] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    fitting: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    recalled: set[str] = field(default_factory=set)
    gpus: int = 0

    def recall(self, verdicts: Mapping[str, Verdict]) -> None:
        """Follow what earlier invocations of the sweep decided; `on` tries again what could not be together."""
        by = self.settings.vectorize
        for key, verdict in verdicts.items():
            self.verdicts[key] = verdict
            if verdict.by != by or by == "off" or (by == "on" and not verdict.as_one):
                continue
            self.recalled.add(key)
            if not verdict.as_one:
                self.alone.add(key)
            elif verdict.fits:
                self.fitting[key] = verdict.fits

    def decide(self, job: str, *, as_one: bool, why: str = "") -> Verdict:
        """Decide about the group of a job; return the verdict, which keeps what the memory holds of them."""
        key = self.keys[job]
        before = self.verdicts.get(key)
        verdict = Verdict(as_one, why, self.settings.vectorize, self.fitting.get(key, 0), before.jobs if before else [])
        self.verdicts[key] = verdict
        return verdict

    def has_decided(self, job: str) -> bool:
        """Return whether this sweep, asked as it is now, knows whether the group of a job trains as one."""
        verdict = self.verdicts.get(self.keys.get(job, ""))
        return verdict is not None and verdict.by == self.settings.vectorize

    def say_recalled(self, job: str) -> str:
        """Return the line about the group of a job that an earlier invocation has decided about, once."""
        key = self.keys.get(job, "")
        if key not in self.recalled:
            return ""
        self.recalled.remove(key)
        return self.verdicts[key].describe(self.count_alike(job), before=True)

    def count_alike(self, job: str) -> int:
        """Count the jobs of the group of a job."""
        return sum(key == self.keys[job] for key in self.keys.values())

    def add(self, job: str, config: Config, identify: Callable[[], str] | None = None) -> None:
        """Take a job into the plan; `identify` returns its hash for stacks, where somebody has it."""
        if job in self.keys or self.explain_none():
            return
        reason = explain_job_apart(config) or (explain_job_untried(config) if self.settings.vectorize == "auto" else "")
        if reason:
            self.reasons[reason] += 1
        else:
            self.keys[job] = identify() if identify else compute_stack_id(to_resolved_data(config))
            self.configs[job] = config
            self.sizes.clear()  # the next batch of a search has jobs of its own
            if self.keys[job] in self.fitting:
                self.most[job] = self.fitting[self.keys[job]]
            if self.keys[job] in self.alone:
                self.most[job] = 1

    def explain_none(self) -> str:
        """Explain why the sweep has no stacks; empty where it may have some."""
        is_search = self.settings.search.sampler is not None
        reasons = {
            "sweep.vectorize=off": self.settings.vectorize == "off",
            "sweep.processes: several processes train one model": self.settings.processes > 1,
            "hydra/launcher: its jobs run one by one": self.queued,
            "sweep.search.batch=1: one point is asked for at a time": is_search and self.settings.search.batch == 1,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def choose(self, waiting: Sequence[str], read_place: Callable[[str], Place]) -> list[str]:
        """Choose the jobs that train with the first of those that wait; it alone without a stack.

        `read_place` gives the step at which a job stands, and the stack that it was in: those of one stack stand at one
        step, and whoever was together stays together, so that they go on to the bit.
        """
        first = waiting[0]
        key, most = self.keys.get(first), self.most.get(first, MOST_JOBS)
        if key is None or most < 2:
            return [first]
        step, stack = where = read_place(first)
        alike = [
            job
            for job in waiting
            if self.keys.get(job) == key and self.most.get(job, MOST_JOBS) == most and read_place(job) == where
        ]
        place = (key, most, where)
        if place not in self.sizes:  # of all that wait at first: those that are left fill the last slot
            slots = 1 if step and stack else self.count_slots(self.configs[first])
            self.sizes[place] = compute_stack_size(len(alike), slots, most)
        size = min(self.sizes[place], most)
        if most < MOST_JOBS or (self.has_decided(first) and self.verdicts[key].as_one):
            return alike[:size] if size >= 2 else [first]  # those that are left of what has begun
        return alike[:size] if size >= self.least and not self.explain_short(alike) else [first]

    @property
    def least(self) -> int:
        """The fewest jobs of a stack."""
        return LEAST_AUTO if self.settings.vectorize == "auto" else 2

    def explain_short(self, jobs: Sequence[str]) -> str:
        """Explain that jobs have too few steps for `auto` to try them; empty where one has more, or in epochs."""
        spans = [Duration.parse(self.configs[job].train.duration) for job in jobs]
        few = all(span.unit == "st" and span.amount < LEAST_STEPS for span in spans)
        return f"train.duration: fewer than {LEAST_STEPS} steps" if few and self.settings.vectorize == "auto" else ""

    def count_slots(self, config: Config) -> int:
        """Count the stacks that run at a time."""
        kind, _, index = config.device.type.partition(":")
        if isinstance(self.settings.slots, int):
            return self.settings.slots
        if kind != "cpu" and self.gpus:
            return 1 if index else self.gpus
        if kind not in ("cpu", "auto"):
            return 1
        return max(1, memory_limit.count_cores() // max(1, config.device.threads))

    def part(self, jobs: Sequence[str], *, alone: bool, fits: int = 0) -> None:
        """Let jobs that have left a stack without an end try again: alone, or in stacks of half the size.

        Where they cannot be together or are slower so, that holds for all jobs like them; so does what the memory holds
        of them, which is `fits` where that was found out beforehand.
        """
        keys = {self.keys[job] for job in jobs}
        alike = [job for job, key in self.keys.items() if key in keys]
        if alone:
            self.alone |= keys
            self.most |= dict.fromkeys(alike, 1)
        elif fits:
            self.fitting |= dict.fromkeys(keys, fits)
            for key in keys & self.verdicts.keys():
                self.verdicts[key].fits = fits
            self.most |= {job: min(fits, self.most.get(job, fits)) for job in alike}
        else:
            self.most |= dict.fromkeys(jobs, math.ceil(len(jobs) / 2))

    def describe(
        self,
        try_group: Callable[[list[Config]], tuple[str, str]] = lambda _: ("", ""),
        *,
        asked: bool = True,
    ) -> Iterator[str]:
        """Yield lines that say which jobs train as one, and for the others why not.

        Args:
            try_group: tries the jobs of a group as one; returns why they cannot be, and else why that is not known.
            asked: whether `sweep.vectorize` was given; without it nothing is said of a sweep that has no stacks.
        """
        groups: dict[str, list[str]] = {}
        for job, key in self.keys.items():
            groups.setdefault(key, []).append(job)
        stacks = [jobs for jobs in groups.values() if self._size(jobs) >= self.least]
        if not asked and all(self.explain_short(jobs) for jobs in stacks):
            return
        for jobs in stacks:
            yield from self._describe_group(jobs, try_group)
        few = len(self.keys) - sum(map(len, stacks))
        if few and len(self.keys) > 1:
            yield f"vectorize: {few:,} jobs alone: fewer than {self.least} of one architecture for a slot"
        for reason, count in self.reasons.items():
            yield f"vectorize: {count:,} job{'s' * (count != 1)} alone: {reason}"
        if (reason := self.explain_none()) and self.settings.vectorize != "off":
            yield f"vectorize: all jobs alone: {reason}"

    def _describe_group(self, jobs: list[str], try_group: Callable[[list[Config]], tuple[str, str]]) -> Iterator[str]:
        size, reason, untried = self._size(jobs), self.explain_short(jobs), ""
        if not reason:
            reason, untried = try_group([self.configs[job] for job in jobs])
        if reason:
            yield f"vectorize: {len(jobs):,} jobs alone: {reason}"
            return
        each = f", {size:,} in each of {math.ceil(len(jobs) / size):,} processes" if size < len(jobs) else ""
        where = ", where that is faster" if self.settings.vectorize == "auto" else ""
        yield f"vectorize: {len(jobs):,} jobs train as one model{each}{where}"
        if untried:
            yield f"vectorize: whether torch can map the model is not known before the first batch: {untried}"

    def _size(self, jobs: Sequence[str]) -> int:
        """Compute the size of the stacks of a group."""
        return compute_stack_size(len(jobs), self.count_slots(self.configs[jobs[0]]))


def may_have_stacks(settings: Sweep, points: int) -> bool:
    """Return whether a sweep of so many known points, or a search, may train jobs as one."""
    wanted = points if settings.search.sampler is None else settings.search.batch
    return not StackPlan(settings).explain_none() and wanted >= (LEAST_AUTO if settings.vectorize == "auto" else 2)


def compute_stack_size(jobs: int, slots: int, most: int = MOST_JOBS) -> int:
    """Compute the size of a stack: an equal share for each slot, `most` at most."""
    share = math.ceil(jobs / slots)
    return math.ceil(share / math.ceil(share / most))


_FITS = re.compile(r"memory: .*: (\d+) fits? at a time")


def describe_fitting(reason: str, fits: int) -> str:
    """Describe why a stack was too large, with the jobs that fit; see `read_fitting`."""
    return f"{reason}: {fits} fit{'s' * (fits == 1)} at a time"


def read_fitting(said: str) -> int:
    """Read how many jobs fit into the memory, from what a stack has said; 0 where that is not the reason."""
    found = _FITS.search(said)
    return int(found[1]) if found else 0


def explain_job_untried(config: Config) -> str:
    """Explain by its config why `auto` does not try a job; empty where it does."""
    return "train.max_time: as one each job would take fewer steps in it" if config.train.max_time is not None else ""


def explain_job_apart(config: Config) -> str:
    """Explain by its config why a job joins no stack: the key and the reason; empty where it may."""
    return next((f"{key}: {why}" for key, holds, why in REASONS if holds(config)), "")
