"""Downloads from a server on this machine: whole, resumed, refused; over real sockets."""

import hashlib
import http.server
import io
import multiprocessing
import os
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.core import download
from runner.core.download import fetch, provide
from runner.core.errors import RunError

CONTENT = bytes(range(256)) * 8000  # 2 MB: several reads
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """What a server does, by path: `content`, and how it gives it; `asked` are the ranges asked for, in order."""

    def __init__(self) -> None:
        self.content, self.cut_after, self.ranges, self.says_length = CONTENT, -1, True, True
        self.redirect, self.status, self.answers = "", 0, 0
        self.asked: list[str | None] = []

    def handler(server: "Server") -> type[http.server.BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.headers.get("Range"))
                server.answers += 1
                if server.redirect:
                    self.send_response(302)
                    self.send_header("Location", server.redirect)
                    self.end_headers()
                    return
                if server.status:
                    self.send_error(server.status)
                    return
                start = 0
                asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if asked and server.ranges:
                    start = int(asked[1])
                    if start >= len(server.content):
                        self.send_error(416)
                        return
                    self.send_response(206)
                    end = len(server.content)
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
                else:
                    self.send_response(200)
                if server.says_length:
                    self.send_header("Content-Length", str(len(server.content) - start))
                self.end_headers()
                body = server.content[start:]
                self.wfile.write(body if server.cut_after < 0 else body[: server.cut_after])

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Whoever breaks off is meant to."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server, and its address as `server.url`."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    made: Any = Server()
    with Quiet(("127.0.0.1", 0), made.handler()) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        made.url = f"http://127.0.0.1:{httpd.server_port}/data.bin"
        yield made
        httpd.shutdown()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "data.bin"


def left(file: Path) -> list[str]:
    """The names in the folder of a file."""
    return sorted(path.name for path in file.parent.iterdir())


