"""What every stage that trains has in common: its checkpoint while it runs, its weights and logs when it has run."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device
from aeft_lib.networks import state
from aeft_lib.stages.store import Artefact

WEIGHTS, LOG, STEPS, CHECKPOINT = "weights.safetensors", "log.csv", "steps.jsonl", "checkpoint.safetensors"
TENSORBOARD = "AEFT_TENSORBOARD"
_ready: dict[tuple[str, Path], nn.Module] = {}
LONG = 1000  # steps from which on a training has a bar of its own


def fit(network: nn.Module, folder: Path, **course: Any) -> dict[str, float | str]:
    """`training.fit` in a stage's folder: write ``weights.safetensors`` (trained tensors), ``log.csv`` and ``steps.jsonl``.

    course: what `training.fit` takes besides network, checkpoint and progress.  Returns the last epoch's row, and the device.
    ``steps.jsonl`` has a line per look at the loss: step, steps, lr, terms.  They go to TensorBoard as well where
    ``AEFT_TENSORBOARD`` names a folder.
    """
    rows = loop.fit(network, checkpoint=folder / CHECKPOINT, progress=_progress(folder), **course)
    if ranks.is_main():
        state.save_trained(network, folder / WEIGHTS)
        pd.DataFrame(rows).to_csv(folder / LOG, index=False)
    return {**{name: value for name, value in rows[-1].items() if name != "epoch"}, "device": str(device())}


def _progress(folder: Path) -> Callable[[dict[str, float]], None]:
    """What is done at every look at the loss: a line to the log, a point to TensorBoard, for a long training a bar."""
    board = _board(folder) if os.environ.get(TENSORBOARD) and ranks.is_main() else None
    log = folder / STEPS
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []

    bar = tqdm(disable=True)

    def report(seen: dict[str, float]) -> None:
        nonlocal bar
        if bar.disable and seen["steps"] >= LONG and not os.environ.get("AEFT_QUIET"):
            bar = tqdm(total=int(seen["steps"]), desc=folder.parent.name, unit="step", leave=False)
        bar.update(seen["step"] - bar.n)
        while lines and lines[-1]["step"] >= seen["step"]:  # of a run that was killed after its last checkpoint
            lines.pop()
        lines.append(seen)
        aside = log.with_name(f".{log.name}")
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        aside.replace(log)
        for name, value in seen.items() if board else ():
            board.add_scalar(name, value, seen["step"])

    return report


def ready(load: Callable[[Artefact], nn.Module], artefact: Artefact) -> nn.Module:
    """The network of an artefact on the device; a process keeps the last, so that shards of images do not load it anew."""
    key = (load.__name__, artefact.folder)
    if key not in _ready:
        _ready.clear()
        _ready[key] = load(artefact).to(device())
    return _ready[key]


def check_tensorboard() -> None:
    """Raises RuntimeError where ``AEFT_TENSORBOARD`` is set and TensorBoard is not installed."""
    if os.environ.get(TENSORBOARD) and importlib.util.find_spec("tensorboard") is None:
        raise RuntimeError(f"{TENSORBOARD} is set, but TensorBoard is not installed: pip install tensorboard")


def _board(folder: Path) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(Path(os.environ[TENSORBOARD]) / folder.parent.name / folder.stem))
