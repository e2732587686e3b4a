"""What a config may name of the libraries: the table, every public name through two paths in every slot, the canary.

`python tests/config/test_allowed.py` writes the table anew, for a person to read what a new release of torch adds.
"""

import importlib
import itertools
import pkgutil
import random
import subprocess
import sys
import textwrap
import types
import warnings
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest

from runner.config.check import allowed
from runner.config.check.components import PlacedMistakes, check_component
from runner.config.check.imports import TargetError, check_name, describe_trust, import_object, is_user_code
from runner.config.check.slots import _FITS, explain_misplaced

TABLE = Path(__file__).with_name("allowed_names.txt")
PLACES = ("torch", "torchvision", "torchmetrics")
SLOTS = [slot for slot in _FITS if slot not in ("search_sampler", "pruner")]
# Modules that libraries' modules show as attributes: a name through one of them is a name of the module itself.
DOORS = ("torch.nn.functional.torch", "torchvision.models.resnet.torch", "torchmetrics.metric.torch")


def versions():
    return "# " + ", ".join(f"{name} {version(name)}" for name in PLACES)


def modules(*names):
    """The modules and all that lie in them, imported; those that need what is not installed are left out."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            module = importlib.import_module(name)
            below = getattr(module, "__path__", []) if name not in ("torch", "torch.classes", "torch.ops") else []
            inner = pkgutil.walk_packages(below, f"{name}.", onerror=lambda _: None)
            for full in (name, *(info.name for info in inner)):
                try:
                    found[full] = importlib.import_module(full)
                except (ImportError, SyntaxError, RuntimeError):
                    continue
    return found


def public(module):
    for name, value in list(vars(module).items()):
        if not name.startswith("_") and isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            yield name, value


def table():
    """The allowed names by slot and defining module; classes of `loss` are those of `model` and `metric`."""
    groups = (allowed.CLASSES, allowed.FUNCTIONS)
    places = {place for group in groups for within in group.values() for place in within}
    tops = sorted(place for place in places if place.partition(".")[0] in PLACES)
    lines = defaultdict(set)
    for name, module in modules(*tops, "torch.utils.data", "torch.nn.utils").items():
        for (shown, value), slot in itertools.product(public(module), SLOTS):
            told = slot == "loss" and isinstance(value, type)
            if not told and not explain_misplaced(slot, value, f"{name}.{shown}", ()):
                home, own = allowed.find_home(value)
                lines[slot, home].add(own.lstrip("_"))
    text = [versions()]
    for slot in SLOTS:
        text += ["", f"{slot}:"]
        for _, home in sorted(key for key in lines if key[0] == slot):
            line = f"{home}: {' '.join(sorted(lines[slot, home]))}"
            text += textwrap.wrap(line, 118, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        if slot == "loss":
            text.append("  and the classes of `model` and `metric`")
        if slot == "tensor":
            text.append(f"  {' '.join(allowed.NAMED[slot])}")
    return "\n".join(text) + "\n"


@pytest.mark.exhaustive
def test_the_table_of_allowed_names_is_as_it_is_printed():
    if TABLE.read_text().splitlines()[0] != versions():
        pytest.skip("other versions: write the table anew, and read what they add")

    assert TABLE.read_text() == table()


def test_the_table_names_nothing_that_loads_or_writes():
    words = {word for line in TABLE.read_text().splitlines()[1:] for word in line.split()}

    assert {"Linear", "cross_entropy", "kaiming_normal_", "Accuracy", "resnet18", "Lambda", "ImageFolder"} <= words
    assert words.isdisjoint({"load", "save", "compile", "LSUN", "LSUNClass", "get_model", "basichandlers", "script"})


def names(tops):
    """Public names of the libraries: each class and function, by the module that shows it."""
    for name, module in modules(*tops).items():
        if not any(part.startswith("_") for part in name.split(".")):
            for shown, value in public(module):
                yield name, shown, value


def wrongly_taken(name, shown, value):
    """The slots that take a name, spelled in one of two ways, which are not the object's own."""
    first = name.partition(".")[0]
    spelled = [f"{name}.{shown}"]
    if first == "torch":
        spelled += [f"{door}{name.removeprefix('torch')}.{shown}" for door in DOORS[:1]]
    else:
        home = allowed.find_home(value)[0]
        spelled += [f"{home}.{shown}"] if home.partition(".")[0] in PLACES else []
    wrong = []
    for path in spelled:
        try:
            check_name(path)
            target = import_object(path)
        except TargetError:
            continue
        for slot in SLOTS:
            if not explain_misplaced(slot, target, path, ()) and allowed.explain_not_allowed(value):
                wrong.append((slot, path))
            if not explain_misplaced(slot, target, path, ()) and not any(allowed.takes(kind, value) for kind in SLOTS):
                wrong.append((slot, path))
    return wrong


