"""Blocks of memory: turned over in registers, or brought near before they are needed.

    p: row 0  a b c d ...          q: row 0  a A ...
       row 1  A B C D ...    ->       row 1  b B ...

One step exchanges the off-diagonal halves of pairs of rows; log2(lanes) steps, with half the
distance each time, turn the whole block. In the first step the halves come straight from memory.

This file imports Numba; only kernels, while they are compiled, import it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpuconv.kernels.cpu.vector import I64, Vector, emit_load, emit_load_part, emit_store, width


def _halves(builder: Any, rows: list[Any], near: int) -> list[Any]:
    """One step: rows i and i + near exchange the blocks of `near` numbers beside the diagonal."""
    count = len(rows)
    low = [j if j // near % 2 == 0 else count + j - near for j in range(count)]
    high = [j + near if j // near % 2 == 0 else count + j for j in range(count)]
    new = list(rows)
    for i in range(count):
        if i // near % 2 == 0:
            for place, order in ((i, low), (i + near, high)):
                mask = ir.Constant(ir.VectorType(ir.IntType(32), count), order)
                new[place] = builder.shuffle_vector(rows[i], rows[i + near], mask)
    return new


def _turn(builder: Any, kind: Any, rows: list[Any], q: Any, step: Any, near: int) -> None:
    while near:
        rows = _halves(builder, rows, near)
        near //= 2
    for i, row in enumerate(rows):
        emit_store(builder, row, builder.gep(q, [builder.mul(step, I64(i))]), kind)


@intrinsic
def turn(typingctx: Any, q: Any, q_step: Any, p: Any, p_step: Any) -> Any:
    """q[j * q_step + i] = p[i * p_step + j] for i, j below the lanes of a vector."""
    kind = Vector(p.dtype, width(p.dtype))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        q_at, q_by, p_at, p_by = arguments
        half = kind.count // 2
        part = Vector(kind.dtype, half)
        lines = [builder.gep(p_at, [builder.mul(p_by, I64(i))]) for i in range(kind.count)]
        order = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), list(range(kind.count)))
        rows = [
            builder.shuffle_vector(
                emit_load(builder, lines[i], part, at),
                emit_load(builder, lines[i + half], part, at),
                order,
            )
            for at in (0, half)
            for i in range(half)
        ]
        _turn(builder, kind, rows, q_at, q_by, half // 2)
        return context.get_dummy_value()

    return types.void(q, types.int64, p, types.int64), codegen


@intrinsic
def turn_part(
    typingctx: Any, q: Any, q_step: Any, p: Any, p_step: Any, rows: Any, columns: Any
) -> Any:
    """As `turn`, reading only `rows` rows and `columns` columns of p: zeros for the others."""
    kind = Vector(p.dtype, width(p.dtype))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        q_at, q_by, p_at, p_by, rows_at, columns_at = arguments
        found = []
        for i in range(kind.count):
            inside = builder.icmp_signed(">", rows_at, I64(i))
            count = builder.select(inside, columns_at, I64(0))
            line = builder.gep(p_at, [builder.mul(p_by, I64(i))])
            found.append(emit_load_part(builder, line, count, kind))
        _turn(builder, kind, found, q_at, q_by, kind.count // 2)
        return context.get_dummy_value()

    return types.void(q, types.int64, p, *[types.int64] * 3), codegen


@intrinsic(prefer_literal=True)
def fetch_tile(typingctx: Any, p: Any, step: Any, rows: Any, vectors: Any) -> Any:
    """Bring rows x vectors registers' lines at p + i * step into the caches, to be written."""
    number, lines = int(rows.literal_value), int(vectors.literal_value)
    count = width(p.dtype)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        for i in range(number):
            row = builder.gep(arguments[0], [builder.mul(arguments[1], I64(i))])
            for v in range(lines):
                at = builder.bitcast(builder.gep(row, [I64(v * count)]), byte)
                builder.call(call, [at, i32(1), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(p, types.int64, rows, vectors), codegen


@intrinsic
def prefetch_near(typingctx: Any, p: Any) -> Any:
    """Bring the cache line at p into the second cache, not the first."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(call, [builder.bitcast(arguments[0], byte), i32(0), i32(2), i32(1)])
        return context.get_dummy_value()

    return types.void(p), codegen
