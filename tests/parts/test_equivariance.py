"""The equivariance error: 0 for maps that move, by hand, and of tagged classes alone."""

import pytest
import torch

from aeft_lib.parts.equivariance import Equivariance, equivariance_error


def test_maps_that_move_have_no_error():
    """Every second cell of a 5x5 map is a cell of the 3x3 one, with its peak and its minimum."""
    cam = torch.zeros(1, 2, 5, 5)
    cam[0, :, 2, 2] = torch.tensor([3.0, 0.5])
    assert equivariance_error(cam, cam[:, :, ::2, ::2], torch.ones(1, 2)).item() < 1e-5


def test_by_hand_over_tagged_classes():
    cam, smaller = torch.zeros(2, 3, 3, 3), torch.zeros(2, 3, 2, 2)
    cam[0, 0, 0, 0] = 1.0
    smaller[0, 0, 1, 1] = 1.0  # the wrong corner: two cells of four differ by 1
    smaller[0, 1, 0, 0] = 1.0  # no tag
    tags = torch.tensor([[1, 0, 1], [0, 0, 0]])
    # Peaks are (1 - 1e-5) / (1 + 1e-5), and the third class is silent in both.
    assert equivariance_error(cam, smaller, tags).tolist() == pytest.approx([0.25, 0.0], abs=1e-5)


def test_a_scale_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"scale must lie in 0\.\.1, got 2"):
        Equivariance(2)
