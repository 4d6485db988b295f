"""What notebook 8 reads from artefacts: pictures of knobs, trainings over time, objects."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from aeft_lib import paths
from aeft_lib.lab import ch08_conditions
from aeft_lib.lab.session import Session
from aeft_lib.studies import catalogue, run
from aeft_lib.studies.levels import levels
from aeft_lib.studies.profiles import LAPTOP, SMOKE, VOC_LITE


def test_every_level_has_its_picture_and_photos_show_the_laptops():
    pictures = ch08_conditions.knob_pictures(SMOKE, 1)
    others = [level for level in levels() if level.row != "base"]
    names = [f"{level.knob.replace('_', ' ')} {level.value:g}" for level in others]
    assert list(pictures) == ["base", *names]  # the base once, though it is a level of every knob
    assert {picture.shape for picture in pictures.values()} == {(96, 96, 3)}
    theirs, ours = (
        ch08_conditions.controlled_scene(profile, "clutter_6", 2) for profile in (VOC_LITE, LAPTOP)
    )
    assert theirs.image.shape == (192, 192, 3)
    np.testing.assert_array_equal(theirs.image, ours.image)


@pytest.fixture
def small_study(monkeypatch):
    """`mechanism` with rows of both phases that keep epochs, and a row that does not."""
    rows = [catalogue.row(name) for name in ("long.gated", "erase_soft.x1", "base.gap")]
    small = replace(catalogue.get("mechanism"), rows=tuple(rows), long=False)
    monkeypatch.setattr(catalogue, "get", lambda name: small)
    return small


def test_epochs_have_every_epoch_of_the_rows_that_keep_them(small_study):
    curves, spreads = ch08_conditions.over_epochs(Session(SMOKE, 1), "mechanism")
    first, second = (curves[curves["row"] == name] for name in ("long.gated", "erase_soft.x1"))
    assert first["epoch"].tolist() == list(range(1, 13))  # a first phase has no warm start
    assert second["epoch"].tolist() == list(range(5))
    assert set(curves["row"]) == {"long.gated", "erase_soft.x1"}
    assert list(zip(curves["row"], curves["epoch"], strict=True)) == list(
        zip(spreads["row"], spreads["epoch"], strict=True)
    )
    assert (
        curves[["precision", "recall", "miou_best"]]
        .apply(lambda column: column.between(0, 100))
        .all(axis=None)
    )
    gates = spreads[spreads["row"] == "long.gated"].filter(
        regex=r"^(positive|negative)_\d_(first|next)$"
    )
    assert gates.shape == (12, 12)  # three fusion steps, two signs, two sides
    assert gates.apply(lambda column: column.between(0, 1)).all(axis=None)


def test_epochs_of_a_study_that_is_left_out_are_the_committed_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    monkeypatch.setattr(run, "left_out", lambda *_: True)
    tables = [pd.DataFrame({"row": ["long.gap"], "repeat": [i]}) for i in range(2)]
    for table, name in zip(tables, ("mechanism_curves", "mechanism_course"), strict=True):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    for shown, table in zip(
        ch08_conditions.over_epochs(Session(SMOKE, 1), "mechanism"), tables, strict=True
    ):
        pd.testing.assert_frame_equal(shown, table)


def test_objects_are_measured_for_any_row_and_agree_with_the_evaluation():
    session = Session(SMOKE, 1)
    objects = ch08_conditions.objects(session, ["base.gap", "gap"])
    assert set(objects["row"]) == {"base.gap", "gap"}
    own = objects[objects["row"] == "gap"]
    assert len(own) == sum(int(session.scenes.tags(i).sum()) for i in range(len(session.scenes)))
    classes = session.classes(["gap"]).set_index("class")["recall"]
    sums = own.groupby("class")[["tp", "true"]].sum()
    for class_id, line in sums.iterrows():
        assert 100 * line["tp"] / line["true"] == pytest.approx(
            classes[session.scenes.classes[class_id]]
        )


def test_photo_objects_on_collages_are_the_committed_ones():
    objects = ch08_conditions.photo_objects(Session(SMOKE, 1))
    assert set(objects["kind"]) == {"area", "class", "tags"}
    assert {"gap", "gated"} <= set(objects["row"])
    assert objects["n"].min() > 0
