"""What the league table says: mechanisms that moved, published against reproduced ranks, advice.

Every sentence is computed from the table of `league.lines` and the numbers of rows behind it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from aeft_lib.studies.effects import REPEATS, WHERE, by_repeat, interval, paired, points, side
from aeft_lib.studies.rows import Row
from aeft_lib.studies.systems import ENDS, GAP_ROWS, METRICS, NOT_RUN, SYSTEMS, System, ends

WORDS = {"seed": "seeds", "pseudo": "pseudo-labels", "segmentation": "a network"}
TRUE_MASKS = "segment_truth"  # the row whose network learns from the masks themselves
ALONE = ", nothing to compare"  # after a number of a mechanism
LEAST_SYSTEMS = 4  # below it a rank correlation has no interval
FEW_SYSTEMS = 10  # below it, it decides nothing


@dataclass(frozen=True)
class Sign:
    """A mechanism that should move: a number of a row against the same of another.

    sign: -1 where it should be lower.  level: a number to compare with, in place of a row's.
    """

    number: str
    sign: int
    against: str = "gap"
    level: float | None = None


# Numbers of mechanisms in words; of others the name without underscores will do.
IN_WORDS = {
    "amplification_ratio": "amplification of what was weak",
    "cov": "coefficient of variation",
    "cover": "share of the image covered",
    "differs": "share of pixels on which both masks differ",
    "edge": "mean edge",
    "edge_high": "share of strong edges",
    "force": "energy's gradient over cross-entropy's",
    "known": "share of pairs known",
    "labelled": "share of pixels labelled",
    "labelled_objects": "share of pixels labelled as objects",
    "largest_cluster": "images in the largest cluster",
    "outweighed": "share of pixels taken from the higher CAM",
    "overlap": "share of pixels claimed by several classes",
    "p_erased": "p of the erased class",
    "p_kept": "p of the kept classes",
    "p_tag": "p of a tag",
    "p_tag_erased": "p of a tag when erased",
    "pus_acted": "share of steps in which PUS acted",
    "pus_pixels": "share of pixels it capped",
    "seed_changed": "share of the seed that was changed",
    "smallest_cluster": "images in the smallest",
    "states": "states an image",
    "stopped_by_cover": "share stopped by cover",
    "stopped_by_logits": "share stopped by logits",
    "sub_accuracy": "accuracy of sub-categories",
    "sub_ap": "AP of sub-categories",
    "t_background": "background threshold",
    "t_foreground": "foreground threshold",
    "taken": "share of these taken from the CRF",
    "turned": "share of directions turned",
    "unsure": "share of pixels unsure",
    "without_score": "share of pixels claimed where the CAM is 0",
}
# What methods claim to do, where there is something to compare with.
SIGNS = {
    "seam": (Sign("equivariance_error", -1),),
    "cpn": (Sign("complementarity_error", -1, against="cpn_off"),),
    "occse": (Sign("p_erased", -1, against="occse_off"), Sign("p_kept", 0, against="occse_off")),
    "advcam": (Sign("amplification_ratio", 1, level=1.0),),  # of what was weak against the peak
}


def mechanism(table: pd.DataFrame, known: System, rows: Mapping[str, Row]) -> str:
    """Whether what a system claims to do is seen to happen, in a few words; reads no mask.

    A mechanism of `SIGNS` moved where the 95 % interval of its difference has the claimed sign.
    Others are compared with GAP's where that has the same number, without a claimed sign; a number
    that nothing is compared with is given as it is.  rows: all there are, by name.
    """
    every = ends(known, rows).values()
    logging = [row for row in every if row.mechanisms and row.name != "gap"]
    if not logging:
        return "not logged"
    own = logging[0]
    if not _readings(table, own):
        return "not logged" if by_repeat(table, own.name, "miou_maskless") else NOT_RUN
    names = dict.fromkeys(name for name, _ in known.parts if name in rows and name != own.name)
    told = [_of_own(table, known, own)]
    for part in (rows[name] for name in names):
        readings = _readings(table, part)
        told += [f"{part.label}: {readings}"] if readings and readings not in told else []
    return "; ".join(told)


def _numbers_of(row: Row) -> list[str]:
    return [name for part in row.mechanisms for name in part.names]


def _readings(table: pd.DataFrame, row: Row) -> str:
    """Means of what a row logs, and of how many repeats if not of all; "" where it was not run."""
    values = {name: by_repeat(table, row.name, name) for name in _numbers_of(row)}
    repeats = int((table["row"] == row.name).sum())

    def told(name: str, of: list[float]) -> str:
        few = "" if len(of) == repeats else f" ({len(of)} of {repeats} repeats)"
        return f"{_in_words(name)} {np.mean(of):.3g}{few}"

    return ", ".join(told(name, of) for name, of in values.items() if of)


def _of_own(table: pd.DataFrame, known: System, row: Row) -> str:
    """What a system's own row logs, and whether it moved where there is something to compare."""
    shared = [name for name in _numbers_of(row) if by_repeat(table, "gap", name)]
    claims = SIGNS.get(known.name, tuple(Sign(name, 0) for name in shared[:1]))
    moved = [_moved(table, row.name, claim) for claim in claims]
    if moved and all(text.endswith(ALONE) for text in moved):
        return _readings(table, row) + ALONE
    return "; ".join(moved) or _readings(table, row)


