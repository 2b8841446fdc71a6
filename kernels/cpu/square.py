"""Squares of vectors, as many as a vector has lanes, and their transposes in registers.

A square is a `Tile` of lanes x 1 vectors: what moves between "a channel's pixels side by side" and
"a pixel's channels side by side". This file imports Numba; only kernels, while they are compiled,
import it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuconv.kernels.cpu.vector import I32, I64, Tile, emit_load, emit_load_part, width


def _square(p: Any) -> Any:
    return Tile(p.dtype, width(p.dtype), width(p.dtype), 1)


def _filled(context: Any, builder: Any, kind: Any, rows: Any) -> Any:
    value = ir.Constant(context.get_value_type(kind), ir.Undefined)
    for i, row in enumerate(rows):
        value = builder.insert_value(value, row, i)
    return value


def _least(builder: Any, i: int, rows: Any) -> Any:
    """min(i, rows - 1)."""
    inside = builder.icmp_signed(">", rows, I64(i))
    return builder.select(inside, I64(i), builder.sub(rows, I64(1)))


@intrinsic
def square(typingctx: Any, p: Any, step: Any, rows: Any) -> Any:
    """Row i is the vector at p + i * step; those from `rows` on repeat the last one."""
    kind = _square(p)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at, by, count = arguments
        starts = (builder.mul(_least(builder, i, count), by) for i in range(kind.rows))
        each = (emit_load(builder, builder.gep(at, [start]), kind) for start in starts)
        return _filled(context, builder, kind, each)

    return kind(p, types.int64, types.int64), codegen


@intrinsic
def square_part(typingctx: Any, p: Any, step: Any, rows: Any, columns: Any) -> Any:
    """As `square`, of the first `columns` numbers of each row; zeros beyond."""
    kind = _square(p)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at, by, count, valid = arguments
        starts = (builder.mul(_least(builder, i, count), by) for i in range(kind.rows))
        each = (emit_load_part(builder, builder.gep(at, [s]), valid, kind) for s in starts)
        return _filled(context, builder, kind, each)

    return kind(p, types.int64, types.int64, types.int64), codegen


@intrinsic
def square_rows(typingctx: Any, p: Any, order: Any, first: Any, step: Any, rows: Any) -> Any:
    """Row i is the vector at p + (order[i] - first) * step, `rows` of them, then the last again."""
    kind = _square(p)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at, numbers, origin, by, count = arguments
        each = []
        for i in range(kind.rows):
            number = builder.load(builder.gep(numbers, [_least(builder, i, count)]))
            number = number if order.dtype.bitwidth == 64 else builder.sext(number, I64)
            start = builder.mul(builder.sub(number, origin), by)
            each.append(emit_load(builder, builder.gep(at, [start]), kind))
        return _filled(context, builder, kind, each)

    return kind(p, order, types.int64, types.int64, types.int64), codegen


@intrinsic
def transposed(typingctx: Any, sums: Any) -> Any:
    """Lane j of row i in lane i of row j: log2(lanes) rounds that swap blocks of two rows."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = sums.count
        rows = [builder.extract_value(arguments[0], i) for i in range(count)]
        step = 1
        while step < count:
            low = [lane + count - step if lane & step else lane for lane in range(count)]
            high = [lane + count if lane & step else lane + step for lane in range(count)]
            masks = [ir.Constant(ir.VectorType(I32, count), lanes) for lanes in (low, high)]
            for i in range(count):
                if not i & step:
                    pair = rows[i], rows[i + step]
                    rows[i], rows[i + step] = (builder.shuffle_vector(*pair, m) for m in masks)
            step *= 2
        return _filled(context, builder, sums, rows)

    return sums(sums), codegen


@intrinsic(prefer_literal=True)
def rows_at(typingctx: Any, p: Any, table: Any, count: Any) -> Any:
    """A tuple of `count` pointers p + table[i]."""
    result = types.UniTuple(p, int(count.literal_value))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        each = []
        for i in range(len(result)):
            step = builder.load(builder.gep(arguments[1], [I64(i)]))
            each.append(builder.gep(arguments[0], [step]))
        return context.make_tuple(builder, result, each)

    return result(p, table, count), codegen


@intrinsic(prefer_literal=True)
def rows_from(typingctx: Any, p: Any, step: Any, count: Any, rows: Any) -> Any:
    """A tuple of `rows` pointers p + i * step, from i = `count` on the last one again."""
    result = types.UniTuple(p, int(rows.literal_value))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at, by, many, _ = arguments
        starts = (builder.mul(_least(builder, i, many), by) for i in range(len(result)))
        each = [builder.gep(at, [start]) for start in starts]
        return context.make_tuple(builder, result, each)

    return result(p, types.int64, types.int64, rows), codegen
