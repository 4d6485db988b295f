"""The seventeen systems of the poster's results table: what each changes, and where its rows are.

A system's rows are found by their `published` ids, ``rival.NAME.seed``, ``.pseudo`` and
``.segmentation``; what has no id of its own is found by what it shares with a row that has one.  So
a method that moves in appears without an edit here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.studies.rows import PLAIN, Row

PLACES = ("classifier", "reader", "refiner", "segmenter")  # the way of an image, as it goes
ENDS = ("seed", "pseudo", "segmentation")
PAPER = "AEFT (the paper)"
# Fields of a row that no seed depends on.
AFTER_SEEDS = ("name", "label", "refiner", "segmenter", "prediction", "mechanisms")
AFTER_SEEDS += ("scored_on", "published", "keep_epochs")
METRICS = {"seed": "miou", "pseudo": "miou_maskless", "segmentation": "miou_maskless"}
NOT_RUN = "not run"
GAP_ROWS = dict(zip(ENDS, ("gap", "gap_pseudo", "gap_segmentation"), strict=True))


# Methods with one idea, in the order in which figures have them; notebook 9 has their questions.
FAMILIES = ("views", "erasing", "rounds", "readers", "refiners", "segmenters")


@dataclass(frozen=True)
class System:
    """A line of the poster's results table.

    method: its name there.  name: of its published numbers, ``rival.NAME.seed`` and so on.
    family: of `FAMILIES`.  changes: the `PLACES` at which it is other than GAP + AffinityNet.
    rounds: a later place labels an earlier one, and all is done again.
    idea: what it does there, in a few words.
    note: what has to be said wherever its numbers stand.
    parts: pairs of rows with a part of it and without it, or with another in its place, beside
        those that are found by the name of an end.
    """

    method: str
    name: str
    family: str
    changes: tuple[str, ...]
    idea: str
    rounds: bool = False
    note: str = ""
    parts: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """The method's name, with its note."""
        return f"{self.method} ({self.note})" if self.note else self.method

    @property
    def is_paper(self) -> bool:
        """Whether it is the paper's own method."""
        return self.method == PAPER


# In the poster's order.
SYSTEMS = (
    System("AffinityNet", "psa", "refiners", ("refiner",), "learned affinities carry scores"),
    System(
        "ICD",
        "icd",
        "refiners",
        ("classifier", "refiner"),
        "a direction splits each class",
        parts=(("icd", "icd_cam"), ("icd", "icd_slic"), ("icd", "icd_several_tags")),
    ),
    System("IRNet", "irnet", "refiners", ("refiner",), "learned edges stop the walk"),
    System(
        "SSDD",
        "ssdd",
        "segmenters",
        ("refiner", "segmenter"),
        "predicts where labels will change",
        parts=(
            ("ssdd_pseudo", "ssdd_advice"),
            ("ssdd_pseudo", "ssdd_released"),
            ("ssdd_segmentation", "ssdd_static"),
        ),
    ),
    System("SEAM", "seam", "views", ("classifier", "reader"), "a CAM moves with its image"),
    System(
        "Sub-category", "sccam", "rounds", ("classifier",), "clusters become classes", rounds=True
    ),
    System("CONTA", "conta", "rounds", ("classifier",), "predicted masks are context", rounds=True),
    System(
        "RRM",
        "rrm",
        "segmenters",
        ("classifier", "refiner", "segmenter"),
        "few sure pixels, and an energy for the rest",
        parts=(("rrm", "rrm_no_energy"),),
    ),
    System(
        "BES",
        "bes",
        "refiners",
        ("classifier", "refiner"),
        "edges from windows of labels",
        parts=(("bes", "bes_whole"),),
    ),
    System("CDA", "cda", "rounds", ("classifier",), "objects are pasted elsewhere", rounds=True),
    System(
        "ECS",
        "ecsnet",
        "erasing",
        ("classifier", "reader"),
        "the erased image labels the whole one",
        note="reconstruction",
    ),
    System("AdvCAM", "advcam", "readers", ("reader",), "pixels climb the class's score"),
    System("OC-CSE", "occse", "erasing", ("classifier",), "a frozen judge sees the rest"),
    System("CPN", "cpn", "views", ("classifier", "reader"), "two halves add up to the whole"),
    System("RIB", "rib", "readers", ("reader",), "weights adapt to one image"),
    System(
        "PMM",
        "pmm",
        "refiners",
        PLACES,
        "a pixel goes to whom it matters most",
        rounds=True,
        parts=(
            ("pmm_crops", "gap"),
            ("pmm_seam", "seam_pseudo"),
            ("pmm_seam_segment", "seam_segmentation"),
            ("pmm_windows", "pmm_windows_gap"),
            ("pmm_pus", "pmm_segment"),
            ("truth_pus", "segment_truth"),
        ),
    ),
    System(PAPER, "aeft", "erasing", ("classifier",), "the erased scene stays near the whole"),
)


