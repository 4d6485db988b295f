"""Tables of a study as Markdown: mean ± sd over repeats, the best of each column in bold."""

from collections.abc import Sequence

import pandas as pd
from IPython.display import Markdown

HEADS = {
    "n": "repeats",
    "miou": "mIoU",
    "precision": "precision",
    "recall": "recall",
    "tag_map": "tag mAP",
}
ENDS = {"_maskless": ", threshold without masks", "_common": ", common threshold"}


def table(summary: pd.DataFrame, columns: Sequence[str]) -> Markdown:
    """Rows of `Session.summary`, a line each, in percent with one decimal.

    columns: of numbers; ``n`` is the number of repeats.  One with ``<column>_sd`` has ±.
    """
    return Markdown(as_text(summary, columns))


def as_text(summary: pd.DataFrame, columns: Sequence[str]) -> str:
    """The Markdown of `table`."""
    lines = [_line(["row", *(_head(column) for column in columns)])]
    lines.append(_line(["---", *["---:"] * len(columns)]))
    best = {column: summary[column].round(1).max() for column in columns}
    for row in summary.to_dict("records"):
        cells = (_cell(row, column, best[column]) for column in columns)
        lines.append(_line([str(row["label"]), *cells]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(column: str) -> str:
    for end, words in ENDS.items():
        column = f"{HEADS[column.removesuffix(end)]}{words}" if column.endswith(end) else column
    return f"{HEADS.get(column, column)}{'' if column == 'n' else ' (%)'}"


def _cell(row: dict, column: str, best: float) -> str:
    if column == "n":
        return f"{row['n']:.0f}"
    value, sd = row[column], row.get(f"{column}_sd")
    text = f"{value:.1f}" if pd.isna(value) or pd.isna(sd) else f"{value:.1f} ± {sd:.1f}"
    return f"**{text}**" if round(value, 1) == best else text
