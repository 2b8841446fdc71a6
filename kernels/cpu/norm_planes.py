"""Batch norm's kernels for NCHW memory: a channel is one plane an image, contiguous pixels.

    image 0   [c0 ........][c1 ........]...      a plane has HW numbers; it is cut into `cuts`
    image 1   [c0 ........][c1 ........]...      pieces of `size`, so that several pieces, `run`
    ...        ^^^^ ^^^^                         of them, fit in the first cache
              pieces 0 and 1 of channel c0; its pieces are numbered through all images

A task has `group` channels one after the other and, of each, part k of `parts`: `per` pieces.
With one part a single launch does both phases of a channel while its planes are in the second
cache; with several, phase 1 leaves what it found in `work`, and each task of phase 2 puts the parts
of its channel together, in their order. (Phase 4 is the end of phase 2 alone, by numbers given.)

Statistics take one pass: numbers of a run are summed as differences from what is known of the mean,
and squares of them. Where that was half a standard deviation from the run's mean, or more,
digits were lost: the run, still in the first cache, is summed again about its mean. Runs and
parts are merged in float64. Source: Chan, Golub and LeVeque, "Algorithms for computing the sample
variance", The American Statistician 37 (1983). A mean is kept as high + low part, numbers of the
dtype: near 1e4 one float32 is off by up to 5e-4.
"""

from collections.abc import Callable

from gpuconv.kernels.cpu.compiler import F64, I64, Data, Float, Kernel

SUMS, APPLY, GIVEN = 1, 2, 4  # phases; 3 is the first two
# Additions to a sum before it is added to another. Squares of numbers on a grid, as those near 1e4
# are, are 0 or 1 mod 4 of its units: a sum so large that it rounds to fours rounds them all down.
FEW = 16


def forward(dtype: str) -> Kernel:
    """x, w, b -> y, mean, var, stats (3, C): the mean's high and low part, 1 / deviation.

    In phase GIVEN x, mean, stats (C,), b -> y = (x - mean) * stats + b."""
    return Kernel("norm_planes", _forward, (("dtype", dtype),))


def backward(dtype: str) -> Kernel:
    """gy, x, stats, w -> gx (if there is one), gw, gb."""
    return Kernel("norm_planes_grad", _backward, (("dtype", dtype),))


