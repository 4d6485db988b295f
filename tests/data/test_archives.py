"""Archives: downloads from a server that breaks off, stalls and lies; archives that attack."""

import gzip
import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from collections import namedtuple
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from aeft_lib.data.prepare import archives as module
from aeft_lib.data.prepare.archives import Archive, download, take, unpack

BODY = np.random.default_rng(0).bytes(20_000)
OTHER = np.random.default_rng(1).bytes(20_000)
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
NAME, SIZE = "data.tar", len(BODY)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("AEFT_QUIET", "1")


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's function for this path tells it."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else None
        self.server.requests.append((self.path, self.start, self.headers.get("If-Range")))
        with suppress(OSError):  # the client has gone
            self.server.answers[self.path](self)

    def head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def begin(self, body=BODY, **headers):
        """Head of a good answer, 200 or 206; returns the bytes that are to follow."""
        rest = body[self.start or 0 :]
        if self.start is not None:
            span = f"bytes {self.start}-{len(body) - 1}/{len(body)}"
            headers = {"Content_Range": span} | headers
        self.head(200 if self.start is None else 206, **{"Content_Length": len(rest), **headers})
        return rest

    def send(self, body):
        self.server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch):
    """answers: path -> function of a handler.  requests: (path, first byte, If-Range)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "CHUNK", 1000)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.block_on_close, httpd.answers, httpd.requests, httpd.sent = False, {}, [], 0
    httpd.released = threading.Event()
    options = {"poll_interval": 0.01}
    threading.Thread(target=httpd.serve_forever, kwargs=options, daemon=True).start()
    yield httpd
    httpd.released.set()
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def get(server, tmp_path):
    """Download from mirrors that answer like this, one function a mirror."""

    def run(*answers, size=SIZE, checksum=MD5, **options):
        server.answers.update({f"/{i}": answer for i, answer in enumerate(answers)})
        urls = tuple(url(server, i) for i in range(len(answers)))
        options = {"timeout": 5.0, "wait": 0.001, **options}
        return download(Archive(NAME, urls, size, checksum), tmp_path, **options)

    return run


def url(server, number=0):
    return f"http://127.0.0.1:{server.server_port}/{number}"


def leave_part(folder: Path, content: bytes, server, version='"v1"', mirror=0):
    """A part as a killed download leaves it."""
    (folder / f"{NAME}.part").write_bytes(content)
    (folder / f"{NAME}.part.version").write_text(f"{url(server, mirror)} {version}")


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# --- how servers behave --------------------------------------------------------------------------


def well(handler):
    handler.send(handler.begin(ETag='"v1"'))


def without_ranges(handler):
    handler.start = None
    handler.send(handler.begin())


def chunked(handler, body=BODY):
    handler.head(200, Transfer_Encoding="chunked")
    handler.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))


def without_length(handler, body=BODY):
    handler.head(200)
    handler.send(body)


def breaks_after(count, **headers):
    """So many bytes an answer, then the connection is closed."""
    return lambda handler: handler.send(handler.begin(**headers)[:count])


def stalls_after(count):
    def answer(handler):
        handler.send(handler.begin()[:count])
        handler.server.released.wait(5)

    return answer


def status(code, **headers):
    return lambda handler: handler.head(code, Content_Length=0, **headers)


def once(first, then=well):
    """One answer, from then on the other."""
    answers = iter([first])
    return lambda handler: next(answers, then)(handler)


# --- downloads that end well ---------------------------------------------------------------------


@pytest.mark.parametrize("answer", [well, without_ranges, chunked, without_length])
def test_a_good_server_is_asked_once(get, server, tmp_path, answer):
    assert get(answer) == tmp_path / NAME
    assert files(tmp_path) == {NAME: BODY}
    assert server.requests == [("/0", None, None)]


def test_an_archive_that_is_there_is_verified_and_not_fetched(get, server, tmp_path):
    (tmp_path / NAME).write_bytes(BODY)
    assert get(well) == tmp_path / NAME
    (tmp_path / NAME).write_bytes(OTHER)
    with pytest.raises(
        ValueError, match=rf"not the published data\.tar: expected {MD5[:3]} .*move it"
    ):
        get(well)
    assert files(tmp_path) == {NAME: OTHER}
    assert not server.requests


def test_a_broken_download_resumes_where_it_broke(get, server):
    assert get(breaks_after(3000), attempts=1).read_bytes() == BODY  # each attempt brings something
    starts = [start for _, start, _ in server.requests]
    assert starts == [None, 3000, 6000, 9000, 12000, 15000, 18000]
    assert server.sent == SIZE  # nothing twice


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"ETag": '"v1"'}, '"v1"'),
        ({"Last_Modified": "Fri, 11 May 2012 10:00:00 GMT"}, "Fri, 11 May 2012 10:00:00 GMT"),
        ({"ETag": 'W/"v1"'}, None),  # a weak one says nothing about bytes
    ],
)
def test_it_resumes_the_version_that_it_began(get, server, headers, version):
    get(once(breaks_after(5000, **headers)))
    assert server.requests[1] == ("/0", 5000, version)


def test_a_stall_is_a_break(get, server):
    assert get(once(stalls_after(7500)), timeout=0.3).read_bytes() == BODY
    assert server.requests[1][1] == 7000  # whole chunks count


def test_a_killed_download_resumes(get, server, tmp_path):
    leave_part(tmp_path, BODY[:15_000], server)
    assert get(well).read_bytes() == BODY
    assert (server.requests, server.sent) == ([("/0", 15_000, '"v1"')], 5000)
    assert files(tmp_path) == {NAME: BODY}


def test_an_interrupt_keeps_the_part(get, server, tmp_path, monkeypatch):
    def interrupted(response, *options, **more):
        yield BODY[:3000]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.urllib3.HTTPResponse, "stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(well)
    assert files(tmp_path)[f"{NAME}.part"] == BODY[:3000]
    assert get(well).read_bytes() == BODY
    assert server.requests[-1] == ("/0", 3000, '"v1"')


def test_a_complete_part_is_verified_and_not_fetched(get, server, tmp_path):
    leave_part(tmp_path, BODY, server)
    assert get(well).read_bytes() == BODY
    assert not server.requests


@pytest.mark.parametrize("part", [OTHER, BODY + b"more", OTHER[:15_000]], ids=len)
def test_a_part_that_is_wrong_is_fetched_again(get, server, tmp_path, part):
    leave_part(tmp_path, part, server)
    (tmp_path / f"{NAME}.part.version").unlink()
    assert get(well).read_bytes() == BODY
    assert server.requests[-1] == ("/0", None, None)


@pytest.mark.parametrize("first", [status(404), status(410), status(500), stalls_after(0)])
def test_a_dead_mirror_leads_to_the_next_which_resumes(get, server, tmp_path, first):
    leave_part(tmp_path, BODY[:15_000], server)
    assert get(first, well, timeout=0.3).read_bytes() == BODY
    assert [(path, start) for path, start, _ in server.requests] == [("/0", 15_000), ("/1", 15_000)]
    assert server.requests[1][2] is None  # the version is the first mirror's


def test_an_overloaded_server_is_asked_again(get, server):
    assert get(once(status(503))).read_bytes() == BODY


def test_a_server_that_ignores_the_range_starts_again(get, server, tmp_path):
    leave_part(tmp_path, BODY[:15_000], server)
    assert get(without_ranges).read_bytes() == BODY
    assert (server.requests[0][1], server.sent) == (15_000, SIZE)


@pytest.mark.parametrize("text", ["bytes 14000-19999/20000", "bytes */20000", "nonsense"])
def test_another_range_than_asked_for_starts_again(get, server, tmp_path, text):
    leave_part(tmp_path, BODY[:15_000], server)
    wrong = once(lambda handler: handler.send(handler.begin(Content_Range=text)))
    assert get(wrong).read_bytes() == BODY
    assert [start for _, start, _ in server.requests] == [15_000, None]


def test_a_tgz_that_is_labelled_as_encoded_stays_a_tgz(get):
    packed = gzip.compress(BODY)
    checksum = f"sha256:{hashlib.sha256(packed).hexdigest()}"
    answer = lambda handler: handler.send(handler.begin(packed, Content_Encoding="x-gzip"))  # noqa: E731
    assert get(answer, size=len(packed), checksum=checksum).read_bytes() == packed


def test_the_range_follows_a_redirect(get, server, tmp_path):
    leave_part(tmp_path, BODY[:15_000], server)
    server.answers["/moved"] = well
    assert get(status(301, Location="/moved")).read_bytes() == BODY
    assert server.requests == [("/0", 15_000, '"v1"'), ("/moved", 15_000, '"v1"')]


# --- downloads that fail -------------------------------------------------------------------------


def web_page(handler):
    handler.head(200, Content_Type="text/html; charset=utf-8")
    handler.send(b"<html>Please log in to this network</html>")


REFUSED = [
    (lambda h: h.send(h.begin(BODY[:-1])), "announces 19999 bytes, but 20000 are published"),
    (lambda h: h.send(h.begin(BODY + b"+")), "announces 20001 bytes, but 20000 are published"),
    (lambda h: without_length(h, BODY + b"+"), "sends more than the published 20000 bytes"),
    (lambda h: chunked(h, BODY + b"+" * 5000), "sends more than the published 20000 bytes"),
    (lambda h: h.send(h.begin(OTHER)), f"expected md5 {MD5[4:]}, got "),
    (web_page, "answers 200 OK text/html"),
    (status(404), "answers 404 Not Found"),
    (status(204), "answers 204 No Content"),
    (status(416), "answers 416 Requested Range Not Satisfiable"),
]


@pytest.mark.parametrize(("answer", "text"), REFUSED, ids=[text[:30] for _, text in REFUSED])
def test_a_mirror_that_offers_something_else_is_left(get, server, tmp_path, answer, text):
    with pytest.raises(RuntimeError) as error:
        get(answer)
    assert f"data.tar was not fetched ({url(server)}: {text}" in str(error.value)
    assert str(error.value).endswith("give it with --from FILE")
    assert len(server.requests) == 1
    assert NAME not in files(tmp_path)
    assert get(answer, well).read_bytes() == BODY


def test_a_file_without_end_is_stopped_at_the_published_size(get):
    def endless(handler):
        handler.head(200)
        while not handler.server.released.is_set():
            handler.send(bytes(1000))

    with pytest.raises(RuntimeError, match="sends more than the published 20000 bytes"):
        get(endless)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (stalls_after(0), "timed out"),
        (status(500), "500 Server Error"),
        (lambda handler: None, "Connection aborted"),
    ],
    ids=["stall", "500", "nothing"],
)
def test_attempts_that_bring_nothing_are_counted(get, server, tmp_path, answer, text):
    with pytest.raises(RuntimeError, match=text):
        get(answer, attempts=2, timeout=0.2)
    assert len(server.requests) == 2
    assert NAME not in files(tmp_path)


def test_the_same_bytes_again_and_again_bring_nothing(get, server, tmp_path):
    """A server without ranges that always breaks off at the same place would keep us for ever."""

    def answer(handler):
        handler.start = None
        handler.send(handler.begin()[:5000])

    with pytest.raises(RuntimeError, match="run the command again to resume, or fetch it by hand"):
        get(answer, attempts=3)
    assert len(server.requests) == 4  # the first one brought something
    assert files(tmp_path)[f"{NAME}.part"] == BODY[:5000]


def test_a_body_that_ends_early_without_length_is_not_whole(get, tmp_path):
    with pytest.raises(RuntimeError, match="ended after 5000 of 20000 bytes"):
        get(lambda handler: without_length(handler, BODY[:5000]), attempts=2)
    assert NAME not in files(tmp_path)


def test_where_nobody_listens(tmp_path):
    dead = Archive(NAME, ("http://127.0.0.1:9/x",), SIZE, MD5)
    with pytest.raises(RuntimeError, match=r"\(http://127\.0\.0\.1:9/x: .*refused"):
        download(dead, tmp_path, attempts=1, timeout=0.2)


def test_a_full_disk_is_found_before(get, server, tmp_path, monkeypatch):
    leave_part(tmp_path, BODY[:15_000], server)
    fill(monkeypatch, free=4000)
    with pytest.raises(RuntimeError, match=r"data\.tar needs 5000 bytes, 4000 are free; make room"):
        get(well)
    assert not server.requests


def fill(monkeypatch, free):
    usage = namedtuple("Usage", "free")(free)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)


def test_an_archive_at_hand_is_verified(tmp_path):
    published = Archive(NAME, ("-",), SIZE, f"sha256:{hashlib.sha256(BODY).hexdigest()}")
    file = tmp_path / "a file.tar"
    with pytest.raises(ValueError, match=r"no file .*a file\.tar, which is to be data\.tar"):
        take(file, published)
    file.write_bytes(BODY)
    assert take(file, published) == file
    text = r"a file\.tar is not the published data\.tar: expected"
    for content, problem in ((BODY[:-1], "20000 bytes, got 19999"), (OTHER, "sha256 .*, got")):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"{text} {problem}.*; move it away and fetch it again"
        ):
            take(file, published)


# --- unpacking -----------------------------------------------------------------------------------

FILES = {
    "a/first.txt": b"first",
    "a/b/second.bin": np.random.default_rng(0).bytes(30_000),
    "empty": b"",
    "a/ümlaut é.txt": b"third",
}
KINDS = ("x.tar", "x.tar.gz", "x.tgz", "x.zip")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "outer" / "root"


def add_to_tar(archive, name: str, content: bytes = b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def packed(file: Path, contents: dict[str, bytes]) -> Path:
    """An archive with these files, and a folder of its own."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/", "")
            for name, content in contents.items():
                archive.writestr(name, content)
        return file
    with tarfile.open(file, "w" if file.suffix == ".tar" else "w:gz") as archive:
        add_to_tar(archive, "a", type=tarfile.DIRTYPE)
        for name, content in contents.items():
            add_to_tar(archive, name, content)
    return file


