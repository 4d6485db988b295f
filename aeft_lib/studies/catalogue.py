"""The experiments as data: every study with its question, its rows and their published numbers."""

from collections.abc import Iterable
from dataclasses import replace

from aeft_lib.paper.gpp import Pyramid
from aeft_lib.paper.triplet import CORRECTED, LOSS_QUIRKS
from aeft_lib.rivals.ours import OURS
from aeft_lib.stages.psa import Psa
from aeft_lib.studies import rivals, rivals_grid, rivals_readers
from aeft_lib.studies.conditions import CONDITION_STUDIES
from aeft_lib.studies.evening import FIRST_SOFT, FIRST_SOFT_REPEL, LONGER, MATCHED, PARTS
from aeft_lib.studies.names import near_misses, unknown
from aeft_lib.studies.rows import (
    GAP,
    GATED,
    NOTHING_ADDED,
    OFF,
    RIGID,
    SEGMENT_TRUTH,
    SOFT,
    SOFT_REPEL,
    Prediction,
    Row,
    Study,
    classified,
    second,
    segmented,
)
from aeft_lib.studies.settings import AS_PROFILED, OPTIMISER_QUIRKS, Setting

SINGLE_LEVELS = tuple(
    replace(
        classified(f"level{level}", f"{level}×{level}", Pyramid("single", (level,))),
        published=f"table1.{level}x{level}",
    )
    for level in (2, 4, 8, 16)
)
AVERAGE = classified("average", "A", Pyramid("average"))
INVERSE = classified("inverse", "$G_I$", Pyramid("inverse"))


def _with_quirks(name: str, label: str, quirks: Iterable[str]) -> Row:
    """The whole method with these quirks of the reference, and all others corrected."""
    quirks = set(quirks)
    values = {field: value for field, value in LOSS_QUIRKS.items() if field in quirks}
    optimiser = tuple(quirk for quirk in OPTIMISER_QUIRKS if quirk in quirks)
    return second(name, label, replace(CORRECTED, **values), quirks=optimiser)


QUIRKS = (*OPTIMISER_QUIRKS, *LOSS_QUIRKS)
# Measured one by one.  `missing_negative` has no row: every anchor has a negative here (logged as
# ``without_negative``).
MEASURED_QUIRKS = tuple(quirk for quirk in QUIRKS if quirk != "missing_negative")
# The others are taken away from the reference with a detached mask, at half the cost.
DETACHED = set(QUIRKS) - {"mask_gradient"}
TAKEN_AWAY = tuple(quirk for quirk in MEASURED_QUIRKS if quirk in DETACHED)
KEPT = {"keep_epochs": True}
GPP_ONLY = second("gpp_only", "GPP only", OFF, published="table2.gpp_only", **KEPT)
RIGID_ROW = second(
    "attract_rigid", "attract (rigid)", RIGID, published="table2.attract_rigid", **KEPT
)
SOFT_ROW = second("attract_soft", "attract (soft)", SOFT, published="table2.attract_soft", **KEPT)
# The paper's method, complete: what refinement and segmentation start from.
AEFT = second(
    "attract_soft_repel", "soft + repel", SOFT_REPEL, published="table2.attract_soft_repel", **KEPT
)
OURS_ROW = second("ours", "ours", OURS, quirks=(), **KEPT)
CORRECTED_ROW = _with_quirks("corrected", "corrected", ())
CORRECTED_BASELINE = second(
    "gpp_only_corrected", "GPP only, corrected optimiser", NOTHING_ADDED, quirks=()
)
OURS_WEIGHTS = {name: getattr(OURS, name) for name in ("attract_weight", "repel_weight")}
TRIPLET_ROWS = (
    GPP_ONLY,
    RIGID_ROW,
    SOFT_ROW,
    second("repel_only", "repel", replace(SOFT_REPEL, attract="off")),
    AEFT,
    second("attract_soft_repel_cam", "soft + repel, in the CAM", replace(SOFT_REPEL, space="cam")),
    second("soft_repel_strong", "soft + repel, ours' weights", replace(SOFT_REPEL, **OURS_WEIGHTS)),
    OURS_ROW,
)


def _refined(name: str, label: str, refiner: Psa, published: str | None = None) -> Row:
    """AEFT's seeds refined on the training scenes, where pseudo-labels are made."""
    # With AEFT's `keep_epochs`, so that both share one training.
    changes = {"scored_on": "train", "published": published}
    return replace(AEFT, name=name, label=label, refiner=refiner, **changes)


