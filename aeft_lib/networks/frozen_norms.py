"""Networks with frozen batch norms, which cost nothing: they are folded into convolutions.

A batch norm that never moves is a multiply-add per channel, ``scale x + shift``.  Where it alone
reads a convolution it is folded into it, ``conv(x; scale W) + shift``, and costs nothing.
Elsewhere it is that multiply-add: half a batch norm's backward pass, and no input is kept for it.

Modules and tensors keep their names; `fold` replaces what their ``forward`` does, and the norms are
read in every pass.  Own code: torch's ``fuse_conv_bn_weights`` folds numbers once and for all, so
weights could be neither trained nor loaded afterwards.
"""

import math
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

PROBED = (1, 3, 224, 224)  # some networks of timm take no other size
# What a network raises that cannot run on tensors without contents.
UNPROBED = (RuntimeError, AssertionError)


class FrozenNorms(nn.Module):
    """A network whose batch norms keep statistics and affine parameters, in training too (paper).

    Modules and tensors keep their names, and the norms are read in every pass: weights may be
    loaded, moved and cast at any time.

    checkpointing: keep the input of each block for the backward pass and compute the rest again: a
        third more time, a fifth of the memory.
    """

    checkpointing = False

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block on x, its activations forgotten where `checkpointing` says so."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in the backbone's range -> features."""
        return self.tail(self.trunk(images))

    def freeze_norms(self) -> None:
        """No gradient for the affine parameters, and norms folded where they can be.

        To be called at the end of a constructor.
        """
        for norm in self._batch_norms():
            norm.requires_grad_(False)
        self.train(self.training)
        fold(self)

    def train(self, mode: bool = True) -> "FrozenNorms":
        """As nn.Module.train, but every batch norm stays in eval mode."""
        super().train(mode)
        for norm in self._batch_norms():
            norm.eval()
        return self

    def _batch_norms(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]


def fold(network: nn.Module) -> None:
    """Fold, in place, the norms of a network that never change in training."""
    convolutions = convolutions_before_norms(unfold(network))
    for norm in filter(_is_norm, network.modules()):
        if convolution := convolutions.get(norm):
            convolution.forward = partial(_convolved, convolution, norm)
            norm.forward = partial(_activated, norm)
        else:
            norm.forward = partial(_scaled, norm)


def unfold(network: nn.Module) -> nn.Module:
    """The network, in place, with its norms as torch has them: what folding is compared with."""
    for module in network.modules():
        vars(module).pop("forward", None)
    return network


def convolutions_before_norms(network: nn.Module) -> dict[nn.Module, nn.Conv2d]:
    """Each norm that alone reads a convolution of its own block, with that convolution.

    What leaves a block stays as it is.  Read off one pass without contents: a network that cannot
    be run so has no such norm for us, and is only slower.
    """
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {name: tensor.to("meta") for name, tensor in named.items()}
    image = torch.empty(PROBED, device="meta", dtype=next(network.parameters()).dtype)
    norms = {m: name for name, m in network.named_modules() if _is_norm(m)}
    inputs: list[tuple[nn.Module, Tensor]] = []
    hooks = [m.register_forward_pre_hook(lambda m, x: inputs.append((m, x[0]))) for m in norms]
    with suppress(*UNPROBED), torch.no_grad(), _Flow() as flow:
        torch.func.functional_call(network, empty, image)
    for hook in hooks:
        hook.remove()
    convolutions = {
        id(empty[f"{name}.weight"]): (m, name.rpartition(".")[0])
        for name, m in network.named_modules()
        if isinstance(m, nn.Conv2d)
    }
    pairs = {}
    for norm, x in inputs:
        weight, block = flow.weights.get(id(x)), norms[norm].rpartition(".")[0]
        once = (x, weight, empty[f"{norms[norm]}.running_mean"])
        convolution, place = convolutions.get(id(weight), (None, None))
        if place == block and all(flow.reads[id(tensor)] == 1 for tensor in once):
            pairs[norm] = convolution
    return pairs


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm that can be frozen: with statistics and affine parameters."""
    return isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats


class _Flow(TorchDispatchMode):
    """What a pass does with its tensors, all by their id.

    reads: how often each is read.  weights: of the convolution that made it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()
        self.weights: dict[int, Tensor] = {}
        self.kept: list[Any] = []  # the id of a tensor that is gone would be given to another

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), options: dict | None = None
    ) -> Any:
        result = operation(*args, **(options or {}))
        read = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        self.reads.update(map(id, read))
        self.kept += [*read, result]
        if operation is torch.ops.aten.convolution.default:
            self.weights[id(result)] = args[1]
        return result


class _Reweighted:
    """A convolution with another weight and bias; everything else, as its padding, is its own."""

    def __init__(self, convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
        self.convolution, self.weight, self.bias = convolution, weight, bias

    def __getattr__(self, name: str) -> Any:
        return getattr(self.convolution, name)


def _convolved(convolution: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The norm of the convolution of x: the output of both.

    Of weight and output the smaller is scaled: few cells with many weights are not worth a fold.
    """
    forward, numbers = type(convolution).forward, convolution.weight[0].numel()
    cells = x.numel() // (x.shape[1] * math.prod(convolution.stride))
    if numbers > cells:
        return _multiply_add(norm, forward(convolution, x))
    scale, shift = _scale_and_shift(norm)
    if convolution.bias is not None:
        shift = shift + scale * convolution.bias
    weight = convolution.weight * scale[:, None, None, None]
    return forward(_Reweighted(convolution, weight, shift), x)


def _activated(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What a norm does behind its multiply-add: nothing, or timm's dropout and activation."""
    return norm.act(norm.drop(x)) if hasattr(norm, "act") else x


def _scaled(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The norm of x (B, C, H, W), and its activation."""
    return _activated(norm, _multiply_add(norm, x))


def _multiply_add(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``scale x + shift``, in the type of x as autocast has it."""
    scale, shift = (t.to(x.dtype)[:, None, None] for t in _scale_and_shift(norm))
    return torch.addcmul(shift, x, scale)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """``gamma / sqrt(variance + eps)`` and ``beta - mean scale``, (C,) each."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
