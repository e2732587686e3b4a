"""The cookbook holds: its Python runs, its YAML is right, its commands work, and both sides of a recipe do the same."""

import contextlib
import copy
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support import read_result, run_in, write_files

ROOT = Path(__file__).parents[1]
COOKBOOK, COMING_FROM = ROOT / "docs" / "cookbook", ROOT / "docs" / "coming_from"
PAGES = ("weights_and_rates.md", "train.md", "feed_data.md", "look_inside.md", "sweep.md", "your_own.md")
PAGES += ("use_a_run.md",)
FENCE = re.compile(r"^```(python|yaml|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")


class Block(NamedTuple):
    """A block of code; of a file with its path."""

    language: str
    path: str | None
    text: str


@dataclass
class Recipe:
    """A section of a page, and what stands before the page's first section."""

    page: str
    title: str
    blocks: list[Block]
    before: list[Block]

    @property
    def files(self) -> dict[str, str]:
        """Files that a reader writes."""
        found = [block for block in self.before + self.blocks if block.path]
        return {str(block.path): FILE.sub("", block.text, count=1) for block in found}

    @property
    def code(self) -> list[str]:
        """Python to run, in order."""
        return [block.text for block in self.before + self.blocks if block.language == "python" and not block.path]

    @property
    def settings(self) -> dict[str, Any]:
        """YAML to be added to the experiment."""
        added = [block.text for block in self.blocks if block.language == "yaml" and not block.path]
        assert len(added) <= 1, self.title
        return yaml.safe_load(added[0]) if added else {}

    @property
    def lines(self) -> list[str]:
        """Commands, in order."""
        return [line for block in self.blocks if block.language == "bash" for line in block.text.splitlines()]


def read_blocks(text: str) -> list[Block]:
    """Read the blocks of a text."""
    found = []
    for language, content in FENCE.findall(text):
        named = FILE.match(content)
        found.append(Block(language, named[1] if named else None, content))
    return found


def read_recipes() -> list[Recipe]:
    """Read the recipes of all pages."""
    recipes = []
    for page in [COOKBOOK / name for name in PAGES]:
        first, *sections = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
        before = read_blocks(first)
        for section in sections:
            title, _, body = section.partition("\n")
            recipes.append(Recipe(page.stem, title, read_blocks(body), before))
    return recipes


FIRST = Recipe("start", "", read_blocks((COOKBOOK / "start.md").read_text()), [])
RECIPES = read_recipes()
EXPERIMENT = "conf/experiment/mine.yaml"
SETUP, _, LOOP = FIRST.code[0].partition("\nfor epoch in range(5):")
LOOP = "for epoch in range(epochs):" + LOOP.replace("    model.train()\n", "")  # norms that a recipe has frozen stay so
SLOW = ("torch.compile", "torch.export", "torch.profiler", "import optuna", "init_process_group")  # 0.2 to 2 s each


def name_cases(recipes: list[Recipe], slow: tuple[str, ...] = ()) -> list[Any]:
    """Name a test case for each recipe; what takes long is not for every day."""
    marks = {one.title: [pytest.mark.exhaustive] for one in recipes for word in slow if word in "".join(one.code)}
    return [
        pytest.param(one, id=f"{one.page}-{one.title.replace(' ', '_')}", marks=marks.get(one.title, []))
        for one in recipes
    ]


each_recipe = pytest.mark.parametrize("recipe", name_cases(RECIPES))


