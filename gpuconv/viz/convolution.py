"""A kernel that slides over an image, with the products and the sum of every window written out.

The values under each tap of the kernel come from the library too: they are its convolutions with
kernels that are 1 at that tap and 0 elsewhere.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gpuconv import words
from gpuconv.backends import backend
from gpuconv.errors import ArgumentError
from gpuconv.files import StrPath
from gpuconv.ops import conv2d, pad
from gpuconv.shapes import ConvSpec, IntOrInts, Ints, Padding, ints
from gpuconv.viz import presets
from gpuconv.viz.canvas import plain
from gpuconv.viz.sheet import (
    GAP,
    LINE,
    MARGIN,
    NUMBERED,
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
from gpuconv.viz.style import STRONG, Array, equals, new_figure, number, shape

WRITTEN = 5  # columns of a kernel, up to which each product is written out
SMALL = 8.5  # the font's size of what a product is of
TABLE = 12  # its rows, up to which each has a line


@dataclass(frozen=True)
class Sliding:
    """The convolution of one plane, taken apart by output position.

    `image` (H, W), `kernel` (R, S), `bias`: y = conv2d(image, kernel * factor) + bias, `output`
    (P, Q). `padded` is the image with its padding, where the mask `padding` is True. `cells` (P, Q,
    R, S) says which element of `padded`, counted along its rows, each tap reads, `reads` with what
    value, and `products` are those by the kernel's. All in float64 but for the masks and `cells`.
    """

    spec: ConvSpec
    image: Array
    kernel: Array
    factor: Fraction
    bias: float
    padded: Array
    padding: Array
    cells: Array
    reads: Array
    products: Array
    output: Array


def sliding(
    image: Array,
    kernel: Array,
    factor: Fraction = Fraction(1),
    bias: float = 0.0,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    padding_mode: str = "zeros",
) -> Sliding:
    """What `conv` draws, as the library computes it; options as in `gpuconv.conv2d`.

    image (H, W), kernel (R, S). ArgumentError for what cannot be convolved, or drawn.
    """
    x, w = (
        presets.finite(name, given, "(H, W)")[None, None]
        for name, given in (("image", image), ("kernel", kernel))
    )
    b = presets.finite("bias", bias, "")
    spec = ConvSpec.infer(x.shape, w.shape, stride, padding, dilation, 1, padding_mode)
    presets.check_written(spec)
    padded, mask, cells = windows(spec, x)
    one_each = taps(spec)
    # The array code: to compile kernels for 25 pixels would take longer than the picture.
    with backend("numpy"):
        reads = conv2d(x, one_each, None, stride, padding, dilation, 1, padding_mode)
        products = conv2d(x, one_each * w, None, stride, padding, dilation, 1, padding_mode)
        y = conv2d(x, w * float(factor), b[None], stride, padding, dilation, 1, padding_mode)
    return Sliding(
        spec, x[0, 0], w[0, 0], factor, float(b), padded[0], mask, cells,
        by_position(spec, reads[0]), by_position(spec, products[0]), y[0, 0],
    )  # fmt: skip


def taps(spec: ConvSpec) -> Array:
    """One kernel for each tap, which is 1 there and 0 elsewhere: (R*S, 1, R, S)."""
    count = spec.kernel[0] * spec.kernel[1]
    return np.eye(count).reshape(count, 1, *spec.kernel)


def windows(spec: ConvSpec, x: Array) -> tuple[Array, Array, Array]:
    """(x of (1, C, H, W) padded, (C, H', W'); a mask of what is padding; as `Sliding`, `cells`)."""
    (top, bottom), (left, right) = spec.padding
    sides = (left, right, top, bottom)
    with backend("numpy"):
        padded = pad(x, sides, spec.padding_mode)[0]
        mask = pad(np.ones((1, 1, *spec.x_shape[2:])), sides)[0, 0] == 0
        numbered = np.arange(mask.size, dtype=np.float64).reshape(1, 1, *mask.shape)
        cells = conv2d(numbered, taps(spec), None, spec.stride, 0, spec.dilation)
    return padded, mask, by_position(spec, cells[0]).astype(int)


def by_position(spec: ConvSpec, of_taps: Array) -> Array:
    """(R*S, P, Q) as (P, Q, R, S)."""
    return np.moveaxis(of_taps, 0, -1).reshape(*spec.y_shape[2:], *spec.kernel)


def conv(
    image: Sequence[int] | Array | StrPath = (5, 5),
    kernel: IntOrInts | Array | None = None,
    *,
    preset: str | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    padding_mode: str = "zeros",
    bias: float = 0.0,
    size: Ints | None = None,
    seed: int = 0,
    frame: int | None = None,
) -> Any:
    """A convolution, one output position a frame: an `Animation`, or a figure of one `frame`.

    `image` is a size (H, W), an array (H, W), or a file, which is read as grey and resized to
    `size` (H, W), by default at most 12 x 12. `kernel` is a size (R, S), by default 3, or an array
    (R, S); `preset` is one of `presets.NAMES`. Where only sizes are given, small whole numbers are
    drawn from the `seed`; under a named kernel, a bright box. `frame` counts output positions from
    1. The other options are those of `gpuconv.conv2d`. Of more than 120 positions as many are
    frames. ArgumentError for what cannot be convolved or drawn, FileError for the file.
    """
    factor, notes = Fraction(1), []
    weight: Any = kernel
    if preset is not None:
        if presets.axes("kernel", weight) == 2:
            raise ArgumentError(f"preset {preset!r} is a kernel, and another is given: leave one")
        named = presets.preset(preset, None if kernel is None else _size("kernel", kernel))
        weight, factor, notes = named.values, named.factor, [f"{preset}: {named.meaning}"]
    elif presets.axes("kernel", weight) != 2:
        weight = presets.whole_kernel(_size("kernel", 3 if kernel is None else kernel), seed)
    if isinstance(image, (str, os.PathLike)):
        (x,) = presets.file_image(image, size, "L")
        notes.append(
            f"{plain(os.path.basename(image))} as grey, {shape(x.shape)} pixels from 0 to 255"
        )
    elif size is not None:
        raise ArgumentError(f"size={size} is for an image file: leave it out")
    elif presets.axes("image", image) == 2:
        x = image
    elif preset is not None:
        x = presets.box_image(_size("image", image))
    else:
        x = presets.whole_image(_size("image", image), seed, 4)
    data = sliding(
        x, weight, factor, bias, stride=stride, padding=padding, dilation=dilation,
        padding_mode=padding_mode,
    )  # fmt: skip
    positions = shown(data.spec.y_shape[2:], frame)
    notes += captions(data.spec, positions)
    if max(data.spec.padded) > NUMBERED:
        notes += [in_words("input", data.padded), in_words("output", data.output)]
    return moving(*_draw(data, notes), positions, frame)


def _size(name: str, given: Any) -> Ints:
    size = ints("viz", name, given, 2, least=1)
    presets.check_drawable(name, size)
    return size


def written(data: Sliding, p: int, q: int) -> list[str]:
    """The sum at output position (p, q): a line for each row of the kernel, then the total."""
    products = data.products[p, q]
    rows = products.sum(axis=1)
    so_far = np.cumsum(rows)
    columns = [
        [
            f"{added(terms)} {equals(row, *terms)}" if 1 < len(terms) <= WRITTEN else f"row {i}:"
            for i, (terms, row) in enumerate(zip(products, rows, strict=True), start=1)
        ],
        [number(row) for row in rows],
        [
            f"so far{'' if equals(total, *rows[:i]) == '=' else ' ≈'} {number(total)}"
            for i, total in enumerate(so_far, start=1)
        ],
    ]
    wide = [max(map(len, column)) for column in columns]
    table = [
        f"{terms:>{wide[0]}} {row:>{wide[1]}}   {total}"
        for terms, row, total in zip(*columns, strict=True)
    ]
    made = data.output[p, q]
    scaled = data.factor != 1 or data.bias
    result = f"sum {number(so_far[-1])}" if scaled else "sum"
    if data.factor != 1:
        result += f" × {data.factor}"
    if data.bias:
        result += f" + bias {bracketed(data.bias)}"
    whole = so_far[-1:] if scaled else rows
    result += f" {equals(made, *whole, times=data.factor, plus=data.bias)} {number(made)}"
    return [*table, result] if len(table) <= TABLE else [result]


def _planes(data: Sliding, factors: Array) -> tuple[Plane, Plane, Plane, Plane]:
    """The input with its padding, the kernel, the products of a window, and the output."""
    spec, output, size = data.spec, data.output, data.kernel.shape
    values = np.concatenate([a.ravel() for a in (data.padded, data.kernel, output)])
    # The same cells in all, but where the input has too many for numbers.
    common = cell_size(values, data.padded.shape) if max(spec.padded) <= NUMBERED else None
    times = f"times {data.factor}" if data.factor != 1 else "the same at every position"
    hatched = data.padding if data.padding.any() else None
    wide = max(text_width(list(factors.ravel()), SMALL) + 0.12, 0.5)
    few = max(size) <= WRITTEN
    return (
        Plane(data.padded, f"input {shape(data.image.shape)}\n{words.padding(spec.padding)}",
              common, padding=hatched),
        Plane(data.kernel, f"kernel {shape(size)}\n{times}", common),
        Plane(data.products[0, 0], "products\nwindow × kernel",
              (wide, 11.0) if few else cell_size(data.products, data.padded.shape),
              0.5 if few else None, limits=(data.products.min(), data.products.max()),
              signed=bool((data.products < 0).any())),
        Plane(output, f"output {shape(output.shape)}\n{output.size} of {output.size} so far",
              common),
    )  # fmt: skip


def _draw(data: Sliding, notes: list[str]) -> tuple[Any, Callable[[int], None]]:
    """The figure, and what draws an output position, counted along its rows, into it."""
    output, factors = data.output, _factors(data)
    source, kernel, products, result = _planes(data, factors)
    sums = [written(data, p, q) for p, q in np.ndindex(output.shape)]
    tables, totals = ["\n".join(lines[:-1]) for lines in sums], [lines[-1] for lines in sums]
    table_width = max(text_width(table.split("\n"), 10) for table in tables)
    widths = [
        source.width,
        max(kernel.width, products.width),
        max(result.width, table_width, text_width(totals, 13)),
    ]
    lefts = [MARGIN + sum(widths[:i]) + i * GAP for i in range(3)]
    top, sum_height = MARGIN + 0.3, len(sums[0]) * LINE + 0.2
    below, under = top + kernel.height + 0.15, top + result.height + 0.25
    end = max(top + source.height, below + products.height, under + sum_height) + 0.25
    width = max(lefts[2] + widths[2], MARGIN + text_width(notes, 9)) + MARGIN
    figure = new_figure(width, end + len(notes) * LINE + MARGIN)
    figure.set_layout_engine("none")

    pixels = source.draw(figure, lefts[0], top)
    kernel.draw(figure, lefts[1], top, widths[1])
    terms = products.draw(figure, lefts[1], below, widths[1])
    made = result.draw(figure, lefts[2], top)
    middle = top + (kernel.height + TITLE) / 2
    for left, sign in zip(lefts[1:], "∗→", strict=True):
        say(figure, left - GAP / 2, middle, sign, 16, ha="center", va="center")
    small = {}  # what each product is of, above it
    if max(data.kernel.shape) <= WRITTEN:
        for (i, j), text in terms.texts.items():
            text.set_y(i + 0.18)
            options = {"ha": "center", "va": "center", "fontsize": SMALL}
            small[i, j] = terms.axes.text(j, i - 0.22, "", **options)
    head = say(figure, MARGIN, MARGIN - 0.1, "", 12, weight="bold")
    table = say(figure, lefts[2], under, "", 10, family="monospace")
    total = say(figure, lefts[2], under + sum_height - LINE, "", 13, weight="bold")
    say(figure, MARGIN, end, "\n".join(notes))

    def show(position: int) -> None:
        p, q = divmod(position, output.shape[1])
        read = [divmod(cell, data.padded.shape[1]) for cell in data.cells[p, q].ravel().tolist()]
        pixels.mark("window", read, STRONG)
        terms.set(data.products[p, q])
        for cell, text in small.items():
            text.set_text(factors[p, q][cell])
            text.set_color(terms.texts[cell].get_color())
        done = np.arange(output.size).reshape(output.shape) <= position
        title = f"output {shape(output.shape)}\n{position + 1} of {output.size} so far"
        made.set(np.where(done, output, np.nan), title)
        made.mark("now", [(p, q)], STRONG)
        table.set_text(tables[position])
        total.set_text(totals[position])
        head.set_text(
            f"Position {position + 1} of {output.size}: output row {p + 1}, column {q + 1}"
        )

    return figure, show


def _factors(data: Sliding) -> Array:
    """What each product is the product of, in words: (P, Q, R, S)."""
    weights = [bracketed(w) for w in data.kernel.ravel()]
    texts = [
        [f"{number(v)}×{w}" for v, w in zip(row, weights, strict=True)]
        for row in data.reads.reshape(-1, data.kernel.size)
    ]
    return np.array(texts).reshape(data.reads.shape)
