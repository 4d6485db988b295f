"""One step of training: a batch through the network, in parts where it does not fit, and the gradient of a loss on all of it.

A loss comes in two halves, an `Objective`: `measure` takes samples through the network and keeps what the loss needs of them
(logits, embeddings, sums), small and sample by sample; `combine` makes the loss of all of it.  So a batch that is cut into
parts, or spread over processes, has the loss and the gradient of the whole batch, whatever the loss compares.

With more than one part the first pass keeps no activations; it only measures.  The second pass takes part after part through
the network again and hands on the gradient that the measures got: one more forward pass, and the memory of one part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aeft_lib.engine import ranks
from aeft_lib.stages.store import NO_RESULT

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NEGATIVES = ("gathered", "rank")
Measures = dict[str, Tensor]


class Objective(NamedTuple):
    """measure: (network, samples) -> tensors, their first axis counts samples, or parts where it has length 1.

    combine: of such tensors -> named scalar terms whose sum is minimised; a count without gradient is just logged.
    """

    measure: Callable[[nn.Module, Any], Measures]
    combine: Callable[[Measures], dict[str, Tensor]]


@dataclass(frozen=True)
class Compute:
    """How steps are computed.  The defaults are what a laptop does; none of it changes what is minimised.

    precision: "fp32", or autocast to "bf16" or "fp16" (with a scaled loss).
    parts: a batch goes through the network in so many parts, and needs the memory of one.
    checkpointing: keep block inputs alone, and compute the rest again in the backward pass (`FrozenNorms.checkpointing`).
    compile: a torch.compile backend, "inductor" for speed; "" leaves it out.
    checkpoint_every: steps between checkpoints within an epoch; 0 writes one at the end of each.
    negatives: under torchrun, "gathered": the loss sees the batches of all ranks, as one process would; "rank": its own.
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
        for name, allowed in (("precision", tuple(PRECISIONS)), ("negatives", NEGATIVES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name, least in (("parts", 1), ("checkpoint_every", 0), ("lookahead", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")


PLAIN = Compute()


class Stepper:
    """Takes steps on one network: forward, backward, gradients of all ranks, optimiser."""

    def __init__(self, network: nn.Module, optimiser: torch.optim.Optimizer, objective: Objective, compute: Compute) -> None:
        self.network, self.optimiser, self.objective, self.compute = network, optimiser, objective, compute
        self.device = next(network.parameters()).device
        self.measure = torch.compile(objective.measure, backend=compute.compile) if compute.compile else objective.measure
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=compute.precision == "fp16")

    def step(self, samples: NamedTuple) -> dict[str, Tensor]:
        """One step on this rank's samples (tensors with a first axis of samples, or None); the terms of the loss, detached."""
        self.optimiser.zero_grad(set_to_none=True)
        terms = self._whole(samples) if self.compute.parts == 1 else self._in_parts(samples)
        ranks.sum_gradients(p for group in self.optimiser.param_groups for p in group["params"])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return {name: value.detach() for name, value in terms.items()}

    def _whole(self, samples: NamedTuple) -> dict[str, Tensor]:
        """The batch at once, with its activations."""
        return self._backward(self._measured(samples))

    def _in_parts(self, samples: NamedTuple) -> dict[str, Tensor]:
        """The batch part by part: measured, then a gradient of the measures, then part by part again."""
        parts = split(samples, self.compute.parts)
        states, measured = [], []
        with torch.no_grad():
            for one in parts:
                states.append(_random_state(self.device))
                measured.append(self._measured(one))
        leaves = [{name: t.requires_grad_(t.is_floating_point()) for name, t in one.items()} for one in measured]
        terms = self._backward({name: torch.cat([one[name] for one in leaves]) for name in leaves[0]})
        for one, state, leaf in zip(parts, states, leaves, strict=True):
            with _replayed(state, self.device):
                again = self._measured(one)
            wanted = [name for name in leaf if again[name].requires_grad and leaf[name].grad is not None]
            torch.autograd.backward([again[name] for name in wanted], [leaf[name].grad for name in wanted])
        return terms

    def _measured(self, samples: NamedTuple) -> Measures:
        with torch.autocast(self.device.type, PRECISIONS[self.compute.precision], enabled=self.compute.precision != "fp32"):
            found = self.measure(self.network, _moved(samples, self.device))
        return {name: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for name, t in found.items()}

    def _backward(self, measures: Measures) -> dict[str, Tensor]:
        """The terms of the loss of all ranks' measures; their gradient goes as far back as the measures do."""
        gathered = self.compute.negatives == "gathered"
        terms = self.objective.combine(ranks.gather(measures) if gathered else measures)
        total = sum(terms.values()) if gathered else sum(terms.values()) / ranks.world()
        self.scaler.scale(total).backward()
        return terms


def split(samples: NamedTuple, parts: int) -> list[NamedTuple]:
    """Samples in so many parts, as equal as they can be.  Raises ValueError where there are fewer samples than parts."""
    size = next(len(t) for t in samples if t is not None)
    if size < parts:
        raise ValueError(f"a batch of {size} cannot go through in {parts} parts")
    pieces = [t.tensor_split(parts) if t is not None else (None,) * parts for t in samples]
    return [type(samples)(*fields) for fields in zip(*pieces, strict=True)]


def _moved(samples: NamedTuple, device: torch.device) -> NamedTuple:
    """Samples on the device, maps in the memory layout that convolutions are fastest in."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        there = tensor.to(device, non_blocking=True)
        return there.contiguous(memory_format=torch.channels_last) if there.ndim == 4 else there

    return type(samples)(*map(moved, samples))


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Random numbers as they were, so that dropout drops the same."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
