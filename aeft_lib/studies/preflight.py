"""What would end a long run is said before it begins: missing data, weights, masks, a device that
is not there.

It opens every scene set of a profile, looks at the header of every photo and counts tags; for VOC
that takes seconds.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from aeft_lib.data.images import image_size
from aeft_lib.data.photos import Photos
from aeft_lib.data.scene import Scenes
from aeft_lib.engine.device import check_device
from aeft_lib.stages.fitting import check_tensorboard
from aeft_lib.studies.settings import Profile

SETS = ("train", "val", "scored")
THREADS = 8  # a cold disk is waited for


def check(profile: Profile) -> None:
    """Refuse what could not end well.  Raises ValueError, RuntimeError with what is wrong and what
    to do.

    A set without masks is said on stderr and not refused: seeds and pseudo-labels are made, their
        scores are not.
    """
    check_device()
    check_tensorboard()
    profile.backbone.check()
    for split in {
        profile.scenes(split): split for split in reversed(SETS)
    }.values():  # each set once, by its first name
        _check_scenes(profile, split, profile.scenes(split).open())


def _check_scenes(profile: Profile, split: str, scenes: Scenes) -> None:
    if split == "train":
        largest = max(phase.batch_size for phase in profile.phases)
        if len(scenes) < largest:
            raise ValueError(
                f"{profile.name}: its {len(scenes)} training scenes ({profile.train}) cannot fill a batch of {largest}"
            )
    if not isinstance(scenes, Photos):
        return
    with ThreadPoolExecutor(THREADS) as pool:
        list(
            pool.map(image_size, map(scenes.image_file, scenes.names))
        )  # raises at the first that is not readable
    if not any(np.any(scenes.tags(index)) for index in range(len(scenes))):
        raise ValueError(
            f"{profile.name}: no scene of {profile.scenes(split)} has a tag of {', '.join(scenes.classes)}"
        )
    unmasked = sum(not scenes.mask_digest(name) for name in scenes.names)
    if unmasked:
        print(
            f"aeft: {unmasked} of {len(scenes)} scenes of {profile.scenes(split)} have no mask: seeds and label maps will be "
            "made in the store, and what needs their masks will end with an error",
            file=sys.stderr,
        )
