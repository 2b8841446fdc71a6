"""Vector instructions of pooling and activations: what depends on a comparison, and the shuffles.

An addition to `gpuconv.kernels.cpu.vector`, in its style; only kernels, while they are compiled,
import it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpuconv.kernels.cpu.vector import I32, Vector, emit_mask, emit_splat, vector_type


def _zero(kind: Any) -> Any:
    return ir.Constant(vector_type(kind.dtype, kind.count), None)


@intrinsic
def passed(typingctx: Any, g: Any, y: Any) -> Any:
    """g, but 0 where y <= 0: where y is NaN it passes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        g_value, y_value = arguments
        stop = builder.fcmp_ordered("<=", y_value, _zero(y))
        return builder.select(stop, _zero(g), g_value)

    return g(g, y), codegen


@intrinsic
def largest(typingctx: Any, y: Any, v: Any) -> Any:
    """The larger of each pair; NaN where either is."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, new = arguments
        larger = builder.select(builder.fcmp_ordered(">", new, old), new, old)
        return builder.select(builder.fcmp_unordered("uno", new, new), new, larger)

    return y(y, v), codegen


@intrinsic
def later(typingctx: Any, y: Any, tap: Any, v: Any, number: Any) -> Any:
    """(y, tap) of a maximum after one more value v, whose tap is `number`, an integer.

    It is taken where it is greater, or NaN: of equal ones the first stays.
    """
    result = types.Tuple((y, tap))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, old_tap, new, at = arguments
        greater = builder.fcmp_ordered(">", new, old)
        taken = builder.or_(greater, builder.fcmp_unordered("uno", new, new))
        here = emit_splat(builder, builder.trunc(at, I32), tap.count)
        values = builder.select(taken, new, old), builder.select(taken, here, old_tap)
        return context.make_tuple(builder, result, values)

    return result(y, tap, v, types.int64), codegen


@intrinsic
def add_where(typingctx: Any, sums: Any, g: Any, tap: Any, number: Any) -> Any:
    """sums + g where the tap is `number`, an integer."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, value, taps, at = arguments
        here = emit_splat(builder, builder.trunc(at, I32), tap.count)
        return builder.select(builder.icmp_signed("==", taps, here), builder.fadd(old, value), old)

    return sums(sums, g, tap, types.int64), codegen


@intrinsic
def first_where(typingctx: Any, tap: Any, y: Any, first: Any) -> Any:
    """The tap, but `first` where the maximum y is -inf: no value was greater."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, value, other = arguments
        least = emit_splat(builder, ir.Constant(value.type.element, float("-inf")), y.count)
        return builder.select(builder.fcmp_ordered("==", value, least), other, old)

    return tap(tap, y, tap), codegen


def _ints(kind: Any) -> Any:
    return Vector(types.int32, kind.count)


@intrinsic
def splat_ints(typingctx: Any, like: Any, number: Any) -> Any:
    """As many int32 `number`s as the vector `like` has lanes."""
    result = _ints(like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_splat(builder, builder.trunc(arguments[1], I32), result.count)

    return result(like, types.int64), codegen


@intrinsic
def load_ints(typingctx: Any, like: Any, p: Any) -> Any:
    """As many int32 from p, a pointer to numbers of 4 bytes, as the vector `like` has lanes."""
    result = _ints(like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = vector_type(types.int32, result.count).as_pointer()
        return builder.load(builder.bitcast(arguments[1], kind), align=4)

    return result(like, p), codegen


@intrinsic
def load_ints_part(typingctx: Any, like: Any, p: Any, count: Any) -> Any:
    """As `load_ints`, the first `count` of them, then zeros; nothing beyond is read."""
    result = _ints(like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, p_at, number = arguments
        kind = vector_type(types.int32, result.count)
        mask = emit_mask(builder, number, result.count)
        name = f"llvm.masked.load.v{result.count}i32.p0v{result.count}i32"
        function = ir.FunctionType(kind, [kind.as_pointer(), I32, mask.type, kind])
        call = cgutils.get_or_insert_function(builder.module, function, name)
        cast = builder.bitcast(p_at, kind.as_pointer())
        return builder.call(call, [cast, I32(4), mask, ir.Constant(kind, None)])

    return result(like, p, types.int64), codegen


@intrinsic
def store_ints_part(typingctx: Any, p: Any, value: Any, count: Any) -> Any:
    """Write the first `count` int32 of a vector to p, a pointer to numbers of 4 bytes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, vector, number = arguments
        mask = emit_mask(builder, number, value.count)
        name = f"llvm.masked.store.v{value.count}i32.p0v{value.count}i32"
        kind = vector.type
        function = ir.FunctionType(ir.VoidType(), [kind, kind.as_pointer(), I32, mask.type])
        call = cgutils.get_or_insert_function(builder.module, function, name)
        builder.call(call, [vector, builder.bitcast(p_at, kind.as_pointer()), I32(4), mask])
        return context.get_dummy_value()

    return types.void(p, value, types.int64), codegen


@intrinsic
def store_past(typingctx: Any, p: Any, value: Any) -> Any:
    """Write a vector to p, a multiple of its size, past the caches: for what is far too large."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, vector = arguments
        size = value.count * value.dtype.bitwidth // 8
        place = builder.bitcast(p_at, vector.type.as_pointer())
        written = builder.store(vector, place, align=size)
        written.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return types.void(p, value), codegen


def _picked(order: Any) -> Any:
    """An intrinsic: a vector of lanes order(n) of two vectors of n lanes, one after the other."""

    @intrinsic
    def pick(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            mask = ir.Constant(ir.VectorType(I32, a.count), order(a.count))
            return builder.shuffle_vector(arguments[0], arguments[1], mask)

        return a(a, b), codegen

    return pick


# Of 2n numbers in a row: those at even places, and at odd ones. And back: the first n numbers of
# a[0], b[0], a[1], b[1], ..., and the last n.
evens = _picked(lambda n: list(range(0, 2 * n, 2)))
odds = _picked(lambda n: list(range(1, 2 * n, 2)))
zip_low = _picked(lambda n: [i // 2 + n * (i % 2) for i in range(n)])
zip_high = _picked(lambda n: [n // 2 + i // 2 + n * (i % 2) for i in range(n)])


@intrinsic
def as_ints(typingctx: Any, p: Any) -> Any:
    """A pointer to int32, at the same place."""
    result = types.CPointer(types.int32)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(result))

    return result(p), codegen
