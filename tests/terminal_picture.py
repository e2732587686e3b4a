"""Draw docs/images/terminal.svg, the README's picture, from real commands: `python -m tests.terminal_picture`."""

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "terminal.svg"
WIDTH = 104
COMMANDS = (
    "python -m runner",
    "python -m runner check optimizer.lr=fast train.epocs=3 model=small_cn",
    "python -m runner -m optimizer.lr=0.05,0.2 seed=0,1,2 train.duration=10ep",
)


def run_in_terminal(command: str, folder: Path) -> str:
    """Return what a command has written to a terminal of its own."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": "50"}
    arguments = [sys.executable, *shlex.split(command)[1:]]
    process = subprocess.Popen(
        arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end was closed
            break
        if not data:
            break
        written += data
    process.wait()
    os.close(ours)
    return written.decode()


def read_screen(written: str) -> list[str]:
    """Return the lines that stand on the screen in the end, their colours kept."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r\n|\r|\n|[^\x1b\r\n]+", written):
        if token in ("\r\n", "\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif up := re.fullmatch(r"\x1b\[(\d*)A", token):
            row = max(0, row - int(up[1] or 1))
        elif token.endswith("K"):
            lines[row] = ""
        elif token.endswith("m") or not token.startswith(("\x1b", "\r")):
            lines[row] += token
    return lines


def record() -> list[str]:
    """Run the commands in a folder of their own; the lines that a terminal shows."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            screen = read_screen(run_in_terminal(command, Path(folder)))
            lines += [f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m", *screen]
    return lines


def draw(lines: list[str]) -> str:
    """Draw lines as SVG, without the font that rich would fetch from the net."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    for line in lines:
        console.print(Text.from_ansi(line), no_wrap=True, overflow="ellipsis")
    svg = console.export_svg(title="a real session: python -m tests.terminal_picture", unique_id="terminal")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(record()))
