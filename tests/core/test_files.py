import errno
import io
import json
import os
import stat
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from runner.core import files, lock, tensor_files
from runner.core.errors import ConfigError, RunError
from runner.experiment.record import directory
from runner.log import jsonl
from tests.support import list_names, read_lines

ROOT = Path(__file__).parents[2]


def test_write_atomic_returns_the_sha256_of_what_is_on_the_disk(tmp_path):
    file = tmp_path / "a.pt"

    digest = files.write_atomic(file, lambda out: torch.save({"a": torch.arange(10_000)}, out))

    assert files.hashlib.sha256(file.read_bytes()).hexdigest() == digest


def test_the_file_name_does_not_get_into_the_archive(tmp_path):
    digests = {
        files.write_atomic(tmp_path / name, lambda out: torch.save({"a": torch.ones(3)}, out))
        for name in ("a.pt", "b.pt")
    }

    assert len(digests) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_a_write_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "a.txt"
    files.write_text(file, "old")

    def write(out):
        out.write(b"new")
        raise error

    with pytest.raises(type(error)):
        files.write_atomic(file, write)

    assert file.read_text() == "old"
    assert list_names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("calls", [0, 1, 5, 20])
def test_a_full_disk_is_what_a_save_of_tensors_reports(tmp_path, monkeypatch, calls):
    """torch.save itself would say `unexpected pos 30 vs 0`."""
    real, left = io.BufferedWriter.write, [calls]

    class Full(files._HashingWriter):
        def write(self, data):
            left[0] -= 1
            if left[0] < 0:
                self.failure = OSError(28, "No space left on device")
                raise self.failure
            return real(self, data)

    monkeypatch.setattr(files, "_HashingWriter", Full)

    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(tmp_path / "a.pt", lambda out: torch.save({"a": torch.ones(3)}, out))

    assert list_names(tmp_path) == []


def test_a_file_under_the_writer_that_cannot_be_written_is_what_it_reports(tmp_path, monkeypatch):
    """The same with the real system call: /dev/full stands in for the temporary file."""
    real = io.FileIO
    monkeypatch.setattr(files.io, "FileIO", lambda _path, _mode: real("/dev/full", "wb"))

    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(tmp_path / "a.pt", lambda out: torch.save({"a": torch.ones(100_000)}, out))

    assert list_names(tmp_path) == []


def test_the_file_is_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(handle):
        calls.append("folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file")
        fsync(handle)

    def spy_replace(path, target):
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)

    files.write_text(tmp_path / "a", "text")

    assert calls == ["file", "rename", "folder"]


def test_a_hashed_file_cannot_seek(tmp_path):
    with pytest.raises(io.UnsupportedOperation):
        files.write_atomic(tmp_path / "a", lambda out: out.seek(0))


def test_json_has_no_bare_nan_and_float_reads_it_back(tmp_path):
    values = {"a": float("nan"), "b": [float("inf"), {"c": -float("inf")}], "d": 1.5}

    files.write_json(tmp_path / "a.json", values)

    def refuse(name):
        raise AssertionError(name)

    loaded = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert loaded == {"a": "NaN", "b": ["Infinity", {"c": "-Infinity"}], "d": 1.5}
    assert [float(loaded["b"][0]), float(loaded["b"][1]["c"])] == [float("inf"), -float("inf")]


def test_links_are_relative_and_replaced(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        files.replace_link(tmp_path / "link", name)

    assert (tmp_path / "link").read_text() == "two"
    assert (tmp_path / "link").readlink() == Path("two")
    assert len(list_names(tmp_path)) == 3


# ---- Lines


def test_each_step_has_one_line_into_which_events_of_the_step_are_merged(tmp_path):
    lines = jsonl.JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 1, "train/loss": 2.0, "long": "x" * 100})
    lines.append({"step": 2, "train/loss": 1.0})
    lines.append({"step": 2, "val/loss": float("nan")})
    lines.append({"step": 2, "val/loss": 3})  # shorter than before: nothing of the old line may be left
    assert (tmp_path / "m.jsonl").read_bytes().endswith(b'"val/loss": 3}\n')
    lines.append({"step": 3, "train/loss": 0.5})
    lines.close()

    assert read_lines(tmp_path / "m.jsonl")[1:] == [
        {"step": 2, "train/loss": 1.0, "val/loss": 3},
        {"step": 3, "train/loss": 0.5},
    ]


def test_an_event_is_on_the_disk_before_the_next(tmp_path):
    lines = jsonl.JsonLines(tmp_path / "m.jsonl")
    for step in range(3):
        lines.append({"step": step})
        assert len(read_lines(tmp_path / "m.jsonl")) == step + 1
    lines.close()


