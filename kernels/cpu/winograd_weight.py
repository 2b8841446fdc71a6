"""The gradient by weight of a 3x3 convolution by Winograd's F(3x3, 4x4).

gw[k, c] is the correlation of x[:, c] with gy[:, k]. Cut gy into tiles of 4 x 4 pixels: each tile
and the 6 x 6 pixels of x that it meets give 3 x 3 numbers of gw, from 36 products instead of 144
(Lavin and Gray, arXiv 1509.09308, section 4):

    gw[k, c] = AT  sum over tiles [ (G gy[k] GT) * (BT x[c] B) ]  A

The sum in the middle is, for each of the 36 places in a tile, a matrix product K x tiles x C.

    x  --> bands: 4 or 6 rows of pixels, --> 36 x panels of C --\\            36 sums      gw
    gy --> lanes channels, zeros around --> 36 x panel of K  ----> products --> K x C --> K, C, 3, 3

Vectors hold neighbouring channels; of NCHW arrays the bands are transposed. A task has a block of
at most 64 K and 128 C, and all tiles or a range of them, a chunk at a time (at most 64 tiles: its
sums begin at zero, which keeps errors small): it transforms the chunk into panels
[36 places][panel][tile][channels of the panel], and products of `rows` of K by `vectors` of C add
to sums that lie as [36 places][panel of C][K][channels of the panel]. Panels and sums
stay in the second-level cache; blocks that share channels transform them again, which is quicker
than to fetch what another processor has written. Where tasks have ranges of tiles, a second launch
adds their sums in order.

Points 0, 2/3, -2/3, 3/2, -3/2 and infinity have the smallest errors of those tried: about twice
those of plain sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpuconv.kernels.cpu.compiler import F32, I64, Kernel, current
from gpuconv.kernels.cpu.cook_toom import Matrix, matrices

POINTS = (0, Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))
PLACES = 36  # of a transformed tile
LONGEST = 64  # tiles of a chunk
RUN = 14  # tiles side by side in a band: 56 pixels and 2 more
LEAST = 16  # channels, in and out
SMALLEST = 12  # rows and columns of a plane
PARTS = 8  # ranges of chunks at most
CBLOCK = 128  # channels of C of a block of sums
ENOUGH = 4  # tasks
ROOM = 1_850_000  # bytes that a thread may use of the second-level cache


def transforms() -> tuple[Matrix, Matrix, Matrix]:
    """(AT, G, BT) of F(3, 4), with G's divisors moved into AT, which is applied least."""
    at, g, bt = matrices(3, 4, POINTS)
    scale = [next(v for v in row if v) for row in g]
    return (
        tuple(tuple(v * s for v, s in zip(row, scale, strict=True)) for row in at),
        tuple(tuple(v / s for v in row) for row, s in zip(g, scale, strict=True)),
        bt,
    )


def _expander(last: bool, lanes: int) -> Any:
    """expand(...): the transformed tiles of `lanes` channels of x or gy."""
    from numba import njit

    from gpuconv.kernels.cpu.transforms import both_sides, turn, turn_part
    from gpuconv.kernels.cpu.vector import load, load_part, splat, store

    _, g, bt = transforms()
    transform_x, transform_gy = both_sides(bt), both_sides(g)

    def fill_last(x: Any, band: Any, c: int, hw: int, left: int, right: int, width: int) -> None:
        """Pixels left .. right of a band's row; x points to the pixel of the band's first."""
        if width == lanes:
            for j in range(left, right):
                store(band + j * lanes, load(x + j * c))
        else:
            for j in range(left, right):
                store(band + j * lanes, load_part(x + j * c, width))

    def fill_first(x: Any, band: Any, c: int, hw: int, left: int, right: int, width: int) -> None:
        j = left
        if width == lanes:
            while j + lanes <= right:
                turn(x + j, hw, band + j * lanes, lanes)
                j += lanes
        while j < right:
            turn_part(x + j, hw, width, right - j, band + j * lanes, lanes)
            j += lanes

    fill = njit(fill_last if last else fill_first)

    def expand(
        x: Any, c: int, h: int, w: int, size: int, top: int, left: int, down: int, across: int,
        first: int, end: int, channel: int, band: Any, to: Any, panel: int, step: int,
    ) -> None:  # fmt: skip
        """Tiles first .. end of `lanes` channels of x (n, c, h, w), transformed.

        Tile t, place i go to (t - first) * panel + i * step. There are down x across tiles an
        image, of which the first begins at (-top, -left). `size` is 6, or of gy 4.
        """
        zero = splat(x, 0.0)
        width = min(lanes, c - channel)
        image = first // (down * across)
        row = (first - image * down * across) // across
        column = first - (image * down + row) * across
        tile = first
        while tile < end:
            run = min(min(RUN, across - column), end - tile)
            wide = 4 * run + size - 4
            x0, y0 = 4 * column - left, 4 * row - top
            begin = min(max(0, -x0), wide)
            stop = max(min(wide, w - x0), begin)
            for i in range(size):
                line = band + i * wide * lanes
                y = y0 + i
                inside = y >= 0 and y < h
                before = begin if inside else wide
                for j in range(before):
                    store(line + j * lanes, zero)
                if inside:
                    if last:
                        at = ((image * h + y) * w + x0) * c + channel
                    else:
                        at = ((image * c + channel) * h + y) * w + x0
                    fill(x + at, line, c, h * w, begin, stop, width)
                    for j in range(stop, wide):
                        store(line + j * lanes, zero)
            for j in range(run):
                here, there = band + 4 * j * lanes, to + (tile - first + j) * panel
                if size == 6:
                    transform_x(here, wide * lanes, lanes, there, step)
                else:
                    transform_gy(here, wide * lanes, lanes, there, step)
            tile += run
            column += run
            if column == across:
                column = 0
                row += 1
                if row == down:
                    row = 0
                    image += 1

    return njit(expand)


