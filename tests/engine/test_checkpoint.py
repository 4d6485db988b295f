"""kill -9 in the middle of an epoch, then the same command again: the same weights, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aeft_lib import paths
from aeft_lib.engine import checkpoint, loop
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
    with (tmp_path / "killed" / fitting.STEPS).open("a") as log:
        log.write('{"step": 4, "st')  # killed in the middle of a write
    train(tmp_path / "killed")
    assert (tmp_path / "whole" / fitting.STEPS).read_bytes() == (
        tmp_path / "killed" / fitting.STEPS
    ).read_bytes()


# --- damage --------------------------------------------------------------------------------------


def state() -> tuple:
    network = Net()
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    return network, optimiser, torch.amp.GradScaler("cpu")


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of two epochs with a log beside it; `tidy` and `resume` leave it as it is."""
    (tmp_path / fitting.STEPS).write_text('{"step": 4}\n')
    file = tmp_path / checkpoint.NAME
    checkpoint.save_checkpoint(file, *state(), [{"epoch": 1, "lr": 0.1}, {"epoch": 2, "lr": 0.1}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.tidy(tmp_path)
        assert len(checkpoint.resume(file, *state())[0]) == 2
    return file


def edited(file: Path, **changes: str | None) -> None:
    """The same file with other metadata; None deletes a field."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() | changes
    save_file(tensors, file, {name: v for name, v in metadata.items() if v is not None})


EDITS = {"null": "null", "deleted": None, "other": '[{"epoch": 9}]', "text": "{", "empty": "{}"}


@pytest.mark.parametrize("field", ["rows", "scaler", "beside", "digest"])
@pytest.mark.parametrize("edit", EDITS)
def test_edited_metadata_is_damage(saved, field, edit):
    edited(saved, **{field: EDITS[edit]})
    with pytest.warns(UserWarning, match="is damaged.*training starts again"):
        assert checkpoint.resume(saved, *state()) == ([], [])


@pytest.mark.parametrize("field", ["rows", "scaler"])
def test_metadata_of_another_type_is_damage_even_with_its_digest(saved, field):
    with safe_open(saved, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() | {field: "null"}
    del metadata["digest"]
    save_file(tensors, saved, metadata | {"digest": checkpoint._digest(tensors, metadata)})
    with pytest.warns(UserWarning, match=f"its {field} are None"):
        assert checkpoint.resume(saved, *state()) == ([], [])


def test_no_flipped_bit_is_resumed_from(saved):
    """Every 7th byte: header, metadata and tensors; none is loaded and none raises."""
    whole = saved.read_bytes()
    for place in range(0, len(whole), 7):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        own = state()
        before = [p.clone() for p in own[0].parameters()]
        with pytest.warns(UserWarning, match="is damaged"):
            assert checkpoint.resume(saved, *own) == ([], []), place
        assert all(torch.equal(p, q) for p, q in zip(own[0].parameters(), before, strict=True))


@pytest.mark.parametrize("damage", ["another log", "a short log", "no log", "no checkpoint"])
def test_leftovers_are_trusted_no_more_than_the_checkpoint_beside_them(saved, damage):
    log = saved.with_name(fitting.STEPS)
    if damage == "no checkpoint":
        saved.unlink()
    elif damage == "no log":
        log.unlink()
    else:
        log.write_text({"another log": '{"step": 5}\n', "a short log": "{"}[damage])
    with pytest.warns(UserWarning, match="starts again") if saved.is_file() else nullcontext():
        checkpoint.tidy(saved.parent)
    assert list(saved.parent.iterdir()) == []


def test_what_came_after_the_checkpoint_is_cut(saved):
    log = saved.with_name(fitting.STEPS)
    with log.open("a") as lines:
        lines.write('{"step": 5}\n{"st')
    (saved.parent / "epoch_3.safetensors").write_bytes(b"half")
    (saved.parent / "stray").mkdir()
    (saved.parent / "stray" / "file").touch()
    checkpoint.tidy(saved.parent)
    assert json.loads(log.read_text()) == {"step": 4}
    assert {file.name for file in saved.parent.iterdir()} == {checkpoint.NAME, fitting.STEPS}


def test_a_checkpoint_that_may_not_be_read_is_not_damaged(saved, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(saved))

    monkeypatch.setattr(Path, "open", refuse)
    for read in (lambda: checkpoint.resume(saved, *state()), lambda: checkpoint.tidy(saved.parent)):
        with pytest.raises(PermissionError):
            read()
    assert saved.is_file()
