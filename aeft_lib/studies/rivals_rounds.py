"""Rows of the study `rivals` that come in rounds, on windows, or from an erased CAM.

CONTA, ECS-Net (a reconstruction), PMM's training on windows and its cyclic pseudo-masks; and SEAM,
with whose seeds a training on windows begins.
"""

from dataclasses import replace
from typing import Any

from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.parts.context_masks import ContextMasks
from aeft_lib.parts.equivariance import Equivariance
from aeft_lib.parts.refined import RefinedMaps
from aeft_lib.parts.windows import InWindows, RefinedCrops
from aeft_lib.rivals.conta import Conta
from aeft_lib.rivals.ecsnet import EcsNet
from aeft_lib.rivals.pmm import Ppmg, Pus
from aeft_lib.rivals.seam import Seam
from aeft_lib.stages.by_network import ByNetwork
from aeft_lib.stages.multi_crop import MultiCrop
from aeft_lib.stages.psa import Psa
from aeft_lib.studies.rows import GAP, Logged, Row, segmented

SEAM = Row(
    "seam",
    "SEAM",
    Seam(),
    reader=RefinedMaps(),
    mechanisms=(Equivariance(),),
    published="rival.seam.seed",
)
# The host's refinement and segmentation network, which is told the tags.
MASKS = ByNetwork(Psa(crf=True, walk=True), LargeFov())


def _round(name: str, label: str, before: Row, **fields: Any) -> Row:
    """A round of CONTA, after the row before.  fields: of `ContextMasks`."""
    return Row(
        name,
        label,
        Conta(),
        reads=(ContextMasks(MASKS, **fields), before),
        mechanisms=(Logged(("context_share", "context_spread")),),
    )


# The host is GAP with AffinityNet and LargeFOV.
CONTA_1 = _round("conta_round1", "CONTA, 1 round", GAP)
CONTA = replace(_round("conta", "CONTA, 2 rounds", CONTA_1), published="rival.conta.seed")
SHUFFLED_1 = _round("conta_shuffled1", "CONTA, 1 round, shuffled", GAP, shuffled=True)
ECS = Row(
    "ecsnet",
    "ECS-Net (reconstruction)",
    EcsNet(),
    reader=RefinedMaps(),
    mechanisms=(Logged(("labelled", "labelled_objects", "p_tag", "p_tag_erased")),),
    published="rival.ecsnet.seed",
)


def _ecs(name: str, label: str, **fields: Any) -> Row:
    """ECS-Net with a part of its idea otherwise.  fields: of `EcsNet`, or the reader."""
    reader = fields.pop("reader", ECS.reader)
    label = f"{ECS.label}, {label}"
    return replace(
        ECS, name=name, label=label, method=EcsNet(**fields), reader=reader, published=None
    )


CONTA_PARTS = (
    CONTA_1,
    # Nothing but M passes from round to round, so this is GAP once more: the proof that a
    # difference to GAP is the map's.
    replace(
        CONTA_1,
        name="conta_iterate",
        label="CONTA, 1 round, iterate only",
        method=Conta(context=False),
    ),
    SHUFFLED_1,
    _round("conta_shuffled", "CONTA, 2 rounds, shuffled", SHUFFLED_1, shuffled=True),
)
ECS_PARTS = (
    _ecs("ecsnet_off", "no labels", weight=0.0),
    # Every pixel that was not erased is a label: an object above 0.1, else background.
    _ecs("ecsnet_noisy", "no noise suppression", reliable=0.1),
    _ecs("ecsnet_raw", "CAM before refinement", reader=RefinedMaps(refined=False)),
)
PMM_WINDOWS = Row(
    "pmm_windows",
    "PMM, SEAM trained and read in windows",
    SEAM.method,
    reader=RefinedCrops(),
    reads=(InWindows(Psa(crf=True)), SEAM),
    mechanisms=(Logged(("tags_kept", "empty_windows")),),
    published="rival.pmm.windows",
)
# The first network learns with PUS, and is read with a CRF, as in the release.
CYCLE = ByNetwork(Ppmg(), Pus(), crf=True)
PMM_CYCLIC = replace(
    GAP,
    name="pmm_cyclic_labels",
    label="PMM, label maps of its network",
    refiner=CYCLE,
    scored_on="train",
    published=None,
)
ROWS = (  # of PMM; the others follow from their entries in the table
    replace(
        SEAM,
        name="pmm_seam_crops",
        label="PMM, SEAM read in windows",
        reader=RefinedCrops(),
        mechanisms=(),
        published="rival.pmm.seed",
    ),
    PMM_WINDOWS,
    replace(
        PMM_WINDOWS,
        name="pmm_windows_gap",
        label="PMM, GAP trained and read in windows",
        method=GAP.method,
        reader=MultiCrop(),
        published=None,
    ),
    PMM_CYCLIC,
    replace(
        segmented("pmm_cyclic", "PMM, second network", PMM_CYCLIC),
        published="rival.pmm.segmentation",
    ),
)
