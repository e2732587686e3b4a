import contextlib
import copy
import json
import math
import os
import random
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from runner.core import files
from runner.core.errors import RunError
from runner.train.checkpoint import Checkpoints, SaveError
from runner.train.plain_state import to_plain
from tests.support import check_step, fail_from, list_names, make_state


class Told(list):
    def __call__(self, text):
        self.append(text)


@pytest.fixture
def told():
    return Told()


# ---- the folder


def test_the_folder_is_as_the_contract_says(three):
    assert list_names(three) == ["best.pt", "last.pt", "manifest.json", *(f"step_0000000{i}.pt" for i in (1, 2, 3))]
    assert (three / "last.pt").readlink() == Path("step_00000003.pt")
    assert (three / "best.pt").readlink() == Path("step_00000001.pt")
    entries = json.loads((three / "manifest.json").read_text())["entries"]
    assert [(e["file"], e["step"], e["metric"]) for e in entries] == [
        ("step_00000001.pt", 1, 0.1),
        ("step_00000002.pt", 2, 0.3),
        ("step_00000003.pt", 3, 0.2),
    ]
    assert all(e["sha256"] == files.hashlib.sha256((three / e["file"]).read_bytes()).hexdigest() for e in entries)


def test_torch_opens_one_without_this_package(three):
    assert check_step(torch.load(three / "last.pt", weights_only=True)) == 3


@pytest.mark.parametrize(
    ("mode", "metrics", "best"),
    [
        ("min", [3.0, 1.0, 2.0, 1.0], 2),  # the earliest of equals
        ("max", [3.0, 1.0, 3.0, 2.0], 1),
        ("min", [math.nan, 5.0, math.nan], 2),
        ("max", [math.nan, math.inf, 1.0], 3),
        ("min", [None, None, 4.0], 3),
        ("min", [None, math.nan], None),
    ],
)
def test_the_best_is_the_earliest_with_the_best_finite_metric(tmp_path, mode, metrics, best):
    checkpoints = Checkpoints(tmp_path / "c", keep=1, mode=mode)
    for step, metric in enumerate(metrics, 1):
        checkpoints.save(make_state(step), step, metric)

    found = checkpoints.best()
    assert (found.step if found else None) == best
    assert (tmp_path / "c" / "best.pt").exists() == (best is not None)
    if best:
        assert check_step(checkpoints.load("best")) == best
    else:
        with pytest.raises(RunError, match="no best"):
            checkpoints.load("best")


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_few_and_the_best_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path / "c", keep=keep)
    for step in range(1, 9):
        checkpoints.save(make_state(step), step, abs(step - 2))

    expected = sorted({2, *range(9 - keep, 9)})
    assert [e.step for e in checkpoints.entries()] == expected
    assert [n for n in list_names(tmp_path / "c") if n.startswith("step")] == [f"step_0000000{i}.pt" for i in expected]


def test_the_next_process_goes_on_where_the_manifest_is(three):
    again = Checkpoints(three, keep=1)
    assert again.newest().step == 3
    again.save(make_state(4), 4, 0.4)

    assert [e.step for e in again.entries()] == [1, 4]


def test_looking_at_checkpoints_writes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    with pytest.raises(RunError, match="holds no committed checkpoint"):
        checkpoints.load()

    assert checkpoints.newest() is None
    assert checkpoints.entries() == []
    assert list_names(tmp_path) == []


def test_a_resume_from_an_older_one_drops_the_abandoned_future(three, told):
    checkpoints = Checkpoints(three, warn=told)
    checkpoints.save(make_state(2), 2, 0.9)

    assert [(e.step, e.metric) for e in checkpoints.entries()] == [(1, 0.1), (2, 0.9)]
    assert [n for n in list_names(three) if n.startswith("step")] == ["step_00000001.pt", "step_00000002-1.pt"]
    assert check_step(Checkpoints(three, warn=told).load()) == 2
    assert told == []


def test_a_best_that_was_abandoned_has_no_link(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(make_state(2), 2, 0.1)
    checkpoints.save(make_state(1), 1, None)

    assert list_names(tmp_path / "c") == ["last.pt", "manifest.json", "step_00000001.pt"]


# ---- bytes


def rich_state():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LSTM(4, 3)).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.AdamW(model.named_parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)],
        [2],
    )
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": {"torch": torch.get_rng_state(), "python": random.getstate()},
        "odd": [math.nan, math.inf, -0.0, 2**70, -(2**31), "ä", "", (), [], {}, None, True, torch.zeros(0), 1j.imag],
        "config": {"a": {1: "a", 2.5: "b", (1, "x"): "c"}},
        "scaler": None,
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def test_what_a_run_holds_comes_back_as_it_was(tmp_path):
    torch.manual_seed(0)
    before = rich_state()
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(before, 1, None)

    after = checkpoints.load()
    assert same(before, after)
    assert after["model"]._metadata == before["model"]._metadata


