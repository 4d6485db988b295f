"""A step of what other methods train after the classifier, and of readers, at 64 px.

On the networks of the paper's scale: ResNet38d, and ResNet-50 for IRNet's family.
"""

from types import SimpleNamespace

import numpy as np
import one_step
import pytest
import torch
from torch import nn

from aeft_lib.data.collages import SceneSpec
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import make_optimiser
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.networks.levels import LevelsSpec
from aeft_lib.networks.resnet50 import ResNet50Spec
from aeft_lib.paper.classifier import Classification
from aeft_lib.parts.boundary import BoundaryLoss
from aeft_lib.rivals.advcam import AdvCam
from aeft_lib.rivals.irnet import PairLoss
from aeft_lib.rivals.pmm import Pus
from aeft_lib.rivals.rib import RATE, Rib
from aeft_lib.stages.affinity_nets import build_affinity_net
from aeft_lib.stages.edge_nets import build_edge_net
from aeft_lib.stages.image_reader import Picture
from aeft_lib.stages.read_each import Others
from aeft_lib.stages.train_affinity import _combine, _measure

SIDE, K = one_step.SIDE, 3


def images(count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIDE, SIDE, generator=generator)


def moved(network: nn.Module, measure: object, combine: object, batch: Batch) -> set[str]:
    """First parts of the names of the weights that a step moves; its terms are finite."""
    before = {name: p.detach().clone() for name, p in network.train().named_parameters()}
    optimiser = make_optimiser(network, one_step.SCHEDULE)
    terms = Stepper(network, optimiser, Objective(measure, combine), PLAIN).step(batch)
    assert all(term.isfinite() for term in terms.values())
    after = network.named_parameters()
    return {name.split(".")[0] for name, p in after if not torch.equal(p, before[name])}


def test_affinity_net_on_resnet38d():
    backbone = SimpleNamespace(build=lambda **_: one_step.resnet38d())
    network = build_affinity_net(SimpleNamespace(backbone=backbone, seed=0))
    labels = torch.zeros(1, SIDE // 8, SIDE // 8, dtype=torch.uint8)
    labels[:, :4] = 2
    batch = Batch(images=images(), labels=labels)

    def measure(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return _measure(network, batch, radius=5)

    assert {"f8_3", "f8_4", "f8_5", "f9"} <= moved(network, measure, _combine, batch)


@pytest.mark.parametrize("loss", [PairLoss(), BoundaryLoss()], ids=["irnet", "bes"])
def test_edges_on_resnet50(loss):
    spec = SimpleNamespace(backbone=LevelsSpec(ResNet50Spec(weights="none")), seed=0)
    labels = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    labels[:, : SIDE // 2] = 1
    batch = Batch(images=images(), labels=loss.reduced(torch.stack([loss.targets(labels[0])])))

    def measure(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return loss.measure(network(batch.images)[:, 0].float(), batch.labels)

    names = moved(build_edge_net(spec), measure, loss.combine, batch)
    assert names
    assert "backbone" not in names


def test_a_network_with_pus_on_resnet38d():
    method, labels = Pus(hidden=16), torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    labels[:, : SIDE // 2] = 2
    network = method.build(one_step.resnet38d(), K)
    batch = Batch(images=images(), labels=labels)
    names = moved(network, method.measure, method.combine, batch)
    assert len(names - {"backbone"}) >= 1


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Classification().build(one_step.resnet38d(), 9).eval()


def picture() -> Picture:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Picture(0, pixels, torch.arange(9) == 2)


@pytest.mark.parametrize(
    "reader", [AdvCam(steps=2), Rib(steps=2, rate=RATE, others=2)], ids=["advcam", "rib"]
)
def test_readers_climb_and_leave_the_network_as_it_was(reader, network):
    reader = reader.fitted((1.0,), brief=False)
    before = {name: p.clone() for name, p in network.state_dict().items()}
    others = Others(SceneSpec("train", 8, SIDE), None, 0)
    (made,) = reader.read(Classification(), network, [picture()], others, {})
    assert made.cam.shape == (1, SIDE, SIDE)
    assert made.cam.isfinite().all()
    assert set(made.numbers) == set(reader.names)
    assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())
