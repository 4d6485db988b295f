"""The paper's network at 32 px on a CPU: steps of both phases, memory, the schedules.

No larger, since a CPU without instructions for bf16 takes minutes for a step at 64 px.
"""

from dataclasses import replace

import pytest
import torch

from aeft_lib.data.scene import opened
from aeft_lib.engine.device import has_bf16
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import make_optimiser
from aeft_lib.engine.step import PLAIN, Compute, Objective, Stepper
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.networks.state import build
from aeft_lib.paper.classifier import Classification
from aeft_lib.paper.gpp import Pyramid
from aeft_lib.paper.triplet import CORRECTED, REFERENCE
from aeft_lib.studies import profiles
from aeft_lib.studies.profiles import VOC, VOC_CORRECTED
from aeft_lib.studies.settings import OPTIMISER_QUIRKS
from aeft_lib.studies.work import forward, saved_bytes

RESNET38D = ResNet38dSpec(weights="none")
BF16 = Compute("bf16", checkpointing=True)
K = 4
SECOND = replace(VOC.erasing, quirks=OPTIMISER_QUIRKS)
CLASSIFICATION = Classification(Pyramid(levels=(1, 2, 4, 8), printed=True))


@pytest.fixture(scope="module")
def network():
    return build(lambda: CLASSIFICATION.build(RESNET38D.build(), K), 0).train()


def objective(method) -> Objective:
    return Objective(method.measure, method.combine)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    tags = torch.eye(K, dtype=torch.bool)[:2]
    images = torch.randn(2, 3, 32, 32, generator=generator)
    return Batch(images=images, tags=tags, noise=torch.rand(2, 2, generator=generator))


@pytest.mark.parametrize("method", [CLASSIFICATION, REFERENCE], ids=["first phase", "second phase"])
def test_two_steps_of_each_phase(network, method):
    # Without instructions for it, bf16 takes twenty times longer; its gradients are compared below.
    precision = VOC.compute.precision if has_bf16(torch.device("cpu")) else "fp32"
    before = {name: t.clone() for name, t in network.state_dict().items()}
    schedule = VOC.schedule if method is CLASSIFICATION else SECOND.schedule()
    stepper = Stepper(
        network,
        make_optimiser(network, schedule),
        objective(method),
        replace(VOC.compute, lookahead=0, precision=precision),
    )
    for _ in range(2):
        torch.manual_seed(0)
        terms = stepper.step(batch())
        assert all(value.isfinite() for value in terms.values())
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    changed = {name for name, t in network.state_dict().items() if not torch.equal(t, before[name])}
    assert (
        changed <= trained
    )  # frozen layers, statistics and affine parameters of every batch norm stay
    assert {
        "backbone.b3.conv_branch2a.weight",
        "backbone.b7.conv_branch2b2.weight",
        "head.fc9.weight",
    } <= changed
    assert not any(
        "bn" in name or name.startswith(("backbone.conv1a", "backbone.b2")) for name in changed
    )


def test_saved_activations_of_a_320_px_image():
    """The reference keeps 385 MiB in float32, ours 220 and once a pass up to 200 of weights."""
    size = (320, 320)
    plain, eight, ours = (
        forward(RESNET38D, size, compute, together).saved / 2**20 / together
        for compute, together in ((PLAIN, 1), (PLAIN, 8), (BF16, 1))
    )
    assert 220 < plain < 235  # with few cells few norms are folded
    assert 240 < eight < 250
    assert ours <= 60


def test_what_is_counted_without_contents_is_what_a_real_pass_keeps(network):
    """The same hooks on real tensors at 32 px, against the count on empty ones."""
    network.backbone.checkpointing = False
    features = network.backbone.trunk(batch().images)
    real = saved_bytes(lambda: network.from_trunk(features).cam, network)
    counted = forward(RESNET38D, (32, 32), PLAIN, together=2).saved
    assert real == pytest.approx(counted, rel=0.02)


def test_forward_operations_are_the_papers():
    assert forward(RESNET38D, (320, 320)).flops == pytest.approx(411e9, rel=0.01)


