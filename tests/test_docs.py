"""Every command of the README and of the pages does what it says; the site builds without a warning or a network."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.cli.verbs import VERBS
from runner.config.key_help import list_key_help
from tests.support import is_shown, read_result

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TESTS = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py") if file != Path(__file__))
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]


# Pages with a test of their own, below `docs/cookbook/guides` and `docs/tutorial`.
ELSEWHERE = {
    "data": "experiment/test_pages.py",
    "first_sweep": "test_tutorial.py",
    "libraries": "experiment/test_libraries.py",
    "outcomes": "experiment/test_outcomes_page.py",
    "predict_export": "experiment/test_predict_export_page.py",
    "replay": "experiment/test_replay.py",
    "runs": "sweep/test_runs_page.py",
    "time": "experiment/test_pages.py",
    "torchvision_reference": "experiment/test_torchvision_reference.py",
    "training_scripts": "experiment/test_training_script_page.py",
}


def is_ours(page: Path) -> bool:
    """Whether a page is tried here, and by no test of its own."""
    if page.parent.name in ("cookbook", "coming_from"):
        return False  # tests/test_cookbook.py
    if page.parent == DOCS:
        return page.name not in TESTS
    return page.stem not in ELSEWHERE


OURS = [page for page in PAGES if is_ours(page)]
# Of these pages every command is tried each day but most sweeps; of the others by `make test-all`.
GUIDES = ("README", "before_training", "weights", "training", "run_directory", "looking_inside", "resuming")
GUIDES += ("processes", "sweeps", "own_parts", "datasets")
# First words of lines that no test gives as they stand, and why.
NOT_RUN = {
    "make": "the checkout's own: `.ci/run`",
    "pip": "tests/test_packaging.py installs the wheel",
    "tensorboard": "stays open",
    "torchrun": "tests/train/test_distributed.py gives them to ranks of its own",
    "mkdir": "a script for SLURM",
    "srun": "a script for SLURM",
    "[": "a script for SLURM",
    "source": "of a shell",
    "cd": "of a shell",
}


def read_blocks(page: Path, language: str) -> list[str]:
    """Read the code blocks of a page that are in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def read_lines(page: Path) -> list[str]:
    """Read the lines of a page's shell blocks, comments and empty lines left out."""
    lines = [line.strip() for block in read_blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def write_files(page: Path) -> None:
    """Write the files of a page whose first line is their name."""
    for language in ("python", "yaml", "csv"):
        for block in read_blocks(page, language):
            first, _, text = block.partition("\n")
            if re.fullmatch(r"# [\w/.-]+\.\w+", first):
                name = Path(first.removeprefix("# "))
                name.parent.mkdir(parents=True, exist_ok=True)
                name.write_text(text)


CLUSTERS = (
    "hydra/launcher=submitit",
    "hydra/launcher=ray",
)  # tests/sweep/test_clusters.py gives them to some of its own
COMMANDS = [
    (page, line)
    for page in OURS
    for line in read_lines(page)
    if line.startswith("python -m runner") and not any(launcher in line for launcher in CLUSTERS)
]
SLOW = ("find batch_size", "check resume")  # other tests of every day ask them
SWEEPS = [(page, line) for page, line in COMMANDS if "runner -m " in line.partition("#")[0]]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which `RUN` stands for."""
    from runner.__main__ import main

    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train.duration=1ep"]) == 0
    return next((folder / "outputs" / "digits_cnn").iterdir())


@pytest.fixture(scope="module")
def sweep_folder(run_folder: Path) -> Path:
    """A sweep with that run as its only job, which `SWEEP` stands for."""
    from runner.sweep.ledger import JobRecord, Ledger

    folder = run_folder.parent / "sweep"
    folder.mkdir()
    objective = read_result(run_folder)["objective"]
    with Ledger(folder) as ledger:
        ledger.set(name="digits_cnn", objective="val/accuracy", mode="max", command=["-m", "train.duration=1ep"])
        shutil.copytree(run_folder, folder / "0_0000", symlinks=True)
        ledger.add([JobRecord("0", 0, ["train.duration=1ep"], "0_0000", status="completed", objective=objective)])
    return folder


def choose_marks(page: Path, line: str) -> list[Any]:
    """Whole sweeps and some questions take 5 to 9 s, so one sweep is tried every day; of the guides the rest is."""
    daily = page.stem in GUIDES and (page, line) not in SWEEPS[1:] and not any(words in line for words in SLOW)
    return [] if daily else [pytest.mark.exhaustive]


@pytest.mark.parametrize(
    ("page", "line"),
    [
        pytest.param(*case, marks=choose_marks(*case), id=f"{case[0].stem}: {case[1][17:80]}")
        for case in dict.fromkeys(COMMANDS)
    ],
)
def test_command(
    page: Path,
    line: str,
    runner: Callable[..., Any],
    run_folder: Path,
    sweep_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command ends with status 0, or with the one that its comment gives."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(run_folder.parents[2] / "config"))  # what `trust add` keeps
    command, _, comment = line.partition(" #")
    code = re.search(r"exit status (\d)", comment)
    write_files(page)
    folders = {"RUN": str(run_folder), "SWEEP": str(sweep_folder)}
    words = shlex.split(re.split(r" (?:2>|\|) ", command)[0])[3:]
    ran = runner(*[folders.get(word, word) for word in words])

    assert ran.status == (int(code[1]) if code else 0), ran.err


PAIR = re.compile(r"^```bash\n(?P<line>[^\n]*)\n```\n+```text\n(?P<shown>.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = [(page, *pair) for page in OURS for pair in PAIR.findall(page.read_text())]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("page", "line", "shown"), SHOWN, ids=[page.stem for page, *_ in SHOWN])
def test_what_is_shown_below_a_command_is_what_it_prints(
    page: Path, line: str, shown: str, runner: Callable[..., Any]
) -> None:
    """Numbers may be others: processors round differently."""
    write_files(page)
    ran = runner(*shlex.split(line, comments=True)[3:])

    assert any(is_shown(shown, said) for said in (ran.out, ran.err, ran.out + ran.err, ran.err + ran.out)), ran


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.stem)
def test_every_line_for_a_shell_is_tried_or_known_why_not(page: Path) -> None:
    lines = [line for line in read_lines(page) if not line.startswith("python -m runner")]

    assert [line for line in lines if line.split()[0] not in NOT_RUN] == []


def test_the_reference_has_every_key_verb_and_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written from the schema, the parsers and `conf/` while the site is built."""
    monkeypatch.syspath_prepend(DOCS / "_ext")
    reference = importlib.import_module("generated_reference")
    keys, options, verbs = (reference.generate(f"<!-- generated: {part} -->") for part in ("keys", "options", "verbs"))
    missing = [known.key for known in list_key_help() if f"[`{known.key}`]{{#key-" not in keys]
    missing += [verb for verb in VERBS if f"\n## {verb}\n" not in verbs]
    missing += [str(file) for file in (ROOT / "conf").rglob("*.yaml") if f"| `{file.stem}` |" not in options]

    assert missing == [str(ROOT / "conf" / "config.yaml")]


RUN_PAGE = (DOCS / "reference" / "run_directory.md").read_text()


def read_names(title: str) -> set[str]:
    """Read the names of the run directory's page below a heading."""
    section = RUN_PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`([^`]+)`", "".join(section.split("```")[::2])))


