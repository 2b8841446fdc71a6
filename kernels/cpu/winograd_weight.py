"""The gradient by weight of a 3x3 convolution by Winograd's F(3x3, 4x4).

gw[k, c] is the correlation of x[:, c] with gy[:, k]. Cut gy into tiles of 4 x 4 pixels: each tile
and the 6 x 6 pixels of x that it meets give 3 x 3 numbers of gw, from 36 products instead of 144
(Lavin and Gray, arXiv 1509.09308, section 4):

    gw[k, c] = AT  sum over tiles [ (G gy[k] GT) * (BT x[c] B) ]  A

The sum in the middle is, for each of the 36 places in a tile, a matrix product K x tiles x C.

    x  --> bands: 4 or 6 rows of pixels, --> 36 x panels of C --\\            36 sums      gw
    gy --> lanes channels, zeros around --> 36 x panels of K ----> products --> K x C --> K, C, 3, 3

Vectors hold neighbouring channels; of NCHW arrays the bands are transposed. A chunk of tiles (at
most 64: its sums begin at zero, which keeps errors small) is transformed into panels:
[chunk][36 places][panel][tile][channels of the panel], and products of `rows` of K by `vectors`
of C add to sums that lie as [36 places][tile of products][row][vectors].

Few channels: a task takes a range of chunks, transforms them into the thread's own memory, and has
sums of its own; a second launch adds the tasks' sums in order. Many channels: the first launch
transforms everything, and a task of the second has a block of K and C, whose sums stay in its
thread's memory. Points 0, 2/3, -2/3, 3/2, -3/2 and infinity have the smallest errors of
those tried: about twice those of plain sums.
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
FEWEST = 4  # tiles; of less, errors are larger than 4 times plain arithmetic's
OWN = 700_000  # bytes of sums that a task of its own range of chunks may have
PARTS = 8  # ranges of chunks at most
KBLOCK, CBLOCK = 1, 2  # panels of a block of sums
SPREAD = 32  # tiles of `lanes` channels that a task transforms
ROOM = 1_500_000  # bytes that a thread may use of the second-level cache


def transforms() -> tuple[Matrix, Matrix, Matrix]:
    """(AT, G, BT) of F(3, 4), with G's divisors moved into AT, which is applied least."""
    at, g, bt = matrices(3, 4, POINTS)
    scale = [next(v for v in row if v) for row in g]
    return (
        tuple(tuple(v * s for v, s in zip(row, scale, strict=True)) for row in at),
        tuple(tuple(v / s for v in row) for row, s in zip(g, scale, strict=True)),
        bt,
    )


