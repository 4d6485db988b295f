"""A frozen backbone that hands on its maps of all levels, from the stem to the last (for IRNet).

Which they are goes by the number of its blocks: the stem and four stages of torchvision's ResNets;
of EfficientNet-Lite0 stages 1, 2, 3, 5 and the last convolution; of ResNet38d b2_2, b3_2, b4_5,
b5_2 and the last ReLU.  Of any other backbone they are its three taps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aeft_lib.networks.backbone import BackboneSpec

PROBE = 64  # side of an image that shows channels and strides
# Places of four levels among the blocks, by how many blocks there are; the fifth is the output.
PLACES = {5: (0, 1, 2, 3), 9: (1, 2, 3, 5), 19: (3, 6, 12, 15)}


class Levels(nn.Module):
    """Images in the backbone's range (B, 3, H, W) -> maps (B, channels[i], h_i, w_i), no gradient.

    channels, strides: of the maps, the finest first.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.plain = backbone.requires_grad_(False)
        self.normalise = backbone.normalise
        first = next(backbone.parameters())
        maps = self(torch.zeros(1, 3, PROBE, PROBE, device=first.device, dtype=first.dtype))
        self.channels = tuple(level.shape[1] for level in maps)
        self.strides = tuple(PROBE // level.shape[-1] for level in maps)

    @property
    def checkpointing(self) -> bool:
        """False: without a gradient nothing is kept for a backward pass."""
        return False

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        blocks = _blocks(self.plain)
        if len(blocks) not in PLACES:
            return self.plain.taps(images)
        maps: list[Tensor] = []
        hooks = [
            blocks[place].register_forward_hook(lambda _, __, output: maps.append(output))
            for place in PLACES[len(blocks)]
        ]
        try:
            last = self.plain(images)
        finally:
            for hook in hooks:
                hook.remove()
        return (*maps, last)


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """Its blocks in order; those of a Sequential one by one."""
    children = backbone.children()
    return [b for c in children for b in (c if isinstance(c, nn.Sequential) else (c,))]


@dataclass(frozen=True)
class LevelsSpec:
    """A backbone's spec, its maps of all levels handed on; nothing of it is trained."""

    plain: BackboneSpec

    @property
    def stride(self) -> int:
        """Of the plain backbone."""
        return self.plain.stride

    @property
    def weights(self) -> str:
        """Of the plain backbone."""
        return self.plain.weights

    def build(self) -> Levels:
        """The backbone without dropout.  Raises what the plain spec's `build` raises."""
        return Levels(self.plain.build(dropout=(0.0, 0.0)))

    def check(self) -> None:
        """As the plain spec."""
        self.plain.check()
