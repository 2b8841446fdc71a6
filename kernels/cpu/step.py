"""Optimizer steps on CPUs: one pass over a parameter, its gradient and its state.

Arrays are rows of `count` numbers, whatever their shape: all of one memory format. A task is
`CHUNK` of them. Formulas are those of `gpuconv.reference.step`; numbers that do not depend on the
arrays are worked out in float64 and rounded once. They come in an array, since a schedule or Adam's
bias corrections change them from step to step.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

from gpuconv.kernels.cpu.compiler import F64, I64, Data, Kernel

CHUNK = 1 << 13  # numbers a task; a multiple of every vector
SEVERAL = 1 << 16  # numbers from which a second thread is worth its start


def sgd(device: Any, count: int, dtype: str) -> Callable[..., None]:
    """run(w, gw, buffer, numbers); buffer None without momentum.

    numbers = (lr, momentum, 1 - dampening, weight_decay, nesterov, first), float64.
    """
    return _plan(device, "step_sgd", _sgd, count, dtype)


def adam(device: Any, count: int, dtype: str) -> Callable[..., None]:
    """run(w, gw, mean, square, largest, numbers); largest None without AMSGrad.

    numbers = (lr / (1 - beta1^step), 1 - beta1, beta2, 1 - beta2, 1 / sqrt(1 - beta2^step), eps,
    decay that is added to the gradient, what w is multiplied by for a decoupled one), float64.
    """
    return _plan(device, "step_adam", _adam, count, dtype)


def rmsprop(device: Any, count: int, dtype: str) -> Callable[..., None]:
    """run(w, gw, square, mean, buffer, numbers); mean None if not centered, buffer None without
    momentum. numbers = (lr, alpha, 1 - alpha, eps, weight_decay, momentum), float64."""
    return _plan(device, "step_rmsprop", _rmsprop, count, dtype)


def _plan(device: Any, name: str, make: Any, count: int, dtype: str) -> Callable[..., None]:
    kernel = Kernel(name, make, (("dtype", dtype),))
    run: Callable[..., None] = device.prepare(
        kernel, ceil(count / CHUNK), several=count >= SEVERAL, count=count
    )
    return run


def _sgd(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import address, fma, lanes, load_part, splat, store_part

    wide = lanes(dtype)

    def step(
        task: I64, thread: I64, w: Data, gw: Data, buffer: Data, numbers: F64, count: I64
    ) -> None:
        lr, momentum = splat(w, numbers[0]), splat(w, numbers[1])
        rest, decay = splat(w, numbers[2]), splat(w, numbers[3])
        decays, nesterov, first = numbers[3] != 0.0, numbers[4] != 0.0, numbers[5] != 0.0
        for i in range(task * CHUNK, min(task * CHUNK + CHUNK, count), wide):
            left = count - i
            old, g = load_part(w + i, left), load_part(gw + i, left)
            if decays:
                g = fma(decay, old, g)
            if address(buffer) != 0:
                kept = g
                if not first:
                    kept = fma(rest, g, momentum * load_part(buffer + i, left))
                store_part(buffer + i, kept, left)
                g = fma(momentum, kept, g) if nesterov else kept
            store_part(w + i, old - lr * g, left)

    return step


def _adam(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.rows import square_root
    from gpuconv.kernels.cpu.vector import (
        address,
        fma,
        lanes,
        load_part,
        maximum,
        splat,
        store_part,
    )

    wide = lanes(dtype)

    def step(
        task: I64, thread: I64,
        w: Data, gw: Data, mean: Data, square: Data, largest: Data, numbers: F64, count: I64,
    ) -> None:  # fmt: skip
        scale, rest1 = splat(w, numbers[0]), splat(w, numbers[1])
        beta2, rest2 = splat(w, numbers[2]), splat(w, numbers[3])
        correction, eps = splat(w, numbers[4]), splat(w, numbers[5])
        decay, keep = splat(w, numbers[6]), splat(w, numbers[7])
        decays, decoupled = numbers[6] != 0.0, numbers[7] != 1.0
        for i in range(task * CHUNK, min(task * CHUNK + CHUNK, count), wide):
            left = count - i
            old, g = load_part(w + i, left), load_part(gw + i, left)
            if decoupled:
                old = old * keep
            if decays:
                g = fma(decay, old, g)
            m, v = load_part(mean + i, left), load_part(square + i, left)
            m = fma(rest1, g - m, m)
            v = fma(rest2, g * g, v * beta2)
            store_part(mean + i, m, left)
            store_part(square + i, v, left)
            if address(largest) != 0:
                v = maximum(v, load_part(largest + i, left))
                store_part(largest + i, v, left)
            below = fma(square_root(v), correction, eps)
            store_part(w + i, old - scale * m / below, left)

    return step


def _rmsprop(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.rows import square_root
    from gpuconv.kernels.cpu.vector import (
        address,
        fma,
        lanes,
        load_part,
        maximum,
        splat,
        store_part,
    )

    wide = lanes(dtype)

    def step(
        task: I64, thread: I64,
        w: Data, gw: Data, square: Data, mean: Data, buffer: Data, numbers: F64, count: I64,
    ) -> None:  # fmt: skip
        lr, alpha, rest = splat(w, numbers[0]), splat(w, numbers[1]), splat(w, numbers[2])
        eps, decay, momentum = splat(w, numbers[3]), splat(w, numbers[4]), splat(w, numbers[5])
        decays, zero = numbers[4] != 0.0, splat(w, 0.0)
        for i in range(task * CHUNK, min(task * CHUNK + CHUNK, count), wide):
            left = count - i
            old, g = load_part(w + i, left), load_part(gw + i, left)
            if decays:
                g = fma(decay, old, g)
            v = fma(rest, g * g, alpha * load_part(square + i, left))
            store_part(square + i, v, left)
            if address(mean) != 0:
                m = load_part(mean + i, left)
                m = fma(rest, g - m, m)
                store_part(mean + i, m, left)
                v = maximum(v - m * m, zero)
            update = g / (square_root(v) + eps)
            if address(buffer) != 0:
                update = fma(momentum, load_part(buffer + i, left), update)
                store_part(buffer + i, update, left)
            store_part(w + i, old - lr * update, left)

    return step
