"""Confident labels: IRNet's own label maps, the CRF from hard labels, hand-worked cases, refusals."""

import math

import numpy as np
import pytest
import torch
from label_maps import agreement
from torch import Tensor

from aeft_lib.maps.labels import VOID
from aeft_lib.maps.seeds import Seed
from aeft_lib.parts.confident_labels import (
    CERTAINTY,
    ConfidentLabels,
    HardCrf,
    combined,
    hard_unary,
    label_map_of,
    rows_at,
)
from aeft_lib.parts.edge_refiner import EdgeRefiner
from aeft_lib.refinement.background import power_at
from aeft_lib.refinement.edge_net import at_quarter
from aeft_lib.rivals.irnet import PairLoss

CRF_PIXELS = 0.995  # tests/golden_rivals/README.md
THRESHOLDS = EdgeRefiner(PairLoss()).thresholds


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("irnet").items()}


def part(case: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.split("/")[1]: value for key, value in case.items() if key.split("/")[0] == name}


@pytest.fixture(params=["ir0", "ir1"])
def labelled(case, request) -> dict[str, Tensor]:
    return part(case, request.param)


def names(given: dict[str, Tensor]) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), given["class_ids"] + 1])


def test_golden_label_maps_before_the_crf(labelled):
    for name, threshold in zip(("fg_in", "bg_in"), THRESHOLDS, strict=True):
        assert torch.equal(rows_at(labelled["cam"], threshold), labelled[name].long())


def test_golden_hard_crf(labelled):
    rows = torch.stack([labelled["fg_in"], labelled["bg_in"]]).long()
    ours = HardCrf().refined(labelled["image"].numpy(), rows, len(labelled["cam"]) + 1)
    for refined, name in zip(ours, ("fg_crf", "bg_crf"), strict=True):
        assert agreement(refined, labelled[name].long()) >= CRF_PIXELS


def test_golden_labels_of_two_maps(labelled):
    """Exact: no CRF, no float."""
    rows = [labelled[name].long() for name in ("fg_crf", "bg_crf")]
    ours = torch.from_numpy(combined(*rows, labelled["class_ids"]))
    assert torch.equal(ours, labelled["label"])
    assert torch.equal(at_quarter(ours), labelled["reduced"])


def test_golden_confident_labels(labelled):
    """The maker, end to end; thresholds come as powers that cross there."""
    powers = dict(zip(("low", "high"), map(power_at, THRESHOLDS), strict=True))
    seed = Seed(labelled["class_ids"], labelled["cam"])
    ours, numbers = ConfidentLabels().label(labelled["image"].numpy(), seed, powers)
    assert agreement(ours, labelled["label"]) >= CRF_PIXELS
    assert (numbers["t_foreground"], numbers["t_background"]) == pytest.approx(THRESHOLDS)
    assert numbers["unsure"] == pytest.approx((ours == VOID).mean())
    assert numbers["background"] == pytest.approx((ours == 0).mean())


def test_probabilities_of_a_hard_label_sum_to_one():
    rows = torch.tensor([[0, 2], [1, 2]])
    unary = hard_unary(rows, 4).double()
    torch.testing.assert_close(
        (-unary).exp().sum(dim=0), torch.ones(2, 2).double(), rtol=1e-6, atol=0
    )
    assert (-unary).exp().amax(dim=0).sub(CERTAINTY).abs().max() < 1e-6
    assert torch.equal(unary.argmin(dim=0), rows)


@pytest.mark.parametrize(("row", "count"), [(-1, 3), (3, 3), (0, 1)])
def test_rows_that_are_no_label_are_refused(row, count):
    with pytest.raises(ValueError, match="rows must lie in"):
        hard_unary(torch.tensor([[row]]), count)


def test_background_wins_a_tie_and_the_first_class_the_next():
    cam = torch.tensor([[[0.25, 0.5]], [[0.25, 0.5]]])
    assert rows_at(cam, 0.25).tolist() == [[0, 1]]


def test_thresholds_out_of_order_are_refused():
    powers = {"low": power_at(0.05), "high": power_at(0.30)}
    seed = Seed(torch.tensor([0]), torch.rand(1, 8, 8))
    with pytest.raises(ValueError, match=r"must not be the lower one, got 0\.050 .* and 0\.300"):
        ConfidentLabels().label(np.zeros((8, 8, 3), dtype=np.uint8), seed, powers)


def test_without_iterations_the_crf_changes_nothing():
    rows = torch.randint(3, (2, 9, 8), generator=torch.Generator().manual_seed(0))
    image = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    assert torch.equal(HardCrf(iterations=0).refined(image, rows, 3), rows)


def test_rows_become_labels_of_their_classes():
    labels = label_map_of(torch.tensor([[0, 1, 2]]), torch.tensor([3, 11]))
    assert labels.tolist() == [[0, 4, 12]]
    assert labels.dtype == np.uint8


@pytest.mark.parametrize("wrong", [{"reach": 0.0}, {"reach": math.nan}, {"iterations": -1}])
def test_wrong_crfs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HardCrf(**wrong)
