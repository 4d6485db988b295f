"""A training step of rivals' classifiers on the paper's network, at 64 px."""

from functools import partial

import pytest
import torch
from torch import nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import make_optimiser
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.networks.resnet38d import ResNet38d, ResNet38dSpec
from aeft_lib.networks.tapped import Tapped
from aeft_lib.paper.classifier import CamMethod, Classification
from aeft_lib.paper.gpp import Gap
from aeft_lib.rivals.bes import Bes
from aeft_lib.rivals.conta import Conta
from aeft_lib.rivals.cpn import Cpn
from aeft_lib.rivals.ecsnet import EcsNet
from aeft_lib.rivals.occse import OcCse
from aeft_lib.rivals.sccam import ScCam
from aeft_lib.rivals.seam import Seam
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
    tags, noise = torch.tensor([[False, True, False]]), torch.full((1, 1), 0.25)
    return Batch(images=images, tags=tags, noise=noise, labels=labels)


def changed(
    network: nn.Module,
    method: CamMethod,
    names: set[str],
    given: Batch | None = None,
    **judges: nn.Module,
) -> set[str]:
    """Which of these parameters a step of the paper's optimiser moves; its terms are finite."""
    own = dict(network.train().named_parameters())
    before = {name: own[name].detach().clone() for name in names}
    objective = Objective(partial(method.measure, **judges), method.combine)
    stepper = Stepper(network, make_optimiser(network, VOC.schedule), objective, PLAIN)
    terms = stepper.step(given or batch(), progress=0.5)
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


@pytest.mark.parametrize("method", [Seam(), Cpn(grid=4)], ids=["seam", "cpn"])
def test_two_views(backbone, method):
    network = method.build(Tapped(backbone), K)
    names = {"refinement.f9.weight", "head.fc9.weight", "backbone.plain.b3.conv_branch2a.weight"}
    assert changed(network, method, names) == names


def test_occse(backbone):
    method, judge = OcCse(), Classification(pooling=Gap()).build(ResNet38dSpec("none").build(), K)
    judged = judge.eval().requires_grad_(False)
    network = method.build(backbone, K)
    names = {"head.fc9.weight", "backbone.b3.conv_branch2a.weight"}
    before = {name: tensor.clone() for name, tensor in judged.state_dict().items()}
    assert changed(network, method, names, oc=judged) == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in judged.state_dict().items())


def test_sccam(backbone):
    method = ScCam(subclasses=2)
    network = method.build(backbone, K)
    clusters = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    names = {"sub_head.fc9.weight", "head.fc9.weight", "backbone.b3.conv_branch2a.weight"}
    assert changed(network, method, names, batch()._replace(labels=clusters)) == names


def test_bes(backbone):
    method = Bes()
    names = {"head.fc9.weight", "backbone.b3.conv_branch2a.weight"}
    assert changed(method.build(backbone, K), method, names) == names