def _in_words(name: str) -> str:
    return IN_WORDS.get(name, name.replace("_", " "))


def _moved(table: pd.DataFrame, row: str, claim: Sign) -> str:
    """A claim about a mechanism: the difference, and whether it has the sign."""
    by_row = table.set_index(["row", "repeat"])
    ours, theirs = by_row.loc[row, claim.number], pd.Series(dtype=float)
    if claim.level is not None:
        theirs = ours * 0 + claim.level
    elif claim.against in by_row.index.get_level_values("row"):
        theirs = by_row.loc[claim.against, claim.number]
    mean, low, high, _, n = interval((ours - theirs).dropna())
    if n == 0:
        return f"{_in_words(claim.number)} {ours.mean():.3g}{ALONE}"
    told = f"{_in_words(claim.number)} {mean:+.3f}"
    if n < REPEATS:
        return f"{told} ({n} of {REPEATS} repeats)"
    word = {"holds": 1, "fails": -1}.get(side(low, high), 0)
    if word == 0:
        return f"not seen to move: {told} [{low:+.3f}, {high:+.3f}]"
    moved = "moved" if claim.sign in (0, word) else "moved the other way"
    return f"{moved}: {told} [{low:+.3f}, {high:+.3f}]"


# --- published against reproduced -----------------------------------------------------------------


class Ranks(NamedTuple):
    """Spearman's rank correlation over n systems, its 95 % interval; NaN where they are too few."""

    rho: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < LEAST_SYSTEMS:
            return f"Too few systems have both numbers ({self.n}) for ranks"
        text = f"Spearman's rho {self.rho:+.2f} [{self.low:+.2f}, {self.high:+.2f}], n = {self.n}"
        return f"{text}: so few systems decide nothing" if self.n < FEW_SYSTEMS else text


