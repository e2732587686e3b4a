"""Try of what is published: `make test-wheel` installs sdist and wheel in fresh environments and uses them elsewhere.

For each Python that is there, with the versions of requirements.lock: the check, a run, help and a sweep of two.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support import say

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
COMMANDS = (
    ("check",),
    ("train.duration=1ep", "log.progress=false"),
    ("help", "optimizer"),
    ("-m", "seed=0,1", "train.duration=2st", "log=quiet"),
    ("report", "outputs/digits_cnn/SWEEP"),
)


def find_python(version: str) -> str | None:
    """Find an interpreter of a version: that of this environment, uv's, one on the path, or pyenv's."""
    if sys.version.startswith(f"{version}."):
        return sys.executable
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return found.stdout.strip()
    known = [shutil.which(f"python{version}"), *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    for path in filter(None, known):
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and f" {version}." in answer.stdout:
            return path
    return None


def build(folder: Path) -> list[Path]:
    """Build sdist and wheel from a copy of what git knows, so that nothing else of this folder gets into them."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=folder / "source", check=True)
    return [*folder.glob("*.tar.gz"), *folder.glob("*.whl")]


def make_constraints(folder: Path) -> Path:
    """Write the versions of requirements.lock without their hashes, which hold for no file of ours."""
    lines = re.findall(r"^[A-Za-z0-9._-]+==\S+(?: ; [^\\\n]+)?", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    file = folder / "constraints.txt"
    file.write_text("\n".join(lines))
    return file


def install(python: str, file: Path, home: Path, constraints: Path) -> Path:
    """Install a file with the extra `report` in a new environment, by uv where it is there; its interpreter."""
    subprocess.run([python, "-m", "venv", home], check=True)
    inside = home / "bin" / "python"
    uv = shutil.which("uv")
    tool = [uv, "pip", "install", "--python", inside] if uv else [inside, "-m", "pip", "install", "--no-input"]
    subprocess.run([*tool, "--quiet", "-c", constraints, f"{file}[report]"], check=True)
    return inside


def use(python: Path, folder: Path) -> Iterator[str]:
    """Give each command in a folder of its own; yield what was wrong."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for command in COMMANDS:
        sweeps = [path.name for path in folder.glob("outputs/digits_cnn/sweep_*")]
        words = [word.replace("SWEEP", sweeps[0] if sweeps else "SWEEP") for word in command]
        done = subprocess.run(
            [python, "-m", "runner", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            yield f"`python -m runner {' '.join(words)}` ends with {done.returncode}:\n{done.stdout}{done.stderr}"
    where = [python, "-c", "import runner; print(runner.__file__)"]
    origin = subprocess.run(where, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    if "site-packages" not in origin:
        yield f"runner was imported from {origin}"


def main() -> int:
    """Try every file with every Python; return the exit status."""
    wrong, tried = 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files, constraints = build(folder), make_constraints(folder)
        for version in sys.argv[1:] or PYTHONS:
            python = find_python(version)
            if python is None:
                say(f"Python {version}: not on this machine (`uv python install {version}` gets one)")
                continue
            for file in files:
                kind, began = "wheel" if file.suffix == ".whl" else "sdist", time.monotonic()
                home = folder / f"{version}_{kind}"
                problems = [*use(install(python, file, home, constraints), folder / f"work_{version}_{kind}")]
                said = "works" if not problems else "\n".join(problems)
                say(f"Python {version}, {kind}: {said} ({time.monotonic() - began:.0f} s)")
                wrong, tried = wrong + len(problems), tried + 1
                shutil.rmtree(home)
    return int(wrong > 0 or not tried)


if __name__ == "__main__":
    sys.exit(main())
