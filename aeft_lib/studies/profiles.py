"""Profiles: every number of a run in one place, as values.  All of them run the same lines of code.

``smoke`` and ``laptop`` are on the embedded collages, ``evening`` too, with trainings that are long
enough to be judged; ``voc-lite`` and ``evening-voc`` are the same networks on real photos, ``voc``
and ``coco`` are the paper's settings.  A profile is a frozen dataclass; `get` finds it by name.
Numbers that a stage reads are handed on in the stage's own spec, so editing this file
recomputes just what its numbers change.
"""

import os
from dataclasses import replace

from aeft_lib.data.augment import ViewSpec
from aeft_lib.data.coco import CocoSpec
from aeft_lib.data.collages import SceneSpec
from aeft_lib.data.compositions import CompositionSpec
from aeft_lib.data.controlled import ControlledSpec
from aeft_lib.data.folder import FolderSpec
from aeft_lib.data.scene import SceneSet
from aeft_lib.data.voc import VocSpec
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import Compute
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.networks.efficientnet_lite_fine import EfficientNetLiteFineSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.networks.resnet50 import ResNet50Spec
from aeft_lib.studies.names import unknown
from aeft_lib.studies.settings import (
    OPTIMISER_QUIRKS,
    ControlledTraining,
    Profile,
    Refinement,
    SecondPhase,
    Segmentation,
)

GPU_GB = 12  # memory that the paper's profiles are for
COMMITTED_REPEATS = 3  # what the committed notebooks, figures and report come from
MAX_REPEATS = 1000  # more is a slip of the keyboard
THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(1, 100))


def _collages(name: str, *, size: int, train: int, val: int, **rest: object) -> Profile:
    """A profile on the embedded collages."""
    sets = {"train": SceneSpec("train", train, size), "val": SceneSpec("val", val, size)}
    return Profile(name=name, **sets, thresholds=THRESHOLDS, **rest)


def _fresh_layers(*, epochs: int, lr: float, steps_per_epoch: int = 0) -> Schedule:
    """A schedule with ten times the backbone's rate for a new head, as everywhere in the paper."""
    schedule = Schedule(
        epochs=epochs, batch_size=8, lr=lr, head_lr=10 * lr, weight_decay=1e-2, warmup_steps=20
    )
    return replace(schedule, steps_per_epoch=steps_per_epoch)


SMOKE = _collages(
    "smoke",
    size=96,  # a 6x6 map, the smallest that holds four levels
    train=32,
    val=8,
    backbone=EfficientNetLiteSpec(trained_stages=0),  # head and gates only: seconds
    schedule=Schedule(
        epochs=2, batch_size=8, lr=3e-4, head_lr=1e-3, weight_decay=1e-2, warmup_steps=2
    ),
    erasing=SecondPhase(epochs=2, steps_per_epoch=1, batch_size=16, rate=0.03, loss_scale=5.0),
    refinement=Refinement(_fresh_layers(epochs=1, lr=1e-4)),
    segmentation=Segmentation(_fresh_layers(epochs=2, lr=3e-4), scales=(1.0,), hidden=32),
    seed_scales=(1.0,),
    repeats=1,
    inference="fp32",  # tests and other machines compare with it
    long_from=COMMITTED_REPEATS,
    controlled=ControlledTraining(
        train=ControlledSpec("train", 32, 96),
        val=ControlledSpec("val", 8, 96),
        schedule=Schedule(
            epochs=2, batch_size=8, lr=3e-4, head_lr=1e-3, weight_decay=1e-2, warmup_steps=2
        ),
        trained_stages=0,
    ),
)

