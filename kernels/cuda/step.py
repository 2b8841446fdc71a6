"""Optimizer steps, each in one pass over the parameter, its gradient and its state.

    block   256 threads, 1024 numbers
    thread  4 numbers: adjacent ones, 16 bytes of each array at once, where every array starts at a
            multiple of 16 bytes; else (and in float64) the numbers i, i + 256, i + 512, i + 768

The arrays lie alike in memory, in whatever order of axes. Parameter and state are changed in place,
every number by one thread, and read before they are written. What is optional in a step (momentum,
AMSGrad, ...) is an integer that all threads agree on. No shared memory.

The numbers that change from step to step come with each launch, rounded from Python's to the
parameter's precision where array code does it: 1 - beta1, say, is float64 until it is complete.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.cuda.compiler import I32, Data, Kernel, Scalar
from gpuconv.kernels.cuda.plan import blocks
from gpuconv.kernels.cuda.ptx import (
    aligned,
    i32,
    inline,
    load,
    load4,
    load4_nc,
    load_nc,
    store,
    store4,
)

THREADS = 256
DTYPES = np.dtype("float32"), np.dtype("float64")


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    return [_kernel(make, dtype.name) for make in (_sgd, _adam, _rmsprop) for dtype in DTYPES]


def _kernel(make: Callable[..., Any], dtype: str) -> Kernel:
    return Kernel(f"step{make.__name__}_{dtype}", make, (("dtype", dtype),), THREADS)


def _access(dtype: str) -> tuple[Any, ...]:
    """What a thread does around its arithmetic, on local arrays of its four numbers.

    at = places(total, wide) is which numbers are its own; get, get_nc and put move them between an
    array in memory and a local one, with zeros for what lies beyond `total`; wide(p) is whether an
    array may be read 16 bytes at once.
    """
    zero = getattr(types, dtype)(0)

    @inline
    def places(total: Any, wide: Any) -> Any:
        first, me = i32(cuda.blockIdx.x * (4 * THREADS)), i32(cuda.threadIdx.x)
        i = i32(first + me * 4) if wide else i32(first + me)
        whole = i32(1) if wide and i32(i + 3) < total else i32(0)
        return i, i32(1) if wide else i32(THREADS), total, whole

    def getter(one: Any, four: Any) -> Any:
        @inline
        def get(p: Any, at: Any, out: Any) -> None:
            i, step, total, whole = at
            if whole:
                v = four(p, i)
                out[0], out[1], out[2], out[3] = v[0], v[1], v[2], v[3]
            else:
                for j in range(4):
                    k = i32(i + j * step)
                    out[j] = one(p, k) if k < total else zero

        return get

    @inline
    def put(p: Any, at: Any, v: Any) -> None:
        i, step, total, whole = at
        if whole:
            store4(p, i, v[0], v[1], v[2], v[3])
        else:
            for j in range(4):
                k = i32(i + j * step)
                if k < total:
                    store(p, k, v[j])

    @inline
    def never(p: Any) -> Any:
        return i32(0)

    wide = aligned if dtype == "float32" else never
    return places, getter(load, load4), getter(load_nc, load4_nc), put, wide


def _sgd(dtype: str) -> Callable[..., None]:
    real = getattr(types, dtype)
    zero = real(0)
    places, get, get_nc, put, wide = _access(dtype)

    def sgd_step(
        w: Data, gw: Data, buffer: Data, total: I32, has_buffer: I32, first: I32, nesterov: I32,
        lr: Scalar, momentum: Scalar, rest: Scalar, decay: Scalar,
    ) -> None:  # fmt: skip
        """rest = 1 - dampening."""
        p = cuda.local.array(4, real)
        g = cuda.local.array(4, real)
        m = cuda.local.array(4, real)
        at = places(total, wide(w) & wide(gw) & wide(buffer))
        get(w, at, p)
        get_nc(gw, at, g)
        if has_buffer and not first:
            get(buffer, at, m)
        for j in range(4):
            v = g[j]
            if decay != zero:
                v += decay * p[j]
            if has_buffer:
                m[j] = v if first else m[j] * momentum + rest * v
                v = v + momentum * m[j] if nesterov else m[j]
            p[j] -= lr * v
        if has_buffer:
            put(buffer, at, m)
        put(w, at, p)

    return sgd_step


def _adam(dtype: str) -> Callable[..., None]:
    real = getattr(types, dtype)
    zero = real(0)
    places, get, get_nc, put, wide = _access(dtype)

    def adam_step(
        w: Data, gw: Data, mean: Data, square: Data, largest: Data, total: I32, amsgrad: I32,
        scale: Scalar, rest1: Scalar, beta2: Scalar, rest2: Scalar, root: Scalar, eps: Scalar,
        decay: Scalar, shrink: Scalar,
    ) -> None:  # fmt: skip
        """scale = lr / (1 - beta1^step), root = sqrt(1 - beta2^step), rest = 1 - beta, shrink what
        decoupled decay leaves of w."""
        p = cuda.local.array(4, real)
        g = cuda.local.array(4, real)
        m = cuda.local.array(4, real)
        s = cuda.local.array(4, real)
        top = cuda.local.array(4, real)
        at = places(total, wide(w) & wide(gw) & wide(mean) & wide(square) & wide(largest))
        get(w, at, p)
        get_nc(gw, at, g)
        get(mean, at, m)
        get(square, at, s)
        if amsgrad:
            get(largest, at, top)
        for j in range(4):
            p[j] *= shrink
            v = g[j]
            if decay != zero:
                v += decay * p[j]
            m[j] += rest1 * (v - m[j])
            s[j] = s[j] * beta2 + rest2 * (v * v)
            variance = s[j]
            if amsgrad:
                # NaN in either stays, as in array code's maximum.
                if s[j] > top[j] or s[j] != s[j]:
                    top[j] = s[j]
                variance = top[j]
            p[j] -= scale * m[j] / (sqrt(variance) / root + eps)
        put(mean, at, m)
        put(square, at, s)
        if amsgrad:
            put(largest, at, top)
        put(w, at, p)

    return adam_step


def _rmsprop(dtype: str) -> Callable[..., None]:
    real = getattr(types, dtype)
    zero = real(0)
    places, get, get_nc, put, wide = _access(dtype)

    def rmsprop_step(
        w: Data, gw: Data, square: Data, mean: Data, buffer: Data, total: I32, centered: I32,
        has_buffer: I32, lr: Scalar, alpha: Scalar, rest: Scalar, eps: Scalar, momentum: Scalar,
        decay: Scalar,
    ) -> None:  # fmt: skip
        """rest = 1 - alpha."""
        p = cuda.local.array(4, real)
        g = cuda.local.array(4, real)
        s = cuda.local.array(4, real)
        m = cuda.local.array(4, real)
        b = cuda.local.array(4, real)
        at = places(total, wide(w) & wide(gw) & wide(square) & wide(mean) & wide(buffer))
        get(w, at, p)
        get_nc(gw, at, g)
        get(square, at, s)
        if centered:
            get(mean, at, m)
        if has_buffer:
            get(buffer, at, b)
        for j in range(4):
            v = g[j]
            if decay != zero:
                v += decay * p[j]
            s[j] = s[j] * alpha + rest * (v * v)
            variance = s[j]
            if centered:
                m[j] += rest * (v - m[j])
                variance -= m[j] * m[j]
                if variance < zero:  # by rounding; not NaN's place
                    variance = zero
            v = v / (sqrt(variance) + eps)
            if has_buffer:
                b[j] = b[j] * momentum + v
                v = b[j]
            p[j] -= lr * v
        put(square, at, s)
        if centered:
            put(mean, at, m)
        if has_buffer:
            put(buffer, at, b)
        put(w, at, p)

    return rmsprop_step


def supports(size: int, dtype: Any) -> bool:
    """Float32 and float64, indices of 32 bits (those just past the end too), and not nothing."""
    return dtype in DTYPES and 0 < size < 2**31 - 4 * THREADS


def sgd(
    device: Any, size: int, dtype: Any, has_buffer: bool, first: bool, nesterov: bool
) -> Callable[..., None]:
    """run(w, gw, buffer or None, lr=, momentum=, dampening=, weight_decay=, nesterov=)."""
    launch = device.prepare(
        _kernel(_sgd, dtype.name),
        blocks(size, 4 * THREADS),
        ("lr", "momentum", "rest", "decay"),
        total=size,
        has_buffer=has_buffer,
        first=first,
        nesterov=nesterov,
    )

    def run(
        w: Any,
        gw: Any,
        buffer: Any,
        *,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        launch(w, gw, buffer, lr=lr, momentum=momentum, rest=1 - dampening, decay=weight_decay)

    return run


def adam(device: Any, size: int, dtype: Any, amsgrad: bool) -> Callable[..., None]:
    """run(w, gw, mean, square, largest or None, step, lr=, beta1=, beta2=, eps=, weight_decay=,
    decoupled=)."""
    launch = device.prepare(
        _kernel(_adam, dtype.name),
        blocks(size, 4 * THREADS),
        ("scale", "rest1", "beta2", "rest2", "root", "eps", "decay", "shrink"),
        total=size,
        amsgrad=amsgrad,
    )

    def run(
        w: Any,
        gw: Any,
        mean: Any,
        square: Any,
        largest: Any,
        step: int,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        launch(
            w,
            gw,
            mean,
            square,
            largest,
            scale=lr / (1 - beta1**step),
            rest1=1 - beta1,
            beta2=beta2,
            rest2=1 - beta2,
            root=sqrt(1 - beta2**step),
            eps=eps,
            decay=0 if decoupled else weight_decay,
            shrink=1 - lr * weight_decay if decoupled else 1,
        )

    return run


def rmsprop(
    device: Any, size: int, dtype: Any, centered: bool, has_buffer: bool
) -> Callable[..., None]:
    """run(w, gw, square, mean or None, buffer or None, lr=, alpha=, eps=, weight_decay=,
    momentum=)."""
    launch = device.prepare(
        _kernel(_rmsprop, dtype.name),
        blocks(size, 4 * THREADS),
        ("lr", "alpha", "rest", "eps", "momentum", "decay"),
        total=size,
        centered=centered,
        has_buffer=has_buffer,
    )

    def run(
        w: Any,
        gw: Any,
        square: Any,
        mean: Any,
        buffer: Any,
        *,
        lr: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        launch(
            w,
            gw,
            square,
            mean,
            buffer,
            lr=lr,
            alpha=alpha,
            rest=1 - alpha,
            eps=eps,
            momentum=momentum,
            decay=weight_decay,
        )

    return run
