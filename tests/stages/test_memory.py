"""What a training keeps in memory as the number of scenes grows: its data, once, and no more."""

import torch
from torch import nn

from aeft_lib.engine import loop
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import Objective
from aeft_lib.stages.sources import InMemory

FEW, MANY, BATCH = 200, 2000, 4


def kept_by_an_epoch(count: int, monkeypatch) -> int:
    """The largest number of terms that wait for a check, of steps on so many scenes."""
    images, waiting, checked = torch.zeros(count, 3, 4, 4), [], loop._Run._checked
    monkeypatch.setattr(
        loop._Run,
        "_checked",
        lambda run, epoch, done, recent: (
            waiting.append(len(recent)) or checked(run, epoch, done, recent)
        ),
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    source = InMemory(count, lambda i, _, wanted: Batch(images=images[i[wanted]]))
    objective = Objective(
        lambda net, batch: {"y": net(batch.images)}, lambda m: {"fit": m["y"].square().mean()}
    )
    schedule = Schedule(1, BATCH, lr=0.1, head_lr=0.1, weight_decay=0.0, warmup_steps=0)
    options = {"batch": source, "objective": objective, "schedule": schedule, "seed": 0}
    loop.fit(network, n_samples=count, **options)
    monkeypatch.undo()
    assert sum(waiting) == count // BATCH
    return max(waiting)


def test_terms_on_the_device_do_not_grow_with_the_scenes(monkeypatch):
    few, many = (kept_by_an_epoch(count, monkeypatch) for count in (FEW, MANY))
    assert few == many == loop.CHECK_EVERY