def _forward(dtype: str) -> Callable[..., None]:
    from math import sqrt

    import numba

    from gpuconv.kernels.cpu.rows import (
        fma_tile,
        fold,
        load_row,
        load_row_part,
        splat_tile,
        store_row_part,
    )
    from gpuconv.kernels.cpu.tile import store_tile, tile
    from gpuconv.kernels.cpu.vector import address, lanes, total

    wide, real = 4 * lanes(dtype), getattr(numba, dtype)

    @numba.njit
    def moments(x, step, HW, size, cuts, n, j, pieces, shift):  # type: ignore[no-untyped-def]
        """Of some pieces: sums of differences from shift and of their squares, the count, and the
        piece (n, j) after them."""
        about = splat_tile(tile(x, 1, 4), shift)
        all_sums, all_squares = tile(x, 1, 4), tile(x, 1, 4)
        sums, squares = tile(x, 1, 4), tile(x, 1, 4)
        count = 0
        for i in range(pieces):
            start = j * size
            length = min(size, HW - start)
            p = x + (n * step + start)
            t = 0
            while t + wide <= length:
                for u in range(t, min(t + FEW * wide, length - wide + 1), wide):
                    d = load_row(about, p + u) - about
                    sums = sums + d
                    squares = fma_tile(d, d, squares)
                    t += wide
                all_sums, all_squares = all_sums + sums, all_squares + squares
                sums, squares = tile(x, 1, 4), tile(x, 1, 4)
            if t < length:
                d = load_row_part(about, p + t, length - t) - about
                sums = sums + d
                squares = fma_tile(d, d, squares)
            if i & (FEW - 1) == FEW - 1:
                all_sums, all_squares = all_sums + sums, all_squares + squares
                sums, squares = tile(x, 1, 4), tile(x, 1, 4)
            count += length
            j += 1
            if j == cuts:
                j = 0
                n += 1
        sums, squares = all_sums + sums, all_squares + squares
        return numba.float64(total(fold(sums))), numba.float64(total(fold(squares))), count, n, j

    @numba.njit
    def statistics(x, step, HW, size, cuts, run, first, last):  # type: ignore[no-untyped-def]
        """Count, mean, and sum of squared differences from it, of pieces first .. last-1."""
        n = first // cuts
        j = first - n * cuts
        begin, some = x + (n * step + j * size), min(wide, HW - j * size)
        about = splat_tile(tile(x, 1, 4), begin[0])
        s = total(fold(load_row_part(about, begin, some) - about))
        shift = real(begin[0] + numba.float64(s) / some)
        known, mean, m2 = 0.0, 0.0, 0.0
        while first < last:
            pieces = min(run, last - first)
            d, q, count, n2, j2 = moments(x, step, HW, size, cuts, n, j, pieces, shift)
            if not 4.0 * d * d - q * count <= 0.0:  # so that NaN and infinity get here too
                shift = real(shift + d / count)
                d, q, count, n2, j2 = moments(x, step, HW, size, cuts, n, j, pieces, shift)
            both = known + count
            delta = shift + d / count - mean
            mean += delta * (count / both)
            m2 += q - d * d / count + delta * delta * (known * count / both)
            shift, known, first = real(mean), both, first + pieces
            n, j = n2, j2
        return known, mean, m2

    @numba.njit
    def together(work, parts):  # type: ignore[no-untyped-def]
        """As `statistics`, of a channel's parts."""
        base, count, s, m2 = work[1], 0.0, 0.0, 0.0
        for k in range(parts):
            count += work[3 * k]
            s += work[3 * k] * (work[3 * k + 1] - base)
        mean = base + s / count
        for k in range(parts):
            delta = work[3 * k + 1] - mean
            m2 += work[3 * k + 2] + work[3 * k] * delta * delta
        return count, mean, m2

    @numba.njit
    def apply(x, y, step, HW, size, cuts, first, last, high, scale, offset):  # type: ignore[no-untyped-def]
        """y = (x - high) * scale + offset of pieces first .. last-1."""
        highs, scales = splat_tile(tile(x, 1, 4), high), splat_tile(tile(x, 1, 4), scale)
        offsets = splat_tile(tile(x, 1, 4), offset)
        n = first // cuts
        j = first - n * cuts
        for _ in range(first, last):
            at = n * step + j * size
            length = min(size, HW - j * size)
            t = 0
            while t + wide <= length:
                d = load_row(highs, x + (at + t)) - highs
                store_tile(y + (at + t), 0, fma_tile(d, scales, offsets))
                t += wide
            if t < length:
                d = load_row_part(highs, x + (at + t), length - t) - highs
                result = fma_tile(d, scales, offsets)
                store_row_part(y + (at + t), result, length - t)
            j += 1
            if j == cuts:
                j = 0
                n += 1

    def forward(
        task: I64, thread: I64,
        x: Data, w: Data, b: Data, y: Data, mean: Data, var: Data, stats: Data, work: F64,
        C: I64, HW: I64, pieces: I64, cuts: I64, size: I64, run: I64,
        group: I64, per: I64, parts: I64, phase: I64, eps: Float,
    ) -> None:  # fmt: skip
        block = task // parts
        k = task - block * parts
        first = k * per
        last = min(first + per, pieces)
        for c in range(block * group, min(block * group + group, C)):
            count, centre, m2 = 0.0, 0.0, 0.0
            if phase & 1:
                count, centre, m2 = statistics(x + c * HW, C * HW, HW, size, cuts, run, first, last)
                if parts > 1:
                    slot = work + 3 * (c * parts + k)
                    slot[0], slot[1], slot[2] = count, centre, m2
            high, scale, offset = real(0.0), 0.0, 0.0
            if address(b) != 0:
                offset = numba.float64(b[c])
            if phase & 4:
                high, scale = mean[c], numba.float64(stats[c])
            if phase & 2:
                if parts > 1:
                    count, centre, m2 = together(work + 3 * c * parts, parts)
                variance = m2 / count
                if variance < 0.0:  # by rounding
                    variance = 0.0
                inv_std = 1.0 / sqrt(variance + eps)
                high = real(centre)
                low = centre - high
                if k == 0:
                    mean[c], var[c] = high, variance
                    stats[c], stats[C + c], stats[2 * C + c] = high, low, inv_std
                scale = inv_std
                if address(w) != 0:
                    scale = inv_std * w[c]
                offset -= low * scale
            if phase & 6:
                at = c * HW
                apply(x + at, y + at, C * HW, HW, size, cuts, first, last, high, scale, offset)

    return forward


