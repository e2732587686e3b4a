"""A config from a stranger executes nothing: seen by an audit hook."""

import contextlib
import itertools
import random
import sys
import threading

import pytest

from runner.config.check.check import Check
from runner.config.check.imports import TargetError, check_name, import_object
from runner.config.compose import compose
from runner.config.hydra_repository import find_our_conf
from tests.support import find_mistakes

DANGEROUS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "shutil.rmtree",
    "ctypes.dlopen",
    "os.remove",
    "os.rename",
    "pickle.find_class",
    "webbrowser.open",
    "urllib.Request",
}
EVIL = [
    "os.system",
    "posix.system",
    "subprocess.run",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "shutil.rmtree",
    "importlib.import_module",
    "runpy.run_path",
    "pickle.loads",
    "ctypes.CDLL",
    "webbrowser.open",
    "antigravity.geohash",
    "this.s",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "hydra._internal.utils._locate",
    "omegaconf.OmegaConf.load",
    "torch.hub.load",
    "torch.load",
    "torch.jit.load",
    "torch.serialization.os.system",
    "torch.utils.cpp_extension.load_inline",
    "torch.package.PackageImporter",
    "torch.fx.GraphModule",
    "torch._inductor.codecache.os.system",
    "torch.nn.Module.__init__",
    "torch.nn.modules.module.functools.partial",
    "torch.distributed.nn.RemoteModule",
    "torch.utils.model_zoo.load_url",
    "torchvision.datasets.utils.download_url",
    "torchvision.io.read_image",
    "torchvision.models._api.get_weight",
    "runner.__main__.main",
    "runner.cli.check.main",
    "runner.core.errors.signal.alarm",
    "models.cnn.F.torch.hub.load",
    "datasets.digits.torch.load",
    "evil_module.Model",
    "evil_package.sub.Model",
    "numpy.load",
    "sklearn.externals.joblib.load",
    "yaml.unsafe_load",
    "logging.config.dictConfig",
]
PLACES = {
    "model._target_": "++model={{_target_: {0}}}",
    "loss._target_": "++loss={{_target_: {0}, command: id}}",
    "metrics.m._target_": "++metrics.m={{_target_: {0}}}",
    "dataset.train._target_": "++dataset={{source: null, train: {{_target_: {0}}}}}",
    "transform.train.t._target_": "++transform.train.t={{_target_: {0}, _partial_: true}}",
    "loader.collate_fn._target_": "++loader.collate_fn={{_target_: {0}}}",
    "init.rules.r.weight._target_": "++init.rules.r={{module: torch.nn.Conv2d, weight: {{_target_: {0}}}}}",
    "init.rules.r.module": "++init.rules.r={{module: {0}, weight: 0}}",
    "optimizer.extra._target_": "++optimizer.extra={{_target_: {0}, _args_: [id]}}",
    "model.sizes.0._target_": "++model={{_target_: models.mlp.MLP, sizes: [{{_target_: {0}}}]}}",
    "model._args_.0._args_.0._target_": "++model={{_target_: torch.nn.Sequential, _args_: ["
    "{{_target_: torch.nn.Sequential, _args_: [{{_target_: {0}}}]}}]}}",
    "step._target_": "++step={{_target_: ${{oc.decode:'{0}'}}}}",
}
_watching = threading.local()


def _hook(event, arguments):
    seen = getattr(_watching, "seen", None)
    if seen is not None and (event in DANGEROUS or (event == "import" and "evil" in str(arguments[0]))):
        seen.append((event, arguments))


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched():
    """Everything dangerous that happens inside."""
    _watching.seen = []
    try:
        yield _watching.seen
    finally:
        _watching.seen = None


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """Modules that leave a trace when they are imported, installed but not under the working directory."""
    installed = tmp_path / "installed"
    (installed / "evil_package").mkdir(parents=True)
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w').close()\nclass Model: pass\n"
    (installed / "evil_module.py").write_text(code)
    (installed / "evil_package" / "__init__.py").write_text(code)
    (installed / "evil_package" / "sub.py").write_text(code)
    monkeypatch.syspath_prepend(str(installed))
    return trace


def warm_up():
    """Import what the runner trusts before anybody watches: libraries open libraries of their own."""
    pytest.importorskip("torchvision.transforms.v2")
    pytest.importorskip("torchmetrics")
    find_mistakes()


def test_the_hook_sees_what_is_executed():
    with watched() as seen:
        sys.audit("os.system", "id")

    assert [("os.system", ("id",))] == seen


def test_malicious_targets_execute_nothing(evil):
    warm_up()
    cases = list(itertools.product(EVIL, PLACES.items()))
    assert len(cases) >= 500
    with watched() as seen:
        for name, (key, form) in random.Random(0).sample(cases, 40):
            assert key in {mistake.key for mistake in find_mistakes("experiment=null", form.format(name))}, (key, name)

    assert [] == seen
    assert not evil.exists()


@pytest.mark.exhaustive
def test_all_malicious_targets_execute_nothing(evil):
    warm_up()
    cases = list(itertools.product(EVIL, PLACES.items()))
    with watched() as seen:
        for name, (key, form) in cases:
            assert key in {mistake.key for mistake in find_mistakes("experiment=null", form.format(name))}, (key, name)

    assert [] == seen
    assert not evil.exists()


