"""Transforms and transposes in registers for the kernels of `winograd.py`.

A tile of m x m numbers of the output is  y = A' [(G w G') * (B' x B)] A  of the tile x of the
input, n = m + 2 rows of n, and the 3x3 filter w, where * is by element: with m = 4, 36 products
instead of 144. `cook_toom` makes the matrices from n - 1 points and infinity.

The points decide by how much rounding errors of the sums of products grow in A': for m = 4, on
average, by 4.8 with these, the best that there are; by 6.9 with 0, 1, -1, 1/2, -2; by 10.8 with the
usual 0, 1, -1, 2, -2. For m = 3 it is 2.6. Good points are near 1, each beside its reciprocal and
its negative (Barabasz et al., arXiv 1803.10986; Alam et al., arXiv 2201.10369); of two opposite
points most of the arithmetic is shared.

Every lane of a vector is a channel, so the transforms need no shuffles; `planes` makes such vectors
of an image that has its channels in planes. This file imports Numba; only kernels, while they are
compiled, import it.
"""

from fractions import Fraction
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuconv.kernels.cpu.cook_toom import matrices
from gpuconv.kernels.cpu.square import square, transposed
from gpuconv.kernels.cpu.tile import (
    add_row,
    add_tile_part,
    emit_each,
    relu_tile,
    store_tile,
    store_tile_part,
)
from gpuconv.kernels.cpu.transforms import _apply, _shuffle, both_sides
from gpuconv.kernels.cpu.vector import (
    I64,
    Tile,
    Vector,
    address,
    emit_load,
    emit_mask,
    emit_store,
    lanes,
    load,
    load_part,
    maximum,
    splat,
    store,
    store_part,
    vector_type,
    width,
)

POINTS = {  # m: points beside infinity
    4: ((0, 1), (2, 3), (-2, 3), (3, 2), (-3, 2)),
    3: ((2, 5), (-2, 5), (5, 4), (-5, 4)),
}


def transforms(m: int) -> tuple[Any, Any, Any]:
    """Intrinsics (filter, input, inverse) for tiles of m x m.

    filter and input: f(source, row step, column step, target, step): 3x3 or n x n vectors to n x n
    that are `step` apart. inverse(source, step, target, row step): those to m rows of m vectors
    side by side.
    """
    a, g, b = matrices(m, 3, [Fraction(*point) for point in POINTS[m]])
    n = m + 2

    @intrinsic
    def inverse(typingctx: Any, source: Any, step: Any, target: Any, row: Any) -> Any:
        kind = Vector(source.dtype, width(source.dtype))

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            p, by, q, by_row = arguments
            half = []
            for j in range(n):
                places = [builder.gep(p, [builder.mul(by, I64(n * i + j))]) for i in range(n)]
                values = [emit_load(builder, place, kind) for place in places]
                half.append(_apply(builder, kind, a, values))
            for i in range(m):
                done = _apply(builder, kind, a, [column[i] for column in half])
                line = builder.gep(q, [builder.mul(by_row, I64(i))])
                for j, value in enumerate(done):
                    emit_store(builder, value, line, kind, j * kind.count)
            return context.get_dummy_value()

        return types.void(source, types.int64, target, types.int64), codegen

    return both_sides(g), both_sides(b), inverse


@intrinsic
def planes(typingctx: Any, p: Any, step: Any) -> Any:
    """4 vectors, as a tile of 4 rows: lane i of vector j is p[i * step + j]."""
    result = Tile(p.dtype, width(p.dtype), 4, 1)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, by = arguments
        lines = [builder.gep(base, [builder.mul(by, I64(i))]) for i in range(result.count)]
        return _tile(context, builder, result, _turned(builder, p, lines))

    return result(p, types.int64), codegen


@intrinsic
def planes_part(typingctx: Any, p: Any, step: Any, lanes: Any) -> Any:
    """As `planes`, reading only what belongs to the first `lanes` lanes; zeros in the others."""
    result = Tile(p.dtype, width(p.dtype), 4, 1)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, by, count = arguments
        lines = []
        for i in range(result.count):
            inside = builder.icmp_signed(">", count, I64(i))
            start = builder.select(inside, builder.mul(by, I64(i)), I64(0))
            lines.append(builder.gep(base, [start]))
        mask = emit_mask(builder, count, result.count)
        zero = ir.Constant(vector_type(p.dtype, result.count), None)
        found = [builder.select(mask, v, zero) for v in _turned(builder, p, lines)]
        return _tile(context, builder, result, found)

    return result(p, types.int64, types.int64), codegen


def _turned(builder: Any, p: Any, lines: list[Any]) -> list[Any]:
    """4 numbers from each of the pointers `lines`, as 4 vectors of one number of each."""
    quad = vector_type(p.dtype, 4).as_pointer()
    rows = [builder.load(builder.bitcast(line, quad), align=4) for line in lines]
    return _quads(builder, _columns(builder, rows), len(lines))


def _columns(builder: Any, rows: list[Any]) -> list[Any]:
    """4 vectors: the i-th has rows i, i + 4, i + 8, ... (of 4 lanes) side by side."""
    found = []
    for first in range(4):
        parts = rows[first::4]
        while len(parts) > 1:
            size = parts[0].type.count
            parts = [
                _shuffle(builder, parts[i], parts[i + 1], list(range(2 * size)))
                for i in range(0, len(parts), 2)
            ]
        found.append(parts[0])
    return found


