"""Frozen norms, folded into convolutions or as multiply-adds, against torch's batch norms."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aeft_lib.cli import backbone_spec
from aeft_lib.networks import state
from aeft_lib.networks.frozen_norms import FrozenNorms, convolutions_before_norms, unfold
from aeft_lib.networks.resnet38d import BasicBlock, Bottleneck

# Name: norms, and those behind a convolution of their own block.
NORMS = {
    "efficientnet_lite0": (49, 49),
    "resnet50": (53, 53),
    "timm:resnet18": (20, 20),
    "timm:mobilenetv3_small_100": (34, 34),
    "timm:resnetv2_50": (48, 32),
}
IMAGES = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
LAYERS = 60  # at most, one behind another


class Blocks(FrozenNorms):
    """The blocks of ResNet38d, small: all its ways from a convolution or a sum into a norm."""

    out_channels, stride = 16, 2

    def __init__(self):
        super().__init__()
        self.conv1a = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.b2 = BasicBlock(4, 6, 8, 2, 1, 1)
        self.b2_1 = BasicBlock(8, 8, 8, 1, 1, 2)
        self.b6 = Bottleneck(8, 16, dilation=2, dropout=0.0)
        self.bn7 = nn.BatchNorm2d(16)
        self.freeze_norms()

    def trunk(self, images):
        return self.conv1a(images)

    def tail(self, features):
        for block in (self.b2, self.b2_1, self.b6):
            features = self.run(block, features)
        return self.bn7(features).relu()


def moved(network: nn.Module, seed: int = 0) -> nn.Module:
    """With statistics and affine parameters of a trained network's kind."""
    generator = torch.Generator().manual_seed(seed)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            drawn = [torch.randn(norm.num_features, generator=generator) for _ in range(4)]
            norm.load_state_dict(
                {
                    "weight": 1 + 0.1 * drawn[0],
                    "bias": 0.1 * drawn[1],
                    "running_mean": 0.1 * drawn[2],
                    "running_var": 1 + 0.5 * drawn[3].abs(),
                    "num_batches_tracked": torch.tensor(0),
                }
            )
    return network


def network(name: str, dtype: torch.dtype = torch.float32) -> FrozenNorms:
    def make() -> nn.Module:
        if name == "blocks":
            return Blocks()
        spec = replace(backbone_spec(name), weights="none")
        return (replace(spec, trained_stages=7) if name == "efficientnet_lite0" else spec).build()

    built = moved(state.build(make, seed=0)).to(dtype).eval()
    # oneDNN corrupts memory in a backward pass of so few channels in channels_last, folded or not.
    return built.to(memory_format=torch.contiguous_format) if name == "blocks" else built


