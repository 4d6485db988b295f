"""The study `rivals`: an entry a method, from which its rows and lines of the report follow."""

from dataclasses import replace

from aeft_lib.parts.refined import RefinedMaps
from aeft_lib.rivals import cpn, psa, seam
from aeft_lib.rivals.cpn import Cpn
from aeft_lib.rivals.cpn_pixels import PixelsAlone
from aeft_lib.rivals.occse import OcCse
from aeft_lib.rivals.pmm import Ppmg, Pus
from aeft_lib.rivals.sccam import ScCam, SubCategories
from aeft_lib.rivals.seam import Seam
from aeft_lib.stages.multi_crop import MultiCrop
from aeft_lib.stages.psa import Psa
from aeft_lib.stages.relu_first import ReluFirst
from aeft_lib.studies import rivals_irn, rivals_readers, rivals_rounds, rivals_segment
from aeft_lib.studies.rival import BASE, PSA, ends, labelled, rows_of
from aeft_lib.studies.rivals_rounds import SEAM
from aeft_lib.studies.rows import GAP, SEGMENT_TRUTH, Logged, Row, segmented

OCCSE = Row(
    "occse",
    "OC-CSE",
    OcCse(),
    judges=(("oc", GAP),),
    mechanisms=(Logged(("p_erased", "p_kept")),),
    published="rival.occse.seed",
)
CPN = Row(
    "cpn",
    "CPN",
    Cpn(),
    reader=RefinedMaps(),
    mechanisms=(Logged(("complementarity_error",)),),
    published="rival.cpn.seed",
)


def _part(row: Row, name: str, label: str, **fields: object) -> Row:
    """A row with a part of its method changed.  name, label: of the part.  fields: of `Row`."""
    changes = {"name": f"{row.name}_{name}", "label": f"{row.label}, {label}"}
    return replace(row, **changes, published=None, **fields)


def _released(row: Row, **fields: object) -> Row:
    """A row with the quirks of its method's release.  fields: of `Row`."""
    return _part(row, "released", "as released", **fields)


def _before_refinement(row: Row) -> Row:
    """The CAM of a row's classifier, which its reader refines."""
    reader = RefinedMaps(refined=False)
    return _part(row, "raw", "CAM before refinement", reader=reader)


def _round(name: str, label: str, teacher: Row, **labeller: int) -> Row:
    """A round of SC-CAM, after the teacher's.  labeller: fields of `SubCategories`."""
    names = ("sub_ap", "sub_accuracy", "smallest_cluster", "largest_cluster")
    mechanisms = (Logged(names),)
    return Row(
        name, label, ScCam(), taught_by=(SubCategories(**labeller), teacher), mechanisms=mechanisms
    )