def _multiplier(rows: int, vectors: int, lanes: int) -> Any:
    """multiply(...): the products of one tile of rows x vectors."""
    from numba import njit

    from gpuconv.kernels.cpu.tile import add_tile, outer, store_tile, tile

    wide = vectors * lanes

    def multiply(a: Any, step: int, b: Any, depth: int, sums: Any, more: bool) -> None:
        """sums (rows, wide) = a (depth, rows of step) transposed times b (depth, wide), or +=."""
        acc = tile(sums, rows, vectors)
        for _ in range(depth):
            acc = outer(acc, a, 1, b)
            a = a + step
            b = b + wide
        if more:
            acc = add_tile(acc, sums, wide)
        store_tile(sums, wide, acc)

    return njit(multiply)


def _finisher(lanes: int) -> Any:
    """finish(...): the last transform of `lanes` pairs (k, c), of which `width` there are."""
    from numba import njit

    from gpuconv.kernels.cpu.transforms import both_sides_interleaved
    from gpuconv.kernels.cpu.vector import load, store_part

    transform = both_sides_interleaved(transforms()[0])

    def finish(sums: Any, step: int, gw: Any, width: int, spare: Any) -> None:
        if width >= lanes:
            transform(sums, step, gw)
        else:
            transform(sums, step, spare)
            for i in range(9):
                store_part(gw + i * lanes, load(spare + i * lanes), 9 * width - i * lanes)

    return njit(finish)


def make_chunks(dtype: str, last: bool, rows: int, vectors: int, lanes: int) -> Callable[..., None]:
    """A task: a block of sums over a range of chunks, and their last transform if it is all."""
    from numba import njit

    expand, multiply = _expander(last, lanes), _multiplier(rows, vectors, lanes)
    finish = _finisher(lanes)
    wide = vectors * lanes

    def products(
        gs: Any, xs: Any, sums: Any, count: int, depth: int, kwide: int, real: int, few: int,
        kplace: int, cplace: int, splace: int, more: bool,
    ) -> None:  # fmt: skip
        """The products of a chunk: `real` channels of gs, and `few` panels of xs."""
        high = (kwide + rows - 1) // rows * rows
        for place in range(PLACES):
            for j in range(few):
                b = xs + place * cplace + j * depth * wide
                at = sums + place * splace + j * high * wide
                for r in range(0, real, rows):
                    multiply(gs + place * kplace + r, kwide, b, count, at + r * wide, more)

    def done(
        sums: Any, gw: Any, c: int, real: int, few: int, left: int, kwide: int, splace: int,
        spare: Any,
    ) -> None:  # fmt: skip
        """The last transform of sums of `few` panels, to gw (real, c, 3, 3); `left` of c remain."""
        high = (kwide + rows - 1) // rows * rows
        for j in range(few):
            for r in range(real):
                at = sums + (j * high + r) * wide
                for v in range(0, min(wide, left - j * wide), lanes):
                    m = j * wide + v
                    finish(at + v, splace, gw + (r * c + m) * 9, left - m, spare)

    products, done = njit(products), njit(done)

    def chunks(
        task: I64, thread: I64, gy: F32, x: F32, sums: F32, gw: F32, own: F32, c: I64, k: I64,
        h: I64, w: I64, p: I64, q: I64, top: I64, left: I64, down: I64, across: I64, tiles: I64,
        depth: I64, parts: I64, kwide: I64, cblock: I64, cblocks: I64, blocks: I64, kplace: I64,
        cplace: I64, splace: I64, each: I64,
    ) -> None:  # fmt: skip
        zero = task - task  # of the same type as the others
        xs = own + thread * each
        gs = xs + PLACES * cplace
        spare = gs + PLACES * kplace
        mine = spare + 9 * lanes
        band = mine
        part = task // blocks
        i = (task - part * blocks) // cblocks
        k0 = i * kwide
        c0 = (task - part * blocks - i * cblocks) * cblock * wide
        kend, cend = min(k, k0 + kwide), min(c, c0 + cblock * wide)
        few = (cend - c0 + wide - 1) // wide
        count = (tiles + depth - 1) // depth
        if parts > 1:
            mine = sums + task * PLACES * splace
        elif count > 1:
            band = mine + PLACES * splace
        step = few if count > 1 else 1  # panels of C whose sums are there at a time
        begin, end = part * count // parts, (part + 1) * count // parts
        for chunk in range(begin, end):
            first = chunk * depth
            beyond = min(tiles, first + depth)
            for side in range(2):  # x and gy; one call, so that it is compiled once
                image, n, high, broad, size, up, before = x, c, h, w, 6, top, left
                m, stop, to, panel, by = c0, cend, xs, wide, cplace
                if side == 1:
                    image, n, high, broad, size, up, before = gy, k, p, q, 4, zero, zero
                    m, stop, to, panel, by = k0, kend, gs, kwide, kplace
                lane = zero
                while m < stop:
                    expand(
                        image, n, high, broad, size, up, before, down, across, first, beyond, m,
                        band, to + lane, panel, by,
                    )  # fmt: skip
                    m += lanes
                    lane += lanes
                    if lane == panel:
                        to = to + panel * depth
                        lane = zero
            for j in range(0, few, step):
                products(
                    gs, xs + j * depth * wide, mine, beyond - first, depth, kwide, kend - k0, step,
                    kplace, cplace, splace, chunk > begin,
                )  # fmt: skip
                if parts == 1 and chunk == end - 1:
                    m = c0 + j * wide
                    done(
                        mine, gw + (k0 * c + m) * 9, c, kend - k0, step, c - m, kwide, splace, spare
                    )

    return chunks


