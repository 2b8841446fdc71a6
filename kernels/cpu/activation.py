"""Elementwise kernels: ReLU, its gradient, and the sum of two arrays.

Arrays are rows of `count` numbers, whatever their shape: all of one memory format. A task is a
`chunk` of them. Arithmetic is nothing here and traffic all: a result far larger than the caches is
written past them (`stream`), which saves reading every line of it first.
"""

from collections.abc import Callable
from typing import Any

from gpuconv.kernels.cpu.compiler import I64, Data, Kernel

UNIT = 1 << 10  # numbers, of which a task has a multiple: a multiple of every vector
CHUNK = 1 << 16  # numbers a task of large arrays
CACHED = 1 << 20  # bytes of an array that a processor's caches hold beside a second one
SEVERAL = 1 << 15  # numbers from which a second thread is worth its start
STREAM = 1 << 24  # bytes of the result from which it is written past the caches


def _elementwise(dtype: str, op: str) -> Callable[..., None]:
    import numba

    from gpuconv.kernels.cpu.choose import passed, store_past
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, maximum, splat, store, store_part

    width = lanes(dtype)

    if op == "relu":

        def value(a: Any, b: Any) -> Any:
            return maximum(load(a), splat(a, 0.0))

        def last_value(a: Any, b: Any, count: int) -> Any:
            return maximum(load_part(a, count), splat(a, 0.0))

    elif op == "relu_grad":

        def value(a: Any, b: Any) -> Any:
            return passed(load(a), load(b))

        def last_value(a: Any, b: Any, count: int) -> Any:
            return passed(load_part(a, count), load_part(b, count))

    else:

        def value(a: Any, b: Any) -> Any:
            return load(a) + load(b)

        def last_value(a: Any, b: Any, count: int) -> Any:
            return load_part(a, count) + load_part(b, count)

    whole, part = numba.njit(inline="always")(value), numba.njit(inline="always")(last_value)

    def elementwise(
        task: I64, thread: I64, a: Data, b: Data, y: Data, count: I64, chunk: I64, stream: I64
    ) -> None:
        i = task * chunk
        end = min(i + chunk, count)
        if stream == 1:
            while i + width <= end:
                store_past(y + i, whole(a + i, b + i))
                i += width
        while i + width <= end:
            store(y + i, whole(a + i, b + i))
            i += width
        if i < end:
            store_part(y + i, part(a + i, b + i, end - i), end - i)

    return elementwise


def elementwise(device: Any, op: str, count: int, dtype: str, threads: int) -> Callable[..., None]:
    """run(a, b, y): "relu" (a = x, b = None), "relu_grad" (a = gy, b = y) or "add".

    What the caches of `threads` processors hold is cut into one piece for each, the same ones every
    time; anything larger into pieces that whoever is free takes. No bit depends on it.
    """
    kernel = Kernel(f"elementwise_{op}", _elementwise, (("dtype", dtype), ("op", op)))
    size = count * (4 if dtype == "float32" else 8)
    chunk = count
    if count >= SEVERAL:
        chunk = CHUNK if size >= CACHED * threads else -(-count // (threads * UNIT)) * UNIT
    run: Callable[..., None] = device.prepare(
        kernel, -(-count // chunk), count=count, chunk=chunk, stream=int(size >= STREAM)
    )
    return run
