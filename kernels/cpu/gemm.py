"""The matrix product C = A B in float32 or float64, for 1x1 convolutions and Linear.

                       B[k, n]  panels of `vectors` registers of columns, packed into the scratch
                      +----+----+--
                      |    |    |          a task: a block of C, and a part of k
       A[m, k]        |    |    |            for each block of k that lies in it:
      +---------+     +----+----+--            for each panel of columns: pack it (it stays in L1)
 rows |=========|     | tile    |                for each tile of rows: a loop of `outer` over k,
      +---------+     +----+----+--                then add what C has of the blocks of k before
      |         |     |         |
                       C[m, n]

A is read as single numbers, at any strides; B with either index contiguous. Rows of C may be taken
from any place, by a table (pixels of a gradient with stride), and so may columns (pixels of several
images). Several images are several products (`batch`), or parts of one sum over k (`images`).

All is decided from the shapes: which tile, which blocks, and into how many parts k is cut where C
is small. Parts go to a workspace and are added in order by a second launch, so that the result has
the same bits for every number of threads. A last tile of rows that does not fit reaches back over
rows that are done, and does not store them again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from gpuconv.kernels.cpu.compiler import I64, I64P, Data, Kernel, current

Array = Any
ROW, COLUMN = 1, 2  # what a bias belongs to


def _multiply(dtype: str, rows: int, vectors: int) -> Callable[..., None]:
    from numba import njit

    from gpuconv.kernels.cpu.pack import packers
    from gpuconv.kernels.cpu.vector import (
        add_column, add_row, add_tile, address, lanes, load, load_part, maximum, outer, pointer,
        prefetch, relu_tile, splat, store, store_part, store_tile, tile,
    )  # fmt: skip

    count = lanes(dtype)
    wide = vectors * count
    pack_rows, pack_pixels, pack_turned, pack_turned_pixels, copy_lines = packers(dtype, vectors)
    device = njit(error_model="numpy")

    @device
    def edge(
        sums: Any, c: Any, c_row: Any, add: Any, bias: Any, kind: Any, skip: Any, left: Any,
        row_table: Any, rowed: Any, table: Any, tabled: Any, more: Any, last: Any, relu: Any,
    ) -> None:  # fmt: skip
        """A tile from the scratch to C: rows from `skip` on, `left` columns, places by tables."""
        for i in range(skip, rows):
            at = i * c_row
            if rowed:
                at = row_table[i]
            for v in range(vectors):
                columns = min(left - v * count, count)
                if columns <= 0:
                    break
                value = load(sums + (i * wide + v * count))
                j = v * count
                if last and kind == 1:
                    value = value + splat(bias, bias[i])
                if last and kind == 2:
                    value = value + load_part(bias + j, columns)
                place = at + j
                joined = True
                if tabled:
                    place = at + table[j]
                    joined = table[j + columns - 1] - table[j] == columns - 1
                if joined:
                    if more:
                        value = value + load_part(c + place, columns)
                    if last and address(add) != 0:
                        value = value + load_part(add + place, columns)
                    if last and relu:
                        value = maximum(value, splat(bias, 0))
                    store_part(c + place, value, columns)
                else:
                    store(sums + (i * wide + j), value)
                    for e in range(columns):
                        one = at + table[j + e]
                        number = sums[i * wide + j + e]
                        if more:
                            number += c[one]
                        if last and address(add) != 0:
                            number += add[one]
                        if last and relu and number < 0:
                            number = sums.dtype(0) if False else number - number
                        c[one] = number

    return None


MULTIPLY = _multiply
