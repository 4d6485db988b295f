"""The loop of per-image readers, the merge of its sums, and weights that are put back."""

import numpy as np
import pytest
import torch
from torch import nn

from aeft_lib.maps.seeds import combine_scales
from aeft_lib.parts.adapting import adaptable, put_back
from aeft_lib.parts.climbing import accumulate, mean_numbers, merged, strided


class Counter:
    """A state that is a number: maps of it at two scales, and an end where it is asked for."""

    def __init__(self, ends: tuple[int, float] = (-1, 0.0), moves: int = -1) -> None:
        self.state, self.end, self.last, self.seen = 1.0, ends, moves, []

    def read(self, step):
        for scale in (1.0, 0.5):
            self.seen.append((step, scale))
            yield scale, torch.full((1, 2, 2), self.state * scale)

    def ends(self, step, scale, maps):
        return "covered" if (step, scale) == self.end else ""

    def move(self, step):
        self.state *= 10
        return "moved far" if step == self.last else ""


def test_maps_before_each_step_are_added():
    counter = Counter()
    climb = accumulate(counter, 3)
    assert {scale: maps.unique().tolist() for scale, maps in climb.sums.items()} == {
        1.0: [111.0],
        0.5: [55.5],
    }
    assert climb.counts == {1.0: 3, 0.5: 3}
    assert (climb.stopped_in, climb.reason) == (-1, "")
    assert counter.state == 100  # nothing would read a third step


@pytest.mark.parametrize("steps", [0, 1])
def test_one_state_is_the_plain_map_and_takes_no_step(steps):
    counter = Counter()
    climb = accumulate(counter, steps)
    assert climb.sums[1.0].unique().tolist() == [1.0]
    assert counter.state == 1


def test_the_map_that_ends_it_stays_and_later_scales_lack_it():
    counter = Counter(ends=(2, 1.0))
    climb = accumulate(counter, 10)
    assert climb.sums[1.0].unique().tolist() == [111.0]
    assert climb.sums[0.5].unique().tolist() == [5.5]
    assert climb.counts == {1.0: 3, 0.5: 2}
    assert (climb.stopped_in, climb.reason) == (2, "covered")
    assert counter.seen[-1] == (2, 1.0)


def test_a_step_may_end_it_too():
    climb = accumulate(Counter(moves=1), 10)
    assert climb.counts[1.0] == 2
    assert (climb.stopped_in, climb.reason) == (1, "moved far")


def test_on_whole_cells_the_merge_is_the_house_own():
    """Maps that are not negative: the order of ReLU and enlarging is then the same."""
    generator = torch.Generator().manual_seed(0)
    sums = [torch.rand(3, *side, generator=generator) for side in ((4, 6), (2, 3))]
    ours = merged(sums, (64, 96))
    theirs = combine_scales([maps[None] for maps in sums], size=(64, 96), mirrored=(False,) * 2)[0]
    # Two bilinear values of four products each, their sum, and a division are 1.2e-6; CPUs differ
    # in the order of their sums.
    assert (ours - theirs).abs().max() <= 1e-5
    assert merged([torch.zeros(1, 4, 6)], (64, 96)).abs().max() == 0


def test_an_image_that_is_no_multiple_is_cropped_or_stretched():
    """A ramp over five half cells: cropped it does not reach its end, stretched it does."""
    ramp = torch.linspace(0, 1, 5).expand(1, 2, 5)
    cropped, stretched = merged([ramp], (32, 72)), strided([ramp], (32, 72))
    assert cropped.shape == (1, 32, 72)
    assert stretched.shape == (1, 8, 18)
    whole = merged([ramp], (32, 80))[..., :72]
    # Both are divided by their own maximum, + 1e-5.
    torch.testing.assert_close(cropped, whole / whole.max(), rtol=0, atol=3e-5)


def test_means_leave_out_what_is_not_finite():
    lines = [{"a": 1.0, "b": float("nan")}, {"a": 3.0, "b": float("inf")}]
    means = mean_numbers(lines)
    assert means["a"] == 2.0
    assert np.isnan(means["b"])
    assert mean_numbers([]) == {}


class Blocks(nn.Module):
    """A backbone of two blocks, the first part of it frozen."""

    def __init__(self) -> None:
        super().__init__()
        self._trunk = nn.Conv2d(3, 4, 1).requires_grad_(False)
        self._tail = nn.Sequential(nn.Conv2d(4, 5, 1), nn.Conv2d(5, 6, 1))

    def tail(self, x):
        return self._tail(x)


class Classifier(nn.Module):
    def __init__(self, backbone: nn.Module, channels: int = 6) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(channels, 2, 1, bias=False)


@pytest.mark.parametrize("part", ["last", "trained"])
def test_both_parts_are_the_same_network_cut_elsewhere(part):
    torch.manual_seed(0)
    network, x = Classifier(Blocks()), torch.randn(2, 4, 3, 3)
    cut = adaptable(network, part)
    assert torch.equal(cut.cam(cut.before(x)), network.head(network.backbone.tail(x)))
    trained = 1 if part == "last" else 2
    assert [p.shape for p in cut.body] == [
        p.shape for block in network.backbone._tail[-trained:] for p in block.parameters()
    ]
    assert cut.head == [network.head.weight]


def test_without_trained_blocks_the_head_adapts_alone():
    backbone = Blocks()
    backbone._tail = nn.Sequential()
    cut = adaptable(Classifier(backbone, 4), "last")
    assert cut.body == []
    assert cut.before(torch.ones(1, 4, 2, 2)).shape == (1, 4, 2, 2)


def test_a_backbone_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Conv2d has no last block that adapts alone"):
        adaptable(Classifier(nn.Conv2d(3, 6, 1)), "last")


def test_weights_are_put_back_after_an_error_too():
    weight = nn.Parameter(torch.randn(3))
    before = weight.detach().clone()

    def fails() -> None:
        with put_back([weight]):
            weight.square().sum().backward()
            with torch.no_grad():
                weight.add_(1)
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fails()
    assert torch.equal(weight, before)
    assert weight.grad is None
