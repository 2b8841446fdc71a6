"""Arithmetic of tiles of one row and of vectors, for what is no matrix product.

Batch norm, losses, pooling and optimizer steps keep a row of vectors in registers at a time.
"""

import operator
from math import factorial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from gpuconv.kernels.cpu.compiler import current
from gpuconv.kernels.cpu.tile import emit_each
from gpuconv.kernels.cpu.vector import (
    I32,
    I64,
    Tile,
    Vector,
    alignment,
    emit_fma,
    emit_load,
    emit_mask,
    emit_splat,
    type_suffix,
    vector_type,
)


@intrinsic
def load_row(typingctx: Any, like: Any, p: Any) -> Any:
    """The vectors at p as a tile of the type of `like`, which has one row."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def read(old: Any, row: int, v: int) -> Any:
            return emit_load(builder, arguments[1], like, v * like.count)

        return emit_each(builder, like, arguments[0], read)

    return like(like, p), codegen


@intrinsic
def load_row_part(typingctx: Any, like: Any, p: Any, count: Any) -> Any:
    """As `load_row`, of the first `count` numbers; the rest are those of `like`, none is read."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile_of, p_at, number = arguments
        kind, masks = vector_type(like.dtype, like.count), _masks(builder, number, like)
        name = f"llvm.masked.load.{type_suffix(like)}.p0{type_suffix(like)}"

        def read(old: Any, row: int, v: int) -> Any:
            at = builder.bitcast(builder.gep(p_at, [I64(v * like.count)]), kind.as_pointer())
            masked = ir.FunctionType(kind, [at.type, I32, masks[v].type, kind])
            call = cgutils.get_or_insert_function(builder.module, masked, name)
            return builder.call(call, [at, I32(alignment(like)), masks[v], old])

        return emit_each(builder, like, tile_of, read)

    return like(like, p, types.int64), codegen


@intrinsic
def store_row_part(typingctx: Any, p: Any, value: Any, count: Any) -> Any:
    """The first `count` numbers of a tile of one row to p, and nothing beyond."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, row, number = arguments
        kind, masks = vector_type(value.dtype, value.count), _masks(builder, number, value)
        name = f"llvm.masked.store.{type_suffix(value)}.p0{type_suffix(value)}"
        for v, mask in enumerate(masks):
            at = builder.bitcast(builder.gep(p_at, [I64(v * value.count)]), kind.as_pointer())
            masked = ir.FunctionType(ir.VoidType(), [kind, at.type, I32, mask.type])
            call = cgutils.get_or_insert_function(builder.module, masked, name)
            builder.call(call, [builder.extract_value(row, v), at, I32(alignment(value)), mask])
        return context.get_dummy_value()

    return types.void(p, value, types.int64), codegen


def _masks(builder: Any, count: Any, kind: Any) -> list[Any]:
    """The first `count` numbers of a row of vectors: a mask of each, of lanes.

    AVX-512 has registers for masks: they are made as bits of one number. Others compare lanes.
    """
    width = kind.vectors * kind.count
    if current().name != "avx512" or width > 64:
        lanes = range(kind.vectors)
        return [
            emit_mask(builder, builder.sub(count, I64(v * kind.count)), kind.count) for v in lanes
        ]
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
        vector = emit_splat(builder, number, like.count)
        return emit_each(builder, like, arguments[0], lambda old, row, v: vector)

    return like(like, value), codegen


def _tiled(name: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def change(old: Any, row: int, v: int) -> Any:
                other = builder.extract_value(arguments[1], row * a.vectors + v)
                return getattr(builder, name)(old, other)

            return emit_each(builder, a, arguments[0], change)

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
            return emit_fma(builder, a, old, *others)

        return emit_each(builder, a, arguments[0], change)

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
        kind = vector_type(otherwise.dtype, otherwise.count)
        at = builder.bitcast(arguments[0], kind.as_pointer())
        mask = emit_mask(builder, arguments[1], otherwise.count)
        masked = ir.FunctionType(kind, [at.type, I32, mask.type, kind])
        name = f"llvm.masked.load.{type_suffix(otherwise)}.p0{type_suffix(otherwise)}"
        call = cgutils.get_or_insert_function(builder.module, masked, name)
        return builder.call(call, [at, I32(alignment(otherwise)), mask, arguments[2]])

    return otherwise(p, types.int64, otherwise), codegen


@intrinsic
def square_root(typingctx: Any, a: Any) -> Any:
    """Of each lane, rounded correctly."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = ir.FunctionType(kind, [kind])
        name = f"llvm.sqrt.{type_suffix(a)}"
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
    kind, whole = vector_type(a.dtype, a.count), ir.VectorType(I32 if single else I64, a.count)

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
        biased = emit_fma(builder, a, x, constant(1.4426950408889634), magic)
        n = builder.fsub(biased, magic)
        r = emit_fma(builder, a, n, constant(-first), x)
        r = emit_fma(builder, a, n, constant(-second), r)
        value = constant(1 / factorial(degree))
        for k in reversed(range(degree)):
            value = emit_fma(builder, a, value, r, constant(1 / factorial(k)))
        half = emit_fma(builder, a, n, constant(0.5), magic)
        rest = builder.fadd(builder.fsub(n, builder.fsub(half, magic)), magic)
        return builder.fmul(builder.fmul(value, power(half)), power(rest))

    return a(a), codegen


def _integers(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)
