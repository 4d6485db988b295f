"""CPN (Zhang et al., ICCV 2021): two images, a random half of the scene each, know more than all.

A random part of the superpixels is hidden in x1, the others in x2, so x1 + x2 = x; w1 and w2 are
the visible shares of their pixels.  C is a view's CAM and R the same CAM refined.  c and r are both
over their maxima, of the tagged classes alone; those of the pair are times w1 and w2::

    L      = L_cls + L_tcp + L_cpcr,             L_cls = mean of BCE(C, y) over the three views
    L_tcp  = mean |sg(c1 + c2) - c| + mean |r - r1 - r2|
    L_cpcr = top(|o(c - c1) - r2|) + top(|o(c - c2) - r1|)

sg is a constant.  In L_cpcr all maps have a background, 1 - max; o keeps the largest channel of
every pixel and is a constant.  top is the mean of an image's largest 20 %.  Seeds are read of R.

PRCM refines: to SEAM's pixel correlation it adds the map itself, weighed by how much a pixel looks
like the mean feature of its class's region.  That weight sums to 1 over all pixels, so it is small
beside the first part unless it peaks.

Departures from the authors' release (fields).  `prcm_keys` is "reinterpreted" there: the matrix of
keys is read with its axes exchanged, not transposed.  `prcm_scale` is "maps" there, the root of
their number, not of the "features".  `hide_draw` is "with_replacement" there: numbers 0..L, of
which 0 hides nothing, so about 39 % is hidden; here it is "half" of the superpixels.  `hidings`
is the number of samples there, since the draws of the first epoch are replayed in all others; 0
draws anew.  `logit_from`, `background_channel`, `l_min`, `tags_in_refinement`, `compared_at` are as
in SEAM, and so are the optimiser, the dropout and the head.

Superpixels are cells of a square grid here; the release asks SLIC for 300 of a crop of 448 pixels.
On a small map the grid is as coarse as leaves two of the map's cells to each: finer ones vanish
below a cell.  Padding of a view is hidden and counted too, as in the release.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aeft_lib.engine.fields import choice, number, whole
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.paper import losses
from aeft_lib.paper.erasing import max_norm
from aeft_lib.parts.map_losses import l1, only_maxima, resized, top_fraction_mean, with_background
from aeft_lib.parts.pixel_correlation import PixelCorrelation, correlated
from aeft_lib.parts.refined import RefinedClassifier, RefinedMethod, lowest_of, view

KEYS = ("transposed", "reinterpreted")
SCALES = ("features", "maps")
DRAWS = ("half", "with_replacement")
TOP = 0.2
RESOLUTION = 2**24  # of random numbers in float32


@dataclass(frozen=True)
class Cpn(RefinedMethod):
    """grid: superpixels along a side (17 x 17 is about 300).

    complementary, refinement: weights of L_tcp and L_cpcr.  hidings: how many different draws there
    are; 0: any number.  The other fields: see the module.
    """

    grid: int = 17
    complementary: float = 1.0
    refinement: float = 1.0
    prcm_keys: str = "transposed"
    prcm_scale: str = "features"
    hide_draw: str = "half"
    hidings: int = 0
    needs = ("images", "noise", "taps")
    passes = 3.0  # the whole scene and both halves

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "grid", least=2)
        whole(self, "hidings", most=RESOLUTION)
        number(self, "complementary", "refinement")
        choice(self, prcm_keys=KEYS, prcm_scale=SCALES, hide_draw=DRAWS)

    def fitted(self, side: int, strength: float = 1.0) -> "Cpn":
        """With two cells of a map of `side` cells, or more, along a superpixel."""
        return replace(self, grid=max(2, min(self.grid, side // 2)))

    def correlation(self, tap_channels: tuple[int, int]) -> "RegionCorrelation":
        """PRCM."""
        return RegionCorrelation(
            tap_channels=tap_channels, keys=self.prcm_keys, scale=self.prcm_scale
        )

    def measure(self, network: RefinedClassifier, batch: Batch) -> dict[str, Tensor]:
        """Logits of the scene and of both halves, and every image's own losses."""
        visible = self._visible(batch.noise[:, 0], batch.images.shape[-2:]).to(batch.images.device)
        halves = halved(batch.images, visible)
        views = (forward(network, batch), *(view(network, half) for half in halves))
        maps = [(v.cam, self.refined(network, v, batch.tags)) for v in views]
        size = batch.images.shape[-2:]
        full = [tuple(resized(m, size) for m in pair) for pair in maps]
        logits = [v.logits for v in views]
        if self.logit_from == "image":
            logits = [c.mean(dim=(2, 3)) for c, _ in full]
        compared = full if self.compared_at == "image" else maps
        terms = complementarity(compared, visible_share(visible), batch.tags)
        if self.l_min:
            terms["l_min"] = sum(lowest_of(r, batch.tags) for _, r in compared) / 3
        names = ("logits", "logits_1", "logits_2")
        return dict(zip(names, logits, strict=True)) | {"tags": batch.tags} | terms

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms; logged too: ``complementarity_error``, the mechanism, over tagged classes."""
        tags = measures["tags"]
        logits = [measures[name] for name in ("logits", "logits_1", "logits_2")]
        tcp = measures["tcp"] + measures["tcp_refined"]
        cpcr = measures["cpcr_1"] + measures["cpcr_2"]
        terms = {
            "classification": sum(losses.classification(x, tags) for x in logits) / 3,
            "complementary": self.complementary * tcp.mean(),
            "refinement": self.refinement * cpcr.mean(),
        }
        if self.l_min:
            terms["l_min"] = measures["l_min"].mean()
        share = tags.float().mean().clamp(min=1 / tags.numel())  # untagged maps count as zeros
        return terms | {"complementarity_error": measures["tcp"].detach().mean() / share}

    def _visible(self, noise: Tensor, size: tuple[int, int]) -> Tensor:
        """What x1 shows of every image, (B, H, W) bool; noise: (B,) in 0..1, decides."""
        cells, seeds = grid_cells(size, self.grid), (noise * RESOLUTION).long()
        seeds = seeds % self.hidings if self.hidings else seeds
        draws = [draw_hidden(self.grid**2, seed, self.hide_draw) for seed in seeds.tolist()]
        return torch.stack([~torch.isin(cells, hidden) for hidden in draws])


# The authors' release; it draws for 10,582 images.
REFERENCE = Cpn(
    prcm_keys="reinterpreted",
    prcm_scale="maps",
    hide_draw="with_replacement",
    hidings=10582,
    logit_from="image",
    compared_at="image",
    background_channel=True,
    l_min=True,
    tags_in_refinement=False,
)


def grid_cells(size: tuple[int, int], grid: int) -> Tensor:
    """The number of each pixel's cell, (H, W) int64, row by row from 1; cells are nearly equal.

    >>> grid_cells((2, 4), 2).tolist()
    [[1, 1, 2, 2], [3, 3, 4, 4]]
    """
    rows, columns = (torch.arange(side) * grid // side for side in size)
    return 1 + rows[:, None] * grid + columns


def draw_hidden(count: int, seed: int, how: str) -> Tensor:
    """Numbers of the superpixels 1..count that are hidden.

    how: "half" of them, rounded up; "with_replacement", so many numbers of 0..count, of which 0
        hides nothing and a repeated one counts once.
    """
    generator = torch.Generator().manual_seed(seed)
    if how == "with_replacement":
        return torch.randint(count + 1, ((count + 1) // 2,), generator=generator)
    return 1 + torch.randperm(count, generator=generator)[: (count + 1) // 2]


def halved(images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """x1 and x2, (B, 3, H, W), whose sum is x.  visible: (B, H, W) bool, in x1.

    Images are normalised, so what is hidden is the mean colour, 0.
    """
    shown = visible[:, None]
    return images * shown, images * ~shown


def visible_share(visible: Tensor) -> Tensor:
    """w1, (B,) in 0..1: of the pixels."""
    return visible.float().mean(dim=(1, 2))


def complementarity(
    views: list[tuple[Tensor, Tensor]], share: Tensor, tags: Tensor
) -> dict[str, Tensor]:
    """``tcp, tcp_refined, cpcr_1, cpcr_2`` of every image, (B,) each.

    views: (C, R) of x, x1 and x2, (B, K, H, W) signed and (B, K + 1, H, W).  share: w1, (B,).
    tags: (B, K).
    """
    share = share.to(views[0][0].dtype)
    weights = (torch.ones_like(share), share, 1 - share)
    c, c_1, c_2 = (tagged(cam, tags, w) for (cam, _), w in zip(views, weights, strict=True))
    r, r_1, r_2 = (tagged(own[:, 1:], tags, w) for (_, own), w in zip(views, weights, strict=True))
    terms = {"tcp": l1((c_1 + c_2).detach(), c), "tcp_refined": l1(r, r_1 + r_2)}
    c, c_1, c_2 = (with_background(m.detach()) for m in (c, c_1, c_2))
    r_1, r_2 = (with_background(m) for m in (r_1, r_2))
    return terms | {
        "cpcr_1": top_fraction_mean((only_maxima(c - c_1) - r_2).abs(), TOP),
        "cpcr_2": top_fraction_mean((only_maxima(c - c_2) - r_1).abs(), TOP),
    }


def tagged(maps: Tensor, tags: Tensor, weights: Tensor) -> Tensor:
    """Each class over its maximum, times its image's weight (B,); 0 without the tag."""
    return max_norm(maps) * (weights[:, None] * tags.to(maps.dtype))[:, :, None, None]


