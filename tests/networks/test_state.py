"""Trained tensors on their way to disk and back, and networks built from a seed."""

import pytest
import torch
from safetensors import safe_open
from torch import nn

from aeft_lib.networks.state import build, load_trained, save_trained, trained_state


def network(out: int = 2, seed: int = 0) -> nn.Sequential:
    """A frozen convolution, a batch norm, and a trained convolution."""
    net = build(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, out, 1)), seed
    )
    net[0].requires_grad_(False)
    return net


def tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def unchanged(net: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# --- files ---------------------------------------------------------------------------------------


def test_a_file_holds_the_trained_tensors_alone(tmp_path):
    save_trained(network(), tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as opened:
        assert set(opened.keys()) == {"1.weight", "1.bias", "2.weight", "2.bias"}


@pytest.mark.exact
def test_what_is_saved_is_loaded_and_the_frozen_rest_stays(tmp_path):
    ours, theirs = network(seed=1), network(seed=2)
    frozen = theirs[0].weight.clone()
    save_trained(ours, tmp_path / "weights.safetensors")
    load_trained(theirs, tmp_path / "weights.safetensors")
    for name, tensor in trained_state(ours).items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    assert torch.equal(theirs[0].weight, frozen)
    assert not torch.equal(ours[0].weight, frozen)


def test_the_memory_layout_of_a_network_does_not_change_its_file(tmp_path):
    net = network()
    save_trained(net, tmp_path / "one.safetensors")
    save_trained(net.to(memory_format=torch.contiguous_format), tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "two.safetensors"
    ).read_bytes()


def test_a_loaded_network_learns_on(tmp_path):
    net = network()
    save_trained(net, tmp_path / "weights.safetensors")
    load_trained(net, tmp_path / "weights.safetensors")
    net(torch.ones(2, 3, 4, 4)).sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == set(
        trained_state(net)
    )


def test_a_file_of_another_network_is_refused_and_changes_nothing(tmp_path):
    net = network()
    before = tensors(net)
    save_trained(network(out=5, seed=1), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"differ in 2\.\w+: \(5,.*\) against \(2,"):
        load_trained(net, tmp_path / "weights.safetensors")
    assert unchanged(net, before)


def test_a_file_of_a_network_with_more_trained_parts_is_refused_and_changes_nothing(tmp_path):
    net, other = network(), network(seed=1)
    before = tensors(net)
    save_trained(other.requires_grad_(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"differ in 2 tensors, first '0\.bias'"):
        load_trained(net, tmp_path / "weights.safetensors")
    assert unchanged(net, before)


# --- build ---------------------------------------------------------------------------------------


def test_a_seed_decides_the_weights_whatever_was_drawn_before():
    torch.manual_seed(5)
    first = tensors(network(seed=3))
    torch.rand(10)
    assert unchanged(network(seed=3), first)
    assert not unchanged(network(seed=4), first)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network(seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_an_error_while_building_leaves_the_global_generator_alone():
    def fails() -> nn.Module:
        torch.rand(1)
        raise RuntimeError("no weights")

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(RuntimeError, match="no weights"):
        build(fails, 0)
    assert torch.equal(torch.rand(3), expected)


def test_a_built_network_lies_in_channels_last_order():
    assert network()[0].weight.is_contiguous(memory_format=torch.channels_last)