def outputs(net: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Features, and gradients of images and trained tensors; dropout and drop path are off."""
    images = IMAGES.to(dtype).requires_grad_()
    features = net(images)
    features.square().mean().backward()
    trained = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"features": features.detach(), "images": images.grad} | trained


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], bound: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        error = (ours[name] - tensor).norm() / tensor.norm()
        assert error <= bound, f"{name}: {error:.2g} of its norm, allowed {bound:.2g}"


@pytest.mark.parametrize("name", [*NORMS, "blocks"])
def test_values_and_gradients_are_those_of_batch_norms(name):
    """In float64 no ReLU turns, so that a bound on the gradients holds."""
    ours = network(name, torch.float64)
    theirs = unfold(deepcopy(ours))
    # 2^-52 rounding x 4 operations a norm x 60 layers there and back, margin 10, and 100 for
    # activations that cancel.
    bound = 2**-52 * 4 * 2 * LAYERS * 10 * 100
    assert_near(outputs(ours, torch.float64), outputs(theirs, torch.float64), bound)


@pytest.mark.parametrize("name", [*NORMS, "blocks"])
def test_float32_is_as_near_to_float64_as_batch_norms_are(name):
    ours = network(name)
    theirs, exact = unfold(deepcopy(ours)), unfold(deepcopy(ours)).double()
    with torch.inference_mode():
        truth = exact(IMAGES.double())
        errors = [(net(IMAGES) - truth).norm() / truth.norm() for net in (ours, theirs)]
    # Each rounds as often; 2^-24 x 4 x 60 layers is what either may have at least.
    assert errors[0] <= 10 * errors[1] + 2**-24 * 4 * LAYERS


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_behind_a_convolution_is_folded(name):
    net = network(name)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(norms), len(convolutions_before_norms(unfold(net)))) == NORMS[name]


def test_blocks_of_resnet38d_fold_what_stands_behind_their_convolutions():
    net = unfold(network("blocks"))
    names = {m: name for name, m in net.named_modules()}
    assert {names[n]: names[c] for n, c in convolutions_before_norms(net).items()} == {
        "b2.bn_branch2b1": "b2.conv_branch2a",
        "b2_1.bn_branch2b1": "b2_1.conv_branch2a",
        "b6.bn_branch2b1": "b6.conv_branch2a",
        "b6.bn_branch2b2": "b6.conv_branch2b1",
    }


class Odd(FrozenNorms):
    """Convolutions whose norm is not to be folded, and one with a bias whose norm is."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.freeze_norms()

    def trunk(self, images):
        return images

    def tail(self, x):
        y = self.conv(x)
        if self.kind == "read twice":
            return self.norm(y) + y
        if self.kind == "called twice":
            return self.norm(self.conv(self.norm(y)))
        if self.kind == "relu between":
            return self.norm(y.relu())
        if self.kind == "dropout between":
            return self.norm(nn.functional.dropout(y, 0.5, self.training))
        if self.kind == "needs contents":
            return self.norm(y) if y.sum() < 1e9 else y
        return self.norm(y)


ODD = ["read twice", "called twice", "relu between", "dropout between", "needs contents", "bias"]


@pytest.mark.parametrize("kind", ODD)
def test_only_a_norm_that_alone_reads_a_convolution_is_folded(kind):
    net = moved(Odd(kind)).double()
    theirs = unfold(deepcopy(net))
    assert len(convolutions_before_norms(theirs)) == (kind == "bias")
    net.eval(), theirs.eval()
    # 2^-52 x 27 products, margin 40.
    torch.testing.assert_close(net(IMAGES.double()), theirs(IMAGES.double()), rtol=0, atol=1e-12)


def test_folding_twice_is_folding_once():
    net = Odd("bias")
    before = moved(net)(IMAGES)
    net.freeze_norms()
    assert torch.equal(net(IMAGES), before)


def test_names_types_and_random_numbers_are_those_without_folding():
    torch.manual_seed(0)
    net = Blocks()
    after = torch.rand(1)
    plain = unfold(deepcopy(net))
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    torch.manual_seed(0)
    unfold(Blocks())
    assert torch.equal(torch.rand(1), after)


def test_weights_that_are_loaded_later_are_seen():
    ours, other = network("blocks", torch.float64), moved(Blocks().double().eval(), seed=1)
    ours(IMAGES.double())
    ours.load_state_dict(other.state_dict())
    theirs = unfold(deepcopy(other))(IMAGES.double())
    # 2^-52 x 100 operations a layer x 8 layers, margin 10.
    torch.testing.assert_close(ours(IMAGES.double()), theirs, rtol=2e-12, atol=2e-12)


def test_a_copy_has_convolutions_and_norms_of_its_own():
    net = network("blocks")
    before, copied = net(IMAGES), deepcopy(net)
    moved(copied, seed=1)
    with torch.no_grad():
        copied.b2.conv_branch2a.weight.zero_()
    assert torch.equal(net(IMAGES), before)
    assert not torch.equal(copied(IMAGES), before)


def test_train_mode_and_checkpointing_change_nothing():
    net = network("blocks", torch.float64)
    before = outputs(net, torch.float64)
    net.zero_grad()
    net.train().checkpointing = True
    after = outputs(net, torch.float64)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_half_precision(dtype):
    net = network("blocks")
    theirs = unfold(deepcopy(net))
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        ours, theirs = net(IMAGES), theirs(IMAGES)
    assert ours.dtype == theirs.dtype == dtype
    # Rounding of half a unit x 4 x 8 layers, margin 10.
    bound = torch.finfo(dtype).eps / 2 * 4 * 8 * 10
    assert (ours.float() - theirs.float()).norm() <= bound * theirs.float().norm()


def test_a_compiled_step_has_no_break():
    net = network("blocks")
    compiled = torch.compile(net, backend="eager", fullgraph=True)  # which refuses a break
    features = compiled(IMAGES)
    features.sum().backward()
    # The same operations, without fusion.
    torch.testing.assert_close(features, net(IMAGES), rtol=0, atol=0)
    assert net.b2.conv_branch2a.weight.grad.abs().max() > 0


def test_operations_are_counted_as_without_folding():
    def flops(net: nn.Module) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(IMAGES)
        return counter.get_total_flops()

    net = network("timm:resnet18")
    assert flops(net) == flops(unfold(deepcopy(net))) > 0