def sha(folder, value):
    Checkpoints(folder).save(value, 1, None)
    return Checkpoints(folder).newest().sha256


def test_equal_states_give_equal_bytes(tmp_path):
    before = rich_state()
    first = sha(tmp_path / "a", before)
    assert sha(tmp_path / "b", copy.deepcopy(before)) == first
    assert sha(tmp_path / "c", Checkpoints(tmp_path / "a").load()) == first


def test_equal_strings_give_equal_bytes_whether_they_are_one_object_or_two(tmp_path):
    one, other = (b"loss".decode() for _ in range(2))
    assert one is not other
    assert sha(tmp_path / "a", {"x": [one, one]}) == sha(tmp_path / "b", {"x": [one, other]})


def test_a_view_is_cut_out_of_what_it_looks_into(tmp_path):
    big = torch.arange(100_000.0)
    assert sha(tmp_path / "a", {"w": big[10:13]}) == sha(tmp_path / "b", {"w": torch.tensor([10.0, 11.0, 12.0])})
    assert (tmp_path / "a" / "last.pt").stat().st_size < 3000


def test_a_shared_tensor_is_saved_once(tmp_path):
    shared = torch.zeros(10_000)
    Checkpoints(tmp_path / "a").save({"a": shared, "b": shared.detach()}, 1, None)

    assert (tmp_path / "a" / "last.pt").stat().st_size < 45_000


def test_saving_does_not_copy_parameters_nor_keep_their_graph():
    parameter = nn.Parameter(torch.ones(3))
    assert to_plain({"p": parameter})["p"].data_ptr() == parameter.data_ptr()
    assert type(to_plain(parameter)) is torch.Tensor
    assert not to_plain(parameter).requires_grad


class Point(NamedTuple):
    x: int
    y: int


class Named(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.0),
        np.zeros(3),
        Point(1, 2),
        {1, 2},
        b"bytes",
        1j,
        Named("a"),
        torch.float32,
        torch.Size([1]),
        torch.zeros(3, device="meta"),
        lambda: None,
        Path("a"),
    ],
)
def test_what_weights_only_may_not_open_is_refused_by_its_key_and_nothing_is_written(tmp_path, value):
    checkpoints = Checkpoints(tmp_path / "c")
    with pytest.raises(RunError, match=r"`optimizer\.state\[1\]\.exp_avg`"):
        checkpoints.save({"optimizer": {"state": [{}, {"exp_avg": value}]}}, 1, None)

    assert not (tmp_path / "c" / "manifest.json").exists()
    with pytest.raises(RunError, match=r"`a\.b"):
        to_plain({"a": {"b": OrderedDict(c=value)}})


# ---- damage


def test_every_flipped_bit_is_found(three, told, seed):
    """torch.load alone would let nearly all of them through."""
    draw = random.Random(seed)
    file = three / "step_00000003.pt"
    whole = file.read_bytes()
    for _ in range(100):
        at, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        told.clear()
        assert check_step(Checkpoints(three, warn=told).load()) == 2
        assert len(told) == 1
        assert "step_00000003.pt is damaged" in told[0]


@pytest.mark.parametrize("content", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda _: b"", lambda b: b + b"\0"])
def test_a_file_of_another_length_is_found(three, told, content):
    file = three / "step_00000003.pt"
    file.write_bytes(content(file.read_bytes()))

    assert check_step(Checkpoints(three, warn=told).load()) == 2
    assert len(told) == 1


def test_swapped_and_missing_files_are_found(three, told):
    (three / "step_00000003.pt").rename(three / "x")
    (three / "step_00000002.pt").rename(three / "step_00000003.pt")

    assert check_step(Checkpoints(three, warn=told).load()) == 1
    assert ["step 3" in told[0], "step 2" in told[1]] == [True, True]


def test_where_nothing_is_whole_it_says_so(three, told):
    for file in three.glob("step_*.pt"):
        file.write_bytes(b"")

    with pytest.raises(RunError, match="no whole checkpoint"):
        Checkpoints(three, warn=told).load()
    assert len(told) == 3


def test_a_best_that_is_damaged_is_an_error_and_no_other(three):
    (three / "step_00000001.pt").write_bytes(b"")

    with pytest.raises(RunError, match=r"step_00000001\.pt is damaged"):
        Checkpoints(three).load("best")


def trained(step, best):
    """What a run saves: its own step, and the best so far."""
    best = {"step": best[0], "objective": best[1], "metrics": {}}
    return make_state(step) | {"progress": {"step": step, "best": best}}


