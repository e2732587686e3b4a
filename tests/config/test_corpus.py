"""Every shipped config, wrong in one place: the report names the key, the line and the nearest right name."""

import random
from collections import Counter
from functools import cache

import pytest

from runner.config.check.check import Check
from runner.config.compose import compose
from tests.config import corpus

SEED = 20260101


@cache
def make_corpus():
    """Make the corpus once, where a test asks for it: 12 s that a collection does not have to spend."""
    return corpus.cases(SEED)


def judge(cases, folder):
    """Shares of the corpus: rejected, key, place, first suggestion for typing errors, alone, valid after the fix."""
    right, asked, wrong = Counter(), Counter(), []

    def count(what, case, holds, found):
        asked[what] += 1
        right[what] += bool(holds)
        if not holds:
            wrong.append(f"{what}: {case.kind} {case.file} {case.arguments} {case.key} {case.where} → {found}")

    for case in cases:
        found = corpus.report(case, folder, meta=True)
        named = [mistake for mistake in found if mistake.key == case.key]
        count("rejected", case, found, found)
        count("key", case, named, found)
        if not named:
            continue
        first = named[0]
        after = first.where.removeprefix(case.where)
        count("place", case, after != first.where and not after[:1].isdigit(), found)
        count("alone", case, len(found) == 1, found)
        if case.suggestion and case.kind.startswith("typo"):
            count("suggestion", case, first.suggestion == case.suggestion, found)
        fixed = corpus.fixed(case, first)
        if fixed is not None and not (case.kind == "typo in a key" and not case.file):
            count("fixed", case, not corpus.report(fixed, folder), first)
    shares = {what: right[what] / asked[what] for what in asked}
    print(  # noqa: T201  the measured numbers, with the seed
        f"seed {SEED}, {len(cases)} cases:",
        {what: f"{right[what]}/{asked[what]}" for what in asked},
        *sorted(wrong, key=lambda said: not said.startswith("rejected"))[:40],
        sep="\n",
    )
    return shares


@pytest.mark.exhaustive
def test_corpus_has_at_least_500_cases():
    assert len(make_corpus()) >= 500
    assert {case.kind for case in make_corpus()} >= {
        "typo in a key",
        "typo in a target",
        "typo in an option",
        "wrong type",
        "out of range",
        "missing",
        "stray key",
        "wrong slot",
        "broken interpolation",
    }


def test_sample_of_the_corpus(tmp_path):
    shares = judge(random.Random(SEED).sample(make_corpus(), 7), tmp_path)

    least = {"rejected": 1, "key": 0.98, "place": 0.98, "suggestion": 0.98, "fixed": 0.95}
    assert {} == {name: shares[name] for name in least if shares[name] < least[name]}


@pytest.mark.exhaustive
def test_whole_corpus(tmp_path):
    shares = judge(make_corpus(), tmp_path)

    least = {"rejected": 1, "key": 0.99, "place": 0.99, "suggestion": 0.98, "alone": 0.98, "fixed": 0.95}
    assert {} == {name: shares[name] for name in least if shares[name] < least[name]}


MISTAKES = [
    "+train.epocs=3",
    "optimizer.lrr=0.1",
    "loader.batch_size=0",
    "seed=-1",
    "model.widht=3",
    "log.every=ten",
    "+lodaer.x=1",
    "loss._target_=torch.optim.SGD",
    "transform.train.shift.pixels=x",
    "device.type=cdua",
    "train.check_finite=of",
    "name=''",
    "scheduler.interval=stepp",
    "dataset.val_fraction=2",
    "++metrics.f1._target_=os.system",
    "model=smal_cnn",
    "++init.rules.a={module: torch.nn.Conv3dd, weight: 0}",
    "train.objective=val/acuracy",
    "loader.persistent_workers=true",
    "a b",
]


@pytest.mark.parametrize("count", [2, 5, 10, 20])
def test_k_mistakes_at_once_are_k_lines(count):
    for seed in range(2):
        chosen = random.Random(seed).sample(MISTAKES, count)
        checked = Check(compose(chosen))
        found = [*checked.at_once, *checked.by_import()]

        assert count == len(found), (chosen, found)
