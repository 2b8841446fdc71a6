"""What this processor can do at most: products in registers, and memory read and written.

`products`: each task sums `steps` outer products of 8 x 3 vectors (6 x 2 with 16 registers) whose
factors stay in the first cache. `copy`: each task copies its part of an array.
"""

from collections.abc import Callable
from typing import Any

from gpuconv.kernels.cpu.compiler import F32, I64, Kernel, current


def tile_of() -> tuple[int, int]:
    """Rows and vectors of the tile of sums."""
    return (8, 3) if current().registers >= 32 else (6, 2)


def products() -> Kernel:
    """products(a, b, sums, k, steps): a (k, rows), b (k, columns), sums (tasks, rows, columns)."""
    rows, vectors = tile_of()
    return Kernel("peak_products", _products, (("rows", rows), ("vectors", vectors)))


def _products(rows: int, vectors: int) -> Callable[..., None]:
    from gpuconv.kernels.cpu.tile import outer, store_tile, tile
    from gpuconv.kernels.cpu.vector import lanes

    columns = vectors * lanes("float32")

    def multiply(task: I64, thread: I64, a: F32, b: F32, sums: F32, k: I64, steps: I64) -> None:
        for _ in range(steps):
            found = tile(a, rows, vectors)
            for i in range(k):
                found = outer(found, a + i * rows, 1, b + i * columns)
            store_tile(sums + task * rows * columns, columns, found)

    return multiply


def _copy() -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load, store

    step = lanes("float32")

    def copy(task: I64, thread: I64, source: F32, target: F32, part: I64) -> None:
        for i in range(task * part, (task + 1) * part, step):
            store(target + i, load(source + i))

    return copy


COPY: Any = Kernel("peak_copy", _copy)
