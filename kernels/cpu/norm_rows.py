"""Batch norm's kernels for channels-last memory, and for (N, C): vectors over channels.

Memory is pixels of C channels, one after the other. So that few channels fill vectors too, `copies`
pixels make a row of V = C * copies columns, and column v belongs to channel v mod C:

    row 0   [p0 c0 c1 c2 | p1 c0 c1 c2 | ... ]     copies = 3 pixels of C = 3 channels: V = 9
    row 1   [p3 c0 c1 c2 | ...               ]
    tail    [p6 c0 c1 c2 ]                         the pixels left over, after the last row

Columns are taken four vectors at a time, the last ones masked, down the rows of a part.

    phase 1   parts of `per` rows, `many` of them a task: sums of each column
    phase 2   `step` channels: the parts together, then the copies and the tail, in float64
    phase 4   parts again: the result

A small tensor is done by one task in one launch (phase 7). Statistics take one pass, and a second
where they must: see `norm_planes`; the first shift is the mean of a few rows.
"""

from collections.abc import Callable
from typing import Any

from gpuconv.kernels.cpu.compiler import I64, Data, Float, Kernel
from gpuconv.kernels.cpu.norm_planes import FEW

SUMS, COMBINE, APPLY = 1, 2, 4  # phases; 7 is all


def forward(dtype: str) -> Kernel:
    """x, w, b -> y, mean, var, stats (3, V): the means' high parts, and of the first C columns
    their low parts and 1 / deviations. `coefficients` (2, V) and `work` (parts, 3, V) are for
    phases to come."""
    return Kernel("norm_rows", _forward, (("dtype", dtype),))


def backward(dtype: str) -> Kernel:
    """gy, x, stats, w -> gx (if there is one), gw, gb; coefficients (3, V), work (parts, 2, V)."""
    return Kernel("norm_rows_grad", _backward, (("dtype", dtype),))


def _access(whole: bool) -> tuple[Any, Any]:
    """load(like, p, width) and store(p, tile, width), which heed `width` unless it is `whole`."""
    import numba

    from gpuconv.kernels.cpu.rows import load_row, load_row_part, store_row_part
    from gpuconv.kernels.cpu.tile import store_tile

    if whole:

        def load(like: Any, p: Any, width: int) -> Any:
            return load_row(like, p)

        def store(p: Any, value: Any, width: int) -> None:
            store_tile(p, 0, value)
    else:

        def load(like: Any, p: Any, width: int) -> Any:
            return load_row_part(like, p, width)

        def store(p: Any, value: Any, width: int) -> None:
            store_row_part(p, value, width)

    return numba.njit(load), numba.njit(store)


