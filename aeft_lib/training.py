"""One training loop for every network of the companion.

The loop knows neither data nor losses: it asks `batch` for samples by index and `losses` for a dict of scalar terms, sums the
terms, steps, and writes a checkpoint per epoch.  Order and augmentation are pure functions of (seed, epoch), so a run that is
killed and started again ends with the same weights, bit for bit on a CPU with the same number of threads.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CHECK_EVERY = 20  # steps between looks at the loss: each look waits for the device
OPTIMISERS = ("adamw", "sgd")


class TrainingDiverged(RuntimeError):
    """The loss is no longer finite; the message names step, samples and the last good checkpoint."""


@dataclass(frozen=True)
class Schedule:
    """Optimiser and its course.

    lr: of backbone parameters.  head_lr: of everything else.  warmup_steps: linear from 0; then poly, (1 - step/steps)^power.
    decay_steps: length of the poly course where it is not the number of steps (0); beyond its end the rate stays as it was.
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

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "warmup_steps", "decay_steps", "steps_per_epoch"):
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
        return warm * (1 - min(step, length - 1) / length) ** self.poly_power


def fit(
    network: nn.Module,
    *,
    n_samples: int,
    batch: Callable[[Tensor, torch.Generator], Any],
    losses: Callable[[nn.Module, Any], dict[str, Tensor]],
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Train `network` in place; returns one row per epoch: epoch, lr, and the mean of every term.

    batch: (sample indices (b,) int64, generator for augmentation) -> what `losses` takes.
    losses: (network, batch) -> named scalar terms; their sum is minimised.  A count without gradient is just logged.
    after_epoch: called with the number of every finished epoch, 1 the first, before its checkpoint is written.
    checkpoint: file that is written after every epoch, resumed from where it exists, and removed at the end.
    Raises TrainingDiverged where the loss is not finite, ValueError where there are fewer samples than one batch.
    """
    if n_samples < schedule.batch_size:
        raise ValueError(f"{n_samples} samples cannot fill a batch of {schedule.batch_size}")
    steps_per_epoch = schedule.epoch_steps(n_samples)
    steps = schedule.epochs * steps_per_epoch
    optimiser = make_optimiser(network, schedule)
    base_rates = [group["lr"] for group in optimiser.param_groups]
    rows = resume(checkpoint, network, optimiser) if checkpoint else []
    network.train()
    for epoch in range(len(rows), schedule.epochs):
        terms: list[dict[str, Tensor]] = []
        batches = islice(epoch_order(n_samples, schedule.batch_size, seed, epoch), steps_per_epoch)
        for i, indices in enumerate(batches):
            factor = schedule.factor(epoch * steps_per_epoch + i, steps)
            for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            step_terms = losses(network, batch(indices, stream(seed, 1, epoch, i)))
            optimiser.zero_grad(set_to_none=True)
            sum(step_terms.values()).backward()
            optimiser.step()
            terms.append({name: value.detach() for name, value in step_terms.items()})
            if (i + 1) % CHECK_EVERY == 0 or i + 1 == steps_per_epoch:
                _check_finite(terms, epoch, steps_per_epoch, n_samples, schedule, seed, checkpoint)
        _check_weights(network, epoch, schedule, checkpoint)
        means = {name: torch.stack([t[name] for t in terms]).mean().item() for name in terms[0]}
        rows.append({"epoch": epoch + 1, "lr": optimiser.param_groups[-1]["lr"], **means})
        if after_epoch:
            after_epoch(epoch + 1)
        if checkpoint:
            save_checkpoint(checkpoint, network, optimiser, rows)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return rows


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


def save_checkpoint(file: Path, network: nn.Module, optimiser: torch.optim.Optimizer, rows: Sequence[dict[str, float]]) -> None:
    """Write trained parameters, optimiser state and the log so far, atomically, without pickle."""
    tensors = {f"network/{name}": p.detach() for name, p in network.named_parameters() if p.requires_grad}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(value) for name, value in state.items() if value is not None}
    tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    save_file(tensors, aside, metadata={"rows": json.dumps(list(rows)), "digest": _digest(tensors)})
    aside.replace(file)


def resume(file: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Load a checkpoint into network and optimiser; returns its log, or [] where there is none.

    One that is damaged, or of another network, is said and left: nothing of it is loaded.
    """
    if not file.is_file():
        return []
    trained = {f"network/{name}": p for name, p in network.named_parameters() if p.requires_grad}
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            rows, digest = json.loads(opened.metadata()["rows"]), opened.metadata()["digest"]
        if digest != _digest(tensors):
            raise ValueError("its contents do not match their digest")
        if any(tensors[name].shape != p.shape for name, p in trained.items()):
            raise ValueError("it belongs to another network")
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        warnings.warn(f"checkpoint {file.name} is damaged ({error}): training starts again", stacklevel=2)
        return []
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
    state = optimiser.state_dict()
    for name, tensor in tensors.items():
        kind, index, *field = name.split("/")
        if kind == "optimiser":
            state["state"].setdefault(int(index), {})[field[0]] = tensor
    optimiser.load_state_dict(state)
    return rows


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


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


def _check_finite(
    terms: Sequence[dict[str, Tensor]],
    epoch: int,
    steps_per_epoch: int,
    n_samples: int,
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None,
) -> None:
    """Look at the losses of this epoch so far; raise TrainingDiverged at the first that is not finite."""
    totals = torch.stack([sum(t.values()) for t in terms])
    if totals.isfinite().all():
        return
    first = int((~totals.isfinite()).nonzero()[0])
    indices = list(epoch_order(n_samples, schedule.batch_size, seed, epoch))[first].tolist()
    raise TrainingDiverged(
        f"the loss is {totals[first].item()} at step {epoch * steps_per_epoch + first} (epoch {epoch + 1}), "
        f"samples {indices}; {_kept(checkpoint)}. "
        f"Lower the learning rate (now {schedule.lr} and {schedule.head_lr}) or look at the samples."
    )
