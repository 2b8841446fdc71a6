"""What a direct convolution sums: its two axes, for the forward pass and the gradient by input."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution whose results fall into `len(taps)` phases.

    Result o = i * phases + a of phase a is the sum over its taps (t, at) of source[i * stride + at]
    times weight[t], zero outside the source.
    """

    source: int
    result: int
    stride: int
    taps: tuple[tuple[tuple[int, int], ...], ...]
    size: int  # of the kernel

    @property
    def start(self) -> int:
        return min(at for phase in self.taps for _, at in phase)

    @property
    def step(self) -> int:
        """Every how many numbers of the source one is read."""
        return gcd(self.stride, *(at - self.start for phase in self.taps for _, at in phase))

    def reads(self, count: int) -> int:
        """Numbers of the source that are copied for `count` results from a multiple of phases."""
        reach = max(at for phase in self.taps for _, at in phase) - self.start
        return ((-(-count // len(self.taps)) - 1) * self.stride + reach) // self.step + 1

    def bands(self, count: int) -> Iterator[tuple[int, int]]:
        """(first, how many) of the results, `count` at a time."""
        for first in range(0, self.result, count):
            yield first, min(count, self.result - first)


def forward_axis(spec: Any, i: int) -> Axis:
    size, dilation = spec.kernel[i], spec.dilation[i]
    taps = tuple((t, t * dilation - spec.padding[i][0]) for t in range(size))
    return Axis(spec.x_shape[2 + i], spec.y_shape[2 + i], spec.stride[i], (taps,), size)


def grad_axis(spec: Any, i: int) -> Axis:
    size, dilation, stride = spec.kernel[i], spec.dilation[i], spec.stride[i]
    phases = []
    for a in range(stride):
        places = [(t, a + spec.padding[i][0] - t * dilation) for t in range(size)]
        phases.append(tuple((t, at // stride) for t, at in places if at % stride == 0))
    return Axis(spec.y_shape[2 + i], spec.x_shape[2 + i], 1, tuple(phases), size)


@dataclass(frozen=True)
class Problem:
    """What is to be summed; channels and depth (the channels summed over) are those of a group."""

    dtype: str
    last: bool
    images: int
    groups: int
    depth: int
    channels: int
    rows: Axis
    columns: Axis
    w_lane: int  # numbers of w between two output channels,
    w_depth: int  # and between two channels summed over
    merged: bool  # the taps of all channels summed over lie one after the other

    @property
    def taps(self) -> int:
        return self.rows.size * self.columns.size

    @property
    def w_group(self) -> int:
        """Numbers of w between two groups."""
        if self.merged:
            return self.w_lane * self.channels
        return self.w_depth * self.depth
