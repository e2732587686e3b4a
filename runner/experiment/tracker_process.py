"""Process of one tracker (`log.to`): makes it from its config and hands it each step once.

It reads lines of JSON from the run (`log/tracking.py`) and knows by `trackers/<name>.json` what its tracker has got.
What is missing of that up to the step of a resume comes from `metrics.jsonl`.
"""

import base64
import json
import math
import os
import select
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.config.check.annotations import UNFIT, convert, infer_annotation
from runner.config.check.imports import import_object
from runner.config.check.signature import inspect_parameters
from runner.core import safe_io
from runner.core.escape import make_printable
from runner.core.file_lock import lock_waiting
from runner.log.jsonl import find_whole_lines
from runner.log.trackers import TrackedRun
from runner.log.tracking import LAST_SECONDS

MOST_STATE = 1_000_000  # bytes of `trackers/<name>.json`
MOST_PICTURES = 50_000_000  # bytes of `trackers/<name>.pictures.json`
LINES_AT_ONCE = 500  # lines between two flushes where more are waiting
LONGEST_SAID = 300  # characters of an error in the log
WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}  # as metrics.jsonl writes them


class TrackerHost:
    """Host of one tracker: calls the methods it has, and remembers what it has got.

    Args:
        setup: `name`, `node`, `trust`, `folder` (the run directory), `project`, `group`, `config`, `until`.
        answer: tells the run something.
    """

    def __init__(self, setup: Mapping[str, Any], answer: Callable[[Mapping[str, Any]], None]) -> None:
        self._setup, self._answer = setup, answer
        self._folder = Path(setup["folder"])
        self._file = self._folder / "trackers" / f"{setup['name']}.json"
        self._left = self._file.with_suffix(".pictures.json")
        self._failed = 0
        self._is_whole = True  # no step is lost
        self._sure: dict[str, Any] = {}  # of the state: the last step up to which the tracker has all
        self._step = -1  # of what is held back until the next step: an evaluation may add to it
        self._values: dict[str, Any] = {}
        self._pictures: dict[int, dict[str, bytes]] = {}  # held as well: after them W&B takes no values of a resume
        self._state: dict[str, Any] = {"id": uuid.uuid4().hex[:12], "step": None, "names": [], "pictures": [-1, []]}

    def open(self) -> bool:
        """Make the tracker and catch up; return whether it is there."""
        try:
            with suppress(OSError, ValueError):
                if is_state(state := safe_io.read_json(self._file, MOST_STATE)):
                    self._state = state
            self._keep_sure()
            self._save()  # the id is on the disk before it is used
            self._tracker = build(self._setup["node"], self._setup["trust"])
            if not callable(getattr(self._tracker, "scalars", None)):
                raise TypeError(f"{type(self._tracker).__name__} has no method `scalars(step, values)`")
            run = TrackedRun(
                id=self._state["id"],
                name=self._folder.name if not self._setup["group"] else f"{self._setup['group']}/{self._folder.name}",
                project=self._setup["project"],
                group=self._setup["group"],
                folder=self._folder,
                last_step=self._state["step"],
            )
            for method, value in (("begin", run), ("config", self._setup["config"])):
                if hasattr(self._tracker, method):
                    getattr(self._tracker, method)(value)
        except BaseException as error:  # noqa: BLE001  of somebody else's code
            self._report(f"failed to begin ({describe(error)})", over=True)
            return False
        self._catch_up()
        return True

    def _catch_up(self) -> None:
        if self._setup["until"] > 0:
            self._read_pictures()
            path = self._folder / "metrics.jsonl"
            places, _ = find_whole_lines(path, self._setup["until"])
            with safe_io.open_read(path) as file:
                for number, place in enumerate(places, 1):
                    if self._state["step"] is None or place.step >= self._state["step"]:
                        file.seek(place.start)
                        values = safe_io.parse_json(file.read(place.end - place.start))
                        del values["step"]
                        self.take_scalars(place.step, {name: WORDS.get(v, v) for name, v in values.items()})
                        if number % LINES_AT_ONCE == 0:
                            self.flush()

    def take(self, message: Mapping[str, Any]) -> bool:
        """Handle a message of the run; return whether it was the last."""
        if "end" in message:
            self.close(message["end"], complete=message["complete"])
            return True
        if "pictures" in message:
            self._take_pictures(message["step"], message["pictures"])
        else:
            self.take_scalars(message["step"], message["values"])
        return False

    def take_scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Hold the values of a step that the tracker has not got, and hand over the step before."""
        if self._state["step"] is not None and step <= self._state["step"]:
            known = values if step < self._state["step"] else self._state["names"]
            values = {name: value for name, value in values.items() if name not in known}
        if not values:
            return
        if step != self._step:
            self._hand_over()
            self._step = step
        self._values |= values

    def _hand_over(self) -> None:
        """Hand over the values of the step that is held, and the pictures up to it."""
        if not self._values:
            return
        step, values, self._values = self._step, self._values, {}
        self._hand_pictures_over(step - 1)  # a tracker may take no step after a later one
        self._is_whole &= self._call("scalars", step, values)
        earlier = self._state["names"] if step == self._state["step"] else []
        self._state |= {"step": step, "names": [*earlier, *values]}
        self._hand_pictures_over(step)

    def _take_pictures(self, step: int, pictures: Mapping[str, str]) -> None:
        last, names = self._state["pictures"]
        new = {name: png for name, png in pictures.items() if step > last or (step == last and name not in names)}
        if not new or not hasattr(self._tracker, "pictures"):
            return
        if step > self._step:
            self._hand_over()
        self._pictures.setdefault(step, {}).update({name: base64.b64decode(png) for name, png in new.items()})

    def _hand_pictures_over(self, until: float) -> None:
        for step in sorted(step for step in self._pictures if step <= until):
            pictures, (last, names) = self._pictures.pop(step), self._state["pictures"]
            if self._call("pictures", step, pictures):
                self._state["pictures"] = [step, [*(names if step == last else []), *pictures]]

    def _read_pictures(self) -> None:
        """Read the pictures that an earlier process has left, up to the step of the resume."""
        with suppress(OSError, ValueError, TypeError, AttributeError):  # none, or no file of ours
            for text, pictures in safe_io.read_json(self._left, MOST_PICTURES).items():
                if int(text) <= self._setup["until"]:
                    self._take_pictures(int(text), pictures)

    def _leave_pictures(self) -> None:
        """Leave the pictures of a step that may lack values for the process of a resume."""
        self._left.unlink(missing_ok=True)
        left = {
            step: {name: base64.b64encode(png).decode() for name, png in pictures.items()}
            for step, pictures in self._pictures.items()
        }
        if left and sum(len(png) for pictures in left.values() for png in pictures.values()) < MOST_PICTURES // 2:
            write(self._left, left)

    def flush(self) -> None:
        """Let the tracker send what it has, and note it, unless a step has failed."""
        if (not hasattr(self._tracker, "flush") or self._call("flush")) and self._is_whole:
            self._keep_sure()
        self._save()

    def _keep_sure(self) -> None:
        self._sure = {key: self._state[key] for key in ("step", "names")}

    def close(self, status: str, *, complete: bool) -> None:
        """Hand over the last step, if it has all of its values, and end the tracker."""
        if complete:
            self._hand_over()
            self._hand_pictures_over(math.inf)
        self._leave_pictures()
        self.flush()
        if hasattr(self._tracker, "end"):
            self._call("end", status)
        print(f"{status}; {self._failed} calls failed", flush=True)

    def _call(self, method: str, *arguments: Any) -> bool:
        """Call a method of the tracker; return whether it succeeded."""
        try:
            getattr(self._tracker, method)(*arguments)
        except BaseException as error:  # noqa: BLE001  of somebody else's code
            self._failed += 1
            traceback.print_exc()
            if self._failed == 1:
                of = f" of step {arguments[0]:,}" if method in ("scalars", "pictures") else ""
                self._report(f"`{method}`{of} failed ({describe(error)})")
            return False
        return True

    def _report(self, said: str, *, over: bool = False) -> None:
        if over:
            traceback.print_exc()
        self._answer({"failed": said, "over": over})

    def _save(self) -> None:
        write(self._file, self._state | self._sure)


def write(path: Path, value: Any) -> None:
    """Write a JSON file at once, without fsync: the tracker has none for its own data either."""
    written = path.with_suffix(".tmp")
    written.unlink(missing_ok=True)
    handle = safe_io.open_regular(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(handle, "w") as file:
        json.dump(value, file)
    written.replace(path)


def is_state(value: Any) -> bool:
    """Return whether a file's content is the state of a tracker."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("id"), str)
        and value["id"].isalnum()
        and isinstance(value.get("step"), int | None)
        and isinstance(value.get("names"), list)
        and isinstance(value.get("pictures"), list)
        and len(value["pictures"]) == 2
    )


