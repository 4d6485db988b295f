"""The weights doctor: which tensors of a published file a network takes, and which it does not.

It reads the authors' PyTorch checkpoints of AEFT (their names of tensors), MXNet's ``.params`` of
ResNet38d, and safetensors.  Nothing in a file is executed: a pickle with code is refused.
"""

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from aeft_lib.networks.weights import (
    MXNET_LIST,
    UNCOUNTED,
    counted,
    read_mxnet_params,
    resnet38d_name,
)

PREFIXES = ("module.", "net_main.", "model.")  # of networks that were saved inside a wrapper
GATES = {"att_p": "positive", "att_n": "negative"}
DAMAGED = (
    *(OSError, EOFError, RuntimeError, ValueError, KeyError),
    *(SafetensorError, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Loaded:
    """loaded, missing: the network's tensors that the file has, or lacks.  unused: its others."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def text(self) -> str:
        """For a person: counts, and the first names of tensors without a place."""
        lines = [f"loaded {len(self.loaded)} tensors"]
        for kind, names in (("not in the file", self.missing), ("not in the network", self.unused)):
            if names:
                shown = [*names[:8], "..."] if len(names) > 8 else names
                lines.append(f"{kind}: {len(names)}, {', '.join(shown)}")
        return "\n".join(lines)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.params``, ``.safetensors`` or PyTorch file, by the names they have there.

    Raises ValueError naming the file: missing, damaged, no checkpoint, or a pickle with code.
    """
    if not file.is_file():
        raise ValueError(f"no file {file}")
    with file.open("rb") as opened:
        if file.suffix == ".params" or opened.read(8) == MXNET_LIST.to_bytes(8, "little"):
            return read_mxnet_params(file)
    try:
        if file.suffix == ".safetensors":
            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "another format, or a pickle that would run code"
        problem = f"{file} is not opened: it is no checkpoint of tensors alone, but {reason}"
        raise ValueError(problem) from error
    except DAMAGED as error:
        problem = f"{file} cannot be read as a checkpoint ({error or type(error).__name__})"
        raise ValueError(f"{problem}; fetch it again") from error
    for wrapper in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    named = isinstance(content, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    )
    if not named or not content:
        raise ValueError(f"{file} holds no tensors by name, so it is no checkpoint of a network")
    return {_unwrapped(name): value for name, value in content.items()}


def load_checkpoint(network: nn.Module, file: Path) -> Loaded:
    """Fill a network (a `CamClassifier`, or a backbone alone) from a published file.

    Everything is compared first, and nothing is loaded on a mismatch.  Raises ValueError naming a
    tensor of another shape (with a hint where K differs), or where no name fits; and what
    `read_tensors` raises.
    """
    own, tensors, unused = counted(network), {}, []
    for published, tensor in read_tensors(file).items():
        name = next((n for n in own_names(published) if n in own), None)
        if name is None:
            unused += [] if published.endswith(UNCOUNTED) else [published]
        elif tensor.shape != own[name].shape:
            hint = ""
            if hasattr(network, "num_classes") and "fc9" in name:
                hint = f"; was it trained on other classes than these K={network.num_classes}?"
            theirs, ours = tuple(tensor.shape), tuple(own[name].shape)
            raise ValueError(f"{file}: {published} is {theirs}, the network's {name} {ours}{hint}")
        else:
            tensors[name] = tensor
    if not tensors:
        problem = f"{file} holds {len(unused)} tensors and none fits this network"
        raise ValueError(f"{problem}; its first is {unused[0]!r}")
    network.load_state_dict(tensors, strict=False)
    return Loaded(tuple(tensors), tuple(sorted(own.keys() - tensors.keys())), tuple(unused))


def own_names(published: str) -> tuple[str, ...]:
    """The names that a published tensor may have in our networks.

    >>> own_names("gconv2.att_n.0.weight")[-1]
    'pooling.gates.1.negative.weight'
    >>> own_names("b4_1.conv_branch2a.weight")
    ('b4_1.conv_branch2a.weight', 'backbone.b4_1.conv_branch2a.weight')
    """
    mxnet = resnet38d_name(published.removeprefix("arg:").removeprefix("aux:"))
    plain = mxnet or published
    names = [plain, f"backbone.{plain}"]
    if plain.startswith(("fc8.", "fc9.")):
        names.append(f"head.{plain}")
    if match := re.fullmatch(r"gconv(\d)\.(att_[pn])(?:\.0)?\.weight", plain):
        names.append(f"pooling.gates.{int(match[1]) - 1}.{GATES[match[2]]}.weight")
    return tuple(names)


def _unwrapped(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name
