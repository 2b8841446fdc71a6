"""1x1 convolutions whose weight is packed first: once if it is constant, or for many pixels.

                       w: panels of `vectors` registers of output channels, packed once
                      +----+----+--
                      |    |    |          a task: some tiles of pixels, some panels
       x[pixels, C]   |    |    |            for each panel, each block of channels:
      +---------+     +----+----+--            for each tile of pixels: a loop of `outer`, while
 rows |=========|     | tile    |                the next block comes into the second cache, then
      +---------+     +----+----+--              add the sums of the blocks before
      |         |     |         |            y[pixels, K]

Pixels are the rows of the tile in both memory formats, since their number (7 x 7, 14 x 14) often
fills no vectors, where channels do. In channels-last memory that is how y lies; from NCHW, x is
read down its columns, and tiles are turned over in squares of registers before they are stored.
Sums are made of partial sums over the channels of a block. With a stride, a launch before this one
brings the used pixels together. A last tile that does not fit reaches back over pixels that another
has too, and stores the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpuconv.kernels.cpu.compiler import I64, Data, Kernel, current
from gpuconv.kernels.cpu.plan import Packed

Array = Any
# (rows, vectors, measured cycles for a channel) by channels-last or not, registers.
TILES = {
    (True, 32): ((6, 4, 12.4), (7, 4, 15.2)),
    (False, 32): ((14, 2, 14.4), (7, 4, 15.2)),
    (True, 16): ((6, 2, 6.6), (7, 1, 4.6)),
    (False, 16): ((6, 2, 6.6), (7, 1, 4.6)),
}
BLOCK = 32 << 10  # bytes of a panel that all tiles of a task read before the next ones
NEAR = 1 << 20  # bytes of x that a task reads again for every panel
GATHERED = 1 << 14  # numbers that a task brings together
SMALL = 100_000  # multiply-adds below which one thread is as quick
MANY = 2048  # channels-last pixels from which packing a weight in each call is worth it


def _multiply(dtype: str, rows: int, vectors: int, last: bool) -> Callable[..., None]:
    from numba import njit

    from gpuconv.kernels.cpu.blocks import prefetch_near, turn_part
    from gpuconv.kernels.cpu.tile import add_row, add_tile, outer, relu_tile, store_tile, tile
    from gpuconv.kernels.cpu.vector import (
        address,
        lanes,
        load,
        load_part,
        maximum,
        pointer,
        splat,
        store_part,
    )

    count = lanes(dtype)
    wide = vectors * count
    size = 4 if dtype == "float32" else 8
    device = njit(error_model="numpy")

    @device
    def finish(at: Any, add: Any, value: Any, relu: Any, length: Any) -> None:
        """`length` sums to y, after what the addend has for them, and relu."""
        if address(add) != 0:
            value = value + load_part(add, length)
        if relu:
            value = maximum(value, splat(at, 0))
        store_part(at, value, length)

    @device
    def edge(sums: Any, y: Any, add: Any, bias: Any, step: Any, relu: Any, left: Any) -> None:
        """A tile with `left` channels, from the scratch to channels-last memory."""
        for i in range(rows):
            for j in range(0, left, count):
                value = load(sums + (i * wide + j))
                if address(bias) != 0:
                    value = value + load_part(bias + j, left - j)
                r = add
                if address(add) != 0:
                    r = add + (i * step + j)
                finish(y + (i * step + j), r, value, relu, left - j)

    @device
    def turned(
        sums: Any, square: Any, y: Any, add: Any, bias: Any, step: Any, relu: Any, left: Any
    ) -> None:
        """A tile with `left` channels, from the scratch to NCHW memory."""
        for j in range(0, left, count):
            for i in range(0, rows, count):
                pixels = min(rows - i, count)
                turn_part(square, count, sums + (i * wide + j), wide, pixels, count)
                for e in range(min(left - j, count)):
                    value = load(square + e * count)
                    if address(bias) != 0:
                        value = value + splat(bias, bias[j + e])
                    r = add
                    if address(add) != 0:
                        r = add + ((j + e) * step + i)
                    finish(y + ((j + e) * step + i), r, value, relu, pixels)

    def multiply(
        task: I64, thread: I64, x: Data, w: Data, y: Data, bias: Data, add: Data, scratch: Data,
        m: I64, n: I64, k: I64, m_block: I64, n_block: I64, k_block: I64, m_blocks: I64,
        n_blocks: I64, panel_size: I64, relu: I64, own: I64,
    ) -> None:  # fmt: skip
        i0 = task % m_blocks * m_block
        task = task // m_blocks
        j0 = task % n_blocks * n_block
        image = task // n_blocks
        i1, j1 = min(i0 + m_block, m), min(j0 + n_block, n)
        sums = pointer(scratch, (address(scratch) + 63) // 64 * 64 + thread * own * size)
        x = x + image * m * k
        y_image = image * m * n
        square = sums + m_block * wide
        panel = w + j0 // wide * panel_size
        for j in range(j0, j1, wide):
            left = min(j1 - j, wide)
            bias_at = bias
            if address(bias) != 0:
                bias_at = bias + j
            for low in range(0, k, k_block):
                depth = min(k_block, k - low)
                b, part = panel + low * wide, sums
                near = b + depth * wide  # the next block, of which every tile fetches a part
                for i in range(i0, i1, rows):
                    top = min(i, m - rows)
                    acc = tile(y, rows, vectors)
                    if last:
                        here = x + (top * k + low)
                        for c in range(depth):
                            prefetch_near(near + c * count)
                            acc = outer(acc, here + c, k, b + c * wide)
                    else:
                        here = x + (low * m + top)
                        for c in range(depth):
                            prefetch_near(near + c * count)
                            acc = outer(acc, here + c * m, 1, b + c * wide)
                    near = near + depth * count
                    if i - i0 >= (vectors - 1) * rows:
                        near = b
                    if low > 0:
                        acc = add_tile(acc, part, wide)
                    at = y_image + j * m + top
                    if last:
                        at = y_image + top * n + j
                    add_at = add
                    if address(add) != 0:
                        add_at = add + at
                    if low + depth < k:
                        store_tile(part, wide, acc)
                    elif last and left == wide:
                        if address(bias) != 0:
                            acc = add_row(acc, bias_at)
                        if address(add) != 0:
                            acc = add_tile(acc, add_at, n)
                        if relu:
                            acc = relu_tile(acc)
                        store_tile(y + at, n, acc)
                    else:
                        store_tile(part, wide, acc)
                        if last:
                            edge(part, y + at, add_at, bias_at, n, relu, left)
                        else:
                            turned(part, square, y + at, add_at, bias_at, m, relu, left)
                    part = part + rows * wide
            panel = panel + panel_size

    return multiply


def _pack(dtype: str, vectors: int) -> Callable[..., None]:
    from gpuconv.kernels.cpu.pack import packers
    from gpuconv.kernels.cpu.vector import lanes

    wide = vectors * lanes(dtype)
    turned = packers(dtype, 1, vectors)[2]

    def pack(task: I64, thread: I64, w: Data, to: Data, n: I64, k: I64, panel_size: I64) -> None:
        j = task * wide
        turned(to + task * panel_size, w + j * k, k, k, min(n - j, wide))

    return pack


def _pack_rows(dtype: str, vectors: int) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load_part, store

    count = lanes(dtype)
    wide = vectors * count

    def pack(task: I64, thread: I64, w: Data, to: Data, n: I64, k: I64, panel_size: I64) -> None:
        j = task * wide
        out = to + task * panel_size
        for i in range(k):
            for v in range(0, wide, count):
                store(out + (i * wide + v), load_part(w + (i * n + j + v), n - j - v))

    return pack


def _gather(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load_part, store_part

    count = lanes(dtype)

    def gather(
        task: I64, thread: I64, x: Data, to: Data, block: I64, total: I64, lines: I64,
        pixels: I64, plane: I64, line: I64, step: I64, unit: I64,
    ) -> None:  # fmt: skip
        # Line i of a plane begins at x + i * line, its pixels, of `unit` numbers, `step` apart.
        for row in range(task * block, min((task + 1) * block, total)):
            at = x + (row // lines * plane + row % lines * line)
            out = to + row * pixels * unit
            for j in range(pixels):
                if unit == 1:
                    out[j] = at[j * step]
                else:
                    for e in range(0, unit, count):
                        value = load_part(at + (j * step + e), unit - e)
                        store_part(out + (j * unit + e), value, unit - e)

    return gather


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _tile(m: int, n: int, lanes: int, last: bool) -> tuple[int, int] | None:
    """The tile that takes least time; None where there are fewer pixels than a tile has."""
    best, found = 0.0, None
    for rows, vectors, cycles in TILES[last, current().registers]:
        cost = _up(m, rows) * _up(n, vectors * lanes) * cycles
        if rows <= m and (found is None or cost < best):
            best, found = cost, (rows, vectors)
    return found


def _blocks(m: int, n: int, k: int, batch: int, tile: tuple[int, int], lanes: int) -> Any:
    """(tiles of pixels, panels) a task, from the shapes alone."""
    rows, vectors = tile
    tall, broad = _up(m, rows), _up(n, vectors * lanes)
    best, found = 0.0, (1, 1)
    for m_tiles in {_up(tall, cuts) for cuts in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)}:
        if m_tiles > 1 and m_tiles * rows * k * 4 > NEAR:
            continue
        for panels in {_up(broad, cuts) for cuts in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)}:
            one = m_tiles * panels * (rows * vectors / 2 * k + 100) + 600
            one += 0.2 * k * (m_tiles * rows + panels * vectors * lanes)  # to come near
            tasks = _up(tall, m_tiles) * _up(broad, panels) * batch
            cost = sum(_up(tasks, t) * t for t in (2, 2, 4)) * one
            if not best or cost < best:
                best, found = cost, (m_tiles, panels)
    return found


@dataclass(frozen=True)
class Either(Packed):
    """A weight that changes is not packed beforehand: `plain` does its packing within its tasks."""

    plain: Callable[..., None]

    def __call__(self, x: Array, w: Array, *others: Any) -> None:
        self.plain(x, w, *others)


def packed(
    device: Any,
    spec: Any,
    dtype: str,
    last: bool,
    relu: bool,
    plain: Callable[..., None],
    by_rows: bool = False,
) -> Callable[..., None]:
    """The plan of a 1x1 convolution, whose call with a weight that is not packed is `plain`.

    With `by_rows` the weight lies transposed, (C, K): as the gradient by input has it.
    """
    (images, k, h, w), n, (p, q) = spec.x_shape, spec.w_shape[0], spec.y_shape[2:]
    size = 4 if dtype == "float32" else 8
    lanes = current().vector // size
    m, batch = (images * p * q, 1) if last else (p * q, images)
    found = _tile(m, n, lanes, last)
    if found is None:
        return plain
    rows, vectors = found
    wide = vectors * lanes
    m_tiles, panels = _blocks(m, n, k, batch, found, lanes)
    m_blocks, n_blocks = _up(m, m_tiles * rows), _up(n, panels * wide)
    panel_size = _up(k, lanes) * lanes * wide
    own = m_tiles * rows * wide + lanes * lanes
    several = m * n * k * batch >= SMALL
    multiply = device.prepare(
        Kernel(
            f"packed_{rows}x{vectors}_{dtype}{'_last' * last}",
            _multiply,
            (("dtype", dtype), ("rows", rows), ("vectors", vectors), ("last", last)),
        ),
        m_blocks * n_blocks * batch,
        scratch=own * size + 64,
        several=several,
        m=m, n=n, k=k, m_block=m_tiles * rows, n_block=panels * wide,
        k_block=_up(k, _up(k * wide * size, BLOCK)), m_blocks=m_blocks, n_blocks=n_blocks,
        panel_size=panel_size, relu=int(relu), own=own,
    )  # fmt: skip
    pack = device.prepare(
        Kernel(
            f"packed_{'rows' if by_rows else 'panels'}_{vectors}_{dtype}",
            _pack_rows if by_rows else _pack,
            (("dtype", dtype), ("vectors", vectors)),
        ),
        _up(n, wide),
        several=n * k >= SMALL,
        n=n, k=k, panel_size=panel_size,
    )  # fmt: skip

    def weight(w: Array) -> Array:
        to = device.empty((_up(n, wide) * panel_size,), dtype)
        pack(w, to)
        return to

    def compute(x: Array, w: Array, b: Array | None, add: Array | None, y: Array) -> None:
        multiply(x, w, y, b, add)

    if spec.stride == (1, 1):
        return Packed(weight, compute) if last and m >= MANY else Either(weight, compute, plain)
    unit = k if last else 1
    total = images * p * (1 if last else k)
    block = _up(GATHERED, q * unit)
    gather = device.prepare(
        Kernel(f"packed_gather_{dtype}", _gather, (("dtype", dtype),)),
        _up(total, block),
        several=several,
        block=block, total=total, lines=p, pixels=q, plane=h * w * unit,
        line=spec.stride[0] * w * unit, step=spec.stride[1] * unit, unit=unit,
    )  # fmt: skip

    def gathered(x: Array, w: Array, b: Array | None, add: Array | None, y: Array) -> None:
        used = device.empty((images * k * p * q,), dtype)
        gather(x, used)
        multiply(used, w, y, b, add)

    return Either(weight, gathered, plain)
