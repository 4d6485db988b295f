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

from aeft_lib.engine import ranks
from aeft_lib.engine.step import Stepper


def save_checkpoint(
    file: Path,
    network: nn.Module,
    stepper: Stepper,
    rows: Sequence[dict[str, float]],
    terms: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Write trained parameters, the optimiser's state and the log so far, atomically, without pickle; on rank 0 alone.

    terms: of the steps of an epoch that is not over.
    """
    if not ranks.is_main():
        return
    tensors = {f"network/{name}": p.detach() for name, p in network.named_parameters() if p.requires_grad}
    for index, state in stepper.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(value) for name, value in state.items() if value is not None}
    if terms:
        tensors |= {f"terms/{name}": torch.stack([step[name] for step in terms]) for name in terms[0]}
    tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
    metadata = {"rows": json.dumps(list(rows)), "scaler": json.dumps(stepper.scaler.state_dict()), "digest": _digest(tensors)}
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    save_file(tensors, aside, metadata=metadata)
    aside.replace(file)


def resume(file: Path, network: nn.Module, stepper: Stepper) -> tuple[list[dict[str, float]], list[dict[str, Tensor]]]:
    """Load a checkpoint into network and optimiser; returns its log, and the terms of an epoch that was not over.

    Two empty lists where there is none.  One that is damaged, or of another network, is said and left: nothing of it is loaded.
    Every rank reads rank 0's file.
    """
    file = Path(ranks.same(str(file)))
    if not ranks.same(file.is_file()):
        return [], []
    trained = {f"network/{name}": p for name, p in network.named_parameters() if p.requires_grad}
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            rows, scaler, digest = (opened.metadata()[name] for name in ("rows", "scaler", "digest"))
        if digest != _digest(tensors):
            raise ValueError("its contents do not match their digest")
        if any(tensors[name].shape != p.shape for name, p in trained.items()):
            raise ValueError("it belongs to another network")
        rows, scaler = json.loads(rows), json.loads(scaler)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        warnings.warn(f"checkpoint {file.name} is damaged ({error}): training starts again", stacklevel=2)
        return [], []
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
    state = stepper.optimiser.state_dict()
    for name, tensor in tensors.items():
        kind, index, *field = name.split("/")
        if kind == "optimiser":
            state["state"].setdefault(int(index), {})[field[0]] = tensor
    stepper.optimiser.load_state_dict(state)
    stepper.scaler.load_state_dict(scaler)
    kept = {name.removeprefix("terms/"): t for name, t in tensors.items() if name.startswith("terms/")}
    terms = {name: t.to(stepper.device).unbind() for name, t in kept.items()}
    return rows, [dict(zip(terms, values, strict=True)) for values in zip(*terms.values(), strict=True)]


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