def test_a_sample_of_public_names_is_taken_where_the_object_belongs_only():
    tops = ("torch.nn", "torch.hub", "torch.serialization", "torch.utils.data", "torch.jit", "torchvision.datasets")
    chosen = random.Random(0).sample(sorted(names(tops), key=lambda one: one[:2]), 300)

    assert [] == list(itertools.chain(*(wrongly_taken(*one) for one in chosen)))


@pytest.mark.exhaustive
def test_every_public_name_is_taken_where_the_object_belongs_only():
    importlib.import_module("torch")
    loaded = [name for name in sys.modules if name.startswith("torch.") and name.count(".") == 1 and "._" not in name]
    safe = [name for name in loaded if name not in ("torch.utils", "torch.testing", "torch.distributed")]
    seen = list(names([*safe, "torch.utils.data", "torchvision", "torchmetrics"]))

    assert len(seen) > 5000
    assert [] == list(itertools.chain(*(wrongly_taken(*one) for one in seen)))


EVIL = [
    "torch.nn.functional.torch.load",
    "torch.nn.functional.torch.save",
    "torch.nn.functional.torch.hub.load",
    "torch.nn.functional.torch.hub.download_url_to_file",
    "torch.nn.functional.torch.ops.load_library",
    "torch.nn.functional.torch.compile",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.functional.boolean_dispatch",
    "torch.nn.functional.handle_torch_function",
    "torch.nn.modules.module.torch.load",
    "torch.nn.Module.load_state_dict",
    "torch.optim.lr_scheduler.partial",
    "torch.optim.lr_scheduler.Optimizer.load_state_dict",
    "torch.utils.data.datapipes.utils.decoder.basichandlers",
    "torch.utils.data.datapipes.gen_pyi.gen_from_template",
    "torch.utils.data.functional_datapipe",
    "torch.utils.data.dataloader.torch.load",
    "torchvision.datasets.folder.default_loader.__globals__",
    "torchvision.datasets.lsun.pickle.load",
    "torchvision.datasets.LSUN",
    "torchvision.datasets.LSUNClass",
    "torchvision.datasets.lsun.LSUNClass",
    "torchvision.datasets.utils.extract_archive",
    "torchvision.models.resnet.torch.load",
    "torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict",
    "torchvision.models.get_model",
    "torchvision.transforms.v2.functional.register_kernel",
    "torchvision.transforms.transforms.torch.load",
    "torchmetrics.metric.torch.load",
    "torchmetrics.metric.functools.partial",
    "torchmetrics.text.ROUGEScore",
]
SHAPES = {
    "model": lambda evil: {"_target_": "torch.nn.Sequential", "_args_": [[evil]]},
    "transform": lambda evil: {"_target_": "torchvision.transforms.Lambda", "lambd": evil},
    "dataset": lambda evil: {"_target_": "torchvision.datasets.DatasetFolder", "root": ".", "loader": evil},
    "metric": lambda evil: {"_target_": "torchmetrics.MetricCollection", "metrics": {"a": [evil]}},
    "loss": lambda evil: evil,
    "function": lambda evil: evil | {"_partial_": True},
    "init": lambda evil: evil,
    "step": lambda evil: evil,
}


@pytest.mark.parametrize("slot", SHAPES)
def test_what_loads_or_writes_is_refused_through_every_door_and_as_an_argument(slot):
    for name in EVIL:
        if slot == "dataset" and "LSUN" in name:
            continue  # refused below in its own slot
        found = PlacedMistakes()
        check_component((slot,), slot, SHAPES[slot]({"_target_": name, "_args_": ["x"]}), (), found)

        assert [m for _, m in found.mistakes if "_target_" in m.key], (slot, name)


