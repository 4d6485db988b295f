"""Archives of data sets: downloaded, resumed where a download broke off, verified, unpacked.

A download stands in ``<name>.part`` until its size and checksum are those published.

Dependency choice: ``requests``; ``pooch`` and torchvision start again after a break, at 13 GB too.
Members pass `tarfile.data_filter` (Python from 3.10.12, 3.11.4, 3.12), those of a zip as well.
"""

import hashlib
import os
import shutil
import stat
import tarfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import requests
import urllib3
from tqdm import tqdm

from aeft_lib.maps.foreign import reading

CHUNK = 1 << 16  # bytes; a break loses at most so many
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError)


@dataclass(frozen=True)
class Archive:
    """A published file.  urls: mirrors, in the order in which they are tried.  bytes: its size.

    checksum: ``md5:<hex>`` or ``sha256:<hex>``.  unpack_to: a folder below the data root.
    """

    name: str
    urls: tuple[str, ...]
    bytes: int
    checksum: str
    unpack_to: str = "."


def take(file: Path, archive: Archive) -> Path:
    """The file, verified.  Raises ValueError where it is missing, or size or checksum differ."""
    if not file.is_file():
        raise ValueError(f"no file {file}, which is to be {archive.name}")
    if problem := _mismatch(file, archive):
        name, remedy = archive.name, "move it away and fetch it again"
        raise ValueError(f"{file} is not the published {name}: {problem}; {remedy}")
    return file


def download(
    archive: Archive, folder: Path, *, attempts: int = 5, timeout: float = 30.0, wait: float = 1.0
) -> Path:
    """Fetch an archive into a folder, or verify the one that is there; returns the file.

    attempts: so many in a row may bring nothing new.  timeout: seconds without a byte.  wait:
    seconds after a failure, doubled after each further one.
    Raises ValueError where another file has the name; RuntimeError where the disk is too full, or
    every mirror failed.
    """
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    if target.exists():
        return take(target, archive)
    folder.mkdir(parents=True, exist_ok=True)
    _check_space(folder, archive.bytes - _size(part), archive.name)
    mirrors, notes, failures, largest = deque(archive.urls), {}, 0, _size(part)
    while mirrors and failures < attempts:
        url = mirrors[0]
        try:
            _complete(archive, part, url, timeout)
            _version_file(part).unlink(missing_ok=True)
            return part.replace(target)
        except ValueError as error:  # it offers something else
            notes[url] = error
            mirrors.popleft()
        except BROKEN as error:
            notes[url] = error
            gained, largest = _size(part) > largest, max(_size(part), largest)
            failures = 0 if gained else failures + 1
            if not gained:  # a mirror that sends something is asked again
                mirrors.rotate(-1)
                time.sleep(wait * 2 ** (failures - 1) if failures < attempts else 0)
    reasons = "; ".join(f"{url}: {note}" for url, note in notes.items())
    remedy = "run the command again to resume, or fetch it by hand and give it with --from FILE"
    raise RuntimeError(f"{archive.name} was not fetched ({reasons}); {remedy}")


def _complete(archive: Archive, part: Path, url: str, timeout: float) -> None:
    """Ask for what the part lacks, and verify it.

    Raises ValueError where the mirror offers something else, an error of BROKEN to ask again.
    """
    if (start := _size(part)) < archive.bytes:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        if start and _version_file(part).is_file():
            mirror, _, version = _version_file(part).read_text().partition(" ")
            headers |= {"If-Range": version} if version and mirror == url else {}
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            _receive(archive, part, url, response)
    if _size(part) < archive.bytes:
        raise requests.ConnectionError(f"ended after {_size(part)} of {archive.bytes} bytes")
    if problem := _mismatch(part, archive):
        part.unlink()  # what was resumed may be of another mirror or version
        raise (requests.ConnectionError if start else ValueError)(f"{problem}; it is deleted")


def _receive(archive: Archive, part: Path, url: str, response: requests.Response) -> None:
    """Check the head of an answer, and write its body to the part."""
    status, headers, start = response.status_code, response.headers, _size(part)
    kind = headers.get("Content-Type", "")
    if (status not in (200, 206, 408, 429) and status < 500) or kind.startswith("text/html"):
        raise ValueError(f"answers {status} {response.reason} {kind}".strip())
    response.raise_for_status()
    if status == 200:  # the whole file, whatever range was asked for
        start = 0
    elif not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        part.unlink(missing_ok=True)
        raise requests.ConnectionError(f"sends another range than from byte {start} on")
    length = response.raw.length_remaining  # None where it is not announced
    if length is not None and start + length != archive.bytes:
        raise ValueError(f"announces {start + length} bytes, but {archive.bytes} are published")
    if not start:
        tag = headers.get("ETag", "W/")  # a weak one says nothing about bytes
        version = headers.get("Last-Modified", "") if tag.startswith("W/") else tag
        part.unlink(missing_ok=True)
        _version_file(part).write_text(f"{url} {version}")
    bar = tqdm(total=archive.bytes, initial=start, unit="B", unit_scale=True, **_bar(archive.name))
    with part.open("ab") as file, bar:
        # Undecoded: servers label a .tgz as encoded.
        for block in response.raw.stream(CHUNK, decode_content=False):
            file.write(block)
            bar.update(len(block))
            if file.tell() > archive.bytes:
                file.truncate(0)
                raise ValueError(f"sends more than the published {archive.bytes} bytes")


