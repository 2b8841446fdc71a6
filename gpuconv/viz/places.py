"""Where in the input the receptive field of a pixel lies; its size is `gpuconv.nn.receptive`'s."""

from collections.abc import Sequence
from math import ceil, floor
from typing import Any

import numpy as np

from gpuconv.autograd import Function, Tensor
from gpuconv.nn.receptive import ReceptiveFields
from gpuconv.ops.conv import Conv, ConvTranspose
from gpuconv.ops.pool import AdaptiveMaxPool, AvgPool, MaxPool
from gpuconv.ops.resample import Resample, Taps, bins

Spans = tuple[tuple[int, int], ...]  # (start, stop) along each axis
Box = tuple[tuple[int, int], tuple[int, int]]  # of rows and of columns


class Places(ReceptiveFields):
    """And where the field of a pixel lies: its rows and columns, walked back along the tape."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.resized: dict[Function, tuple[Tensor, float]] = {}

    def resize(self, source: Tensor, result: Tensor, taps: int, scale: float) -> None:
        super().resize(source, result, taps, scale)
        if result._node is not None:
            self.resized[result._node] = source, scale

    def box(self, t: Tensor, pixel: Sequence[int]) -> Box:
        """(start, stop) of rows and of columns that the `pixel` of `t` depends on."""
        source = t._node or t
        whole = tuple((0, n) for n in self.size)
        found = whole
        jumps = [jump for _, jump in self._at(source)]  # 0 stands for the whole input
        if any(jumps):
            found = self._walk(source, tuple((i, i + 1) for i in pixel))
        rows, columns = (
            span if jump else all_ for span, jump, all_ in zip(found, jumps, whole, strict=True)
        )
        return rows, columns

    def _walk(self, source: Any, here: Spans) -> Spans:
        """What the pixels `here` of a node depend on, of all paths to the input together."""
        waiting: dict[Any, Spans] = {source: here}
        while (node := max(waiting, key=_number)) is not self.x:
            spans = waiting.pop(node)
            if node in self.resized:
                tensor, scale = self.resized[node]
                edges: Sequence[Any] = [tensor._node or tensor]
                spans = tuple((floor(a * scale), ceil(b * scale)) for a, b in spans)
            else:
                edges, spans = node.edges, _before(node, spans)
            for edge in edges:
                if edge is not None and self._at(edge):
                    known = waiting.get(edge, spans)
                    waiting[edge] = tuple(
                        (min(a, c), max(b, d)) for (a, b), (c, d) in zip(spans, known, strict=True)
                    )
        return waiting[self.x]


def _number(node: Any) -> int:
    """Of nodes their place on the tape; the input comes before all."""
    return node.number if isinstance(node, Function) else -1


def _before(node: Function, spans: Spans) -> Spans:
    """The input's pixels of a node that the pixels `spans` of its output depend on."""
    if isinstance(node, (Conv, ConvTranspose, MaxPool, AvgPool)):
        spec: Any = node.spec
        found = []
        axes = zip(spec.kernel, spec.dilation, spec.stride, spec.padding, strict=True)
        for (a, b), (k, d, s, (before, _)) in zip(spans, axes, strict=True):
            if isinstance(node, ConvTranspose):
                found.append((-(-(a + before - d * (k - 1)) // s), (b - 1 + before) // s + 1))
            else:
                found.append((a * s - before, (b - 1) * s - before + d * (k - 1) + 1))
        return tuple(found)
    if isinstance(node, AdaptiveMaxPool):
        sizes = zip(node.x_shape[2:], node.out, spans, strict=True)
        return tuple(_taken(bins(n, out), span) for n, out, span in sizes)
    if isinstance(node, Resample):
        return tuple(
            span if taps is None else _taken(_ends(taps), span)
            for taps, span in zip(node.taps, spans, strict=True)
        )
    return spans


def _ends(taps: Taps) -> tuple[np.ndarray, np.ndarray]:
    """The first input of each output, and the one after the last."""
    read = taps.weight != 0
    first = np.where(read, taps.index, taps.size).min(axis=1)
    return first, np.where(read, taps.index, 0).max(axis=1) + 1


def _taken(ends: tuple[np.ndarray, np.ndarray], span: tuple[int, int]) -> tuple[int, int]:
    """The inputs of the outputs `span`; those in the padding stand for their neighbours."""
    starts, stops = ends
    a = min(max(span[0], 0), len(starts) - 1)
    b = max(min(span[1], len(starts)), a + 1)
    return int(starts[a:b].min()), int(stops[a:b].max())
