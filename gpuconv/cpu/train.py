"""Batch norm, softmax cross entropy and optimizer steps of `CpuBackend`: what training adds."""

from typing import Any

import numpy as np

from gpuconv.cpu.device import NAMES
from gpuconv.cpu.team import get_num_threads
from gpuconv.kernels.cpu import loss, norm, step as steps
from gpuconv.reference.conv import is_channels_last
from gpuconv.reference.loss import Loss
from gpuconv.reference.norm import Norm
from gpuconv.reference.step import Step

Array = Any


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
        run = self.plan(norm.forward, x.shape, dtype, last, get_num_threads(), eps)
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
        run = self.plan(norm.backward, x.shape, dtype, last, get_num_threads())
        run(gy, x, stats, self.contiguous(w), gx, gw, gb)
        return gx, gw, gb

    def scale_shift(self, x: Array, mean: Array, scale: Array, b: Array | None) -> Array:
        dtype = NAMES.get(x.dtype)
        if dtype is None or not norm.supports(x.shape):
            return super().scale_shift(x, mean, scale, b)
        x, last = self.dense(x)
        y, plain = self.empty(x.shape, dtype, last), self.contiguous
        run = self.plan(norm.scale_shift, x.shape, dtype, last, get_num_threads())
        run(x, plain(mean), plain(scale), plain(b), y)
        return y

    def softmax_cross_entropy(
        self, x: Array, target: Array, w: Array | None, ignore_index: int, smoothing: float
    ) -> tuple[Array, Any]:
        dtype = NAMES.get(x.dtype)
        if dtype is None or not loss.supports(x.shape):
            return super().softmax_cross_entropy(x, target, w, ignore_index, smoothing)
        x, last = self.dense(x)
        losses, peaks, sums = (np.empty(target.shape, dtype) for _ in range(3))
        key = x.shape, dtype, last, ignore_index, smoothing
        run, w_sum = self.plan(loss.forward, *key), _sum(w, smoothing)
        run(x, self.contiguous(target), self.contiguous(w), w_sum, losses, peaks, sums)
        return losses, (x, last, peaks, sums)

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
        x, last, peaks, sums = saved
        dtype = NAMES[x.dtype]
        # The gradient of a mean or a sum is one number, repeated by strides of 0: left so.
        single = not any(g.strides)
        run = self.plan(loss.grad, x.shape, dtype, last, ignore_index, smoothing, single)
        gx, g = self.empty(x.shape, dtype, last), g if single else self.contiguous(g)
        target, w_sum = self.contiguous(target), _sum(w, smoothing)
        run(g, x, peaks, sums, target, self.contiguous(w), w_sum, gx)
        return gx

    def sgd_step(
        self,
        w: Array,
        gw: Array,
        buffer: Array | None,
        first: bool,
        *,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        g = self._gradient(w, gw, buffer)
        if g is None:
            return super().sgd_step(
                w, gw, buffer, first, lr=lr, momentum=momentum, dampening=dampening,
                weight_decay=weight_decay, nesterov=nesterov,
            )  # fmt: skip
        numbers = np.array((lr, momentum, 1 - dampening, weight_decay, nesterov, first), float)
        return self.plan(steps.sgd, w.size, NAMES[w.dtype])(w, g, buffer, numbers)

    def adam_step(
        self,
        w: Array,
        gw: Array,
        mean: Array,
        square: Array,
        largest: Array | None,
        step: int,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        g = self._gradient(w, gw, mean, square, largest)
        if g is None:
            return super().adam_step(
                w, gw, mean, square, largest, step, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
                weight_decay=weight_decay, decoupled=decoupled,
            )  # fmt: skip
        decay, keep = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
        scale, correction = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
        numbers = np.array(
            (scale, 1 - beta1, beta2, 1 - beta2, correction, eps, decay, keep), float
        )
        run = self.plan(steps.adam, w.size, NAMES[w.dtype])
        return run(w, g, mean, square, largest, numbers)

    def rmsprop_step(
        self,
        w: Array,
        gw: Array,
        square: Array,
        mean: Array | None,
        buffer: Array | None,
        *,
        lr: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        g = self._gradient(w, gw, square, mean, buffer)
        if g is None:
            return super().rmsprop_step(
                w, gw, square, mean, buffer, lr=lr, alpha=alpha, eps=eps,
                weight_decay=weight_decay, momentum=momentum,
            )  # fmt: skip
        numbers = np.array((lr, alpha, 1 - alpha, eps, weight_decay, momentum), float)
        run = self.plan(steps.rmsprop, w.size, NAMES[w.dtype])
        return run(w, g, square, mean, buffer, numbers)

    def _gradient(self, w: Array, gw: Array, *state: Array | None) -> Array | None:
        """gw as it lies in memory like w; None where w and its state are nothing for a kernel."""
        dtype = w.dtype
        if dtype not in NAMES or gw.dtype != dtype or not w.size:
            return None
        last = not w.flags.carray  # in order of its axes, aligned, and writable
        for each in (w, *state):
            if each is not None and (
                each.dtype != dtype or not (_lies_last(each) if last else each.flags.carray)
            ):
                return None
        if not last:
            return self.contiguous(gw)
        return gw if is_channels_last(gw) else self._copy_as(True, gw)

    def _copy_as(self, last: bool, values: Array) -> Array:
        """`values` in an array of the format `last`."""
        y = self.empty(values.shape, values.dtype, last)
        y[...] = values
        return y


def _lies_last(a: Array) -> bool:
    """True if it is channels-last in memory, and writable."""
    return a.ndim > 2 and bool(a.flags.writeable) and is_channels_last(a)


def _sum(w: Array | None, smoothing: float) -> Array | None:
    """The sum of class weights, where it is needed, as the kernels take it."""
    return None if w is None or not smoothing else np.asarray(w.sum(), float)
