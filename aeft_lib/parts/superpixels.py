"""Superpixels of scenes, few of them: graph segmentation or SLIC, then the most alike are joined.

As ICD's authors make them (js-fan/ICD): the graph segmentation of Felzenszwalb and Huttenlocher
(IJCV 2004), then pairs anywhere in the image are joined, those first whose features are alike and
which are small, until so few are left.  Both segmentations are scikit-image's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.batches import image_batches
from aeft_lib.engine.device import autocast, batch_pixels, device
from aeft_lib.engine.fields import choice, number, whole
from aeft_lib.maps.labels import VOID
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.write_labels import write_all

KINDS = ("graph", "slic")
TINY = 1e-12  # norm of a feature that is 0
MORE = 4  # times as many superpixels as in the end, that SLIC begins with


@dataclass(frozen=True)
class Superpixels:
    """count: at most so many.  kind: "graph", as in the release, or "slic".

    blur: standard deviation in pixels before the graph segmentation.  scale: its k; larger scales
    give larger superpixels.  smallest: pixels of a superpixel, at least.
    """

    count: int = 64
    kind: str = KINDS[0]
    blur: float = 0.8
    scale: float = 75.0
    smallest: int = 75

    def __post_init__(self) -> None:
        whole(self, "count", least=1, most=VOID - 1)
        whole(self, "smallest", least=1)
        number(self, "blur", "scale")
        choice(self, kind=KINDS)

    def divide(self, image: np.ndarray) -> np.ndarray:
        """Superpixels of an image (H, W, 3) uint8 before any is joined: (H, W) int64 from 0 on."""
        from skimage import segmentation

        if self.kind == "slic":
            parts = segmentation.slic(image, n_segments=MORE * self.count, start_label=0)
        else:
            sizes = {"scale": self.scale, "sigma": self.blur, "min_size": self.smallest}
            parts = segmentation.felzenszwalb(image, **sizes)
        return np.unique(parts, return_inverse=True)[1].reshape(parts.shape)


def joined(parts: np.ndarray, features: np.ndarray, most: int) -> np.ndarray:
    """The superpixels, joined to at most so many, numbered by the lowest of their old numbers.

    Repeatedly the pair with the largest ``cos(f_i, f_j) + 1 - (n_i + n_j) / (H W)`` becomes one,
    whose feature is the mean by size.  parts: (H, W), 0..J - 1.  features: (J, C).
    Raises ValueError where a superpixel has no feature.
    """
    sizes = np.bincount(parts.ravel()).astype(np.float64)
    if len(sizes) != len(features):
        raise ValueError(f"{len(sizes)} superpixels have {len(features)} features")
    features, owner = features.astype(np.float64), np.arange(len(sizes))
    alike = _alike(features, features, sizes, sizes, parts.size)
    np.fill_diagonal(alike, -np.inf)
    for _ in range(len(sizes) - most):
        i, j = sorted(np.unravel_index(alike.argmax(), alike.shape))
        both = sizes[i] + sizes[j]
        features[i] = (sizes[i] * features[i] + sizes[j] * features[j]) / both
        sizes[i], owner[owner == j] = both, i
        gone = np.isneginf(alike[i])
        row = _alike(features[i : i + 1], features, sizes[i : i + 1], sizes, parts.size)[0]
        alike[i] = alike[:, i] = np.where(gone, -np.inf, row)
        alike[j] = alike[:, j] = -np.inf
    return np.unique(owner, return_inverse=True)[1][parts]


def _alike(
    first: np.ndarray, second: np.ndarray, n: np.ndarray, m: np.ndarray, pixels: int
) -> np.ndarray:
    """What `joined` maximises, of every pair."""
    unit = [
        f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (first, second)
    ]
    return unit[0] @ unit[1].T + 1 - (n[:, None] + m) / pixels


def mean_features(parts: np.ndarray, maps: Tensor) -> np.ndarray:
    """The mean over every superpixel, (J, C), of maps (C, h, w), bilinear at its size."""
    hot = F.one_hot(torch.from_numpy(parts).long()).permute(2, 0, 1).to(maps)
    sides = zip(maps.shape[-2:], parts.shape, strict=True)
    rows, columns = (
        F.interpolate(torch.eye(few).to(maps)[None], size=many, mode="linear")[0]
        for few, many in sides
    )
    shares = rows @ hot @ columns.T  # (J, h, w), the weight of every cell
    return (shares.flatten(1) @ maps.flatten(1).T / hot.sum(dim=(1, 2))[:, None]).numpy()


@dataclass(frozen=True)
class DivisionSpec:
    """superpixels: of the scenes.  backbone: whose last map, with its published weights, tells how
    alike two are.  data: fingerprint of the scenes.  precision: `device.inference_precision`.
    """

    scenes: SceneSet
    superpixels: Superpixels
    backbone: BackboneSpec
    data: str = ""
    precision: str = "fp32"


def divide_scenes(
    spec: DivisionSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Write superpixels as label maps, numbered from 0; the summary has their mean ``number``."""
    backbone = spec.backbone.build().eval().to(device(), memory_format=torch.channels_last)
    numbers: list[int] = []

    def maps() -> Iterator[tuple[str, np.ndarray]]:
        for name, parts in _divided(spec, backbone):
            numbers.append(int(parts.max()) + 1)
            yield name, parts

    summary = write_all(folder, maps())
    return {"images": summary["images"], "number": float(np.mean(numbers))}


@torch.inference_mode()
def _divided(spec: DivisionSpec, backbone: nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    """Name and superpixels of every scene, as their sizes fill batches."""
    scenes, pixels = spec.scenes.open(), batch_pixels(spec.precision)
    for indices, images in image_batches(scenes.image, range(len(scenes)), pixels):
        pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device())
        with autocast(spec.precision, device()):
            features = backbone(backbone.normalise(pictures)).float().cpu()
        for index, image, maps in zip(indices, images, features, strict=True):
            parts = spec.superpixels.divide(image)
            own = joined(parts, mean_features(parts, maps), spec.superpixels.count)
            yield f"{index:05d}", own.astype(np.uint8)
