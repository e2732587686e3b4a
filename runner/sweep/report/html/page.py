"""Page of the report: one HTML file with its data, its scripts and a policy that forbids requests."""

import base64
import hashlib
import json
import re
import threading
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Mistake
from runner.core.safe_io import open_read

MISSING = "the plots need vl-convert-python: pip install 'yaml-experiment-runner[report]'"


USED = "window.vegaEmbed = vegaEmbed;"  # of the bundle


MARK = b'<meta name="generator" content="yaml-experiment-runner report">'


class PendingVega:
    """Script of Vega, Vega-Lite and Vega-Embed, which vl-convert bundles offline in a thread of its own.

    Raises:
        ConfigError: vl-convert is not installed.
    """

    def __init__(self) -> None:
        try:
            import vl_convert
        except ModuleNotFoundError as error:
            rule, remedy = (
                "needs vl-convert-python, which is not installed",
                "pip install 'yaml-experiment-runner[report]'",
            )
            raise ConfigError([Mistake("--html", rule, remedy=remedy, kind="missing")]) from error
        self._bundle = vl_convert.javascript_bundle
        self._found: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._found.append(self._bundle(USED))

    def collect(self) -> str:
        """Wait for the script."""
        self._thread.join()
        return self._found[0]


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
