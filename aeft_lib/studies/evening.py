"""Rows of trainings that are long enough to be judged (`Profile.curve`), beside the catalogue's.

The first version of the loss that the authors published, its parts one at a time, a baseline with
as many passes as an attraction takes, and longer trainings of GAP and G.
"""

from dataclasses import replace

from aeft_lib.paper.gpp import Gap, Pyramid
from aeft_lib.paper.triplet import FIRST_RELEASE, FIRST_RELEASE_PARTS
from aeft_lib.studies.rows import OFF, SOFT, classified, second
from aeft_lib.studies.settings import Setting

# Attraction sees each image twice, so the baseline gets twice the steps.
MATCHED = second(
    "gpp_only_matched", "GPP only, as many passes", OFF, setting=Setting(second_longer=2)
)
FIRST_SOFT = second("first_soft", "soft, first release", replace(FIRST_RELEASE, repel_weight=0.0))
FIRST_SOFT_REPEL = second("first_soft_repel", "soft + repel, first release", FIRST_RELEASE)
# Of the first release's parts those of attraction; the fourth is repel's.
PARTS = tuple(
    second(f"soft_{name}", f"soft, {label} alone", replace(SOFT, **FIRST_RELEASE_PARTS[name]))
    for name, label in (
        ("mask", "binary mask"),
        ("scale", "embeddings of norm 1"),
        ("distance", "squared distance"),
    )
)
LONGER = tuple(
    classified(f"{name}_x{n}", f"{label}, {n} × the steps", pooling, setting=Setting(longer=n))
    for name, label, pooling in (("gap", "GAP", Gap()), ("gated", "G", Pyramid()))
    for n in (2, 4)
)