def _expander(size: int, last: bool, lanes: int) -> Any:
    """expand(...): the transformed tiles of `lanes` channels; `size` 6 for x, 4 for gy."""
    from numba import njit

    from gpuconv.kernels.cpu.transforms import both_sides, turn, turn_part
    from gpuconv.kernels.cpu.vector import load, load_part, splat, store

    transform = both_sides(transforms()[2] if size == 6 else transforms()[1])

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
        x: Any, c: int, h: int, w: int, top: int, left: int, down: int, across: int,
        first: int, end: int, channel: int, band: Any, to: Any, panel: int, step: int,
    ) -> None:  # fmt: skip
        """Tiles first .. end of `lanes` channels: tile t, place i to (t - first) * panel + i * step.

        x is (n, c, h, w); there are down x across tiles an image, the first begins at (-top, -left).
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
                transform(
                    band + 4 * j * lanes, wide * lanes, lanes, to + (tile - first + j) * panel, step
                )
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

    from gpuconv.kernels.cpu.vector import add_tile, outer, store_tile, tile

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
    """A task: a range of chunks, transformed and multiplied, into sums of its own."""
    expand_x, expand_gy = (_expander(size, last, lanes) for size in (6, 4))
    multiply = _multiplier(rows, vectors, lanes)
    wide = vectors * lanes

    def chunks(
        task: I64, thread: I64, gy: F32, x: F32, sums: F32, own: F32, c: I64, k: I64, h: I64,
        w: I64, p: I64, q: I64, top: I64, left: I64, down: I64, across: I64, tiles: I64,
        depth: I64, parts: I64, kwide: I64, kpanels: I64, cpanels: I64, kplace: I64, cplace: I64,
        splace: I64, each: I64,
    ) -> None:  # fmt: skip
        ours = own + thread * each
        xs = ours
        gs = xs + PLACES * cplace
        band = gs + PLACES * kplace
        high = (kwide + rows - 1) // rows
        count = (tiles + depth - 1) // depth
        begin = task * count // parts
        mine = sums + task * PLACES * splace
        for chunk in range(begin, (task + 1) * count // parts):
            first = chunk * depth
            end = min(tiles, first + depth)
            for i in range(0, c, lanes):
                panel = i // wide
                to = xs + panel * depth * wide + (i - panel * wide)
                expand_x(x, c, h, w, top, left, down, across, first, end, i, band, to, wide, cplace)
            for i in range(0, k, lanes):
                panel = i // kwide
                to = gs + panel * depth * kwide + (i - panel * kwide)
                expand_gy(gy, k, p, q, 0, 0, down, across, first, end, i, band, to, kwide, kplace)
            for place in range(PLACES):
                at = mine + place * splace
                for i in range(kpanels):
                    a = gs + place * kplace + i * depth * kwide
                    for j in range(cpanels):
                        b = xs + place * cplace + j * depth * wide
                        for r in range(high):
                            multiply(a + r * rows, kwide, b, end - first, at, chunk > begin)
                            at = at + rows * wide

    return chunks


def make_spread(dtype: str, last: bool, lanes: int, wide: int) -> Callable[..., None]:
    """A task: a chunk's tiles of some vectors of channels of x, or else of gy, transformed."""
    expand_x, expand_gy = (_expander(size, last, lanes) for size in (6, 4))

    def spread(
        task: I64, thread: I64, gy: F32, x: F32, gs: F32, xs: F32, own: F32, c: I64, k: I64,
        h: I64, w: I64, p: I64, q: I64, top: I64, left: I64, down: I64, across: I64, tiles: I64,
        depth: I64, group: I64, cgroups: I64, kgroups: I64, kwide: I64, kplace: I64, cplace: I64,
        each: I64,
    ) -> None:  # fmt: skip
        band = own + thread * each
        chunk = task // (cgroups + kgroups)
        part = task - chunk * (cgroups + kgroups)
        first = chunk * depth
        end = min(tiles, first + depth)
        if part < cgroups:
            base = xs + chunk * PLACES * cplace
            for i in range(part * group, min(c, (part + 1) * group), lanes):
                panel = i // wide
                to = base + panel * depth * wide + (i - panel * wide)
                expand_x(x, c, h, w, top, left, down, across, first, end, i, band, to, wide, cplace)
        else:
            part -= cgroups
            base = gs + chunk * PLACES * kplace
            for i in range(part * group, min(k, (part + 1) * group), lanes):
                panel = i // kwide
                to = base + panel * depth * kwide + (i - panel * kwide)
                expand_gy(gy, k, p, q, 0, 0, down, across, first, end, i, band, to, kwide, kplace)

    return spread


def make_blocks(dtype: str, rows: int, vectors: int, lanes: int) -> Callable[..., None]:
    """A task: a block of some panels of K and of C, multiplied over all chunks, and transformed."""
    multiply, finish = _multiplier(rows, vectors, lanes), _finisher(lanes)
    wide = vectors * lanes

    def blocks(
        task: I64, thread: I64, gs: F32, xs: F32, gw: F32, own: F32, c: I64, k: I64, tiles: I64,
        depth: I64, kwide: I64, kpanels: I64, cpanels: I64, kplace: I64, cplace: I64,
        kblock: I64, cblock: I64, splace: I64, each: I64,
    ) -> None:  # fmt: skip
        sums = own + thread * each
        spare = sums + PLACES * splace
        high = (kwide + rows - 1) // rows
        cblocks = (cpanels + cblock - 1) // cblock
        row = task // cblocks
        column = task - row * cblocks
        kfirst, cfirst = row * kblock, column * cblock
        kend, cend = min(kpanels, kfirst + kblock), min(cpanels, cfirst + cblock)
        for place in range(PLACES):
            for first in range(0, tiles, depth):
                chunk = first // depth
                count = min(depth, tiles - first)
                at = sums + place * splace
                for i in range(kfirst, kend):
                    a = gs + (chunk * PLACES + place) * kplace + i * depth * kwide
                    for j in range(cfirst, cend):
                        b = xs + (chunk * PLACES + place) * cplace + j * depth * wide
                        for r in range(high):
                            multiply(a + r * rows, kwide, b, count, at, first > 0)
                            at = at + rows * wide
        at = sums
        for i in range(kfirst, kend):
            for j in range(cfirst, cend):
                for r in range(high * rows):
                    n = i * kwide + r
                    if r < kwide and n < k:
                        for v in range(vectors):
                            m = j * wide + v * lanes
                            if m < c:
                                finish(at + v * lanes, splace, gw + (n * c + m) * 9, c - m, spare)
                    at = at + wide

    return blocks


