"""A convolution of several channels: a partial map from each, added to one feature map a filter.

The partial maps are the library's grouped convolution, in which every channel is a group.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpuconv import words
from gpuconv.backends import backend
from gpuconv.errors import ArgumentError
from gpuconv.files import StrPath
from gpuconv.ops import conv2d
from gpuconv.shapes import ConvSpec, IntOrInts, Ints, Padding, ints
from gpuconv.viz import presets
from gpuconv.viz.canvas import plain
from gpuconv.viz.convolution import windows
from gpuconv.viz.sheet import (
    GAP,
    LINE,
    MARGIN,
    TITLE,
    Plane,
    added,
    bracketed,
    captions,
    cell_size,
    in_words,
    moving,
    say,
    shown,
    text_width,
)
from gpuconv.viz.style import STRONG, Array, Grid, equals, new_figure, number, shape

MOST = 64  # channels, and filters
DRAWN = 4  # of each; of more, three are
LARGEST, NUMBERED = 20, 12  # rows and columns of a plane, and of one with numbers


@dataclass(frozen=True)
class ChannelSums:
    """A convolution taken apart by channel, in float64.

    `image` (C, H, W), `kernels` (K, C, R, S), `bias` (K,). `partial` (K, C, P, Q) is what filter k
    makes of channel c alone; over the channels it adds up, with the bias, to `output` (K, P, Q).
    `padded`, `padding` and `cells` are as those of `convolution.Sliding`, `padded` (C, H', W').
    """

    spec: ConvSpec
    image: Array
    kernels: Array
    bias: Array
    padded: Array
    padding: Array
    cells: Array
    partial: Array
    output: Array

    @cached_property
    def columns(self) -> Array:
        """The partial maps that are drawn, (K, columns, P, Q); the last may be the sum of many."""
        if self.partial.shape[1] <= DRAWN:
            return self.partial
        first, others = np.split(self.partial, [DRAWN - 1], axis=1)
        return np.concatenate([first, others.sum(axis=1, keepdims=True)], axis=1)


def channel_sums(
    image: Array,
    kernels: Array,
    bias: Array,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    padding_mode: str = "zeros",
) -> ChannelSums:
    """What `channels` draws, as the library computes it; options as in `gpuconv.conv2d`.

    image (C, H, W), kernels (K, C, R, S), bias (K,). ArgumentError for what cannot be convolved,
    or drawn.
    """
    x = presets.finite("image", image, "(C, H, W)")
    w = presets.finite("kernel", kernels, "(K, C, R, S)")
    b = presets.finite("bias", bias, "(K)")
    x, options = x[None], (stride, padding, dilation)
    spec = ConvSpec.infer(x.shape, w.shape, *options, 1, padding_mode)
    presets.check_drawable("input", spec.padded, LARGEST)
    presets.check_written(spec, min(w.shape[1], DRAWN))
    if max(w.shape[:2]) > MOST:
        raise ArgumentError(
            f"{w.shape[1]} channels and {w.shape[0]} filters are too many to draw: use at most "
            f"{MOST} of each"
        )
    padded, mask, cells = windows(spec, x)
    count, channels, *size = w.shape
    alone = w.swapaxes(0, 1).reshape(channels * count, 1, *size)
    with backend("numpy"):  # as in `convolution.sliding`
        y = conv2d(x, w, b, *options, 1, padding_mode)[0]
        partial = conv2d(x, alone, None, *options, channels, padding_mode)[0]
    partial = partial.reshape(channels, count, *y.shape[1:]).swapaxes(0, 1)
    return ChannelSums(spec, x[0], w, b, padded, mask, cells, partial, y)


def channels(
    image: Sequence[int] | Array | StrPath = (3, 5, 5),
    kernel: IntOrInts | Array = 3,
    filters: int = 2,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    padding_mode: str = "zeros",
    bias: Sequence[float] | Array | None = None,
    size: Ints | None = None,
    seed: int = 0,
    frame: int | None = None,
) -> Any:
    """A convolution of all channels, one output position a frame: an `Animation`, or one `frame`.

    `image` is a size (C, H, W), an array (C, H, W), or a file, which is read as RGB and resized to
    `size` (H, W), by default at most 7 x 7. `kernel` is a size (R, S) for each of so many
    `filters`, or an array (K, C, R, S). Where sizes are given, small whole numbers are drawn from
    the `seed`; `bias` has one number a filter. `frame` counts output positions from 1. The other
    options are those of `gpuconv.conv2d`. Of more than 4 channels or filters, 3 are drawn.
    ArgumentError for what cannot be convolved or drawn, FileError for the file.
    """
    notes = []
    if isinstance(image, (str, os.PathLike)):
        x = presets.file_image(image, size, "RGB", 7)
        notes.append(f"{plain(os.path.basename(image))}: {shape(x.shape)}, from 0 to 255")
    elif size is not None:
        raise ArgumentError(f"size={size} is for an image file: leave it out")
    elif presets.axes("image", image) == 3:
        x = presets.finite("image", image, "(C, H, W)")
    else:
        given = ints("viz", "image", image, 3, least=1)
        presets.check_drawable("image", given[1:], LARGEST)
        _check_count("channels", given[0])
        x = presets.whole_image(given, seed, 2)
    if presets.axes("kernel", kernel) == 4:
        w = np.asarray(kernel)
    else:
        taps = ints("viz", "kernel", kernel, 2, least=1)
        presets.check_drawable("kernel", taps, LARGEST)
        _check_count("filters", filters)
        w = presets.whole_kernel((filters, len(x), *taps), seed)
    b = np.resize([1.0, 0.0, -1.0], len(w)) if bias is None else bias
    data = channel_sums(
        x, w, b, stride=stride, padding=padding, dilation=dilation, padding_mode=padding_mode
    )
    positions = shown(data.spec.y_shape[2:], frame)
    notes += captions(data.spec, positions)
    if max(data.spec.padded) > NUMBERED:
        notes += [in_words("input", data.padded), in_words("maps", data.columns)]
    return moving(*_draw(data, notes), positions, frame)


def _check_count(name: str, count: int) -> None:
    if not isinstance(count, (int, np.integer)) or not 1 <= count <= MOST:
        raise ArgumentError(f"{name}={count!r} must be from 1 to {MOST} to be drawn")


def equation(data: ChannelSums, k: int, p: int, q: int) -> str:
    """The sum of filter k at output position (p, q): "2 + 0 - 3 + bias 1 = 0"."""
    terms, bias = added(data.columns[k, :, p, q]), bracketed(data.bias[k])
    made = data.output[k, p, q]
    sign = equals(made, *data.columns[k, :, p, q], plus=data.bias[k])
    return f"{terms} + bias {bias} {sign} {number(made)}"


@dataclass(frozen=True)
class Row:
    """What is drawn of one filter: its kernels, partial maps, and map."""

    kernels: list[Plane]
    partial: list[Plane]
    result: Plane


def _planes(data: ChannelSums) -> tuple[list[Plane], list[Row]]:
    """The planes of the image, and a row of panels a filter, all with cells of one size."""
    filters, count = data.kernels.shape[:2]
    columns = data.columns
    drawn = range(count if count <= DRAWN else DRAWN - 1)
    hatched = data.padding if data.padding.any() else None
    values = [a.ravel() for a in (data.padded, data.kernels, columns, data.output)]
    of_planes = of_kernels = of_maps = cell_size(
        np.concatenate(values), data.spec.padded, 0.34, NUMBERED
    )
    if max(data.spec.padded) > NUMBERED:  # then the others may have numbers still
        of_kernels = cell_size(data.kernels, data.spec.kernel, 0.34, NUMBERED)
        maps = np.concatenate([columns.ravel(), data.output.ravel()])
        of_maps = cell_size(maps, data.output.shape[1:], 0.34, NUMBERED)
    names = [" (red)", " (green)", " (blue)"] if count == 3 else [""] * count
    size_in = f"{shape(data.image.shape[1:])}, {words.padding(data.spec.padding)}"
    size_of, size_out = shape(data.kernels.shape[2:]), shape(data.output.shape[1:])
    planes = [
        Plane(data.padded[c], f"channel {c + 1} of {count}{names[c]}\n{size_in}", of_planes,
              padding=hatched, **_scale(data.image))
        for c in drawn
    ]  # fmt: skip
    rows = []
    several = range(filters if filters <= DRAWN else DRAWN - 1)
    # The same colour stands for the same value in all maps, and in all kernels.
    map_colours = _scale(data.columns[: len(several)], data.output[: len(several)])
    kernel_colours = _scale(data.kernels[: len(several)])
    for k in several:
        titles = ["partial map"] * len(drawn)
        if len(drawn) < count:
            titles.append(f"channels {len(drawn) + 1} to {count} added")
        row = Row(
            [
                Plane(data.kernels[k, c], f"kernel\n{size_of}", of_kernels, **kernel_colours)
                for c in drawn
            ],
            [
                Plane(columns[k, c], f"{title}\n{size_out}", of_maps, **map_colours)
                for c, title in enumerate(titles)
            ],
            Plane(data.output[k], f"map {k + 1} of {filters}\n{size_out}", of_maps, **map_colours),
        )
        rows.append(row)
    return planes, rows


def _scale(*arrays: Array) -> dict[str, Any]:
    """`Grid`'s options for what all these have in common."""
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    return {"limits": (low, high), "signed": bool(low < 0)}


