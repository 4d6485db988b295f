"""The report in words: as a page, as tables for notebooks and README, and as files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from aeft_lib import paths
from aeft_lib.studies import photo_results
from aeft_lib.studies.effects import REPEATS, points
from aeft_lib.studies.verdicts import (
    CLAIMS,
    COUNTED,
    DIFFERENCES,
    LONG,
    PAPER_REPEATS,
    SHORT_STEPS,
    SIGNED,
    VERBS,
)

RULE = f"""\
Ours are numbers of the profile's scenes, the paper's are of VOC 2012: signs can be compared, sizes
cannot. Every difference is written so that plus supports its claim: of "lowers precision" it is the
precision before minus that after. It is paired by repeat, and its brackets hold the 95 % interval
over repeats. A claim *holds* or *fails* where that interval lies on one side of zero, and is
*undecided* otherwise, or with fewer repeats than it needs: {PAPER_REPEATS} for the paper's claims,
{REPEATS} for others. *Without losing precision* follows the same rule: it holds only where
precision rises, and equal precision leaves it undecided. The number of repeats is a choice and no
statistics: more is asked before the authors are confirmed or contradicted. *Adjusted* is the
verdict that remains after Holm's adjustment for the number of claims. *Short* trainings have fewer
than {SHORT_STEPS:,} steps; columns *after {SHORT_STEPS:,} steps* are of longer ones, where *not
saturated* names rows that were still learning their tags. The interval over objects draws the
scored cut-outs anew, with the networks as they are, and has a column where the store has them; of
long trainings on photos it draws the photos. *Not run* means that nobody has run it."""
NOTHING = {"—": "no number"}


def outputs(folder: Path) -> list[Path]:
    """The files that `write` writes.  Raises ValueError as `paths.check_outputs` does."""
    files = [folder / f"report.{suffix}" for suffix in ("json", "csv", "md")]
    paths.check_outputs(files)
    return files


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``report.json``, ``.csv`` and ``.md`` to `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = outputs(folder)
    options = {"index": False, "float_format": "%.4f", "lineterminator": "\n"}
    table = pd.DataFrame(report["claims"]).to_csv(**options)
    paths.write_committed(files[0], (json.dumps(report, indent=1) + "\n").encode())
    paths.write_committed(files[1], table.encode())
    paths.write_text(files[2], page(report) + "\n")
    return files


def page(report: Mapping[str, Any]) -> str:
    """``report.md``: the rule of the verdicts, how many there are, and every line as a table."""
    counts = [f"- `{name}`: {tally(report, name)}" for name in DIFFERENCES]
    for prefix, place in places_of(report["claims"]).items():
        counts.append(f"- `{CLAIMS[0]}` {place}: {tally(report, CLAIMS[0], prefix)}")
    return "\n\n".join([RULE, "\n".join(counts), markdown(report)])


def markdown(
    report: Mapping[str, Any], prefix: str | tuple[str, ...] = "", *, brief: bool = False
) -> str:
    """The report as a Markdown table of the lines whose ids start with a prefix.

    The interval over objects has a column where a line has one.
    brief: what is the same in every line stands above the table, once, and has no column.
    """
    shown = [row for row in report["claims"] if row["id"].startswith(prefix)]
    columns: dict[str, list[str]] = {
        "id": [f"`{row['id']}`" for row in shown],
        "claim": [row["claim"] for row in shown],
        "published": [published_cell(row) for row in shown],
        "ours, difference [95 % over repeats] (n)": [_ours_cell(row) for row in shown],
    }
    if any(row["objects"] for row in shown):
        columns["[95 % over objects] (n)"] = [_objects_cell(row) for row in shown]
    right = set(columns) - {"id", "claim"}
    columns |= {"verdict": [_verdict_cell(row) for row in shown]}
    columns |= {"adjusted": [row["verdict_adjusted"] for row in shown]}
    places = places_of(shown)
    columns |= {places[p]: [place_cell(row, p) for row in shown] for p in places}
    columns["at paper scale"] = [row["paper_scale"] for row in shown]
    same = {}
    if brief and len(shown) > 1:
        several = ("published", *places.values(), "at paper scale")
        same = {head: columns.pop(head)[0] for head in several if len(set(columns[head])) == 1}
    rule = "".join("|---:" if head in right else "|---" for head in columns)
    lines = [columns, *zip(*columns.values(), strict=True)]
    head, *rows = ("| " + " | ".join(line) + " |" for line in lines)
    table = "\n".join([head, f"{rule}|", *rows])
    if not same:
        return table
    told = "; ".join(f"*{head}*: {NOTHING.get(cell, cell)}" for head, cell in same.items())
    return f"In every line {told}.\n\n{table}"


def places_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Real photos, and long trainings where some of the lines have any, by prefix."""
    lines = list(lines)
    there = [prefix for prefix in LONG if any(line.get(COUNTED[prefix]) for line in lines)]
    steps = f"after {SHORT_STEPS:,} steps"
    return {"photos_": "on real photos"} | {p: f"on {LONG[p]}, {steps}" for p in there}


