"""What notebooks 5 and 6 show, their figures and widget, and `aeft export`.

The file has a smoke store of its own.
"""

import zipfile
from dataclasses import replace

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
import pytest
import torch

from aeft_lib import cli
from aeft_lib.data.augment import random_views
from aeft_lib.lab import ch05_case, ch05_pseudo_labels, ch06_segmentation, figures, widgets
from aeft_lib.lab.session import Session
from aeft_lib.maps.labels import VOID
from aeft_lib.paper.gpp import scaled_levels
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE
from aeft_lib.studies.published import published

pytestmark = pytest.mark.usefixtures("stored", "close_figures")


@pytest.fixture
def lab(stored):
    """The session; the pseudo-labels of repeat 0 are computed by whichever test comes first."""
    return Session(SMOKE, 1)


@pytest.fixture
def case(lab):
    two = next(i for i in range(len(lab.training_scenes)) if lab.training_scenes[i].tags.sum() == 2)
    return ch05_pseudo_labels.refinement(lab, two)


# --- the catalogue --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["refinement", "segmentation"])
def test_rows_have_labels_of_their_own(name):
    study = catalogue.get(name)
    assert len({row.label for row in study.rows}) == len(study.rows)


def test_the_table_keeps_the_study_order_and_shared_rows_are_computed_once(monkeypatch):
    begun = []

    def job(profile, row, repeat):
        begun.append(row.name)
        return {"miou": 1.0}

    monkeypatch.setenv("AEFT_QUIET", "1")  # one worker that nobody watches is this process
    monkeypatch.setattr(run, "stored", lambda *_: None)
    monkeypatch.setattr(run, "_job", job)
    study = catalogue.get("refinement")
    table = run.run_study(study, SMOKE, [0], workers=1)
    assert sorted(begun) == sorted(row.name for row in study.rows)
    assert table["row"].tolist() == [row.name for row in study.rows]
    begun.clear()
    run.prepare([(study, [0]), (study, [0, 1])], SMOKE, workers=1)
    assert len(begun) == 2 * len(study.rows)  # what two studies share is computed once


def test_a_finer_map_keeps_the_cells_per_bin():
    fine = catalogue.row("gpp_only_fine")
    profile = fine.setting.applied(SMOKE, 0)
    assert (profile.train.size, profile.val.size, profile.map_side) == (144, 144, 9)
    assert profile.levels == scaled_levels(9)
    assert replace(profile, train=SMOKE.train, val=SMOKE.val) == SMOKE
    assert catalogue.row("gpp_only").setting.applied(SMOKE, 0) is SMOKE


# --- views ----------------------------------------------------------------------------------------


