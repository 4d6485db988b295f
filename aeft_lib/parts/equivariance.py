"""Stage `measure_equivariance`: whether a classifier's CAM shrinks with its image; reads no mask.

It is SEAM's mechanism, asked of any classifier on scenes that it has not seen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.batches import image_batches
from aeft_lib.engine.device import autocast, batch_pixels, device
from aeft_lib.engine.fields import fraction
from aeft_lib.paper.erasing import max_norm
from aeft_lib.parts.map_losses import resized
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import rescale
from aeft_lib.stages.loading import load_network, ready


@dataclass(frozen=True)
class EquivarianceSpec:
    """scale: sides of the smaller image.  data: fingerprint of the scenes.

    precision: of the network, see `device.inference_precision`.
    """

    scenes: SceneSet
    scale: float
    data: str
    precision: str = "fp32"


@dataclass(frozen=True)
class Equivariance:
    """A mechanism (`studies.rows`): ``equivariance_error``, 0 where CAMs move with their image."""

    scale: float = 0.5
    names = ("equivariance_error",)

    def __post_init__(self) -> None:
        fraction(self, "scale")

    def measure(
        self,
        obtain: Callable[..., Artefact],
        scenes: SceneSet,
        classifier: Artefact,
        precision: str,
    ) -> Artefact:
        """On scenes of any size."""
        spec = EquivarianceSpec(scenes, self.scale, scenes.open().fingerprint, precision)
        return obtain(measure_equivariance, spec, {"classifier": classifier})


@torch.inference_mode()
def measure_equivariance(
    spec: EquivarianceSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """The mean over the scenes that have tags, of `equivariance_error`."""
    network, scenes = ready(load_network, inputs["classifier"]), spec.scenes.open()
    errors = []
    for indices, images in image_batches(
        scenes.image, range(len(scenes)), batch_pixels(spec.precision)
    ):
        tags = torch.stack([torch.from_numpy(scenes.tags(i)) for i in indices]).to(device())
        pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        plain = network.backbone.normalise(pictures.to(device()))
        with autocast(spec.precision, device()):
            cams = [network(x).cam.float() for x in (plain, rescale(plain, spec.scale))]
        errors += equivariance_error(*cams, tags)[tags.any(dim=1)].tolist()
    return {"equivariance_error": sum(errors) / max(len(errors), 1), "images": len(errors)}


def equivariance_error(cam: Tensor, smaller: Tensor, tags: Tensor) -> Tensor:
    """The mean over tagged classes of |norm(C(s x)) - s norm(C(x))|, (B,); 0 without a tag.

    cam: (B, K, h, w) signed.  smaller: of the smaller image.  tags: (B, K).
    """
    moved = resized(max_norm(cam), smaller.shape[-2:])
    errors = (max_norm(smaller) - moved).abs().mean(dim=(2, 3)) * tags.to(cam.dtype)
    return errors.sum(dim=1) / tags.sum(dim=1).clamp(min=1)
