"""Completion: what may stand at the cursor, without torch; and the real shells."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.cli.completion import complete
from runner.cli.verbs import VERBS
from tests.support import write_files

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="here", autouse=True)
def project_with_runs(elsewhere):
    """A project with an option of its own, a run, a sweep with a job, and a stranger's odd names."""
    write_files(
        elsewhere,
        {
            "conf/model/net.yaml": "# A net of mine. More.\n_target_: nets.Net\nhidden: 3\n",
            "conf/model/vision/deep.yaml": "_target_: nets.Net\n",
            "conf/experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /model: net\n",
            "conf/model/a b;rm.yaml": "_target_: nets.Net\n",
            "outputs/mine/2026_a/config.yaml": "",
            "outputs/other/sweep_1/ledger.sqlite": "",
            "outputs/other/sweep_1/0_x/config.yaml": "",
            "outputs/other/2026_b/config.yaml": "",
            "w.pt": "",
            "conf/model/own.yaml": "_target_: parts.Own\nwidth: 3\n",
            "parts.py": "raise SystemExit\nclass Own:\n    def __init__(self, width, depth=2): ...\n",
        },
    )
    return elsewhere


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sho", {"show"}),
        ("show ", {"data", "schedule", "model"}),
        ("show model --de", {"--depth"}),
        ("check re", {"resume"}),
        ("trust ", {"add", "list", "remove"}),
        ("--sch", {"--schedule"}),
        ("--schedule ", {"follow", "constant", "continue"}),
        ("--schedule=fo", {"--schedule=follow"}),
        ("evaluate outputs/mine/2026_a --weights ", {"raw", "ema"}),
        ("model=n", {"model=net"}),
        ("model=v", {"model=vision/deep"}),
        ("model=mlp,n", {"model=mlp,net"}),
        ("model=net,net", set()),
        ("show model optimizer=adamw", {"optimizer=adamw"}),
        ("+optimizer=sg", {"+optimizer=sgd"}),
        ("~schedul", {"~scheduler", "~scheduler."}),
        ("++train.mode=m", {"++train.mode=min", "++train.mode=max"}),
        ("seed", {"seed="}),
        ("on_event.c", {"on_event.command="}),
        ("train.durat", {"train.duration="}),
        ("log.tensorboard=", {"log.tensorboard=true", "log.tensorboard=false"}),
        ("model=net model.", {"model.hidden="}),
        ("experiment=mine model.", {"model.hidden="}),
        ("optimizer=adam optimizer.l", {"optimizer.lr="}),
        ("optimizer=adam optimizer.ams", {"optimizer.amsgrad="}),
        ("model=own model.", {"model.depth=", "model.width="}),
        ("hydra/l", {"hydra/launcher="}),
        ("help train.durat", {"train.duration"}),
        ("why optimiz", {"optimizer", "optimizer."}),
        ("schema optimiz", {"optimizer"}),
        ("resume outputs/m", {"outputs/mine/2026_a"}),
        ("resume ", {"outputs/mine/", "outputs/other/"}),
        ("run=outputs/mine/", {"run=outputs/mine/2026_a"}),
        ("report outputs/other/", {"outputs/other/sweep_1"}),
        ("evaluate outputs/other/sweep_1/", {"outputs/other/sweep_1/0_x"}),
        ("diff outputs/mine/2026_a min", {"mine", "minimise"}),
        ("convert w", {"w.pt"}),
        ("pretrained.path=w", {"pretrained.path=w.pt"}),
        ("ls ", None),
        ("promote outputs/other/sweep_1 ", set()),
        ("log/t", {"log/to="}),
        ("log/to=wa", {"log/to=wandb"}),
        ("schema log/", {"log/to"}),
        ("resume ~nouser/", set()),
        ("replay --al", {"--all"}),
        ("replay --all outputs/m", {"outputs/mine/"}),
    ],
)
def test_what_may_stand_at_the_cursor(line, expected):
    *words, prefix = line.split(" ")
    found = set(complete(words, prefix))
    assert found == expected if expected is not None else found


def test_nothing_that_a_shell_would_take_apart_is_offered():
    assert [] == [word for word in complete([], "model=") if re.search(r"[^\w=./-]", word)]


def test_a_pipe_among_the_config_files_is_not_read(here):
    for name in ("model/pipe", "experiment/pipe"):
        os.mkfifo(here / "conf" / f"{name}.yaml")
    code = "from runner.cli.completion import complete as c; c(['experiment=pipe'], 'model.'); print(*c([], 'model=p'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, timeout=20)
    assert {"model=parabola", "model=pixel_embedding"} == {*found.split()}


def test_an_option_has_its_files_first_sentence():
    assert "A net of mine" == complete([], "model=n")["model=net"]


def test_an_empty_line_offers_verbs_groups_and_keys():
    assert {*VERBS, "experiment=", "train.", "seed="} <= {*complete([], "")}


