"""Affinities along paths: the original's paths and walks, hand-worked grids, limits, refusals."""

import math
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from aeft_lib.refinement import affinity
from aeft_lib.refinement.edge_net import at_quarter
from aeft_lib.refinement.edge_walk import enlarged, walk
from aeft_lib.refinement.path_affinity import path, path_affinity, path_matrix
from aeft_lib.refinement.random_walk import propagate

EXACT_STEPS = 2e-5  # of eight steps: tests/golden_rivals/README.md
MANY_STEPS = {torch.float32: 1e-3, torch.float64: 1e-4}  # of 256; the original's own drift


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("irnet").items()}


def dense(matrix: affinity.SparseAffinity) -> Tensor:
    """The whole matrix with its unit diagonal."""
    whole = torch.eye(math.prod(matrix.size), dtype=matrix.value.dtype)
    whole[matrix.index_from, matrix.index_to] = matrix.value
    whole[matrix.index_to, matrix.index_from] = matrix.value
    return whole


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [5, 10])
def test_golden_paths_have_the_original_cells(case, radius):
    steps = [tuple(step) for step in case[f"path{radius}/offsets"].tolist()]
    counts = case[f"path{radius}/cells_per_path"].tolist()
    cells = case[f"path{radius}/cells"].split(counts)
    assert sorted(steps) == sorted(affinity.offsets(radius))
    for step, theirs in zip(steps, cells, strict=True):
        ours = path(*step)
        assert len(ours) == len(set(ours))
        assert set(ours) == {tuple(cell) for cell in theirs.tolist()}


@pytest.mark.parametrize("radius", [5, 10])
def test_golden_pairs_have_the_original_ends(case, radius):
    size = tuple(case[f"path{radius}/size"].tolist())
    steps = [tuple(step) for step in case[f"path{radius}/offsets"].tolist()]
    pairs = affinity.pairs(size, radius)
    assert torch.equal(pairs.index_from, case[f"path{radius}/src"])
    order = [affinity.offsets(radius).index(step) for step in steps]
    partners = pairs.index_to[order].numpy().astype("<i8")
    assert zlib.crc32(partners.tobytes()) == int(case[f"path{radius}/dst_crc32"])


@pytest.mark.parametrize("step", affinity.offsets(6))
def test_a_path_is_the_same_from_both_ends(step):
    dy, dx = step
    turned = {(dy - y, dx - x) for y, x in path(dy, dx)}
    assert turned == set(path(dy, dx))
    assert {(0, 0), step} <= turned


# --- affinities -----------------------------------------------------------------------------------


def test_one_edge_parts_what_lies_on_both_sides():
    edges = torch.zeros(1, 3, 9, dtype=torch.float64)
    edges[0, :, 4] = 0.75
    values = path_affinity(edges, 2)[0]
    pairs = affinity.pairs((3, 9), 2)
    for offset, row in zip(affinity.offsets(2), values, strict=True):
        for start, value in zip(pairs.index_from.tolist(), row.tolist(), strict=True):
            column = start % 9
            touches = 4 in range(
                min(column, column + offset[1]), max(column, column + offset[1]) + 1
            )
            assert value == (0.25 if touches else 1.0)


def test_training_pairs_are_the_walk_own():
    """The same function of the same cells: no rounding."""
    edge = torch.rand(1, 12, 13, generator=torch.Generator().manual_seed(0))
    whole = dense(path_matrix(edge[0], 5))
    pairs = affinity.pairs((12, 13), 5)
    starts = pairs.index_from.expand_as(pairs.index_to)
    assert torch.equal(whole[starts, pairs.index_to], path_affinity(edge, 5)[0])


def test_the_matrix_has_every_pair_of_the_grid_once():
    matrix = path_matrix(torch.rand(7, 9, generator=torch.Generator().manual_seed(0)), 4)
    found = set(zip(matrix.index_from.tolist(), matrix.index_to.tolist(), strict=True))
    places = [(y, x) for y in range(7) for x in range(9)]
    expected = {
        (i, j)
        for i, (y, x) in enumerate(places)
        for j, (v, u) in enumerate(places)
        if i < j and (v - y) ** 2 + (u - x) ** 2 < 16
    }
    assert len(found) == len(matrix.index_from)
    assert found == expected


