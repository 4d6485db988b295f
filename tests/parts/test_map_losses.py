"""Losses on maps: hand-worked numbers, gradients, sizes that are too small."""

import pytest
import torch

from aeft_lib.parts import map_losses


def test_only_the_largest_channel_stays_with_all_its_ties():
    maps = torch.tensor([0.2, -0.1, 0.2]).reshape(1, 3, 1, 1)
    assert torch.equal(map_losses.only_maxima(maps), maps * (maps > 0))
    dark = torch.tensor([0.0, -0.3, -0.1]).reshape(1, 3, 1, 1)
    assert not map_losses.only_maxima(dark).any()


def test_the_background_is_kept_beside_the_largest_class():
    maps = torch.tensor([0.9, 0.1, 0.4]).reshape(1, 3, 1, 1)
    assert (
        map_losses.foreground_maxima(maps).flatten().tolist()
        == maps[0, [0, 0, 2]].mul(torch.tensor([1, 0, 1])[:, None, None]).flatten().tolist()
    )


def test_lowest_quarter_by_hand():
    """Eight pixels whose largest class is .1, .2, ...: the two lowest have a mean of .15."""
    maps = torch.full((1, 2, 2, 4), -1.0)
    maps[0, 1] = torch.arange(1, 9).reshape(2, 4) / 10
    assert map_losses.lowest_mean(maps).item() == pytest.approx(0.15)
    assert map_losses.lowest_mean(-maps.abs()).item() == 0


def test_top_fraction_by_hand():
    """⌊0.2 · 13⌋ = 2 of thirteen."""
    values = torch.arange(26.0).reshape(2, 13, 1, 1)
    assert map_losses.top_fraction_mean(values, 0.2).tolist() == [11.5, 24.5]
    assert map_losses.top_fraction_mean(values, 1.0).tolist() == [6.0, 19.0]


def test_l1_is_a_mean_of_each_image():
    first, second = torch.zeros(2, 1, 1, 2), torch.tensor([[1.0, 3.0], [0.0, -1.0]])
    assert map_losses.l1(first, second[:, None, None]).tolist() == [2.0, 0.5]


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: map_losses.top_fraction_mean(x, 0.2),
        map_losses.lowest_mean,
        lambda x: map_losses.l1(x[:, :1], x[:, 1:2]),
        map_losses.with_background,
        lambda x: map_losses.resized(x, (3, 3)),
    ],
)
def test_gradients(loss):
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, maps.requires_grad_())


@pytest.mark.parametrize("fraction", [0.2, 0.0, -0.5])
def test_too_few_values_are_refused(fraction):
    with pytest.raises(ValueError, match=r"of 4 values .*too small.*larger images"):
        map_losses.top_fraction_mean(torch.zeros(1, 1, 2, 2), fraction)


def test_a_map_without_a_quarter_is_refused():
    with pytest.raises(ValueError, match="of 2 values"):
        map_losses.lowest_mean(torch.zeros(1, 3, 1, 2))


def test_maps_of_other_shapes_are_not_compared():
    with pytest.raises(ValueError, match="one shape"):
        map_losses.l1(torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3))