def make_join(dtype: str, rows: int, vectors: int, lanes: int) -> Callable[..., None]:
    """A task: the sums of all parts for `rows` of K and a panel of C, in order, transformed."""
    from gpuconv.kernels.cpu.vector import load, store

    finish = _finisher(lanes)
    wide = vectors * lanes

    def join(
        task: I64, thread: I64, sums: F32, gw: F32, own: F32, c: I64, k: I64, parts: I64,
        kwide: I64, cpanels: I64, splace: I64, each: I64,
    ) -> None:  # fmt: skip
        total = own + thread * each
        spare = total + PLACES * lanes
        high = (kwide + rows - 1) // rows
        i = task // (cpanels * high)
        j = (task - i * cpanels * high) // high
        r = task - (i * cpanels + j) * high
        for s in range(rows):
            n = i * kwide + r * rows + s
            if r * rows + s < kwide and n < k:
                for v in range(vectors):
                    m = j * wide + v * lanes
                    if m < c:
                        at = sums + (task * rows + s) * wide + v * lanes
                        for place in range(PLACES):
                            value = load(at)
                            for part in range(1, parts):
                                value = value + load(at + part * PLACES * splace)
                            store(total + place * lanes, value)
                            at = at + splace
                        finish(total, lanes, gw + (n * c + m) * 9, c - m, spare)

    return join