def _quads(builder: Any, four: list[Any], count: int) -> list[Any]:
    """Of each quarter of 4 lanes, the 4x4 block transposed."""

    def pick(a: Any, b: Any, order: tuple[int, ...]) -> Any:
        each = [q + (o if o < 4 else count + o - 4) for q in range(0, count, 4) for o in order]
        return _shuffle(builder, a, b, each)

    low, high = (0, 4, 1, 5), (2, 6, 3, 7)
    first, second = (0, 1, 4, 5), (2, 3, 6, 7)
    a, b = pick(four[0], four[1], low), pick(four[2], four[3], low)
    c, d = pick(four[0], four[1], high), pick(four[2], four[3], high)
    return [pick(a, b, first), pick(a, b, second), pick(c, d, first), pick(c, d, second)]


def _tile(context: Any, builder: Any, kind: Any, vectors: list[Any]) -> Any:
    found = ir.Constant(context.get_value_type(kind), ir.Undefined)
    for i, vector in enumerate(vectors):
        found = builder.insert_value(found, vector, i)
    return found


# --- sums of products


@intrinsic
def add_blocks(typingctx: Any, sums: Any, p: Any, step: Any) -> Any:
    """The tile plus earlier sums: vector v of row i is at p + v * step + i * lanes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        old, p_at, by = arguments
        blocks = [builder.gep(p_at, [builder.mul(by, I64(v))]) for v in range(sums.vectors)]
        return emit_each(
            builder,
            sums,
            old,
            lambda value, row, v: builder.fadd(
                emit_load(builder, blocks[v], sums, row * sums.count), value
            ),
        )

    return sums(sums, p, types.int64), codegen


@intrinsic
def store_blocks(typingctx: Any, p: Any, step: Any, sums: Any) -> Any:
    """Store the tile as `add_blocks` reads it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, by, values = arguments
        for v in range(sums.vectors):
            block = builder.gep(p_at, [builder.mul(by, I64(v))])
            for i in range(sums.rows):
                value = builder.extract_value(values, i * sums.vectors + v)
                emit_store(builder, value, block, sums, i * sums.count)
        return context.get_dummy_value()

    return types.void(p, types.int64, sums), codegen


# --- between images and rows of vectors


def copies(device: Any) -> tuple[Any, Any, Any]:
    """(turn, fetch, emit): functions for kernels, compiled by `device`."""
    count = lanes("float32")

    @device
    def zeros(p: Any, vectors: Any) -> None:
        for i in range(vectors):
            store(p + i * count, splat(p, 0))

    @device
    def turn(to: Any, p: Any, step: Any, length: Any, channels: Any) -> None:
        """`length` numbers of each of `channels` planes, as `length` vectors."""
        whole = channels >= count
        i = 0
        while i < length:
            if length < 4:
                store(to, splat(p, 0))
                for c in range(min(channels, count)):
                    to[c] = p[c * step + i]
                to, i = to + count, i + 1
            else:
                at = min(i, length - 4)
                if whole:
                    store_tile(to + at * count, count, planes(p + at, step))
                else:
                    store_tile(to + at * count, count, planes_part(p + at, step, channels))
                i += 4

    @device
    def fetch(
        band: Any, x: Any, image: Any, top: Any, lines: Any, left: Any, across: Any, block: Any,
        c: Any, h: Any, w: Any, last: Any,
    ) -> None:  # fmt: skip
        """Rows top .. top + lines of an image, columns -left .. across - left; zeros outside."""
        c0 = block * count
        channels = c - c0
        begin = max(left, 0)
        end = max(min(across, w + left), begin)
        for line in range(lines):
            row = top + line
            to = band + line * across * count
            if row < 0 or row >= h or begin == end:
                zeros(to, across)
            else:
                zeros(to, begin)
                zeros(to + end * count, across - end)
                to = to + begin * count
                if last:
                    at = x + (((image * h + row) * w + begin - left) * c + c0)
                    if channels >= count:
                        for j in range(end - begin):
                            store(to + j * count, load(at + j * c))
                    else:
                        for j in range(end - begin):
                            store(to + j * count, load_part(at + j * c, channels))
                else:
                    at = x + (((image * c + c0) * h + row) * w + begin - left)
                    turn(to, at, h * w, end - begin, channels)

    @device
    def emit(
        y: Any, pixels: Any, add: Any, bias: Any, place: Any, step: Any, total: Any, outputs: Any,
        last: Any, relu: Any,
    ) -> None:  # fmt: skip
        """`total` pixels, vectors of output channels, to y + place; what is fused with it."""
        zero = splat(y, 0)
        if last:
            extra = load(bias)
            for i in range(total):
                at = place + i * step
                value = load(pixels + i * count) + extra
                if address(add) != 0:
                    value = value + load_part(add + at, outputs)
                if relu:
                    value = maximum(value, zero)
                if outputs >= count:
                    store(y + at, value)
                else:
                    store_part(y + at, value, outputs)
            return
        for i in range(0, total, count):
            at = place + i
            left = total - i
            sums = transposed(add_row(square(pixels + i * count, count, count), bias))
            if address(add) != 0:
                sums = add_tile_part(sums, add + at, step, outputs, left)
            if relu:
                sums = relu_tile(sums)
            if left >= count and outputs >= count:
                store_tile(y + at, step, sums)
            else:
                store_tile_part(y + at, step, sums, outputs, left)

    return turn, fetch, emit
