"""A disk that loses, tears, refuses or changes what is written to it."""

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.core import files
from runner.core.errors import RunError
from runner.train.checkpoint import Checkpoints, SaveError
from tests.support import check_step, fail_from, make_state


def silent(folder):
    return Checkpoints(folder, keep=1, warn=lambda _: None)


def save(checkpoints):
    """Step 4 becomes the last and the best, and the others go."""
    checkpoints.save(make_state(4), 4, 0.05)


# ---- every state that a crash can leave


class Recorder:
    """The operations of a save in their order: (what, name, detail); names only, since all is in one folder."""

    def __init__(self, monkeypatch, folder):
        self.operations, self.folder = [], folder
        real_init, real_fsync = files._HashingWriter.__init__, os.fsync
        real_replace, real_link, real_unlink = Path.replace, Path.symlink_to, Path.unlink

        def init(writer, path):
            real_init(writer, path)
            self.operations.append(("create", path.name, None))

        def fsync(handle):
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if path.is_dir():
                self.operations.append(("sync folder", path.name, None))
            else:
                self.operations.append(("write", path.name, path.read_bytes()))
                self.operations.append(("sync", path.name, None))
            real_fsync(handle)

        def replace(path, target):
            self.operations.append(("rename", path.name, Path(target).name))
            return real_replace(path, target)

        def symlink_to(path, target):
            self.operations.append(("link", path.name, str(target)))
            real_link(path, target)

        def unlink(path, *args, **kwargs):
            real_unlink(path, *args, **kwargs)
            self.operations.append(("unlink", path.name, None))

        monkeypatch.setattr(files._HashingWriter, "__init__", init)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(Path, "symlink_to", symlink_to)
        monkeypatch.setattr(Path, "unlink", unlink)


def crash_states(before, operations):
    """Every folder that a crash after some of the operations can leave: {name: bytes, or the target of a link}.

    What a folder's fsync came after is there. Of the names made, changed or removed since then any part may be, in any
    combination; the content of a file that was not synced may be missing, torn, zeros or whole.
    """
    for end in range(len(operations) + 1):
        done = operations[:end]
        synced = max((i for i, (what, _, _) in enumerate(done) if what == "sync folder"), default=-1)
        contents, durable = {}, set()  # by the name under which a file was created, which is unique
        for what, name, detail in done:
            if what == "create":
                contents[name] = b""
            elif what == "write":
                contents[name] = detail
            elif what == "sync":
                durable.add(name)
        settled = apply(dict(before), done[: synced + 1])
        loose = [entry for entry in done[synced + 1 :] if entry[0] in {"create", "rename", "link", "unlink"}]
        if done and done[-1][0] == "create":  # its bytes are on their way
            contents[done[-1][1]] = operations[end][2] if end < len(operations) else b""
        for kept in itertools.product([True, False], repeat=len(loose)):
            names = apply(dict(settled), list(itertools.compress(loose, kept)))
            unsynced = {value[1] for value in names.values() if isinstance(value, tuple) and value[1] not in durable}
            for variant in ("whole", "torn", "zeros", "empty") if unsynced else ("whole",):
                yield {name: content(value, contents, durable, variant) for name, value in names.items()}


def apply(names, operations):
    for what, name, detail in operations:
        if what == "create":
            names[name] = ("file", name)
        elif what == "link":
            names[name] = ("link", detail)
        elif what == "rename" and name in names:
            names[detail] = names.pop(name)
        elif what == "unlink":
            names.pop(name, None)
    return names