def unpack(file: Path, root: Path) -> int:
    """Unpack a tar, tar.gz or zip below root; returns its number of files.

    Each file is written aside and renamed.  One that is there in the same size is skipped, so that
    a second call finishes what a killed one began.  Only its checksum shows that a tar was cut
    between two members: `take` it before.
    Raises ValueError where the archive is missing or damaged, and before anything is written where
    a member leaves root, or is a link or a device; RuntimeError where the disk is too full.
    """
    if not file.is_file():
        raise ValueError(f"no archive {file}; fetch it again")
    with ExitStack() as stack:
        with reading(file, "damaged or unsafe"):
            archive = stack.enter_context(_opened(file))
            members = _members(archive, root)
        missing = [item for item in members if _size(item[0]) != item[1] or not item[1]]
        root.mkdir(parents=True, exist_ok=True)
        _check_space(root, sum(size for _, size, _ in missing), f"what {file.name} holds")
        for target, _, content in tqdm(missing, **_bar(f"unpack {file.name}")):
            aside = target.with_name(f".{target.name}.part")
            target.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as copy:
                copy.writelines(_blocks(file, content))
            aside.replace(target)
    return len(members)


def _blocks(file: Path, content: Callable[[], IO[bytes]]) -> Iterator[bytes]:
    """What a member holds; errors of writing it stay errors of the disk."""
    with reading(file, "damaged or unsafe"), content() as source:
        while block := source.read(CHUNK):
            yield block


def _opened(file: Path) -> tarfile.TarFile | zipfile.ZipFile:
    if file.suffix == ".zip":
        return zipfile.ZipFile(file)
    return tarfile.open(file, "r:" if file.suffix == ".tar" else "r:gz")


def _members(archive: tarfile.TarFile | zipfile.ZipFile, root: Path) -> list[tuple]:
    """The files of an archive: path below root, size, and what opens the content.

    Raises TarError for what is no plain file or folder below root.
    """
    if isinstance(archive, zipfile.ZipFile):
        pairs = [(_as_tar(info), partial(archive.open, info)) for info in archive.infolist()]
    else:
        pairs = [(info, partial(archive.extractfile, info)) for info in archive.getmembers()]
        archive.fileobj.seek(archive.offset)
        if any(archive.fileobj.read(tarfile.BLOCKSIZE)):  # `tarfile` ends here in silence
            raise tarfile.TarError(f"no head of a member at byte {archive.offset}")
    pairs = [(tarfile.data_filter(info, root), content) for info, content in pairs]
    if links := [info.name for info, _ in pairs if not (info.isreg() or info.isdir())]:
        raise tarfile.TarError(f"{links[0]!r} is a link")  # which no archive here needs
    return [(root / info.name, info.size, content) for info, content in pairs if info.isreg()]


def _as_tar(info: zipfile.ZipInfo) -> tarfile.TarInfo:
    """A zip's member as one of a tar, so that the same filter judges it."""
    member, kind = tarfile.TarInfo(info.filename), stat.S_IFMT(info.external_attr >> 16)
    member.size = info.file_size
    plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)  # 0: not from Unix
    member.type = (
        (tarfile.DIRTYPE if info.is_dir() else tarfile.REGTYPE) if plain else tarfile.CHRTYPE
    )
    return member


def _mismatch(file: Path, archive: Archive) -> str:
    """What speaks against a file's being the archive; empty where nothing does."""
    if _size(file) != archive.bytes:
        return f"expected {archive.bytes} bytes, got {_size(file)}"
    kind, expected = archive.checksum.split(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    actual = digest.hexdigest()
    return "" if actual == expected else f"expected {kind} {expected}, got {actual}"


def _check_space(folder: Path, needed: int, whose: str) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        raise RuntimeError(f"{folder}: {whose} needs {needed} bytes, {free} are free; make room")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _version_file(part: Path) -> Path:
    """Holds the mirror of a part and the version that it named."""
    return part.with_name(f"{part.name}.version")


def _bar(title: str) -> dict[str, object]:
    return {"desc": title, "disable": bool(os.environ.get("AEFT_QUIET"))}
