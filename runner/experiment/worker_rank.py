"""Worker ranks of torchrun: train along with rank 0, which alone reads, writes and prints."""

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from runner.config.check.check import parse
from runner.core.errors import ConfigError, RunError
from runner.core.exit_status import EXIT_FAILED
from runner.core.lock import Lock
from runner.experiment.builders.instantiate import Trust
from runner.experiment.finish import finish
from runner.experiment.record.continuation import Continuation
from runner.experiment.record.result import make_empty_result, write_result
from runner.experiment.restore import rebuild_at_checkpoint
from runner.experiment.signals import handle_stop_signals
from runner.log.logger import NoLogger
from runner.train import loop
from runner.train.distributed.environment import RankPlace
from runner.train.distributed.process_group import POLL_SECONDS, ProcessGroup
from runner.train.state import StopRequest

LOCK_SECONDS = 3.0  # threads of a killed process end, and let go of its lock, after its first one


def run_worker_rank(place: RankPlace, trust: Trust) -> int:
    """Train along with rank 0, which alone reads the command line and writes; return the exit status."""
    stop = StopRequest(shared=True)
    team, status = ProcessGroup(place, stop), EXIT_FAILED
    told = team.hear()  # a signal ends it meanwhile: nothing has begun
    if "exit" in told:
        return int(told["exit"])
    with handle_stop_signals(stop, silent=True):
        try:
            config, folder = parse(told["config"]), Path(told["folder"])
            again = Continuation(
                config, "", rescheduled=tuple(told["rescheduled"]), settings=told["settings"], schedule=told["schedule"]
            )
            run = rebuild_at_checkpoint(config, folder, trust, [], again, team)
            run.start(stop, NoLogger())
            step = team.hear()["step"]
            if run.progress.step != step:
                raise RunError(f"it finds no checkpoint of step {step} in {folder}: is that a folder of every machine?")
            loop.fit(run)
            status = finish(run, {}, config.train.test_with)
        except Exception as error:  # noqa: BLE001  rank 0 learns of it, and records it
            team.failed(error)
            if culprit := team.blame(error):
                record_failure(Path(told["folder"]), culprit)
        team.end()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to those that end a moment after the first
    return status


def record_failure(folder: Path, culprit: str) -> None:
    """Record and print the failure of a run once rank 0 has released the lock without a result."""
    until = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < until:
        with suppress(ConfigError), Lock(folder):
            if not (folder / "result.json").exists():
                write_result(folder, make_empty_result() | {"error": culprit})
                print(f"The run failed: {culprit}", file=sys.stderr)
            return
        time.sleep(POLL_SECONDS)
