"""The whole way of one image from seed to posterior:

golden parity, sizes of any kind, limit cases, refusals.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aeft_lib.refinement.affinity import (
    SparseAffinity,
    effective_radius,
    pair_affinity,
    sparse_affinity,
)
from aeft_lib.refinement.dense_crf import DenseCRF, unary_of, with_background
from aeft_lib.refinement.propagation import CELL, padded, refine_by_walk

SETTINGS = {"alpha": 19, "beta": 8, "steps": 64}


def affinity_of(z: torch.Tensor) -> SparseAffinity:
    """From activations before the last ELU, (1, C, h, w)."""
    size = tuple(z.shape[-2:])
    radius = effective_radius(size)
    return sparse_affinity(pair_affinity(F.elu(z), radius)[0], size, radius)


def problem(h: int, w: int, k: int = 2) -> tuple[np.ndarray, torch.Tensor, SparseAffinity]:
    """A random image, CAMs of k classes and an affinity of its grid."""
    generator = torch.Generator().manual_seed(h * 1000 + w)
    image = torch.randint(0, 256, (h, w, 3), generator=generator, dtype=torch.uint8).numpy()
    z = 0.3 * torch.randn(1, 4, -(-h // CELL), -(-w // CELL), generator=generator)
    return image, torch.rand(k, h, w, generator=generator), affinity_of(z)


# --- golden parity -------------------------------------------------------------------------------


def golden_case(
    vectors, name: str
) -> tuple[tuple[np.ndarray, torch.Tensor, SparseAffinity], dict[str, np.ndarray]]:
    case = {
        key.removeprefix(f"{name}/"): array
        for key, array in vectors.items()
        if key.startswith(f"{name}/")
    }
    h, w = case["hw"].tolist()
    cam = (
        torch.from_numpy(case["cam_grid"])
        .repeat_interleave(CELL, 1)
        .repeat_interleave(CELL, 2)[:, :h, :w]
    )
    return (case["image"], cam, affinity_of(torch.from_numpy(case["z"]))), case


def decided(posterior: torch.Tensor, tolerance: float) -> np.ndarray:
    """Pixels (H, W) whose label is the same whatever moves every score by at most `tolerance`."""
    first, second = posterior.topk(2, dim=0).values
    return (first - second > 2 * tolerance).numpy()


def agreement(posterior: torch.Tensor, case: dict[str, np.ndarray], name: str) -> float:
    """The part of pixels that have the golden label."""
    return (case["present"][posterior.argmax(dim=0).numpy()] == case[name]).mean()


def test_golden_label_maps_without_a_crf(golden):
    vectors = golden("random_walk")
    names = sorted(key.removesuffix("/z") for key in vectors if key.endswith("/z"))
    assert names, "the golden file holds no case"
    for name in names:
        inputs, case = golden_case(vectors, name)
        posterior = refine_by_walk(*inputs, **SETTINGS, crf_iterations=0)
        sure = decided(posterior, 1e-3)  # 5e-5 of the walk, over sums of at least 0.05
        labels = case["present"][posterior.argmax(dim=0).numpy()]
        assert (labels == case["pred6_nocrf"])[sure].all(), name
        assert sure.mean() > 0.99, name


def test_golden_label_map_with_a_crf_but_for_the_image_it_sees(golden):
    """The reference's CRF sees a rebuilt, darker image and all 21 classes; ours the original and the present ones."""
    vectors = golden("random_walk")
    inputs, case = golden_case(
        vectors, min(key.removesuffix("/z") for key in vectors if key.endswith("/z"))
    )
    posterior = refine_by_walk(*inputs, **SETTINGS, crf_iterations=1)
    assert agreement(posterior, case, "pred6") >= 0.97
    assert not (
        posterior.argmax(dim=0)
        == refine_by_walk(*inputs, **SETTINGS, crf_iterations=0).argmax(dim=0)
    ).all()


# --- padding -------------------------------------------------------------------------------------


def test_images_are_padded_with_zeros_right_and_below():
    images = torch.ones(2, 3, 9, 15)
    whole = padded(images)
    assert whole.shape == (2, 3, 16, 16)
    assert torch.equal(whole[..., :9, :15], images)
    assert whole.sum() == images.sum()
    assert padded(images, cell=3).shape == (2, 3, 9, 15)
    assert padded(images.to(torch.uint8)).dtype == torch.uint8


# --- sizes and limit cases -----------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 40), (7, 9), (16, 24), (33, 47)])
@pytest.mark.parametrize("crf_iterations", [0, 1])
def test_posteriors_of_any_size_are_distributions(h, w, crf_iterations):
    posterior = refine_by_walk(*problem(h, w), **SETTINGS, crf_iterations=crf_iterations)
    assert posterior.shape == (3, h, w)
    assert posterior.min() >= 0
    torch.testing.assert_close(posterior.sum(dim=0), torch.ones(h, w), rtol=0, atol=1e-5)


@pytest.mark.parametrize("crf_iterations", [0, 1])
def test_an_image_without_classes_is_background(crf_iterations):
    posterior = refine_by_walk(*problem(13, 21, k=0), **SETTINGS, crf_iterations=crf_iterations)
    assert posterior.shape == (1, 13, 21)
    torch.testing.assert_close(posterior, torch.ones(1, 13, 21))