def make_join(dtype: str, rows: int, vectors: int, lanes: int) -> Callable[..., None]:
    """A task: the sums of all parts for `rows` of K and a panel of C, in order, transformed."""
    from gpuconv.kernels.cpu.vector import load, store

    finish = _finisher(lanes)
    wide = vectors * lanes

    def join(
        task: I64, thread: I64, sums: F32, gw: F32, own: F32, c: I64, k: I64, parts: I64,
        kwide: I64, cblock: I64, cblocks: I64, blocks: I64, splace: I64, each: I64,
    ) -> None:  # fmt: skip
        total = own + thread * each
        spare = total + PLACES * lanes
        high = (kwide + rows - 1) // rows
        block = task // (cblock * high)
        tile = task - block * cblock * high
        i, j = block // cblocks, tile // high
        top = (tile - j * high) * rows
        m = ((block - i * cblocks) * cblock + j) * wide
        for r in range(top, min(top + rows, kwide, k - i * kwide)):
            for v in range(0, min(wide, c - m), lanes):
                at = sums + block * PLACES * splace + (j * high * rows + r) * wide + v
                for place in range(PLACES):
                    value = load(at)
                    for part in range(1, parts):
                        value = value + load(at + part * blocks * PLACES * splace)
                    store(total + place * lanes, value)
                    at = at + splace
                to = gw + ((i * kwide + r) * c + m + v) * 9
                finish(total, lanes, to, c - m - v, spare)

    return join


