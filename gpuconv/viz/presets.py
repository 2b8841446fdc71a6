"""What is convolved where nothing better is given: named kernels, small images in whole numbers.

A named kernel is whole numbers and one factor, which are easier to read than what they make.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from gpuconv.data.image import read_image
from gpuconv.errors import ArgumentError
from gpuconv.files import StrPath
from gpuconv.shapes import ConvSpec, Ints, ints
from gpuconv.viz.style import shape

Array = Any
MOST = 1e15  # of a number: sums of products of these are finite in float32, too
PRODUCTS = 20_000  # of all windows, which are written out: some seconds
LARGEST = 40  # rows or columns of a plane whose cells are drawn: beyond, none can be told apart


@dataclass(frozen=True)
class Preset:
    """A kernel with a name: `values` (R, S) times `factor`, as in cross-correlation."""

    name: str
    values: Array
    factor: Fraction
    meaning: str

    @property
    def weight(self) -> Array:
        """The kernel itself, (R, S) in float64."""
        return self.values * float(self.factor)


_KERNELS: dict[str, tuple[list[list[int]], int, str]] = {
    "edge": (
        [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
        1,
        "a pixel against its eight neighbours; 0 where all are equal (Laplacian)",
    ),
    "blur": ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], 9, "the mean of the window (box blur)"),
    "sharpen": (
        [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
        1,
        "a pixel and what sets it apart from its four neighbours",
    ),
    "sobel": (
        [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
        1,
        "the change from left to right; large at vertical edges",
    ),
    "sobel-y": (
        [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
        1,
        "the change from top to bottom; large at horizontal edges",
    ),
}
NAMES = tuple(_KERNELS)


def preset(name: str, size: Ints | None = None) -> Preset:
    """The named kernel, one of `NAMES`; `size` (R, S) is for "blur", the others are 3 x 3.

    ArgumentError for another name or size.
    """
    if name not in _KERNELS:
        raise ArgumentError(f"kernel {name!r} is unknown: use one of {', '.join(NAMES)}")
    rows, divisor, meaning = _KERNELS[name]
    values = np.array(rows, dtype=np.float64)
    if size is not None and tuple(size) != values.shape:
        if name != "blur":
            raise ArgumentError(
                f"kernel {name!r} is 3 x 3 and was asked for as {shape(size)}: leave the size out, "
                f"or use 'blur', which takes any"
            )
        values, divisor = np.ones(size), size[0] * size[1]
    return Preset(name, values, Fraction(1, divisor), meaning)


def whole_image(size: Ints, seed: int, most: int) -> Array:
    """An image of this shape of whole numbers from 0 to `most`, the same for the same seed."""
    return np.random.default_rng(_seed(seed)).integers(0, most + 1, size).astype(np.float64)


def whole_kernel(size: Ints, seed: int) -> Array:
    """A kernel of this shape of as many 1, -1 and 0 as can be, shuffled."""
    values = np.resize(np.array([1.0, -1.0, 0.0]), int(np.prod(size)))
    return np.random.default_rng([_seed(seed), 1]).permutation(values).reshape(size)


def box_image(size: Ints) -> Array:
    """A bright box (9) on dark ground (1), which shows what a named kernel does; (H, W)."""
    image = np.ones(size)
    height, width = size
    image[height // 4 : height - height // 4, width // 4 : width - width // 4] = 9
    return image


def file_image(path: StrPath, size: Ints | None, mode: str, most: int = 12) -> Array:
    """An image file's pixels from 0 to 255, (C, H, W); `mode` "L" (grey) or "RGB".

    Resized to `size` (H, W); if None, reduced so that the longer side is at most `most`. FileError
    if it cannot be read, ArgumentError for a size that cannot be drawn.
    """
    if size is None:
        _, height, width = read_image(path, mode=mode).shape
        scale = min(1.0, most / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
    height, width = ints("viz", "size", size, 2, least=1)
    check_drawable("image", (height, width))
    return read_image(path, (height, width), mode).astype(np.float64)


def axes(name: str, given: Any) -> int:
    """How many axes an array or a list has; ArgumentError for rows of different lengths."""
    try:
        return np.ndim(given)
    except ValueError:
        raise ArgumentError(f"the {name} must have rows of the same length") from None


def finite(name: str, given: Any, form: str) -> Array:
    """Numbers of this form, such as "(H, W)", in float64; ArgumentError for others, such as NaN."""
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"the {name} must be numbers {form}, and is {given!r:.40}") from None
    if values.ndim != len(form.split(", ")) * (form != "") or not values.size:
        raise ArgumentError(f"the {name} {values.shape} must be {form or 'one'} of finite numbers")
    if not np.isfinite(values).all():
        raise ArgumentError(f"the {name} must be finite numbers {form}, without NaN or infinity")
    if np.abs(values).max() > MOST:
        raise ArgumentError(
            f"the {name} has {np.abs(values).max():g}, which is too large: use numbers up to "
            f"{MOST:g}"
        )
    return values


def check_written(spec: ConvSpec, planes: int = 1) -> None:
    """ArgumentError for an input, or for products on so many planes, too large to be drawn."""
    check_drawable("input", spec.padded)
    windows, taps = prod(spec.y_shape[2:]), prod(spec.kernel) * planes
    if windows * taps > PRODUCTS:
        raise ArgumentError(
            f"{windows:,} windows of {taps:,} products are too many to write out: at most "
            f"{PRODUCTS:,} products; use a smaller image or kernel, or a larger stride"
        )


def check_drawable(name: str, size: Ints, most: int = LARGEST) -> None:
    """ArgumentError for a plane of more cells than can be told apart."""
    if max(size) > most:
        raise ArgumentError(
            f"{name} {shape(size)} is too large to draw its cells: use at most "
            f"{most} x {most}, padding included"
        )


def _seed(seed: int) -> int:
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ArgumentError(f"seed {seed!r} must be a whole number from 0")
    return int(seed)