@pytest.mark.parametrize("until", range(-1, 12))
def test_a_resume_drops_the_later_steps_and_logs_them_once(tmp_path, until):
    straight, resumed = jsonl.JsonLines(tmp_path / "a.jsonl"), jsonl.JsonLines(tmp_path / "b.jsonl")
    for step in range(0, 11, 2):
        for lines in (straight, resumed):
            lines.append({"step": step, "x": 1 / (step + 1)})
    resumed.close()

    resumed = jsonl.JsonLines(tmp_path / "b.jsonl", until=until)
    assert resumed.last.get("step", -1) == max([-1, *(step for step in range(0, 11, 2) if step <= until)])
    for step in range(0, 11, 2):
        if step >= until:  # that of `until` itself is an evaluation done again
            resumed.append({"step": step, "x": 1 / (step + 1)})
    straight.close()
    resumed.close()

    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_whatever_byte_a_crash_ends_the_file_at_whole_lines_are_kept(tmp_path):
    file = tmp_path / "m.jsonl"
    whole = b'{"step": 1, "a": 2}\n{"step": 12, "a": 2}\n'
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        lines = jsonl.JsonLines(file)
        lines.append({"step": 20})
        lines.close()
        kept = [1, 12][: whole[:length].count(b"\n")]
        assert [event["step"] for event in read_lines(file)] == [*kept, 20]


def test_zeros_that_a_power_cut_left_are_cut_out_and_whole_lines_stay(tmp_path):
    whole = b'{"step": 1}\n' + bytes(100) + b'\n{"step": 3}\n' + bytes(100)
    (tmp_path / "m.jsonl").write_bytes(whole)

    lines = jsonl.JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 4})
    lines.close()

    assert [event["step"] for event in read_lines(tmp_path / "m.jsonl")] == [1, 3, 4]
    assert (tmp_path / "m.1.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 900, 3, 4], [1, 3, 4]),
        ([5, 1, 6, 7], [1, 6, 7]),
        ([1, 2, 2, 3], [1, 2, 3]),
        ([], []),
    ],
)
def test_a_step_that_a_flipped_bit_has_changed_costs_that_line_alone(tmp_path, steps, kept):
    (tmp_path / "m.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in steps))

    assert [place.step for place in jsonl.find_whole_lines(tmp_path / "m.jsonl")[0]] == kept


def test_steps_do_not_go_back(tmp_path):
    lines = jsonl.JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 2})

    with pytest.raises(AssertionError):
        lines.append({"step": 1})
    lines.close()


# ---- run directories and locks

MAKE = "import sys; from pathlib import Path; from runner.experiment.record.directory import make_run_dir as m\n"


def test_two_run_directories_of_one_second_differ_within_a_process(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: directory.make_run_dir(tmp_path, "run"), range(64)))

    assert len(set(folders)) == 64
    assert all(folder.is_dir() and folder.parent == tmp_path / "run" for folder in folders)


def test_two_run_directories_of_one_second_differ_between_processes(tmp_path):
    code = MAKE + f"for _ in range(50): print(m(Path({str(tmp_path)!r}), 'run'))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    folders = [line for process in processes for line in process.communicate()[0].split()]

    assert len(folders) == len(set(folders)) == len(list_names(tmp_path / "run")) == 150


def test_an_id_that_is_taken_is_not_taken_again(tmp_path, monkeypatch):
    ids = iter([b"aaa", b"aaa", b"aaa", b"bbb"])
    monkeypatch.setattr(directory.os, "urandom", lambda _: next(ids))

    first, second = directory.make_run_dir(tmp_path, "run"), directory.make_run_dir(tmp_path, "run")

    assert first.name.endswith("616161")
    assert second.name.endswith("626262")


def test_a_lock_is_refused_at_once_and_says_who_holds_it(tmp_path):
    with lock.Lock(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} "):
        lock.Lock(tmp_path)

    lock.Lock(tmp_path).release()
    assert list_names(tmp_path) == [".lock"]


def test_a_lock_dies_with_its_process_though_it_was_killed_and_its_child_lives_on(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from runner.core.lock import Lock\n"
        f"lock = Lock(Path({str(tmp_path)!r}))\n"
        "if os.fork() == 0: print('held', flush=True)\n"
        "time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid} "):
            lock.Lock(tmp_path)
        holder.kill()
        holder.wait()
        lock.Lock(tmp_path).release()
    finally:
        os.killpg(holder.pid, 9)
        holder.wait()
        holder.stdout.close()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)