def _forward(dtype: str) -> Callable[..., None]:
    from math import sqrt

    import numba

    from gpuconv.kernels.cpu.rows import (
        at_most,
        fma_tile,
        load_row_part,
        splat_tile,
        store_row_part,
    )
    from gpuconv.kernels.cpu.tile import tile
    from gpuconv.kernels.cpu.vector import address, lanes

    wide, real = 4 * lanes(dtype), getattr(numba, dtype)

    def columns(whole: bool) -> Any:
        """Functions for `wide` columns, or for the first `width` of them."""
        load, store = _access(whole)

        @numba.njit
        def statistics(x, rows, out, V, width):  # type: ignore[no-untyped-def]
            """Shift, sums of differences from it, and of their squares, to three rows of `out`."""
            zeros = tile(x, 1, 4)
            origin, few = load(zeros, x, width), min(rows, 2 * FEW)
            sums, squares = tile(x, 1, 4), tile(x, 1, 4)
            for r in range(few):
                sums = sums + (load(origin, x + r * V, width) - origin)
            shift = fma_tile(sums, splat_tile(zeros, 1.0 / few), origin)
            for attempt in range(2):
                sums, squares = tile(x, 1, 4), tile(x, 1, 4)
                for start in range(0, rows, FEW):
                    few_sums, few_squares = tile(x, 1, 4), tile(x, 1, 4)
                    for r in range(start, min(start + FEW, rows)):
                        d = load(shift, x + r * V, width) - shift
                        few_sums = few_sums + d
                        few_squares = fma_tile(d, d, few_squares)
                    sums, squares = sums + few_sums, squares + few_squares
                far = sums * sums * splat_tile(zeros, 2.0) - squares * splat_tile(zeros, rows)
                if attempt == 1 or at_most(far, zeros):
                    break
                shift = fma_tile(sums, splat_tile(zeros, 1.0 / rows), shift)
            store(out, shift, width)
            store(out + V, sums, width)
            store(out + 2 * V, squares, width)

        @numba.njit
        def combine(work, rows, per, parts, V, width):  # type: ignore[no-untyped-def]
            """The parts as one, in the place of the first: shift, sum of differences from it, and
            of squared differences from the mean."""
            zeros = tile(work, 1, 4)
            base, sums, squares = load(zeros, work, width), tile(work, 1, 4), tile(work, 1, 4)
            for k in range(parts):
                count = splat_tile(zeros, min(per, rows - k * per))
                part = work + k * 3 * V
                off = load(zeros, part, width) - base
                sums = sums + fma_tile(off, count, load(zeros, part + V, width))
            mean = sums * splat_tile(zeros, 1.0 / rows)
            for k in range(parts):
                here = min(per, rows - k * per)
                part, share = work + k * 3 * V, splat_tile(zeros, 1.0 / here)
                part_sums = load(zeros, part + V, width)
                left = part_sums * share
                off = load(zeros, part, width) - base + left - mean
                squares = squares + (load(zeros, part + 2 * V, width) - part_sums * left)
                squares = fma_tile(off * off, splat_tile(zeros, here), squares)
            store(work + V, sums, width)
            store(work + 2 * V, squares, width)

        @numba.njit
        def apply(x, y, rows, tail, stats, coefficients, V, width):  # type: ignore[no-untyped-def]
            """y = (x - high) * scale + offset."""
            zeros = tile(x, 1, 4)
            high = load(zeros, stats, width)
            scale, offset = load(zeros, coefficients, width), load(zeros, coefficients + V, width)
            for r in range(rows):
                d = load(high, x + r * V, width) - high
                store(y + r * V, fma_tile(d, scale, offset), width)
            tail = min(tail, width)
            if tail > 0:
                d = load_row_part(high, x + rows * V, tail) - high
                store_row_part(y + rows * V, fma_tile(d, scale, offset), tail)

        return statistics, combine, apply

    statistics, combine, apply = columns(True)
    statistics_part, combine_part, apply_part = columns(False)

    @numba.njit
    def together(work, left, c, C, V, rows, tail):  # type: ignore[no-untyped-def]
        """Count, mean, and sum of squared differences of a channel's columns and its tail."""
        base, count, s, m2 = numba.float64(work[c]), 0.0, 0.0, 0.0
        for v in range(c, V, C):
            count += rows
            s += rows * (work[v] - base) + work[V + v]
            if v < tail:
                count += 1.0
                s += left[v] - base
        mean = base + s / count
        for v in range(c, V, C):
            off = work[v] - mean + numba.float64(work[V + v]) / rows
            m2 += work[2 * V + v] + rows * off * off
            if v < tail:
                off = left[v] - mean
                m2 += off * off
        return count, mean, m2

    def forward(
        task: I64, thread: I64,
        x: Data, w: Data, b: Data, y: Data, mean: Data, var: Data, stats: Data,
        coefficients: Data, work: Data,
        C: I64, V: I64, rows: I64, tail: I64,
        per: I64, parts: I64, many: I64, step: I64, phase: I64, eps: Float,
    ) -> None:  # fmt: skip
        if phase & 1:
            for k in range(task * many, min(task * many + many, parts)):
                here = min(per, rows - k * per)
                for v in range(0, V, wide):
                    at, out = x + (k * per * V + v), work + (k * 3 * V + v)
                    if v + wide <= V:
                        statistics(at, here, out, V, wide)
                    else:
                        statistics_part(at, here, out, V, V - v)
        if phase & 2:
            c0, c1, v1 = task * step, min(task * step + step, C), V
            if C == V:
                v1 = c1
            for v in range(c0, v1, wide):
                if v + wide <= v1:
                    combine(work + v, rows, per, parts, V, wide)
                else:
                    combine_part(work + v, rows, per, parts, V, v1 - v)
            for c in range(c0, c1):
                count, centre, m2 = together(work, x + rows * V, c, C, V, rows, tail)
                variance = m2 / count
                if variance < 0.0:  # by rounding
                    variance = 0.0
                inv_std = 1.0 / sqrt(variance + eps)
                high = real(centre)
                low = centre - high
                mean[c], var[c] = high, variance
                stats[V + c], stats[2 * V + c] = low, inv_std
                scale, offset = inv_std, 0.0
                if address(w) != 0:
                    scale = inv_std * w[c]
                if address(b) != 0:
                    offset = numba.float64(b[c])
                offset -= low * scale
                for v in range(c, V, C):
                    stats[v], coefficients[v], coefficients[V + v] = high, scale, offset
        if phase & 4:
            for k in range(task * many, min(task * many + many, parts)):
                here = min(per, rows - k * per)
                left = tail if k == parts - 1 else 0
                for v in range(0, V, wide):
                    at = k * per * V + v
                    if v + wide <= V:
                        apply(x + at, y + at, here, left - v, stats + v, coefficients + v, V, wide)
                    else:
                        apply_part(
                            x + at, y + at, here, left - v, stats + v, coefficients + v, V, V - v
                        )

    return forward


