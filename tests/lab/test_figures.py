"""Figures, tested as data: what was drawn is read back from the axes, pixels are not compared."""

from io import BytesIO

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from aeft_lib.lab import ch01_cams, ch02_gpp, ch03_gates, figures
from aeft_lib.maps.labels import voc_palette
from aeft_lib.paper import gpp

pytestmark = pytest.mark.usefixtures("close_figures")


def pictures(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axis in figure.axes for image in axis.get_images()]


def grey_image(value: int = 100, side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


# --- colours --------------------------------------------------------------------------------------


def test_voc_palette_has_the_known_colours():
    palette = voc_palette().astype(int)
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
    }
    known[255] = (224, 224, 192)
    assert {label: tuple(palette[label]) for label in known} == known
    assert palette.shape == (256, 3)
    assert len({tuple(colour) for colour in palette}) == 256


def test_agreement_paints_hits_spill_and_misses_and_leaves_the_rest_grey():
    predicted, truth = (
        np.array([[True, True, False, False]]),
        np.array([[True, False, True, False]]),
    )
    image = np.array([[[30, 60, 90]] * 4], np.uint8)
    painted = figures.agreement(image, predicted, truth)
    grey = 60 / 255
    expected = [
        [0.3 * grey + 0.7 * colour for colour in (figures.HIT, figures.SPILL, figures.MISS)]
        + [np.full(3, grey)]
    ]
    np.testing.assert_allclose(painted, expected)


def test_the_colours_of_agreement_differ_for_every_eye():
    """Okabe and Ito's green, vermillion and sky blue: the brightness differs too."""
    brightness = [
        colour @ (0.299, 0.587, 0.114) for colour in (figures.HIT, figures.SPILL, figures.MISS)
    ]
    assert len({tuple(colour) for colour in (figures.HIT, figures.SPILL, figures.MISS)}) == 3
    assert brightness[2] - max(brightness[:2]) > 0.1


def test_signed_colours_put_both_signs_on_one_scale():
    orange, blue = (np.array(c) / 255 for c in ((213, 94, 0), (0, 114, 178)))
    step = 1 / 127  # of the colour map's 256, between white and a full colour
    rgb = figures.signed_colours(np.array([[4.0, -2.0, 0.0]]))
    expected = [[orange, (1 + blue) / 2, np.ones(3)]]
    np.testing.assert_allclose(rgb, expected, atol=step)
    shared = figures.signed_colours(np.array([[4.0, -2.0, 0.0]]), scale=8.0)
    expected = [[(1 + orange) / 2, 0.75 + blue / 4, np.ones(3)]]
    np.testing.assert_allclose(shared, expected, atol=step)
    np.testing.assert_allclose(figures.signed_colours(np.zeros((2, 2))), 1, atol=step)
    assert figures.signed_scale([np.array([1.0, -3.0]), np.array([2.0])]) == 3


def test_a_grid_of_label_maps_names_the_classes_that_they_have():
    image, labels = grey_image(), np.zeros((4, 4), np.uint8)
    labels[0], labels[1, 0] = 2, 255
    figure = figures.picture_grid([[image, labels]], ("image", "seed"), classes=("cat", "dog"))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dog", "void"]
    colours = [np.array(patch.get_facecolor()[:3]) * 255 for patch in legend.get_patches()]
    np.testing.assert_allclose(colours, voc_palette()[[2, 255]], atol=0.5)
    empty = figures.picture_grid([[image, labels * 0]], ("image", "seed"), classes=("cat", "dog"))
    assert not empty.legends
    over = figures.labelled(image, labels)
    np.testing.assert_allclose(
        over[0], 0.25 * (0.3 + 0.7 * image[0] / 255) + 0.75 * voc_palette()[2] / 255, atol=1e-6
    )
    np.testing.assert_allclose(over[2], 0.3 + 0.7 * image[2] / 255, atol=1e-6)


def test_overlay_mixes_the_greyed_image_with_the_colour_of_the_cam():
    cam = np.linspace(0, 1, 16).reshape(4, 4)
    painted = figures.overlay(grey_image(51), cam)
    np.testing.assert_allclose(painted, 0.45 * 0.2 + 0.55 * plt.get_cmap("magma")(cam)[..., :3])
    assert 0 <= painted.min() <= painted.max() <= 1


# --- keeping figures ------------------------------------------------------------------------------


