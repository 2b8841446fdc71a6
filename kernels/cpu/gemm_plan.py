"""Which tile, which blocks and how many parts a matrix product is cut into; its launches.

A model of the cost in cycles of one core, with constants measured on one machine, looks at the
shapes only: never at the number of threads, on which results would then depend.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gpuconv.kernels.cpu.compiler import Isa, current
from gpuconv.kernels.cpu.gemm import (
    IN_PLACE,
    PIXELS,
    ROWS,
    TURNED,
    TURNED_PIXELS,
    add_kernel,
    multiply_kernel,
)  # fmt: skip

Array = Any
Run = Callable[..., None]

# (rows, vectors) by registers. Sums, one row of B and a number of A are in registers at once.
TILES = {
    32: ((8, 3), (14, 2), (6, 4), (7, 3), (4, 4), (1, 4), (14, 1)),
    16: ((6, 2), (4, 3), (1, 4), (4, 1)),
}
CUTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
SMALL = 100_000  # multiply-adds below which one thread is as quick
TILE = 24 << 10  # bytes of a tile's numbers of A: half of a first-level cache
NEAR = 1 << 20  # bytes of A and C that a task has between its blocks of k
BLOCK = 640 << 10  # bytes of the packed panels of a task: a third of a second-level cache
# Below so many multiply-adds, plain code adds up few numbers in a row; `exact` products so many.
FEW = 1 << 22
CHAIN = 64


@dataclass(frozen=True)
class Product:
    """C[i, j] = sum over l of A[i, l] B[l, j], at offsets in elements:

    A i * a_row + l * a_k, B l * b_k + j * b_n, C i * c_row + j; one of b_k and b_n is 1. Number g
    of `batch` products, or of `images` terms, lies g * a_image, ... further on. A bias belongs to
    rows or columns of C. `turned`: C is written as C[j, i], with j * c_row + i.
    """

    m: int
    n: int
    k: int
    a_row: int
    a_k: int
    b_k: int
    b_n: int
    c_row: int
    a_image: int = 0
    b_image: int = 0
    c_image: int = 0
    batch: int = 1
    images: int = 1
    bias: int = 0
    relu: bool = False
    turned: bool = False
    exact: bool = False  # whether sums of small products are kept as exact as plain code's
    spread: int = 0  # elements of C (of a row of C) of which the tables leave some out: zeros
    # Which tables of offsets come with the arrays, in the place of a_row, b_k or b_n, c_row, 1.
    a_lines: bool = False
    b_table: str = ""  # "k", "n"
    c_lines: bool = False
    c_columns: bool = False

    @property
    def macs(self) -> int:
        return self.m * self.n * self.k * self.batch * self.images


@dataclass(frozen=True)
class Cut:
    """A tile, and the blocks of tasks."""

    rows: int
    vectors: int
    m_block: int
    n_block: int
    k_block: int
    parts: int
    cost: float = 0.0


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _step(rows: int, vectors: int) -> float:
    """Cycles for one k of a tile: two multiply-adds or loads a cycle, and their latency."""
    return max(rows * vectors / 2, (rows + vectors) / 2, 4.0) + 0.6


def cut(p: Product, dtype: str) -> Cut:
    """The quickest, by the model."""
    return _cut(p, dtype, current())


@lru_cache(maxsize=4096)
def _cut(p: Product, dtype: str, isa: Isa) -> Cut:
    lanes = isa.vector // (4 if dtype == "float32" else 8)
    tiles = [(r, v) for r, v in TILES[isa.registers] if r <= p.m]
    best = None
    for rows, vectors in tiles:
        wide = vectors * lanes
        tall, broad = _up(p.m, rows), _up(p.n, wide)
        work = tall * broad * _step(rows, vectors)
        if rows > 8 and _aligned(p, dtype):
            work *= 1.1
        if best is None or work < best[0]:
            best = work, rows, vectors
    assert best is not None
    return _blocks(p, dtype, lanes, best[1], best[2])


def _aligned(p: Product, dtype: str) -> bool:
    """Rows of A a multiple of 2 KiB apart: many of them together do not fit into a cache's sets."""
    return p.a_k == 1 and p.a_row * (4 if dtype == "float32" else 8) % 2048 == 0