SCCAM_1 = _round("sccam_round1", "SC-CAM, 1 round", GAP)
SCCAM_2 = _round("sccam_round2", "SC-CAM, 2 rounds", SCCAM_1)
SCCAM = replace(_round("sccam", "SC-CAM, 3 rounds", SCCAM_2), published="rival.sccam.seed")
# Without losses nothing teaches the refinement: the CAM before it shows what they gave.
SEAM_OFF = _part(SEAM, "off", "both losses off", method=Seam(equivariance=0.0, refinement=0.0))
CPN_OFF = _part(CPN, "off", "both losses off", method=Cpn(complementary=0.0, refinement=0.0))
RIVAL_ROWS = (
    *rows_of(
        OCCSE,
        passes=3.0,  # the judge, a GAP classifier, and two a step
        ablations=(
            _part(
                OCCSE, "off", "the judge not heard", method=OcCse(first_weight=0.0, last_weight=0.0)
            ),
            _released(OCCSE, method=OcCse(mask_max="batch")),
        ),
    ),
    *rows_of(
        SEAM,
        ablations=(
            SEAM_OFF,
            _before_refinement(SEAM_OFF),
            _part(SEAM, "l_min", "with the term of the lowest quarter", method=Seam(l_min=True)),
            _released(SEAM, method=seam.REFERENCE),
            _before_refinement(SEAM),
        ),
    ),
    *rows_of(
        CPN,
        ablations=(
            CPN_OFF,
            _before_refinement(CPN_OFF),
            _released(CPN, method=cpn.REFERENCE),
            _before_refinement(CPN),
            _part(CPN, "pixels", "pixel correlation alone", reader=PixelsAlone()),
        ),
    ),
    *rows_of(
        SCCAM,
        passes=4.0,  # round 0, the GAP classifier, and three more
        ablations=(
            _released(SCCAM, reader=ReluFirst()),
            SCCAM_1,
            SCCAM_2,
            _round("sccam_k1", "SC-CAM, 1 round, k = 1", GAP, k=1),
            _round("sccam_fine", "SC-CAM, 1 round, finer", GAP, images=8),
        ),
    ),
    # Round 0, the GAP classifier, and two more.
    *rows_of(rivals_rounds.CONTA, passes=3.0, ablations=rivals_rounds.CONTA_PARTS),
    *rows_of(rivals_rounds.ECS, ablations=rivals_rounds.ECS_PARTS),
)
# Rivals that begin with given seeds: they make label maps otherwise, or learn from them.
PSA_SEED = replace(
    GAP, name="psa_seed", label="AffinityNet, seeds", reader=psa.READER, published="rival.psa.seed"
)
PSA_LABELS = labelled(
    "psa",
    "AffinityNet",
    PSA_SEED,
    Psa(walk=True, powers=psa.POWERS, steps=psa.STEPS),
    mechanisms=(Logged(("known",), "affinity"),),
    published="rival.psa.pseudo",
)
PSA_ROWS = (
    PSA_SEED,
    PSA_LABELS,
    labelled(
        "psa_crf", "AffinityNet, no walk: its CRF", PSA_SEED, Psa(crf=True, powers=psa.POWERS)
    ),
    replace(
        segmented("psa_segment", "AffinityNet, network", PSA_LABELS),
        published="rival.psa.segmentation",
    ),
)
PROPORTION = (Logged(("outweighed", "overlap", "cov", "without_score"), "labels"),)
SOFTENED = (Logged(("pus_acted", "pus_pixels"), "segmenter"),)
PMM_LABELS = labelled(
    "pmm", "PMM", GAP, Ppmg(), mechanisms=PROPORTION, published="rival.pmm.pseudo"
)
PMM_ON_SEAM = labelled("pmm_seam", "PMM on SEAM", SEAM, Ppmg(), mechanisms=PROPORTION)
PMM_SEGMENT = segmented("pmm_segment", "PMM, network", PMM_LABELS)
PMM_PUS = {"segmenter": Pus(), "mechanisms": SOFTENED}
PMM_ROWS = (
    replace(
        GAP, name="pmm_crops", label="PMM, seeds in windows", reader=MultiCrop(), published=None
    ),
    PMM_LABELS,
    PMM_ON_SEAM,
    # Each part left out: smoothing, the proportion, both (the CRF of all classes together).
    labelled("pmm_no_cvs", "PMM, not smoothed", GAP, Ppmg(smoothing=0.0), mechanisms=PROPORTION),
    labelled("pmm_score", "PMM, by score", GAP, Ppmg(importance="score"), mechanisms=PROPORTION),
    _released(PMM_LABELS, refiner=Ppmg(half_precision=True, zero_importance=True)),
    labelled("gap_crf", "GAP, one CRF of all classes", GAP, Psa(crf=True)),
    PMM_SEGMENT,
    segmented("pmm_seam_segment", "PMM on SEAM, network", PMM_ON_SEAM),
    replace(
        PMM_SEGMENT,
        name="pmm_pus",
        label="PMM, network with PUS",
        published="rival.pmm.first",
        **PMM_PUS,
    ),
    # Without noise in the labels PUS has nothing to gain.
    SEGMENT_TRUTH,
    replace(SEGMENT_TRUTH, name="truth_pus", label="true masks, network with PUS", **PMM_PUS),
)
ROWS = (
    BASE,
    *ends(BASE, PSA),
    *RIVAL_ROWS,
    *PSA_ROWS,
    *PMM_ROWS,
    *rivals_irn.ROWS,
    *rivals_rounds.ROWS,
    *rivals_segment.ROWS,
    *rivals_readers.ROWS,
)