def _backward(dtype: str) -> Callable[..., None]:
    import numba

    from gpuconv.kernels.cpu.rows import (
        fma_tile,
        fold,
        load_row,
        load_row_part,
        splat_tile,
        store_row_part,
    )
    from gpuconv.kernels.cpu.tile import store_tile, tile
    from gpuconv.kernels.cpu.vector import address, lanes, total

    wide = 4 * lanes(dtype)

    @numba.njit
    def sums(gy, x, step, HW, size, cuts, run, first, last, high):  # type: ignore[no-untyped-def]
        """Of pieces first .. last-1: the sums of gy and of gy * (x - high)."""
        highs, zeros = splat_tile(tile(x, 1, 4), high), tile(x, 1, 4)
        n = first // cuts
        j = first - n * cuts
        sum_g, sum_gd = 0.0, 0.0
        while first < last:
            stop = min(first + run, last)
            all_g, all_gd = tile(x, 1, 4), tile(x, 1, 4)
            g_sums, gd_sums = tile(x, 1, 4), tile(x, 1, 4)
            for i in range(stop - first):
                at = n * step + j * size
                length = min(size, HW - j * size)
                t = 0
                while t + wide <= length:
                    for u in range(t, min(t + FEW * wide, length - wide + 1), wide):
                        g = load_row(zeros, gy + (at + u))
                        d = load_row(highs, x + (at + u)) - highs
                        g_sums = g_sums + g
                        gd_sums = fma_tile(g, d, gd_sums)
                        t += wide
                    all_g, all_gd = all_g + g_sums, all_gd + gd_sums
                    g_sums, gd_sums = tile(x, 1, 4), tile(x, 1, 4)
                if t < length:
                    g = load_row_part(zeros, gy + (at + t), length - t)
                    d = load_row_part(highs, x + (at + t), length - t) - highs
                    g_sums = g_sums + g
                    gd_sums = fma_tile(g, d, gd_sums)
                if i & (FEW - 1) == FEW - 1:
                    all_g, all_gd = all_g + g_sums, all_gd + gd_sums
                    g_sums, gd_sums = tile(x, 1, 4), tile(x, 1, 4)
                j += 1
                if j == cuts:
                    j = 0
                    n += 1
            g_sums, gd_sums = all_g + g_sums, all_gd + gd_sums
            sum_g += total(fold(g_sums))
            sum_gd += total(fold(gd_sums))
            first = stop
        return sum_g, sum_gd

    @numba.njit
    def apply(gy, x, gx, step, HW, size, cuts, first, last, high, by_g, by_d, offset):  # type: ignore[no-untyped-def]
        """gx = gy * by_g + (x - high) * by_d + offset of pieces first .. last-1."""
        highs, gs = splat_tile(tile(x, 1, 4), high), splat_tile(tile(x, 1, 4), by_g)
        ds, offsets = splat_tile(tile(x, 1, 4), by_d), splat_tile(tile(x, 1, 4), offset)
        n = first // cuts
        j = first - n * cuts
        for _ in range(first, last):
            at = n * step + j * size
            length = min(size, HW - j * size)
            t = 0
            while t + wide <= length:
                d = load_row(highs, x + (at + t)) - highs
                g = load_row(highs, gy + (at + t))
                store_tile(gx + (at + t), 0, fma_tile(g, gs, fma_tile(d, ds, offsets)))
                t += wide
            if t < length:
                d = load_row_part(highs, x + (at + t), length - t) - highs
                g = load_row_part(highs, gy + (at + t), length - t)
                result = fma_tile(g, gs, fma_tile(d, ds, offsets))
                store_row_part(gx + (at + t), result, length - t)
            j += 1
            if j == cuts:
                j = 0
                n += 1

    def backward(
        task: I64, thread: I64,
        gy: Data, x: Data, stats: Data, w: Data, gx: Data, gw: Data, gb: Data, work: F64,
        C: I64, HW: I64, count: I64, pieces: I64, cuts: I64, size: I64, run: I64,
        group: I64, per: I64, parts: I64, phase: I64,
    ) -> None:  # fmt: skip
        block = task // parts
        k = task - block * parts
        first = k * per
        last = min(first + per, pieces)
        for c in range(block * group, min(block * group + group, C)):
            high, low, inv_std = stats[c], stats[C + c], stats[2 * C + c]
            sum_g, sum_gd = 0.0, 0.0
            if phase & 1:
                sum_g, sum_gd = sums(
                    gy + c * HW, x + c * HW, C * HW, HW, size, cuts, run, first, last, high
                )
                if parts > 1:
                    slot = work + 2 * (c * parts + k)
                    slot[0], slot[1] = sum_g, sum_gd
            if phase & 2:
                if parts > 1:
                    for i in range(c * parts, c * parts + parts):
                        sum_g += work[2 * i]
                        sum_gd += work[2 * i + 1]
                grad_w = (sum_gd - numba.float64(low) * sum_g) * inv_std
                if k == 0:
                    gw[c], gb[c] = grad_w, sum_g
                if address(gx) != 0:
                    by_g = numba.float64(inv_std)
                    if address(w) != 0:
                        by_g *= w[c]
                    by_d = -by_g * inv_std * grad_w / count
                    offset = -by_g * sum_g / count - by_d * low
                    apply(
                        gy + c * HW, x + c * HW, gx + c * HW, C * HW, HW, size, cuts,
                        first, last, high, by_g, by_d, offset,
                    )  # fmt: skip

    return backward
