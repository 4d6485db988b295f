"""``aeft bench readers``: an image read by AdvCAM and RIB, against plain CAMs of the same network.

Network, scales and sizes are the laptop's; weights of the head are random: times do not hang on
them.  Images have one tag, two of three, or two.  Time: CPU seconds of one thread, in turn in one
process.  `advcam_batched` is AdvCAM with four pairs of views together, of any image and class, against one.
RIB has weights of its own for every image, so its images do not share a batch; what it computes
once of other images (the input of the last block) is counted in `rib_first`, where it is needed
first, for a few images.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from measure import in_turn
from torch import Tensor, nn

from aeft_lib.networks import state
from aeft_lib.paper.classifier import Classification
from aeft_lib.rivals.advcam import AdvCam
from aeft_lib.rivals.rib import RATE, Rib
from aeft_lib.stages.image_reader import Picture
from aeft_lib.stages.read_each import Others
from aeft_lib.stages.relu_first import ReluFirst
from aeft_lib.studies import profiles

PROFILE = profiles.LAPTOP
IMAGES, TOGETHER, SCENES, ROUNDS = 3, 4, 16, 2


def benchmarks() -> list[dict]:
    """A row a reader:

    CPU seconds an image of both (medians), their ratio, and the largest difference of the CAMs
    where both are the same.
    """
    torch.set_num_threads(1)
    method = Classification()
    build = partial(method.build, PROFILE.backbone.build(), PROFILE.num_classes)
    network = state.build(build, seed=0).eval()
    pictures, others = _pictures(), _others()
    advcam, batched = (
        AdvCam(at_once=pairs).fitted(PROFILE.seed_scales, brief=True) for pairs in (1, TOGETHER)
    )
    rib = Rib(rate=RATE).fitted(PROFILE.seed_scales, brief=True)
    plain = partial(_plain, method, network, pictures)
    alone = partial(_each, advcam, method, network, pictures, None, 1)
    adapting = partial(_each, rib, method, network, pictures, others, 1)
    return [
        _row("advcam", alone, "plain CAM", plain),
        _row(
            "advcam_batched",
            partial(_each, batched, method, network, pictures, None, IMAGES),
            "a class of an image at a time",
            alone,
            same=True,
        ),
        _row("rib_first", partial(_forgetting, others, adapting), "plain CAM", plain),
        _row("rib", adapting, "plain CAM", plain),
    ]


def _row(
    name: str,
    ours: Callable[[], Tensor],
    peer: str,
    theirs: Callable[[], Tensor],
    same: bool = False,
) -> dict:
    seconds, results = in_turn({"ours": ours, "peer": theirs}, rounds=ROUNDS)
    difference = (results["ours"] - results["peer"]).abs().max().item() if same else None
    return {
        "name": name,
        "peer": peer,
        "images": IMAGES,
        "ours_s": seconds["ours"] / IMAGES,
        "peer_s": seconds["peer"] / IMAGES,
        "ratio": seconds["peer"] / seconds["ours"],
        "max_abs_diff": difference,
    }


def _pictures() -> list[Picture]:
    """Scenes of the laptop's validation set."""
    scenes = PROFILE.val.open()
    return [
        Picture(i, np.array(scenes.image(i)), torch.from_numpy(np.array(scenes.tags(i))))
        for i in range(IMAGES)
    ]


def _others() -> Others:
    """What RIB draws from: few scenes, since all are drawn in any case."""
    train = PROFILE.train
    return Others(type(train)("train", SCENES, train.size), None, 0)


@torch.inference_mode()
def _plain(method: Classification, network: nn.Module, pictures: list[Picture]) -> Tensor:
    reader = ReluFirst(PROFILE.seed_scales)
    parts = []
    for picture in pictures:
        ids = [picture.tags.nonzero()[:, 0]]
        parts += [
            r.cam.flatten() for r in reader.from_images(method, network, [picture.image], ids)
        ]
    return torch.cat(parts)


def _each(
    reader: AdvCam | Rib,
    method: Classification,
    network: nn.Module,
    pictures: list[Picture],
    others: Others | None,
    step: int,
) -> Tensor:
    """So many pictures at a time."""
    read = []
    for i in range(0, len(pictures), step):
        read += reader.read(method, network, pictures[i : i + step], others, {})
    return torch.cat([reading.cam.flatten() for reading in read])


def _forgetting(others: Others, run: Callable[[], Tensor]) -> Tensor:
    others.kept.clear()
    return run()
