"""Curves of a ledger, as the tests of `studies.curves` and `lab.over_steps` write them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from aeft_lib.stages.store import RECORD

LABEL = "G − GAP"


def evaluated(home: Path, profile: str, row: str, repeat: int, **numbers: float) -> None:
    """What a row ended with."""
    folder = home / profile / row / str(repeat) / "evaluation"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({"key": "0", "summary": numbers}))


def counted(
    home: Path, profile: str, row: str, repeat: int, best: np.ndarray, scenes: str = "VocSpec"
) -> None:
    """The counts of a row's images: (3, N, K+1), see `count_images`.  scenes: class of their spec."""
    folder = home / profile / row / str(repeat) / "images"
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "images.npz", best=best.astype(np.int32))
    record = {"stage": "count_images", "key": "0", "summary": {"images": best.shape[1]}}
    record["spec"] = {"scenes": {"class": scenes}}
    (folder / RECORD).write_text(json.dumps(record))


def write(
    home: Path, profile: str, row: str, repeat: int, miou: list[float], **columns: Sequence[float]
) -> None:
    """A curve with so many points, 100 steps apart; its tag mAP stands still."""
    n = len(miou)
    folder = home / profile / row / str(repeat) / "curve"
    folder.mkdir(parents=True)
    points = np.arange(1, n + 1)
    table = pd.DataFrame({"point": points, "step": 100 * points, "part": points / n, "miou": miou})
    table = table.assign(precision=60.0, recall=70.0, half_area=0.1, tag_map=90.0)
    table.assign(**columns).to_csv(folder / "steps.csv", index=False)
