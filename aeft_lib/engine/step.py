"""One step of training: a batch through the network, and the gradient of a loss on all of it.

A loss comes in two halves, an `Objective`: `measure` takes samples through the network and keeps
what the loss needs of them (logits, embeddings, sums), small and sample by sample; `combine` makes
the loss of all of it.  So a batch that is cut into parts, or spread over processes, has the loss
and the gradient of the whole batch, whatever the loss compares.

With more than one part the first pass keeps no activations; it only measures.  The second pass
takes part after part through the network again and hands on the gradient that the measures got: one
more forward pass, and the memory of one part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aeft_lib.engine import ranks
from aeft_lib.engine.fields import NO_RESULT, choice, whole
from aeft_lib.engine.samples import Batch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NEGATIVES = ("gathered", "rank")
PROGRESS = "progress"
Measures = dict[str, Tensor]
RandomState = tuple[Tensor, Tensor | None]


class Objective(NamedTuple):
    """measure: (network, batch) -> tensors whose first axis counts samples, or parts (length 1).

    combine: of such tensors -> named scalar terms whose sum is minimised; a count without gradient
    is just logged.  The step adds ``progress``, a scalar: the part of the training that is done.
    """

    measure: Callable[[nn.Module, Batch], Measures]
    combine: Callable[[Measures], dict[str, Tensor]]


@dataclass(frozen=True)
class Compute:
    """How steps are computed.  The defaults are a laptop's; none of it changes what is minimised.

    precision: "fp32", or autocast to "bf16" or "fp16" (with a scaled loss).
    parts: a batch goes through the network in so many parts, and needs the memory of one.
    checkpointing: keep block inputs alone, and compute the rest again in the backward pass
        (`FrozenNorms.checkpointing`).
    compile: a torch.compile backend, "inductor" for speed; "" leaves it out.
    checkpoint_every: steps between checkpoints within an epoch; 0 writes one at the end of each.
    negatives: under torchrun, "gathered": the loss sees the batches of all ranks, as one process
        would; "rank": its own.
    lookahead: batches that threads prepare in advance; 0 prepares each when it is needed.
    """

    precision: str = "fp32"
    parts: int = 1
    checkpointing: bool = False
    compile: str = ""
    checkpoint_every: int = field(default=0, metadata=NO_RESULT)
    negatives: str = "gathered"
    lookahead: int = field(default=0, metadata=NO_RESULT)

    def __post_init__(self) -> None:
        choice(self, precision=tuple(PRECISIONS), negatives=NEGATIVES)
        whole(self, "parts", least=1)
        whole(self, "checkpoint_every", "lookahead")


PLAIN = Compute()


class Stepper:
    """Takes steps on one network: forward, backward, gradients of all ranks, optimiser."""

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        objective: Objective,
        compute: Compute,
    ) -> None:
        self.network, self.optimiser, self.compute = network, optimiser, compute
        self.measure, self.combine = objective
        if compute.compile:
            self.measure = torch.compile(objective.measure, backend=compute.compile)
        self.device = next(network.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=compute.precision == "fp16")

    def step(self, samples: Batch, progress: float = 0.0) -> dict[str, Tensor]:
        """One step on this rank's samples; the terms of the loss, detached."""
        self.optimiser.zero_grad(set_to_none=True)
        samples = _moved(samples, self.device)  # once, however often a part goes through
        if self.compute.parts == 1:
            terms = self._backward(self._measured(samples), progress)
        else:
            terms = self._in_parts(samples, progress)
        ranks.sum_gradients(p for group in self.optimiser.param_groups for p in group["params"])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return {name: value.detach() for name, value in terms.items()}

    def _in_parts(self, samples: Batch, progress: float) -> dict[str, Tensor]:
        """The batch part by part: measured, a gradient of the measures, part by part again."""
        parts = split(samples, self.compute.parts)
        states, leaves = [], []
        with torch.no_grad():
            for part in parts:
                states.append(_random_state(self.device))
                measures = self._measured(part).items()
                leaves.append({k: t.requires_grad_(t.is_floating_point()) for k, t in measures})
        whole_batch = {name: torch.cat([leaf[name] for leaf in leaves]) for name in leaves[0]}
        terms = self._backward(whole_batch, progress)
        for part, state, leaf in zip(parts, states, leaves, strict=True):
            with _replayed(state, self.device):
                measures = self._measured(part)
            names = [k for k in leaf if measures[k].requires_grad and leaf[k].grad is not None]
            gradients = [leaf[k].grad for k in names]
            torch.autograd.backward([measures[k] for k in names], gradients)
        return terms

    def _measured(self, samples: Batch) -> Measures:
        precision = PRECISIONS[self.compute.precision]
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            measures = self.measure(self.network, samples)
        halves = (torch.bfloat16, torch.float16)
        return {name: t.float() if t.dtype in halves else t for name, t in measures.items()}

    def _backward(self, measures: Measures, progress: float) -> dict[str, Tensor]:
        """The terms of the loss of all ranks' measures; gradients reach as far as these do."""
        gathered = self.compute.negatives == "gathered"
        measures = ranks.gather(measures) if gathered else measures
        terms = self.combine(measures | {PROGRESS: torch.tensor(progress, device=self.device)})
        total = sum(terms.values()) if gathered else sum(terms.values()) / ranks.world()
        self.scaler.scale(total).backward()
        return terms


def split(samples: Batch, parts: int) -> list[Batch]:
    """Samples in so many parts, as equal as they can be.  Raises ValueError for too few samples."""
    size = next(len(t) for t in samples if t is not None)
    if size < parts:
        raise ValueError(f"a batch of {size} cannot go through in {parts} parts")
    pieces = [t.tensor_split(parts) if t is not None else (None,) * parts for t in samples]
    return [type(samples)(*fields) for fields in zip(*pieces, strict=True)]


def _moved(samples: Batch, device: torch.device) -> Batch:
    """Samples on the device, maps in the memory layout that convolutions are fastest in."""

    def there(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = tensor.to(device, non_blocking=True)
        last = torch.channels_last
        return tensor.contiguous(memory_format=last) if tensor.ndim == 4 else tensor

    return type(samples)(*map(there, samples))


def _random_state(device: torch.device) -> RandomState:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


@contextmanager
def _replayed(state: RandomState, device: torch.device) -> Iterator[None]:
    """Random numbers as they were, so that dropout drops the same."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
