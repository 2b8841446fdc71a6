"""Tiles of vectors in registers: the sums of a matrix product, filled by a loop of `outer`."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpuconv.kernels.cpu.vector import (
    I64,
    Tile,
    Vector,
    constant_of,
    emit_fma,
    emit_load,
    emit_load_part,
    emit_splat,
    emit_store,
    emit_store_part,
    vector_type,
    width,
)


@intrinsic(prefer_literal=True)
def tile(typingctx: Any, p: Any, rows: Any, vectors: Any) -> Any:
    """rows x vectors registers of zeros, of the dtype of the pointer p; both are constants."""
    result = Tile(p.dtype, width(p.dtype), constant_of(rows), constant_of(vectors))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(result), None)

    return result(p, rows, vectors), codegen


@intrinsic
def outer(typingctx: Any, sums: Any, a: Any, step: Any, b: Any) -> Any:
    """sums[i] + a[i * step] * b[0 : vectors * lanes]: one step of a matrix product."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, a_at, by, b_at = arguments
        places = [builder.gep(a_at, [builder.mul(by, I64(i))]) for i in range(sums.rows)]
        return _outer(builder, sums, old, places, b_at)

    return sums(sums, a, types.int64, b), codegen


@intrinsic
def outer_rows(typingctx: Any, sums: Any, rows: Any, at: Any, b: Any) -> Any:
    """sums[i] + rows[i][at] * b[0 : vectors * lanes]; `rows` is a tuple of pointers."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, pointers, index, b_at = arguments
        each = cgutils.unpack_tuple(builder, pointers)
        return _outer(builder, sums, old, [builder.gep(p, [index]) for p in each], b_at)

    return sums(sums, rows, types.int64, b), codegen


def _outer(builder: Any, kind: Any, old: Any, places: list[Any], b: Any) -> Any:
    """Loads of b first, then a number of a at a time: vectors + 2 registers beside the sums."""
    beside = [emit_load(builder, b, kind, v * kind.count) for v in range(kind.vectors)]
    new = old
    for i, place in enumerate(places):
        number = emit_splat(builder, builder.load(place), kind.count)
        for v, other in enumerate(beside):
            slot = i * kind.vectors + v
            was = builder.extract_value(old, slot)
            new = builder.insert_value(new, emit_fma(builder, kind, number, other, was), slot)
    return new


@intrinsic(prefer_literal=True)
def take(typingctx: Any, sums: Any, row: Any, vector: Any) -> Any:
    """The vector at constants (row, vector) of a tile."""
    slot = constant_of(row) * sums.vectors + constant_of(vector)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_value(arguments[0], slot)

    return Vector(sums.dtype, sums.count)(sums, row, vector), codegen


@intrinsic(prefer_literal=True)
def put(typingctx: Any, sums: Any, row: Any, vector: Any, value: Any) -> Any:
    """The tile with another vector at constants (row, vector)."""
    slot = constant_of(row) * sums.vectors + constant_of(vector)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.insert_value(arguments[0], arguments[3], slot)

    return sums(sums, row, vector, value), codegen


def emit_each(builder: Any, kind: Any, tile: Any, change: Any) -> Any:
    """The tile with change(vector, row, v) in the place of each vector."""
    new = tile
    for row in range(kind.rows):
        for v in range(kind.vectors):
            slot = row * kind.vectors + v
            new = builder.insert_value(new, change(builder.extract_value(tile, slot), row, v), slot)
    return new


@intrinsic
def add_row(typingctx: Any, sums: Any, p: Any) -> Any:
    """The vectors at p, added to every row: the bias of products whose rows are pixels."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = [
            emit_load(builder, arguments[1], sums, v * sums.count) for v in range(sums.vectors)
        ]
        return emit_each(
            builder, sums, arguments[0], lambda old, row, v: builder.fadd(old, values[v])
        )

    return sums(sums, p), codegen


