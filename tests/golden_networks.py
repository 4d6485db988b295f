"""ResNet38d and AffinityNet with the weights of the golden vectors, and the measure for their
activations.

The weights are not stored.  Tensor `name` has n = PCG64(crc32(salt + name)).standard_normal(shape)
in float64, and then

- a convolution n / sqrt(fan in);
- a batch norm weight 1 + 0.1 n, bias and running_mean 0.1 n, running_var 1 + 0.1 |n|;

cast to float32 at the end.
"""

import json
import math
import re
import zlib

import numpy as np
import torch
from conftest import golden_folder
from torch import nn


def layout(network: str) -> dict:
    """``state_dict_<network>.json``: tensors, trainable, modules of "gpp" or "aff"."""
    return json.loads((golden_folder() / f"state_dict_{network}.json").read_text())


def salt(section: str, network: str) -> str:
    """What the golden set puts before every name, by its ``meta.json``; by the layout where that has no such section."""
    meta = json.loads((golden_folder() / "meta.json").read_text())
    return meta.get(section, layout(network))["salt"]


def vectors(name: str) -> dict[str, np.ndarray]:
    """As the fixture `golden`, for fixtures of a whole module."""
    with np.load(golden_folder() / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def theirs(name: str) -> str:
    """The reference's name of a tensor or module of ours."""
    name = re.sub(r"^(backbone|head)\.", "", name)
    gate = re.match(r"pooling\.gates\.(\d+)\.(positive|negative)", name)
    return f"gconv{int(gate[1]) + 1}.att_{gate[2][0]}.0{name[gate.end() :]}" if gate else name


def drawn(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """The golden weights of the reference's tensor `name`, float32."""
    n = np.random.Generator(
        np.random.PCG64(zlib.crc32((salt + name).encode("ascii")))
    ).standard_normal(shape)
    if len(shape) == 4:
        n /= math.sqrt(math.prod(shape[1:]))
    else:
        kind = name.rsplit(".", 1)[-1]
        n = {"weight": 1 + 0.1 * n, "running_var": 1 + 0.1 * abs(n)}.get(kind, 0.1 * n)
    return n.astype(np.float32)


def with_golden_weights(network: nn.Module, salt: str) -> nn.Module:
    """`network` in eval mode, its weights replaced in place."""
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(drawn(theirs(name), tuple(tensor.shape), salt)))
    return network.eval()


def assert_stats(
    ours: torch.Tensor, vectors: dict[str, np.ndarray], prefix: str, tolerance: float
) -> None:
    """Compare with a golden `stats` entry; the tolerance is relative to its largest absolute value."""
    expected = {
        key: vectors[f"{prefix}/{key}"] for key in ("shape", "mean", "std", "absmax", "idx", "val")
    }
    assert list(ours.shape) == expected["shape"].tolist(), prefix
    ours, allowed = ours.detach().double(), tolerance * float(expected["absmax"])
    found = {"mean": ours.mean(), "std": ours.std(correction=0), "absmax": ours.abs().max()}
    found["val"] = ours.flatten()[torch.from_numpy(expected["idx"])]
    for key, value in found.items():
        worst = np.abs(value.numpy() - expected[key]).max()
        assert worst <= allowed, f"{prefix}/{key}: differs by {worst:.3g}, allowed {allowed:.3g}"


def assert_layout(network: nn.Module, layout: dict, *, without: str = "$") -> None:
    """Tensors by name and shape, trainable ones, and the numbers of every module; `without`:

    a pattern of what is not ours.
    """
    ours = {theirs(name): list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert ours == {
        t["name"]: t["shape"] for t in layout["tensors"] if not re.match(without, t["name"])
    }
    trainable = [
        theirs(name) for name, parameter in network.named_parameters() if parameter.requires_grad
    ]
    assert sorted(trainable) == sorted(layout["trainable"])
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Dropout2d)
    modules = {
        theirs(name): module
        for name, module in network.named_modules()
        if isinstance(module, kinds)
    }
    asked = {
        name: numbers for name, numbers in layout["modules"].items() if not re.match(without, name)
    }
    assert modules.keys() == asked.keys()
    for name, numbers in asked.items():
        assert described(modules[name], numbers) == numbers, name


def described(module: nn.Module, numbers: dict) -> dict:
    """What the layout says of a module, read from ours."""
    found = {"type": type(module).__name__}
    for key in numbers.keys() - {"type"}:
        value = getattr(module, key)
        if key == "bias":
            value = value is not None
        elif isinstance(value, tuple):
            assert len(set(value)) == 1, (key, value)
            value = value[0]
        found[key] = value
    return found
