# ruff: noqa: PTH109, PTH118  paths as the system has them
"""A box for one attack: a stranger's project, files beside it that must stay as they are, and a watch on the process.

The watch is an audit hook: programs started, connections, unpickled globals, and files that are made, changed, renamed
or deleted outside the places where the runner may write.
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

SECRET = "hunter2-of-the-canary"
WRITABLE = ("outputs", "data", "conf/experiment", "stranger")  # below the project: a run, a download, a promotion
HANG, CPU = 60, 5.0  # seconds of the wall, after which an attack counts as hung; of processor time that it may take
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

STARTED = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "webbrowser.open", "urllib.Request", "socket.connect", "socket.getaddrinfo", "socket.bind", "pickle.find_class",
    "sqlite3.load_extension", "ftplib.connect", "smtplib.connect",
}  # fmt: skip
CHANGED = {
    "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.link",
    "os.symlink", "shutil.rmtree", "shutil.move", "os.mkfifo", "os.mknod",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hung(BaseException):
    """An attack that did not end."""


@dataclass
class Watch:
    """What an attack did, seen from the process itself."""

    project: Path
    seen: list[str] = field(default_factory=list)

    def note(self, event, arguments):
        if event in STARTED:
            program = str(arguments[0])
            if not (event == "subprocess.Popen" and program.rpartition("/")[2] == "git"):  # of the provenance
                self.seen.append(f"{event}{arguments!r}"[:300])
        elif event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & _WRITES
            writes = writes or (isinstance(mode, str) and set(mode) & set("wax+"))
            if writes and not isinstance(path, int):
                self.touch(event, path, follows=not (isinstance(flags, int) and flags & os.O_NOFOLLOW))
        elif event in CHANGED:
            of_two = event in ("os.rename", "os.link", "os.symlink")
            handles = arguments[-2 if event in ("os.rename", "os.link") else -1 :] if event != "os.truncate" else ()
            relative_to_a_handle = any(isinstance(one, int) and one > 2 for one in handles)
            for path in arguments[event == "os.symlink" : 2 if of_two else 1]:
                if not relative_to_a_handle:
                    self.touch(event, path, follows=event in ("os.truncate", "os.chmod", "os.utime"))

    def touch(self, event, path, *, follows):
        if isinstance(path, int) or path is None:
            return
        full = os.path.join(os.getcwd(), os.fsdecode(path))
        parent, name = os.path.split(full.rstrip("/"))
        real = os.path.realpath(full) if follows else os.path.join(os.path.realpath(parent), name)
        project = os.path.realpath(self.project)
        inside = [os.path.join(project, place) for place in WRITABLE]
        known = real in ("/dev/null", os.path.join(project, "conf"))
        if not known and not any(f"{real}/".startswith(f"{place}/") for place in inside):
            self.seen.append(f"{event} {path!r}")


_now = threading.local()


def _hook(event, arguments):
    watch = getattr(_now, "watch", None)
    if watch is not None and (event in STARTED or event in CHANGED or event == "open"):
        _now.watch = None  # what the watch does itself is not watched
        try:
            watch.note(event, arguments)
        finally:
            _now.watch = watch


sys.addaudithook(_hook)


@dataclass
class Ended:
    """How a command ended: status, output, what it did, and processor seconds."""

    status: int | str
    text: str
    seen: list[str]
    seconds: float


class Box:
    """A folder with a project in it, and beside it what a stranger would like to read, change or start."""

    def __init__(self, root, template=None):
        self.root, self.template = root, template
        self.project, self.victim, self.installed = root / "project", root / "victim", root / "installed"
        for folder in (self.project, self.victim / "folder", self.victim / "empty", self.installed / "evil_package"):
            folder.mkdir(parents=True)
        for name in ("notes.txt", "folder/inner.txt"):
            (self.victim / name).write_text(f"mine: {name}\n" * 50)
        trace = f"open({str(self.victim / 'imported')!r}, 'w').close()\nclass Model: pass\n"
        for name in ("evil_module.py", "evil_package/__init__.py", "evil_package/sub.py"):
            (self.installed / name).write_text(trace + f"def pull(*a, **k): {trace.splitlines()[0]}\n")

    def write(self, name, content):
        """Write a file of the stranger's below the project."""
        file = self.project / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return file

    def stranger(self):
        """The run directory of a stranger: a copy of one that was really trained."""
        folder = self.project / "stranger"
        if not folder.exists():
            shutil.copytree(self.template, folder, symlinks=True)
        return folder

    def digest(self):
        """What lies where the runner has nothing to write: names, links, and content."""
        lines = []
        kept = [self.project / place for place in WRITABLE]
        for top in (self.victim, self.project):
            for path in sorted(top.rglob("*")):
                if any(path == place or path.is_relative_to(place) for place in kept) or path.is_relative_to(
                    self.project / "conf"
                ):
                    continue
                state = path.lstat()
                small = path.is_file() and not path.is_symlink() and state.st_size < 1 << 26
                content = path.read_bytes() if small else str(state.st_size).encode()
                target = str(path.readlink()) if path.is_symlink() else ""
                lines.append((str(path), state.st_mode, target, hashlib.sha256(content).hexdigest()))
        return [line for line in lines if "__pycache__" not in line[0] and line[0] != str(self.project / "conf")]

    def run(self, argv):
        """`python -m runner …` in the project, in this process, watched."""
        from runner.__main__ import main

        out, watch = io.StringIO(), Watch(self.project)
        before, path, cwd, signals = dict(os.environ), list(sys.path), Path.cwd(), _handlers()
        modules = set(sys.modules)
        os.chdir(self.project)
        os.environ["SECRET_TOKEN"] = SECRET
        sys.path[:] = ["", *path, str(self.installed)]
        began = time.process_time()
        signal.signal(signal.SIGALRM, _hang)
        signal.alarm(HANG)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _now.watch = watch
                try:
                    status = main([str(word) for word in argv])
                except SystemExit as error:
                    status = f"SystemExit: {error}"
                except Hung:
                    status = "hung"
                except BaseException:  # noqa: BLE001  that is the finding
                    status = "traceback: " + traceback.format_exc()[-1500:]
                finally:
                    _now.watch = None
        finally:
            signal.alarm(0)
            seconds = time.process_time() - began
            os.chdir(cwd)
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(before)
            for number, handler in signals.items():
                signal.signal(number, handler)
            for name in set(sys.modules) - modules:
                file = getattr(sys.modules[name], "__file__", None) or ""
                if file.startswith(str(self.root)):
                    del sys.modules[name]
        return Ended(status, out.getvalue(), watch.seen, seconds)

    def logs(self):
        """The text of logs and reports that the command left in the project."""
        found = [file for kind in ("log.txt", "report.csv") for file in self.project.rglob(kind)]
        return "".join(file.read_text(errors="replace") for file in found if file.is_file())


def _handlers():
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}


def _hang(*_):
    raise Hung
