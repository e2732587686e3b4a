"""Data files of strangers: pipes, devices, sockets, images that start programs, archives that are bombs."""

import io
import os
import re
import signal
import socket
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from datasets import table
from datasets.table import Table
from runner.config.check.rules.data import check_samples
from runner.config.schema import Sample
from runner.core.escape import cut_name
from runner.data.bad_samples import BadSample, BadSamples
from runner.data.file_guard import RefusedDataFile, watch_reading
from runner.data.keyed_samples import KeyedSamples, KeyedStream
from runner.data.samples import Pipeline, Stream
from runner.data.whole_dataset import stack_samples
from runner.log.tensorboard import TensorBoardWriter, read_events

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.fixture(autouse=True)
def _no_hang():
    """What hangs fails after 5 s."""

    def ring(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of two images of one class, and a program `gs` that leaves a trace."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "a").mkdir(parents=True)
    for name in "xy":
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a" / f"{name}.png")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "data" / "a"


def make(kind, file):
    """Put something else in the place of a file."""
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to a pipe":
        os.mkfifo(file.parents[2] / "pipe")
        file.symlink_to(file.parents[2] / "pipe")
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "random":
        file.symlink_to("/dev/urandom")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(file))
    else:
        file.write_bytes(EPS)


KINDS = ["pipe", "link to a pipe", "device", "random", "socket", "EPS"]


class Lazy(Dataset):
    """Images that Pillow opens and that nobody has read yet."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return Image.open(self.files[index]), 0


def sample(dataset, index):
    """A sample as workers get it."""
    pipeline = Pipeline({"all": lambda image: torch.tensor(np.array(image))}, 0)
    return KeyedSamples(dataset, np.arange(len(dataset)), pipeline, Stream(0, "train"))[0, index]


@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")  # files that Lazy leaves open
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_of_data_is_named_and_nothing_hangs_or_starts(kind, folder):
    make(kind, folder / "y.png")
    lazy = Lazy([folder / "x.png", folder / "y.png"])
    for dataset in (ImageFolder("data"), lazy):
        good, bad = sample(dataset, 0), sample(dataset, 1)

        assert (torch.Tensor, BadSample, "y.png") == (type(good[0]), type(bad), Path(bad.file).name)
        said = "RefusedDataFile: .*" + ("Ghostscript" if kind == "EPS" else "data is read from regular files")
        assert re.match(said, bad.error), bad.error
        faults = BadSamples("train", skip=True)
        assert stack_samples(dataset, np.arange(2), Stream(0, "train"), faults).bad == {1}
    assert not (folder.parents[1] / "started").exists()


def test_an_iterable_dataset_is_watched_too(folder):
    make("pipe", folder / "y.png")

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield 0, Path("data/a/x.png").read_bytes()[0]
            yield 1, Path("data/a/y.png").read_bytes()[0]

    found = list(KeyedStream(Rows(), Pipeline({}, 0), Stream(0, "train"), None))

    assert [isinstance(item, BadSample) for item in found] == [False, True]
    assert "data/a/y.png is a named pipe" in found[1].error


def test_elsewhere_pipes_devices_and_programs_are_the_users(folder):
    """Outside of reading data nothing is watched; inside what is named as such, what is written, what ends."""
    make("pipe", folder / "y.png")
    make("EPS", folder / "x.png")
    handle = os.open(folder / "y.png", os.O_RDWR | os.O_NONBLOCK)
    (folder / "y.png").open("rb").close()
    with watch_reading():
        meant = {"/dev/null": "r", os.devnull: "w", f"/dev/fd/{handle}": "rb", folder / "y.png": "wb"}
        for name, mode in meant.items():
            Path(name).open(mode).close()
        os.close(os.open(folder / "y.png", os.O_RDONLY | os.O_NONBLOCK))
        with pytest.raises(RefusedDataFile):
            (folder / "y.png").open()
    os.close(handle)
    with pytest.raises(OSError, match=r"."), Image.open(folder / "x.png") as image:
        image.load()  # the `gs` here makes no image

    assert (folder.parents[1] / "started").exists()


def save_archive(file, members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def head(shape, kind="<f8"):
    """The beginning of an array's file, which says its shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_arrays_that_are_bombs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, "FREE_BYTES", 2**20)
    zeros = head((3 * 2**17,)) + bytes(3 * 2**20)
    save_archive("bomb.npz", {"y": zeros})
    save_archive("claim.npz", {"y": head((10**12,)) + bytes(64)})
    Path("claim.npy").write_bytes(head((10**6, 10**6)) + bytes(64))
    Path("cut.npz").write_bytes(Path("bomb.npz").read_bytes()[:1000])
    np.savez("small.npz", y=np.arange(4), x=np.zeros((4, 2)))
    said = {}
    for name in ("bomb.npz", "claim.npz", "claim.npy"):
        with pytest.raises(ValueError, match=name) as refused:
            Table(name, "y")
        said[name] = str(refused.value)

    assert "more than 200 times as many" in said["bomb.npz"]
    assert "claims [1000000000000] numbers of float64, 8,000,000,000,000 bytes, and has" in said["claim.npz"]
    assert "claims [1000000, 1000000] numbers" in said["claim.npy"]
    assert len(Table("small.npz", "y")) == 4


def test_an_image_of_ten_gigapixels_is_a_bad_sample(folder):
    """A PNG file whose header claims it: Pillow refuses before it makes room."""
    chunk = b"IHDR" + (10**5).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    content = (folder / "y.png").read_bytes()
    (folder / "y.png").write_bytes(content[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:])

    assert "10000000000 pixels" in sample(ImageFolder("data"), 1).error


@pytest.mark.parametrize("stated", [{"mode": "RGB", "size": [100000, 100000]}, {"shape": [-65536, 65536]}])
def test_check_makes_no_sample_of_ten_gigapixels_up(stated):
    found = [finding.mistake for finding in check_samples(Sample(**stated))]

    assert [mistake.key for mistake in found] == [f"dataset.sample.{list(stated)[-1]}"]


def test_names_of_classes_and_tags_are_cut(tmp_path):
    """A cell of a table may be a class, of 131,072 characters; a picture with such a label would be as wide."""
    assert cut_name("a\n\x1b" + "b" * 1000) == "a\\n\\x1b" + "b" * 92 + "…"
    writer = TensorBoardWriter(tmp_path, 0)
    writer.show(0, [Summary.Value(tag="a" * 5000, simple_value=1.0)])
    writer.close()
    (file,) = tmp_path.iterdir()

    assert [len(value.tag) for event in read_events(file, Event) for value in event.summary.value] == [1000]
