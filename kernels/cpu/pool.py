"""Pooling of NCHW arrays: planes copied to a thread's own memory, apart by stride, then flat loops.

With stride (2, 2) and padding 1 a plane of x is split in 2 x 2 phases, padded with zeros or -inf:

    . . . . . .
    . a b c d .        phase 0,0: . . .   0,1: . . .   1,0: . b d   1,1: a c .
    . e f g h .                   . f h        e g .        . j l        i k .
    . i j k l .

The pixel of tap (r, s) of a window is in the phase (r, s) mod stride, and all phases have rows of
one `pitch`: so the pixels of one tap, of all windows, are one row of numbers, and vectors run along
whole planes, however narrow these are. What falls between rows is computed too, and not used.

    forward    x -> phases;  y[i] = maximum or sum over taps of phase[tap][i + offset[tap]];  -> y
    gradient   gy -> g, with zeros around;  phase[i] = sum over its taps of g[i + offset[tap]]
               (where the window took this tap, for a maximum);  phases -> gx

A unit is a group of planes, or a band of rows of one plane if that is large: what a thread's first
cache holds. Bands overlap in what they read, not in what they write. A task is one unit or several.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.kernels.cpu import compiler
from gpuconv.kernels.cpu.compiler import I32P, I64, I64P, Data, Kernel
from gpuconv.kernels.cpu.pool_last import spans
from gpuconv.kernels.cpu.pool_plane import pieces
from gpuconv.kernels.cpu.pool_rows import movers

BUDGET = 1 << 14  # bytes of phases a task should have
SEVERAL = 1 << 15  # numbers of x from which a second thread is worth its start
UNROLL = 4  # vectors at a time


def _forward(dtype: str, op: str) -> Callable[..., None]:
    """`op` is "max", "max_taps" or "avg"; `first`, of windows, is used by the second only."""
    import numba

    from gpuconv.kernels.cpu.choose import (
        as_ints,
        first_where,
        largest,
        later,
        load_ints,
        load_ints_part,
        splat_ints,
        store_ints_part,
    )
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, store, store_part

    width, inline = lanes(dtype), numba.njit(inline="always")
    spread, _ = movers(dtype)
    taps, mean = op == "max_taps", op == "avg"
    start = 0.0 if mean else -np.inf

    def with_tap(y: Any, tap: Any, v: Any, number: int) -> Any:
        return later(y, tap, v, number)

    def without(y: Any, tap: Any, v: Any, number: int) -> Any:
        return largest(y, v), tap

    def plus(y: Any, tap: Any, v: Any, number: int) -> Any:
        return y + v, tap

    step = inline(with_tap if taps else plus if mean else without)

    def forward(
        task: I64, thread: I64, x: Data, y: Data, tap: I32P, first: I32P, divisor: Data,
        offsets: I64P, scratch: Data, units: I64, each: I64, planes: I64, group: I64, bands: I64,
        band: I64, height: I64, image: I64, out_h: I64, out_w: I64, stride_h: I64, stride_w: I64,
        before_h: I64, before_w: I64, r_taps: I64, s_taps: I64, depth: I64, pitch: I64,
        columns: I64, slack: I64, fill: I64, times: I64, own_size: I64,
    ) -> None:  # fmt: skip
        for unit in range(task * each, min(task * each + each, units)):
            part = unit // bands
            p_first = (unit - part * bands) * band
            p_count = min(band, out_h - p_first)
            plane = part * group
            count = min(group, planes - plane)
            area, total = group * depth * pitch, count * depth * pitch
            own = scratch + thread * own_size
            sums = own + (stride_h * stride_w * area + slack)
            own_taps = as_ints(sums + (area + UNROLL * width))
            begin = splat(x, start)

            if fill == 1:
                for i in range(0, stride_h * stride_w * area, width):
                    store(own + i, begin)
            row_first = p_first * stride_h - before_h
            h_last = min(row_first + depth * stride_h, height)
            for k in range(count):
                source = x + (plane + k) * height * image
                for phase in range(stride_h):
                    u = max(stride_h - 1 - phase - row_first, 0) // stride_h
                    to = own + (phase * stride_w * area + (k * depth + u) * pitch)
                    for h in range(row_first + phase + u * stride_h, h_last, stride_h):
                        spread(source + h * image, to, area, columns, before_w, stride_w)
                        to = to + pitch

            none = splat_ints(begin, 0)
            for i in range(0, total, 4 * width):
                y0 = y1 = y2 = y3 = begin
                t0 = t1 = t2 = t3 = none
                for r in range(r_taps):
                    if mean:  # rows are summed first, so that errors stay those of short sums
                        v0 = v1 = v2 = v3 = begin
                    else:
                        v0, v1, v2, v3 = y0, y1, y2, y3
                    for s in range(s_taps):
                        number = r * s_taps + s
                        v = own + (i + offsets[number])
                        v0, t0 = step(v0, t0, load(v), number)
                        v1, t1 = step(v1, t1, load(v + width), number)
                        v2, t2 = step(v2, t2, load(v + 2 * width), number)
                        v3, t3 = step(v3, t3, load(v + 3 * width), number)
                    if mean:
                        y0, y1, y2, y3 = y0 + v0, y1 + v1, y2 + v2, y3 + v3
                    else:
                        y0, y1, y2, y3 = v0, v1, v2, v3
                store(sums + i, y0)
                store(sums + (i + width), y1)
                store(sums + (i + 2 * width), y2)
                store(sums + (i + 3 * width), y3)
                if taps:
                    store(own_taps + i, t0)
                    store(own_taps + (i + width), t1)
                    store(own_taps + (i + 2 * width), t2)
                    store(own_taps + (i + 3 * width), t3)

            lines, length = p_count, out_w
            if pitch == out_w:
                lines, length = 1, p_count * out_w
            for k in range(count):
                for line in range(lines):
                    at = (k * depth + line) * pitch
                    window = (p_first + line) * out_w
                    to_at = (plane + k) * out_h * out_w + window
                    j = 0
                    while j + width <= length:
                        value = load(sums + (at + j))
                        if mean:
                            by = load(divisor + (window + j))
                            value = value * by if times == 1 else value / by
                        store(y + (to_at + j), value)
                        if taps:
                            found = load_ints(value, own_taps + (at + j))
                            other = load_ints(value, first + (window + j))
                            store(tap + (to_at + j), first_where(found, value, other))
                        j += width
                    if j < length:
                        left = length - j
                        value = load(sums + (at + j))
                        if mean:
                            by = load_part(divisor + (window + j), left)
                            value = value * by if times == 1 else value / by
                        store_part(y + (to_at + j), value, left)
                        if taps:
                            found = load_ints(value, own_taps + (at + j))
                            other = load_ints_part(value, first + (window + j), left)
                            found = first_where(found, value, other)
                            store_ints_part(tap + (to_at + j), found, left)

    return forward


def _grad(dtype: str, largest: bool) -> Callable[..., None]:
    """Of a maximum, whose `tap`s say where gy goes, or of an average, with a `weight` a window."""
    import numba

    from gpuconv.kernels.cpu.choose import (
        add_where,
        as_ints,
        load_ints,
        load_ints_part,
        store_ints_part,
    )
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, store, store_part

    width, inline = lanes(dtype), numba.njit(inline="always")
    _, collect = movers(dtype)

    def max_step(sums: Any, g: Any, tap: Any, at: int, number: int) -> Any:
        return add_where(sums, load(g + at), load_ints(sums, tap + at), number)

    def avg_step(sums: Any, g: Any, tap: Any, at: int, number: int) -> Any:
        return sums + load(g + at)

    step = inline(max_step if largest else avg_step)

    def grad(
        task: I64, thread: I64, gy: Data, tap: I32P, weights: Data, gx: Data, offsets: I64P,
        numbers: I64P, phase_from: I64P, scratch: Data, units: I64, each: I64, planes: I64,
        group: I64, bands: I64, band: I64, height: I64, image: I64, out_h: I64, out_w: I64,
        stride_h: I64, stride_w: I64, before_h: I64, before_w: I64, reach: I64, depth: I64,
        pitch: I64, margin: I64, slack: I64, fill: I64, own_size: I64,
    ) -> None:  # fmt: skip
        for unit in range(task * each, min(task * each + each, units)):
            part = unit // bands
            u_first = (unit - part * bands) * band
            plane = part * group
            count = min(group, planes - plane)
            area, total = group * depth * pitch, count * depth * pitch
            g = scratch + (thread * own_size + margin)
            own_tap = g + (area + slack)
            own = own_tap + (area + slack)
            own_taps = as_ints(own_tap)
            zero = splat(gy, 0.0)

            if fill == 1:
                for i in range(-margin, area + slack - margin, width):
                    store(g + i, zero)
            p_first = max(u_first - reach, 0)
            lines, length = min(u_first + band, out_h) - p_first, out_w
            if pitch == out_w:
                lines, length = min(lines, 1), lines * out_w
            for k in range(count):
                for line in range(lines):
                    window = (p_first + line) * out_w
                    at = (k * depth + p_first + line - (u_first - reach)) * pitch
                    at_y = (plane + k) * out_h * out_w + window
                    j = 0
                    while j + width <= length:
                        value = load(gy + (at_y + j))
                        if largest:
                            store(own_taps + (at + j), load_ints(value, tap + (at_y + j)))
                        else:
                            value = value * load(weights + (window + j))
                        store(g + (at + j), value)
                        j += width
                    if j < length:
                        left = length - j
                        value = load_part(gy + (at_y + j), left)
                        if largest:
                            found = load_ints_part(value, tap + (at_y + j), left)
                            store_ints_part(own_taps + (at + j), found, left)
                        else:
                            value = value * load_part(weights + (window + j), left)
                        store_part(g + (at + j), value, left)

            for phase in range(stride_h * stride_w):
                to = own + phase * area
                k_first, k_last = phase_from[phase], phase_from[phase + 1]
                for i in range(0, total, 4 * width):
                    g0 = g1 = g2 = g3 = zero
                    for k in range(k_first, k_last):
                        at, number = i + offsets[k], numbers[k]
                        g0 = step(g0, g, own_taps, at, number)
                        g1 = step(g1, g, own_taps, at + width, number)
                        g2 = step(g2, g, own_taps, at + 2 * width, number)
                        g3 = step(g3, g, own_taps, at + 3 * width, number)
                    store(to + i, g0)
                    store(to + (i + width), g1)
                    store(to + (i + 2 * width), g2)
                    store(to + (i + 3 * width), g3)

            row_first = u_first * stride_h - before_h
            h_last = min(row_first + band * stride_h, height)
            for k in range(count):
                to = gx + (plane + k) * height * image
                for phase in range(stride_h):
                    u = max(stride_h - 1 - phase - row_first, 0) // stride_h
                    of = own + (phase * stride_w * area + (k * depth + u) * pitch)
                    for h in range(row_first + phase + u * stride_h, h_last, stride_h):
                        collect(to + h * image, of, area, image, before_w, stride_w)
                        of = of + pitch

    return grad


@dataclass(frozen=True)
class Cut:
    """How planes are laid out and cut: see the kernels' parameters of the same names."""

    rows: int  # of phases, or of y, in all bands together
    reach: int  # how many rows a tap reaches down the phases
    pitch: int
    group: int
    band: int
    bands: int

    @property
    def depth(self) -> int:
        return self.band + self.reach


