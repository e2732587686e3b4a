"""A replay of a stranger's or a damaged record runs nothing untrusted, touches nothing, and names what is missing."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import Ran

CONF = Path(__file__).parents[2] / "conf"
SHORT = ("log=quiet", "device.type=cpu", "dataset.limit=40", "loader.batch_size=16", "train.duration=4st")


@pytest.fixture
def run(runner: Callable[..., Ran]) -> Path:
    """A run of four steps."""
    return runner(*SHORT, "log.every=2st").folder


def hash_folder(folder: Path) -> dict[str, str]:
    """Hash all files of a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_run_is_not_touched(run: Path, runner: Callable[..., Ran]) -> None:
    """A replay writes nothing into the run directory, nor beside it."""
    before = hash_folder(Path())

    runner("replay", str(run))

    assert hash_folder(Path()) == before


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("trace.jsonl", 0, "only the values of log lines and evaluations can be compared"),
        ("metrics.jsonl", 0, "values of evaluations cannot be compared"),
        ("result.json", 0, "the final metrics cannot be compared"),
        ("provenance.json", 0, "code, versions, hardware and data cannot be compared"),
        (".hydra/config.yaml", 0, "Steps 1 to 4 are bitwise the same."),
        ("checkpoints/manifest.json", 0, "Steps 1 to 4 are bitwise the same."),
    ],
)
def test_a_missing_file_is_named_with_what_follows(
    name: str, status: int, said: str, run: Path, runner: Callable[..., Ran]
) -> None:
    """Without one of its files a record still answers what the others tell."""
    (run / name).unlink()

    ran = runner("replay", str(run))

    assert said in ran.out
    assert ran.status == status


def test_a_record_of_nothing_is_not_the_same(run: Path, runner: Callable[..., Ran]) -> None:
    """Where nothing can be compared, the answer is no."""
    for name in ("trace.jsonl", "metrics.jsonl", "result.json", "provenance.json"):
        (run / name).unlink()

    ran = runner("replay", str(run))

    assert "No step was compared" in ran.out
    assert ran.status == 1


def spoil_target(path: Path) -> None:
    """Let a config name what no config may."""
    config = yaml.safe_load(path.read_text())
    config["model"] = {"_target_": "os.system", "command": "touch canary"}
    path.write_text(yaml.safe_dump(config))


def test_a_strangers_config_runs_nothing(run: Path, runner: Callable[..., Ran]) -> None:
    """A recorded target that is in no slot's table is refused, of a directory and of a record file."""
    record = Path("a.record.json")
    assert runner("record", str(run), "--to", str(record)).status == 0
    content = json.loads(record.read_text())
    content["config"]["model"] = {"_target_": "os.system", "command": "touch canary"}
    record.write_text(json.dumps(content))
    for name in ("config.yaml", ".hydra/config.yaml"):
        spoil_target(run / name)

    ran = [runner("replay", str(path)) for path in (run, record)]

    assert [one.status for one in ran] == [2, 2]
    assert all("os.system" in one.err for one in ran)
    assert not Path("canary").exists()


LINES: dict[str, Any] = {
    "no JSON": "{",
    "a list": "[1]\n",
    "another step": '{"step": "1"}\n',
    "a bomb": json.dumps({"step": 1, "loss": "f4:" + "A" * 16}) + "\n",
    "deep": '{"step": 1, "begin": ' + "[" * 500 + "]" * 500 + "}\n",
    "odd parts": json.dumps({"step": 0, "begin": {"config": 3, "weights": [], "tensors": "x", "generators": 1}}) + "\n",
    "odd marks": json.dumps({"step": 2, "batch": {"0": []}, "weights": {"a": None}, "generators": "x"}) + "\n",
}


@pytest.mark.parametrize("kind", LINES)
def test_a_damaged_trace_is_no_traceback(kind: str, run: Path, runner: Callable[..., Ran]) -> None:
    """Whatever stands in a trace, the answer is one in words."""
    with (run / "trace.jsonl").open("a") as file:
        file.write(LINES[kind])

    ran = runner("replay", str(run), "--json")

    assert ran.status in (0, 1)
    assert json.loads(ran.out)["answer"]


def test_a_link_in_the_run_is_refused(run: Path, runner: Callable[..., Ran]) -> None:
    """A trace that leads elsewhere is not read."""
    (run / "trace.jsonl").rename("elsewhere")
    (run / "trace.jsonl").symlink_to(Path("elsewhere").absolute())

    ran = runner("replay", str(run))

    assert ran.status == 2
    assert "must be no link" in ran.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("replay", "nowhere"), "must be a run directory"),
        (("replay", "{run}", "--from", "2"), "there are checkpoints of the steps"),
        (("replay", "a.record.json", "--from", "2"), "a record file holds no weights"),
        (("replay", "--all", "nowhere"), "must be a folder with records"),
        (("replay", "--all", ".", "{run}"), "takes neither RUN nor overrides"),
        (("replay", "{run}", "--steps", "0"), "must be a whole number of at least 1"),
        (("record", "{run}"), "--to is missing"),
        (("record", "{run}", "--to", "a.json"), "must end in .record.json"),
        (("record", "{run}", "--to", "no/where.record.json"), "must stand in an existing folder"),
        (("record", "{run}", "--to", "mine.record.json"), "must be a new file or a record"),
        (("replay", "mine.record.json"), "is no JSON"),
    ],
)
def test_a_wrong_request_is_told(argv: tuple[str, ...], said: str, run: Path, runner: Callable[..., Ran]) -> None:
    """Each mistake of a request has its remedy, and status 2."""
    Path("mine.record.json").write_text("mine")
    runner("record", str(run), "--to", "a.record.json")

    ran = runner(*(word.format(run=run) for word in argv))

    assert ran.status == 2
    assert said in ran.err


def test_a_record_gives_the_same_answer(run: Path, runner: Callable[..., Ran]) -> None:
    """A record file is enough to train again, and is small; an experiment that has changed since is told."""
    folder = Path("conf/experiment")
    folder.mkdir(parents=True)
    experiment = (CONF / "experiment" / "digits_cnn.yaml").read_text()
    (folder / "mine.yaml").write_text(experiment)
    assert runner("record", str(run), "--to", "conf/experiment/mine.record.json").status == 0

    same = runner("replay", "--all", "conf/experiment")
    (folder / "mine.yaml").write_text(experiment.replace("weight_decay: 0.001", "weight_decay: 0.01"))
    other = runner("replay", "--all", "conf/experiment")

    assert (same.status, other.status) == (0, 1)
    assert "1 of 1 records give the same numbers." in same.out
    assert "optimizer.weight_decay was 0.001, is 0.01" in other.out
    assert (folder / "mine.record.json").stat().st_size < 40_000


def test_a_record_is_no_option(run: Path, runner: Callable[..., Ran]) -> None:
    """Hydra does not take NAME.record.json for an experiment."""
    folder = Path("conf/experiment")
    folder.mkdir(parents=True)
    assert runner("record", str(run), "--to", "conf/experiment/mine.record.json").status == 0

    ran = runner("check", "experiment=mine")

    assert ran.status == 2
    assert "mine.record" not in ran.err
