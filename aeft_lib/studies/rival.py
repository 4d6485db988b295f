"""What an entry of the study `rivals` is: a method's rows, from its seeds to segmentation."""

from dataclasses import replace
from typing import Any

from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.parts.equivariance import Equivariance
from aeft_lib.stages.method import Refiner
from aeft_lib.stages.psa import Psa
from aeft_lib.studies.rows import GAP, Row

PSA = Psa(crf=True, walk=True)  # AffinityNet's refinement, as most methods of the table have it
BASE = replace(GAP, mechanisms=(Equivariance(),))


def rows_of(
    seed: Row, passes: float | None = None, ablations: tuple[Row, ...] = ()
) -> tuple[Row, ...]:
    """The rows of a method of the results table.

    Its seeds, their ablations, GAP at the same cost, pseudo-labels by AffinityNet, segmentation.
    passes: forward and backward passes of a step through the classifier, by pixels, against plain
        classification; None: the method's own.
    ablations: rows of its seeds with its idea, or a part of it, switched off.
    """
    as_long_as = seed.method if passes is None else passes
    name, label = f"gap_as_{seed.name}", f"GAP, passes of {seed.label}"
    same_cost = replace(BASE, name=name, label=label, as_long_as=as_long_as)
    return (seed, *ablations, same_cost, *ends(seed, PSA))


def ends(seed: Row, refiner: Refiner) -> tuple[Row, Row]:
    """The rows of pseudo-labels and of a segmentation network that begin with a row's seeds."""
    plain = replace(seed, refiner=refiner, mechanisms=())
    ids = (None, None)
    if seed != BASE:
        ids = tuple(f"rival.{seed.name}.{end}" for end in ("pseudo", "segmentation"))
    name, label = seed.name, seed.label
    return (
        replace(
            plain,
            name=f"{name}_pseudo",
            label=f"{label}, pseudo-labels",
            scored_on="train",
            published=ids[0],
        ),
        replace(
            plain,
            name=f"{name}_segmentation",
            label=f"{label}, segmentation",
            segmenter=LargeFov(),
            scored_on="val",
            published=ids[1],
        ),
    )


def labelled(name: str, label: str, base: Row, refiner: Refiner, **fields: Any) -> Row:
    """Label maps of a row's seeds, made and scored on the training scenes.  fields: of `Row`."""
    changes = {"scored_on": "train", "published": None} | fields
    return replace(base, name=name, label=label, refiner=refiner, **changes)