def test_every_file_of_a_run_is_on_its_page(run_folder: Path) -> None:
    """Also what its records hold, and a checkpoint."""
    import torch

    checkpoint = torch.load(run_folder / "checkpoints" / "last.pt", weights_only=True)
    provenance = json.loads((run_folder / "provenance.json").read_text())
    found = {"Files": {path.name for path in run_folder.iterdir()}, "result.json": {*read_result(run_folder)}}
    found |= {"provenance.json": {*provenance}, "A checkpoint": {*checkpoint}}
    missing = {
        title: [name for name in names if not any(name == known.split("/")[0] for known in read_names(title))]
        for title, names in found.items()
    }

    assert not any(missing.values()), missing


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_a_page_that_is_tried_elsewhere_is_named_there(page: str, test: str) -> None:
    assert f"{page}.md" in (ROOT / "tests" / test).read_text()


KEYS = {known.key.partition(".")[0] for known in list_key_help()} | {"defaults", "hydra", "experiment", "debug"}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name != "coming_from"], ids=lambda page: page.stem
)
def test_its_python_and_yaml_can_be_read(page: Path) -> None:
    """Python compiles; a block of YAML without a file's name has keys of the config."""
    for block in read_blocks(page, "python"):
        ast.parse(block)
    loaded = [
        yaml.safe_load(block) for block in read_blocks(page, "yaml") if not block.startswith(("# conf/", "# theirs"))
    ]
    keys = {key for block in loaded if isinstance(block, dict) for key in block}

    assert [key for key in keys if key.partition(".")[0] not in KEYS] == []


@pytest.mark.exhaustive
@pytest.mark.skipif(not importlib.util.find_spec("sphinx"), reason="needs the extra `docs`")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every page is in a table of contents, and every link to a page or a heading leads somewhere."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    remote = [
        (page.name, address)
        for page in tmp_path.rglob("*.html")
        for address in re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
    ]

    assert (built.returncode, built.stderr, remote) == (0, "", [])