def _blocks(p: Product, dtype: str, lanes: int, rows: int, vectors: int) -> Cut:
    """The best blocks for a tile. Where A is packed, smaller ones of k leave room for more of C."""
    least = _up(p.k, max(TILE // (rows * (4 if dtype == "float32" else 8)), lanes))
    tried = (1,) if p.a_k == 1 or p.macs < SMALL else (1, 2, 4)
    cuts = [_with_k(p, dtype, lanes, rows, vectors, least * more) for more in tried]
    return min(cuts, key=lambda c: c.cost)


def _with_k(p: Product, dtype: str, lanes: int, rows: int, vectors: int, k_blocks: int) -> Cut:
    size = 4 if dtype == "float32" else 8
    wide = vectors * lanes
    if p.exact and p.macs < FEW:
        k_blocks = max(k_blocks, _up(p.k, CHAIN))
    k_block = _up(_up(p.k, k_blocks), lanes) * lanes
    k_blocks = _up(p.k, k_block)
    tall, broad, steps = _up(p.m, rows), _up(p.n, wide), k_blocks * p.images
    if p.macs < SMALL:
        return Cut(rows, vectors, tall * rows, broad * wide, k_block, 1)
    pack = (0.8 if p.b_k == 1 and p.b_n != 1 else 0.5) if not p.b_table else 1.3
    best: Cut | None = None
    whole = p.batch > 1 or p.c_lines or p.c_columns
    for parts in (1,) if whole else (1, 2, 4, 8, 16, 32):
        if parts > steps:
            break
        depth = _up(steps, parts) * min(k_block, p.k)
        for n_tiles in _sizes(broad, BLOCK // (k_block * wide * size)):
            for m_tiles in _sizes(tall, NEAR // ((k_block + n_tiles * wide) * rows * size)):
                tasks = _up(tall, m_tiles) * _up(broad, n_tiles) * parts * p.batch
                one = m_tiles * n_tiles * (_step(rows, vectors) * depth + 60)
                one += pack * depth * n_tiles * wide  # packing
                one += 0.4 * depth * m_tiles * rows * size / 4  # bringing A near
                again = _up(steps, parts) - 1
                one += 0.1 * again * m_tiles * rows * n_tiles * wide  # adding to C
                one += 600
                total = sum(_up(tasks, t) * t for t in (2, 2, 4)) / 3 * one
                if parts > 1 or p.turned:
                    total += 8000 + p.m * p.n * (parts + 1) * 0.4
                if best is None or total < best.cost:
                    best = Cut(rows, vectors, m_tiles * rows, n_tiles * wide, k_block, parts, total)
    assert best is not None
    return best


def _sizes(number: int, most: int) -> list[int]:
    """Tiles of a block, where `number` are cut into equal blocks of at most `most`, or one each."""
    least = _up(number, max(most, 1))
    return sorted({_up(number, min(cuts, number)) for cuts in (least, *CUTS) if cuts >= least})


def product(device: Any, p: Product, dtype: str) -> Run:
    """run(a, b, c, bias, add, *tables): tables for those of `p`, in order, with one entry more.

    bias and add are None where there is none. `add` lies as C does.
    """
    return _product(device, p, dtype, cut(p, dtype))


def _product(device: Any, p: Product, dtype: str, c: Cut) -> Run:
    size = 4 if dtype == "float32" else 8
    lanes = current().vector // size
    wide = c.vectors * lanes
    m_blocks, n_blocks, k_blocks = _up(p.m, c.m_block), _up(p.n, c.n_block), _up(p.k, c.k_block)
    by_workspace = c.parts > 1 or p.turned
    lead, a_size = 0, 0
    if p.a_lines or (c.rows > 8 and _aligned(p, dtype) and c.n_block > 2 * wide):
        lead = c.k_block + lanes
        a_size = lead * (c.m_block + c.rows)
    elif p.a_k != 1 and p.a_row == 1 and c.n_block > wide:
        lead = 1
        a_size = _up(c.m_block, c.rows) * c.rows * c.k_block + lanes
    how = TURNED if p.b_n != 1 else ROWS
    if p.b_table == "n":
        how = PIXELS
    elif p.b_table == "k" and p.b_n != 1:
        how = TURNED_PIXELS
    elif p.b_n == 1 and not p.b_table and _up(p.m, c.rows) <= 2 and p.n % wide == 0:
        how = IN_PLACE
    panel = 0 if how == IN_PLACE else c.k_block * c.n_block + lanes * wide
    own = (c.rows + 1) * wide + panel + a_size
    own = _up(own, lanes) * lanes
    several = p.macs >= SMALL
    run = device.prepare(
        multiply_kernel(dtype, c.rows, c.vectors),
        m_blocks * n_blocks * c.parts * p.batch,
        scratch=own * size + 64,
        several=several,
        m=p.m, n=p.n, k=p.k, a_row=p.a_row, a_k=p.a_k, a_image=p.a_image, b_k=p.b_k, b_n=p.b_n,
        b_image=p.b_image, c_row=p.n if by_workspace else p.c_row, c_image=p.c_image,
        images=p.images, m_block=c.m_block, n_block=c.n_block, k_block=c.k_block,
        m_blocks=m_blocks, n_blocks=n_blocks, k_blocks=k_blocks, parts=c.parts,
        part_size=p.m * p.n if by_workspace else 0, lead=lead, how=how,
        kind=0 if by_workspace else p.bias, relu=0 if by_workspace else int(p.relu),
        spread=p.spread, panel_size=panel, own=own,
    )  # fmt: skip
    tables = (p.a_lines, bool(p.b_table), p.c_lines, p.c_columns)

    def places(given: tuple[Array, ...]) -> list[Array | None]:
        left = iter(given)
        return [next(left) if here else None for here in tables]

    if not by_workspace:

        def direct(
            a: Array, b: Array, y: Array, bias: Array | None, add: Array | None, *given: Array
        ) -> None:
            run(a, b, y, bias, add, *places(given))

        return direct

    block = max(_up(16384, p.n * c.parts * lanes), 1) * lanes
    add_up = device.prepare(
        add_kernel(dtype),
        _up(p.m, block),
        scratch=(2 * lanes * lanes) * size + 64,
        several=several and p.m * p.n * c.parts > 32768,
        parts=c.parts, m=p.m, n=p.n, c_row=1 if p.turned else p.c_row,
        c_column=p.c_row if p.turned else 1, kind=p.bias, relu=int(p.relu), block=block,
        own=2 * lanes * lanes,
    )  # fmt: skip

    def in_parts(
        a: Array, b: Array, y: Array, bias: Array | None, add: Array | None, *given: Array
    ) -> None:
        work = device.empty((c.parts, p.m, p.n), dtype)
        run(a, b, work, None, None, *places(given))
        add_up(work, y, bias, add)

    return in_parts
