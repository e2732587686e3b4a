"""Sweep by a launcher or sweeper of Hydra: jobs in sequence, in this process, not resumable."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner.config.compose import compose, compose_sweep, create_hydra
from runner.core import event_stream
from runner.core.errors import ConfigError, RunError
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED, EXIT_WRONG
from runner.experiment.examine import examine, make_reporter, report_count
from runner.experiment.record.directory import make_run_dir
from runner.sweep.examine import examine_sweep

JOB_FACTS = ("status", "cause", "error", "objective", "metrics", "seconds")  # of its result, for programs


def main(overrides: Sequence[str], argv: Sequence[str], trust: tuple[str, ...]) -> int:
    """Run the sweep; return 0 if all jobs completed, 1 if one failed, 75 or 130 if it was stopped.

    2 where a job is wrong: then none was started.

    Raises:
        ConfigError: the sweep cannot be composed.
    """
    mistakes = examine_sweep(list(overrides), trust, make_reporter())
    if mistakes:
        report_count(mistakes)
        return EXIT_WRONG
    folder = make_run_dir(Path("outputs"), compose_sweep(list(overrides)).config["name"])
    rows: list[tuple[str, str, Any]] = []

    def job(_: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        own = list(hydra.overrides.task)
        composed = compose(own)
        place = folder / str(hydra.job.num)
        print(f"\n[{hydra.job.num}] {' '.join(own)}")
        examined = examine(composed, trust)
        if examined.mistakes:  # something changed since the sweep was checked
            rows.append((place.name, "wrong", ""))
            raise ConfigError(examined.mistakes)
        from runner.experiment.run import train  # imports torch, which a mistake need not wait for

        place.mkdir(parents=True)
        outcome = train(examined, composed, argv, trust, place)
        rows.append((place.name, outcome.result["status"], outcome.result["objective"]))
        told = {"number": hydra.job.num, "overrides": own, "run": str(place)}
        event_stream.emit("job_ended", **told, **{name: outcome.result.get(name) for name in JOB_FACTS})
        if outcome.result["status"] == "interrupted":
            sys.exit(outcome.status)  # passes through Hydra, which would go on with the next job after an exception
        if outcome.result["status"] == "failed":
            raise RunError(outcome.result["error"])
        objective: float | None = outcome.result["objective"]
        return objective

    status = EXIT_DONE
    try:
        hydra = create_hydra()
        hydra.multirun("config", job, [*overrides, f"hydra.sweep.dir={folder}", "hydra.mode=MULTIRUN"])
    except (RunError, ConfigError):
        status = EXIT_FAILED  # said already, and recorded in the job's result
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    finally:
        GlobalHydra.instance().clear()
    counts = dict(Counter(how for _, how, _ in rows))
    told = {"sweep": str(folder), "run": None, "objective": None, "best": None, "jobs": counts}
    event_stream.record_outcome({**told, "failed": [int(name) for name, how, _ in rows if how == "failed"]}, anew=True)
    print(f"\n{folder}")
    for name, how, objective in rows:
        print(f"  {name:>3}  {how:<11} {objective if objective is not None else ''}")
    return status
