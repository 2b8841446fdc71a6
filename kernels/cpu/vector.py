"""Vectors of floats and tiles of vectors, for kernels written in Python: LLVM's own vector types.

A `Vector` holds as many floats as a register of the processor (`lanes(dtype)`); it has + - * and
the functions here. A `Tile` is a block of sums in registers, `rows` times `vectors`, that a loop of
`outer` products fills: what makes a matrix product fast. Pointers count in elements: p + 3, p[3].

Numba's own arrays would not do: LLVM keeps their sums in memory, and half the width of a register.
This file imports Numba; only kernels, while they are compiled, import it.
"""

import operator
from math import factorial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic, overload

from gpuconv.kernels.cpu.compiler import OBJECT, current

I32, I64 = ir.IntType(32), ir.IntType(64)


def lanes(dtype: str) -> int:
    """How many numbers of "float32" or "float64" a vector register has."""
    return current().vector // (4 if dtype == "float32" else 8)


class Pointer(types.CPointer):
    """A pointer, in code for vectors of so many bytes.

    Numba keeps the types that an intrinsic gave for the types of its arguments; those of two
    instruction sets must therefore differ.
    """

    def __init__(self, dtype: Any, vector: int) -> None:
        self.vector = vector
        super().__init__(dtype)
        self.name = f"{dtype}*{vector}"

    @property
    def key(self) -> Any:
        return self.dtype, self.vector


class Vector(types.Type):
    """Numbers of one type side by side in a register."""

    def __init__(self, dtype: Any, count: int) -> None:
        self.dtype, self.count = dtype, count
        super().__init__(name=f"Vector({dtype}, {count})")


class Tile(types.Type):
    """rows x vectors registers of sums."""

    def __init__(self, dtype: Any, count: int, rows: int, vectors: int) -> None:
        self.dtype, self.count, self.rows, self.vectors = dtype, count, rows, vectors
        super().__init__(name=f"Tile({dtype}, {count}, {rows}, {vectors})")


def _item(dtype: Any) -> Any:
    return {
        "float32": ir.FloatType(), "float64": ir.DoubleType(), "int32": I32, "int64": I64,
    }[str(dtype)]  # fmt: skip


def _vector(dtype: Any, count: int) -> Any:
    return ir.VectorType(_item(dtype), count)


register_default(Pointer)(models.PointerModel)


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _vector(fe_type.dtype, fe_type.count))


