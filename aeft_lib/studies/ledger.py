"""The ledger: small committed results, so that a study is collected over many machines and weeks.

``figures/ledger/PROFILE/ROW/REPEAT/NAME/`` holds the record and the csv tables of what measured a
row, no weights and no seeds.  It is read after the store (`run.read`).  An entry counts as long as
its key is the one that today's code, spec and data give; any other is ignored, and reported.

Entries stand for a training that takes a night, so that its study goes on where it stopped.  A
profile that everybody computes in minutes is computed all the same: of its entries the committed
report is made, and nothing else.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from aeft_lib import paths
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.store import RECORD

MECHANISM = "mechanism_"  # before the name of what a row's mechanism measures
MEASURES = ("evaluation", "curve", "epochs", "objects", "images")  # and a row's mechanism
TABLES = ("*.csv", "images.npz")  # and of each; counts by image are whole numbers, some kilobytes
COMPUTED = ("laptop",)  # profiles that are computed, whatever entries they have
Measures = Mapping[str, Artefact]


def home() -> Path:
    """The folder of the ledger."""
    return paths.FIGURES / "ledger"


def place(profile: str, row: str, repeat: int) -> Path:
    """The folder of a row and repeat, by names."""
    return home() / profile / row / str(repeat)


def measures(made: Measures) -> dict[str, Artefact]:
    """Those of a row's artefacts that are small tables."""
    return {n: a for n, a in made.items() if n in MEASURES or n.startswith(MECHANISM)}


def results(profile: str) -> pd.DataFrame:
    """What every row of a profile ended with: ``row, repeat``, its evaluation's and mechanism's.

    Numbers of `evaluate` in percent; whatever code they are of, see `stale`.  Needs no data.
    Raises ValueError for a file that is not the committed one.
    """
    lines = []
    for folder in sorted((home() / profile).glob("*/*")):
        line = {"row": folder.parent.name, "repeat": int(folder.name)}
        if (folder / "evaluation").is_dir():
            line |= _record(folder / "evaluation")["summary"]
        for place in sorted(folder.glob(f"{MECHANISM}*")):
            name = place.name.removeprefix(MECHANISM)
            line |= {n: v for n, v in _record(place)["summary"].items() if n == name}
        lines.append(line)
    return pd.DataFrame(lines, columns=None if lines else ["row", "repeat"])


def classes(profile: str) -> pd.DataFrame:
    """``row, repeat, class, iou, precision, recall``, in percent; errors as `results`."""
    tables = []
    for file in sorted((home() / profile).glob("*/*/evaluation/classes.csv")):
        row, repeat = file.parts[-4:-2]
        tables.append(paths.read_table(file).assign(row=row, repeat=int(repeat)))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["row"])


def commits(profile: str) -> list[str]:
    """At which commits the evaluations of a profile's entries were made, in no order of time."""
    records = (_record(folder) for folder in (home() / profile).glob("*/*/evaluation"))
    return sorted({record["commit"] for record in records})


def entry(profile: str, row: str, repeat: int, name: str) -> Artefact:
    """One of an entry's artefacts, whatever code it is of; needs no data.

    Raises LookupError where there is none, ValueError for a file that is not the committed one.
    """
    folder = place(profile, row, repeat) / name
    if not folder.is_dir():
        raise LookupError(f"{folder.relative_to(home()).as_posix()}: not in the ledger")
    record = _record(folder)
    _check(folder)
    return Artefact(record["stage"], record["key"], folder, record)


def read(folder: Path, wanted: Measures) -> dict[str, Artefact]:
    """The artefacts that an entry keeps, for those of today's keys.

    Raises LookupError where one is missing or has another key, ValueError where a file is damaged.
    """
    return {name: _kept(folder / name, made) for name, made in wanted.items()}


def keep(folder: Path, made: Measures) -> None:
    """Write a row's measures to its folder.

    Where one of them has another key there, all that it had goes.  Else the rest stays, such as a
    mechanism that the row of another study does not log.
    """
    there = [name for name in made if (folder / name / RECORD).is_file()]
    if any(_record(folder / name)["key"] != made[name].key for name in there):
        shutil.rmtree(folder)
    for name, artefact in made.items():
        if artefact.folder == folder / name:
            continue  # it came from here
        shutil.rmtree(folder / name, ignore_errors=True)
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
    _check(folder)
    return Artefact(made.stage, made.key, folder, record, made.spec)


def _check(folder: Path) -> None:
    for file in folder.iterdir():
        paths.read_committed(file)


def _record(folder: Path) -> dict[str, Any]:
    return json.loads(paths.read_committed(folder / RECORD))