def test_one_pixel_is_its_scores_normalised():
    image, cam, affinity = problem(1, 1)
    scores = with_background(cam, 2)
    posterior = refine_by_walk(image, cam, affinity, alpha=2, beta=8, steps=64, crf_iterations=0)
    torch.testing.assert_close(posterior, scores / scores.sum())


def test_no_steps_average_over_cells_and_padding_does_not_thin_the_border():
    image, _, affinity = problem(12, 20)
    cam = torch.full((1, 12, 20), 0.5)
    posterior = refine_by_walk(image, cam, affinity, alpha=2, beta=8, steps=0, crf_iterations=0)
    torch.testing.assert_close(posterior[1], torch.full((12, 20), 0.5 / 0.75))  # background 0.5^2


def test_the_parts_in_their_order():
    image, cam, affinity = problem(36, 46)
    scores = F.pad(with_background(cam, 3), (0, 2, 0, 4))
    cells = scores.reshape(3, 5, 8, 6, 8).mean(dim=(2, 4)).flatten(1)
    matrix = torch.eye(30)
    matrix[affinity.index_from, affinity.index_to] = matrix[
        affinity.index_to, affinity.index_from
    ] = affinity.value**4
    walked = cells @ torch.linalg.matrix_power(matrix / matrix.sum(dim=0), 5)
    full = F.interpolate(
        walked.reshape(1, 3, 5, 6), size=(40, 48), mode="bilinear", align_corners=False
    )[0, :, :36, :46]
    options = {"alpha": 3, "beta": 4, "steps": 5}
    assert len(affinity.value)
    # 5 steps of 30 float32 terms: 150 x 6e-8 x a margin of 10; a CRF multiplies that by about 5.
    posterior = refine_by_walk(image, cam, affinity, **options, crf_iterations=0)
    torch.testing.assert_close(posterior, full / full.sum(dim=0), rtol=0, atol=1e-4)
    expected = DenseCRF(image).infer(unary_of(full), iterations=1)
    settled = refine_by_walk(image, cam, affinity, **options, crf_iterations=1)
    torch.testing.assert_close(settled, expected, rtol=0, atol=5e-4)
    assert (settled - posterior).abs().max() > 0.1


def test_a_crf_settles_edges_that_the_grid_cannot_hold():
    image = np.zeros((24, 24, 3), np.uint8)
    image[:, 13:] = 255  # not where a cell ends
    cam = torch.full((1, 24, 24), 0.1)
    cam[:, :, 13:] = 0.9
    z = torch.zeros(1, 2, 3, 3)
    without, settled = (
        refine_by_walk(image, cam, affinity_of(z), alpha=1, beta=8, steps=0, crf_iterations=n)
        for n in (0, 1)
    )
    truth = torch.arange(24) >= 13
    assert not (without.argmax(dim=0) == truth).all()
    assert (settled.argmax(dim=0) == truth).all()


def test_other_cells_than_the_default():
    image, cam, _ = problem(9, 10)
    posterior = refine_by_walk(
        image, cam, affinity_of(torch.zeros(1, 2, 3, 4)), **SETTINGS, crf_iterations=0, cell=3
    )
    assert posterior.shape == (3, 9, 10)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 29), (30, 20), (24, 32)])
def test_a_cam_of_another_size_than_its_image_is_refused(size):
    image, _, affinity = problem(20, 30)
    with pytest.raises(ValueError, match=rf"cam is \({size[0]}, {size[1]}\), its image \(20, 30\)"):
        refine_by_walk(image, torch.zeros(1, *size), affinity, **SETTINGS, crf_iterations=0)


def test_an_affinity_of_another_grid_is_refused():
    image, cam, _ = problem(20, 30)
    with pytest.raises(
        ValueError,
        match=r"a floating \(L, 4, 3\) tensor like the affinity's grid, got .* \(3, 3, 4\)",
    ):
        refine_by_walk(
            image, cam, affinity_of(torch.zeros(1, 2, 4, 3)), **SETTINGS, crf_iterations=0
        )


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.5])
@pytest.mark.parametrize("crf_iterations", [0, 1])
def test_scores_outside_0_1_are_refused(value, crf_iterations):
    image, cam, affinity = problem(20, 30)
    cam[1, 3, 4] = value
    with pytest.raises(ValueError, match=rf"a CAM must lie in 0..1, got .*{value}"):
        refine_by_walk(image, cam, affinity, **SETTINGS, crf_iterations=crf_iterations)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha", 0, "alpha must be positive and finite, got 0"),
        ("alpha", -1, "alpha must be positive and finite, got -1"),
        ("beta", 0, "beta must be positive and finite, got 0"),
        ("steps", -1, "steps must be an integer from 0 on, got -1"),
        ("crf_iterations", -1, "iterations must not be negative, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        refine_by_walk(*problem(20, 30), **SETTINGS | {"crf_iterations": 0} | {name: value})


def test_an_image_that_is_no_rgb_is_refused_where_the_crf_would_read_it():
    image, cam, affinity = problem(20, 30)
    with pytest.raises(
        ValueError, match=r"image must be \(H, W, 3\) uint8 RGB, got float64 \(20, 30, 3\)"
    ):
        refine_by_walk(image / 255, cam, affinity, **SETTINGS, crf_iterations=1)
