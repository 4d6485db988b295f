"""What every stage that trains has in common: its checkpoint while it runs, its weights and log when it has run."""

from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from aeft_lib import trained, training
from aeft_lib.devices import device

WEIGHTS, LOG = "weights.safetensors", "log.csv"


def fit(network: nn.Module, folder: Path, **course: Any) -> dict[str, float | str]:
    """`training.fit` in a stage's folder: write ``weights.safetensors`` (trained tensors) and ``log.csv``.

    course: what `training.fit` takes besides network and checkpoint.  Returns the last epoch's row, and the device.
    """
    rows = training.fit(network, checkpoint=folder / "checkpoint.safetensors", **course)
    trained.save_trained(network, folder / WEIGHTS)
    pd.DataFrame(rows).to_csv(folder / LOG, index=False)
    return {**{name: value for name, value in rows[-1].items() if name != "epoch"}, "device": str(device())}
