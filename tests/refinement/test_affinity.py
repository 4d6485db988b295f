"""Pairs, affinities, their labels and loss:

golden parity, brute force, limit cases, gradients, refusals.
"""

import math
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aeft_lib.maps import labels as label_maps
from aeft_lib.refinement import affinity
from aeft_lib.refinement.affinity import (
    EPS,
    VOID,
    PairLabels,
    affinity_labels,
    affinity_loss,
    effective_radius,
    loss_sums,
    mean_loss,
    offsets,
    pair_affinity,
    pair_labels,
    pairs,
    sparse_affinity,
)


def cases(vectors, suffix: str) -> list[str]:
    """The golden cases that hold an array of this name."""
    found = sorted(key.removesuffix(suffix) for key in vectors if key.endswith(suffix))
    assert found, f"the golden file holds no {suffix}"
    return found


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_labels(*shape: int, seed: int = 0) -> torch.Tensor:
    labels = torch.randint(4, shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(labels == 3, VOID, labels).to(torch.uint8)


def brute_pairs(size: tuple[int, int], radius: int) -> list[tuple[int, int]]:
    """From the definition, pixel by pixel:

    every pair of near pixels whose start has all its partners on the grid.
    """
    (h, w), found = size, []
    for y in range(h - radius + 1):
        for x in range(radius - 1, w - radius + 1):
            for y2 in range(h):
                for x2 in range(w):
                    later = (y2, x2) > (y, x)
                    if later and (y2 - y) ** 2 + (x2 - x) ** 2 < radius**2:
                        found.append((y * w + x, y2 * w + x2))
    return found


# --- pairs ---------------------------------------------------------------------------------------


def test_golden_pairs(golden):
    vectors = golden("affinity")
    for case in cases(vectors, "/n_from"):
        size, radius = tuple(vectors[f"{case}/size"].tolist()), int(vectors[f"{case}/radius"])
        for name, ours in zip(
            ("from", "to"), (index.numpy() for index in pairs(size, radius)), strict=True
        ):
            assert ours.size == vectors[f"{case}/n_{name}"]
            assert ours.sum() == vectors[f"{case}/sum_{name}"]
            assert (
                zlib.crc32(np.ascontiguousarray(ours, dtype="<i8").tobytes())
                == vectors[f"{case}/crc32_{name}"]
            )
            if f"{case}/{name}" in vectors:
                np.testing.assert_array_equal(ours, vectors[f"{case}/{name}"])
        assert len(offsets(radius)) == vectors[f"{case}/n_offsets"]


@pytest.mark.parametrize(("size", "radius"), [((4, 6), 2), ((5, 7), 3), ((9, 11), 5), ((1, 3), 1)])
def test_pairs_are_those_of_the_definition(size, radius):
    index_from, index_to = pairs(size, radius)
    ours = zip(
        index_from.expand_as(index_to).flatten().tolist(), index_to.flatten().tolist(), strict=True
    )
    assert sorted(ours) == sorted(brute_pairs(size, radius))


@pytest.mark.parametrize(("radius", "count"), [(0, 0), (1, 0), (2, 4), (3, 12), (4, 22), (5, 34)])
def test_offsets_fill_half_a_disc(radius, count):
    found = offsets(radius)
    assert len(set(found)) == len(found) == count
    assert all((dy, dx) > (0, 0) and (-dy, -dx) not in found for dy, dx in found)


@pytest.mark.parametrize(
    ("size", "radius"),
    [
        ((11, 40), 5),
        ((10, 40), 4),
        ((40, 9), 4),
        ((7, 7), 3),
        ((3, 9), 1),
        ((2, 2), 0),
        ((1, 1), 0),
    ],
)
def test_the_radius_shrinks_on_small_grids_and_always_leaves_starts(size, radius):
    assert effective_radius(size) == radius
    assert len(pairs(size, radius).index_from) >= 1


def test_a_grid_smaller_than_the_radius_is_refused():
    with pytest.raises(
        ValueError, match="a grid of 4 x 9 has no pairs at radius 5; the network uses 1 there"
    ):
        pairs((4, 9), 5)
    with pytest.raises(
        ValueError, match="a grid of 9 x 8 has no pairs at radius 5; the network uses 3 there"
    ):
        pair_affinity(torch.zeros(1, 2, 9, 8), 5)
    with pytest.raises(ValueError, match="radius must not be negative, got -1"):
        offsets(-1)


# --- affinities ----------------------------------------------------------------------------------


def golden_affinity(vectors, case: str) -> tuple[torch.Tensor, tuple[int, int], int]:
    """Ours for a golden case, with its grid and radius."""
    z = torch.from_numpy(vectors[f"{case}/z"])
    size = tuple(z.shape[-2:])
    radius = effective_radius(size)
    assert radius == vectors[f"{case}/effective_radius"]
    return pair_affinity(F.elu(z), radius), size, radius


def test_golden_affinities(golden, assert_near):
    vectors = golden("affinity")
    for case in cases(vectors, "/z"):
        ours, _, _ = golden_affinity(vectors, case)
        if f"{case}/aff" in vectors:
            assert_near(ours, vectors[f"{case}/aff"], 1e-5, f"{case}/aff")
        stats = {
            name: vectors[f"{case}/aff_stats/{name}"]
            for name in ("shape", "mean", "std", "absmax", "idx", "val")
        }
        assert list(ours.shape) == stats["shape"].tolist()
        assert_near(
            ours.flatten()[torch.from_numpy(stats["idx"])], stats["val"], 1e-5, f"{case} at idx"
        )
        for name, value in (
            ("mean", ours.mean()),
            ("std", ours.std(correction=0)),
            ("absmax", ours.abs().amax()),
        ):
            assert_near(value, stats[name], 1e-5, f"{case} {name}")


def test_golden_dense_matrix(golden, assert_near):
    vectors = golden("affinity")
    for case in cases(vectors, "/dense_colsum"):
        values, size, radius = golden_affinity(vectors, case)
        matrix = dense(sparse_affinity(values[0], size, radius))
        assert_near(
            matrix.sum(dim=0), vectors[f"{case}/dense_colsum"], 1e-5, f"{case}/dense_colsum"
        )
        assert int(matrix.count_nonzero()) == vectors[f"{case}/dense_nnz"]


def dense(pair: affinity.SparseAffinity) -> torch.Tensor:
    """The n x n matrix that the pairs stand for."""
    matrix = torch.eye(math.prod(pair.size), dtype=pair.value.dtype)
    matrix[pair.index_from, pair.index_to] = matrix[pair.index_to, pair.index_from] = pair.value
    return matrix


def test_affinity_equals_the_definition_pair_by_pair():
    features = random_features(2, 3, 4, 5)
    index_from, index_to = pairs((4, 5), 2)
    flat = features.flatten(2)
    ours = pair_affinity(features, 2)
    for o in range(len(index_to)):
        for p in range(len(index_from)):
            expected = (
                -(flat[:, :, index_from[p]] - flat[:, :, index_to[o, p]]).abs().mean(dim=1)
            ).exp()
            torch.testing.assert_close(ours[:, o, p], expected)


def test_affinity_is_one_for_equal_features_and_ignores_a_common_shift():
    assert (pair_affinity(torch.full((1, 2, 5, 5), 0.3), 2) == 1).all()
    features = random_features(1, 3, 6, 6)
    torch.testing.assert_close(pair_affinity(features + 7, 3), pair_affinity(features, 3))


def test_affinity_of_one_pixel_has_no_offset():
    assert pair_affinity(torch.zeros(2, 3, 1, 1), 0).shape == (2, 0, 1)
    assert dense(sparse_affinity(torch.zeros(0, 1), (1, 1), 0)).tolist() == [[1.0]]


def test_affinity_gradients_are_right():
    features = random_features(1, 2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: pair_affinity(f, 2), features)


def test_affinity_refusals():
    with pytest.raises(
        ValueError,
        match=r"features must be a floating \(B, C, h, w\) tensor, got torch.float32 \(3, 9, 11\)",
    ):
        pair_affinity(torch.zeros(3, 9, 11))
    with pytest.raises(ValueError, match=r"got torch.int64 \(1, 3, 9, 11\)"):
        pair_affinity(torch.zeros(1, 3, 9, 11, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"values must be \(4, 6\) for \(3, 5\) at radius 2, got \(4, 5\)"
    ):
        sparse_affinity(torch.zeros(4, 5), (3, 5), 2)


# --- labels --------------------------------------------------------------------------------------


def golden_pair_labels(vectors, case: str) -> PairLabels:
    return PairLabels(
        *(
            torch.from_numpy(vectors[f"{case}/{name}"]).bool()
            for name in ("bg_pos", "fg_pos", "neg")
        )
    )


def test_golden_label_maps_and_pair_labels(golden):
    vectors = golden("affinity")
    for case in cases(vectors, "/label_map"):
        low, high = (torch.from_numpy(vectors[f"{case}/crf_{which}"]) for which in ("low", "high"))
        label_map = affinity_labels(low, high)
        np.testing.assert_array_equal(label_map.numpy(), vectors[f"{case}/label_map"], err_msg=case)
        for ours, theirs in zip(
            pair_labels(label_map), golden_pair_labels(vectors, case), strict=True
        ):
            assert torch.equal(ours, theirs), case


def scores(*rows: list[float]) -> torch.Tensor:
    """Scores (L, 1, cells) of one-pixel cells."""
    return torch.tensor(rows)[:, None]


def test_labels_by_hand():
    #              sure fg    sure bg   neither    padding   both say bg and fg: background wins
    low = scores([0.2, 0.9, 0.9, 0.0, 0.1], [0.8, 0.1, 0.1, 0.0, 0.9])
    high = scores([0.1, 0.9, 0.2, 0.0, 0.9], [0.9, 0.1, 0.8, 0.0, 0.1])
    assert affinity_labels(low, high, cell=1).tolist() == [[1, 0, VOID, VOID, 0]]


def test_labels_are_decided_on_the_mean_of_a_cell():
    low = torch.zeros(2, 2, 2)
    low[0], low[1, 0, 0] = (
        0.4,
        1.0,
    )  # three of four pixels are background, the mean is not quite: 0.4 against 0.25
    assert affinity_labels(low, low, cell=2).tolist() == [[0]]
    low[1, 1, 1] = 1.0  # 0.4 against 0.5
    assert affinity_labels(low, low, cell=2).tolist() == [[1]]


def test_labels_of_background_alone_are_never_foreground():
    assert affinity_labels(torch.ones(1, 8, 16), torch.ones(1, 8, 16)).tolist() == [[0, 0]]


def test_label_refusals():
    good = torch.zeros(2, 8, 8)
    with pytest.raises(
        ValueError,
        match=r"low \(2, 8, 8\) and high \(2, 8, 16\) must have the same \(L, H, W\) shape",
    ):
        affinity_labels(good, torch.zeros(2, 8, 16))
    with pytest.raises(ValueError, match=r"scores of \(8, 12\) do not divide into cells of 8"):
        affinity_labels(torch.zeros(2, 8, 12), torch.zeros(2, 8, 12))
    with pytest.raises(ValueError, match="cells of 0"):
        affinity_labels(good, good, cell=0)
    with pytest.raises(ValueError, match=r"scores must have 1..255 rows, got 0"):
        affinity_labels(good[:0], good[:0])
    with pytest.raises(ValueError, match="scores hold NaN"):
        affinity_labels(good, good.clone().fill_(float("nan")))


def test_pair_labels_equal_the_definition():
    label_map = random_labels(2, 6, 7)
    background, foreground, negative = pair_labels(label_map, 3)
    index_from, index_to = pairs((6, 7), 3)
    for b, flat in enumerate(label_map.flatten(1).tolist()):
        for o, p in np.ndindex(*index_to.shape):
            start, end = flat[index_from[p]], flat[index_to[o, p]]
            known = VOID not in (start, end)
            assert background[b, o, p] == (known and start == end == 0)
            assert foreground[b, o, p] == (known and start == end > 0)
            assert negative[b, o, p] == (known and start != end)


def test_pair_label_refusals():
    with pytest.raises(
        ValueError,
        match=r"label_map must be an integer \(..., h, w\) tensor, got torch.float32 \(9, 9\)",
    ):
        pair_labels(torch.zeros(9, 9))
    with pytest.raises(ValueError, match="a grid of 3 x 3 has no pairs at radius 5"):
        pair_labels(torch.zeros(3, 3, dtype=torch.uint8))


# --- loss ----------------------------------------------------------------------------------------


def test_golden_loss_and_gradient(golden, assert_near):
    vectors = golden("affinity")
    stacked = [golden_pair_labels(vectors, case) for case in cases(vectors, "/label_map")]
    labels = PairLabels(*(torch.stack(kind) for kind in zip(*stacked, strict=True)))
    values = torch.from_numpy(vectors["loss/aff"]).requires_grad_()
    ours = affinity_loss(values, labels)
    ours.loss.backward()
    for name, short in (("background", "bg"), ("foreground", "fg"), ("negative", "neg")):
        assert_near(getattr(ours, name), vectors[f"loss/{short}_loss"], 1e-5, name)
    for count, short in zip(ours.counts, ("bg", "fg", "neg"), strict=True):
        assert_near(count, vectors[f"loss/{short}_count"], 1e-6, f"{short}_count")
    assert_near(ours.loss, vectors["loss/loss"], 1e-5, "loss")
    # Where a negative pair has affinity 1, 1 + 1e-5 - 1 is all rounding in float32: 1e-2 there, of
    # the largest gradient.
    edge = labels.negative & (values.detach() == 1)
    theirs = torch.from_numpy(vectors["loss/grad_aff"])
    assert_near(values.grad, theirs, 1e-2, "grad_aff")
    assert_near(
        values.grad.masked_fill(edge, 0), theirs.masked_fill(edge, 0), 1e-4, "grad_aff off the edge"
    )


def kinds(*names: str) -> PairLabels:
    """Labels (1, E) of single pairs by name; "void" is none of the three."""
    return PairLabels(
        *(torch.tensor([[name == kind for name in names]]) for kind in PairLabels._fields)
    )


def test_loss_by_hand():
    labels = kinds("background", "background", "foreground", "negative", "void")
    ours = affinity_loss(torch.tensor([[0.5, 1.0, 0.25, 0.75, 0.1]]).double(), labels)
    assert ours.background.item() == pytest.approx(-math.log(0.5) / 2, rel=1e-4)
    assert ours.foreground.item() == pytest.approx(-math.log(0.25), rel=1e-4)
    assert ours.negative.item() == pytest.approx(-math.log(0.25), rel=1e-4)
    assert ours.counts.tolist() == pytest.approx([2 + EPS, 1 + EPS, 1 + EPS], abs=1e-12)
    assert ours.loss.item() == pytest.approx(-math.log(0.5) / 8 - 3 * math.log(0.25) / 4, rel=1e-4)


def test_loss_without_a_pair_is_zero_and_finite_at_both_ends():
    assert affinity_loss(torch.rand(1, 3), kinds("void", "void", "void")).loss.item() == 0
    values = torch.tensor([[0.0, 0.0, 1.0, 0.0, 1.0]], requires_grad=True)
    loss = affinity_loss(values, kinds("background", "foreground", "negative", "void", "void")).loss
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(EPS), rel=1e-3)
    assert values.grad.isfinite().all()
    assert (values.grad[:, 3:] == 0).all()


def test_parts_of_a_batch_add_up_to_the_whole():
    labels = pair_labels(
        torch.stack([torch.zeros(5, 6, dtype=torch.uint8), *random_labels(2, 5, 6)]), 3
    )
    values = 0.1 + 0.8 * torch.rand(
        labels.negative.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    parts = [
        (values[i : i + 1], PairLabels(*(kind[i : i + 1] for kind in labels))) for i in range(3)
    ]
    sums, counts = zip(*(loss_sums(*part) for part in parts), strict=True)
    for whole, added in zip(loss_sums(values, labels), (sum(sums), sum(counts)), strict=True):
        assert whole.shape == (3,)
        torch.testing.assert_close(added, whole)
    assert sum(counts).tolist() == [kind.sum().item() for kind in labels]
    expected = affinity_loss(values, labels)
    for ours, theirs in zip(mean_loss(sum(sums), sum(counts)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    means = torch.stack([affinity_loss(*part).loss for part in parts])
    assert (
        abs(means.mean() - expected.loss) > 0.01
    )  # the first part has no foreground: a mean of means is another number


def test_loss_gradients_are_right():
    labels = pair_labels(random_labels(2, 5, 6), 3)
    values = torch.rand(
        labels.negative.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    values = (0.1 + 0.8 * values).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: affinity_loss(a, labels).loss, values)


def test_features_learn_from_the_loss():
    label_map = torch.tensor([[0, 0, 1, 1, 1]] * 4)
    features = 0.1 * random_features(1, 4, 4, 5)
    features.requires_grad_()
    labels = pair_labels(label_map[None], 2)
    optimiser = torch.optim.SGD([features], lr=20)
    course = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = affinity_loss(pair_affinity(features, 2), labels).loss
        loss.backward()
        optimiser.step()
        course.append(loss.item())
    assert min(course) < 0.5 * course[0]


def test_loss_refuses_labels_of_another_shape():
    with pytest.raises(
        ValueError,
        match=r"affinity \(1, 3\) and background labels \(1, 2\) must have the same shape",
    ):
        affinity_loss(torch.rand(1, 3), kinds("void", "void"))


def test_void_is_the_label_of_the_maps():
    assert label_maps.VOID == VOID
