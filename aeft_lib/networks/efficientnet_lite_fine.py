"""EfficientNet-Lite0 at the paper's output stride of 8: its map has as many cells as the paper's.

So all four levels of a pyramid mean what they mean in the paper.  The last of its strides is taken
away as well, without dilation, as in `efficientnet_lite`; steps cost about three times as much.
"""

from dataclasses import dataclass

from aeft_lib.networks.efficientnet_lite import EfficientNetLite0, EfficientNetLiteSpec

TO_16 = 4  # the place, among stem, stages and final convolution, of the stage that halves 8 to 16


class EfficientNetLite0Fine(EfficientNetLite0):
    """As `EfficientNetLite0`; images (B, 3, H, W) -> features (B, 1280, H/8, W/8)."""

    stride = 8

    def __init__(self, *, trained_stages: int, pretrained: bool = True) -> None:
        super().__init__(trained_stages=trained_stages, pretrained=pretrained)
        (*self._trunk, *self._tail)[TO_16][0].conv_dw.stride = (1, 1)


@dataclass(frozen=True)
class EfficientNetLiteFineSpec(EfficientNetLiteSpec):
    """As `EfficientNetLiteSpec`, at stride 8."""

    stride = EfficientNetLite0Fine.stride

    def build(self, *, dropout: tuple[float, float] = (0.0, 0.0)) -> EfficientNetLite0Fine:
        """The backbone; it has no dropout.  Raises FileNotFoundError without its weights."""
        pretrained = self.weights == "imagenet"
        return EfficientNetLite0Fine(trained_stages=self.trained_stages, pretrained=pretrained)
