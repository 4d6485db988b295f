"""Downloads: against a real server on this machine that serves well, breaks off, stalls, and lies."""

import gzip
import hashlib
import json
import threading
from collections import namedtuple
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from aeft_lib.data.prepare import download as module
from aeft_lib.data.prepare.download import Archive, download, mismatch, take

BODY = np.random.default_rng(0).bytes(20_000)
OTHER = np.random.default_rng(1).bytes(20_000)
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
NAME, SIZE = "data.tar", len(BODY)


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's function for this path says."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else None
        self.server.seen.append((self.path, self.start, self.headers.get("If-Range")))
        with suppress(OSError):  # the client has gone
            self.server.answers[self.path](self)

    def head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, body):
        self.server.sent += len(body)
        self.wfile.write(body)

    def begin(self, body=BODY, **headers):
        """Head of a good answer, 200 or 206; returns the bytes that are to follow."""
        rest = body[self.start or 0 :]
        if self.start is not None:
            headers.setdefault("Content_Range", f"bytes {self.start}-{len(body) - 1}/{len(body)}")
        self.head(200 if self.start is None else 206, **{"Content_Length": len(rest), **headers})
        return rest

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch):
    """``answers``: path -> function of a handler.  ``seen``: (path, first byte asked for, If-Range).  ``sent``: bytes."""
    monkeypatch.setenv("AEFT_QUIET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "CHUNK", 1000)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.block_on_close, httpd.answers, httpd.seen, httpd.sent = False, {}, [], 0
    httpd.released = threading.Event()
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield httpd
    httpd.released.set()
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def get(server, tmp_path):
    """Download from mirrors that answer like this, one function a mirror."""

    def run(*answers, size=SIZE, checksum=MD5, **options):
        server.answers.update({f"/{i}": answer for i, answer in enumerate(answers)})
        return download(archive(server, len(answers), size, checksum), tmp_path, **{"timeout": 5.0, "wait": 0.001, **options})

    return run


def archive(server, mirrors=1, size=SIZE, checksum=MD5):
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{i}" for i in range(mirrors))
    return Archive(NAME, urls, size, checksum)


def leave_part(folder: Path, content: bytes, server, version='"v1"', source="/0"):
    """A part as a killed download leaves it."""
    (folder / f"{NAME}.part").write_bytes(content)
    record = {"sources": [f"http://127.0.0.1:{server.server_port}{source}"], "version": version}
    (folder / f"{NAME}.part.json").write_text(json.dumps(record))


def left(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.endswith(".lock")}


# --- how servers behave ----------------------------------------------------------------------------------------------


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


def breaks_after(count, begin=Handler.begin):
    """So many bytes an answer, then the connection is closed."""
    return lambda handler: handler.send(begin(handler)[:count])


def stalls_after(count):
    def answer(handler):
        handler.send(handler.begin()[:count])
        handler.server.released.wait(5)

    return answer


def status(code):
    return lambda handler: handler.head(code, Content_Length=0)


def once(first, then=well):
    """One answer, from then on the other."""
    answers = iter([first])
    return lambda handler: next(answers, then)(handler)


# --- what comes to a good end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [well, without_ranges, chunked, without_length])
@pytest.mark.parametrize(("size", "checksum"), [(SIZE, MD5), (0, MD5), (SIZE, "")])
def test_a_good_server_is_asked_once(get, server, tmp_path, answer, size, checksum):
    assert get(answer, size=size, checksum=checksum).read_bytes() == BODY
    assert left(tmp_path) == {NAME}
    assert server.seen == [("/0", None, None)]


@pytest.mark.parametrize("answer", [well, chunked])
def test_without_size_and_checksum_the_server_must_say_where_it_ends(get, answer):
    assert get(answer, size=0, checksum="").read_bytes() == BODY


def test_what_is_there_and_whole_is_not_fetched(get, server, tmp_path):
    (tmp_path / NAME).write_bytes(BODY)
    assert get(well) == tmp_path / NAME
    assert not server.seen


def test_a_broken_connection_is_taken_up_where_it_broke(get, server):
    assert get(breaks_after(3000), attempts=1).read_bytes() == BODY  # each attempt brings something, so one is enough
    assert [start for _, start, _ in server.seen] == [None, 3000, 6000, 9000, 12000, 15000, 18000]
    assert server.sent == SIZE  # nothing twice


def test_breaks_that_come_later_each_time_with_the_version_that_was_begun(get, server):
    counts = iter([1000, 4000, 9000, 20_000])
    assert get(lambda handler: handler.send(handler.begin(ETag='"v1"')[: next(counts)])).read_bytes() == BODY
    assert [seen[1:] for seen in server.seen] == [(None, None), (1000, '"v1"'), (5000, '"v1"'), (14000, '"v1"')]


@pytest.mark.parametrize("headers", [{"Last_Modified": "Fri, 11 May 2012 10:00:00 GMT"}, {"ETag": 'W/"v1"'}])
def test_a_date_is_a_version_too_a_weak_etag_is_none(get, server, headers):
    get(once(lambda handler: handler.send(handler.begin(**headers)[:5000])))
    assert server.seen[1] == ("/0", 5000, headers.get("Last_Modified"))


def test_a_stall_is_an_end(get, server):
    assert get(once(stalls_after(7500)), timeout=0.3).read_bytes() == BODY
    assert server.seen[1][1] == 7000  # whole chunks count


def test_a_stall_before_the_first_byte_leads_to_the_next_mirror(get, server):
    assert get(stalls_after(0), well, timeout=0.3).read_bytes() == BODY
    assert [path for path, *_ in server.seen] == ["/0", "/1"]


def test_a_killed_download_goes_on(get, server, tmp_path):
    leave_part(tmp_path, BODY[:15_000], server)
    assert get(well).read_bytes() == BODY
    assert (server.seen, server.sent) == ([("/0", 15_000, '"v1"')], 5000)


def test_a_complete_part_is_verified_and_not_fetched(get, server, tmp_path):
    leave_part(tmp_path, BODY, server)
    assert get(well).read_bytes() == BODY
    assert not server.seen


def test_another_mirror_goes_on_where_a_checksum_will_tell(get, server, tmp_path):
    leave_part(tmp_path, BODY[:15_000], server)
    assert get(status(404), well).read_bytes() == BODY
    assert server.seen[-1] == ("/1", 15_000, None)


def test_another_mirror_starts_again_where_no_checksum_will_tell(get, server, tmp_path):
    leave_part(tmp_path, OTHER[:15_000], server)
    assert get(status(404), well, checksum="").read_bytes() == BODY
    assert server.seen[-1] == ("/1", None, None)


def test_a_server_that_ignores_the_range_starts_again(get, server, tmp_path):
    leave_part(tmp_path, BODY[:15_000], server)
    assert get(without_ranges).read_bytes() == BODY
    assert (server.seen[0][1], server.sent) == (15_000, SIZE)


def test_a_new_version_on_the_server_starts_again(get, server, tmp_path):
    leave_part(tmp_path, OTHER[:15_000], server, version='"v0"')

    def keeps_if_range(handler):
        if handler.headers.get("If-Range") != '"v1"':
            handler.start = None
        well(handler)

    assert get(keeps_if_range, checksum="").read_bytes() == BODY


@pytest.mark.parametrize("text", ["bytes 14000-19999/20000", "bytes */20000", "nonsense"])
def test_a_wrong_content_range_starts_again(get, server, tmp_path, text):
    leave_part(tmp_path, BODY[:15_000], server)
    assert get(once(lambda handler: handler.send(handler.begin(Content_Range=text)))).read_bytes() == BODY
    assert [start for _, start, _ in server.seen] == [15_000, None]


def test_nothing_left_to_send_is_an_end_where_the_size_says_so(get, server, tmp_path):
    leave_part(tmp_path, BODY, server)
    answer = once(lambda handler: handler.head(416, Content_Range="bytes */20000", Content_Length=0))
    assert get(answer, size=0).read_bytes() == BODY
    assert len(server.seen) == 1


@pytest.mark.parametrize("headers", [{}, {"Content_Range": "bytes */14000"}])
def test_nothing_left_to_send_otherwise_starts_again(get, server, tmp_path, headers):
    leave_part(tmp_path, BODY[:15_000], server)
    assert get(once(lambda handler: handler.head(416, Content_Length=0, **headers))).read_bytes() == BODY
    assert [start for _, start, _ in server.seen] == [15_000, None]


@pytest.mark.parametrize("record", [None, "", "[]", '{"sources": 3}', '{"version": "x"}'])
def test_a_part_without_its_record_is_worth_nothing(get, server, tmp_path, record):
    (tmp_path / f"{NAME}.part").write_bytes(OTHER[:15_000])
    if record is not None:
        (tmp_path / f"{NAME}.part.json").write_text(record)
    assert get(well, checksum="").read_bytes() == BODY
    assert server.seen == [("/0", None, None)]


def test_a_part_that_is_too_long_is_worth_nothing(get, server, tmp_path):
    leave_part(tmp_path, BODY + b"more", server)
    assert get(well).read_bytes() == BODY


def test_a_tgz_that_is_labelled_as_encoded_stays_a_tgz(get):
    packed = gzip.compress(BODY)
    checksum = f"md5:{hashlib.md5(packed).hexdigest()}"
    file = get(
        lambda handler: handler.send(handler.begin(packed, Content_Encoding="x-gzip")), size=len(packed), checksum=checksum
    )
    assert file.read_bytes() == packed


def test_where_a_redirect_leads_the_range_goes_too(get, server, tmp_path):
    leave_part(tmp_path, BODY[:15_000], server)
    server.answers["/moved"] = well
    assert get(lambda handler: handler.head(301, Location="/moved", Content_Length=0)).read_bytes() == BODY
    assert server.seen == [("/0", 15_000, '"v1"'), ("/moved", 15_000, '"v1"')]


@pytest.mark.parametrize("first", [status(404), status(410), status(500), status(503)])
def test_an_error_leads_to_the_next_mirror(get, server, first):
    assert get(first, well).read_bytes() == BODY
    assert [path for path, *_ in server.seen] == ["/0", "/1"]


def test_an_overloaded_server_is_asked_again(get, server):
    assert get(once(status(503))).read_bytes() == BODY


def lies(size):
    return lambda handler: handler.send(handler.begin(BODY.ljust(size, b"+")[:size]))


def wrong_bytes(handler):
    handler.send(handler.begin(OTHER))


def web_page(handler):
    handler.head(200, Content_Type="text/html; charset=utf-8")
    handler.send(b"<html>Please log in to this network</html>")


REFUSED = [
    (lies(19_999), "announces 19999 bytes, but 20000 are published"),
    (lies(20_001), "announces 20001 bytes, but 20000 are published"),
    (lambda handler: without_length(handler, BODY + b"+"), "sends more than the published 20000 bytes"),
    (lambda handler: chunked(handler, BODY + b"+" * 5000), "sends more than the published 20000 bytes"),
    (wrong_bytes, f"expected md5 {MD5[4:]}, found {hashlib.md5(OTHER).hexdigest()}; what was fetched is deleted"),
    (web_page, "answers with a web page instead of the archive"),
    (status(404), "answers 404 Not Found"),
    (status(206), "answers 206 Partial Content"),
    (status(204), "answers 204 No Content"),
]


@pytest.mark.parametrize(("answer", "text"), REFUSED, ids=[text[:30] for _, text in REFUSED])
def test_a_mirror_of_no_use_is_told_and_left(get, server, tmp_path, answer, text):
    with pytest.raises(RuntimeError) as error:
        get(answer)
    assert f"data.tar was not fetched ({archive(server).urls[0]}: {text}); fetch it by hand and" in str(error.value)
    assert str(error.value).endswith("give it with --from FILE")
    assert (len(server.seen), left(tmp_path)) == (1, set())
    assert get(answer, well).read_bytes() == BODY


def test_a_range_of_a_file_of_another_size_is_refused(get, server, tmp_path):
    leave_part(tmp_path, BODY[:15_000], server)
    with pytest.raises(RuntimeError, match=r"announces 20005 bytes, but 20000 are published\); 15000 bytes are kept, run the"):
        get(lambda handler: handler.send(handler.begin(BODY + b"+" * 5)))


def test_more_than_published_is_stopped_at_once(get, server):
    def endless(handler):
        handler.head(200)
        while not handler.server.released.is_set():
            handler.send(bytes(1000))

    with pytest.raises(RuntimeError, match="sends more than the published 20000 bytes"):
        get(endless)


def test_parts_of_two_mirrors_that_do_not_fit_are_fetched_again_from_one(get, server, tmp_path):
    leave_part(tmp_path, OTHER[:15_000], server, source="/elsewhere")
    assert get(well).read_bytes() == BODY
    assert [start for _, start, _ in server.seen] == [15_000, None]


def test_a_silent_server_without_any_published_number_is_refused(get, tmp_path):
    with pytest.raises(RuntimeError, match="says no length, and neither size nor checksum is published"):
        get(without_length, size=0, checksum="")
    assert not left(tmp_path)


@pytest.mark.parametrize(
    ("answer", "text"),
    [(stalls_after(0), "timed out"), (status(500), "answers 500"), (lambda handler: None, "the connection failed")],
    ids=["stall", "500", "nothing"],
)
def test_attempts_that_bring_nothing_are_counted(get, server, tmp_path, answer, text):
    with pytest.raises(RuntimeError, match=text):
        get(answer, attempts=2, timeout=0.2)
    assert (len(server.seen), (tmp_path / NAME).exists()) == (2, False)


def test_the_same_bytes_again_and_again_bring_nothing(get, server, tmp_path):
    """A server without ranges that always breaks off at the same place would keep us for ever."""
    with pytest.raises(RuntimeError, match=r"; 5000 bytes are kept, run the command again to go on, or fetch it by hand"):
        get(lambda handler: handler.send((setattr(handler, "start", None), handler.begin())[1][:5000]), attempts=3)
    assert len(server.seen) == 4  # the first one brought something
    assert left(tmp_path) == {f"{NAME}.part", f"{NAME}.part.json"}


def test_a_truncated_body_without_length_is_not_whole(get, tmp_path):
    with pytest.raises(RuntimeError, match="it ended after 5000 of 20000 bytes"):
        get(lambda handler: without_length(handler, BODY[:5000]), attempts=2)
    assert not (tmp_path / NAME).exists()


def test_waits_grow_and_end(get, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    with pytest.raises(RuntimeError):
        get(status(500), attempts=9, wait=1.0)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_where_nobody_listens(tmp_path):
    with pytest.raises(RuntimeError, match=r"\(http://127\.0\.0\.1:9/x: the connection failed \(.*refused"):
        download(Archive(NAME, ("http://127.0.0.1:9/x",)), tmp_path, attempts=1, timeout=0.2)


def test_a_full_disk_is_told_before(get, server, tmp_path, monkeypatch):
    leave_part(tmp_path, BODY[:15_000], server)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(4000))
    with pytest.raises(RuntimeError, match=r"1000 bytes too few are free for data\.tar \(20000 bytes\)"):
        get(well)
    assert not server.seen


def test_two_processes_do_not_write_the_same_part(get, server, tmp_path):
    with (
        FileLock(tmp_path / f".{NAME}.lock"),
        pytest.raises(RuntimeError, match="another process is fetching it"),
    ):
        get(well)


def test_another_file_of_this_name_is_left_alone(get, server, tmp_path):
    (tmp_path / NAME).write_bytes(OTHER)
    with pytest.raises(
        ValueError, match=rf"data\.tar is not the published data\.tar: expected md5 {MD5[4:]}, found .*; move it"
    ):
        get(well)
    assert (tmp_path / NAME).read_bytes() == OTHER


def test_an_interrupt_keeps_the_part(get, server, tmp_path, monkeypatch):
    def interrupted(response, *options, **more):
        yield BODY[:3000]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.urllib3.HTTPResponse, "stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(well)
    assert (tmp_path / f"{NAME}.part").read_bytes() == BODY[:3000]
    assert get(well).read_bytes() == BODY
    assert server.seen[-1] == ("/0", 3000, '"v1"')


# --- local files -----------------------------------------------------------------------------------------------------


def test_a_local_file_is_verified(tmp_path):
    published = Archive(NAME, ("http://127.0.0.1:9",), SIZE, f"sha256:{hashlib.sha256(BODY).hexdigest()}")
    file = tmp_path / "a file.tar"
    with pytest.raises(ValueError, match=r"no file .*a file\.tar, which is to be data\.tar"):
        take(file, published)
    file.write_bytes(BODY)
    assert take(file, published) == file
    file.write_bytes(BODY[:-1])
    with pytest.raises(ValueError, match=r"a file\.tar is not the published data\.tar: expected 20000 bytes, found 19999"):
        take(file, published)
    file.write_bytes(OTHER)
    assert "expected sha256" in mismatch(file, published)
    assert not mismatch(file, Archive(NAME, ("http://127.0.0.1:9",)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"checksum": "crc:1"},
        {"checksum": "md5:12"},
        {"urls": ()},
        {"bytes": -1},
        {"name": "../x"},
        {"name": ""},
        {"name": ".."},
    ],
)
def test_archives_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"an archive needs a plain name|a checksum is"):
        Archive(**{"name": NAME, "urls": ("http://127.0.0.1:9",), **wrong})
