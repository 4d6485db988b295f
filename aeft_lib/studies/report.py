"""Published against reproduced: every claim of the poster, with a verdict by its repeats.

A claim is a sign: "this row beats that row".  It is tested as a paired difference, repeat by repeat
(same data, same order), by the one rule of `studies.effects`:

- holds: the whole 95 % interval over repeats has the claimed sign;
- fails: it has the other sign;
- undecided: 0 is in it, or there are fewer repeats than the claim needs, which is then the reason;
- not run: its study has not been run on this profile.

Lines get their verdicts from `studies.verdicts`, and are put into words by `studies.report_page`.

Many claims are asked at once, so p values are adjusted for their number (Holm) within the claims,
the conditions and the numbers of tables; the verdict that remains stands beside the plain one.  An
interval over objects (`studies.objects`) stands beside the one that decides.  Verdicts from short
trainings say so.

Numbers of another task stand beside the paper's; the comparison is of the sign and size of
differences.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from aeft_lib import paths
from aeft_lib.stages import store
from aeft_lib.studies import curves, labels, levels, objects, photo_results, rivals_readers
from aeft_lib.studies.effects import REPEATS, effect, paired
from aeft_lib.studies.objects import Interval
from aeft_lib.studies.profiles import PROFILES
from aeft_lib.studies.published import published
from aeft_lib.studies.settings import Profile
from aeft_lib.studies.systems import GAP_ROWS
from aeft_lib.studies.verdicts import (
    COUNTED,
    INTERACTION,
    LONG,
    NEEDED,
    PAPER_REPEATS,
    SHORT_STEPS,
    Line,
    judged,
)

# Rows more and less, metric, repeats -> the interval over objects, where there is one.
OverObjects = Callable[[str, str, str, Sequence[int]], Interval | None]
Costs = Mapping[str, float]  # of rows, in trainings of a GAP classifier


def build(
    tables: Mapping[str, pd.DataFrame],
    profile: str,
    *,
    short: bool = False,
    over_objects: OverObjects = lambda *_: None,
    costs: Costs = MappingProxyType({}),
) -> dict[str, Any]:
    """The whole report as JSON-ready data: ``{"profile", "claims": [...]}``.

    tables: per study its long table (`studies.run`); a missing study is reported as not run.
    short: see `is_short`.  costs: of the rows of other methods (`league.costs_of`).
    """
    numbers = published()["numbers"].items()
    long = (curves.results(), curves.kept())
    lines = [
        _number(*number, tables, profile, over_objects, costs, long)
        for number in numbers
        if number[0] != "known.gap_seed"
    ]
    lines.append(_interaction(tables))
    lines += [_result(column) for column in ("voc_val", "voc_test", "coco_val")]
    claims = published()["claims"]
    lines += [_claim(claim, tables, profile, over_objects, long) for claim in claims]
    lines += [_condition(claim, tables) for claim in levels.claims()]
    machine = store.environment()["machine"]
    origin = {"short": short, "profile": profile, "commit": store.commit(), "machine": machine}
    return {"profile": profile, "claims": judged(line | origin for line in lines)}


def is_short(profile: Profile) -> bool:
    """Whether a profile trains its classifiers for fewer than `SHORT_STEPS` steps."""
    return steps(profile)[0] < SHORT_STEPS


def steps(profile: Profile) -> tuple[int, int]:
    """Of a classifier's training, and of the second phase."""
    samples = profile.train.count or len(profile.train.open())
    schedules = (profile.schedule, profile.erasing.schedule())
    first, second = (s.epochs * s.epoch_steps(samples) for s in schedules)
    return first, second


