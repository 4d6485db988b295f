"""The notebooks' controls: every move redraws; pictures and words follow from 2x2 maps by hand."""

from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from aeft_lib.lab import figures, widgets
from aeft_lib.lab.canvas import Canvas
from aeft_lib.paper import erasing, gpp
from aeft_lib.paper.classifier import CamOutput
from aeft_lib.paper.triplet import CORRECTED

IMAGE = np.full((2, 2, 3), 51, np.uint8)
# Class 1 is shown: its max_norm is 1, 1/4, 0, 0; class 0 has another.
CAM = torch.tensor([[[[-1.0, 2.0], [3.0, 0.0]], [[4.0, 1.0], [-2.0, 0.0]]]])
OUTPUT = CamOutput(CAM, torch.zeros(1, 2), CAM)
TRIPLET_TITLES = ("anchor", "$A_{fg}$", "mask $m$", "positive", "residual region")


@pytest.fixture
def pooling() -> gpp.PyramidPooling:
    torch.manual_seed(0)
    return gpp.PyramidPooling(num_classes=2, levels=(1, 2))


@pytest.fixture
def drawn(monkeypatch) -> list[dict[str, np.ndarray]]:
    """Title -> picture of everything that is drawn from now on."""
    grids, draw = [], Canvas.drawn

    def kept(self, view):
        grids.append(dict(zip(view.titles, view.pictures, strict=True)))
        return draw(self, view)

    monkeypatch.setattr(Canvas, "drawn", kept)
    return grids


def parts(box) -> tuple[dict, object, object]:
    """The controls by name, the picture and the line of text of a widget."""
    *controls, picture, text = box.children
    assert Image.open(BytesIO(picture.value)).format.lower() == picture.format
    assert picture.tooltip.endswith(f": {text.value}")
    return {control.description: control for control in controls}, picture, text


def size(picture) -> tuple[int, int]:
    """Width and height of a widget's picture."""
    return Image.open(BytesIO(picture.value)).size


def triplet(pooling, start=CORRECTED):
    return parts(widgets.triplet(IMAGE, OUTPUT, pooling, 1, start))


# --- triplet --------------------------------------------------------------------------------------


def test_triplet_has_three_controls_that_begin_at_the_settings(pooling):
    controls, _, _ = triplet(pooling)
    assert list(controls) == ["t_H", "t_L", "attention"]
    assert (controls["t_H"].value, controls["t_L"].value) == (0.6, 0.2)
    assert controls["attention"].options == ("level 1", "level 2", "average", "gated, step 1")
    assert controls["attention"].value == "gated, step 1"


def test_triplet_says_the_embeddings_of_the_chosen_attention(pooling):
    controls, _, text = triplet(pooling)
    controls[
        "attention"
    ].value = "level 2"  # the CAM itself: e_A = (4 + 1) / 4, a = (-2/4 + 0) / 2 over its lower row
    assert text.value == "e_A = 1.250 (attract); a = -0.250 (repel)"
    controls["t_L"].value = 0.3  # the cell of 1/4 joins: (1/4 - 2/4 + 0) / 3
    assert text.value == "e_A = 1.250 (attract); a = -0.083 (repel)"
    controls["attention"].value = "level 1"  # 3/4 everywhere, so 1 everywhere on its own scale
    assert text.value == "e_A = 0.750 (attract); a = 1.000 (repel)"
    controls[
        "attention"
    ].value = "average"  # 19/8, 7/8, -5/8, 3/8: e_A = 29/32, a = (7 - 5 + 3) / 19 / 3
    assert text.value == "e_A = 0.906 (attract); a = 0.088 (repel)"


def test_triplet_begins_with_what_the_layer_attends(pooling):
    attention = pooling(CAM).attention
    e_a = erasing.embeddings(attention, torch.tensor([[0, 1]]))[0, 1].item()
    assert triplet(pooling)[2].value.startswith(f"e_A = {e_a:.3f} ")


def test_triplet_draws_foreground_mask_positive_and_residual_region(pooling, drawn):
    controls, _, _ = triplet(pooling)
    controls["attention"].value = "level 2"
    shown = drawn[-1]
    assert list(shown) == [*TRIPLET_TITLES, "level 2"]
    np.testing.assert_array_equal(shown["anchor"], IMAGE)
    maps = {
        "$A_{fg}$": [[1, 0.25], [0, 0]],
        "mask $m$": [[0, 0.25], [0, 0]],
        "residual region": [[0, 0], [1, 1]],
    }
    for title, values in maps.items():
        np.testing.assert_allclose(
            shown[title], figures.overlay(IMAGE, np.array(values, float)), atol=0.01
        )
    np.testing.assert_allclose(
        shown["positive"], np.repeat([[[0.0], [0.05]], [[0.0], [0.0]]], 3, axis=2), atol=1e-4
    )
    maps = widgets._attentions(pooling, CAM).values()
    scale = figures.signed_scale(m[0, 1].numpy() for m in maps)
    np.testing.assert_allclose(shown["level 2"], figures.signed_colours(CAM[0, 1].numpy(), scale))


class Classifier:
    """Its CAM is twice the sum of the channels, for both classes; grey 51 is its mean colour."""

    class backbone:
        @staticmethod
        def normalise(images):
            return (images.float() - 51) / 100

    def __call__(self, images):
        cam = 2 * images.sum(dim=1, keepdim=True).expand(-1, 2, -1, -1)
        return CamOutput(cam, cam.mean(dim=(2, 3)), cam)


