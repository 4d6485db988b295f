"""What an entry of the study `rivals` is: a method's rows, from its seeds to segmentation."""

from dataclasses import dataclass, replace
from typing import Any

from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.parts.equivariance import Equivariance
from aeft_lib.stages.method import Method, Refiner
from aeft_lib.stages.psa import Psa
from aeft_lib.studies.rows import GAP, Row

PSA = Psa(crf=True, walk=True)  # AffinityNet's refinement, as most methods of the table have it
BASE = replace(GAP, mechanisms=(Equivariance(),))


@dataclass(frozen=True)
class Rival:
    """A method of the results table: the row of its seeds, and what is compared with it.

    passes: forward and backward passes of a step through the classifier, by pixels, against plain
        classification; None: the method's own.
    refiner: from its seeds to pseudo-labels.
    ablations: rows of its seeds with its idea, or a part of it, switched off.
    """

    seed: Row
    passes: float | None = None
    refiner: Refiner = PSA
    ablations: tuple[Row, ...] = ()

    @property
    def name(self) -> str:
        """Of its seeds' row."""
        return self.seed.name

    @property
    def rows(self) -> tuple[Row, ...]:
        """Seeds, ablations, GAP at the same cost, pseudo-labels, segmentation."""
        pseudo, segmentation = ends(self.seed, self.refiner)
        return (self.seed, *self.ablations, *self.same_cost, pseudo, segmentation)

    @property
    def as_long_as(self) -> Method | float:
        """What `Row.as_long_as` takes: its method, or its passes."""
        return self.seed.method if self.passes is None else self.passes

    @property
    def same_cost(self) -> tuple[Row, ...]:
        """GAP, trained for as many passes as the method; none where the method trains as GAP."""
        as_long_as = self.as_long_as
        if as_long_as == 1:
            return ()
        label = f"GAP, passes of {self.seed.label}"
        return (replace(BASE, name=f"gap_as_{self.name}", label=label, as_long_as=as_long_as),)


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
