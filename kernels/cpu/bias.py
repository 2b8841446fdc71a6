"""Gradient by bias: gb[k], the sum of gy over images and pixels.

gy is read once, in either format.

    NCHW            a row of pixels in four vectors of sums, added up a row, or `SEGMENT` numbers,
                    at a time; rows are summed in float64.
                    Tasks: blocks of k, and with few k also chunks of rows.
    channels-last   numbers k, k + K, k + 2 K, ... of one long row belong together. A *period* is a
                    whole number of vectors after which k recurs: K numbers, or K * lanes. Four
                    periods at a time are added to sums in the L1 cache, and these, after `ROUNDS`
                    times, to other sums, so that no number takes part in many roundings.
                    Tasks: chunks of periods.

Of several chunks, or a period longer than K, a second launch adds up the rest, in float64.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.kernels.cpu.compiler import I64, Data, Kernel, current

SEGMENT = 4096  # numbers
ROUNDS = 32
CHUNKS = 8
SMALL = 1 << 15  # bytes of gy that one task sums


def _planes(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, total

    n = lanes(dtype)

    def planes(
        task: I64, thread: I64, gy: Data, sums: Data, batch: I64, outputs: I64, pixels: I64,
        k_cut: I64, chunks: I64, segment: I64,
    ) -> None:  # fmt: skip
        chunk, block = task // k_cut, task % k_cut
        each = (pixels + segment - 1) // segment
        first, end = chunk * batch * each // chunks, (chunk + 1) * batch * each // chunks
        for k in range(block * outputs // k_cut, (block + 1) * outputs // k_cut):
            whole = 0.0
            for part in range(first, end):
                image, start = part // each, part % each * segment
                row = gy + ((image * outputs + k) * pixels + start)
                count = min(segment, pixels - start)
                a = b = c = d = splat(gy, 0.0)
                for i in range(0, count - 4 * n + 1, 4 * n):
                    a = a + load(row + i)
                    b = b + load(row + (i + n))
                    c = c + load(row + (i + 2 * n))
                    d = d + load(row + (i + 3 * n))
                done = count - count % (4 * n)
                if done < count:
                    for i in range(done, count - n + 1, n):
                        a = a + load(row + i)
                    done = count - count % n
                    b = b + load_part(row + done, count - done)
                whole += total((a + b) + (c + d))
            sums[chunk * outputs + k] = whole

    return planes


def _rows(dtype: str, rounds: int) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, store

    n = lanes(dtype)

    def rows(
        task: I64, thread: I64, gy: Data, sums: Data, scratch: Data, period: I64, size: I64,
        chunks: I64,
    ) -> None:  # fmt: skip
        """The sums of one chunk of `size` numbers: a period of them."""
        into, inner = sums + task * period, scratch + thread * period
        zero = splat(gy, 0.0)
        for i in range(0, period, n):
            store(into + i, zero)
            store(inner + i, zero)
        periods = size // period
        at = task * periods // chunks
        end = (task + 1) * periods // chunks
        count = 0
        while at + 4 <= end:
            p = gy + at * period
            for i in range(0, period, n):
                one = load(p + i) + load(p + (period + i))
                two = load(p + (2 * period + i)) + load(p + (3 * period + i))
                store(inner + i, load(inner + i) + (one + two))
            at += 4
            count += 1
            if count == rounds:
                for i in range(0, period, n):
                    store(into + i, load(into + i) + load(inner + i))
                    store(inner + i, zero)
                count = 0
        while at < end:
            for i in range(0, period, n):
                store(inner + i, load(inner + i) + load(gy + (at * period + i)))
            at += 1
        if task == chunks - 1:
            for i in range(periods * period, size, n):
                j = i - periods * period
                store(inner + j, load(inner + j) + load_part(gy + i, size - i))
        for i in range(0, period, n):
            store(into + i, load(into + i) + load(inner + i))

    return rows


def _folded(dtype: str) -> Callable[..., None]:
    def folded(
        task: I64, thread: I64, sums: Data, gb: Data, outputs: I64, size: I64, each: I64
    ) -> None:
        for k in range(task * each, min((task + 1) * each, outputs)):
            whole = 0.0
            for i in range(k, size, outputs):
                whole += sums[i]
            gb[k] = whole

    return folded


def bias_gradient(
    device: Any, n: int, k: int, pixels: int, dtype: str, last: bool
) -> Callable[..., None]:
    """run(gy, gb): gy (N, K, pixels), or (N, pixels, K) if `last`; gb (K,). Neither is empty."""
    item = np.dtype(dtype).itemsize
    small = n * k * pixels * item <= SMALL
    key = (("dtype", dtype),)
    if last or pixels == 1:
        lanes = current().vector // item
        period = k if k % lanes == 0 else k * lanes
        size = n * k * pixels
        chunks = 1 if small else max(1, min(CHUNKS, size // period // 4))
        add = device.prepare(
            Kernel("bias_rows", _rows, (*key, ("rounds", ROUNDS))), chunks, scratch=period * item,
            period=period, size=size, chunks=chunks,
        )  # fmt: skip
    else:
        period = k
        k_cut = 1 if small else min(k, CHUNKS)
        segments = n * -(-pixels // SEGMENT)
        chunks = 1 if small else min(segments, -(-CHUNKS // k_cut))
        add = device.prepare(
            Kernel("bias_planes", _planes, key), chunks * k_cut,
            batch=n, outputs=k, pixels=pixels, k_cut=k_cut, chunks=chunks, segment=SEGMENT,
        )  # fmt: skip
    if chunks == 1 and period == k:
        return lambda gy, gb: add(gy, gb)
    each = -(-k // CHUNKS)
    fold = device.prepare(
        Kernel("bias_folded", _folded, key), -(-k // each), several=chunks * period > 1 << 14,
        outputs=k, size=chunks * period, each=each,
    )  # fmt: skip

    def run(gy: Any, gb: Any) -> None:
        sums = device.empty((chunks * period,), dtype)
        add(gy, sums)
        fold(sums, gb)

    return run
