"""Jobs of a sweep are examined in a process that is forked from one with torch, and what is told is the same."""

import importlib
import json
import os
import selectors
import signal
import sys
import time

import pytest

from runner.config.check.check import Check
from runner.config.compose import compose
from runner.core.errors import ABSENT, Mistake
from runner.experiment.preflight import preflight
from runner.sweep.examine import examine_jobs
from runner.sweep.executors import examination, fork_server, local, server_process
from tests.support import write_files

PARTS = """
import multiprocessing
import os
import sys

from torch import nn


class Net(nn.Module):
    def __init__(self, how="none"):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        print("built", how)
        if how == "raise":
            raise RuntimeError("on purpose")
        if how == "exit":
            os._exit(0)
        if how == "ask":
            input()
        if how == "pool":
            with multiprocessing.get_context("fork").Pool(1) as pool:
                pool.map(abs, [1])
        if how == "terminal":
            print(sys.stdin.isatty(), sys.stdin.closed, sys.stdin.encoding)

    def forward(self, x):
        return self.fc(x.flatten(1))
"""


@pytest.fixture
def examine(elsewhere, monkeypatch):
    """`examine(jobs, say)` of an executor whose server is this process, with a model of its user."""
    model = "{_target_: examined_parts.Net, how: none}"
    write_files(elsewhere, {"examined_parts.py": PARTS, "conf/model/examined.yaml": model})
    monkeypatch.syspath_prepend(elsewhere)
    importlib.invalidate_caches()
    orders, kept = os.pipe()
    replies, told = os.pipe()
    console = os.dup(1)
    before = signal.getsignal(signal.SIGCHLD)
    server = fork_server.Server(fork_server.LineReader(orders), told, console)
    server._selector, server._has_prepared = selectors.DefaultSelector(), True
    executor = object.__new__(local.LocalExecutor)
    executor._ready, executor._replies, executor._selector = True, fork_server.LineReader(replies), server._selector
    executor._selector.register(replies, selectors.EVENT_READ)
    executor._modules = ()

    def tell(**order):
        server.obey(order)
        while server._children:
            server._reap(server._children[fork_server.EXAMINATION])
            time.sleep(0.01)

    executor._tell = tell
    yield executor.examine
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, before)
    server._selector.close()
    for handle in (orders, kept, replies, told, console, server._woken, server._wake):
        os.close(handle)
    sys.modules.pop("examined_parts", None)


def make_checks(*ways):
    """Checks of jobs whose model does one thing each."""
    line = ["dataset=digits", "model=examined", "init=default", "device=cpu"]
    return [Check(compose([*line, f"model.how={how}"])) for how in ways]


def test_mistakes_are_those_of_this_process_in_their_order(examine):
    said, told = [], []
    examine_jobs(make_checks("none", "raise", "none,b"), 1, said.append, examine)
    examine_jobs(make_checks("none", "raise", "none,b"), 1, told.append)

    assert [["model.how"], ["model"]] == [[mistake.key for mistake in mistakes] for mistakes in told]
    assert said == told


@pytest.mark.parametrize("how", ["exit", "ask"])
def test_what_does_not_come_to_its_end_is_examined_here(examine, how):
    """A model that ends its process, or that asks at the keyboard, as a debugger does."""
    assert examine(make_checks("none", how), lambda _: None) is False
    assert examine(make_checks("none"), lambda _: None) is True


@pytest.mark.parametrize("how", ["pool", "terminal"])
def test_the_standard_input_is_one_until_it_is_read(examine, how):
    """Workers that a model forks close it, and a module may ask whether it is a terminal."""
    assert examine(make_checks("none", how), lambda _: None) is True


def test_jobs_that_differ_in_their_optimizer_have_one_trial_of_the_step(monkeypatch):
    points = [["optimizer.lr=0.1", "loss=mse"], ["optimizer.lr=0.2", "loss=mse"], ["optimizer.lr=0.3"]]
    checks = [Check(compose(["experiment=digits_mlp", "device=cpu", *point])) for point in points]
    each = [mistake for check in checks for mistake in examination.examine(check.composed, ()).mistakes]
    tried, found = [], []
    try_step = preflight.try_step
    monkeypatch.setattr(preflight, "try_step", lambda *args, **named: tried.append(try_step(*args, **named)))
    examination.examine_encoded(
        examination.encode_jobs(checks), lambda said: found.extend(examination.decode_mistakes(said["mistakes"]))
    )

    assert ["loss", "loss"] == [mistake.key for mistake in each]
    assert (each, 2) == (found, len(tried))


