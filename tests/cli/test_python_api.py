"""The commands as functions: the same runs and errors, and a process that is afterwards as it was."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import runner as package
from runner import ConfigError, RunError, check, compose, load, multirun, report, resume, run
from tests.support import install_project, keep_process_state, read_result

WORDS = ("model=mlp", "train.duration=3ep", "log=quiet")
CODE = '''
import signal

from runner.train.metrics import Accuracy


class Interrupting(Accuracy):
    """Interrupts its process in the third evaluation, once."""

    calls = 0

    def compute(self):
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # a run is under way
            Interrupting.calls += 1
            if Interrupting.calls == 3:
                signal.raise_signal(signal.SIGINT)
        return super().compute()


class Failing(Accuracy):
    def update(self, output, target):
        if len(output) > 2:  # and not the made-up batch of the checks
            raise KeyError("no such thing")
'''
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run by the function in a folder of its own."""
    folder = tmp_path_factory.mktemp("api")
    with keep_process_state(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(*WORDS)


def read_settings():
    """What a run changes in its process."""
    return SimpleNamespace(
        threads=threading.enumerate(),
        handlers=[
            signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
        ],
        torch=(
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.is_grad_enabled(),
        ),
        generators=torch.get_rng_state().tolist(),
        process=(Path.cwd(), list(sys.path), dict(os.environ)),
    )


def test_the_package_alone_imports_nothing_heavy():
    code = "import sys, runner; print([m for m in ('torch', 'hydra', 'yaml', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
    assert {"run", "check", "load", "ConfigError"} <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        package.fit  # noqa: B018


def test_a_run_leaves_its_process_as_it_was_and_its_weights_are_the_command_s(trained, runner, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(mode=False)
    torch.manual_seed(7)
    before = read_settings()
    again = run(*WORDS)

    assert read_settings() == before
    expected = runner(*WORDS).result["weights_sha256"]
    assert [one.result["weights_sha256"] for one in (again, trained)] == [expected, expected]


def test_a_loaded_run_has_model_config_metrics_and_predictions(trained):
    pytest.importorskip("pandas")
    loaded = load(trained.folder)
    predicted = loaded.predict(split="val")
    right = float((predicted.frame["class"] == predicted.frame["target"]).mean())

    assert (loaded.status, loaded.config.name, loaded.model.training) == ("completed", "digits_cnn", False)
    assert loaded.metrics["val/accuracy"].iloc[-1] == loaded.evaluate()["val/accuracy"] == right
    assert predicted.output.shape == (len(predicted), 10)
    weights = torch.load(trained.folder / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.state_dict().items())
    assert "<td>val/accuracy</td>" in loaded._repr_html_()


def test_errors_print_as_the_commands_do(runner, elsewhere):
    words = ("train.epocs=3", "optimizer.lr=fast")
    with pytest.raises(ConfigError) as wrong:
        run(*words)
    checked = check(*words)

    assert runner(*words).err.strip() == str(wrong.value)
    assert runner("check", *words).out.strip() == str(checked)
    assert not checked.ok
    with pytest.raises(ConfigError, match="RUN must be a run directory"):
        load("nowhere")
    assert not Path("outputs").exists()


def test_what_strangers_write_is_text_in_html(elsewhere):
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/odd.yaml").write_text("# @package _global_\n'<script>': 1\n")

    assert "&lt;script&gt;" in check("experiment=odd")._repr_html_()
    assert "<script>" not in check("experiment=odd")._repr_html_()


def test_compose_resolves_and_checks():
    config = compose("optimizer.lr=0.5", "model=mlp", "train.duration=2ep", "scheduler.T_max=${train.duration}")

    assert (config.optimizer.lr, config.scheduler.T_max) == (0.5, "2ep")
    with pytest.raises(ConfigError, match="did you mean `optimizer`"):
        compose("optimiser.lr=1")


def test_an_interrupt_saves_and_the_run_goes_on_to_the_same_weights(trained, elsewhere):
    with install_project(elsewhere, "interrupting", CODE, {}) as module:
        metric = "metrics.accuracy={_target_: interrupting.Interrupting}"
        handlers = read_settings().handlers
        with pytest.raises(KeyboardInterrupt, match="continue with resume"):
            run(*WORDS, metric)
        folder = next(Path("outputs/digits_cnn").iterdir())
        stopped = read_result(folder)
        resumed = resume(folder)

    assert module.Interrupting.calls > 3
    assert (stopped["status"], resumed.status) == ("interrupted", "completed")
    assert 0 < stopped["steps"] < resumed.result["steps"]
    assert resumed.result["weights_sha256"] == trained.result["weights_sha256"]
    assert read_settings().handlers == handlers


def test_a_failed_run_raises_what_its_result_says(elsewhere):
    with install_project(elsewhere, "failing", CODE, {}):
        with pytest.raises(RunError) as failed:
            run(*WORDS, "metrics.accuracy={_target_: failing.Failing}")
        folder = next(Path("outputs/digits_cnn").iterdir())

    assert str(failed.value) == f"{read_result(folder)['error']}\nThe traceback is in {folder / 'log.txt'}"


@pytest.mark.exhaustive
def test_a_run_in_a_thread_gives_the_same_weights(trained, elsewhere):
    made = []
    thread = threading.Thread(target=lambda: made.append(run(*WORDS)))
    thread.start()
    thread.join()

    assert made[0].result["weights_sha256"] == trained.result["weights_sha256"]


def test_a_second_interrupt_ends_the_call_and_not_the_process():
    from runner.core.stop_signals import leave_at_once, serve_host

    with serve_host(), pytest.raises(KeyboardInterrupt):
        leave_at_once(130)


def test_tensorboard_is_one_line(trained, monkeypatch):
    started = []
    monkeypatch.setattr(importlib.import_module("tensorboard.notebook"), "start", started.append)
    trained.tensorboard()

    assert started == [f"--logdir {trained.folder}"]


@pytest.mark.exhaustive
def test_a_sweep_is_a_table(elsewhere):
    sweep = multirun("optimizer.lr=0.1,0.2", *WORDS, "sweep.slots=1")

    assert (sweep.status, len(sweep.jobs), len(sweep.runs)) == (0, 2, 2)
    assert sweep.best is not None
    assert sweep.best.result["objective"] == max(one.result["objective"] for one in sweep.runs)
    assert report(sweep.folder).jobs == sweep.jobs
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        multirun("optimizer.lr=0.1,fast", *WORDS)


# ---- a real kernel


def open_kernel(folder):
    """A kernel of this environment in a folder, which finds the package."""
    manager = pytest.importorskip("jupyter_client").KernelManager(kernel_name="python3")
    pytest.importorskip("ipykernel")
    # this interpreter, whatever kernel is registered under the name
    manager.kernel_spec.argv[0] = sys.executable
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    manager.start_kernel(cwd=str(folder), env=os.environ | {"PYTHONPATH": paths})
    return manager


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("default")
def test_the_notebook_of_the_docs_runs_in_a_fresh_kernel(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    manager = open_kernel(tmp_path)
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, km=manager, timeout=300, skip_cells_with_tag="skip-execution")
    with client.setup_kernel(cleanup_kc=True):  # else kernel and sockets outlive the test, and fail a later one
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
    outputs = json.dumps([cell.get("outputs", []) for cell in notebook.cells])

    assert '<progress value=\\"85\\" max=\\"85\\"' in outputs
    assert "did you mean `train.duration`?" in outputs
    assert "1 mistake." in outputs


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("default")
def test_an_interrupted_cell_saves_and_the_kernel_lives(tmp_path):
    manager = open_kernel(tmp_path)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    try:
        words = "'model=mlp', 'train.duration=100000ep', 'train.checkpoint_every=null', 'log=quiet'"
        sent = client.execute(f"from runner import load, run\nrun({words})")
        for _ in range(600):
            if any(tmp_path.glob("outputs/*/*/metrics.jsonl")):
                break
            threading.Event().wait(0.2)
        threading.Event().wait(1)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=120)
        while reply["parent_header"].get("msg_id") != sent:
            reply = client.get_shell_msg(timeout=120)
        folder = next(tmp_path.glob("outputs/*/*"))
        alive = client.execute_interactive("assert load(__import__('glob').glob('outputs/*/*')[0]).model", timeout=120)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

    assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "KeyboardInterrupt")
    assert read_result(folder)["status"] == "interrupted"
    assert list((folder / "checkpoints").glob("step_*.pt"))
    assert alive["content"]["status"] == "ok"


def test_the_python_of_the_page_runs_and_prints_what_the_command_does(elsewhere, capsys):
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, scope)
    out = capsys.readouterr().out

    assert "\ncompleted 0." in out
    assert "torch.Size([359, 10])" in out
    assert out.endswith("did you mean `train.duration`?\n1 mistake.\n")
