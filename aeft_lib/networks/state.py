"""Trained tensors of a network, to disk and back; frozen ones come with the published weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, by name: what a checkpoint has to hold."""
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    return {name: tensor for name, tensor in network.state_dict().items() if name in trained}


def load_trained_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Inverse of `trained_state`.

    Raises ValueError naming what is missing, unknown or of another shape (K!).
    """
    own = trained_state(network)
    if difference := sorted(own.keys() ^ state.keys()):
        problem = f"differ in {len(difference)} tensors, first {difference[0]!r}"
        raise ValueError(f"checkpoint and network {problem}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)} against {tuple(own[name].shape)}"
            classes = getattr(network, "num_classes", "?")
            raise ValueError(
                f"checkpoint and network differ in {name}: {shapes}; "
                f"was the checkpoint trained on other classes than these K={classes}?"
            )
    network.load_state_dict(state, strict=False)


def save_trained(network: nn.Module, file: Path) -> None:
    """Write the trained tensors as safetensors."""
    tensors = trained_state(network).items()
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors}, file)


def load_trained(network: nn.Module, file: Path) -> None:
    """Read what `save_trained` wrote into `network`, in place.

    Raises ValueError where it does not fit.
    """
    load_trained_state(network, load_file(file))


def build(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """``make()`` with random weights drawn from `seed`, in the memory layout fastest on a CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
    return network.to(memory_format=torch.channels_last)
