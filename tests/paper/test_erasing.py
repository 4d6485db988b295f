"""The triplet's masks, embeddings and pairs:

golden parity, limit cases, hand-worked numbers, gradients, refusals.
"""

import numpy as np
import pytest
import torch

from aeft_lib.paper import erasing
from aeft_lib.paper.erasing import (
    EPS,
    disjoint,
    embeddings,
    erase,
    max_norm,
    partners,
    region_embeddings,
    residual_region,
    unit_embeddings,
)


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- max_norm ------------------------------------------------------------------------------------


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


# --- erase ---------------------------------------------------------------------------------------

RAMP = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]]).double()  # max_norm gives 0, 1/4, 1/2, 1
PICTURE = torch.full((1, 3, 2, 2), 8.0).double()
ONE = torch.tensor([[1]])


def test_golden_masks_and_masked_images(golden_losses, assert_near):
    for case in (case for case in golden_losses.values() if "m" in case):
        erased = erase(case["images"], case["cam"], case["label"], threshold=0.6)
        torch.testing.assert_close(erased.foreground, case["cam_fg"], rtol=0, atol=1e-5)
        torch.testing.assert_close(erased.mask, case["m"], rtol=0, atol=1e-5)
        sure = (case["cam_fg"] - 0.6).abs() > 1e-5
        ours, theirs = erased.mask == 0, case["m"] == 0
        assert torch.equal(ours[sure], theirs[sure])  # exactly the same pixels go
        assert sure.float().mean() > 0.99
        masked = erased.images.double()
        means = torch.stack([case["masked_images_mean"], case["masked_images_abs_mean"]])
        assert_near(
            torch.stack([masked.mean(), masked.abs().mean()]),
            means,
            1e-5,
            "means of the masked images",
        )


def test_golden_gradient_through_the_mask(golden_losses, golden_meta, assert_near):
    for name, case in golden_losses.items():
        if "grad_cam_via_mask" in case:
            noise = np.random.Generator(
                np.random.PCG64(golden_meta("losses")["cases"][name]["R_seed"])
            )
            weights = torch.from_numpy(
                noise.standard_normal(case["images"].shape).astype(np.float32)
            )
            cam = case["cam"].requires_grad_()
            (
                erase(case["images"], cam, case["label"], gradient=True).images * weights
            ).sum().backward()
            assert_near(cam.grad, case["grad_cam_via_mask"], 1e-5, f"{name}/grad_cam_via_mask")


@pytest.mark.parametrize(("keep", "kept"), [("ring", [0, 0.25, 0.5, 0]), ("all", [1, 1, 1, 0])])
def test_erase_by_hand(keep, kept):
    images, mask, foreground = erase(PICTURE, RAMP, ONE, threshold=0.6, keep=keep)
    assert foreground.flatten().tolist() == pytest.approx([0, 0.25, 0.5, 1], abs=1e-5)
    assert mask.flatten().tolist() == pytest.approx(kept, abs=1e-5)
    assert images[0, 1].flatten().tolist() == pytest.approx([8 * part for part in kept], abs=1e-4)


def test_what_is_erased_is_the_largest_activation_of_the_tagged_classes():
    cam = torch.cat([RAMP, RAMP.flip(-1), 9 * RAMP.flip(-2)], dim=1)
    _, mask, foreground = erase(PICTURE, cam, torch.tensor([[1, 1, 0]]), threshold=0.6)
    assert foreground.flatten().tolist() == pytest.approx([0.25, 0.25, 1, 1], abs=1e-5)
    assert mask.flatten().tolist() == pytest.approx([0.25, 0.25, 0, 0], abs=1e-5)


@pytest.mark.parametrize("keep", erasing.KEEPS)
def test_threshold_0_erases_everything(keep):
    erased = erase(PICTURE, RAMP, ONE, threshold=0, keep=keep)
    assert (erased.mask == 0).all()
    assert (erased.images == 0).all()


