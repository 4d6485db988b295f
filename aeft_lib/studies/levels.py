"""Levels of the knobs, comparisons at every level, and the claims that a report makes of them."""

from collections.abc import Iterator
from typing import NamedTuple

from aeft_lib.studies.effects import REPEATS

BASE = "base"
# Levels of every knob besides the base's, which is amid the first knob's and below the others'.
LEVELS = {
    "object_area": (0.03, 0.07, 0.35),
    "objects": (2, 3),
    "context": (0.5, 1.0),
    "clutter": (6, 12),
    "occlusion": (0.25, 0.5),
}
BASE_LEVELS = {"object_area": 0.15, "objects": 1, "context": 0.0, "clutter": 0, "occlusion": 0.0}
# Claims at every level: which method should beat which.
COMPARISONS = {
    "gpp": ("gated", "gap", "GPP − GAP"),
    "gates": ("gated", "average", "G − A"),
    "triplet": ("aeft", "gated", "soft + repel − GPP"),
}
TEXTS = {
    "gpp": "GPP gives better seeds than GAP",
    "gates": "the gates give better seeds than the plain average",
    "triplet": "soft + repel gives better seeds than GPP alone",
}
OWN_DEPTH = "profile"  # photos at the depth of their profile: the rows of other studies
# Trained stages -> what rows begin with on collages, and on photos.
DEPTHS = {
    0: ("depth0", ""),
    1: (BASE, "photos_depth1"),
    2: ("depth2", OWN_DEPTH),
    4: ("depth4", "photos_depth4"),
    7: ("depth7", ""),
}


class Level(NamedTuple):
    """A level of a knob; the base is a level of every knob.  row: prefix of its rows' names."""

    knob: str
    value: float
    row: str


class Claim(NamedTuple):
    """A line of the report: row `more` of a study should beat `less`; photos: real_photos.csv.

    repeats: as many as a verdict needs.
    """

    id: str
    text: str
    study: str
    more: str
    less: str
    photos_more: str = ""
    photos_less: str = ""
    repeats: int = REPEATS


def levels() -> Iterator[Level]:
    """All levels, knob by knob, in the order of their values."""
    for knob, values in LEVELS.items():
        for value in sorted((*values, BASE_LEVELS[knob])):
            yield Level(knob, value, BASE if value == BASE_LEVELS[knob] else f"{knob}_{value:g}")


def claims() -> Iterator[Claim]:
    """Every level of every knob, and every depth of training, as a claim of the report."""
    for name, (more, less, _) in COMPARISONS.items():
        for level in levels():
            suffix = "" if name == "gpp" else f".{name}"
            text = f"{level.knob.replace('_', ' ')} {level.value:g}: {TEXTS[name]}"
            claim = f"condition.{level.knob}.{level.value:g}{suffix}"
            rows = (f"{level.row}.{method}" for method in (more, less))
            yield Claim(claim, text, "conditions", *rows)
    for stages, (collages, photos) in DEPTHS.items():
        text = f"trained stages {stages}: {TEXTS['gpp']}"
        rows = [
            f"{prefix}.{method}" if prefix else ""
            for prefix in (collages, photos)
            for method in ("gated", "gap")
        ]
        rows[2:] = ["gated", "gap"] if photos == OWN_DEPTH else rows[2:]
        study = "settings" if collages == "depth7" else "mechanism"
        yield Claim(f"condition.trained_stages.{stages}", text, study, *rows)