def merge(base: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    """Add keys to a config; another component replaces the one that is there."""
    merged = copy.deepcopy(base)
    for key, value in added.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and "_target_" not in value
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def write_experiment(settings: dict[str, Any]) -> None:
    """Write the experiment with what a recipe adds to it."""
    text = FIRST.files[EXPERIMENT]
    merged = yaml.safe_dump(merge(yaml.safe_load(text), settings), sort_keys=False)
    Path(EXPERIMENT).write_text(f"# @package _global_\n{merged}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the first page."""
    made = tmp_path_factory.mktemp("cookbook")
    write_files(made, FIRST.files)
    return made


@pytest.fixture
def project(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that folder, to work in."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def run_left(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, start: Any = None, epochs: int = 0) -> dict[str, Any]:
    """Run the Python of a recipe, then the loop for so many epochs; the names that it leaves.

    Args:
        recipe: the recipe.
        monkeypatch: for the environment of a process that torchrun would have started.
        start: a state_dict that the model begins with; the order of the samples is then their own.
        epochs: epochs of the first page's loop.
    """
    import torch

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    names: dict[str, Any] = {"__name__": "recipe", "epochs": epochs}
    exec(SETUP if start is None else SETUP.replace("shuffle=True", "shuffle=False"), names)
    names.update(words=names["loader"].dataset[:32][0], labels=names["loader"].dataset[:32][1], epoch=0)
    if start is not None:
        names["model"].load_state_dict(start)
    for text in [*recipe.code, LOOP]:
        exec(compile(text, f"{recipe.page}.md: {recipe.title}", "exec"), names)
    return names


@pytest.mark.parametrize("recipe", name_cases(RECIPES, SLOW))
def test_its_python_runs(recipe: Recipe, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any("import optuna" in text for text in recipe.code):
        pytest.importorskip("optuna")
    write_files(project, recipe.files)

    assert run_left(recipe, monkeypatch)


@pytest.fixture(scope="module")
def composed(folder: Path) -> Any:
    """The experiment of the first page, composed once for all recipes."""
    from runner.config.compose import compose

    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return compose(["experiment=mine"])


@pytest.mark.parametrize("recipe", name_cases([one for one in RECIPES if one.settings]))
def test_its_yaml_is_right(recipe: Recipe, project: Path, composed: Any) -> None:
    from omegaconf import OmegaConf

    from runner.config.check.check import Check

    write_files(project, recipe.files)
    merged = merge(OmegaConf.to_container(composed.unresolved), recipe.settings)
    checked = Check(dataclasses.replace(composed, unresolved=OmegaConf.create(merged)))

    assert [mistake.rule for mistake in [*checked.at_once, *checked.by_import()]] == []


# ---- what trains


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """That folder with a finished run, and a sweep of it."""
    shutil.copytree(folder, made := folder.parent / "finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        sys.modules.pop("mine", None)
        line = ["experiment=mine", "optimizer.lr=0.05,0.1", "seed=0,1,2", "train.duration=1ep"]
        assert run_in(made, "experiment=mine", "log=quiet").status == 0
        assert run_in(made, "-m", *line).status == 0
    sys.modules.pop("mine", None)
    return made


def run_line(line: str, project: Path) -> tuple[int, str]:
    """Run a command of a page; its exit status and what it printed on the second stream."""
    runs = project / "outputs" / "mine"
    run = next(path for path in runs.iterdir() if path.name.startswith("20"))
    sweep = next(path for path in runs.iterdir() if path.name.startswith("sweep"))
    words = [word.replace("RUN", str(run)).replace("SWEEP", str(sweep)) for word in shlex.split(line)]
    if words[0] == "torchrun":
        words[:1] = [sys.executable, "-m", "torch.distributed.run"]
    elif words[:3] == ["python", "-m", "runner"]:
        ran = run_in(project, *words[3:])
        return ran.status, ran.err + ran.out
    else:
        assert words[0] in ("ls", "CUDA_VISIBLE_DEVICES=1", "tensorboard"), line
        words = ["env", *words] if words[0] == "ls" else ["true"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@each_recipe
def test_its_commands_work(
    recipe: Recipe, finished: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Each ends with status 0, or with what its comment says; those without keys stand for the YAML in the file."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copytree(finished, project, dirs_exist_ok=True)
    write_files(project, recipe.files)
    run_left(recipe, monkeypatch)
    write_experiment(recipe.settings)
    for line in recipe.lines:
        command, _, comment = line.partition("  # ")
        allowed = re.findall(r"\d", comment) if "exit status" in comment else ["0"]
        status, said = run_line(command, project)
        assert str(status) in allowed, f"{line}\n{said}"


def compose_plainly(*overrides: str) -> dict[str, Any]:
    """Compose a config, and complete it with every default."""
    from runner.config.check.check import check, to_resolved_data
    from runner.config.compose import compose

    return to_resolved_data(check(compose([*overrides])))


def find_same(recipe: Recipe) -> list[str]:
    """Find the overrides of the command that says what the YAML says."""
    for line in recipe.lines:
        words = shlex.split(line)
        if "experiment=mine" in words and "show" not in words:
            words = words[words.index("experiment=mine") + 1 :]
            return [word for word in words if not word.startswith(("train.duration=1ep", "train.duration=2ep"))]
    return []


BOTH = [one for one in RECIPES if one.settings and find_same(one) and not any("-m experiment" in s for s in one.lines)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("recipe", name_cases(BOTH))
def test_its_yaml_and_its_command_say_the_same(recipe: Recipe, project: Path) -> None:
    write_files(project, recipe.files)
    by_command = compose_plainly("experiment=mine", *find_same(recipe))
    write_experiment(recipe.settings)

    assert compose_plainly("experiment=mine") == by_command


# Recipes whose both sides end with the same weights: epochs that the loop of the first page adds, those of the run, and
# where the left side has them.
WEIGHTS = {
    "Load a checkpoint, all of it": (0, "0st", "model"),
    "Load only the keys that the model has": (0, "0st", "model"),
    "Load all but the head (a new number of classes)": (0, "0st", "model"),
    "Load with `strict=False`": (0, "0st", "model"),
    "Rename keys": (0, "0st", "model"),
    "Take over one layer": (0, "0st", "model"),
    "Saved from DataParallel on GPUs, loaded on a CPU": (0, "0st", "model"),
    "Go on with the optimizer of an old script": (2, "5ep", "model"),
    "Freeze an embedding": (1, "1ep", "model"),
    "Freeze the backbone, its batch norms too": (1, "1ep", "model"),
    "Two learning rates: a new head faster": (1, "1ep", "model"),
    "No weight decay for norms and biases": (1, "1ep", "model"),
    "Initialise by `apply`": (0, "0st", "model"),
    "Clip gradients": (0, "1ep", "model"),
    "Accumulate gradients": (0, "1ep", "model"),
    "A cosine schedule with warmup, step by step": (0, "5ep", "model"),
    "A step schedule, epoch by epoch": (0, "5ep", "model"),
    "Several optimizers": (0, "1ep", "model"),
    "An exponential moving average of the weights": (0, "1ep", "ema"),
    "Stochastic weight averaging": (0, "5ep", "averaged"),
    "Mixed precision": (0, "1ep", "model"),
    "Class weights, label smoothing": (1, "1ep", "model"),
    "A custom collate": (0, "0st", None),
    "A step of your own, with a penalty": (0, "1ep", "model"),
    "An optimizer, a scheduler": (0, "1ep", "model"),
}
PROVEN = [one for one in RECIPES if WEIGHTS.get(one.title, (0, "", None))[2]]


@pytest.fixture(scope="module")
def start(folder: Path) -> Any:
    """The weights that every run of the experiment begins with."""
    return train_right(folder, "0st")["model"]


def train_right(project: Path, duration: str) -> dict[str, Any]:
    """Train the experiment; its last checkpoint."""
    import torch

    write = ["loader.shuffle=false", "log=quiet", "device=cpu", f"train.duration={duration}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project)
        sys.modules.pop("mine", None)
        ran = run_in(project, "experiment=mine", *write)
        sys.modules.pop("mine", None)
    assert ran.status == 0, ran.err
    loaded: dict[str, Any] = torch.load(ran.folder / "checkpoints" / "last.pt", weights_only=True)
    return loaded


@pytest.mark.exhaustive
@pytest.mark.parametrize("recipe", name_cases(PROVEN))
def test_both_sides_end_with_the_same_weights(
    recipe: Recipe, project: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    epochs, duration, name = WEIGHTS[recipe.title]
    write_files(project, recipe.files)
    left = run_left(recipe, monkeypatch, start, epochs)[str(name)].state_dict()
    write_experiment(recipe.settings)
    right = train_right(project, duration)
    ours = {key.removeprefix("module."): value for key, value in left.items() if value.is_floating_point()}
    weights = {key: value for key, value in right["model" if name == "model" else "ema"].items() if key in ours}

    assert any(not torch.equal(start[key], ours[key]) for key in ours)
    torch.testing.assert_close(weights, ours, rtol=1e-5, atol=1e-6)


def find_recipe(title: str) -> Recipe:
    """Find a recipe by its title."""
    return next(one for one in RECIPES if one.title == title)


@pytest.mark.exhaustive
def test_both_sides_count_the_same_parameters_and_flops(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = run_left(find_recipe("Count parameters and FLOPs"), monkeypatch)
    out = run_in(project, "show", "model", "experiment=mine", "--json").out
    shown = json.loads(out.removeprefix(f"{project}/"))["total"]

    assert (shown["parameters"], shown["flops_forward"]) == (left["parameters"], left["flops"])


@pytest.mark.exhaustive
def test_both_sides_evaluate_to_the_same_accuracy(
    finished: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    run = next((finished / "outputs" / "mine").glob("20*"))
    weights = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]
    left = run_left(find_recipe("Evaluate a checkpoint"), monkeypatch, weights)

    assert left["hits"] / left["total"] == pytest.approx(read_result(run)["metrics"]["val/accuracy"])


# ---- pages for those who come from elsewhere

MOVED = ("plain_loop.md", "lightning.md", "lightning_hydra_template.md", "mmengine.md", "timm.md")
each_page = pytest.mark.parametrize("page", [pytest.param(COMING_FROM / name, id=name) for name in MOVED])


def test_every_page_is_tested() -> None:
    pages = {path.name for folder in (COOKBOOK, COMING_FROM) for path in folder.glob("*.md")}

    assert {*PAGES, *MOVED, "start.md"} == {name for name in pages if not name.startswith("index")}


@pytest.fixture
def moved(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Block]:
    """The blocks of a page, whose files are written to the working directory."""
    blocks = read_blocks(page.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files(tmp_path, Recipe(page.stem, "", blocks, []).files)
    return blocks


@each_page
def test_their_file_can_be_read(page: Path) -> None:
    """What is theirs is Python or YAML, though their libraries are not here."""
    for block in read_blocks(page.read_text()):
        if block.text.startswith("# theirs"):
            assert compile(block.text, page.name, "exec") if block.language == "python" else yaml.safe_load(block.text)


@each_page
def test_the_keys_of_its_table_exist(page: Path) -> None:
    from runner.config import schema
    from runner.config.parsing import get_field_types

    groups = {name: kind for name, kind in get_field_types(schema.Config).items() if dataclasses.is_dataclass(kind)}
    open_groups = ("scheduler",)  # further keys are arguments of their component
    rows = [row for row in page.read_text().splitlines() if row.startswith("| ")]
    named = re.findall(r"[` ]([a-z]+)\.([a-z_]+)[=:`.]", " ".join(row.rsplit("|", 2)[1] for row in rows))
    unknown = [
        f"{group}.{key}"
        for group, key in named
        if group in groups and group not in open_groups and key not in get_field_types(groups[group])  # type: ignore[arg-type]
    ]

    assert [name for name in unknown if not name.endswith((".from", ".py"))] == []
    assert len(named) > 10


@each_page
def test_its_experiment_is_right(page: Path, moved: list[Block]) -> None:
    from runner.config.check.check import Check
    from runner.config.compose import compose

    names = [Path(str(block.path)).stem for block in moved if "conf/experiment" in str(block.path)]

    assert [mistake.rule for mistake in Check(compose([f"experiment={names[0]}"])).at_once] == []


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@each_page
def test_its_example_runs(page: Path, moved: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their plain script runs, and so do our commands."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "2"])
    for name in ("train", "text", "ratings", "spirals", "src"):
        sys.modules.pop(name, None)
    for block in moved:
        if block.path == "train.py":
            exec(compile(block.text, "train.py", "exec"), {"__name__": "__main__"})
    for line in Recipe(page.stem, "", moved, []).lines:
        ran = run_in(Path.cwd(), *shlex.split(line, comments=True)[3:])
        assert ran.status == 0, f"{line}\n{ran.err}"
