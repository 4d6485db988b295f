"""``aeft explain``: what would run, what is there, and costs that are counted."""

from dataclasses import replace

import pytest
from photo_profile import CLASSES, SPLITS, photo_profile
from photo_sets import make_voc

from aeft_lib.cli import main
from aeft_lib.data.scene import opened
from aeft_lib.engine.step import Compute
from aeft_lib.rivals.advcam import AdvCam
from aeft_lib.rivals.rib import OTHERS, Rib
from aeft_lib.stages.read_each import EachSpec
from aeft_lib.studies import catalogue, profiles, run, work
from aeft_lib.studies.plan import PublishedSet, needs, plan, row_table, table, with_data
from aeft_lib.studies.profiles import GPU_GB, VOC
from aeft_lib.studies.rows import GAP
from aeft_lib.studies.systems import SYSTEMS, ends
from aeft_lib.studies.work import PHOTO, Load, cheapest, choices, forward, loads


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
    measured = {"infer_seeds": 4, "evaluate_seeds": 4, "count_images": 4}
    assert counts == {"train_classifier": 2 + 4} | measured
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


def test_a_frozen_judge_is_a_view_more():
    """OC-CSE takes each image through the learner and, masked, through the judge and back."""
    profile, study = photo_profile(), catalogue.get("rivals")
    planned = plan(profile, [study.row("occse")], [0])
    gap, occse = (item for item in planned if item.stage == "train_classifier")
    assert occse.pflop == pytest.approx(2 * gap.pflop)
    image = forward(profile.backbone, (64, 64), profile.compute, together=4)
    expected = 4 * image.parameters + 8 * image.trained + 2 * image.saved + 4 * image.parameters
    assert occse.memory == expected


def test_each_row_has_all_that_it_needs():
    rows = [catalogue.GAP, catalogue.AEFT]
    needed = needs(photo_profile(), rows, [0, 1])
    lines = row_table(needed).set_index("row")
    assert lines["trainings"].tolist() == [2, 4]  # a repeat each; AEFT's first phase counts too
    for name, items in needed.items():
        work = sum(item.pflop or 0 for item in items)
        assert lines.loc[name, "PFLOP"] == pytest.approx(work)
        assert lines.loc[name, "GB on disk"] == pytest.approx(sum(i.disk or 0 for i in items) / 1e9)
    together = plan(photo_profile(), rows, [0, 1])
    assert {item.key for items in needed.values() for item in items} == {i.key for i in together}


def test_windows_are_counted():
    """Of 375 x 500 pixels: a window of 450 px a side at 0.75, 2 at 1, 4 at 1.5; each mirrored."""
    profile = photo_profile()
    planned = plan(profile, [catalogue.get("rivals").row("pmm_crops")], [0])
    (seeds,) = (item for item in planned if item.stage == "infer_seeds")
    whole = forward(profile.backbone, PHOTO).flops
    count = 1 + 2 + 4
    passes = 1 + 2 * count * 450**2 / (375 * 500)
    assert seeds.pflop == pytest.approx(SPLITS["val"] * passes * whole / 1e15)


def test_label_makers_that_read_a_whole_image_once_are_counted():
    """RRM's network and ICD's classifier read unseen photos, SSDD's detector those of training."""
    profile, study = photo_profile(), catalogue.get("rivals")
    whole = forward(profile.backbone, PHOTO).flops
    for row, stage, split in (
        ("rrm", "read_rrm", "val"),
        ("icd", "read_icd", "val"),
        ("ssdd_pseudo", "merge_masks", "train"),
    ):
        planned = plan(profile, [study.row(row)], [0])
        (read,) = (item for item in planned if item.stage == stage)
        count = len(profile.scenes(split).open())
        assert read.pflop == pytest.approx(count * whole / 1e15), row


def test_readers_that_optimise_for_every_image_are_counted():
    """AdvCAM: a pair forward and back to its pixels, a class and state; RIB: with other images."""
    whole, scales = forward(VOC.backbone, PHOTO).flops, (0.5, 1.0, 1.5, 2.0)
    scenes = PublishedSet("train_aug", 100, 0, ("cat",))
    for reader, passes in (
        (AdvCam(), 2 * 3 * (13 * 0.25 + 27 * (1 + 2.25 + 4))),  # half of 27 steps at 0.5
        (Rib(), 3 * 10 * (2 * 7.5 + OTHERS)),
    ):
        spec = EachSpec(scenes, reader.fitted(scales, brief=False), "")
        images, pflop, memory, disk = work.cost(VOC, spec, frozenset({"classifier"}))
        assert (images, memory, disk) == (100, None, None)
        assert pflop == pytest.approx(100 * passes * whole / 1e15)


