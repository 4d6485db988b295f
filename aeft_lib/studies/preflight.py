"""Checks before a long run: data, weights, masks, the device.

It opens every scene set of a profile, reads the header of every photo and counts tags; for VOC that
takes seconds.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from aeft_lib.data.images import image_size
from aeft_lib.data.photos import Photos
from aeft_lib.data.scene import Scenes, missing_masks
from aeft_lib.engine.device import check_device
from aeft_lib.stages.fitting import check_tensorboard
from aeft_lib.studies.settings import Profile

SETS = ("train", "val", "scored")
THREADS = 8  # a cold disk is waited for


def check(profile: Profile) -> None:
    """Raises ValueError or RuntimeError with the problem and its remedy.

    A set without masks is reported on stderr and not refused: its scores are left out.
    """
    check_device()
    check_tensorboard()
    profile.backbone.check()
    splits = {profile.scenes(split): split for split in reversed(SETS)}  # each set once
    for split in splits.values():
        _check_scenes(profile, split, profile.scenes(split).open())


def _check_scenes(profile: Profile, split: str, scenes: Scenes) -> None:
    spec = profile.scenes(split)
    if split == "train":
        largest = max(phase.batch_size for phase in profile.phases)
        if len(scenes) < largest:
            few = f"its {len(scenes)} training scenes (split {spec.split!r})"
            raise ValueError(f"{profile.name}: {few} cannot fill a batch of {largest}")
    if not isinstance(scenes, Photos):
        return
    with ThreadPoolExecutor(THREADS) as pool:  # raises at the first that is not readable
        list(pool.map(image_size, map(scenes.image_file, scenes.names)))
    if not any(np.any(scenes.tags(index)) for index in range(len(scenes))):
        classes = ", ".join(scenes.classes)
        problem = f"no scene of the split {spec.split!r} has a tag of {classes}"
        raise ValueError(f"{profile.name}: {problem}")
    if missing := missing_masks(spec):
        rest = "seeds, label maps and networks are made, scores that need these masks are left out"
        print(f"aeft: {missing}: {rest}", file=sys.stderr)
