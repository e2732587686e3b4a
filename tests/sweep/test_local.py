"""The process that jobs are forked from, and what watches it: whatever happens to either, both go on or end."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from runner.core.errors import RunError
from runner.core.paths import PACKAGE
from runner.sweep.code_snapshot import CodeSnapshot
from runner.sweep.executors import fork_server, local, native_libraries, server_process, worker

JOB = {"id": "a", "folder": "/nowhere", "timeout": None, "memory": None}


@pytest.fixture
def deaf(monkeypatch):
    """An executor whose server ends as soon as it has begun."""
    monkeypatch.setattr(server_process, "BOOT", "")
    executor = local.LocalExecutor(1, CodeSnapshot())
    yield executor
    executor.close()


def test_a_server_that_ends_is_started_again_but_not_for_ever(deaf):
    with pytest.raises(RunError, match="ended 3 times, with status 0"):
        deaf.has_room(None)


def test_an_examination_is_asked_of_the_next_server_too_but_not_for_ever(deaf):
    with pytest.raises(RunError, match="ended 3 times, with status 0"):
        deaf.examine([], lambda _: None)


def test_the_end_of_an_examination_is_the_end_of_no_job(deaf):
    """It is told after the examination has said that it is complete, and nobody waits for it."""
    assert [] == deaf._heard({"ended": fork_server.EXAMINATION, "status": 0, "cause": "", "error": ""})


def test_libraries_of_torch_are_loaded_without_torch():
    """A thread loads them while Python is busy; torch itself comes later."""
    told = "import sys; print('torch' in sys.modules, 'libtorch_cpu' in open('/proc/self/maps').read())"
    code = f"from runner.sweep.executors.native_libraries import start_loading; start_loading().join(); {told}"
    said = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)

    assert said.stdout == "False True\n"


@pytest.mark.parametrize("found", [None, ImportError("on purpose")])
def test_libraries_that_cannot_be_found_are_left_to_the_import(found, monkeypatch):
    def find(_):
        if found is not None:
            raise found

    monkeypatch.setattr(importlib.util, "find_spec", find)
    thread = native_libraries.start_loading()
    thread.join(10)

    assert not thread.is_alive()


def test_jobs_are_told_as_lost_also_when_no_other_server_is_tried(deaf):
    deaf._deaths = local.MOST_DEATHS - 1
    deaf._places["a"] = local._JobSlot(0, 1, 1, [])
    (event,) = deaf.wait(10)

    assert ("ended", "a", "lost") == (event.kind, event.job, event.cause)


def test_a_server_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(local, "CLOSE_SECONDS", 0.1)
    executor = local.LocalExecutor(1, CodeSnapshot())
    os.kill(executor._server.pid, signal.SIGSTOP)
    executor.close()

    assert executor._server.returncode == -signal.SIGKILL


def test_a_job_that_cannot_be_forked_is_lost_and_no_more(monkeypatch):
    """As many processes as this user may have."""

    def refuse():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    bare = object.__new__(fork_server.Server)
    bare._children, bare._started, said = {}, 0, []
    bare.say = lambda **message: said.append(message)
    bare._start(JOB, {})

    error = "no process could be started for it: Resource temporarily unavailable"
    assert said == [{"ended": "a", "status": None, "cause": "lost", "error": error}]
    assert bare._children == {}


def test_a_job_that_cannot_begin_ends_and_does_not_go_on_as_the_server():
    """Its directory is gone."""
    read, write = os.pipe()
    lifeline, _held = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            worker.run_job(JOB, {}, write, lifeline)
        finally:
            os._exit(99)
    os.close(write)
    with os.fdopen(read, "rb") as words:
        said = json.loads(words.read() or b"{}")

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert said["error"].startswith("FileNotFoundError: ")


def test_a_job_that_closes_every_file_is_not_watched_in_a_busy_loop():
    handle, other = os.pipe()
    os.close(handle)
    os.close(other)
    watch = threading.Thread(target=worker.watch_controller, args=(handle,), daemon=True)
    watch.start()
    watch.join(5)

    assert not watch.is_alive()
