"""Fetches one large archive over HTTP: from several mirrors, going on where an attempt broke off, verified at the end.

What is fetched stands in ``<name>.part``, and where it came from in ``<name>.part.json``; the archive has its name only when
size and checksum are those published.  A part is continued with a Range request.  A server that names a version (ETag,
Last-Modified) is asked for the rest of that version; without one, or from another mirror, the part is continued only where a
checksum will tell in the end.

Dependency choice: ``requests`` is the most used HTTP client of Python and streams with timeouts; ``pooch`` and torchvision's
downloader start again after a break, which for 13 GB is no choice.  Bodies are read undecoded, because servers label a
``.tgz`` as gzip-encoded and would have it unpacked on the way.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

CHUNK = 1 << 16  # bytes; so much is lost at a break
LONGEST_WAIT = 60.0  # seconds


@dataclass(frozen=True)
class Archive:
    """A published file.  urls: mirrors in the order they are tried.  bytes: published size, 0 when unknown.

    checksum: ``md5:<hex>`` or ``sha256:<hex>``, empty when none is known.  unpack_to: folder, relative to the data root.
    """

    name: str
    urls: tuple[str, ...]
    bytes: int = 0
    checksum: str = ""
    unpack_to: str = "."

    def __post_init__(self) -> None:
        if self.checksum and not re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", self.checksum):
            raise ValueError(f"{self.name}: a checksum is md5:<32 hex digits> or sha256:<64>, got {self.checksum!r}")
        if not self.urls or self.bytes < 0 or not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"an archive needs a plain name, a mirror and a size from 0, got {self}")


class Refused(Exception):
    """This mirror is of no use: what it offers is not the archive."""


class Broken(Exception):
    """The attempt failed; another one may go on."""


def download(archive: Archive, folder: Path, *, attempts: int = 5, timeout: float = 30.0, wait: float = 1.0) -> Path:
    """Fetch an archive into a folder, or find it there; returns the file.

    attempts: so many in a row may bring nothing new.  timeout: seconds without a byte.  wait: seconds before the second
    attempt, doubled after each that brought nothing.
    Raises ValueError where the file that is there is another one; RuntimeError where the disk is too full, another process
    fetches the same, or every mirror failed: it says why, and what was expected and found.
    """
    target = folder / archive.name
    if target.exists():
        return take(target, archive)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f".{archive.name}.lock", timeout=0):
            part = _Part(archive, folder)
            _check_space(archive, folder, part.size)
            _fetch(part, attempts, timeout, wait)
            part.file.replace(target)
            part.forget()
    except Timeout as error:
        raise RuntimeError(f"{target}: another process is fetching it; wait for it, or stop it") from error
    return target


def take(file: Path, archive: Archive) -> Path:
    """A file that is said to be the archive.  Raises ValueError where it is missing, or its size or checksum differ."""
    if not file.is_file():
        raise ValueError(f"no file {file}, which is to be {archive.name}")
    if problem := mismatch(file, archive):
        raise ValueError(f"{file} is not the published {archive.name}: {problem}; move it away and fetch it again")
    return file


def mismatch(file: Path, archive: Archive) -> str:
    """What speaks against a file's being the archive: its size or its checksum; empty when nothing does."""
    if archive.bytes and file.stat().st_size != archive.bytes:
        return f"expected {archive.bytes} bytes, found {file.stat().st_size}"
    if not archive.checksum:
        return ""
    kind, expected = archive.checksum.split(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return "" if digest.hexdigest() == expected else f"expected {kind} {expected}, found {digest.hexdigest()}"


class _Part:
    """What has been fetched of an archive, and from where."""

    def __init__(self, archive: Archive, folder: Path) -> None:
        self.archive, self.file, self.record = archive, folder / f"{archive.name}.part", folder / f"{archive.name}.part.json"
        try:
            known = json.loads(self.record.read_bytes())
            self.sources, self.version = [str(url) for url in known["sources"]], str(known["version"])
        except (OSError, ValueError, KeyError, TypeError):  # without its record a part is worth nothing
            self.forget()
        if archive.bytes and self.size > archive.bytes:
            self.forget()

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def forget(self) -> None:
        """Delete it."""
        self.file.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)
        self.sources, self.version = [], ""

    def begin(self, url: str, version: str) -> None:
        """Start anew; the old bytes go before the record says what the new ones are."""
        self.forget()
        self.sources, self.version = [url], version
        self._write()

    def go_on(self, url: str) -> None:
        """The next bytes come from this mirror."""
        if url not in self.sources:
            self.sources.append(url)
            self._write()

    def request(self, url: str) -> dict[str, str]:
        """Headers that ask for what is missing, or for everything where a continued part could be of two versions."""
        headers = {"Accept-Encoding": "identity"}
        same = bool(self.version) and self.sources == [url]
        if self.size and (same or self.archive.checksum):
            headers["Range"] = f"bytes={self.size}-"
            if same:
                headers["If-Range"] = self.version
        return headers

    def _write(self) -> None:
        aside = self.record.with_name(f".{self.record.name}")
        aside.write_text(json.dumps({"sources": self.sources, "version": self.version}), encoding="utf-8")
        aside.replace(self.record)


