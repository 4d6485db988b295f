"""The refiner of AffinityNet's authors (PSA), which the paper uses: dense CRF, AffinityNet, walk.

Its numbers are the profile's: powers of the background, radius, beta, steps, iterations.
"""

from dataclasses import dataclass

from aeft_lib.refinement.background import Powers
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.choose_background import BackgroundSpec, choose_background
from aeft_lib.stages.method import Workshop
from aeft_lib.stages.refine_by_crf import CrfSpec, refine_by_crf
from aeft_lib.stages.train_affinity import AffinitySpec, train_affinity
from aeft_lib.stages.walk_seeds import WalkSpec, walk_seeds
from aeft_lib.stages.write_labels import LabelSpec, write_labels


@dataclass(frozen=True)
class Psa:
    """crf, walk: which of the two; both: the walk, then the CRF on its result.

    With neither, label maps come from the seeds at a threshold chosen without masks.
    """

    crf: bool = False
    walk: bool = False

    def refine(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """``seeds, background, scores, labels``; with a walk, ``posteriors`` and ``affinity``."""
        numbers, obtain = workshop.numbers, workshop.obtain
        seeds, scenes = workshop.seeds(split), workshop.scenes(split)
        # Chosen on the training scenes, whatever is refined with it.
        spec = BackgroundSpec(workshop.thresholds, numbers.powers)
        background = obtain(choose_background, spec, {"seeds": workshop.seeds("train")})
        made = {"seeds": seeds, "background": background}
        if self.walk:
            trained = _affinity(workshop, background)
            last = numbers.last_crf_iterations if self.crf else 0
            walk = WalkSpec(scenes, numbers.beta, numbers.steps, last)
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