def test_a_refused_class_says_why_and_trusts_no_wider_than_itself():
    found = PlacedMistakes()
    name = "torchvision.datasets.LSUNClass"
    check_component(("dataset",), "dataset", {"_target_": name, "root": "."}, (), found)
    (mistake,) = [mistake for _, mistake in found.mistakes]

    assert "unpickles" in mistake.rule
    assert mistake.remedy == describe_trust(name)


CANARY = """
import contextlib, io, sys, warnings
sys.path.insert(0, {root!r})
warnings.simplefilter("ignore")
from tests.config import test_allowed as t
from runner.config.compose import compose
from runner.config.check.check import Check
list(t.names(("torch.nn", "torch.optim", "torch.utils.data", "torchvision", "torchmetrics")))
WATCHED = {{"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "shutil.rmtree",
    "os.remove", "os.rename", "pickle.find_class", "urllib.Request", "os.mkdir"}}
seen, on = [], False
def hook(event, arguments):
    if on and (event in WATCHED or event == "open"
            and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
        seen.append((event, str(arguments)))
sys.addaudithook(hook)
on = True
for slot, shape in t.SHAPES.items():
    for name in t.EVIL:
        for arguments in (["evil.pkl"], ["evil.pkl", {{"weights_only": False}}]):
            t.check_component((slot,), slot, shape({{"_target_": name, "_args_": arguments}}), (), t.PlacedMistakes())
on = False
print(seen)
"""


def test_a_canary_sees_nothing_executed_or_written(tmp_path):
    root = Path(__file__).parents[2]
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    code = CANARY.format(root=str(root))
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )

    assert (ran.stdout, ran.returncode) == ("[]\n", 0), ran.stderr[-2000:]
    assert [file.name for file in tmp_path.iterdir()] == ["evil.pkl"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory, and beside it installed packages that leave a trace when they are imported."""
    installed, here = tmp_path / "lib" / "site-packages", tmp_path / "project"
    here.mkdir()
    code = f"open({str(tmp_path / 'trace')!r}, 'w').close()\ndef load(file): pass\n"
    for package in ("lib_a", "lib_b"):
        (installed / package).mkdir(parents=True)
        (installed / package / "__init__.py").write_text(code)
    (installed / "space" / "inner").mkdir(parents=True)
    (installed / "space" / "inner" / "__init__.py").write_text(code)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", *sys.path, str(installed)])
    return here


@pytest.mark.parametrize("name", ["lib_a.load", "lib_b.load", "space.inner.load"])
@pytest.mark.parametrize("inside", ["", "x.bin", "sub/y.txt"])
def test_a_folder_makes_no_library_user_code(name, inside, project):
    folder = project / name.partition(".")[0]
    folder.mkdir()
    if inside:
        (folder / inside).parent.mkdir(exist_ok=True)
        (folder / inside).touch()
    with pytest.raises(TargetError) as error:
        check_name(name)

    assert error.value.remedy in ("", describe_trust(name))
    assert not (project.parent / "trace").exists()


def test_a_module_of_an_environment_below_the_project_is_no_user_code(project, monkeypatch):
    environment = project / "venv" / "lib" / "python3" / "site-packages"
    environment.mkdir(parents=True)
    (environment / "lib_c.py").write_text("raise SystemExit('imported')\n")
    (project / "venv" / "pyvenv.cfg").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(environment)])
    for name in ("lib_c.load", "venv.lib.python3.load"):
        with pytest.raises(TargetError):
            check_name(name)


def test_a_link_out_of_the_project_is_no_user_code(project):
    (project / "mine").symlink_to(project.parent / "lib" / "site-packages" / "lib_a")
    with pytest.raises(TargetError):
        check_name("mine.load")

    assert not (project.parent / "trace").exists()


def test_code_of_the_project_stays_user_code(project):
    (project / "own_1.py").write_text("class Net: pass\n")
    (project / "spaced" / "deep").mkdir(parents=True)
    (project / "spaced" / "deep" / "net.py").write_text("class Net: pass\n")
    (project / "joined").mkdir()
    (project / "joined" / "__init__.py").write_text("class Net: pass\n")
    for name in ("own_1.Net", "spaced.deep.net.Net", "joined.Net"):
        check_name(name)

        assert import_object(name).__name__ == "Net"
        assert is_user_code(name.partition(".")[0], ())


if __name__ == "__main__":
    TABLE.write_text(table())