def rank_correlation(
    published: Iterable[float], reproduced: Iterable[float], draws: int = 4000
) -> Ranks:
    """Ranks of published and reproduced numbers; the interval draws the systems anew (bootstrap).

    Pairs with NaN are left out.  The numbers' own uncertainty is not in the interval, and of few
    systems it is too narrow: of five that have nothing to do with each other, one in eight leaves 0
    out where one in twenty should (docs/solutions.md, notebook 9).
    Raises ValueError where both differ in length.

    >>> ranks = rank_correlation([1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 40.0, 30.0, 50.0])
    >>> round(ranks.rho, 2), ranks.n
    (0.9, 5)
    """
    published, reproduced = list(published), list(reproduced)
    if len(published) != len(reproduced):
        given = f"{len(published)} published and {len(reproduced)} reproduced"
        raise ValueError(f"a rank correlation needs pairs of numbers, got {given}")
    both = np.array([published, reproduced], dtype=float)
    both = both[:, np.isfinite(both).all(axis=0)]
    n = both.shape[1]
    if n < LEAST_SYSTEMS:
        return Ranks(np.nan, np.nan, np.nan, n)
    drawn = np.random.default_rng(0).integers(n, size=(draws, n))
    rhos = _spearman(both[:, drawn])
    low, high = np.nanpercentile(rhos, [2.5, 97.5])
    return Ranks(float(_spearman(both[:, None])[0]), float(low), float(high), n)


