"""What a profile consists of: the phases of its trainings, its refinement, its segmentation, its scenes.

Frozen dataclasses that check themselves; their values stand in `aeft_lib.studies.profiles`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from aeft_lib.data.augment import ViewSpec
from aeft_lib.data.controlled import KNOBS, ControlledSpec
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.loop import Schedule
from aeft_lib.engine.step import PLAIN, Compute
from aeft_lib.networks.registry import BackboneSpec
from aeft_lib.paper.gpp import scaled_levels
from aeft_lib.paper.triplet import Triplet

PAPER_LEVELS = (2, 4, 8, 16)
# The quirks of the reference that live in its optimiser; those in its loss are in `triplet.LOSS_QUIRKS`.
OPTIMISER_QUIRKS = ("sgd_momentum", "schedule_length", "head_lr")
WEIGHT_DECAY = 5e-4  # the paper's; the reference passes it as SGD's momentum too


@dataclass(frozen=True)
class SecondPhase:
    """The steps after the warm start: SGD, as in the paper.

    epochs, steps_per_epoch: an epoch is just the grain at which progress is looked at.
    batch_size: of triplets; an anchor finds its negative among them.
    rate: learning rate without momentum; with momentum 0.9 a tenth of it goes as far.
    loss_scale: what the paper's weights of attract and repel are multiplied by, where there are fewer steps for them to act in.
    decay_from: steps before this phase, where both phases share one poly course; 0: a course of its own.
    decay_too_long: length of the course with the quirk `schedule_length`; 0: four times too long.
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    rate: float
    loss_scale: float = 1.0
    decay_from: int = 0
    decay_too_long: int = 0

    def scaled(self, triplet: Triplet) -> Triplet:
        """The triplet with this phase's weights."""
        weights = (triplet.attract_weight * self.loss_scale, triplet.repel_weight * self.loss_scale)
        return replace(triplet, attract_weight=weights[0], repel_weight=weights[1])

    def schedule(self, quirks: Sequence[str] = ()) -> Schedule:
        """The course with these quirks of the reference; without any it is the corrected one.

        sgd_momentum: weight decay passed as momentum.  head_lr: new layers at the backbone's rate instead of ten times it.
        schedule_length: a poly course four times too long, as if batches were still the first phase's (8 against 32).
        """
        if unknown := set(quirks) - set(OPTIMISER_QUIRKS):
            raise ValueError(f"unknown quirks {sorted(unknown)}; there are {', '.join(OPTIMISER_QUIRKS)}")
        momentum = WEIGHT_DECAY if "sgd_momentum" in quirks else 0.9
        rate = self.rate if "sgd_momentum" in quirks else self.rate / 10
        own = self.epochs * self.steps_per_epoch
        too_long = self.decay_too_long or 4 * own
        together = self.decay_from + own if self.decay_from else 0
        return Schedule(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=rate,
            head_lr=rate if "head_lr" in quirks else 10 * rate,
            weight_decay=WEIGHT_DECAY,
            warmup_steps=0,
            optimiser="sgd",
            momentum=momentum,
            decay_steps=too_long if "schedule_length" in quirks else together,
            steps_per_epoch=self.steps_per_epoch,
            decay_from=self.decay_from,
        )


@dataclass(frozen=True)
class Refinement:
    """From seeds to pseudo-labels; defaults are the reference's.

    schedule: of AffinityNet.  powers: of the background (low, middle, high); None chooses them by the rule of
        `refinement.background`, which looks at no mask.
    beta, steps: of the random walk.  crf_iterations: of the CRF on seeds.  last_crf_iterations: of the one after the walk.
    view: random crops that AffinityNet is trained on; None: whole scenes.
    """

    schedule: Schedule
    powers: tuple[float, float, float] | None = None
    beta: float = 8
    steps: int = 64
    crf_iterations: int = 10
    last_crf_iterations: int = 1
    view: ViewSpec | None = None

    def __post_init__(self) -> None:
        if self.powers is not None and not 0 < self.powers[0] <= self.powers[1] <= self.powers[2] < math.inf:
            raise ValueError(f"background powers must be positive and increase from low to high, got {self.powers}")
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be positive and finite, got {self.beta}")
        for name in ("steps", "crf_iterations", "last_crf_iterations"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"{name} must be a whole number and not negative, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Segmentation:
    """The last network.

    scales: of its test passes, each plain and mirrored.  hidden: channels of its head (512).
    crop: side of a training view of a photo; 0 where scenes are of one size.
    """

    schedule: Schedule
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    crf_iterations: int = 10
    hidden: int = 512
    crop: int = 0

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"test scales must be positive, and at least one, got {self.scales}")


@dataclass(frozen=True)
class Condition:
    """One level of the controlled collages, and what of the training is other than in `ControlledTraining`.

    knobs: (name, value) of those that are turned, see `data.controlled`; none is the base level.
    epochs, size: None as the profile has them.
    """

    knobs: tuple[tuple[str, float], ...] = ()
    epochs: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if unknown := sorted({name for name, _ in self.knobs} - set(KNOBS)):
            raise ValueError(f"unknown knob {', '.join(unknown)}; there are {', '.join(KNOBS)}")
        for name in ("epochs", "size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a whole number, at least 1, or None for the profile's; got {value!r}")
        ControlledSpec("val", 1, **dict(self.knobs))  # refuses a level that cannot be, before anything is trained