@pytest.mark.parametrize(("keep", "left"), [("ring", 0), ("all", 1)])
@pytest.mark.parametrize(
    ("cam", "tags"), [(-RAMP - 1, ONE), (RAMP, 0 * ONE)], ids=["all-negative CAM", "no tags"]
)
def test_without_any_activation_the_ring_is_empty_and_all_is_kept(keep, left, cam, tags):
    assert (erase(PICTURE, cam, tags, keep=keep).mask == left).all()


def test_erase_gradients_are_right():
    images, cam, tags = (
        random_maps(2, 3, 6, 8),
        random_maps(2, 3, 3, 4, seed=1),
        torch.tensor([[1, 0, 1], [0, 1, 0]]),
    )

    def masked(images, cam):
        return erase(images, cam, tags, gradient=True).images

    assert torch.autograd.gradcheck(masked, (images.requires_grad_(), cam.requires_grad_()))
    (towards_cam,) = torch.autograd.grad(masked(images, cam).square().sum(), cam)
    assert torch.equal(
        towards_cam.abs().sum(dim=(2, 3)) > 0, tags == 1
    )  # it flows, and into tagged classes only


def test_mask_has_a_gradient_only_on_demand_and_only_in_the_ring():
    cam = RAMP.clone().requires_grad_()
    assert erase(PICTURE, cam, ONE, gradient=True).images.requires_grad
    for options in ({}, {"keep": "all", "gradient": True}):
        erased = erase(PICTURE, cam, ONE, **options)
        assert not erased.mask.requires_grad
        assert not erased.images.requires_grad


# --- embeddings ----------------------------------------------------------------------------------


def test_golden_embeddings(golden_losses, assert_near):
    for case in (case for case in golden_losses.values() if "e_A" in case):
        assert_near(embeddings(case["gpp"], case["label"]), case["e_A"], 1e-5, "e_A")
        assert_near(embeddings(case["gpp_masked"], case["label"]), case["e_P"], 1e-5, "e_P")


def test_golden_residual_region_is_exact(golden_losses):
    for case in (case for case in golden_losses.values() if "mask_anchor_bg" in case):
        region = residual_region(case["cam"], case["label"], threshold=0.2)
        sure = (max_norm(case["cam"]) - 0.2).abs() > 1e-5
        assert torch.equal(region[sure], case["mask_anchor_bg"].bool()[sure])
        assert sure.float().mean() > 0.99


def test_golden_region_embeddings(golden_losses, assert_near):
    for case in golden_losses.values():
        region = residual_region(case["cam"], case["label"], threshold=0.2)
        assert_near(
            region_embeddings(case["gpp"], region) * case["label"],
            case["anchor_pos"],
            1e-5,
            "anchor_pos",
        )
        assert_near(
            region_embeddings(case["gpp"]) * case["label"],
            case["negative_pos"],
            1e-5,
            "negative_pos",
        )
        if "g_n" in case:  # a region of one cell gives the scaled map at that cell
            cell = torch.zeros_like(case["gpp"], dtype=torch.bool)
            cell[..., 3, 5] = True
            assert_near(
                (1 + EPS) * region_embeddings(case["gpp"], cell),
                case["g_n"][..., 3, 5],
                1e-5,
                "g_n at a cell",
            )


def test_embeddings_by_hand():
    maps = torch.tensor([[[[-2.0, 1.0], [0.0, 3.0]], [[4.0, 4.0], [4.0, 4.0]]]])
    assert embeddings(maps, torch.tensor([[1, 0]])).tolist() == [[1.0, 0.0]]


def test_residual_region_by_hand():
    region = residual_region(
        torch.cat([RAMP, RAMP], dim=1), torch.tensor([[True, False]]), threshold=0.3
    )
    assert region.flatten(2).tolist() == [[[True, True, False, False], [True] * 4]]


