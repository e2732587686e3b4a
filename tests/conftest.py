"""What every test gets: a seed, the process as it found it, no network; and the golden losses for those that ask."""

import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SEED = int(os.environ.get("TEST_SEED", "0"))  # `make test` always 0; `make test-all` draws one and prints it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", metavar="REASON", help="write new golden losses, and why they are new")


def pytest_report_header() -> str:
    return f"seed: {SEED} (again with the same one: TEST_SEED={SEED})"


@pytest.fixture
def seed() -> int:
    """For whatever a test draws at random."""
    return SEED


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """Leaves torch's global settings and the environment as they were: a run in process changes them on purpose."""
    environment = dict(os.environ)
    torch: Any = sys.modules.get("torch")  # a test that needs no torch does not wait seconds for it
    before = _settings(torch) if torch else None
    yield
    if before:
        threads, deterministic, warn_only, fill, grad, random = before
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_grad_enabled(grad)
        torch.set_rng_state(random)
    os.environ.clear()
    os.environ.update(environment)


def _settings(torch: Any) -> tuple[Any, ...]:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.is_grad_enabled(),
        torch.get_rng_state(),
    )


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not this machine refuses: the tests pass on a train."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise ConnectionRefusedError(f"a test asked the network for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, list[float]], None]:
    """`golden("digits_cnn", losses)`: these losses are those of record, to the bit on the processor that recorded them.

    Another processor of the same platform chooses other kernels: there they agree to 1e-3. A platform without a record
    skips. `--update-golden REASON` records instead.
    """
    import torch

    version = torch.__version__.split("+")[0]
    file = Path(__file__).parent / "golden" / f"{platform.system()}-{platform.machine()}-torch-{version}.json".lower()
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    reason: str | None = request.config.getoption("--update-golden")
    processor = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"

    def check(name: str, losses: list[float]) -> None:
        if reason:
            record[name] = {"losses": losses, "processor": processor, "reason": reason}
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        elif name not in record:
            pytest.skip(f"no golden losses of {name} in {file.name}: record them with --update-golden REASON")
        elif record[name]["processor"] == processor:
            assert record[name]["losses"] == losses
        else:
            assert losses == pytest.approx(record[name]["losses"], rel=1e-3)

    return check


def _processor() -> str:
    """Name, family and model: a virtual machine gives several generations the same name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # macOS
        return platform.processor()
    first = dict(line.split(":", 1) for line in lines[: lines.index("") if "" in lines else None])
    facts = {name.strip(): value.strip() for name, value in first.items()}
    return " ".join(facts[name] for name in ("model name", "cpu family", "model") if name in facts)


@dataclass(frozen=True)
class Ran:
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run directory, which a run prints last."""
        return Path(self.out.strip().splitlines()[-1])

    @property
    def result(self) -> dict[str, Any]:
        """Its `result.json`."""
        result: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return result


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
