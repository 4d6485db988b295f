"""The training loop on networks of a few weights:

seeds, resume after a kill, divergence, epochs, order, streams.
"""

import json
import math
import os
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from aeft_lib.engine import checkpoint as checkpoints
from aeft_lib.engine import loop
from aeft_lib.engine.loop import TrainingDiverged, epoch_order, fit, stream
from aeft_lib.engine.schedule import OPTIMISERS, Schedule, make_optimiser
from aeft_lib.engine.step import Compute, Objective

N = 20


class Tiny(nn.Module):
    """A backbone with a frozen part and a convolution, and a head:

    the names that `make_optimiser` looks at.
    """

    def __init__(self, channels_last: bool = False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.backbone = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
            self.backbone[0].requires_grad_(False)
            self.head = nn.Linear(4, 3)
        if channels_last:
            self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.head(self.backbone(x).relu().mean(dim=(2, 3)))


def schedule(**changes) -> Schedule:
    plain = {
        "epochs": 4,
        "batch_size": 6,
        "lr": 0.05,
        "head_lr": 0.1,
        "weight_decay": 0.01,
        "warmup_steps": 2,
    }
    return Schedule(**plain | changes)


def samples():
    """Inputs (N, 2, 5, 5) and targets (N, 3)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(N, 2, 5, 5, generator=generator), (
        torch.rand(N, 3, generator=generator) > 0.5
    ).float()


class Picked(NamedTuple):
    """indices: (b,) which samples.  inputs: (b, 2, 5, 5)."""

    indices: torch.Tensor
    inputs: torch.Tensor


def train(network=None, *, seed=0, checkpoint=None, poison=None, **changes):
    """Train on `samples` with noise from the generator; `poison` maps the batch's indices to what
    the loss is multiplied by.

    changes: of the schedule, and what else `fit` takes.
    """
    network = Tiny() if network is None else network
    x, y = samples()
    rest = {
        name: changes.pop(name)
        for name in ("after_epoch", "compute", "progress")
        if name in changes
    }

    def batch(indices, generator, wanted):
        noise = torch.randn(x[indices].shape, generator=generator)
        return Picked(indices[wanted], (x[indices] + 0.1 * noise)[wanted])

    def measure(net, picked):
        return {
            "indices": picked.indices,
            "logits": net(picked.inputs),
            "size": net.head.weight.square().sum()[None],
        }

    def combine(measures):
        factor = poison(measures["indices"]) if poison else 1.0
        fitted = nn.functional.binary_cross_entropy_with_logits(
            measures["logits"], y[measures["indices"]]
        )
        return {"fit": factor * fitted, "size": 0.01 * measures["size"].mean()}

    options = {
        "batch": batch,
        "objective": Objective(measure, combine),
        "schedule": schedule(**changes),
        "seed": seed,
    }
    return network, fit(network, n_samples=N, checkpoint=checkpoint, **options, **rest)


def loaded(file, network: nn.Module):
    """The log and the terms of a checkpoint, which is loaded into the network."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return checkpoints.resume(file, network, make_optimiser(network, schedule()), scaler)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether all weights are equal, bit for bit."""
    return all(
        torch.equal(p, q)
        for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# --- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_same_seed_same_weights_other_seed_others(optimiser):
    first, first_rows = train(optimiser=optimiser)
    torch.manual_seed(1234)  # the global generator has no say
    again, rows = train(optimiser=optimiser)
    other, other_rows = train(optimiser=optimiser, seed=1)
    assert same(first, again)
    assert rows == first_rows
    assert not same(first, other)
    assert other_rows != first_rows


def test_log_has_a_row_an_epoch_and_the_loss_falls():
    _, rows = train(epochs=30)
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    assert list(rows[0]) == ["epoch", "lr", "fit", "size"]
    assert rows[-1]["fit"] < 0.9 * rows[0]["fit"]
    assert rows[-1]["lr"] == pytest.approx(0.1 * schedule().factor(89, 90))


def test_frozen_weights_stay():
    before = Tiny()
    after, _ = train()
    assert torch.equal(after.backbone[0].weight, before.backbone[0].weight)
    assert not torch.equal(after.backbone[1].weight, before.backbone[1].weight)
    assert not torch.equal(after.head.weight, before.head.weight)


# --- resume --------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of a process."""


def kill_after(monkeypatch, epochs):
    """Let training end right after the checkpoint of that epoch was written; returns what undoes it."""
    save = loop.save_checkpoint

    def save_and_die(file, network, optimiser, scaler, rows, terms=()):
        save(file, network, optimiser, scaler, rows, terms)
        if not terms and len(rows) == epochs:
            raise Killed

    monkeypatch.setattr(loop, "save_checkpoint", save_and_die)
    return lambda: monkeypatch.setattr(loop, "save_checkpoint", save)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "adamw"},
        {"optimiser": "sgd"},
        {"optimiser": "sgd", "momentum": 0.0},
        {"optimiser": "sgd", "steps_per_epoch": 2, "decay_steps": 5},
    ],
    ids=str,
)
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, changes, channels_last):
    whole, whole_rows = train(Tiny(channels_last), checkpoint=tmp_path / "whole", **changes)
    checkpoint = tmp_path / "checkpoint"
    mend = kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        train(Tiny(channels_last), checkpoint=checkpoint, **changes)
    mend()
    assert checkpoint.is_file()
    asked = []
    monkeypatch.setattr(
        loop, "epoch_order", lambda *words: (asked.append(words[3]), epoch_order(*words))[1]
    )
    resumed, rows = train(Tiny(channels_last), checkpoint=checkpoint, **changes)
    assert asked == [2, 3]  # two epochs were not trained twice
    assert rows == whole_rows
    assert same(resumed, whole)
    assert os.listdir(tmp_path) == []


