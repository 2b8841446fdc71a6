"""A kernel of one's own or a known one, applied to a photo: before and after."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.data import read_image
from gpuconv.errors import ArgumentError
from gpuconv.shapes import ConvSpec, Pads, ints
from gpuconv.viz import presets
from gpuconv.viz.style import INK, Grid, new_figure, number, shape, show_image
from gpuconv.words import padding

LONGEST = 480  # pixels of a photo's longer side: as many as are shown


@dataclass(frozen=True)
class Filtered:
    """An image (C, H, W) in 0..1, the kernels by name, each (R, S), and what each made of it.

    `results` are (C, H, W), by the kernels' names; each channel was convolved alone. `magnitude`
    is the root of the sum of their squares, for kernels that are two directions; else None.
    """

    image: np.ndarray
    kernels: dict[str, np.ndarray]
    results: dict[str, np.ndarray]
    padding: Pads
    magnitude: np.ndarray | None


def filtered(image: Any, kernel: Any = "sobel") -> Filtered:
    """Convolve each channel of an image with a kernel, "same" padding with replicated edges.

    `image` (H, W) or (C, H, W), uint8 or in 0..1. `kernel` is one of `presets.NAMES`, "sobel"
    standing for both of its directions, or an array (R, S). ArgumentError for anything else.
    """
    pixels = as_image(image)
    kernels = _kernels(kernel)
    channels = len(pixels)
    results = {}
    for name, numbers in kernels.items():
        weight = np.tile(numbers.astype(np.float32), (channels, 1, 1, 1))
        results[name] = ops.conv2d(
            pixels[None], weight, padding="same", groups=channels, padding_mode="replicate"
        )[0]
    spec = ConvSpec.infer(
        (1, *pixels.shape), weight.shape, 1, "same", groups=channels, padding_mode="replicate"
    )
    magnitude = None
    if len(results) == 2:  # two directions of one change
        magnitude = np.sqrt(sum(result**2 for result in results.values()))
    return Filtered(pixels, kernels, results, spec.padding, magnitude)


def _kernels(kernel: Any) -> dict[str, np.ndarray]:
    if isinstance(kernel, str):
        names = ("sobel", "sobel-y") if kernel == "sobel" else (kernel,)
        return {name: presets.preset(name).weight for name in names}
    presets.axes("kernel", kernel)
    numbers = np.asarray(kernel)
    if numbers.ndim != 2 or not numbers.size or numbers.dtype.kind not in "uif":
        raise ArgumentError(
            f"a kernel of shape {numbers.shape} and {numbers.dtype} must be numbers (R, S), or one "
            f"of {', '.join(presets.NAMES)}"
        )
    if max(numbers.shape) > presets.LARGEST:
        raise ArgumentError(
            f"a kernel of {shape(numbers.shape)} is too large to be drawn: use at most "
            f"{presets.LARGEST} x {presets.LARGEST}"
        )
    return {"own values": presets.finite("kernel", numbers, "(R, S)")}


def as_image(image: Any, longest: int = LONGEST) -> np.ndarray:
    """A file or an array (H, W) or (C, H, W), uint8 or in 0..1, as float32 (C, H, W) in 0..1.

    A file's longer side is shrunk to `longest` pixels. FileError for one that cannot be read,
    ArgumentError for an array of something else.
    """
    if isinstance(image, (str, PathLike)):
        (longest,) = ints("apply", "longest", longest, 1, least=1)
        image, path = read_image(image), image
        scale = longest / max(image.shape)
        if scale < 1:
            height, width = (max(1, round(n * scale)) for n in image.shape[1:])
            image = read_image(path, (height, width))
    presets.axes("image", image)
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "uif":
        raise ArgumentError(
            f"an image of shape {array.shape} and {array.dtype} must be numbers (H, W) or (C, H, W)"
        )
    presets.finite("image", array, "(C, H, W)")
    return array.astype(np.float32) / np.float32(255 if array.dtype == np.uint8 else 1)


def apply(image: Any, kernel: Any = "sobel", *, longest: int = LONGEST) -> Any:
    """Draw an image before and after a convolution, and the kernel; see `filtered`.

    Of a file the longer side is shrunk to `longest` pixels first: more could not be seen.
    """
    found = filtered(as_image(image, longest), kernel)
    height, width = found.image.shape[1:]
    columns = 1 + len(found.results) + (found.magnitude is not None)
    wide = 4.0 if columns == 2 else 3.1
    tall = min(max(wide * height / width, 0.8), 1.5 * wide)
    figure = new_figure(wide * columns, tall + 2.7)
    figure.get_layout_engine().set(h_pad=0.1)
    above, below = figure.subplots(2, columns, height_ratios=(tall, 1.9))
    title = f"before: input {shape(found.image.shape)}\nblack is 0, white is 1"
    show_image(above[0], found.image, title)
    _say(below[0], _how(found))
    for column, (name, result) in enumerate(found.results.items(), 1):
        weight = found.kernels[name]
        pixels, scale = _in_greys(result, weight)
        show_image(above[column], pixels, f"after {name}: output {shape(result.shape)}\n{scale}")
        Grid(
            below[column], weight, f"kernel {name}: {shape(weight.shape)}", signed=True, font=8,
            text=max(weight.shape) <= 9,
        )  # fmt: skip
    if found.magnitude is not None:
        most = float(found.magnitude.max()) or 1.0
        scale = f"black is 0, white is {number(most)}"
        title = f"magnitude: {shape(found.magnitude.shape)}\n{scale}"
        show_image(above[-1], found.magnitude / most, title)
        squares = " + ".join(f"{name}²" for name in found.results)
        _say(below[-1], f"magnitude:\n√({squares}),\nthe change in any direction")
    return figure


def _in_greys(result: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, str]:
    """A result as an image in 0..1, and what its black and white mean."""
    total = kernel.sum()
    if total <= 1e-6 * np.abs(kernel).sum():  # differences: as often below 0 as above
        most = float(np.abs(result).max())
        most = most if most > 1e-5 else 1.0  # less is rounding
        ends = f"black is {number(-most)}, white is {number(most)}"
        return 0.5 + result / (2 * most), f"grey is 0, {ends}"
    most = 1.0 if 0.5 <= total <= 1.5 else float(result.max()) or 1.0
    low, high = float(result.min()), float(result.max())
    beyond = low < -0.005 or high > most + 0.005
    rest = f" (from {number(low)} to {number(high)})" if beyond else ""
    return result / most, f"black is 0, white is {number(most)}{rest}"


def _how(found: Filtered) -> str:
    channels = len(found.image)
    lines = [
        "stride 1, the same size:",
        f"{padding(found.padding)},",
        "the edge's pixels repeated",
    ]
    if channels > 1:
        lines.append(f"each of {channels} channels alone (groups = {channels})")
    return "\n".join(lines)


def _say(axes: Any, text: str) -> None:
    axes.set_axis_off()
    axes.text(
        0.5, 0.9, text, ha="center", va="top", fontsize=9, color=INK, transform=axes.transAxes
    )
