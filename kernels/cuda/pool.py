"""Pooling in two dimensions (one: H = 1), and its gradients.

An image is seen as (planes, H, W, L) with L adjacent numbers a pixel, so that one kernel serves
both memory formats: NCHW is (N*C, H, W, 1), channels-last (N, H, W, C). Threads are numbered as the
result lies in memory, neighbours side by side along l, then w; each works on four numbers, whose
window and divisions by P, Q it works out once:

    strided   number j of a thread is in plane 4g + j, at the same (p, q, l); every layout and dtype
    vector    float32 with L a multiple of 4: numbers 4l ... 4l + 3 of one pixel, in 16 bytes

    max_pool        the maximum of each window and its tap, r * S + s: the first of equal numbers,
                    the last NaN; what is outside the image is skipped
    max_pool_grad   for each pixel the gy of the windows whose tap is on it: gathered, tap by tap
    avg_pool        the sum of each window over a number, or over an array (P, Q)
    avg_pool_grad   for each pixel gy / divisor of the windows it is in: gathered, tap by tap

Every output is written once, by one thread, and every sum is in one fixed order: of at most 16
numbers, of those sums along a row, of the rows. So rounding errors stay those of sums along one
axis after the other. Grid: blocks of 128 threads, in one row. Shared memory: none.

Pooling of whole planes, with one window, is in `pool_plane`.
"""

from collections.abc import Callable
from math import inf, prod
from typing import Any

from numba import cuda, types

from gpuconv.kernels.cuda.compiler import I32, I32P, Data, Kernel, Scalar
from gpuconv.kernels.cuda.plan import blocks
from gpuconv.kernels.cuda.ptx import (
    div,
    divide,
    i32,
    inline,
    load4_nc,
    load_nc,
    reciprocal,
    rem,
    store,
    store4,
)

THREADS = 128
DTYPES = ("float32", "float64")
VARIANTS = (("float32", True), ("float32", False), ("float64", False))


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    makers = (_max_pool, _max_pool_grad, _avg_pool, _avg_pool_grad)
    return [_kernel(make, *variant) for make in makers for variant in VARIANTS]


def _kernel(make: Callable[..., Any], dtype: str, vector: bool) -> Kernel:
    name = f"{make.__name__[1:]}_{'vector' if vector else 'strided'}_{dtype}"
    blocks = 8 if dtype == "float32" else 5  # on one SM: so at most 64 or 96 registers
    return Kernel(name, make, (("dtype", dtype), ("vector", vector)), THREADS, blocks)


@inline
def _first_tap(start: Any, step: Any) -> Any:
    """The first tap that is not before the image, of a window from pixel `start` on."""
    return i32(0) if start >= 0 else div(i32(step - 1 - start), step)


@inline
def _end_tap(start: Any, step: Any, taps: Any, size: Any) -> Any:
    """One past the last tap that is not behind the image's `size` pixels."""
    last = i32(start + (taps - 1) * step)
    return taps if last < size else div(i32(size - start + step - 1), step)


@inline
def _first_window(pixel: Any, reach: Any, stride: Any, factor: Any, shift: Any) -> Any:
    """The first window that reaches the pixel, counted from the padding's first."""
    return i32(0) if pixel <= reach else divide(i32(pixel - reach + stride - 1), factor, shift)


@inline
def _last_window(pixel: Any, windows: Any, factor: Any, shift: Any) -> Any:
    """The last window that starts at or before the pixel; -1 if there is none."""
    return i32(-1) if pixel < 0 else min(divide(pixel, factor, shift), i32(windows - 1))


