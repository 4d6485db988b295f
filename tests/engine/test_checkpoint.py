"""kill -9 in the middle of an epoch, then the same command again: the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aeft_lib import paths
from aeft_lib.engine import loop
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import Compute, Objective
from aeft_lib.stages import fitting

N, PER_EPOCH = 24, 4


class Samples(NamedTuple):
    x: Tensor
    y: Tensor


class Net(nn.Module):
    """A network with dropout and, by its optimiser, momentum: all that a checkpoint has to hold."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
            )

    def forward(self, x):
        return self.layers(x)


def train(folder: Path, kill_before: int = 0, **compute) -> None:
    """Three epochs of four steps; the process ends itself, as kill -9 would, when batch number `kill_before` is asked for."""
    data = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 5, generator=data), (torch.rand(N, 3, generator=data) > 0.5).float()
    asked = 0

    def batch(indices: Tensor, generator: torch.Generator, wanted: slice) -> Samples:
        nonlocal asked
        asked += 1
        if asked == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return Samples(
            (x[indices] + 0.1 * torch.randn(len(indices), 5, generator=generator))[wanted],
            y[indices][wanted],
        )

    def measure(net: nn.Module, samples: Samples) -> dict[str, Tensor]:
        return {"logits": net(samples.x), "y": samples.y}

    def combine(measures: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "fit": nn.functional.binary_cross_entropy_with_logits(measures["logits"], measures["y"])
        }

    schedule = Schedule(
        3, N // PER_EPOCH, lr=0.1, head_lr=0.1, weight_decay=1e-3, warmup_steps=0, optimiser="sgd"
    )
    options = {
        "schedule": schedule,
        "seed": 4,
        "objective": Objective(measure, combine),
        "compute": Compute(**compute),
    }
    folder.mkdir(exist_ok=True)
    network = Net()
    rows = loop.fit(network, n_samples=N, batch=batch, **options, **fitting.options(folder))
    fitting.finish(network, folder, rows)


def killed(folder: Path, kill_before: int, checkpoint_every: int) -> None:
    call = f"t.train(pathlib.Path({str(folder)!r}), {kill_before}, checkpoint_every={checkpoint_every})"
    code = f"import test_checkpoint as t, pathlib; {call}"
    where = os.pathsep.join([str(Path(__file__).parent), str(paths.ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": where},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("kill_before", "checkpoint_every"), [(4, 1), (7, 2), (10, 3), (3, 0), (6, 0)]
)
def test_killed_within_an_epoch_it_ends_with_the_same_weights_and_logs(
    tmp_path, kill_before, checkpoint_every
):
    train(tmp_path / "whole", checkpoint_every=checkpoint_every)
    killed(tmp_path / "killed", kill_before, checkpoint_every)
    assert not (tmp_path / "killed" / fitting.WEIGHTS).exists()
    train(tmp_path / "killed", checkpoint_every=checkpoint_every)
    one, two = (load_file(tmp_path / name / fitting.WEIGHTS) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for log in (fitting.LOG, fitting.STEPS):
        assert (tmp_path / "whole" / log).read_bytes() == (tmp_path / "killed" / log).read_bytes()
    assert {file.name for file in (tmp_path / "killed").iterdir()} == {
        fitting.WEIGHTS,
        fitting.LOG,
        fitting.STEPS,
    }


def test_it_does_resume_within_the_epoch(tmp_path):
    """What was computed is not computed again:

    a second run asks for the steps after the checkpoint alone.
    """
    killed(tmp_path / "killed", 8, 2)  # steps 1 to 7 done, a checkpoint after step 6
    seen = []
    lines = fitting._progress

    def spy(folder: Path):
        report = lines(folder)
        return lambda row: (seen.append(row["step"]), report(row))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fitting, "_progress", spy)
        train(
            tmp_path / "killed", kill_before=7, checkpoint_every=2
        )  # six batches are left: the seventh is never asked for
    assert seen == [8, 12]


def test_a_half_written_log_of_steps_does_not_stop_a_restart(tmp_path):
    train(tmp_path / "whole")
    killed(tmp_path / "killed", 7, 1)
    (tmp_path / "killed" / f".{fitting.STEPS}").write_text(
        '{"step": 4, "st'
    )  # killed in the middle of a write
    train(tmp_path / "killed")
    assert (tmp_path / "whole" / fitting.STEPS).read_bytes() == (
        tmp_path / "killed" / fitting.STEPS
    ).read_bytes()