class RegionCorrelation(PixelCorrelation):
    """PRCM: ``r = PCM(m) + P m``, with P of `attention`.

    f10 makes keys of regions as f9 makes queries of pixels.  keys, scale: see the module.
    """

    def __init__(self, *, keys: str = KEYS[0], scale: str = SCALES[0], **sizes: Any) -> None:
        """sizes: of `PixelCorrelation`."""
        super().__init__(**sizes)
        self.keys, self.scale = keys, scale
        self.f10 = nn.Conv2d(self.f9.in_channels, self.f9.out_channels, kernel_size=1, bias=False)
        nn.init.xavier_uniform_(self.f10.weight, gain=4)

    def forward(self, maps: Tensor, taps: Tensor) -> Tensor:
        """r, (B, K + 1, h, w), not negative.  maps: m of `stretched_maps`."""
        return self.correlated(maps, self.stack(taps))

    def correlated(self, maps: Tensor, stack: Tensor) -> Tensor:
        """r from what f9 and f10 read, (B, 3 + widths, h, w)."""
        features = self.f9(stack)
        keys = self.f10(regions(maps, stack)[..., None]).relu()[..., 0]
        weights = attention(features.relu(), keys, layout=self.keys, scale=self.scale)
        return correlated(maps, features) + weights * maps


def regions(maps: Tensor, stack: Tensor) -> Tensor:
    """Mean features of every region, (B, C, M): weights are the softmax of a map over its pixels.

    maps: (B, M, h, w) in 0..1.  stack: (B, C, h, w).
    """
    shares = maps.flatten(2).softmax(dim=2)
    return torch.bmm(stack.flatten(2).to(shares.dtype), shares.transpose(1, 2))


def attention(queries: Tensor, keys: Tensor, *, layout: str, scale: str) -> Tensor:
    """P, (B, M, h, w): of each region the softmax over pixels of key times query.

    queries: (B, C, h, w).  keys: (B, C, M).  layout: "transposed", or "reinterpreted" as (M, C).
    scale: products are over the root of the number of "features", C, or of "maps", M.
    """
    batch, channels, count = keys.shape
    by_region = keys.transpose(1, 2) if layout == "transposed" else keys.reshape(batch, count, -1)
    size = math.sqrt(channels if scale == "features" else count)
    products = torch.bmm(by_region, queries.flatten(2).to(by_region.dtype)) / size
    return products.softmax(dim=2).reshape(batch, count, *queries.shape[2:])
