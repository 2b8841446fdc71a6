"""Batch norm, softmax cross entropy and optimizer steps of `CpuBackend`: what training adds."""

from typing import Any

import numpy as np

from gpuconv.kernels.cpu import norm
from gpuconv.reference.loss import Loss
from gpuconv.reference.norm import Norm
from gpuconv.reference.step import Step

Array = Any
# By dtype, which is not its name: that does not say the order of bytes.
NAMES = {np.dtype(name): name for name in ("float32", "float64")}


class CpuTrain(Norm, Loss, Step):
    """In float32 and float64; the rest is array code."""

    device: Any  # of CpuBackend, which mixes this class in
    plan: Any
    dense: Any
    empty: Any
    empty_like_format: Any
    contiguous: Any

    def batch_norm(
        self, x: Array, w: Array | None, b: Array | None, eps: float
    ) -> tuple[Array, Array, Array, tuple[Any, ...]]:
        dtype = NAMES.get(x.dtype)
        if dtype is None or not norm.supports(x.shape):
            return super().batch_norm(x, w, b, eps)
        x, last = self.dense(x)
        y = self.empty(x.shape, dtype, last)
        mean, var = np.empty(x.shape[1], dtype), np.empty(x.shape[1], dtype)
        run = self.plan(norm.forward, x.shape, dtype, last, eps)
        stats = run(x, self.contiguous(w), self.contiguous(b), y, mean, var)
        return y, mean, var, (x, last, stats)

    def batch_norm_grad(
        self, gy: Array, w: Array | None, saved: tuple[Any, ...], need_x: bool = True
    ) -> tuple[Array | None, Array, Array]:
        dtype = NAMES.get(gy.dtype)
        if dtype is None or not norm.supports(gy.shape):
            return super().batch_norm_grad(gy, w, saved, need_x)
        x, last, stats = saved
        gy, gy_last = self.dense(gy)
        if gy_last != last:
            gy = self._copy_as(last, gy)
        gx = self.empty(x.shape, dtype, last) if need_x else None
        gw, gb = np.empty(x.shape[1], dtype), np.empty(x.shape[1], dtype)
        run = self.plan(norm.backward, x.shape, dtype, last)
        run(gy, x, stats, self.contiguous(w), gx, gw, gb)
        return gx, gw, gb

    def _copy_as(self, last: bool, values: Array) -> Array:
        """`values` in an array of the format `last`."""
        y = self.empty(values.shape, values.dtype, last)
        y[...] = values
        return y
