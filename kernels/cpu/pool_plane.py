"""Pooling of whole planes of NCHW arrays: one window, all of it image, as in global pooling.

A plane is one row of numbers, whatever its shape. Lane i of vector v holds what the numbers with
those places in each step of 4 vectors gave; at the end of a plane these are put together, always in
the same order. A task is some planes, of which nothing is copied.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from gpuconv.kernels.cpu import compiler
from gpuconv.kernels.cpu.compiler import I32P, I64, Data, Kernel

SEVERAL = 1 << 15  # numbers of x from which a second thread is worth its start
TASK = 1 << 16  # numbers of x a task should have at least
CACHED = 1 << 20  # bytes of an array that a processor's caches hold beside others


def supports(spec: Any) -> bool:
    """True for one window that is the whole plane."""
    return (
        prod(spec.y_shape[2:]) == prod(spec.dilation) == 1
        and spec.kernel == spec.x_shape[2:]
        and not any(before for before, _ in spec.padding)
    )


def _avg(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, total

    width = lanes(dtype)

    def avg(
        task: I64, thread: I64, x: Data, divisor: Data, y: Data, planes: I64, each: I64,
        size: I64, times: I64,
    ) -> None:  # fmt: skip
        zero = splat(x, 0.0)
        for plane in range(task * each, min(task * each + each, planes)):
            of = x + plane * size
            v0 = v1 = v2 = v3 = zero
            i = 0
            while i + 4 * width <= size:
                v0 = v0 + load(of + i)
                v1 = v1 + load(of + (i + width))
                v2 = v2 + load(of + (i + 2 * width))
                v3 = v3 + load(of + (i + 3 * width))
                i += 4 * width
            while i < size:
                v0 = v0 + load_part(of + i, size - i)
                i += width
            value, by = total((v0 + v1) + (v2 + v3)), divisor[0]
            y[plane] = value * by if times == 1 else value / by

    return avg


def _max(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.choose import as_ints, later, splat_ints
    from gpuconv.kernels.cpu.vector import lanes, load, splat, store

    width = lanes(dtype)

    def largest(
        task: I64, thread: I64, x: Data, y: Data, tap: I32P, scratch: Data, planes: I64, each: I64,
        size: I64, own_size: I64, taps: I64,
    ) -> None:  # fmt: skip
        values = scratch + thread * own_size
        steps = as_ints(values + 2 * width)
        begin = splat(x, -np.inf)
        none = splat_ints(begin, 0)
        for plane in range(task * each, min(task * each + each, planes)):
            of = x + plane * size
            y0 = y1 = begin
            t0 = t1 = none
            i = 0
            while i + 2 * width <= size:
                y0, t0 = later(y0, t0, load(of + i), i)
                y1, t1 = later(y1, t1, load(of + (i + width)), i)
                i += 2 * width
            store(values, y0)
            store(values + width, y1)
            store(steps, t0)
            store(steps + width, t1)
            best: Any = of[0]
            at: Any = 0
            if i > 0:
                # Of equal lanes the first number, of several NaN the last: as one by one.
                best, at = values[0], np.int64(steps[0])
                for lane in range(1, 2 * width):
                    v, place = values[lane], np.int64(steps[lane]) + lane
                    if v != v:
                        if best == best or place > at:
                            best, at = v, place
                    elif v > best or (v == best and place < at):
                        best, at = v, place
                if best == -np.inf:
                    at = 0
            while i < size:
                v = of[i]
                if v > best or v != v:
                    best, at = v, i
                i += 1
            y[plane] = best
            if taps == 1:
                tap[plane] = np.int32(at)

    return largest


def _grad(dtype: str, largest: bool) -> Callable[..., None]:
    """Of a maximum, at `tap`; or of an average, `weight` to each."""
    from gpuconv.kernels.cpu.vector import lanes, splat, store, store_part

    width = lanes(dtype)

    def grad(
        task: I64, thread: I64, gy: Data, tap: I32P, weight: Data, gx: Data, planes: I64,
        each: I64, size: I64,
    ) -> None:  # fmt: skip
        for plane in range(task * each, min(task * each + each, planes)):
            to = gx + plane * size
            value = splat(gx, 0.0)
            if not largest:
                value = splat(gx, gy[plane] * weight[0])
            i = 0
            while i + width <= size:
                store(to + i, value)
                i += width
            if i < size:
                store_part(to + i, value, size - i)
            if largest:
                to[tap[plane]] = gy[plane]

    return grad


def max_pool(device: Any, spec: Any, dtype: str, taps: bool) -> Callable[..., None]:
    """run(x, y, tap); tap is None without `taps`."""
    kernel = Kernel("pool_plane_max", _max, (("dtype", dtype),))
    item = 4 if dtype == "float32" else 8
    own = 4 * compiler.current().vector // item
    return _prepared(device, kernel, spec, dtype, scratch=own * item, own_size=own, taps=int(taps))


def avg_pool(device: Any, spec: Any, dtype: str, times: bool) -> Callable[..., None]:
    """run(x, divisor, y): divisor one number of the dtype; what to multiply by if `times`."""
    kernel = Kernel("pool_plane_avg", _avg, (("dtype", dtype),))
    return _prepared(device, kernel, spec, dtype, times=int(times))


def max_pool_grad(device: Any, spec: Any, dtype: str) -> Callable[..., None]:
    """run(gy, tap, gx)."""
    kernel = Kernel("pool_plane_grad", _grad, (("dtype", dtype), ("largest", True)))
    run = _prepared(device, kernel, spec, dtype)
    return lambda gy, tap, gx: run(gy, tap, None, gx)


def avg_pool_grad(device: Any, spec: Any, dtype: str) -> Callable[..., None]:
    """run(gy, weight, gx): weight one number of the dtype, one over the divisor."""
    kernel = Kernel("pool_plane_grad", _grad, (("dtype", dtype), ("largest", False)))
    run = _prepared(device, kernel, spec, dtype)
    return lambda gy, weight, gx: run(gy, None, weight, gx)


def _prepared(
    device: Any, kernel: Kernel, spec: Any, dtype: str, *, scratch: int = 0, **numbers: int
) -> Callable[..., None]:
    planes, size = prod(spec.x_shape[:2]), prod(spec.x_shape[2:])
    each = pieces(device, planes, planes * size, dtype, -(-TASK // size))
    run: Callable[..., None] = device.prepare(
        kernel, -(-planes // each), scratch=scratch, several=planes * size >= SEVERAL,
        planes=planes, each=each, size=size, **numbers,
    )  # fmt: skip
    return run


def pieces(device: Any, count: int, size: int, dtype: str, least: int) -> int:
    """How many of `count` equal parts of an array of `size` numbers a task takes.

    Of arrays that stay in the caches each thread takes one piece, the same one every time. (No bit
    of a result depends on which parts are computed together.)
    """
    if size * (4 if dtype == "float32" else 8) <= 2 * CACHED * device.threads:
        return -(-count // device.threads)
    return least