@dataclass(frozen=True)
class Cut:
    """How a problem is cut into chunks, blocks and tiles of products: by its shapes alone."""

    lanes: int
    vectors: int  # of C, of a tile of products
    rows: int  # of K
    kwide: int  # channels of K of a block
    cblock: int  # panels of C of a block
    kblocks: int
    cblocks: int
    tiles: int
    depth: int  # tiles of a chunk
    parts: int  # ranges of chunks

    @property
    def wide(self) -> int:
        """Channels of a panel of C."""
        return self.vectors * self.lanes

    @property
    def high(self) -> int:
        """Tiles of products of a panel of K."""
        return -(-self.kwide // self.rows)

    @property
    def blocks(self) -> int:
        return self.kblocks * self.cblocks

    # Numbers from one place to the next, no multiple of 4096 bytes: of gy's, x's panels, of sums.

    @property
    def kplace(self) -> int:
        return self.kwide * self.depth + self.lanes

    @property
    def cplace(self) -> int:
        return self.cblock * self.wide * self.depth + self.lanes

    @property
    def splace(self) -> int:
        panels = 1 if self.depth == self.tiles else self.cblock
        return panels * self.high * self.rows * self.wide + self.lanes

    @property
    def each(self) -> int:
        """Numbers that a thread needs for itself, without the band."""
        sums = PLACES * self.splace if self.parts == 1 else 0
        return PLACES * (self.kplace + self.cplace) + sums + 9 * self.lanes


def cut(c: int, k: int, tiles: int) -> Cut:
    """How it is cut for `current()`."""
    lanes, many = current().vector // 4, current().registers == 32
    vectors = 2 if c > lanes else 1
    wide = vectors * lanes
    heights = ((13, 11) if many else (6,)) if vectors == 2 else ((16,) if many else (8,))
    kwide, rows = min(
        ((w, r) for w in (64, 48, 32, 16) for r in heights),
        key=lambda s: (-(-k // s[0]) * -(-s[0] // s[1]) * (s[1] + 1), -s[0]),
    )
    kblocks, cpanels = -(-k // kwide), -(-c // wide)
    cblock = min(cpanels, -(-CBLOCK // wide))
    if kblocks * -(-cpanels // cblock) < ENOUGH:
        cblock = min(cpanels, -(-CBLOCK // 2 // wide))
    cblocks = -(-cpanels // cblock)
    blocks = kblocks * cblocks
    panels = 4 * PLACES * (kwide + cblock * wide)  # bytes a tile
    if tiles <= LONGEST and (blocks >= ENOUGH or tiles <= 16):
        depth, parts = tiles, 1
    else:
        sums = 4 * PLACES * kwide * cblock * wide
        depth = min(LONGEST, max(8, (ROOM - sums) // panels))
        chunks = -(-tiles // depth)
        parts = 1
        while parts < PARTS and parts * blocks < ENOUGH and chunks >= 4 * parts:
            parts *= 2
        chunks = -(-chunks // parts) * parts
        depth = -(-tiles // chunks)
    return Cut(lanes, vectors, rows, kwide, cblock, kblocks, cblocks, tiles, depth, parts)


def supports(spec: Any, dtype: str, which: str) -> bool:
    """Gradients by weight of 3x3 kernels, stride 1, one group, in float32.

    Not of few channels or small planes: of 8 images of 512 channels at 7x7, the error was 5 times
    that of plain sums.
    """
    if spec.kernel != (3, 3) or which != "grad_weight" or dtype != "float32":
        return False
    if spec.stride != (1, 1) or spec.dilation != (1, 1) or spec.groups != 1:
        return False
    return bool(min(*spec.w_shape[:2]) >= LEAST and min(spec.y_shape[2:]) >= SMALLEST)


def _tiles(spec: Any) -> tuple[int, int, int]:
    """Tiles down and across an image, and of all."""
    n, _, p, q = spec.y_shape
    down, across = -(-p // 4), -(-q // 4)
    return down, across, n * down * across


def grad_weight(device: Any, spec: Any, dtype: str, last: bool) -> Callable[..., None]:
    """run(gy, x, gw)."""
    (_, c, h, w), (_, k, p, q) = spec.x_shape, spec.y_shape
    down, across, tiles = _tiles(spec)
    s = cut(c, k, tiles)
    shape = (("rows", s.rows), ("vectors", s.vectors), ("lanes", s.lanes))
    common = {
        "c": c, "k": k, "parts": s.parts, "kwide": s.kwide, "cblock": s.cblock,
        "cblocks": s.cblocks, "blocks": s.blocks, "splace": s.splace,
    }  # fmt: skip
    # A band, and a transposed block that reaches past its end.
    band = s.lanes * (6 * (4 * min(RUN, across) + 2) + s.lanes)
    each = _line(s.each + band)
    chunks = device.prepare(
        Kernel("winograd_weight_chunks", make_chunks, (("dtype", dtype), ("last", last), *shape)),
        s.parts * s.blocks, scratch=4 * each, h=h, w=w, p=p, q=q, top=spec.padding[0][0],
        left=spec.padding[1][0], down=down, across=across, tiles=tiles, depth=s.depth,
        kplace=s.kplace, cplace=s.cplace, each=each, **common,
    )  # fmt: skip
    if s.parts == 1:
        return lambda gy, x, gw: chunks(gy, x, None, gw)
    each = _line((PLACES + 9) * s.lanes)
    join = device.prepare(
        Kernel("winograd_weight_join", make_join, (("dtype", dtype), *shape)),
        s.blocks * s.cblock * s.high, scratch=4 * each, each=each, **common,
    )  # fmt: skip

    def run(gy: Any, x: Any, gw: Any) -> None:
        sums = device.empty((s.parts, s.blocks, PLACES, s.splace), dtype)
        chunks(gy, x, sums, gw)
        join(sums, gw)

    return run


def _line(numbers: int) -> int:
    """So many float32, rounded up to whole cache lines."""
    return -(-numbers // 16) * 16
