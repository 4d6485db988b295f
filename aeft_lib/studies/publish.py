"""What may be published: results of one commit's keys, whenever and wherever they were computed."""

from collections.abc import Iterator

from aeft_lib.stages import store
from aeft_lib.studies import catalogue, ledger, profiles, run
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile


def entries() -> Iterator[tuple[Profile, Row, int]]:
    """Profile, row and repeat of every entry of the ledger.

    Raises ValueError for a name that is none.
    """
    for folder in sorted(ledger.home().glob("*/*/*")):
        profile, row, repeat = folder.relative_to(ledger.home()).parts
        yield profiles.get(profile), catalogue.row(row), int(repeat)


def check_current() -> None:
    """Raises ValueError where an entry is not of today's code, or the code is no commit."""
    if store.commit().endswith("+") or store.commit() == "unknown":
        problem = f"the code is no commit ({store.commit()}), so results could not name theirs"
        raise ValueError(f"{problem}: commit aeft_lib and data first")
    old = [line for profile, *job in entries() for line in run.stale(profile, [tuple(job)])]
    if old:
        shown = "".join(f"\n  {line}" for line in old[:8])
        remedy = "run their rows again with `aeft run STUDY --keep`, or remove them"
        count = f"{len(old)} entries of {ledger.home()} are not of this code"
        raise ValueError(f"{count}: {remedy}{shown}")
