"""What every process of torchrun but rank 0 does: train, and leave reading, writing and speaking to that."""

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
from runner.experiment.record.recorded import Continuation
from runner.experiment.record.result import new_result, write_result
from runner.experiment.restore import at_last_checkpoint
from runner.experiment.run import finish
from runner.experiment.signals import stopping
from runner.log.logger import NoLog
from runner.train import loop
from runner.train.distributed.environment import Place
from runner.train.distributed.process_group import POLL_SECONDS, Team
from runner.train.state import Stop

LOCK_SECONDS = 3.0  # threads of a killed process end, and let go of its lock, after its first one


def follow(place: Place, trust: Trust) -> int:
    """Train with rank 0, which alone reads the command line, writes and speaks; the exit status."""
    stop = Stop(shared=True)
    team, status = Team(place, stop), EXIT_FAILED
    told = team.hear()  # a signal ends it meanwhile: nothing has begun
    if "exit" in told:
        return int(told["exit"])
    with stopping(stop, silent=True):
        try:
            config, folder = parse(told["config"]), Path(told["folder"])
            again = Continuation(
                config, "", rescheduled=tuple(told["rescheduled"]), settings=told["settings"], schedule=told["schedule"]
            )
            run = at_last_checkpoint(config, folder, trust, [], again, team)
            run.stop, run.log = stop, NoLog()
            step = team.hear()["step"]
            if run.progress.step != step:
                raise RunError(f"it finds no checkpoint of step {step} in {folder}: is that a folder of every machine?")
            loop.fit(run)
            status = finish(run, {})
        except Exception as error:  # noqa: BLE001  rank 0 learns of it, and records it
            team.failed(error)
            if culprit := team.blame(error):
                stand_in(Path(told["folder"]), culprit)
        team.end()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to those that end a moment after the first
    return status


def stand_in(folder: Path, culprit: str) -> None:
    """Say and record how the run ended, where rank 0 is gone: it holds the lock until it has done so itself."""
    until = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < until:
        with suppress(ConfigError), Lock(folder):
            if not (folder / "result.json").exists():
                write_result(folder, new_result() | {"error": culprit})
                print(f"The run failed: {culprit}", file=sys.stderr)
            return
        time.sleep(POLL_SECONDS)
