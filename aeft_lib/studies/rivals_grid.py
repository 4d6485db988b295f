"""The study `rivals_grid`: seeds of one method, label maps by another, which nobody has joined.

Every part is there already, so a combination is a line.  All are label maps of the training scenes,
made without masks.  Combinations that are a method's own row stand in the study `rivals`; `crossed`
shows both.
"""

from collections.abc import Iterable

import pandas as pd

from aeft_lib.rivals import psa
from aeft_lib.rivals.pmm import Ppmg
from aeft_lib.stages.method import Refiner
from aeft_lib.stages.psa import Psa
from aeft_lib.studies.rival import PSA, labelled
from aeft_lib.studies.rows import Row
from aeft_lib.studies.systems import METRICS, learned

METRIC = METRICS["pseudo"]
LONG_WALK = Psa(walk=True, powers=psa.POWERS, steps=psa.STEPS)  # AffinityNet's own numbers
IRNET = "rival.irnet.pseudo"  # the row whose refiner is IRNet's walk


def rows(aeft: Row, known: Iterable[Row]) -> tuple[Row, ...]:
    """The combinations.  aeft: the row of the paper's seeds.  known: those of study `rivals`."""
    seeds = {row.name: row for row in known} | {"aeft": aeft}
    pairs = [
        ("aeft_ppmg", "soft + repel, PPMG", "aeft", Ppmg()),
        ("aeft_long_walk", "soft + repel, AffinityNet's own walk", "aeft", LONG_WALK),
        ("seam_long_walk", "SEAM, AffinityNet's own walk", "seam", LONG_WALK),
        ("occse_ppmg", "OC-CSE, PPMG", "occse", Ppmg()),
        ("cpn_ppmg", "CPN, PPMG", "cpn", Ppmg()),
    ]
    if irnet := _irnet(seeds.values()):
        pairs += [
            ("aeft_irnet", "soft + repel, IRNet's walk", "aeft", irnet),
            ("seam_irnet", "SEAM, IRNet's walk", "seam", irnet),
        ]
    return tuple(
        labelled(name, label, seeds[source], refiner, mechanisms=())
        for name, label, source, refiner in pairs
    )


def _irnet(known: Iterable[Row]) -> Refiner | None:
    """IRNet's refiner; None where there is no row of it."""
    return next((row.refiner for row in known if row.published == IRNET), None)


def refiners(known: Iterable[Row]) -> dict[str, Refiner]:
    """The refiners that are crossed, by their names in a table.  known: rows of `rivals`."""
    named = {"one CRF": Psa(crf=True), "walk + CRF": PSA, "long walk": LONG_WALK, "PPMG": Ppmg()}
    irnet = _irnet(known)
    return named | ({"IRNet's walk": irnet} if irnet else {})


def crossing(known: Iterable[Row]) -> list[Row]:
    """Rows that may stand in `crossed`, of whatever study.  known: rows of all studies."""
    known = list(known)
    labelling = [row for row in known if not row.segmenter and row.scored_on == "train"]
    return [row for row in labelling if row.refiner in refiners(known).values()]


def crossed(table: pd.DataFrame, known: Iterable[Row], statistic: str = "mean") -> pd.DataFrame:
    """Means over repeats of label maps of the training scenes, in percent; or their count.

    A line a kind of seeds that two refiners or more label, a column a refiner; NaN where there is
    no such row, or it has no numbers.
    table: long, with ``row`` and `METRIC`.  known: rows, those of seeds among them.
    """
    known = list(known)
    named = refiners(known)
    means = pd.Series(dtype=float)
    if METRIC in table:
        means = table.groupby("row")[METRIC].agg(statistic)
    lines: dict[str, dict[str, float]] = {}
    seeds: dict[tuple[object, ...], Row] = {}
    for row in [row for row in known if row.method and not (row.refiner or row.segmenter)]:
        seeds.setdefault(learned(row), row)
    for seed in seeds.values():
        of_seed = [row for row in known if row.refiner and not row.segmenter]
        of_seed = [row for row in of_seed if learned(row) == learned(seed)]
        by_refiner = {row.refiner: row.name for row in of_seed if row.scored_on == "train"}
        names = {name: by_refiner.get(refiner) for name, refiner in named.items()}
        if sum(name is not None for name in names.values()) > 1:
            cells = {column: means.get(name, float("nan")) for column, name in names.items()}
            lines.setdefault(seed.label, cells)
    return pd.DataFrame(lines).T