def _fetch(part: _Part, attempts: int, timeout: float, wait: float) -> None:
    """Try the mirrors in turn until the part is the archive.  A mirror that brings something is asked again first."""
    mirrors, notes, failures, most = deque(part.archive.urls), {}, 0, part.size
    while mirrors and failures < attempts:
        url = mirrors[0]
        try:
            _attempt(part, url, timeout)
            return
        except Refused as error:
            notes[url] = str(error)
            mirrors.popleft()
        except Broken as error:
            notes[url] = str(error)
            gained, most = part.size > most, max(part.size, most)
            failures = 0 if gained else failures + 1
            if not gained:
                mirrors.rotate(-1)
            if failures < attempts:
                time.sleep(min(wait * 2 ** max(failures - 1, 0), LONGEST_WAIT))
    reasons = "; ".join(f"{url}: {note}" for url, note in notes.items())
    kept = f"{part.size} bytes are kept, run the command again to go on, or " if part.size else ""
    raise RuntimeError(f"{part.archive.name} was not fetched ({reasons}); {kept}fetch it by hand and give it with --from FILE")


def _attempt(part: _Part, url: str, timeout: float) -> None:
    """One request; returns where the part is the archive.  Raises Refused or Broken with the reason."""
    complete = bool(part.archive.bytes) and part.size == part.archive.bytes
    if not complete:
        try:
            with requests.get(url, headers=part.request(url), stream=True, timeout=timeout) as response:
                _receive(part, url, response)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Broken(f"the connection failed ({_innermost(error)})") from error
    if problem := mismatch(part.file, part.archive):
        mixed = len(part.sources) > 1
        part.forget()
        text = f"{problem}; what was fetched is deleted"
        raise Broken(text) if mixed else Refused(text)  # of two mirrors nobody knows which is wrong


def _receive(part: _Part, url: str, response: requests.Response) -> None:
    """Write a response's body to the part.  Raises Refused or Broken unless it came to its end."""
    asked = "Range" in response.request.headers
    _check_status(response, asked)
    if response.status_code == 416:
        _check_complete(part, response)
        return
    total = _total(part, response)
    if response.status_code == 206:
        part.go_on(url)
    else:
        etag = response.headers.get("ETag", "")  # a weak one says nothing about bytes
        part.begin(url, etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", ""))
    _write_body(part, response)
    if total and part.size < total:
        raise Broken(f"it ended after {part.size} of {total} bytes")


def _check_status(response: requests.Response, asked: bool) -> None:
    status = response.status_code
    if status == 200 and response.headers.get("Content-Type", "").startswith("text/html"):
        raise Refused("answers with a web page instead of the archive")
    if status == 200 or (asked and status in (206, 416)):
        return
    text = f"answers {status} {response.reason}"
    raise Broken(text) if status in (408, 429) or status >= 500 else Refused(text)


def _check_complete(part: _Part, response: requests.Response) -> None:
    """After "nothing is left to send": the part may be all there is."""
    size = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    if not size or int(size[1]) != part.size or part.archive.bytes not in (0, part.size):
        part.forget()
        raise Broken("cannot go on where the last attempt ended; starting again")


def _total(part: _Part, response: requests.Response) -> int:
    """Bytes of the whole file, 0 when nobody knows.  Raises Refused where the server contradicts the published size."""
    length, total = response.headers.get("Content-Length", ""), part.archive.bytes
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != part.size:
            start, text = part.size, response.headers.get("Content-Range", "none")
            part.forget()
            raise Broken(f"asked from byte {start} on it sends Content-Range {text}; starting again")
        announced = int(found[3]) if found[3] != "*" else 0
    else:
        announced = int(length) if length.isdecimal() else 0
    if total and announced and announced != total:
        raise Refused(f"announces {announced} bytes, but {total} are published")
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if not (total or announced or chunked or part.archive.checksum):
        raise Refused("says no length, and neither size nor checksum is published: a broken transfer would look whole")
    return total or announced


def _write_body(part: _Part, response: requests.Response) -> None:
    """Append the body.  Raises Refused at the first byte beyond the published size."""
    archive, size = part.archive, part.size
    bar = {"total": archive.bytes or None, "initial": size, "desc": archive.name, "disable": bool(os.environ.get("AEFT_QUIET"))}
    with part.file.open("ab") as file, tqdm(unit="B", unit_scale=True, **bar) as progress:
        for block in response.raw.stream(CHUNK, decode_content=False):
            size += len(block)
            if archive.bytes and size > archive.bytes:
                break
            file.write(block)
            progress.update(len(block))
    if archive.bytes and size > archive.bytes:
        part.forget()
        raise Refused(f"sends more than the published {archive.bytes} bytes")


def _check_space(archive: Archive, folder: Path, have: int) -> None:
    missing = archive.bytes - have - shutil.disk_usage(folder).free
    if archive.bytes and missing > 0:
        raise RuntimeError(f"{folder}: {missing} bytes too few are free for {archive.name} ({archive.bytes} bytes)")


def _innermost(error: BaseException) -> str:
    """The text of what caused an error: the outer ones repeat it in three wrappings."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(error) or type(error).__name__
