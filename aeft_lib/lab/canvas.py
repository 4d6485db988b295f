"""Pictures of a widget: one figure whose artists are updated, and the pixel under a click.

Axes, titles and their layout are made once; a redraw exchanges the arrays and the words of the
titles.  A redraw is sent as a JPEG: a PNG has three times the bytes and takes ten times as long to
compress, nearly as long as the drawing.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from aeft_lib.lab import figures

Decorate = Callable[[Figure], None]


class View(NamedTuple):
    """What a widget shows for the values of its controls.

    pictures: (H, W, 3) each, uint8 or 0..1, in one row up to four, else in two.
    titles: one a picture.  text: the line below.
    """

    pictures: Sequence[np.ndarray]
    titles: Sequence[str]
    text: str


def figure_of(view: View, decorate: Decorate | None = None) -> Figure:
    """A figure of its own; pyplot forgets it, or a notebook would show it below the cell.

    decorate: adds what it has besides, such as a colour bar.
    """
    count = len(view.pictures)
    columns = count if count <= 4 else (count + 1) // 2
    rows = [view.pictures[at : at + columns] for at in range(0, count, columns)]
    figure = figures.picture_grid(rows, view.titles[:columns])
    figure.set_figheight(figure.get_figheight() + 0.2 * (len(rows) - 1))
    for axis in figure.axes[count:]:
        axis.set_axis_off()
    for axis, title in zip(figure.axes, view.titles, strict=False):
        axis.set_title(title, fontsize=6)
    if decorate:
        decorate(figure)
    plt.close(figure)
    return figure


class Canvas:
    """Pictures under their titles, redrawn in place while their number and sizes stay.

    decorate: see `figure_of`.
    """

    def __init__(self, decorate: Decorate | None = None) -> None:
        self.decorate = decorate
        self.figure: Figure | None = None
        self.shapes: list[tuple[int, ...]] = []

    def drawn(self, view: View) -> bytes:
        """The view as a JPEG."""
        shapes = [np.shape(picture) for picture in view.pictures]
        if self.figure is None or shapes != self.shapes:
            self.figure, self.shapes = figure_of(view, self.decorate), shapes
            self.figure.set_dpi(plt.rcParams["savefig.dpi"])
            return self._jpeg(FigureCanvasAgg(self.figure))
        self.figure.set_layout_engine("none")  # keep the layout of the first drawing
        for axis, picture, title in zip(self.figure.axes, view.pictures, view.titles, strict=False):
            axis.images[0].set_data(picture)
            axis.set_title(title, fontsize=6)
        return self._jpeg(self.figure.canvas)

    def pixel(self, x: float, y: float) -> tuple[int, int, int] | None:
        """The picture and its pixel, (place, row, column), at a point of the drawn file.

        x, y: in 0..1 of its width and height, from the upper left corner.
        None beside all pictures, and before anything is drawn.
        """
        if self.figure is None:
            return None
        at = self.figure.transFigure.transform((x, 1 - y))
        for place, (height, width, *_) in enumerate(self.shapes):
            column, row = self.figure.axes[place].transData.inverted().transform(at)
            row, column = round(row), round(column)  # pixel n is drawn from n - 1/2 to n + 1/2
            if 0 <= row < height and 0 <= column < width:
                return place, row, column
        return None

    @staticmethod
    def _jpeg(canvas: FigureCanvasAgg) -> bytes:
        canvas.draw()
        content, picture = BytesIO(), Image.fromarray(np.asarray(canvas.buffer_rgba()))
        picture.convert("RGB").save(content, "jpeg", quality=95, subsampling=0)
        return content.getvalue()
