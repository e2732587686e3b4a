"""Search for the settings that explain a gap: bisection from A to B, with interactions and noise.

The path takes the settings of B one after the other: A, then one setting of B, then two, up to B. Bisection finds where
the metric jumps on it, so that of n settings one culprit costs about log2(n) runs, and the effects of all steps add up
to the gap. A step that does less alone than on the path acts together with earlier ones; a second bisection, with it
held fixed, finds these. Mixtures without a result are unresolved, as in delta debugging (A. Zeller and R. Hildebrandt,
IEEE Transactions on Software Engineering 28, 2002, 183-200), and the next one beside them is tried.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from runner.sweep.blame.measured import Effect, Measured, Mixture, RunRequest

SHARE = 0.2  # of the gap: what changes the metric by less is no culprit


SURE = 0.985  # an effect is seen beyond this quantile of Student's t, with the noise's degrees of freedom


CERTAIN = 0.995  # the same for the gap itself


LARGER = 0.6  # of an effect: so much of it in one half is followed, though noise could be as large


ODDS = math.log(50)  # that a mixture is on one side of a jump and not on the other, beyond which it is not run again


MOST_REPLICATES = 4  # of a mixture in between, where it is not clear on which side of the gap it is


Asked = Generator[list[RunRequest], None, None]  # yields runs to be done, and goes on when they are measured


@dataclass(frozen=True)
class Culprit:
    """Settings that explain a part of the gap.

    Attributes:
        settings: one, or several that act together or cannot be told apart.
        effect: what they change, from A.
        without: what B changes without them: the gap that is left; None where it was not measured.
        kind: `alone`; `together`, where they do more than each of them; `unseparated`, where mixtures have no result or
            the runs were used up.
    """

    settings: tuple[int, ...]
    effect: Effect
    without: Effect | None = None
    kind: str = "alone"


@dataclass
class Findings:
    """Result of a search.

    Attributes:
        gap: B's mean less A's.
        culprits: the largest first.
        explained: what all culprits together change, from A; None without any.
        left: what all other settings change, from A; None where it was not measured.
        untried: settings of which nothing is known, for the runs were used up.
        unresolved: how many mixtures had no result.
        verdict: `found`, `noise` (no gap beyond it), `unfinished`, `unmeasured` (A or B has no value).
    """

    gap: Effect = field(default_factory=lambda: Effect(math.nan, math.nan))
    culprits: list[Culprit] = field(default_factory=list)
    explained: Effect | None = None
    left: Effect | None = None
    untried: tuple[int, ...] = ()
    unresolved: int = 0
    verdict: str = "unfinished"


@dataclass(frozen=True)
class Step:
    """Part of a path that changes the metric: its settings, and the mixture before them."""

    before: Mixture
    settings: tuple[int, ...]
    is_separated: bool = True

    @property
    def after(self) -> Mixture:
        """The mixture with them."""
        return self.before | frozenset(self.settings)


class BlameSearch:
    """Search over `count` settings with at most `budget` runs, which `find` yields."""

    def __init__(self, count: int, budget: int, replicates: int = 3) -> None:
        self.measured = Measured()
        self.findings = Findings()
        self._all: Mixture = frozenset(range(count))
        self._budget, self._replicates = budget, replicates
        self._asked: set[RunRequest] = set()
        self._refused = 0

    # ---- runs

    @property
    def left(self) -> int:
        """Runs that may still be asked for; a mixture that could not be built has cost none."""
        return self._budget - len(self._asked) + self._refused

    def refuse(self, request: RunRequest) -> None:
        """Note that a mixture cannot be built: it is unresolved, without a run."""
        self._refused += 1
        self.measured.add(request, None)

    def _ask(self, *wanted: tuple[Mixture, int]) -> Asked:
        """Ask for replicates of mixtures, as far as the budget goes."""
        requests = [request for mixture, count in wanted for request in self.measured.list_next(mixture, count)]
        requests = [request for request in requests if not self.measured.is_unresolved(request.mixture)]
        requests = requests[: max(0, self.left)]
        if requests:
            self._asked.update(requests)
            yield requests

    def _has(self, mixture: Mixture) -> bool:
        return bool(self.measured.get_numbers(mixture))

    # ---- what counts

    def _compute_threshold(self, low: Mixture, high: Mixture) -> float:
        """Return the least difference of two mixtures that is an effect: a share of the gap, beyond the noise."""
        numbers = [len(self.measured.get_numbers(mixture)) for mixture in (low, high)]
        share, noise = SHARE * abs(self.findings.gap.value), self.measured.noise
        if math.isnan(noise) or not noise:
            return share
        return max(share, self.measured.compute_quantile(SURE) * noise * math.sqrt(sum(1 / n for n in numbers)))

    def _matters(self, low: Mixture, high: Mixture) -> bool:
        return abs(self.measured.compare(low, high).value) >= self._compute_threshold(low, high)

    # ---- the search

    def find(self) -> Asked:
        """Search; yields lists of runs that may be done at the same time, and goes on once they are measured."""
        yield from self._measure_gap()
        if self.findings.verdict != "unfinished" or not self._all:
            return
        found: list[Culprit] = []
        taken: Mixture = frozenset()
        for _ in range(3):  # further rounds find what another culprit has hidden: causes of which each is enough
            rest = self._all - taken
            if taken:
                yield from self._ask((rest, 1))
                if self._has(rest) and self._matters(frozenset(), rest):
                    yield from self._ask((rest, 2))
                if not self._has(rest) or not self._matters(frozenset(), rest):
                    break
            culprits = yield from self._search(sorted(rest))
            if not culprits:
                break
            found += culprits
            taken |= frozenset(index for culprit in culprits for index in culprit.settings)
        yield from self._conclude(found, taken)

    def _measure_gap(self) -> Asked:
        """Measure A and B, with more replicates where the gap may be noise."""
        nothing, count = frozenset[int](), self._replicates
        while True:
            yield from self._ask((nothing, count), (self._all, count))
            if not self._has(nothing) or not self._has(self._all):
                self.findings.verdict = "unmeasured"
                return
            self.findings.gap = self.measured.compare(nothing, self._all)
            if abs(self.findings.gap.value) > self._compute_doubt(nothing, self._all):
                return
            if count >= 2 * self._replicates or self.left < self._budget // 2:
                self.findings.verdict = "noise"
                return
            count += 1

    def _compute_doubt(self, low: Mixture, high: Mixture) -> float:
        """Return the least difference that is no noise; A and B are looked at several times, so it is large."""
        noise = self.measured.noise
        if math.isnan(noise) or not noise:
            return 0.0
        numbers = [len(self.measured.get_numbers(mixture)) for mixture in (low, high)]
        return self.measured.compute_quantile(CERTAIN) * noise * math.sqrt(sum(1 / n for n in numbers))

    def _search(self, settings: Sequence[int]) -> Generator[list[RunRequest], None, list[Culprit]]:
        """Find the culprits among these settings of B, the others being those of A."""
        steps = yield from self._bisect(frozenset(), settings)
        culprits: list[Culprit] = []
        for step in sorted(steps, key=lambda step: -abs(self._size(step))):
            taken = frozenset(index for culprit in culprits for index in culprit.settings)
            if taken & set(step.settings):
                continue  # its part of what they do together
            culprit = yield from self._explain(step, taken)
            if culprit is not None:
                culprits = [one for one in culprits if not set(one.settings) <= set(culprit.settings)] + [culprit]
        return culprits

    def _size(self, step: Step) -> float:
        return self.measured.compare(step.before, step.after).value

    def _bisect(self, base: Mixture, order: Sequence[int]) -> Generator[list[RunRequest], None, list[Step]]:
        """Find the steps of the path from `base` through `order` at which the metric jumps."""
        whole, found = Step(base, tuple(order)), list[Step]()
        waiting = [whole] if order and self._matters(whole.before, whole.after) else []
        while waiting:
            waiting.sort(key=lambda step: abs(self._size(step)))
            step = waiting.pop()  # the largest first: the runs may be used up
            if len(step.settings) == 1:
                found.append(step)
                continue
            parts = yield from self._split(step)
            kept = [part for part in parts if self._matters(part.before, part.after)]
            if not kept:
                larger = max(parts, key=lambda part: abs(self._size(part)), default=step)
                if larger is not step and abs(self._size(larger)) > LARGER * abs(self._size(step)):
                    kept = [larger]
                else:  # no middle has a result, or no half is an effect of its own
                    found.append(Step(step.before, step.settings, is_separated=False))
            waiting += kept
        return found

    def _split(self, step: Step) -> Generator[list[RunRequest], None, list[Step]]:
        """Measure a mixture in the middle of a step; return both parts, or nothing where none has a result."""
        middle = len(step.settings) // 2
        for at in sorted(range(1, len(step.settings)), key=lambda at: abs(at - middle)):
            between = step.before | frozenset(step.settings[:at])
            yield from self._ask((between, 1))
            if not self._has(between):
                if not self.measured.is_unresolved(between):
                    return []  # the runs are used up
                continue
            replicates = 1
            while self._is_unclear(step, between) and replicates < MOST_REPLICATES and self.left:
                replicates += 1
                yield from self._ask((between, replicates))
            return [Step(step.before, step.settings[:at]), Step(between, step.settings[at:])]
        return []

    def _is_unclear(self, step: Step, between: Mixture) -> bool:
        """Return whether noise leaves open on which side of a jump a mixture is."""
        noise, measured = self.measured.noise, self.measured
        if math.isnan(noise) or not noise:
            return False
        own, odds = 1 / len(measured.get_numbers(between)), []
        for side in (step.before, step.after):
            variance = noise**2 * (own + 1 / len(measured.get_numbers(side)))
            odds.append(measured.compare(side, between).value ** 2 / (2 * variance))
        return abs(odds[0] - odds[1]) < ODDS and noise * math.sqrt(own) > 0.08 * abs(self._size(step))

    def _explain(self, step: Step, taken: Mixture) -> Generator[list[RunRequest], None, Culprit | None]:
        """Find which earlier settings of the path a step needs for its effect; None where it was noise."""
        yield from self._confirm(step)
        if not self._matters(step.before, step.after):
            return None
        own = frozenset(step.settings)
        kind = "alone" if step.is_separated else "unseparated"
        if not step.before:
            return self._describe(own, step, kind)
        target = self._size(step)
        yield from self._measure_clearly(own, target)
        if not self._has(own):
            return self._describe(own, step, "unseparated")
        if not self._is_short(own, target):
            return self._describe(own, step, kind)
        fixed = own | (taken & step.before)
        yield from self._ask((fixed, 1))
        if not self._has(fixed):
            return self._describe(own, step, "unseparated")
        steps = yield from self._bisect(fixed, sorted(step.before - fixed))
        partners = {index for part in steps for index in part.settings} | (fixed - own)
        separated = step.is_separated and all(part.is_separated for part in steps)
        yield from self._drop_idle(own, partners, self.measured.compute_mean(step.after))
        together = own | partners
        return self._describe(together, step, "together" if separated and partners else "unseparated")

    def _confirm(self, step: Step) -> Asked:
        """Run both sides of a step again where it may be noise."""
        count = 1
        while count < 3 and self.left > 2:
            half = self._compute_threshold(step.before, step.after)
            if abs(self._size(step)) > 1.5 * half or not self.measured.noise > 0:
                return
            count += 1
            yield from self._ask((step.before, count), (step.after, count))

    def _measure_clearly(self, mixture: Mixture, target: float) -> Asked:
        """Measure a mixture, again where noise leaves open whether it does as much as is to be explained."""
        yield from self._ask((mixture, 1))
        count = 1
        while count < 3 and self.left > 2 and self._has(mixture) and self._is_short(mixture, target, doubtful=True):
            count += 1
            yield from self._ask((mixture, count))

    def _drop_idle(self, own: Mixture, partners: set[int], reached: float) -> Asked:
        """Drop partners without which the settings do as much together."""
        if len(partners) < 2:
            return
        target = reached - self.measured.compute_mean(frozenset())
        for index in sorted(partners):
            if len(partners) < 2 or not self.left:
                return
            rest = own | (partners - {index})
            yield from self._measure_clearly(rest, target)
            if self._has(rest) and not self._is_short(rest, target):
                partners.remove(index)

    def _is_short(self, mixture: Mixture, target: float, *, doubtful: bool = False) -> bool:
        """Return whether a mixture does less than what is to be explained; with `doubtful` whether it may."""
        effect = self.measured.compare(frozenset(), mixture).value
        reached = effect / target if target else 1.0
        return 0.3 < reached < 0.85 if doubtful else reached < 0.6

    def _describe(self, settings: Mixture, step: Step, kind: str) -> Culprit:
        nothing = frozenset[int]()
        measured = self.measured
        effect = measured.compare(
            nothing if self._has(settings) else step.before, settings if self._has(settings) else step.after
        )
        return Culprit(tuple(sorted(settings)), effect, kind=kind)

    def _is_small(self, culprit: Culprit) -> bool:
        """Return whether a culprit is noise after all, or too little of the gap."""
        effect = culprit.effect
        return effect.is_noise or abs(effect.value) < SHARE / 2 * abs(self.findings.gap.value)

    def _conclude(self, found: list[Culprit], taken: Mixture) -> Asked:
        """Measure what all culprits change, and what is left without them, again with replicates."""
        nothing, rest = frozenset[int](), self._all - taken
        if found:
            single = [frozenset(culprit.settings) for culprit in found]
            yield from self._ask((rest, 2), *((mixture, 2) for mixture in single))
            yield from self._ask((taken, 2), (rest, 3), *((mixture, 3) for mixture in single))
        culprits = []
        for culprit in found:
            own = frozenset(culprit.settings)
            effect = self.measured.compare(nothing, own) if self._has(own) else culprit.effect
            others = self._all - own
            without = self.measured.compare(nothing, others) if self._has(others) else None
            culprits.append(Culprit(culprit.settings, effect, without, culprit.kind))
        findings = self.findings
        findings.gap = self.measured.compare(nothing, self._all)
        kept = [culprit for culprit in culprits if len(culprits) == 1 or not self._is_small(culprit)]
        findings.culprits = sorted(kept, key=lambda culprit: -abs(culprit.effect.value))
        findings.explained = self.measured.compare(nothing, taken) if taken and self._has(taken) else None
        findings.left = self.measured.compare(nothing, rest) if taken and self._has(rest) else None
        findings.unresolved = sum(self.measured.is_unresolved(mixture) for mixture in self.measured.values)
        if not self.left and findings.left is None:
            findings.untried = tuple(sorted(rest))
        findings.verdict = "found" if culprits else "unfinished"
