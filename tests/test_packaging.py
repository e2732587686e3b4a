"""What is installed is what stands in the repository: the wheel, and the folders that it must not claim."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runner import __main__ as entry

ROOT = Path(__file__).parents[1]


def pip(*arguments: str | Path) -> None:
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, ".")
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_holds_every_shipped_file_and_no_top_level_conf(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kept = (".py", ".npz", ".txt", ".typed", ".html", ".js")
    shipped = [path for package in ("runner", "models", "datasets") for path in ROOT.glob(f"{package}/**/*.*")]
    packages = {path for path in shipped if path.suffix in kept}
    expected = {str(path.relative_to(ROOT)) for path in packages}
    expected = {name if name.startswith("runner/") else f"runner/shipped/{name}" for name in expected}
    expected |= {f"runner/{path.relative_to(ROOT)}" for path in ROOT.glob("conf/**/*.*")} | {"runner/for_agents.md"}

    assert expected == names


def test_wheel_has_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith("entry_points.txt")]
        text = packed.read(name).decode()

    assert "yexp = runner.__main__:run_command" in text
    assert callable(entry.run_command)


def test_installed_wheel_trains_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """`python -m runner` needs nothing of the checkout: neither its folder nor its `conf/`."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip("install", "--target", site, wheel)

    arguments = ["debug=one_batch", "train.duration=2st", "device=cpu"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-m", "runner", *arguments], check=True, cwd=work, env=environment)
    (result,) = work.glob("outputs/digits_cnn/*/result.json")

    assert (json.loads(result.read_text())["status"], json.loads(result.read_text())["steps"]) == ("completed", 2)


def test_reading_a_config_imports_no_torch() -> None:
    """`--cfg`, completion and `why` answer at once: torch alone takes seconds."""
    code = "import sys, runner.config.check.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
