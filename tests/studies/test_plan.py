"""``aeft explain``: what would run, what is there, and costs that are counted."""

from dataclasses import replace

import pytest
from photo_profile import CLASSES, SPLITS, photo_profile
from photo_sets import make_voc

from aeft_lib.cli import main
from aeft_lib.data.scene import opened
from aeft_lib.engine.step import Compute
from aeft_lib.studies import catalogue, run
from aeft_lib.studies.plan import PHOTO, forward, plan, table


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    opened.cache_clear()
    make_voc(tmp_path / "voc", SPLITS, classes=CLASSES)
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "voc"))
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    yield tmp_path
    opened.cache_clear()


def test_every_artefact_stands_once_and_nothing_is_computed(root):
    planned = plan(photo_profile(), [catalogue.AEFT, catalogue.RIGID_ROW], [0, 1])
    counts = table(planned).set_index("stage")["artefacts"].to_dict()
    # Two first phases, four second ones.
    assert counts == {"train_classifier": 2 + 4, "infer_seeds": 4, "evaluate_seeds": 4}
    assert len({item.key for item in planned}) == len(planned)
    assert not list((root / "runs").glob("*/*/record.json"))


def test_what_is_there_is_found_and_costs_nothing_more():
    profile = photo_profile()
    before = table(plan(profile, [catalogue.GAP], [0])).set_index("stage")
    run.artefacts(profile, catalogue.GAP, 0)
    after = table(plan(profile, [catalogue.GAP], [0])).set_index("stage")
    assert before["there"].sum() == 0
    assert (after["there"] == after["artefacts"]).all()
    assert before.loc["train_classifier", "PFLOP"] > 0
    assert after["PFLOP"].isna().all()


def test_work_and_memory_are_counted():
    profile = photo_profile(erasing_compute=Compute(parts=2, checkpointing=True))
    planned, size = plan(profile, [catalogue.AEFT], [0]), (64, 64)
    first, second = (item for item in planned if item.stage == "train_classifier")
    (seeds,) = (item for item in planned if item.stage == "infer_seeds")
    assert first.images == 2 * 12  # two epochs of three batches of four
    assert first.pflop == pytest.approx(24 * 3 * forward(profile.backbone, size).flops / 1e15)
    assert second.images == 2 * 2 * 4
    assert second.pflop == pytest.approx(
        16 * 2 * (3 + 1 + 1) * forward(profile.backbone, size).flops / 1e15
    )
    assert seeds.pflop == pytest.approx(
        4 * 2 * (0.25 + 1) * forward(profile.backbone, PHOTO).flops / 1e15
    )
    image = forward(profile.backbone, size, profile.erasing_compute, together=2)
    # Two views of a part of two images.
    assert second.memory == 4 * image.parameters + 8 * image.trained + 2 * image.saved
    assert first.disk == 4 * image.trained
    assert seeds.memory is None


def test_whole_scenes_are_cached_and_cost_disk():
    squares = {name: replace(getattr(photo_profile(), name), size=96) for name in ("train", "val")}
    planned = plan(photo_profile(**squares, view=None), [catalogue.GAP], [0])
    cache = next(item for item in planned if item.stage == "cache_features")
    assert cache.disk > 0
    assert cache.images == SPLITS["train_aug"]


def test_the_command_prints_it(capsys, monkeypatch):
    monkeypatch.setenv("AEFT_VOC_CLASSES", ",".join(CLASSES))
    assert main(["explain", "gap_vs_gpp", "--profile", "voc-lite", "--repeats", "2"]) == 0
    out = capsys.readouterr().out
    assert "gap_vs_gpp on voc-lite: 2 rows x 2 repeat(s)" in out
    assert "cache_features" in out


def test_without_the_data_it_says_what_is_missing(capsys, monkeypatch, tmp_path):
    opened.cache_clear()
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "nowhere"))
    assert main(["explain", "gap_vs_gpp", "--profile", "voc"]) == 1
    assert "AEFT_VOC_ROOT must name the folder" in capsys.readouterr().err
