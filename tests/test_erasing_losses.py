"""max_norm and the classification loss: golden parity, limit cases, hand-worked numbers, gradients, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F

from aeft_lib.erasing import EPS, max_norm
from aeft_lib.losses import classification


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- max_norm --------------------------------------------------------------------------------------------------------


def test_golden_max_norm(golden):
    vectors = golden("max_norm")
    cases = sorted(key.removesuffix("x") for key in vectors if key == "x" or key.endswith("/x"))
    assert cases, "the golden file holds no case"
    for case in cases:
        ours = max_norm(torch.from_numpy(vectors[f"{case}x"]))
        torch.testing.assert_close(ours, torch.from_numpy(vectors[f"{case}out"]), rtol=0, atol=1e-6)


def test_max_norm_by_hand():
    out = max_norm(torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]]).double())  # min 1, max 5
    expected = [(x - 1 - EPS) / (5 - 1 + EPS) for x in (2.0, 3.0, 5.0)]
    assert out.flatten().tolist() == pytest.approx([0, *expected], abs=1e-12)


@pytest.mark.parametrize("value", [-2.0, 0.0, 0.7])
def test_max_norm_of_a_map_without_contrast_is_zero(value):
    assert (max_norm(torch.full((1, 2, 3, 3), value)) == 0).all()


def test_max_norm_ignores_scale_and_negative_values():
    maps = random_maps(2, 3, 5, 4)
    torch.testing.assert_close(max_norm(1000 * maps), max_norm(maps), rtol=0, atol=1e-4)
    assert torch.equal(max_norm(torch.where(maps < 0, 9 * maps, maps)), max_norm(maps))


def test_max_norm_treats_every_map_alone_and_stays_in_0_1():
    maps = random_maps(2, 3, 5, 4)
    out = max_norm(maps)
    assert out.shape == maps.shape
    assert 0 <= out.min() <= out.max() <= 1
    torch.testing.assert_close(out[1:, 2:], max_norm(maps[1:, 2:]))


def test_max_norm_gradients_are_right():
    assert torch.autograd.gradcheck(max_norm, random_maps(1, 2, 3, 3).requires_grad_())


def test_max_norm_refuses_maps_without_a_batch():
    with pytest.raises(ValueError, match=r"maps must be \(B, K, h, w\), got shape \(2, 3, 3\)"):
        max_norm(torch.zeros(2, 3, 3))


# --- classification --------------------------------------------------------------------------------------------------


def test_classification_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]]).double()  # probabilities 1/2 and 3/4
    assert classification(logits, torch.tensor([[1, 0]])).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64])
def test_classification_is_the_mean_binary_cross_entropy_for_tags_of_any_type(dtype):
    logits = random_maps(4, 6)
    tags = (random_maps(4, 6, seed=1) > 0).to(dtype)
    theirs = -(F.logsigmoid(logits) * tags + F.logsigmoid(-logits) * (1 - tags.double())).sum() / 24
    torch.testing.assert_close(classification(logits, tags), theirs)


def test_classification_of_hopeless_logits_is_finite():
    loss = classification(torch.tensor([[-1e4, 1e4]]), torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(1e4)


def test_classification_gradients_are_right():
    tags = torch.tensor([[1, 0, 1], [0, 0, 1]])
    assert torch.autograd.gradcheck(lambda logits: classification(logits, tags), random_maps(2, 3).requires_grad_())


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (3,)])
def test_classification_refuses_tags_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"logits \(2, 3\) and tags .* must have the same"):
        classification(torch.zeros(2, 3), torch.zeros(shape))
