"""Tables as Markdown: means with ± or an interval, units in the head, the best in bold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

HEADS = {
    "n": "repeats",
    "miou": "mIoU",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "tag_map": "tag mAP",
    "miou_best": "best mIoU",
    "half_area": "area above half max",
    "label": "row",
    "threshold_maskless": "threshold without masks",
}
ENDS = {"_maskless": ", threshold without masks", "_common": ", common threshold"}
BESIDE = ("_sd", "_low", "_high")  # columns that stand in the cells of another


def table(summary: pd.DataFrame, columns: Sequence[str]) -> Markdown:
    """Rows of `Session.summary`, a line each, in percent with one decimal.

    columns: of numbers; ``n`` is the number of repeats.  One with ``<column>_sd`` has ±.
    """
    return Markdown(as_text(summary, columns))


def as_text(summary: pd.DataFrame, columns: Sequence[str]) -> str:
    """The Markdown of `table`."""
    beside = [column + "_sd" for column in columns if column + "_sd" in summary]
    shown = summary[["label", *columns, *beside]].rename(columns={"label": "row"})
    return grid_text(shown, unit="%", best="column")


def grid(table: pd.DataFrame, **options: Any) -> Markdown:
    """Any table, a line each.  options: of `grid_text`."""
    return Markdown(grid_text(table, **options))


def grid_text(
    table: pd.DataFrame,
    *,
    unit: str | Mapping[str, str] = "",
    decimals: int | Mapping[str, int] = 1,
    best: str = "",
    signed: bool = False,
) -> str:
    """The Markdown of any table; a named index stands in its first columns.

    Numbers are rounded, whole ones and text stand as they are, NaN is "—".  ``<column>_sd`` becomes
    ± in the column's cells, ``<column>_low`` and ``<column>_high`` its interval.
    unit: of all numbers that are no counts, or by column.  decimals: of all, or by column (else 1).
    best: "column" or "row" marks the largest mean of each in bold.  signed: with a plus.
    Raises ValueError for another `best`.
    """
    if best not in ("", "row", "column"):
        raise ValueError(f"the best is marked by 'row' or 'column', got {best!r}")
    named = any(name is not None for name in table.index.names)
    table = (table.reset_index() if named else table).rename_axis(None, axis=1)
    columns = [column for column in table if not _is_beside(column, table)]
    places = {c: decimals if isinstance(decimals, int) else decimals.get(c, 1) for c in columns}
    units = {c: unit if isinstance(unit, str) else unit.get(c, "") for c in columns}
    means = [c for c in columns if pd.api.types.is_float_dtype(table[c]) and c != "n"]
    marked = _largest(table[means].round(places), best)
    heads = [_head(column, units[column] if column in means else "") for column in columns]
    sides = ["---:" if pd.api.types.is_numeric_dtype(table[c]) else "---" for c in columns]
    lines = [_line(heads), _line(sides)]
    for i, row in enumerate(table.to_dict("records")):
        cells = []
        for column in columns:
            text = _cell(row, column, places[column], signed)
            is_best = column in means and marked[column].iloc[i]
            cells.append(f"**{text}**" if is_best else text)
        lines.append(_line(cells))
    return "\n".join(lines)


def _largest(rounded: pd.DataFrame, best: str) -> pd.DataFrame:
    """Which numbers are the largest of their column or row, as they are printed."""
    if not best:
        return rounded.astype(bool) & False
    by_row = best == "row"
    return rounded.eq(rounded.max(axis=int(by_row)), axis=0 if by_row else 1)


def _is_beside(column: str, table: pd.DataFrame) -> bool:
    return any(column.endswith(end) and column.removesuffix(end) in table for end in BESIDE)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(column: str, unit: str) -> str:
    for end, words in ENDS.items():
        if column.endswith(end) and column not in HEADS:
            before = column.removesuffix(end)
            column = f"{HEADS.get(before, before)}{words}"
    name = HEADS.get(column, column)
    return f"{name} ({unit})" if unit else name


def _cell(row: Mapping[str, Any], column: str, places: int, signed: bool) -> str:
    """A number with what stands beside it, or a text."""
    value = row[column]
    if column == "n" or isinstance(value, int | np.integer):
        return f"{value:.0f}"
    if not isinstance(value, float):
        return str(value)

    def shown(number: float) -> str:
        return f"{number:{'+' if signed else ''}.{places}f}"

    if pd.isna(value):
        return "—"
    sd, low, high = (row.get(column + end, np.nan) for end in BESIDE)
    text = shown(value)
    text += "" if pd.isna(sd) else f" ± {sd:.{places}f}"
    return text if pd.isna(low) or pd.isna(high) else f"{text} [{shown(low)}, {shown(high)}]"