def carry_over(report: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`report` with those lines of the report in `folder` that have more repeats.

    So a store of one study does not wipe out the results of another; each line names its commit.
    A report of another profile is ignored.
    """
    earlier = load(folder) if (folder / "report.json").is_file() else {"profile": None}
    if earlier["profile"] != report["profile"]:
        return dict(report)
    known = {line["id"]: line for line in earlier["claims"]}
    lines = [_richer(line, known.get(line["id"], line)) for line in report["claims"]]
    return {**report, "claims": judged(lines)}


def _richer(line: Line, earlier: Mapping[str, Any]) -> Line:
    """The line of more repeats, of equals the new; what is not from the store is always the new's.

    That is its text and the paper's number, what it needs and costs, and all of photos, long
    trainings and paper scale.
    """
    if line["n"] >= earlier["n"]:
        return line
    elsewhere = ("photos_", "long_", "paper_scale", "needs", "claim", "cost", "published", "place")
    kept = {k: value for k, value in earlier.items() if not k.startswith(elsewhere)}
    number = published()["numbers"].get(line["id"])
    ran = number and earlier["n"]
    asked = _asked(number, line["profile"], line["cost"]) if ran else line["claim"]
    return line | kept | {"claim": asked}


def load(folder: Path = paths.FIGURES) -> dict[str, Any]:
    """The report that was written to `folder`.

    Raises FileNotFoundError with the command that writes it.
    """
    file = folder / "report.json"
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: write it with `aeft report`")
    try:
        return json.loads(paths.read_committed(file))
    except (ValueError, RecursionError) as error:
        remedy = "restore it, or remove it and run `aeft report`"
        raise ValueError(f"{file} is damaged ({error}): {remedy}") from error


def _claim(
    claim: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    profile: str,
    over_objects: OverObjects,
    long: tuple[pd.DataFrame, pd.DataFrame],
) -> Line:
    pair = (claim["more"], claim["less"], claim["metric"])
    differences = _differences(tables.get(claim["study"]), *pair)
    unit = f"{claim['metric']}, {claim['more']} − {claim['less']}"
    told = (claim["id"], _on_map(claim["claim"], profile), unit, claim.get("published"))
    line = _line(*told, differences, differences, claim)
    line |= _over_objects(over_objects, pair, differences)
    return line | _elsewhere("photos_", photo_results.differences(*pair)) | _long(pair, *long)


def _condition(claim: levels.Claim, tables: Mapping[str, pd.DataFrame]) -> Line:
    """A level of a knob, or a depth of training.

    Repeats draw scenes of their own, so its interval is over them too.
    """
    differences = _differences(tables.get(claim.study), claim.more, claim.less, "miou")
    source = {"study": claim.study, "place": "not in the paper; notebook 8"}
    source["repeats"] = claim.repeats
    told = (claim.id, claim.text, f"miou, {claim.more} − {claim.less}", None)
    line = _line(*told, differences, differences, source)
    if not claim.photos_more:
        word = "no such knob" if claim.study == "conditions" else "not run"
        return line | {"photos_verdict": word}
    pair = (claim.photos_more, claim.photos_less, "miou")
    needs = {"photos_needs": _needs_of(pair, claim.repeats)}
    return line | _elsewhere("photos_", photo_results.differences(*pair)) | needs


def _interaction(tables: Mapping[str, pd.DataFrame]) -> Line:
    """CDA's own claim: it gains more over GAP where backgrounds are tied to classes."""
    study, (free, tied) = rivals_readers.PASTING, rivals_readers.CONTEXTS
    gains = [
        _differences(tables.get(study.name), f"{level}.cda", f"{level}.gap", "miou")
        for level in (tied, free)
    ]
    differences = (gains[0] - gains[1]).dropna()
    text = "CDA gains more over GAP where backgrounds are tied to classes (context 1 against 0)"
    unit = f"miou, ({tied}.cda − {tied}.gap) − ({free}.cda − {free}.gap)"
    source = {
        "study": study.name,
        "place": "not in the paper; CDA pastes to undo context",
        "repeats": REPEATS,
    }
    return _line(INTERACTION, text, unit, None, differences, differences, source)


def _needs_of(pair: tuple[str, str, str], repeats: int) -> int:
    """Repeats that a verdict on two rows needs: those of every claim about the same comparison.

    So no line decides what the line of a claim of the paper leaves undecided.
    pair: rows more and less, and the metric.  repeats: that the line itself needs.
    """
    claims = published()["claims"]
    same = (c for c in claims if (c["more"], c["less"], c["metric"]) == pair)
    return max([repeats, *(claim["repeats"] for claim in same)])


def _number(
    name: str,
    number: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    profile: str,
    over_objects: OverObjects,
    costs: Costs,
    long: tuple[pd.DataFrame, pd.DataFrame],
) -> Line:
    """A published number beside ours of its row; the verdict is on its table's baseline."""
    study, baseline = number.get("study", "pyramid_ablation"), number.get("baseline", "gap")
    # Label maps and networks count as they are: no threshold on masks is theirs to choose.
    as_they_are = number["task"].startswith(("pseudo-label", "segmentation"))
    metric, row = "miou_maskless" if as_they_are else "miou", number.get("row", "")
    pair = (baseline, row, metric) if number.get("worse") else (row, baseline, metric)
    elsewhere = _elsewhere("photos_", photo_results.differences(*pair)) | _long(pair, *long)
    needs = _needs_of(pair, number.get("repeats", PAPER_REPEATS))
    elsewhere |= {name: needs for prefix, name in NEEDED.items() if prefix}
    table, cost = tables.get(study), {"cost": costs.get(row)}
    if table is None or row not in set(table["row"]):
        text = f"{_on_map(number['label'], profile)}: {number['task']}"
        line = _line(name, text, "mIoU", number.get("value"), [], [], number)
        return line | cost | elsewhere
    of_row = table.loc[table["row"] == row].sort_values("repeat")
    if baseline not in set(table["row"]):
        table = pd.concat([table, tables.get("pyramid_ablation")])
    differences = _differences(table, *pair)
    text, source = _asked(number, profile, cost["cost"]), number | {"study": study}
    line = _line(name, text, "mIoU", number.get("value"), of_row[metric], differences, source)
    if baseline not in set(table["row"]):
        line["unpaired"] = f"row {baseline} was not run"
    line |= cost | elsewhere | _over_objects(over_objects, pair, differences)
    return line | _to_gap(number, table, metric)


def _to_gap(number: Mapping[str, Any], table: pd.DataFrame, metric: str) -> Line:
    """The difference of another method's row to GAP, where its line is about another baseline."""
    ends = {"pseudo-label": "pseudo", "segmentation": "segmentation"}
    base = GAP_ROWS[ends.get(number["task"].split()[0], "seed")]
    if number.get("study") != "rivals" or number.get("baseline", "gap") == base:
        return {}
    tested = _tested(_differences(table, number["row"], base, metric))
    return {f"gap_{field}": tested[field] for field in ("mean", "low", "high")}


def _asked(number: Mapping[str, Any], profile: str, cost: float | None) -> str:
    """What the line of a number asks where its row has been run."""
    rival = "GAP" if number.get("baseline", "gap") == "gap" else "GPP only"
    label = _on_map(number["label"], profile)
    text = number.get("text", f"{label} gives better seeds than {rival}")
    return f"{text}, at the cost of {cost:.3g} GAP trainings" if cost else text


def _on_map(text: str, profile: str) -> str:
    """A text with the paper's bins, with those of a profile's map beside them."""
    return labels.on_map(text, PROFILES[profile].map_side) if profile in PROFILES else text


def _result(column: str) -> Line:
    ours = next(row for row in published()["results"] if row["method"].startswith("AEFT"))
    text = f"AEFT's segmentation network, {column.replace('_', ' ').upper()}"
    place = {"place": "poster, results table, last row"}
    return _line(f"results.{column}", text, "mIoU", ours[column], [], [], place)


def _differences(table: pd.DataFrame | None, more: str, less: str, metric: str) -> pd.Series:
    return pd.Series(dtype=float) if table is None else paired(table, more, less, metric)


def _line(
    name: str,
    text: str,
    unit: str,
    value: float | None,
    ours: Sequence[float],
    differences: Sequence[float],
    source: Mapping[str, Any],
) -> Line:
    """A line without its verdict.  ours: by repeat; differences: those that its claim is about."""
    n, needs = len(ours), source.get("repeats", PAPER_REPEATS)
    command = f"aeft run {source.get('study')} --repeats {max(n, needs)}"
    tested = _tested(differences)
    return {
        "id": name,
        "claim": text,
        "unit": unit,
        "published": value,
        "cost": None,
        "reproduced_mean": _rounded(np.mean(ours)) if n else None,
        "sd": _rounded(np.std(ours, ddof=1)) if n > 1 else None,
        "n": n,
        "needs": needs,
        "difference": tested["mean"],
        "low": tested["low"],
        "high": tested["high"],
        "pairs": tested["n"],
        "p": tested["p"],
        "p_adjusted": None,
        "tests": 0,
        "verdict": "not run",
        "verdict_adjusted": "not run",
        "reason": "",
        "unpaired": "no difference by repeat",
        **_over(None),
        **dict.fromkeys(("gap_mean", "gap_low", "gap_high")),
        **_elsewhere("photos_", []),
        **{name: value for prefix in LONG for name, value in _elsewhere(prefix, []).items()},
        **{NEEDED[prefix]: needs for prefix in COUNTED},
        **{f"{prefix}unsaturated": "" for prefix in LONG},
        **{name: value for prefix in LONG for name, value in _over(None, prefix).items()},
        "paper_scale": "not run",
        "place": source["place"],
        "command": command if "study" in source else None,
    }


def _tested(differences: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, sd, 95 % interval, p and n of differences; None where they are too few."""
    n = len(differences)
    numbers = {"mean": None, "sd": None, "low": None, "high": None, "p": None, "n": n}
    if n:
        numbers["mean"] = _rounded(np.mean(differences))
    if n > 1:
        _, low, high, p, _ = effect(differences)
        ends = {"low": low, "high": high, "p": p}
        numbers["sd"] = _rounded(np.std(differences, ddof=1))
        # Digits that count, not decimals: an end close to 0 must not become 0.
        numbers |= {name: float(f"{value:.6g}") for name, value in ends.items()}
    return numbers


def _rounded(value: float) -> float:
    return round(float(value), 4)


def _elsewhere(prefix: str, differences: Sequence[float]) -> Line:
    """The fields of a line about real photos or long trainings, without their verdict."""
    fields = _tested(differences) | {"p_adjusted": None, "tests": 0}
    fields |= {"verdict": "not run", "verdict_adjusted": "not run", "reason": ""}
    return {f"{prefix}{name}": value for name, value in fields.items()}


def _long(pair: tuple[str, str, str], ended: pd.DataFrame, kept: pd.DataFrame) -> Line:
    """What long trainings say of a comparison; ``unsaturated``: rows that were still learning.

    ended, kept: `curves.results` and `curves.kept`.
    """
    (more, less, metric), line = pair, {}
    for prefix, pictures in LONG.items():
        differences = paired(ended[ended["pictures"] == pictures], more, less, metric)
        line |= _elsewhere(prefix, differences)
        if len(differences):
            of_pictures = kept[kept["pictures"] == pictures]
            line[f"{prefix}unsaturated"] = ", ".join(curves.unsaturated(of_pictures, (more, less)))
            profile, repeats = curves.profile_of(pictures), differences.index.tolist()
            line |= _over(objects.of_photos(profile, *pair, repeats), prefix)
    return line


def _over_objects(of: OverObjects, pair: tuple[str, str, str], differences: pd.Series) -> Line:
    """The interval over objects of the repeats that are compared."""
    over = of(*pair, differences.index.tolist()) if len(differences) else None
    return {} if over is None else _over(over)


def _over(interval: Interval | None, prefix: str = "") -> Line:
    """The fields of an interval over objects, or of none."""
    fields = {"objects_low": None, "objects_high": None, "objects": 0}
    if interval is not None:
        fields = {"objects_low": _rounded(interval.low), "objects_high": _rounded(interval.high)}
        fields["objects"] = interval.objects
    return {f"{prefix}{name}": value for name, value in fields.items()}