def system(name: str) -> System:
    """The system of this name, ``seam`` or ``SEAM``.  Raises ValueError naming them all."""
    for known in SYSTEMS:
        if name in (known.name, known.method):
            return known
    names = ", ".join(known.name for known in SYSTEMS)
    raise ValueError(f"no system is called {name!r}; there are {names}")


def ids(chosen: System) -> dict[str, str]:
    """The ids of a system's published numbers, by its ends."""
    if chosen.is_paper:
        names = ("table2.attract_soft_repel", "known.pseudo_label", "results.voc_val")
        return dict(zip(ENDS, names, strict=True))
    return {end: f"rival.{chosen.name}.{end}" for end in ENDS}


def end_of(row: Row) -> str:
    """Of `ENDS`, what a row's numbers are of: a network reads unseen scenes, tags unknown."""
    if row.segmenter or row.scored_on == "val":
        return "segmentation"
    return "pseudo" if row.refiner and row.scored_on == "train" else "seed"


def learned(row: Row, *without: str) -> tuple[object, ...]:
    """What makes a row's seeds: equal for rows that share them.  without: fields that do not count.

    With "reader" left out it is what makes the classifier.
    """
    names = [field.name for field in fields(row) if field.name not in (*AFTER_SEEDS, *without)]
    return tuple(getattr(row, name) for name in names)


def ends(chosen: System, rows: Mapping[str, Row]) -> dict[str, Row]:
    """A system's rows, by its ends; those that are not there are left out.

    rows: all there are, by name (`catalogue.rows_by_name`).
    Seeds without a number of their own are those that its label maps are made of, which may be
    another system's; a network is the one that learned from its label maps.
    """
    every, found = list(rows.values()), {}
    for row in every:
        for end, name in ids(chosen).items():
            if row.published == name:
                found.setdefault(end, row)
    if pseudo := found.get("pseudo"):
        others = {"seed": _read(every, pseudo), "segmentation": _taught(every, pseudo, chosen)}
        found |= {end: same[0] for end, same in others.items() if same and end not in found}
    return {end: found[end] for end in ENDS if end in found}


def _read(rows: list[Row], teacher: Row) -> list[Row]:
    """Seeds that a row's label maps are made of."""
    same = [row for row in rows if row.method and not (row.refiner or row.segmenter)]
    return [row for row in same if learned(row) == learned(teacher)]


def _taught(rows: list[Row], teacher: Row, chosen: System) -> list[Row]:
    """Networks that learned from a row's label maps, a segmenter of the system's own first."""
    own = "segmenter" in chosen.changes
    same = [row for row in rows if row.segmenter and row.prediction == PLAIN]
    same = [row for row in same if row.refiner == teacher.refiner]
    same = [row for row in same if row.method and learned(row) == learned(teacher)]
    return sorted(same, key=lambda row: own == (type(row.segmenter) is LargeFov))


def brief(rows: Mapping[str, Row]) -> list[Row]:
    """GAP's seeds, and of every family those of the first system that makes seeds of its own.

    It is what a look at the field trains.  rows: all there are, by name.
    """
    chosen = [rows["gap"]]
    for family in FAMILIES:
        own = [own_row(known, rows) for known in SYSTEMS if known.family == family]
        chosen += [row for row in own if row and not row.refiner][:1]
    return chosen


def own_row(chosen: System, rows: Mapping[str, Row]) -> Row | None:
    """A system's seeds where it makes its own, else its label maps; None where nothing is there.

    None for the paper's own method too.  rows: all there are, by name.
    """
    found = ends(chosen, rows)
    if chosen.is_paper or not found:
        return None
    first = found.get("seed")
    own = first is not None and first != rows["gap"] and chosen.changes[0] != "refiner"
    return first if own else found.get("pseudo", first)
