"""What several test modules share: the golden vectors and the measure that compares with them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def golden():
    """Load ``<name>.npz`` as a dict of arrays, from ``AEFT_GOLDEN`` where that is set, else from tests/golden."""
    folder = Path(os.environ.get("AEFT_GOLDEN") or Path(__file__).with_name("golden"))

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture
def assert_near():
    """Compare with a golden array; the tolerance is relative to its largest absolute value."""

    def compare(ours, theirs, tolerance: float, name: str) -> None:
        ours, theirs = (torch.as_tensor(x).detach().double() for x in (ours, theirs))
        assert ours.shape == theirs.shape, name
        worst, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
        assert worst <= tolerance * largest, f"{name}: differs by {worst:.3g}, allowed {tolerance} of {largest:.3g}"

    return compare


@pytest.fixture
def rng():
    """Random numbers that are the same everywhere."""
    return np.random.default_rng(0)