@pytest.mark.parametrize(
    "row", ["conta", "conta_segmentation", "ecsnet_pseudo", "pmm_windows", "pmm_cyclic"]
)
def test_rounds_and_windows_are_planned(row):
    planned = plan(photo_profile(), [catalogue.get("rivals").row(row)], [0])
    trainings = [item for item in planned if item.stage.startswith("train_")]
    for item in trainings:
        assert min(item.pflop, item.memory, item.disk) > 0, item.stage
    stages = [item.stage for item in trainings]
    if row == "conta":  # the host, and two rounds after it, each on masks of a network
        assert stages == [
            "train_classifier",
            "train_affinity",
            "train_segmenter",
            "train_with_maps",
        ] + ["train_affinity", "train_segmenter", "train_with_maps"]


def test_the_papers_profile_has_what_the_rule_chooses_for_its_memory():
    """Nothing is computed twice on 12 GB; what is chosen costs more as the memory shrinks."""
    for load, compute in loads(VOC).values():
        assert cheapest(VOC.backbone, load, compute, GPU_GB * 1e9) == compute
    second = choices(VOC).set_index("training").loc["second phase"]
    assert second["12 GB"] == "plain"
    assert second["8 GB"] == "checkpointing"
    assert second["4 GB"] == "checkpointing, parts=3"


def test_the_choice_is_the_first_that_fits_and_too_little_memory_is_an_error():
    backbone, load = photo_profile().backbone, Load(4, 2, (64, 64))
    plain = forward(backbone, load.size, together=4)
    needed = 4 * plain.parameters + 8 * plain.trained + 2 * plain.saved
    enough, compute = needed / 0.75 * 1.001, Compute(parts=3, checkpointing=True)
    assert cheapest(backbone, load, compute, enough) == Compute()
    assert cheapest(backbone, load, compute, enough * 0.998).checkpointing
    with pytest.raises(ValueError, match="hold no step, one image at a time needs"):
        cheapest(backbone, load, compute, 1e6)


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
    assert "Each row with all that it needs" in out


def test_before_the_data_is_there_its_published_sizes_are_counted(capsys, monkeypatch, tmp_path):
    opened.cache_clear()
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "nowhere"))
    monkeypatch.setenv("AEFT_COCO_ROOT", str(tmp_path / "nowhere"))
    assert main(["explain", "segmentation", "--profile", "voc"]) == 0
    out = capsys.readouterr().out
    sizes = "train_aug 10,582, val 1,449, train 1,464 images"
    assert f"the data is not here: counted with published sizes ({sizes})" in out
    row, (profile, _) = catalogue.row("segment_aeft"), with_data(profiles.VOC)
    planned = {item.stage: item for item in plan(profile, [row], [0])}
    steps = 10582 // profile.segmentation.schedule.batch_size
    assert planned["train_segmenter"].images == 30 * steps * 4
    assert planned["predict_labels"].images == 1449
    assert profile.num_classes == 20
    assert main(["explain", "gap_vs_gpp", "--profile", "coco"]) == 0
    assert "train2014 82,783, val2014 40,504 images" in capsys.readouterr().out
    assert with_data(profiles.COCO)[0].num_classes == 80


def test_data_that_is_there_is_taken_and_own_photos_have_no_published_size(
    capsys, monkeypatch, tmp_path
):
    profile = photo_profile()
    assert with_data(profile) == (profile, "")
    opened.cache_clear()
    monkeypatch.setenv("AEFT_PHOTOS_ROOT", str(tmp_path / "nowhere"))
    assert main(["explain", "gap_vs_gpp", "--profile", "photos"]) == 1
    assert "classes.txt" in capsys.readouterr().err


def test_every_system_has_hours_memory_and_disk_at_paper_scale(tmp_path, monkeypatch):
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "nothing"))
    opened.cache_clear()
    profile, assumed = with_data(VOC)
    assert "train_aug 10,582" in assumed
    rows = catalogue.rows_by_name()
    chosen = {r.name: r for known in SYSTEMS for r in ends(known, rows).values()} | {"gap": GAP}
    costs = row_table(needs(profile, list(chosen.values()), [0])).set_index("row")
    assert len(costs) > 40
    assert (costs[["GPU hours", "GB on a GPU", "GB on disk"]] > 0).all(axis=None)
    assert costs["GPU hours"].idxmin() in ("gap", "psa_seed", "irnet_seed", "bes_seed")
