"""Whether masks say what the tags of their images say, and if not, what that usually means.

A mask contradicts its tags where it has a class that is not tagged, or none of those that are.  A
tag without a label is no contradiction: small objects are often not outlined, in VOC too (48 of
1,500 photos).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aeft_lib.maps.labels import VOID

TOLERATED = 0.05  # of the masks compared: published data have a few


class Compared(NamedTuple):
    """A mask beside the tags of its image.

    tags: labels of the tagged classes, 1..K; None where they are not known.  labels: its own, None
    where it is not readable.  problems: what is wrong with it.
    """

    file: Path
    tags: frozenset[int] | None
    labels: frozenset[int] | None
    problems: list[str]

    @property
    def objects(self) -> frozenset[int]:
        """The labels that are neither background nor void."""
        return (self.labels or frozenset()) - {0, VOID}

    @property
    def contradicts(self) -> bool:
        """Whether its labels are not those of its tags."""
        return bool(self.objects - self.tags) or bool(self.tags and not self.objects)


def judged(masks: Sequence[Compared], classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines and problems that the comparison gives; classes: names of the labels from 1 on."""
    readable = [mask for mask in masks if None not in (mask.labels, mask.tags)]
    differing = sum(mask.objects != mask.tags for mask in readable)
    odd = [mask for mask in readable if mask.contradicts]
    lines = [f"masks whose labels differ from the tags: {differing} of {len(readable)} compared"]
    lines = lines if differing else []
    if len(odd) <= TOLERATED * len(readable):
        return lines, _no_background(readable)
    names = ", ".join(mask.file.name for mask in odd[:3]) + (", ..." if len(odd) > 3 else "")
    count = f"{len(odd)} of {len(readable)} masks compared contradict the tags of their images"
    return lines, [f"{count} ({names}): {_cause(odd, classes)}"]


def _no_background(masks: Sequence[Compared]) -> list[str]:
    """A problem where most masks are right but for their background, which is void."""
    bare = sum(VOID in mask.labels and 0 not in mask.labels for mask in masks)
    if 2 * bare <= len(masks):
        return []
    count = f"{bare} of {len(masks)} masks compared have no background pixel (label 0)"
    return [f"{count}: is the background painted {VOID}? {VOID} is void, and does not count"]


def _cause(odd: Sequence[Compared], classes: Sequence[str]) -> str:
    """The usual cause that fits most of the masks."""
    numbers = f"0 is background, 1 is {classes[0]}" if classes else "0 is background"
    causes = {
        f"they hold no label but 0 and {VOID}, so no object; {VOID} is void. Painted in black and"
        f" white? {numbers}": [not mask.objects for mask in odd],
        f"their labels are one too high; {numbers}": [_shifted(mask, -1) for mask in odd],
        f"their labels are one too low; {numbers}": [_shifted(mask, 1) for mask in odd],
        f"they hold labels beyond {len(classes)}: grey values of colours, or the indices of another"
        f" palette? {numbers}": [max(mask.objects, default=0) > len(classes) for mask in odd],
    }
    for text, fits in causes.items():
        if 2 * sum(fits) > len(odd):
            return text
    return f"another order of classes, masks of other images, or tags left out? {numbers}"


def _shifted(mask: Compared, step: int) -> bool:
    """Whether the labels would be those of tags, were they this much higher."""
    moved = {label + step for label in mask.objects} - {0}
    return bool(moved) and moved <= mask.tags
