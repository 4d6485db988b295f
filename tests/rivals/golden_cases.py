"""What the golden tests of rivals share: a tiny backbone, arrays by key, steps of the optimiser."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule, make_optimiser
from aeft_lib.engine.step import PLAIN, Compute, Objective, Stepper
from aeft_lib.networks.tapped import Tapped
from aeft_lib.parts.refined import RefinedClassifier

# Of the largest absolute value, see tests/golden_rivals/README.md.
FORWARD, ON_MAPS, THROUGH_NETWORK, WEIGHTS = 1e-5, 1e-5, 5e-5, 1e-6
# The originals': new layers learn ten times as fast, and momentum is the weight decay.
SCHEDULE = Schedule(
    epochs=1,
    batch_size=1,
    lr=0.01,
    head_lr=0.1,
    weight_decay=5e-4,
    momentum=5e-4,
    warmup_steps=0,
    optimiser="sgd",
    decay_steps=10,
)


class Softplus(nn.Module):
    """A convolution of stride 4, softplus, and a head of one 1x1 convolution: (B, K, h, w)."""

    def __init__(self, case: Mapping[str, Tensor]) -> None:
        super().__init__()
        weight, head = case["net/conv_weight"], case["net/classifier_weight"]
        self.conv = nn.Conv2d(3, len(weight), 3, stride=4, padding=1)
        self.head = nn.Conv2d(len(weight), len(head), 1, bias=False)
        self.load_state_dict(
            {"conv.weight": weight, "conv.bias": case["net/conv_bias"], "head.weight": head}
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.softplus(self.conv(images)))


class TinyBackbone(nn.Module):
    """Three convolutions, the first of stride 4, all trained; the output of each is a tap."""

    stride = 4

    def __init__(self, widths: tuple[int, int, int] = (6, 8, 10)) -> None:
        super().__init__()
        self.tap_channels, self.out_channels = widths, widths[-1]
        for name, given, width, stride in zip("abc", (3, *widths), widths, (4, 1, 1), strict=False):
            self.add_module(name, nn.Conv2d(given, width, 3, stride, padding=1, bias=False))

    def taps(self, images: Tensor) -> tuple[Tensor, ...]:
        taps = []
        for name in "abc":
            images = self.get_submodule(name)(images).relu()
            taps.append(images)
        return tuple(taps)

    def trunk(self, images: Tensor) -> Tensor:
        return images

    def tail(self, images: Tensor) -> Tensor:
        return self.taps(images)[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(images)

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        return images.float()


class Case:
    """The golden arrays as tensors, by key; a prefix gives the keys below it."""

    def __init__(self, arrays: Mapping) -> None:
        self.tensors = {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}

    def fill(self, network: nn.Module, our_name: Callable[[str], str]) -> nn.Module:
        """The network with the original's weights, all of them."""
        weights = self.below("net/w/").items()
        network.load_state_dict({our_name(name): tensor for name, tensor in weights})
        return network


def tiny_refined(refinement: nn.Module, classes: int, unused: int = 0) -> RefinedClassifier:
    """A classifier on the tiny backbone, its head one convolution as in the originals."""
    network = RefinedClassifier(
        backbone=Tapped(TinyBackbone()), refinement=refinement, num_classes=classes, unused=unused
    )
    network.head = nn.Conv2d(10, unused + classes, 1, bias=False)
    return network


def refined_name(golden: str) -> str:
    """The parameter of `tiny_refined` that has the original's name."""
    layer = golden.removesuffix(".weight")
    if layer.startswith("trunk."):
        return f"backbone.plain.{layer[-1]}.weight"
    return "head.weight" if layer == "fc8" else f"refinement.{layer}.weight"


def check_steps(
    case: Case,
    network: nn.Module,
    method: object,
    batch: Batch,
    *,
    losses: Mapping[str, Callable[[dict[str, Tensor]], Tensor]],
    our_name: Callable[[str], str],
    assert_near: Callable,
) -> None:
    """The original's steps: its losses (from our terms), its gradients, its weights after each."""
    steps = sorted({key.split("/")[0] for key in case.below("step/")} & set("0123456789"))
    assert steps
    optimiser = make_optimiser(network, SCHEDULE)
    rates = [group["lr"] for group in optimiser.param_groups]
    stepper = Stepper(network, optimiser, Objective(method.measure, method.combine), PLAIN)
    for step in steps:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * SCHEDULE.factor(int(step), len(steps))
        golden, terms = Case(case.below(f"step/{step}/")), stepper.step(batch)
        for name, of_terms in losses.items():
            assert_near(of_terms(terms), golden[name], FORWARD, f"step {step}, {name}")
        own, names = dict(network.named_parameters()), golden.below("grad/")
        assert {our_name(name) for name in names} == own.keys()
        for name in names:
            weight, label = own[our_name(name)], f"step {step}, {name}"
            assert_near(weight.grad, golden[f"grad/{name}"], THROUGH_NETWORK, label)
            assert_near(weight, golden[f"w/{name}"], WEIGHTS, label)


def check_parts(
    make: Callable[[], nn.Module], method: object, batch: Batch, parts: int, progress: float = 0.0
) -> None:
    """A batch in parts has the terms and the gradient of the whole, in float64.

    make: the same network each time, in float64, as the batch is.
    """

    def step(count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        network = make()
        optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
        objective = Objective(method.measure, method.combine)
        stepper = Stepper(network, optimiser, objective, Compute(parts=count))
        terms = stepper.step(batch, progress=progress)
        trained = [(name, p.grad) for name, p in network.named_parameters() if p.grad is not None]
        return terms, dict(trained)

    (terms, gradients), (others, part) = step(1), step(parts)
    assert others.keys() == terms.keys()
    assert part.keys() == gradients.keys()
    for name, term in terms.items():
        assert others[name].item() == pytest.approx(term.item(), rel=1e-10), name
    for name, gradient in gradients.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(part[name], gradient, rtol=0, atol=1e-9 * largest, msg=name)
