"""A profile with the lines of ``voc`` and the size of a test: random views of drawn photos."""

from dataclasses import replace

from aeft_lib.data.augment import ViewSpec
from aeft_lib.data.voc import VocSpec
from aeft_lib.engine.step import Compute
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.studies.profiles import VOC
from aeft_lib.studies.settings import Profile

CLASSES = ("cat", "cow", "dog")
SPLITS = {"train": 4, "train_aug": 12, "val": 4}


def photo_profile(**changes) -> Profile:
    """`VOC` at 64 px on EfficientNet-Lite0, two epochs a phase."""
    sets = {
        "train": VocSpec("train_aug", classes=CLASSES),
        "val": VocSpec("val", classes=CLASSES),
        "scored": None,
    }
    small = {"epochs": 2, "batch_size": 4}
    plain = {
        "name": "photos",
        "inference": "fp32",  # the same on every machine
        "backbone": EfficientNetLiteSpec(trained_stages=1),
        "view": ViewSpec(64, (48, 96)),
        "schedule": replace(VOC.schedule, **small),
        "erasing": replace(
            VOC.erasing,
            epochs=2,
            steps_per_epoch=2,
            batch_size=4,
            rate=0.3,
            decay_from=0,
            decay_too_long=0,
        ),
        "refinement": replace(
            VOC.refinement,
            schedule=replace(
                VOC.refinement.schedule, epochs=1, batch_size=4, lr=1e-3, head_lr=1e-2
            ),
            view=replace(VOC.refinement.view, crop=64),
        ),
        "segmentation": replace(
            VOC.segmentation,
            schedule=replace(VOC.segmentation.schedule, **small),
            crop=49,
            hidden=16,
        ),
        "seed_scales": (0.5, 1.0),
        "compute": Compute(lookahead=2),
        "erasing_compute": None,
    }
    return replace(VOC, **sets | plain | changes)