AEFT_SEED = _refined("aeft_seed", "seed", Psa(), "table2.attract_soft_repel")
AEFT_PSEUDO = _refined(
    "aeft_pseudo", "+ walk + CRF", Psa(crf=True, walk=True), "known.pseudo_label"
)


def _settings(
    tag: str, label: str, setting: Setting = AS_PROFILED, **changes: float
) -> tuple[Row, ...]:
    """Soft and rigid erasing under other settings; of the training, with a baseline of its own."""
    rows = [
        second(f"rigid_{tag}", f"rigid, {label}", replace(RIGID, **changes), setting=setting),
        second(f"soft_{tag}", f"soft, {label}", replace(SOFT, **changes), setting=setting),
    ]
    if setting != AS_PROFILED:
        baseline = second(f"gpp_only_{tag}", f"GPP only, {label}", OFF, setting=setting)
        rows.insert(0, baseline)
    return tuple(rows)


STUDIES = {
    study.name: study
    for study in (
        Study(
            "gap_vs_gpp",
            "Do CAMs trained with GPP fit objects better than CAMs trained with GAP?",
            (GAP, GATED),
        ),
        Study(
            "pyramid_ablation",
            "Which part of the GPP layer does the work: the levels, the gates, their direction, "
            "the negative evidence?",
            (
                GAP,
                *SINGLE_LEVELS,
                replace(AVERAGE, published="table1.A"),
                replace(INVERSE, published="table1.G_I"),
                GATED,
                classified("gated_unscaled", "G, bins as printed", Pyramid(printed=True)),
                classified(
                    "positive_only", "G, positive only", Pyramid(prediction="positive_only")
                ),
                classified(
                    "attention_off", "G, attention off", Pyramid(prediction="attention_off")
                ),
            ),
        ),
        Study(
            "triplet_ablation",
            "What do attract (soft or rigid) and repel do to seeds, at the same number of further "
            "steps?",
            TRIPLET_ROWS,
            common="gpp_only",
        ),
        Study(
            "ours_ablation",
            "Is it the triplet that makes ours better, or its optimiser, and which part of it? "
            "What does the paper's triplet gain with that optimiser?",
            (
                CORRECTED_BASELINE,
                CORRECTED_ROW,
                OURS_ROW,
                second(
                    "ours_anchor_moves",
                    "ours, anchor moves",
                    replace(OURS, anchor_gradient=True),
                    quirks=(),
                ),
                second("ours_ring", "ours, ring mask", replace(OURS, keep="ring"), quirks=()),
                second(
                    "ours_own_tags",
                    "ours, own-tag negatives",
                    replace(OURS, repel_target="own_tags"),
                    quirks=(),
                ),
            ),
            common="ours",
            long=True,
        ),
        Study(
            "quirks",
            "What does each quirk of the reference do, taken away from the reference, or put into "
            "the corrected method?",
            (
                _with_quirks("reference", "reference", QUIRKS),
                replace(
                    AEFT,
                    name="detached",
                    label="reference, mask_gradient corrected",
                    published=None,
                ),
                *(
                    _with_quirks(f"without_{q}", f"reference, {q} corrected", DETACHED - {q})
                    for q in TAKEN_AWAY
                ),
                CORRECTED_ROW,
                *(
                    _with_quirks(f"with_{q}", f"corrected, {q} as the reference", {q})
                    for q in MEASURED_QUIRKS
                ),
            ),
            common="reference",
            long=True,
            most_repeats=2,
        ),
        Study(
            "erasing_settings",
            "Do the claims about rigid and soft erasing depend on the erasing threshold, the rate, "
            "the steps or the map?",
            (
                GPP_ONLY,
                RIGID_ROW,
                SOFT_ROW,
                *_settings("low", "t_H 0.4", erase_threshold=0.4),
                *_settings("high", "t_H 0.8", erase_threshold=0.8),
                *_settings("slow", "rate / 3", Setting(phase=(("rate", 0.01),))),
                *_settings("long", "60 steps", Setting(phase=(("epochs", 12),))),
                *_settings("fine", "finer map", Setting(scale=1.5)),
            ),
            common="gpp_only",
            long=True,
            most_repeats=1,
        ),
        Study(
            "refinement",
            "What do the CRF and the random walk make of seeds, on the training scenes where "
            "pseudo-labels are needed?",
            (
                AEFT_SEED,
                _refined("aeft_crf", "+ CRF", Psa(crf=True)),
                _refined("aeft_walk", "+ walk", Psa(walk=True)),
                AEFT_PSEUDO,
            ),
        ),
        Study(
            "segmentation",
            "How good is a segmentation network on unseen scenes, trained on seeds, pseudo-labels "
            "or true masks?",
            (
                SEGMENT_TRUTH,
                segmented("segment_aeft", "pseudo-labels", AEFT_PSEUDO),
                segmented("segment_seed", "seeds", AEFT_SEED),
                segmented(
                    "segment_aeft_crf",
                    "pseudo-labels, CRF at the end",
                    AEFT_PSEUDO,
                    Prediction(crf=True),
                ),
                segmented(
                    "segment_aeft_tags",
                    "pseudo-labels, tags known",
                    AEFT_PSEUDO,
                    Prediction(tags_known=True),
                ),
                replace(
                    AEFT_PSEUDO,
                    name="aeft_unseen",
                    label="no network: tags known",
                    scored_on="val",
                    published=None,
                ),
            ),
        ),
        Study(
            "rivals",
            "Do other methods of the poster's results table give better seeds, pseudo-labels and "
            "networks than GAP, in one harness, and does what they claim to do happen?",
            rivals.ROWS,
            apart=True,
            long=True,
        ),
        Study(
            "rivals_grid",
            "Do parts of different methods work together that nobody has joined: seeds of one, "
            "label maps by another?",
            rivals_grid.rows(AEFT, rivals.ROWS),
            apart=True,
            long=True,
            committed="rivals",
        ),
        rivals_readers.PASTING,
        *CONDITION_STUDIES,
        Study(
            "pooling_over_steps",
            "Do CAMs of GPP fit better than those of GAP once both have learned their tags, and "
            "from which step on?",
            (GAP, replace(AVERAGE, published="table1.A"), GATED),
            needs="curves",
        ),
        Study(
            "triplet_versions",
            "What do attract and repel do in each of the two losses that the authors published, "
            "and which part of the first makes the difference?",
            (
                GPP_ONLY,
                MATCHED,
                RIGID_ROW,
                SOFT_ROW,
                AEFT,
                FIRST_SOFT,
                FIRST_SOFT_REPEL,
                *PARTS,
                CORRECTED_BASELINE,
                CORRECTED_ROW,
                OURS_ROW,
            ),
            common="gpp_only",
            needs="curves",
        ),
        Study(
            "levels_over_steps",
            "Which levels of the pyramid, and which direction, fit better once they have learned?",
            (*SINGLE_LEVELS, replace(INVERSE, published="table1.G_I")),
            needs="curves",
        ),
        Study(
            "longer_trainings",
            "Does the difference between GAP and G go on growing with the steps?",
            LONGER,
            needs="curves",
        ),
    )
}


