"""The random walk:

golden parity, the dense matrix power, conservation laws, limit cases, refusals.
"""

import math
import warnings
import zlib

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
from aeft_lib.refinement.random_walk import propagate

TOLERANCES = {
    6: 5e-5,
    8: 2e-4,
}  # by the reference's number of squarings, whose own float32 drift they are
NUM_LABELS = 21
CELL = 8


def affinity_of(z: torch.Tensor) -> SparseAffinity:
    """From activations before the last ELU, (1, C, h, w)."""
    size = tuple(z.shape[-2:])
    radius = effective_radius(size)
    return sparse_affinity(pair_affinity(F.elu(z), radius)[0], size, radius)


def random_walk(
    h: int, w: int, *, labels: int = 3, seed: int = 0
) -> tuple[SparseAffinity, torch.Tensor]:
    """A random affinity and random scores on a grid, float64."""
    generator = torch.Generator().manual_seed(seed)
    z = 0.3 * torch.randn(1, 4, h, w, generator=generator, dtype=torch.float64)
    return affinity_of(z), torch.rand(labels, h, w, generator=generator, dtype=torch.float64)


def one_pair(value: float = 0.5) -> SparseAffinity:
    """Two pixels, side by side."""
    return SparseAffinity(torch.tensor([0]), torch.tensor([1]), torch.tensor([value]), (1, 2))


def no_pair(h: int, w: int) -> SparseAffinity:
    nothing = torch.zeros(0, dtype=torch.int64)
    return SparseAffinity(nothing, nothing, torch.zeros(0), (h, w))


def dense_transition(affinity: SparseAffinity, beta: float) -> torch.Tensor:
    """T as it is written: an n x n matrix, its columns summing to 1."""
    matrix = torch.eye(math.prod(affinity.size), dtype=affinity.value.dtype)
    matrix[affinity.index_from, affinity.index_to] = matrix[
        affinity.index_to, affinity.index_from
    ] = affinity.value
    matrix = matrix**beta
    return matrix / matrix.sum(dim=0, keepdim=True)


# --- golden parity -------------------------------------------------------------------------------


def golden_cases(vectors) -> list[str]:
    cases = sorted(key.removesuffix("/z") for key in vectors if key.endswith("/z"))
    assert cases, "the golden file holds no case"
    return cases


def squarings(vectors, case: str) -> list[int]:
    found = [k for k in range(1, 12) if f"{case}/rw{k}" in vectors]
    assert found, "the case holds no walk"
    return found


def on_grid(flat: np.ndarray, affinity: SparseAffinity) -> torch.Tensor:
    return torch.from_numpy(flat).reshape(-1, *affinity.size)


def test_golden_walks(golden, assert_near):
    vectors = golden("random_walk")
    for case in golden_cases(vectors):
        affinity = affinity_of(torch.from_numpy(vectors[f"{case}/z"]))
        scores = on_grid(vectors[f"{case}/cam_vec"], affinity)
        for k in squarings(vectors, case):
            ours = propagate(affinity, scores, beta=8, steps=2**k)
            assert_near(
                ours,
                on_grid(vectors[f"{case}/rw{k}"], affinity),
                TOLERANCES.get(k, 2e-4),
                f"{case}/rw{k}",
            )
            assert (
                vectors[f"{case}/rw{k}_absent_max"] == 0
            )  # so it is right to leave the absent classes out


def test_golden_column_sums(golden, assert_near):
    vectors = golden("random_walk")
    for case in golden_cases(vectors):
        index_from, index_to, value, size = affinity_of(torch.from_numpy(vectors[f"{case}/z"]))
        sums = (
            torch.ones(math.prod(size))
            .index_add(0, index_from, value**8)
            .index_add(0, index_to, value**8)
        )
        assert_near(sums, vectors[f"{case}/aff_colsum_beta8"], 1e-5, f"{case}/aff_colsum_beta8")


def padded_image(image: np.ndarray, h: int, w: int) -> np.ndarray:
    """As the reference's CRF sees it:

    padded with the mean colour, rebuilt from the normalised float32 image, truncated.
    """
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = np.zeros((h, w, 3), dtype=np.float32)
    normalised[: image.shape[0], : image.shape[1]] = (image / 255 - mean) / std
    return ((normalised * std.astype(np.float32) + mean.astype(np.float32)) * 255).astype(np.uint8)


def sampled(ours: torch.Tensor, case: dict[str, np.ndarray], name: str) -> torch.Tensor:
    """The values at the places of which a golden `stats` entry holds them."""
    return ours.flatten()[torch.from_numpy(case[f"{name}_stats/idx"])]


