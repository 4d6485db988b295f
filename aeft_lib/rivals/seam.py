"""SEAM (Wang et al., CVPR 2020): a CAM moves with its image, and learns from what looks alike.

Two views of a scene share a network.  C is the CAM of a view, R the same CAM refined by the
affinity of its pixels (`parts.pixel_correlation`).  c and r are C and R over their maxima, of the
tagged classes alone, those of view 1 brought to the size of view 2::

    L     = L_cls + L_ER + L_ECR,                    L_cls = (BCE(C_1, y) + BCE(C_2, y)) / 2
    L_ER  = mean |c_1 - c_2|
    L_ECR = top(|o(c_2) - r_1|) + top(|o(c_1) - r_2|)

o(c) has a background, and each pixel keeps its largest class; it is a constant.  top is the mean of
an image's largest 20 %.  L_ECR trains the refinement alone.  Seeds are read of R.

Departures from the authors' release (each is a field).  `background_channel`: the head there has
one channel more, which nothing ever trains.  `logit_from` is "image" there: the mean of the map
after up-sampling with corners aligned, so border cells weigh half.  `l_min` is on there, a term
that moves the best threshold, not the best seed.  `tags_in_refinement` is off there: classes that
are not in the image are stretched to a peak of 1 as well, and take their share of every pixel.
Seeds below 0 there (-1 for a class that never fires) are 0 here.  The optimiser has weight decay as
momentum there, the profile's schedule here; there is no dropout before the head, which is the
harness's own.

On a small map.  View 2 has 0.3 of view 1's sides, or what leaves eight cells, at most a half.
Refinement is as wide as `PixelCorrelation` says.  Maps are compared where `compared_at` says: at
the "image"'s size there; "map", the network's own, where all that up-sampling adds are values in
between.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from aeft_lib.engine.fields import fraction, number
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.paper import losses
from aeft_lib.paper.erasing import max_norm
from aeft_lib.parts.map_losses import (
    foreground_maxima,
    l1,
    resized,
    top_fraction_mean,
    with_background,
)
from aeft_lib.parts.refined import RefinedClassifier, RefinedMethod, lowest_of, view

CELLS = 8  # along a side of view 2's map, where view 1's has twice as many
TOP = 0.2


@dataclass(frozen=True)
class Seam(RefinedMethod):
    """second_view: sides of view 2 against view 1's.  equivariance, refinement: weights."""

    second_view: float = 0.3
    equivariance: float = 1.0
    refinement: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "second_view")
        number(self, "second_view", positive=True)
        number(self, "equivariance", "refinement")

    @property
    def passes(self) -> float:
        """Pixels of a step's forward and backward passes, against plain classification."""
        return 1 + self.second_view**2

    def fitted(self, side: int, strength: float = 1.0) -> "Seam":
        """With a second view whose map has eight cells, or half of `side`."""
        return replace(self, second_view=min(0.5, max(self.second_view, CELLS / side)))

    def measure(self, network: RefinedClassifier, batch: Batch) -> dict[str, Tensor]:
        """Logits of both views, and every image's own losses.

        Raises ValueError where view 2 is smaller than a cell.
        """
        small = smaller(batch.images.shape[-2:], self.second_view, network.backbone.stride)
        both = (forward(network, batch), view(network, resized(batch.images, small)))
        maps = [(v.cam, self.refined(network, v, batch.tags)) for v in both]
        sizes = (batch.images.shape[-2:], small)
        full = [
            tuple(resized(m, size) for m in pair) for pair, size in zip(maps, sizes, strict=True)
        ]
        logits = [c.mean(dim=(2, 3)) for c, _ in full]
        if self.logit_from == "map":
            logits = [v.logits for v in both]
        compared = full if self.compared_at == "image" else maps
        terms = consistency(*compared, batch.tags)
        if self.l_min:
            terms["l_min"] = sum(lowest_of(r, batch.tags) for _, r in compared) / 2
        return {"logits": logits[0], "logits_2": logits[1], "tags": batch.tags, **terms}

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms; logged too: ``equivariance_error``, the mechanism, over tagged classes."""
        tags = measures["tags"]
        logits = (measures["logits"], measures["logits_2"])
        terms = {
            "classification": sum(losses.classification(x, tags) for x in logits) / 2,
            "equivariance": self.equivariance * measures["er"].mean(),
            "refinement": self.refinement * (measures["ecr_1"] + measures["ecr_2"]).mean(),
        }
        if self.l_min:
            terms["l_min"] = measures["l_min"].mean()
        share = tags.float().mean().clamp(min=1 / tags.numel())  # untagged maps count as zeros
        return terms | {"equivariance_error": measures["er"].detach().mean() / share}


# The authors' release.
REFERENCE = Seam(
    logit_from="image",
    compared_at="image",
    background_channel=True,
    l_min=True,
    tags_in_refinement=False,
)


def smaller(size: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    """The size of view 2 in whole pixels.  Raises ValueError where it is smaller than a cell."""
    height, width = (int(side * scale) for side in size)
    if min(height, width) < stride:
        raise ValueError(
            f"an image of {size[0]} x {size[1]} pixels at {scale:g} of its sides is smaller than a "
            f"cell of {stride} pixels: use larger images, or a larger second_view"
        )
    return height, width


def consistency(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], tags: Tensor
) -> dict[str, Tensor]:
    """``er, ecr_1, ecr_2`` of every image, (B,) each.

    first, second: (C, R) of a view, (B, K, H, W) signed and (B, K + 1, H, W); view 2 is not larger.
    tags: (B, K).  Maps are normalised before they are brought to view 2's size.
    """
    size = second[0].shape[-2:]
    c_1, c_2 = (tagged(max_norm(c), tags, size) for c, _ in (first, second))
    r_1, r_2 = (
        resized(max_norm(r), size) * present(tags, r)[:, :, None, None] for _, r in (first, second)
    )
    o_1, o_2 = (target(c) for c in (c_1, c_2))
    return {
        "er": l1(c_1, c_2),
        "ecr_1": top_fraction_mean((o_2 - r_1).abs(), TOP),
        "ecr_2": top_fraction_mean((o_1 - r_2).abs(), TOP),
    }


def tagged(maps: Tensor, tags: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, K, h, w) at another size, those of classes that are not in the image 0."""
    return resized(maps, size) * tags[:, :, None, None].to(maps.dtype)


def present(tags: Tensor, maps: Tensor) -> Tensor:
    """Y, (B, K + 1): the background is in every image."""
    return F.pad(tags.to(maps.dtype), (1, 0), value=1.0)


def target(maps: Tensor) -> Tensor:
    """o, (B, K + 1, h, w), constant: a background, and the value of each pixel's largest class."""
    return foreground_maxima(with_background(maps.detach()))
