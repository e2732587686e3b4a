"""What every test gets: a seed, the process as it found it, no network; and the fixtures of several files."""

import itertools
import json
import os
import platform
import random
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Ran, keep_process_state, make_state

SEED = int(os.environ.get("TEST_SEED", "0"))  # `make test` always 0; `make test-all` draws one and prints it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", metavar="REASON", help="write new golden losses, and why they are new")
    parser.addoption(
        "--record-golden", action="store_true", help="add this processor's golden losses to those of others"
    )


def pytest_report_header() -> str:
    return f"seed: {SEED} (again with the same one: TEST_SEED={SEED})"


# Minutes or most of one, in this order: two processes take a file at a time, and the last one must not be long.
SLOW = ("sweep/test_sweep", "test_docs", "train/test_distributed", "sweep/test_rank_processes", "sweep/test_promote")
SLOW += ("experiment/crash/test_kill", "experiment/test_user_project", "test_packaging", "security/test_attacks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; the rest as they come."""
    tests = Path(__file__).parent
    places = {tests / f"{name}.py": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path, len(SLOW)))


@pytest.fixture
def seed() -> int:
    """For whatever a test draws at random."""
    return SEED


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """Leaves the process as it was: a run in process changes torch's settings and the environment on purpose."""
    with keep_process_state():
        yield


@pytest.fixture(autouse=True, scope="module")
def _imports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forgets, after each file, what was imported from its temporary folders: another file has other `parts`."""
    before, temporary = set(sys.modules), f"{tmp_path_factory.getbasetemp().resolve()}/"
    yield
    for name in sys.modules.keys() - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(temporary):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _no_network(_process_state: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not this machine refuses: the tests pass on a train.

    `_process_state` comes before `monkeypatch`, so that it has the last word: a `monkeypatch.chdir` in a test whose own
    fixture had changed the folder goes back to that folder, after the fixture has left it.
    """
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise ConnectionRefusedError(f"a test asked the network for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("runner.core.download.PAUSE", 0.0)  # 15 s in all before a download is given up


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`golden("digits_cnn", losses)`: these losses are those of record, to the bit on a processor that recorded them.

    Another processor of the same platform chooses other kernels: there the first `steps` losses agree to `tolerance`. A
    platform without a record skips. `--record-golden` adds this processor's losses to those of others that they agree
    with; `--update-golden REASON` records in place of all.
    """
    import torch

    version = torch.__version__.split("+")[0]
    file = Path(__file__).parent / "golden" / f"{platform.system()}-{platform.machine()}-torch-{version}.json".lower()
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    reason: str | None = request.config.getoption("--update-golden")
    adds: bool = request.config.getoption("--record-golden")
    own = processor(torch.backends.cpu.get_cpu_capability())

    def check(name: str, losses: list[float], steps: int | None = None, tolerance: float = 1e-5) -> None:
        known: dict[str, list[float]] = {} if reason else record.get(name, {}).get("losses", {})
        if not known and not reason:
            pytest.skip(f"no golden losses of {name} in {file.name}: record them with --update-golden REASON")
        how = "recorded"
        if known and (adds or own not in known):
            for other in known.values():
                assert losses[:steps] == pytest.approx(other[:steps], rel=tolerance)
            how = f"recorded by another processor, and equal to {tolerance:g}"
        if reason or adds:
            record[name] = {
                "losses": known | {own: losses},
                "reason": reason or record[name]["reason"],
            }
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        elif own in known:
            assert known[own] == losses
            how = "recorded by this processor, and equal to the bit"
        request.node.user_properties.append(("golden", how))

    return check


# What chooses other kernels than the processor would.
KERNELS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE")
KERNELS += ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE")


def processor(capability: str) -> str:
    """Name, family, model, torch's `capability`, caches, and what the environment says: what kernels are chosen by.

    A virtual machine gives several generations the same name, and oneDNN blocks its loops by the sizes of the caches.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # macOS
        return f"{platform.processor()}, {capability}"
    first = dict(line.split(":", 1) for line in lines[: lines.index("") if "" in lines else None])
    facts = {name.strip(): value.strip() for name, value in first.items()}
    words = " ".join(facts[name] for name in ("model name", "cpu family", "model") if name in facts)
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index[23]/size"))
    sizes = " + ".join(size.read_text().strip() for size in caches)
    told = [f"{name}={os.environ[name]}" for name in KERNELS if name in os.environ]
    return ", ".join([words, capability, f"{os.cpu_count()} cores", sizes, *told])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How golden losses were compared."""
    reports = [report for report in terminalreporter.stats.get("passed", []) if report.when == "call"]
    seen = Counter(how for report in reports for name, how in report.user_properties if name == "golden")
    for how, count in seen.items():
        terminalreporter.write_line(f"golden losses of {count} experiments: {how}")


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`runner("train.duration=2st")`: `python -m runner train.duration=2st` in an empty folder, in this process."""
    from runner.__main__ import main

    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Ran:
        capsys.readouterr()
        status = main(list(argv))
        said = capsys.readouterr()
        return Ran(status, said.out, said.err)

    return run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the project of `tests/experiment/crash/project.py`; runs are made in it."""
    from tests.experiment.crash.project import write

    folder = tmp_path_factory.mktemp("project")
    write(folder)
    yield folder
    sys.modules.pop("parts", None)


SEEDS = itertools.count(12345)


@pytest.fixture
def hard(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`hard(HARD, "seed=1")`: a command in that project, in this process."""
    import numpy as np
    import torch

    from runner.__main__ import main

    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)

    def run(*argv: str) -> Ran:
        capsys.readouterr()
        torch.manual_seed(next(SEEDS))  # as in another process: nothing is left of the one that was stopped
        np.random.seed(next(SEEDS))
        random.seed(next(SEEDS))
        status = main(list(argv))
        said = capsys.readouterr()
        return Ran(status, said.out, said.err)

    return run


@pytest.fixture(name="three")
def three_checkpoints(tmp_path: Path) -> Path:
    """Checkpoints of steps 1, 2 and 3; the best is 1."""
    from runner.train.checkpoint import Checkpoints

    folder = tmp_path / "checkpoints"
    for step, metric in ((1, 0.1), (2, 0.3), (3, 0.2)):
        Checkpoints(folder).save(make_state(step), step, metric)
    return folder


@pytest.fixture
def resnet18_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in torch hub's cache, whose hash cannot be right."""
    import torch
    from torchvision import models

    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(0)
    torch.save(models.resnet18().state_dict(), folder / "resnet18-f37072fd.pth")
    monkeypatch.setattr("runner.model.pretrained.files._verify_hash", lambda *_: None)
