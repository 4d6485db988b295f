"""When do the paper's claims hold?  Its rows on controlled collages, one knob at a time; causes.

Decided before anything was compared, by rules that read no mask:

- base level: one object of VOC's median area (0.15), no context, clutter or occlusion; levels on
  both sides of it where there are two sides, the ends of the range where there is one;
- map: 12x12, with levels that keep the paper's cells per bin;
- length: epochs until the tag mAP of unseen scenes rises by less than a point, for GAP and for G
  (4; see study `settings`);
- depth: the last stage, which leaves four methods three repeats at twelve levels, and the causes
  theirs, within three hours on two cores;
- the second phase is the laptop's, chosen by tags there.

Decided after repeat 0: depths four and seven, and which causes get three repeats (`mechanism`) or
one (`settings`).
"""

from dataclasses import replace

from aeft_lib.paper.gpp import Gap, Pyramid
from aeft_lib.paper.triplet import CORRECTED, Triplet
from aeft_lib.studies.levels import BASE, LEVELS
from aeft_lib.studies.rows import (
    NOTHING_ADDED,
    OFF,
    RIGID,
    SOFT,
    SOFT_REPEL,
    Row,
    Study,
    classified,
    second,
)
from aeft_lib.studies.settings import OPTIMISER_QUIRKS, Condition, Setting

METHODS = ("gap", "gated", "average", "aeft")
POOLINGS = {"gap": Gap(), "gated": Pyramid(), "average": Pyramid("average")}
SHORT = {"gap": "GAP", "gated": "G", "average": "A"}
CONDITIONS = {BASE: Condition()} | {
    f"{knob}_{value:g}": Condition(((knob, value),))
    for knob, values in LEVELS.items()
    for value in values
}
STRENGTHS = (1, 4)  # times the profile's weights of attract and repel


def condition_row(level: str, method: str) -> Row:
    """The row of a level and a method, named ``LEVEL.METHOD``."""
    name, setting = f"{level}.{method}", Setting(CONDITIONS[level])
    if method == "aeft":
        return second(name, f"soft + repel, {level}", SOFT_REPEL, setting=setting)
    return classified(name, f"{SHORT[method]}, {level}", POOLINGS[method], setting=setting)


def _variant(name: str, label: str, pooling: Pyramid) -> Row:
    """Another layer in place of G at the base level."""
    return classified(f"{name}.gated", label, pooling, setting=Setting(CONDITIONS[BASE]))


def _both(name: str, label: str, setting: Setting, *, keep_epochs: bool = False) -> tuple[Row, Row]:
    """GAP and G under other conditions of training."""
    fields = {"setting": setting, "keep_epochs": keep_epochs}
    return tuple(
        classified(f"{name}.{method}", f"{SHORT[method]}, {label}", POOLINGS[method], **fields)
        for method in ("gap", "gated")
    )


def _depth(stages: int) -> Setting:
    """The base level with so many trained stages."""
    return Setting(CONDITIONS[BASE], trained_stages=stages)


def _erasing(
    name: str,
    label: str,
    triplet: Triplet,
    strength: int = 1,
    quirks: tuple[str, ...] = OPTIMISER_QUIRKS,
) -> Row:
    """Forty steps of a triplet at the base level, scored every ten, its weights times strength."""
    phase = (("epochs", 4), ("steps_per_epoch", 10))
    weights = (strength * triplet.attract_weight, strength * triplet.repel_weight)
    return second(
        f"erase_{name}.x{strength}",
        f"{label}, ×{strength}",
        replace(triplet, attract_weight=weights[0], repel_weight=weights[1]),
        quirks=quirks,
        setting=Setting(CONDITIONS[BASE], phase=phase),
        keep_epochs=True,
    )


MECHANISM = (
    condition_row(BASE, "gap"),
    condition_row(BASE, "gated"),
    _variant("root", "G, square root", Pyramid(prediction="square_root")),
    _variant("coarsest", "2×2", Pyramid("single", (2,))),
    _variant("finest", "16×16", Pyramid("single", (16,))),
    *_both("depth0", "frozen backbone", _depth(0)),
    *_both("depth2", "two stages trained", _depth(2)),
    *_both("depth4", "four stages trained", _depth(4)),
)
SETTINGS = (
    condition_row(BASE, "gap"),
    condition_row(BASE, "gated"),
    _variant("normalised", "G, normalised", Pyramid(prediction="normalised")),
    _variant("open", "G, gates begin open", Pyramid(gate_gain=2.0)),
    _variant("printed", "G, bins as printed", Pyramid(printed=True)),
    *_both("short", "2 epochs", Setting(Condition(epochs=2))),
    *_both("long", "12 epochs", Setting(Condition(epochs=12)), keep_epochs=True),
    *_both("depth7", "all stages trained", _depth(7)),
    *_both("map16", "16×16 map", Setting(Condition(size=256))),
    *_both("map20", "20×20 map", Setting(Condition(size=320))),
)
ERASING_STRENGTH = (
    _erasing("off", "GPP only", OFF),
    *(_erasing("rigid", "rigid", RIGID, strength) for strength in STRENGTHS),
    *(_erasing("soft", "soft", SOFT, strength) for strength in STRENGTHS),
    *(_erasing("soft_repel", "soft + repel", SOFT_REPEL, strength) for strength in STRENGTHS),
    _erasing("off_corrected", "GPP only, corrected optimiser", NOTHING_ADDED, quirks=()),
    *(_erasing("corrected", "corrected", CORRECTED, strength, ()) for strength in STRENGTHS),
)
# On photos, where depth can be turned and scenes cannot; the profile's own depth: other studies.
PHOTO_DEPTH = tuple(
    row
    for stages in (1, 4)
    for row in _both(
        f"photos_depth{stages}", f"{stages} stages trained", Setting(trained_stages=stages)
    )
)
CONDITION_STUDIES = (
    Study(
        "conditions",
        "At which object size, number of objects, context, clutter and occlusion do the paper's "
        "claims hold?",
        # By method: processes side by side work on different levels, each with its own features.
        tuple(condition_row(level, method) for method in METHODS for level in CONDITIONS),
        long=True,
        needs="collages",
    ),
    Study(
        "conditions_brief",
        "The same for GAP and G at three levels: what a first reproduction has time for.",
        tuple(
            condition_row(level, method)
            for method in METHODS[:2]
            for level in (BASE, "object_area_0.03", "context_1")
        ),
        needs="collages",
        committed="conditions",
    ),
    Study(
        "mechanism",
        "What in the layer or in its training makes the difference between GAP and GPP?",
        MECHANISM,
        long=True,
        needs="collages",
    ),
    Study(
        "settings",
        "And which other settings of the layer and its training might: one repeat.",
        SETTINGS,
        long=True,
        most_repeats=1,
        needs="collages",
    ),
    Study(
        "erasing_strength",
        "How do recall and precision move with the strength and the steps of erasing, and where "
        "does each kind stop?",
        ERASING_STRENGTH,
        long=True,
        most_repeats=2,
        needs="collages",
    ),
    Study(
        "photo_depth",
        "Does it decide between GAP and GPP on photos too how much of the backbone is trained?",
        PHOTO_DEPTH,
        long=True,
        needs="photos",
    ),
)