@pytest.mark.parametrize(
    "content",
    [
        "# @package _global_\nhydra: {callbacks: {evil: {_target_: evil_module.Model}}}",
        "# @package _global_\nhydra: {launcher: {_target_: evil_module.Model}}",
        "# @package hydra.job_logging\nversion: 1\nhandlers: {x: {class: evil_module.Model}}",
        "# @package _global_\ndefaults: [override /hydra/job_logging: none]",
        "# @package _global_\nhydra: {searchpath: [pkg://evil_package]}",
        "# @package hydra.callbacks.evil\n_target_: evil_module.Model",
        "# @package _global_\ndefaults: [/optimizer@hydra.launcher: adam]",
    ],
)
def test_a_file_cannot_configure_hydra(content, evil, tmp_path):
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content + "\n")
    with watched() as seen:
        composed = compose(["experiment=mine"], tmp_path)

    assert any("hydra" in mistake.key for mistake in composed.mistakes)
    assert any(mistake.where.startswith("conf/experiment/mine.yaml:") for mistake in composed.mistakes)
    assert "evil" not in str(composed.hydra)
    assert [] == seen


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("hydra: {searchpath: ['pkg://evil_package']}", "hydra.searchpath"),
        ("hydra: {searchpath: ['pkg://evil_package']}\ndefaults: [_self_]", "hydra.searchpath"),
        ("defaults: [override hydra/launcher: submitit_local, _self_]", "hydra.launcher"),
        ("defaults: [override /hydra/sweeper: basic, _self_]", "hydra.sweeper"),
        ("defaults: [{override hydra/launcher: ray}, _self_]", "hydra.launcher"),
    ],
)
def test_a_primary_config_of_the_project_cannot_configure_hydra(content, key, evil, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(content + "\n")
    with watched() as seen:
        composed = compose([], tmp_path)

    (where,) = {mistake.where.partition(":")[0] for mistake in composed.mistakes if mistake.key == key}
    assert where == "conf/config.yaml"
    assert not evil.exists()
    assert [] == [one for one in seen if "evil" in str(one)]


def test_a_primary_config_may_repeat_what_ours_chooses(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_bytes((find_our_conf() / "config.yaml").read_bytes())

    assert [] == compose([], tmp_path).mistakes


def test_names_made_by_interpolation_and_aliases_are_looked_at(tmp_path, evil):
    file = tmp_path / "conf" / "model" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "a: &bad {_target_: '${model.b}.Model'}\nb: evil_module\n_target_: torch.nn.Sequential\n_args_: [*bad]\n"
    )
    checked = Check(compose(["model=mine"], tmp_path))

    assert {"model.a._target_", "model._args_.0._target_"} & {mistake.key for mistake in checked.at_once}
    assert not evil.exists()


def test_trust_on_the_command_line_opens_what_it_names(tmp_path, evil):
    with pytest.raises(TargetError, match="--trust 'evil_module"):
        check_name("evil_module.Model")
    assert "Model" == import_object("evil_module.Model", ["evil_module.*"]).__name__


def test_user_code_is_found_under_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mycode_1.py").write_text("from os import system\nclass Net: pass\n")
    (tmp_path / "broken_1.py").write_text("x = 1\nraise RuntimeError('no')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    assert "Net" == import_object("mycode_1.Net").__name__
    with pytest.raises(TargetError) as error:
        import_object("broken_1.Net")
    assert f"{tmp_path}/broken_1.py:2" == error.value.where


def test_what_user_code_imports_from_elsewhere_is_not_user_code(tmp_path, monkeypatch):
    (tmp_path / "mycode_2.py").write_text("from os import system\nfrom torch.hub import load\nimport os\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("mycode_2.system", "mycode_2.load", "mycode_2.os.system"):
        keys = {mistake.key for mistake in find_mistakes(f"++model={{_target_: {name}}}", "experiment=null")}

        assert "model._target_" in keys


def test_an_alias_bomb_costs_no_time(tmp_path):
    levels = ["a: &a [x,x,x,x,x,x,x,x,x]"] + [
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghi")
    ]
    file = tmp_path / "conf" / "model" / "bomb.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(levels))
    composed = compose(["model=bomb"], tmp_path)

    assert ["has more than 20,000 nodes with its aliases written out"] == [
        mistake.rule for mistake in composed.mistakes
    ]


def test_an_import_error_in_user_code_is_named_with_its_line_and_who_named_it(tmp_path, monkeypatch):
    (tmp_path / "broken_2.py").write_text("import torch\n\nclass Net(torch.nn.Module)\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (mistake,) = find_mistakes("experiment=null", "++model={_target_: broken_2.Net}")

    assert "SyntaxError" in mistake.rule
    assert mistake.where.startswith("broken_2.py:3")
    assert "argument `++model={_target_: broken_2.Net}`" in mistake.where


def test_a_bomb_of_interpolations_costs_no_time(tmp_path):
    lines = ["x0: aaaaaaaaaa", *(f"x{i}: '${{model.x{i - 1}}}${{model.x{i - 1}}}'" for i in range(1, 60))]
    file = tmp_path / "conf" / "model" / "bomb.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(lines))
    (mistake,) = compose(["model=bomb"], tmp_path).unresolvable

    assert "must not grow" in mistake.rule
    assert mistake.where.startswith("conf/model/bomb.yaml:")
