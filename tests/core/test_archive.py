"""Archives are unpacked whole or not at all, and nothing of a hostile one reaches the disk outside its folder."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.core.archive import Limits, unpack
from runner.core.errors import RunError
from tests.support import list_names

Adder = Callable[[tarfile.TarFile], None]


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Adder:
    """Adds one member to a tar."""

    def add(archive: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size, member.mode = kind, link, len(content), 0o6777
        archive.addfile(member, io.BytesIO(content))

    return add


def tar(file: Path, *members: Adder, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these members."""
    with tarfile.open(file, mode, format=form) as archive:  # type: ignore[call-overload]
        for add in members:
            add(archive)
    return file


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where to unpack to; what is beside it is looked at afterwards."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder / "target"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars(mode: str, tmp_path: Path, place: Path) -> None:
    """Plain and compressed, told by their content; modes lose what a stranger must not set."""
    members = [entry("a/b.txt", b"b"), entry("c", b"c" * 100_000), entry("a/l", kind=tarfile.SYMTYPE, link="../c")]
    assert unpack(tar(tmp_path / "x", *members, mode=mode), place, Limits()) == []
    assert contents(place) == {"a/b.txt": b"b", "a/l": b"c" * 100_000, "c": b"c" * 100_000}
    assert (place / "c").stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH) == 0
    assert ["target"] == list_names(place.parent)


