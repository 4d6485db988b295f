"""Common to all backbones: their spec, and the shape of images."""

from typing import Protocol

from torch import Tensor, nn

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


def check_images(images: Tensor) -> None:
    """Raises ValueError where images are not (B, 3, H, W)."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got shape {tuple(images.shape)}")
