"""``aeft bench inference``: what a trained network is read with, against one image at a time.

Seeds: the peer reads a scene at a time, and tag logits in a pass of their own.  Predictions: the
peer takes a photo at a time through the network, once for every way to read it (plain, tags known).
Networks, scales and sizes are the laptop's, weights random: times do not hang on them.  Time: CPU
seconds of one thread, both in turn in one process.  Memory: what a process of its own needs at most
beyond its inputs, from /proc (null where there is none).
How many go together is `device.batch_pixels`: one image on a CPU in fp32, eight in bf16.
A row in bf16 stands beside the one in fp32 where the machine has instructions for it; the peer
stays in fp32.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from measure import in_turn, peak_of, print_peak
from torch import Tensor

from aeft_lib.engine.batches import together
from aeft_lib.engine.device import batch_pixels, has_bf16
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.networks import state
from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.paper.classifier import Classification
from aeft_lib.paper.gpp import Pyramid
from aeft_lib.stages.cache_features import rescale
from aeft_lib.stages.predict_labels import probabilities
from aeft_lib.stages.predict_logits import coarse_passes
from aeft_lib.stages.reading import MultiScale
from aeft_lib.studies import profiles

PROFILE = profiles.LAPTOP
SIZE = (PROFILE.val.size,) * 2
SCENES, PHOTOS = 32, 8


def benchmarks() -> list[dict]:
    """A row a part and precision:

    CPU seconds of both (medians), their ratio, the largest difference, megabytes at most of both.
    """
    torch.set_num_threads(1)
    precisions = ["fp32"] + ["bf16"] * has_bf16(torch.device("cpu"))
    return [_row(part, precision) for part in PARTS for precision in precisions]


def _row(part: str, precision: str) -> dict:
    ours, peer = PARTS[part](precision)
    seconds, results = in_turn({"ours": ours, "peer": peer})
    return {
        "name": part,
        "peer": PEERS[part],
        "precision": precision,
        "images": SCENES if part == "seeds_batched" else PHOTOS,
        "together": together(SIZE, batch_pixels(precision)),
        "ours_s": seconds["ours"],
        "peer_s": seconds["peer"],
        "ratio": seconds["peer"] / seconds["ours"],
        "max_abs_diff": (results["ours"] - results["peer"]).abs().max().item(),
        "ours_peak_mb": peak_of(__file__, part, precision, "ours"),
        "peer_peak_mb": peak_of(__file__, part, precision, "peer"),
    }


# --- the parts, each a pair of functions that make the same numbers ------------------------------


@torch.inference_mode()
def _seeds(precision: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """CAMs and logits of all scenes as one vector; two scenes of three have one tag, others two."""
    method = Classification(Pyramid()).fitted(PROFILE.map_side)
    build = partial(method.build, PROFILE.backbone.build(), PROFILE.num_classes)
    network = state.build(build, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 * SCENES, 3, *SIZE, generator=generator)
    features = {}
    for scale in PROFILE.seed_scales:
        maps = [network.backbone.trunk(rescale(part, scale)) for part in images.split(8)]
        features[scale] = torch.cat(maps).half().unflatten(0, (SCENES, 2))
    ids = [torch.arange(9)[i % 8 : i % 8 + 1 + (i % 3 == 0)] for i in range(SCENES)]

    def read(step: int, precision: str) -> list[Tensor]:
        reader, numbers = MultiScale(PROFILE.seed_scales), []
        for i in range(0, SCENES, step):
            part = {scale: maps[i : i + step] for scale, maps in features.items()}
            given = (method, network, part, ids[i : i + step], SIZE, precision)
            for cam, logits in reader.from_features(*given):
                numbers += [cam.flatten(), logits]
        return numbers

    @torch.inference_mode()
    def ours() -> Tensor:
        return torch.cat(read(together(SIZE, batch_pixels(precision)), precision))

    @torch.inference_mode()
    def peer() -> Tensor:
        numbers = read(1, "fp32")
        for i, plain in enumerate(features[1.0][:, 0]):
            own = forward(network, Batch(features=plain[None].float())).logits[0]
            numbers[2 * i + 1] = own
        return torch.cat(numbers)

    return ours, peer


def _predictions(precision: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Mean probabilities of all photos, read in two ways."""
    spec, scales = LargeFov(PROFILE.segmentation.hidden), PROFILE.segmentation.scales
    build = partial(spec.build, PROFILE.backbone.build(), PROFILE.num_classes)
    network = state.build(build, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PHOTOS, 3, *SIZE, generator=generator)
    known = torch.rand(PHOTOS, PROFILE.num_classes + 1, generator=generator).round()

    def ours() -> Tensor:
        read = []
        step = together(SIZE, batch_pixels(precision))
        for part, tags in zip(images.split(step), known.split(step), strict=True):
            passes = coarse_passes(network, part, scales, precision)
            for i in range(len(part)):
                own = [maps[i : i + 1] for maps in passes]
                plain, told = (probabilities(own, scales, SIZE) for _ in range(2))
                read += [plain.mean(dim=(2, 3)), (told * tags[i, :, None, None]).mean(dim=(2, 3))]
        return torch.cat(read)

    def peer() -> Tensor:
        read = []
        for image, tags in zip(images.split(1), known, strict=True):
            for mask in (torch.ones_like(tags), tags):
                passes = coarse_passes(network, image, scales)
                scores = probabilities(passes, scales, SIZE) * mask[:, None, None]
                read.append(scores.mean(dim=(2, 3)))
        return torch.cat(read)

    return ours, peer


PARTS = {"seeds_batched": _seeds, "predictions_batched": _predictions}
PEERS = {
    "seeds_batched": "a scene at a time, tag logits in a pass of their own",
    "predictions_batched": "a photo at a time, the network anew for each of two ways to read it",
}


if __name__ == "__main__":
    part, precision, who = sys.argv[1:]
    print_peak(PARTS[part](precision)[("ours", "peer").index(who)])
