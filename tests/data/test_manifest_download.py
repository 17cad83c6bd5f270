"""A download that breaks off continues where it stopped, whatever the server does, and the lock file keeps the result."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tqdm import tqdm
from typer.testing import CliRunner

from transvert.cli import app
from transvert.data import cache, download, manifest
from transvert.data.manifest_schema import Archive, DataFile, Manifest
from transvert.io import InputError

BLOCK = 2**16  # what is written at once
BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one body on a free port of this machine, and hangs up early when told to.

    Attributes:
        pieces: how many bytes each answer may hold, one after the other; all are whole when the list is empty.
        ranges: whether a part of the file can be asked for.
        version: the ETag.
        asked: the range of each request, "" for the whole file.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.pieces, self.ranges, self.version = BODY, [], True, '"1"'
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/scan.bin"

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no error here."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()

    def do_GET(self) -> None:
        if self.path == "/absent":
            self.send_error(404)
            return
        asked = self.headers.get("Range", "")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-") or 0)
        same = self.headers.get("If-Range", self.server.version) == self.server.version
        start = start if self.server.ranges and same else 0
        total = len(self.server.body)
        if start > total:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(total - start))
        self.send_header("ETag", self.server.version)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        piece = self.server.pieces.pop(0) if self.server.pieces else total
        self.wfile.write(self.server.body[start : start + piece])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRANSVERT_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "scan.bin.part"


def bring(server: Server, part: Path) -> tqdm:
    with tqdm(total=len(BODY), file=io.StringIO()) as bar:
        download.download(server.url, part, bar)
    return bar


def test_a_connection_that_breaks_off_is_continued_at_once(server: Server, part: Path) -> None:
    server.pieces = [2 * BLOCK, BLOCK + 100]
    bring(server, part)
    assert part.read_bytes() == BODY
    assert server.asked == ["", "bytes=131072-", "bytes=196608-"]


def test_the_next_run_continues_where_the_last_one_stopped(server: Server, part: Path) -> None:
    server.pieces = [2 * BLOCK, 0]
    with pytest.raises(
        InputError, match=r"scan.bin could not be .*; 0.1 MB have come and are kept, so run it again to"
    ):
        bring(server, part)
    assert part.stat().st_size == 2 * BLOCK
    assert bring(server, part).n == len(BODY), "the bar counts what was there already"
    assert part.read_bytes() == BODY and server.asked[-1] == "bytes=131072-"
    # Killed after the last byte and before the file was moved: nothing is left to ask for.
    bring(server, part)
    assert part.read_bytes() == BODY and len(server.asked) == 3


def test_a_server_that_cannot_continue_starts_again(server: Server, part: Path) -> None:
    server.ranges, server.pieces = False, [2 * BLOCK]
    assert bring(server, part).n == len(BODY)
    assert part.read_bytes() == BODY and server.asked == ["", "bytes=131072-"]


def test_two_versions_are_never_joined(server: Server, part: Path) -> None:
    server.pieces = [2 * BLOCK, 0]
    with pytest.raises(InputError, match="run it again to continue"):
        bring(server, part)
    server.body, server.version = BODY[::-1], '"2"'
    bring(server, part)
    assert part.read_bytes() == BODY[::-1]


def test_a_server_whose_file_has_shrunk(server: Server, part: Path) -> None:
    server.pieces = [2 * BLOCK, 0]
    with pytest.raises(InputError):
        bring(server, part)
    server.body = BODY[:50_000]
    with pytest.raises(InputError, match=r"could not be downloaded \(status 416\); check the network"):
        bring(server, part)
    bring(server, part)
    assert part.read_bytes() == BODY[:50_000]


def test_a_full_disk_keeps_what_has_come(server: Server, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(download.CallbackIOWrapper):
        def __init__(self, callback, stream, method):
            super().__init__(lambda n: None, stream, method)
            write, left = stream.write, [3]

            def fill(data):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(data)

            self.wrapper_setattr("write", fill)

    with monkeypatch.context() as changed:
        changed.setattr(download, "CallbackIOWrapper", Full)
        with pytest.raises(
            InputError, match="^The disk of .* is full; make room, or let TRANSVERT_CACHE name a folder"
        ):
            bring(server, part)
    assert 0 < part.stat().st_size < len(BODY)
    bring(server, part)
    assert part.read_bytes() == BODY


def test_what_the_server_does_not_have(server: Server, part: Path) -> None:
    with (
        pytest.raises(InputError, match=r"/absent could not be downloaded \(status 404\).*has the file\.$"),
        tqdm(disable=True) as bar,
    ):
        download.download(server.url.replace("scan.bin", "absent"), part, bar)
    assert not part.exists()


# Through a manifest


def set_of(server: Server, sha256: str = "", size: int = 0) -> Manifest:
    """Built by hand: the loader insists on https."""
    file = DataFile("surface", "someone", sha256, size, "CC0", server.url, level=20)
    return Manifest("web", "A set on the web", "1", "CC0", "Nobody, 2020.", "Free.", (file,))


def test_fetch_tells_licence_and_size_then_continues(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "load_manifest", lambda name: set_of(server))
    server.pieces = [2 * BLOCK, 0]
    stopped = CliRunner().invoke(app, ["fetch", "web"])
    assert isinstance(stopped.exception, InputError) and "run it again" in str(stopped.exception)
    assert stopped.stdout.startswith(
        "A set on the web\nLicence: CC0\nAccess: Free.\nCite: Nobody, 2020.\nSize: 0.5 MB in"
    )
    done = CliRunner().invoke(app, ["fetch", "web"])
    assert done.exit_code == 0, done.output
    assert server.asked == ["", "bytes=131072-", "bytes=131072-"]
    (subject,) = manifest.fetch_subjects(set_of(server), progress=False)
    assert subject.surfaces[20].read_bytes() == BODY and len(server.asked) == 3
    assert [path.name for path in subject.surfaces[20].parent.iterdir()] == [subject.surfaces[20].name]


def test_sizes_in_words(server: Server) -> None:
    assert manifest.told_size(set_of(server, size=10)) == "0.0 MB in 1 file"
    archives = tuple(Archive(server.url.replace("scan", name), bytes=size) for name, size in (("a", 12**9), ("b", 0)))
    found = Manifest("web", "-", "1", "-", "-", "-", archives=archives)
    assert manifest.told_size(found) == "5.2 GB in 2 archives", "the server is asked for what the manifest lacks"
    server.shutdown()
    server.server_close()
    assert manifest.told_size(found) == "5.2 GB in 2 archives, 1 of them of unknown size"
    assert manifest.told_size(set_of(server)) == "nobody states it beforehand; 1 file"


def test_a_wrong_download_leaves_nothing_to_continue_from(server: Server) -> None:
    for found in (set_of(server, "0" * 64), set_of(server, size=len(BODY) + 1)):
        with pytest.raises(
            InputError, match="^The download of .* is not the file that the manifest describes: its SHA-256"
        ):
            manifest.fetch_subjects(found, progress=False)
        assert not [path for path in (cache.cache_folder() / "web").rglob("*") if path.is_file()]
    manifest.fetch_subjects(set_of(server), progress=False)
    lock = json.loads(cache.lock_path("web").read_text(encoding="utf-8"))
    assert lock["files"][server.url]["sha256"] == SHA256


def test_an_archive_is_held_to_its_published_md5(server: Server) -> None:
    layout = manifest.load_manifest("totalsegmentator").layout
    right = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
    for md5, sentence in (
        (right[::-1], f"its SHA-256 is {SHA256}, not one of the MD5"),
        (right, "is damaged or no zip"),
    ):
        found = Manifest("web", "-", "1", "-", "-", "-", archives=(Archive(server.url, md5=md5),), layout=layout)
        with pytest.raises(InputError, match=sentence):
            manifest.fetch_subjects(found, progress=False)


def test_a_set_that_the_disk_has_no_room_for(server: Server) -> None:
    with pytest.raises(InputError, match=r"web takes 1000000000.0 GB, and the disk of .* GB left; make room"):
        manifest.fetch_subjects(set_of(server, size=10**18), progress=False)
    assert server.asked == []
