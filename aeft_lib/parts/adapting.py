"""A part of a classifier that adapts to one image and is put back (RIB).

What lies before the part is computed once and without a gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

PARTS = ("last", "trained")


class Adaptable(NamedTuple):
    """before: trunk features -> what the part reads.  cam: that -> the signed CAM (B, K, h, w).

    body, head: the parameters that adapt, of the backbone (perhaps none) and of the CAM's head.
    name: of the part.
    """

    before: Callable[[Tensor], Tensor]
    cam: Callable[[Tensor], Tensor]
    body: list[nn.Parameter]
    head: list[nn.Parameter]
    name: str = ""


def adaptable(network: nn.Module, part: str) -> Adaptable:
    """The part of a CAM classifier: all that was "trained", or its "last" block with the head.

    Raises ValueError for a backbone that is no sequence of blocks and has no last one.
    """
    backbone, head = network.backbone, network.head
    if part == "trained":
        body = [p for p in backbone.parameters() if p.requires_grad]
        return Adaptable(lambda x: x, lambda x: head(backbone.tail(x)), body, _trained(head), part)
    try:
        blocks = list(backbone.get_submodule("_tail"))
    except (AttributeError, TypeError) as error:
        kind = type(backbone).__name__
        raise ValueError(f'{kind} has no last block that adapts alone: take "trained"') from error
    fixed, last = nn.Sequential(*blocks[:-1]), nn.Sequential(*blocks[-1:])
    return Adaptable(fixed, lambda x: head(last(x)), _trained(last), _trained(head), part)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


@contextmanager
def put_back(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """At the end, whatever happens, the parameters are what they were, and have no gradient."""
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None
