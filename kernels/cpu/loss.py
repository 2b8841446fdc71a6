"""Softmax cross entropy of labels on CPUs, and its gradient, each in one pass over memory.

    rows      (positions, C) in memory: (N, C) and channels-last; vectors over the classes of a row
    planes    (N, C, HW): NCHW; vectors over pixels, class after class

A task is some rows, or vectors of pixels. The forward pass keeps each position's largest score and
the sum of exp(score - largest); the backward pass works out exp again, which costs less than memory
for it would. What is computed, and the order in which it is, is said in `gpuconv.reference.loss`.
"""

from collections.abc import Callable
from math import ceil, prod
from typing import Any

from gpuconv.kernels.cpu.compiler import F64, I64, I64P, Data, Float, Kernel, current

Ints = tuple[int, ...]
ITEM = {"float32": 4, "float64": 8}
TASK = 1 << 12  # numbers a task
SEVERAL = 1 << 13  # numbers from which a second thread is worth its start


def supports(shape: Ints) -> bool:
    """Whether the kernels take scores (N, C, *in)."""
    return prod(shape) > 0


def forward(
    device: Any, shape: Ints, dtype: str, last: bool, ignore_index: int, smoothing: float
) -> Callable[..., None]:
    """run(x, target, w, w_sum, losses, peaks, sums): the last three (N, *in).

    x lies in memory as (N, *in, C) if `last`, else as it is. w (C,) or None, w_sum its sum in one
    float64 or None.
    """
    return _plan(device, "forward", shape, dtype, last, ignore_index, smoothing)


def grad(
    device: Any, shape: Ints, dtype: str, last: bool, ignore_index: int, smoothing: float,
    single: bool,
) -> Callable[..., None]:  # fmt: skip
    """run(g, x, peaks, sums, target, w, w_sum, gx); g (N, *in), or one number if `single`."""
    return _plan(
        device, "grad", shape, dtype, last, ignore_index, smoothing, g_step=0 if single else 1
    )