def describe(error: BaseException) -> str:
    """Describe an error in one line."""
    return make_printable(" ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_SAID])


def build(node: Any, trust: tuple[str, ...]) -> Any:
    """Build a component of the config without torch, with its arguments as their annotations say."""
    if isinstance(node, list):
        return [build(member, trust) for member in node]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {name: build(member, trust) for name, member in node.items()}
    target = import_object(node["_target_"], trust)
    takes = inspect_parameters(target)
    arguments = {name: build(value, trust) for name, value in node.items() if name not in ("_target_", "_args_")}
    for name, value in arguments.items():
        parameter = None if takes is None else takes.named.get(name)
        if parameter is not None and parameter.annotation is not parameter.empty:
            converted = convert(value, infer_annotation(parameter))
            arguments[name] = value if converted is UNFIT else converted
    return target(*build(node.get("_args_", []), trust), **arguments)


def read_messages(pipe: int) -> Iterator[dict[str, Any] | None]:
    """Yield the messages of the run to its end, and None where no other one is waiting, or after many."""
    buffer, count = b"", 0
    while True:
        if count and (count >= LINES_AT_ONCE or not select.select([pipe], [], [], 0)[0]):
            yield None
            count = 0
        part = os.read(pipe, 1 << 20)
        if not part:
            return
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            yield json.loads(line)
            count += 1


def limit_time() -> None:
    """Let the kernel end this process after LAST_SECONDS, whatever hangs in it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, LAST_SECONDS)


def limit_time_at_end(pipe: int) -> None:
    """Limit the time once nobody can write to the pipe, also where a call hangs."""
    poll = select.poll()
    poll.register(pipe, 0)  # a hang-up is told without being asked for
    poll.poll()
    signal.setitimer(signal.ITIMER_REAL, LAST_SECONDS)
    time.sleep(LAST_SECONDS + 1)
    os._exit(1)  # a library catches SIGALRM


def main() -> None:
    """Serve the tracker that the first line describes, until the run ends or is killed."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):  # of a scheduler: the run saves, and tells the end
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    lines, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)  # whoever asks for a key gets no answer
    os.dup2(2, 1)  # what it prints goes to its log

    def answer(what: Mapping[str, Any]) -> None:
        with suppress(OSError):  # nobody reads
            os.write(answers, json.dumps(what).encode() + b"\n")

    threading.Thread(target=limit_time_at_end, args=(lines,), daemon=True).start()
    messages = read_messages(lines)
    setup = next(messages)
    assert setup is not None
    host = TrackerHost(setup, answer)
    lock = Path(setup["folder"]) / "trackers" / f"{setup['name']}.lock"
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  process {os.getpid()}", flush=True)
    with lock_waiting(lock):  # the tracker of a killed run ends first
        if not host.open():
            limit_time()  # a thread of its own may go on
            return
        for message in messages:
            if message is None:
                host.flush()
                continue
            if "end" in message:
                limit_time()
            if host.take(message):
                break
        else:
            limit_time()
            host.close("killed", complete=False)
    answer({"done": True})
    sys.stdout.flush()
