"""One training loop for every network of the companion.

The loop knows neither data nor losses.  It asks `batch` for samples by index, `step` takes a step
on them, and a checkpoint is written after each epoch, or more often.  Order, augmentation and
dropout are pure functions of (seed, step), so a killed and resumed run ends with the same weights,
bit for bit on a CPU with the same number of threads.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib.engine import ranks
from aeft_lib.engine.checkpoint import resume, save_checkpoint
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule, make_optimiser
from aeft_lib.engine.step import PLAIN, Compute, Objective, Stepper

CHECK_EVERY = 20  # steps between checks of the loss: each check waits for the device
Source = Callable[[Tensor, torch.Generator, slice], Batch]
Progress = Callable[[dict[str, float]], None]
Block = dict[str, Tensor]  # every term of some steps in a row, (n,) on the CPU


class TrainingDiverged(RuntimeError):
    """The loss is not finite; the message names step, samples and the last good checkpoint."""


def fit(
    network: nn.Module,
    *,
    n_samples: int,
    batch: Source,
    objective: Objective,
    schedule: Schedule,
    seed: int,
    compute: Compute = PLAIN,
    checkpoint: Path | None = None,
    after_epoch: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train `network` in place; returns one row per epoch: epoch, lr, and the mean of every term.

    batch: (sample indices (b,) int64 of the whole batch, generator for augmentation, which of them
        are wanted) -> those samples, on the CPU.  A pure function, so threads may call it.
    objective: see `step.Objective`.  compute: how steps are computed.
    after_epoch: called with the number of every finished epoch, 1 the first, before its checkpoint.
    checkpoint: file that is written after every epoch, and within one where `compute` asks for it;
        resumed from where it exists, and removed at the end.
    progress: called with step, steps, lr and terms at every check of the loss.
    Under torchrun every rank calls it; files are written by rank 0.
    Raises TrainingDiverged where the loss is not finite, ValueError for less samples than a batch.
    """
    if n_samples < schedule.batch_size:
        raise ValueError(f"{n_samples} samples cannot fill a batch of {schedule.batch_size}")
    stepper = Stepper(network, make_optimiser(network, schedule), objective, compute)
    run = _Run(network, stepper, schedule, batch, n_samples, seed, checkpoint, progress)
    state = (network, stepper.optimiser, stepper.scaler)
    rows, blocks = resume(checkpoint, *state) if checkpoint else ([], [])
    network.train()
    # Dropout draws from the global stream, which is seeded step by step.
    with torch.random.fork_rng(devices=[]):
        for epoch in range(len(rows), schedule.epochs):
            blocks = run.epoch(epoch, rows, blocks)
            _check_weights(network, epoch, schedule, checkpoint)
            means = {k: torch.cat([b[k] for b in blocks]).mean().item() for k in blocks[0]}
            lr = stepper.optimiser.param_groups[-1]["lr"]
            rows.append({"epoch": epoch + 1, "lr": lr, **means})
            blocks = []
            if after_epoch:
                after_epoch(epoch + 1)
            if checkpoint:
                save_checkpoint(checkpoint, *state, rows)
    ranks.barrier()
    if checkpoint and ranks.is_main():
        checkpoint.unlink(missing_ok=True)
    return rows