@register_default(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        item = _vector(fe_type.dtype, fe_type.count)
        super().__init__(dmm, fe_type, ir.ArrayType(item, fe_type.rows * fe_type.vectors))


def width(dtype: Any) -> int:
    """Lanes of a vector of a Numba type."""
    return current().vector // (dtype.bitwidth // 8)


def _number(kind: Any) -> int:
    """A constant of the kernel, as an int."""
    return int(kind.literal_value)


# --- pointers


def unpacker(kinds: list[Any]) -> Any:
    """An intrinsic: the address of a block of 8-byte values -> them, of these types.

    Of a pointer the block has the address of the NumPy array itself: where its data lies is the
    first thing in it after what every Python object begins with (NumPy's PyArrayObject).
    """

    @intrinsic
    def unpack(typingctx: Any, block: Any) -> Any:
        result = types.Tuple(kinds)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = []
            for i, kind in enumerate(kinds):
                slot = builder.add(arguments[0], I64(8 * i))
                want = context.get_value_type(kind)
                if isinstance(kind, Pointer):
                    array = builder.load(builder.inttoptr(slot, I64.as_pointer()))
                    slot = builder.add(array, I64(OBJECT))
                values.append(builder.load(builder.inttoptr(slot, want.as_pointer())))
            return context.make_tuple(builder, result, values)

        return result(types.int64), codegen

    return unpack


@intrinsic
def _advance(typingctx: Any, p: Any, count: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, index = arguments
        return builder.gep(pointer, [index])

    return p(p, types.int64), codegen


def _pointer_sum(p: Any, count: Any) -> Any:
    """p + count, in elements."""
    if isinstance(p, types.CPointer) and isinstance(count, types.Integer):
        return lambda p, count: _advance(p, count)
    return None


# Numba compares the parameters of the two functions, annotations too; a lambda has none.
overload(operator.add)(lambda p, count: _pointer_sum(p, count))


@intrinsic
def pointer(typingctx: Any, p: Any, address: Any) -> Any:
    """A pointer of the type of `p` to an address, an integer."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[1], context.get_value_type(p))

    return p(p, types.int64), codegen


@intrinsic
def address(typingctx: Any, p: Any) -> Any:
    """The address of a pointer, an integer."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], I64)

    return types.int64(p), codegen


@intrinsic
def prefetch(typingctx: Any, p: Any) -> Any:
    """Bring the cache line at p into the caches (x86 and ARM: of all levels)."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(call, [builder.bitcast(arguments[0], byte), I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(p), codegen


# --- vectors


@intrinsic
def load(typingctx: Any, p: Any) -> Any:
    """The vector at p, which need not be aligned."""
    result = Vector(p.dtype, width(p.dtype))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load(builder, arguments[0], result)

    return result(p), codegen


def _load(builder: Any, p: Any, kind: Any, at: int = 0) -> Any:
    where = builder.gep(p, [I64(at)]) if at else p
    vector = _vector(kind.dtype, kind.count)
    return builder.load(builder.bitcast(where, vector.as_pointer()), align=_align(kind))


def _store(builder: Any, value: Any, p: Any, kind: Any, at: int = 0) -> None:
    where = builder.gep(p, [I64(at)]) if at else p
    builder.store(value, builder.bitcast(where, value.type.as_pointer()), align=_align(kind))


def _align(kind: Any) -> int:
    return int(kind.dtype.bitwidth // 8)


@intrinsic
def store(typingctx: Any, p: Any, value: Any) -> Any:
    """Write a vector to p, which need not be aligned."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _store(builder, arguments[1], arguments[0], value)
        return context.get_dummy_value()

    return types.void(p, value), codegen


def _mask(builder: Any, count: Any, lanes: int) -> Any:
    """<lanes x i1>: the first `count` lanes."""
    steps = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", steps, _splat(builder, count, lanes))


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _suffix(kind: Any) -> str:
    return f"v{kind.count}f{kind.dtype.bitwidth}"


@intrinsic
def load_part(typingctx: Any, p: Any, count: Any) -> Any:
    """The first `count` numbers at p, then zeros; nothing beyond is read. count may be <= 0."""
    result = Vector(p.dtype, width(p.dtype))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load_part(builder, arguments[0], arguments[1], result)

    return result(p, types.int64), codegen


def _load_part(builder: Any, p: Any, count: Any, kind: Any, at: int = 0) -> Any:
    vector = _vector(kind.dtype, kind.count)
    where = builder.gep(p, [I64(at)]) if at else p
    left = builder.sub(count, I64(at)) if at else count
    mask = _mask(builder, left, kind.count)
    masked = ir.FunctionType(vector, [vector.as_pointer(), I32, mask.type, vector])
    name = f"llvm.masked.load.{_suffix(kind)}.p0{_suffix(kind)}"
    call = cgutils.get_or_insert_function(builder.module, masked, name)
    cast = builder.bitcast(where, vector.as_pointer())
    return builder.call(call, [cast, I32(_align(kind)), mask, ir.Constant(vector, None)])


@intrinsic
def store_part(typingctx: Any, p: Any, value: Any, count: Any) -> Any:
    """Write the first `count` numbers of a vector to p, and nothing beyond. count may be <= 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _store_part(builder, arguments[1], arguments[0], arguments[2], value)
        return context.get_dummy_value()

    return types.void(p, value, types.int64), codegen


def _store_part(builder: Any, value: Any, p: Any, count: Any, kind: Any, at: int = 0) -> None:
    vector = value.type
    where = builder.gep(p, [I64(at)]) if at else p
    left = builder.sub(count, I64(at)) if at else count
    mask = _mask(builder, left, kind.count)
    masked = ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), I32, mask.type])
    name = f"llvm.masked.store.{_suffix(kind)}.p0{_suffix(kind)}"
    call = cgutils.get_or_insert_function(builder.module, masked, name)
    cast = builder.bitcast(where, vector.as_pointer())
    builder.call(call, [value, cast, I32(_align(kind)), mask])


@intrinsic
def splat(typingctx: Any, p: Any, value: Any) -> Any:
    """A vector of the type that `load(p)` has, every lane `value`, a number."""
    result = Vector(p.dtype, width(p.dtype))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[1], value, p.dtype)
        return _splat(builder, number, result.count)

    return result(p, value), codegen


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of vectors, in one instruction where the processor has it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fma(builder, a, *arguments)

    return a(a, a, a), codegen


def _fma(builder: Any, kind: Any, a: Any, b: Any, c: Any) -> Any:
    function = ir.FunctionType(a.type, [a.type] * 3)
    # Not llvm.fma: without the instruction that is a call for every number.
    name = f"llvm.fmuladd.{_suffix(kind)}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [a, b, c])


def _binary(name: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments)

        return a(a, b), codegen

    return operation


def _compared(order: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, y = arguments
            return builder.select(builder.fcmp_unordered(order, x, y), x, y)

        return a(a, b), codegen

    return operation


_add, _sub, _mul, _div = (_binary(name) for name in ("fadd", "fsub", "fmul", "fdiv"))
# a where a > b (or either is NaN), else b: maximum(x, zero) keeps a NaN of x.
maximum, minimum = _compared(">"), _compared("<")


def _operator(which: Any, function: Any) -> None:
    def operation(a: Any, b: Any) -> Any:
        if isinstance(a, Vector) and isinstance(b, Vector):
            return lambda a, b: function(a, b)
        return None

    overload(which)(lambda a, b: operation(a, b))


for _which, _function in (
    (operator.add, _add), (operator.sub, _sub), (operator.mul, _mul), (operator.truediv, _div),
):  # fmt: skip
    _operator(_which, _function)


@intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """The sum of a vector's lanes, in halves: lane i plus lane i + n/2, and so on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, count = arguments[0], a.count
        while count > 1:
            count //= 2
            halves = [
                builder.shuffle_vector(
                    value,
                    ir.Constant(value.type, ir.Undefined),
                    ir.Constant(ir.VectorType(I32, count), [start + i for i in range(count)]),
                )
                for start in (0, count)
            ]
            value = builder.fadd(*halves)
        return builder.extract_element(value, I32(0))

    return a.dtype(a), codegen


@intrinsic(prefer_literal=True)
def shuffle(typingctx: Any, a: Any, b: Any, lanes: Any) -> Any:
    """Lanes of a and b, one after the other, in the order of the constant tuple `lanes`."""
    order = [_number(kind) for kind in lanes]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        mask = ir.Constant(ir.VectorType(I32, len(order)), order)
        return builder.shuffle_vector(arguments[0], arguments[1], mask)

    return a(a, b, lanes), codegen


# --- tiles


@intrinsic(prefer_literal=True)
def tile(typingctx: Any, p: Any, rows: Any, vectors: Any) -> Any:
    """rows x vectors registers of zeros, of the dtype of the pointer p; both are constants."""
    result = Tile(p.dtype, width(p.dtype), _number(rows), _number(vectors))

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
    beside = [_load(builder, b, kind, v * kind.count) for v in range(kind.vectors)]
    new = old
    for i, place in enumerate(places):
        number = _splat(builder, builder.load(place), kind.count)
        for v, other in enumerate(beside):
            slot = i * kind.vectors + v
            was = builder.extract_value(old, slot)
            new = builder.insert_value(new, _fma(builder, kind, number, other, was), slot)
    return new


@intrinsic(prefer_literal=True)
def take(typingctx: Any, sums: Any, row: Any, vector: Any) -> Any:
    """The vector at constants (row, vector) of a tile."""
    slot = _number(row) * sums.vectors + _number(vector)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_value(arguments[0], slot)

    return Vector(sums.dtype, sums.count)(sums, row, vector), codegen


@intrinsic(prefer_literal=True)
def put(typingctx: Any, sums: Any, row: Any, vector: Any, value: Any) -> Any:
    """The tile with another vector at constants (row, vector)."""
    slot = _number(row) * sums.vectors + _number(vector)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.insert_value(arguments[0], arguments[3], slot)

    return sums(sums, row, vector, value), codegen


def _each(builder: Any, kind: Any, tile: Any, change: Any) -> Any:
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
        values = [_load(builder, arguments[1], sums, v * sums.count) for v in range(sums.vectors)]
        return _each(builder, sums, arguments[0], lambda old, row, v: builder.fadd(old, values[v]))

    return sums(sums, p), codegen


@intrinsic
def add_column(typingctx: Any, sums: Any, p: Any) -> Any:
    """p[i] added to all of row i: the bias of products whose rows are output channels."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = [
            _splat(builder, builder.load(builder.gep(arguments[1], [I64(i)])), sums.count)
            for i in range(sums.rows)
        ]
        return _each(
            builder, sums, arguments[0], lambda old, row, v: builder.fadd(old, numbers[row])
        )

    return sums(sums, p), codegen


@intrinsic
def add_tile(typingctx: Any, sums: Any, p: Any, step: Any) -> Any:
    """The numbers at p + i * step added to row i: a residual, or earlier sums."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, p_at, by = arguments
        rows = [builder.gep(p_at, [builder.mul(by, I64(i))]) for i in range(sums.rows)]
        return _each(
            builder,
            sums,
            old,
            lambda value, row, v: builder.fadd(
                value, _load(builder, rows[row], sums, v * sums.count)
            ),
        )

    return sums(sums, p, types.int64), codegen


@intrinsic
def relu_tile(typingctx: Any, sums: Any) -> Any:
    """The tile with 0 for what is negative; NaN stays."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(_vector(sums.dtype, sums.count), None)

        def change(old: Any, row: int, v: int) -> Any:
            return builder.select(builder.fcmp_ordered("<", old, zero), zero, old)

        return _each(builder, sums, arguments[0], change)

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
                _store(builder, value, row, sums, v * sums.count)
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
                    _store_part(builder, value, row, columns_at, sums, v * sums.count)
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
            return builder.fadd(value, _load_part(builder, at, count, sums, v * sums.count))

        return _each(builder, sums, old, change)

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


# --- between threads


def _slot(builder: Any, p: Any, index: Any) -> Any:
    return builder.gep(p, [index])


@intrinsic
def fetch_add(typingctx: Any, p: Any, index: Any, by: Any) -> Any:
    """p[index] += by, in one step for all threads; what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, i, value = arguments
        return builder.atomic_rmw("add", builder.gep(p_at, [i]), value, "seq_cst")

    return types.int64(p, types.int64, types.int64), codegen


@intrinsic
def peek(typingctx: Any, p: Any, index: Any) -> Any:
    """p[index] as other threads left it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.gep(arguments[0], [arguments[1]]), "seq_cst", 8)

    return types.int64(p, types.int64), codegen


@intrinsic
def poke(typingctx: Any, p: Any, index: Any, value: Any) -> Any:
    """p[index] = value, for other threads to see."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = builder.gep(arguments[0], [arguments[1]])
        builder.store_atomic(arguments[2], where, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(p, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """A moment's rest in a loop that waits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if current().name != "generic":
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(
                cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), []
            )
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(typingctx: Any) -> Any:
    """Let another thread have this processor."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(I32, [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call(typingctx: Any, function: Any, task: Any, thread: Any, block: Any) -> Any:
    """Call a compiled kernel by its address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(I32, [byte, byte, I64, I64, I64])
        target = builder.inttoptr(arguments[0], kind.as_pointer())
        spare = [
            builder.bitcast(cgutils.alloca_once(builder, ir.ArrayType(I64, 2)), byte)
            for _ in range(2)
        ]
        builder.call(target, [*spare, *arguments[1:]])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


# --- arithmetic of tiles and vectors, for what is no matrix product


@intrinsic
def load_row(typingctx: Any, like: Any, p: Any) -> Any:
    """The vectors at p as a tile of the type of `like`, which has one row."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def read(old: Any, row: int, v: int) -> Any:
            return _load(builder, arguments[1], like, v * like.count)

        return _each(builder, like, arguments[0], read)

    return like(like, p), codegen


@intrinsic
def load_row_part(typingctx: Any, like: Any, p: Any, count: Any) -> Any:
    """As `load_row`, of the first `count` numbers; the rest are those of `like`, none is read."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile_of, p_at, number = arguments
        kind, masks = _vector(like.dtype, like.count), _masks(builder, number, like)
        name = f"llvm.masked.load.{_suffix(like)}.p0{_suffix(like)}"

        def read(old: Any, row: int, v: int) -> Any:
            at = builder.bitcast(builder.gep(p_at, [I64(v * like.count)]), kind.as_pointer())
            masked = ir.FunctionType(kind, [at.type, I32, masks[v].type, kind])
            call = cgutils.get_or_insert_function(builder.module, masked, name)
            return builder.call(call, [at, I32(_align(like)), masks[v], old])

        return _each(builder, like, tile_of, read)

    return like(like, p, types.int64), codegen


@intrinsic
def store_row_part(typingctx: Any, p: Any, value: Any, count: Any) -> Any:
    """The first `count` numbers of a tile of one row to p, and nothing beyond."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, row, number = arguments
        kind, masks = _vector(value.dtype, value.count), _masks(builder, number, value)
        name = f"llvm.masked.store.{_suffix(value)}.p0{_suffix(value)}"
        for v, mask in enumerate(masks):
            at = builder.bitcast(builder.gep(p_at, [I64(v * value.count)]), kind.as_pointer())
            masked = ir.FunctionType(ir.VoidType(), [kind, at.type, I32, mask.type])
            call = cgutils.get_or_insert_function(builder.module, masked, name)
            builder.call(call, [builder.extract_value(row, v), at, I32(_align(value)), mask])
        return context.get_dummy_value()

    return types.void(p, value, types.int64), codegen


def _masks(builder: Any, count: Any, kind: Any) -> list[Any]:
    """The first `count` numbers of a row of vectors: a mask of each, of lanes.

    AVX-512 has registers for masks: they are made as bits of one number. Others compare lanes.
    """
    width = kind.vectors * kind.count
    if current().name != "avx512" or width > 64:
        lanes = range(kind.vectors)
        return [_mask(builder, builder.sub(count, I64(v * kind.count)), kind.count) for v in lanes]
    some = builder.icmp_signed(">", count, I64(0))
    idle = builder.sub(I64(width), count)
    idle = builder.select(builder.icmp_signed(">", idle, I64(0)), idle, I64(0))
    bits = builder.lshr(I64((1 << width) - 1), builder.select(some, idle, I64(0)))
    bits = builder.select(some, bits, I64(0))
    narrow, mask = ir.IntType(kind.count), ir.VectorType(ir.IntType(1), kind.count)
    return [
        builder.bitcast(builder.trunc(builder.lshr(bits, I64(v * kind.count)), narrow), mask)
        for v in range(kind.vectors)
    ]


@intrinsic
def splat_tile(typingctx: Any, like: Any, value: Any) -> Any:
    """A tile of the type of `like`, all `value`, a number."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[1], value, like.dtype)
        vector = _splat(builder, number, like.count)
        return _each(builder, like, arguments[0], lambda old, row, v: vector)

    return like(like, value), codegen


def _tiled(name: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def change(old: Any, row: int, v: int) -> Any:
                other = builder.extract_value(arguments[1], row * a.vectors + v)
                return getattr(builder, name)(old, other)

            return _each(builder, a, arguments[0], change)

        return a(a, b), codegen

    return operation


def _tile_operator(which: Any, function: Any) -> None:
    def operation(a: Any, b: Any) -> Any:
        if isinstance(a, Tile) and isinstance(b, Tile):
            return lambda a, b: function(a, b)
        return None

    overload(which)(lambda a, b: operation(a, b))


for _which, _name in (
    (operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"),
):  # fmt: skip
    _tile_operator(_which, _tiled(_name))


@intrinsic
def fma_tile(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of tiles."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def change(old: Any, row: int, v: int) -> Any:
            others = [builder.extract_value(t, row * a.vectors + v) for t in arguments[1:]]
            return _fma(builder, a, old, *others)

        return _each(builder, a, arguments[0], change)

    return a(a, a, a), codegen


@intrinsic
def fold(typingctx: Any, a: Any) -> Any:
    """The sum of a tile's vectors, in pairs: a vector."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left = [builder.extract_value(arguments[0], i) for i in range(a.rows * a.vectors)]
        while len(left) > 1:
            pairs = zip(left[::2], left[1::2], strict=False)
            left = [builder.fadd(*pair) for pair in pairs] + left[len(left) & ~1 :]
        return left[0]

    return Vector(a.dtype, a.count)(a), codegen


@intrinsic
def at_most(typingctx: Any, a: Any, b: Any) -> Any:
    """Whether each number of the tile a is <= that of b; NaN is not."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        every = None
        for slot in range(a.rows * a.vectors):
            pair = [builder.extract_value(t, slot) for t in arguments]
            holds = builder.fcmp_ordered("<=", *pair)
            every = holds if every is None else builder.and_(every, holds)
        bits = builder.bitcast(every, ir.IntType(a.count))
        return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, (1 << a.count) - 1))

    return types.boolean(a, a), codegen


@intrinsic
def load_part_of(typingctx: Any, p: Any, count: Any, otherwise: Any) -> Any:
    """As `load_part`, with the lanes of the vector `otherwise` in the place of zeros."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = _vector(otherwise.dtype, otherwise.count)
        at = builder.bitcast(arguments[0], kind.as_pointer())
        mask = _mask(builder, arguments[1], otherwise.count)
        masked = ir.FunctionType(kind, [at.type, I32, mask.type, kind])
        name = f"llvm.masked.load.{_suffix(otherwise)}.p0{_suffix(otherwise)}"
        call = cgutils.get_or_insert_function(builder.module, masked, name)
        return builder.call(call, [at, I32(_align(otherwise)), mask, arguments[2]])

    return otherwise(p, types.int64, otherwise), codegen


@intrinsic
def square_root(typingctx: Any, a: Any) -> Any:
    """Of each lane, rounded correctly."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = ir.FunctionType(kind, [kind])
        name = f"llvm.sqrt.{_suffix(a)}"
        call = cgutils.get_or_insert_function(builder.module, function, name)
        return builder.call(call, arguments)

    return a(a), codegen


@intrinsic
def largest(typingctx: Any, a: Any) -> Any:
    """The largest lane of a vector; which one where there is a NaN is left open."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, count = arguments[0], a.count
        while count > 1:
            count //= 2
            x, y = [
                builder.shuffle_vector(
                    value,
                    ir.Constant(value.type, ir.Undefined),
                    ir.Constant(ir.VectorType(I32, count), [start + i for i in range(count)]),
                )
                for start in (0, count)
            ]
            value = builder.select(builder.fcmp_unordered(">", x, y), x, y)
        return builder.extract_element(value, I32(0))

    return a.dtype(a), codegen


@intrinsic
def exp_negative(typingctx: Any, a: Any) -> Any:
    """e to the power of each lane, for numbers <= 0 (what a softmax needs) and NaN.

    a = n log 2 + r with |r| <= log(2) / 2; e^r is Taylor's polynomial, of a degree whose remainder
    is below a tenth of a rounding; 2^n is made of the bits of n, in two factors, since n may be
    below the least exponent. log 2 is in two parts, the first of few bits, so that n times it is
    exact. Source: Cody and Waite, "Software manual for the elementary functions" (1980), chapter 6.
    At most 1 unit in the last place off (2 without fused multiply-add) where the result is not
    subnormal.
    """
    single = a.dtype.bitwidth == 32
    mantissa, bias, degree = (23, 127, 7) if single else (52, 1023, 13)
    least = -105.0 if single else -760.0  # e^least is 0
    first = 0.693359375 if single else 0.693145751953125  # 10 and 16 bits
    second = -2.12194440e-4 if single else 1.42860682030941723212e-6
    kind, whole = _vector(a.dtype, a.count), ir.VectorType(I32 if single else I64, a.count)

    def constant(value: float) -> Any:
        return ir.Constant(kind, [value] * a.count)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        magic = constant(1.5 * 2.0**mantissa)  # a sum with it has the integer in its last bits

        def power(biased: Any) -> Any:
            """2^n of n + magic."""
            bits = builder.shl(builder.bitcast(biased, whole), _integers(whole, mantissa))
            return builder.bitcast(builder.add(bits, _integers(whole, bias << mantissa)), kind)

        x = arguments[0]
        x = builder.select(builder.fcmp_unordered(">", x, constant(least)), x, constant(least))
        biased = _fma(builder, a, x, constant(1.4426950408889634), magic)
        n = builder.fsub(biased, magic)
        r = _fma(builder, a, n, constant(-first), x)
        r = _fma(builder, a, n, constant(-second), r)
        value = constant(1 / factorial(degree))
        for k in reversed(range(degree)):
            value = _fma(builder, a, value, r, constant(1 / factorial(k)))
        half = _fma(builder, a, n, constant(0.5), magic)
        rest = builder.fadd(builder.fsub(n, builder.fsub(half, magic)), magic)
        return builder.fmul(builder.fmul(value, power(half)), power(rest))

    return a(a), codegen


def _integers(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)
