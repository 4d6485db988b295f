"""Profiles: every number of a run in one place, as values.  All of them run the same lines of code.

``smoke`` and ``laptop`` are on the embedded collages, ``voc-lite`` is the laptop's network on real photos, ``voc`` and ``coco``
are the paper's settings.  A profile is a frozen dataclass; `get` finds it by name.  Numbers that a stage reads are handed on in
the stage's own spec, so editing this file recomputes just what its numbers change.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from aeft_lib.backbones.registry import BackboneSpec
from aeft_lib.data.augment import ViewSpec
from aeft_lib.data.coco import CocoSpec
from aeft_lib.data.collages import SceneSpec
from aeft_lib.data.folder import FolderSpec
from aeft_lib.data.scenes import AnySpec, open_scenes
from aeft_lib.data.voc import VocSpec
from aeft_lib.gpp import scaled_levels
from aeft_lib.stepping import PLAIN, Compute
from aeft_lib.training import Schedule
from aeft_lib.triplet import Triplet

PAPER_LEVELS = (2, 4, 8, 16)
COMMITTED_SEEDS = 3  # what the committed notebooks, figures and report come from
MAX_SEEDS = 1000  # more is a slip of the keyboard
# The quirks of the reference that live in its optimiser; those in its loss are in `triplet.LOSS_QUIRKS`.
OPTIMISER_QUIRKS = ("sgd_momentum", "schedule_length", "head_lr")
THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(1, 100))
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
    compute: how steps are computed; erasing_compute: those of the second phase, where they need more memory.
    """

    name: str
    train: AnySpec
    val: AnySpec
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
    scored: AnySpec | None = None

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
        return len(open_scenes(self.train).classes)

    def scenes(self, split: str) -> AnySpec:
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


