"""Rivals that begin with the seeds of GAP: how label maps are made of them, and learned from.

AffinityNet and PMM, with each part left out.
"""

from dataclasses import replace
from typing import Any

from aeft_lib.rivals import psa
from aeft_lib.rivals.pmm import Ppmg, Pus
from aeft_lib.stages.method import Refiner
from aeft_lib.stages.multi_crop import MultiCrop
from aeft_lib.stages.psa import Psa
from aeft_lib.studies.rivals import SEAM
from aeft_lib.studies.rows import GAP, SEGMENT_TRUTH, Row, segmented


def _labelled(name: str, label: str, base: Row, refiner: Refiner, **fields: Any) -> Row:
    """Label maps of a row's seeds, made and scored on the training scenes.  fields: of `Row`."""
    changes = {"scored_on": "train", "published": None} | fields
    return replace(base, name=name, label=label, refiner=refiner, **changes)


PSA_SEED = replace(
    GAP, name="psa_seed", label="AffinityNet, seeds", reader=psa.READER, published="rival.psa.seed"
)
PSA_LABELS = _labelled(
    "psa",
    "AffinityNet",
    PSA_SEED,
    Psa(walk=True, powers=psa.POWERS, steps=psa.STEPS),
    published="rival.psa.pseudo",
)
PSA = (
    PSA_SEED,
    PSA_LABELS,
    _labelled(
        "psa_crf", "AffinityNet, no walk: its CRF", PSA_SEED, Psa(crf=True, powers=psa.POWERS)
    ),
    segmented("psa_segment", "AffinityNet, network", PSA_LABELS),
)
PMM_LABELS = _labelled("pmm", "PMM", GAP, Ppmg(), published="rival.pmm.pseudo")
PMM_SEGMENT = segmented("pmm_segment", "PMM, network", PMM_LABELS)
PMM = (
    replace(
        GAP, name="pmm_crops", label="PMM, seeds in windows", reader=MultiCrop(), published=None
    ),
    PMM_LABELS,
    _labelled("pmm_seam", "PMM on SEAM", SEAM, Ppmg(), mechanisms=()),
    # Each part left out: smoothing, the proportion, both (the CRF of all classes together).
    _labelled("pmm_no_cvs", "PMM, not smoothed", GAP, Ppmg(smoothing=0.0)),
    _labelled("pmm_score", "PMM, by score", GAP, Ppmg(importance="score")),
    _labelled("gap_crf", "GAP, one CRF of all classes", GAP, Psa(crf=True)),
    PMM_SEGMENT,
    replace(PMM_SEGMENT, name="pmm_pus", label="PMM, network with PUS", segmenter=Pus()),
    # Without noise in the labels PUS has nothing to gain.
    SEGMENT_TRUTH,
    replace(SEGMENT_TRUTH, name="truth_pus", label="true masks, network with PUS", segmenter=Pus()),
)
ROWS = (*PSA, *PMM)
