"""A study that is collected over sessions and machines: committed lines beside those of the store.

Its committed table has a line for every row and repeat, with the key of what scored it.  A line
counts as long as that key is the one that today's code, spec and data give, in any precision in
which a machine reads networks.  So stores may go, and numbers of other code are not used in
silence.
"""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from aeft_lib import paths
from aeft_lib.stages import store
from aeft_lib.stages.artefact import Artefact
from aeft_lib.studies import run, shipped
from aeft_lib.studies.pipeline import artefacts, laid_out
from aeft_lib.studies.rows import Row, Study
from aeft_lib.studies.settings import Profile

KEY = "key"
NOTHING = pd.DataFrame(columns=["row", "label", "repeat", KEY])


def stored(profile: Profile, rows: Iterable[Row], repeats: Iterable[int]) -> pd.DataFrame:
    """A line for every row and repeat that the store has, with scores; none are computed.

    ``row, label, repeat, key``, `training_seconds` as ``seconds``, and its numbers.
    """
    lines = []
    for row in rows:
        for repeat in repeats:
            numbers = run.stored(profile, row, repeat) or {}
            if "miou" in numbers:
                line = {"row": row.name, "label": row.label, "repeat": repeat}
                line |= {KEY: key(profile, row, repeat)}
                line |= {"seconds": training_seconds(profile, row, repeat)}
                lines.append(line | numbers)
    return pd.DataFrame(lines) if lines else NOTHING


def key(profile: Profile, row: Row, repeat: int) -> str:
    """Of a row's evaluation, as today's code, spec and data give it."""
    return laid_out(profile, row, repeat)["evaluation"].key


def is_todays(profile: Profile, row: Row, repeat: int, kept_key: str) -> bool:
    """Whether a kept key is that of today's code, spec and data, in any precision."""
    machines = (profile, *profile.on_other_machines)
    return any(kept_key == key(machine, row, repeat) for machine in machines)


def training_seconds(profile: Profile, row: Row, repeat: int) -> float:
    """Seconds of all trainings behind a row of the store, on the machines that they ran on.

    NaN where not all of them are in the store.
    """
    seconds = {}

    def found(*asked: Any) -> Artefact:
        made = store.lookup(*asked)
        if made.stage.startswith("train_"):
            seconds[made.key] = made.record["seconds"]
        return made

    try:
        artefacts(profile, row, repeat, found)
    except LookupError:  # its scores are from the ledger
        return math.nan
    return sum(seconds.values())


def with_committed(
    table: pd.DataFrame, study: Study, profile: Profile, rows: Iterable[Row]
) -> pd.DataFrame:
    """The lines of the store, and those committed ones of the study that it lacks and that count.

    Unchanged on a profile whose tables are not committed.  rows: of which lines count.
    """
    if profile.name != shipped.PROFILE:
        return table
    known = {row.name: row for row in rows}
    there = set(_jobs(table))

    def counts(name: str, repeat: int, kept_key: str) -> bool:
        if (name, repeat) in there or name not in known:
            return False
        return is_todays(profile, known[name], repeat, kept_key)

    lines = committed(study)
    counting = [counts(*line) for line in zip(*_columns(lines, KEY), strict=True)]
    return pd.concat([table, lines[counting]], ignore_index=True) if any(counting) else table


def left_out(table: pd.DataFrame, study: Study, profile: Profile) -> int:
    """How many committed lines of the study a table lacks: their keys are of other code or data."""
    if profile.name != shipped.PROFILE:
        return 0
    return len(set(_jobs(committed(study))) - set(_jobs(table)))


def committed(study: Study) -> pd.DataFrame:
    """The study's committed lines that have a key.  Raises ValueError for a damaged file."""
    file = run.committed_table(study)
    table = paths.read_table(file) if file.is_file() else NOTHING
    return table.dropna(subset=KEY) if KEY in table else NOTHING


def _jobs(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(*_columns(table), strict=True))


def _columns(table: pd.DataFrame, *more: str) -> list[list]:
    return [table[name].tolist() if len(table) else [] for name in ("row", "repeat", *more)]
