"""Stage `predict_labels`: the segmentation network on scenes it has never seen, over scales and mirror images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.shards import over_images
from aeft_lib.networks.segmenter import Segmenter, multi_scale_probabilities
from aeft_lib.refinement.dense_crf import DenseCRF, unary_of
from aeft_lib.stages.fitting import ready
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.train_segmenter import load_segmenter
from aeft_lib.stages.write_labels import write_all


@dataclass(frozen=True)
class PredictionSpec:
    """scales: relative to the image, each plain and mirrored.  crf_iterations: of a CRF on the result; 0 leaves it out.

    tags_known: classes that are not tagged are left out, as if somebody had told: an oracle, not what a network has to do.
    data: fingerprint of the scenes.
    """

    scenes: SceneSet
    scales: tuple[float, ...]
    crf_iterations: int = 0
    tags_known: bool = False
    data: str = ""


@ranks.collective
def predict_labels(spec: PredictionSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``segmenter``; write ``labels/<name>.png`` and ``labels.csv``, as `write_labels` does."""
    return write_all(folder, over_images(_predicted, len(spec.scenes.open()), spec, inputs["segmenter"]))


@torch.inference_mode()
def _predicted(indices: range, spec: PredictionSpec, segmenter: Artefact) -> list[tuple[str, np.ndarray]]:
    network = ready(load_segmenter, segmenter)
    scenes = spec.scenes.open()
    found = []
    for index in indices:
        tags = scenes.tags(index) if spec.tags_known else None
        found.append((f"{index:05d}", predict(network, scenes.image(index), spec.scales, spec.crf_iterations, tags)))
    return found


@torch.inference_mode()
def predict(
    network: Segmenter, image: np.ndarray, scales: Sequence[float], crf_iterations: int = 0, tags: np.ndarray | None = None
) -> np.ndarray:
    """The label map (H, W) uint8 of one photo (H, W, 3) uint8; tags: (K,) bool, which classes are there, if that is known."""
    where = next(network.parameters()).device
    picture = network.backbone.normalise(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(where))
    scores = multi_scale_probabilities(network, picture, scales)[0]
    if tags is not None:
        scores[1:] *= torch.from_numpy(tags).to(scores)[:, None, None]
    if crf_iterations:
        scores = DenseCRF(image, device=where).infer(unary_of(scores), iterations=crf_iterations)
    return scores.argmax(dim=0).to(torch.uint8).cpu().numpy()
