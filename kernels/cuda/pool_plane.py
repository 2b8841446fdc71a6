"""Pooling with one window, the whole image: its maximum and its sum, in any number of dimensions.

`members` threads of a block share a plane; member m takes pixels m, m + members, ..., four loads
at a time, and the members' results meet in shared memory in a tree: always the same order.

    NCHW           members are adjacent threads, so that a warp reads along the plane
    channels-last  adjacent threads are adjacent planes, that is channels; a warp reads along them

    plane_max   the maximum and its pixel (the tap): the first of equal numbers, the last NaN
    plane_mean  the sum over a number. A member adds up at most 64 numbers at a time, in each of
                four partial sums, then those, so that rounding errors grow slowly

Grid: groups of 256 / members planes, numbered as N*C. Shared memory: a result of each of the 256
threads, for the maximum followed by its tap.
"""

from collections.abc import Callable
from math import inf, prod
from typing import Any

from numba import cuda, types

from gpuconv.kernels.cuda.compiler import I32, I32P, Data, Kernel, Scalar
from gpuconv.kernels.cuda.plan import blocks
from gpuconv.kernels.cuda.ptx import (
    barrier,
    div,
    i32,
    lds,
    lds64,
    lds_i32,
    load_nc,
    rem,
    shared,
    store,
    sts,
    sts64,
    sts_i32,
)

THREADS = 256
DTYPES = {"float32": 4, "float64": 8}
MANY = 8192  # planes that keep a GPU busy with a warp each
NOWHERE = 2**31 - 1  # the tap of a member that has no pixel


def max_kernel(dtype: str) -> Kernel:
    shared_bytes = THREADS * (DTYPES[dtype] + 4)
    return Kernel(f"plane_max_{dtype}", _plane_max, (("dtype", dtype),), THREADS, 1, shared_bytes)


def mean_kernel(dtype: str) -> Kernel:
    shared_bytes = THREADS * DTYPES[dtype]
    return Kernel(f"plane_mean_{dtype}", _plane_mean, (("dtype", dtype),), THREADS, 1, shared_bytes)


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    return [make(dtype) for make in (max_kernel, mean_kernel) for dtype in DTYPES]


def _plane_max(dtype: str) -> Callable[..., None]:
    kind, size = getattr(types, dtype), DTYPES[dtype]
    lowest, nowhere = kind(-inf), types.int32(NOWHERE)
    get, put = (lds, sts) if dtype == "float32" else (lds64, sts64)

    def plane_max(
        x: Data, y: Data, tap: I32P, with_taps: I32,
        planes: I32, C: I32, pixels: I32, xn: I32, xc: I32, xp: I32,
        members: I32, member_step: I32, plane_step: I32,
    ) -> None:  # fmt: skip
        me = i32(cuda.threadIdx.x)
        member = rem(div(me, member_step), members)
        group = div(i32(THREADS), members)
        plane = i32(cuda.blockIdx.x * group + rem(div(me, plane_step), group))
        best, taken = lowest, nowhere
        if plane < planes:
            start = i32(div(plane, C) * xn + rem(plane, C) * xc)
            v = cuda.local.array(4, kind)
            t = member
            taken = t if t < pixels else nowhere
            while t < pixels:
                for j in range(4):
                    at = i32(t + j * members)
                    v[j] = load_nc(x, i32(start + at * xp)) if at < pixels else lowest
                for j in range(4):
                    if v[j] > best or v[j] != v[j]:
                        best, taken = v[j], i32(t + j * members)
                t = i32(t + 4 * members)
        value_at, tap_at = i32(shared() + me * size), i32(shared() + THREADS * size + me * 4)
        put(value_at, best)
        sts_i32(tap_at, taken)
        half = i32(members >> 1)
        while half > 0:
            barrier()
            if member < half:
                other = get(i32(value_at + half * member_step * size))
                other_tap = lds_i32(i32(tap_at + half * member_step * 4))
                later = other_tap > taken
                if other != other:
                    better = best == best or later
                else:
                    better = other > best or (other == best and not later)
                if better:
                    best, taken = other, other_tap
                    put(value_at, best)
                    sts_i32(tap_at, taken)
            half = i32(half >> 1)
        if member == 0 and plane < planes:
            store(y, plane, best)
            if with_taps:
                store(tap, plane, taken)

    return plane_max