def test_killed_within_an_epoch_goes_on_from_the_epoch_before(tmp_path):
    whole, whole_rows = train()
    checkpoint, steps = tmp_path / "checkpoint", []

    def die(indices):
        steps.append(indices)
        if len(steps) == 8:  # the middle of epoch 3, three steps each
            raise Killed
        return 1.0

    with pytest.raises(Killed):
        train(checkpoint=checkpoint, poison=die)
    network = Tiny()
    rows, terms = loaded(checkpoint, network)
    assert (len(rows), terms) == (2, [])
    resumed, rows = train(checkpoint=checkpoint)
    assert rows == whole_rows
    assert same(resumed, whole)


def test_killed_between_last_checkpoint_and_end(tmp_path, monkeypatch):
    whole, whole_rows = train()
    mend = kill_after(monkeypatch, 4)
    with pytest.raises(Killed):
        train(checkpoint=tmp_path / "checkpoint")
    mend()
    resumed, rows = train(checkpoint=tmp_path / "checkpoint")
    assert rows == whole_rows
    assert same(resumed, whole)
    assert not (tmp_path / "checkpoint").exists()


def test_half_written_checkpoint_does_not_replace_the_last(tmp_path, monkeypatch):
    whole, _ = train()
    checkpoint = tmp_path / "checkpoint"
    mend = kill_after(monkeypatch, 1)
    with pytest.raises(Killed):
        train(checkpoint=checkpoint)
    mend()

    def half(tensors, file, metadata):
        file.write_bytes(b"\x10")
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_file", half)
        with pytest.raises(Killed):
            train(checkpoint=checkpoint)
    assert same(train(checkpoint=checkpoint)[0], whole)


DAMAGES = {
    "empty": lambda f: os.truncate(f, 0),
    "truncated": lambda f: os.truncate(f, f.stat().st_size - 10),
    "noise": lambda f: f.write_bytes(bytes(range(256)) * 8),
    "another file": lambda f: save_file({"a": torch.zeros(1)}, f),
    "another log": lambda f: save_file({"a": torch.zeros(1)}, f, metadata={"rows": "not json"}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_is_said_and_training_starts_over(tmp_path, monkeypatch, damage):
    whole, whole_rows = train()
    checkpoint = tmp_path / "checkpoint"
    mend = kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        train(checkpoint=checkpoint)
    mend()
    damage(checkpoint)
    with pytest.warns(UserWarning, match=r"checkpoint is damaged.*starts again"):
        again, rows = train(checkpoint=checkpoint)
    assert rows == whole_rows
    assert same(again, whole)
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    "tensors",
    [{"a": torch.zeros(1)}, {"network/head.bias": torch.zeros(7)}],
    ids=["missing", "shape"],
)
def test_checkpoint_of_another_network_is_said_and_training_starts_over(tmp_path, tensors):
    whole, whole_rows = train()
    told = {"rows": json.dumps(whole_rows[:2]), "scaler": "{}"}
    told["digest"] = checkpoints._digest(tensors, told)
    save_file(tensors, tmp_path / "checkpoint", metadata=told)
    with pytest.warns(UserWarning, match=r"network.*starts again"):
        again, _ = train(checkpoint=tmp_path / "checkpoint")
    assert same(again, whole)


def test_flipped_bit_in_a_checkpoint_is_found(tmp_path, monkeypatch):
    whole, _ = train()
    checkpoint = tmp_path / "checkpoint"
    mend = kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        train(checkpoint=checkpoint)
    mend()
    content = bytearray(checkpoint.read_bytes())
    content[-2] ^= 0x10
    checkpoint.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="digest"):
        again, _ = train(checkpoint=checkpoint)
    assert same(again, whole)


