"""Stage `predict_labels`: from a segmentation network's passes to label maps of unseen scenes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.shards import over_images
from aeft_lib.refinement.dense_crf import DenseCRF, unary_of
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.predict_logits import (
    LogitSpec,
    Passes,
    coarse_passes,
    load_passes,
    normalised,
    passes_of,
    scaled_sides,
)
from aeft_lib.stages.write_labels import write_all


@dataclass(frozen=True)
class PredictionSpec:
    """scales: relative to the image, each plain and mirrored.  data: fingerprint of the scenes.

    crf_iterations: of a CRF on the result; 0 leaves it out.
    tags_known: an oracle that leaves out classes without a tag; no network has it.
    precision: of the network, see `device.inference_precision`; stored logits have their own.
    """

    scenes: SceneSet
    scales: tuple[float, ...]
    crf_iterations: int = 0
    tags_known: bool = False
    data: str = ""
    precision: str = "fp32"


@ranks.collective
def predict_labels(
    spec: PredictionSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``segmenter``; write ``labels/<name>.png`` and ``labels.csv``, as `write_labels`.

    Where there are ``logits`` (of `predict_logits`, at these scales), they are read in its place.
    """
    count, source = len(spec.scenes.open()), inputs.get("logits") or inputs["segmenter"]
    return write_all(folder, over_images(_predicted, count, spec, source))


@torch.inference_mode()
def _predicted(
    indices: range, spec: PredictionSpec, source: Artefact
) -> list[tuple[str, np.ndarray]]:
    scenes, labels = spec.scenes.open(), []
    for index, passes in zip(indices, _passes(indices, spec, source), strict=True):
        image = scenes.image(index)
        tags = scenes.tags(index) if spec.tags_known else None
        passes = [maps.to(device()) for maps in passes]
        labels.append((f"{index:05d}", read(passes, spec.scales, image, spec.crf_iterations, tags)))
    return labels


def _passes(indices: range, spec: PredictionSpec, source: Artefact) -> Iterator[Passes]:
    """Of each scene, from stored logits or from the network."""
    if source.stage == "train_segmenter":
        passes = LogitSpec(spec.scenes, spec.scales, spec.data, spec.precision)
        yield from passes_of(indices, passes, source)
    else:
        yield from (load_passes(source, index, spec.scales) for index in indices)


@torch.inference_mode()
def predict(
    network: nn.Module,
    image: np.ndarray,
    scales: Sequence[float],
    crf_iterations: int = 0,
    tags: np.ndarray | None = None,
) -> np.ndarray:
    """The label map (H, W) uint8 of one photo (H, W, 3) uint8.

    tags: (K,) bool, which classes are there, if that is known.
    """
    passes = coarse_passes(network, normalised(network, [image]), scales)
    return read(passes, scales, image, crf_iterations, tags)


def read(
    passes: Passes,
    scales: Sequence[float],
    image: np.ndarray,
    crf_iterations: int = 0,
    tags: np.ndarray | None = None,
) -> np.ndarray:
    """The label map of one photo from the passes of a network, as `predict`."""
    scores = probabilities(passes, scales, image.shape[:2])[0]
    if tags is not None:
        scores[1:] *= torch.from_numpy(tags).to(scores)[:, None, None]
    if crf_iterations:
        crf = DenseCRF(image, device=scores.device)
        scores = crf.infer(unary_of(scores), iterations=crf_iterations)
    return scores.argmax(dim=0).to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def multi_scale_probabilities(
    network: nn.Module, images: Tensor, scales: Sequence[float]
) -> Tensor:
    """Mean softmax over scales, each plain and mirrored, (B, K + 1, H, W), sum 1 over classes.

    network, images, errors: as `predict_logits.coarse_passes`.
    """
    return probabilities(coarse_passes(network, images, scales), scales, images.shape[-2:])


@torch.inference_mode()
def probabilities(passes: Passes, scales: Sequence[float], size: Sequence[int]) -> Tensor:
    """Mean softmax (B, K + 1, H, W) at image size (H, W) of passes, (B, 2, K + 1, h, w) each.

    Logits are brought to the size of their scaled image, as the network itself does, and from
    there to the image's.
    """
    total, options = 0, {"mode": "bilinear", "align_corners": False}
    for maps, scale in zip(passes, scales, strict=True):
        for coarse, is_mirrored in zip(maps.unbind(1), (False, True), strict=True):
            turned = coarse.flip(-1) if is_mirrored else coarse
            logits = F.interpolate(turned, size=scaled_sides(size, scale), **options)
            total = total + F.interpolate(logits, size=tuple(size), **options).softmax(dim=1)
    return total / (2 * len(passes))