def test_a_zip_and_a_lone_file(tmp_path: Path, place: Path) -> None:
    """A zip becomes a folder, a .gz that holds no tar a file."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", b"b")
        archive.writestr("empty/", b"")
    unpack(tmp_path / "x.zip", place)
    assert ({"a/b.txt": b"b"}, True) == (contents(place), (place / "empty").is_dir())
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"numbers" * 1000))
    unpack(tmp_path / "x.gz", place.with_name("file"))
    assert b"numbers" * 1000 == place.with_name("file").read_bytes()


def test_the_folder_in_the_archive_becomes_the_target(tmp_path: Path, place: Path) -> None:
    """Where all lies in one folder of that name; a folder of another name stays inside."""
    unpack(tar(tmp_path / "x", entry("target/a", b"a")), place)
    assert contents(place) == {"a": b"a"}
    unpack(tar(tmp_path / "y", entry("other/a", b"a")), place.with_name("second"))
    assert contents(place.with_name("second")) == {"other/a": b"a"}


def test_what_python_could_import_is_left_out(tmp_path: Path, place: Path) -> None:
    """Code below the working directory is trusted, so data must not become code."""
    names = ["a.txt", "a.py", "p/__init__.py", "m.so", "m.cpython-311-x86_64-linux-gnu.so", "c.pyc"]
    assert unpack(tar(tmp_path / "x", *(entry(name, b"x") for name in names)), place) == names[1:]
    assert contents(place) == {"a.txt": b"x"}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    assert unpack(tmp_path / "x.zip", place.with_name("zipped")) == names[1:]


HOSTILE_TARS: dict[str, list[Adder]] = {
    "traversal": [entry("../evil", b"x")],
    "deep traversal": [entry("a/../../evil", b"x")],
    "link outside": [entry("l", kind=tarfile.SYMTYPE, link="../../evil")],
    "absolute link": [entry("l", kind=tarfile.SYMTYPE, link="/etc/passwd")],
    "hard link outside": [entry("l", kind=tarfile.LNKTYPE, link="../../evil")],
    "absolute hard link": [entry("l", kind=tarfile.LNKTYPE, link="/etc/passwd")],
    "through a link": [entry("l", kind=tarfile.SYMTYPE, link="."), entry("l/evil", b"x")],
    "link through links": [
        entry("d", kind=tarfile.SYMTYPE, link="."),
        entry("e", kind=tarfile.SYMTYPE, link="d/d/d/../../../.."),
        entry("e/evil", b"x"),
    ],
    "hard link through a link": [
        entry("d", kind=tarfile.SYMTYPE, link="."),
        entry("e", kind=tarfile.LNKTYPE, link="d/x"),
    ],
    "link replaced by a file": [entry("l", kind=tarfile.SYMTYPE, link="a"), entry("l", b"x")],
    "character device": [entry("null", kind=tarfile.CHRTYPE)],
    "block device": [entry("disk", kind=tarfile.BLKTYPE)],
    "fifo": [entry("pipe", kind=tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("name", HOSTILE_TARS)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_hostile_tars(name: str, mode: str, tmp_path: Path, place: Path) -> None:
    """Refused by name, and nothing is left, inside or outside."""
    file = tar(tmp_path / "x", entry("sound", b"x"), *HOSTILE_TARS[name], mode=mode)
    with pytest.raises(RunError, match=r"x is not unpacked: .*(evil|l|e|null|disk|pipe)'"):
        unpack(file, place)
    assert ([], ["place", "x"]) == (list_names(place.parent), list_names(tmp_path))


def test_an_absolute_path_lands_inside(tmp_path: Path, place: Path) -> None:
    """As `filter="data"` has it: without its leading slash."""
    unpack(tar(tmp_path / "x", entry("/etc/evil", b"x")), place)
    assert contents(place) == {"etc/evil": b"x"}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil"])
def test_hostile_zips(name: str, tmp_path: Path, place: Path) -> None:
    """Refused, where zipfile itself would put them somewhere else without a word."""
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(RunError, match="would lie outside"):
        unpack(tmp_path / "x", place)
    assert [] == list_names(place.parent)


def test_a_link_in_a_zip(tmp_path: Path, place: Path) -> None:
    """Neither file nor folder."""
    link = zipfile.ZipInfo("l")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(RunError, match="'l' is neither a file nor a folder"):
        unpack(tmp_path / "x", place)
    assert [] == list_names(place.parent)


def bombs(folder: Path) -> dict[str, Path]:
    """Small files that would be large ones: 120 MB of zeros each, or a sparse file, or a header without an end."""
    zeros, size = folder / "zeros", 120_000_000
    with zeros.open("wb") as file:
        file.truncate(size)
    with gzip.open(folder / "lone.gz", "wb", 9) as out, zeros.open("rb") as file:
        while block := file.read(2**20):
            out.write(block)
    with tarfile.open(folder / "tar.gz", "w:gz") as archive:
        archive.add(zeros, "zeros")
    with zipfile.ZipFile(folder / "zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(zeros, "zeros")
    zeros.unlink()
    # A GNU sparse file of 2^40 bytes of which one block is there.
    header = tarfile.TarInfo("sparse").tobuf(tarfile.GNU_FORMAT)
    block = bytearray(header)
    block[124:136] = b"%011o\0" % 512
    block[156:157] = b"S"
    block[386:398], block[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    block[483:495] = b"\x80" + struct.pack(">3xQ", 2**40 * 8)[:11]
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    (folder / "sparse").write_bytes(bytes(block) + bytes(512) + bytes(1024))
    # A pax header of 120 MB, which tarfile would read into memory.
    member = tarfile.TarInfo("header")
    member.type, member.size = tarfile.XHDTYPE, size
    with gzip.open(folder / "header.tar.gz", "wb", 9) as out:
        out.write(member.tobuf())
        for _ in range(120):
            out.write(bytes(10**6))
    return {file.name: file for file in folder.iterdir()}


def test_bombs(tmp_path: Path, place: Path) -> None:
    """What becomes more than `ratio_limit` times as large, or asks for that, is stopped on its way."""
    folder = tmp_path / "bombs"
    folder.mkdir()
    found = bombs(folder)
    assert len(found) == 5
    for name, file in found.items():
        assert file.stat().st_size < 10**6
        with pytest.raises(RunError, match=r"times as large|more than 1,099,511,627,776 bytes|longer than any name"):
            unpack(file, place)
        assert [] == list_names(place.parent), name


def test_limits(tmp_path: Path, place: Path) -> None:
    """Members and bytes, of each kind."""
    many = tar(tmp_path / "x", *(entry(str(number), b"x" * 1000) for number in range(30)))
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        for number in range(30):
            archive.writestr(str(number), b"x" * 1000)
    for file in (many, tmp_path / "z"):
        with pytest.raises(RunError, match=r"more than 29 members, at '29' \(members_limit\)"):
            unpack(file, place, Limits(members=29))
        with pytest.raises(RunError, match=r"more than 20,000 bytes \(size_limit\)"):
            unpack(file, place, Limits(size=20_000))
        assert not place.exists()
        unpack(file, place.with_name(file.name), Limits(members=30))
        assert 30 == len(contents(place.with_name(file.name)))


def test_damaged_archives(tmp_path: Path, place: Path, seed: int) -> None:
    """Cut or flipped, each becomes an error or the right content, and nothing half is left."""
    import random

    generator = random.Random(seed)
    content = {"a": bytes(generator.randbytes(5000)), "b/c": b"text" * 500}
    for kind in ("w:gz", "w:xz", "zip"):
        file = tmp_path / "x"
        if kind == "zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in content.items():
                    archive.writestr(name, data)
        else:
            tar(file, *(entry(name, data) for name, data in content.items()), mode=kind)
        good = file.read_bytes()
        for number in range(60):
            at = generator.randrange(len(good))
            file.write_bytes(good[:at] if number % 2 else good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
            try:
                unpack(file, place)
            except RunError as error:
                assert str(file) in str(error)  # noqa: PT017
            if place.is_dir():
                for path in sorted(place.rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
                place.rmdir()
            elif place.exists():
                place.unlink()
            assert [] == list_names(place.parent)
