"""Optimisers and learning-rate schedules: AdamW or SGD, linear warm-up, then poly decay."""

from dataclasses import dataclass

import torch
from torch import nn

from aeft_lib.engine.fields import choice, number, whole

OPTIMISERS = ("adamw", "sgd")


@dataclass(frozen=True)
class Schedule:
    """Optimiser and learning rates of one training.

    lr: of backbone parameters.  head_lr: of everything else.
    warmup_steps: linear from 0; then poly, (1 - step/steps)^power.
    decay_steps: length of the poly decay where it is not the number of steps (0); beyond its end
    the rate stays as it was.  decay_from: steps of that decay that an earlier phase has taken.
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
        whole(self, "epochs", "batch_size", least=1)
        whole(self, "warmup_steps", "decay_steps", "steps_per_epoch", "decay_from")
        number(self, "lr", "head_lr", positive=True)
        number(self, "weight_decay", "poly_power", "momentum")
        choice(self, optimiser=OPTIMISERS)

    def epoch_steps(self, n_samples: int) -> int:
        """Steps of one epoch: `steps_per_epoch`, at most as many whole batches as there are."""
        batches = n_samples // self.batch_size
        return min(self.steps_per_epoch or batches, batches)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied by in `step` (0-based) of `steps`."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        length = self.decay_steps or steps
        return warm * (1 - min(step + self.decay_from, length - 1) / length) ** self.poly_power


def make_optimiser(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Two groups, ``backbone.*`` at lr and the rest at head_lr; frozen parameters are left out."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("backbone.")].append(parameter)
    rates = {True: schedule.lr, False: schedule.head_lr}
    rated = [{"params": groups[key], "lr": rates[key]} for key in (True, False) if groups[key]]
    if schedule.optimiser == "sgd":
        options = {"momentum": schedule.momentum, "weight_decay": schedule.weight_decay}
        return torch.optim.SGD(rated, **options)
    return torch.optim.AdamW(rated, weight_decay=schedule.weight_decay)
