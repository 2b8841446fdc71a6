"""Vectors of floats and tiles of vectors, for kernels written in Python: LLVM's own vector types.

A `Vector` holds as many floats as a register of the processor (`lanes(dtype)`); it has + - * and
the functions here. A `Tile` is a block of sums in registers, `rows` times `vectors`, that a loop of
`outer` products fills: what makes a matrix product fast. Pointers count in elements: p + 3, p[3].

Numba's own arrays would not do: LLVM keeps their sums in memory, and half the width of a register.
This file imports Numba; only kernels, while they are compiled, import it.
"""

import operator
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


def item_type(dtype: Any) -> Any:
    return {
        "float32": ir.FloatType(), "float64": ir.DoubleType(), "int32": I32, "int64": I64,
    }[str(dtype)]  # fmt: skip


def vector_type(dtype: Any, count: int) -> Any:
    return ir.VectorType(item_type(dtype), count)


register_default(Pointer)(models.PointerModel)


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, vector_type(fe_type.dtype, fe_type.count))


@register_default(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        item = vector_type(fe_type.dtype, fe_type.count)
        super().__init__(dmm, fe_type, ir.ArrayType(item, fe_type.rows * fe_type.vectors))


def width(dtype: Any) -> int:
    """Lanes of a vector of a Numba type."""
    return current().vector // (dtype.bitwidth // 8)


def constant_of(kind: Any) -> int:
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
        return emit_load(builder, arguments[0], result)

    return result(p), codegen


def emit_load(builder: Any, p: Any, kind: Any, at: int = 0) -> Any:
    where = builder.gep(p, [I64(at)]) if at else p
    vector = vector_type(kind.dtype, kind.count)
    return builder.load(builder.bitcast(where, vector.as_pointer()), align=alignment(kind))


def emit_store(builder: Any, value: Any, p: Any, kind: Any, at: int = 0) -> None:
    where = builder.gep(p, [I64(at)]) if at else p
    builder.store(value, builder.bitcast(where, value.type.as_pointer()), align=alignment(kind))


def alignment(kind: Any) -> int:
    return int(kind.dtype.bitwidth // 8)


@intrinsic
def store(typingctx: Any, p: Any, value: Any) -> Any:
    """Write a vector to p, which need not be aligned."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit_store(builder, arguments[1], arguments[0], value)
        return context.get_dummy_value()

    return types.void(p, value), codegen


def emit_mask(builder: Any, count: Any, lanes: int) -> Any:
    """<lanes x i1>: the first `count` lanes."""
    steps = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", steps, emit_splat(builder, count, lanes))


def emit_splat(builder: Any, value: Any, lanes: int) -> Any:
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def type_suffix(kind: Any) -> str:
    return f"v{kind.count}f{kind.dtype.bitwidth}"


@intrinsic
def load_part(typingctx: Any, p: Any, count: Any) -> Any:
    """The first `count` numbers at p, then zeros; nothing beyond is read. count may be <= 0."""
    result = Vector(p.dtype, width(p.dtype))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_load_part(builder, arguments[0], arguments[1], result)

    return result(p, types.int64), codegen


def emit_load_part(builder: Any, p: Any, count: Any, kind: Any, at: int = 0) -> Any:
    vector = vector_type(kind.dtype, kind.count)
    where = builder.gep(p, [I64(at)]) if at else p
    left = builder.sub(count, I64(at)) if at else count
    mask = emit_mask(builder, left, kind.count)
    masked = ir.FunctionType(vector, [vector.as_pointer(), I32, mask.type, vector])
    name = f"llvm.masked.load.{type_suffix(kind)}.p0{type_suffix(kind)}"
    call = cgutils.get_or_insert_function(builder.module, masked, name)
    cast = builder.bitcast(where, vector.as_pointer())
    return builder.call(call, [cast, I32(alignment(kind)), mask, ir.Constant(vector, None)])


@intrinsic
def store_part(typingctx: Any, p: Any, value: Any, count: Any) -> Any:
    """Write the first `count` numbers of a vector to p, and nothing beyond. count may be <= 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit_store_part(builder, arguments[1], arguments[0], arguments[2], value)
        return context.get_dummy_value()

    return types.void(p, value, types.int64), codegen


def emit_store_part(builder: Any, value: Any, p: Any, count: Any, kind: Any, at: int = 0) -> None:
    vector = value.type
    where = builder.gep(p, [I64(at)]) if at else p
    left = builder.sub(count, I64(at)) if at else count
    mask = emit_mask(builder, left, kind.count)
    masked = ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), I32, mask.type])
    name = f"llvm.masked.store.{type_suffix(kind)}.p0{type_suffix(kind)}"
    call = cgutils.get_or_insert_function(builder.module, masked, name)
    cast = builder.bitcast(where, vector.as_pointer())
    builder.call(call, [value, cast, I32(alignment(kind)), mask])


@intrinsic
def splat(typingctx: Any, p: Any, value: Any) -> Any:
    """A vector of the type that `load(p)` has, every lane `value`, a number."""
    result = Vector(p.dtype, width(p.dtype))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[1], value, p.dtype)
        return emit_splat(builder, number, result.count)

    return result(p, value), codegen


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of vectors, in one instruction where the processor has it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_fma(builder, a, *arguments)

    return a(a, a, a), codegen


def emit_fma(builder: Any, kind: Any, a: Any, b: Any, c: Any) -> Any:
    function = ir.FunctionType(a.type, [a.type] * 3)
    # Not llvm.fma: without the instruction that is a call for every number.
    name = f"llvm.fmuladd.{type_suffix(kind)}"
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
    order = [constant_of(kind) for kind in lanes]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        mask = ir.Constant(ir.VectorType(I32, len(order)), order)
        return builder.shuffle_vector(arguments[0], arguments[1], mask)

    return a(a, b, lanes), codegen
