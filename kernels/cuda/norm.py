"""Batch normalisation in training: statistics in one pass over x, then the normalised numbers.

    statistics    x -> (count, mean, M2) of a channel's splits, M2 the sum of squared deviations
    combine       one block a channel: its splits together, in a fixed tree -> mean, variance
    apply         y = (x - mean) / std * w + b
    grad sums     gy, x -> sums of gy and of gy * (x - mean) of a channel's splits
    grad combine  one block a channel: its splits together -> gb, gw
    grad input    gx = (gy - gb / count - xhat gw / count) / std * w

All but the two of one block a channel walk through a channel in the same way:

    grid.x  channels, `lanes` of them a block       grid.y  splits, `per` pixels of each channel
    block   256 threads = 256 / lanes rows of `lanes`: neighbours take neighbouring channels of
            channels-last (lanes up to 32), neighbouring pixels of NCHW (lanes 1)
    thread  every (256 / lanes)th pixel of its split, four at a time so that four loads are under
            way; in NCHW with H*W a multiple of four, 16 bytes at once (arrays are aligned so)

Pixels are numbered n * H*W + p over the batch. A thread carries (p, address) along and adds the
jump to the next image when p passes H*W: no division in the loop.

Means are kept as two float32, high + low: one float32 near 1e4 is off by up to 5e-4, which is what
a normalised number would be off by. A thread's high part is its first number; deviations from that
have no rounding worth mentioning, and Welford's update runs on them, four numbers an update.
Threads and splits are merged in pairs in a tree. Sources: Welford, Technometrics 4 (1962); Chan,
Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician 37
(1983). Shared memory: 16 bytes a thread for the trees.
"""

from collections.abc import Callable
from math import prod, sqrt
from typing import Any

import numpy as np
from numba import cuda, types
from numba.cuda import libdevice

from gpuconv.kernels.cuda.compiler import F32, I32, Float, Kernel
from gpuconv.kernels.cuda.ptx import (
    barrier,
    div,
    i32,
    inline,
    lds4,
    load4_nc,
    load_nc,
    shared,
    store,
    store4,
    sts4,
)

THREADS, FEW = 256, 64  # a block that walks, a block that combines
FLOAT32, f32 = np.dtype("float32"), types.float32
ZERO, ONE, FOUR, QUARTER = f32(0), f32(1), f32(4), f32(0.25)
share_of = libdevice.fast_fdividef  # good to 2 units in the last place, which shares can bear


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    return [STATISTICS, COMBINE, APPLY, GRAD_SUMS, GRAD_COMBINE, GRAD_INPUT]


@inline
def begin(C: Any, count: Any, per: Any, wide: Any, memory: Any, moves: Any) -> Any:
    """Where a thread walks: (c, i, last, pace, end, at, p).

    From pixel i of channel c it takes four at a time and goes on by `pace` until `last`, then one
    at a time by a step until `end` (if `wide`, nothing is left by then). `at` and p are the address
    of pixel i and its number in its image. Past the last channel there are no pixels.
    memory = (bits, xn, xc, xp): the logarithm of `lanes`, and the distances between images,
    channels and pixels; moves = (step, jump, jump_p, HW, wrap), as `walk` has them.
    """
    bits, xn, xc, xp = memory
    step, HW, me, lanes = moves[0], moves[3], i32(cuda.threadIdx.x), i32(1 << bits)
    c = i32(cuda.blockIdx.x * lanes + (me & i32(lanes - 1)))
    first, row = i32(cuda.blockIdx.y * per), i32(me >> bits)
    i = i32(first + 4 * row) if wide else i32(first + row)
    end = i32(min(first + per, count)) if c < C else i32(0)
    last, pace = (end, step) if wide else (i32(end - 3 * step), i32(4 * step))
    n = div(i, HW)
    p = i32(i - n * HW)
    return c, i, last, pace, end, i32(n * xn + c * xc + p * xp), p


