"""The losses: golden parity, limit cases, hand-worked numbers, gradients, refusals."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from aeft_lib.paper.erasing import embeddings, region_embeddings, residual_region
from aeft_lib.paper.losses import attract_rigid, attract_soft, classification, repel


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- golden parity -------------------------------------------------------------------------------


def golden_repulsion(case):
    """Of a golden case, from its CAM, pyramid and pairs, as the reference does:

    own tags, more than four hard anchors.
    """
    region = residual_region(case["cam"], case["label"], threshold=0.2)
    anchor = region_embeddings(case["gpp"], region) * case["label"]
    negative = region_embeddings(case["gpp"]) * case["label"]
    return repel(anchor, negative[case["n_idx"]], margin=0.5, min_hard=4)


def golden_terms(case) -> dict[str, torch.Tensor]:
    """The reference's losses by their golden names; without a pair for every anchor there is none to repel."""
    soft = attract_soft(*(embeddings(case[maps], case["label"]) for maps in ("gpp_masked", "gpp")))
    found = {"L_cls": classification(case["logits"][:8], case["label"][:8]), "L_attract": soft}
    if "L_repel" in case:
        found["L_repel"] = golden_repulsion(case).loss
        found["total"] = sum(found.values())
    return found


def test_golden_losses(golden_losses, assert_near):
    for name, case in golden_losses.items():
        for term, value in golden_terms(case).items():
            assert_near(value, case[term], 1e-5, f"{name}/{term}")


def test_golden_distances_and_hard_anchors(golden_losses, assert_near):
    for name, case in golden_losses.items():
        if "d" in case:
            repulsion = golden_repulsion(case)
            assert_near(repulsion.distances, case["d"], 1e-5, f"{name}/d")
            assert torch.equal(repulsion.hard.nonzero()[:, 0], case["hard"]), name


def test_golden_gradients(golden_losses, assert_near):
    given = ("logits", "gpp", "gpp_masked")
    for name, case in golden_losses.items():
        if "grad_gpp" in case:
            leaves = {key: case[key].clone().requires_grad_() for key in given}
            golden_terms(case | leaves)["total"].backward()
            for key, leaf in leaves.items():
                assert_near(leaf.grad, case[f"grad_{key}"], 1e-5, f"{name}/grad_{key}")


def test_own_tags_make_the_distance_a_sum_of_two_squares(golden_losses):
    """With disjoint tags a and n never meet, so d = |a|^2 + |n|^2:

    the reference's quirk `repel_target`.
    """
    for case in golden_losses.values():
        if "d" in case and "lonely" not in case:
            squares = (
                case["anchor_pos"].square() + case["negative_pos"][case["n_idx"]].square()
            ).sum(dim=1)
            torch.testing.assert_close(
                golden_repulsion(case).distances, squares, rtol=1e-5, atol=1e-6
            )


# --- classification ------------------------------------------------------------------------------


def test_classification_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]]).double()  # probabilities 1/2 and 3/4
    assert classification(logits, torch.tensor([[1, 0]])).item() == pytest.approx(
        (math.log(2) + math.log(4)) / 2
    )


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64]
)
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
    assert torch.autograd.gradcheck(
        lambda logits: classification(logits, tags), random_maps(2, 3).requires_grad_()
    )


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (3,)])
def test_classification_refuses_tags_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"logits \(2, 3\) and tags .* must have the same"):
        classification(torch.zeros(2, 3), torch.zeros(shape))


# --- attract -------------------------------------------------------------------------------------


def test_attract_soft_by_hand():
    positive, anchor = (
        torch.tensor([[0.25, 0.0], [1.0, 0.5]]),
        torch.tensor([[0.75, 0.0], [1.0, 2.5]]),
    )
    assert attract_soft(positive, anchor).item() == (0.5 + 0 + 0 + 2.0) / 4
    assert attract_soft(positive, positive).item() == 0


def test_attract_soft_pulls_both_images_with_the_same_force():
    positive, anchor = (random_maps(2, 3, seed=seed).requires_grad_() for seed in (0, 1))
    attract_soft(positive, anchor).backward()
    assert torch.equal(positive.grad, -anchor.grad)
    assert torch.equal(positive.grad, (positive - anchor).sign() / 6)


def test_squared_attraction_by_hand():
    positive, anchor = (
        torch.tensor([[0.5, 0.0], [1.0, 0.5]]),
        torch.tensor([[0.0, 1.0], [1.0, 0.5]]),
    )
    assert attract_soft(positive, anchor, distance="squared").item() == (0.25 + 1 + 0 + 0) / 2


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="distance must be one of absolute, squared, got 'cosine'"):
        attract_soft(ANCHOR, NEGATIVE, distance="cosine")