def test_golden_way_from_cam_to_label_map(golden, assert_near):
    vectors = golden("random_walk")
    for name in golden_cases(vectors):
        case = {
            key.removeprefix(f"{name}/"): array
            for key, array in vectors.items()
            if key.startswith(f"{name}/")
        }
        (h, w), (ph, pw), present = (
            case["hw"].tolist(),
            case["padded_hw"].tolist(),
            torch.from_numpy(case["present"]),
        )
        affinity = affinity_of(torch.from_numpy(case["z"]))
        cam = (
            torch.from_numpy(case["cam_grid"])
            .repeat_interleave(CELL, 1)
            .repeat_interleave(CELL, 2)[:, :h, :w]
        )
        cells = F.avg_pool2d(F.pad(with_background(cam, 19), (0, pw - w, 0, ph - h))[None], CELL)[0]
        assert_near(cells, on_grid(case["cam_vec"], affinity), 1e-5, f"{name}/cam_vec")
        image = padded_image(case["image"], ph, pw)
        assert (
            (image == case["img8"]).all()
            if case["img8"].ndim
            else zlib.crc32(image.tobytes()) == case["img8"]
        )
        crf = DenseCRF(image)
        for k in squarings(vectors, name):
            walked = propagate(affinity, cells, steps=2**k)
            up = F.interpolate(walked[None], size=(ph, pw), mode="bilinear", align_corners=False)[0]
            scores = torch.zeros(NUM_LABELS, ph, pw).index_copy(0, present, up)
            posterior = crf.infer(unary_of(scores), iterations=1)
            assert_near(
                sampled(up, case, f"up{k}"),
                case[f"up{k}_stats/val"],
                TOLERANCES.get(k, 2e-4),
                f"{name}/up{k}",
            )
            assert_near(
                sampled(posterior[present], case, f"crf{k}"),
                case[f"crf{k}_stats/val"],
                1e-3,
                f"{name}/crf{k}",
            )
            walk = TOLERANCES.get(k, 2e-4)
            kinds = ((posterior, f"pred{k}", 1e-3), (scores, f"pred{k}_nocrf", walk))
            for ours, kind, tolerance in kinds:  # labels that the tolerance cannot turn
                first, second = ours[:, :h, :w].topk(2, dim=0).values
                sure = (first - second > 2 * tolerance).numpy()
                assert (ours.argmax(dim=0)[:h, :w].numpy() == case[kind])[sure].all()
                assert sure.mean() > 0.99


# --- the definition ------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1, 8, 2.5])
@pytest.mark.parametrize("steps", [1, 2, 5, 64])
def test_walk_is_the_power_of_the_dense_matrix(beta, steps):
    affinity, scores = random_walk(5, 7)
    transition = torch.linalg.matrix_power(dense_transition(affinity, beta), steps)
    expected = (scores.flatten(1) @ transition).reshape(scores.shape)
    torch.testing.assert_close(
        propagate(affinity, scores, beta=beta, steps=steps), expected, rtol=1e-12, atol=1e-12
    )


def test_by_hand():
    walked = propagate(
        one_pair(0.5), torch.tensor([[[1.0, 0.0]]]), beta=2, steps=1
    )  # A = [[1, 1/4], [1/4, 1]]
    assert walked.flatten().tolist() == pytest.approx([0.8, 0.2])


def test_float32_is_near_float64():
    affinity, scores = random_walk(20, 25)
    small = affinity._replace(value=affinity.value.float())
    # 64 steps, each a mean with weights a^8: 64 x 8 x 6e-8 = 3e-5 of scores up to 1, with a margin.
    ours, theirs = propagate(small, scores.float()).double(), propagate(affinity, scores)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_the_result_has_the_type_of_the_scores():
    affinity, scores = random_walk(6, 6)
    assert propagate(affinity, scores.float()).dtype == torch.float32
    assert propagate(affinity._replace(value=affinity.value.float()), scores).dtype == torch.float64


# --- what a walk keeps ---------------------------------------------------------------------------


def test_a_constant_map_stays_and_no_map_leaves_its_range():
    affinity, scores = random_walk(9, 8)
    walked = propagate(affinity, scores)
    torch.testing.assert_close(
        propagate(affinity, torch.full_like(scores, 0.3)), torch.full_like(scores, 0.3)
    )
    assert (walked.amax(dim=(1, 2)) <= scores.amax(dim=(1, 2))).all()
    assert (walked.amin(dim=(1, 2)) >= scores.amin(dim=(1, 2))).all()


def test_classes_do_not_mix_and_absent_ones_stay_zero():
    affinity, scores = random_walk(7, 7)
    scores[1] = 0
    walked = propagate(affinity, scores)
    assert (walked[1] == 0).all()
    torch.testing.assert_close(propagate(affinity, scores[2:]), walked[2:])


