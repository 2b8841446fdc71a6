"""Operands of a matrix product, brought into panels: what `gemm` reads in its inner loop.

    a panel: depth rows of `vectors` registers, one after the other      [depth][vectors * lanes]

B[k, n] may lie with n contiguous (rows are copied) or with k contiguous (blocks are turned over);
its rows or columns may be at places that a table of offsets says: the pixels that a convolution
with stride uses, or those of several small images. Columns beyond the matrix become zeros.
"""

from typing import Any

Packers = tuple[Any, Any, Any, Any, Any, Any]


def packers(dtype: str, high: int, vectors: int) -> Packers:
    """(rows, pixels, turned, turned_pixels, lines, tiles): functions for so large tiles."""
    from numba import njit

    from gpuconv.kernels.cpu.blocks import turn, turn_part
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, store, store_part

    count = lanes(dtype)
    wide = vectors * count
    beyond = -(-high // count) * count  # numbers that are stored of a line
    device = njit(error_model="numpy")

    @device
    def clear(panel: Any, depth: Any, left: Any) -> None:
        """Zeros in the registers of columns that have none of `left`."""
        for j in range((left + count - 1) // count * count, wide, count):
            for line in range(depth):
                store(panel + (line * wide + j), splat(panel, 0))

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
                for j in range(0, left, count):
                    store(panel + (line * wide + j), load_part(at + j, left - j))
        clear(panel, depth, left)

    @device
    def pixels(panel: Any, b: Any, step: Any, table: Any, depth: Any, left: Any) -> None:
        """Row l from b + l * step; its column j from table[j] beyond."""
        for j in range(0, left, count):
            columns = min(left - j, count)
            to, where = panel + j, table + j
            first = where[0]
            if where[columns - 1] - first == columns - 1:
                for line in range(depth):
                    store(to + line * wide, load_part(b + (line * step + first), columns))
            else:
                for line in range(depth):
                    at = b + line * step
                    for i in range(columns):
                        to[line * wide + i] = at[where[i]]
                    for i in range(columns, count):
                        to[line * wide + i] = 0
        clear(panel, depth, left)

    @device
    def turned(panel: Any, b: Any, step: Any, depth: Any, left: Any) -> None:
        """Column j from b + j * step. Writes whole blocks: up to lanes - 1 rows beyond depth."""
        for j in range(0, left, count):
            columns = left - j
            at = b + j * step
            for line in range(0, depth, count):
                to = panel + (line * wide + j)
                if columns >= count and line + count <= depth:
                    turn(to, wide, at + line, step)
                else:
                    turn_part(to, wide, at + line, step, columns, depth - line)
        clear(panel, depth, left)

    @device
    def turned_pixels(panel: Any, b: Any, step: Any, table: Any, depth: Any, left: Any) -> None:
        """Column j from b + j * step; its row l from table[l] beyond."""
        for j in range((left + count - 1) // count * count):
            at = b + j * step
            for line in range(depth):
                if j < left:
                    panel[line * wide + j] = at[table[line]]
                else:
                    panel[line * wide + j] = 0
        clear(panel, depth, left)

    @device
    def lines(
        to: Any, lead: Any, a: Any, step: Any, table: Any, tabled: Any, number: Any, length: Any
    ) -> None:
        """`number` lines of `length` numbers from a + i * step or a + table[i], `lead` apart."""
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
        """Contiguous rows of A, `high` together: [tile][depth][high]; the last tile reaches back.

        A is read line by line, as it lies. Stores go beyond a line's end, where the next lines
        follow, but not beyond the tile's, for the next one has begun already.
        """
        for line in range(depth):
            out = to + line * high
            inside = line * high + beyond <= depth * high
            for i in range(first, end, high):
                at = a + (line * step + min(i, end - high))
                for j in range(0, high, count):
                    value = load_part(at + j, high - j)
                    if inside:
                        store(out + j, value)
                    else:
                        store_part(out + j, value, high - j)
                out = out + depth * high

    return rows, pixels, turned, turned_pixels, lines, tiles
