"""Filters of runs: what they hold for, and what is said of a wrong one."""

import math
from types import SimpleNamespace

import pytest

from runner.core.errors import ConfigError
from runner.sweep.runs.filters import parse_filter

RUN = {
    "name": "digits",
    "status": "failed",
    "age": 8 * 86_400.0,
    "size": 2_000_000,
    "seed": 3,
    "model.width": 32,
    "model.sizes": [64, 10],
    "train.duration": "5ep",
    "optimizer.nesterov": True,
    "optimizer.lr": 0.1,
    "val/accuracy": 0.75,
    "val/top-5": 0.9,
    "train/loss": math.nan,
    "weird key": 1,
    "pretrained.path": None,
}


def holds(text, run=RUN):
    return parse_filter(text, RUN.keys())(SimpleNamespace(get=run.get))


@pytest.mark.parametrize(
    "text",
    [
        "model.width > 16 and status == failed",
        "model.width>16 and status=='failed'",
        "not model.width <= 16",
        "16 < model.width < 64",
        "val/accuracy >= .75 and val/top-5 > val/accuracy",
        "status in [failed, interrupted] and seed not in (1, 2)",
        "age > 7d and age < 1w2d and age > 7d12h",
        "size >= 2MB and size < 2MiB",
        "train.duration == 5ep and train.duration < 5.5ep and not train.duration < 900st",
        "optimizer.nesterov == true and optimizer.nesterov and not optimizer.nesterov == 1",
        "optimizer.lr == 1e-1 and optimizer.lr > -1",
        "name ~ 'dig.*' and not name ~ 'dig' and name ~ digits",
        "64 in model.sizes and model.sizes == [64, 10] and 'git' in name",
        "train/loss == nan and not train/loss > 0 and not train/loss < 0",
        "`weird key` == 1",
        "pretrained.path == null and pretrained.path != 'a.pt' and not pretrained.path",
        "not pretrained.path > 3 and not pretrained.path ~ '.*' and not pretrained.path in [1]",
        "name == seed or (seed == 3 and (name == 'x' or name == 'digits'))",
    ],
)
def test_a_filter_holds(text):
    assert holds(text)
    assert not holds(f"not ({text})")


def test_a_key_that_a_run_lacks_is_null():
    assert holds("val/accuracy == null and val/accuracy != 3 and not val/accuracy < 3", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model.widht > 16", "did you mean `model.width`?"),
        ("lr > 0", "did you mean `optimizer.lr`?"),
        ("accuracy > 0", "did you mean `val/accuracy`?"),
        ("model == 3", "it has model.sizes, model.width"),
        ("status == faild", "did you mean `failed`?"),
        ("seed = 3", "write `==`"),
        ("seed == 3 && name == x", "write `and`"),
        ("!seed", "write `not`"),
        ("name !~ x", "write `not NAME ~ 'pattern'`"),
        ("age > 7", "needs a time"),
        ("age > 7ep", "needs a time"),
        ("size > 7ep", "needs a size"),
        ("val/accuracy > good", "a text needs quotes: 'good'"),
        ("seed > true", "cannot order by `true`"),
        ("3 == 3", "must compare a name with a value"),
        ("3", "must compare a name with a value"),
        ("seed in 3", "needs a list after `in`"),
        ("seed + 1 == 2", "does not calculate"),
        ("(1 + 1) == seed", "does not calculate"),
        ("seed == 3 and", "cannot be read"),
        ("seed == (3", "cannot be read at `(3`"),
        ("name == 'x", "close the quote"),
        ("name ~ '('", "a pattern that cannot be read"),
        ("name ~ x == y", "join the two with `and`"),
        ("__import__('os').system('id')", "cannot be read at `.system('id')`"),
        ("name(3)", "calls no function"),
        ("name[0] == d", "takes no index"),
        ("seed is 3", "cannot be read at"),
        ("lambda: 3", "cannot be read at"),
        ("", "is empty"),
        ("(" * 5_000 + "seed" + ")" * 5_000, "FILTER"),
        ("not " * 2_400 + "seed", "FILTER"),
        ("seed == 1 or " * 1_000, "at most 10,000 characters"),
        ("name == x\x00y", "cannot be read at"),
        ("seed == " + "9" * 5_000, "too many digits"),
    ],
)
def test_a_wrong_filter_is_refused_with_the_remedy(text, said):
    with pytest.raises(ConfigError) as caught:
        holds(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["[seed] == [1]", "-name == 3", "{} == seed", "seed == 3, 4", "seed := 3"])
def test_whatever_else_python_would_take_is_refused(text):
    with pytest.raises(ConfigError, match="FILTER"):
        holds(text)