def test_without_locks_a_sign_of_life_keeps_others_away(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with lock.Lock(tmp_path):
        first = (tmp_path / ".heartbeat").stat().st_mtime_ns
        with pytest.raises(ConfigError, match=f"process {os.getpid()} "):
            lock.Lock(tmp_path)
        while (tmp_path / ".heartbeat").stat().st_mtime_ns == first:
            time.sleep(0.01)

    assert list_names(tmp_path) == [".lock"]
    lock.Lock(tmp_path).release()


def test_without_locks_what_gave_no_sign_of_life_is_taken_over(tmp_path, no_locks):
    (tmp_path / ".heartbeat").write_text("process 1 on a machine that is gone")
    os.utime(tmp_path / ".heartbeat", (0, 0))

    with lock.Lock(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".heartbeat").read_text()


# ---- load_tensors


def wrong(path):
    with pytest.raises(RunError) as caught:
        tensor_files.load_tensors(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_tensors_come_back(tmp_path):
    torch.save({"a": torch.arange(3)}, tmp_path / "a.pt")

    assert tensor_files.load_tensors(tmp_path / "a.pt")["a"].tolist() == [0, 1, 2]


def test_a_pickled_class_is_named_and_not_called(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/called",)

    torch.save({"args": Namespace(a=1)}, tmp_path / "namespace.pt")
    torch.save({"args": Evil()}, tmp_path / "evil.pt")
    torch.save(Evil(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)

    assert "argparse.Namespace" in wrong(tmp_path / "namespace.pt")
    assert "posix.system" in wrong(tmp_path / "evil.pt")
    assert "posix.system" in wrong(tmp_path / "old.pt")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    torch.save({"a": torch.arange(1000)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: int(len(whole) * share)])

    assert "cut short or damaged" in wrong(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n  <HTML lang=en>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"hello world", "not a file that torch.save wrote"),
        (b"\x80\x02}q\x00.", "not a file that torch.save wrote"),
    ],
)
def test_what_is_no_file_of_tensors_is_called_what_it_is(tmp_path, content, words):
    (tmp_path / "a.pt").write_bytes(content)

    assert words in wrong(tmp_path / "a.pt")


def test_some_other_archive_is_no_file_of_tensors(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")

    wrong(tmp_path / "a.pt")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert "No such file" in wrong(tmp_path / "a.pt")
    assert "directory" in wrong(tmp_path)


def test_another_sha256_is_refused_before_anything_is_read(tmp_path):
    digest = files.write_atomic(tmp_path / "a.pt", lambda out: torch.save({"a": torch.ones(3)}, out))

    assert tensor_files.load_tensors(tmp_path / "a.pt", sha256=digest)["a"].tolist() == [1, 1, 1]
    with pytest.raises(RunError, match="is damaged"):
        tensor_files.load_tensors(tmp_path / "a.pt", sha256="0" * 64)


def test_writing_a_config_does_not_import_torch():
    code = "import sys, runner.core.files; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_files_written_together_are_synced_before_they_have_their_names(tmp_path, monkeypatch):
    """Each is synced, whatever was there before stays until then, and each folder is synced once."""
    synced: list[list[str]] = []
    sync = os.fsync

    def watch(handle: int) -> None:
        names = [path.read_text() for path in (tmp_path / "a" / "x", tmp_path / "b" / "y") if path.exists()]
        synced.append(["folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file", *names])
        sync(handle)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    files.write_text(tmp_path / "a" / "x", "old")
    monkeypatch.setattr(os, "fsync", watch)
    with files.write_together():
        files.write_text(tmp_path / "a" / "x", "new")
        files.write_text(tmp_path / "b" / "y", "new")
        assert synced == []

    assert synced == [["file", "old"]] * 2 + [["folder", "new", "new"]] * 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "x", "y"]


def test_files_written_together_are_there_after_an_error(tmp_path):
    with pytest.raises(KeyError), files.write_together():
        raise KeyError(files.write_text(tmp_path / "x", "one"))
    assert (tmp_path / "x").read_text() == "one"


def test_another_thread_writes_at_once_meanwhile(tmp_path):
    with files.write_together(), ThreadPoolExecutor(1) as pool:
        pool.submit(files.write_text, tmp_path / "x", "one").result()
        assert (tmp_path / "x").read_text() == "one"


def test_a_disk_that_is_full_names_the_file_of_those_written_together(tmp_path, monkeypatch):
    """The others are there, and nothing is left of it."""
    sync, full = os.fsync, tmp_path / "x"

    def fail(handle: int) -> None:
        if os.fstat(handle).st_size == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"No space left on device: '{full}'"), files.write_together():
        _ = files.write_text(full, "new"), files.write_text(tmp_path / "y", "other")
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


def test_a_name_that_cannot_be_had_costs_no_other_file_its_own(tmp_path):
    """A folder stands in the way of the first; the second is there, and nothing else is left."""
    (tmp_path / "x" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=f"'{tmp_path / 'x'}'"), files.write_together():
        _ = files.write_text(tmp_path / "x", "one"), files.write_text(tmp_path / "y", "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]
    assert (tmp_path / "y").read_text() == "other"


def test_an_interrupt_leaves_no_part_of_files_written_together(tmp_path, monkeypatch):
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_try_to_sync", interrupt)
    with pytest.raises(KeyboardInterrupt), files.write_together():
        files.write_text(tmp_path / "x", "one")
    assert [*tmp_path.iterdir()] == []


def test_a_log_that_is_mended_among_files_written_together_goes_on(tmp_path):
    """A line is damaged: what is logged after that is in the file that has the name in the end."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with files.write_together():
        log = jsonl.JsonLines(path)
        log.append({"step": 4})
    log.append({"step": 5})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3, 4, 5]
