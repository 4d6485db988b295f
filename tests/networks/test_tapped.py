"""A backbone that hands on its taps: cached or not, they are the same, and only where frozen."""

import pytest
import torch

from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.networks.tapped import TappedSpec

SPEC = TappedSpec(EfficientNetLiteSpec(trained_stages=2, weights="none"))


def test_what_is_cached_is_what_one_pass_gives():
    torch.manual_seed(0)
    backbone = SPEC.build().eval()
    images = torch.rand(2, 3, 64, 96) - 0.5
    with torch.no_grad():
        packed = backbone.trunk(images)
        features, taps = backbone.tapped(images)
        tail = backbone.tail(packed)
    assert taps.shape == (2, 3 + 40 + 112, 4, 6)
    assert torch.equal(backbone.taps_of(packed), taps)
    # The same layers, perhaps with other kernels: float32 through twelve blocks.
    largest = features.abs().max().item()
    torch.testing.assert_close(tail, features, rtol=0, atol=1e-4 * largest)
    # The trunk's output is the second tap here.
    assert torch.equal(packed[:, :112], taps[:, 43:])


def test_trained_taps_are_not_cached():
    backbone = TappedSpec(EfficientNetLiteSpec(trained_stages=4, weights="none")).build()
    with torch.no_grad(), pytest.raises(ValueError, match=r"EfficientNetLite0.*taps are trained"):
        backbone.trunk(torch.zeros(1, 3, 64, 64))
    features, taps = backbone.tapped(torch.zeros(1, 3, 64, 64))
    assert features.requires_grad
    assert not taps.requires_grad


def test_the_spec_speaks_for_the_plain_one():
    assert (SPEC.stride, SPEC.weights) == (16, "none")
    backbone = SPEC.build()
    backbone.checkpointing = True
    assert backbone.plain.checkpointing
    names = {name for name, _ in backbone.named_parameters()}
    assert all(name.startswith("plain.") for name in names)