@pytest.fixture
def run_of_three(tmp_path):
    """The checkpoints of a run whose best is that of step 1."""
    folder = tmp_path / "checkpoints"
    for step, metric in ((1, 0.1), (2, None), (3, None)):
        Checkpoints(folder).save(trained(step, (1, 0.1)), step, metric)
    return folder


def test_every_flipped_bit_of_the_manifest_changes_nothing(run_of_three, told, seed):
    """It was white space, or the manifest is made again from the checkpoints, and this is said."""
    draw = random.Random(seed)
    file = run_of_three / "manifest.json"
    whole = file.read_bytes()
    expected = Checkpoints(run_of_three).entries()
    for _ in range(100):
        at, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        checkpoints = Checkpoints(run_of_three, warn=told)
        assert checkpoints.entries() == expected
        assert check_step(checkpoints.load()) == 3
    assert len(told) > 70
    assert all("is damaged" in text and "made again from the checkpoints" in text for text in told)


@pytest.mark.parametrize("damage", [None, b"", b"[]", b'{"entries": 3, "sha256": ""}', b"[" * 100_000])
def test_a_manifest_that_is_lost_is_made_again_as_it_was(run_of_three, told, damage):
    file = run_of_three / "manifest.json"
    whole = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage)

    checkpoints = Checkpoints(run_of_three, warn=told)
    assert (check_step(checkpoints.load()), check_step(checkpoints.load("best"))) == (3, 1)
    assert "(whole are those of the steps: 1, 2, 3)" in told[0]
    checkpoints.finish()
    assert file.read_bytes() == whole


def test_without_a_manifest_nothing_damaged_loads(run_of_three, told, seed):
    """The archive's own checksums are looked at: a flipped bit is found, or is where no value is."""
    draw = random.Random(seed)
    (run_of_three / "manifest.json").unlink()
    file = run_of_three / "step_00000003.pt"
    whole = file.read_bytes()
    found = 0
    for _ in range(60):
        at, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        step = check_step(Checkpoints(run_of_three, warn=told).load())
        assert step in (2, 3)
        found += step == 2
    assert found > 20


def test_a_damaged_checkpoint_without_a_manifest_is_passed_over_and_stays(run_of_three, told):
    (run_of_three / "manifest.json").unlink()
    (run_of_three / "step_00000002.pt").write_bytes(b"PK")

    checkpoints = Checkpoints(run_of_three, keep=1, warn=told)
    checkpoints.load()
    checkpoints.save(trained(4, (4, 0.05)), 4, 0.05)
    assert "step_00000002.pt is damaged" in told[0]
    assert [n for n in list_names(run_of_three) if n.startswith("step")] == ["step_00000002.pt", "step_00000004.pt"]


def test_where_all_checkpoints_are_damaged_a_run_does_not_begin_anew(run_of_three):
    (run_of_three / "manifest.json").unlink()
    for file in run_of_three.glob("step_*.pt"):
        file.write_bytes(b"PK")

    with pytest.raises(RunError, match="holds no whole checkpoint"):
        Checkpoints(run_of_three).refuse_lost(0)


def test_a_file_beside_a_damaged_manifest_is_verified_by_its_archive(run_of_three, tmp_path, told):
    (run_of_three / "manifest.json").write_bytes(b"{")
    other = Checkpoints(tmp_path / "other", warn=told)

    assert check_step(other.load(run_of_three / "step_00000002.pt")) == 2
    assert "verified by the checksums of its archive" in told[0]
    (run_of_three / "step_00000002.pt").write_bytes(b"PK")
    with pytest.raises(RunError, match="is damaged"):
        other.load(run_of_three / "step_00000002.pt")


def test_an_older_manifest_put_back_does_not_load_silently(three, told):
    old = (three / "manifest.json").read_bytes()
    Checkpoints(three).save(make_state(4), 4, 0.5)
    (three / "manifest.json").write_bytes(old)

    assert check_step(Checkpoints(three, warn=told).load()) == 3
    assert "step_00000004.pt was never committed" in told[0]


# ---- loading by path


def test_a_path_is_verified_by_the_manifest_beside_it(three, tmp_path, told):
    elsewhere = Checkpoints(tmp_path / "other", warn=told)
    for path in (three / "step_00000002.pt", three / "last.pt", str(three / "best.pt")):
        check_step(elsewhere.load(path))
    assert told == []

    (three / "step_00000002.pt").write_bytes(b"PK")
    with pytest.raises(RunError, match="is damaged"):
        elsewhere.load(three / "step_00000002.pt")


