"""Clicks in a widget's picture, and its redraw in place: both against decoded pixels of the file."""

from io import BytesIO
from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")

import ipyevents
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from aeft_lib.lab import canvas, figures, widgets
from aeft_lib.lab.canvas import Canvas, View
from aeft_lib.refinement.affinity import SparseAffinity

TITLES = ("one", "another")


def decoded(content: bytes) -> np.ndarray:
    """A picture as (H, W, 3) uint8."""
    return np.asarray(Image.open(BytesIO(content)))


def painted(place: int) -> np.ndarray:
    """A 3 x 5 picture whose every pixel has a colour of its own: (80 place, 50 row, 40 column)."""
    rows, columns = np.mgrid[:3, :5]
    return np.stack([np.full((3, 5), 80 * place), 50 * rows, 40 * columns], axis=2).astype(np.uint8)


@pytest.fixture
def events(monkeypatch) -> list[ipyevents.Event]:
    """The listeners of every widget that is made from now on."""
    made, event = [], ipyevents.Event

    def kept(**options):
        made.append(event(**options))
        return made[-1]

    monkeypatch.setattr(ipyevents, "Event", kept)
    return made


@pytest.fixture
def canvases(monkeypatch) -> list[Canvas]:
    """The canvas of every widget that is made from now on, with all its ``views``."""
    made = []

    class Recorded(Canvas):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.views = []
            made.append(self)

        def drawn(self, view):
            self.views.append(view)
            return super().drawn(view)

    monkeypatch.setattr(widgets, "Canvas", Recorded)
    return made


def click(event, drawing: Canvas, place: int, row: float, column: float, zoom: float = 0.5) -> None:
    """What the browser sends for a click at a picture's pixel, the file shown at `zoom`."""
    axis, (width, height) = drawing.figure.axes[place], drawing.figure.canvas.get_width_height()
    x, y = axis.transData.transform((column, row))
    message = {"event": "click", "relativeX": int(x * zoom), "relativeY": int((height - y) * zoom)}
    sides = {"boundingRectWidth": width * zoom, "boundingRectHeight": height * zoom}
    event._handle_mouse_msg(event, message | sides, [])


# --- the canvas -----------------------------------------------------------------------------------


def test_the_pixel_under_a_point_has_the_colour_of_the_file_there():
    pictures = [painted(1), painted(2)]
    drawing = Canvas()
    file = decoded(drawing.drawn(View(pictures, TITLES, "")))
    height, width, _ = file.shape
    seen = set()
    for y in range(2, height - 2, 13):
        for x in range(2, width - 2, 13):
            corners = ((x + dx, y + dy) for dx in (-0.5, 1.5) for dy in (-0.5, 1.5))
            near = {drawing.pixel(right / width, down / height) for right, down in corners}
            if len(near) > 1 or None in near:  # at an edge, or outside
                continue
            ((place, row, column),) = near
            off = np.abs(file[y, x].astype(int) - pictures[place][row, column])
            assert off.max() < 20  # a JPEG; no two pixels' colours are nearer than 40
            seen |= near
    assert seen == {(p, r, c) for p in range(2) for r in range(3) for c in range(5)}


@pytest.mark.parametrize("at", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.01), (-1.0, 0.5), (2.0, 0.5)])
def test_beside_the_pictures_there_is_no_pixel(at):
    drawing = Canvas()
    assert drawing.pixel(0.25, 0.5) is None  # nothing is drawn yet
    drawing.drawn(View([painted(1), painted(2)], TITLES, ""))
    assert drawing.pixel(*at) is None
    assert drawing.pixel(0.25, 0.5) is not None


def test_a_redraw_has_the_pixels_of_a_new_figure_and_makes_none(monkeypatch):
    views = [View([painted(1), painted(n)], ("one", f"n = {n}"), "") for n in (2, 3)]
    expected = [decoded(Canvas().drawn(view)) for view in views]
    made, figure_of = [], canvas.figure_of
    monkeypatch.setattr(canvas, "figure_of", lambda *args: made.append(args) or figure_of(*args))
    drawing = Canvas()
    for shown in (0, 1, 0):
        np.testing.assert_array_equal(decoded(drawing.drawn(views[shown])), expected[shown])
    assert len(made) == 1
    assert (expected[0] != expected[1]).any()
    assert plt.get_fignums() == []


def test_six_pictures_stand_in_two_rows_under_titles_of_their_own():
    drawing = Canvas()
    titles = [f"picture {n}" for n in range(6)]
    pictures = [painted(n) for n in range(6)]
    drawing.drawn(View(pictures, titles, ""))
    axes = drawing.figure.axes
    assert [axis.get_title() for axis in axes] == titles
    corners = [axis.get_position().bounds[:2] for axis in axes]
    assert [round(x, 6) for x, _ in corners[:3]] == [round(x, 6) for x, _ in corners[3:]]
    assert all(
        above > below for (_, above), (_, below) in zip(corners[:3], corners[3:], strict=True)
    )
    for place, axis in enumerate(axes):
        at = axis.transAxes.transform((0.5, 0.5)) / drawing.figure.bbox.size
        assert drawing.pixel(at[0], 1 - at[1]) == (place, 1, 2)


