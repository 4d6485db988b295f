"""Several processes under ``torchrun`` that work on one job; without it, nothing here acts.

Training: every process (rank) takes its part of each batch, what the loss needs of every sample is
gathered, and gradients are summed once a step.  It is data parallelism, but not
``DistributedDataParallel``: a triplet's loss compares the whole batch, after two passes and perhaps
several backward passes.  So the step of n processes is the step of one.

Work on images: every rank takes shards, rank 0 gets the results (`engine.shards`).
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
COLLECTIVE = "runs_on_every_rank"
_alone = False
TIMEOUT = timedelta(hours=6)  # rank 0 may refine or evaluate alone for long while the others wait


def launched() -> bool:
    """Whether this process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def start() -> None:
    """Join the others, before anything else here; without torchrun it does nothing.

    A rank ends with its torchrun: else it would wait for the others until `TIMEOUT`.
    """
    if not launched() or dist.is_initialized():
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def stop() -> None:
    """Leave the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within it rank 0 works by itself: nothing waits for another rank."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def collective(stage: Callable[..., T]) -> Callable[..., T]:
    """Mark a stage that every rank runs together; all others run on rank 0 alone."""
    setattr(stage, COLLECTIVE, True)
    return stage


def barrier() -> None:
    """Wait for all."""
    if world() > 1:
        same(None)


def same(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, device=torch.device("cpu"))
    return held[0]


def together(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on rank 0; an empty list on the others."""
    if world() == 1:
        return [value]
    values = [None] * world() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def part(n: int) -> slice:
    """This rank's part of n samples.  Raises ValueError where n does not divide by the ranks."""
    if n % world():
        problem = f"a batch of {n} does not divide over {world()} processes"
        raise ValueError(f"{problem}: choose another number of processes")
    size = n // world()
    return slice(rank() * size, (rank() + 1) * size)


def gather(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every rank's tensors, joined along their first axis.

    A gradient reaches this rank's own part alone: every rank has the same loss, so the sum of their
    gradients is the whole.
    """
    if world() == 1:
        return tensors
    return {name: _gathered(tensor) for name, tensor in tensors.items()}


def _gathered(tensor: Tensor) -> Tensor:
    sent = tensor.detach().contiguous()
    sent = sent.to(torch.uint8) if sent.dtype == torch.bool else sent
    parts = [torch.empty_like(sent) for _ in range(world())]
    dist.all_gather(parts, sent)
    parts = [part.to(tensor.dtype) for part in parts]
    parts[rank()] = tensor
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The sum of every gradient over the ranks, in one message for each type of number."""
    if world() == 1:
        return
    with_gradient = [p for p in parameters if p.grad is not None]
    for dtype in sorted({p.grad.dtype for p in with_gradient}, key=str):
        chosen = [p.grad for p in with_gradient if p.grad.dtype == dtype]
        flat = torch.cat([gradient.flatten() for gradient in chosen])
        dist.all_reduce(flat)
        totals = flat.split([gradient.numel() for gradient in chosen])
        for gradient, total in zip(chosen, totals, strict=True):
            gradient.copy_(total.view_as(gradient))


def mean(tensor: Tensor) -> Tensor:
    """The mean of a tensor over the ranks."""
    if world() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world()