def test_attract_rigid_asks_for_the_unchanged_tags():
    logits, tags = torch.tensor([[0.0, math.log(3.0)]]).double(), torch.tensor([[1, 0]])
    assert attract_rigid(logits, tags).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_attract_gradients_are_right():
    positive, anchor = (random_maps(3, 4, seed=seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(attract_soft, (positive, anchor))
    squared = partial(attract_soft, distance="squared")
    assert torch.autograd.gradcheck(squared, (positive, anchor))
    assert torch.autograd.gradcheck(
        lambda logits: attract_rigid(logits, random_maps(3, 4, seed=2) > 0), positive
    )


# --- repel ---------------------------------------------------------------------------------------

# Squared distances 1/4, 1/16 and 1.
ANCHOR, NEGATIVE = (
    torch.tensor([[0.5, 0.0], [0.25, 1.0], [0.0, 1.0]]),
    torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
)


def test_repel_by_hand():
    loss, distances, hard = repel(ANCHOR, NEGATIVE, margin=0.5)
    assert distances.tolist() == [0.25, 0.0625, 1.0]
    assert hard.tolist() == [True, True, False]
    assert loss.item() == (0.25 + 0.4375) / 2  # the mean over the hard ones, not over all


def test_repel_leaves_out_anchors_without_a_negative():
    loss, _, hard = repel(ANCHOR, NEGATIVE, margin=0.5, valid=torch.tensor([False, True, True]))
    assert hard.tolist() == [False, True, False]
    assert loss.item() == 0.4375


def test_anchor_at_the_margin_is_not_hard():
    assert repel(ANCHOR, NEGATIVE, margin=0.25).hard.tolist() == [False, True, False]


@pytest.mark.parametrize(("min_hard", "expected"), [(0, 0.34375), (1, 0.34375), (2, 0.0), (3, 0.0)])
def test_repel_needs_more_hard_anchors_than_min_hard(min_hard, expected):
    assert repel(ANCHOR, NEGATIVE, min_hard=min_hard).loss.item() == expected


@pytest.mark.parametrize(
    "options",
    [
        {"margin": 0.0},
        {"valid": torch.zeros(3, dtype=torch.bool)},
        {"min_hard": 4},
        {"margin": 0.0625},
    ],
    ids=["margin 0", "no negatives at all", "too few", "at the margin"],
)
def test_repel_without_a_hard_set_is_0_and_so_are_its_gradients(options):
    anchor, negative = ANCHOR.clone().requires_grad_(), NEGATIVE.clone().requires_grad_()
    loss = repel(anchor, negative, **options).loss
    loss.backward()
    assert loss.item() == 0
    assert (anchor.grad == 0).all()
    assert (negative.grad == 0).all()


def test_repel_in_a_single_class():
    assert repel(ANCHOR[:, :1], NEGATIVE[:, :1], margin=0.5).distances.tolist() == [
        0.25,
        0.0625,
        0.0,
    ]


def test_equal_embeddings_cost_the_margin_and_have_no_direction():
    anchor = ANCHOR.clone().requires_grad_()
    loss = repel(anchor, ANCHOR, margin=0.7).loss
    loss.backward()
    assert loss.item() == pytest.approx(0.7)
    assert (anchor.grad == 0).all()


def test_repel_gradients_are_right_and_push_apart():
    anchor, negative = (0.3 * random_maps(4, 3, seed=seed) for seed in (0, 1))
    anchor.requires_grad_()
    negative.requires_grad_()
    valid = torch.tensor([True, True, False, True])
    repulsion = repel(anchor, negative, margin=0.8, valid=valid)
    assert 0 < repulsion.hard.sum() < 4
    assert torch.autograd.gradcheck(
        lambda a, n: repel(a, n, margin=0.8, valid=valid).loss, (anchor, negative)
    )
    repulsion.loss.backward()
    further = (anchor - anchor.grad - negative).square().sum(dim=1)
    assert torch.equal(further > repulsion.distances, repulsion.hard)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (1, 2), (3,), (3, 2, 1, 1)])
def test_embeddings_of_different_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"anchor \(3, 2\) and positive \(.*\) must have the same \(B, K\) shape"
    ):
        attract_soft(torch.zeros(shape), ANCHOR)
    with pytest.raises(
        ValueError, match=r"anchor \(3, 2\) and negative \(.*\) must have the same \(B, K\) shape"
    ):
        repel(ANCHOR, torch.zeros(shape))


def test_maps_are_no_embeddings():
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"anchor \(2, 3, 4, 4\) and positive"):
        attract_soft(maps, maps)


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_margins_that_are_none_are_refused(margin):
    with pytest.raises(ValueError, match=f"margin must be finite and not negative, got {margin}"):
        repel(ANCHOR, NEGATIVE, margin=margin)


def test_negative_min_hard_is_refused():
    with pytest.raises(ValueError, match="min_hard must not be negative, got -1"):
        repel(ANCHOR, NEGATIVE, min_hard=-1)


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
def test_valid_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"valid must be \(3,\), one flag an anchor, got shape"):
        repel(ANCHOR, NEGATIVE, valid=torch.ones(shape, dtype=torch.bool))


def test_attract_rigid_refuses_tags_of_another_shape():
    with pytest.raises(ValueError, match=r"logits \(2, 3\) and tags \(2, 4\) must have the same"):
        attract_rigid(torch.zeros(2, 3), torch.zeros(2, 4))
