"""Gradient by weight of any 2-D convolution, directly: an outer product a pixel of the output.

    gw[k][j] = sum over pixels of gy[pixel][k] * x[pixel moved by j]        j = (c, r, s)

               k: `vectors` registers of gy at a pixel, side by side in memory
             +-----------------------+
     j:      |                       |      a tile of sums stays in registers while a unit of
     `rows`  |    rows x vectors     |      pixels goes by; x is read one number at a time, so it
     numbers |    registers of sums  |      may lie anyhow: any format, stride and dilation
     of x    |                       |
             +-----------------------+

Which number of x a row of a tile takes, and from which pixels, is in a table made with the plan.
With many channels the rows of a tile are channels of one tap (r, s), whose pixels that fall into
the padding are left out: x is read where it is. With few channels a tile mixes taps, and a padded x
is copied first. gy is copied into panels [pixel][vectors * lanes], transposed if it is NCHW, unless
it lies so. A *unit* is some rows of an image, or some images: its panels stay in the L2 cache, and
all tiles of a task pass over them, adding to sums that lie there too.

Tasks: chunks of units x groups x blocks of k x blocks of j, cut by the shapes alone. A task's sums
are transposed into gw; of several chunks, into as many copies of gw that a second launch adds up.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv.kernels.cpu import weight_lanes
from gpuconv.kernels.cpu.compiler import Kernel, current
from gpuconv.kernels.cpu.weight_lanes import unit
from gpuconv.kernels.cpu.weight_tiles import added_up, outer

SUMS = 3 << 18  # bytes of a task's sums
TASKS = 8  # at least, if there is work for them
PIECE = 1 << 14  # numbers of gw that a task of the second launch adds up


def supports(spec: Any, dtype: str, which: str) -> bool:
    """Any gradient by weight in two dimensions."""
    return which == "grad_weight" and spec.nd == 2 and dtype in ("float32", "float64")


def grad_weight(device: Any, spec: Any, dtype: str, last: bool) -> Callable[..., None]:
    """run(gy, x, gw): gy (N, K, P, Q), x (N, C, H, W), gw (K, C/groups, R, S)."""
    n = current().vector // np.dtype(dtype).itemsize
    batch, channels, h, w = spec.x_shape
    outputs, cg, r_all, s_all = spec.w_shape
    p_all, q_all = spec.y_shape[2:]
    kg = outputs // spec.groups
    vectors = -(-kg // n)
    rows, wide, narrow = _tile(vectors)
    share = kg / (vectors * n) * (0.6 if vectors == 1 else 0.8)
    if weight_lanes.fill(spec, dtype) * 0.75 > share:
        return weight_lanes.grad_weight(device, spec, dtype, last)
    mixed, copied = _mixes(spec, rows)
    panelled = last and not mixed and channels * np.dtype(dtype).itemsize > 64
    table, order = _table(spec, last, rows, mixed, copied, panelled, unit(spec))
    tiles, taps = len(table), r_all * s_all
    column, column_j = (1, rows) if mixed else (taps, rows * taps)  # tiles that stay together

    images, band, span = unit(spec)
    units = -(-batch // images) * -(-p_all // band) * -(-q_all // span)
    chunks, k_cut, j_cut = _cut(spec, n, units, vectors, tiles // column, column_j)
    k_each, columns_each = -(-vectors // k_cut), -(-(tiles // column) // j_cut)
    k_cut, j_cut = -(-vectors // k_each), -(-(tiles // column) // columns_each)
    k_pad = k_each + narrow - 1  # vectors
    packed = last is False or vectors > wide or bool(kg % n) or span < q_all or spec.groups > 1
    packed = packed or vectors not in (wide, narrow)
    # A block of k ends with one vector, which a wider tile would read on from, past the end of gy.
    packed = packed or (k_cut > 1 and narrow > 1)

    reach_h, reach_w = ((z - 1) * d + 1 for z, d in zip(spec.kernel, spec.dilation, strict=True))
    panels = (images * band * span * k_pad + n * wide) * n if packed else 0
    x_copy = 0
    if copied:
        lines, line = (band - 1) * spec.stride[0] + reach_h, (span - 1) * spec.stride[1] + reach_w
        x_copy = -(-images * channels * lines * line // 16) * 16
    elif panelled:
        lines, line = _lines(spec, (images, band, span))
        x_copy = -(-images * columns_each * lines * line * rows // 16) * 16
    at_lists = panels + x_copy + columns_each * column * rows * k_pad * n
    lists = 1 if mixed else taps
    own = at_lists + lists * (2 * images * band * span + 1)  # 4 bytes each, or more
    own = -(-own // 16) * 16
    p_inner, p_outer = int(table[:, rows].max()), int(table[:, rows + 1].min())

    key = (("dtype", dtype), ("rows", rows), ("wide", wide), ("narrow", narrow))
    compute = device.prepare(
        Kernel("weight", outer, key), chunks * spec.groups * k_cut * j_cut,
        scratch=own * np.dtype(dtype).itemsize, batch=batch, channels=channels, h=h, w=w,
        outputs=outputs, p_all=p_all, q_all=q_all, groups=spec.groups, taps=taps, last=int(last),
        stride_h=spec.stride[0], stride_w=spec.stride[1], top=spec.padding[0][0],
        left=spec.padding[1][0], reach_h=reach_h, reach_w=reach_w, images=images, band=band,
        span=span, chunks=chunks, k_cut=k_cut, j_cut=j_cut, k_each=k_each,
        j_each=columns_each * column_j, tiles_each=columns_each * column, tiles_all=tiles,
        packed=int(packed), copied=2 if panelled else int(copied), at_x=panels,
        at_sums=panels + x_copy,
        at_lists=at_lists, lists=lists, p_inner=p_inner, p_outer=p_outer, own=own,
    )  # fmt: skip
    size = outputs * cg * taps
    if chunks == 1:
        return lambda gy, x, gw: compute(x, gy, gw, table, order)
    piece = min(PIECE, -(-size // TASKS // n) * n)
    add = device.prepare(
        Kernel("weight_added", added_up, (("dtype", dtype),)), -(-size // piece),
        size=size, chunks=chunks, piece=piece,
    )  # fmt: skip

    def run(gy: Any, x: Any, gw: Any) -> None:
        part = device.empty((chunks, size), dtype)
        compute(x, gy, part, table, order)
        add(part, gw)

    return run


def _tile(vectors: int) -> tuple[int, int, int]:
    """(rows, vectors of a wide tile, of a narrow one) for outputs of so many vectors a pixel."""
    if current().registers < 32:
        return 6, 2, 1
    return (8, 1, 1) if vectors == 1 else (8, 3, 2)


def _mixes(spec: Any, rows: int) -> tuple[bool, bool]:
    """Whether tiles mix taps, because channels fill them badly; and then, whether x is copied."""
    channels, padded = spec.w_shape[1], any(map(any, spec.padding))
    filled = channels / (-(-channels // rows) * rows)
    mixed = filled < 0.85 and spec.w_shape[2:] != (1, 1) and (spec.groups == 1 or not padded)
    return mixed, mixed and padded


def _cut(
    spec: Any, n: int, units: int, vectors: int, columns: int, column_j: int
) -> tuple[int, int, int]:
    """(chunks, blocks of k, blocks of j): enough tasks, at the least estimated cost.

    Costs in nanoseconds: copies of gw written and read; gy copied once a block of j, x read once a
    block of k.
    """
    x, gy, gw = (np.prod(shape) for shape in (spec.x_shape, spec.y_shape, spec.w_shape))
    work = spec.macs / (5 * n)
    tasks = max(1, min(TASKS, work / 10000))
    best = None
    for k_cut in range(1, vectors + 1):
        for j_cut in range(1, min(columns, 64) + 1):
            k_each, j_each = -(-vectors // k_cut), -(-columns // j_cut)
            most = k_each * n * j_each * column_j * 4
            if most > SUMS and (k_each > 1 or j_each > 1):
                continue
            parts = -(-vectors // k_each) * -(-columns // j_each) * spec.groups
            chunks = int(min(units, max(1, -(-tasks // parts))))
            uneven = parts * k_each * j_each / (vectors * columns * spec.groups)
            count = chunks * parts
            cost = gw * (chunks if chunks > 1 else 0) * 1.0 + gy * j_cut * 0.5 + x * k_cut * 0.2
            cost += work * (uneven - 1) / 2 + work * max(0, 1 - count / tasks)
            if best is None or cost < best[0]:
                best = cost, (chunks, k_cut, j_cut)
    assert best is not None
    return best[1]


def _lines(spec: Any, of: Any) -> tuple[int, int]:
    """Rows and columns of x that are copied for the unit `of`; of 1x1, those that are used."""
    found = []
    for size, kernel, step, dilation in zip(
        of[1:], spec.kernel, spec.stride, spec.dilation, strict=True
    ):
        reach = (kernel - 1) * dilation + 1
        found.append(size if reach == 1 else (size - 1) * step + reach)
    return found[0], found[1]


@lru_cache(maxsize=4096)
def _table(
    spec: Any, last: bool, rows: int, mixed: bool, copied: bool, panelled: bool, of: Any
) -> tuple[np.ndarray, np.ndarray]:
    """For each tile, where its rows begin in x and its first and last rows and columns of y.

    And for each j = (c, r, s) the row of all tiles, one after the other, that has its sums.
    """
    cg, r_all, s_all = spec.w_shape[1:]
    (h, w), taps = spec.x_shape[2:], r_all * s_all
    j = np.arange(cg * taps)
    c, r, s = j // taps, j // s_all % r_all, j % s_all
    order = j if mixed else (c // rows * taps + j % taps) * rows + c % rows
    tiles = -(-len(j) // rows) if mixed else -(-cg // rows) * taps
    y, x = r * spec.dilation[0], s * spec.dilation[1]
    if not copied:
        y, x = y - spec.padding[0][0], x - spec.padding[1][0]
        lines, line = h, w
    else:
        band, span = of[1:]
        lines = (band - 1) * spec.stride[0] + (r_all - 1) * spec.dilation[0] + 1
        line = (span - 1) * spec.stride[1] + (s_all - 1) * spec.dilation[1] + 1
    offsets = (y * line + x) * spec.x_shape[1] + c if last else (c * lines + y) * line + x
    if panelled:
        lines, line = _lines(spec, of)
        y, x = r * spec.dilation[0], s * spec.dilation[1]
        size = of[0] * lines * line * rows
        offsets = c // rows * size + (y * line + x) * rows + c % rows
    table = np.zeros((tiles * rows, 1), np.int64)
    table[:] = offsets[-1] if mixed else 0
    table[order, 0] = offsets
    if not mixed:  # rows without a channel repeat the tap's first
        spare = np.setdiff1d(np.arange(tiles * rows), order)
        table[spare, 0] = table[spare // rows * rows, 0]
    table = table.reshape(tiles, rows)
    limits = np.tile(np.array([0, spec.y_shape[2], 0, spec.y_shape[3]]), (tiles, 1))
    if not mixed:
        for axis in range(2):
            tap = np.arange(tiles) % taps
            tap = tap // s_all if axis == 0 else tap % s_all
            moved = tap * spec.dilation[axis] - spec.padding[axis][0]
            step, size = spec.stride[axis], spec.x_shape[2 + axis]
            limits[:, 2 * axis] = np.maximum(0, -(moved // step))
            limits[:, 2 * axis + 1] = np.minimum(
                spec.y_shape[2 + axis], (size - 1 - moved) // step + 1
            )
    return np.ascontiguousarray(np.hstack([table, limits])), order.astype(np.int32)
