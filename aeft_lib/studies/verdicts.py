"""Verdicts of the report's lines: one rule, plain and adjusted for how many claims are asked.

A line has an interval, its p value, and how many repeats it rests on: of the profile's scenes, of
real photos (prefix ``photos_``), and of long trainings on either (`LONG`).  The rule is that of
`studies.effects`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from aeft_lib.studies.effects import LEVEL, adjusted, side

CLAIMS = ("claim.", "ours.")  # ids of lines about differences: the poster's, and our own
INTERACTION = "rival.cda.context"
DIFFERENCES = (*CLAIMS, "condition.")
SIGNED = (*DIFFERENCES, INTERACTION)  # what they say of rows is a difference alone
# Lines whose p values are adjusted together.
FAMILIES = (CLAIMS, ("condition.",), ("table", "known."), ("rival.",))
# What decides a verdict, by what its fields begin with: on the profile's scenes, on real photos.
LONG = {"long_": "collages", "long_photos_": "photos"}  # `curves.PICTURES` of long trainings
COUNTED = {"": "pairs"} | {prefix: f"{prefix}n" for prefix in ("photos_", *LONG)}
NEEDED = {prefix: f"{prefix}needs" for prefix in COUNTED}
VERBS = {"holds": "hold", "fails": "fail", "undecided": "undecided", "not run": "not run"}
VERDICTS = tuple(VERBS)
PAPER_REPEATS = 5  # that a verdict on the paper needs, where published.toml has no other number
SHORT_STEPS = 1800  # of classification; below, a comparison may be of how fast rows learn

Line = dict[str, Any]


def judged(lines: Iterable[Mapping[str, Any]]) -> list[Line]:
    """Lines with their verdicts, plain and adjusted, from their intervals and p values."""
    lines = [dict(line) for line in lines]
    for prefix in COUNTED:
        for family in FAMILIES:
            tested: dict[str, list[Line]] = {}
            for line in lines:
                if line["id"].startswith(family) and line[f"{prefix}p"] is not None:
                    tested.setdefault(_comparison(line), []).append(line)
            p_adjusted = adjusted([same[0][f"{prefix}p"] for same in tested.values()])
            for same, p in zip(tested.values(), p_adjusted, strict=True):
                for line in same:
                    line |= {f"{prefix}p_adjusted": p, f"{prefix}tests": len(tested)}
        for line in lines:
            line |= _verdicts(line, prefix)
    return lines


def _comparison(line: Mapping[str, Any]) -> str:
    """What a line compares: the base is a level of every knob, and one comparison."""
    return line["unit"] if line["id"].startswith(SIGNED) else line["id"]


def _verdicts(line: Mapping[str, Any], prefix: str) -> Line:
    n, needs = line[COUNTED[prefix]], line[NEEDED[prefix]]
    names = (f"{prefix}verdict", f"{prefix}verdict_adjusted", f"{prefix}reason")
    if n == 0:
        reason = line.get("unpaired", "") if line["n"] and not prefix else ""
        word = "undecided" if reason else line[names[0]]
        return dict(zip(names, (word, word, reason), strict=True))
    if n < needs:
        words = ("undecided", "undecided", f"{n} of {needs} repeats")
        return dict(zip(names, words, strict=True))
    plain = side(line[f"{prefix}low"], line[f"{prefix}high"])
    remains = line[f"{prefix}p_adjusted"] < round(1 - LEVEL, 6)
    return dict(zip(names, (plain, plain if remains else "undecided", ""), strict=True))


def check_repeats(report: Mapping[str, Any]) -> None:
    """Raises ValueError where a claim has been run with fewer repeats than its verdict needs."""
    few = [line for line in report["claims"] if 0 < line["pairs"] < line["needs"]]
    if few:
        line, others = few[0], f" (and {len(few) - 1} more claims)" if few[1:] else ""
        text = f"{line['id']} has {line['pairs']} repeats, its verdict needs {line['needs']}"
        raise ValueError(f"{text}{others}: {line['command']}")
