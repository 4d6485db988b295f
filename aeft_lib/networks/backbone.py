"""Common to all backbones: their spec, frozen batch norms, checkpointed blocks, image shapes."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WEIGHTS = ("imagenet", "none")


class BackboneSpec(Protocol):
    """A frozen dataclass that builds a backbone.

    stride: pixels of the image along a cell of the feature map.
    weights: "imagenet", or "none" for random ones (tests, counting).
    """

    stride: int
    weights: str

    def build(self, *, dropout: tuple[float, float] = (0.2, 0.2)) -> nn.Module:
        """The backbone: ``trunk``, ``tail``, ``taps``, ``normalise``, ``out_channels``, ``stride``.

        dropout: of ResNet38d's last two blocks; the others have none.
        Raises ValueError where weights do not fit or are missing, with what to do.
        """

    def check(self) -> None:
        """Raises ValueError where weights are missing that `build` would need; builds nothing."""


class FrozenNorms(nn.Module):
    """A network whose batch norms keep statistics and affine parameters, in training too (paper).

    checkpointing: keep the input of each block for the backward pass and compute the rest again: a
        third more time, a fifth of the memory.
    """

    checkpointing = False

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block on x, its activations forgotten where `checkpointing` says so."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def freeze_norms(self) -> None:
        """No gradient for the affine parameters; to be called at the end of a constructor."""
        for norm in self._batch_norms():
            norm.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FrozenNorms":
        """As nn.Module.train, but every batch norm stays in eval mode."""
        super().train(mode)
        for norm in self._batch_norms():
            norm.eval()
        return self

    def _batch_norms(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]


def check_images(images: Tensor) -> None:
    """Raises ValueError where images are not (B, 3, H, W)."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got shape {tuple(images.shape)}")
