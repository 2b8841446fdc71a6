"""Operands of a matrix product, brought into panels: what `gemm` reads in its inner loop.

    a panel: depth rows of `vectors` registers, one after the other      [depth][vectors * lanes]

B[k, n] may lie with n contiguous (rows are copied) or with k contiguous (blocks are turned over);
its rows or columns may be at places that a table of offsets says: the pixels that a convolution
with stride uses, or those of several small images. Columns beyond the matrix become zeros.
"""

from typing import Any

Packers = tuple[Any, Any, Any, Any, Any, Any]


def packers(dtype: str, high: int, vectors: int) -> Packers:
    """(rows, pixels, turned, turned_pixels, lines, tiles): functions for kernels, of so large tiles."""
    from numba import njit

    from gpuconv.kernels.cpu.blocks import turn, turn_part
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, store

    count = lanes(dtype)
    wide = vectors * count
    device = njit(error_model="numpy", forceinline=True)

    @device
    def rows(panel: Any, b: Any, step: Any, table: Any, tabled: Any, depth: Any, left: Any) -> None:
        """Row l from b + l * step, or b + table[l]; `left` of its numbers are columns."""
        for line in range(depth):
            at = b + line * step
            if tabled:
                at = b + table[line]
            if left >= wide:
                for v in range(vectors):
                    store(panel + (line * wide + v * count), load(at + v * count))
            else:
                for v in range(vectors):
                    store(
                        panel + (line * wide + v * count),
                        load_part(at + v * count, left - v * count),
                    )

    @device
    def pixels(panel: Any, b: Any, step: Any, table: Any, depth: Any, left: Any) -> None:
        """Row l from b + l * step; its column j from table[j] beyond."""
        for v in range(vectors):
            columns = min(left - v * count, count)
            to, where = panel + v * count, table + v * count
            if columns > 0 and where[columns - 1] - where[0] == columns - 1:
                first = where[0]
                for line in range(depth):
                    store(to + line * wide, load_part(b + (line * step + first), columns))
            else:
                for line in range(depth):
                    at = b + line * step
                    for j in range(max(columns, 0)):
                        to[line * wide + j] = at[where[j]]
                    for j in range(max(columns, 0), count):
                        to[line * wide + j] = 0

    @device
    def turned(panel: Any, b: Any, step: Any, depth: Any, left: Any) -> None:
        """Column j from b + j * step. Writes whole blocks: up to lanes - 1 rows beyond depth."""
        for v in range(vectors):
            columns = left - v * count
            at = b + v * count * step
            for line in range(0, depth, count):
                to = panel + (line * wide + v * count)
                if columns >= count and line + count <= depth:
                    turn(to, wide, at + line, step)
                else:
                    turn_part(to, wide, at + line, step, columns, depth - line)

    @device
    def turned_pixels(panel: Any, b: Any, step: Any, table: Any, depth: Any, left: Any) -> None:
        """Column j from b + j * step; its row l from table[l] beyond."""
        for j in range(wide):
            at = b + j * step
            for line in range(depth):
                if j < left:
                    panel[line * wide + j] = at[table[line]]
                else:
                    panel[line * wide + j] = 0

    @device
    def lines(
        to: Any, lead: Any, a: Any, step: Any, table: Any, tabled: Any, number: Any, length: Any
    ) -> None:
        """`number` lines of `length` numbers, from a + i * step or a + table[i] to to + i * lead."""
        for i in range(number):
            at = a + i * step
            if tabled:
                at = a + table[i]
            whole = length - length % count
            for j in range(0, whole, count):
                store(to + (i * lead + j), load(at + j))
            for j in range(whole, length):
                to[i * lead + j] = at[j]

    @device
    def tiles(to: Any, a: Any, step: Any, depth: Any, first: Any, end: Any) -> None:
        """Rows of A that are contiguous, `high` together: [tile][depth][high]; the last reaches back.

        Stores go beyond a line's end, where the next line follows: the scratch has room for it.
        """
        for i in range(first, end, high):
            top = min(i, end - high)
            for line in range(depth):
                at = a + (line * step + top)
                for j in range(0, high, count):
                    store(to + j, load_part(at + j, high - j))
                to = to + high

    return rows, pixels, turned, turned_pixels, lines, tiles