@pytest.mark.parametrize("name", KINDS)
def test_every_file_is_unpacked(tmp_path, root, name):
    assert unpack(packed(tmp_path / name, FILES), root) == len(FILES)
    assert files(root) == FILES


@pytest.mark.parametrize("name", KINDS)
def test_files_of_the_same_size_are_left_others_are_written(tmp_path, root, name):
    file = packed(tmp_path / name, FILES)
    unpack(file, root)
    (root / "a/first.txt").write_bytes(b"FIRST")
    (root / "a/b/second.bin").write_bytes(b"half")
    (root / "mine.txt").write_bytes(b"mine")
    assert unpack(file, root) == len(FILES)
    assert files(root) == {**FILES, "a/first.txt": b"FIRST", "mine.txt": b"mine"}


@pytest.mark.parametrize("name", KINDS)
def test_a_kill_leaves_no_half_file_and_a_second_call_ends_it(tmp_path, root, name, monkeypatch):
    file, blocks, read = packed(tmp_path / name, FILES), module._blocks, []

    def killed(archive, content):
        read.append(getattr(content.args[0], "name", "") or content.args[0].filename)
        for block in blocks(archive, content):
            if len(read) == 2:
                yield block[:100]
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(module, "_blocks", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack(file, root)
    assert {name for name in files(root) if not name.endswith(".part")} == {"a/first.txt"}
    assert unpack(file, root) == len(FILES)
    assert files(root) == FILES
    assert sum(name.endswith("first.txt") for name in read) == 1


def test_a_full_disk_is_found_before_anything_is_unpacked(tmp_path, root, monkeypatch):
    fill(monkeypatch, free=30_000)
    with pytest.raises(RuntimeError, match=r"x\.tar holds needs 30010 bytes, 30000 are free"):
        unpack(packed(tmp_path / "x.tar", FILES), root)
    assert not files(root)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("member", ["../x", "a/../../x", "..", "a/../../root2/x"])
def test_no_member_leaves_the_folder(tmp_path, root, name, member):
    file = packed(tmp_path / name, {"good.txt": b"good", member: b"bad"})
    with pytest.raises(
        ValueError, match=r"x\.[a-z.]+: damaged or unsafe .*outside.*; fetch it"
    ) as error:
        unpack(file, root)
    assert repr(member) in str(error.value)
    assert [path.name for path in tmp_path.rglob("*")] == [name]


@pytest.mark.parametrize("name", KINDS)
def test_an_absolute_path_stays_below_the_folder(tmp_path, root, name):
    target = tmp_path / "elsewhere" / "x"
    unpack(packed(tmp_path / name, {str(target): b"bad"}), root)
    assert not target.exists()
    assert list(files(root).values()) == [b"bad"]


TYPES = [
    {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    {"type": tarfile.SYMTYPE, "linkname": "../../x"},
    {"type": tarfile.SYMTYPE, "linkname": "good.txt"},
    {"type": tarfile.LNKTYPE, "linkname": "../../x"},
    {"type": tarfile.LNKTYPE, "linkname": "good.txt"},
    {"type": tarfile.CHRTYPE},
    {"type": tarfile.BLKTYPE},
    {"type": tarfile.FIFOTYPE},
]


@pytest.mark.parametrize("fields", TYPES)
def test_links_and_devices_of_a_tar_are_refused(tmp_path, root, fields):
    file = tmp_path / "x.tar"
    with tarfile.open(file, "w") as archive:
        add_to_tar(archive, "good.txt", b"good")
        add_to_tar(archive, "bad", **fields)
    with pytest.raises(ValueError, match=r"x\.tar: damaged or unsafe \(.*'bad' .*; fetch it again"):
        unpack(file, root)
    assert not root.exists()


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_of_a_zip_are_refused(tmp_path, root, mode):
    member = zipfile.ZipInfo("bad")
    member.external_attr = (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("good.txt", b"good")
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(ValueError, match=r"x\.zip: damaged or unsafe \(.*'bad' .*; fetch it again"):
        unpack(tmp_path / "x.zip", root)
    assert not root.exists()


@pytest.mark.parametrize("name", KINDS)
def test_a_link_that_is_there_does_not_lead_out_of_the_folder(tmp_path, root, name):
    (tmp_path / "elsewhere").mkdir()
    root.mkdir(parents=True)
    (root / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"damaged or unsafe \(.*'a.*outside"):
        unpack(packed(tmp_path / name, FILES), root)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_root_itself_may_be_a_link(tmp_path, root):
    (tmp_path / "big disk").mkdir()
    root.parent.mkdir()
    root.symlink_to(tmp_path / "big disk")
    unpack(packed(tmp_path / "x.tar", FILES), root)
    assert files(tmp_path / "big disk") == FILES


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kept", [0, 1, 100, 600, 5_000, 20_000, -100])
def test_an_archive_that_was_cut_off(tmp_path, root, name, kept):
    file = packed(tmp_path / name, FILES)
    content = file.read_bytes().rstrip(b"\0") if name == "x.tar" else file.read_bytes()
    file.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"x\.[a-z.]+: damaged or unsafe \(.*\); fetch it again"):
        unpack(file, root)
    assert not root.exists()


def test_a_damaged_head_in_the_middle_of_a_tar(tmp_path, root):
    file = packed(tmp_path / "x.tar", {"first": b"1", "second": b"2"})
    content = bytearray(file.read_bytes())
    content[1536 + 150] ^= 1  # in the checksum of the second head
    file.write_bytes(content)
    with pytest.raises(ValueError, match="no head of a member at byte 1536"):
        unpack(file, root)


def test_a_damaged_member_of_a_zip_leaves_no_half_file(tmp_path, root):
    file = packed(tmp_path / "x.zip", FILES)
    content = bytearray(file.read_bytes())
    content[15_000] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"x\.zip: damaged or unsafe \(.*second.*\); fetch it again"
    ):
        unpack(file, root)
    assert "a/b/second.bin" not in files(root)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "content",
    [b"", b"no archive" * 100, gzip.compress(b"no tar"), None],
    ids=["empty", "text", "gzip", "missing"],  # gzip holds the time
)
def test_what_is_no_archive(tmp_path, root, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"no archive .*x|x\.[a-z.]+: damaged or unsafe"):
        unpack(tmp_path / name, root)
    assert not root.exists()
