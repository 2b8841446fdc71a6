"""Sums that move along an image: the register part of depthwise convolution with stride 1.

A window of R x S moves over the rows (or columns) of an image. Each row of the input is loaded
once and added, times R rows of weights, to the sums of the R rows of the output that it is part of:

    sums[r] is output row  h + top - r                    after input row h, sums[R-1] is complete:
    sums[r] += weights[r] * (input row h)                 it is stored, the others move one down

So an output costs S loads, R*S products and one store. Rows here are what lies along the way of the
window: rows of the image in NCHW, where a vector holds pixels of a row; columns of the image in
channels-last, where a vector holds channels. This file imports Numba; only kernels, while they are
compiled, import it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpuconv.kernels.cpu.vector import (
    I32,
    I64,
    Tile,
    Vector,
    constant_of,
    emit_fma,
    emit_load,
    emit_splat,
    emit_store,
    emit_store_part,
    item_type,
    width,
)


def _load_between(builder: Any, p: Any, first: Any, end: Any, kind: Any, at: int) -> Any:
    """Lanes first <= i < end of the numbers at p, i counted from p, of p + at ...; zeros else."""
    lanes = kind.count
    places = ir.Constant(ir.VectorType(I32, lanes), [at + i for i in range(lanes)])
    low, high = (emit_splat(builder, builder.trunc(edge, I32), lanes) for edge in (first, end))
    mask = builder.and_(
        builder.icmp_signed(">=", places, low), builder.icmp_signed("<", places, high)
    )
    whole = ir.VectorType(item_type(kind.dtype), lanes)
    masked = ir.FunctionType(whole, [whole.as_pointer(), I32, mask.type, whole])
    suffix = f"v{lanes}f{kind.dtype.bitwidth}"
    name = f"llvm.masked.load.{suffix}.p0{suffix}"
    call = cgutils.get_or_insert_function(builder.module, masked, name)
    cast = builder.bitcast(builder.gep(p, [I64(at)]), whole.as_pointer())
    return builder.call(call, [cast, I32(kind.dtype.bitwidth // 8), mask, ir.Constant(whole, None)])


def _loader(builder: Any, kind: Any, part: bool, first: Any, end: Any) -> Any:
    """load(p, at): the vector there, only lanes between first and end of p if `part`."""
    if part:
        return lambda p, at: _load_between(builder, p, first, end, kind, at)
    return lambda p, at: emit_load(builder, p, kind, at)


@intrinsic(prefer_literal=True)
def splats(typingctx: Any, p: Any, step: Any, count: Any) -> Any:
    """`count` registers (a constant), register i full of p[i * step]."""
    result = Tile(p.dtype, width(p.dtype), constant_of(count), 1)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        new = ir.Constant(context.get_value_type(result), ir.Undefined)
        for i in range(result.rows):
            at = builder.gep(arguments[0], [builder.mul(arguments[1], I64(i))])
            value = emit_splat(builder, builder.load(at), result.count)
            new = builder.insert_value(new, value, i)
        return new

    return result(p, types.int64, count), codegen


@intrinsic(prefer_literal=True)
def load_rows(
    typingctx: Any, p: Any, step: Any, rows: Any, valid: Any, lanes: Any, part: Any
) -> Any:
    """`rows` registers (a constant), register i the numbers at p + i * step; zeros from `valid` on.

    With the constant `part`, only the first `lanes` numbers of each are read, then zeros.
    """
    result = Tile(p.dtype, width(p.dtype), constant_of(rows), 1)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, by, _, count, most, _ = arguments
        load = _loader(builder, result, bool(part.literal_value), I64(0), most)
        new = ir.Constant(context.get_value_type(result), None)
        for i in range(result.rows):
            value = _if(
                builder,
                builder.icmp_signed(">", count, I64(i)),
                lambda i=i: load(builder.gep(p_at, [builder.mul(by, I64(i))]), 0),
                ir.VectorType(item_type(p.dtype), result.count),
            )
            new = builder.insert_value(new, value, i)
        return new

    return result(p, types.int64, rows, types.int64, types.int64, part), codegen


def _if(builder: Any, condition: Any, make: Any, kind: Any) -> Any:
    """make() where the condition holds, else zeros."""
    before = builder.block
    with builder.if_then(condition):
        value = make()
        inside = builder.block
    found = builder.phi(kind)
    found.add_incoming(value, inside)
    found.add_incoming(ir.Constant(kind, None), before)
    return found


@intrinsic(prefer_literal=True)
def filled(typingctx: Any, value: Any, rows: Any, vectors: Any) -> Any:
    """rows x vectors registers (constants), each the vector `value`."""
    result = Tile(value.dtype, value.count, constant_of(rows), constant_of(vectors))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        new = ir.Constant(context.get_value_type(result), ir.Undefined)
        for i in range(result.rows * result.vectors):
            new = builder.insert_value(new, arguments[0], i)
        return new

    return result(value, rows, vectors), codegen


@intrinsic(prefer_literal=True)
def row_products(
    typingctx: Any, sums: Any, weights: Any, p: Any, first: Any, end: Any, part: Any
) -> Any:
    """sums[r] + weights[r, s] * (the vector at p + s), for all r and s: an input row of NCHW.

    With the constant `part`, only lanes that lie between `first` and `end` of p are read.
    """
    taps = weights.rows // sums.rows

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        new, factors, p_at, low, high, _ = arguments
        load = _loader(builder, sums, bool(part.literal_value), low, high)
        pixels = [load(p_at, s) for s in range(taps)]
        for r in range(sums.rows):
            # What a row adds is found on its own: sums would wait for one another from row to row.
            each = [builder.extract_value(factors, r * taps + s) for s in range(taps)]
            row = builder.fmul(each[0], pixels[0])
            for w, x in zip(each[1:], pixels[1:], strict=True):
                row = emit_fma(builder, sums, w, x, row)
            new = builder.insert_value(new, builder.fadd(builder.extract_value(new, r), row), r)
        return new

    return sums(sums, weights, p, types.int64, types.int64, part), codegen


def _kept(builder: Any, x: Any, conditions: list[Any]) -> Any:
    """x where all of the conditions hold, else zeros."""
    for condition in conditions:
        x = builder.select(condition, x, ir.Constant(x.type, None))
    return x


def _within(builder: Any, i: int, first: Any, end: Any) -> Any:
    return builder.and_(
        builder.icmp_signed("<=", first, I64(i)), builder.icmp_signed(">", end, I64(i))
    )


@intrinsic(prefer_literal=True)
def row_weights(
    typingctx: Any,
    sums: Any,
    gy: Any,
    p: Any,
    bounds: Any,
    reach: Any,
    part: Any,
    guard: Any,
) -> Any:
    """sums[r, s] + gy[r] * (the vector at p + s): the gradient by weight of an input row of NCHW.

    With the constant `part`, only lanes that lie between bounds[0] and bounds[1] of p, and are of
    the first bounds[2], are read. With the constant `guard` only rows r of gy between reach[0] and
    reach[1] count: the others are zeros, but zero times infinity would be NaN.
    """
    taps = sums.rows // gy.rows

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        new, factors, p_at, edges, span, _, _ = arguments
        low, high, count = cgutils.unpack_tuple(builder, edges)
        first, end = cgutils.unpack_tuple(builder, span)
        for s in range(taps):
            far = builder.add(count, I64(s))
            far = builder.select(builder.icmp_signed("<", far, high), far, high)
            x = _loader(builder, sums, bool(part.literal_value), low, far)(p_at, s)
            for r in range(gy.rows):
                slot = r * taps + s
                known = [_within(builder, r, first, end)] if guard.literal_value else []
                value = emit_fma(
                    builder, sums, builder.extract_value(factors, r), _kept(builder, x, known),
                    builder.extract_value(new, slot),
                )  # fmt: skip
                new = builder.insert_value(new, value, slot)
        return new

    return sums(sums, gy, p, bounds, reach, part, guard), codegen


@intrinsic(prefer_literal=True)
def sources(
    typingctx: Any, x: Any, row: Any, height: Any, step: Any, nothing: Any, count: Any
) -> Any:
    """For `count` rows (a constant) from `row` on: pointers, and what to mask distances with.

    Row i of an image of `height` rows, each `step` numbers, begins at x + i * step. For a row that
    is not in the image they are `nothing` and 0: pointer + (distance & mask) then stays there.
    """
    rows = constant_of(count)
    result = types.Tuple([types.UniTuple(x, rows), types.UniTuple(types.int64, rows)])

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_at, first, most, by, zeros, _ = arguments
        pointers, masks = [], []
        for i in range(rows):
            at = builder.add(first, I64(i))
            inside = builder.and_(
                builder.icmp_signed(">=", at, I64(0)), builder.icmp_signed("<", at, most)
            )
            place = builder.gep(x_at, [builder.mul(at, by)])
            pointers.append(builder.select(inside, place, zeros))
            masks.append(builder.select(inside, I64(-1), I64(0)))
        pairs = [
            context.make_tuple(builder, kind, values)
            for kind, values in zip(result.types, (pointers, masks), strict=True)
        ]
        return context.make_tuple(builder, result, pairs)

    return result(x, *[types.int64] * 3, x, count), codegen


def _column(builder: Any, rows: Any, masks: Any, at: Any, load: Any) -> Any:
    """What loads the vector of row j at distance `at`."""
    pointers, each = cgutils.unpack_tuple(builder, rows), cgutils.unpack_tuple(builder, masks)
    return lambda j: load(builder.gep(pointers[j], [builder.and_(at, each[j])]), 0)


@intrinsic(prefer_literal=True)
def column_products(
    typingctx: Any, sums: Any, weights: Any, rows: Any, masks: Any, at: Any, lanes: Any, part: Any
) -> Any:
    """sums[s, b] + weights[r, s] * (row b + r at distance `at`): a column of channels-last.

    `rows` and `masks` are of `sources`; with the constant `part` only `lanes` numbers are read.
    """
    taps = sums.rows
    high = weights.rows // taps

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        new, factors, rows_at, masks_at, distance, most, _ = arguments
        load = _loader(builder, sums, bool(part.literal_value), I64(0), most)
        column = _column(builder, rows_at, masks_at, distance, load)
        for j in range(len(rows)):
            x = column(j)
            for b in range(sums.vectors):
                if not 0 <= j - b < high:
                    continue
                for s in range(taps):
                    slot = s * sums.vectors + b
                    w = builder.extract_value(factors, (j - b) * taps + s)
                    value = emit_fma(builder, sums, w, x, builder.extract_value(new, slot))
                    new = builder.insert_value(new, value, slot)
        return new

    return sums(sums, weights, rows, masks, types.int64, types.int64, part), codegen


@intrinsic(prefer_literal=True)
def column_weights(
    typingctx: Any,
    sums: Any,
    gy: Any,
    rows: Any,
    masks: Any,
    at: Any,
    lanes: Any,
    reach: Any,
    part: Any,
    guard: Any,
) -> Any:
    """sums[r, s] + gy[s, b] * (row b + r at distance `at`), over all b: gradient by weight.

    With the constant `guard` only columns s of gy between reach[0] and reach[1] and the first
    reach[2] rows b count.
    """
    taps = gy.rows
    high = sums.rows // taps

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        new, factors, rows_at, masks_at, distance, most, span, _, _ = arguments
        first, end, valid = cgutils.unpack_tuple(builder, span)
        load = _loader(builder, sums, bool(part.literal_value), I64(0), most)
        column = _column(builder, rows_at, masks_at, distance, load)
        for j in range(len(rows)):
            x = column(j)
            for b in range(gy.vectors):
                if not 0 <= j - b < high:
                    continue
                for s in range(taps):
                    slot = (j - b) * taps + s
                    g = builder.extract_value(factors, s * gy.vectors + b)
                    known = []
                    if guard.literal_value:
                        known = [
                            _within(builder, s, first, end),
                            builder.icmp_signed(">", valid, I64(b)),
                        ]
                    here = _kept(builder, x, known)
                    value = emit_fma(builder, sums, g, here, builder.extract_value(new, slot))
                    new = builder.insert_value(new, value, slot)
        return new

    return sums(sums, gy, rows, masks, types.int64, types.int64, reach, part, guard), codegen


@intrinsic
def finished(typingctx: Any, sums: Any) -> Any:
    """The last row of the sums, as a tile of one vector a row."""
    result = Tile(sums.dtype, sums.count, sums.vectors, 1)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        new = ir.Constant(context.get_value_type(result), ir.Undefined)
        for b in range(sums.vectors):
            value = builder.extract_value(arguments[0], (sums.rows - 1) * sums.vectors + b)
            new = builder.insert_value(new, value, b)
        return new

    return result(sums), codegen


@intrinsic
def advance(typingctx: Any, sums: Any, fresh: Any) -> Any:
    """Row r moves to r + 1; row 0 becomes `fresh`: a vector, or a tile of one vector a row."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, begin = arguments
        new = old
        for b in range(sums.vectors):
            for r in range(sums.rows - 1, 0, -1):
                value = builder.extract_value(old, (r - 1) * sums.vectors + b)
                new = builder.insert_value(new, value, r * sums.vectors + b)
            one = begin if isinstance(fresh, Vector) else builder.extract_value(begin, b)
            new = builder.insert_value(new, one, b)
        return new

    return sums(sums, fresh), codegen


