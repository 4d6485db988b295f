"""One training loop for every network of the companion.

The loop knows neither data nor losses: it asks `batch` for samples by index, `stepping` takes a step on them, and a checkpoint
is written per epoch, or more often.  Order, augmentation and dropout are pure functions of (seed, step), so a run that is
killed and started again ends with the same weights, bit for bit on a CPU with the same number of threads.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib.engine import ranks
from aeft_lib.engine.checkpoint import resume, save_checkpoint
from aeft_lib.engine.step import PLAIN, Compute, Objective, Stepper

CHECK_EVERY = 20  # steps between looks at the loss: each look waits for the device
OPTIMISERS = ("adamw", "sgd")


class TrainingDiverged(RuntimeError):
    """The loss is no longer finite; the message names step, samples and the last good checkpoint."""


@dataclass(frozen=True)
class Schedule:
    """Optimiser and its course.

    lr: of backbone parameters.  head_lr: of everything else.  warmup_steps: linear from 0; then poly, (1 - step/steps)^power.
    decay_steps: length of the poly course where it is not the number of steps (0); beyond its end the rate stays as it was.
    decay_from: steps of that course that an earlier phase has taken.
    steps_per_epoch: after how many steps an epoch is over; 0 is one pass over the samples.
    """

    epochs: int
    batch_size: int
    lr: float
    head_lr: float
    weight_decay: float
    warmup_steps: int
    poly_power: float = 0.9
    optimiser: str = "adamw"
    momentum: float = 0.9
    decay_steps: int = 0
    steps_per_epoch: int = 0
    decay_from: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "warmup_steps", "decay_steps", "steps_per_epoch", "decay_from"):
            least, value = int(name in ("epochs", "batch_size")), getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
        for name in ("lr", "head_lr", "weight_decay", "poly_power", "momentum"):
            value, zero_allowed = getattr(self, name), name not in ("lr", "head_lr")
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and not zero_allowed):
                kind = "not negative" if zero_allowed else "positive"
                raise ValueError(f"{name} must be a finite number and {kind}, got {value!r}")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser must be one of {', '.join(OPTIMISERS)}, got {self.optimiser!r}")

    def epoch_steps(self, n_samples: int) -> int:
        """Steps of one epoch: `steps_per_epoch`, or as many whole batches as the samples fill, whichever is less."""
        whole = n_samples // self.batch_size
        return min(self.steps_per_epoch or whole, whole)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied by in `step` (0-based) of `steps`."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        length = self.decay_steps or steps
        return warm * (1 - min(step + self.decay_from, length - 1) / length) ** self.poly_power


def fit(
    network: nn.Module,
    *,
    n_samples: int,
    batch: Callable[[Tensor, torch.Generator, slice], NamedTuple],
    objective: Objective,
    schedule: Schedule,
    seed: int,
    compute: Compute = PLAIN,
    checkpoint: Path | None = None,
    after_epoch: Callable[[int], None] | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train `network` in place; returns one row per epoch: epoch, lr, and the mean of every term.

    batch: (sample indices (b,) int64 of the whole batch, generator for augmentation, which of them are wanted) -> those
        samples, on the CPU, as a tuple of tensors or None that `objective` takes.  A pure function, so threads may call it.
    objective: see `stepping.Objective`.  compute: how steps are computed.
    after_epoch: called with the number of every finished epoch, 1 the first, before its checkpoint is written.
    checkpoint: file that is written after every epoch, and within one where `compute` asks for it; resumed from where it
        exists, and removed at the end.  progress: called with step, steps, lr and terms at every look at the loss.
    Under torchrun every rank calls it; files are written by rank 0.
    Raises TrainingDiverged where the loss is not finite, ValueError where there are fewer samples than one batch.
    """
    if n_samples < schedule.batch_size:
        raise ValueError(f"{n_samples} samples cannot fill a batch of {schedule.batch_size}")
    stepper = Stepper(network, make_optimiser(network, schedule), objective, compute)
    course = _Course(network, stepper, schedule, batch, n_samples, seed, checkpoint, progress)
    rows, terms = resume(checkpoint, network, stepper) if checkpoint else ([], [])
    network.train()
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global stream, which is seeded step by step
        for epoch in range(len(rows), schedule.epochs):
            terms = course.epoch(epoch, rows, terms)
            _check_weights(network, epoch, schedule, checkpoint)
            means = {name: torch.stack([t[name] for t in terms]).mean().item() for name in terms[0]}
            rows.append({"epoch": epoch + 1, "lr": stepper.optimiser.param_groups[-1]["lr"], **means})
            terms = []
            if after_epoch:
                after_epoch(epoch + 1)
            if checkpoint:
                save_checkpoint(checkpoint, network, stepper, rows)
    ranks.barrier()
    if checkpoint and ranks.is_main():
        checkpoint.unlink(missing_ok=True)
    return rows