def test_region_embeddings_by_hand():
    maps = torch.tensor([[[[-2.0, 1.0], [0.0, 4.0]]]]).double()
    region = torch.tensor([[[[True, False], [True, False]]]])
    assert region_embeddings(maps).item() == pytest.approx(0.75 / 4, abs=1e-5)
    assert region_embeddings(maps, region).item() == pytest.approx(-1 / 4, abs=1e-5)
    assert region_embeddings(100 * maps, region).item() == pytest.approx(-1 / 4, abs=1e-5)


def test_empty_region_and_empty_map_give_0():
    assert region_embeddings(RAMP, RAMP < 0).item() == 0
    assert region_embeddings(0 * RAMP).item() == 0


def test_embedding_gradients_are_right():
    maps, region = random_maps(2, 3, 3, 4).requires_grad_(), random_maps(2, 3, 3, 4, seed=1) > 0
    tags = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert torch.autograd.gradcheck(lambda x: embeddings(x, tags), maps)
    assert torch.autograd.gradcheck(region_embeddings, maps)
    assert torch.autograd.gradcheck(lambda x: region_embeddings(x, region), maps)


# --- partners ------------------------------------------------------------------------------------

A, B, BOTH, NONE = [1, 0], [0, 1], [1, 1], [0, 0]


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lonely", erasing.LONELY)
def test_every_allowed_pair_is_found_and_no_other(lonely):
    tags = torch.tensor([A, B, A, B, B])
    found = set()
    for seed in range(100):
        index, valid = partners(tags, noise(5, seed), lonely=lonely)
        assert valid.all()
        found |= set(enumerate(index.tolist()))
    assert found == {tuple(pair) for pair in disjoint(tags).nonzero().tolist()}
    assert len(found) == 12


def test_partner_is_the_allowed_sample_with_the_most_noise_even_where_all_noise_is_0():
    tags = torch.tensor([A, A, B, B])
    assert partners(tags, torch.eye(4) + torch.tensor([0.0, 0, 0.1, 0.2])).index[:2].tolist() == [
        3,
        3,
    ]
    assert partners(tags, torch.zeros(4, 4)).index.tolist() == [2, 2, 0, 0]


def test_anchor_without_a_partner_is_left_out():
    index, valid = partners(torch.tensor([A, BOTH, B, BOTH]), noise(4))
    assert valid.tolist() == [True, False, True, False]
    assert index[valid].tolist() == [2, 0]


def test_anchor_without_a_partner_borrows_the_next_one_and_the_last_has_none_to_borrow():
    tags = torch.tensor(
        [A, BOTH, BOTH, B, A, BOTH]
    )  # the fourth may choose among the first and the fifth
    for seed in range(10):
        index, valid = partners(tags, noise(6, seed), lonely="borrow")
        assert valid.tolist() == [True] * 5 + [False]
        assert index[1] == index[2] == index[3]
        assert index[3] in (0, 4)


@pytest.mark.parametrize("lonely", erasing.LONELY)
@pytest.mark.parametrize("tags", [[A], [NONE], [A, A, A], [A, BOTH, A]], ids=str)
def test_nobody_has_a_partner(lonely, tags):
    index, valid = partners(torch.tensor(tags), noise(len(tags)), lonely=lonely)
    assert not valid.any()
    assert ((index >= 0) & (index < len(tags))).all()  # it may be looked up all the same