def test_a_file_without_a_manifest_is_read_and_said_to_be_unverified(tmp_path, told):
    torch.save({"a": 1}, tmp_path / "w.pt")

    assert Checkpoints(tmp_path / "c", warn=told).load(tmp_path / "w.pt") == {"a": 1}
    assert "unverified" in told[0]


def test_a_file_that_was_never_committed_is_refused(three):
    shutil.copy(three / "step_00000001.pt", three / "step_00000009.pt")

    with pytest.raises(RunError, match="never committed"):
        Checkpoints(three).load(three / "step_00000009.pt")


def test_a_file_of_something_else_is_no_checkpoint(tmp_path, told):
    torch.save([1], tmp_path / "w.pt")

    with pytest.raises(RunError, match="holds a list"):
        Checkpoints(tmp_path, warn=told).load(tmp_path / "w.pt")


# ---- crashes and faults


class Crash(BaseException):
    pass


CALLS = [(os, "fsync"), (Path, "replace"), (Path, "symlink_to"), (Path, "unlink"), (files.io, "FileIO")]


def crash_at(patch, number, error=Crash):
    """What a kill leaves behind."""
    return fail_from(patch, number, lambda: error, CALLS)


def calls_of_a_save(folder, monkeypatch):
    with monkeypatch.context() as patch:
        count = crash_at(patch, 10**9)
        Checkpoints(folder, keep=1).save(make_state(4), 4, 0.05)
    return count[0]


def test_wherever_a_save_is_killed_a_whole_checkpoint_loads_and_the_next_save_cleans_up(three, tmp_path, monkeypatch):
    shutil.copytree(three, tmp_path / "counted", symlinks=True)
    total = calls_of_a_save(tmp_path / "counted", monkeypatch)
    loaded = []
    for number in range(1, total + 1):
        folder, told = tmp_path / f"crash{number}", Told()
        shutil.copytree(three, folder, symlinks=True)
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            crash_at(patch, number)
            Checkpoints(folder, keep=1).save(make_state(4), 4, 0.05)

        after = Checkpoints(folder, keep=1, warn=told)
        loaded.append(check_step(after.load()))
        assert after.newest().step == loaded[-1]  # nothing committed was lost: no fallback
        assert all("never committed" in text for text in told)
        assert all((folder / name).resolve().exists() for name in ("last.pt", "best.pt"))
        check_step(after.load("best"))
        after.save(make_state(5), 5, 0.01)
        assert list_names(folder) == ["best.pt", "last.pt", "manifest.json", "step_00000005.pt"]
    assert loaded == sorted(loaded)
    assert set(loaded) == {3, 4}


def save_without_manifest(folder, monkeypatch, value, step):
    def crash(*_):
        raise Crash

    checkpoints = Checkpoints(folder)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", crash)
        with pytest.raises(Crash):
            checkpoints.save(value, step, 0.05)


def test_a_crash_between_the_rename_and_the_manifest_leaves_the_previous_state(three, told, monkeypatch):
    save_without_manifest(three, monkeypatch, make_state(4), 4)

    assert (three / "step_00000004.pt").exists()
    assert check_step(Checkpoints(three, warn=told).load()) == 3
    assert "step_00000004.pt was never committed" in told[0]


@pytest.mark.parametrize("number", range(1, 12))
def test_a_disk_that_fails_leaves_the_previous_checkpoints_and_no_temporary_file(three, monkeypatch, number):
    before = list_names(three)
    with monkeypatch.context() as patch:
        error = OSError(28, "No space left on device")
        crash_at(patch, number, error)
        with contextlib.suppress(SaveError):  # and nothing else: the last calls, deletions, may fail
            Checkpoints(three).save(make_state(4), 4, 0.05)
    assert check_step(Checkpoints(three, warn=lambda _: None).load()) in (3, 4)
    assert set(before) <= set(list_names(three))


def test_a_step_saved_again_never_leaves_the_manifest_wrong(three, monkeypatch, told):
    save_without_manifest(three, monkeypatch, {**make_state(3), "more": 1}, 3)

    assert check_step(Checkpoints(three, warn=told).load()) == 3
    assert not any("damaged" in text for text in told)


def test_without_a_manifest_nothing_that_is_no_checkpoint_is_deleted(three, told):
    (three / "manifest.json").unlink()
    torch.save({"weights": 1}, three / "step_00000002.pt")

    checkpoints = Checkpoints(three, keep=1, warn=told)
    for step in (3, 4):
        checkpoints.save(make_state(step), step, None)

    assert [n for n in list_names(three) if n.startswith("step")] == ["step_00000002.pt", "step_00000004.pt"]
    assert check_step(Checkpoints(three).load()) == 4