def test_checkpoint_holds_what_is_trained_and_no_pickle(tmp_path, monkeypatch):
    kill_after(monkeypatch, 1)
    with pytest.raises(Killed):
        train(checkpoint=tmp_path / "checkpoint")
    tensors = load_file(tmp_path / "checkpoint")
    network = {name for name in tensors if name.startswith("network/")}
    assert network == {
        f"network/{part}"
        for part in ("backbone.1.weight", "backbone.1.bias", "head.weight", "head.bias")
    }
    assert {name.split("/")[2] for name in tensors if name.startswith("optimiser/")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


# --- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "check_every"), [(math.nan, 20), (math.inf, 20), (math.nan, 1)])
def test_divergence_names_step_samples_and_checkpoint(tmp_path, monkeypatch, value, check_every):
    """Step 7 is the second of the third epoch; the first of its samples is the culprit, wherever the order puts it."""
    monkeypatch.setattr(loop, "CHECK_EVERY", check_every)
    batches = [list(epoch_order(N, 6, 0, epoch)) for epoch in range(3)]
    culprits, calls = batches[2][1].tolist(), []

    def poison(indices):
        calls.append(indices.tolist())
        return value if len(calls) - 1 == 7 else 1.0

    with pytest.raises(TrainingDiverged) as caught:
        train(checkpoint=tmp_path / "checkpoint", poison=poison)
    message = str(caught.value)
    assert "step 7 (epoch 3)" in message
    assert f"samples {culprits}" in message
    assert calls[7] == culprits
    assert f"last good checkpoint is {tmp_path / 'checkpoint'}" in message
    assert "learning rate (now 0.05 and 0.1)" in message
    network = Tiny()
    rows, terms = loaded(tmp_path / "checkpoint", network)
    assert terms == []
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(p.isfinite().all() for p in network.parameters())
    assert same(
        train(checkpoint=tmp_path / "checkpoint")[0], train()[0]
    )  # the samples mended, the run goes on


def test_a_loss_that_is_not_finite_is_never_in_a_checkpoint_within_an_epoch(tmp_path):
    """Step 7 is not finite; the checkpoint that is asked for after it stays as it was after step 6."""
    steps = []
    with pytest.raises(TrainingDiverged, match="step 7"):
        train(
            checkpoint=tmp_path / "checkpoint",
            compute=Compute(checkpoint_every=1),
            poison=lambda _: math.nan if steps.append(0) or len(steps) == 8 else 1.0,
        )
    rows, (block,) = loaded(tmp_path / "checkpoint", Tiny())
    assert len(rows) == 2
    assert {name: len(values) for name, values in block.items()} == {"fit": 1, "size": 1}
    assert all(values.isfinite().all() for values in block.values())


@pytest.mark.parametrize(("every", "blocks"), [(0, [2, 2, 1]), (1, [1] * 5), (3, [2, 1, 1, 1])])
def test_every_step_is_checked_once_and_the_log_is_the_same(tmp_path, monkeypatch, every, blocks):
    """Work of an epoch is linear in its steps: a check reads the steps since the last one alone."""
    options = {"epochs": 2, "batch_size": 4, "compute": Compute(checkpoint_every=every)}
    whole, whole_rows = train(**options)  # five steps an epoch, one check
    lengths, checked = [], loop._Run._checked
    monkeypatch.setattr(loop, "CHECK_EVERY", 2)
    monkeypatch.setattr(
        loop._Run,
        "_checked",
        lambda run, epoch, done, recent: (
            lengths.append(len(recent)) or checked(run, epoch, done, recent)
        ),
    )
    network, rows = train(checkpoint=tmp_path / "checkpoint", **options)
    assert lengths == 2 * blocks
    assert rows == whole_rows
    assert same(network, whole)


def test_divergence_in_the_first_epoch_has_no_checkpoint(tmp_path):
    with pytest.raises(
        TrainingDiverged, match=r"step 0 \(epoch 1\), samples .*; no epoch was finished"
    ):
        train(checkpoint=tmp_path / "checkpoint", poison=lambda _: math.nan)
    with pytest.raises(TrainingDiverged, match="no epoch was finished"):
        train(poison=lambda _: math.nan)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("bad_step", "epoch"), [(2, 1), (11, 4)], ids=["end of the first epoch", "last step"]
)
def test_weights_that_are_not_finite_are_never_called_good(tmp_path, bad_step, epoch):
    """The square root has an infinite slope at 0: the loss is finite, its gradient is not."""
    network, steps, (x, _) = Tiny(), [], samples()

    def combine(measures):
        steps.append(0)
        out = measures["out"]
        fitted = nn.functional.mse_loss(out, torch.zeros_like(out))
        return {
            "fit": fitted + ((out * 0).square().sum().sqrt() if len(steps) - 1 == bad_step else 0)
        }

    with pytest.raises(TrainingDiverged, match=f"epoch {epoch}"):
        fit(
            network,
            n_samples=N,
            batch=lambda indices, _, wanted: Picked(indices[wanted], x[indices[wanted]]),
            objective=Objective(lambda net, picked: {"out": net(picked.inputs)}, combine),
            schedule=schedule(),
            seed=0,
            checkpoint=tmp_path / "checkpoint",
        )
    if (tmp_path / "checkpoint").exists():
        assert all(t.isfinite().all() for t in load_file(tmp_path / "checkpoint").values())


