"""What would prove edges wrong: taught by true labels, they must lie on boundaries and help seeds.

A world of one coloured rectangle a picture, whose "backbone" sees local contrast alone.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.parts.boundary import BoundaryLoss
from aeft_lib.refinement.edge_net import EdgeNet, at_quarter
from aeft_lib.refinement.edge_walk import enlarged, walk
from aeft_lib.rivals.irnet import PairLoss
from aeft_lib.stages.train_edges import EdgeLoss

SIDE, COUNT, STEPS = 64, 8, 60


class Contrast(nn.Module):
    """Maps of a picture at a quarter: colours, and how far they differ among neighbours."""

    channels, strides = (3, 3), (4, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cells = F.avg_pool2d(images, 4)
        largest, least = (sign * F.max_pool2d(sign * cells, 3, 1, 1) for sign in (1, -1))
        return cells, largest - least


def world() -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, H, W) in 0..1 with some noise, and their labels (N, H, W)."""
    generator = torch.Generator().manual_seed(0)
    images = 0.05 * torch.rand(COUNT, 3, SIDE, SIDE, generator=generator)
    labels = torch.zeros(COUNT, SIDE, SIDE, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = torch.randint(10, 18, (2,), generator=generator).tolist()
        colour = 0.4 + 0.5 * torch.rand(3, 1, 1, generator=generator)
        image[:, top : top + 32, left : left + 34] += colour
        label[top : top + 32, left : left + 34] = 1
    return images, labels


def taught(loss: EdgeLoss, images: Tensor, labels: Tensor) -> EdgeNet:
    torch.manual_seed(0)
    network = EdgeNet(backbone=Contrast())
    targets = loss.reduced(torch.stack([loss.targets(label) for label in labels]))
    optimiser = torch.optim.Adam(network.head.parameters(), lr=0.02)
    for _ in range(STEPS):
        optimiser.zero_grad()
        terms = loss.combine(loss.measure(network(images)[:, 0], targets))
        sum(terms.values()).backward()
        optimiser.step()
    return network


def crossing(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cells (N, h, w) that the boundary runs through or beside, and those far from it."""
    inside = F.avg_pool2d((labels == 1).float(), 4)[:, None]
    near = F.max_pool2d(inside, 3, 1, 1) + F.max_pool2d(-inside, 3, 1, 1) > 0.5
    far = F.max_pool2d(near.float(), 5, 1, 2) == 0
    return ((inside > 0) & (inside < 1))[:, 0] | near[:, 0], far[:, 0]


def iou(scores: Tensor, label: Tensor) -> float:
    """Of the object, at the best threshold."""
    found = [(scores[0] > t, label == 1) for t in torch.arange(0.02, 1, 0.02)]
    return max(float((a & b).sum() / (a | b).sum()) for a, b in found)


@pytest.mark.parametrize(
    "loss",
    [PairLoss(radius=5), BoundaryLoss(), BoundaryLoss(reduce="max")],
    ids=["irnet", "bes", "max"],
)
def test_edges_of_true_labels_lie_on_boundaries_and_help_seeds(loss):
    images, labels = world()
    network = taught(loss, images, labels)
    with torch.no_grad():
        edges = network(images)[:, 0].sigmoid()
    near, far = crossing(labels)
    # Any network without an opinion has as much on both.
    assert edges[near].mean() > 3 * edges[far].mean()
    gains = []
    for edge, label in zip(edges, labels, strict=True):
        # A seed that has found a corner of the object, and some of what lies beside it.
        cam = torch.zeros(1, SIDE // 4, SIDE // 4)
        ys, xs = (at_quarter(label) == 1).nonzero().T
        cam[0, ys.min() - 1 : ys.min() + 4, xs.min() - 1 : xs.min() + 4] = 1.0
        seed = enlarged(cam, (SIDE, SIDE))
        walked = enlarged(walk(cam, edge, steps=64), (SIDE, SIDE))
        gains.append(iou(walked, label) - iou(seed, label))
    assert sum(gains) / len(gains) > 0.1
