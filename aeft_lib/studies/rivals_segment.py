"""Rows of the study `rivals` whose idea lies in the labels or the segmenter: SSDD, RRM, ICD."""

from dataclasses import replace
from typing import Any

from aeft_lib.parts.superpixels import Superpixels
from aeft_lib.rivals import psa
from aeft_lib.rivals.icd import Icd, IcdLabels
from aeft_lib.rivals.rrm import Reliable, Rrm
from aeft_lib.rivals.ssdd import Dynamic, Ssdd
from aeft_lib.stages.method import Refiner
from aeft_lib.stages.psa import Psa
from aeft_lib.studies.rows import GAP, Logged, Row, segmented


def labelled(name: str, label: str, base: Row, refiner: Refiner, **fields: Any) -> Row:
    """Label maps of a row's seeds, made and scored on the training scenes.  fields: of `Row`.

    As `rival.labelled`, which rows of a family leave to the table: imports stay short.
    """
    changes = {"scored_on": "train", "published": None} | fields
    return replace(base, name=name, label=label, refiner=refiner, **changes)


# SSDD begins with AffinityNet's walk, as its authors run it.
WALK = Psa(walk=True, powers=psa.POWERS, steps=psa.STEPS)
PSA_SEED = replace(GAP, name="ssdd_seeds", reader=psa.READER, published=None)


def _static(name: str, label: str, refiner: Ssdd) -> Row:
    """Label maps of SSDD's static stage; where the CRF differs, and how much of it is taken."""
    mechanisms = (Logged(("taken", "differs"), "labels"),)
    return labelled(name, label, PSA_SEED, refiner, mechanisms=mechanisms)


SSDD_LABELS = replace(
    _static("ssdd_pseudo", "SSDD, static", Ssdd(WALK)), published="rival.ssdd.pseudo"
)
SSDD_ROWS = (
    _static("ssdd_advice", "SSDD, its CRF everywhere", Ssdd(WALK, bias=3.0, bg_bias=0.0)),
    SSDD_LABELS,
    _static(
        "ssdd_released",
        "SSDD, static as released",
        Ssdd(WALK, order="released", alignment="released"),
    ),
    segmented("ssdd_static", "SSDD, network on static", SSDD_LABELS),
    replace(
        segmented("ssdd_segmentation", "SSDD, dynamic", SSDD_LABELS),
        segmenter=Dynamic(),
        mechanisms=(Logged(("seed_changed", "differs"), "segmenter"),),
        published="rival.ssdd.segmentation",
    ),
)
# Of the network that makes RRM's label maps: its sure pixels, the energy against cross-entropy.
RELIABLE = (Logged(("labelled", "force"), "network"),)
RRM_LABELS = labelled(
    "rrm_pseudo", "RRM, label maps", GAP, Rrm(), mechanisms=RELIABLE, published="rival.rrm.pseudo"
)
RRM_ONE_STEP = labelled(
    "rrm",
    "RRM, one step",
    GAP,
    Rrm(tags_known=False),
    mechanisms=RELIABLE,
    scored_on="val",
    published="rival.rrm.one_step",
)
RRM_ROWS = (
    RRM_ONE_STEP,
    replace(
        RRM_ONE_STEP,
        name="rrm_no_energy",
        label="RRM, one step without the energy",
        refiner=Rrm(Reliable(energy=0.0), tags_known=False),
        published=None,
    ),
    RRM_LABELS,
    replace(
        segmented("rrm_segmentation", "RRM, two steps", RRM_LABELS),
        published="rival.rrm.segmentation",
    ),
)
ICD_CAM = Row("icd_cam", "ICD, its CAM", Icd(), mechanisms=(Logged(("turned",)),))
TURNED = (Logged(("turned",), "classifier"),)
ICD_LABELS = labelled(
    "icd_pseudo",
    "ICD, label maps",
    ICD_CAM,
    IcdLabels(),
    mechanisms=(),
    published="rival.icd.pseudo",
)
ICD_ROWS = (
    ICD_CAM,
    replace(
        ICD_LABELS,
        name="icd",
        label="ICD, label maps before the CRF",
        refiner=IcdLabels(crf=False),
        scored_on="scored",
        mechanisms=TURNED,
        published="rival.icd.seed",
    ),
    labelled(
        "icd_slic",
        "ICD, superpixels by SLIC",
        replace(ICD_CAM, method=Icd(superpixels=Superpixels(kind="slic"))),
        IcdLabels(crf=False),
        mechanisms=TURNED,
        scored_on="scored",
    ),
    labelled(
        "icd_several_tags",
        "ICD, its direction from images of several tags too",
        replace(ICD_CAM, method=Icd(single_tag_only=False)),
        IcdLabels(crf=False),
        mechanisms=TURNED,
        scored_on="scored",
    ),
    replace(GAP, name="gap_as_icd", label="GAP, passes of ICD", as_long_as=Icd(), published=None),
    ICD_LABELS,
    replace(
        segmented("icd_segmentation", "ICD, network", ICD_LABELS),
        refiner=IcdLabels(unsure="void"),
        published="rival.icd.segmentation",
    ),
)
ROWS = (*SSDD_ROWS, *RRM_ROWS, *ICD_ROWS)
