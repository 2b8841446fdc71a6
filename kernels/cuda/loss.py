"""Softmax cross entropy of labels, and its gradient, at every position of (N, C, *in).

    thread  `lanes` neighbouring threads share a position; each takes every `lanes`th class, four at
            a time so that four loads are under way. Where a position's scores are adjacent in
            memory ((N, C), or channels-last), lanes is C rounded up to a power of two, 32 at most:
            a warp reads whole rows. In NCHW it is 1, neighbours take neighbouring positions; more
            only where there are too few positions to fill the GPU.
    grid.x  256 threads a block over N * prod(in) * lanes

Forward: the largest score, then the sum of exp(score - largest), each over a thread's classes and
then over its lanes, by shuffles in a fixed order. With label smoothing also the sums of w and of
w * (score - largest). Both the largest score and the sum's logarithm are kept for the gradient:
their own sum would lose the digits of the second where scores are large. No shared memory.

Infinite scores and NaN go through the arithmetic as in array code. Labels are 64-bit integers.
"""

from collections.abc import Callable
from math import exp, inf, log, prod
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.cuda.compiler import F32, I32, I64, I64P, Float, Kernel
from gpuconv.kernels.cuda.plan import blocks
from gpuconv.kernels.cuda.ptx import div, i32, inline, load_nc, rem, shuffle_xor, store

THREADS = 256
FLOAT32, f32 = np.dtype("float32"), types.float32
ZERO, ONE, LOWEST = f32(0), f32(1), f32(-inf)


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    return [FORWARD, GRAD]


@inline
def place(lanes: Any, positions: Any, C: Any, inner: Any) -> Any:
    """(position, lane, base) of a thread; the position is `positions` or more for those left over,
    and base, the place of class 0 in x, is one that can be read for them too."""
    t = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
    position = div(t, lanes)
    n = i32(min(position, positions - 1))
    return position, rem(t, lanes), i32(div(n, inner) * C * inner + rem(n, inner))


@inline
def total(v: Any, lanes: Any) -> Any:
    """The sum of v over the lanes of a position."""
    mask = i32(lanes >> 1)
    while mask > 0:
        v += shuffle_xor(v, mask)
        mask = i32(mask >> 1)
    return v


def _forward() -> Callable[..., None]:
    def cross_entropy(
        x: F32, target: I64P, w: F32, loss: F32, peaks: F32, logs: F32,
        positions: I32, C: I32, inner: I32, lanes: I32, has_w: I32, smooth: I32,
        ignore: I64, minus: Float, spread: Float,
    ) -> None:  # fmt: skip
        """minus = smoothing - 1, spread = smoothing / C."""
        position, lane, base = place(lanes, positions, C, inner)
        peak, c, end = LOWEST, lane, i32(C - 1)
        while c < C:
            for j in range(4):
                # Past the last class the last one again, which changes no maximum.
                v = load_nc(x, i32(base + i32(min(i32(c + j * lanes), end)) * inner))
                peak = v if v > peak else peak
            c = i32(c + 4 * lanes)
        mask = i32(lanes >> 1)
        while mask > 0:
            v = shuffle_xor(peak, mask)
            peak = v if v > peak else peak
            mask = i32(mask >> 1)
        exps, tilt, weights, c = ZERO, ZERO, ZERO, lane
        while c < C:
            e, t, q = ZERO, ZERO, ZERO
            for j in range(4):
                k = i32(c + j * lanes)
                d = load_nc(x, i32(base + i32(min(k, end)) * inner)) - peak
                if k < C:
                    e += exp(d)
                    if smooth:
                        weight = load_nc(w, k) if has_w else ONE
                        t += weight * d
                        q += weight
            exps, tilt, weights = exps + e, tilt + t, weights + q
            c = i32(c + 4 * lanes)
        exps = total(exps, lanes)
        if smooth:
            tilt, weights = total(tilt, lanes), total(weights, lanes)
        if lane > 0 or position >= positions:
            return
        rest, label, result = log(exps), load_nc(target, position), ZERO
        if label != ignore:
            at = i32(label)
            weight = load_nc(w, at) if has_w else ONE
            result = (load_nc(x, i32(base + at * inner)) - peak - rest) * weight * minus
            if smooth:
                result -= (tilt - rest * weights) * spread
        store(loss, position, result)
        store(peaks, position, peak)
        store(logs, position, rest)

    return cross_entropy