class _Course:
    """What `fit` knows, and the steps of an epoch; arguments as there."""

    def __init__(
        self,
        network: nn.Module,
        stepper: Stepper,
        schedule: Schedule,
        batch: Callable[[Tensor, torch.Generator, slice], NamedTuple],
        n_samples: int,
        seed: int,
        checkpoint: Path | None,
        progress: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self.network, self.stepper, self.schedule, self.batch = network, stepper, schedule, batch
        self.n_samples, self.seed, self.checkpoint, self.progress = n_samples, seed, checkpoint, progress
        self.per_epoch = schedule.epoch_steps(n_samples)
        self.steps = schedule.epochs * self.per_epoch
        self.wanted = ranks.part(schedule.batch_size)
        self.base_rates = [group["lr"] for group in stepper.optimiser.param_groups]  # before a checkpoint brings its own

    def epoch(self, epoch: int, rows: Sequence[dict[str, float]], done: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Take the steps of an epoch that are left after those `done`; the terms of all of them.  rows: of epochs before."""
        terms, first, every = list(done), len(done), self.stepper.compute.checkpoint_every
        batches = list(epoch_order(self.n_samples, self.schedule.batch_size, self.seed, epoch))[first : self.per_epoch]
        loads = (
            partial(self.batch, b, stream(self.seed, 1, epoch, i), self.wanted) for i, b in enumerate(batches, start=first)
        )
        for i, samples in enumerate(_prepared(loads, self.stepper.compute.lookahead), start=first):
            step = epoch * self.per_epoch + i
            for group, rate in zip(self.stepper.optimiser.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * self.schedule.factor(step, self.steps)
            torch.manual_seed(int(stream(self.seed, 2, step, ranks.rank()).initial_seed()))
            terms.append(self.stepper.step(samples))
            last = i + 1 == self.per_epoch
            if (i + 1) % CHECK_EVERY == 0 or last:
                self._look(epoch, step, terms)
            if self.checkpoint and every and (i + 1) % every == 0 and not last:
                save_checkpoint(self.checkpoint, self.network, self.stepper, rows, terms)
        return terms

    def _look(self, epoch: int, step: int, terms: Sequence[dict[str, Tensor]]) -> None:
        """Look at the losses of this epoch so far; raise TrainingDiverged, on every rank, at the first that is not finite."""
        totals = ranks.mean(torch.stack([sum(t.values()) for t in terms]))
        if not totals.isfinite().all():
            first = int((~totals.isfinite()).nonzero()[0])
            indices = list(epoch_order(self.n_samples, self.schedule.batch_size, self.seed, epoch))[first].tolist()
            raise TrainingDiverged(
                f"the loss is {totals[first].item()} at step {epoch * self.per_epoch + first} (epoch {epoch + 1}), "
                f"samples {indices}; {_kept(self.checkpoint)}. "
                f"Lower the learning rate (now {self.schedule.lr} and {self.schedule.head_lr}) or look at the samples."
            )
        if self.progress and ranks.is_main():
            latest = {name: value.item() for name, value in terms[-1].items()}
            self.progress(
                {"step": step + 1, "steps": self.steps, "lr": self.stepper.optimiser.param_groups[-1]["lr"], **latest}
            )


def _prepared(loads: Iterator[Callable[[], NamedTuple]], lookahead: int) -> Iterator[NamedTuple]:
    """What the loads give, in order; so many of them are under way in threads before they are asked for."""
    if not lookahead:
        yield from (load() for load in loads)
        return
    with ThreadPoolExecutor(lookahead) as pool:
        waiting = deque(pool.submit(load) for load in islice(loads, lookahead))
        while waiting:
            samples = waiting.popleft().result()
            waiting.extend(pool.submit(load) for load in islice(loads, 1))
            yield samples


def make_optimiser(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Two groups, ``backbone.*`` at lr and the rest at head_lr; frozen parameters are left out."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("backbone.")].append(parameter)
    rated = [{"params": groups[True], "lr": schedule.lr}, {"params": groups[False], "lr": schedule.head_lr}]
    rated = [group for group in rated if group["params"]]
    if schedule.optimiser == "sgd":
        return torch.optim.SGD(rated, momentum=schedule.momentum, weight_decay=schedule.weight_decay)
    return torch.optim.AdamW(rated, weight_decay=schedule.weight_decay)


def stream(*path: int) -> torch.Generator:
    """An independent random stream for a path of integers (seed, purpose, epoch, step)."""
    state = np.random.SeedSequence(path).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def epoch_order(n_samples: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The batches of an epoch as sample indices; the last, incomplete batch is dropped."""
    order = torch.randperm(n_samples, generator=stream(seed, 0, epoch))
    yield from order[: n_samples - n_samples % batch_size].split(batch_size)


def _check_weights(network: nn.Module, epoch: int, schedule: Schedule, checkpoint: Path | None) -> None:
    """A gradient can be NaN where the loss is finite: refuse such weights before they are kept."""
    if all(p.isfinite().all() for p in network.parameters() if p.requires_grad):
        return
    raise TrainingDiverged(
        f"the weights are no longer finite after epoch {epoch + 1}, though the loss is; {_kept(checkpoint)}. "
        f"Lower the learning rate (now {schedule.lr} and {schedule.head_lr})."
    )


def _kept(checkpoint: Path | None) -> str:
    return f"the last good checkpoint is {checkpoint}" if checkpoint and checkpoint.is_file() else "no epoch was finished"