def test_with_its_network_the_triplet_shows_the_positives_embedding_and_mean_colour(drawn):
    image = np.full((2, 2, 3), 151, np.uint8)  # normalised: 1 everywhere
    pooling = gpp.PyramidPooling(num_classes=2, levels=(1, 2))
    widget = widgets.triplet(image, OUTPUT, pooling, 1, CORRECTED, Classifier())
    controls, _, text = parts(widget)
    controls["attention"].value = "level 2"  # the CAM itself
    # The mask keeps a quarter of one pixel: its CAM is 3/2, the others' 0.
    told = "e_A = 1.250, e_P = 0.375, |e_P - e_A| = 0.875 (attract); a = -0.250 (repel)"
    assert text.value == told
    expected = np.full((2, 2, 3), 51 / 255)
    expected[0, 1] += 25 / 255
    np.testing.assert_allclose(drawn[-1]["positive"], expected, atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("t_H", 0.2), ("t_L", 0.3), ("attention", "level 2")])
def test_every_move_of_the_triplet_redraws(pooling, name, value):
    controls, picture, _ = triplet(pooling, replace(CORRECTED, residual_threshold=0.1))
    before = picture.value
    controls[name].value = value
    assert picture.value != before
    assert plt.get_fignums() == []


@pytest.mark.parametrize(("name", "value"), [("t_L", 0.6), ("t_L", 0.9), ("t_H", 0.1)])
def test_a_lower_threshold_that_is_not_lower_is_a_message(pooling, drawn, name, value):
    controls, picture, text = triplet(pooling)
    shown, before = text.value, size(picture)
    start, controls[name].value = controls[name].value, value
    assert text.value == "t_L must lie below t_H: move t_L down or t_H up"
    assert list(drawn[-1]) == [*TRIPLET_TITLES, "gated, step 1"]
    assert size(picture) == before  # the page below stays where it is
    controls[name].value = start
    assert text.value == shown


# --- threshold and pyramid ------------------------------------------------------------------------


def test_threshold_says_precision_and_recall_and_redraws(drawn):
    case = {
        "image": IMAGE,
        "truth": np.array([[True, True], [False, False]]),
        "cam": np.array([[0.9, 0.1], [0.5, 0.0]]),
    }
    controls, picture, text = parts(widgets.threshold(case))
    before = picture.value
    assert text.value == "precision 50 %, recall 50 %"  # 0.9 is a hit, 0.5 spills
    np.testing.assert_allclose(
        drawn[-1]["t = 0.30"], figures.agreement(IMAGE, case["cam"] > 0.3, case["truth"])
    )
    controls["t"].value = 0.5
    assert text.value == "precision 100 %, recall 50 %"
    assert picture.value != before
    controls["t"].value = 0.95
    assert text.value == "precision 0 %, recall 0 %"


def test_pyramid_says_the_logit_of_the_chosen_attention_and_redraws(pooling, drawn):
    controls, picture, text = parts(widgets.pyramid(IMAGE, CAM, pooling, 1))
    before = picture.value
    assert text.value == f"logit {pooling(CAM).logits[0, 1].item():.2f}"
    controls["attention"].value = "level 2"
    assert text.value == "logit 3.25"  # (16 + 1 - 4) / 4
    assert picture.value != before
    maps = (CAM, *widgets._attentions(pooling, CAM).values())
    scale = figures.signed_scale(m[0, 1].numpy() for m in maps)
    expected = figures.signed_colours(CAM[0, 1].numpy(), scale)
    np.testing.assert_allclose(drawn[-1]["level 2"], expected)
    controls["attention"].value = "level 1"
    assert text.value == "logit 0.94"  # 3/4 (4 + 1) / 4


@pytest.mark.parametrize(
    ("fusion", "levels"),
    [("gated", (1, 2)), ("inverse", (1, 2)), ("average", (1, 2)), ("single", (2,))],
)
def test_the_last_attention_is_the_layers_own(fusion, levels):
    layer = gpp.PyramidPooling(num_classes=2, levels=levels, fusion=fusion)
    *_, last = widgets._attentions(layer, CAM).values()
    torch.testing.assert_close(last, layer(CAM).attention, check_stride=False)
    assert not last.requires_grad


# --- all ------------------------------------------------------------------------------------------


def test_without_a_kernel_a_notebook_shows_words_and_no_dump_of_controls(pooling):
    boxes = (
        widgets.pyramid(IMAGE, CAM, pooling, 1),
        widgets.affinity(SimpleNamespace(affinity=None), (0, 0)),
    )
    for box in boxes:
        shown = box._repr_mimebundle_()["text/plain"]
        assert "running kernel" in shown
        assert not shown.endswith("…")


def test_controls_are_wide_enough_for_single_steps_and_fit_into_a_narrow_page(pooling):
    case = {"image": IMAGE, "truth": np.ones((2, 2), bool), "cam": np.zeros((2, 2))}
    slider, *_ = widgets.threshold(case).children
    assert int(slider.layout.width.removesuffix("px")) >= 4 * (slider.max - slider.min) / 0.01
    assert slider.layout.max_width == "100%"