def _access(vector: bool) -> tuple[Any, ...]:
    """first_plane(g), and reading and writing a thread's four numbers.

    Positions count numbers of the first plane or, for vectors, groups of four; `jumps` are the
    distances to the other planes, 0 for one that is not there.
    """
    if vector:

        def first_plane(g: Any) -> Any:
            return g

        def read(p: Any, at: Any, jumps: Any, values: Any) -> None:
            v = load4_nc(p, i32(at * 4))
            values[0], values[1], values[2], values[3] = v[0], v[1], v[2], v[3]

        def write(p: Any, at: Any, jumps: Any, v: Any) -> None:
            store4(p, i32(at * 4), v[0], v[1], v[2], v[3])

    else:

        def first_plane(g: Any) -> Any:
            return i32(4 * g)

        def read(p: Any, at: Any, jumps: Any, values: Any) -> None:
            for j in range(4):
                values[j] = load_nc(p, i32(at + jumps[j]))

        def write(p: Any, at: Any, jumps: Any, v: Any) -> None:
            for j in range(4):
                if j == 0 or jumps[j] > 0:
                    store(p, i32(at + jumps[j]), v[j])

    return tuple(inline(f) for f in (first_plane, read, write))


@inline
def _set_jumps(jumps: Any, plane: Any, planes: Any, size: Any) -> None:
    for j in range(4):
        jumps[j] = i32(j * size) if i32(plane + j) < planes else i32(0)


def _max_pool(dtype: str, vector: bool) -> Callable[..., None]:
    kind = getattr(types, dtype)
    lowest = kind(-inf)
    first_plane, read, write = _access(vector)

    def max_pool(
        x: Data, y: Data, tap: I32P, with_taps: I32,
        total: I32, planes: I32, L: I32, H: I32, W: I32, P: I32, Q: I32, R: I32, S: I32,
        stride_h: I32, stride_w: I32, pad_h: I32, pad_w: I32, dil_h: I32, dil_w: I32,
        l_factor: I32, l_shift: I32, q_factor: I32, q_shift: I32, p_factor: I32, p_shift: I32,
    ) -> None:  # fmt: skip
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i >= total:
            return
        pixel = divide(i, l_factor, l_shift)
        row = divide(pixel, q_factor, q_shift)
        g = divide(row, p_factor, p_shift)
        c, q, p, plane = i32(i - pixel * L), i32(pixel - row * Q), i32(row - g * P), first_plane(g)
        h0, w0 = i32(p * stride_h - pad_h), i32(q * stride_w - pad_w)
        r, s0 = _first_tap(h0, dil_h), _first_tap(w0, dil_w)
        r_end, s_end = _end_tap(h0, dil_h, R, H), _end_tap(w0, dil_w, S, W)
        jumps, taken = cuda.local.array(4, types.int32), cuda.local.array(4, types.int32)
        v, best = cuda.local.array(4, kind), cuda.local.array(4, kind)
        _set_jumps(jumps, plane, planes, i32(H * W * L))
        for j in range(4):
            best[j], taken[j] = lowest, i32(r * S + s0)
        while r < r_end:
            at = i32(((plane * H + h0 + r * dil_h) * W + w0 + s0 * dil_w) * L + c)
            s = s0
            while s < s_end:
                number = i32(r * S + s)
                read(x, at, jumps, v)
                for j in range(4):
                    if v[j] > best[j] or v[j] != v[j]:
                        best[j], taken[j] = v[j], number
                at, s = i32(at + dil_w * L), i32(s + 1)
            r = i32(r + 1)
        _set_jumps(jumps, plane, planes, i32(P * Q * L))
        at = i32(((plane * P + p) * Q + q) * L + c)
        write(y, at, jumps, best)
        if with_taps:
            write(tap, at, jumps, taken)

    return max_pool


