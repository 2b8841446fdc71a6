"""The problem of `depthwise` and `depthwise_weight`: its two axes, and the kernels' numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a problem: sizes of kernel, input and output, and where its taps lie."""

    taps: int
    stride: int
    pad: int
    dilation: int
    x: int
    y: int
    weight: int

    def window(self, windows: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The first (taps, stride) of `windows` that fits; (1, 1), the last, fits all."""
        return next(
            (taps, stride)
            for taps, stride in windows
            if (stride == self.stride and self.dilation == 1 and self.taps % taps == 0) or taps == 1
        )


Axes = tuple[Axis, Axis]


def axes_of(spec: Any) -> Axes:
    """The axes h and w; h is of size 1 where there is only one."""

    def axis(i: int, weight: int) -> Axis:
        if i < -spec.nd:
            return Axis(1, 1, 0, 1, 1, 1, weight)
        before, _ = spec.padding[i]
        sizes = spec.x_shape[i], spec.y_shape[i]
        return Axis(spec.kernel[i], spec.stride[i], before, spec.dilation[i], *sizes, weight)

    return axis(-2, spec.kernel[-1]), axis(-1, 1)


def window_axis(axes: Axes, last: bool, windows: Sequence[tuple[int, int]]) -> int:
    """0 or 1: h for NCHW, whose lanes need w, else that of the larger window, but not of size 1."""
    if axes[0].y == 1 or axes[1].y == 1:
        return int(axes[0].y == 1)
    return int(last and axes[1].window(windows) >= axes[0].window(windows))


def numbers_of(axes: Axes, u: int, **arrays: tuple[int, bool]) -> dict[str, int]:
    """The kernels' numbers but for the channels'; axes[u] is the window axis.

    `x` and `y` are (channels, whether these are last in memory) of input and output.
    """
    numbers: dict[str, int] = {}
    for axis, name in (axes[u], "u"), (axes[1 - u], "v"):
        numbers.update({name.upper(): axis.taps, "I" + name.upper(): axis.x})
        numbers.update({"O" + name.upper(): axis.y, "stride_" + name: axis.stride})
        numbers.update({"pad_" + name: axis.pad, "dil_" + name: axis.dilation})
        numbers["w" + name] = axis.weight
    for name, (channels, last) in arrays.items():
        h, w = (getattr(axis, name) for axis in axes)
        across = (w * channels, channels) if last else (w, 1)  # from line to line of h and w
        numbers.update({name + "n": channels * h * w, name + "c": 1 if last else h * w})
        numbers.update({name + "u": across[u], name + "v": across[1 - u]})
    return numbers
