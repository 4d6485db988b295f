"""The option ``--noise=1e-6``: what another CPU does to numbers, at about ten times its size.

Every trained weight, and every input of what rounds, thresholds or takes a maximum, is multiplied
by 1 + size * n with n from a normal distribution.  n depends on the shape alone, so equal inputs
stay equal, and no value leaves the range of its tensor.  The size is that of float32; float64 has
as many of its own last places, 2e-15 for 1e-6.  Other processes have no noise.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aeft_lib.maps import evaluation, labels, seeds
from aeft_lib.networks import state
from aeft_lib.refinement import dense_crf, random_walk
from aeft_lib.stages import predict_labels


def perturbed(tensor: Tensor, size: float) -> Tensor:
    """The tensor with its noise; integers and empty tensors as they are."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    n = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size *= torch.finfo(tensor.dtype).eps / torch.finfo(torch.float32).eps
    low, high = tensor.detach().aminmax()
    return (tensor * (1 + size * n).to(tensor)).clamp(low, high)


def install(size: float) -> None:
    """Wrap the amplifiers wherever a module has them, for the rest of this process."""

    def noisy(tensor: Tensor) -> Tensor:
        return perturbed(torch.as_tensor(tensor), size)

    def disturb_weights(network: nn.Module) -> nn.Module:
        with torch.no_grad():
            for tensor in state.trained_state(network).values():
                tensor.copy_(noisy(tensor))
        return network

    def build(whole: Callable, *inputs: Any) -> nn.Module:
        return disturb_weights(whole(*inputs))

    def load_trained_state(whole: Callable, network: nn.Module, *inputs: Any) -> None:
        whole(network, *inputs)
        disturb_weights(network)

    def result(whole: Callable, *inputs: Any, **options: Any) -> Tensor:
        return noisy(whole(*inputs, **options))

    def infer(whole: Callable, crf: dense_crf.DenseCRF, unary: Tensor, **options: Any) -> Tensor:
        return whole(crf, noisy(unary), **options)

    def propagate(whole: Callable, affinity: Any, scores: Tensor, **options: Any) -> Tensor:
        return whole(affinity._replace(value=noisy(affinity.value)), noisy(scores), **options)

    def sweep(whole: Callable, cams: Any, *inputs: Any, **options: Any) -> evaluation.Sweep:
        disturbed = (
            (item[0], noisy(item[1])) if isinstance(item, tuple) else noisy(item) for item in cams
        )
        return whole(disturbed, *inputs, **options)

    def label_map(whole: Callable, class_ids: Tensor, scores: Tensor, *inputs: Any) -> Any:
        return whole(class_ids, noisy(scores), *inputs)

    for owner, name, wrapper in (
        (state, "build", build),
        (state, "load_trained_state", load_trained_state),
        (seeds, "combine_scales", result),
        (predict_labels, "probabilities", result),
        (dense_crf.DenseCRF, "infer", infer),
        (random_walk, "propagate", propagate),
        (evaluation, "sweep", sweep),
        (labels, "label_map", label_map),
    ):
        whole = getattr(owner, name)
        wrapped = functools.wraps(whole)(functools.partial(wrapper, whole))
        if owner is dense_crf.DenseCRF:
            owner.infer = lambda crf, *inputs, wrapped=wrapped, **options: wrapped(
                crf, *inputs, **options
            )
        for module in list(sys.modules.values()):
            if vars(module).get(name) is whole:
                setattr(module, name, wrapped)