LAPTOP = _collages(
    "laptop",
    size=256,  # a 16x16 map
    train=640,
    val=200,
    # By rules that read no mask: object sizes like VOC's (collages.py), levels with the paper's
    # cells per bin (gpp.py), more steps than those in which tag mAP saturates on controlled
    # collages (120, there 80).  Depth is as time allows, ten rows in 30 minutes on two cores;
    # notebook 8 shows that this choice decides between GAP and GPP.
    backbone=EfficientNetLiteSpec(trained_stages=2),
    schedule=Schedule(
        epochs=3, batch_size=16, lr=3e-4, head_lr=1e-3, weight_decay=1e-2, warmup_steps=20
    ),
    # 20 steps, as many as a second study can have on two cores; the paper has 7,260.  Chosen by
    # tags alone:
    # - rate: the largest of 0.01, 0.03, 0.1 at which plain classification does not collapse (tag
    #   mAP 79.7, 79.5, 30.9);
    # - loss_scale: the largest of 1, 2, 5 at which the reference's triplet does not (78.7, 77.0,
    #   44.6; 80.9 before).
    erasing=SecondPhase(epochs=4, steps_per_epoch=5, batch_size=16, rate=0.03, loss_scale=2.0),
    # The loss of a third epoch is hardly lower.
    refinement=Refinement(_fresh_layers(epochs=2, lr=1e-4)),
    segmentation=Segmentation(
        _fresh_layers(epochs=4, lr=3e-4, steps_per_epoch=50), scales=(1.0, 1.5), hidden=256
    ),
    seed_scales=(0.5, 1.0),  # the paper adds 1.5 and 2.0: five times the pixels of these two
    repeats=1,
    long_from=COMMITTED_REPEATS,
    # The rules for these numbers: conditions.py.
    controlled=ControlledTraining(
        train=ControlledSpec("train", 320, 192),
        val=ControlledSpec("val", 150, 192),
        schedule=Schedule(
            epochs=4, batch_size=16, lr=3e-4, head_lr=1e-3, weight_decay=1e-2, warmup_steps=20
        ),
        trained_stages=1,
    ),
)

EVENING = replace(
    LAPTOP,
    name="evening",
    train=CompositionSpec("train", 1200, 256),  # an epoch's; the next epoch has others
    # The paper freezes its first two stages.
    backbone=EfficientNetLiteSpec(trained_stages=5),
    # The paper's view, in its proportions (long side 256..512 for a crop of 320); same jitter.
    view=ViewSpec(crop=256, long_side=(205, 410)),
    # 1,800 steps, by the rule of `saturation` and as an evening has time for.  Rates: the laptop's,
    # kept because classification trains with them (tag mAP alone was looked at; none was searched).
    schedule=Schedule(
        epochs=24,
        batch_size=16,
        lr=3e-4,
        head_lr=1e-3,
        weight_decay=1e-2,
        warmup_steps=20,
        steps_per_epoch=75,
    ),
    # 912 steps: half as many images as the first phase, where the paper has 1.2 times; time forbids
    # more.  Rate and weights are the paper's own.
    erasing=SecondPhase(epochs=24, steps_per_epoch=38, batch_size=16, rate=0.01),
    # Against the views' mean side they are what 1 and 1.5 are in the paper.
    seed_scales=(1.0, 1.5),
    compute=Compute(lookahead=2),
    inference="fp32",  # rows of a study come from many machines
    long_from=MAX_REPEATS + 1,
    controlled=None,
    curve=8,
)
"""Trainings that are long enough to be judged, on collages that never come again.

Five of seven stages trained, random views; tags and seeds of unseen scenes at every eighth of both
phases.  `saturation` says whether a row has learned its tags.
Cost: ``aeft explain --profile evening``; command: ``aeft run pooling_over_steps --profile evening
--keep``.
"""
VOC_LITE = replace(
    LAPTOP,
    name="voc-lite",
    train=VocSpec("train_aug", size=256),
    val=VocSpec("val", size=256),
    # By tags alone, on 640 photos of six classes: of 0.003, 0.01 and 0.03 the largest rate at which
    # plain classification does not collapse (with 0.03 it did for one repeat of two).
    erasing=replace(LAPTOP.erasing, rate=0.01),
    repeats=3,
    long_from=MAX_REPEATS + 1,
    controlled=None,
)
"""VOC 2012 on a laptop: network, steps and rules of ``laptop``, on photos squared to 256 px.

Place: poster tables 1 and 2, at a small scale; mIoU is that of squared masks, not VOC's.  Cost and
numbers: docs/real_photos.md.  Command: ``aeft run gap_vs_gpp --profile voc-lite``.
"""
PHOTOS = replace(
    VOC_LITE, name="photos", train=FolderSpec("train", size=256), val=FolderSpec("val", size=256)
)
"""Your own photos and tags (data/folder.py), as ``voc-lite``.

Command: ``aeft run gap_vs_gpp --profile photos``.
"""

