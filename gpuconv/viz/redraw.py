"""The frames of a figure, in each of which only what moves is drawn again: several times faster.

It is the way of matplotlib's "blitting", with what moves found by itself.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpuconv.viz.canvas import as_written

Array = Any


def frames(figure: Any, count: int, show: Callable[[int], object]) -> Iterator[Array]:
    """Pixels (height, width, 3), bytes, of the figure as `show(0)`, ... `show(count - 1)` leave it.

    The figure is laid out for the first and its panels stay. `show` may change, add and remove
    what is in them, but no panel nor its limits.
    """
    canvas = figure.canvas
    show(0)
    canvas.draw()
    figure.set_layout_engine("none")
    yield _pixels(canvas)
    known = {part for parts in _parts(figure) for part in parts}
    moving: set[Any] = set()
    for i in range(1, count):
        show(i)
        moving |= {p for parts in _parts(figure) for p in parts if p.stale or p not in known}

    def above() -> list[Any]:
        """What moves, and what lies on top of it."""
        found = []
        for parts in _parts(figure):
            places = [k for k, part in enumerate(parts) if part in moving or part not in known]
            found += parts[min(places, default=len(parts)) :]
        return found

    hidden = above()
    for part in hidden:
        part.set_animated(True)  # which leaves it out
    canvas.draw()
    for part in hidden:
        part.set_animated(False)
    ground = canvas.copy_from_bbox(figure.bbox)
    for i in range(1, count):
        show(i)
        canvas.restore_region(ground)
        shown = above()
        as_written(shown)
        for part in shown:
            part.draw(canvas.get_renderer())
        yield _pixels(canvas)


def _parts(figure: Any) -> Iterator[list[Any]]:
    """What each of the panels and then the figure itself consist of, the lowest first."""
    panels = figure.axes
    for owner in (*panels, figure):
        parts = [p for p in owner.get_children() if p not in panels and p is not owner.patch]
        yield sorted(parts, key=lambda part: part.get_zorder())


def _pixels(canvas: Any) -> Array:
    return np.array(canvas.buffer_rgba())[..., :3]