@dataclass(frozen=True)
class ControlledTraining:
    """The numbers of trainings on controlled collages: scenes of train and val, their side, course, stages that are trained."""

    train: int
    val: int
    size: int
    schedule: Schedule
    trained_stages: int


@dataclass(frozen=True)
class Profile:
    """One scale of the same experiments.

    train, val: scene sets; classifiers see the tags of `train`; seeds and segmentation are scored on `val` (unseen scenes).
    scored: scenes that seeds are scored on where that is not `val`.
    backbone: of all networks.  levels: the counterparts of the paper's 2, 4, 8, 16 on this map.
    erasing: the second phase, which a trained GPP classifier goes on with.
    refinement, segmentation: the numbers of the second half, see there.
    seed_scales: passes of the seed inference, each plain and mirrored.  thresholds: background scores that are tried.
    seeds: how many a study runs unless told otherwise.
    long_from: from how many seeds on `aeft reproduce` runs the long studies too; below, notebooks read their committed tables.
    view: random views of photos that classifiers are trained on; None: whole scenes of one size, whose frozen features are
        cached once for all rows and seeds.
    controlled: trainings on controlled collages (`under`); None where scenes are photos.
    compute: how steps are computed; erasing_compute: those of the second phase, where they need more memory.
    """

    name: str
    train: SceneSet
    val: SceneSet
    backbone: BackboneSpec
    schedule: Schedule
    erasing: SecondPhase
    refinement: Refinement
    segmentation: Segmentation
    levels: tuple[int, ...]
    seed_scales: tuple[float, ...]
    thresholds: tuple[float, ...]
    seeds: int
    long_from: int = 1
    view: ViewSpec | None = None
    compute: Compute = PLAIN
    erasing_compute: Compute | None = None
    scored: SceneSet | None = None
    controlled: ControlledTraining | None = None

    def __post_init__(self) -> None:
        if self.cached and not (self.train.size and self.val.size):
            raise ValueError(f"profile {self.name}: without random views all scenes must be of one size")
        side, levels = self.map_side, self.levels
        whole = len(levels) == len(PAPER_LEVELS) and all(isinstance(level, int) and level >= 1 for level in levels)
        if not whole or levels[-1] > side or any(a >= b for a, b in pairwise(levels)):
            raise ValueError(
                f"profile {self.name}: levels {levels} must be {len(PAPER_LEVELS)} whole numbers that increase and fit the "
                f"{side}x{side} map"
            )
        if 1.0 not in self.seed_scales:
            raise ValueError(f"profile {self.name}: seed_scales {self.seed_scales} must contain 1.0, where tags are scored")
        if any(a >= b for a, b in pairwise((0, *self.thresholds, 1))):
            raise ValueError(f"profile {self.name}: thresholds must increase between 0 and 1, got {self.thresholds}")
        for phase in (self.schedule, self.erasing, self.refinement.schedule, self.segmentation.schedule):
            if self.train.count and phase.batch_size > self.train.count:
                raise ValueError(f"profile {self.name}: {self.train.count} scenes cannot fill a batch of {phase.batch_size}")
        if self.train.count and self.erasing.steps_per_epoch > self.train.count // self.erasing.batch_size:
            raise ValueError(
                f"profile {self.name}: {self.train.count} scenes do not hold {self.erasing.steps_per_epoch} batches of "
                f"{self.erasing.batch_size}, the steps of an epoch of the second phase"
            )

    @property
    def cached(self) -> bool:
        """Whether classifiers read cached features of whole scenes, instead of random views of photos."""
        return self.view is None

    @property
    def map_side(self) -> int:
        """Cells along one side of the CAM of a training view."""
        return (self.view.crop if self.view else self.train.size) // self.backbone.stride

    @property
    def num_classes(self) -> int:
        """K, without background; raises ValueError where the data is missing."""
        return len(self.train.open().classes)

    def scenes(self, split: str) -> SceneSet:
        """The scene set of "train", "val", or "scored", the one that seeds are scored on."""
        return {"train": self.train, "val": self.val, "scored": self.scored or self.val}[split]

    def scaled(self, scale: float) -> "Profile":
        """The same profile on scenes whose side is `scale` times as long; levels keep their cells per bin."""
        if scale == 1:
            return self
        if not self.cached:
            raise ValueError(f"profile {self.name} has scenes of their own sizes: rows on another map need whole scenes")
        train, val = (replace(scenes, size=round(scenes.size * scale)) for scenes in (self.train, self.val))
        return replace(self, train=train, val=val, levels=scaled_levels(train.size // self.backbone.stride, PAPER_LEVELS))

    def under(self, condition: Condition, seed: int) -> "Profile":
        """The same profile on controlled collages, which `seed` draws: an interval over seeds covers the draw of scenes too.

        Raises ValueError where the profile's scenes are photos.
        """
        if self.controlled is None:
            raise ValueError(f"profile {self.name} has no collages, whose knobs could be turned: choose laptop or smoke")
        numbers = self.controlled
        size = condition.size or numbers.size
        train, val = (
            ControlledSpec(split, count, size, seed, **dict(condition.knobs))
            for split, count in (("train", numbers.train), ("val", numbers.val))
        )
        return replace(
            self,
            train=train,
            val=val,
            backbone=replace(self.backbone, trained_stages=numbers.trained_stages),
            schedule=replace(numbers.schedule, epochs=condition.epochs or numbers.schedule.epochs),
            levels=scaled_levels(size // self.backbone.stride, PAPER_LEVELS),
            seed_scales=(1.0,),
        )
