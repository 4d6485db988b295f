"""Steps in parts, in lower precision, checkpointed and compiled:

the loss and the gradient of the whole batch.
"""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import make_optimiser
from aeft_lib.engine.step import PLAIN, Compute, Objective, Stepper, split
from aeft_lib.networks.frozen_norms import FrozenNorms
from aeft_lib.paper import triplet
from aeft_lib.paper.classifier import CamClassifier, Classification
from aeft_lib.paper.gpp import PyramidPooling
from aeft_lib.studies.profiles import SMOKE

K, B = 3, 6
KINDS = {
    "classification": Classification(),
    "corrected": triplet.CORRECTED,
    "reference": triplet.REFERENCE,
    "rigid": replace(triplet.CORRECTED, attract="rigid"),
}


class TinyBackbone(FrozenNorms):
    """Two convolutions, the first frozen; stride 4."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 4, stride=4).requires_grad_(False)
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.freeze_norms()

    def trunk(self, images):
        return self.first(images)

    def tail(self, features):
        return self.run(self.second, features)


def network(checkpointing: bool = False, dtype: torch.dtype = torch.float32) -> CamClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = TinyBackbone()
        pooling = PyramidPooling(num_classes=K, levels=(1, 2, 4), fusion="gated")
        built = CamClassifier(backbone=backbone, pooling=pooling, num_classes=K, hidden=8)
    backbone.checkpointing = checkpointing
    return built.train().to(dtype)


def objective(kind: str = "corrected") -> Objective:
    """Both halves of a method's loss."""
    return Objective(KINDS[kind].measure, KINDS[kind].combine)


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    """Two images of each class, and one more class in the last; random pixels in the backbone's range."""
    generator = torch.Generator().manual_seed(1)
    tags = torch.eye(K, dtype=torch.bool).repeat(2, 1)
    tags[-1, 0] = True
    images = torch.randn(B, 3, 32, 32, generator=generator).to(dtype)
    return Batch(images, None, tags, torch.rand(B, B, generator=generator))


def gradients(
    compute: Compute, kind: str = "corrected", dtype: torch.dtype = torch.float32
) -> tuple[dict, dict]:
    """Terms and gradients of one step."""
    net = network(compute.checkpointing, dtype)
    stepper = Stepper(net, torch.optim.SGD(net.parameters(), lr=0.0), objective(kind), compute)
    terms = stepper.step(batch(dtype))
    return terms, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def _terms(part: Batch) -> dict[str, Tensor]:
    """The corrected triplet's terms of these samples alone."""
    measure, combine = objective()
    return combine(measure(network(), part))


