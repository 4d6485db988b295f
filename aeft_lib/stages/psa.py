"""The refiner of AffinityNet's authors (PSA), which the paper uses: dense CRF, AffinityNet, walk.

Its numbers are the profile's: powers of the background, radius, beta, steps, iterations.  Its
authors' own, which differ from the paper's, stand in `rivals.psa`.
"""

import math
from dataclasses import dataclass

from aeft_lib.engine.fields import whole
from aeft_lib.refinement.background import Powers, crossing
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.choose_background import BackgroundSpec, choose_background
from aeft_lib.stages.method import Workshop
from aeft_lib.stages.refine_by_crf import CrfSpec, refine_by_crf
from aeft_lib.stages.spread_powers import SpreadSpec, spread_powers
from aeft_lib.stages.train_affinity import AffinitySpec, train_affinity
from aeft_lib.stages.walk_seeds import WalkSpec, walk_seeds
from aeft_lib.stages.write_labels import LabelSpec, write_labels


@dataclass(frozen=True)
class Psa:
    """crf, walk: which of the two; both: the walk, then the CRF on its result.

    With neither, label maps come from the seeds at a threshold chosen without masks.

    powers: of the background (low, middle, high), in place of the profile's.  Where the profile
        chooses its own by a rule, the distance of low and high is kept, in logits of the crossing.
    steps: of the walk, in place of the profile's.  () and 0: the profile's.
    """

    crf: bool = False
    walk: bool = False
    powers: tuple[float, ...] = ()
    steps: int = 0

    def __post_init__(self) -> None:
        whole(self, "steps")
        increasing = all(0 < power < math.inf for power in self.powers)
        increasing = increasing and tuple(sorted(self.powers)) == tuple(self.powers)
        if self.powers and not (len(self.powers) == 3 and increasing):
            rule = "three positive numbers that increase from low to high, or ()"
            raise ValueError(f"powers must be {rule}, got {self.powers!r}")

    def refine(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """``seeds, background, scores, labels``; with a walk, ``posteriors`` and ``affinity``."""
        numbers, obtain = workshop.numbers, workshop.obtain
        seeds, scenes = workshop.seeds(split), workshop.scenes(split)
        background = self._background(workshop)
        made = {"seeds": seeds, "background": background}
        if self.walk:
            trained = _affinity(workshop, background)
            last = numbers.last_crf_iterations if self.crf else 0
            walk = WalkSpec(scenes, numbers.beta, self.steps or numbers.steps, last)
            scores = obtain(walk_seeds, walk, made | {"affinity": trained["affinity"]})
            made |= trained
        elif self.crf:
            scores = _crf(workshop, split, background)
        else:
            inputs = {"scores": seeds, "background": background}
            labels = obtain(write_labels, LabelSpec("seeds.npz", by_threshold=True), inputs)
            return made | {"scores": seeds, "labels": labels}
        posteriors = LabelSpec("middle.npz", by_threshold=False)
        labels = obtain(write_labels, posteriors, {"scores": scores})
        return made | {"scores": scores, "labels": labels}

    def _background(self, workshop: Workshop) -> Artefact:
        """Chosen on the training scenes, whatever is refined with it."""
        numbers, obtain = workshop.numbers, workshop.obtain
        fixed = numbers.powers and (self.powers or numbers.powers)
        spec = BackgroundSpec(workshop.thresholds, fixed)
        background = obtain(choose_background, spec, {"seeds": workshop.seeds("train")})
        if fixed or not self.powers:
            return background
        spread = SpreadSpec(_half_distance(self.powers[0], self.powers[-1]))
        return obtain(spread_powers, spread, {"background": background})


def _half_distance(low: float, high: float) -> float:
    """Half the distance of two powers, in logits of their crossings.

    >>> round(_half_distance(2, 21), 2), round(_half_distance(4, 32), 2)
    (0.84, 0.76)
    """
    above, below = (math.log(t / (1 - t)) for t in map(crossing, (low, high)))
    return (above - below) / 2


def _crf(workshop: Workshop, split: str, background: Artefact) -> Artefact:
    """The CRF of a split's seeds.

    On the training scenes all powers share a lattice and an artefact, whoever asks first: label
    maps read the middle one, AffinityNet the two others.
    """
    scenes = workshop.scenes(split)
    powers = Powers._fields if scenes == workshop.scenes("train") else ("middle",)
    spec = CrfSpec(scenes, powers, workshop.numbers.crf_iterations)
    inputs = {"seeds": workshop.seeds(split), "background": background}
    return workshop.obtain(refine_by_crf, spec, inputs)


def _affinity(workshop: Workshop, background: Artefact) -> dict[str, Artefact]:
    """AffinityNet, trained on two of the CRFs (``posteriors``) of the training scenes' seeds."""
    numbers, scenes = workshop.numbers, workshop.scenes("train")
    posteriors = _crf(workshop, "train", background)
    spec = AffinitySpec(
        scenes, workshop.backbone, numbers.schedule, workshop.repeat, numbers.view, workshop.compute
    )
    affinity = workshop.obtain(train_affinity, spec, {"posteriors": posteriors})
    return {"posteriors": posteriors, "affinity": affinity}