def test_once_and_verified(server: Any, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is there with its content is not asked for again; the size is told."""
    assert fetch(server.url, file, SHA256, size=len(CONTENT))
    assert not fetch(server.url, file, SHA256)
    assert (CONTENT, ["data.bin"], 1) == (file.read_bytes(), left(file), server.answers)
    assert capsys.readouterr().err == f"downloading {server.url} (2.0 MB)\n"


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_broken_download_goes_on(ranges: bool, size: int | None, server: Any, file: Path) -> None:
    """Where it broke off, if the server gives ranges, else from the start; after an error, in the next call too."""
    server.cut_after = 700_000
    server.ranges = ranges
    server.says_length = size is None
    if ranges:
        fetch(server.url, file, SHA256, size=size)
        assert [None, "bytes=700000-", "bytes=1400000-"] == server.asked
    else:
        with pytest.raises(RunError, match=r"broke off after 700,000 of 2,048,000 bytes.*are kept"):
            fetch(server.url, file, SHA256, size=size)
        assert left(file) == [".data.bin.part"]
        server.cut_after, server.ranges = -1, True
        fetch(server.url, file, SHA256, size=size)
        assert server.asked[-1] == "bytes=700000-"
    assert (CONTENT, ["data.bin"]) == (file.read_bytes(), left(file))


def test_a_part_that_is_all_needs_no_network(server: Any, file: Path) -> None:
    """Killed between the last byte and the rename."""
    file.parent.mkdir()
    (file.parent / ".data.bin.part").write_bytes(CONTENT)
    fetch("http://127.0.0.1:9/nobody", file, SHA256)

    assert (CONTENT, ["data.bin"]) == (file.read_bytes(), left(file))


@pytest.mark.parametrize("part", [b"of another file", CONTENT + b"too long"])
def test_a_part_of_something_else_is_thrown_away(part: bytes, server: Any, file: Path) -> None:
    """The hash tells, and the file is fetched from its start."""
    file.parent.mkdir()
    (file.parent / ".data.bin.part").write_bytes(part)
    fetch(server.url, file, SHA256)

    assert (CONTENT, ["data.bin"]) == (file.read_bytes(), left(file))


def test_without_a_hash_nothing_is_gone_on_from(server: Any, file: Path) -> None:
    """A part of who knows what would become the beginning of the file."""
    file.parent.mkdir()
    (file.parent / ".data.bin.part").write_bytes(b"of another file")
    fetch(server.url, file, "")

    assert (CONTENT, [None]) == (file.read_bytes(), server.asked)


def test_another_content_is_not_kept(server: Any, file: Path) -> None:
    """Said with both hashes, after one attempt: the server would give the same again."""
    server.content = CONTENT[:-1] + b"?"
    actual = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(RunError, match=f"has the SHA-256 {actual}, but {SHA256} is asked for: it is not kept"):
        fetch(server.url, file, SHA256)
    assert ([], 1) == (left(file), server.answers)


@pytest.mark.parametrize("says_length", [True, False])
def test_more_than_said_is_not_taken(says_length: bool, server: Any, file: Path) -> None:
    """Neither announced nor unannounced."""
    server.says_length = says_length
    with pytest.raises(RunError, match=r"2,048,000 bytes, and at most 1,000|more than the 1,000 bytes that are taken"):
        fetch(server.url, file, SHA256, size=1000)
    assert ([], 1) == (left(file), server.answers)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_a_redirect_out_of_http_is_refused(target: str, server: Any, file: Path) -> None:
    """Whatever urllib could open."""
    server.redirect = target
    with pytest.raises(RunError, match=r"redirects from http to ftp|Redirection to url .* is not allowed"):
        fetch(server.url, file, SHA256)
    assert left(file) == []


def test_from_https_to_http_is_refused() -> None:
    """A redirect that gives up the encryption."""
    request = download.urllib.request.Request("https://example.org/a")
    with pytest.raises(download._RefusedDownload, match="from https to http"):
        download._Redirects().redirect_request(request, None, 302, "", {}, "http://example.org/a")


def test_other_schemes_are_not_opened(tmp_path: Path) -> None:
    """Also where the address itself has one."""
    (tmp_path / "source").write_bytes(CONTENT)
    with pytest.raises(RunError, match="is neither http nor https"):
        fetch(f"file://{tmp_path}/source", tmp_path / "target", SHA256)


def test_mirrors(server: Any, file: Path) -> None:
    """The second address where the first refuses; what cannot change is not asked for twice."""
    fetch(["http://127.0.0.1:9/nobody", server.url], file, SHA256)
    assert CONTENT == file.read_bytes()
    file.unlink()
    server.status, server.answers = 404, 0
    with pytest.raises(RunError, match=r"answers 404 Not Found.*bring it from another one \(SHA-256"):
        fetch(server.url, file, SHA256)
    assert server.answers == 1
    server.status, server.answers = 503, 0
    with pytest.raises(RunError, match="answers 503"):
        fetch(server.url, file, SHA256)
    assert server.answers == download.ATTEMPTS


def test_a_file_with_another_content_is_not_written_over(server: Any, file: Path) -> None:
    """It is the user's."""
    file.parent.mkdir()
    file.write_text("mine")
    with pytest.raises(RunError, match="move it away"):
        fetch(server.url, file, SHA256)
    assert (b"mine", 0) == (file.read_bytes(), server.answers)


def _fetch(url: str, file: Path, results: Any) -> None:
    results.put(fetch(url, file, SHA256))


def test_two_processes_download_once(server: Any, file: Path) -> None:
    """The second waits for the first, and has what that brought."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch, args=(server.url, file, results)) for _ in range(4)]
    for process in processes:
        process.start()
    brought = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()

    assert (1, 1, ["data.bin"]) == (sum(brought), server.answers, left(file))


def test_an_archive_is_unpacked_once(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the folder is there, nothing is asked for, and the archive need not be there any more."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in (("set/a.txt", b"a"), ("set/evil.py", b"print('hello')")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    server.content = buffer.getvalue()
    sha256, file, folder = hashlib.sha256(server.content).hexdigest(), tmp_path / "set.tar.gz", tmp_path / "set"
    for _ in range(2):
        provide(server.url, file, sha256, unpacked=folder)
        file.unlink(missing_ok=True)

    assert (["a.txt"], 1) == ([path.name for path in folder.iterdir()], server.answers)
    assert "left out 1 files that Python could import: set/evil.py" in capsys.readouterr().err


def test_a_run_downloads_its_data(server: Any, runner: Callable[..., Any], tmp_path: Path) -> None:
    """`check` says what will come and fetches nothing; the run fetches it; the next has it."""
    rows = [f"{i % 7},{i % 5},{i % 3}" for i in range(60)]
    server.content = "\n".join(["a,b,kind", *rows]).encode()
    sha256 = hashlib.sha256(server.content).hexdigest()
    words = ["experiment=null", "dataset=table", "dataset.source.path=data/t.csv", "dataset.source.target=kind"]
    words += ["dataset.sample.shape=[2]", "model=mlp", "model.sizes=[2,3]"]
    words += ["train.duration=2st", f"++dataset.downloads.t={{url:'{server.url}',sha256:'{sha256}',to:data/t.csv}}"]
    checked = runner("check", *words)
    assert (0, 0) == (checked.status, server.answers), checked.out
    assert f"{server.url} will be downloaded to data/t.csv" in checked.out
    for _ in range(2):
        ran = runner(*words)
        assert (0, 1) == (ran.status, server.answers), ran.err
    wrong = runner(*words[:-1], words[-1].replace(sha256, "0" * 64))
    assert (1, True) == (wrong.status, "data/t.csv has the SHA-256" in wrong.err)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("{url:'ftp://a/b',sha256:SHA,to:data/x}", "downloads.x.url must match"),
        ("{url:'https://a/b',sha256:abc,to:data/x}", "downloads.x.sha256 must match"),
        ("{url:'https://a/b',to:data/x}", "downloads.x.sha256 must be given"),
        ("{url:'https://a/b',sha256:SHA,to:x}", "downloads.x.to must lie in a folder for data"),
        ("{url:'https://a/b',sha256:SHA,to:.git/hooks}", "downloads.x.to must lie in a folder for data"),
        ("{url:'https://a/b',sha256:SHA,to:data/.x/y}", "downloads.x.to must lie in a folder for data"),
        ("{url:'https://a/b',sha256:SHA,to:../x/y}", "downloads.x.to must lie below the working directory"),
        ("{url:'https://a/b',sha256:SHA,to:/usr/x/y}", "downloads.x.to must lie below the working directory"),
        ("{url:'https://a/b',sha256:SHA,to:data/x.py}", "downloads.x.to must be no file that Python could import"),
        ("{url:'https://a/b',sha256:SHA,to:data/x,unpack:y}", "downloads.x.unpack must lie in a folder for data"),
        ("{url:'https://a/b',sha256:SHA,to:data/x,unpack:data/x}", "downloads.x.unpack is the place of `dataset.dow"),
        ("{url:'https://a/b',sha256:SHA,to:data/x,size_limit:2}", "downloads.x.size_limit has no effect without"),
        ("{url:'https://a/b',sha256:SHA,to:data/x,folder:y}", "downloads.x.folder is not a key"),
    ],
)
def test_wrong_downloads_are_found_before_the_run(node: str, message: str, runner: Callable[..., Any]) -> None:
    """A config may come from a stranger, so data goes to places for data."""
    ran = runner("check", f"++dataset.downloads.x={node.replace('SHA', repr('0' * 64))}")

    assert (2, True) == (ran.status, message in ran.out), ran.out


def test_a_folder_named_on_the_command_line_may_be_elsewhere(runner: Callable[..., Any], tmp_path: Path) -> None:
    """As for code: what lies outside the working directory is trusted there, and never in a config."""
    shared = tmp_path.parent / "shared"
    shared.mkdir(exist_ok=True)
    node = f"++dataset.downloads.x={{url:'https://a/b',sha256:'{'0' * 64}',to:{shared}/set/x}}"

    assert 2 == runner("check", node).status
    assert 0 == runner("check", node, "--trust", f"{shared}/").status


def test_a_download_lies_where_no_program_looks_and_no_link_leads_away(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from runner.config.check.places import find_misplaced

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "project" / "venv" / "lib").mkdir(parents=True)
    (tmp_path / "project" / "venv" / "pyvenv.cfg").touch()
    (tmp_path / "project" / "data").mkdir()
    (tmp_path / "project" / "data" / "away").symlink_to(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "project")

    def refused(place, key="to", trust=()):
        node = SimpleNamespace(**{"to": "data/x.bin", "unpack": None} | {key: place})
        config = SimpleNamespace(dataset=SimpleNamespace(downloads={"a": node}), log=SimpleNamespace(to={}))
        return [mistake.key for mistake in find_misplaced(config, trust)]

    wrong = [
        "venv/lib/x.bin",
        "conf/model/x.yaml",
        "data/x.pth",
        "data/Makefile",
        "data/run.sh",
        "joblib/x.bin",
        "data/x.py",
    ]
    wrong += [
        "data/away/x.bin",
        "../x.bin",
        "data/../x.bin",
        ".git/hooks/x",
        "x.bin",
        "a/site-packages/x.bin",
        "/etc/x.bin",
    ]
    assert [place for place in wrong if not refused(place)] == []
    assert refused("data/away/y", "unpack") == ["dataset.downloads.a.unpack"]
    assert refused("data/away/x.bin", trust=(f"{tmp_path}/mine/",)) == []
    right = [
        "data/x.bin",
        "data/a/b/x.tar.gz",
        "images/x.zip",
        "data/weights.pt",
        "data/table.yaml",
        "datasets_of_mine/x.csv",
    ]
    assert [place for place in right if refused(place)] == []


@pytest.mark.parametrize("left", ["link", "pipe", "link that leads nowhere"])
def test_nothing_is_written_through_what_lies_in_the_place_of_a_download(left: str, server: Any, file: Path) -> None:
    """A folder for data may come with a stranger's archive, and so may what is in it."""
    mine, part = file.parent.parent / "mine", file.with_name(f".{file.name}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(b"mine")
    if left == "link":
        part.symlink_to(mine)
    elif left == "pipe":
        os.mkfifo(part)
    else:
        file.symlink_to(file.parent.parent / "nowhere")
    with pytest.raises(RunError, match=re.escape(file.name)):
        fetch(server.url, file, SHA256)

    assert (mine.read_bytes(), (file.parent.parent / "nowhere").exists()) == (b"mine", False)


def test_a_pipe_in_the_place_of_a_download_is_no_file_to_verify(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(file)
    with pytest.raises(RunError, match="is no regular file"):
        fetch("http://localhost/x", file, SHA256)