def _plan(
    device: Any, which: str, shape: Ints, dtype: str, last: bool, ignore_index: int,
    smoothing: float, **more: int,
) -> Callable[..., None]:  # fmt: skip
    C, HW = shape[1], prod(shape[2:])
    numbers = {"C": C, "ignore": ignore_index, "smoothing": smoothing, **more}
    several = prod(shape) >= SEVERAL
    if last or HW == 1:
        rows = prod(shape) // C
        per = max(TASK // C, 1)
        kernel = Kernel(f"loss_rows_{which}", _rows, (("dtype", dtype), ("which", which)))
        tasks, numbers = ceil(rows / per), {**numbers, "rows": rows, "per": per}
    else:
        wide = current().vector // ITEM[dtype]
        strips = ceil(HW / wide)  # vectors of pixels of an image
        per = max(TASK // (C * wide), 1)
        kernel = Kernel(f"loss_planes_{which}", _planes, (("dtype", dtype), ("which", which)))
        numbers = {**numbers, "HW": HW, "strips": shape[0] * strips, "a_row": strips, "per": per}
        tasks = ceil(shape[0] * strips / per)
    return device.prepare(kernel, tasks, several=several, **numbers)


def _rows(dtype: str, which: str) -> Callable[..., None]:
    from math import log

    import numba

    from gpuconv.kernels.cpu.rows import exp_negative, largest, load_part_of
    from gpuconv.kernels.cpu.vector import (
        address,
        fma,
        lanes,
        load,
        load_part,
        maximum,
        splat,
        store,
        store_part,
        total,
    )

    wide, real = lanes(dtype), getattr(numba, dtype)
    lowest = -float("inf")

    def forward(
        task: I64, thread: I64,
        x: Data, target: I64P, w: Data, w_sum: F64, losses: Data, peaks: Data, sums: Data,
        C: I64, ignore: I64, smoothing: Float, rows: I64, per: I64,
    ) -> None:  # fmt: skip
        whole = C - C % wide
        for row in range(task * per, min(task * per + per, rows)):
            scores = x + row * C
            peak_vector = load_part_of(scores + whole, C - whole, splat(x, lowest))
            for c in range(0, whole, wide):
                peak_vector = maximum(load(scores + c), peak_vector)
            peak = largest(peak_vector)
            peak_vector = splat(x, peak)
            parts = splat(x, 0.0)
            if whole < C:  # lanes past the last class: exp(-inf) = 0
                left = load_part_of(scores + whole, C - whole, splat(x, lowest))
                parts = exp_negative(left - peak_vector)
            for c in range(0, whole, wide):
                parts = parts + exp_negative(load(scores + c) - peak_vector)
            sum_exp = total(parts)
            peaks[row], sums[row] = peak, sum_exp
            label = target[row]
            if label == ignore:
                losses[row] = 0.0
                continue
            log_sum = log(sum_exp)
            weight = real(1.0)
            if address(w) != 0:
                weight = w[label]
            loss = (scores[label] - peak - log_sum) * weight * real(smoothing - 1.0)
            if smoothing != 0.0:
                left = load_part_of(scores + whole, C - whole, peak_vector) - peak_vector
                weighted, everything = splat(x, 0.0), real(C)
                if address(w) != 0:
                    everything = real(w_sum[0])
                    weighted = left * load_part(w + whole, C - whole)
                    for c in range(0, whole, wide):
                        weighted = fma(load(scores + c) - peak_vector, load(w + c), weighted)
                else:
                    weighted = left
                    for c in range(0, whole, wide):
                        weighted = weighted + (load(scores + c) - peak_vector)
                loss -= (total(weighted) - log_sum * everything) * real(smoothing / C)
            losses[row] = loss

    def grad(
        task: I64, thread: I64,
        g: Data, x: Data, peaks: Data, sums: Data, target: I64P, w: Data, w_sum: F64, gx: Data,
        C: I64, ignore: I64, smoothing: Float, g_step: I64, rows: I64, per: I64,
    ) -> None:  # fmt: skip
        whole = C - C % wide
        for row in range(task * per, min(task * per + per, rows)):
            scores, out, label = x + row * C, gx + row * C, target[row]
            at_label, everywhere = real(0.0), real(0.0)
            if label != ignore:
                at_label = g[row * g_step] * real(1.0 - smoothing)
                if address(w) != 0:
                    at_label = g[row * g_step] * w[label] * real(1.0 - smoothing)
                everywhere = g[row * g_step] * real(smoothing / C)
            everything = real(C)
            if address(w) != 0 and smoothing != 0.0:
                everything = real(w_sum[0])
            spread = splat(x, everywhere)
            peak = splat(x, peaks[row])
            factor = splat(x, (at_label + everywhere * everything) / sums[row])
            weighted = smoothing != 0.0 and address(w) != 0
            for c in range(0, whole, wide):
                value = exp_negative(load(scores + c) - peak) * factor
                value = value - (spread * load(w + c) if weighted else spread)
                store(out + c, value)
            if whole < C:
                value = exp_negative(load_part(scores + whole, C - whole) - peak) * factor
                if weighted:
                    value = value - spread * load_part(w + whole, C - whole)
                else:
                    value = value - spread
                store_part(out + whole, value, C - whole)
            if label != ignore:
                out[label] -= at_label

    return forward if which == "forward" else grad


def _planes(dtype: str, which: str) -> Callable[..., None]:
    from math import log

    import numba

    from gpuconv.kernels.cpu.rows import exp_negative
    from gpuconv.kernels.cpu.vector import address, lanes, load_part, maximum, splat, store_part

    wide, real = lanes(dtype), getattr(numba, dtype)

    def forward(
        task: I64, thread: I64,
        x: Data, target: I64P, w: Data, w_sum: F64, losses: Data, peaks: Data, sums: Data,
        C: I64, ignore: I64, smoothing: Float, HW: I64, strips: I64, a_row: I64, per: I64,
    ) -> None:  # fmt: skip
        first = task * per
        n = first // a_row
        at = (first - n * a_row) * wide
        for _ in range(first, min(first + per, strips)):
            count = min(wide, HW - at)
            scores, here = x + (n * C * HW + at), n * HW + at
            peak = load_part(scores, count)
            for c in range(1, C):
                peak = maximum(load_part(scores + c * HW, count), peak)
            parts, weighted = splat(x, 0.0), splat(x, 0.0)
            for c in range(C):
                d = load_part(scores + c * HW, count) - peak
                parts = parts + exp_negative(d)
                if smoothing != 0.0:
                    weighted = weighted + (d * splat(x, w[c]) if address(w) != 0 else d)
            store_part(peaks + here, peak, count)
            store_part(sums + here, parts, count)
            store_part(losses + here, weighted, count)
            everything = real(C)
            if address(w) != 0 and smoothing != 0.0:
                everything = real(w_sum[0])
            for i in range(here, here + count):
                label = target[i]
                if label == ignore:
                    losses[i] = 0.0
                    continue
                log_sum = log(sums[i])
                weight = real(1.0)
                if address(w) != 0:
                    weight = w[label]
                score = scores[label * HW + (i - here)]
                loss = (score - peaks[i] - log_sum) * weight * real(smoothing - 1.0)
                if smoothing != 0.0:
                    loss -= (losses[i] - log_sum * everything) * real(smoothing / C)
                losses[i] = loss
            at += wide
            if at >= HW:
                at = 0
                n += 1

    def grad(
        task: I64, thread: I64,
        g: Data, x: Data, peaks: Data, sums: Data, target: I64P, w: Data, w_sum: F64, gx: Data,
        C: I64, ignore: I64, smoothing: Float, g_step: I64,
        HW: I64, strips: I64, a_row: I64, per: I64,
    ) -> None:  # fmt: skip
        first = task * per
        n = first // a_row
        at = (first - n * a_row) * wide
        everything = real(C)
        if address(w) != 0 and smoothing != 0.0:
            everything = real(w_sum[0])
        for _ in range(first, min(first + per, strips)):
            count = min(wide, HW - at)
            scores, out, here = x + (n * C * HW + at), gx + (n * C * HW + at), n * HW + at
            # The first two rows of the result hold, for now, what each pixel's label decides.
            for i in range(count):
                label, gradient = target[here + i], g[(here + i) * g_step]
                at_label, everywhere = real(0.0), real(0.0)
                if label != ignore:
                    at_label = gradient * real(1.0 - smoothing)
                    if address(w) != 0:
                        at_label = gradient * w[label] * real(1.0 - smoothing)
                    everywhere = gradient * real(smoothing / C)
                out[i] = (at_label + everywhere * everything) / sums[here + i]
            factor = load_part(out, count)
            spread = splat(x, 0.0)
            if smoothing != 0.0:
                for i in range(count):
                    gradient = g[(here + i) * g_step]
                    if target[here + i] == ignore:
                        gradient = real(0.0)
                    out[i] = gradient * real(smoothing / C)
                spread = load_part(out, count)
            peak = load_part(peaks + here, count)
            for c in range(C):
                value = exp_negative(load_part(scores + c * HW, count) - peak) * factor
                if smoothing != 0.0 and address(w) != 0:
                    value = value - spread * splat(x, w[c])
                else:
                    value = value - spread
                store_part(out + c * HW, value, count)
            for i in range(count):
                label, gradient = target[here + i], g[(here + i) * g_step]
                if label != ignore:
                    at_label = gradient * real(1.0 - smoothing)
                    if address(w) != 0:
                        at_label = gradient * w[label] * real(1.0 - smoothing)
                    out[label * HW + i] -= at_label
            at += wide
            if at >= HW:
                at = 0
                n += 1

    return forward if which == "forward" else grad