def _cut(spec: Any, dtype: str, rows: int, pitch: int) -> Cut:
    stride_h, stride_w = spec.stride
    reach = (spec.kernel[0] - 1) * spec.dilation[0] // stride_h
    row = stride_h * stride_w * pitch * (4 if dtype == "float32" else 8)
    planes = spec.x_shape[0] * spec.x_shape[1]
    if (rows + reach) * row <= 2 * BUDGET:
        group = max(1, min(BUDGET // ((rows + reach) * row), -(-planes // 16)))
        return Cut(rows, reach, pitch, group, rows, 1)
    bands = -(-rows // max(BUDGET // row, 4 * reach, 1))
    band = -(-rows // bands)
    return Cut(rows, reach, pitch, 1, band, -(-rows // band))


def _places(spec: Any) -> list[tuple[int, int, int]]:
    """For each tap (phase, rows down, columns right) of its pixels in the phases."""
    (stride_h, stride_w), (by_h, by_w) = spec.stride, spec.dilation
    return [
        (r * by_h % stride_h * stride_w + s * by_w % stride_w, r * by_h // stride_h,
         s * by_w // stride_w)
        for r in range(spec.kernel[0]) for s in range(spec.kernel[1])
    ]  # fmt: skip


def _launch(
    device: Any, kernel: Kernel, spec: Any, dtype: str, cut: Cut, own_size: int, **numbers: int
) -> Callable[..., None]:
    n, c, height, image = spec.x_shape
    units = -(-n * c // cut.group) * cut.bands
    each = pieces(device, units, n * c * height * image, dtype, 1)
    run: Callable[..., None] = device.prepare(
        kernel, -(-units // each), units=units, each=each,
        scratch=own_size * (4 if dtype == "float32" else 8),
        several=n * c * height * image >= SEVERAL, planes=n * c, group=cut.group, bands=cut.bands,
        band=cut.band, height=height, image=image, out_h=spec.y_shape[2], out_w=spec.y_shape[3],
        stride_h=spec.stride[0], stride_w=spec.stride[1], before_h=spec.padding[0][0],
        before_w=spec.padding[1][0], depth=cut.depth, pitch=cut.pitch, own_size=own_size, **numbers,
    )  # fmt: skip
    return run


def _width(dtype: str) -> int:
    return compiler.current().vector // (4 if dtype == "float32" else 8)


def _forward_run(
    device: Any, spec: Any, dtype: str, op: str, times: bool = False
) -> tuple[Any, Any]:
    """The launch, and the offsets of the taps."""
    kernel = Kernel(f"pool_{op}", _forward, (("dtype", dtype), ("op", op)))
    across = (spec.kernel[1] - 1) * spec.dilation[1] // spec.stride[1]
    cut = _cut(spec, dtype, spec.y_shape[2], spec.y_shape[3] + across)
    area, block = cut.group * cut.depth * cut.pitch, UNROLL * _width(dtype)
    places = _places(spec)
    offsets = [phase * area + down * cut.pitch + right for phase, down, right in places]
    slack = cut.reach * cut.pitch + across + block
    own = spec.stride[0] * spec.stride[1] * area + slack + 2 * (area + block)
    run = _launch(
        device, kernel, spec, dtype, cut, -(-own // 64) * 64,
        r_taps=spec.kernel[0], s_taps=spec.kernel[1], slack=slack,
        columns=min(spec.x_shape[3], cut.pitch * spec.stride[1] - spec.padding[1][0]),
        fill=int(max(map(max, spec.window)) > 0), times=int(times),
    )  # fmt: skip
    return run, np.ascontiguousarray(np.array(offsets, dtype=np.int64))


def max_pool(device: Any, spec: Any, dtype: str, taps: bool) -> Callable[..., None]:
    """run(x, y, tap); tap is None without `taps`."""
    run, offsets = _forward_run(device, spec, dtype, "max_taps" if taps else "max")
    rows, columns = (spans(spec, axis)[:, 0] for axis in range(2))
    first = np.ascontiguousarray(rows[:, None] * np.int32(spec.kernel[1]) + columns)
    return lambda x, y, tap: run(x, y, tap, first, None, offsets)


def avg_pool(device: Any, spec: Any, dtype: str, times: bool) -> Callable[..., None]:
    """run(x, divisor, y): divisor (P, Q), of the dtype; what to multiply by if `times`."""
    run, offsets = _forward_run(device, spec, dtype, "avg", times)
    return lambda x, divisor, y: run(x, y, None, None, divisor, offsets)


def max_pool_grad(device: Any, spec: Any, dtype: str) -> Callable[..., None]:
    """run(gy, tap, gx)."""
    run, tables = _grad_run(device, spec, dtype, True)
    return lambda gy, tap, gx: run(gy, tap, None, gx, *tables)


def avg_pool_grad(device: Any, spec: Any, dtype: str) -> Callable[..., None]:
    """run(gy, weight, gx): weight (P, Q), of the dtype, one over the divisor."""
    run, tables = _grad_run(device, spec, dtype, False)
    return lambda gy, weight, gx: run(gy, None, weight, gx, *tables)


def _grad_run(device: Any, spec: Any, dtype: str, largest: bool) -> tuple[Any, Any]:
    """The launch, and tables of the taps of each phase: offsets, numbers, where phases begin."""
    kernel = Kernel("pool_grad", _grad, (("dtype", dtype), ("largest", largest)))
    (out_h, out_w), (stride_h, stride_w) = spec.y_shape[2:], spec.stride
    rows, columns = (
        -(-(spec.x_shape[2 + axis] + spec.padding[axis][0]) // spec.stride[axis])
        for axis in range(2)
    )
    across = (spec.kernel[1] - 1) * spec.dilation[1] // stride_w
    cut = _cut(spec, dtype, rows, max(columns, out_w + across))
    area, block = cut.group * cut.depth * cut.pitch, UNROLL * _width(dtype)
    phases: list[list[tuple[int, int]]] = [[] for _ in range(stride_h * stride_w)]
    for number, (phase, down, right) in enumerate(_places(spec)):
        phases[phase].append(((cut.reach - down) * cut.pitch - right, number))
    flat = np.array([tap for several in phases for tap in several], dtype=np.int64)
    begins = np.cumsum([0, *map(len, phases)], dtype=np.int64)
    margin = -(-across // block) * block
    slack = margin + cut.reach * cut.pitch + block
    own = 2 * (area + slack) + stride_h * stride_w * area + block + margin
    dense = cut.reach == across == 0 and cut.pitch == out_w and rows == out_h
    run = _launch(
        device, kernel, spec, dtype, cut, -(-own // 64) * 64,
        reach=cut.reach, margin=margin, slack=slack, fill=int(not dense),
    )  # fmt: skip
    return run, (
        np.ascontiguousarray(flat[:, 0]),
        np.ascontiguousarray(flat[:, 1]),
        np.ascontiguousarray(begins),
    )
