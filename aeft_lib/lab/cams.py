"""A trained classifier on any photo: its tags, and its CAMs."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib.stages.method import Method, Reader
from aeft_lib.stages.predict_logits import normalised
from aeft_lib.studies import shipped
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile


@dataclass(frozen=True)
class CamReader:
    """A trained classifier, and how its CAMs are read."""

    network: nn.Module
    method: Method
    reader: Reader

    @torch.inference_mode()
    def logits(self, image: np.ndarray) -> Tensor:
        """The logits (K,) of a photo (h, w, 3) uint8: above 0 a class is rather there than not."""
        return self.network(normalised(self.network, [image])).logits[0].cpu()

    @torch.inference_mode()
    def cams(self, image: np.ndarray, class_ids: Tensor) -> Tensor:
        """CAMs (K', h, w) in 0..1 of these classes, each over its own maximum."""
        return self.reader.from_images(self.method, self.network, [image], [class_ids])[0].cam


def shipped_reader(profile: Profile, row: Row) -> CamReader:
    """The reader of a row whose weights come with the package, on the CPU.

    Raises ValueError as `shipped.network` does.
    """
    network, method = shipped.network(profile, row), shipped.training(profile, row).method
    return CamReader(network, method, row.reader.fitted(profile.seed_scales))


def likely(logits: Tensor) -> Tensor:
    """Class ids (K',) int64 with a logit above 0, ascending; the largest alone where none has."""
    ids = (logits > 0).nonzero()[:, 0]
    return ids if len(ids) else logits.argmax()[None]


def displayed(network: nn.Module, images: Tensor) -> np.ndarray:
    """The first of a batch of images that the network's backbone normalised, RGB in 0..1."""
    levels = (torch.full((1, 3, 1, 1), level, dtype=torch.uint8) for level in (0, 255))
    black, white = map(network.backbone.normalise, levels)
    return ((images - black) / (white - black))[0].clamp(0, 1).permute(1, 2, 0).numpy()
