"""Vector operations of the direct convolution: pixels anywhere in memory, squares turned over.

As `vector`, this file imports Numba; only kernels, while they are compiled, import it.
"""

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpuconv.kernels.cpu.tile import emit_each
from gpuconv.kernels.cpu.vector import (
    I32,
    I64,
    Tile,
    emit_fma,
    emit_load,
    emit_load_part,
    emit_splat,
    emit_store,
    load,
    load_part,
    splat,
    store,
    width,
)


@intrinsic(prefer_literal=True)
def places(typingctx: Any, p: Any, table: Any, count: Any) -> Any:
    """The tuple of pointers p + table[0], ..., p + table[count - 1]; count is a constant."""
    result = types.UniTuple(p, int(count.literal_value))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, table_at, _ = arguments
        found = []
        for i in range(result.count):
            step = builder.load(builder.gep(table_at, [I64(i)]))
            found.append(builder.gep(p_at, [step]))
        return context.make_tuple(builder, result, found)

    return result(p, table, count), codegen


@intrinsic
def prefetch_second(typingctx: Any, p: Any) -> Any:
    """Bring the cache line at p into the second-level cache, and leave the first's as they are."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(call, [builder.bitcast(arguments[0], byte), I32(0), I32(2), I32(1)])
        return context.get_dummy_value()

    return types.void(p), codegen


@intrinsic
def add_places(typingctx: Any, sums: Any, rows: Any) -> Any:
    """The numbers at rows[i], a tuple of pointers, added to row i: earlier sums."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        each = cgutils.unpack_tuple(builder, arguments[1])
        return emit_each(
            builder,
            sums,
            arguments[0],
            lambda old, row, v: builder.fadd(
                old, emit_load(builder, each[row], sums, v * sums.count)
            ),
        )

    return sums(sums, rows), codegen


@intrinsic
def store_places(typingctx: Any, rows: Any, sums: Any) -> Any:
    """Row i of the tile to rows[i], a tuple of pointers."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for i, row in enumerate(cgutils.unpack_tuple(builder, arguments[0])):
            for v in range(sums.vectors):
                value = builder.extract_value(arguments[1], i * sums.vectors + v)
                emit_store(builder, value, row, sums, v * sums.count)
        return context.get_dummy_value()

    return types.void(rows, sums), codegen


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors: in step d, blocks of d x d change places in pairs."""
    count, step = len(rows), 1
    while step < count:
        low = [i if not i & step else count + i - step for i in range(count)]
        high = [i + step if not i & step else count + i for i in range(count)]
        for i in range(count):
            if not i & step:
                pair = rows[i], rows[i + step]
                for at, order in ((i, low), (i + step, high)):
                    mask = ir.Constant(ir.VectorType(I32, count), order)
                    rows[at] = builder.shuffle_vector(*pair, mask)
        step *= 2
    return rows


def _square(builder: Any, context: Any, result: Any, rows: list[Any]) -> Any:
    new = ir.Constant(context.get_value_type(result), ir.Undefined)
    for i, row in enumerate(_turned(builder, rows)):
        new = builder.insert_value(new, row, i)
    return new


@intrinsic
def turned(typingctx: Any, p: Any, step: Any) -> Any:
    """The square of numbers at p, rows `step` apart, as a tile whose rows are its columns."""
    count = width(p.dtype)
    result = Tile(p.dtype, count, count, 1)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, by = arguments
        rows = [
            emit_load(builder, builder.gep(p_at, [builder.mul(by, I64(i))]), result)
            for i in range(count)
        ]
        return _square(builder, context, result, rows)

    return result(p, types.int64), codegen


@intrinsic
def turned_part(typingctx: Any, p: Any, step: Any, rows: Any, columns: Any) -> Any:
    """As `turned`, reading only the first `rows` rows and `columns` columns; zeros elsewhere."""
    count = width(p.dtype)
    result = Tile(p.dtype, count, count, 1)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, by, rows_at, columns_at = arguments
        found = []
        for i in range(count):
            inside = builder.icmp_signed(">", rows_at, I64(i))
            left = builder.select(inside, columns_at, I64(0))
            at = builder.gep(p_at, [builder.mul(by, I64(i))])
            found.append(emit_load_part(builder, at, left, result))
        return _square(builder, context, result, found)

    return result(p, types.int64, types.int64, types.int64), codegen


