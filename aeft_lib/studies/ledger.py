"""The ledger: small committed results, so that a study is collected over many machines and weeks.

``figures/ledger/PROFILE/ROW/REPEAT/NAME/`` holds the record and the csv tables of what measured a
row, no weights and no seeds.  It is read after the store (`run.read`).  An entry counts as long as
its key is the one that today's code, spec and data give; any other is ignored, and reported.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aeft_lib import paths
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.store import RECORD

MEASURES = ("evaluation", "curve", "epochs", "objects", "images")  # what is kept of a row
TABLES = ("*.csv", "images.npz")  # and of each; counts by image are whole numbers, some kilobytes
Measures = Mapping[str, Artefact]


def home() -> Path:
    """The folder of the ledger."""
    return paths.FIGURES / "ledger"


def place(profile: str, row: str, repeat: int) -> Path:
    """The folder of a row and repeat, by names."""
    return home() / profile / row / str(repeat)


def read(folder: Path, wanted: Measures) -> dict[str, Artefact]:
    """The artefacts that an entry keeps, for those of today's keys.

    Raises LookupError where one is missing or has another key, ValueError where a file is damaged.
    """
    return {name: _kept(folder / name, made) for name, made in wanted.items()}


def keep(folder: Path, made: Measures) -> None:
    """Write a row's measures to its folder, in place of what it had of it."""
    if all(artefact.folder == folder / name for name, artefact in made.items()):
        return  # they came from here
    shutil.rmtree(folder, ignore_errors=True)
    for name, artefact in made.items():
        (folder / name).mkdir(parents=True)
        tables = [file for pattern in TABLES for file in sorted(artefact.folder.glob(pattern))]
        for file in (artefact.folder / RECORD, *tables):
            paths.write_committed(folder / name / file.name, file.read_bytes())


def stale(folder: Path, wanted: Measures) -> list[str]:
    """A line for every artefact of an entry whose key is not the one of today."""
    lines = []
    for place in sorted(folder.iterdir()):
        key, current = _record(place)["key"], getattr(wanted.get(place.name), "key", "none")
        if key != current:
            told = f"its key is {key}, the current one {current}"
            lines.append(f"{place.relative_to(home()).as_posix()}: ignored, {told}")
    return lines


def _kept(folder: Path, made: Artefact) -> Artefact:
    if not folder.is_dir() or (record := _record(folder))["key"] != made.key:
        raise LookupError(f"{made.stage} {made.key}")
    for file in folder.iterdir():
        paths.read_committed(file)
    return Artefact(made.stage, made.key, folder, record, made.spec)


def _record(folder: Path) -> dict[str, Any]:
    return json.loads(paths.read_committed(folder / RECORD))