def _avg_pool(dtype: str, vector: bool) -> Callable[..., None]:
    kind = getattr(types, dtype)
    zero = kind(0)
    first_plane, read, write = _access(vector)

    def avg_pool(
        x: Data, divisors: Data, y: Data, with_divisors: I32, divisor: Scalar,
        total: I32, planes: I32, L: I32, H: I32, W: I32, P: I32, Q: I32, R: I32, S: I32,
        stride_h: I32, stride_w: I32, pad_h: I32, pad_w: I32, dil_h: I32, dil_w: I32,
        l_factor: I32, l_shift: I32, q_factor: I32, q_shift: I32, p_factor: I32, p_shift: I32,
    ) -> None:  # fmt: skip
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i >= total:
            return
        pixel = divide(i, l_factor, l_shift)
        row = divide(pixel, q_factor, q_shift)
        g = divide(row, p_factor, p_shift)
        c, q, p, plane = i32(i - pixel * L), i32(pixel - row * Q), i32(row - g * P), first_plane(g)
        h0, w0 = i32(p * stride_h - pad_h), i32(q * stride_w - pad_w)
        r, s0 = _first_tap(h0, dil_h), _first_tap(w0, dil_w)
        r_end, s_end = _end_tap(h0, dil_h, R, H), _end_tap(w0, dil_w, S, W)
        jumps, v = cuda.local.array(4, types.int32), cuda.local.array(4, kind)
        part, along, y_sum = (cuda.local.array(4, kind), cuda.local.array(4, kind),
                              cuda.local.array(4, kind))  # fmt: skip
        _set_jumps(jumps, plane, planes, i32(H * W * L))
        for j in range(4):
            y_sum[j] = zero
        while r < r_end:
            at = i32(((plane * H + h0 + r * dil_h) * W + w0 + s0 * dil_w) * L + c)
            for j in range(4):
                along[j] = zero
            s = s0
            while s < s_end:
                for j in range(4):
                    part[j] = zero
                stop = min(i32(s + 16), s_end)
                while s < stop:
                    read(x, at, jumps, v)
                    for j in range(4):
                        part[j] += v[j]
                    at, s = i32(at + dil_w * L), i32(s + 1)
                for j in range(4):
                    along[j] += part[j]
            for j in range(4):
                y_sum[j] += along[j]
            r = i32(r + 1)
        by = load_nc(divisors, i32(p * Q + q)) if with_divisors else divisor
        for j in range(4):
            y_sum[j] = y_sum[j] / by
        _set_jumps(jumps, plane, planes, i32(P * Q * L))
        write(y, i32(((plane * P + p) * Q + q) * L + c), jumps, y_sum)

    return avg_pool


def _max_pool_grad(dtype: str, vector: bool) -> Callable[..., None]:
    kind = getattr(types, dtype)
    zero = kind(0)
    first_plane, read, write = _access(vector)

    def max_pool_grad(
        gy: Data, tap: I32P, gx: Data,
        total: I32, planes: I32, L: I32, H: I32, W: I32, P: I32, Q: I32, R: I32, S: I32,
        stride_h: I32, stride_w: I32, pad_h: I32, pad_w: I32, dil_h: I32, dil_w: I32,
        l_factor: I32, l_shift: I32, w_factor: I32, w_shift: I32, h_factor: I32, h_shift: I32,
        sh_factor: I32, sh_shift: I32, sw_factor: I32, sw_shift: I32,
    ) -> None:  # fmt: skip
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i >= total:
            return
        pixel = divide(i, l_factor, l_shift)
        row = divide(pixel, w_factor, w_shift)
        g = divide(row, h_factor, h_shift)
        c, plane = i32(i - pixel * L), first_plane(g)
        h, w = i32(row - g * H + pad_h), i32(pixel - row * W + pad_w)
        p0 = _first_window(h, i32((R - 1) * dil_h), stride_h, sh_factor, sh_shift)
        q0 = _first_window(w, i32((S - 1) * dil_w), stride_w, sw_factor, sw_shift)
        q_end = _last_window(w, Q, sw_factor, sw_shift)
        jumps, taken = cuda.local.array(4, types.int32), cuda.local.array(4, types.int32)
        v, gx_sum = cuda.local.array(4, kind), cuda.local.array(4, kind)
        _set_jumps(jumps, plane, planes, i32(P * Q * L))
        for j in range(4):
            gx_sum[j] = zero
        # From the last window to the first the pixel's tap grows: the order of the reference.
        p = _last_window(h, P, sh_factor, sh_shift)
        while p >= p0:
            off_h = i32(h - p * stride_h)
            r = off_h if dil_h == 1 else div(off_h, dil_h)
            q = q_end if i32(r * dil_h) == off_h else i32(-1)
            while q >= q0:
                off_w = i32(w - q * stride_w)
                s = off_w if dil_w == 1 else div(off_w, dil_w)
                if i32(s * dil_w) == off_w:
                    at = i32(((plane * P + p) * Q + q) * L + c)
                    number = i32(r * S + s)
                    read(tap, at, jumps, taken)
                    read(gy, at, jumps, v)
                    for j in range(4):
                        if taken[j] == number:
                            gx_sum[j] += v[j]
                q = i32(q - 1)
            p = i32(p - 1)
        _set_jumps(jumps, plane, planes, i32(H * W * L))
        write(gx, i32(pixel * L + c + (plane - g) * H * W * L), jumps, gx_sum)

    return max_pool_grad