@inline
def walk(at: Any, p: Any, moves: Any) -> Any:
    """(at, p) a step further on: `jump` and `jump_p` more, `wrap` and -HW where p passes HW."""
    _, jump, jump_p, HW, wrap = moves
    at, p = i32(at + jump), i32(p + jump_p)
    return (i32(at + wrap), i32(p - HW)) if p >= HW else (at, p)


@inline
def four(at: Any, p: Any, moves: Any, wide: Any) -> Any:
    """The addresses of four pixels (if `wide`, of the first), and (at, p) after them."""
    b, q = walk(at, p, moves)
    if wide:
        return (at, at, at, at), b, q
    c, q = walk(b, q, moves)
    d, q = walk(c, q, moves)
    e, q = walk(d, q, moves)
    return (at, b, c, d), e, q


@inline
def read(x: Any, a: Any, wide: Any) -> Any:
    """The numbers at four addresses."""
    if wide:
        return load4_nc(x, a[0])
    return load_nc(x, a[0]), load_nc(x, a[1]), load_nc(x, a[2]), load_nc(x, a[3])


@inline
def write(y: Any, a: Any, wide: Any, v: Any) -> None:
    if wide:
        store4(y, a[0], v[0], v[1], v[2], v[3])
    else:
        store(y, a[0], v[0])
        store(y, a[1], v[1])
        store(y, a[2], v[2])
        store(y, a[3], v[3])


@inline
def minus(v: Any, high: Any, low: Any) -> Any:
    return v[0] - high - low, v[1] - high - low, v[2] - high - low, v[3] - high - low


@inline
def update(v: Any, n: Any, mean: Any, m2: Any) -> Any:
    """(n, mean, m2) with four more numbers."""
    middle = ((v[0] + v[1]) + (v[2] + v[3])) * QUARTER
    a, b, c, d = minus(v, middle, ZERO)
    delta, more = middle - mean, n + FOUR
    share = share_of(FOUR, more)
    m2 += ((a * a + b * b) + (c * c + d * d)) + delta * delta * (n * share)
    return more, mean + delta * share, m2


def merge(a: Any, b: Any) -> Any:
    """Two of (n, high, low, m2) as one; the mean is high + low."""
    n = a[0] + b[0]
    share = b[0] / n if n > ZERO else ZERO
    high, low = (a[1], a[2]) if a[0] > ZERO else (b[1], b[2])
    delta = (b[1] - high) + (b[2] - low) if b[0] > ZERO else ZERO
    low += delta * share
    whole = high + low
    part = whole - high
    low = (high - (whole - part)) + (low - part)  # what whole lacks, exactly
    return n, whole, low, (a[3] + b[3]) + delta * delta * (a[0] * share)


def add(a: Any, b: Any) -> Any:
    return a[0] + b[0], a[1] + b[1], ZERO, ZERO


