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

A is read as single numbers, at any strides; B with either index contiguous. Rows of C may be at
any places, by a table (pixels of a gradient with stride), and so may columns (pixels of several
images). Several images are several products (`batch`), or parts of one sum over k (`images`).
Everything is decided from the shapes, in `gemm_plan`. Parts of k go to a workspace and are added in
order by a second launch (`ADD`), so that the result has the same bits for every number of threads.
A last tile of rows that does not fit reaches back over rows that are done, and does not store them
again.
"""

from collections.abc import Callable

from gpuconv.kernels.cpu.compiler import I64, I64P, Data, Kernel

ROW, COLUMN = 1, 2  # what a bias belongs to
ROWS, PIXELS, TURNED, TURNED_PIXELS, IN_PLACE = range(5)  # how B is read


def _multiply(dtype: str, rows: int, vectors: int) -> Callable[..., None]:
    from numba import njit

    from gpuconv.kernels.cpu.blocks import fetch_tile
    from gpuconv.kernels.cpu.pack import packers
    from gpuconv.kernels.cpu.tile import (
        add_column,
        add_row,
        add_tile,
        outer,
        relu_tile,
        store_tile,
        tile,
    )
    from gpuconv.kernels.cpu.vector import (
        address,
        lanes,
        load,
        load_part,
        maximum,
        pointer,
        splat,
        store_part,
    )

    count = lanes(dtype)
    wide = vectors * count
    size = 4 if dtype == "float32" else 8
    pack_rows, pack_pixels, pack_turned, pack_turned_pixels, copy_lines, pack_tiles = packers(
        dtype, rows, vectors
    )
    device = njit(error_model="numpy")

    @device
    def edge(
        sums: Data, c: Data, add: Data, bias: Data, kind: I64, c_row: I64, lines: I64P,
        columns: I64P, skip: I64, left: I64, more: I64, last: I64, relu: I64,
    ) -> None:  # fmt: skip
        """A tile from the scratch to C: rows from `skip` on, `left` columns, places by tables."""
        for i in range(skip, rows):
            at = i * c_row
            if address(lines) != 0:
                at = lines[i]
            j = 0
            while j < left:
                length = min(left - j, count)
                place = at + j
                if address(columns) != 0:
                    where = columns + j
                    place = at + where[0]
                    if where[length - 1] - where[0] != length - 1:
                        run = 1
                        while where[run] - where[0] == run:
                            run += 1
                        length = run
                value = load(sums + (i * wide + j))
                if more:
                    value = value + load_part(c + place, length)
                if last:
                    if kind == 1:
                        value = value + splat(bias, bias[i])
                    if kind == 2:
                        value = value + load_part(bias + j, length)
                    if address(add) != 0:
                        value = value + load_part(add + place, length)
                    if relu:
                        value = maximum(value, splat(c, 0))
                store_part(c + place, value, length)
                j += length

    @device
    def clear_lines(c: Data, lines: I64P, start: I64, end: I64, step: I64, length: I64) -> None:
        """Zeros in the lines from offset `start` to `end` that are not in the table."""
        used = 0
        for at in range(start, end, step):
            if at == lines[used]:
                used += 1
            else:
                for j in range(0, length, count):
                    store_part(c + (at + j), splat(c, 0), length - j)

    def multiply(
        task: I64, thread: I64, a: Data, b: Data, c: Data, bias: Data, add: Data, a_lines: I64P,
        b_table: I64P, c_lines: I64P, c_columns: I64P, scratch: Data, m: I64, n: I64, k: I64,
        a_row: I64, a_k: I64, a_image: I64, b_k: I64, b_n: I64, b_image: I64, c_row: I64,
        c_image: I64, images: I64, m_block: I64, n_block: I64, k_block: I64, m_blocks: I64,
        n_blocks: I64, k_blocks: I64, parts: I64, part_size: I64, lead: I64, how: I64, kind: I64,
        relu: I64, spread: I64, panel_size: I64, own: I64,
    ) -> None:  # fmt: skip
        part = task % parts
        task = task // parts
        j0 = task % n_blocks * n_block
        task = task // n_blocks
        i0 = task % m_blocks * m_block
        image = task // m_blocks
        i1, j1 = min(i0 + m_block, m), min(j0 + n_block, n)
        low = min(i0, m - rows)  # a short last tile reaches back to here
        aligned = (address(scratch) + 63) // 64 * 64 + thread * own * size
        sums = pointer(scratch, aligned)
        packed = sums + (rows + 1) * wide
        a_own = packed + panel_size
        steps = images * k_blocks
        first, final = steps * part // parts, steps * (part + 1) // parts
        c = c + (image * c_image + part * part_size)
        add_image = add
        if address(add) != 0:
            add_image = add + image * c_image
        if spread > 0:
            if address(c_lines) != 0:
                start, end = 0, spread
                if i0 > 0:
                    start = c_lines[i0]
                if i1 < m:
                    end = c_lines[i1]
                clear_lines(c + j0, c_lines + i0, start, end, c_row, j1 - j0)
            else:
                start, end = 0, spread
                if j0 > 0:
                    start = c_columns[j0]
                if j1 < n:
                    end = c_columns[j1]
                for i in range(i0, i1):
                    for at in range(start, end, count):
                        store_part(c + (i * c_row + at), splat(c, 0), end - at)

        for step in range(first, final):
            l0 = step % k_blocks * k_block
            depth = min(k_block, k - l0)
            number = image + step // k_blocks
            more, last = step > first, step == final - 1
            a_at = a + (number * a_image + low * a_row + l0 * a_k)
            a_by, a_next, a_tile = a_row, a_k, 0
            if address(a_lines) != 0:
                a_at = a + (number * a_image + l0)
            if lead > 0 and a_k == 1:
                tabled = address(a_lines) != 0
                copy_lines(a_own, lead, a_at, a_row, a_lines + low, tabled, i1 - low, depth)
                a_at, a_by = a_own, lead
            elif lead > 0:
                pack_tiles(a_own, a_at, a_k, depth, i0 - low, i1 - low)
                a_at, a_by, a_next, a_tile = a_own, 1, rows, depth * rows
            panel = packed
            if how != IN_PLACE:
                for j in range(j0, j1, wide):
                    left = min(j1 - j, wide)
                    b_at = b + (number * b_image + j * b_n)
                    if how == PIXELS:
                        at = b + (number * b_image + l0 * b_k)
                        pack_pixels(panel, at, b_k, b_table + j, depth, left)
                    elif how == TURNED:
                        pack_turned(panel, b_at + l0, b_n, depth, left)
                    elif how == TURNED_PIXELS:
                        pack_turned_pixels(panel, b_at, b_n, b_table + l0, depth, left)
                    else:
                        tabled = address(b_table) != 0
                        if not tabled:
                            b_at = b_at + l0 * b_k
                        pack_rows(panel, b_at, b_k, b_table + l0, tabled, depth, left)
                    panel = panel + k_block * wide
            for i in range(i0, i1, rows):
                top = min(i, m - rows)
                here = a_at + (top - low) * a_by
                if a_tile > 0:
                    here = a_at + (i - i0) // rows * a_tile
                panel, b_step = packed, wide
                for j in range(j0, j1, wide):
                    left = min(j1 - j, wide)
                    if how == IN_PLACE:
                        panel, b_step = b + (number * b_image + j + l0 * b_k), b_k
                    straight = address(c_lines) == 0 and address(c_columns) == 0
                    if straight:
                        fetch_tile(c + (top * c_row + j), c_row, rows, vectors)
                    acc = tile(c, rows, vectors)
                    for step_k in range(depth):
                        acc = outer(acc, here + step_k * a_next, a_by, panel + step_k * b_step)
                    if top == i and left == wide and straight:
                        at = i * c_row + j
                        if more:
                            acc = add_tile(acc, c + at, c_row)
                        if last:
                            if kind == ROW:
                                acc = add_column(acc, bias + i)
                            if kind == COLUMN:
                                acc = add_row(acc, bias + j)
                            if address(add) != 0:
                                acc = add_tile(acc, add_image + at, c_row)
                            if relu:
                                acc = relu_tile(acc)
                        store_tile(c + at, c_row, acc)
                    else:
                        store_tile(sums, wide, acc)
                        c_at, add_at, bias_at = c + top * c_row, add_image, bias
                        if address(c_lines) != 0:
                            c_at = c
                        columns, table_rows = c_columns, c_lines
                        if address(c_columns) != 0:
                            columns = c_columns + j
                        else:
                            c_at = c_at + j
                        if address(c_lines) != 0:
                            table_rows = c_lines + top
                        if address(add) != 0:
                            add_at = pointer(add, address(add_image) + address(c_at) - address(c))
                        if kind == ROW:
                            bias_at = bias + top
                        if kind == COLUMN:
                            bias_at = bias + j
                        edge(
                            sums, c_at, add_at, bias_at, kind, c_row, table_rows, columns, i - top,
                            left, more, last, relu,
                        )  # fmt: skip
                    panel = panel + k_block * wide

    return multiply


def _add(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.blocks import turn_part
    from gpuconv.kernels.cpu.vector import (
        address,
        lanes,
        load,
        load_part,
        maximum,
        pointer,
        splat,
        store,
        store_part,
    )

    count = lanes(dtype)
    size = 4 if dtype == "float32" else 8

    def add_parts(
        task: I64, thread: I64, work: Data, c: Data, bias: Data, add: Data, scratch: Data,
        parts: I64, m: I64, n: I64, c_row: I64, c_column: I64, kind: I64, relu: I64, block: I64,
        own: I64,
    ) -> None:  # fmt: skip
        # Block of rows task * block ..; a square of lanes x lanes at a time where C is turned.
        square = pointer(scratch, (address(scratch) + 63) // 64 * 64 + thread * own * size)
        other = square + count * count
        i0, i1 = task * block, min((task + 1) * block, m)
        for top in range(i0, i1, count):
            high = min(i1 - top, count)
            for j in range(0, n, count):
                for i in range(top, top + high):
                    at = work + (i * n + j)
                    value = load_part(at, n - j)
                    for part in range(1, parts):
                        value = value + load_part(at + part * m * n, n - j)
                    if kind == ROW:
                        value = value + splat(bias, bias[i])
                    if kind == COLUMN:
                        value = value + load_part(bias + j, n - j)
                    if address(add) != 0:
                        value = value + load_part(add + (i * c_row + j), n - j)
                    if relu:
                        value = maximum(value, splat(c, 0))
                    if c_column == 1:
                        store_part(c + (i * c_row + j), value, n - j)
                    else:
                        store(square + (i - top) * count, value)
                if c_column != 1:
                    wide = min(n - j, count)
                    turn_part(other, count, square, count, high, wide)
                    for e in range(wide):
                        value = load(other + e * count)
                        store_part(c + ((j + e) * c_column + top), value, high)

    return add_parts


def multiply_kernel(dtype: str, rows: int, vectors: int) -> Kernel:
    """The product with tiles of rows x vectors registers; at least `rows` rows."""
    constants = (("dtype", dtype), ("rows", rows), ("vectors", vectors))
    return Kernel(f"gemm_{rows}x{vectors}_{dtype}", _multiply, constants)


def add_kernel(dtype: str) -> Kernel:
    """The sum of the parts that products left in a workspace (parts, m, n), in order."""
    return Kernel(f"gemm_add_{dtype}", _add, (("dtype", dtype),))
