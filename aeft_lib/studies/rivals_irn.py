"""Rows of IRNet and BES in the study `rivals`: from the seeds of AffinityNet, by learned edges.

Both begin with the GAP seeds of the row ``psa_seed`` (the same artefact), so that AffinityNet,
IRNet and BES are compared as refiners of the same seeds.  BES's own classifier pools otherwise; its
seeds have a row, and so have the label maps that begin with them.
"""

from dataclasses import replace

from aeft_lib.parts.boundary import BoundaryLoss
from aeft_lib.parts.edge_refiner import SCHEDULE, EdgeRefiner
from aeft_lib.rivals import bes
from aeft_lib.rivals.bes import Bes
from aeft_lib.rivals.irnet import PairLoss
from aeft_lib.stages.relu_first import ReluFirst
from aeft_lib.studies.rows import GAP, Logged, Row, segmented

IRNET = EdgeRefiner(PairLoss())
BES = EdgeRefiner(
    BoundaryLoss(),
    thresholds=bes.THRESHOLDS,
    beta=bes.BETA,
    schedule=replace(SCHEDULE, batch_size=bes.BATCH),
)
# What can be said without masks: the labels that edges learn from, the edges, where they lie.
CONFIDENT = Logged(("unsure", "t_foreground", "t_background"), "confident")
EDGES = Logged(("edge", "edge_high"), "scores")
LEARNED = {
    "irnet": (CONFIDENT, Logged(("known",), "edges"), EDGES),
    "bes": (CONFIDENT, Logged(("known", "boundary"), "edges"), EDGES),
}

SEED = replace(
    GAP, name="irnet_seed", label="IRNet, seeds", reader=ReluFirst(), published="rival.irnet.seed"
)
BES_SEED = Row(
    "bes_seed",
    "BES, seeds",
    Bes(),
    reader=ReluFirst(),
    mechanisms=(Logged(("attention_peak",)),),
    published="rival.bes.seed",
)


def _labels(family: str, name: str, label: str, refiner: EdgeRefiner, seed: Row = SEED) -> Row:
    """Label maps of these seeds by a refiner of the family, with its mechanisms."""
    mechanisms = LEARNED[family]
    if refiner.last_crf:  # whose labels are no longer cut from scores
        mechanisms = (*mechanisms[:-1], replace(EDGES, part="walked"))
    changes = {"scored_on": "train", "published": None, "mechanisms": mechanisms}
    return replace(seed, name=name, label=label, refiner=refiner, **changes)


IRNET_LABELS = replace(_labels("irnet", "irnet", "IRNet", IRNET), published="rival.irnet.pseudo")
BES_LABELS = replace(_labels("bes", "bes", "BES", BES), published="rival.bes.pseudo")
BES_LOSS = BES.loss
IRNET_ROWS = (
    SEED,
    IRNET_LABELS,
    # Each part left out, or as the paper has it and its code does not.
    _labels("irnet", "irnet_no_walk", "IRNet, no walk", replace(IRNET, steps=0)),
    _labels(
        "irnet", "irnet_from_all", "IRNet, edges start too", replace(IRNET, suppress_edges=False)
    ),
    _labels(
        "irnet", "irnet_per_class", "IRNet, maximum per class", replace(IRNET, joint_maximum=False)
    ),
    _labels(
        "irnet", "irnet_scales", "IRNet, edges at 3 scales", replace(IRNET, scales=(0.5, 1.0, 1.5))
    ),
    _labels("irnet", "irnet_crf", "IRNet, last CRF", replace(IRNET, last_crf=50.0)),
    replace(
        segmented("irnet_segment", "IRNet, network", IRNET_LABELS),
        published="rival.irnet.segmentation",
    ),
)
BES_ROWS = (
    BES_SEED,
    # With the release's scale the attention is all but GAP; with this one it is not.
    replace(
        BES_SEED,
        name="bes_seed_k1",
        label="BES, seeds, k = 1",
        method=Bes(attention_scale=1.0),
        published=None,
    ),
    BES_LABELS,
    _labels("bes", "bes_whole", "BES on its own seeds", BES, BES_SEED),
    _labels(
        "bes",
        "bes_background_only",
        "BES, no boundary between classes",
        replace(BES, loss=replace(BES_LOSS, boundary_between_classes=False)),
    ),
    _labels(
        "bes",
        "bes_unweighted",
        "BES, boundaries count alike",
        replace(BES, loss=replace(BES_LOSS, boundary_weight="none")),
    ),
    _labels(
        "bes",
        "bes_thick",
        "BES, no boundary lost on the grid",
        replace(BES, loss=replace(BES_LOSS, reduce="max")),
    ),
    _labels("bes", "bes_crf", "BES, last CRF", replace(BES, last_crf=bes.REACH)),
    replace(
        segmented("bes_segment", "BES, network", BES_LABELS), published="rival.bes.segmentation"
    ),
)
ROWS = (*IRNET_ROWS, *BES_ROWS)
