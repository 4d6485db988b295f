"""A step of the rivals on the papers' networks, at 64 px.

Of classifiers, of AffinityNet and of a segmenter on ResNet38d, a training step; of AdvCAM and RIB
on ResNet-50, as in their papers, the reading of an image.
"""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from aeft_lib.data.collages import SceneSpec
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import make_optimiser
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.networks.resnet38d import ResNet38d, ResNet38dSpec
from aeft_lib.networks.resnet50 import ResNet50Spec
from aeft_lib.networks.tapped import Tapped
from aeft_lib.paper.classifier import CamMethod, Classification
from aeft_lib.paper.gpp import Gap
from aeft_lib.parts.windows import RefinedCrops
from aeft_lib.refinement.affinity_net import AffinityNet
from aeft_lib.rivals.advcam import AdvCam
from aeft_lib.rivals.bes import Bes
from aeft_lib.rivals.conta import Conta
from aeft_lib.rivals.cpn import Cpn
from aeft_lib.rivals.ecsnet import EcsNet
from aeft_lib.rivals.occse import OcCse
from aeft_lib.rivals.pmm import Pus
from aeft_lib.rivals.rib import Rib
from aeft_lib.rivals.sccam import ScCam
from aeft_lib.rivals.seam import Seam
from aeft_lib.stages import train_affinity
from aeft_lib.stages.image_reader import Picture
from aeft_lib.stages.map_source import WINDOWS_FILE
from aeft_lib.stages.multi_crop import MultiCrop, windows
from aeft_lib.stages.read_each import Others
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.train_on_windows import window_source
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


SCENES = SceneSpec("train", 6, 64)


def test_windows_of_pmm(backbone, tmp_path):
    """SEAM learns from a window, and is read in one of the whole image."""
    boxes = windows((64, 64), 1.5, crop=64, stride=43)
    tags = torch.zeros(len(boxes), K, dtype=torch.uint8)
    tags[:, 1] = 1
    tensors = {"boxes": torch.tensor(boxes), "places": torch.zeros(len(boxes), 2).long()}
    save_file(tensors | {"tags": tags}, tmp_path / WINDOWS_FILE)
    artefact = Artefact("", "", tmp_path, {}, SimpleNamespace(reader=MultiCrop()))
    spec = SimpleNamespace(scenes=replace(SCENES, count=1), view=None)
    source = window_source(spec, artefact, backbone.normalise)
    window = source(torch.arange(1), torch.Generator().manual_seed(0), slice(None))
    assert window.images.shape == (1, 3, 64, 64)
    method = Seam()
    network = method.build(Tapped(backbone), K)
    names = {"refinement.f9.weight", "head.fc9.weight", "backbone.plain.b3.conv_branch2a.weight"}
    assert changed(network, method, names, window) == names
    reader = RefinedCrops((1.0,), crop=64, stride=64)
    image, ids = spec.scenes.open().image(0), torch.tensor([1])
    with torch.inference_mode():
        ((cam, logits),) = reader.from_images(method, network.eval(), [image], [ids])
    assert (cam.shape, logits.shape) == ((1, 64, 64), (K,))
    assert 0 <= cam.min() <= cam.max() <= 1


def test_pus(backbone):
    method = Pus(hidden=16, beta=10.0)
    names = {"head.conv6.weight", "head.conv7.weight", "backbone.b3.conv_branch2a.weight"}
    assert changed(method.build(backbone, K), method, names) == names


def test_affinity_net(backbone):
    """Pairs of the background, of the object, and of both."""
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :4] = 2
    measure = partial(train_affinity._measure, radius=5)
    method = SimpleNamespace(measure=measure, combine=train_affinity._combine)
    names = {"f8_3.weight", "f8_5.weight", "f9.weight", "backbone.b3.conv_branch2a.weight"}
    given = batch()._replace(labels=labels)
    assert changed(AffinityNet(backbone=backbone), method, names, given) == names


def read(reader: AdvCam | Rib, trained_stages: int, steps: tuple[int, int]) -> list:
    """Readings of one image after fewer and after more steps; the network is as it was.

    Its tag is the class that a network without training sees most of.
    """
    torch.manual_seed(0)
    spec = ResNet50Spec(trained_stages=trained_stages, weights="none")
    others, method = Others(SCENES, None, 0), Classification(Gap())
    network = method.build(spec.build(), len(SCENES.open().classes)).eval()
    image = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        seen = network(network.backbone.normalise(torch.from_numpy(image).permute(2, 0, 1)[None]))
    tags = torch.zeros(network.num_classes, dtype=torch.bool)
    tags[seen.logits.argmax()] = True
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    picture, readings = Picture(0, image, tags), []
    for count in steps:
        made = replace(reader, steps=count).read(method, network, [picture], others, {})
        readings += made
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    for own in readings:
        assert own.cam.shape == (1, 64, 64)
        assert 0 <= own.cam.min() < own.cam.max() <= 1
        assert np.isfinite(list(own.numbers.values())).all()
    return readings


def test_advcam():
    """A step in the pixels: the target rises, and the maps of both states are added up."""
    plain, stepped = read(AdvCam((1.0,), (1.0,), reach=0.16), 4, (1, 2))
    assert plain.numbers["target_rise"] == 1
    assert stepped.numbers["target_rise"] > 1
    assert not torch.equal(plain.cam, stepped.cam)


def test_rib():
    """A step in the weights of the last two stages, on the image and two others."""
    reader = Rib((1.0,), rate=1e-3, others=2, adapts="trained", covers=1.0)
    plain, stepped = read(reader, 2, (1, 2))
    assert (plain.numbers["states"], stepped.numbers["states"]) == (1, 2)
    assert not torch.equal(plain.cam, stepped.cam)
