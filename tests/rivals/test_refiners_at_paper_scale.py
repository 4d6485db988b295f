"""A training step of what refines rivals' seeds, on the paper's networks and schedules, at 64 px."""

from dataclasses import replace
from typing import Any

import one_step
import pytest
import torch
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule, make_optimiser
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.maps.labels import VOID
from aeft_lib.networks.levels import Levels
from aeft_lib.networks.resnet50 import ResNet50Spec
from aeft_lib.parts.boundary import BoundaryLoss
from aeft_lib.refinement.edge_net import EdgeNet
from aeft_lib.rivals.cda import Pasting
from aeft_lib.rivals.irnet import PairLoss
from aeft_lib.rivals.ssdd import Static
from aeft_lib.stages import store, train_composed
from aeft_lib.stages.write_labels import TruthSpec, true_labels
from aeft_lib.studies import catalogue, pipeline, plan
from aeft_lib.studies.profiles import SMOKE, VOC_RESNET50

SIDE, K = 64, 3
SCENES = replace(SMOKE.train, count=6, size=SIDE)


def asked(row: str, stage: str) -> Any:
    """The last spec of a stage that a row asks for on VOC with the family's ResNet50."""
    specs = {}

    def obtain(made, spec, inputs=None):
        specs[made.__name__] = spec
        return store.Artefact(made.__name__, "", None, {"summary": {}}, spec)

    profile, _ = plan.with_data(VOC_RESNET50)
    pipeline.artefacts(profile, catalogue.get("rivals").row(row), 0, obtain)
    return specs[stage]


def step(
    network: nn.Module, objective: Objective, schedule: Schedule, batch: Batch
) -> tuple[dict[str, Tensor], set[str]]:
    """The terms of a step, and the tensors that it changes, statistics of norms among them."""
    before = {name: tensor.clone() for name, tensor in network.train().state_dict().items()}
    terms = Stepper(network, make_optimiser(network, schedule), objective, PLAIN).step(batch)
    assert all(term.isfinite() for term in terms.values())
    now = network.state_dict()
    return terms, {name for name in before if not torch.equal(now[name], before[name])}


def images(count: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def label_maps(count: int) -> Tensor:
    """Background, two classes side by side, and a void strip, (N, H, W)."""
    labels = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    labels[:, 20:44, :34], labels[:, 20:44, 34:] = 1, 2
    labels[:, 48:52] = VOID
    return labels


@pytest.fixture(scope="module")
def levels() -> Levels:
    torch.manual_seed(0)
    return Levels(ResNet50Spec(weights="none").build())


@pytest.mark.parametrize(("row", "loss"), [("irnet", PairLoss()), ("bes", BoundaryLoss())])
def test_edges(levels, row, loss):
    """All of the head learns from all three kinds, nothing of the backbone."""
    spec = asked(row, "train_edges")
    assert (spec.loss, spec.backbone.plain) == (loss, ResNet50Spec())
    torch.manual_seed(0)
    network = EdgeNet(backbone=levels)
    targets = loss.reduced(torch.stack([loss.targets(labels) for labels in label_maps(2)]))

    def measure(network: EdgeNet, batch: Batch) -> dict[str, Tensor]:
        return loss.measure(network(batch.images)[:, 0], batch.labels)

    objective, batch = Objective(measure, loss.combine), Batch(images=images(2), labels=targets)
    terms, changed = step(network, objective, spec.schedule, batch)
    assert len(terms) == 3
    assert all(term > 0 for term in terms.values())
    assert changed == {f"head.{name}" for name, _ in network.head.named_parameters()}


def test_composed_scenes(stored, monkeypatch, tmp_path):
    """CDA's second classifier: each batch has views of scenes, and of what is pasted on them."""
    spec = asked("cda", "train_composed")
    assert (spec.composer, spec.schedule.batch_size, spec.view.crop) == (Pasting(), 16, 512)
    view = replace(spec.view, crop=SIDE, long_side=(SIDE, SIDE + 32))
    classes = len(SCENES.open().classes)
    backbone = ResNet50Spec(weights="none")
    spec = replace(spec, scenes=SCENES, view=view, num_classes=classes, backbone=backbone)
    labels = store.obtain(true_labels, TruthSpec(SCENES, SCENES.open().truth))
    seen = []

    def fit(network, *, n_samples, batch, objective, schedule, **_):
        assert (n_samples, schedule.batch_size) == (len(SCENES.open()), 8)
        generators = (torch.Generator().manual_seed(seed) for seed in (0, 1))
        seen.extend(batch(torch.tensor([4, 1]), own, slice(0, 2)) for own in generators)
        seen.append(step(network, objective, schedule, seen[0])[1])
        return []

    monkeypatch.setattr(train_composed.loop, "fit", fit)
    monkeypatch.setattr(train_composed.fitting, "finish", lambda *_: {})
    inputs = spec.composer.prepared(store.obtain, SCENES, labels)
    train_composed.train_composed(spec, inputs, tmp_path)
    first, other, changed = seen
    assert first.images.shape == (4, 3, SIDE, SIDE)
    original, composed = first.tags[0::2], first.tags[1::2]
    tags = [torch.from_numpy(SCENES.open().tags(index)) for index in (4, 1)]
    assert torch.equal(original, torch.stack(tags))
    assert (composed & ~original).sum(dim=1).tolist() == [1, 1]
    assert (original & ~composed).sum() == 0
    assert not torch.equal(first.images, other.images)
    # Both of the last stages and the head; norms keep their statistics.
    parts = {".".join(name.split(".")[:3]) for name in changed}
    assert parts == {"backbone._tail.0", "backbone._tail.1", "head.fc8.weight", "head.fc9.weight"}
    assert not any("running" in name for name in changed)


def test_ssdd_static():
    """Both losses of two maps, on the backbone of the paper, ResNet38d, which learns too."""
    method = Static().fitted(16)
    torch.manual_seed(0)
    network = method.build(one_step.resnet38d(), K)
    tags = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    advised = label_maps(2)
    advised[:, 16:30, 10:30] = 1
    batch = Batch(images=images(2), tags=tags, labels=torch.stack([label_maps(2), advised], dim=1))
    terms, moved = one_step.step(network, method, batch)
    assert all(term.isfinite() for term in terms.values())
    assert terms["segmentation"] > 0 < terms["difference"]
    assert 0 < terms["differs"] < 1
    assert {name.split(".")[0] for name in moved} == {"head", "detectors"}
    assert network.backbone.b7.conv_branch2b2.weight.grad.any()
