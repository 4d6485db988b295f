"""Rows of methods that begin with a GAP classifier: AdvCAM and RIB read it otherwise, CDA pastes.

AdvCAM and RIB are compared with the same classifier read plainly, the ReLU first, as they merge:
row ``psa_seed``.  CDA trains a second classifier, with GAP's pseudo-labels; its claim is an
interaction with context, which the study `pasting` asks.
"""

from dataclasses import replace

from aeft_lib.parts.edge_refiner import EdgeRefiner
from aeft_lib.rivals.advcam import AdvCam
from aeft_lib.rivals.cda import Pasting
from aeft_lib.rivals.irnet import PairLoss
from aeft_lib.rivals.rib import Rib
from aeft_lib.stages.method import Refiner
from aeft_lib.stages.psa import Psa
from aeft_lib.studies import levels
from aeft_lib.studies.conditions import CONDITIONS, condition_row
from aeft_lib.studies.rows import GAP, Logged, Row, Study, segmented
from aeft_lib.studies.settings import Setting

AFFINITY = Psa(crf=True, walk=True)  # CDA's published numbers on GAP's seeds are with AffinityNet
# AdvCAM and RIB go on with IRNet's walk, each with numbers of its own (`parts.edge_refiner`).
EDGES_OF_ADVCAM = EdgeRefiner(PairLoss(), thresholds=(0.35, 0.15), power=1.5)
EDGES_OF_RIB = EdgeRefiner(PairLoss(), thresholds=(0.35, 0.17), power=1.3, background=0.27)
CONTEXTS = (levels.BASE, "context_1")  # no background is tied to a class, and every one is
BANK = ("instances", "classes_without", "instance_share")


def _read_by(name: str, label: str, reader: AdvCam | Rib) -> Row:
    """GAP's classifier, read image by image."""
    mechanisms = (Logged(reader.names, "seeds"),)
    fields = {"reader": reader, "mechanisms": mechanisms, "published": None}
    return replace(GAP, name=name, label=label, **fields)


def _pasted(name: str, label: str, composer: Pasting, **fields: Setting) -> Row:
    """A second classifier, on scenes with objects from GAP's label maps.  fields: of both rows."""
    changes = {"refiner": AFFINITY, "scored_on": "train", "published": None}
    teacher = replace(GAP, name="gap_pseudo", label="GAP, pseudo-labels", **changes, **fields)
    made = {"composed_by": (composer, teacher), "mechanisms": (Logged(BANK),), "published": None}
    return replace(GAP, name=name, label=label, **made, **fields)


def _whole(seed: Row, refiner: Refiner) -> tuple[Row, Row, Row]:
    """A method's rows with a published number: seeds, pseudo-labels, segmentation."""
    name, label = seed.name, seed.label
    changes = {"refiner": refiner, "scored_on": "train", "mechanisms": ()}
    pseudo = replace(seed, name=f"{name}_pseudo", label=f"{label}, pseudo-labels", **changes)
    rows = (seed, pseudo, segmented(f"{name}_segmentation", f"{label}, segmentation", pseudo))
    ends = ("seed", "pseudo", "segmentation")
    return tuple(
        replace(row, published=f"rival.{name}.{end}") for row, end in zip(rows, ends, strict=True)
    )


ADVCAM_ROWS = (
    *_whole(_read_by("advcam", "AdvCAM", AdvCam()), EDGES_OF_ADVCAM),
    _read_by("advcam_no_mask", "AdvCAM, no mask term", AdvCam(weight=0.0)),
    _read_by("advcam_absent", "AdvCAM, absent classes alone", AdvCam(suppress="absent")),
)
RIB_ROWS = (
    *_whole(_read_by("rib", "RIB", Rib()), EDGES_OF_RIB),
    _read_by("rib_gap", "RIB, no GNDP", Rib(pooling="gap")),
    _read_by("rib_bce", "RIB, with the sigmoid", Rib(pooling="gap", loss="bce")),
)
CDA_ROWS = (
    *_whole(_pasted("cda", "CDA", Pasting()), AFFINITY),
    _pasted("cda_released", "CDA, as released", Pasting(dilated=True, short_decay=True)),
    # GAP's training, and one on twice as many scenes.
    replace(GAP, name="gap_as_cda", label="GAP, passes of CDA", as_long_as=3.0, published=None),
)
ROWS = (*ADVCAM_ROWS, *RIB_ROWS, *CDA_ROWS)


def _in_context(level: str) -> tuple[Row, Row]:
    """GAP and CDA at a level of the controlled collages."""
    setting = Setting(CONDITIONS[level])
    return condition_row(level, "gap"), _pasted(
        f"{level}.cda", f"CDA, {level}", Pasting(), setting=setting
    )


PASTING = Study(
    "pasting",
    "Does pasting objects on other backgrounds help where backgrounds are tied to classes, and "
    "only there?",
    tuple(row for level in CONTEXTS for row in _in_context(level)),
    long=True,
    needs="collages",
    apart=True,
)