EVENING_FINE = replace(
    EVENING, name="evening-fine", backbone=EfficientNetLiteFineSpec(trained_stages=5)
)
"""As ``evening`` on a map of 32x32 cells, the paper's has 40x40: a check of the geometry."""
EVENING_VOC = replace(
    EVENING, name="evening-voc", train=VocSpec("train_aug", size=256), val=VocSpec("val", size=256)
)
"""As ``evening`` on VOC 2012, or on those classes of it that ``AEFT_VOC_CLASSES`` names.

Photos squared to 256 px; an epoch is 75 batches of them, in an order of its own.
"""


def _paper(
    name: str,
    train: SceneSet,
    val: SceneSet,
    scored: SceneSet,
    n_train: int,
    *,
    corrected: bool = False,
) -> Profile:
    """The paper's settings on a data set of so many training images.

    corrected: the optimiser without the reference's quirks, in the first phase too; rows choose
        them for the second.
    """
    first, second = n_train // 8, n_train // 32  # steps an epoch
    before, asked = 18 * first, 40 * first
    erasing = SecondPhase(
        22, second, batch_size=32, rate=0.01, decay_from=before, decay_too_long=asked
    )
    quirks = () if corrected else OPTIMISER_QUIRKS
    schedule = replace(
        replace(erasing, quirks=quirks).schedule(),
        epochs=18,
        batch_size=8,
        steps_per_epoch=0,
        decay_from=0,
    )
    # AffinityNet has the classifier's optimiser, with the quirk of its momentum; its new layers do
    # get ten times the rate.  The powers of both CRFs and of the walk are the reference's.
    refinement = Refinement(
        replace(schedule, epochs=8, head_lr=10 * schedule.lr, decay_steps=0),
        powers=(2.0, 19.0, 21.0),
        view=ViewSpec(
            crop=448, long_side=None, jitter=(0.3, 0.3, 0.3, 0.1), jitter_probability=1.0
        ),
    )
    segmentation = Segmentation(
        Schedule(30, 4, lr=7e-4, head_lr=7e-3, weight_decay=1e-5, warmup_steps=0, optimiser="sgd"),
        crop=321,
    )
    # What `work.cheapest` chooses for GPU_GB: no training has to compute anything twice.
    compute = Compute("bf16", checkpoint_every=500, lookahead=4)
    return Profile(
        name=name,
        train=train,
        val=val,
        scored=scored,
        backbone=ResNet38dSpec(),
        schedule=schedule,
        erasing=erasing,
        refinement=refinement,
        segmentation=segmentation,
        seed_scales=(0.5, 1.0, 1.5, 2.0),
        thresholds=THRESHOLDS,
        repeats=1,
        long_from=MAX_REPEATS + 1,
        view=ViewSpec(),
        compute=compute,
    )


