"""Stage `merge_masks`: two masks of every scene become one, by a trained detector of differences.

The static merge of SSDD (Shimoda and Yanai, ICCV 2019; shimoda-uec/ssdd).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.augment import color_jitter
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.loop import stream
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.labels import read_label_map
from aeft_lib.parts.difference import flagged, merge, nearest
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import load_segmenter, ready
from aeft_lib.stages.write_labels import label_files, write_all

JITTER = (0.3, 0.3, 0.3, 0.1)  # of the release, which `alignment` repeats


@dataclass(frozen=True)
class MergeSpec:
    """The merge of the scenes' masks; fields as of `Ssdd`."""

    scenes: SceneSet
    bias: float
    bg_bias: float
    order: str = "corrected"
    alignment: str = "corrected"
    square: bool = False


@ranks.collective
def merge_masks(spec: MergeSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``labels`` (K), ``labels_2`` (A), ``segmenter``; write label maps as `write_labels`.

    The summary has the parts of the pixels where the masks differ, and where A was taken of them.
    """
    files = [label_files(inputs[name]) for name in ("labels", "labels_2")]
    count, parts = len(spec.scenes.open()), []

    def maps() -> Iterator[tuple[str, np.ndarray]]:
        for name, labels, numbers in over_images(_merged, count, spec, inputs["segmenter"], *files):
            parts.append(numbers)
            yield name, labels

    summary = write_all(folder, maps())
    differs, taken = np.array(parts).sum(axis=0).tolist() if parts else (0, 0)
    pixels = len(parts) or 1
    return summary | {"differs": differs / pixels, "taken": taken / differs if differs else 0.0}


@torch.inference_mode()
def _merged(
    indices: range, spec: MergeSpec, segmenter: Artefact, known: list[Path], advised: list[Path]
) -> list[tuple[str, np.ndarray, tuple[float, float]]]:
    """Name, merged map, and the parts of its pixels that differ and where A was taken."""
    network, scenes, merged = ready(load_segmenter, segmenter), spec.scenes.open(), []
    for index in indices:
        image, tags = scenes.image(index), torch.from_numpy(scenes.tags(index))[None]
        k, a = (
            torch.from_numpy(
                read_label_map(own[index], num_classes=network.num_classes, size=image.shape[:2])
            )[None].to(device())
            for own in (known, advised)
        )
        d_k, d_a = differences(network, image, k, a, spec, index)
        flags = flagged(k, a, tags.to(k.device))
        labels = merge(k, a, d_k, d_a, flags, bias=spec.bias, bg_bias=spec.bg_bias)[0]
        differs = k[0] != a[0]
        taken = differs & (labels == a[0])
        numbers = tuple(float(part.float().mean()) for part in (differs, taken))
        merged.append((f"{index:05d}", labels.cpu().numpy(), numbers))
    return merged


def differences(
    network: nn.Module,
    image: np.ndarray,
    known: Tensor,
    advised: Tensor,
    spec: MergeSpec,
    index: int,
) -> tuple[Tensor, Tensor]:
    """d(K) and d(A), (1, 1, H, W) in 0..1, of one image and its masks (1, H, W).

    network: a `DifferenceNetwork`.
    """
    size, masks = known.shape[-2:], torch.stack([known, advised], dim=1)
    picture = torch.from_numpy(image.copy()).permute(2, 0, 1)
    if spec.alignment == "released":
        generator = stream(0, index)
        if torch.rand((), generator=generator) < 0.5:
            picture, masks = picture.flip(-1), masks.flip(-1)
        picture = color_jitter(picture, generator, JITTER)
    images = network.backbone.normalise(picture[None].to(masks.device))
    if spec.square:
        images = F.interpolate(images, size=[max(size)] * 2, mode="bilinear", align_corners=False)
    _, (seen, *_) = network.read(images)
    coarse = nearest(masks, seen.shape[-2:]).unbind(1)
    options = {"size": size, "mode": "bilinear", "align_corners": False}
    d_k, d_a = (
        F.interpolate(x.float(), **options).sigmoid()
        for x in network.detectors[0](seen, list(coarse))
    )
    return (d_a, d_k) if spec.order == "released" else (d_k, d_a)
