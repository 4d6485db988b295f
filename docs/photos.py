"""The computed parts of ``real_photos.md``; ``python docs/photos.py`` writes them anew.

Tables and sentences between the lines ``<!-- computed: NAME -->`` and ``<!-- end of computed -->``
follow ``real_photos.csv``, ``real_photos_objects.csv`` and the ledger; all other text is written by
hand.
"""

import re
from collections.abc import Callable

import pandas as pd

from aeft_lib import paths
from aeft_lib.lab import ch08_told, tables, told
from aeft_lib.studies import (
    catalogue,
    curves,
    findings,
    ledger,
    photo_results,
    report,
    report_page,
    run,
)
from aeft_lib.studies.systems import SYSTEMS, ends

PAGE = paths.ROOT / "docs" / "real_photos.md"
PART = re.compile(r"(<!-- computed: (\w+) -->\n).*?(<!-- end of computed -->)", re.S)
METRICS = ("miou", "precision", "recall")
SEEDS = ("gap", "gated", "average", "attract_soft_repel")
TRIPLET = ("gpp_only", "attract_rigid", "attract_soft", "attract_soft_repel")
OURS = ("gpp_only_corrected", "ours")
LABELS = ("aeft_seed", "aeft_crf", "aeft_walk", "aeft_pseudo")
NETWORKS = ("segment_truth", "segment_aeft", "segment_seed", "segment_aeft_tags", "aeft_unseen")


def rows(names: tuple[str, ...], photos: int) -> pd.DataFrame:
    """The lines of some rows on so many training photos, in this order."""
    table = photo_results.table()
    table = table[(table["photos"] == photos) & table["row"].isin(names)]
    return table.sort_values("row", key=lambda column: column.map(names.index), kind="stable")


def numbers(names: tuple[str, ...], photos: int, columns: tuple[str, ...]) -> str:
    """Means and sd of rows as a table."""
    return tables.as_text(run.summarise(rows(names, photos)), ["n", *columns])


def objects() -> pd.DataFrame:
    """Objects by size, class and number of tags, see `ch08_conditions.photo_objects`."""
    file = paths.ROOT / "docs" / "real_photos_objects.csv"
    return paths.read_table(file)


def seeds() -> str:
    """GAP, GPP, A and AEFT."""
    shown = numbers(SEEDS, 1200, (*METRICS, "miou_maskless", "tag_map"))
    pairs = [("gated", "gap"), ("gated", "average"), ("attract_soft_repel", "gated")]
    metrics = ("miou", "precision", "miou_maskless")
    return f"{shown}\n\n{told.compared(rows(SEEDS, 1200), pairs, metrics)}"


def long() -> str:
    """GAP and GPP after long trainings, from the ledger."""
    kept = curves.kept()
    told_end = curves.sentences(kept, "gated", "gap", "G − GAP").splitlines()[-1]
    end = kept[(kept["pictures"] == "photos") & (kept["part"] == 1)]
    if end.empty:
        return told_end
    labels = {name: catalogue.row(name).label for name in end["row"].unique()}
    table = end.drop(columns="pictures").assign(label=end["row"].map(labels))
    shown = tables.as_text(run.summarise(table), ["n", *METRICS, "tag_map"])
    decided = told.compared(table, [("gated", "gap")], METRICS)
    return f"{shown}\n\n{told_end}\n{decided}"


def sizes() -> str:
    """IoU of all objects of a bin of area, and what is decided by size, class and tags."""
    by_area = objects().query("kind == 'area'")
    wide = by_area.pivot_table(index="bin", columns="label", values="iou", sort=False)
    counts = by_area.groupby("bin", sort=False)["n"].first()
    heads = ["area of the class in its photo", *wide.columns, "objects"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for name, values in wide.iterrows():
        cells = [name, *(f"{value:.1f}" for value in values), str(counts[name])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ch08_told.bins(objects())])


def depth() -> str:
    """G − GAP with two stages trained, and with four."""
    four = ("photos_depth4.gap", "photos_depth4.gated")
    two = told.compared(rows(SEEDS, 1200), [("gated", "gap")], ("miou", "precision"))
    return f"{two}\n{told.compared(rows(four, 1200), [four[::-1]], ('miou', 'precision'))}"


