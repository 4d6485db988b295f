"""The checkpoint of a training: a kill at any moment leaves the old one or the new one, whole.

Its digest covers tensors and metadata.  It vouches for the files beside it, a log and the weights
of epochs: what a killed training left is trusted as far as its checkpoint knows it.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from aeft_lib import paths
from aeft_lib.engine import ranks

NAME = "checkpoint.safetensors"
FIELDS = {"rows": list, "scaler": dict, "beside": dict}  # of its metadata, as JSON
DAMAGE = (
    *(FileNotFoundError, IsADirectoryError, KeyError, ValueError, TypeError),
    *(AttributeError, RecursionError),
    SafetensorError,
)


def save_checkpoint(
    file: Path,
    network: nn.Module,
    optimiser: Optimizer,
    scaler: GradScaler,
    rows: Sequence[dict[str, float]],
    terms: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Write trained parameters, the optimiser's state and the log so far, on rank 0 alone.

    Written aside and renamed, without pickle.  terms: of the steps of an epoch that is not over,
    in blocks of some steps each, (n,) a term.
    """
    if not ranks.is_main():
        return
    parameters = network.named_parameters()
    tensors = {f"network/{name}": p.detach() for name, p in parameters if p.requires_grad}
    for index, state in optimiser.state_dict()["state"].items():
        kept = {name: value for name, value in state.items() if value is not None}
        tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(v) for name, v in kept.items()}
    if terms:
        tensors |= {f"terms/{k}": torch.cat([block[k] for block in terms]) for k in terms[0]}
    tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
    content = {"rows": list(rows), "scaler": scaler.state_dict(), "beside": _beside(file)}
    metadata = {name: json.dumps(value) for name, value in content.items()}
    with paths.replacing(file) as aside:
        save_file(tensors, aside, metadata=metadata | {"digest": _digest(tensors, metadata)})


def resume(
    file: Path, network: nn.Module, optimiser: Optimizer, scaler: GradScaler
) -> tuple[list[dict[str, float]], list[dict[str, Tensor]]]:
    """Load a checkpoint; returns its log, and the terms of an epoch that was not over, one block.

    Two empty lists where there is no file.  A checkpoint that is damaged or of another network is
    reported by a warning, and nothing of it is loaded.  Every rank reads rank 0's file.
    """
    file = Path(ranks.same(str(file)))
    if not ranks.same(file.is_file()):
        return [], []
    trained = {f"network/{name}": p for name, p in network.named_parameters() if p.requires_grad}
    try:
        with _opened(file) as opened:
            names = opened.keys()
            tensors = {name: opened.get_tensor(name) for name in names}
            metadata = dict(opened.metadata())
        if metadata.pop("digest") != _digest(tensors, metadata):
            raise ValueError("its contents do not match their digest")
        if any(tensors[name].shape != p.shape for name, p in trained.items()):
            raise ValueError("it belongs to another network")
        rows, scale = _field(metadata, "rows"), _field(metadata, "scaler")
    except DAMAGE as error:
        _warn(file, error)
        return [], []
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
    state = optimiser.state_dict()
    for name, tensor in tensors.items():
        kind, index, *field = name.split("/")
        if kind == "optimiser":
            state["state"].setdefault(int(index), {})[field[0]] = tensor
    optimiser.load_state_dict(state)
    scaler.load_state_dict(scale)
    terms = {k.removeprefix("terms/"): t for k, t in tensors.items() if k.startswith("terms/")}
    return rows, [terms] if terms else []


def tidy(folder: Path) -> None:
    """Leave in the folder of a killed training its checkpoint, and the files that this vouches for.

    These are cut to what they were.  Where one of them is missing or different, nothing stays, and
    a warning says so.
    """
    kept: dict[Path, int] = {}
    if (file := folder / NAME).is_file():
        try:
            kept = _vouched(file)
        except DAMAGE as error:
            _warn(file, error)
    for path in sorted(folder.rglob("*"), reverse=True):  # before the folder that it is in
        if path in kept:
            os.truncate(path, kept[path])
        elif path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def _vouched(file: Path) -> dict[Path, int]:
    """A checkpoint and the files beside it, with the sizes that it knows of them."""
    with _opened(file) as opened:
        beside = _field(opened.metadata(), "beside")
    kept = {file: file.stat().st_size}
    for name, (size, digest) in beside.items():
        other = file.with_name(name)
        if hashlib.sha256(other.read_bytes()[:size]).hexdigest() != digest:
            raise ValueError(f"{name} beside it is another one")
        kept[other] = size
    return kept


def _beside(file: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of the files in a checkpoint's folder."""
    others = [f for f in sorted(file.parent.iterdir()) if f.is_file() and f.name[0] != "."]
    contents = {other.name: other.read_bytes() for other in others if other != file}
    return {name: (len(c), hashlib.sha256(c).hexdigest()) for name, c in contents.items()}


def _opened(file: Path) -> Any:
    """A checkpoint's tensors and metadata.  Raises PermissionError, which is no damage."""
    with file.open("rb"):
        return safe_open(file, framework="pt")


def _field(metadata: Mapping[str, str], name: str) -> Any:
    value = json.loads(metadata[name])
    if not isinstance(value, FIELDS[name]):
        raise ValueError(f"its {name} are {value!r}")
    return value


def _warn(file: Path, error: Exception) -> None:
    problem = f"checkpoint {file.name} is damaged ({error}): training starts again"
    warnings.warn(problem, stacklevel=3)


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of names, types, shapes and values of tensors, and of metadata but the digest itself."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
