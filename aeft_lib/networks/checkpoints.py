"""The weights doctor: which tensors of a published file a network takes, and which it does not.

It reads the authors' PyTorch checkpoints of AEFT (their names of tensors), MXNet's ``.params`` of
ResNet38d, and safetensors.  Nothing in a file is executed: a pickle with code is refused, and so is
TorchScript, with the lines that save its tensors as safetensors.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aeft_lib.maps.foreign import Unreadable, reading
from aeft_lib.networks.weights import (
    MXNET_LIST,
    UNCOUNTED,
    check_values,
    counted,
    read_mxnet_params,
    resnet38d_name,
)

PREFIXES = ("module.", "_orig_mod.", "net_main.", "model.")  # of networks saved inside a wrapper
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
GATES = {"att_p": "positive", "att_n": "negative"}
# What trainers keep beside the tensors, a best score say: read as `_Inert`, so nothing of it runs.
NUMPY = ("numpy.dtype", "numpy.ndarray") + tuple(
    f"numpy.{core}.multiarray.{name}"
    for core in ("core", "_core")
    for name in ("scalar", "_reconstruct")
)
SHOWN = 8  # names in a message


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
                shown = [*names[:SHOWN], "..."] if len(names) > SHOWN else names
                lines.append(f"{kind}: {len(names)}, {', '.join(shown)}")
        return "\n".join(lines)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.params``, ``.safetensors`` or PyTorch file, by the names they have there.

    Raises ValueError naming the file: missing, damaged, without tensors by name, with several
    networks, with two tensors of one name, a TorchScript archive, or a pickle with code.
    """
    if not file.is_file():
        folder = f"{file} is a folder: name the file of weights in it"
        raise ValueError(folder if file.is_dir() else f"no file {file}")
    with reading(file, "cannot be read as a checkpoint"), file.open("rb") as opened:
        head = opened.read(9)
    if file.suffix == ".params" or head[:8] == MXNET_LIST.to_bytes(8, "little"):
        return read_mxnet_params(file)
    if file.suffix == ".safetensors" or head[8:] == b"{":
        with reading(file, "cannot be read as a checkpoint"):
            content = load_file(file)
    else:
        content = _read_pickle(file)
    tensors = _state(file, content).items()
    return _renamed(file, {name: (_unwrapped(name), tensor) for name, tensor in tensors})