def _together(join: Any) -> tuple[Any, Any]:
    """tree(v, half, least): the join of v over the threads of a block whose numbers agree modulo
    `least`, in those below it, `half` being half the block; and row(v, parts, first, many), that of
    `many` groups of four numbers in memory, in the block's first thread."""
    join = inline(join)

    @inline
    def tree(v: Any, half: Any, least: Any) -> Any:
        me = i32(cuda.threadIdx.x)
        place = i32(shared() + me * 16)
        while half >= least:
            sts4(place, v[0], v[1], v[2], v[3])
            barrier()
            if me < half:
                v = join(v, lds4(i32(place + half * 16)))
            barrier()
            half = i32(half >> 1)
        return v

    @inline
    def row(parts: Any, first: Any, many: Any) -> Any:
        v, s = (ZERO, ZERO, ZERO, ZERO), i32(cuda.threadIdx.x)
        while s < many:
            v = join(v, load4_nc(parts, i32((first + s) * 4)))
            s = i32(s + FEW)
        return tree(v, i32(FEW // 2), i32(1))

    return tree, row


merged, merged_row = _together(merge)
added, added_row = _together(add)


@inline
def finish(v: Any, c: Any, mean: Any, var: Any, stats: Any, eps: Any) -> None:
    """What there is to know of a channel, out of (n, high, low, m2)."""
    variance = v[3] / v[0]
    store(mean, c, v[1] + v[2])
    store(var, c, variance)
    store4(stats, i32(c * 4), v[1], v[2], ONE / sqrt(variance + eps), ZERO)


def _statistics() -> Callable[..., None]:
    def batch_norm_statistics(
        x: F32, parts: F32, mean: F32, var: F32, stats: F32,
        C: I32, count: I32, per: I32, bits: I32, xn: I32, xc: I32, xp: I32,
        step: I32, jump: I32, jump_p: I32, HW: I32, wrap: I32, wide: I32, splits: I32, eps: Float,
    ) -> None:  # fmt: skip
        moves = step, jump, jump_p, HW, wrap
        c, i, last, pace, end, at, p = begin(C, count, per, wide, (bits, xn, xc, xp), moves)
        shift = load_nc(x, at) if i < end else ZERO
        n, low, m2 = ZERO, ZERO, ZERO
        while i < last:
            a, at, p = four(at, p, moves, wide)
            n, low, m2 = update(minus(read(x, a, wide), shift, ZERO), n, low, m2)
            i = i32(i + pace)
        while i < end:
            d = load_nc(x, at) - shift
            n += ONE
            delta = d - low
            low += share_of(delta, n)
            m2 += delta * (d - low)
            at, p = walk(at, p, moves)
            i = i32(i + step)
        v = merged((n, shift, low, m2), i32(THREADS // 2), i32(1 << bits))
        if cuda.threadIdx.x < (1 << bits) and c < C:
            if splits == 1:
                finish(v, c, mean, var, stats, eps)
            else:
                store4(parts, i32((c * splits + cuda.blockIdx.y) * 4), v[0], v[1], v[2], v[3])

    return batch_norm_statistics


def _combine() -> Callable[..., None]:
    def batch_norm_combine(
        parts: F32, mean: F32, var: F32, stats: F32, splits: I32, eps: Float
    ) -> None:
        c = i32(cuda.blockIdx.x)
        v = merged_row(parts, i32(c * splits), splits)
        if cuda.threadIdx.x == 0:
            finish(v, c, mean, var, stats, eps)

    return batch_norm_combine


def _apply() -> Callable[..., None]:
    def batch_norm_apply(
        x: F32, stats: F32, w: F32, b: F32, y: F32,
        C: I32, count: I32, per: I32, bits: I32, xn: I32, xc: I32, xp: I32,
        step: I32, jump: I32, jump_p: I32, HW: I32, wrap: I32, wide: I32, has_w: I32, has_b: I32,
    ) -> None:  # fmt: skip
        moves = step, jump, jump_p, HW, wrap
        c, i, last, pace, end, at, p = begin(C, count, per, wide, (bits, xn, xc, xp), moves)
        if i >= end:
            return
        s = load4_nc(stats, i32(c * 4))
        high, low = s[0], s[1]
        scale = s[2] * load_nc(w, c) if has_w else s[2]
        bias = load_nc(b, c) if has_b else ZERO
        while i < last:
            a, at, p = four(at, p, moves, wide)
            v = minus(read(x, a, wide), high, low)
            v = v[0] * scale + bias, v[1] * scale + bias, v[2] * scale + bias, v[3] * scale + bias
            write(y, a, wide, v)
            i = i32(i + pace)
        while i < end:
            store(y, at, (load_nc(x, at) - high - low) * scale + bias)
            at, p = walk(at, p, moves)
            i = i32(i + step)

    return batch_norm_apply


def _grad_sums() -> Callable[..., None]:
    def batch_norm_grad_sums(
        gy: F32, x: F32, stats: F32, parts: F32, gw: F32, gb: F32,
        C: I32, count: I32, per: I32, bits: I32, xn: I32, xc: I32, xp: I32,
        step: I32, jump: I32, jump_p: I32, HW: I32, wrap: I32, wide: I32, splits: I32,
    ) -> None:  # fmt: skip
        moves = step, jump, jump_p, HW, wrap
        c, i, last, pace, end, at, p = begin(C, count, per, wide, (bits, xn, xc, xp), moves)
        s = load4_nc(stats, i32(c * 4)) if c < C else (ZERO, ZERO, ZERO, ZERO)
        high, low = s[0], s[1]
        sum_g, sum_gx = ZERO, ZERO
        while i < last:
            a, at, p = four(at, p, moves, wide)
            g, v = read(gy, a, wide), minus(read(x, a, wide), high, low)
            sum_g += (g[0] + g[1]) + (g[2] + g[3])
            sum_gx += (g[0] * v[0] + g[1] * v[1]) + (g[2] * v[2] + g[3] * v[3])
            i = i32(i + pace)
        while i < end:
            h = load_nc(gy, at)
            sum_g += h
            sum_gx += h * (load_nc(x, at) - high - low)
            at, p = walk(at, p, moves)
            i = i32(i + step)
        v = added((sum_g, sum_gx, ZERO, ZERO), i32(THREADS // 2), i32(1 << bits))
        if cuda.threadIdx.x < (1 << bits) and c < C:
            if splits == 1:
                store(gb, c, v[0])
                store(gw, c, v[1] * s[2])
            else:
                store4(parts, i32((c * splits + cuda.blockIdx.y) * 4), v[0], v[1], ZERO, ZERO)

    return batch_norm_grad_sums


def _grad_combine() -> Callable[..., None]:
    def batch_norm_grad_combine(parts: F32, stats: F32, gw: F32, gb: F32, splits: I32) -> None:
        c = i32(cuda.blockIdx.x)
        v = added_row(parts, i32(c * splits), splits)
        if cuda.threadIdx.x == 0:
            store(gb, c, v[0])
            store(gw, c, v[1] * load_nc(stats, i32(c * 4 + 2)))

    return batch_norm_grad_combine


def _grad_input() -> Callable[..., None]:
    def batch_norm_grad_input(
        gy: F32, x: F32, stats: F32, w: F32, gw: F32, gb: F32, gx: F32,
        C: I32, count: I32, per: I32, bits: I32, xn: I32, xc: I32, xp: I32,
        step: I32, jump: I32, jump_p: I32, HW: I32, wrap: I32, wide: I32, has_w: I32,
    ) -> None:  # fmt: skip
        moves = step, jump, jump_p, HW, wrap
        c, i, last, pace, end, at, p = begin(C, count, per, wide, (bits, xn, xc, xp), moves)
        if i >= end:
            return
        s, total = load4_nc(stats, i32(c * 4)), f32(count)
        high, low = s[0], s[1]
        scale = s[2] * load_nc(w, c) if has_w else s[2]
        slope, mean = s[2] * (load_nc(gw, c) / total), load_nc(gb, c) / total
        while i < last:
            a, at, p = four(at, p, moves, wide)
            g, v = minus(read(gy, a, wide), mean, ZERO), minus(read(x, a, wide), high, low)
            v = (
                (g[0] - v[0] * slope) * scale, (g[1] - v[1] * slope) * scale,
                (g[2] - v[2] * slope) * scale, (g[3] - v[3] * slope) * scale,
            )  # fmt: skip
            write(gx, a, wide, v)
            i = i32(i + pace)
        while i < end:
            g0, v0 = load_nc(gy, at) - mean, load_nc(x, at) - high - low
            store(gx, at, (g0 - v0 * slope) * scale)
            at, p = walk(at, p, moves)
            i = i32(i + step)

    return batch_norm_grad_input


STATISTICS = Kernel("batch_norm_statistics", _statistics, (), THREADS, 1, THREADS * 16)
COMBINE = Kernel("batch_norm_combine", _combine, (), FEW, 1, FEW * 16)
APPLY = Kernel("batch_norm_apply", _apply, (), THREADS)
GRAD_SUMS = Kernel("batch_norm_grad_sums", _grad_sums, (), THREADS, 1, THREADS * 16)
GRAD_COMBINE = Kernel("batch_norm_grad_combine", _grad_combine, (), FEW, 1, FEW * 16)
GRAD_INPUT = Kernel("batch_norm_grad_input", _grad_input, (), THREADS)


def supports(shape: tuple[int, ...], dtype: Any) -> bool:
    """Float32, indices of 32 bits (those just past the end too), and not nothing."""
    size = max(prod(shape), 4 * shape[1])  # the statistics have four numbers a channel
    return dtype == FLOAT32 and prod(shape) > 0 and size < 2**31 - 2**20


def forward(
    device: Any, shape: tuple[int, ...], channels_last: bool, eps: float, has_w: bool, has_b: bool
) -> Callable[..., None]:
    """run(x, w, b, y, mean, var, stats): the last three are results too, (C,), (C,), (C, 4)."""
    grid, numbers = _walks(device, shape, channels_last)
    C, splits = shape[1], grid[1]
    statistics = device.prepare(STATISTICS, grid, splits=splits, eps=eps, **numbers)
    combine = None
    if splits > 1:
        combine = device.prepare(COMBINE, (C, 1, 1), splits=splits, eps=eps)
    apply = device.prepare(APPLY, grid, has_w=has_w, has_b=has_b, **numbers)

    def run(x: Any, w: Any, b: Any, y: Any, mean: Any, var: Any, stats: Any) -> None:
        parts = device.empty((C, splits, 4), "float32") if combine else None
        statistics(x, parts, mean, var, stats)
        if combine:
            combine(parts, mean, var, stats)
        apply(x, stats, w, b, y)

    return run


def backward(
    device: Any, shape: tuple[int, ...], channels_last: bool, has_w: bool
) -> Callable[..., None]:
    """run(gy, x, stats, w, gx, gw, gb): the last three are results, gx None if not wanted.

    gy and gx lie in memory as x; stats are those of `forward`.
    """
    grid, numbers = _walks(device, shape, channels_last)
    C, splits = shape[1], grid[1]
    sums = device.prepare(GRAD_SUMS, grid, splits=splits, **numbers)
    combine = device.prepare(GRAD_COMBINE, (C, 1, 1), splits=splits) if splits > 1 else None
    grad_input = device.prepare(GRAD_INPUT, grid, has_w=has_w, **numbers)

    def run(gy: Any, x: Any, stats: Any, w: Any, gx: Any, gw: Any, gb: Any) -> None:
        parts = device.empty((C, splits, 4), "float32") if combine else None
        sums(gy, x, stats, parts, gw, gb)
        if combine:
            combine(parts, stats, gw, gb)
        if gx is not None:
            grad_input(gy, x, stats, w, gw, gb, gx)

    return run


def _walks(
    device: Any, shape: tuple[int, ...], channels_last: bool
) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid and the numbers that walking through x (N, C, *in) takes."""
    N, C, HW = shape[0], shape[1], prod(shape[2:])
    count = N * HW
    last = channels_last or HW == 1
    if last:
        # One image of all pixels. A block takes as many neighbouring channels as a warp, or fewer
        # where less would lie idle past the last one, and every read is of whole sectors.
        lanes = min(32, 1 << (C - 1).bit_length())
        if C % 8 == 0:
            lanes = min((32, 16, 8), key=lambda n: (-(-C // n) * n, -n))
        HW, xn, xc, xp = count, 0, 1, C
    else:
        lanes, xn, xc, xp = 1, C * HW, HW, 1
    rows, blocks, wide = THREADS // lanes, -(-C // lanes), not last and HW % 4 == 0
    step = 4 * rows if wide else rows
    # Enough blocks to fill the GPU, but at least 16 pixels a thread; at most 256, so that no sum in
    # sequence is long; whole lines of memory a split.
    splits = min(-(-8 * device.sms // blocks), -(-count // (16 * rows)))
    splits = min(max(splits, -(-count // (256 * rows))), 65535)
    per = -(-count // (32 * splits)) * 32
    numbers = {
        "C": C,
        "count": count,
        "per": per,
        "wide": wide,
        "bits": lanes.bit_length() - 1,
        "xn": xn,
        "xc": xc,
        "xp": xp,
        "step": step,
        "jump": step // HW * xn + step % HW * xp,
        "jump_p": step % HW,
        "HW": HW,
        "wrap": xn - HW * xp,
    }
    return (blocks, -(-count // per), 1), numbers
