"""Planes of numbers laid out in inches, so that none is too small to read, and their frames.

What the animations by output position have in common.
"""

from collections.abc import Callable
from typing import Any
from unicodedata import east_asian_width

import numpy as np

from gpuconv.arithmetic import SIZE, each_axis
from gpuconv.errors import ArgumentError
from gpuconv.shapes import ConvSpec, Ints, ints
from gpuconv.viz.style import INK, Animation, Array, Grid, number, panel
from gpuconv.words import padding, shape

FRAMES = 120  # of an animation; of more positions, as many are shown
MARGIN, GAP, TITLE, LINE = 0.3, 0.45, 0.5, 0.21  # inches; a title has two lines, LINE is text's
NUMBERED = 18  # rows or columns of a plane, up to which its numbers are written


def shown(size: Ints, frame: int | None, what: str = "output") -> list[int]:
    """The positions of `size` that are frames: all, or `FRAMES` evenly among them, or the one."""
    total = size[0] * size[1]
    if frame is None:
        return sorted({round(i) for i in np.linspace(0, total - 1, min(total, FRAMES)).tolist()})
    (chosen,) = ints("viz", "frame", frame, 1)
    if not 1 <= chosen <= total:
        raise ArgumentError(
            f"frame {frame} is not there: the {what} {shape(size)} has positions 1 to {total}"
        )
    return [chosen - 1]


def moving(
    figure: Any, show: Callable[[int], object], positions: list[int], frame: int | None
) -> Any:
    """The animation of a figure that `show` draws for an output position, or its one frame."""
    if frame is None:
        return Animation(figure, len(positions), lambda i: show(positions[i]))
    show(positions[0])
    return figure


def captions(spec: ConvSpec, positions: list[int]) -> list[str]:
    """The padding in words, the formula of the output's size with its numbers, what is left out."""
    lines, total = [], spec.y_shape[2] * spec.y_shape[3]
    if 1 < len(positions) < total:
        lines.append(f"{len(positions)} of the {total} positions are shown")
    if any(map(any, spec.padding)):
        values = "zeros" if spec.padding_mode == "zeros" else f"{spec.padding_mode} values"
        lines.append(f"hatched: {padding(spec.padding)} ({values})")
    lines.append(f"output = {SIZE}")
    axes = each_axis(spec)
    height, width = (axis.formula for axis in axes)
    if height == width:
        lines.append(f"height and width: {height}")
    else:
        lines += [f"height: {height}", f"width: {width}"]
    return lines + [said for axis in axes for said in axis.left_out]


def in_words(name: str, values: Array) -> str:
    """The range of values that a plane's colours stand for."""
    low, high = values.min(), values.max()
    colours = "purple below 0, orange above" if low < 0 else "the brighter, the larger"
    return f"{name} from {number(low)} to {number(high)}: {colours}"


def added(terms: Array) -> str:
    """Numbers as a sum: 3 + 0 - 2."""
    first, *others = [number(term) for term in terms]
    return first + "".join(f" - {t[1:]}" if t[0] == "-" else f" + {t}" for t in others)


def bracketed(value: float) -> str:
    """A number, in brackets if it is negative."""
    return f"({number(value)})" if value < 0 else number(value)


def text_width(lines: list[str], font: float) -> float:
    """Inches that are enough for the longest line, of a font of fixed width or not."""
    wide = (sum(1 + (east_asian_width(c) in "WF") for c in line) for line in lines)
    return max(wide) * 0.61 * font / 72


def cell_size(
    values: Array, size: Ints | None = None, most: float = 0.5, numbered: int = NUMBERED
) -> tuple[float, Any]:
    """(inches of a cell, at most `most` unless the numbers are longer; the font's size, or None).

    Of a plane of `size`, that of the values if None; of more rows or columns than `numbered`, the
    numbers are not written.
    """
    longest = max(size or values.shape)
    if longest > numbered:
        return 0.2, None
    texts = [number(value) for value in np.ravel(values)]
    width, edge = text_width(texts, 8), 0.14  # an outline fits around the numbers
    cell = max(width + edge, min(most, 4.2 / longest), 0.3)
    return cell, min(11.0, 8 * (cell - edge) / width)


class Plane:
    """Values (H, W) under a title of two lines, and the inches that they take.

    `size` is that of a cell and of the font, as of `cell_size`; `high` is a cell's height, if it is
    not square. Options are `Grid`'s.
    """

    def __init__(
        self,
        values: Array,
        title: str,
        size: tuple[float, Any] | None = None,
        high: float | None = None,
        **options: Any,
    ) -> None:
        cell, font = size or cell_size(values)
        self.values, self.title = values, title
        self.across, self.down = values.shape[1] * cell, values.shape[0] * (high or cell)
        self.width = max(self.across, text_width(title.split("\n"), 10))
        self.height = TITLE + self.down
        self.options = {"text": font is not None, "font": font} | options
        self.options.setdefault("signed", bool((values < 0).any()))

    def draw(self, figure: Any, left: float, top: float, width: float | None = None) -> Grid:
        """In the middle of so many inches."""
        left += ((width or self.width) - self.across) / 2
        axes = panel(figure, left, top + TITLE, self.across, self.down)
        grid = Grid(axes, self.values, self.title, **self.options)
        axes.set_aspect("auto")
        return grid


def say(figure: Any, left: float, top: float, text: str, font: float = 9, **options: Any) -> Any:
    """Text at so many inches from the left and upper edge."""
    width, height = figure.get_size_inches()
    options = {"va": "top", "color": INK, "linespacing": LINE * 72 / font / 1.2} | options
    return figure.text(left / width, 1 - top / height, text, fontsize=font, **options)