# --- epochs of a given length, and what is done after each ---------------------------------------


def shown(**options) -> tuple[list[list[int]], list[dict[str, float]]]:
    """The samples of every step, and the log."""
    steps = []
    _, rows = train(poison=lambda indices: steps.append(indices.tolist()) or 1.0, **options)
    return steps, rows


def test_an_epoch_ends_after_the_steps_asked_for():
    steps, rows = shown(epochs=3, steps_per_epoch=2)
    assert steps == [
        batch.tolist() for epoch in range(3) for batch in list(epoch_order(N, 6, 0, epoch))[:2]
    ]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    rates = schedule(epochs=3, steps_per_epoch=2)
    assert [row["lr"] for row in rows] == pytest.approx(
        [0.1 * rates.factor(step, 6) for step in (1, 3, 5)]
    )


@pytest.mark.parametrize("asked", [3, 4, 100])
def test_an_epoch_is_one_pass_at_most(asked):
    assert shown(steps_per_epoch=asked) == shown()


def test_after_every_epoch_its_weights_can_be_kept_before_its_checkpoint_is_written(tmp_path):
    network, calls, checkpoint = Tiny(), [], tmp_path / "checkpoint"

    def keep(epoch):
        calls.append((epoch, network.head.weight.detach().clone(), checkpoint.exists()))

    train(network, checkpoint=checkpoint, after_epoch=keep, epochs=3)
    assert [(epoch, there) for epoch, _, there in calls] == [(1, False), (2, True), (3, True)]
    assert torch.equal(calls[-1][1], network.head.weight)
    assert not torch.equal(calls[0][1], calls[1][1])
    assert not checkpoint.exists()


def test_resumed_epochs_are_not_called_again_but_one_killed_while_it_was_kept_is(tmp_path):
    calls, checkpoint = [], tmp_path / "checkpoint"

    def keep(epoch):
        calls.append(epoch)
        if calls == [1, 2]:
            raise Killed

    with pytest.raises(Killed):
        train(checkpoint=checkpoint, after_epoch=keep)
    resumed, _ = train(checkpoint=checkpoint, after_epoch=keep)
    assert calls == [1, 2, 2, 3, 4]
    assert same(resumed, train()[0])


# --- order and streams ---------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(20, 6), (18, 6), (6, 6), (7, 1)])
def test_epoch_shows_every_sample_at_most_once_and_drops_the_rest(n, size):
    batches = list(epoch_order(n, size, 3, 1))
    shown = torch.cat(batches).tolist()
    assert all(len(b) == size for b in batches)
    assert len(shown) == len(set(shown)) == n - n % size
    assert set(shown) <= set(range(n))


def test_order_depends_on_seed_and_epoch_alone():
    def order(*words):
        return torch.cat(list(epoch_order(50, 5, *words))).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_streams_of_different_paths_differ():
    paths = [(s, p, e, i) for s in range(3) for p in range(2) for e in range(3) for i in range(3)]
    draws = {tuple(torch.randint(2**40, (4,), generator=stream(*path)).tolist()) for path in paths}
    assert len(draws) == len(paths)
    assert torch.equal(
        torch.rand(3, generator=stream(4, 1, 2, 3)), torch.rand(3, generator=stream(4, 1, 2, 3))
    )


def test_fewer_samples_than_a_batch():
    with pytest.raises(ValueError, match="20 samples cannot fill a batch of 21"):
        train(batch_size=21)