def _grad() -> Callable[..., None]:
    def cross_entropy_grad(
        g: F32, x: F32, peaks: F32, logs: F32, target: I64P, w: F32, w_sum: F32, gx: F32,
        positions: I32, C: I32, inner: I32, lanes: I32, g_step: I32, has_w: I32, smooth: I32,
        ignore: I64, keep: Float, spread: Float,
    ) -> None:  # fmt: skip
        """keep = 1 - smoothing, spread = smoothing / C; g_step 0: all of g is one number."""
        position, lane, base = place(lanes, positions, C, inner)
        if position >= positions:
            return
        peak, rest = load_nc(peaks, position), load_nc(logs, position)
        slope, label = load_nc(g, i32(position * g_step)), load_nc(target, position)
        at, here, everywhere = i32(-1), ZERO, ZERO
        if label != ignore:
            at = i32(label)
            here = slope * (load_nc(w, at) if has_w else ONE) * keep
            everywhere = slope * spread if smooth else ZERO
        factor = here
        if smooth:
            factor += everywhere * (load_nc(w_sum, i32(0)) if has_w else f32(C))
        c, end = lane, i32(C - 1)
        while c < C:
            for j in range(4):
                k = i32(c + j * lanes)
                i = i32(base + i32(min(k, end)) * inner)
                v = exp(load_nc(x, i) - peak - rest) * factor
                if k < C:
                    if k == at:
                        v -= here
                    if smooth:
                        v -= everywhere * load_nc(w, k) if has_w else everywhere
                    store(gx, i, v)
            c = i32(c + 4 * lanes)

    return cross_entropy_grad


FORWARD = Kernel("cross_entropy", _forward, (), THREADS)
GRAD = Kernel("cross_entropy_grad", _grad, (), THREADS)


def supports(shape: tuple[int, ...], dtype: Any) -> bool:
    """Float32, indices of 32 bits (also with 32 threads a position), and not nothing."""
    positions = shape[0] * prod(shape[2:])
    size = positions * max(shape[1], 32)
    return dtype == FLOAT32 and positions * shape[1] > 0 and size < 2**31 - 2**10


def forward(
    device: Any,
    shape: tuple[int, ...],
    channels_last: bool,
    has_w: bool,
    ignore_index: int,
    smoothing: float,
) -> Callable[..., None]:
    """A launch on x, target and w (or None), giving the loss, the largest score and the logarithm
    of the sum of every position; target contiguous, x as `channels_last` says."""
    grid, numbers = _numbers(device, shape, channels_last, has_w, ignore_index, smoothing)
    return device.prepare(FORWARD, grid, minus=smoothing - 1, **numbers)


def grad(
    device: Any,
    shape: tuple[int, ...],
    channels_last: bool,
    has_w: bool,
    ignore_index: int,
    smoothing: float,
    g_step: int,
) -> Callable[..., None]:
    """A launch on g, x, the two things kept, target, w and w's sum (or None), giving gx as x.

    g is contiguous, or `g_step` is 0 and it is one number for all.
    """
    grid, numbers = _numbers(device, shape, channels_last, has_w, ignore_index, smoothing)
    return device.prepare(GRAD, grid, keep=1 - smoothing, g_step=g_step, **numbers)


def _numbers(
    device: Any,
    shape: tuple[int, ...],
    channels_last: bool,
    has_w: bool,
    ignore_index: int,
    smoothing: float,
) -> tuple[tuple[int, int, int], dict[str, Any]]:
    C, inner = shape[1], prod(shape[2:])
    positions, lanes = shape[0] * inner, 1
    if channels_last or inner == 1:
        inner, lanes = 1, min(32, 1 << (C - 1).bit_length())
    else:
        while 2 * lanes <= min(32, C // 4) and 2 * lanes * positions <= 1024 * device.sms:
            lanes *= 2
    numbers = {
        "positions": positions,
        "C": C,
        "inner": inner,
        "lanes": lanes,
        "has_w": has_w,
        "smooth": smoothing != 0,
        "ignore": int(ignore_index),
        "spread": smoothing / C,
    }
    return blocks(positions * lanes, THREADS), numbers
