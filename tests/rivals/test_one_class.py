"""A data set of one class: a step of methods on a tiny backbone, its terms finite.

One image has the class, the other none.  Tests of other methods have theirs in their own files.
"""

import pytest
import torch
from golden_cases import TinyBackbone
from torch import nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule, make_optimiser
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.networks.tapped import Tapped
from aeft_lib.paper.classifier import CamMethod
from aeft_lib.parts.superpixels import Superpixels
from aeft_lib.rivals.bes import Bes
from aeft_lib.rivals.cpn import Cpn
from aeft_lib.rivals.icd import Icd
from aeft_lib.rivals.rrm import Reliable
from aeft_lib.rivals.seam import Seam
from aeft_lib.rivals.ssdd import Dynamic, Static

SIDE, K = 32, 1
SCHEDULE = Schedule(1, 2, lr=1e-3, head_lr=1e-2, weight_decay=0.0, warmup_steps=0, optimiser="sgd")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def batch(images: torch.Tensor, labels: torch.Tensor | None = None) -> Batch:
    tags, noise = torch.tensor([[True], [False]]), torch.full((2, 2), 0.25)
    if labels is None:
        labels = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
        labels[0, : SIDE // 2] = 1
    return Batch(images=images, tags=tags, noise=noise, labels=labels)


def step(network: nn.Module, method: object, given: Batch) -> None:
    """A step whose terms are finite; some weight moves, all stay finite."""
    before = {name: p.detach().clone() for name, p in network.train().named_parameters()}
    objective = Objective(method.measure, method.combine)
    terms = Stepper(network, make_optimiser(network, SCHEDULE), objective, PLAIN).step(given)
    assert all(term.isfinite() for term in terms.values()), terms
    after = dict(network.named_parameters())
    assert all(p.isfinite().all() for p in after.values())
    assert any(not torch.equal(p, before[name]) for name, p in after.items())


def build(method: CamMethod, backbone: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return method.build(backbone, K)


def test_bes(images):
    step(build(Bes(), TinyBackbone()), Bes(), batch(images))


@pytest.mark.parametrize("method", [Seam(), Cpn(grid=2)], ids=["seam", "cpn"])
def test_two_views(method, images):
    step(build(method, Tapped(TinyBackbone())), method, batch(images))


def test_icd(images):
    method = Icd(superpixels=Superpixels(count=4), width=8)
    owners = torch.arange(SIDE)[:, None].expand(SIDE, SIDE) // (SIDE // 4)
    maps = owners.to(torch.uint8).expand(2, 1, SIDE, SIDE)
    step(build(method, TinyBackbone()), method, batch(images, maps))


@pytest.mark.parametrize(
    ("method", "maps"),
    [(Reliable(hidden=8, label_side=16), 1), (Static(hidden=8), 2), (Dynamic(hidden=8), 1)],
    ids=["rrm", "ssdd_static", "ssdd_dynamic"],
)
def test_segmenters(method, maps, images):
    """maps: label maps of a sample."""
    given = batch((images * 255).round())
    labels = given.labels[:, None].repeat(1, maps, 1, 1)
    if maps == 2:
        labels[:, 1] = labels[:, 1].flip(-2)
    step(build(method, TinyBackbone()), method, given._replace(labels=labels))