def test_the_case_has_one_posterior_a_power_and_the_grid_of_its_scene(case):
    side = SMOKE.train.size
    assert set(case.posteriors) == {"low", "middle", "high"}
    for posterior in case.posteriors.values():
        assert posterior.shape == (3, side, side)
        torch.testing.assert_close(posterior.sum(dim=0), torch.ones(side, side))
    assert case.grid_labels.shape == case.affinity.size == (side // 8, side // 8)
    assert case.powers.low < case.powers.middle < case.powers.high


def test_a_weaker_background_leaves_more_foreground(case):
    table = ch05_case.power_table(case)
    assert table["power"].tolist() == ["low", "middle", "high"]
    assert table["crossing"].is_monotonic_decreasing
    assert table["seed"].is_monotonic_increasing
    assert table["crossing"][1] == pytest.approx(case.threshold)


def test_grid_picture_shows_classes_background_and_void_only(case):
    shown = set(np.unique(ch05_case.grid_picture(case)))
    assert shown <= {0, VOID, *(case.seed.class_ids + 1).tolist()}


def test_a_score_spreads_further_with_more_steps_and_stays_without_any(case):
    cell = ch05_case.strongest_cell(case)
    alone = ch05_case.spread(case, *cell, 0)
    assert alone[cell] == 1
    assert alone.sum() == 1
    table = ch05_case.spread_table(case, cell, (1, 4, 64))
    assert table["cells"].is_monotonic_increasing
    with pytest.raises(ValueError, match=r"cell \(99, 0\) is outside the 12 x 12 grid"):
        ch05_case.spread(case, 99, 0, 1)


def test_walk_pictures_are_scores_over_labels(case):
    scores, labels = ch05_case.walk_pictures(case, (0, 4))
    assert [picture.ndim for picture in (*scores, *labels)] == [3, 3, 2, 2]
    np.testing.assert_array_equal(labels[1], ch05_case.labels_of(case, ch05_case.walked(case, 4)))
    table = ch05_case.walk_table(case, (0, 4))
    assert table["steps"].tolist() == [0, 4]
    assert table["foreground"][1] == pytest.approx((labels[1] != 0).mean())


# --- the session ----------------------------------------------------------------------------------


def test_label_scores_are_the_iou_of_the_tagged_classes(lab):
    scores, maps = (
        f(lab, "aeft_pseudo")
        for f in (ch05_pseudo_labels.label_scores, ch05_pseudo_labels.label_maps)
    )
    scene = lab.training_scenes[5]
    ious = []
    for label in np.flatnonzero(scene.tags) + 1:
        both, either = (
            (maps[5] == label) & (scene.mask == label),
            (maps[5] == label) | (scene.mask == label),
        )
        ious.append(both.sum() / either.sum())
    assert scores["iou"][5] == pytest.approx(100 * np.mean(ious))
    assert scores["classes"][5] == scene.tags.sum()
    assert len(scores) == len(maps) == SMOKE.train.count


def test_label_comparison_begins_with_image_and_truth_of_the_rows_own_scenes(lab):
    ((image, truth, labels),) = ch05_pseudo_labels.label_comparison(lab, ["aeft_pseudo"], [3])
    np.testing.assert_array_equal(image, lab.training_scenes[3].image)
    np.testing.assert_array_equal(truth, lab.training_scenes[3].mask)
    np.testing.assert_array_equal(labels, ch05_pseudo_labels.label_maps(lab, "aeft_pseudo")[3])


def test_the_store_keeps_a_small_part_of_float_posteriors(lab):
    sizes = ch05_pseudo_labels.store_size(lab, "aeft_pseudo")
    rows = np.mean(
        [
            1 + scene.tags.sum()
            for scene in map(lab.training_scenes.__getitem__, range(SMOKE.train.count))
        ]
    )
    assert sizes["two CRFs in float32"] == pytest.approx(2 * rows * 96 * 96 * 4 / 1e3)
    assert (
        sizes["seeds"] + sizes["posteriors"] + sizes["scores"] + sizes["labels"]
        < sizes["two CRFs in float32"] / 10
    )


def test_steps_of_one_in_255_do_not_change_what_is_scored(lab):
    kept = ch05_pseudo_labels.quantisation(lab, "aeft_pseudo", scenes=6)
    assert list(kept.index) == ["low stored", "low float", "high stored", "high float"]
    assert (kept > 0).all()
    # Two pixels lie within a step of a tie (measured), each is 0.0044 points; a margin of 10.
    assert abs(kept["low stored"] - kept["low float"]) < 0.09
    assert abs(kept["high stored"] - kept["high float"]) < 0.09


def test_background_has_a_line_a_repeat(lab):
    table = ch05_pseudo_labels.background(lab, "aeft_pseudo")
    assert list(table.columns) == ["repeat", "threshold", "low", "middle", "high"]
    assert table["repeat"].tolist() == [0]


# --- figures and widget ---------------------------------------------------------------------------


def bars_table() -> pd.DataFrame:
    starts = (("seed", 50), ("+ CRF", 58))
    lines = [(label, n, value + n, 60.0, 70.0) for label, value in starts for n in (0, 2)]
    return pd.DataFrame(lines, columns=["label", "repeat", "miou", "precision", "recall"])


def test_label_bars_have_a_line_at_the_baseline_and_the_papers_difference_as_a_diamond():
    figure = figures.label_bars(bars_table(), {"seed": 56.0, "+ CRF": 71.0}, baseline="seed")
    first = figure.axes[0]
    assert [axis.get_title() for axis in figure.axes] == ["mIoU", "precision", "recall"]
    assert [bar.get_width() for bar in first.patches] == [51, 59]
    lines = {line.get_marker(): line for line in first.lines}
    assert lines["D"].get_xdata() == [51 + 15]
    assert len(figure.legends[0].get_texts()) == 2
    assert len(figures.label_bars(bars_table(), {}, baseline="seed").legends[0].get_texts()) == 1


def test_class_heatmap_is_the_mean_over_repeats():
    classes = pd.DataFrame(
        {
            "label": ["a", "a", "b", "b"],
            "class": "bird",
            "repeat": [0, 1, 0, 1],
            "iou": [10, 30, 50, 70],
        }
    )
    axis = ch06_segmentation.class_heatmap(classes).axes[0]
    assert [text.get_text() for text in axis.texts] == ["20", "60"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def results() -> pd.DataFrame:
    table = pd.DataFrame(published()["results"])
    return table.assign(date=table["venue"].map(published()["venues"]))


def test_every_venue_of_the_results_has_a_date_in_its_year():
    table = results()
    assert (table["date"] // 1 == 2000 + table["venue"].str[-2:].astype(int)).all()


def test_results_scatter_has_every_method_and_a_trend_without_ours():
    table = results()
    axis = ch06_segmentation.results_scatter(table, ours="AEFT (the paper)").axes[0]
    assert sorted(text.get_text() for text in axis.texts) == sorted(table["method"])
    trend = axis.lines[0]
    slope = np.diff(trend.get_ydata()) / np.diff(trend.get_xdata())
    others = table[table["method"] != "AEFT (the paper)"]
    assert slope[0] == pytest.approx(np.polyfit(others["date"], others["voc_test"], 1)[0])
    star = next(line for line in axis.lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2022.81, 71.7)
    with pytest.raises(ValueError, match="no date for RIB"):
        ch06_segmentation.results_scatter(
            table.assign(date=table["date"].where(table["method"] != "RIB")),
            ours="AEFT (the paper)",
        )


def test_affinity_widget_redraws_and_counts_the_cells_it_reaches(case):
    cell = ch05_case.strongest_cell(case)
    *controls, picture, text = widgets.affinity(case, cell).children
    assert [control.description for control in controls] == ["row", "column", "steps"]
    assert [control.value for control in controls] == [*cell, 16]
    reached = ch05_case.spread_table(case, cell, (16,))["cells"][0]
    assert text.value.startswith(f"{reached} of 144 cells")
    before = picture.value
    controls[0].value = (cell[0] + 3) % 12
    assert picture.value != before


# --- random views ---------------------------------------------------------------------------------


def views(scales, seed=0, count=6):
    coarse = torch.randint(
        0, 5, (count, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    labels = coarse.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    images = labels[:, None].float().expand(-1, 3, -1, -1)
    return (
        images,
        labels,
        *random_views(images, labels, torch.Generator().manual_seed(seed), scales=scales),
    )


def test_views_at_scale_one_are_the_images_or_their_mirror_images():
    images, labels, seen, seen_labels = views((1, 1))
    mirrored = 0
    for before, after, labels_before, labels_after in zip(
        images, seen, labels, seen_labels, strict=True
    ):
        is_mirror = torch.equal(labels_after, labels_before.flip(-1))
        assert is_mirror or torch.equal(labels_after, labels_before)
        torch.testing.assert_close(
            after, before.flip(-1) if is_mirror else before, atol=1e-4, rtol=0
        )
        mirrored += is_mirror
    assert 0 < mirrored < len(images)


def test_views_that_shrink_leave_zeros_in_the_image_and_void_in_the_labels():
    _, _, seen, labels = views((0.5, 0.5))
    assert ((labels == VOID).float().mean(dim=(1, 2)) - 0.75).abs().max() < 0.13
    inside = labels != VOID
    assert (seen[:, 0][~inside] <= 4).all()
    assert seen[:, 0][labels == VOID].mean() < seen[:, 0][inside].mean()


def test_views_that_grow_hold_no_void_and_labels_follow_the_image():
    _, _, seen, labels = views((2, 2))
    assert (labels != VOID).all()
    assert (
        seen[:, 0] - labels.float()
    ).abs().median() < 0.01  # they differ at the edges of cells alone


def test_views_are_decided_by_the_generator_and_differ_from_image_to_image():
    first, again, other = views((0.5, 1.5)), views((0.5, 1.5)), views((0.5, 1.5), seed=5)
    assert torch.equal(first[3], again[3])
    assert not torch.equal(first[3], other[3])
    assert len({int((labels == VOID).sum()) for labels in first[3]}) > 1


@pytest.mark.parametrize("scales", [(0, 1), (-1, 1), (1.5, 0.5)])
def test_view_scales_are_positive_and_in_order(scales):
    with pytest.raises(ValueError, match="scales must be positive and in order"):
        views(scales)


# --- export ---------------------------------------------------------------------------------------


def exported(capsys, *words: str) -> tuple[int, str]:
    code = cli.main(["export", *words, "--profile", "smoke"])
    out, err = capsys.readouterr()
    return code, out + err


def test_export_writes_an_archive_of_a_networks_predictions(lab, tmp_path, capsys):
    file = tmp_path / "submission.zip"
    code, shown = exported(capsys, "segment_truth", "--out", str(file))
    assert (code, file.exists()) == (1, False)
    assert (
        "make it with: aeft run segmentation --profile smoke --row segment_truth --repeat 0"
        in shown
    )
    pipeline.artefacts(SMOKE, catalogue.row("segment_truth"), 0)
    code, shown = exported(capsys, "segment_truth", "--out", str(file))
    assert (code, shown) == (0, f"{file}: 8 label maps\n")
    assert exported(capsys, "segment_truth", "--out", str(file)) == (code, shown)  # its own, anew
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == [
            f"results/VOC2012/Segmentation/comp6_val_cls/val_0_{i:05d}.png" for i in range(8)
        ]
    with zipfile.ZipFile(file, "w") as archive:  # of the same layout, by somebody else
        archive.writestr("results/VOC2012/Segmentation/comp6_val_cls/mine.png", b"mine")
    mine = file.read_bytes()
    assert exported(capsys, "segment_truth", "--out", str(file))[0] == 1
    assert file.read_bytes() == mine


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("gated",),
            "row gated has no segmentation network; there are segment_truth, segment_aeft",
        ),
        (
            ("segment_truth", "--out", "a.tar"),
            "--out must name a .zip in a folder that is there, got a.tar",
        ),
        (
            ("segment_truth", "--out", "/nowhere/a.zip"),
            "--out must name a .zip in a folder that is there",
        ),
        (("segment_truth", "--repeat", "-1"), "repeats must be whole numbers from 0"),
        (("no_row",), "row no_row has no segmentation network; there are segment_truth"),
        (("segment_aef",), "(did you mean segment_aeft or "),
    ],
)
def test_export_refusals(capsys, words, message):
    code, shown = exported(capsys, *words)
    assert code == 1
    assert message in shown


@pytest.mark.parametrize("kind", ["other archive", "text", "empty archive", "folder"])
def test_export_overwrites_no_file_of_others(tmp_path, capsys, kind):
    file = tmp_path / "photos.zip"
    if kind == "text":
        file.write_text("mine")
    elif kind == "folder":
        file.mkdir()
    else:
        with zipfile.ZipFile(file, "w") as archive:
            if kind == "other archive":
                archive.writestr("holiday.jpg", b"mine")
    before = file.read_bytes() if file.is_file() else None
    code, shown = exported(capsys, "segment_truth", "--out", str(file))
    assert code == 1
    assert "is there and is no submission: choose another --out" in shown
    assert (file.read_bytes() if file.is_file() else None) == before
