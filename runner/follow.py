"""What every process of torchrun but rank 0 does: train, and leave reading, writing and speaking to that."""

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from runner import fit
from runner.component import Trust
from runner.config.check import parse
from runner.config.recorded import Continuation
from runner.errors import ConfigError, RunError
from runner.files import Lock
from runner.log import NoLog
from runner.run import EXIT_FAILED, at_last_checkpoint, finish, new_result, stopping, write_result
from runner.state import Stop
from runner.team import POLL_SECONDS, Team
from runner.torchrun import Place

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
            fit.fit(run)
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
