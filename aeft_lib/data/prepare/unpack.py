"""Unpacks the archives of data sets: every member is checked before the first file is written.

An archive from the network may hold paths that leave its folder, links and devices; `tarfile` and `zipfile` refuse them only
in part, and differently by Python version.  Here plain files and folders are all that is accepted.  Every file is written
aside and renamed, so a kill leaves no half file, and what is already there in the same size is skipped, so the next call
goes on.
"""

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple

from tqdm import tqdm

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz")
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError)


class Member(NamedTuple):
    """One entry.  kind: "file", "folder", or what else it is.  open: opens a file's content."""

    name: str
    size: int
    kind: str
    open: Callable[[], IO[bytes] | None]


def unpack(file: Path, root: Path, *, whole: bool = False) -> int:
    """Unpack a tar (plain or gz) or zip below root; returns its number of files, with those that were there already.

    whole: a checksum vouches for the archive; without one a tar must have its end mark, because a cut between two members
    shows nowhere else.
    Raises ValueError naming archive and member: damaged or cut off, a path that leaves root, a link or device, a name that
    stands twice, in two spellings, or as a file and as a folder.  Then nothing is written, except where only the content of a
    member is damaged; RuntimeError where the disk is too full.
    """
    if not file.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{file}: not an archive that is known here; there are {', '.join(SUFFIXES)}")
    with _opened(file) as archive:
        members = _readable(file, partial(_zip_members if isinstance(archive, zipfile.ZipFile) else _tar_members, archive))
        targets = check(file, members, root)
        if not whole and isinstance(archive, tarfile.TarFile):
            _readable(file, partial(_check_end, archive))
        missing = [(one, target) for one, target in targets if not target.is_file() or target.stat().st_size != one.size]
        _check_space(file, root, sum(one.size for one, _ in missing))
        quiet = bool(os.environ.get("AEFT_QUIET"))
        for one, target in tqdm(missing, desc=f"unpack {file.name}", leave=False, disable=quiet):
            _write(file, one, target)
    return len(targets)


def check(file: Path, members: Iterable[Member], root: Path) -> list[tuple[Member, Path]]:
    """The files of an archive and where they go.  Raises ValueError as `unpack` does."""
    home, found, files, folders = root.resolve(), [], {}, set()
    for one in members:
        parts = _parts(file, one)
        above = ["/".join(parts[:count]).lower() for count in range(1, len(parts) + 1)]  # some disks know no capitals
        if one.kind == "folder" or not parts:
            folders.update(above)
            continue
        if above[-1] in files:
            raise ValueError(f"{file}: member {one.name!r} stands twice, or in two spellings")
        files[above[-1]] = one.name
        folders.update(above[:-1])
        found.append((one, home.joinpath(*parts)))
    if both := sorted(folders & set(files)):
        raise ValueError(f"{file}: member {files[both[0]]!r} is a file and a folder")
    for parent, one in {target.parent: one for one, target in found}.items():
        if not parent.resolve().is_relative_to(home):
            raise ValueError(f"{file}: member {one.name!r} would leave {root}, where a folder above it is a link")
    return found


def _parts(file: Path, one: Member) -> tuple[str, ...]:
    if one.kind not in ("file", "folder"):
        raise ValueError(f"{file}: member {one.name!r} is a {one.kind}; only files and folders are unpacked")
    path = PureWindowsPath(one.name)  # knows both slashes and drives, which here are as wrong as on Windows
    if path.drive or path.root or ".." in path.parts or "\0" in one.name:
        raise ValueError(f"{file}: member {one.name!r} would leave the folder it is unpacked to")
    return path.parts


def _opened(file: Path) -> tarfile.TarFile | zipfile.ZipFile:
    name = file.name.lower()
    if name.endswith(".zip"):
        return _readable(file, partial(zipfile.ZipFile, file))
    return _readable(file, partial(tarfile.open, file, "r:" if name.endswith(".tar") else "r:gz"))


def _readable(file: Path, read: Callable) -> tarfile.TarFile | zipfile.ZipFile | list[Member] | None:
    """What `read` returns; its many errors become one."""
    if not file.is_file():
        raise ValueError(f"no archive {file}")
    try:
        return read()
    except DAMAGED as error:
        raise ValueError(f"{file}: damaged, cut off or no archive ({error}); fetch it again") from error


def _tar_members(archive: tarfile.TarFile) -> list[Member]:
    return [Member(one.name, one.size, _tar_kind(one), partial(archive.extractfile, one)) for one in archive.getmembers()]


def _tar_kind(one: tarfile.TarInfo) -> str:
    if one.isreg():
        return "file"
    if one.isdir():
        return "folder"
    return "symbolic link" if one.issym() else "hard link" if one.islnk() else "device"


def _zip_members(archive: zipfile.ZipFile) -> list[Member]:
    return [Member(one.filename, one.file_size, _zip_kind(one), partial(archive.open, one)) for one in archive.infolist()]


def _zip_kind(one: zipfile.ZipInfo) -> str:
    mode = one.external_attr >> 16  # Unix mode, 0 from other systems
    if stat.S_ISLNK(mode):
        return "symbolic link"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "device"
    return "folder" if one.is_dir() else "file"


def _check_end(archive: tarfile.TarFile) -> None:
    """`tarfile` stops in silence at a header it cannot read; the end mark is a block of zeros.  Reads on to gzip's checksum."""
    archive.fileobj.seek(archive.offset)
    mark = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
        raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
    while archive.fileobj.read(1 << 20):
        pass


def _write(file: Path, one: Member, target: Path) -> None:
    aside = target.with_name(f".{target.name}.unpacking")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        content = _content(file, one)
        with content, aside.open("wb") as out:
            _copy(file, one, content, out)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _content(file: Path, one: Member) -> IO[bytes]:
    try:
        return one.open()
    except (*DAMAGED, NotImplementedError, RuntimeError) as error:  # the last for a password, the other for a compression
        raise ValueError(f"{file}: member {one.name!r} cannot be read ({error}); fetch it again") from error


def _copy(file: Path, one: Member, content: IO[bytes], out: IO[bytes]) -> None:
    """Errors of reading are the archive's, those of writing the disk's."""
    done = 0
    while True:
        try:
            block = content.read(1 << 20)
        except DAMAGED as error:
            raise ValueError(f"{file}: member {one.name!r} is damaged ({error}); fetch it again") from error
        if not block:
            break
        done += out.write(block)
    if done != one.size:
        raise ValueError(f"{file}: member {one.name!r} is cut off after {done} of {one.size} bytes; fetch it again")


def _check_space(file: Path, root: Path, needed: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    missing = needed - shutil.disk_usage(root).free
    if missing > 0:
        raise RuntimeError(f"{root}: {missing} bytes too few are free to unpack {file.name} ({needed} bytes)")