def test_steps_add_up():
    affinity, scores = random_walk(6, 8)
    twice = propagate(affinity, propagate(affinity, scores, steps=3), steps=5)
    torch.testing.assert_close(twice, propagate(affinity, scores, steps=8))


def test_the_order_and_direction_of_pairs_do_not_matter():
    affinity, scores = random_walk(6, 6)
    order = torch.randperm(len(affinity.value), generator=torch.Generator().manual_seed(1))
    shuffled = SparseAffinity(
        affinity.index_to[order], affinity.index_from[order], affinity.value[order], affinity.size
    )
    torch.testing.assert_close(propagate(shuffled, scores), propagate(affinity, scores))


def test_scores_flow_inside_a_region_and_not_out_of_it():
    z = torch.zeros(1, 2, 11, 20)
    z[:, :, :, 10:] = 9  # two regions; affinity across is exp(-9)
    scores = torch.zeros(1, 11, 20)
    scores[0, 4, 5] = 1
    walked = propagate(affinity_of(z), scores)
    assert walked[0, 1:7, :10].min() > 1e-4  # the corners of the first row have no partner at all
    assert walked[0, :, 10:].max() < 1e-12


# --- limit cases ---------------------------------------------------------------------------------


def test_no_step_is_the_identity():
    affinity, scores = random_walk(6, 7)
    torch.testing.assert_close(propagate(affinity, scores, steps=0), scores, rtol=1e-14, atol=0)


@pytest.mark.parametrize("affinity", [no_pair(1, 2), one_pair(0.0)])
def test_a_unit_diagonal_alone_is_the_identity(affinity):
    scores = torch.rand(3, 1, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(propagate(affinity, scores), scores)


def test_one_pixel_keeps_its_scores():
    scores = torch.tensor([0.2, 0.7]).reshape(2, 1, 1)
    torch.testing.assert_close(propagate(affinity_of(torch.ones(1, 3, 1, 1)), scores), scores)


@pytest.mark.parametrize(("h", "w"), [(1, 6), (2, 2), (3, 4), (7, 12)])
def test_grids_smaller_than_the_radius(h, w):
    affinity, scores = random_walk(h, w)
    expected = scores.flatten(1) @ torch.linalg.matrix_power(dense_transition(affinity, 8), 64)
    torch.testing.assert_close(propagate(affinity, scores), expected.reshape(scores.shape))


def test_no_class_gives_no_map():
    affinity, scores = random_walk(6, 6)
    assert propagate(affinity, scores[:0]).shape == (0, 6, 6)


def test_no_warning():
    affinity, scores = random_walk(6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        propagate(affinity, scores)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees():
    affinity, scores = random_walk(12, 15)
    there = SparseAffinity(*(part.cuda() for part in affinity[:3]), affinity.size)
    torch.testing.assert_close(
        propagate(there, scores.cuda()).cpu(), propagate(affinity, scores), rtol=0, atol=1e-9
    )


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, -1, float("nan"), float("inf")])
def test_beta_must_be_positive(beta):
    with pytest.raises(ValueError, match=f"beta must be positive and finite, got {beta}"):
        propagate(one_pair(), torch.rand(1, 1, 2), beta=beta)


@pytest.mark.parametrize("steps", [-1, 2.5])
def test_steps_must_be_a_count(steps):
    with pytest.raises(ValueError, match=f"steps must be an integer from 0 on, got {steps}"):
        propagate(one_pair(), torch.rand(1, 1, 2), steps=steps)


def test_score_refusals():
    for scores in (torch.rand(1, 2, 1), torch.rand(1, 2), torch.ones(1, 1, 2, dtype=torch.int64)):
        with pytest.raises(
            ValueError,
            match=r"scores must be a floating \(L, 1, 2\) tensor like the affinity's grid, got",
        ):
            propagate(one_pair(), scores)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scores hold NaN or infinity"):
            propagate(one_pair(), torch.full((1, 1, 2), value))


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan")])
def test_affinities_lie_in_0_1(value):
    with pytest.raises(ValueError, match=rf"affinities must lie in 0..1, got {value}"):
        propagate(one_pair(value), torch.rand(1, 1, 2))


def test_pair_refusals():
    pair, scores = one_pair(), torch.rand(1, 1, 2)
    with pytest.raises(
        ValueError, match=r"pairs must join two pixels of the \(1, 2\) grid, got positions 0..2"
    ):
        propagate(pair._replace(index_to=torch.tensor([2])), scores)
    with pytest.raises(ValueError, match="must join two pixels"):
        propagate(pair._replace(index_to=torch.tensor([0])), scores)
    with pytest.raises(
        ValueError,
        match=r"index_from, index_to and value must be \(E,\) alike, got \(1,\), \(1,\), \(2,\)",
    ):
        propagate(pair._replace(value=torch.rand(2)), scores)
