"""Names that are not there: an error that lists those that are, the near ones last."""

from collections.abc import Collection
from difflib import get_close_matches


def unknown(problem: str, name: str, names: Collection[str]) -> ValueError:
    """The error of a name that is none of `names`: problem, all names, and near misses.

    >>> unknown("unknown study 'gap_gpp'", "gap_gpp", ["gap_vs_gpp", "quirks"])
    ValueError("unknown study 'gap_gpp'; there are gap_vs_gpp, quirks (did you mean gap_vs_gpp?)")
    """
    return ValueError(f"{problem}; there are {', '.join(names)}{near_misses(name, names)}")


def near_misses(name: str, names: Collection[str]) -> str:
    """`` (did you mean ...?)``, or nothing where no name is near."""
    near = get_close_matches(name.lower(), names, n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
