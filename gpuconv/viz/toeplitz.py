"""A convolution as a matrix, beside a dense layer of the same size: `gpuconv.viz.matrix`.

A convolution is linear, so it is a matrix; its columns are what it makes of the basis images, each
of which has a 1 in one pixel. With numbered weights as the kernel, the matrix says which weight
joins an output to a pixel: each occurs in many places (tied weights), and most places have none
(local connections).
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends import backend
from gpuconv.errors import ArgumentError
from gpuconv.ops import conv2d
from gpuconv.shapes import ConvSpec, IntOrInts, Padding, ints
from gpuconv.viz import presets
from gpuconv.words import settings

MOST = 64  # pixels, and outputs: more would not be legible


@dataclass(frozen=True, eq=False)
class Toeplitz:
    """The convolution `spec`, of one channel, as a matrix of outputs P*Q by pixels H*W.

    `index` says which weight stands where, counted from 1 along the kernel's rows; 0 is none.
    """

    spec: ConvSpec
    index: np.ndarray

    @property
    def weights(self) -> int:
        """Parameters of the convolution, without a bias."""
        return prod(self.spec.kernel)

    @property
    def dense(self) -> int:
        """Parameters of a dense layer of the same size: every cell has its own."""
        return int(self.index.size)

    @property
    def zeros(self) -> int:
        """Cells without a weight."""
        return int((self.index == 0).sum())


def toeplitz(
    image: IntOrInts,
    kernel: IntOrInts,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
) -> Toeplitz:
    """The matrix of a convolution of an `image` (height, width), one channel.

    Arguments as in `gpuconv.conv2d`. Raises ArgumentError for what it would not compute, and for
    more than `MOST` pixels or outputs.
    """
    height, width = ints("matrix", "image", image, 2, least=1)
    taps = ints("matrix", "kernel", kernel, 2, least=1)
    spec = ConvSpec.infer((1, 1, height, width), (1, 1, *taps), stride, padding, dilation)
    outputs, pixels = prod(spec.y_shape), height * width
    if max(outputs, pixels) > MOST:
        raise ArgumentError(
            f"matrix: {pixels} pixels and {outputs} outputs would make a matrix too large to read "
            f"(at most {MOST} of each, as of 8x8); use a smaller image, such as 5x5"
        )
    presets.check_drawable("matrix: input", spec.padded)
    basis = np.eye(pixels).reshape(pixels, 1, height, width)
    numbered = np.arange(1.0, prod(taps) + 1).reshape(1, 1, *taps)
    # Array code: it has nothing to compile, and sums of one number are that number.
    with backend("numpy"):
        columns = conv2d(basis, numbered, None, spec.stride, spec.padding, spec.dilation)
    return Toeplitz(spec, np.rint(columns.reshape(pixels, outputs).T).astype(np.int64))


def matrix(
    image: IntOrInts,
    kernel: IntOrInts,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
) -> Any:
    """Draw the convolution of an `image` (height, width) as a matrix; a matplotlib Figure.

    Arguments and errors as in `toeplitz`, which has the numbers. A weight has one number and one
    colour wherever it stands, in the kernel and in the matrix; in the dense layer every cell has
    its own.
    """
    from gpuconv.viz import style

    found = toeplitz(image, kernel, stride, padding, dilation)
    spec, index = found.spec, found.index
    rows, columns = index.shape
    cell = 0.3 if max(rows, columns) <= 30 else 0.22
    beside = columns * cell <= 7
    width, height = max(columns * cell, 3.4) + 0.7, rows * cell + 1.1
    side = max(spec.kernel[1] * 0.4, 1.6)
    figure = style.new_figure(
        max((2 * width if beside else width) + side, 7),
        max((height if beside else 2 * height) + 0.6, 2.9),
    )
    shapes = (1, 3) if beside else (2, 2)
    panels = figure.subplots(
        *shapes, squeeze=False, width_ratios=[side, *[width] * (shapes[1] - 1)]
    )
    small, large = panels[0, 0], panels[0, 1]
    other = panels[0, 2] if beside else panels[1, 1]
    if not beside:
        panels[1, 0].set_axis_off()
    numbered = np.arange(1, found.weights + 1).reshape(spec.kernel)
    limits = (-found.weights / 3, found.weights)  # black is left to the lines
    style.Grid(small, numbered, f"kernel {style.shape(spec.kernel)}", limits=limits, text=True)
    small.set_xlabel("numbered weights", fontsize=9)
    title = f"convolution as a matrix {rows} x {columns}\n"
    title += (
        f"{style.count(found.weights, 'weight')}, tied; {found.zeros} of {found.dense} cells are 0"
    )
    style.Grid(
        large, np.where(index, index, np.nan), title, limits=limits, text=True, font=8,
    )  # fmt: skip
    own = np.arange(1, found.dense + 1).reshape(index.shape)
    title = (
        f"dense layer {rows} x {columns}\n{style.count(found.dense, 'weight')}, none tied, none 0"
    )
    style.Grid(
        other, own, title, limits=(-found.dense / 3, found.dense), font=8,
        text=found.dense < 1000 and cell >= 0.3,
    )  # fmt: skip
    for axes in (large, other):
        _mark_rows(axes, spec)
    figure.supxlabel(
        f"input {style.shape(spec.x_shape[2:])}, {settings(spec)}, output "
        f"{style.shape(spec.y_shape[2:])}; empty cells are 0; neither has a bias",
        fontsize=9,
    )
    return figure


def _mark_rows(axes: Any, spec: ConvSpec) -> None:
    """Where the rows of the image and of the output begin among the columns and rows."""
    from gpuconv.viz.style import INK

    (_, _, height, width), (_, _, p, q) = spec.x_shape, spec.y_shape
    for i in range(1, height):
        axes.axvline(i * width - 0.5, color=INK, linewidth=1)
    for i in range(1, p):
        axes.axhline(i * q - 0.5, color=INK, linewidth=1)
    axes.set_xticks(
        np.arange(height) * width + (width - 1) / 2, [f"row {i}" for i in range(height)]
    )
    axes.set_yticks(np.arange(p) * q + (q - 1) / 2, [f"row {i}" for i in range(p)])
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel(f"input pixels, {width} a row", fontsize=9)
    axes.set_ylabel(f"output pixels, {q} a row", fontsize=9)