@intrinsic
def add_column(typingctx: Any, sums: Any, p: Any) -> Any:
    """p[i] added to all of row i: the bias of products whose rows are output channels."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = [
            emit_splat(builder, builder.load(builder.gep(arguments[1], [I64(i)])), sums.count)
            for i in range(sums.rows)
        ]
        return emit_each(
            builder, sums, arguments[0], lambda old, row, v: builder.fadd(old, numbers[row])
        )

    return sums(sums, p), codegen


@intrinsic
def add_tile(typingctx: Any, sums: Any, p: Any, step: Any) -> Any:
    """The numbers at p + i * step added to row i: a residual, or earlier sums."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, p_at, by = arguments
        rows = [builder.gep(p_at, [builder.mul(by, I64(i))]) for i in range(sums.rows)]
        return emit_each(
            builder,
            sums,
            old,
            lambda value, row, v: builder.fadd(
                value, emit_load(builder, rows[row], sums, v * sums.count)
            ),
        )

    return sums(sums, p, types.int64), codegen


@intrinsic
def relu_tile(typingctx: Any, sums: Any) -> Any:
    """The tile with 0 for what is negative; NaN stays."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(vector_type(sums.dtype, sums.count), None)

        def change(old: Any, row: int, v: int) -> Any:
            return builder.select(builder.fcmp_ordered("<", old, zero), zero, old)

        return emit_each(builder, sums, arguments[0], change)

    return sums(sums), codegen


@intrinsic
def store_tile(typingctx: Any, p: Any, step: Any, sums: Any) -> Any:
    """Row i of the tile to p + i * step."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, by, values = arguments
        for i in range(sums.rows):
            row = builder.gep(p_at, [builder.mul(by, I64(i))])
            for v in range(sums.vectors):
                value = builder.extract_value(values, i * sums.vectors + v)
                emit_store(builder, value, row, sums, v * sums.count)
        return context.get_dummy_value()

    return types.void(p, types.int64, sums), codegen


@intrinsic
def store_tile_part(typingctx: Any, p: Any, step: Any, sums: Any, rows: Any, columns: Any) -> Any:
    """The first `rows` rows and `columns` columns of the tile, and nothing beyond them."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, by, values, rows_at, columns_at = arguments
        for i in range(sums.rows):
            with builder.if_then(builder.icmp_signed(">", rows_at, I64(i))):
                row = builder.gep(p_at, [builder.mul(by, I64(i))])
                for v in range(sums.vectors):
                    value = builder.extract_value(values, i * sums.vectors + v)
                    emit_store_part(builder, value, row, columns_at, sums, v * sums.count)
        return context.get_dummy_value()

    return types.void(p, types.int64, sums, types.int64, types.int64), codegen


@intrinsic
def add_tile_part(typingctx: Any, sums: Any, p: Any, step: Any, rows: Any, columns: Any) -> Any:
    """As `add_tile`, reading only the first `rows` rows and `columns` columns."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, p_at, by, rows_at, columns_at = arguments

        def change(value: Any, row: int, v: int) -> Any:
            inside = builder.icmp_signed(">", rows_at, I64(row))
            count = builder.select(inside, columns_at, I64(0))
            at = builder.gep(p_at, [builder.mul(by, I64(row))])
            return builder.fadd(value, emit_load_part(builder, at, count, sums, v * sums.count))

        return emit_each(builder, sums, old, change)

    return sums(sums, p, types.int64, types.int64, types.int64), codegen


@intrinsic
def rows_of(typingctx: Any, p: Any, steps: Any) -> Any:
    """A tuple of pointers p + steps[i], one a step of the tuple `steps` of integers."""
    result = types.UniTuple(p, len(steps))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        each = cgutils.unpack_tuple(builder, arguments[1])
        places = [builder.gep(arguments[0], [step]) for step in each]
        return context.make_tuple(builder, result, places)

    return result(p, steps), codegen