def test_save_writes_png_pdf_and_numbers_byte_stable(tmp_path):
    table = pd.DataFrame({"label": ["a", "b"], "miou": [1 / 3, 2.0]})
    for folder in ("first", "second"):
        figure, axis = plt.subplots()
        axis.plot([1, 2, 3], label="a line")
        axis.legend()
        figures.save(figure, "curve", table, tmp_path / "new" / folder)
    folders = (tmp_path / "new" / name for name in ("first", "second"))
    kept, again = ({file.name: file.read_bytes() for file in f.iterdir()} for f in folders)
    assert set(kept) == {"curve.png", "curve.pdf", "curve.csv"}
    assert kept == again
    assert kept["curve.csv"] == b"label,miou\na,0.3333\nb,2.0000\n"
    assert kept["curve.png"].startswith(b"\x89PNG")
    assert not any(
        word in kept["curve.pdf"] for word in (b"CreationDate", b"/Producer", b"/Creator")
    )
    assert b"Software" not in kept["curve.png"]


# --- pictures -------------------------------------------------------------------------------------


def test_picture_grid_shows_rgb_as_it_is_and_labels_in_voc_colours():
    labels = np.array([[0, 15], [255, 1]])
    figure = figures.picture_grid(
        [[grey_image(), labels], [labels, grey_image(9)]], ("image", "mask"), ("first", "second")
    )
    top_left, top_right, bottom_left, bottom_right = pictures(figure)
    np.testing.assert_array_equal(top_left, grey_image())
    np.testing.assert_array_equal(bottom_right, grey_image(9))
    for shown in (top_right, bottom_left):
        np.testing.assert_array_equal(shown, voc_palette()[labels] / 255)
    assert [axis.get_title() for axis in figure.axes] == ["image", "mask", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["first", "", "second", ""]


def test_a_picture_grid_is_as_wide_as_the_text():
    for columns in (1, 3, 6):
        figure = figures.picture_grid([[grey_image()] * columns], ["title"] * columns)
        assert figure.get_figwidth() == figures.TEXT_WIDTH == 4.8


def test_cam_problems_shows_image_object_cam_and_agreement():
    image, cam = grey_image(), np.linspace(0, 1, 16).reshape(4, 4)
    truth = np.tri(4, dtype=bool)
    case = {"image": image, "truth": truth, "cam": cam, "predicted": cam > 0.5}
    figure = ch01_cams.cam_problems([case, case], ("imprecise", "sparse"))
    shown = pictures(figure)
    expected = [image, figures.overlay(image, truth.astype(float)), figures.overlay(image, cam)]
    expected.append(figures.agreement(image, cam > 0.5, truth))
    assert len(shown) == 8
    for ours, theirs in zip(shown, expected * 2, strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["hit", "spill", "missed"]


@pytest.mark.parametrize(
    ("levels", "side", "names", "fused"),
    [
        ((1, 2, 3, 6), 16, ["P1 (paper P2)", "P2 (paper P4)"], "P̂6 (paper P̂16)"),
        ((2, 4, 8, 16), 40, ["P2", "P4"], "P̂16"),
        ((2, 4, 8), 12, ["P2", "P4"], "P̂8"),  # bins as printed have no other name
    ],
)
def test_levels_are_named_by_their_bins_here_and_in_the_paper(levels, side, names, fused):
    pooling = gpp.PyramidPooling(num_classes=2, levels=levels)
    cam = torch.randn(1, 2, side, side, generator=torch.Generator().manual_seed(0))
    maps = ch02_gpp.pyramid_pictures(pooling, cam, 1)
    assert list(maps["levels"])[:2] == names
    assert list(maps["fused"])[-1] == fused


def test_gpp_pyramid_shows_signed_levels_fused_maps_and_scaled_detail():
    rng = np.random.default_rng(0)
    levels = {f"P{r}": rng.normal(size=(4, 4)) for r in (1, 2, 4)}
    fused = {f"G{i}": rng.normal(size=(4, 4)) for i in (1, 2)}
    mask, detail = np.eye(4, dtype=bool), rng.random((4, 4)) / 4
    figure = ch02_gpp.gpp_pyramid(grey_image(), mask, levels, fused, detail)
    *panels, bar = figure.axes
    scale = max(np.abs(signed).max() for signed in (levels | fused).values())
    assert bar.get_ylim() == pytest.approx((-scale, scale))
    shown = dict(zip([axis.get_title() for axis in panels], pictures(figure), strict=True))
    assert list(shown) == ["image", "P1", "P2", "P4", "object", "|P̂ − P|", "G1", "G2"]
    for name, signed in (levels | fused).items():
        np.testing.assert_allclose(shown[name], figures.signed_colours(signed, scale))
    np.testing.assert_array_equal(shown["object"], np.stack([mask] * 3, axis=-1))
    np.testing.assert_allclose(
        shown["|P̂ − P|"], plt.get_cmap("magma")(detail / detail.max())[..., :3]
    )


# --- tables ---------------------------------------------------------------------------------------


def study_table() -> pd.DataFrame:
    """Three rows, two repeats; differences to GAP: A +1 and +3, G +5 and +4."""
    values = {"GAP": (40.0, 42.0), "A": (41.0, 45.0), "G": (45.0, 46.0)}
    lines = [(label, n, values[label][n]) for n in (0, 1) for label in values]
    return pd.DataFrame(lines, columns=["label", "repeat", "miou"])


def bars(figure) -> list[dict[str, float]]:
    """Per panel: label -> width of its bar; both panels have the labels of the first."""
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert list(figure.axes[0].get_yticks()) == list(range(len(labels)))
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    return [
        {labels[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axis.patches}
        for axis in figure.axes
    ]


def whiskers(axis) -> list[tuple[float, float]]:
    """Ends of the error bars, the smaller first."""
    ends = [np.asarray(line.get_xdata(), float) for line in axis.lines]
    return sorted((x.min(), x.max()) for x in ends if np.isfinite(x).all() and np.ptp(x) > 0)


def test_ablation_bars_are_mean_paired_differences_with_their_sd_dots_and_values():
    figure = ch03_gates.ablation_bars(study_table(), {"GAP": 48.0, "A": 53.3, "G": 54.2})
    ours, theirs = figure.axes
    assert bars(figure) == [
        pytest.approx({"A": 2.0, "G": 4.5}),
        pytest.approx({"A": 5.3, "G": 6.2}),
    ]
    sd = [np.std([1, 3], ddof=1), np.std([5, 4], ddof=1)]
    np.testing.assert_allclose(whiskers(ours), [(2 - sd[0], 2 + sd[0]), (4.5 - sd[1], 4.5 + sd[1])])
    assert whiskers(theirs) == []
    dots = sorted(x for collection in ours.collections for x in collection.get_offsets()[:, 0])
    assert dots == pytest.approx([1, 3, 4, 5])
    assert {text.get_text(): text.get_position()[1] for text in ours.texts} == {
        "43.0": 0,
        "45.5": 1,
    }
    assert {text.get_text(): text.get_position()[1] for text in theirs.texts} == {
        "53.3": 0,
        "54.2": 1,
    }
    assert "GAP 41.0" in ours.get_title()
    assert "GAP 48.0" in theirs.get_title()


def test_ablation_bars_start_at_zero_and_lose_to_the_left():
    table = study_table()
    table.loc[table["label"] == "A", "miou"] -= 10
    figure = ch03_gates.ablation_bars(table, {"GAP": 48.0, "A": 53.3, "G": 54.2})
    assert bars(figure)[0] == pytest.approx({"A": -8.0, "G": 4.5})
    assert all(bar.get_x() == 0 for axis in figure.axes for bar in axis.patches)


def test_ablation_bars_leave_the_place_of_an_unpublished_row_empty():
    figure = ch03_gates.ablation_bars(study_table(), {"GAP": 48.0, "G": 54.2})
    ours, theirs = bars(figure)
    assert ours == pytest.approx({"A": 2.0, "G": 4.5})
    assert {
        label: width for label, width in theirs.items() if not np.isnan(width)
    } == pytest.approx({"G": 6.2})
    assert [text.get_position()[1] for text in figure.axes[1].texts] == [1]


def test_ablation_bars_of_one_repeat_have_no_spread():
    figure = ch03_gates.ablation_bars(
        study_table().query("repeat == 0"), {"GAP": 48.0, "A": 53.3, "G": 54.2}
    )
    assert bars(figure)[0] == pytest.approx({"A": 1.0, "G": 5.0})
    assert whiskers(figure.axes[0]) == []


def test_threshold_curves_are_means_over_repeats_with_their_marks():
    thresholds = np.array([0.1, 0.2, 0.3])
    rows = [
        {
            "label": label,
            "repeat": n,
            "threshold": t,
            "miou": 10 * i + n + t,
            "precision": t,
            "recall": 1 - t,
        }
        for i, label in enumerate(("GAP", "G"))
        for n in (0, 1)
        for t in thresholds
    ]
    marks = {"GAP": {"best": 0.3, "maskless": 0.1}, "G": {"best": 0.2, "maskless": 0.21}}
    figure = figures.threshold_curves(pd.DataFrame(rows), marks)
    miou, precision, recall = figure.axes
    curves = {line.get_label(): line for line in miou.lines if len(line.get_xdata()) > 1}
    np.testing.assert_allclose(curves["GAP"].get_xdata(), thresholds)
    np.testing.assert_allclose(curves["GAP"].get_ydata(), 0.5 + thresholds)
    np.testing.assert_allclose(curves["G"].get_ydata(), 10.5 + thresholds)
    np.testing.assert_allclose(precision.lines[0].get_ydata(), thresholds)
    np.testing.assert_allclose(recall.lines[0].get_ydata(), 1 - thresholds)
    dots = [line for line in miou.lines if np.size(line.get_xdata()) == 1]
    at = [np.ravel(dot.get_data()) for dot in dots]
    np.testing.assert_allclose(at, [(0.3, 0.8), (0.1, 0.6), (0.2, 10.7), (0.2, 10.7)])
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, True, False, True]
    assert [text.get_text() for text in recall.get_legend().get_texts()] == ["GAP", "G"]


def test_cam_fit_draws_the_cumulative_share_of_objects():
    spills, coverages = [0.1, 0.2, 0.3, 0.4, 0.0, 0.1], [0.5] * 4 + [0.9] * 2
    figure = figures.cam_fit(
        pd.DataFrame({"label": ["GAP"] * 4 + ["G"] * 2, "spill": spills, "coverage": coverages})
    )
    spill, coverage = figure.axes
    drawn = [(line.get_xdata()[1:].tolist(), line.get_ydata()[1:].tolist()) for line in spill.lines]
    assert ([0.1, 0.2, 0.3, 0.4], [0.25, 0.5, 0.75, 1.0]) in drawn
    assert ([0.0, 0.1], [0.5, 1.0]) in drawn
    assert {x for line in coverage.lines for x in line.get_xdata()[1:]} == {0.5, 0.9}
    assert {text.get_text() for text in spill.get_legend().get_texts()} == {"GAP", "G"}
    assert spill.get_xlim() == coverage.get_xlim()
    assert spill.get_xlim()[0] <= 0 < 1 <= spill.get_xlim()[1]


def test_cam_fit_leaves_out_objects_without_activation():
    fits = pd.DataFrame(
        {"label": ["GAP"] * 3, "spill": [np.nan, 0.2, 0.4], "coverage": [np.nan, 0.1, 0.3]}
    )
    (line,) = figures.cam_fit(fits).axes[0].lines
    assert line.get_xdata()[1:].tolist() == [0.2, 0.4]
    assert line.get_ydata()[1:].tolist() == [0.5, 1.0]


def test_gate_balance_draws_mean_gates_by_step_and_side():
    lines = [
        (step, sign, side, base + 0.1 * n)
        for n in (0, 1)
        for sign, offset in (("positive", 0.0), ("negative", 0.2))
        for step, start in (("1→2", 0.3), ("2→4", 0.4))
        for side, base in (("coarser", start + offset), ("finer", start + offset + 0.1))
    ]
    figure = ch03_gates.gate_balance(
        pd.DataFrame(lines, columns=["step", "sign", "side", "weight"])
    )
    for axis, sign, offset in zip(figure.axes, ("positive", "negative"), (0.0, 0.2), strict=True):
        assert axis.get_title() == f"{sign} evidence"
        drawn = [np.asarray(line.get_ydata(), float) for line in axis.lines]
        for mean in ([0.35, 0.45], [0.45, 0.55]):
            assert any(len(y) == 2 and np.allclose(y, np.array(mean) + offset) for y in drawn)
        assert [text.get_text() for text in axis.get_xticklabels()] == ["1→2", "2→4"]
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["coarser", "finer"]


def test_a_plot_for_a_notebook_has_few_colours_and_looks_as_it_was_drawn():
    figure, axis = plt.subplots()
    axis.plot([0, 1, 0], color="C1")
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi, bbox_inches="tight")
    before, after = (
        Image.open(BytesIO(content)) for content in (drawn.getvalue(), figures.flat_png(figure))
    )
    assert len(after.getcolors()) <= 64
    assert after.size == before.size
    off = np.abs(np.asarray(before.convert("RGB"), int) - np.asarray(after.convert("RGB"), int))
    assert off.max() < 64  # a shade of the antialiased edges at most
    line = (np.asarray(before.convert("RGB")) == (213, 94, 0)).all(axis=2)
    assert line.any()
    assert off[line].max() < 8


def test_photos_are_left_to_jpeg():
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    assert figures.flat_png(figures.picture_grid([[noise]], ["photo"])) is None
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert figures.flat_png(figures.picture_grid([[labels]], ["labels"]))
