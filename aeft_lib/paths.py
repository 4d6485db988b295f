"""Where things stand, and how files get there: written aside and renamed, read with a digest.

Every room writes its products through `replacing`: a kill at any moment leaves the old file or the
new one.  Committed files that are read, tables and published numbers, are listed in ``SHA256SUMS``,
in the form of ``sha256sum``: a digit that changed on a disk or in a merge still parses, and only a
digest shows it.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
COLLAGES = ROOT / "data" / "collages"
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
SUMS = ROOT / "SHA256SUMS"
FULL = (errno.ENOSPC, errno.EDQUOT)
# Committed files that are read, by patterns below the checkout.
COMMITTED = ("figures/*.csv", "figures/report.json", "docs/*.csv")
COMMITTED += ("figures/ledger/*/*/*/*/*",)
COMMITTED += ("data/collages/manifest.csv", "aeft_lib/studies/published.toml")


def runs() -> Path:
    """The stage store: ``AEFT_RUNS`` where it is set, else ``runs/`` in the checkout."""
    return _expanded("AEFT_RUNS", os.environ.get("AEFT_RUNS") or ROOT / "runs")


def voc_root() -> Path:
    """The folder of ``VOCdevkit/VOC2012``: ``AEFT_VOC_ROOT``, else ``data/voc`` in the checkout."""
    return _root("AEFT_VOC_ROOT", "voc")


def coco_root() -> Path:
    """The folder of COCO's ``annotations``: ``AEFT_COCO_ROOT``, else ``data/coco``."""
    return _root("AEFT_COCO_ROOT", "coco")


def photos_root() -> Path:
    """The folder of your own photos: ``AEFT_PHOTOS_ROOT``, else ``data/photos``."""
    return _root("AEFT_PHOTOS_ROOT", "photos")


def _root(variable: str, name: str) -> Path:
    return _expanded(variable, os.environ.get(variable) or ROOT / "data" / name)


def _expanded(variable: str, where: str | Path) -> Path:
    """A path with ~ and ~user spelled out.  Raises ValueError for an unknown user."""
    try:
        return Path(where).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{variable}={where}: {error}") from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A name to write to; it replaces `file` when the block ends without an error.

    Contents reach the disk before the rename, and permissions follow the umask, whatever a library
    sets.  A link stays, its target is replaced.
    Raises ValueError as `check_outputs` does; errors of a full disk name the file.
    """
    file = Path(os.path.realpath(file))
    check_outputs([file])
    aside = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        aside.write_bytes(b"")
        mode = aside.stat().st_mode
        yield aside
        aside.chmod(mode)
        sync(aside)
        aside.replace(file)
        sync(file.parent)
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def check_outputs(files: Iterable[Path]) -> None:
    """Raises ValueError where a file to be written is a folder, or what it is to stand in is none.

    To be called before the work whose results they are.
    """
    for file in files:
        if file.is_dir():
            raise ValueError(f"{file} is a folder, a file is to be written there: move it away")
        above = next(folder for folder in file.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise ValueError(f"{above} is no folder, {file.name} is to stand in one: move it away")


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 with the line ends of `text`, as `replacing` does."""
    with replacing(file) as aside:
        aside.write_bytes(text.encode())


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk; Windows has it for neither."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_committed(file: Path, content: bytes) -> None:
    """Write a file that `read_committed` reads, and its digest where it is one of the checkout's.

    The new digest stands beside the old one while the file is replaced: a kill leaves a file that
    is listed.
    """
    known, line = _sums(), (hashlib.sha256(content).hexdigest(), _name(file))
    if line[1]:
        _write_sums([*known, line])
    with replacing(file) as aside:
        aside.write_bytes(content)
    if line[1]:
        _write_sums([*(other for other in known if other[1] != line[1]), line])


def read_committed(file: Path) -> bytes:
    """The content of a committed file; one outside the checkout needs no digest.

    Raises FileNotFoundError where it is missing, ValueError where it is not as listed.
    """
    content, name = file.read_bytes(), _name(file)
    if name and (hashlib.sha256(content).hexdigest(), name) not in _sums():
        problem = f"{file} is damaged or was edited: its sha256 is not the one in {SUMS.name}"
        remedy = f"restore it: git checkout -- {name} {SUMS.name}"
        raise ValueError(f"{problem}; {remedy}, or list your edit: python -m aeft_lib.paths")
    return content


def read_table(file: Path) -> "pd.DataFrame":
    """A committed csv file; errors as `read_committed`."""
    import pandas as pd  # slow to import, so not with the module

    return pd.read_csv(BytesIO(read_committed(file)))


def list_committed() -> None:
    """List the digests of all committed files that are read, as they stand now."""
    files = [file for pattern in COMMITTED for file in ROOT.glob(pattern)]
    _write_sums([(hashlib.sha256(file.read_bytes()).hexdigest(), _name(file)) for file in files])


def _name(file: Path) -> str:
    """The name under which a file of the checkout is listed; empty for any other."""
    name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else ""
    return name if any(fnmatchcase(name, pattern) for pattern in COMMITTED) else ""


def _sums() -> Mapping[tuple[str, str], None]:
    """Digest and name, a line each, in order; a line that is damaged fits no file."""
    if not SUMS.is_file():
        return {}
    now = SUMS.stat()
    return _lines(SUMS, now.st_mtime_ns, now.st_size, now.st_ino)


@lru_cache(maxsize=1)
def _lines(file: Path, *state: int) -> Mapping[tuple[str, str], None]:
    """The lines of a file in this state: a thousand, and most of the committed files are small."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return {tuple(line.split("  ", 1)): None for line in text.splitlines() if "  " in line}


def _write_sums(lines: Iterable[tuple[str, str]]) -> None:
    ordered = sorted(dict.fromkeys(lines), key=lambda line: line[1])
    write_text(SUMS, "".join(f"{digest}  {name}\n" for digest, name in ordered))
    _lines.cache_clear()


if __name__ == "__main__":  # after an edit by hand
    list_committed()
