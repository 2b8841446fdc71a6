"""Depthwise convolution, gradient by weight: sums over all pixels, in two steps.

The axes u and v are those of `depthwise`. A tap row is a window of taps along u at one place along
v; tile: 8 outputs in a row along u. A thread has one tap row of one channel. It goes through its
share of the tiles: loads 8 numbers of gy, the pixels that they meet on the tap row's line, and adds
the products up in registers.

    grad_weight  a block: up to 32 adjacent channels (channels-last) or one (NCHW)
                        x all the tap rows of these (or as many as fit): one reads what all read
                        x as many tiles at a time as there are threads left, neighbours along v
                 Its threads' sums are added in a tree, in shared memory: [tap][256 threads]
    sum          adds up what the blocks made of one weight, slabs of (R*S, K): 32 threads a number,
                 8 numbers a block; a tree again

Blocks of 256 threads, in one row. No atomics: every sum is in a fixed order, which depends on the
shapes alone, not on the GPU.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from numba import cuda, types

from gpuconv.kernels.cuda.compiler import F32, I32, Kernel
from gpuconv.kernels.cuda.depthwise import THREADS, window_name
from gpuconv.kernels.cuda.depthwise_axes import axes_of, numbers_of, window_axis
from gpuconv.kernels.cuda.plan import Plan
from gpuconv.kernels.cuda.ptx import (
    barrier,
    div,
    i32,
    lds,
    load_if,
    ones,
    rem,
    shared,
    store,
    sts,
    within,
)

CHANNELS, OUTPUTS = 32, 8
WINDOWS = ((7, 1), (5, 1), (3, 1), (1, 1))  # (taps, stride), as in `depthwise`
# Blocks wanted, and slabs at most; tiles a thread goes through, at least and, if possible, at most.
BLOCKS, SLABS, LEAST, MOST = 1024, 1024, 4, 64


def kernel(taps: int, stride: int) -> Kernel:
    constants = (("taps", taps), ("stride", stride))
    name = f"depthwise_grad_weight_{window_name(taps, stride)}"
    return Kernel(name, _grad_weight, constants, THREADS, 4, THREADS * 4 * taps)


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    return [*(kernel(*window) for window in WINDOWS), SUM]


def _grad_weight(taps: int, stride: int) -> Callable[..., None]:
    zero, outputs = types.float32(0), 8
    pixels = (outputs - 1) * stride + taps

    def depthwise_grad_weight(
        gy: F32, x: F32, part: F32, K: I32, share: I32,
        chunk: I32, chunks: I32, rows: I32, row_groups: I32, places: I32,
        total: I32, rounds: I32, tiles: I32, step_v: I32, step_tile: I32, step_n: I32,
        U: I32, V: I32, IU: I32, IV: I32, OU: I32, OV: I32,
        stride_u: I32, stride_v: I32, pad_u: I32, pad_v: I32, dil_u: I32, dil_v: I32,
        xn: I32, xc: I32, xu: I32, xv: I32, yn: I32, yc: I32, yu: I32, yv: I32,
        wk: I32, wu: I32, wv: I32,
    ) -> None:  # fmt: skip
        """A block: `chunk` channels x `places` tiles of pixels at a time x `rows` tap rows."""
        block, me = i32(cuda.blockIdx.x), i32(cuda.threadIdx.x)
        lane, rest = rem(me, chunk), div(me, chunk)
        mine, row = rem(rest, places), div(rest, places)
        k, rest = i32(rem(block, chunks) * chunk + lane), div(block, chunks)
        live = row < rows and k < K
        row, slab = i32(rem(rest, row_groups) * rows + row), div(rest, row_groups)
        tu, tv = i32(div(row, V) * taps), rem(row, V)
        live = live and tu < U
        sums = cuda.local.array(taps, types.float32)
        line = cuda.local.array(pixels, types.float32)
        grads = cuda.local.array(outputs, types.float32)
        for t in range(taps):
            sums[t] = zero
        if live:
            i = i32(slab * rounds * places + mine)
            end = min(total, i32((slab + 1) * rounds * places))
            v, rest = rem(i, OV), div(i, OV)
            tile, n = rem(rest, tiles), div(rest, tiles)
            x0, y0 = i32(div(k, share) * xc), i32(k * yc)
            u0, h0 = i32(tu * dil_u - pad_u), i32(tv * dil_v - pad_v)
            step = stride_u if taps == 1 else i32(1)
            while i < end:
                h, first = i32(v * stride_v + h0), i32(tile * outputs)
                if within(h, IV):
                    u = i32(first * stride_u + u0)
                    at = i32(x0 + n * xn + h * xv + u * xu)
                    gt = i32(y0 + n * yn + v * yv + first * yu)
                    there = ones(i32(0), i32(min(OU - first, outputs)))
                    for j in range(outputs):
                        grads[j] = load_if(gy, gt, j, yu, i32(there & (1 << j)))
                    bits = ones(i32(max(-u, 0)), i32(min(IU - u, pixels)))
                    for p in range(pixels):
                        seen = i32(bits & (1 << p))
                        if taps == 1:
                            seen = i32(1) if within(i32(u + p * step), IU) else i32(0)
                        line[p] = load_if(x, at, p, i32(step * xu), seen)
                    for j in range(outputs):
                        if there & (1 << j):  # not 0 * x: there x may be infinite
                            for t in range(taps):
                                sums[t] += grads[j] * line[j * stride + t]
                # The next place, `places` on: with carries, no division.
                i, v, tile, n = (
                    i32(i + places),
                    i32(v + step_v),
                    i32(tile + step_tile),
                    i32(n + step_n),
                )
                if v >= OV:
                    v, tile = i32(v - OV), i32(tile + 1)
                if tile >= tiles:
                    tile, n = i32(tile - tiles), i32(n + 1)
        slot = i32(shared() + me * 4)
        for t in range(taps):
            sts(i32(slot + t * THREADS * 4), sums[t])
        barrier()
        n = places
        while n > 1:
            half = i32((n + 1) >> 1)
            if live and i32(mine + half) < n:
                other = i32(slot + half * chunk * 4)
                for t in range(taps):
                    to = i32(slot + t * THREADS * 4)
                    sts(to, lds(to) + lds(i32(other + t * THREADS * 4)))
            barrier()
            n = half
        if live and mine == 0:
            to = i32(slab * K * U * V + k * wk + tu * wu + tv * wv)
            for t in range(taps):
                store(part, i32(to + t * wu), lds(i32(slot + t * THREADS * 4)))

    return depthwise_grad_weight


def _sum() -> Callable[..., None]:
    zero, lanes, ahead = types.float32(0), THREADS // 8, 8

    def depthwise_sum(part: F32, gw: F32, total: I32, slabs: I32, K: I32, taps: I32) -> None:
        """gw[k, tap] = the sum of part[slab, tap, k]; 8 numbers a block, 32 threads a number."""
        me = i32(cuda.threadIdx.x)
        i, slab = i32(cuda.blockIdx.x * 8 + (me & 7)), i32(me >> 3)
        value, slot = zero, i32(shared() + me * 4)
        while i < total and slab < slabs:
            for j in range(ahead):  # all on their way before the first is added
                wanted = i32(1) if slab + j * lanes < slabs else i32(0)
                value += load_if(part, i32(slab * total + i), j, i32(lanes * total), wanted)
            slab = i32(slab + ahead * lanes)
        sts(slot, value)
        half = i32(THREADS // 2)
        while half >= 8:
            barrier()
            if me < half:
                sts(slot, lds(slot) + lds(i32(slot + half * 4)))
            half = i32(half >> 1)
        if me < 8 and i < total:
            tap = div(i, K)
            store(gw, i32((i - tap * K) * taps + tap), lds(slot))

    return depthwise_sum


SUM = Kernel("depthwise_sum", _sum, (), THREADS, 1, THREADS * 4)


def grad_weight(
    device: Any, spec: Any, dtype: Any, channels_last: bool, gy_channels_last: bool
) -> Callable[..., None]:
    """run(gy, x, gw), gy and x each in its own memory format, gw contiguous (K, 1, *kernel).

    For what `depthwise.supports`.
    """
    axes, k, weights = axes_of(spec), spec.w_shape[0], prod(spec.w_shape)
    u = window_axis(axes, channels_last, WINDOWS)
    window = axes[u].window(WINDOWS)
    chunk = min(k, CHANNELS) if channels_last else 1
    chunks = -(-k // chunk)
    rows = axes[1 - u].taps * axes[u].taps // window[0]
    row_groups = -(-rows // (THREADS // chunk))
    rows = -(-rows // row_groups)
    places = THREADS // (chunk * rows)
    tiles, lines = -(-axes[u].y // OUTPUTS), axes[1 - u].y
    total = spec.x_shape[0] * tiles * lines
    rounds, slabs = _share(-(-total // places), chunks * row_groups, weights)
    numbers = numbers_of(axes, u, x=(spec.groups, channels_last), y=(k, gy_channels_last))
    numbers.update(K=k, share=k // spec.groups, wk=weights // k)
    if slabs > 1:  # (tap, k): neighbours write neighbours
        numbers.update(wk=1, wu=numbers["wu"] * k, wv=numbers["wv"] * k)
    numbers.update(chunk=chunk, chunks=chunks, rows=rows, row_groups=row_groups, places=places)
    numbers.update(total=total, rounds=rounds, tiles=tiles, step_v=places % lines)
    numbers.update(step_tile=places // lines % tiles, step_n=places // lines // tiles)
    grid = chunks * row_groups * slabs, 1, 1
    plan = Plan("gy", "x", "gw")
    part = plan.own(slabs * weights) if slabs > 1 else "gw"
    plan.launch(kernel(*window), grid, "gy", "x", part, **numbers)
    if slabs > 1:
        sizes = {"total": weights, "slabs": slabs, "K": k, "taps": weights // k}
        plan.launch(SUM, (-(-weights // 8), 1, 1), part, "gw", **sizes)
    return device.sequence(plan)


def _share(rounds: int, blocks: int, weights: int) -> tuple[int, int]:
    """Rounds of a block, and slabs of such blocks, for `rounds` in all and `blocks` a slab."""
    slabs = max(BLOCKS // blocks, -(-rounds // MOST))
    slabs = max(1, min(slabs, rounds // LEAST, SLABS, (2**31 - 1) // weights))
    share = -(-rounds // slabs)
    return share, -(-rounds // share)
