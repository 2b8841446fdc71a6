"""Pooling of `CudaBackend`: the kernels of `kernels.cuda.pool` and `kernels.cuda.pool_plane`."""

from typing import Any

import numpy as np

from gpuconv.kernels.cuda import pool, pool_plane
from gpuconv.reference.conv import is_channels_last
from gpuconv.reference.pool import Pool
from gpuconv.shapes import PoolSpec

Array = Any


class CudaPool(Pool):
    """Pooling in one and two dimensions, and of whole planes in any; the rest is array code."""

    device: Any  # of CudaBackend, which mixes this class in
    plan: Any
    dense: Any

    def max_pool(self, spec: PoolSpec, x: Array, taps: bool = True) -> tuple[Array, Array | None]:
        whole = pool_plane.supports(spec, x.dtype)
        if not whole and not pool.supports(spec, x.dtype):
            return super().max_pool(spec, x, taps)
        x, last = self.dense(x)
        y = self.empty_like_format(x, spec.y_shape, x.dtype)
        tap = self.empty_like_format(x, spec.y_shape, self.xp.int32) if taps else None
        if whole:
            self.plan(pool_plane.max_pool, spec, x.dtype, last, taps)(x, y, tap)
        else:
            self.plan(pool.max_pool, spec, x.dtype, last, taps)(x, y, tap)
        return y, tap

    def max_pool_grad(self, spec: PoolSpec, gy: Array, tap: Array) -> Array:
        if not pool.supports(spec, gy.dtype):
            return super().max_pool_grad(spec, gy, tap)
        gy, last = self.dense(gy)
        lies = is_channels_last(tap) if last else tap.flags.c_contiguous
        if not lies or tap.dtype != self.xp.int32 or not self.device.aligned(tap):
            turned = self.empty_like_format(gy, tap.shape, self.xp.int32)
            turned[...] = tap
            tap = turned
        gx = self.empty_like_format(gy, spec.x_shape, gy.dtype)
        self.plan(pool.max_pool_grad, spec, gy.dtype, last)(gy, tap, gx)
        return gx

    def avg_pool(self, spec: PoolSpec, x: Array, divisor: Array | float) -> Array:
        number, array = self._divisor(spec, divisor, x.dtype)
        whole = number is not None and pool_plane.supports(spec, x.dtype)
        if not whole and not pool.supports(spec, x.dtype):
            return super().avg_pool(spec, x, divisor)
        x, last = self.dense(x)
        y = self.empty_like_format(x, spec.y_shape, x.dtype)
        if whole:
            self.plan(pool_plane.avg_pool, spec, x.dtype, last, number)(x, y)
        else:
            self.plan(pool.avg_pool, spec, x.dtype, last, number)(x, array, y)
        return y

    def avg_pool_grad(self, spec: PoolSpec, gy: Array, divisor: Array | float) -> Array:
        if not pool.supports(spec, gy.dtype):
            return super().avg_pool_grad(spec, gy, divisor)
        number, array = self._divisor(spec, divisor, gy.dtype)
        gy, last = self.dense(gy)
        gx = self.empty_like_format(gy, spec.x_shape, gy.dtype)
        self.plan(pool.avg_pool_grad, spec, gy.dtype, last, number)(gy, array, gx)
        return gx

    def _divisor(
        self, spec: PoolSpec, divisor: Array | float, dtype: Any
    ) -> tuple[float | None, Array | None]:
        """`divisor` as a number and None, or as None and an array *out on the device."""
        if getattr(divisor, "shape", ()) == ():
            return float(divisor), None
        out = spec.y_shape[2:]
        if isinstance(divisor, np.ndarray) and (self.xp is not np or divisor.dtype != dtype):
            # From the host: copied to the device once for the same numbers.
            key = dtype, out, divisor.shape, divisor.dtype, divisor.tobytes()
            return None, self.plan(_on_device, *key)
        array = self.xp.asarray(divisor, dtype=dtype)
        return None, self.xp.ascontiguousarray(self.xp.broadcast_to(array, out))


def _on_device(device: Any, dtype: Any, out: Any, shape: Any, kind: Any, numbers: bytes) -> Array:
    host = np.frombuffer(numbers, dtype=kind).reshape(shape).astype(dtype)
    return device.xp.asarray(np.ascontiguousarray(np.broadcast_to(host, out)))
