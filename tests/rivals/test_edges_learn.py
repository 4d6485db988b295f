"""What would prove edges wrong: taught by true labels, they must lie on boundaries and help seeds.

A world of one coloured rectangle a picture, whose "backbone" sees local contrast alone.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.maps.labels import VOID
from aeft_lib.parts.boundary import BoundaryLoss
from aeft_lib.refinement import affinity
from aeft_lib.refinement.edge_net import EdgeNet, at_quarter
from aeft_lib.refinement.edge_walk import enlarged, walk
from aeft_lib.refinement.random_walk import propagate
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
    """Of the object, at the best threshold, where the label is known."""
    known, truth = scores[0][label != VOID], (label == 1)[label != VOID]
    found = [(known > t, truth) for t in torch.arange(0.02, 1, 0.02)]
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


# --- against AffinityNet --------------------------------------------------------------------------


def outlined() -> tuple[Tensor, Tensor]:
    """Pictures and labels of a square that is an outline alone: inside and outside look alike.

    The outline is one cell wide and void, as in VOC's masks.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.full((COUNT, 3, SIDE, SIDE), 0.3)
    labels = torch.zeros(COUNT, SIDE, SIDE, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = (4 * torch.randint(2, 5, (2,), generator=generator)).tolist()
        for inset, colour, value in ((0, 0.9, VOID), (4, 0.3, 1)):
            rows, columns = (slice(at + inset, at + 36 - inset) for at in (top, left))
            image[:, rows, columns], label[rows, columns] = colour, value
    return images, labels


def affinities(images: Tensor, labels: Tensor) -> list[affinity.SparseAffinity]:
    """AffinityNet's of a layer on the same maps, taught by the same pairs."""
    torch.manual_seed(0)
    maps, pairs = torch.cat(Contrast()(images), dim=1), affinity.pair_labels(at_quarter(labels), 5)
    layer = nn.Conv2d(maps.shape[1], 16, kernel_size=1, bias=False)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(STEPS):
        optimiser.zero_grad()
        found = affinity.pair_affinity(F.elu(layer(maps)), 5)
        affinity.mean_loss(*affinity.loss_sums(found, pairs)).loss.backward()
        optimiser.step()
    size = tuple(maps.shape[-2:])
    with torch.no_grad():
        found = affinity.pair_affinity(F.elu(layer(maps)), 5)
    return [affinity.sparse_affinity(values, size, 5) for values in found]


def test_edges_of_true_labels_help_seeds_more_than_affinities_do():
    """Of outlines: what looks alike has affinity 1, whatever was learned; an edge parts it."""
    images, labels = outlined()
    network, matrices = taught(PairLoss(radius=5), images, labels), affinities(images, labels)
    gains = []
    with torch.no_grad():
        edges = network(images)[:, 0].sigmoid()
    for edge, matrix, label in zip(edges, matrices, labels, strict=True):
        cam, cells = torch.zeros(1, SIDE // 4, SIDE // 4), at_quarter(label)
        ys, xs = (cells == 1).nonzero().T
        cam[0, ys.min() : ys.min() + 4, xs.min() : xs.min() + 4] = 1.0
        walked = walk(cam, edge, steps=64), propagate(matrix, cam, beta=10, steps=64)
        outside = [float(scores[0][cells == 0].sum() / scores.sum()) for scores in walked]
        assert outside[0] < 0.01 < 0.3 < outside[1]
        seed, *after = (iou(enlarged(s, (SIDE, SIDE)), label) for s in (cam, *walked))
        gains.append([own - seed for own in after])
    ours, theirs = torch.tensor(gains).mean(dim=0).tolist()
    assert ours > 0.3
    assert theirs < 0.1