def test_no_edge_and_all_edge():
    for level in (0.0, 1.0):
        edges = torch.full((2, 8, 9), level)
        pairs = (len(affinity.offsets(3)), (8 - 2) * (9 - 4))
        assert torch.equal(path_affinity(edges, 3), torch.full((2, *pairs), 1 - level))
    assert path_affinity(torch.zeros(1, 3, 3), 1).shape == (1, 0, 9)


def test_the_gradient_goes_to_the_largest_edge_of_the_path():
    edges = torch.zeros(1, 3, 5, dtype=torch.float64)
    edges[0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.1])
    edges.requires_grad_()
    value = path_affinity(edges, 3)  # one start, the middle of the first row
    assert affinity.offsets(3)[1] == (0, 2)
    value[0, 1].sum().backward()
    assert edges.grad[0, 0].tolist() == [0, 0, 0, -1, 0]
    assert not edges.grad[0, 1:].any()


def test_gradients_agree_with_differences():
    generator = torch.Generator().manual_seed(0)
    # Values a hundredth apart: a step of 1e-6 changes no maximum.
    edges = torch.randperm(42, generator=generator).reshape(1, 6, 7).double() / 100 + 0.2
    assert torch.autograd.gradcheck(lambda e: path_affinity(e, 3), edges.requires_grad_())


@pytest.mark.parametrize(
    ("edges", "radius", "message"),
    [
        (torch.zeros(3, 3), 2, "edges must be a floating"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), 2, "edges must be a floating"),
        (torch.zeros(1, 4, 4), 3, "a grid of 4 x 4 has no pairs at radius 3: take 2"),
    ],
)
def test_wrong_edges_are_refused(edges, radius, message):
    with pytest.raises(ValueError, match=message):
        path_affinity(edges, radius)


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (torch.zeros(1, 3, 3), "edge must be a floating"),
        (torch.full((3, 3), 1.5), "an edge must lie in 0..1, got 1.5..1.5"),
        (torch.full((3, 3), math.nan), "an edge must lie in 0..1"),
    ],
)
def test_a_matrix_of_wrong_edges_is_refused(edge, message):
    with pytest.raises(ValueError, match=message):
        path_matrix(edge)


# --- the walk -------------------------------------------------------------------------------------


def test_golden_affinity_matrix(case):
    assert torch.equal(dense(path_matrix(case["walk/edge"][0])), case["walk/affinity"])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_golden_walks(case, assert_near, kind):
    edge, cam = case["walk/edge"][0].to(kind), case["walk/cam"].to(kind)
    names = [name for name in case if name.startswith("walk/rw_beta")]
    assert names
    for name in names:
        beta, exponent = map(int, name.removeprefix("walk/rw_beta").split("_exp"))
        ours = walk(cam, edge, beta=beta, steps=2**exponent)
        bound = EXACT_STEPS if exponent == 3 else MANY_STEPS[kind]
        assert_near(ours, case[name], bound, name)


def test_golden_column_sums(case, assert_near):
    theirs = case["walk/colsum_beta10"]
    ours = (dense(path_matrix(case["walk/edge"][0])) ** 10).sum(dim=0)
    assert_near(ours, theirs, 1e-5, "column sums")  # sums of at most 69 numbers, a power of ten


def test_nothing_passes_an_edge():
    edge = torch.tensor([[0.0, 0, 1, 0, 0]])
    cam = torch.tensor([[[1.0, 0, 0, 0, 0]]])
    assert walk(cam, edge, steps=64).flatten().tolist() == [0.5, 0.5, 0, 0, 0]
    # The edge's own cell is alone: what starts there stays.
    on_edge = torch.tensor([[[0.0, 0, 1, 0, 0]]])
    assert walk(on_edge, edge).flatten().tolist() == [0.0] * 5
    stays = walk(on_edge, edge, suppress=False).flatten().tolist()
    assert stays == pytest.approx([0, 0, 1, 0, 0], abs=1e-5)


