"""What tests of pictures look at: the numbers on a panel, and whether words can be read."""

from itertools import combinations
from typing import Any

import numpy as np


def numbers_on(axes: Any) -> np.ndarray:
    """The numbers that a `Grid` has in its cells, (H, W), NaN where there is none."""
    rows, columns = axes.images[0].get_array().shape
    found = np.full((rows, columns), np.nan)
    for text in axes.texts:
        x, y = text.get_position()
        if text.get_text() and "×" not in text.get_text():
            found[round(y - 0.01), round(x)] = float(text.get_text())
    return found


def check_legible(figure: Any) -> None:
    """No text below 8 points, off the figure, wider than its cell, or over another text."""
    figure.canvas.draw()
    boxes = []
    for axes in figure.axes:
        cell = axes.bbox.width / axes.images[0].get_array().shape[1]
        for text in axes.texts:
            if text.get_text():
                boxes.append((text, text.get_window_extent()))
                assert boxes[-1][1].width < cell, text
        boxes.append((axes.title, axes.title.get_window_extent()))
        boxes += [(axes, axes.bbox)]
    boxes += [(text, text.get_window_extent()) for text in figure.texts if text.get_text()]
    width, height = figure.bbox.size
    for thing, box in boxes:
        assert getattr(thing, "get_fontsize", lambda: 8)() >= 7.99, thing
        assert box.x0 >= 0 <= box.y0, thing
        assert box.x1 <= width, thing
        assert box.y1 <= height, thing
    for (one, a), (other, b) in combinations(boxes, 2):
        inside = getattr(one, "axes", None) is other or getattr(other, "axes", None) is one
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert inside or apart, (one, other)