@dataclass
class _Run:
    """The arguments of `fit`, and the steps of an epoch."""

    network: nn.Module
    stepper: Stepper
    schedule: Schedule
    batch: Source
    n_samples: int
    seed: int
    checkpoint: Path | None
    progress: Progress | None

    def __post_init__(self) -> None:
        self.per_epoch = self.schedule.epoch_steps(self.n_samples)
        self.steps = self.schedule.epochs * self.per_epoch
        self.wanted = ranks.part(self.schedule.batch_size)
        # Before a checkpoint brings its own.
        self.base_rates = [group["lr"] for group in self.stepper.optimiser.param_groups]

    def order(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch as sample indices."""
        return list(epoch_order(self.n_samples, self.schedule.batch_size, self.seed, epoch))

    def epoch(
        self, epoch: int, rows: Sequence[dict[str, float]], done: Sequence[Block]
    ) -> list[Block]:
        """Take the steps of an epoch that are left after those `done`; the terms of all of them.

        rows: of the epochs before.  A step is looked at once, with those since the last check, so
        an epoch costs the same a step however long it is.
        """
        blocks, recent, every = list(done), [], self.stepper.compute.checkpoint_every
        for i, samples in self._batches(epoch, first=sum(map(_steps, blocks))):
            step = epoch * self.per_epoch + i
            groups = self.stepper.optimiser.param_groups
            for group, rate in zip(groups, self.base_rates, strict=True):
                group["lr"] = rate * self.schedule.factor(step, self.steps)
            torch.manual_seed(int(stream(self.seed, 2, step, ranks.rank()).initial_seed()))
            recent.append(self.stepper.step(samples, progress=step / self.steps))
            last = i + 1 == self.per_epoch
            checked = (i + 1) % CHECK_EVERY == 0 or last
            saved = self.checkpoint and every and (i + 1) % every == 0 and not last
            if checked or saved:
                blocks.append(self._checked(epoch, i + 1 - len(recent), recent))
                recent = []
            if checked:
                self._report(step, blocks[-1])
            if saved:
                state = (self.network, self.stepper.optimiser, self.stepper.scaler)
                save_checkpoint(self.checkpoint, *state, rows, blocks)
        return blocks

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[int, Batch]]:
        """Number and samples of the epoch's steps from the `first` on."""
        batches = self.order(epoch)[first : self.per_epoch]
        loads = (
            partial(self.batch, indices, stream(self.seed, 1, epoch, i), self.wanted)
            for i, indices in enumerate(batches, start=first)
        )
        yield from enumerate(_prepared(loads, self.stepper.compute.lookahead), start=first)

    def _checked(self, epoch: int, done: int, recent: Sequence[dict[str, Tensor]]) -> Block:
        """The terms of the steps since the last check, which were taken after those `done`.

        Raises TrainingDiverged, on every rank, at the first loss of them that is not finite.
        """
        block = {name: torch.stack([t[name] for t in recent]).cpu() for name in recent[0]}
        totals = ranks.mean(sum(block.values()))
        if not totals.isfinite().all():
            worst = int((~totals.isfinite()).nonzero()[0])
            first = done + worst
            raise TrainingDiverged(
                f"the loss is {totals[worst].item()} at step {epoch * self.per_epoch + first} "
                f"(epoch {epoch + 1}), samples {self.order(epoch)[first].tolist()}; "
                f"{_kept(self.checkpoint)}. Lower the learning rate (now {self.schedule.lr} and "
                f"{self.schedule.head_lr}) or look at the samples."
            )
        return block

    def _report(self, step: int, block: Block) -> None:
        if self.progress and ranks.is_main():
            latest = {name: values[-1].item() for name, values in block.items()}
            lr = self.stepper.optimiser.param_groups[-1]["lr"]
            self.progress({"step": step + 1, "steps": self.steps, "lr": lr, **latest})


def _steps(block: Block) -> int:
    return len(next(iter(block.values())))


def _prepared(loads: Iterator[Callable[[], Batch]], lookahead: int) -> Iterator[Batch]:
    """What the loads give, in order; threads prepare so many of them before they are asked for."""
    if not lookahead:
        yield from (load() for load in loads)
        return
    with ThreadPoolExecutor(lookahead) as pool:
        waiting = deque(pool.submit(load) for load in islice(loads, lookahead))
        while waiting:
            samples = waiting.popleft().result()
            waiting.extend(pool.submit(load) for load in islice(loads, 1))
            yield samples


def stream(*path: int) -> torch.Generator:
    """An independent random stream for a path of integers (seed, purpose, epoch, step)."""
    state = np.random.SeedSequence(path).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def epoch_order(n_samples: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The batches of an epoch as sample indices; the last, incomplete batch is dropped."""
    order = torch.randperm(n_samples, generator=stream(seed, 0, epoch))
    yield from order[: n_samples - n_samples % batch_size].split(batch_size)


def _check_weights(
    network: nn.Module, epoch: int, schedule: Schedule, checkpoint: Path | None
) -> None:
    """A gradient can be NaN where the loss is finite: refuse such weights before they are kept."""
    if all(p.isfinite().all() for p in network.parameters() if p.requires_grad):
        return
    raise TrainingDiverged(
        f"the weights are no longer finite after epoch {epoch + 1}, though the loss is; "
        f"{_kept(checkpoint)}. Lower the learning rate (now {schedule.lr} and {schedule.head_lr})."
    )


def _kept(checkpoint: Path | None) -> str:
    if checkpoint and checkpoint.is_file():
        return f"the last good checkpoint is {checkpoint}"
    return "no epoch was finished"
