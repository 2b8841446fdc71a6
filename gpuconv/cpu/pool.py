"""Pooling of `CpuBackend`: the kernels of `kernels.cpu.pool`, `pool_plane` and `pool_last`."""

from math import frexp
from typing import Any

import numpy as np

from gpuconv.cpu.device import NAMES
from gpuconv.kernels.cpu import pool, pool_last, pool_plane
from gpuconv.reference.conv import is_channels_last
from gpuconv.reference.pool import Pool
from gpuconv.shapes import PoolSpec

Array = Any


class CpuPool(Pool):
    """Pooling in one and two dimensions, in both memory formats; the rest is array code."""

    plan: Any  # of CpuBackend, which mixes this class in
    dense: Any
    empty: Any

    def max_pool(self, spec: PoolSpec, x: Array, taps: bool = True) -> tuple[Array, Array | None]:
        if not _takes(spec, x):
            return super().max_pool(spec, x, taps)
        x, last = self.dense(x)
        y = self.empty(spec.y_shape, x.dtype, last)
        tap = self.empty(spec.y_shape, np.int32, last) if taps else None
        self.plan(_max_pool, spec, NAMES[x.dtype], last, taps)(x, y, tap)
        return y, tap

    def max_pool_grad(self, spec: PoolSpec, gy: Array, tap: Array) -> Array:
        if not _takes(spec, gy):
            return super().max_pool_grad(spec, gy, tap)
        gy, last = self.dense(gy)
        lies = is_channels_last(tap) if last else tap.flags.c_contiguous
        if not lies or tap.dtype != np.int32:
            turned = self.empty(spec.y_shape, np.int32, last)
            turned[...] = tap
            tap = turned
        gx = self.empty(spec.x_shape, gy.dtype, last)
        self.plan(_max_pool_grad, spec, NAMES[gy.dtype], last)(gy, tap, gx)
        return gx

    def avg_pool(self, spec: PoolSpec, x: Array, divisor: Array | float) -> Array:
        if not _takes(spec, x):
            return super().avg_pool(spec, x, divisor)
        x, last = self.dense(x)
        y = self.empty(spec.y_shape, x.dtype, last)
        times = not hasattr(divisor, "shape") and abs(frexp(divisor)[0]) == 0.5
        table = self._table(spec, divisor, x.dtype, times)
        self.plan(_avg_pool, spec, NAMES[x.dtype], last, times)(x, table, y)
        return y

    def avg_pool_grad(self, spec: PoolSpec, gy: Array, divisor: Array | float) -> Array:
        if not _takes(spec, gy):
            return super().avg_pool_grad(spec, gy, divisor)
        gy, last = self.dense(gy)
        gx = self.empty(spec.x_shape, gy.dtype, last)
        table = self._table(spec, divisor, gy.dtype, True)
        self.plan(_avg_pool_grad, spec, NAMES[gy.dtype], last)(gy, table, gx)
        return gx

    def _table(self, spec: PoolSpec, divisor: Array | float, dtype: Any, inverse: bool) -> Array:
        """(P, Q): what each window's sum is divided by; or, `inverse`, what it is multiplied by."""
        if not hasattr(divisor, "shape"):
            return self.plan(_number_table, spec.y_shape[2:], divisor, dtype, inverse)
        return _array_table(spec.y_shape[2:], divisor, dtype, inverse)


def _takes(spec: PoolSpec, x: Array) -> bool:
    """True for what the kernels pool: one or two spatial axes, not empty."""
    return x.dtype in NAMES and spec.nd < 3 and x.size > 0


def _number_table(device: Any, out: Any, divisor: float, dtype: Any, inverse: bool) -> Array:
    return np.ascontiguousarray(_array_table(out, np.asarray(divisor), dtype, inverse))


def _array_table(out: Any, divisor: Array, dtype: Any, inverse: bool) -> Array:
    table = 1 / divisor if inverse else divisor
    return np.ascontiguousarray(np.broadcast_to(table, out), dtype=dtype)


def _flat(spec: PoolSpec) -> PoolSpec:
    """The same pooling in two dimensions."""
    if spec.nd == 2:
        return spec
    return PoolSpec(
        (*spec.x_shape[:2], 1, spec.x_shape[2]),
        (1, *spec.kernel),
        (1, *spec.stride),
        ((0, 0), *spec.padding),
        (1, *spec.dilation),
        spec.ceil_mode,
        (*spec.y_shape[:2], 1, spec.y_shape[2]),
    )


def _kernels(spec: PoolSpec, last: bool) -> Any:
    """The module whose plans take it."""
    return pool_last if last else pool_plane if pool_plane.supports(spec) else pool


# Plans: run(*arrays), made once for each problem.


def _max_pool(device: Any, spec: PoolSpec, dtype: str, last: bool, taps: bool) -> Any:
    return _kernels(spec, last).max_pool(device, _flat(spec), dtype, taps)


def _max_pool_grad(device: Any, spec: PoolSpec, dtype: str, last: bool) -> Any:
    return _kernels(spec, last).max_pool_grad(device, _flat(spec), dtype)


def _avg_pool(device: Any, spec: PoolSpec, dtype: str, last: bool, times: bool) -> Any:
    return _kernels(spec, last).avg_pool(device, _flat(spec), dtype, times)


def _avg_pool_grad(device: Any, spec: PoolSpec, dtype: str, last: bool) -> Any:
    return _kernels(spec, last).avg_pool_grad(device, _flat(spec), dtype)
