"""Constant matrices applied to blocks of vectors, in registers, for Winograd's gradient by weight.

A function here takes an exact matrix (of `cook_toom`) and makes an intrinsic that LLVM sees as one
straight line of code. Points come in pairs p and -p, whose rows (of G and BT) or columns (of AT)
differ in the sign of every other number only: what they have in common is computed once. Beside
that, blocks of numbers are turned: vectors of pixels become vectors of channels.
This file imports llvmlite and Numba; only kernels, while they are compiled, import it.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuconv.kernels.cpu.vector import (
    I32,
    I64,
    Vector,
    emit_fma,
    emit_load,
    emit_load_part,
    emit_store,
    width,
)

Numbers = Sequence[Fraction]


def both_sides(matrix: Sequence[Numbers]) -> Any:
    """An intrinsic f(source, row, column, target, step): M d M^T of vectors, for a matrix M (n, r).

    Vector (i, j) of the r x r is at source + i * row + j * column; number i of its n x n results
    goes to target + i * step.
    """
    size, rows = len(matrix[0]), len(matrix)

    @intrinsic
    def transform(typ: Any, source: Any, row: Any, column: Any, target: Any, step: Any) -> Any:
        kind = Vector(source.dtype, width(source.dtype))

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            p, by_row, by_column, q, by = arguments
            across = [builder.mul(by_column, I64(j)) for j in range(size)]
            half = []
            for j in range(size):
                lines = [
                    builder.gep(p, [builder.add(builder.mul(by_row, I64(i)), across[j])])
                    for i in range(size)
                ]
                half.append(
                    _apply(builder, kind, matrix, [emit_load(builder, x, kind) for x in lines])
                )
            for i in range(rows):
                done = _apply(builder, kind, matrix, [half[j][i] for j in range(size)])
                for j, value in enumerate(done):
                    place = builder.mul(by, I64(i * rows + j))
                    emit_store(builder, value, builder.gep(q, [place]), kind)
            return context.get_dummy_value()

        return types.void(source, types.int64, types.int64, target, types.int64), codegen

    return transform


def both_sides_interleaved(matrix: Sequence[Numbers]) -> Any:
    """An intrinsic f(source, step, target): M d M^T for a matrix M (3, n), to contiguous memory.

    Vector number i of the n x n is at source + i * step; of every lane in turn, the 9 results go
    to target.
    """
    size = len(matrix[0])

    @intrinsic
    def transform(typ: Any, source: Any, step: Any, target: Any) -> Any:
        kind = Vector(source.dtype, width(source.dtype))

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            p, by, q = arguments
            half = []
            for j in range(size):
                places = [builder.mul(by, I64(i * size + j)) for i in range(size)]
                values = [emit_load(builder, builder.gep(p, [at]), kind) for at in places]
                half.append(_apply(builder, kind, matrix, values))
            rows = []
            for i in range(3):
                done = _apply(builder, kind, matrix, [half[j][i] for j in range(size)])
                rows.append(_weave(builder, kind, [[value] for value in done], 1))
            for i, value in enumerate(_weave(builder, kind, rows, 3)):
                emit_store(builder, value, q, kind, i * kind.count)
            return context.get_dummy_value()

        return types.void(source, types.int64, target), codegen

    return transform


@intrinsic
def turn(typingctx: Any, source: Any, row: Any, target: Any, step: Any) -> Any:
    """Vector j of target, `step` apart, is column j of the lanes x lanes matrix at source.

    Blocks of 4 columns: 4 rows of each are loaded side by side, and turned 4 x 4 in place.
    """
    kind = Vector(source.dtype, width(source.dtype))
    quarter = Vector(source.dtype, 4)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p, by_row, q, by = arguments
        lines = [builder.gep(p, [builder.mul(by_row, I64(i))]) for i in range(kind.count)]
        for block in range(0, kind.count, 4):
            rows = []
            for i in range(4):
                parts = [emit_load(builder, line, quarter, block) for line in lines[i::4]]
                while len(parts) > 1:
                    size = 2 * parts[0].type.count
                    pairs = zip(parts[::2], parts[1::2], strict=True)
                    parts = [_shuffle(builder, a, b, list(range(size))) for a, b in pairs]
                rows.append(parts[0])
            for j, value in enumerate(_turned(builder, rows, kind.count, 4)):
                place = builder.gep(q, [builder.mul(by, I64(block + j))])
                emit_store(builder, value, place, kind)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), codegen


@intrinsic
def turn_part(
    typingctx: Any, source: Any, row: Any, rows: Any, columns: Any, target: Any, step: Any
) -> Any:
    """As `turn`, reading only `rows` rows and `columns` columns: zeros for the others."""
    kind = Vector(source.dtype, width(source.dtype))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p, by_row, rows_at, columns_at, q, by = arguments
        found = []
        for i in range(kind.count):
            inside = builder.icmp_signed(">", rows_at, I64(i))
            count = builder.select(inside, columns_at, I64(0))
            line = builder.gep(p, [builder.mul(by_row, I64(i))])
            found.append(emit_load_part(builder, line, count, kind))
        for j, value in enumerate(_turned(builder, found, kind.count, kind.count)):
            emit_store(builder, value, builder.gep(q, [builder.mul(by, I64(j))]), kind)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(source, integer, integer, integer, target, integer), codegen


def _turned(builder: Any, rows: list[Any], lanes: int, size: int) -> list[Any]:
    """Every size x size block of `size` vectors turned: 1, 2, 4 ... lanes change places."""
    near = 1
    while near < size:
        low = [k if not k & near else lanes + (k ^ near) for k in range(lanes)]
        high = [k | near if not k & near else lanes + k for k in range(lanes)]
        new = list(rows)
        for i in range(size):
            if not i & near:
                new[i] = _shuffle(builder, rows[i], rows[i | near], low)
                new[i | near] = _shuffle(builder, rows[i], rows[i | near], high)
        rows, near = new, 2 * near
    return rows


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _weave(builder: Any, kind: Any, sequences: list[list[Any]], unit: int) -> list[Any]:
    """`unit` numbers of each sequence of vectors in turn, as vectors."""
    count, turn = kind.count, unit * len(sequences)
    woven = []
    for first in range(0, sum(map(len, sequences)) * count, count):
        # Where each lane comes from: lane -> (sequence, its vector, that one's lane).
        lanes = []
        for flat in range(first, first + count):
            at = flat // turn * unit + flat % unit
            lanes.append((flat % turn // unit, at // count, at % count))
        value, have = None, []
        for which in sorted({lane[:2] for lane in lanes}):
            source = sequences[which[0]][which[1]]
            if value is None:
                value, have = source, [which]
                order = [lane[2] if lane[:2] == which else 0 for lane in lanes]
                continue
            if len(have) > 1:  # those of the earlier ones are in their places by now
                order = list(range(count))
            pick = [
                count + lane[2] if lane[:2] == which else order[i] for i, lane in enumerate(lanes)
            ]
            value, have = _shuffle(builder, value, source, pick), [*have, which]
        if len(have) == 1:
            value = _shuffle(builder, value, value, order)
        woven.append(value)
    return woven


def _apply(builder: Any, kind: Any, matrix: Sequence[Numbers], values: list[Any]) -> list[Any]:
    """The matrix times the vectors, one vector a row."""
    columns = range(len(values))
    mirrors = _pairs([[row[j] for row in matrix] for j in columns])
    sums = {j: builder.fadd(values[j], values[k]) for j, k in mirrors.items()}
    differences = {j: builder.fsub(values[j], values[k]) for j, k in mirrors.items()}
    gone = set(mirrors.values())
    rows = _pairs(matrix) if not mirrors else {}
    done: list[Any] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if i in rows:
            even = _sum(builder, kind, [(row[j], values[j]) for j in columns if j % 2 == 0])
            last = [row[j] for j in columns if j % 2 and row[j]][-1]
            odd = _sum(builder, kind, [(row[j] / last, values[j]) for j in columns if j % 2])
            done[i] = _sum(builder, kind, [(last, odd)], even)
            done[rows[i]] = _sum(builder, kind, [(-last, odd)], even)
        elif i not in rows.values():
            halves = sums if i % 2 == 0 else differences
            terms = [(row[j], halves.get(j, values[j])) for j in columns if j not in gone]
            done[i] = _sum(builder, kind, terms)
    return done


def _pairs(rows: Sequence[Numbers]) -> dict[int, int]:
    """Row i -> a later row with the same numbers, but the other sign at odd places."""
    found: dict[int, int] = {}
    for i, row in enumerate(rows):
        other = [-a if j % 2 else a for j, a in enumerate(row)]
        if other != list(row):
            for k in range(i + 1, len(rows)):
                if list(rows[k]) == other:
                    found[i] = k
    return found


def _sum(builder: Any, kind: Any, terms: list[tuple[Fraction, Any]], start: Any = None) -> Any:
    """start + the sum of factors times vectors; factors 1 come first, and cost no product."""
    total = start
    for factor, value in sorted((t for t in terms if t[0]), key=lambda term: abs(term[0] - 1)):
        if total is None and factor == 1:
            total = value
        elif abs(factor) == 1 and total is not None:
            total = (builder.fadd if factor == 1 else builder.fsub)(total, value)
        else:
            number = ir.Constant(value.type, [float(factor)] * kind.count)
            if total is None:
                total = builder.fmul(number, value)
            else:
                total = emit_fma(builder, kind, number, value, total)
    return total