VOC = _paper("voc", VocSpec("train_aug"), VocSpec("val"), VocSpec("train"), 10582)
"""The paper on VOC 2012, as the reference runs it (bf16 aside).

ResNet38d, 18 epochs of classification at batch 8, 22 with the triplet at batch 32, seeds on the
1,464 training images.  Expected (poster): seeds GAP 48.0, GPP 54.2, AEFT 56.0; pseudo-labels 71.0;
segmentation val 70.9.  Not run here: no GPU.  Cost: ``aeft explain STUDY --profile voc``;
command: docs/paper_scale.md.
"""
VOC_CORRECTED = _paper(
    "voc-corrected", VocSpec("train_aug"), VocSpec("val"), VocSpec("train"), 10582, corrected=True
)
"""As ``voc``, without the optimiser's quirks in the first phase; for `corrected` and `ours`."""
VOC_RESNET50 = replace(
    VOC,
    name="voc-resnet50",
    backbone=ResNet50Spec(),
    # The quirk that passes weight decay as momentum is theirs too.
    schedule=Schedule(
        5,
        16,
        lr=0.1,
        head_lr=1.0,
        weight_decay=1e-4,
        warmup_steps=0,
        optimiser="sgd",
        momentum=1e-4,
    ),
    # No method of this family has a second phase; here it has a schedule of its own.
    erasing=replace(VOC.erasing, decay_from=0),
    view=ViewSpec(crop=512, long_side=(320, 640), jitter=(0.0,) * 4, jitter_probability=0.0),
)
"""VOC 2012 as IRNet's family has it: ResNet-50, classifier training of its authors' code.

Refinement and segmentation as in ``voc``; IRNet and BES bring numbers of their own.  Expected:
seeds 48.3, pseudo-labels of IRNet 66.5.  Not run here: no GPU.
Command: ``aeft run rivals --row irnet --profile voc-resnet50``.
"""
COCO = _paper("coco", CocoSpec("train2014"), CocoSpec("val2014"), CocoSpec("val2014"), 82783)
"""The paper on COCO 2014.  The reference has no code for it; the settings are VOC's.

Expected (poster): segmentation val 44.8.  Not run here.
"""

PROFILES = {
    profile.name: profile
    for profile in (
        *(SMOKE, LAPTOP, EVENING, EVENING_VOC, EVENING_FINE, VOC_LITE, PHOTOS),
        *(VOC, VOC_CORRECTED, VOC_RESNET50, COCO),
    )
}
VOC_CLASSES = "AEFT_VOC_CLASSES"


def get(name: str = "") -> Profile:
    """The profile of this name; "" is ``AEFT_PROFILE`` where that is set, else laptop.

    On VOC ``AEFT_VOC_CLASSES`` may name the classes that count, apart by commas; the others' pixels
    are void.  Raises ValueError for an unknown name or class.
    """
    asked, variable = name, os.environ.get("AEFT_PROFILE")
    name = asked or variable or LAPTOP.name
    if name not in PROFILES:
        source = "" if asked else f" (AEFT_PROFILE={variable})"
        raise unknown(f"unknown profile {name!r}{source}", name, PROFILES)
    profile, classes = PROFILES[name], os.environ.get(VOC_CLASSES)
    if not classes:
        return profile
    chosen = tuple(part.strip() for part in classes.split(",") if part.strip())
    try:
        return with_classes(profile, chosen)
    except ValueError as error:
        raise ValueError(f"{VOC_CLASSES}={classes}: {error}") from error


def with_classes(profile: Profile, chosen: tuple[str, ...]) -> Profile:
    """A profile on VOC with these classes alone; any other as it is.

    Raises ValueError for an unknown class.
    """
    if not isinstance(profile.train, VocSpec):
        return profile
    splits = [split for split in ("train", "val", "scored") if getattr(profile, split)]
    sets = {split: replace(getattr(profile, split), classes=chosen) for split in splits}
    return replace(profile, **sets)


def repeats(profile: Profile, asked: int = 0) -> int:
    """How many repeats to run: `asked`, or the profile's own number for 0.

    Raises ValueError for anything else.
    """
    if not isinstance(asked, int) or isinstance(asked, bool) or not 0 <= asked <= MAX_REPEATS:
        raise ValueError(
            f"repeats must be a whole number up to {MAX_REPEATS}, 0 for the profile's own "
            f"{profile.repeats}; got {asked!r}"
        )
    return asked or profile.repeats