def triplet() -> str:
    """The second phase, and the report's verdicts on the claims about it."""
    shown = numbers((*TRIPLET, *OURS), 640, (*METRICS, "miou_maskless", "tag_map"))
    names = [c["id"] for c in report.published()["claims"] if c["study"] == "triplet_ablation"]
    return f"{shown}\n\n{verdicts([*names, 'ours.beats_classification'])}"


def labels() -> str:
    """Pseudo-labels on the training photos."""
    maskless = tuple(f"{metric}_maskless" for metric in METRICS)
    pairs = [(row, LABELS[0]) for row in LABELS[1:]] + [("aeft_pseudo", "aeft_walk")]
    told_pairs = told.compared(rows(LABELS, 640), pairs, maskless[:1])
    return f"{numbers(LABELS, 640, maskless)}\n\n{told_pairs}"


def networks() -> str:
    """Segmentation networks on unseen photos."""
    maskless = tuple(f"{metric}_maskless" for metric in METRICS)
    pairs = [("segment_aeft", "segment_seed"), ("segment_aeft", "aeft_unseen")]
    told_pairs = told.compared(rows(NETWORKS, 640), pairs, (maskless[0], maskless[2]))
    return f"{numbers(NETWORKS, 640, maskless)}\n\n{told_pairs}"


def verdicts(ids: list[str]) -> str:
    """Claims that were asked on photos: the paper's difference, ours there, and the verdict."""
    known = {line["id"]: line for line in report.load()["claims"]}
    lines = ["| claim | paper | on photos | verdict |", "|---|---:|---:|---|"]
    for line in (known[name] for name in ids if known[name]["photos_n"]):
        reason = f" ({line['photos_reason']})" if line["photos_reason"] else ""
        numbers = (report_page.published_cell(line), report_page.points_of(line, "photos_"))
        cells = (line["claim"], *numbers)
        lines.append(f"| {' | '.join(cells)} | {line['photos_verdict']}{reason} |")
    return "\n".join(lines)


def rivals() -> str:
    """GAP and rivals of it: a table, differences, and what their mechanisms say."""
    every = catalogue.rows_by_name()
    places = {name: place for place, name in enumerate(every)}
    table = photo_results.rivals()
    table = table.sort_values("row", key=lambda column: column.map(places), kind="stable")
    table.insert(1, "label", [every[name].label for name in table["row"]])
    columns = ["n", *METRICS, "miou_maskless", "tag_map"]
    shown = tables.as_text(run.summarise(table), columns)
    own = {known: ends(known, every)["seed"].name for known in SYSTEMS}
    there = {known: row for known, row in own.items() if row in set(table["row"]) - {"gap"}}
    moved = [f"- **{known.title}**: {findings.mechanism(table, known, every)}." for known in there]
    differences = told.compared(table, [(row, "gap") for row in there.values()])
    commits = ", ".join(f"`{commit}`" for commit in ledger.commits(photo_results.RIVALS))
    made = f"Made at the commits {commits}. `aeft run` reads entries of today's code alone, and "
    made += "computes the others anew."
    parts = [shown, made, differences, lost_classes()]
    parts += ["Mechanisms, without masks:", "\n".join(moved)]
    return "\n\n".join(part for part in parts if part)


def lost_classes() -> str:
    """Classes whose IoU is below a quarter of GAP's in the same repeat, a line a row and repeat."""
    keys, told = ["repeat", "class"], []
    every = ledger.classes(photo_results.RIVALS)
    of_gap = every[every["row"] == "gap"].set_index(keys)["iou"]
    lost = every[every["iou"] < every.set_index(keys).index.map(of_gap) / 4]
    for (row, repeat), lines in lost.groupby(["row", "repeat"]):
        named = [
            f"{line['class']} ({line['iou']:.1f}; GAP {of_gap[repeat, line['class']]:.1f})"
            for _, line in lines.iterrows()
        ]
        label = catalogue.row(row).label
        told.append(
            f"- **{label}, repeat {repeat}** lost classes, by their IoU: {', '.join(named)}."
        )
    return "\n".join(told)


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part for part in (seeds, long, sizes, depth, rivals, triplet, labels, networks)
}


def computed(page: str) -> str:
    """The page with its computed parts anew."""
    return PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", page)


if __name__ == "__main__":
    paths.write_text(PAGE, computed(PAGE.read_text(encoding="utf-8")))
