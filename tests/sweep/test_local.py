"""The process that jobs are forked from, and what watches it: whatever happens to either, both go on or end."""

import errno
import json
import os
import signal
import threading

import pytest

from runner.core.errors import RunError
from runner.sweep.code_snapshot import CodeSnapshot
from runner.sweep.executors import fork_server, local, server_process, worker

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