def both_walks(features: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    """From a cell on the left: the walk that edges stop, and AffinityNet's on features (h, w)."""
    cam = torch.zeros(1, *edge.shape, dtype=torch.float64)
    cam[0, 2, 2] = 1
    matrix = affinity.sparse_affinity(
        affinity.pair_affinity(features[None, None], 3)[0], tuple(edge.shape), 3
    )
    options = {"beta": 10, "steps": 256}
    return walk(cam, edge, radius=3, **options)[0], propagate(matrix, cam, **options)[0]


def test_a_line_between_equal_sides_stops_this_walk_and_not_affinity_net():
    """AffinityNet's pairs reach over the line, to cells that look alike."""
    line = torch.zeros(8, 13, dtype=torch.float64)
    line[:, 6] = 1
    ours, theirs = both_walks(5 * line, line)
    assert ours[:, :6].min() > 0
    assert not ours[:, 6:].any()
    assert theirs[:, 7:].sum() > 0.3 * theirs.sum()


def test_a_slope_without_an_edge_stops_affinity_net_and_not_this_walk():
    """Neighbours differ by 1 and have exp(-10): a third of ten of these a step, 256 times, is 4 %."""
    slope = torch.arange(13, dtype=torch.float64).expand(8, 13)
    ours, theirs = both_walks(slope, torch.zeros(8, 13, dtype=torch.float64))
    assert ours[:, 7:].sum() > 0.3 * ours.sum()
    assert theirs[:, 2].sum() > 0.9 * theirs.sum()


def test_without_an_edge_a_constant_map_stays_and_a_point_spreads():
    edge = torch.zeros(6, 7, dtype=torch.float64)
    flat = torch.full((1, 6, 7), 0.3, dtype=torch.float64)
    # 64 means of at most 42 numbers each: 64 x 42 x 1.1e-16.
    torch.testing.assert_close(walk(flat, edge, steps=64), flat, rtol=0, atol=1e-12)
    point = torch.zeros(1, 6, 7, dtype=torch.float64)
    point[0, 2, 3] = 1
    spread = walk(point, edge, steps=64)
    assert spread.min() > 0.9 * spread.max() > 0


def test_all_edge_is_empty_and_not_a_number_nowhere():
    walked = walk(torch.rand(2, 4, 5), torch.ones(4, 5))
    assert torch.equal(walked, torch.zeros(2, 4, 5))
    for joint in (True, False):
        assert torch.equal(enlarged(walked, (13, 18), joint=joint), torch.zeros(2, 13, 18))


def test_one_maximum_for_all_classes_or_one_each():
    walked = torch.tensor([0.8, 0.1]).reshape(2, 1, 1)
    joint, each = (enlarged(walked, (3, 2), joint=joint) for joint in (True, False))
    assert joint.shape == each.shape == (2, 3, 2)
    torch.testing.assert_close(joint[:, 0, 0], torch.tensor([1.0, 0.125]))
    torch.testing.assert_close(each[:, 0, 0], torch.ones(2))
    # A class below the threshold everywhere is lost with the one, and kept with the other.
    assert joint[1].max() < 0.25 <= each[1].max()


def test_a_grid_that_does_not_cover_its_image_is_refused():
    with pytest.raises(ValueError, match="a grid of 2 x 3 cells of 4 does not cover"):
        enlarged(torch.zeros(1, 2, 3), (9, 12))
    assert enlarged(torch.zeros(0, 2, 3), (8, 12)).shape == (0, 8, 12)


def test_labels_at_a_quarter_need_whole_cells():
    with pytest.raises(ValueError, match=r"multiples of 4, got \(10, 8\)"):
        at_quarter(torch.zeros(10, 8))
