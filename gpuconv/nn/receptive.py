"""How many pixels of the input a pixel of a layer depends on, worked out on the tape.

Along each spatial axis a node has a field, in input pixels, and a jump: the distance in the input
between neighbouring outputs. A window of k taps adds (k - 1) jumps to the field, and a stride
multiplies the jump; of several inputs the largest field counts. Padding counts as pixels, as is
usual. A jump of 0 stands for "the whole input": nothing that follows adds to it. Operations that
have no window count as pointwise; so do normalisations, whose statistics come from the whole input.

Source: Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks",
Distill 2019, https://distill.pub/2019/computing-receptive-fields.
"""

from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.autograd import Function, Tensor
from gpuconv.ops.conv import Conv, ConvTranspose
from gpuconv.ops.linear import Linear, MatMul
from gpuconv.ops.pool import AdaptiveMaxPool, AvgPool, MaxPool, Unpool
from gpuconv.ops.reduce import Max, Mean, Min, Sum, Var
from gpuconv.ops.resample import Resample, Taps, bins
from gpuconv.ops.shape import Reshape

Field = tuple[float, float]  # size and jump, in input pixels


class ReceptiveFields:
    """The fields of everything computed from the leaf `x` (N, C, *in)."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.size = x, x.shape[2:]
        self.known: dict[Function, tuple[Field, ...]] = {}

    def of(self, t: Tensor) -> tuple[int, ...]:
        """The field of a pixel of `t`, one number an axis; () if it does not depend on x."""
        return tuple(ceil(size) for size, _ in self._at(t._node or t))

    def resize(self, source: Tensor, result: Tensor, taps: int, scale: float) -> None:
        """Say how `result` came of `source`, where reshapes on the way would look like mixing."""
        if result._node is not None:
            fields = self._at(source._node or source)
            self.known[result._node] = tuple((n + (taps - 1) * j, j * scale) for n, j in fields)

    def _at(self, source: Function | Tensor | None) -> tuple[Field, ...]:
        if not isinstance(source, Function):
            return ((1.0, 1.0),) * len(self.size) if source is self.x else ()
        # Inputs first, without recursion: a net may be deep.
        waiting = [source]
        while waiting:
            node = waiting[-1]
            unknown = [e for e in node.edges if isinstance(e, Function) and e not in self.known]
            if unknown:
                waiting += unknown
                continue
            waiting.pop()
            if node not in self.known:
                self.known[node] = self._through(node, self._joined(node))
        return self.known[source]

    def _joined(self, node: Function) -> tuple[Field, ...]:
        """The largest field among the inputs, axis by axis."""
        fields = [
            self.known[edge] if isinstance(edge, Function) else self._at(edge)
            for edge in node.edges
        ]
        return tuple(
            (max(sizes), max(jumps) if min(jumps) else 0.0)
            for axis in zip(*(f for f in fields if f), strict=True)
            for sizes, jumps in [tuple(zip(*axis, strict=True))]
        )

    def _whole(self, fields: tuple[Field, ...]) -> tuple[Field, ...]:
        return tuple((max(n, size), 0.0) for n, (size, _) in zip(self.size, fields, strict=True))

    def _through(self, node: Function, fields: tuple[Field, ...]) -> tuple[Field, ...]:
        """The fields of a node's output, given those of its inputs."""
        if not fields:
            return ()
        if isinstance(node, (Linear, MatMul)):
            return self._whole(fields)
        if isinstance(node, Reshape):
            return fields if _keeps_pixels(node, len(fields)) else self._whole(fields)
        if isinstance(node, (Sum, Mean, Var, Max, Min)):
            gone = _reduced(node, len(fields))
            whole = self._whole(fields)
            return tuple(w if g else f for f, w, g in zip(fields, whole, gone, strict=True))
        windows = _windows(node)
        if not windows:
            return fields
        if len(windows) != len(fields):  # reshaped to another number of axes before
            return self._whole(fields)
        grown = tuple(
            (size + (w.taps - 1) * jump, jump * w.scale)
            for (size, jump), w in zip(fields, windows, strict=True)
        )
        whole = self._whole(fields)
        return tuple(
            all_ if w.whole else f for f, all_, w in zip(grown, whole, windows, strict=True)
        )


class _Window(NamedTuple):
    """Along one axis: inputs an output spans, outputs' distance in inputs, and if that is all."""

    taps: int
    scale: float
    whole: bool


def _windows(node: Function) -> list[_Window]:
    """One an axis; none for a pointwise operation."""
    if isinstance(node, (Conv, MaxPool, AvgPool)):
        spec = node.spec
        kernel = zip(spec.kernel, spec.dilation, strict=True)
        reach = [d * (k - 1) + 1 for k, d in kernel]
        axes = zip(reach, spec.stride, spec.padding, *_sizes(spec), strict=True)
        return [_Window(t, s, out == 1 and t - lo >= n) for t, s, (lo, _), n, out in axes]
    if isinstance(node, ConvTranspose):
        spec = node.spec
        steps = zip(spec.kernel, spec.dilation, spec.stride, strict=True)
        return [_Window(ceil((d * (k - 1) + 1) / s), 1 / s, False) for k, d, s in steps]
    if isinstance(node, Resample):
        return [_Window(1, 1, False) if t is None else _of_taps(t) for t in node.taps]
    if isinstance(node, AdaptiveMaxPool):
        return [_of_bins(n, out) for n, out in zip(node.x_shape[2:], node.out, strict=True)]
    if isinstance(node, Unpool):
        sizes = zip(node.indices.shape[2:], node.out, strict=True)
        return [_Window(1, n / out, False) for n, out in sizes]
    return []


def _sizes(spec: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return spec.x_shape[2:], spec.y_shape[2:]


def _of_taps(taps: Taps) -> _Window:
    read = taps.weight != 0
    last = np.where(read, taps.index, 0).max(axis=1)
    first = np.where(read, taps.index, taps.size).min(axis=1)
    span = int((last - first).max()) + 1
    return _Window(span, taps.size / len(taps.index), len(taps.index) == 1 and span == taps.size)


def _of_bins(size: int, out: int) -> _Window:
    starts, stops = bins(size, out)
    return _Window(int((stops - starts).max()), size / out, out == 1)


def _keeps_pixels(node: Reshape, nd: int) -> bool:
    """True if only axes before the last `nd`, the pixels, are split or joined."""
    shape, size = node.shape, prod(node.was)
    if -1 in shape:
        rest = prod(n for n in shape if n != -1)
        shape = tuple(size // max(rest, 1) if n == -1 else n for n in shape)
    return len(shape) > nd and len(node.was) > nd and shape[-nd:] == node.was[-nd:]


def _reduced(node: Any, nd: int) -> list[bool]:
    """For each spatial axis, if a reduction made one number of it."""
    if len(node.shape) != nd + 2:
        return [False] * nd
    pairs = zip(node.shape[2:], node.kept[2:], strict=True)
    return [kept == 1 and n > 1 for n, kept in pairs]