def _draw(data: ChannelSums, notes: list[str]) -> tuple[Any, Callable[[int], None]]:
    """The figure, and what draws an output position, counted along its rows, into it."""
    planes, rows = _planes(data)
    filters, count, *_ = data.kernels.shape
    height, width = data.output.shape[1:]
    if filters > len(rows):
        notes = [*notes, f"filters {len(rows) + 1} to {filters} are not drawn: each gives a map"]
    biases = [f"+ bias {bracketed(b)} =" for b in data.bias[: len(rows)]]
    sums = [
        [equation(data, k, p, q) for p, q in np.ndindex(height, width)] for k in range(len(rows))
    ]
    groups = []  # inches of a plane, or of a kernel and its partial map
    for c, partial in enumerate(rows[0].partial):
        with_kernel = c < len(planes)
        below = partial.width + (rows[0].kernels[c].width + GAP if with_kernel else 0)
        groups.append(max(below, planes[c].width) if with_kernel else below)
    lefts = [MARGIN + sum(groups[:c]) + GAP * c for c in range(len(groups) + 1)]
    lefts[-1] += text_width(biases, 11) + 0.3 - GAP
    top = MARGIN + 0.3
    first = top + planes[0].height + 0.3
    step = 0.25 + max(rows[0].kernels[0].height, rows[0].result.height) + 0.45
    end = first + step * len(rows)
    across = max(rows[0].result.width, *(text_width(texts, 10) for texts in sums))
    across = max(lefts[-1] + across, MARGIN + text_width(notes, 9)) + MARGIN
    figure = new_figure(across, end + len(notes) * LINE + MARGIN)
    figure.set_layout_engine("none")

    sources = [plane.draw(figure, lefts[c], top, groups[c]) for c, plane in enumerate(planes)]
    if count > len(planes):
        text = f"… and {count - len(planes)} more channels,\nnot drawn"
        say(figure, lefts[-2], top + TITLE, text)
    made: list[tuple[list[Grid], Any]] = []
    for k, row in enumerate(rows):
        upper = first + k * step
        text = f"Filter {k + 1}: a kernel for each channel, the partial maps added, and a bias"
        say(figure, MARGIN, upper, text, 10, weight="bold")
        grids = _draw_row(figure, row, biases[k], lefts, groups, upper + 0.25)
        under = upper + 0.25 + row.result.height + 0.08
        made.append((grids, say(figure, lefts[-1], under, "", 10, weight="bold")))
    head = say(figure, MARGIN, MARGIN - 0.1, "", 12, weight="bold")
    say(figure, MARGIN, end, "\n".join(notes))

    def show(position: int) -> None:
        p, q = divmod(position, width)
        columns = data.padded.shape[2]
        read = [divmod(cell, columns) for cell in data.cells[p, q].ravel().tolist()]
        for source in sources:
            source.mark("window", read, STRONG)
        done = np.arange(height * width).reshape(height, width) <= position
        for k, (grids, text) in enumerate(made):
            for grid, values in zip(grids, [*data.columns[k], data.output[k]], strict=True):
                grid.set(np.where(done, values, np.nan))
                grid.mark("now", [(p, q)], STRONG)
            text.set_text(sums[k][position])
        head.set_text(
            f"Position {position + 1} of {height * width}: output row {p + 1}, column {q + 1}"
        )

    return figure, show


def _draw_row(
    figure: Any, row: Row, bias: str, lefts: list[float], groups: list[float], top: float
) -> list[Grid]:
    """A filter's panels with the signs between them; its partial maps and map, which change."""
    grids = []
    middle = top + TITLE + min(row.kernels[0].down, row.result.down) / 2

    def sign(left: float, text: str, font: float = 16) -> None:
        say(figure, left, middle, text, font, ha="center", va="center")

    for c, partial in enumerate(row.partial):
        left = lefts[c]
        if c < len(row.kernels):
            kernel = row.kernels[c]
            left += (groups[c] - kernel.width - GAP - partial.width) / 2
            kernel.draw(figure, left, top)
            left += kernel.width + GAP
            sign(left - GAP / 2, "→")
        grids.append(partial.draw(figure, left, top))
        if c:
            sign(lefts[c] - GAP / 2, "+")
    sign((lefts[-2] + groups[-1] + lefts[-1]) / 2, bias, 11)
    return [*grids, row.result.draw(figure, lefts[-1], top)]