@intrinsic(prefer_literal=True)
def write_rows(
    typingctx: Any,
    values: Any,
    p: Any,
    step: Any,
    rows: Any,
    lanes: Any,
    part: Any,
    add: Any,
    added: Any,
    floor: Any,
) -> Any:
    """Rows of a tile of one vector a row, to p + i * step: the first `rows` of them.

    With the constant `add`, plus what is at added + i * step; then not less than the vector
    `floor`, where NaN stays. With the constant `part`, only the first `lanes` numbers of each.
    """
    masked, adds = bool(part.literal_value), bool(add.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile, p_at, by, count, most, _, _, added_at, least = arguments
        load = _loader(builder, values, masked, I64(0), most)
        for i in range(values.rows):
            with builder.if_then(builder.icmp_signed(">", count, I64(i)), likely=True):
                value, place = builder.extract_value(tile, i), builder.mul(by, I64(i))
                if adds:
                    value = builder.fadd(value, load(builder.gep(added_at, [place]), 0))
                small = builder.fcmp_ordered("<", value, least)
                value = builder.select(small, least, value)
                at = builder.gep(p_at, [place])
                if masked:
                    emit_store_part(builder, value, at, most, values)
                else:
                    emit_store(builder, value, at, values)
        return context.get_dummy_value()

    kinds = values, p, types.int64, types.int64, types.int64, part, add, added, floor
    return types.void(*kinds), codegen


@intrinsic
def sums_of(typingctx: Any, p: Any, sums: Any) -> Any:
    """p[i] = the sum of the lanes of row i of a tile of one vector a row.

    Lane j plus lane j + lanes/2, and so on, of two rows at once: each addition leaves half as many
    vectors, with half as many lanes for each row.
    """
    lanes = sums.count

    def merged(builder: Any, a: Any, b: Any, size: int) -> Any:
        """Groups of `size` lanes of a, then b, each group's halves added."""
        half = size // 2
        firsts = [g + i for g in range(0, 2 * lanes, size) for i in range(half)]
        parts = [
            builder.shuffle_vector(
                a, b, ir.Constant(ir.VectorType(I32, lanes), [at + far for at in firsts])
            )
            for far in (0, half)
        ]
        return builder.fadd(*parts)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, tile = arguments
        for start in range(0, sums.rows, lanes):
            count = min(lanes, sums.rows - start)
            left = [builder.extract_value(tile, start + i) for i in range(count)]
            zero = ir.Constant(left[0].type, None)
            size = lanes
            while size > 1:
                left += [zero] * (len(left) % 2)
                pairs = zip(left[::2], left[1::2], strict=True)
                left = [merged(builder, a, b, size) for a, b in pairs]
                size //= 2
                if len(left) == 1 and size > 1:
                    left.append(zero)
            at = builder.gep(p_at, [I64(start)])
            emit_store_part(builder, left[0], at, I64(count), sums)
        return context.get_dummy_value()

    return types.void(p, sums), codegen