def test_completion_and_help_import_neither_torch_nor_hydra():
    code = (
        "import sys, importlib; from runner.cli.verbs import VERBS; from runner.cli.completion import complete;"
        "complete([], ''), complete([], 'train.'), [importlib.import_module(one) for one in VERBS.values()];"
        "print(sorted({'torch', 'hydra', 'omegaconf', 'numpy', 'rich'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()


def ask(*command, line, folder):
    """Ask a command as a shell's function does; its completions, and the seconds."""
    pytest.importorskip("argcomplete")
    answer = folder / "answer"
    environment = os.environ | {"_ARGCOMPLETE": str(len(command)), "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n", "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command[1:]], env=environment, check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the processor: the machine may be busy
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return answer.read_text().split("\n"), seconds


def test_the_module_answers_a_shell_and_runs_nothing_of_the_working_directory(here):
    write_files(here, {"yaml.py": "open('ran', 'w')", "argcomplete.py": "open('ran', 'w')"})
    found, _ = ask("python", "-m", "runner", line="python -m runner train.mode=m", folder=here)
    assert ({"train.mode=min", "train.mode=max"}, False) == ({word.strip() for word in found}, (here / "ran").exists())


# ---- real shells; slow, and not everywhere


@pytest.fixture(name="command")
def installed_command(here):
    """`yexp` as an installed package has it, and argcomplete's scripts, on the path."""
    pytest.importorskip("argcomplete")
    folder = here / "bin"
    code = f"import sys; sys.path.insert(1, {str(ROOT)!r}); from runner.__main__ import run_command; run_command()"
    scripts = {
        "yexp": code,
        **{
            name: f"from argcomplete.scripts import {module} as m; m.main()"
            for name, module in (
                ("register-python-argcomplete", "register_python_argcomplete"),
                ("activate-global-python-argcomplete", "activate_global_python_argcomplete"),
            )
        },
    }
    for name, text in scripts.items():
        write_files(folder, {name: f"#!{sys.executable}\n{text}\n"})
        (folder / name).chmod(0o755)
    write_files(folder, {"python": f'#!/bin/sh\nexec {sys.executable} "$@"\n'})
    (folder / "python").chmod(0o755)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(here),
        "TERM": "dumb",
    }


def press_tab(shell, setup, lines, environment):
    """Type each line and TAB in an interactive shell; what stands on the line then."""
    pexpect = pytest.importorskip("pexpect")
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    child = pexpect.spawn(shell[0], shell[1:], env=environment, encoding="utf-8", dimensions=(100, 200), timeout=30)
    child.sendline(setup)
    child.expect_exact("READY-" + "1")
    found = {}
    for line in lines:
        child.expect_exact("PROMPT ")
        child.send(f"{line}\t")
        child.expect(re.escape(line) + r"([^\r\n]* )$|" + re.escape(line) + r"([^\r\n]*=)$")
        found[line] = line + (child.match[1] or child.match[2])
        child.send("\x03")
    child.close(force=True)
    return found


TYPED = {
    "yexp sho": "yexp show ",
    "yexp show model --de": "yexp show model --depth ",
    "yexp optimizer=sg": "yexp optimizer=sgd ",
    "yexp train.mode=mi": "yexp train.mode=min ",
    "yexp +log.trac": "yexp +log.trace=",
    "yexp -m model=mlp,ne": "yexp -m model=mlp,net ",
    "yexp 'model=ne": "yexp 'model=net' ",
    "yexp --schedule=fo": "yexp --schedule=follow ",
    "yexp resume outputs/mi": "yexp resume outputs/mine/2026_a ",
}
MODULE = {
    "python -m runner show mod": "python -m runner show model ",
    "python -m runner model=ne": "python -m runner model=net ",
}


@pytest.mark.exhaustive
def test_bash_completes_the_command_and_the_module(command):
    setup = 'eval "$(register-python-argcomplete yexp)"; eval "$(activate-global-python-argcomplete --dest=-)"; '
    setup += "bind 'set enable-bracketed-paste off'; PS1='PROMPT '; echo READY-$((1))"
    assert TYPED | MODULE == press_tab(["bash", "--norc", "--noprofile", "-i"], setup, TYPED | MODULE, command)


@pytest.mark.exhaustive
def test_zsh_completes_the_command_and_the_module(command):
    setup = 'autoload -U compinit; compinit -u; eval "$(register-python-argcomplete yexp)"; '
    setup += 'eval "$(activate-global-python-argcomplete --dest=-)"; compdef _python_argcomplete_global python; '
    setup += "unset zle_bracketed_paste; PROMPT='PROMPT '; echo READY-$((1))"
    assert TYPED | MODULE == press_tab(["zsh", "-f", "-i"], setup, TYPED | MODULE, command)


@pytest.mark.exhaustive
def test_fish_completes_the_command(command):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    found = {}
    for line in TYPED:
        script = f'register-python-argcomplete --shell fish yexp | source; complete -C "{line}"'
        done = subprocess.run(
            ["fish", "--no-config", "-c", script], env=command, capture_output=True, text=True, check=True
        )
        found[line] = done.stdout.partition("\t")[0].strip()
    assert {line: whole.split()[-1].strip("'") for line, whole in TYPED.items()} == found


@pytest.mark.exhaustive
@pytest.mark.parametrize("line", ["yexp ", "yexp train.", "yexp model=", "yexp resume ", "yexp show model --"])
def test_an_answer_takes_less_than_a_third_of_a_second(line, here):
    seconds = [
        ask("python", "-m", "runner", line=line.replace("yexp", "python -m runner"), folder=here)[1] for _ in range(5)
    ]
    assert min(seconds) < 0.3