def test_other_work_is_done_until_there_is_an_answer(examine):
    """The server gets ready, and has the jobs examined, while its controller works."""
    executor, done = examine.__self__, []
    executor._ready, executor._tell = False, lambda **_: None
    handle, told = os.pipe()
    executor._replies = fork_server.LineReader(handle)
    executor._selector = selectors.DefaultSelector()
    executor._selector.register(handle, selectors.EVENT_READ)

    def work():
        for said in (None, {"ready": True, "gpus": 2}, None, {"examined": True}, None):
            done.append(said)
            os.write(told, json.dumps(said).encode() + b"\n" if said else b"")
            yield

    assert executor.examine(make_checks("none"), lambda _: None, work())
    assert ([None, {"ready": True, "gpus": 2}, None, {"examined": True}], 2) == (done, executor._gpus)
    executor._selector.close()
    for end in (handle, told):
        os.close(end)


def test_more_modules_than_a_pipe_holds_are_left_out(examine, monkeypatch):
    """Nobody reads the pipe before the process has ended."""
    monkeypatch.setattr(examination, "list_preloadable", lambda _: ["a_module_of_some_length"] * 10_000)

    assert examine(make_checks("none"), lambda _: None) is True


def test_a_closed_output_is_no_console(monkeypatch):
    """The copy is never one of the standard streams, whichever of them are closed."""
    copies = [server_process.copy_console()]
    kept = os.dup(1)
    os.close(1)
    try:
        copies.append(server_process.copy_console())
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    for copy in copies:
        os.close(copy)

    assert min(copies) > 2


def test_a_line_of_several_reads_is_one_message():
    read, write = os.pipe()
    lines, found = fork_server.LineReader(read), []
    for piece in (b'{"a": "' + b"x" * 1000, b'y"}\n{"b"', b": 1}\n{", b'"c": 2}\n'):
        os.write(write, piece)
        found.append(lines.read())
    os.close(write)

    assert found == [[], [{"a": "x" * 1000 + "y"}], [{"b": 1}], [{"c": 2}]]
    assert (lines.read(), lines.ended) == ([], True)
    os.close(read)


def test_what_a_model_prints_comes_to_the_console(examine, capfd):
    examine(make_checks("none"), lambda _: None)

    assert "built none\n" in capfd.readouterr().out


@pytest.mark.parametrize("value", [ABSENT, None, 0.1, "text", [1, {"a": True}]])
def test_a_mistake_is_told_as_it_is(value):
    mistake = Mistake("a.key", "must hold", value, "file:1", "do", "it", kind="conflict")
    plain = json.loads(json.dumps(examination._encode_mistake(mistake)))

    assert [mistake] == examination.decode_mistakes([plain])


@pytest.mark.parametrize("value", [(1, 2), object()])
def test_a_value_that_cannot_be_told_is_found_again_here(value):
    with pytest.raises((ValueError, TypeError)):
        examination._encode_mistake(Mistake("a.key", "must hold", value))


@pytest.mark.parametrize("overrides", [["hydra/launcher=basic", "seed=0,1"], ["hydra/sweeper=basic"]])
def test_no_server_is_started_for_jobs_that_run_elsewhere(overrides, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with server_process.start_early(overrides) as server:
        assert server is None


def test_a_server_that_nobody_takes_ends_without_a_trace(monkeypatch):
    monkeypatch.setattr(server_process, "BOOT", "import time; time.sleep(60)")
    modules = {name: module for name, module in sys.modules.items() if name != "torch"}
    with monkeypatch.context() as without_torch:
        without_torch.setattr(sys, "modules", modules)
        with server_process.start_early(["seed=0,1"]) as server:
            is_alive = server.poll() is None

    assert (True, -9, True) == (is_alive, server.returncode, server.stdin.closed)
