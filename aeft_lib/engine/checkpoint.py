"""The checkpoint of a training: a kill at any moment leaves the old one or the new one, whole."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from aeft_lib.engine import ranks


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
    metadata = {"rows": json.dumps(list(rows)), "scaler": json.dumps(scaler.state_dict())}
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    save_file(tensors, aside, metadata=metadata | {"digest": _digest(tensors)})
    aside.replace(file)


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
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            tensors = {name: opened.get_tensor(name) for name in names}
            rows, scale, digest = (opened.metadata()[k] for k in ("rows", "scaler", "digest"))
        if digest != _digest(tensors):
            raise ValueError("its contents do not match their digest")
        if any(tensors[name].shape != p.shape for name, p in trained.items()):
            raise ValueError("it belongs to another network")
        rows, scale = json.loads(rows), json.loads(scale)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        problem = f"checkpoint {file.name} is damaged ({error}): training starts again"
        warnings.warn(problem, stacklevel=2)
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


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