def content(value, contents, durable, variant):
    if not isinstance(value, tuple) or value[0] == "link":
        return value
    whole = contents[value[1]]
    if value[1] in durable or variant == "whole":
        return whole
    return {"torn": whole[: len(whole) // 2], "zeros": bytes(len(whole)), "empty": b""}[variant]


def contents_of(folder):
    return {p.name: ("link", str(p.readlink())) if p.is_symlink() else p.read_bytes() for p in folder.iterdir()}


def put(folder, names):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, value in names.items():
        if isinstance(value, tuple):
            (folder / name).symlink_to(value[1])
        else:
            (folder / name).write_bytes(value)


AUDITED = []
EVENTS = {"os.rename": "rename", "os.remove": "unlink", "os.symlink": "link", "os.mkdir": "mkdir", "os.truncate": "cut"}


def audit(event, args):
    if event in EVENTS:
        AUDITED.append((EVENTS[event], Path(str(args[1 if event == "os.symlink" else 0])).name))
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        AUDITED.append(("create", Path(str(args[0])).name))


@pytest.fixture
def recorded(three, monkeypatch):
    """What was there before a save, and its operations."""
    before = contents_of(three)
    with monkeypatch.context() as patch:
        recorder = Recorder(patch, three)
        save(silent(three))
    return before, recorder.operations


def test_the_recorder_misses_no_change_of_the_folder(three, monkeypatch):
    """Python's own audit of system calls names the same ones."""
    sys.addaudithook(audit)  # for the rest of the process: there is no way to take one back
    with monkeypatch.context() as patch:
        recorder = Recorder(patch, three)
        AUDITED.clear()
        save(silent(three))
        seen = [entry for entry in AUDITED if not entry[1].startswith(("pytest", "__"))]

    kinds = {*EVENTS.values(), "create"}
    assert sorted(seen) == sorted((what, name) for what, name, _ in recorder.operations if what in kinds)


def test_the_newest_committed_checkpoint_loads_in_every_state_that_a_crash_leaves(tmp_path, recorded):
    before, operations = recorded
    committed = next(i for i, (what, _, to) in enumerate(operations) if (what, to) == ("rename", "manifest.json"))
    durable = next(i for i, o in enumerate(operations) if i > committed and o[0] == "sync folder")
    states, steps = 0, set()
    for names in crash_states(before, operations):
        states += 1
        folder = tmp_path / "after"
        put(folder, names)
        told = []
        checkpoints = Checkpoints(folder, warn=told.append)
        step = check_step(checkpoints.load())
        steps.add(step)
        assert checkpoints.newest().step == step, told
        assert all("never committed" in text for text in told), told
        listed = {entry["file"] for entry in json.loads(names["manifest.json"])["entries"]}
        assert listed <= names.keys(), "what the manifest names is there"

    assert durable < len(operations)
    assert steps == {3, 4}
    assert states > 100


def test_after_the_save_returned_the_new_one_is_what_loads(tmp_path, recorded):
    before, operations = recorded
    last = list(crash_states(before, operations))[-1]
    put(tmp_path / "after", last)

    assert check_step(Checkpoints(tmp_path / "after").load()) == 4


# ---- a disk that refuses

REFUSALS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT]


class Failing(files._HashingWriter):
    """The writer, each of its writes a call that may fail."""

    def write(self, data):
        try:
            Failing.call()
        except OSError as failure:
            self.failure = failure
            raise
        return super().write(data)

    @staticmethod
    def call():
        pass


CALLS = [
    (os, "open"),
    (os, "fsync"),
    (Failing, "call"),
    (Path, "open"),
    (Path, "replace"),
    (Path, "symlink_to"),
    (Path, "unlink"),
    (files.io, "FileIO"),
]


def refuse_at(patch, number, error, calls):
    return fail_from(patch, number, lambda: OSError(error, os.strerror(error)), calls)


def count_calls(folder, monkeypatch):
    checkpoints = silent(folder)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_HashingWriter", Failing)
        count = refuse_at(patch, 10**9, 0, CALLS)
        save(checkpoints)
    return count[0]


def check_three(folder):
    """The newest checkpoint loads, and where that is the third, all three do."""
    told = []
    checkpoints = Checkpoints(folder, warn=told.append)
    newest = checkpoints.newest().step
    assert check_step(checkpoints.load()) == newest
    assert newest in {3, 4}
    if newest == 3:
        assert [check_step(checkpoints.load(folder / entry.file)) for entry in checkpoints.entries()] == [1, 2, 3]
    assert all("never committed" in text for text in told)


@pytest.mark.parametrize("error", REFUSALS, ids=errno.errorcode.get)
def test_whatever_call_is_refused_the_previous_checkpoint_is_whole(three, tmp_path, monkeypatch, error):
    """And the message says where and how many bytes it needs."""
    shutil.copytree(three, tmp_path / "counted", symlinks=True)
    total = count_calls(tmp_path / "counted", monkeypatch)
    refused, said = 0, ""
    for number in range(1, total + 1):
        folder = tmp_path / f"at{number}"
        shutil.copytree(three, folder, symlinks=True)
        checkpoints = silent(folder)
        with monkeypatch.context() as patch:
            patch.setattr(files, "_HashingWriter", Failing)
            refuse_at(patch, number, error, CALLS)
            try:
                save(checkpoints)
            except SaveError as caught:
                refused += 1
                said = str(caught)
        if refused:
            assert f"step_00000004.pt could not be written ({os.strerror(error)}): it needs 400 bytes" in said
        check_three(folder)
    assert total > 20
    assert refused > total / 2


# ---- a disk that changes what is on it


def flip(draw, folder, file):
    whole = bytearray(file.read_bytes())
    whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    file.write_bytes(whole)


def cut(draw, folder, file):
    whole = file.read_bytes()
    file.write_bytes(whole[: draw.randrange(len(whole))])


def zero(draw, folder, file):
    whole = bytearray(file.read_bytes())
    at = draw.randrange(0, len(whole), 512)
    whole[at : at + 512] = bytes(len(whole[at : at + 512]))
    file.write_bytes(whole)


def swap(draw, folder, file):
    other = draw.choice([path for path in sorted(folder.glob("step_*.pt")) if path != file] or [file])
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


def stale(draw, folder, file):
    (folder / "manifest.json").write_bytes((folder.parent / "old.json").read_bytes())


def corrupt(three, tmp_path, seed, count):
    """How many of `count` corruptions were told of, refused, or left the newest checkpoint as it was."""
    draw = random.Random(seed)
    rows = json.loads((three / "manifest.json").read_text())["entries"][:2]
    digest = hashlib.sha256(files.to_json(rows).encode()).hexdigest()
    (tmp_path / "old.json").write_text(json.dumps({"entries": rows, "sha256": digest}))
    outcomes = {"told": 0, "refused": 0, "as it was": 0}
    for _ in range(count):
        how = draw.choice([flip, cut, zero, swap, stale])
        file = draw.choice([three / "step_00000003.pt"] * 3 + sorted(p for p in three.iterdir() if not p.is_symlink()))
        before = {path.name: path.read_bytes() for path in three.iterdir() if not path.is_symlink()}
        how(draw, three, file)
        touched = {n for n, data in before.items() if (three / n).read_bytes() != data}
        told = []
        try:
            step = check_step(Checkpoints(three, warn=told.append).load())
        except RunError:
            outcomes["refused"] += 1
        else:
            assert step == 3 or told, (how.__name__, file.name)
            if "step_00000003.pt" in touched:
                assert step < 3
            outcomes["told" if told else "as it was"] += 1
        for name in touched:
            (three / name).write_bytes(before[name])
    return outcomes


def test_nothing_corrupted_loads_silently(three, tmp_path, seed):
    """Bits flipped, files cut, pages zeroed, files swapped, an old manifest: 300 of them."""
    outcomes = corrupt(three, tmp_path, seed, 300)

    assert sum(outcomes.values()) == 300
    assert outcomes["told"] > 100


@pytest.mark.exhaustive
def test_nothing_of_ten_thousand_corruptions_loads_silently(three, tmp_path, seed):
    outcomes = corrupt(three, tmp_path, seed, 10_000)

    sys.stdout.write(f"{outcomes}\n")
    assert sum(outcomes.values()) == 10_000


# ---- in the background

LARGE = 3_000_000  # numbers: large enough to be saved in the background


def test_a_save_in_the_background_has_the_bytes_of_one_in_the_foreground(tmp_path):
    """Though the tensors change as soon as `save` returns."""
    values = make_state(1, LARGE)
    Checkpoints(tmp_path / "a").save(values, 1, None)
    background = Checkpoints(tmp_path / "b")
    background.save(values, 1, None, background=True)
    values["model"]["w"].zero_()
    background.wait()

    assert (tmp_path / "a" / "last.pt").read_bytes() == (tmp_path / "b" / "last.pt").read_bytes()


def test_at_most_one_save_is_under_way_and_they_are_committed_in_order(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a", keep=5)
    for step in range(1, 4):
        checkpoints.save(make_state(step, LARGE), step, None, background=True)
    checkpoints.wait()

    assert [entry.step for entry in Checkpoints(tmp_path / "a").entries()] == [1, 2, 3]


def test_what_goes_wrong_in_the_background_is_said_by_the_next_call(three, monkeypatch):
    checkpoints = Checkpoints(three)
    with monkeypatch.context() as patch:
        refuse_at(patch, 1, errno.ENOSPC, [(files.io, "FileIO")])
        checkpoints.save(make_state(4, LARGE), 4, None, background=True)
        with pytest.raises(SaveError, match=r"No space left.*needs 12,000,000 bytes"):
            checkpoints.wait()
    checkpoints.wait()

    assert check_step(checkpoints.load()) == 3


def test_small_ones_are_written_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a")
    checkpoints.save(make_state(1), 1, None, background=True)

    assert checkpoints.newest().step == 1


def test_what_does_not_read_back_as_it_was_written_is_not_committed(three, monkeypatch):
    real = files.write_atomic

    def lossy(path, write):
        digest = real(path, write)
        if path.suffix == ".pt":
            path.write_bytes(b"\0" + path.read_bytes()[1:])
        return digest

    monkeypatch.setattr(files, "write_atomic", lossy)
    with pytest.raises(SaveError, match="does not give back"):
        save(silent(three))

    assert check_step(Checkpoints(three, warn=lambda _: None).load()) == 3


# ---- a disk that is really full, as the kernel says it


SMALL = (
    "mount -t tmpfs -o size={size} tmpfs {folder} && cd {folder} && "
    "{python} -m runner device.type=cpu train.duration=3ep train.on_save_error={policy} "
    "&& status=0 || status=$?; cat outputs/*/*/result.json; exit $status"
)


def on_a_small_disk(folder, size, policy):
    script = SMALL.format(size=size, folder=folder, policy=policy, python=sys.executable)
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk of its own")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run([*alone, "sh", "-c", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("size", "policy", "status", "said"),
    [
        ("24k", "stop", 1, "No space left on device: 'outputs/digits_cnn/"),  # metrics.jsonl finds no room any more
        pytest.param("8k", "stop", 1, "nor could log.txt be written", marks=pytest.mark.exhaustive),
        pytest.param("24k", "go_on", 1, "the log cannot be written", marks=pytest.mark.exhaustive),
        pytest.param("130k", "stop", 1, "the checkpoint of step 17 is whole", marks=pytest.mark.exhaustive),
        pytest.param("130k", "go_on", 0, "test/accuracy", marks=pytest.mark.exhaustive),
    ],
)
def test_a_full_disk_is_said_without_a_traceback(tmp_path, size, policy, status, said):
    done = on_a_small_disk(tmp_path, size, policy)
    text = done.stdout + done.stderr

    assert (done.returncode, said in text) == (status, True), text
    assert "Traceback" not in text
