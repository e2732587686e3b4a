"""`check resume` tells an exact resume from one that is not, and says why."""

import json

import pytest

from runner.__main__ import main
from tests.experiment.crash.project import HARD

MORE = '''


class Forgetful(Counting):
    """Counts, and tells nobody."""

    def __getattribute__(self, name):
        if name in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return super().__getattribute__(name)

    def __call__(self, batch, model, loss):
        outcome = super().__call__(batch, model, loss)
        return {**outcome, "loss": outcome["loss"] * (1 + self.count / 100)}


def moody(batch, model, loss):
    import os

    output = model(batch[0])
    return {"loss": loss(output, batch[1]) * (1 + os.urandom(1)[0]), "output": output, "target": batch[1], "size": 12}
'''


@pytest.fixture(scope="module")
def project(project):
    with (project / "parts.py").open("a") as file:
        file.write(MORE)
    (project / "conf" / "step" / "forgetful.yaml").write_text("{_target_: parts.Forgetful}")
    (project / "conf" / "step" / "moody.yaml").write_text("{_target_: parts.moody}")
    return project


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        pytest.param(
            [],
            0,
            "6 steps, and 3 + 3 resumed in another process, are bitwise the same",
            marks=pytest.mark.exhaustive,
        ),
        (
            [
                "log.images=2",
                "log.histograms=1ep",
                "log.graph=true",
                "scheduler.warmup=2ep",
                "freeze.until=2ep",
                "freeze.params=[norm.weight]",
            ],
            0,
            "6 steps, and 3 + 3 resumed in another process, are bitwise the same",
        ),
        (["step=forgetful"], 1, "something has a state that no checkpoint holds"),
        (["step=moody"], 1, "something is not deterministic"),
    ],
)
def test_it_says_whether_a_resume_is_exact_and_if_not_why(hard, arguments, status, said, monkeypatch):
    """Where it is, in another process; what is not exact needs none, which takes seconds."""
    if status:
        monkeypatch.setattr("runner.experiment.check_resume._run_in_subprocess", main)
    ran = hard("check", "resume", "--json", "--steps", "3", HARD, *arguments)

    answer = json.loads(ran.out)

    assert ran.status == status
    assert said in answer["answer"]
    assert answer.get("step") == (None if status == 0 else 4)
