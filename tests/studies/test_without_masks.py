"""Own photos with tags and no masks: everything that needs no mask is made, scores are left out.

The photos are drawn, the profile is the smoke profile on them; the file has a store of its own.
Jobs run in this process.
"""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from photo_sets import make_folder

from aeft_lib import cli
from aeft_lib.data.folder import FolderSpec, mask_name
from aeft_lib.data.scene import missing_masks, opened
from aeft_lib.lab.session import Session, open_session
from aeft_lib.maps.labels import VOID, read_label_map, write_label_map
from aeft_lib.stages.write_labels import label_files
from aeft_lib.studies import catalogue, pipeline, preflight, profiles, run
from aeft_lib.studies.profiles import SMOKE

pytestmark = pytest.mark.usefixtures("stored")
SPLITS = {"train": 16, "val": 4}
ROW = "segment_aeft"
PROFILE = replace(
    SMOKE,
    name="drawn",
    train=FolderSpec("train", size=96),
    val=FolderSpec("val", size=96),
    long_from=profiles.PHOTOS.long_from,
    controlled=None,
)


@pytest.fixture(autouse=True)
def photos(shared, tmp_path, monkeypatch):
    """The folder of the photos; jobs run in this process, after the checks before a run."""
    if not (shared / "photos").is_dir():
        make_folder(shared / "photos", SPLITS, size=(48, 64), masks=False)
    monkeypatch.setenv("AEFT_PHOTOS_ROOT", str(shared / "photos"))
    monkeypatch.setitem(profiles.PROFILES, PROFILE.name, PROFILE)

    def compute(_, profile, jobs, workers):
        preflight.check(profile)
        return {job: run._job(profile, *job) for job in jobs}

    monkeypatch.setattr(run, "_compute", compute)
    opened.cache_clear()
    yield shared / "photos"
    opened.cache_clear()


def add_masks(photos, tmp_path, monkeypatch, split: str) -> None:
    """From now on a copy of the photos is read, in which one split has masks."""
    shutil.copytree(photos, tmp_path / "masked")
    monkeypatch.setenv("AEFT_PHOTOS_ROOT", str(tmp_path / "masked"))
    opened.cache_clear()
    scenes = FolderSpec(split).open()
    for index, name in enumerate(scenes.names):
        file = tmp_path / "masked" / "masks" / mask_name(name)
        file.parent.mkdir(exist_ok=True)
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 8:40] = 1 + scenes.tags(index).argmax()
        write_label_map(file, mask)
    opened.cache_clear()


