"""What all backbones have in common: batch norms that never move, and the shape they want images in."""

from torch import Tensor, nn


class FrozenNorms(nn.Module):
    """A network whose batch norms keep their statistics and affine parameters, in training too, as in the paper."""

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
