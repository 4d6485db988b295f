"""Stage `predict_labels`: the segmentation network on unseen scenes, by scale and mirror image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.shards import over_images
from aeft_lib.refinement.dense_crf import DenseCRF, unary_of
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import load_segmenter, ready
from aeft_lib.stages.write_labels import write_all


@dataclass(frozen=True)
class PredictionSpec:
    """scales: relative to the image, each plain and mirrored.  data: fingerprint of the scenes.

    crf_iterations: of a CRF on the result; 0 leaves it out.
    tags_known: an oracle that leaves out classes without a tag; no network has it.
    """

    scenes: SceneSet
    scales: tuple[float, ...]
    crf_iterations: int = 0
    tags_known: bool = False
    data: str = ""


@ranks.collective
def predict_labels(
    spec: PredictionSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``segmenter``; write ``labels/<name>.png`` and ``labels.csv``, as `write_labels`."""
    count = len(spec.scenes.open())
    return write_all(folder, over_images(_predicted, count, spec, inputs["segmenter"]))


@torch.inference_mode()
def _predicted(
    indices: range, spec: PredictionSpec, segmenter: Artefact
) -> list[tuple[str, np.ndarray]]:
    network, scenes, labels = ready(load_segmenter, segmenter), spec.scenes.open(), []
    for index in indices:
        tags = scenes.tags(index) if spec.tags_known else None
        image, iterations = scenes.image(index), spec.crf_iterations
        labels.append((f"{index:05d}", predict(network, image, spec.scales, iterations, tags)))
    return labels


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
    where = next(network.parameters()).device
    picture = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(where)
    scores = multi_scale_probabilities(network, network.backbone.normalise(picture), scales)[0]
    if tags is not None:
        scores[1:] *= torch.from_numpy(tags).to(scores)[:, None, None]
    if crf_iterations:
        crf = DenseCRF(image, device=where)
        scores = crf.infer(unary_of(scores), iterations=crf_iterations)
    return scores.argmax(dim=0).to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def multi_scale_probabilities(
    network: nn.Module, images: Tensor, scales: Sequence[float]
) -> Tensor:
    """Mean softmax over scales, each plain and mirrored, (B, K + 1, H, W), sum 1 over classes.

    network: images -> logits at image size.  images: (B, 3, H, W) in the network's range.
    Raises ValueError for no scales, or one that is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive, and at least one, got {tuple(scales)}")
    size, total = images.shape[-2:], 0
    for scale in scales:
        sides = [max(1, round(side * scale)) for side in size]
        bilinear = {"mode": "bilinear", "align_corners": False}
        scaled = F.interpolate(images, size=sides, antialias=scale < 1, **bilinear)
        for mirrored in (False, True):
            logits = network(scaled.flip(-1) if mirrored else scaled)
            logits = F.interpolate(logits, size=size, **bilinear)
            total = total + (logits.flip(-1) if mirrored else logits).softmax(dim=1)
    return total / (2 * len(scales))