def test_another_number_of_pictures_gets_a_figure_with_its_decoration():
    bars = []
    drawing = Canvas(lambda figure: bars.append(figures.signed_bar(figure, 1.0)))
    two, single = View([painted(1), painted(2)], TITLES, ""), View([painted(1)], ["one"], "")
    first = decoded(drawing.drawn(two))
    assert len(drawing.figure.axes) == 3  # the bar's too
    drawing.drawn(single)
    assert len(drawing.figure.axes) == 2
    np.testing.assert_array_equal(decoded(drawing.drawn(two)), first)
    assert len(bars) == 3


# --- the threshold at the clicked value -----------------------------------------------------------

CASE = {
    "image": np.full((2, 3, 3), 51, np.uint8),
    "truth": np.array([[True, True, False], [False, False, False]]),
    "cam": np.array([[1.0, 0.437, 0.25], [0.62, 0.0, 0.004]]),
}


@pytest.mark.parametrize(
    ("row", "column", "t"), [(0, 1, 0.43), (0, 2, 0.24), (1, 0, 0.61), (0, 0, 0.95), (1, 1, 0.0)]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_click_moves_the_threshold_just_below_the_cams_value(
    events, canvases, place, row, column, t
):
    slider, _, text = widgets.threshold(CASE, start=0.5).children
    click(events[0], canvases[0], place, row, column)
    assert slider.value == pytest.approx(t, abs=1e-9)
    assert canvases[0].views[-1].titles[2] == f"t = {t:.2f}"
    hit = CASE["cam"] > slider.value
    right = (hit & CASE["truth"]).sum()
    precision, recall = 100 * right / max(hit.sum(), 1), 100 * right / 2
    assert text.value == f"precision {precision:.0f} %, recall {recall:.0f} %"
    if CASE["cam"][row, column]:
        assert hit[row, column]


@pytest.mark.parametrize("value", [0.29, np.float32(0.57), 0.07, 0.94])
def test_the_clicked_pixel_stays_in_the_region_at_values_that_are_hundredths(
    events, canvases, value
):
    case = CASE | {"cam": np.full((2, 3), value)}
    slider, *_ = widgets.threshold(case).children
    click(events[0], canvases[0], 1, 0, 0)
    assert value - 0.011 < slider.value < value


def test_a_click_beside_the_pictures_changes_nothing(events, canvases):
    slider, picture, _ = widgets.threshold(CASE, start=0.5).children
    before = picture.value
    click(events[0], canvases[0], 1, -1.5, 1)  # above, in the title
    assert (slider.value, picture.value, len(canvases[0].views)) == (0.5, before, 1)


def test_clicks_are_watched_in_the_widgets_own_picture(events):
    picture = widgets.threshold(CASE).children[-2]
    (event,) = events
    assert event.source is picture
    assert event.watched_events == ["click"]


# --- the affinity of the clicked pixel ------------------------------------------------------------


@pytest.fixture
def case() -> SimpleNamespace:
    """A 2 x 3 grid under a picture of 8 x 12; only the two cells of the last column are linked."""
    linked = torch.tensor([2]), torch.tensor([5]), torch.tensor([1.0])
    image = np.full((8, 12, 3), 100, np.uint8)
    return SimpleNamespace(
        affinity=SparseAffinity(*linked, (2, 3)), scene=SimpleNamespace(image=image)
    )


def test_a_click_picks_the_cell_under_it_and_draws_once(events, canvases, case):
    row, column, steps, _, text = widgets.affinity(case, (0, 0)).children
    assert text.value == "1 of 6 cells hold more than a tenth of the strongest"
    click(events[0], canvases[0], 3, 7, 9, zoom=1.0)
    assert (row.value, column.value, steps.value) == (1, 2, 16)
    assert text.value == "2 of 6 cells hold more than a tenth of the strongest"
    assert len(canvases[0].views) == 2
    cell = np.zeros((2, 3))
    cell[1, 2] = 1
    image = case.scene.image
    expected = figures.overlay(image, figures.stretched(cell, image))
    np.testing.assert_allclose(canvases[0].views[-1].pictures[1], expected)


def test_every_pixel_of_a_picture_picks_its_cell(events, canvases, case):
    row, column, *_ = widgets.affinity(case, (0, 0)).children
    for y, x in ((0, 0), (3, 3), (3, 4), (4, 7), (4, 8), (7, 11), (0, 11)):
        click(events[0], canvases[0], 0, y, x, zoom=1.0)
        assert (row.value, column.value) == (y // 4, x // 4)


def test_after_a_click_the_sliders_still_redraw(events, canvases, case):
    row, *_ = widgets.affinity(case, (0, 0)).children
    click(events[0], canvases[0], 0, 7, 11, zoom=1.0)
    row.value = 0
    assert len(canvases[0].views) == 3


def test_a_case_without_affinity_listens_to_nothing(events):
    widgets.affinity(SimpleNamespace(affinity=None), (0, 0))
    assert events == []
