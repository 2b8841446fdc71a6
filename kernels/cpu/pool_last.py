"""Pooling of channels-last arrays, (N, H, W, C) in memory: vectors lie along the channels.

    x   H x W pixels of C numbers        y   P x Q pixels of C numbers

    forward   for a pixel of y, up to 4 vectors of channels in registers:
              for its window's taps (r, s) inside the image: one vector of x each
    gradient  for a pixel of x, up to 4 vectors of channels in registers:
              for the (p, r) whose row p of y has this row at tap r, and (q, s) likewise:
              one vector of gy (and of taps) each, row-major by taps

Nothing is copied and nothing is written twice. Which taps and pixels meet is in tables, made once
a plan, so that strides, dilation, padding and ceil_mode are no matter here. A task is some rows of
the result, or a block of its channels where rows are few; it reads whatever it needs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.kernels.cpu import compiler
from gpuconv.kernels.cpu.compiler import I32P, I64, Data, Kernel
from gpuconv.kernels.cpu.pool_plane import pieces

UNROLL = 4  # vectors of channels at a time
TASK = 1 << 13  # numbers that a task should read at least
SEVERAL = 1 << 15  # numbers from which a second thread is worth its start


def _max_forward(dtype: str, taps: bool) -> Callable[..., None]:
    import numba

    from gpuconv.kernels.cpu.choose import largest, later, splat_ints, store_ints_part
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, store, store_part

    width, inline = lanes(dtype), numba.njit(inline="always")

    def with_tap(y: Any, tap: Any, v: Any, number: int) -> Any:
        return later(y, tap, v, number)

    def without(y: Any, tap: Any, v: Any, number: int) -> Any:
        return largest(y, v), tap

    step = inline(with_tap if taps else without)

    def max_forward(
        task: I64, thread: I64, x: Data, y: Data, tap: I32P, rows: I32P, columns: I32P, height: I64,
        image: I64, channels: I64, out_h: I64, out_w: I64, s_taps: I64, stride_h: I64,
        stride_w: I64, before_h: I64, before_w: I64, dilation_h: I64, dilation_w: I64, count: I64,
        each: I64, blocks: I64, block: I64,
    ) -> None:  # fmt: skip
        part = task // blocks
        c_first = (task - part * blocks) * block
        c_last = min(c_first + block, channels)
        down, right = dilation_h * image * channels, dilation_w * channels
        for row in range(part * each, min(part * each + each, count)):
            n = row // out_h
            p = row - n * out_h
            r_first, r_last = rows[2 * p], rows[2 * p + 1]
            line = x + (n * height + p * stride_h - before_h) * image * channels
            for q in range(out_w):
                s_first, s_last = columns[2 * q], columns[2 * q + 1]
                pixel = line + (q * stride_w - before_w) * channels
                at = (row * out_w + q) * channels
                first = r_first * s_taps + s_first
                c = c_first
                while c + 4 * width <= c_last:
                    y0 = splat(x, -np.inf)
                    y1 = y2 = y3 = y0
                    t0 = splat_ints(y0, first)
                    t1 = t2 = t3 = t0
                    for r in range(r_first, r_last):
                        for s in range(s_first, s_last):
                            v = pixel + (r * down + s * right + c)
                            number = r * s_taps + s
                            y0, t0 = step(y0, t0, load(v), number)
                            y1, t1 = step(y1, t1, load(v + width), number)
                            y2, t2 = step(y2, t2, load(v + 2 * width), number)
                            y3, t3 = step(y3, t3, load(v + 3 * width), number)
                    store(y + (at + c), y0)
                    store(y + (at + c + width), y1)
                    store(y + (at + c + 2 * width), y2)
                    store(y + (at + c + 3 * width), y3)
                    if taps:
                        store(tap + (at + c), t0)
                        store(tap + (at + c + width), t1)
                        store(tap + (at + c + 2 * width), t2)
                        store(tap + (at + c + 3 * width), t3)
                    c += 4 * width
                while c < c_last:
                    left = c_last - c
                    y0 = splat(x, -np.inf)
                    t0 = splat_ints(y0, first)
                    for r in range(r_first, r_last):
                        for s in range(s_first, s_last):
                            v = pixel + (r * down + s * right + c)
                            y0, t0 = step(y0, t0, load_part(v, left), r * s_taps + s)
                    store_part(y + (at + c), y0, left)
                    if taps:
                        store_ints_part(tap + (at + c), t0, left)
                    c += width

    return max_forward


def _avg_forward(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, store, store_part

    width = lanes(dtype)

    def avg_forward(
        task: I64, thread: I64, x: Data, divisor: Data, y: Data, rows: I32P, columns: I32P,
        height: I64, image: I64, channels: I64, out_h: I64, out_w: I64, stride_h: I64,
        stride_w: I64, before_h: I64, before_w: I64, count: I64, each: I64, blocks: I64, block: I64,
        times: I64,
    ) -> None:  # fmt: skip
        part = task // blocks
        c_first = (task - part * blocks) * block
        c_last = min(c_first + block, channels)
        zero = splat(x, 0.0)
        for row in range(part * each, min(part * each + each, count)):
            n = row // out_h
            p = row - n * out_h
            r_first, r_last = rows[2 * p], rows[2 * p + 1]
            line = x + (n * height + p * stride_h - before_h) * image * channels
            for q in range(out_w):
                s_first, s_last = columns[2 * q], columns[2 * q + 1]
                pixel = line + (q * stride_w - before_w) * channels
                at = (row * out_w + q) * channels
                by = splat(x, divisor[p * out_w + q])
                c = c_first
                while c + 4 * width <= c_last:
                    y0 = y1 = y2 = y3 = zero
                    for r in range(r_first, r_last):
                        # Rows are summed first, so that errors stay those of short sums.
                        v0 = v1 = v2 = v3 = zero
                        for s in range(s_first, s_last):
                            v = pixel + ((r * image + s) * channels + c)
                            v0 = v0 + load(v)
                            v1 = v1 + load(v + width)
                            v2 = v2 + load(v + 2 * width)
                            v3 = v3 + load(v + 3 * width)
                        y0, y1, y2, y3 = y0 + v0, y1 + v1, y2 + v2, y3 + v3
                    if times == 1:
                        y0, y1, y2, y3 = y0 * by, y1 * by, y2 * by, y3 * by
                    else:
                        y0, y1, y2, y3 = y0 / by, y1 / by, y2 / by, y3 / by
                    store(y + (at + c), y0)
                    store(y + (at + c + width), y1)
                    store(y + (at + c + 2 * width), y2)
                    store(y + (at + c + 3 * width), y3)
                    c += 4 * width
                while c < c_last:
                    left = c_last - c
                    y0 = zero
                    for r in range(r_first, r_last):
                        v0 = zero
                        for s in range(s_first, s_last):
                            v = pixel + ((r * image + s) * channels + c)
                            v0 = v0 + load_part(v, left)
                        y0 = y0 + v0
                    y0 = y0 * by if times == 1 else y0 / by
                    store_part(y + (at + c), y0, left)
                    c += width

    return avg_forward


def _grad(dtype: str, largest: bool) -> Callable[..., None]:
    """Of a maximum, whose `tap`s say where gy goes, or of an average, with a `weight` a window."""
    import numba

    from gpuconv.kernels.cpu.choose import add_where, load_ints, load_ints_part
    from gpuconv.kernels.cpu.vector import fma, lanes, load, load_part, splat, store, store_part

    width, inline = lanes(dtype), numba.njit(inline="always")

    def max_step(sums: Any, gy: Any, tap: Any, weight: Any, at: int, number: int) -> Any:
        return add_where(sums, load(gy + at), load_ints(sums, tap + at), number)

    def max_part(sums: Any, gy: Any, tap: Any, weight: Any, at: int, number: int, left: int) -> Any:
        taps = load_ints_part(sums, tap + at, left)
        return add_where(sums, load_part(gy + at, left), taps, number)

    def avg_step(sums: Any, gy: Any, tap: Any, weight: Any, at: int, number: int) -> Any:
        return fma(load(gy + at), weight, sums)

    def avg_part(sums: Any, gy: Any, tap: Any, weight: Any, at: int, number: int, left: int) -> Any:
        return fma(load_part(gy + at, left), weight, sums)

    step = inline(max_step if largest else avg_step)
    part_step = inline(max_part if largest else avg_part)

    def grad(
        task: I64, thread: I64, gy: Data, tap: I32P, weights: Data, gx: Data, row_from: I32P,
        row_pairs: I32P, column_from: I32P, column_pairs: I32P, height: I64, image: I64,
        channels: I64, out_h: I64, out_w: I64, s_taps: I64, count: I64, each: I64, blocks: I64,
        block: I64,
    ) -> None:  # fmt: skip
        part = task // blocks
        c_first = (task - part * blocks) * block
        c_last = min(c_first + block, channels)
        zero = splat(gx, 0.0)
        for row in range(part * each, min(part * each + each, count)):
            n = row // height
            h = row - n * height
            i_first, i_last = row_from[h], row_from[h + 1]
            for w in range(image):
                j_first, j_last = column_from[w], column_from[w + 1]
                to = gx + (row * image + w) * channels
                c = c_first
                while c + 4 * width <= c_last:
                    g0 = g1 = g2 = g3 = zero
                    for i in range(i_first, i_last):
                        p, r = row_pairs[2 * i], row_pairs[2 * i + 1]
                        for j in range(j_first, j_last):
                            q, number = column_pairs[2 * j], r * s_taps + column_pairs[2 * j + 1]
                            at = ((n * out_h + p) * out_w + q) * channels + c
                            by = zero if largest else splat(gx, weights[p * out_w + q])
                            g0 = step(g0, gy, tap, by, at, number)
                            g1 = step(g1, gy, tap, by, at + width, number)
                            g2 = step(g2, gy, tap, by, at + 2 * width, number)
                            g3 = step(g3, gy, tap, by, at + 3 * width, number)
                    store(to + c, g0)
                    store(to + (c + width), g1)
                    store(to + (c + 2 * width), g2)
                    store(to + (c + 3 * width), g3)
                    c += 4 * width
                while c < c_last:
                    left = c_last - c
                    g0 = zero
                    for i in range(i_first, i_last):
                        p, r = row_pairs[2 * i], row_pairs[2 * i + 1]
                        for j in range(j_first, j_last):
                            q, number = column_pairs[2 * j], r * s_taps + column_pairs[2 * j + 1]
                            at = ((n * out_h + p) * out_w + q) * channels + c
                            by = zero if largest else splat(gx, weights[p * out_w + q])
                            g0 = part_step(g0, gy, tap, by, at, number, left)
                    store_part(to + c, g0, left)
                    c += width

    return grad


def max_pool(device: Any, spec: Any, dtype: str, taps: bool) -> Callable[..., None]:
    """run(x, y, tap); tap is None without `taps`."""
    kernel = Kernel("pool_last_max", _max_forward, (("dtype", dtype), ("taps", taps)))
    rows, columns = (np.ascontiguousarray(spans(spec, axis)) for axis in range(2))
    numbers = _forward_numbers(spec)
    numbers.update(s_taps=spec.kernel[1])
    numbers.update(dilation_h=spec.dilation[0], dilation_w=spec.dilation[1])
    run = _prepared(device, kernel, spec, dtype, spec.y_shape, numbers)
    return lambda x, y, tap: run(x, y, tap, rows, columns)


def avg_pool(device: Any, spec: Any, dtype: str, times: bool) -> Callable[..., None]:
    """run(x, divisor, y): divisor (P, Q), of the dtype; what to multiply by if `times`."""
    kernel = Kernel("pool_last_avg", _avg_forward, (("dtype", dtype),))
    rows, columns = (np.ascontiguousarray(spans(spec, axis)) for axis in range(2))
    numbers = {**_forward_numbers(spec), "times": int(times)}
    run = _prepared(device, kernel, spec, dtype, spec.y_shape, numbers)
    return lambda x, divisor, y: run(x, divisor, y, rows, columns)


def max_pool_grad(device: Any, spec: Any, dtype: str) -> Callable[..., None]:
    """run(gy, tap, gx)."""
    run, tables = _grad_run(device, spec, dtype, True)
    return lambda gy, tap, gx: run(gy, tap, None, gx, *tables)


def avg_pool_grad(device: Any, spec: Any, dtype: str) -> Callable[..., None]:
    """run(gy, weight, gx): weight (P, Q), of the dtype, one over the divisor."""
    run, tables = _grad_run(device, spec, dtype, False)
    return lambda gy, weight, gx: run(gy, None, weight, gx, *tables)


def _grad_run(device: Any, spec: Any, dtype: str, largest: bool) -> tuple[Any, Any]:
    kernel = Kernel("pool_last_grad", _grad, (("dtype", dtype), ("largest", largest)))
    numbers = {
        "height": spec.x_shape[2], "image": spec.x_shape[3], "channels": spec.x_shape[1],
        "out_h": spec.y_shape[2], "out_w": spec.y_shape[3], "s_taps": spec.kernel[1],
    }  # fmt: skip
    run = _prepared(device, kernel, spec, dtype, spec.x_shape, numbers)
    return run, [np.ascontiguousarray(table) for axis in range(2) for table in meetings(spec, axis)]


def _forward_numbers(spec: Any) -> dict[str, int]:
    return {
        "height": spec.x_shape[2], "image": spec.x_shape[3], "channels": spec.x_shape[1],
        "out_h": spec.y_shape[2], "out_w": spec.y_shape[3], "stride_h": spec.stride[0],
        "stride_w": spec.stride[1], "before_h": spec.padding[0][0], "before_w": spec.padding[1][0],
    }  # fmt: skip


def _prepared(
    device: Any, kernel: Kernel, spec: Any, dtype: str, shape: Any, numbers: dict[str, int]
) -> Callable[..., None]:
    """The launch for a result of `shape`, cut into tasks."""
    n, c, h, w = spec.x_shape
    count, size = shape[0] * shape[2], n * c * h * w
    each = pieces(device, count, size, dtype, max(1, TASK * count // size))
    unit = UNROLL * compiler.current().vector // (4 if dtype == "float32" else 8)
    block = c
    if count < 16:
        block = max(unit, TASK * count // (size // c) // unit * unit)
    blocks = -(-c // block)
    run: Callable[..., None] = device.prepare(
        kernel,
        -(-count // each) * blocks,
        several=size >= SEVERAL,
        count=count,
        each=each,
        blocks=blocks,
        block=block,
        **numbers,
    )
    return run


def spans(spec: Any, axis: int) -> Any:
    """int32 (out, 2): the first tap of each window along an axis that is in the image, and the end.

    Where dilation is larger than the image none may be: then the end is not after the first.
    """
    start = np.arange(spec.y_shape[2 + axis]) * spec.stride[axis] - spec.padding[axis][0]
    by, size = spec.dilation[axis], spec.x_shape[2 + axis]
    first = np.maximum(-(start // by), 0)
    last = np.minimum(-((start - size) // by), spec.kernel[axis])
    return np.ascontiguousarray(np.stack([first, last], 1).astype(np.int32))


def meetings(spec: Any, axis: int) -> tuple[Any, Any]:
    """Which windows have a pixel along an axis: int32 (in + 1,) and (all, 2).

    The pairs (window, tap) of pixel i, by taps, are those from number found[i] to found[i + 1].
    """
    out, size = spec.y_shape[2 + axis], spec.x_shape[2 + axis]
    pairs: list[list[tuple[int, int]]] = [[] for _ in range(size)]
    for tap in range(spec.kernel[axis]):
        for window in range(out):
            at = window * spec.stride[axis] - spec.padding[axis][0] + tap * spec.dilation[axis]
            if 0 <= at < size:
                pairs[at].append((window, tap))
    found = np.cumsum([0, *map(len, pairs)]).astype(np.int32)
    flat = [pair for several in pairs for pair in several]
    return found, np.array(flat, dtype=np.int32).reshape(-1, 2)
