"""The methods that studies compare, and the rows that several studies share."""

from dataclasses import replace
from typing import Any

from aeft_lib.paper.classifier import Classification
from aeft_lib.paper.gpp import Gap, Pyramid
from aeft_lib.paper.triplet import CORRECTED, REFERENCE, Triplet
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import AS_PROFILED, OPTIMISER_QUIRKS, Setting

# The poster's second table has the reference's triplet with a detached mask: a gradient through the
# mask doubles the cost of a step, and what it does is a row of the quirks.
SOFT_REPEL = replace(REFERENCE, mask_gradient=False)
OFF = replace(SOFT_REPEL, attract="off", repel_weight=0.0)
SOFT = replace(SOFT_REPEL, repel_weight=0.0)
RIGID = replace(SOFT, attract="rigid")
# The fair baseline: same optimiser, same samples.
NOTHING_ADDED = replace(CORRECTED, attract="off", repel_weight=0.0)


def classified(name: str, label: str, pooling: Gap | Pyramid, **fields: Any) -> Row:
    """A classifier trained on tags alone, with this pooling layer.  fields: of `Row`."""
    return Row(name, label, Classification(pooling), **fields)


GAP = classified("gap", "GAP", Gap(), published="known.gap_seed")
GATED = classified("gated", "G", Pyramid(), published="table1.G")


def second(
    name: str,
    label: str,
    method: Triplet,
    *,
    quirks: tuple[str, ...] = OPTIMISER_QUIRKS,
    setting: Setting = AS_PROFILED,
    **fields: Any,
) -> Row:
    """A second phase from the gated classifier, by default with the reference's optimiser.

    quirks: of the optimiser.  fields: of `Row`.
    """
    setting = replace(setting, phase=(("quirks", quirks), *setting.phase))
    return Row(name, label, method, starts_from=GATED, setting=setting, **fields)
