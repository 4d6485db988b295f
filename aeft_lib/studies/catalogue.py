"""The experiments as data: every study with its question, its rows and their published counterparts, found by name."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from aeft_lib.paper.triplet import CORRECTED, LOSS_QUIRKS
from aeft_lib.studies.conditions import CONDITION_STUDIES
from aeft_lib.studies.rows import AnyRow, RefinedRow, Row, SegmentationRow
from aeft_lib.studies.settings import OPTIMISER_QUIRKS
from aeft_lib.studies.study import Study
from aeft_lib.studies.variants import NOTHING_ADDED, OFF, OURS, RIGID, SOFT, SOFT_REPEL, STRONG, second

GAP = Row("gap", "GAP", "gap", levels=(), published="known.gap_seed")
GATED = Row("gated", "G", "gated", published="table1.G")
SINGLE_LEVELS = tuple(
    Row(f"level{level}", f"{level}×{level}", "single", levels=(i,), published=f"table1.{level}x{level}")
    for i, level in enumerate((2, 4, 8, 16))
)


def _with_quirks(name: str, label: str, quirks: Iterable[str]) -> Row:
    """The whole method with these quirks of the reference, and all others corrected."""
    quirks = set(quirks)
    loss = replace(CORRECTED, **{field: value for field, value in LOSS_QUIRKS.items() if field in quirks})
    return second(name, label, loss, quirks=tuple(quirk for quirk in OPTIMISER_QUIRKS if quirk in quirks))


QUIRKS = (*OPTIMISER_QUIRKS, *LOSS_QUIRKS)
# Measured one by one.  `missing_negative` has no row: every anchor finds a negative here (logged as ``without_negative``).
MEASURED_QUIRKS = tuple(quirk for quirk in QUIRKS if quirk != "missing_negative")
# The others are taken away from the reference with a detached mask, at half the cost.
DETACHED = set(QUIRKS) - {"mask_gradient"}
TAKEN_AWAY = tuple(quirk for quirk in MEASURED_QUIRKS if quirk in DETACHED)
GPP_ONLY = second("gpp_only", "GPP only", OFF, published="table2.gpp_only", keep_epochs=True)
RIGID_ROW = second("attract_rigid", "attract (rigid)", RIGID, published="table2.attract_rigid", keep_epochs=True)
SOFT_ROW = second("attract_soft", "attract (soft)", SOFT, published="table2.attract_soft", keep_epochs=True)
# The paper's method, complete: what refinement and segmentation start from.
AEFT = second("attract_soft_repel", "soft + repel", SOFT_REPEL, published="table2.attract_soft_repel", keep_epochs=True)
OURS_ROW = second("ours", "ours", OURS, quirks=(), keep_epochs=True)
TRIPLET_ROWS = (
    GPP_ONLY,
    RIGID_ROW,
    SOFT_ROW,
    second("repel_only", "repel", replace(SOFT_REPEL, attract="off")),
    AEFT,
    second("attract_soft_repel_cam", "soft + repel, in the CAM", replace(SOFT_REPEL, space="cam")),
    second("soft_repel_strong", "soft + repel, ours' weights", STRONG),
    OURS_ROW,
)

AEFT_SEED = RefinedRow("aeft_seed", "seed", AEFT, published="table2.attract_soft_repel")
AEFT_PSEUDO = RefinedRow("aeft_pseudo", "+ walk + CRF", AEFT, crf=True, walk=True, published="known.pseudo_label")


def _settings(tag: str, label: str, course: dict[str, Any] | None = None, **changes: float) -> tuple[Row, ...]:
    """Soft and rigid erasing with other settings of the loss, or on another course, then with a baseline of their own."""
    course = course or {}
    rows = [
        second(f"rigid_{tag}", f"rigid, {label}", replace(RIGID, **changes), **course),
        second(f"soft_{tag}", f"soft, {label}", replace(SOFT, **changes), **course),
    ]
    if course:
        rows.insert(0, second(f"gpp_only_{tag}", f"GPP only, {label}", OFF, **course))
    return tuple(rows)


STUDIES = {
    study.name: study
    for study in (
        Study("gap_vs_gpp", "Do CAMs trained with GPP fit objects better than CAMs trained with GAP?", (GAP, GATED)),
        Study(
            "pyramid_ablation",
            "Which part of the GPP layer does the work: the levels, the gates, their direction, the negative evidence?",
            (
                GAP,
                *SINGLE_LEVELS,
                Row("average", "A", "average", published="table1.A"),
                Row("inverse", "$G_I$", "inverse", published="table1.G_I"),
                GATED,
                Row("gated_unscaled", "G, bins as printed", "gated", scaled=False),
                Row("positive_only", "G, positive only", "gated", prediction="positive_only"),
                Row("attention_off", "G, attention off", "gated", prediction="attention_off"),
            ),
        ),
        Study(
            "triplet_ablation",
            "What do attract (soft or rigid) and repel do to seeds, at the same number of further steps?",
            TRIPLET_ROWS,
            common="gpp_only",
        ),
        Study(
            "ours_ablation",
            "Is it the triplet that makes ours better, or its optimiser, and which part of it?",
            (
                second("gpp_only_corrected", "GPP only, corrected optimiser", NOTHING_ADDED, quirks=()),
                OURS_ROW,
                second("ours_anchor_moves", "ours, anchor moves", replace(OURS, anchor_gradient=True), quirks=()),
                second("ours_ring", "ours, ring mask", replace(OURS, keep="ring"), quirks=()),
                second("ours_own_tags", "ours, own-tag negatives", replace(OURS, repel_target="own_tags"), quirks=()),
            ),
            common="ours",
        ),
        Study(
            "quirks",
            "What does each quirk of the reference do, taken away from the reference, or put into the corrected method?",
            (
                _with_quirks("reference", "reference", QUIRKS),
                replace(AEFT, name="detached", label="reference, mask_gradient corrected", published=None),
                *(_with_quirks(f"without_{q}", f"reference, {q} corrected", DETACHED - {q}) for q in TAKEN_AWAY),
                _with_quirks("corrected", "corrected", ()),
                *(_with_quirks(f"with_{q}", f"corrected, {q} as the reference", {q}) for q in MEASURED_QUIRKS),
            ),
            common="reference",
            long=True,
            most_seeds=2,
        ),
        Study(
            "erasing_settings",
            "Do the claims about rigid and soft erasing depend on the erasing threshold, the rate, the steps or the map?",
            (
                GPP_ONLY,
                RIGID_ROW,
                SOFT_ROW,
                *_settings("low", "t_H 0.4", erase_threshold=0.4),
                *_settings("high", "t_H 0.8", erase_threshold=0.8),
                *_settings("slow", "rate / 3", {"phase": (("rate", 0.01),)}),
                *_settings("long", "60 steps", {"phase": (("epochs", 12),)}),
                *_settings("fine", "finer map", {"scale": 1.5}),
            ),
            common="gpp_only",
            long=True,
            most_seeds=1,
        ),
        Study(
            "refinement",
            "What do the CRF and the random walk make of seeds, on the training scenes where pseudo-labels are needed?",
            (
                AEFT_SEED,
                RefinedRow("aeft_crf", "+ CRF", AEFT, crf=True),
                RefinedRow("aeft_walk", "+ walk", AEFT, walk=True),
                AEFT_PSEUDO,
            ),
            first=("aeft_pseudo",),
        ),
        Study(
            "segmentation",
            "How good is a segmentation network on unseen scenes, trained on seeds, pseudo-labels or true masks?",
            (
                SegmentationRow("segment_truth", "true masks", None),
                SegmentationRow("segment_aeft", "pseudo-labels", AEFT_PSEUDO),
                SegmentationRow("segment_seed", "seeds", AEFT_SEED),
                SegmentationRow("segment_aeft_crf", "pseudo-labels, CRF at the end", AEFT_PSEUDO, crf=True),
                SegmentationRow("segment_aeft_tags", "pseudo-labels, tags known", AEFT_PSEUDO, tags_known=True),
                replace(AEFT_PSEUDO, name="aeft_unseen", label="no network: tags known", split="val", published=None),
            ),
            first=("segment_truth", "segment_aeft", "segment_seed"),
        ),
        *CONDITION_STUDIES,
    )
}


def row(name: str) -> AnyRow:
    """The row of this name, whatever study it is in.  Raises ValueError where there is none."""
    return study_of(name).row(name)


def study_of(row: str) -> Study:
    """The largest study that has this row.  Raises ValueError where none has."""
    having = [study for study in STUDIES.values() if any(known.name == row for known in study.rows)]
    if not having:
        raise ValueError(f"no study has a row {row!r}")
    return max(having, key=lambda study: len(study.rows))


def get(name: str) -> Study:
    """The study of this name.  Raises ValueError naming the studies there are."""
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}; there are {', '.join(STUDIES)}")
    return STUDIES[name]