def _avg_pool_grad(dtype: str, vector: bool) -> Callable[..., None]:
    kind = getattr(types, dtype)
    zero = kind(0)
    first_plane, read, write = _access(vector)

    def avg_pool_grad(
        gy: Data, divisors: Data, gx: Data, with_divisors: I32, divisor: Scalar,
        total: I32, planes: I32, L: I32, H: I32, W: I32, P: I32, Q: I32, R: I32, S: I32,
        stride_h: I32, stride_w: I32, pad_h: I32, pad_w: I32, dil_h: I32, dil_w: I32,
        l_factor: I32, l_shift: I32, w_factor: I32, w_shift: I32, h_factor: I32, h_shift: I32,
        sh_factor: I32, sh_shift: I32, sw_factor: I32, sw_shift: I32,
    ) -> None:  # fmt: skip
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i >= total:
            return
        pixel = divide(i, l_factor, l_shift)
        row = divide(pixel, w_factor, w_shift)
        g = divide(row, h_factor, h_shift)
        c, plane = i32(i - pixel * L), first_plane(g)
        h, w = i32(row - g * H + pad_h), i32(pixel - row * W + pad_w)
        p0 = _first_window(h, i32((R - 1) * dil_h), stride_h, sh_factor, sh_shift)
        q0 = _first_window(w, i32((S - 1) * dil_w), stride_w, sw_factor, sw_shift)
        q_end = _last_window(w, Q, sw_factor, sw_shift)
        jumps, v = cuda.local.array(4, types.int32), cuda.local.array(4, kind)
        along, gx_sum = cuda.local.array(4, kind), cuda.local.array(4, kind)
        _set_jumps(jumps, plane, planes, i32(P * Q * L))
        for j in range(4):
            gx_sum[j] = zero
        p = _last_window(h, P, sh_factor, sh_shift)
        while p >= p0:
            off_h = i32(h - p * stride_h)
            meets = dil_h == 1 or rem(off_h, dil_h) == 0
            q = q_end if meets else i32(-1)
            for j in range(4):
                along[j] = zero
            while q >= q0:
                if dil_w == 1 or rem(i32(w - q * stride_w), dil_w) == 0:
                    read(gy, i32(((plane * P + p) * Q + q) * L + c), jumps, v)
                    if with_divisors:
                        by = load_nc(divisors, i32(p * Q + q))
                        for j in range(4):
                            v[j] = v[j] / by
                    for j in range(4):
                        along[j] += v[j]
                q = i32(q - 1)
            for j in range(4):
                gx_sum[j] += along[j]
            p = i32(p - 1)
        for j in range(4):
            gx_sum[j] = gx_sum[j] / divisor
        _set_jumps(jumps, plane, planes, i32(H * W * L))
        write(gx, i32(pixel * L + c + (plane - g) * H * W * L), jumps, gx_sum)

    return avg_pool_grad