def test_image_without_tags_has_anyone_for_a_negative_but_itself():
    seen = torch.stack(
        [partners(torch.tensor([NONE, A, BOTH]), noise(3, seed)).index for seed in range(30)]
    )
    assert set(seen[:, 0].tolist()) == {1, 2}
    assert (seen[:, 1:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_tags_may_be_of_any_type(dtype):
    tags = torch.tensor([A, B])
    assert partners(tags.to(dtype), noise(2)).index.tolist() == [1, 0]
    assert erase(PICTURE, RAMP, ONE.to(dtype)).mask.dtype == torch.float64
    assert embeddings(RAMP, ONE.to(dtype)).item() == 7 / 4


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_thresholds_outside_0_1_are_refused(threshold):
    message = rf"threshold must lie in 0\.\.1, got {threshold}"
    with pytest.raises(ValueError, match=message):
        erase(PICTURE, RAMP, ONE, threshold=threshold)
    with pytest.raises(ValueError, match=message):
        residual_region(RAMP, ONE, threshold=threshold)


@pytest.mark.parametrize(
    "function", [lambda maps, tags: erase(PICTURE, maps, tags), embeddings, residual_region]
)
@pytest.mark.parametrize(
    "tags", [torch.ones(1, 2), torch.ones(2, 1), torch.ones(1)], ids=["K", "B", "no K"]
)
def test_tags_that_do_not_fit_the_maps_are_refused(function, tags):
    with pytest.raises(
        ValueError, match=r"maps \(1, 1, 2, 2\) and tags \(.*\) must be \(B, K, h, w\) and \(B, K\)"
    ):
        function(RAMP, tags)


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 3, 2, 2)])
def test_images_that_do_not_fit_the_cams_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\) for B=1 CAMs, got shape"):
        erase(torch.zeros(shape), RAMP, ONE)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="keep must be one of ring, all, got 'none'"):
        erase(PICTURE, RAMP, ONE, keep="none")
    with pytest.raises(ValueError, match="lonely must be one of leave_out, borrow, got 'skip'"):
        partners(ONE, noise(1), lonely="skip")


def test_noise_of_another_batch_is_refused():
    with pytest.raises(
        ValueError, match=r"noise must be \(2, 2\) for B=2 samples, got shape \(3, 3\)"
    ):
        partners(torch.tensor([A, B]), noise(3))


# --- embeddings of norm 1: the first release -----------------------------------------------------


def test_golden_unit_embeddings_and_binary_masks(golden_first_release, assert_near):
    for name, case in golden_first_release.items():
        tags = case["label"]
        for maps, key in (("gpp", "e_A"), ("gpp_masked", "e_P")):
            assert_near(embeddings(case[maps], tags, unit=True), case[key], 1e-5, f"{name}/{key}")
        region = residual_region(case["cam"], tags, threshold=0.2)
        anchor = unit_embeddings(case["gpp"], region) * tags
        negative = unit_embeddings(case["gpp"]) * tags
        assert_near(anchor, case["anchor_pos"], 1e-5, f"{name}/anchor_pos")
        assert_near(negative, case["negative_pos"], 1e-5, f"{name}/negative_pos")
        erased = erase(case["images"], case["cam"], tags, keep="all", gradient=True)
        assert torch.equal(erased.mask, case["m"].float()), name
        means = (erased.images.mean(), erased.images.abs().mean())
        for mean, key in zip(means, ("masked_images_mean", "masked_images_abs_mean"), strict=True):
            assert_near(mean, case[key], 1e-5, f"{name}/{key}")
        assert not erased.mask.requires_grad


def test_unit_embeddings_by_hand():
    """Means 3 and 4 make (0.6, 0.8); outside the region a position counts as a zero."""
    maps = torch.tensor([[[[2.0, 4.0]], [[8.0, 0.0]]]])
    expected = torch.tensor([[0.6, 0.8]])
    torch.testing.assert_close(unit_embeddings(maps), expected)
    torch.testing.assert_close(
        embeddings(maps, torch.tensor([[1, 0]]), unit=True), expected * torch.tensor([[1.0, 0.0]])
    )
    region = torch.tensor([[[[True, False]], [[True, True]]]])
    means = torch.tensor([[1.0, 4.0]])
    torch.testing.assert_close(unit_embeddings(maps, region), means / means.norm())


def test_unit_embeddings_of_nothing_are_zero():
    maps = random_maps(1, 3, 2, 2)
    assert (unit_embeddings(maps, torch.zeros(1, 3, 2, 2, dtype=torch.bool)) == 0).all()
    assert (embeddings(-maps.abs(), torch.ones(1, 3), unit=True) == 0).all()


def test_unit_embeddings_have_right_gradients():
    region = random_maps(2, 3, 2, 2, seed=1) > 0
    maps = random_maps(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(unit_embeddings, (maps, region))
