# ruff: noqa: C901
"""Attacks of a stranger, each in a box: nothing is started, nothing outside is written, all of them are refused."""

import contextlib
import importlib
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.security import canary
from tests.security.attacks import all_attacks

# Attacks that still get through, by kind and name: why.
PENDING: dict[tuple[str, str], str] = {}
EVERYDAY = 29  # attacks of every day, one of most kinds; the rest is exhaustive
ATTACKS = all_attacks()
KINDS = sorted({attack.kind for attack in ATTACKS})


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """The directory of a run that was really trained; it also imports what the runner trusts."""
    for library in ("torchvision", "torchmetrics", "matplotlib"):  # they make folders of their own
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    root = tmp_path_factory.mktemp("template")
    box = canary.Box(root)
    words = "experiment=digits_mlp dataset.limit=200 train.duration=1ep device=cpu log.progress=false"
    ended = box.run(words.split())
    assert ended.status == 0, ended.text
    (run,) = (box.project / "outputs" / "digits_mlp").iterdir()
    box.run(["check", "model=resnet18", "experiment=null", "dataset=fake", "loss=cross_entropy"])
    return run


def attempt(attack, root, template):
    """What is wrong with how an attack ended; nothing where it was held."""
    box = canary.Box(root, template)
    for name, content in attack.files.items():
        box.write(name, content)
    if attack.prepare is not None:
        attack.prepare(box)
    before = box.digest()
    ended = box.run(attack.argv)
    box.said = ended.text
    wrong = []
    if ended.status not in attack.status:
        wrong.append(f"status {ended.status}, not {attack.status}: {ended.text[-600:]}")
    if ended.seen:
        wrong.append(f"did {ended.seen[:3]}")
    if box.digest() != before:
        wrong.append(f"changed {sorted({line[0] for line in set(before) ^ set(box.digest())})[:4]}")
    if "Traceback (most recent" in ended.text:
        wrong.append(f"a traceback: {ended.text[-600:]}")
    if found := canary.CONTROL.search(ended.text):
        around = ended.text[max(0, found.start() - 60) : found.end() + 60]
        wrong.append(f"control characters on the console: {around!r}")
    if canary.CONTROL.search(box.logs()):
        wrong.append("control characters in a log")
    if canary.SECRET in ended.text and "secret" in attack.kind:
        wrong.append("the secret is shown")
    if ended.seconds > canary.CPU:
        wrong.append(f"took {ended.seconds:.1f} s of processor time")
    if attack.expects and not re.search(attack.expects, ended.text):
        wrong.append(f"does not say {attack.expects!r}: {ended.text[-400:]!r}")
    if attack.holds is not None and (said := attack.holds(box)):
        wrong.append(said)
    return wrong


def attempts(attacks, folder: Path, template):
    found = {}
    for number, attack in enumerate(attacks):
        root = folder / str(number)
        if wrong := attempt(attack, root, template):
            found[attack.kind, attack.name] = wrong
        shutil.rmtree(root, ignore_errors=True)
    return found


def test_there_are_400_attacks_and_each_has_a_name_of_its_own():
    assert len(ATTACKS) >= 400
    assert [] == [key for key, count in Counter((one.kind, one.name) for one in ATTACKS).items() if count > 1]
    assert PENDING.keys() <= {(one.kind, one.name) for one in ATTACKS}


def test_attacks_of_every_day_are_held(template, tmp_path):
    drawn = random.Random(0)
    of_kind = {kind: [one for one in ATTACKS if one.kind == kind] for kind in KINDS}
    chosen = [drawn.choice(of_kind[kind]) for kind in KINDS][:EVERYDAY]

    assert attempts(chosen, tmp_path, template).keys() <= PENDING.keys()


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_every_attack_of_a_kind_is_held(kind, template, tmp_path):
    found = attempts([one for one in ATTACKS if one.kind == kind], tmp_path, template)
    pending = {key for key in PENDING if key[0] == kind}

    assert {} == {key: wrong for key, wrong in found.items() if key not in pending}
    assert found.keys() >= pending, "an attack of PENDING is held now"
