"""One step of training on ResNet38d at 64 pixels, for methods at the paper's scale."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule, make_optimiser
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.networks.resnet38d import ResNet38d

SIDE = 64
SCHEDULE = Schedule(
    1, 2, lr=1e-4, head_lr=1e-3, weight_decay=0.0, warmup_steps=0, optimiser="sgd", momentum=0.0
)


@lru_cache(maxsize=1)
def resnet38d() -> ResNet38d:
    """One backbone for all tests: its 105 million weights are drawn once, and small."""
    with torch.device("meta"):
        network = ResNet38d()
    network = network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1 << 16, generator=generator)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:  # the same numbers again and again, at the size of a fan-in
            flat = row.repeat(-(-tensor.numel() // len(row)))[: tensor.numel()]
            tensor.data = flat.reshape(tensor.shape) / tensor[0].numel() ** 0.5
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return network


def step(network: nn.Module, method: object, batch: Batch) -> tuple[dict[str, Tensor], set[str]]:
    """The terms of one step, and the names of the layers outside the backbone that have moved."""
    own = {n: p for n, p in network.named_parameters() if not n.startswith("backbone.")}
    before = {name: p.detach().clone() for name, p in own.items()}
    objective = Objective(method.measure, method.combine)
    terms = Stepper(network, make_optimiser(network, SCHEDULE), objective, PLAIN).step(batch)
    return terms, {name for name, p in own.items() if not torch.equal(p, before[name])}