def conclusions(report: Mapping[str, Any], ids: Iterable[str]) -> str:
    """A Markdown item for each of these claims: claim, verdict, difference with its intervals."""
    lines = {line["id"]: line for line in report["claims"]}
    return "\n".join(f"- {_sentence(lines[name])}" for name in ids)


def _sentence(line: Mapping[str, Any]) -> str:
    text = f"{line['claim']}: **{_verdict_cell(line)}**"
    if line["difference"] is None:
        return f"{text}."
    repeats = f"{line['pairs']} repeat{'s' if line['pairs'] > 1 else ''}"
    text += f"; {points_of(line)} points over {repeats}"
    if line["objects"]:
        text += f", {_objects_cell(line)} over objects"
    if line["p_adjusted"] is not None:
        text += f"; adjusted for {line['tests']} comparisons: {line['verdict_adjusted']}"
    for prefix, place in places_of([line]).items():
        text += f"; {place} {place_cell(line, prefix)}" if line[COUNTED[prefix]] else ""
    return f"{text}."


def tally(report: Mapping[str, Any], prefix: str | tuple[str, ...], where: str = "") -> str:
    """How many claims hold, fail, stay undecided, are not run; plain and adjusted, in a sentence.

    where: "" for the profile's scenes, "photos_" for real photos, or one of `verdicts.LONG`.
    """
    lines = [line for line in report["claims"] if line["id"].startswith(prefix)]

    def counted(name: str) -> str:
        words = [line[f"{where}{name}"] for line in lines]
        numbers = ((words.count(word), word, verb) for word, verb in VERBS.items())
        return ", ".join(f"{n} {word if n == 1 else verb}" for n, word, verb in numbers)

    tests = max((line[f"{where}tests"] for line in lines), default=0)
    after = f"adjusted for all {tests} comparisons tested together: {counted('verdict_adjusted')}"
    return f"of {len(lines)} claims {counted('verdict')}; {after}."


def by_scale(report: Mapping[str, Any]) -> pd.DataFrame:
    """Verdicts on claims that have real photos, with their differences, a line a claim.

    ``id, collages, points``, then ``on real photos, points there``, the same of long trainings
    where there are any, and ``paper scale``.  Short trainings are marked.
    """
    lines = [row for row in report["claims"] if row["id"].startswith(CLAIMS) and row["photos_n"]]
    table = pd.DataFrame({"id": [row["id"] for row in lines]})
    table["collages"] = [_verdict_cell(row) for row in lines]
    table["points"] = [points_of(row) for row in lines]
    for prefix, place in places_of(lines).items():
        table[place] = [_verdict_cell(row, prefix) for row in lines]
        there = "points there" if prefix == "photos_" else f"points {place}"
        table[there] = [points_of(row, prefix) for row in lines]
    return table.assign(**{"paper scale": [row["paper_scale"] for row in lines]})


def points_of(row: Mapping[str, Any], prefix: str = "") -> str:
    """The difference with its interval; "—" without one."""
    mean = row[f"{prefix}mean" if prefix else "difference"]
    return "—" if mean is None else points(mean, row[f"{prefix}low"], row[f"{prefix}high"])


def _verdict_cell(row: Mapping[str, Any], prefix: str = "") -> str:
    """The verdict, why there is none, and whether trainings were short."""
    word, reason = row[f"{prefix}verdict"], row[f"{prefix}reason"]
    cell = f"{word} ({reason})" if reason else word
    short = {"": row["short"], "photos_": photo_results.STEPS < SHORT_STEPS}.get(prefix, False)
    learning = row.get(f"{prefix}unsaturated")
    cell += f", not saturated: {learning}" if learning else ""
    return f"{cell}, short" if short and row[COUNTED[prefix]] else cell


def place_cell(row: Mapping[str, Any], prefix: str) -> str:
    """Difference and verdict on real photos, or of long trainings."""
    cell = _verdict_cell(row, prefix)
    if not row[COUNTED[prefix]]:
        return cell
    over = f", {_objects_cell(row, prefix)} over photos," if row.get(f"{prefix}objects") else ""
    return f"{points_of(row, prefix)} ({row[COUNTED[prefix]]}){over} {cell}"


def _objects_cell(row: Mapping[str, Any], prefix: str = "") -> str:
    low, high, number = (row[f"{prefix}objects{end}"] for end in ("_low", "_high", ""))
    return f"[{low:+.1f}, {high:+.1f}] ({number})" if number else "—"


def published_cell(row: Mapping[str, Any]) -> str:
    """The paper's number, signed where it is a difference; a dash where it has none."""
    if row["published"] is None:
        return "—"
    return f"{row['published']:{'+' if row['id'].startswith(SIGNED) else ''}.1f}"


def _ours_cell(row: Mapping[str, Any]) -> str:
    """The difference; of a table's row its own mean first, and last that to GAP, if another."""
    if row["n"] == 0:
        return "—"
    own = "" if row["id"].startswith(SIGNED) else f"{row['reproduced_mean']:.1f}; "
    told = f"{own}{points_of(row)} ({row['n']})"
    return told if row.get("gap_mean") is None else f"{told}; to GAP {points_of(row, 'gap_')}"
