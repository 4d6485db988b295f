"""Profiles: every number of a run in one place, as values.  ``smoke`` and ``laptop`` run the same lines of code.

A profile is a frozen dataclass; `get` finds it by name.  Numbers that a stage reads are handed on in the stage's own spec, so
editing this file recomputes just what its numbers change.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from aeft_lib.data.collages import CLASSES, SceneSpec
from aeft_lib.gpp import scaled_levels
from aeft_lib.training import Schedule
from aeft_lib.triplet import Triplet

PAPER_LEVELS = (2, 4, 8, 16)
COMMITTED_SEEDS = 3  # what the committed notebooks, figures and report come from
MAX_SEEDS = 1000  # more is a slip of the keyboard
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
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    rate: float
    loss_scale: float = 1.0

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
        return Schedule(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=rate,
            head_lr=rate if "head_lr" in quirks else 10 * rate,
            weight_decay=WEIGHT_DECAY,
            warmup_steps=0,
            optimiser="sgd",
            momentum=momentum,
            decay_steps=4 * self.epochs * self.steps_per_epoch if "schedule_length" in quirks else 0,
            steps_per_epoch=self.steps_per_epoch,
        )


@dataclass(frozen=True)
class Refinement:
    """From seeds to pseudo-labels; defaults are the reference's.

    schedule: of AffinityNet.  powers: of the background (low, middle, high); None chooses them by the rule of
        `refinement.background`, which looks at no mask.
    beta, steps: of the random walk.  crf_iterations: of the CRF on seeds.  last_crf_iterations: of the one after the walk.
    """

    schedule: Schedule
    powers: tuple[float, float, float] | None = None
    beta: float = 8
    steps: int = 64
    crf_iterations: int = 10
    last_crf_iterations: int = 1

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
    """The last network.  scales: of its test passes, each plain and mirrored.  hidden: channels of its head (512)."""

    schedule: Schedule
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    crf_iterations: int = 10
    hidden: int = 512

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"test scales must be positive, and at least one, got {self.scales}")


@dataclass(frozen=True)
class Profile:
    """One scale of the same experiments.

    train, val: scene sets; classifiers see the tags of `train`, seeds are made for and scored on `val` (unseen cut-outs).
    trained_stages: of the backbone, from its end.  levels: the counterparts of the paper's 2, 4, 8, 16 on this map.
    erasing: the second phase, which a trained GPP classifier goes on with.
    refinement, segmentation: the numbers of the second half, see there.
    seed_scales: passes of the seed inference, each plain and mirrored.  thresholds: background scores that are tried.
    seeds: how many a study runs unless told otherwise.
    long_from: from how many seeds on `aeft reproduce` runs the long studies too; below, notebooks read their committed tables.
    """

    name: str
    train: SceneSpec
    val: SceneSpec
    trained_stages: int
    schedule: Schedule
    erasing: SecondPhase
    refinement: Refinement
    segmentation: Segmentation
    levels: tuple[int, ...]
    seed_scales: tuple[float, ...]
    thresholds: tuple[float, ...]
    seeds: int
    long_from: int = 1

    def __post_init__(self) -> None:
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
            if phase.batch_size > self.train.count:
                raise ValueError(f"profile {self.name}: {self.train.count} scenes cannot fill a batch of {phase.batch_size}")
        if self.erasing.steps_per_epoch > self.train.count // self.erasing.batch_size:
            raise ValueError(
                f"profile {self.name}: {self.train.count} scenes do not hold {self.erasing.steps_per_epoch} batches of "
                f"{self.erasing.batch_size}, the steps of an epoch of the second phase"
            )

    @property
    def map_side(self) -> int:
        """Cells along one side of the CAM of a training scene."""
        return self.train.size // 16

    @property
    def num_classes(self) -> int:
        return len(CLASSES)

    def scenes(self, split: str) -> SceneSpec:
        """The scene set of "train" or "val"."""
        return {"train": self.train, "val": self.val}[split]

    def scaled(self, scale: float) -> "Profile":
        """The same profile on scenes whose side is `scale` times as long; levels keep their cells per bin."""
        if scale == 1:
            return self
        train, val = (replace(scenes, size=round(scenes.size * scale)) for scenes in (self.train, self.val))
        return replace(self, train=train, val=val, levels=scaled_levels(train.size // 16, PAPER_LEVELS))


def _collages(name: str, *, size: int, train: int, val: int, **rest: object) -> Profile:
    """A profile on the embedded collages; levels keep the paper's cells per bin (see `gpp.scaled_levels`)."""
    return Profile(
        name=name,
        train=SceneSpec("train", train, size),
        val=SceneSpec("val", val, size),
        levels=scaled_levels(size // 16, PAPER_LEVELS),
        thresholds=tuple(round(0.01 * i, 2) for i in range(1, 100)),
        **rest,
    )


def _fresh_layers(*, epochs: int, lr: float, steps_per_epoch: int = 0) -> Schedule:
    """A course for a network whose head is new: ten times the backbone's rate for it, as everywhere in the paper."""
    course = Schedule(epochs=epochs, batch_size=8, lr=lr, head_lr=10 * lr, weight_decay=1e-2, warmup_steps=20)
    return replace(course, steps_per_epoch=steps_per_epoch)


SMOKE = _collages(
    "smoke",
    size=96,  # a 6x6 map, the smallest that holds four levels
    train=32,
    val=8,
    trained_stages=0,  # head and gates only: seconds
    schedule=Schedule(epochs=2, batch_size=8, lr=3e-4, head_lr=1e-3, weight_decay=1e-2, warmup_steps=2),
    erasing=SecondPhase(epochs=2, steps_per_epoch=1, batch_size=16, rate=0.03, loss_scale=5.0),
    refinement=Refinement(_fresh_layers(epochs=1, lr=1e-4)),
    segmentation=Segmentation(_fresh_layers(epochs=2, lr=3e-4), scales=(1.0,), hidden=32),
    seed_scales=(1.0,),
    seeds=1,
)

LAPTOP = _collages(
    "laptop",
    size=256,  # a 16x16 map
    train=640,
    val=200,
    trained_stages=2,  # the deepest that ten rows can have in 30 minutes on two cores
    schedule=Schedule(
        epochs=3,  # same budget; train/log.csv of a row shows how far the loss came
        batch_size=16,
        lr=3e-4,
        head_lr=1e-3,
        weight_decay=1e-2,
        warmup_steps=20,
    ),
    # 20 steps, as many as a second study can have on two cores; the paper has 7,260.  Chosen by tags alone, no mask has a say:
    # - rate: the largest of 0.01, 0.03, 0.1 at which plain classification does not collapse (tag mAP 79.7, 79.5, 30.9);
    # - loss_scale: the largest of 1, 2, 5 at which the reference's triplet does not (78.7, 77.0, 44.6; 80.9 before).
    erasing=SecondPhase(epochs=4, steps_per_epoch=5, batch_size=16, rate=0.03, loss_scale=2.0),
    refinement=Refinement(_fresh_layers(epochs=2, lr=1e-4)),  # the loss of a third epoch is hardly lower
    segmentation=Segmentation(_fresh_layers(epochs=4, lr=3e-4, steps_per_epoch=50), scales=(1.0, 1.5), hidden=256),
    seed_scales=(0.5, 1.0),  # the paper adds 1.5 and 2.0: five times the pixels of these two
    seeds=1,
    long_from=COMMITTED_SEEDS,
)

PROFILES = {profile.name: profile for profile in (SMOKE, LAPTOP)}


def get(name: str = "") -> Profile:
    """The profile of this name; "" is ``AEFT_PROFILE`` where that is set, else laptop.  Raises ValueError otherwise."""
    name = name or os.environ.get("AEFT_PROFILE") or LAPTOP.name
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(PROFILES)}")
    return PROFILES[name]


def seeds(profile: Profile, asked: int = 0) -> int:
    """How many seeds to run: `asked`, or the profile's own number for 0.  Raises ValueError for anything else."""
    if not isinstance(asked, int) or isinstance(asked, bool) or not 0 <= asked <= MAX_SEEDS:
        raise ValueError(
            f"seeds must be a whole number up to {MAX_SEEDS}, 0 for the profile's own {profile.seeds}; got {asked!r}"
        )
    return asked or profile.seeds
