"""Stage `evaluate_epochs`: what every epoch did, up to the numbers that the row ends with.

One store for the whole file; rows of a small smoke profile on controlled collages are computed by
whichever test comes first.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from aeft_lib.engine.device import device
from aeft_lib.paper.gpp import GlobalAveragePooling, PyramidPooling
from aeft_lib.stages import store
from aeft_lib.stages.evaluate_epochs import mean_gates
from aeft_lib.studies import run
from aeft_lib.studies.conditions import BASE, condition_row
from aeft_lib.studies.profiles import SMOKE

SCENES = {
    name: replace(getattr(SMOKE.controlled, name), count=count)
    for name, count in {"train": 16, "val": 12}.items()
}
PROFILE = replace(SMOKE, controlled=replace(SMOKE.controlled, **SCENES))
GAP, GATED, ERASED = (
    replace(condition_row(BASE, method), keep_epochs=True) for method in ("gap", "gated", "aeft")
)
COURSE = ["epoch", "tag_map", "entropy", "half_area"]
GATES = [
    f"{sign}_{step}_{side}"
    for step in (1, 2, 3)
    for sign in ("positive", "negative")
    for side in ("first", "next")
]


pytestmark = pytest.mark.usefixtures("stored")


def artefacts(row) -> dict[str, store.Artefact]:
    return run.artefacts(PROFILE, row, 0)


def course(row) -> pd.DataFrame:
    return pd.read_csv(artefacts(row)["epochs"].folder / "course.csv")


def curves(row) -> pd.DataFrame:
    return pd.read_csv(artefacts(row)["epochs"].folder / "epochs.csv")


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns", "epochs"),
    [(GAP, COURSE, [1, 2]), (GATED, COURSE + GATES, [1, 2]), (ERASED, COURSE + GATES, [0, 1, 2])],
    ids=["gap", "gated", "second phase"],
)
def test_a_course_has_a_line_an_epoch_and_begins_at_the_warm_start_where_there_is_one(
    row, columns, epochs
):
    table = course(row)
    assert list(table) == columns
    assert table["epoch"].tolist() == epochs
    assert table.notna().all(axis=None)
    assert curves(row)["epoch"].unique().tolist() == epochs
    assert artefacts(row)["epochs"].summary == {"epochs": 2}
    shares = table.drop(columns=["epoch", "tag_map"])
    assert ((shares > 0) & (shares < 1)).all(axis=None)


def test_a_classifier_without_a_second_phase_reads_no_warm_start():
    assert set(artefacts(GATED)["epochs"].record["inputs"]) == {"classifier", "features"}
    assert set(artefacts(ERASED)["epochs"].record["inputs"]) == {
        "classifier",
        "features",
        "warm_start",
    }
    assert "epochs" not in artefacts(replace(GATED, keep_epochs=False))


# --- the last epoch is the row's result -----------------------------------------------------------


@pytest.mark.parametrize("row", [GAP, GATED, ERASED], ids=lambda row: row.name)
def test_the_last_epoch_tags_as_the_evaluation_says(row):
    tag_map = course(row)["tag_map"]
    assert tag_map.iloc[-1] == pytest.approx(
        artefacts(row)["evaluation"].summary["tag_map"], rel=1e-12
    )
    assert 0 < tag_map.min() <= tag_map.max() < 100


@pytest.mark.parametrize("row", [GAP, GATED, ERASED], ids=lambda row: row.name)
def test_the_last_epoch_has_the_seeds_of_the_row(row):
    """But for the steps of 1/255 in which seeds are stored: no other epoch comes near."""
    made = artefacts(row)
    measured = pd.read_csv(made["objects"].folder / "objects.csv")[["entropy", "half_area"]]
    apart = (course(row).set_index("epoch")[list(measured)] - measured.mean()).abs()
    assert (3 * apart.loc[2] < apart.drop(2)).all(axis=None)
    compared = ["miou", "recall"]  # precision of a class may hang on a few pixels
    stored = pd.read_csv(made["evaluation"].folder / "curve.csv").set_index("threshold")[compared]
    apart = pd.DataFrame(
        {
            epoch: (curve.set_index("threshold")[compared] - stored).abs().max()
            for epoch, curve in curves(row).groupby("epoch")
        }
    ).T
    assert (3 * apart.loc[2] < apart.drop(2)).all(axis=None)


@pytest.mark.parametrize("row", [GAP, GATED, ERASED], ids=lambda row: row.name)
def test_epochs_differ(row):
    """So that agreement with the last one says something."""
    table = course(row)
    assert table["entropy"].nunique() == table["half_area"].nunique() == len(table)
    assert table["tag_map"].iloc[0] != table["tag_map"].iloc[-1]
    assert curves(row).groupby("threshold")["miou"].agg(np.ptp).max() > 0.1
    weights = [
        load_file(artefacts(row)["classifier"].folder / f"epoch_{epoch}.safetensors")
        for epoch in (1, 2)
    ]
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_second_phase_begins_where_the_first_one_ends():
    first, second = course(GATED).iloc[-1], course(ERASED).iloc[0]
    pd.testing.assert_series_equal(
        first.drop("epoch"), second.drop("epoch"), check_names=False, rtol=1e-12
    )


# --- gates ----------------------------------------------------------------------------------------


def network(pooling) -> SimpleNamespace:
    """A classifier whose CAM is what it is given."""
    return SimpleNamespace(pooling=pooling.to(device()), cam=lambda features: features)


def test_silent_gates_are_one_half_and_open_ones_are_told_apart_by_step_sign_and_side():
    pooling = PyramidPooling(num_classes=2, levels=(1, 2, 4))
    for parameter in pooling.parameters():
        torch.nn.init.zeros_(parameter)
    features = 1 + torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    names = [name for name in GATES if "_3_" not in name]
    assert mean_gates(network(pooling), features) == dict.fromkeys(names, 0.5)
    torch.nn.init.constant_(pooling.gates[1].positive.weight[1:], 100.0)
    assert mean_gates(network(pooling), features) == dict.fromkeys(names, 0.5) | {
        "positive_2_next": 1.0
    }
    torch.nn.init.constant_(pooling.gates[0].negative.weight[:1], 100.0)
    assert mean_gates(network(pooling), -features)["negative_1_first"] == 1.0


def test_gates_are_means_over_images_and_positions_of_what_the_layer_uses():
    torch.manual_seed(0)
    pooling = PyramidPooling(num_classes=2, levels=(1, 2, 4))
    features = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    means = mean_gates(network(pooling), features.half())  # as they are cached
    maps = pooling.gate_maps(features.half().float().to(device()))
    for step, gates in enumerate(maps, start=1):
        for side, name in enumerate(("first", "next")):
            for sign in ("positive", "negative"):
                theirs = getattr(gates, sign)[:, side].detach().cpu().numpy()
                assert means[f"{sign}_{step}_{name}"] == pytest.approx(
                    np.mean(theirs, dtype=float), rel=1e-5
                )
    assert len(set(means.values())) == len(means) == 8


def test_layers_without_gates_have_no_means():
    features = torch.zeros(1, 2, 8, 8)
    for pooling in (
        GlobalAveragePooling(),
        PyramidPooling(num_classes=2, levels=(1, 2), fusion="average"),
        PyramidPooling(num_classes=2, levels=(2,), fusion="single"),
    ):
        assert mean_gates(network(pooling), features) == {}
