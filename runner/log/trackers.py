"""Trackers of `log.to` for W&B, MLflow and Trackio: scalars, config, pictures and the end of a run.

Each lives in a process of its own (`experiment/tracker_process.py`) and imports its library there.
Servers and keys are named in the environment, where each library looks: a config is recorded, and may be a stranger's.
"""

import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any

from runner.log.jsonl import Value

PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1_000  # what MLflow takes in one call
LONGEST_PARAM = 6_000  # characters of a param's value in MLflow
SCHEMA_SECONDS = 120.0  # for another job that makes the tables of MLflow's database


@dataclass(frozen=True)
class TrackedRun:
    """Run as a tracker's `begin` gets it.

    Attributes:
        id: of this run in this tracker, the same after each resume.
        name: of the run directory, below its sweep's where it is a job.
        project: `name` of the config.
        group: the sweep's folder, if it is a job of one.
        folder: the run directory.
        last_step: the last step that this tracker has got; None at the first start.
    """

    id: str
    name: str
    project: str
    group: str | None
    folder: Path
    last_step: int | None = None


class WandB:
    """Tracker for Weights & Biases.

    Its own variables hold: WANDB_MODE=offline, WANDB_API_KEY, WANDB_BASE_URL, WANDB_DIR.
    """

    def __init__(
        self, project: str | None = None, entity: str | None = None, tags: list[str] | None = None, notes: str = ""
    ) -> None:
        self.project, self.entity, self.tags, self.notes = project, entity, tags, notes
        self._run: Any = None

    def begin(self, run: TrackedRun) -> None:
        """Start or continue the run of this id."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb, self._last_step = wandb, -1 if run.last_step is None else run.last_step
        wanted = {"console": "off", "silent": True, "save_code": False, "disable_code": True, "disable_git": True}
        wanted |= {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False}
        known = getattr(wandb.Settings, "model_fields", {})
        self._run = wandb.init(
            project=self.project or run.project,
            entity=self.entity,
            id=run.id,
            name=run.name,
            group=run.group,
            tags=self.tags,
            notes=self.notes or None,
            resume="allow",
            settings=wandb.Settings(**{name: value for name, value in wanted.items() if name in known}),
        )

    def config(self, values: Mapping[str, Any]) -> None:
        """Set the config; that of a resume may differ."""
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, Value]) -> None:
        """Log one step."""
        if step <= self._last_step:  # W&B takes nothing more for a step that an earlier process has logged
            self._run.summary.update(dict(values))
        else:
            self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Log PNG files by name."""
        images = {name: self._wandb.Image(_open_picture(png)) for name, png in pictures.items()}
        self._run.log(images, step=max(step, self._last_step + 1))

    def end(self, status: str) -> None:
        """Finish the run; it can go on later."""
        self._run.summary.update({"status": status})
        self._run.finish(exit_code=0 if status in ("completed", "pruned") else 1)


class MLflow:
    """Tracker for MLflow, on a server or in a database of this machine (`database: mlflow.db`).

    Its own variables hold: MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN and so on.
    """

    def __init__(
        self, experiment: str | None = None, database: str | None = None, tags: dict[str, str] | None = None
    ) -> None:
        self.experiment, self.database, self.tags = experiment, database, tags or {}
        self._waiting: list[Any] = []

    def begin(self, run: TrackedRun) -> None:
        """Create the run, or continue the one that has this id as a tag."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow.entities

        self._entities = mlflow.entities
        with _make_tables_once(self.database or "mlflow.db"):
            self._client = mlflow.MlflowClient(f"sqlite:///{self.database}" if self.database else None)
            experiment = self._find_experiment(self.experiment or run.project)
        query = f"tags.`runner.id` = '{run.id}'"
        found = self._client.search_runs([experiment], query)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"runner.id": run.id, "runner.folder": str(run.folder), **self.tags}
        if run.group is not None:
            tags["sweep"] = run.group
        self._id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id

    def _find_experiment(self, name: str) -> str:
        for create in (True, False):
            found = self._client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(name))
            except Exception:
                if not create:  # else another job was faster
                    raise
        raise AssertionError(name)

    def config(self, values: Mapping[str, Any]) -> None:
        """Log the params that the run does not have yet; MLflow lets none change."""
        known = self._client.get_run(self._id).data.params
        new = {key: value for key, value in _flatten("", values) if key not in known}
        params = [self._entities.Param(key, value[:LONGEST_PARAM]) for key, value in new.items()]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=params[start : start + PARAMS_AT_ONCE])

    def scalars(self, step: int, values: Mapping[str, Value]) -> None:
        """Log one step at the next flush; a word is a tag."""
        now = int(time.time() * 1000)
        for name, value in values.items():
            if isinstance(value, str):
                self._client.set_tag(self._id, _make_key(name), value)
            else:
                self._waiting.append(self._entities.Metric(_make_key(name), float(value), now, step))

    def flush(self) -> None:
        """Send what waits, one call for many steps; what the server does not take waits on."""
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[:METRICS_AT_ONCE])
            del self._waiting[:METRICS_AT_ONCE]

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Log PNG files as artifacts `pictures/<name>/step_<step>.png`."""
        for name, png in pictures.items():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"step_{step}.png"
                file.write_bytes(png)
                self._client.log_artifact(self._id, str(file), f"pictures/{_make_key(name)}")

    def end(self, status: str) -> None:
        """Set the status of the run, which has been flushed; it can go on later."""
        states = {"completed": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
        self._client.set_tag(self._id, "status", status)
        self._client.set_terminated(self._id, states.get(status, "KILLED"))


class Trackio:
    """Tracker for Trackio; its own variables hold: TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL."""

    def __init__(self, project: str | None = None) -> None:
        self.project = project

    def begin(self, run: TrackedRun) -> None:
        """Keep the run for `config`, with which Trackio begins."""
        self._of = run

    def config(self, values: Mapping[str, Any]) -> None:
        """Start or continue the run of this name, which the id makes unique."""
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import trackio

        self._trackio, run = trackio, self._of
        idle = [name for name in ("auto_log_gpu", "auto_log_cpu") if name in signature(trackio.init).parameters]
        self._run = trackio.init(
            project=re.sub(r"[^\w-]", "_", self.project or run.project),
            name=f"{run.name}_{run.id}",
            group=run.group,
            config={key: value for key, value in values.items() if not key.startswith("_")},
            resume="allow",
            embed=False,
            **dict.fromkeys(idle, False),
        )

    def scalars(self, step: int, values: Mapping[str, Value]) -> None:
        """Log one step."""
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Log PNG files by name."""
        self._run.log({name: self._trackio.Image(_open_picture(png)) for name, png in pictures.items()}, step=step)

    def end(self, status: str) -> None:
        """Finish the run; it can go on later."""
        self._run.finish()


def _open_picture(png: bytes) -> Any:
    from PIL import Image

    return Image.open(BytesIO(png))


def _make_key(name: str) -> str:
    """Replace what MLflow takes in no name of a metric or a param."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


def _flatten(key: str, value: Any) -> Iterator[tuple[str, str]]:
    members = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, Mapping) else ()
    if not isinstance(value, list | Mapping) or not value:
        yield _make_key(key), "nan" if isinstance(value, float) and math.isnan(value) else str(value)
    for name, member in members:
        yield from _flatten(f"{key}.{name}" if key else str(name), member)


def _make_tables_once(database: str) -> Any:
    """Return a lock for a database of this machine: two jobs at once would both make its tables."""
    from filelock import FileLock

    digest = sha256(str(Path(database).absolute()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"runner_mlflow_{digest}.lock", timeout=SCHEMA_SECONDS, mode=0o666)