def row(name: str) -> Row:
    """The row of this name, whatever study it is in.  Raises ValueError where there is none."""
    return study_of(name).row(name)


def rows_by_name() -> dict[str, Row]:
    """All rows of studies that need nothing, by name, in their order.

    Rows of the study `rivals` are theirs: they log mechanisms that the same rows elsewhere do not.
    """
    rows: dict[str, Row] = {}
    for study in [study for study in STUDIES.values() if not study.needs]:
        for row in study.rows:
            rows.setdefault(row.name, row)
    return rows | {row.name: row for row in STUDIES["rivals"].rows}


def study_of(row: str) -> Study:
    """The largest study that has this row, of those that need nothing and are not apart, if any.

    Raises ValueError where none has.
    """
    studies = STUDIES.values()
    having = [study for study in studies if any(known.name == row for known in study.rows)]
    if not having:
        names = dict.fromkeys(known.name for study in studies for known in study.rows)
        raise ValueError(f"no study has a row {row!r}{near_misses(row, names)}")
    return max(having, key=lambda study: (not study.needs, not study.apart, len(study.rows)))


def get(name: str) -> Study:
    """The study of this name.  Raises ValueError naming the studies there are."""
    if name not in STUDIES:
        raise unknown(f"unknown study {name!r}", name, STUDIES)
    return STUDIES[name]
