"""What a notebook can read without a training: rows of the store, and of the package's weights."""

from collections.abc import Iterable

from aeft_lib.stages import store
from aeft_lib.studies import pipeline, shipped
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

REMEDY = "no weights in the package: train = True trains"


def in_store(profile: Profile, row: Row, repeat: int) -> bool:
    """Whether all that a row makes is in the store, networks included."""
    try:
        pipeline.artefacts(profile, row, repeat, store.lookup)
    except LookupError:
        return False
    return True


def in_package(profile: Profile, row: Row) -> bool:
    """Whether the package's weights give a row its seeds: its own, and those it started from."""
    ends_in_seeds = profile.name == shipped.PROFILE and not (row.refiner or row.segmenter)
    earlier = row.starts_from is None or in_package(profile, row.starts_from)
    return ends_in_seeds and row.name in shipped.known() and earlier


def can_read(profile: Profile, row: Row, repeat: int = 0) -> bool:
    """Whether store or package has a row."""
    brought = repeat == shipped.REPEAT and in_package(profile, row)
    return brought or in_store(profile, row, repeat)


def left_out(rows: Iterable[Row]) -> str:
    """A line that names rows by their labels, and the remedy."""
    return f"left out: {', '.join(row.label for row in rows)} ({REMEDY} them)"