def close(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name in one:
        scale = max(float(two[name].abs().max()), 1e-6)
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_parts_have_the_loss_and_the_gradient_of_the_whole(parts, kind):
    whole, part = (
        gradients(compute, kind, torch.float64) for compute in (PLAIN, Compute(parts=parts))
    )
    close(part[0], whole[0], 1e-10)
    close(part[1], whole[1], 1e-8)


class Copies(TorchDispatchMode):
    """Shapes of the tensors that are copied into another memory layout."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func == torch.ops.aten.clone.default and args[0].shape[1:] == batch().images.shape[1:]:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_images_are_moved_once_however_often_they_go_through(parts):
    with Copies() as copies:
        gradients(Compute(parts=parts), "classification")
    assert copies.shapes == [tuple(batch().images.shape)]


def test_a_batch_that_is_cut_up_loses_the_triplet_and_parts_do_not():
    """The mean of losses of halves is another loss: this is what parts are for."""
    halves = []
    for half in split(batch(), 2):
        noise = half.noise[:, :3]
        halves.append(_terms(half._replace(noise=noise))["repel"].item())
    both = (gradients(compute, dtype=torch.float64) for compute in (PLAIN, Compute(parts=2)))
    whole, parts = (terms["repel"].item() for terms, _ in both)
    assert sum(halves) / 2 != pytest.approx(whole, rel=1e-3)
    assert parts == pytest.approx(whole, rel=1e-10)


def test_checkpointing_changes_no_gradient():
    whole, again = (gradients(c, dtype=torch.float64) for c in (PLAIN, Compute(checkpointing=True)))
    close(again[0], whole[0], 1e-10)
    close(again[1], whole[1], 1e-8)


def test_bf16_is_close_and_not_equal():
    whole, half = gradients(PLAIN, "classification"), gradients(Compute("bf16"), "classification")
    assert half[0]["classification"].dtype == torch.float32
    # bf16 rounds by 4e-3; a loss below 1, and three layers.
    assert abs(half[0]["classification"] - whole[0]["classification"]).item() < 0.02
    ours, theirs = (torch.cat([g.flatten() for g in found[1].values()]) for found in (half, whole))
    assert not torch.equal(ours, theirs)
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99


def test_a_compiled_step_is_the_same_step():
    close(gradients(Compute(compile="eager"))[1], gradients(PLAIN)[1], 1e-5)


class Weights(NamedTuple):
    x: Tensor


class Dropped(nn.Module):
    """y = dropout(w x):

    with a loss of y squared, the gradient is 2 loss / w where the same numbers are dropped twice.
    """

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return nn.functional.dropout(self.w * x, 0.5, training=True)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_dropout_drops_the_same_in_the_second_pass(parts):
    net = Dropped()
    objective = Objective(
        lambda n, samples: {"y": n(samples.x)}, lambda m: {"square": m["y"].square().sum()}
    )
    stepper = Stepper(
        net, torch.optim.SGD(net.parameters(), lr=0.0), objective, Compute(parts=parts)
    )
    torch.manual_seed(3)
    loss = stepper.step(Weights(torch.ones(40, 2)))["square"]
    assert net.w.grad.item() == pytest.approx(2 * loss.item() / 1.5, rel=1e-5)


def test_the_random_stream_goes_on_after_a_step_in_parts():
    """The second pass must not leave the stream where the first one began."""
    net = Dropped()
    objective = Objective(
        lambda n, samples: {"y": n(samples.x)}, lambda m: {"square": m["y"].square().sum()}
    )
    stepper = Stepper(net, torch.optim.SGD(net.parameters(), lr=0.0), objective, Compute(parts=2))
    torch.manual_seed(3)
    first = stepper.step(Weights(torch.ones(40, 2)))["square"]
    assert stepper.step(Weights(torch.ones(40, 2)))["square"] != first


def test_split_keeps_order_and_nothing_twice():
    parts = split(Batch(None, None, torch.arange(7)[:, None], torch.arange(7)[:, None]), 3)
    assert [len(part.tags) for part in parts] == [3, 2, 2]
    assert torch.cat([part.tags for part in parts])[:, 0].tolist() == list(range(7))
    assert all(part.images is None for part in parts)
    with pytest.raises(ValueError, match="a batch of 2 cannot go through in 3 parts"):
        split(Batch(None, None, torch.zeros(2, 1), None), 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"negatives": "all"}, "negatives must be one of gathered, rank, got 'all'"),
        ({"parts": 0}, "parts must be a whole number, at least 1, got 0"),
        ({"parts": 1.5}, "parts must be a whole number, at least 1, got 1.5"),
        ({"lookahead": -1}, "lookahead must be a whole number, at least 0, got -1"),
        ({"checkpoint_every": True}, "checkpoint_every must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Compute(**wrong)


def test_the_optimiser_of_a_step_is_the_schedules():
    """A step on the real groups moves what is trained, and nothing else."""
    net, before = network(), {name: p.detach().clone() for name, p in network().named_parameters()}
    Stepper(net, make_optimiser(net, SMOKE.schedule), objective(), PLAIN).step(batch())
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in net.named_parameters() if p.requires_grad}
