"""Batch norm, softmax cross entropy and optimizer steps of `CudaBackend`: what training adds."""

from typing import Any

from gpuconv.kernels.cuda import loss, norm, step as steps
from gpuconv.reference.conv import is_channels_last
from gpuconv.reference.loss import Loss
from gpuconv.reference.norm import Norm
from gpuconv.reference.step import Step

Array = Any


class CudaTrain(Norm, Loss, Step):
    """In float32, optimizer steps in float64 too; the rest is array code."""

    device: Any  # of CudaBackend, which mixes this class in
    plan: Any
    dense: Any
    empty_like_format: Any
    contiguous: Any

    def batch_norm(
        self, x: Array, w: Array | None, b: Array | None, eps: float
    ) -> tuple[Array, Array, Array, tuple[Any, ...]]:
        if not norm.supports(x.shape, x.dtype):
            return super().batch_norm(x, w, b, eps)
        x, last = self.dense(x)
        y = self.empty_like_format(x, x.shape, x.dtype)
        mean, var = (self.device.empty(x.shape[1:2], x.dtype) for _ in range(2))
        stats = self.device.empty((x.shape[1], 4), x.dtype)
        run = self.plan(norm.forward, x.shape, last, eps, w is not None, b is not None)
        run(x, self.contiguous(w), self.contiguous(b), y, mean, var, stats)
        return y, mean, var, (x, last, stats)

    def batch_norm_grad(
        self, gy: Array, w: Array | None, saved: tuple[Any, ...], need_x: bool = True
    ) -> tuple[Array | None, Array, Array]:
        if not norm.supports(gy.shape, gy.dtype):
            return super().batch_norm_grad(gy, w, saved, need_x)
        x, last, stats = saved
        gy, gy_last = self.dense(gy)
        if gy_last != last:
            gy = self._copy_as(x, gy)
        gw, gb = (self.device.empty(x.shape[1:2], x.dtype) for _ in range(2))
        gx = self.empty_like_format(x, x.shape, x.dtype) if need_x else None
        run = self.plan(norm.backward, x.shape, last, w is not None)
        run(gy, x, stats, self.contiguous(w), gx, gw, gb)
        return gx, gw, gb

    def softmax_cross_entropy(
        self, x: Array, target: Array, w: Array | None, ignore_index: int, smoothing: float
    ) -> tuple[Array, Any]:
        if not loss.supports(x.shape, x.dtype):
            return super().softmax_cross_entropy(x, target, w, ignore_index, smoothing)
        x, last = self.dense(x)
        losses, peaks, logs = (self.device.empty(target.shape, x.dtype) for _ in range(3))
        run = self.plan(loss.forward, x.shape, last, w is not None, ignore_index, smoothing)
        run(x, self.contiguous(target), self.contiguous(w), losses, peaks, logs)
        return losses, (x, last, peaks, logs)

    def softmax_cross_entropy_grad(
        self,
        g: Array,
        saved: Any,
        target: Array,
        w: Array | None,
        ignore_index: int,
        smoothing: float,
    ) -> Array:
        if not isinstance(saved, tuple):
            return super().softmax_cross_entropy_grad(g, saved, target, w, ignore_index, smoothing)
        x, last, peaks, logs = saved
        # The gradient of a mean or a sum is one number, repeated by strides of 0: left so.
        single = not any(g.strides)
        key = x.shape, last, w is not None, ignore_index, smoothing, not single
        w_sum = self.xp.asarray(w.sum()) if w is not None and smoothing else None
        gx = self.empty_like_format(x, x.shape, x.dtype)
        run, g = self.plan(loss.grad, *key), g if single else self.contiguous(g)
        run(g, x, peaks, logs, self.contiguous(target), self.contiguous(w), w_sum, gx)
        return gx

    def sgd_step(
        self, w: Array, gw: Array, buffer: Array | None, first: bool, **numbers: Any
    ) -> None:
        g = self._gradient(w, gw, buffer)
        if g is None:
            return super().sgd_step(w, gw, buffer, first, **numbers)
        key = w.size, w.dtype, buffer is not None, first, numbers["nesterov"]
        return self.plan(steps.sgd, *key)(w, g, buffer, **numbers)

    def adam_step(
        self,
        w: Array,
        gw: Array,
        mean: Array,
        square: Array,
        largest: Array | None,
        step: int,
        **numbers: Any,
    ) -> None:
        g = self._gradient(w, gw, mean, square, largest)
        if g is None:
            return super().adam_step(w, gw, mean, square, largest, step, **numbers)
        run = self.plan(steps.adam, w.size, w.dtype, largest is not None)
        return run(w, g, mean, square, largest, step, **numbers)

    def rmsprop_step(
        self,
        w: Array,
        gw: Array,
        square: Array,
        mean: Array | None,
        buffer: Array | None,
        **numbers: Any,
    ) -> None:
        g = self._gradient(w, gw, square, mean, buffer)
        if g is None:
            return super().rmsprop_step(w, gw, square, mean, buffer, **numbers)
        run = self.plan(steps.rmsprop, w.size, w.dtype, mean is not None, buffer is not None)
        return run(w, g, square, mean, buffer, **numbers)

    def _gradient(self, w: Array, gw: Array, *state: Array | None) -> Array | None:
        """gw as it lies in memory like w; None where w and its state are nothing for a kernel."""
        if not steps.supports(w.size, w.dtype):
            return None
        if w.flags.c_contiguous:
            if all(s is None or s.flags.c_contiguous for s in state):
                return self.contiguous(gw)
        elif w.ndim > 2 and all(s is None or is_channels_last(s) for s in (w, *state)):
            return gw if is_channels_last(gw) else self._copy_as(w, gw)
        return None

    def _copy_as(self, x: Array, values: Array) -> Array:
        """`values` in an array that lies in memory like x."""
        y = self.empty_like_format(x, x.shape, x.dtype)
        y[...] = values
        return y
