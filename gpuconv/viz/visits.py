"""How often a convolution uses each pixel of its input: `gpuconv.viz.coverage`.

A pixel is used once by every window that it lies in, so the count is a gradient: that of the sum of
the output by the input, where every weight is 1. Pixels that no window meets have a count of 0.
"""

from dataclasses import dataclass
from math import prod
from textwrap import fill
from typing import Any

import numpy as np

from gpuconv.backends import backend
from gpuconv.errors import ArgumentError
from gpuconv.ops import conv2d_grad_input
from gpuconv.shapes import ConvSpec, IntOrInts, Padding, ints
from gpuconv.words import lines, settings

PIXELS, SUMS = 1 << 24, 1 << 28  # at most: some seconds
SIDES = "top", "left", "right", "bottom"
CORNERS = "top left", "top right", "bottom left", "bottom right"


@dataclass(frozen=True, eq=False)
class Visits:
    """How many windows of `spec` use each pixel: `counts` (H, W), integers."""

    spec: ConvSpec
    counts: np.ndarray

    @property
    def corners(self) -> tuple[int, ...]:
        """At the top left, top right, bottom left and bottom right."""
        return tuple(int(n) for n in self.counts[np.ix_([0, -1], [0, -1])].flat)

    @property
    def edges(self) -> tuple[int, ...]:
        """In the middle of the top, left, right and bottom edge."""
        i, j = self.middle
        return tuple(int(self.counts[at]) for at in ((0, j), (i, 0), (i, -1), (-1, j)))

    @property
    def middle(self) -> tuple[int, int]:
        """The centre pixel; of an even number of rows the one below the centre."""
        height, width = self.counts.shape
        return height // 2, width // 2

    @property
    def centre(self) -> int:
        return int(self.counts[self.middle])

    @property
    def unused(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The rows and the columns that no window meets."""
        rows, columns = (~self.counts.any(axis=axis) for axis in (1, 0))
        return tuple(np.flatnonzero(rows).tolist()), tuple(np.flatnonzero(columns).tolist())

    @property
    def warning(self) -> str:
        """One line for rows and columns that are never used; empty if there are none."""
        words = lines(self.unused)
        if not words:
            return ""
        return f"never used: {words} (counted from 0); change stride, kernel or padding"


def visits(
    image: IntOrInts,
    kernel: IntOrInts,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
) -> Visits:
    """Count the windows that use each pixel of an `image` (height, width), one channel.

    Arguments as in `gpuconv.conv2d`. Raises ArgumentError for what it would not compute, and for
    more than `PIXELS` pixels or `SUMS` uses of one.
    """
    size = ints("coverage", "image", image, 2, least=1)
    spec = ConvSpec.infer(
        (1, 1, *size), (1, 1, *ints("coverage", "kernel", kernel, 2, least=1)),
        stride, padding, dilation,
    )  # fmt: skip
    if prod(spec.padded) > PIXELS or spec.macs > SUMS:
        raise ArgumentError(
            f"coverage: {size[0]} x {size[1]} pixels used {spec.macs:,} times are too many "
            f"(at most {PIXELS:,} pixels and {SUMS:,} uses); a smaller image shows the same"
        )
    # Array code: it has nothing to compile, and sums of ones are the same whoever computes them.
    with backend("numpy"):
        counts = conv2d_grad_input(
            np.ones(spec.y_shape), np.ones(spec.w_shape), spec.x_shape,
            spec.stride, spec.padding, spec.dilation,
        )  # fmt: skip
    return Visits(spec, np.rint(counts[0, 0]).astype(np.int64))


def figures(seen: Visits) -> list[str]:
    """The counts of corner, edge and centre in words, place by place where they differ."""
    if len(set(seen.corners)) == len(set(seen.edges)) == 1:
        return [f"corner {seen.corners[0]}, edge {seen.edges[0]}, centre {seen.centre}"]
    corners, edges = (
        ", ".join(f"{place} {n}" for place, n in zip(places, counts, strict=True))
        for places, counts in ((CORNERS, seen.corners), (SIDES, seen.edges))
    )
    return [f"corners: {corners}", f"edges: {edges}; centre {seen.centre}"]


def coverage(
    image: IntOrInts,
    kernel: IntOrInts,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
) -> Any:
    """Draw how often each pixel of an `image` (height, width) is used; a matplotlib Figure.

    Arguments and errors as in `visits`, which has the numbers. Pixels that are never used are
    hatched, and a line warns of them.
    """
    return draw(visits(image, kernel, stride, padding, dilation))


def draw(seen: Visits) -> Any:
    """The heat map of such counts."""
    from gpuconv.viz import style

    counts, spec = seen.counts, seen.spec
    rows, columns = counts.shape
    small = max(rows, columns) <= 40
    digits = len(str(counts.max()))
    cell = max(0.26, 0.08 * digits + 0.1, 3.2 / max(rows, columns)) if small else 0
    width, height = (columns * cell, rows * cell) if small else _fitted(rows, columns, 7)
    said = [
        settings(spec),
        f"{style.shape(spec.y_shape[2:])} = {prod(spec.y_shape[2:])} windows; a pixel is used "
        f"{style.number(float(counts.mean()))} times on average, {counts.max()} at most",
        *figures(seen),
    ]
    if small:
        said.append("outlined: corner solid, edge dashed, centre dotted")
    else:
        said += ["pale: never used"] * bool(seen.warning)
    inches = max(width + 1.6, 6.4)
    figure = style.new_figure(inches, height + 1.5 + 0.2 * len(said))
    axes = figure.subplots()
    font = min(11.0, 35 * cell, 90 * cell / (digits + 0.5)) if small else None
    grid = style.Grid(
        axes, counts if small else np.where(counts, counts, np.nan),
        f"input {style.shape(counts.shape)}: how often each pixel is used",
        limits=(0, int(counts.max())), text=small, font=font,
        padding=counts == 0 if small else None,
    )  # fmt: skip
    if small:
        i, j = seen.middle
        grid.mark("corner", [(0, 0)], style.NEGATIVE)
        grid.mark("edge", [(0, j)], style.NEGATIVE, "--")
        grid.mark("centre", [(i, j)], style.NEGATIVE, ":")
    bar = figure.colorbar(grid.image, ax=axes, shrink=0.8)
    bar.set_label("windows that use the pixel", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("\n".join(said), fontsize=9)
    if seen.warning:
        figure.suptitle(
            fill(f"WARNING, {seen.warning}", int(11 * inches)),
            fontsize=10, color=style.NEGATIVE, weight="bold",
        )  # fmt: skip
    return figure


def _fitted(rows: int, columns: int, side: float) -> tuple[float, float]:
    """Width and height in inches, the longer one `side` and none too thin."""
    longest = max(rows, columns)
    return max(side * columns / longest, 1.0), max(side * rows / longest, 1.0)
