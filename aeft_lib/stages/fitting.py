"""Files of all stages that train: checkpoint and log while they run, weights at the end."""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn
from tqdm.auto import tqdm

from aeft_lib import paths
from aeft_lib.engine import checkpoint, ranks
from aeft_lib.engine.device import device
from aeft_lib.networks import state
from aeft_lib.stages.loading import WEIGHTS

LOG, STEPS = "log.csv", "steps.jsonl"
TENSORBOARD = "AEFT_TENSORBOARD"
LONG = 1000  # steps from which on a training has a bar of its own
Normalise = Callable[[Tensor], Tensor]


def options(folder: Path) -> dict[str, Any]:
    """``checkpoint`` and ``progress`` of `loop.fit` for a stage's folder.

    ``steps.jsonl`` gets a line per check of the loss: step, steps, lr, terms.  They go to
    TensorBoard as well where ``AEFT_TENSORBOARD`` names a folder.
    """
    return {"checkpoint": folder / checkpoint.NAME, "progress": _progress(folder)}


def finish(
    network: nn.Module, folder: Path, rows: Sequence[dict[str, float]]
) -> dict[str, float | str]:
    """Write ``weights.safetensors`` (trained tensors) and ``log.csv``; the last row, the device."""
    if ranks.is_main():
        state.save_trained(network, folder / WEIGHTS)
        pd.DataFrame(rows).to_csv(folder / LOG, index=False)
    last = {name: value for name, value in rows[-1].items() if name != "epoch"}
    return last | {"device": str(device())}


def _progress(folder: Path) -> Callable[[dict[str, float]], None]:
    """At every check of the loss: a line to the log, a point to TensorBoard, a bar."""
    board = _board(folder) if os.environ.get(TENSORBOARD) and ranks.is_main() else None
    log, begun, bar = folder / STEPS, False, tqdm(disable=True)

    def report(line: dict[str, float]) -> None:
        nonlocal begun, bar
        if bar.disable and line["steps"] >= LONG and not os.environ.get("AEFT_QUIET"):
            name = folder.parent.name
            bar = tqdm(total=int(line["steps"]), desc=name, unit="step", leave=False)
        bar.update(line["step"] - bar.n)
        if not begun:
            paths.write_text(log, "".join(_before(log, line["step"])))
            begun = True
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        for name, value in line.items() if board else ():
            board.add_scalar(name, value, line["step"])

    return report


def _before(log: Path, step: float) -> Iterator[str]:
    """A log's whole lines before a step: the rest is of a run killed after its last checkpoint."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    for line in text.splitlines(keepends=True):
        try:
            whole = line.endswith("\n") and json.loads(line)["step"] < step
        except (ValueError, KeyError, TypeError):
            return
        if whole:
            yield line


def check_tensorboard() -> None:
    """Raises RuntimeError where ``AEFT_TENSORBOARD`` is set and TensorBoard is not installed."""
    if os.environ.get(TENSORBOARD) and importlib.util.find_spec("tensorboard") is None:
        raise RuntimeError(
            f"{TENSORBOARD} is set, but TensorBoard is not installed: pip install tensorboard"
        )


def _board(folder: Path) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(Path(os.environ[TENSORBOARD]) / folder.parent.name / folder.stem))