def _renamed(file: Path, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors under new names, given by their old ones.

    Raises ValueError where two that differ would have one.
    """
    renamed: dict[str, tuple[str, Tensor]] = {}
    for old, (new, tensor) in tensors.items():
        first, same = renamed.setdefault(new, (old, tensor))
        if old != first and not torch.equal(same, tensor):
            problem = f"{file}: {first!r} and {old!r} are both {new!r}, and differ"
            raise Unreadable(f"{problem}; save one of them alone")
    return {new: tensor for new, (_, tensor) in renamed.items()}


class _Inert:
    """Stands for an object of numpy in a pickle, which is not made."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _read_pickle(file: Path) -> Any:
    """The content of a PyTorch file, without objects that are neither tensors nor plain data."""
    with reading(file, "cannot be read as a checkpoint"):
        names = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else []
    if any(name.endswith("/constants.pkl") for name in names):
        problem = f"{file} is not opened: it is a TorchScript archive, a program with its tensors"
        load = f"torch.jit.load({str(file)!r}, map_location='cpu').state_dict()"
        raise Unreadable(f"{problem}; save them alone:{_recipe(file, load, 'content')}")
    try:
        inert = torch.serialization.safe_globals([(_Inert, name) for name in NUMPY])
        with reading(file, "cannot be read as a checkpoint"), inert:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Unreadable as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        named = re.search(r"GLOBAL ([\w.]+)", str(error.__cause__))
        reason = "another format, or a pickle that would run code"
        reason = f"a pickle that would run code, with {named[1]}" if named else reason
        problem = f"{file} is not opened: it is no checkpoint of tensors alone, but {reason}"
        load = f"torch.load({str(file)!r}, map_location='cpu', weights_only=False)  # runs its code"
        lines = _recipe(file, load, "content['state_dict']")
        remedy = f"if you trust its source, save the tensors alone:{lines}"
        raise Unreadable(f"{problem}; {remedy if named else 'fetch it again'}") from error


def _recipe(file: Path, load: str, state: str) -> str:
    """Three lines of Python that save a dict of tensors as safetensors."""
    target = str(file.with_suffix(".safetensors"))
    tensors = f"{{k: v.clone().contiguous() for k, v in {state}.items()}}"
    lines = ("import torch; from safetensors.torch import save_file", f"content = {load}")
    return "".join(f"\n  {line}" for line in (*lines, f"save_file({tensors}, {target!r})"))


def _state(file: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, inside their wrapper, whatever stands beside them.

    Raises ValueError where there are none, or several networks, two versions of one say.
    """
    networks = _networks(content)
    plain = [place for place, (_, wrapped) in networks.items() if wrapped] or list(networks)
    if not networks:
        keys = [str(key)[:40] for key in content] if isinstance(content, dict) else []
        shown = ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "") or "none"
        problem = f"{file} holds no tensors by name, so it is no checkpoint of a network"
        raise Unreadable(f"{problem}; its keys: {shown}")
    chosen, names = networks[plain[0]][0], _names(networks[plain[0]][0])
    versions = [place for place, (found, _) in networks.items() if names & _names(found)]
    if len(plain) == len(versions) == 1:
        return chosen
    count = {place: f"{place} ({len(found)} tensors)" for place, (found, _) in networks.items()}
    problem = f"{file} holds several networks: {', '.join(list(count.values())[:SHOWN])}"
    load = f"torch.load({str(file)!r}, map_location='cpu', weights_only=True)"
    raise Unreadable(f"{problem}; save the tensors of one:{_recipe(file, load, plain[0])}")


def _networks(
    content: Any, place: str = "content", wrapped: bool = True, above: tuple = ()
) -> dict[str, tuple[dict[str, Tensor], bool]]:
    """The dicts of tensors in a checkpoint, by the expression that leads to each.

    They stand at any key, and inside of `WRAPPERS`; with each, whether these alone lead to it.
    """
    if not isinstance(content, dict) or len(above) > len(WRAPPERS):
        return {}
    if any(content is other for other in above):  # a dict may hold itself
        return {}
    tensors = _tensors(content)
    networks = {place: (tensors, wrapped)} if tensors else {}
    for key, value in content.items():
        is_wrapper = isinstance(key, str) and key in WRAPPERS
        if wrapped or is_wrapper:
            inside = f"{place}[{repr(key)[:40]}]"
            networks |= _networks(value, inside, wrapped and is_wrapper, (*above, content))
    return networks


def _names(tensors: Mapping[str, Tensor]) -> set[str]:
    return set(map(_unwrapped, tensors))


def _tensors(content: Any) -> dict[str, Tensor]:
    """The plain tensors of a dict, by name; none of anything else."""
    items = content.items() if isinstance(content, dict) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor) and _plain(v)}


def _plain(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and not (tensor.is_quantized or tensor.is_complex())


def load_checkpoint(network: nn.Module, file: Path) -> Loaded:
    """Fill a network (a `CamClassifier`, or a backbone alone) from a published file.

    Everything is compared first, and nothing is loaded on a mismatch.  Raises ValueError naming a
    tensor of another shape (with a hint where K differs), or where the network would not be usable:
    a tensor of the backbone is not in the file, or as `check_values` says; and what `read_tensors`
    raises.
    """
    own, fitting, unused = counted(network), {}, []
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
            fitting[published] = (name, tensor)
    tensors = _renamed(file, fitting)
    if not tensors:
        problem = f"{file} holds {len(unused)} tensors and none fits this network"
        raise ValueError(f"{problem}; its first is {unused[0]!r}")
    loaded = Loaded(tuple(tensors), tuple(sorted(own.keys() - tensors.keys())), tuple(unused))
    _check_usable(file, tensors, own, loaded)
    network.load_state_dict(tensors, strict=False)
    return loaded


def _check_usable(
    file: Path, tensors: dict[str, Tensor], own: dict[str, Tensor], loaded: Loaded
) -> None:
    """Raises ValueError as `check_values` does, and for a backbone of which a part is missing."""
    check_values(file, tensors)
    needed = [name for name in own if name.startswith("backbone.")] or list(own)
    there = sum(name in tensors for name in needed)
    if there < len(needed):
        count = f"{there} of {len(needed)} tensors of the backbone are in it"
        remedy = "is the backbone the one it was trained with?"
        raise ValueError(f"{file} is not usable: {count}; {remedy}\n{loaded.text()}")


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