def _collages(name: str, *, size: int, train: int, val: int, **rest: object) -> Profile:
    """A profile on the embedded collages; levels keep the paper's cells per bin (see `gpp.scaled_levels`)."""
    return Profile(
        name=name,
        train=SceneSpec("train", train, size),
        val=SceneSpec("val", val, size),
        levels=scaled_levels(size // 16, PAPER_LEVELS),
        thresholds=THRESHOLDS,
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
    backbone=BackboneSpec(trained_stages=0),  # head and gates only: seconds
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
    backbone=BackboneSpec(trained_stages=2),  # the deepest that ten rows can have in 30 minutes on two cores
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

VOC_LITE = replace(
    LAPTOP,
    name="voc-lite",
    train=VocSpec("train_aug", size=256),
    val=VocSpec("val", size=256),
    # By tags alone, on 640 photos of six classes: of 0.003, 0.01 and 0.03 the largest rate at which plain classification does
    # not collapse (with 0.03 it did for one seed of two).
    erasing=replace(LAPTOP.erasing, rate=0.01),
    seeds=3,
    long_from=MAX_SEEDS + 1,
)
"""VOC 2012 on a laptop: the network, the steps and the rules of ``laptop``, on real photos squared to 256 px.

Place: poster tables 1 and 2, at a small scale; mIoU is that of squared masks, not VOC's.  Cost: docs/real_photos.md, which has
the numbers too.
Command: ``aeft run gap_vs_gpp --profile voc-lite``.
"""
PHOTOS = replace(VOC_LITE, name="photos", train=FolderSpec("train", size=256), val=FolderSpec("val", size=256))
"""Your own photos and tags (data/folder.py), as ``voc-lite``.  Command: ``aeft run gap_vs_gpp --profile photos``."""


def _paper(name: str, train: AnySpec, val: AnySpec, scored: AnySpec, n_train: int, *, corrected: bool = False) -> Profile:
    """The paper's settings on a data set of so many training images.

    corrected: the optimiser without the reference's quirks, in the first phase too; rows choose them for the second.
    """
    first, second = n_train // 8, n_train // 32  # steps an epoch
    before, asked = 18 * first, 40 * first
    erasing = SecondPhase(22, second, batch_size=32, rate=0.01, decay_from=before, decay_too_long=asked)
    course = replace(
        erasing.schedule(() if corrected else OPTIMISER_QUIRKS),
        epochs=18,
        batch_size=8,
        steps_per_epoch=0,
        decay_from=0,
    )
    # Both CRFs' powers and the walk's are the reference's.
    refinement = Refinement(
        Schedule(8, 8, lr=0.01, head_lr=0.1, weight_decay=5e-4, warmup_steps=0, optimiser="sgd"),
        powers=(2.0, 19.0, 21.0),
        view=ViewSpec(crop=448, long_side=None, jitter=(0.3, 0.3, 0.3, 0.1), jitter_probability=1.0),
    )
    segmentation = Segmentation(
        Schedule(30, 4, lr=7e-4, head_lr=7e-3, weight_decay=1e-5, warmup_steps=0, optimiser="sgd"), crop=321
    )
    compute = Compute("bf16", checkpointing=True, checkpoint_every=500, lookahead=4)
    return Profile(
        name=name,
        train=train,
        val=val,
        scored=scored,
        backbone=BackboneSpec("resnet38d"),
        schedule=course,
        erasing=erasing,
        refinement=refinement,
        segmentation=segmentation,
        levels=PAPER_LEVELS,  # of the 40x40 map of a 320 px view
        seed_scales=(0.5, 1.0, 1.5, 2.0),
        thresholds=THRESHOLDS,
        seeds=1,
        long_from=MAX_SEEDS + 1,
        view=ViewSpec(),
        compute=compute,
        erasing_compute=replace(compute, parts=2),  # fits 12 GB
    )


VOC = _paper("voc", VocSpec("train_aug"), VocSpec("val"), VocSpec("train"), 10582)
"""The paper on VOC 2012, as the reference runs it (bf16 and checkpointing aside): ResNet38d, 18 epochs of classification at
batch 8, 22 with the triplet at batch 32, seeds on the 1,464 training images.

Expected (poster): seeds GAP 48.0, GPP 54.2, AEFT 56.0; pseudo-labels 71.0; segmentation val 70.9.  Not run here: no GPU.
Cost: ``aeft explain triplet_ablation --profile voc``.  Command: docs/paper_scale.md.
"""
VOC_CORRECTED = _paper("voc-corrected", VocSpec("train_aug"), VocSpec("val"), VocSpec("train"), 10582, corrected=True)
"""As ``voc``, with the optimiser's quirks corrected in the first phase too; for the rows `corrected` and `ours`."""
COCO = _paper("coco", CocoSpec("train2014"), CocoSpec("val2014"), CocoSpec("val2014"), 82783)
"""The paper on COCO 2014.  The reference has no code for it; the settings are VOC's.  Expected (poster): segmentation val 44.8.
Not run here."""

PROFILES = {profile.name: profile for profile in (SMOKE, LAPTOP, VOC_LITE, PHOTOS, VOC, VOC_CORRECTED, COCO)}
VOC_CLASSES = "AEFT_VOC_CLASSES"


def get(name: str = "") -> Profile:
    """The profile of this name; "" is ``AEFT_PROFILE`` where that is set, else laptop.  Raises ValueError otherwise.

    On VOC ``AEFT_VOC_CLASSES`` may name the classes that count, apart by commas; the others' pixels are void.
    """
    name = name or os.environ.get("AEFT_PROFILE") or LAPTOP.name
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(PROFILES)}")
    profile, classes = PROFILES[name], os.environ.get(VOC_CLASSES)
    if not classes or not isinstance(profile.train, VocSpec):
        return profile
    chosen = tuple(part.strip() for part in classes.split(",") if part.strip())
    try:
        sets = {
            split: replace(getattr(profile, split), classes=chosen)
            for split in ("train", "val", "scored")
            if getattr(profile, split)
        }
    except ValueError as error:
        raise ValueError(f"{VOC_CLASSES}={classes}: {error}") from error
    return replace(profile, **sets)


def seeds(profile: Profile, asked: int = 0) -> int:
    """How many seeds to run: `asked`, or the profile's own number for 0.  Raises ValueError for anything else."""
    if not isinstance(asked, int) or isinstance(asked, bool) or not 0 <= asked <= MAX_SEEDS:
        raise ValueError(
            f"seeds must be a whole number up to {MAX_SEEDS}, 0 for the profile's own {profile.seeds}; got {asked!r}"
        )
    return asked or profile.seeds