@dataclass(frozen=True)
class Cut:
    """How a problem is cut into chunks, panels and tiles of products: by its shapes alone."""

    lanes: int
    vectors: int  # of C, of a tile of products
    rows: int  # of K
    kwide: int  # channels of a panel of K
    kpanels: int
    cpanels: int
    tiles: int
    depth: int  # tiles of a chunk
    own: bool  # each task its range of chunks

    @property
    def wide(self) -> int:
        return self.vectors * self.lanes

    @property
    def high(self) -> int:
        """Tiles of products of a panel of K."""
        return -(-self.kwide // self.rows)

    @property
    def chunks(self) -> int:
        return -(-self.tiles // self.depth)

    @property
    def kplace(self) -> int:
        """Numbers from one place to the next, of gy's panels: not a multiple of 4096 bytes."""
        return self.kpanels * self.kwide * self.depth + self.lanes

    @property
    def cplace(self) -> int:
        return self.cpanels * self.wide * self.depth + self.lanes

    def splace(self, kpanels: int, cpanels: int) -> int:
        """Numbers from one place to the next, of sums."""
        return kpanels * cpanels * self.high * self.rows * self.wide + self.lanes


def cut(c: int, k: int, tiles: int) -> Cut:
    """How it is cut for `current()`."""
    lanes, many = current().vector // 4, current().registers == 32
    vectors = 2 if c > lanes else 1
    heights = ((13, 11, 8) if many else (6,)) if vectors == 2 else ((16,) if many else (8,))
    kwide, rows = min(
        ((w, r) for w in (64, 48, 32, 16) for r in heights),
        key=lambda s: (-(-k // s[0]) * -(-s[0] // s[1]) * (s[1] + 1), -s[0]),
    )
    kpanels, cpanels = -(-k // kwide), -(-c // (vectors * lanes))
    channels = kpanels * kwide + cpanels * vectors * lanes
    sums = 4 * PLACES * kpanels * -(-kwide // rows) * rows * cpanels * vectors * lanes
    own = sums <= OWN
    most = min(LONGEST, max(8, (ROOM - sums) // (4 * PLACES * channels))) if own else LONGEST
    depth = -(-tiles // -(-tiles // most))
    return Cut(lanes, vectors, rows, kwide, kpanels, cpanels, tiles, depth, own)


def supports(spec: Any, dtype: str, which: str) -> bool:
    """Gradients by weight of 3x3 kernels, stride 1, one group, in float32; not of 3 tiles or less."""
    return (
        which == "grad_weight"
        and dtype == "float32"
        and spec.kernel == (3, 3)
        and spec.stride == spec.dilation == (1, 1)
        and spec.groups == 1
        and _tiles(spec)[2] >= FEWEST
    )


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
    lanes = s.lanes
    image = {
        "c": c, "k": k, "h": h, "w": w, "p": p, "q": q, "top": spec.padding[0][0],
        "left": spec.padding[1][0], "down": down, "across": across, "tiles": tiles,
    }  # fmt: skip
    shape = (("rows", s.rows), ("vectors", s.vectors), ("lanes", lanes))
    # A band, and a transposed block that reaches past its end.
    band = lanes * (6 * (4 * min(RUN, across) + 2) + lanes)
    common = {"depth": s.depth, "kwide": s.kwide, "kplace": s.kplace, "cplace": s.cplace}
    kind = (("dtype", dtype), ("last", last))
    if s.own:
        parts = min(PARTS, s.chunks)
        splace = s.splace(s.kpanels, s.cpanels)
        scratch = _line(PLACES * (s.kplace + s.cplace) + band)
        first = device.prepare(
            Kernel("winograd_weight_chunks", make_chunks, kind + shape), parts,
            scratch=4 * scratch, parts=parts, kpanels=s.kpanels, cpanels=s.cpanels,
            splace=splace, **common, **image, each=scratch,
        )  # fmt: skip
        spare = _line((PLACES + 9) * lanes)
        second = device.prepare(
            Kernel("winograd_weight_join", make_join, (kind[0], *shape)),
            s.kpanels * s.cpanels * s.high, scratch=4 * spare, c=c, k=k, parts=parts, kwide=s.kwide,
            cpanels=s.cpanels, splace=splace, each=spare,
        )  # fmt: skip

        def run(gy: Any, x: Any, gw: Any) -> None:
            sums = device.empty((parts, PLACES, splace), dtype)
            first(gy, x, sums)
            second(sums, gw)

        return run
    kblock, cblock = min(s.kpanels, KBLOCK), min(s.cpanels, CBLOCK)
    splace = s.splace(kblock, cblock)
    group = lanes * -(-SPREAD // s.depth)
    cgroups, kgroups = -(-c // group), -(-k // group)
    each = _line(band)
    spread = device.prepare(
        Kernel("winograd_weight_spread", make_spread, (*kind, ("lanes", lanes), ("wide", s.wide))),
        s.chunks * (cgroups + kgroups), scratch=4 * each, group=group, cgroups=cgroups,
        kgroups=kgroups, each=each, **common, **image,
    )  # fmt: skip
    each = _line(PLACES * splace + 9 * lanes)
    blocks = device.prepare(
        Kernel("winograd_weight_blocks", make_blocks, (kind[0], *shape)),
        -(-s.kpanels // kblock) * -(-s.cpanels // cblock), scratch=4 * each, c=c, k=k, tiles=tiles,
        kpanels=s.kpanels, cpanels=s.cpanels, kblock=kblock, cblock=cblock, splace=splace,
        each=each, **common,
    )  # fmt: skip

    def run(gy: Any, x: Any, gw: Any) -> None:
        gs = device.empty((s.chunks, PLACES, s.kplace), dtype)
        xs = device.empty((s.chunks, PLACES, s.cplace), dtype)
        spread(gy, x, gs, xs)
        blocks(gs, xs, gw)

    return run


def _line(numbers: int) -> int:
    """So many float32, rounded up to whole cache lines."""
    return -(-numbers // 16) * 16
