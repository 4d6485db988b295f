"""The weights doctor: what a published file holds, what of it a network took, and what it did not.

It reads the authors' PyTorch checkpoints of AEFT (their names of tensors), MXNet's ``.params`` of
ResNet38d, and safetensors.
Nothing in a file is executed: a pickle with more in it than tensors is refused.
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

from aeft_lib.networks.weights import MXNET_LIST, read_mxnet_params, resnet38d_name

PREFIXES = ("module.", "net_main.", "model.")  # of networks that were saved inside a wrapper
GATES = {"att_p": "positive", "att_n": "negative"}


@dataclass(frozen=True)
class Loaded:
    """loaded: the network's tensors that the file had.  missing: those it had not.  unused:

    the file's other tensors.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def text(self) -> str:
        """For a person: counts, and the first names of what did not find its place."""
        lines = [f"loaded {len(self.loaded)} tensors"]
        for kind, names in (("not in the file", self.missing), ("not in the network", self.unused)):
            if names:
                lines.append(
                    f"{kind}: {len(names)}, "
                    + ", ".join(names[:8])
                    + (", ..." if len(names) > 8 else "")
                )
        return "\n".join(lines)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.params``, ``.safetensors`` or PyTorch file, by the names they have there.

    Raises ValueError naming the file: missing, damaged, no checkpoint, or a pickle that wants to
        run code.
    """
    if not file.is_file():
        raise ValueError(f"no file {file}")
    with file.open("rb") as opened:
        if file.suffix == ".params" or opened.read(8) == MXNET_LIST.to_bytes(8, "little"):
            return read_mxnet_params(file)
    try:
        content = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is not opened: it is no checkpoint of tensors alone, but another format, or a pickle that would run code"
        ) from error
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        SafetensorError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(
            f"{file} cannot be read as a checkpoint ({error or type(error).__name__}); fetch it again"
        ) from error
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
    """Fill a network (a `CamClassifier`, or a backbone alone) from a published file; says what
    found its place.

    Everything is compared first, and nothing is loaded on a mismatch.  Raises ValueError naming the
    tensor of another shape (a checkpoint of another K says so), or where no name fits; and what
    `read_tensors` raises.
    """
    own = {
        name: t
        for name, t in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    found, unused = {}, []
    for published, tensor in read_tensors(file).items():
        name = next((n for n in own_names(published) if n in own), None)
        if name is None:
            unused += [] if published.endswith("num_batches_tracked") else [published]
        elif tensor.shape != own[name].shape:
            other_k = hasattr(network, "num_classes") and "fc9" in name
            hint = (
                f"; was it trained on other classes than these K={network.num_classes}?"
                if other_k
                else ""
            )
            raise ValueError(
                f"{file}: {published} is {tuple(tensor.shape)}, the network's {name} {tuple(own[name].shape)}{hint}"
            )
        else:
            found[name] = tensor
    if not found:
        raise ValueError(
            f"{file} holds {len(unused)} tensors and none fits this network; its first is {unused[0]!r}"
        )
    network.load_state_dict(found, strict=False)
    return Loaded(tuple(found), tuple(sorted(own.keys() - found.keys())), tuple(unused))


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
