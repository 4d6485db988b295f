"""A training step of CONTA and of ECS-Net (reconstruction) on the paper's network, at 64 px."""

import pytest
import torch
from torch import nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import make_optimiser
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.networks.resnet38d import ResNet38d, ResNet38dSpec
from aeft_lib.networks.tapped import Tapped
from aeft_lib.rivals.conta import Conta
from aeft_lib.rivals.ecsnet import EcsNet
from aeft_lib.studies.profiles import VOC

K = 3


@pytest.fixture(scope="module")
def backbone() -> ResNet38d:
    torch.manual_seed(0)
    return ResNet38dSpec(weights="none").build()


def batch() -> Batch:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, 64, 64, dtype=torch.uint8)
    labels[:, :32] = 2
    return Batch(images=images, tags=torch.tensor([[False, True, False]]), labels=labels)


def changed(network: nn.Module, method: Conta | EcsNet, names: set[str]) -> set[str]:
    """Which of these parameters a step of the paper's optimiser moves; its terms are finite."""
    own = dict(network.train().named_parameters())
    before = {name: own[name].detach().clone() for name in names}
    objective = Objective(method.measure, method.combine)
    stepper = Stepper(network, make_optimiser(network, VOC.schedule), objective, PLAIN)
    terms = stepper.step(batch(), progress=0.5)
    assert all(term.isfinite() for term in terms.values())
    return {name for name in names if not torch.equal(own[name], before[name])}


def test_conta(backbone):
    method = Conta().fitted(64 // backbone.stride)
    network = method.build(backbone, K)
    network.context.confounders.uniform_()
    names = {"joined.weight", "head.fc9.weight", "backbone.b7.conv_branch2b2.weight"}
    assert changed(network, method, names) == names


def test_ecsnet(backbone):
    method = EcsNet()
    network = method.build(Tapped(backbone), K)
    names = {"refinement.f9.weight", "head.fc9.weight", "backbone.plain.b3.conv_branch2a.weight"}
    assert changed(network, method, names) == names
