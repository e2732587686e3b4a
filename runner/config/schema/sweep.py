"""Keys of `sweep`: many runs of one command line."""

from dataclasses import dataclass
from typing import Literal

from runner.config.schema.fields import Component, make_field


@dataclass
class Search:
    """Optuna search: `sampler` switches it on and chooses each point from the results so far."""

    # Sampler of Optuna that chooses the points: `{_target_: optuna.samplers.TPESampler}`. null: no search.
    sampler: Component | None = make_field(None, slot="search_sampler")
    # Pruner of Optuna that stops jobs that do badly. Its steps are the 1st, 2nd, … logged value of the objective.
    pruner: Component | None = make_field(None, slot="pruner")
    # Jobs of the search in all. Those that earlier invocations finished count.
    trials: int = make_field(20, at_least=1)
    # Points to ask for at once, so that they can train as one (`sweep.vectorize`). The next ones are asked for when all
    # jobs of these have ended.
    batch: int = make_field(1, at_least=1)
    # Two or more metrics to search for at once, in place of `train.objective`: `{val/accuracy: max, val/loss: min}`.
    objectives: dict[str, Literal["min", "max"]] = make_field({})


@dataclass
class Sweep:
    # Name of the sweep's folder. auto: a hash of the config without the swept keys, and of their names.
    id: str = make_field("auto", regex=r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}")
    # Jobs of each point, with `seed`, `seed` + 1 and so on.
    seeds: int | None = make_field(None, at_least=1)
    # File of points: YAML, CSV or JSON lines, a point a row. Each is combined with the other swept keys.
    points: str | None = None
    # Swept keys that change together instead of in all combinations: `[model, optimizer.lr]`, or several such lists.
    zip: list[str] | list[list[str]] = make_field([])
    # Points to draw at random from the swept keys, instead of all combinations.
    random: int | None = make_field(None, at_least=1)
    # Seed of `random`.
    random_seed: int = make_field(0, at_least=0)
    # Jobs at a time. auto: as many as this machine's cores and GPUs allow.
    slots: int | Literal["auto"] = make_field("auto", at_least=1)
    # Processes of each job, with `device.parallel: ddp` or `fsdp`. A job then takes as many slots.
    processes: int = make_field(1, at_least=1)
    # Train jobs of one architecture together, as one model; they agree with jobs alone within rounding. auto: where a
    # trial finds that faster, from four jobs for each slot and 50 steps on; the sweep keeps to it. off: a process each.
    vectorize: Literal["auto", "on", "off"] = "auto"
    # Seconds that one attempt of a job may take.
    timeout: float | None = make_field(None, above=0)
    # GiB that the processes of a job may hold together; jobs that train as one model share it (`sweep.vectorize`).
    memory: float | None = make_field(None, above=0)
    # Failed jobs to try again when the same line is given again. machine: those that the machine ended (killed, out of
    # memory, timed out, lost); all; none.
    retry: Literal["machine", "all", "none"] = "machine"
    # Finished jobs to run again when the same line is given again. changed: those whose code has changed.
    rerun: Literal["none", "changed"] = "none"
    # Stop the sweep at its first failed job. The same line goes on later.
    fail_fast: bool = False
    # Search for good settings instead of running every combination.
    search: Search = make_field(Search)
