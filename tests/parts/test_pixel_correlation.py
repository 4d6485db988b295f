"""Pixel correlation: its limit cases, its gradient, its widths, half precision."""

import pytest
import torch
from torch import Tensor

from aeft_lib.parts.pixel_correlation import EPS, PixelCorrelation, correlated, stretched_maps

# |g| + 1e-5 and the sum of weights + 1e-5, for |g| and the sum at least 1: at most 3e-5 together.
BOUND = 3 * EPS


def features(*pixels: tuple[float, ...]) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float64).T.reshape(1, -1, 1, len(pixels))


def maps(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


def test_by_hand():
    r = correlated(maps(1, 0, 0.5), features((1, 0), (1, 0), (0, 1)))
    assert r.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5], abs=BOUND)


def test_equal_pixels_get_the_mean_of_the_map():
    r = correlated(maps(1, 0, 0.5, 0.1), features(*[(2.0, 1.0)] * 4))
    assert r.flatten().tolist() == pytest.approx([0.4] * 4, abs=BOUND)


def test_orthogonal_pixels_keep_their_map():
    r = correlated(maps(1, 0, 0.5), features((1, 0, 0), (0, 2, 0), (0, 0, 3)))
    assert r.flatten().tolist() == pytest.approx([1, 0, 0.5], abs=BOUND)


def test_opposite_pixels_do_not_mix():
    r = correlated(maps(1, 0.25), features((1, 0), (-1, 0)))
    assert r.flatten().tolist() == pytest.approx([1, 0.25], abs=BOUND)


def test_each_output_pixel_is_a_weighted_mean():
    """So it lies within the map's range, whatever the features."""
    given = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    g = torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(1))
    r = correlated(given, g)
    assert r.shape == given.shape
    assert (r <= given.amax(dim=(2, 3), keepdim=True)).all()
    assert (r >= given.amin(dim=(2, 3), keepdim=True) * (1 - BOUND)).all()


def test_gradient():
    g = torch.randn(1, 3, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    given = torch.rand(1, 2, 2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.autograd.gradcheck(correlated, (given.requires_grad_(), g.requires_grad_()))


def test_autocast_does_not_coarsen_the_affinity():
    given = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    g = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(correlated(given, g), correlated(given.clone(), g.clone()))
        assert correlated(given, g).dtype == torch.float32


def test_maps_and_features_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="one batch and size"):
        correlated(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("taps", "widths"), [((512, 1024), (64, 128)), ((40, 112), (32, 64)), ((64, 128), (64, 128))]
)
def test_widths_fit_the_taps(taps, widths):
    head = PixelCorrelation(tap_channels=taps)
    assert (head.f8_3.out_channels, head.f8_4.out_channels) == widths
    assert head.f9.out_channels == sum(widths)


def test_no_gradient_reaches_taps_or_cam():
    head = PixelCorrelation(tap_channels=(4, 8))
    taps = torch.randn(1, 15, 3, 3, requires_grad=True)
    cam = torch.randn(1, 2, 3, 3, requires_grad=True)
    head(stretched_maps(cam), taps).sum().backward()
    assert taps.grad is None
    assert cam.grad is None
    assert all(p.grad.any() for p in head.parameters())


def test_every_class_is_stretched_unless_its_tag_is_missing():
    cam = torch.zeros(1, 2, 1, 2)
    cam[0, 0, 0, 0], cam[0, 1, 0, 1] = 4.0, 0.01
    # The quieter peak: (0.01 - 1e-5) / (0.01 + 1e-5).
    assert stretched_maps(cam)[0, 1:].amax(dim=(1, 2)).tolist() == pytest.approx([1, 1], abs=3e-3)
    told = stretched_maps(cam, torch.tensor([[1, 0]]))
    assert told[0, :, 0].T.tolist()[1] == [1.0, 0.0, 0.0]