def _plane_mean(dtype: str) -> Callable[..., None]:
    kind, size = getattr(types, dtype), DTYPES[dtype]
    zero = kind(0)
    get, put = (lds, sts) if dtype == "float32" else (lds64, sts64)

    def plane_mean(
        x: Data, y: Data, divisor: Scalar,
        planes: I32, C: I32, pixels: I32, xn: I32, xc: I32, xp: I32,
        members: I32, member_step: I32, plane_step: I32,
    ) -> None:  # fmt: skip
        me = i32(cuda.threadIdx.x)
        member = rem(div(me, member_step), members)
        group = div(i32(THREADS), members)
        plane = i32(cuda.blockIdx.x * group + rem(div(me, plane_step), group))
        total = zero
        if plane < planes:
            start = i32(div(plane, C) * xn + rem(plane, C) * xc)
            part = cuda.local.array(4, kind)
            t = member
            while t < pixels:
                for j in range(4):
                    part[j] = zero
                rounds = i32(0)
                while t < pixels and rounds < 64:
                    for j in range(4):
                        at = i32(t + j * members)
                        part[j] += load_nc(x, i32(start + at * xp)) if at < pixels else zero
                    t, rounds = i32(t + 4 * members), i32(rounds + 1)
                total += (part[0] + part[1]) + (part[2] + part[3])
        place = i32(shared() + me * size)
        put(place, total)
        half = i32(members >> 1)
        while half > 0:
            barrier()
            if member < half:
                total += get(i32(place + half * member_step * size))
                put(place, total)
            half = i32(half >> 1)
        if member == 0 and plane < planes:
            store(y, plane, total / divisor)

    return plane_mean


def supports(spec: Any, dtype: Any) -> bool:
    """One window that is the image, no padding; float32 or float64; indices of 32 bits."""
    size = prod(spec.x_shape)
    whole = spec.kernel == spec.x_shape[2:] and prod(spec.y_shape[2:]) == 1
    plain = not any(map(any, spec.padding)) and prod(spec.dilation) == 1
    known = dtype.name in DTYPES and dtype.isnative
    return whole and plain and known and 0 < size < 2**31 - 4 * THREADS


def max_pool(
    device: Any, spec: Any, dtype: Any, channels_last: bool, taps: bool
) -> Callable[..., Any]:
    """A launch of (x, y, tap); tap is None without `taps`; y and tap are N*C numbers."""
    grid, numbers = _geometry(spec, channels_last)
    return device.prepare(max_kernel(dtype.name), grid, with_taps=taps, **numbers)


def avg_pool(
    device: Any, spec: Any, dtype: Any, channels_last: bool, divisor: float
) -> Callable[..., Any]:
    """A launch of (x, y); y is N*C numbers."""
    grid, numbers = _geometry(spec, channels_last)
    return device.prepare(mean_kernel(dtype.name), grid, divisor=divisor, **numbers)


def _geometry(spec: Any, channels_last: bool) -> tuple[tuple[int, int, int], dict[str, int]]:
    # The shape alone decides, so that the sums are the same on every GPU.
    n, c, *size = spec.x_shape
    pixels, planes = prod(size), n * c
    crowd = planes >= MANY and pixels <= 1024
    if channels_last:
        # A warp is 32 channels of a pixel or, for more threads a plane, 8 channels (32 bytes) of 4.
        group = 32 if crowd else 8
        numbers = {"xc": 1, "xp": c, "members": THREADS // group}
        numbers |= {"member_step": group, "plane_step": 1}
    else:
        # As many as there are pixels, but a warp or a block.
        members = min(1 << (pixels - 1).bit_length(), 32 if crowd else THREADS)
        numbers = {"xc": pixels, "xp": 1, "members": members}
        numbers |= {"member_step": 1, "plane_step": members}
    numbers |= {"planes": planes, "C": c, "pixels": pixels, "xn": c * pixels}
    return blocks(planes * numbers["members"], THREADS), numbers
