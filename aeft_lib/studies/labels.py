"""Names of rows for readers: what a row is on the map at hand, and what the paper calls it.

The paper's single levels pool its 40x40 map into 2, 4, 8 or 16 bins a side.  A smaller map keeps
the cells per bin (`paper.gpp.scaled_levels`), so the same row has other bins there.
"""

import re

from aeft_lib.paper.gpp import PAPER_LEVELS, Pyramid, scaled_levels
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

BINS = re.compile(r"\b(\d+)×\1\b")


def on_map(text: str, side: int) -> str:
    """A text with the paper's bins, as bins of a map of `side` cells, the paper's beside them.

    >>> on_map("16×16 beats 2×2", 16), on_map("2×2", 40)
    ('6×6 (paper 16×16) beats 1×1 (paper 2×2)', '2×2')
    """
    here = dict(zip(PAPER_LEVELS, scaled_levels(side), strict=True))

    def named(bins: re.Match) -> str:
        paper = int(bins[1])
        own = here.get(paper, paper)
        return bins[0] if own == paper else f"{own}×{own} (paper {bins[0]})"

    return BINS.sub(named, text)


def of_row(row: Row, profile: Profile) -> str:
    """A row's label on a profile; a single level is named by its bins on the row's own map."""
    pooling = getattr(row.method, "pooling", None)
    if not isinstance(pooling, Pyramid) or pooling.fusion != "single" or pooling.printed:
        return row.label
    return on_map(row.label, row.setting.applied(profile, 0).map_side)
