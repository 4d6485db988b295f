"""Intervals over objects: the networks as they are, the scored objects drawn anew.

An interval over repeats says what other weights would give on the same objects; this one what the
same weights would give on other objects.  Photos are drawn with replacement.  Of collages the
*cut-outs* are, since many scenes show the same one; a scene with several counts as often as the
product of their numbers says (the pigeonhole bootstrap; Owen, Annals of Applied Statistics, 2007).
Thresholds stay where they are, and so do backgrounds and what was trained on.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from aeft_lib.data import cutouts
from aeft_lib.data.collages import SceneSpec
from aeft_lib.data.scene import SceneSet
from aeft_lib.maps.evaluation import Counts
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.count_images import COUNTS, MASKLESS, read_counts
from aeft_lib.studies import ledger
from aeft_lib.studies.effects import LEVEL
from aeft_lib.studies.pipeline import Artefacts
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

IMAGES = "images"  # the artefact of a row that has the counts of its images
DRAWS, BLOCK = 2000, 100
Pair = tuple[Counts, Counts]


class Interval(NamedTuple):
    """Ends of a percentile interval, and how many objects were drawn."""

    low: float
    high: float
    objects: int


def shown(scenes: SceneSet) -> Sequence[tuple[str, ...]]:
    """By scene the names of its objects: its cut-outs, or the photo itself."""
    if isinstance(scenes, SceneSpec):
        return cutouts.shown(scenes)
    return [(name,) for name in scenes.open().names]


def difference(pairs: Sequence[Pair], metric: str, weights: np.ndarray | None = None) -> np.ndarray:
    """`metric` of the first of each pair minus that of the second, mean over pairs, in points.

    pairs: one a repeat, counts (N, K+1) of two rows.  weights: (D, N), how often each image counts;
    None is once.  Returns (D,), (1,) without weights.
    """
    name = metric.removesuffix(MASKLESS)
    weights = np.ones((1, len(pairs[0][0].tp))) if weights is None else weights

    def of(counts: Counts) -> np.ndarray:
        sums = (weights @ getattr(counts, part).astype(float) for part in COUNTS)
        return getattr(Counts(*sums), name)

    return np.mean([of(more) - of(less) for more, less in pairs], axis=0)


def interval(pairs: Sequence[Pair], objects: Sequence[tuple[str, ...]], metric: str) -> Interval:
    """The 95 % interval of `difference` where objects are drawn anew, with replacement.

    objects: by image the names of what it shows; an image that shows nothing counts once.
    The same draws for every claim on the same objects.
    Raises ValueError for fewer than two objects, or where images and counts differ in number.
    """
    names = sorted({name for of_image in objects for name in of_image})
    if len(names) < 2:
        raise ValueError(f"an interval over objects needs at least two, got {names}")
    if lengths := {len(c.tp) for pair in pairs for c in pair} - {len(objects)}:
        raise ValueError(f"{len(objects)} images have objects, counts are of {sorted(lengths)}")
    rng, n = np.random.default_rng(0), len(names)
    place_of = {name: place for place, name in enumerate(names)}
    # Where an image shows fewer objects than others, the last column, of ones, takes their place.
    places = np.full((len(objects), max(map(len, objects))), n)
    for image, of_image in enumerate(objects):
        places[image, : len(of_image)] = [place_of[name] for name in of_image]
    drawn = []
    for _ in range(DRAWS // BLOCK):
        numbers = rng.multinomial(n, np.full(n, 1 / n), size=BLOCK)
        numbers = np.pad(numbers, ((0, 0), (0, 1)), constant_values=1)
        weights = numbers[:, places].prod(axis=2)
        # A draw without any whole image has no score.
        drawn.append(difference(pairs, metric, weights[weights.any(axis=1)]))
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), n)


def of_rows(
    profile: Profile,
    more: Row,
    less: Row,
    metric: str,
    repeats: Sequence[int],
    read: Callable[[Profile, Row, int], Artefacts],
) -> Interval | None:
    """The interval over objects of row `more` minus row `less`, from what `read` finds: `run.read`.

    None where that lacks the counts of images, or the metric has none.
    """
    try:
        made = [[read(profile, r, i) for r in (more, less)] for i in repeats]
    except LookupError:
        return None
    if not all(IMAGES in row for pair in made for row in pair):
        return None
    scenes = more.setting.applied(profile, repeats[0]).scenes(more.scored_on)
    return _interval([[row[IMAGES] for row in pair] for pair in made], shown(scenes), metric)


def of_photos(
    profile: str, more: str, less: str, metric: str, repeats: Sequence[int]
) -> Interval | None:
    """The interval over photos of row `more` minus row `less`, from the ledger; no photo is read.

    None where the ledger lacks the counts of images, they are of collages, or the metric has none.
    """
    try:
        made = [[ledger.entry(profile, r, i, IMAGES) for r in (more, less)] for i in repeats]
    except LookupError:
        return None
    records = [row.record for pair in made for row in pair]
    if any(record["spec"]["scenes"]["class"] == SceneSpec.__name__ for record in records):
        return None
    photos = [(str(i),) for i in range(records[0]["summary"]["images"])]
    return _interval(made, photos, metric)


def _interval(
    made: Sequence[Sequence[Artefact]], objects: Sequence[tuple[str, ...]], metric: str
) -> Interval | None:
    """`interval` of artefacts of `count_images`, two a repeat; None where the metric has none."""
    pairs = [tuple(read_counts(row, metric) for row in pair) for pair in made]
    return None if any(None in pair for pair in pairs) else interval(pairs, objects, metric)