def _spearman(pairs: np.ndarray) -> np.ndarray:
    """Rank correlations (draws,) of pairs (2, draws, n); NaN where one of both is constant."""
    from scipy.stats import rankdata  # slow to import, so not with the module

    ranks = rankdata(pairs, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        product = (ranks[0] * ranks[1]).sum(axis=-1)
        return product / np.sqrt(np.square(ranks).sum(axis=-1).prod(axis=0))


# --- what it says ---------------------------------------------------------------------------------


def ranks(league: pd.DataFrame, end: str) -> Ranks:
    """`rank_correlation` of an end, over systems whose own numbers can be compared.

    league: of `lines`.  Left out are seeds that are another system's, published numbers of another
    task, and rows with fewer repeats than a verdict needs.
    """
    own = league[(league["end"] == end) & (league["shared"] == "") & league["comparable"]]
    own = own[own["repeats"] >= REPEATS]
    return rank_correlation(own["published"], own["mean"])


def advice(league: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """A sentence "Use X when" for each system and end whose interval lies above the base's.

    Seeds have to be ahead at a threshold chosen without masks too, since who has tags alone has no
    other; a sentence names those that are not.
    league: of `lines`.  table: with GAP at the same cost, rows ``gap_as_NAME``, where they were
    run.
    """
    told = []
    for line in league[(league["verdict"] == "holds") & (league["shared"] == "")].itertuples():
        gain = points(line.difference, line.difference_low, line.difference_high)
        without = points(line.maskless, line.maskless_low, line.maskless_high)
        if line.end == "seed" and not line.maskless_low > 0:
            told.append(
                f"{line.method} is ahead of GAP at the best threshold on masks alone ({gain}); "
                f"at one chosen without masks its seeds are at {without}, so collages do not "
                "recommend it."
            )
            continue
        text = f"Use {line.method} when you want {WORDS[line.end]}: {gain} points over GAP"
        text += f", {without} without masks" if line.end == "seed" else ""
        if np.isfinite(line.cost):
            text += f", for {line.cost:.1f} GAP trainings"
        decided = (
            "" if line.p_adjusted < 0.05 else "; no longer certain once all comparisons are counted"
        )
        told.append(f"{text}{_same_cost(line, table)}{decided}.")
    return told


def _same_cost(line: Any, table: pd.DataFrame) -> str:
    """What is left of a gain in seeds against GAP trained for as long."""
    if line.end != "seed":
        return ""
    differences = paired(table, line.row, f"gap_as_{line.name}", METRICS["seed"])
    if len(differences) < REPEATS:
        return "; GAP trained for as long was not run"
    _, low, high, _, _ = interval(differences)
    gain = points(float(differences.mean()), low, high)
    seen = "" if low > 0 else "not seen to be "
    return f"; {seen}ahead of GAP trained for as long ({gain})"


def _longer_gap(league: pd.DataFrame, table: pd.DataFrame) -> str:
    """What GAP's seeds lose or gain when it is trained as long as a system; "" where not run."""
    told: dict[str, list[str]] = {}
    for line in league[(league["end"] == "seed") & (league["shared"] == "")].itertuples():
        differences = paired(table, f"gap_as_{line.name}", "gap", "miou_maskless")
        if len(differences) >= REPEATS:
            mean, low, high, _, _ = interval(differences)
            told.setdefault(points(mean, low, high), []).append(line.method)
    parts = [f"as {', '.join(methods)} {gain}" for gain, methods in told.items()]
    if not parts:
        return ""
    title = "**GAP trained for as long** as a system, its seeds without masks against GAP's own"
    return f"{title}: {'; '.join(parts)}"


def with_photos(league: pd.DataFrame, photos: pd.DataFrame) -> pd.DataFrame:
    """The league's lines of the seeds, their own, that photos have too."""
    own = (league["end"] == "seed") & (league["shared"] == "") & league["row"].isin(photos["row"])
    return league[own]


def _on_photos(league: pd.DataFrame, photos: pd.DataFrame) -> str:
    """Seeds on photos against GAP's, at thresholds that no mask chose."""
    told, few = [], 0
    for line in with_photos(league, photos).itertuples():
        differences = paired(photos, line.row, "gap", "miou_maskless")
        if len(differences) < REPEATS:
            few += 1
            continue
        mean, low, high, _, _ = interval(differences)
        told.append(f"{line.method} {points(mean, low, high)} ({WHERE[side(low, high)]})")
    told.append(f"{few} with too few repeats to compare")
    return f"**seeds on real photos**, without masks, against GAP: {', '.join(told)}"


def _against_gap(run: pd.DataFrame) -> str:
    """Who is better, who is worse, and what remains of it once all comparisons are counted."""
    words, told = run["verdict"].tolist(), []
    for word, name in (("holds", "better"), ("fails", "worse")):
        decided = run[run["verdict"] == word]
        kept = decided.loc[decided["p_adjusted"] < 0.05, "method"].tolist()
        text = f"{len(decided)} {name}"
        if len(decided):
            text += (
                f" ({', '.join(decided['method'])}; after adjustment {', '.join(kept) or 'none'})"
            )
        told.append(text)
    told.append(f"{words.count('undecided')} undecided")
    few = len(words) - sum(words.count(word) for word in ("holds", "fails", "undecided"))
    return ", ".join([*told, f"{few} with too few repeats to compare"])


def _true_masks(table: pd.DataFrame) -> str:
    """Whether the harness's network tells true masks from GAP's pseudo-labels; "" where not run."""
    differences = paired(table, TRUE_MASKS, GAP_ROWS["segmentation"], METRICS["segmentation"])
    if len(differences) < REPEATS:
        return ""
    mean, low, high, _, _ = interval(differences)
    text = f" A network that learns from true masks is {points(mean, low, high)} from GAP's"
    if low > 0:
        return f"{text}: better labels teach a better network here."
    return f"{text}: trainings so short do not tell better labels from worse."


def conclusions(league: pd.DataFrame, table: pd.DataFrame, photos: pd.DataFrame) -> str:
    """What the league says, as Markdown items: an item an end, ranks, photos, and advice.

    photos: of `photo_results.rivals`.
    """
    items = []
    for end in ENDS:
        of_end = league[(league["end"] == end) & (league["shared"] == "")]
        run = of_end[of_end["repeats"] > 0]
        text = f"**{WORDS[end]}**: {len(run)} of {len(SYSTEMS)} systems have numbers of their own."
        text += f" Against GAP: {_against_gap(run)}. {ranks(league, end)}."
        items.append(f"- {text}{_true_masks(table) if end == 'segmentation' else ''}")
    if longer := _longer_gap(league, table):
        items.append(f"- {longer}.")
    items.append(f"- {_on_photos(league, photos)}.")
    sentences = advice(league, table)
    none = "No system's interval lies above the GAP base's, so collages recommend none over it."
    return "\n".join([*items, *(f"- {text}" for text in sentences or [none])])
