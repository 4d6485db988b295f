"""The edge network: the original's head and its two passes, mirror images, padding, other strides."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_networks import drawn
from torch import Tensor, nn

from aeft_lib.refinement.edge_net import EdgeHead, EdgeNet, grid_of, merged

ON_MAPS, MERGED = 1e-5, 1e-6  # tests/golden_rivals/README.md
SALTS = ("", "holdout")


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("irnet").items()}


def part(case: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.split("/")[1]: value for key, value in case.items() if key.split("/")[0] == name}


def golden_head(salt: str, channels: list[int]) -> EdgeHead:
    """A head with the weights of the recipe."""
    head = EdgeHead(channels=channels, strides=(4, 4, 8, 16, 16))
    for name, tensor in head.state_dict().items():
        kind = name.split(".")
        theirs = f"fc_edge6.{kind[-1]}"
        if kind[0] == "levels":
            theirs = f"fc_edge{int(kind[1]) + 1}.{'.'.join(kind[2:])}"
        tensor.copy_(torch.from_numpy(drawn(theirs, tuple(tensor.shape), salt)))
    return head


def test_golden_edge_head(case, assert_near):
    """The salt of the weights is that of one of both sets of vectors."""
    given = part(case, "head")
    shapes = [tuple(given[f"x{i}_shape"].tolist()) for i in range(1, 6)]
    maps = [
        torch.from_numpy(
            np.maximum(0, np.random.Generator(np.random.PCG64(seed)).standard_normal(shape))
        ).float()
        for seed, shape in zip(given["x_seeds"].tolist(), shapes, strict=True)
    ]
    channels = [shape[1] for shape in shapes]
    with torch.no_grad():
        found = [golden_head(salt, channels)(maps, shapes[1][2:]) for salt in SALTS]
    theirs = given["edge_logits"]
    nearest = min(found, key=lambda logits: (logits - theirs).abs().max().item())
    assert_near(nearest, theirs, ON_MAPS, "edge logits")


def test_golden_edges_of_an_image_and_its_mirror_image(case, assert_near):
    given = part(case, "test")
    grid = grid_of(given["hw"].tolist())
    edge = merged(given["raw_edge_logits"], grid).sigmoid()
    assert_near(edge, given["edge"], MERGED, "edge")


def test_edges_of_a_mirrored_image_are_the_mirrored_edges():
    class Maps(nn.Module):
        """Convolutions that a mirror image changes."""

        channels, strides = (4, 6), (4, 8)

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Conv2d(3, c, s, stride=s)
                for c, s in zip(self.channels, self.strides, strict=True)
            )

        def forward(self, images: Tensor) -> list[Tensor]:
            return [layer(images) for layer in self.layers]

    torch.manual_seed(0)
    network = EdgeNet(backbone=Maps())
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        plain, mirrored = (network.both_ways(x) for x in (images, images.flip(-1)))
        # The same passes in another order; float32 through three layers.
        torch.testing.assert_close(plain, mirrored.flip(-1), rtol=0, atol=1e-5)
        one_way = network(images)[:, 0]
    assert (plain - one_way).abs().max() > 0.01
    assert not any(p.requires_grad for p in network.backbone.parameters())
    assert all(p.requires_grad for p in network.head.parameters())
    # Larger than the padding, or no whole cells: nothing is cut off.
    for size, least in (((33, 47), 0), ((33, 47), 64), ((80, 20), 32)):
        assert network.both_ways(torch.rand(1, 3, *size), least=least).shape[1:] == grid_of(size)


def test_a_finer_map_is_averaged_and_a_coarser_one_enlarged():
    head = EdgeHead(channels=(2, 3, 4), strides=(2, 4, 16))
    maps = [torch.rand(1, 2, 16, 16), torch.rand(1, 3, 8, 8), torch.rand(1, 4, 2, 2)]
    assert head(maps, (8, 8)).shape == (1, 1, 8, 8)
    pooled = head(
        [F.avg_pool2d(maps[0], 2).repeat_interleave(2, 2).repeat_interleave(2, 3), *maps[1:]],
        (8, 8),
    )
    torch.testing.assert_close(pooled, head(maps, (8, 8)))
    with pytest.raises(ValueError, match=r"strides must divide 4 or be divided by it, got \[6\]"):
        EdgeHead(channels=(2, 3), strides=(4, 6))