@pytest.mark.parametrize(
    ("method", "computes"),
    [(CLASSIFICATION, (PLAIN, BF16, Compute(checkpointing=True))), (CORRECTED, (PLAIN, BF16))],
    ids=["classification", "triplet"],
)
def test_gradients_of_bf16_with_checkpointing_are_those_of_float32(network, method, computes):
    gradients = []
    for compute in computes:
        network.backbone.checkpointing = compute.checkpointing
        stepper = Stepper(
            network, torch.optim.SGD(network.parameters(), lr=0.0), objective(method), compute
        )
        torch.manual_seed(5)
        stepper.step(batch())
        gradients.append(
            torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        )
    plain, half, *again = gradients
    # bf16 rounds by 4e-3 in each of 38 layers and turns some ReLUs and mask pixels: 1 - cosine is
    # 0.02, with a margin of 10; gradients that have nothing in common have a cosine of 0.
    assert torch.nn.functional.cosine_similarity(plain, half, dim=0) > 0.8
    assert all((plain - other).abs().max() <= 1e-5 * plain.abs().max() for other in again)


def test_the_schedules_are_the_references():
    """Batch 8 for 18 of 40 epochs, then 32; one poly decay.

    With the quirk it ends at 0.45 of the rate.
    """
    first, second = VOC.schedule, SECOND.schedule()
    steps = first.epochs * first.epoch_steps(10582)
    assert steps == 18 * 1322
    assert (first.batch_size, second.batch_size) == (8, 32)
    assert (first.lr, first.head_lr, first.momentum, first.weight_decay) == (0.01, 0.01, 5e-4, 5e-4)
    assert second.factor(0, 7260) == pytest.approx(
        first.factor(steps, steps)
    )  # it goes on where the first phase ends
    assert second.factor(22 * 330 - 1, 22 * 330) == pytest.approx(0.45, abs=0.005)
    corrected = VOC_CORRECTED.erasing.schedule()
    assert corrected.factor(22 * 330 - 1, 22 * 330) < 1e-3
    assert (corrected.momentum, corrected.head_lr) == (0.9, 10 * corrected.lr)
    assert VOC_CORRECTED.schedule.factor(steps, steps) == pytest.approx(corrected.factor(0, 7260))


@pytest.mark.parametrize(
    ("profile", "momentum", "lr"), [(VOC, 5e-4, 0.01), (VOC_CORRECTED, 0.9, 0.001)]
)
def test_affinity_net_has_the_classifiers_optimiser_and_faster_new_layers(profile, momentum, lr):
    """Batch 8, 8 epochs, lr 0.01, new layers 10x; weight decay passed as momentum here too."""
    schedule = profile.refinement.schedule
    assert (schedule.momentum, schedule.lr, schedule.head_lr, schedule.weight_decay) == (
        momentum,
        lr,
        10 * lr,
        5e-4,
    )
    assert (schedule.epochs, schedule.batch_size, schedule.decay_steps, schedule.optimiser) == (
        8,
        8,
        0,
        "sgd",
    )


@pytest.mark.parametrize("name", ["voc", "voc-corrected", "coco", "voc-lite"])
def test_profiles_of_real_photos_are_whole_without_the_data(name, monkeypatch, tmp_path):
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path))
    monkeypatch.setenv("AEFT_COCO_ROOT", str(tmp_path))
    opened.cache_clear()  # another test's photos may have the same spec
    profile = profiles.get(name)
    assert profile.map_side == (16 if name == "voc-lite" else 40)
    with pytest.raises(ValueError, match=r"must name the folder that holds"):
        _ = profile.num_classes


def test_classes_of_voc_can_be_chosen(monkeypatch):
    monkeypatch.setenv("AEFT_VOC_CLASSES", "cat, dog")
    assert profiles.get("voc").scored.classes == ("cat", "dog")
    assert profiles.get("laptop") is profiles.LAPTOP
    monkeypatch.setenv("AEFT_VOC_CLASSES", "cat,unicorn")
    with pytest.raises(
        ValueError, match="AEFT_VOC_CLASSES=cat,unicorn: class 'unicorn' is none of VOC's"
    ):
        profiles.get("voc-lite")
