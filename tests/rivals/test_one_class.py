"""A data set of one class: a step of every method, its terms finite, on a tiny backbone.

One image has the class, the other none, so that sums over absent or kept classes are empty.
"""

from functools import partial

import pytest
import torch
from golden_cases import TinyBackbone
from torch import nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule, make_optimiser
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.networks.tapped import Tapped
from aeft_lib.paper.classifier import CamMethod, Classification
from aeft_lib.parts.superpixels import Superpixels
from aeft_lib.rivals.bes import Bes
from aeft_lib.rivals.conta import Conta
from aeft_lib.rivals.cpn import Cpn
from aeft_lib.rivals.ecsnet import EcsNet
from aeft_lib.rivals.icd import Icd
from aeft_lib.rivals.occse import OcCse
from aeft_lib.rivals.pmm import Pus
from aeft_lib.rivals.rrm import Reliable
from aeft_lib.rivals.sccam import ScCam
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


def step(network: nn.Module, method: object, given: Batch, **judges: nn.Module) -> dict:
    """The terms of a step; some weight moves, all stay finite."""
    before = {name: p.detach().clone() for name, p in network.train().named_parameters()}
    objective = Objective(partial(method.measure, **judges), method.combine)
    terms = Stepper(network, make_optimiser(network, SCHEDULE), objective, PLAIN).step(given)
    assert all(term.isfinite() for term in terms.values()), terms
    after = dict(network.named_parameters())
    assert all(p.isfinite().all() for p in after.values())
    assert any(not torch.equal(p, before[name]) for name, p in after.items())
    return terms


def build(method: CamMethod, backbone: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return method.build(backbone, K)


@pytest.mark.parametrize("method", [Bes(), Conta().fitted(SIDE // 4)], ids=["bes", "conta"])
def test_classifiers(method, images):
    step(build(method, TinyBackbone()), method, batch(images))


@pytest.mark.parametrize("method", [Seam(), Cpn(grid=2), EcsNet()], ids=["seam", "cpn", "ecsnet"])
def test_classifiers_with_a_refinement(method, images):
    step(build(method, Tapped(TinyBackbone())), method, batch(images))


def test_occse_keeps_no_class(images):
    """The only class is erased, so nothing is left for the judge to keep."""
    judge = Classification().build(TinyBackbone(), K).eval().requires_grad_(False)
    terms = step(build(OcCse(), TinyBackbone()), OcCse(), batch(images), oc=judge)
    assert terms["p_kept"] == 0


def test_sccam_divides_one_class(images):
    method, clusters = ScCam(subclasses=3), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    step(build(method, TinyBackbone()), method, batch(images, clusters))


def test_icd(images):
    method = Icd(superpixels=Superpixels(count=4), width=8)
    owners = torch.arange(SIDE)[:, None].expand(SIDE, SIDE) // (SIDE // 4)
    maps = owners.to(torch.uint8).expand(2, 1, SIDE, SIDE)
    step(build(method, TinyBackbone()), method, batch(images, maps))


@pytest.mark.parametrize(
    ("method", "maps"),
    [(Pus(hidden=8), 0), (Reliable(hidden=8, label_side=16), 1), (Static(hidden=8), 2)]
    + [(Dynamic(hidden=8), 1)],
    ids=["pus", "rrm", "ssdd_static", "ssdd_dynamic"],
)
def test_segmenters(method, maps, images):
    """maps: label maps of a sample; 0: one without an axis for it."""
    given = batch((images * 255).round())
    labels = given.labels if maps == 0 else given.labels[:, None].repeat(1, maps, 1, 1)
    if maps == 2:
        labels[:, 1] = labels[:, 1].flip(-2)
    step(build(method, TinyBackbone()), method, given._replace(labels=labels))
