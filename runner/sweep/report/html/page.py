"""Page of the report: one HTML file with its data, its scripts and a policy that forbids requests."""

import base64
import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.files import write_text
from runner.core.safe_io import open_read, read_bytes

USED = "window.vegaEmbed = vegaEmbed;"  # of the bundle


END = "\n/* whole */\n"  # of a script that was written to its end


MARK = b'<meta name="generator" content="yaml-experiment-runner report">'


class PendingVega:
    """Script of Vega, Vega-Lite and Vega-Embed, which vl-convert bundles offline in a thread of its own.

    That takes 1.4 s, so it is kept in the user's cache, for the version of vl-convert.

    Raises:
        ConfigError: vl-convert is not installed.
    """

    def __init__(self) -> None:
        try:
            import vl_convert
        except ModuleNotFoundError as error:
            rule = "needs vl-convert-python, which is not installed"
            remedy = "pip install 'yaml-experiment-runner[report]'"
            raise ConfigError([Mistake("--html", rule, remedy=remedy, kind="missing")]) from error
        self._bundle = vl_convert.javascript_bundle
        self._file = find_cache() / f"vega_{importlib.metadata.version('vl-convert-python')}.js"
        self._script = ""
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self._script = read_bytes(self._file).decode()
        if self._script.endswith(END):
            return
        try:
            self._script = f"{self._bundle(USED)}{END}"
        except Exception as error:  # noqa: BLE001  told by `collect`, in the other thread
            self._error = error
            return
        with contextlib.suppress(OSError):  # a home that is full or read-only
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._file, self._script)

    def collect(self) -> str:
        """Wait for the script.

        Raises:
            RunError: vl-convert failed.
        """
        self._thread.join()
        if self._error is not None:
            raise RunError(f"vl-convert could not bundle Vega: {self._error}") from self._error
        return self._script


def find_cache() -> Path:
    """Find the folder of the user's cache, which may not exist yet."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (named if named.is_absolute() else Path.home() / ".cache") / "yaml-experiment-runner"
    except RuntimeError:  # no home
        return Path(os.devnull)


def write_embedded_json(value: Any) -> str:
    """Write plain data as JSON that may stand inside a script element: no `<`, and no line separators."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _escape_json(text)


_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def _escape_json(text: str) -> str:
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def make_page(content: dict[str, Any], vega: str) -> str:
    """Make the page of its content and the script that draws plots."""
    here = Path(__file__).parent
    scripts = {"vega": _wrap_script(vega), "page": _wrap_script((here / "page.js").read_text(encoding="utf-8"))}
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts.values())
    title = str(content["title"]).replace("&", "&amp;").replace("<", "&lt;")
    parts = {**scripts, "hashes": hashes, "title": title, "data": write_embedded_json(content)}
    template = (here / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _wrap_script(script: str) -> str:
    """Give a script names of its own, and spell what would end its element in another way."""
    plain = script.replace("\r\n", "\n").replace("\r", "\n")
    safe = re.sub(r"<(?=/script|!--)", lambda _: r"\x3c", plain, flags=re.IGNORECASE)
    return f"(() => {{\n{safe}\n}})();"


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def refuse_other_file(file: Path) -> None:
    """Refuse to overwrite a file that is no report of ours.

    Raises:
        ConfigError: it is another file, or no regular one.
    """
    try:
        with open_read(file) as opened:
            is_ours = MARK in opened.read(4_000)
    except FileNotFoundError:
        is_ours = True
    except OSError as error:
        rule = f"cannot be written: {error.strerror or error}"
        raise ConfigError([Mistake("--html", rule, str(file), f"argument `--html={file}`", kind="file")]) from error
    if not is_ours:
        rule, remedy = "exists, and is no report", "name another file: --html=FILE"
        raise ConfigError([Mistake("--html", rule, str(file), f"argument `--html={file}`", remedy, kind="file")])
    if not file.parent.is_dir():
        rule = "must lie in a folder that exists"
        raise ConfigError([Mistake("--html", rule, str(file), f"argument `--html={file}`", kind="file")])