@intrinsic
def scatter(typingctx: Any, p: Any, table: Any, step: Any, count: Any, sums: Any) -> Any:
    """Row i < count of a tile of one vector to p + table[i] * step, if table[i] >= 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, table_at, by, count_at, values = arguments
        for i in range(sums.rows):
            with builder.if_then(builder.icmp_signed(">", count_at, I64(i))):
                place = builder.load(builder.gep(table_at, [I64(i)]))
                with builder.if_then(builder.icmp_signed(">=", place, I64(0))):
                    at = builder.gep(p_at, [builder.mul(place, by)])
                    emit_store(builder, builder.extract_value(values, i), at, sums)
        return context.get_dummy_value()

    return types.void(p, table, types.int64, types.int64, sums), codegen


@numba.njit(inline="always")
def copy_run(to: Any, source: Any, count: Any, lanes: Any) -> None:
    """`count` numbers; up to a vector less one of zeros is written beyond them."""
    i = 0
    while i + lanes <= count:
        store(to + i, load(source + i))
        i += lanes
    if i < count:
        store(to + i, load_part(source + i, count - i))


@numba.njit(inline="always")
def zero_run(to: Any, count: Any, lanes: Any) -> None:
    """`count` zeros, and up to a vector less one beyond them."""
    nothing = splat(to, 0.0)
    for i in range(0, count, lanes):
        store(to + i, nothing)


@numba.njit(inline="always")
def copy_rows(
    to: Any, x: Any, first: Any, count: Any, step: Any, height: Any, low: Any, inside: Any,
    total: Any, unit: Any, x_h: Any, x_w: Any, t_h: Any, t_w: Any, wide: Any,
) -> None:  # fmt: skip
    """Rows first, first + step, ... of x; of each `low` columns of zeros, `inside`, zeros."""
    if unit == 1 and x_w == 1 and t_w == 1 and total <= wide:
        nothing = splat(to, 0.0)
        for i in range(count):
            row, at = first + i * step, to + i * t_h
            store(at, nothing)
            if row >= 0 and row < height and inside > 0:
                store(at + low, load_part(x + row * x_h, inside))
        return
    for i in range(count):
        row, at = first + i * step, to + i * t_h
        if row < 0 or row >= height or inside <= 0:
            zero_run(at, total * t_w, wide)
            continue
        source = x + row * x_h
        if low > 0:
            zero_run(at, low * t_w, wide)
        at = at + low * t_w
        if x_w == unit and t_w == unit:
            copy_run(at, source, inside * unit, wide)
        elif unit == 1:
            for t in range(inside):
                at[t] = source[t * x_w]
        else:
            for t in range(inside):
                copy_run(at + t * t_w, source + t * x_w, unit, wide)
        if low + inside < total:
            zero_run(at + inside * t_w, (total - low - inside) * t_w, wide)


def packer(lanes: int, vectors: int) -> Any:
    """A function that brings weights into the order of the sums: [reduction][output channel]."""
    block = lanes * vectors

    @numba.njit(inline="always")
    def pack(
        w: Any, to: Any, order: Any, apart: int, left: int, runs: int, run_step: int, length: int
    ) -> None:
        """`runs` runs of `length` numbers, for `block` output channels that are `apart` in w.

        Number i of all runs goes to row order[i] of `to`, if that is >= 0. Of the channels, `left`
        exist: the others get zeros.
        """
        for run in range(runs):
            source, rows = w + run * run_step, order + run * length
            if apart == 1 and length == 1:
                place = rows[0]
                if place >= 0:
                    for v in range(vectors):
                        part = load_part(source + v * lanes, left - v * lanes)
                        store(to + (place * block + v * lanes), part)
                continue
            for v in range(vectors):
                at, here = source + v * lanes * apart, left - v * lanes
                for i in range(0, length, lanes):
                    if here >= lanes and i + lanes <= length:
                        square = turned(at + i, apart)
                        scatter(to + v * lanes, rows + i, block, lanes, square)
                    else:
                        square = turned_part(at + i, apart, here, length - i)
                        scatter(to + v * lanes, rows + i, block, length - i, square)

    return pack


@intrinsic
def outer_columns(typingctx: Any, sums: Any, a: Any, columns: Any, at: Any) -> Any:
    """sums[i][v] + a[i] * columns[v][at : at + lanes]; `columns` is a tuple of pointers."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, a_at, pointers, index = arguments
        beside = [
            emit_load(builder, builder.gep(p, [index]), sums)
            for p in cgutils.unpack_tuple(builder, pointers)
        ]
        new = old
        for i in range(sums.rows):
            number = builder.load(builder.gep(a_at, [I64(i)]))
            each = emit_splat(builder, number, sums.count)
            for v, other in enumerate(beside):
                slot = i * sums.vectors + v
                was = builder.extract_value(old, slot)
                new = builder.insert_value(new, emit_fma(builder, sums, each, other, was), slot)
        return new

    return sums(sums, a, columns, types.int64), codegen