def test_a_network_is_trained_and_reads_photos_where_nothing_has_a_mask(photos, tmp_path, capsys):
    words = ["--profile", PROFILE.name, "--row", ROW]
    assert cli.main(["run", "segmentation", *words]) == 0
    out, err = capsys.readouterr()
    made = pipeline.artefacts(PROFILE, catalogue.row(ROW), 0)
    assert set(made) == {"seeds", "teacher", "segmenter", "labels"}
    for name in ("seeds", "teacher", "segmenter", "labels"):
        assert f"{run.PRODUCTS[name]} in {made[name].folder}" in out
    assert "not scored, since 4 of 4 scenes of the split 'val' have no mask" in out
    assert "16 of 16 scenes of the split 'train' have no mask" in err
    assert "scores that need these masks are left out" in err
    (line,) = [line for line in out.splitlines() if line.split()[0] == "pseudo-labels"]
    assert line.split() == ["pseudo-labels", "1", *["NaN"] * 4]
    assert len(label_files(made["labels"])) == SPLITS["val"]
    assert cli.main(["run", "segmentation", *words]) == 0  # from the store: the same table
    again = capsys.readouterr()
    assert (again.out, again.err) == (out, "")
    photo = photos / "images" / "photo_001.jpg"
    assert cli.main(["predict", str(photo), *words, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "trained on 16 photos of 96 px" in out
    assert "it knows cup, key, leaf" in out
    read_label_map(tmp_path / "photo_001.labels.png", num_classes=3, size=(48, 64))


def test_tags_are_scored_without_masks():
    study = catalogue.get("gap_vs_gpp")
    table = run.run_study(study, PROFILE, [0], rows=[catalogue.GAP])
    assert table[["miou", "precision", "recall"]].isna().all(axis=None)
    assert 0 < table.loc[0, "tag_map"] <= 100
    made = pipeline.artefacts(PROFILE, catalogue.GAP, 0)
    assert set(made) == {"classifier", "seeds"}


def test_a_row_that_learns_from_masks_is_left_out_of_its_study_and_says_why(capsys):
    study = catalogue.get("segmentation")
    rows = [study.row("segment_truth"), study.row(ROW)]
    table = run.run_study(study, PROFILE, [0], rows=rows)
    assert table["row"].tolist() == ["segment_truth", ROW]
    truth, own = run.remarks(PROFILE, [(row, 0) for row in rows], table)
    assert truth.startswith("segment_truth: not computed, it learns from true masks, and 16 of 16")
    assert own.startswith(f"{ROW}, repeat 0: not scored")
    with pytest.raises(ValueError, match="row segment_truth learns from true masks, and 16 of 16"):
        pipeline.artefacts(PROFILE, rows[0], 0)
    words = ["--profile", PROFILE.name, "--row", "segment_truth"]
    capsys.readouterr()
    assert cli.main(["run", "segmentation", *words]) == 0
    assert "not computed, it learns from true masks" in capsys.readouterr().out


def test_a_row_with_a_common_threshold_has_no_threshold_to_share():
    study = catalogue.get("triplet_ablation")
    table = run.run_study(study, PROFILE, [0], rows=[study.row("gpp_only")])
    assert "miou_common" not in table
    assert table["miou"].isna().all()


def test_masks_that_come_later_are_scored_and_nothing_is_trained_again(
    photos, tmp_path, monkeypatch
):
    row = catalogue.row(ROW)
    before = pipeline.artefacts(PROFILE, row, 0)
    add_masks(photos, tmp_path, monkeypatch, "val")
    after = pipeline.artefacts(PROFILE, row, 0)
    assert {name: after[name].key for name in before} == {n: a.key for n, a in before.items()}
    assert 0 <= after["evaluation"].summary["miou"] <= 100
    assert missing_masks(PROFILE.train)
    assert not missing_masks(PROFILE.val)
    assert run.left_unscored(PROFILE, [(row, 0)]) == []


def test_one_missing_mask_leaves_the_scores_out_and_is_named(photos, tmp_path, monkeypatch):
    add_masks(photos, tmp_path, monkeypatch, "val")
    scenes = PROFILE.val.open()
    (tmp_path / "masked" / "masks" / mask_name(scenes.names[2])).unlink()
    opened.cache_clear()
    expected = f"1 of 4 scenes of the split 'val' has no mask (the first: {scenes.names[2]})"
    assert missing_masks(PROFILE.val) == expected
    assert "evaluation" not in pipeline.artefacts(PROFILE, catalogue.row(ROW), 0)


def test_notebooks_and_their_reproduction_are_refused_before_work(capsys, monkeypatch):
    monkeypatch.setattr(run, "_compute", None)
    with pytest.raises(ValueError, match=r"notebooks compare with masks, and 4 of 4 .*aeft run"):
        open_session(PROFILE.name, 1)
    assert cli.main(["reproduce", "--profile", PROFILE.name]) == 1
    assert "notebooks compare with masks, and 16 of 16" in capsys.readouterr().err


def test_the_report_says_not_run(capsys):
    run.run_study(catalogue.get("gap_vs_gpp"), PROFILE, [0], rows=[catalogue.GAP])
    assert Session(PROFILE, 1).stored_table("gap_vs_gpp").empty
    assert cli.main(["report", "--profile", PROFILE.name]) == 0


def test_summaries_keep_rows_without_numbers():
    lines = [{"row": "a", "label": "A", "repeat": 0, "miou": np.nan}]
    summary = run.summarise(pd.DataFrame(lines))
    assert summary["n"].tolist() == [1]
    assert summary["miou"].isna().all()


def test_the_doctor_says_what_masks_are_for(photos, capsys):
    assert cli.main(["data", "check", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "16 images, 0 with a mask" in out
    assert "without a mask: 16; seeds, label maps and networks need none, scores do" in out
    assert "nothing is wrong" in out


def test_masks_without_background_are_scored_with_a_remark_and_void_ones_are_not(
    photos, tmp_path, monkeypatch
):
    add_masks(photos, tmp_path, monkeypatch, "val")
    study = catalogue.get("gap_vs_gpp")

    def scored_on(change) -> tuple[pd.DataFrame, list[str]]:
        for file in (tmp_path / "masked" / "masks").iterdir():
            labels = read_label_map(file, num_classes=3)
            write_label_map(file, change(labels).astype(np.uint8))
        opened.cache_clear()
        table = run.run_study(study, PROFILE, [0], rows=[catalogue.GAP])
        return table, run.remarks(PROFILE, [(catalogue.GAP, 0)], table)

    table, remarks = scored_on(lambda labels: labels)
    assert "no_background" not in table
    assert not any("no pixel" in line for line in remarks)
    table, remarks = scored_on(lambda labels: np.where(labels, labels, VOID))
    assert 0 < table.loc[0, "miou"] < 75  # of four classes one is absent
    assert remarks[-1].startswith("gap: no pixel of the scored masks is background (0): is it")
    with pytest.raises(ValueError, match=r"photo_0..\.png: every pixel is void"):
        scored_on(lambda labels: np.full(labels.shape, VOID))