def _backward(dtype: str) -> Callable[..., None]:
    import numba

    from gpuconv.kernels.cpu.rows import fma_tile, load_row_part, store_row_part
    from gpuconv.kernels.cpu.tile import tile
    from gpuconv.kernels.cpu.vector import address, lanes

    wide = 4 * lanes(dtype)

    def columns(whole: bool) -> Any:
        """Functions for `wide` columns, or for the first `width` of them."""
        load, store = _access(whole)

        @numba.njit
        def sums(gy, x, rows, stats, out, V, width):  # type: ignore[no-untyped-def]
            """Sums of gy and of gy * (x - high), to two rows of `out`."""
            zeros = tile(x, 1, 4)
            high = load(zeros, stats, width)
            sum_g, sum_gd = tile(x, 1, 4), tile(x, 1, 4)
            for start in range(0, rows, FEW):
                few_g, few_gd = tile(x, 1, 4), tile(x, 1, 4)
                for r in range(start, min(start + FEW, rows)):
                    g, d = load(zeros, gy + r * V, width), load(high, x + r * V, width) - high
                    few_g = few_g + g
                    few_gd = fma_tile(g, d, few_gd)
                sum_g, sum_gd = sum_g + few_g, sum_gd + few_gd
            store(out, sum_g, width)
            store(out + V, sum_gd, width)

        @numba.njit
        def apply(gy, x, gx, rows, tail, stats, coefficients, V, width):  # type: ignore[no-untyped-def]
            """gx = gy * by_g + (x - high) * by_d + offset."""
            zeros = tile(x, 1, 4)
            high = load(zeros, stats, width)
            by_g, by_d = load(zeros, coefficients, width), load(zeros, coefficients + V, width)
            offset = load(zeros, coefficients + 2 * V, width)
            for r in range(rows):
                g, d = load(zeros, gy + r * V, width), load(high, x + r * V, width) - high
                store(gx + r * V, fma_tile(g, by_g, fma_tile(d, by_d, offset)), width)
            tail = min(tail, width)
            if tail > 0:
                g = load_row_part(zeros, gy + rows * V, tail)
                d = load_row_part(high, x + rows * V, tail) - high
                result = fma_tile(g, by_g, fma_tile(d, by_d, offset))
                store_row_part(gx + rows * V, result, tail)

        return sums, apply

    sums, apply = columns(True)
    sums_part, apply_part = columns(False)

    def backward(
        task: I64, thread: I64,
        gy: Data, x: Data, stats: Data, w: Data, gx: Data, gw: Data, gb: Data,
        coefficients: Data, work: Data,
        C: I64, V: I64, rows: I64, tail: I64,
        per: I64, parts: I64, many: I64, step: I64, phase: I64, count: I64,
    ) -> None:  # fmt: skip
        if phase & 1:
            for k in range(task * many, min(task * many + many, parts)):
                here = min(per, rows - k * per)
                for v in range(0, V, wide):
                    at, out = k * per * V + v, work + (k * 2 * V + v)
                    if v + wide <= V:
                        sums(gy + at, x + at, here, stats + v, out, V, wide)
                    else:
                        sums_part(gy + at, x + at, here, stats + v, out, V, V - v)
        if phase & 2:
            for c in range(task * step, min(task * step + step, C)):
                sum_g, sum_gd = 0.0, 0.0
                for i in range(parts):
                    for v in range(c, V, C):
                        sum_g += work[i * 2 * V + v]
                        sum_gd += work[i * 2 * V + V + v]
                for at in range(rows * V + c, rows * V + tail, C):
                    sum_g += gy[at]
                    sum_gd += gy[at] * (x[at] - stats[c])
                low, inv_std = numba.float64(stats[V + c]), numba.float64(stats[2 * V + c])
                grad_w = (sum_gd - low * sum_g) * inv_std
                gw[c], gb[c] = grad_w, sum_g
                by_g = inv_std
                if address(w) != 0:
                    by_g *= w[c]
                by_d = -by_g * inv_std * grad_w / count
                offset = -by_g * sum_g / count - by_d * low
                for v in range(c, V, C):
                    coefficients[v], coefficients[V + v] = by_g, by_d
                    coefficients[2 * V + v] = offset
        if phase & 4 and address(gx) != 0:
            for k in range(task * many, min(task * many + many, parts)):
                here = min(per, rows - k * per)
                left = tail if k == parts - 1 else 0
                for v in range(0, V, wide):
                    at = k * per * V + v
                    if v + wide <= V:
                        apply(
                            gy + at, x + at, gx + at, here, left - v, stats + v, coefficients + v,
                            V, wide,
                        )  # fmt: skip
                    else:
                        apply_part(
                            gy + at, x + at, gx + at, here, left - v, stats + v, coefficients + v,
                            V, V - v,
                        )  # fmt: skip

    return backward