def supports(spec: Any, dtype: Any) -> bool:
    """One or two spatial axes, float32 or float64, indices of 32 bits, and not an empty batch."""
    if spec.nd > 2 or dtype.name not in DTYPES or not dtype.isnative:
        return False
    sizes = [prod(spec.x_shape), prod(spec.y_shape)]
    axes = zip(spec.x_shape[2:], spec.kernel, spec.stride, spec.padding, spec.dilation, strict=True)
    reach = [n + lo + hi + s + d * k for n, k, s, (lo, hi), d in axes]
    return min(sizes) > 0 and max(*sizes, *reach, prod(spec.kernel)) < 2**31


def max_pool(
    device: Any, spec: Any, dtype: Any, channels_last: bool, taps: bool
) -> Callable[..., Any]:
    """A launch of (x, y, tap), in one memory format, at multiples of 16 bytes; tap may be None."""
    kernel, grid, numbers = _geometry(_max_pool, spec, dtype, channels_last, over="y")
    return device.prepare(kernel, grid, with_taps=taps, **numbers)


def max_pool_grad(device: Any, spec: Any, dtype: Any, channels_last: bool) -> Callable[..., Any]:
    """A launch of (gy, tap, gx), as `max_pool`."""
    kernel, grid, numbers = _geometry(_max_pool_grad, spec, dtype, channels_last, over="x")
    return device.prepare(kernel, grid, **numbers)


def avg_pool(
    device: Any, spec: Any, dtype: Any, channels_last: bool, divisor: float | None
) -> Callable[..., Any]:
    """A launch of (x, divisors, y): divisors is an array *out, or None and `divisor` counts."""
    kernel, grid, numbers = _geometry(_avg_pool, spec, dtype, channels_last, over="y")
    return device.prepare(kernel, grid, **_divisor(divisor), **numbers)


def avg_pool_grad(
    device: Any, spec: Any, dtype: Any, channels_last: bool, divisor: float | None
) -> Callable[..., Any]:
    """A launch of (gy, divisors, gx), as `avg_pool`."""
    kernel, grid, numbers = _geometry(_avg_pool_grad, spec, dtype, channels_last, over="x")
    return device.prepare(kernel, grid, **_divisor(divisor), **numbers)


def _divisor(number: float | None) -> dict[str, float]:
    return {"with_divisors": number is None, "divisor": 1 if number is None else number}


def _geometry(
    make: Callable[..., Any], spec: Any, dtype: Any, channels_last: bool, over: str
) -> tuple[Kernel, tuple[int, int, int], dict[str, int]]:
    """Kernel, grid and the numbers that a PoolSpec decides; a thread for four numbers of `over`."""
    n, c, *size = spec.x_shape
    vector = channels_last and dtype.name == "float32" and c % 4 == 0
    planes, adjacent = (n, c) if channels_last else (n * c, 1)
    adjacent = adjacent // 4 if vector else adjacent
    groups = planes if vector else -(-planes // 4)
    named = {
        "H W": (size, 1),
        "P Q": (spec.y_shape[2:], 1),
        "R S": (spec.kernel, 1),
        "stride_h stride_w": (spec.stride, 1),
        "pad_h pad_w": ([before for before, _ in spec.padding], 0),
        "dil_h dil_w": (spec.dilation, 1),
    }
    numbers = {"planes": planes, "L": adjacent}
    for names, (values, fill) in named.items():
        numbers.update(zip(names.split(), (*(fill,) * (2 - spec.nd), *values), strict=True))
    rows, columns = "PQ" if over == "y" else "HW"
    divisors = {
        "l": adjacent,
        columns.lower(): numbers[columns],
        rows.lower(): numbers[rows],
    }
    if over == "x":
        divisors |= {"sh": numbers["stride_h"], "sw": numbers["stride_w"]}
    for name, number in divisors.items():
        numbers[f"{name}_factor"], numbers[f"{name}_shift"] = reciprocal(number)
    total = numbers["total"] = groups * numbers[rows] * numbers[columns] * adjacent
    return _kernel(make, dtype.name, vector), blocks(total, THREADS), numbers
