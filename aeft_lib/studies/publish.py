"""What may be published: results of one commit's keys, whenever and wherever they were computed."""

import json
from collections.abc import Iterator
from pathlib import Path

from aeft_lib import paths
from aeft_lib.stages import store
from aeft_lib.studies import catalogue, ledger, profiles, run
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile


def entries() -> Iterator[tuple[Profile, Row, int]]:
    """Profile, row and repeat of every entry of the ledger; of VOC, with the classes it is of.

    Raises ValueError for a name that is none.
    """
    every = catalogue.rows_by_name()
    for folder in sorted(ledger.home().glob("*/*/*")):
        name, row, repeat = folder.relative_to(ledger.home()).parts
        profile, classes = profiles.get(name), _classes(folder)
        if classes:  # whatever the environment names
            profile = profiles.with_classes(profile, classes)
        yield profile, every.get(row) or catalogue.row(row), int(repeat)


def check_current() -> None:
    """Raises ValueError where an entry is not of today's code, or the code is no commit.

    Entries whose photos are not here cannot be checked; a line says so.
    """
    if store.commit().endswith("+") or store.commit() == "unknown":
        problem = f"the code is no commit ({store.commit()}), so results could not name theirs"
        raise ValueError(f"{problem}: commit aeft_lib and data first")
    old, absent = [], {}
    for profile, *job in entries():
        if problem := _missing_data(profile):
            absent[profile.name] = problem
        else:
            old += run.stale(profile, [tuple(job)])
    for name, problem in absent.items():
        print(f"entries of {ledger.home() / name} were not checked: {problem}")
    if old:
        shown = "".join(f"\n  {line}" for line in old[:8])
        remedy = "run their rows again with `aeft run STUDY --keep`, or remove them"
        one = len(old) == 1
        count = f"{len(old)} entr{'y' if one else 'ies'} of {ledger.home()}"
        count += f" {'is' if one else 'are'} not of this code"
        raise ValueError(f"{count}: {remedy}{shown}")


def _classes(folder: Path) -> tuple[str, ...]:
    """The classes of the scenes that an entry was scored on; none where it names no such."""
    for file in sorted(folder.glob(f"*/{store.RECORD}")):
        scenes = json.loads(paths.read_committed(file))["spec"].get("scenes", {})
        if classes := scenes.get("classes"):
            return tuple(classes)
    return ()


def _missing_data(profile: Profile) -> str:
    """Why a profile's scenes cannot be opened; "" where they can."""
    try:
        profile.train.open()
        profile.val.open()
    except (ValueError, OSError) as error:
        return str(error)
    return ""
