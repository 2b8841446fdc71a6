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
from functools import cache
from typing import Any

import numpy as np

from gpuconv.kernels.cpu import weight_lanes
from gpuconv.kernels.cpu.compiler import I32P, I64, I64P, Data, Kernel, current

SUMS = 3 << 18  # bytes of a task's sums
PIXELS = 192  # of a unit, about
TASKS = 8  # at least, if there is work for them
PIECE = 1 << 14  # numbers of gw that a task of the second launch adds up


def _outer(dtype: str, rows: int, wide: int, narrow: int) -> Callable[..., None]:
    from numba import njit

    from gpuconv.kernels.cpu.square import (
        rows_at, square, square_part, square_rows, transposed,
    )  # fmt: skip
    from gpuconv.kernels.cpu.vector import (
        add_tile, address, lanes, load, load_part, outer_rows, pointer, splat, store, store_part, store_tile,
        store_tile_part, tile,
    )  # fmt: skip

    n = lanes(dtype)
    entry = rows + 4

    def swept(vectors: int) -> Any:
        columns = vectors * n

        @njit(inline="always")
        def sweep(x, starts, g, pitch, pixels, count, sums_at, add):
            """Pass a tile, whose rows start at x + starts[row], over a list of pixels."""
            pointers = rows_at(x, starts, rows)
            sums = tile(x, rows, vectors)
            for i in range(count):
                sums = outer_rows(sums, pointers, pixels[2 * i], g + pixels[2 * i + 1] * pitch)
            if add != 0:
                sums = add_tile(sums, sums_at, columns)
            store_tile(sums_at, columns, sums)

        return sweep

    sweep_wide, sweep_narrow = swept(wide), swept(narrow)

    @njit(inline="always")
    def block(left):
        """How many of the `left` vectors the next block takes: a last one alone is avoided."""
        if left >= wide and (left - wide != 1 or narrow == 1):
            return wide
        return narrow

    @njit(inline="always")
    def copy(to, start, count):
        for i in range(0, count - n + 1, n):
            store(to + i, load(start + i))
        done = count - count % n
        store_part(to + done, load_part(start + done, count - done), count - done)

    @njit(inline="always")
    def clear(to, count):
        zero = splat(to, 0.0)
        for i in range(0, count - n + 1, n):
            store(to + i, zero)
        done = count - count % n
        store_part(to + done, zero, count - done)

    @njit(inline="always")
    def panel(to, kw, start, step, channels, count):
        """`count` pixels of up to n `channels`, `step` apart, transposed to to[pixel * kw]."""
        for i in range(0, count - n + 1, n):
            store_tile(to + i * kw, kw, transposed(square(start + i, step, channels)))
        done = count - count % n
        if done < count:
            rest = square_part(start + done, step, channels, count - done)
            store_tile(to + done * kw, kw, transposed(rest))

    def weight(
        task: I64, thread: I64, x: Data, gy: Data, part: Data, table: I64P, order: I32P,
        scratch: Data, batch: I64, channels: I64, h: I64, w: I64, outputs: I64, p_all: I64,
        q_all: I64, groups: I64, taps: I64, last: I64, stride_h: I64, stride_w: I64, top: I64,
        left: I64, reach_h: I64, reach_w: I64, images: I64, band: I64, span: I64, chunks: I64,
        k_cut: I64, j_cut: I64, k_each: I64, j_each: I64, tiles_each: I64, tiles_all: I64,
        packed: I64, copied: I64, at_x: I64, at_sums: I64, at_lists: I64,
        lists: I64, p_inner: I64, p_outer: I64, own: I64,
    ) -> None:  # fmt: skip
        j_part = task % j_cut
        rest = task // j_cut
        k_part = rest % k_cut
        rest = rest // k_cut
        group = rest % groups
        chunk = rest // groups

        kg, cg = outputs // groups, channels // groups
        j_all = cg * taps
        vectors_all = (kg + n - 1) // n
        v_first = k_part * k_each
        v_end = min(v_first + k_each, vectors_all)
        tile_first = j_part * tiles_each
        tile_end = min(tile_first + tiles_each, tiles_all)
        row_first = tile_first * rows
        sum_rows = tiles_each * rows
        panels = scratch + thread * own
        x_copy = panels + at_x
        sums_at = panels + at_sums
        lengths = pointer(order, address(panels + at_lists))
        pixels_at = lengths + lists
        listed = -2

        bands, spans = (p_all + band - 1) // band, (q_all + span - 1) // span
        units = (batch + images - 1) // images * bands * spans
        first = chunk * units // chunks
        for unit in range(first, (chunk + 1) * units // chunks):
            q0 = unit % spans * span
            width = min(span, q_all - q0)
            image = unit // spans
            p0 = image % bands * band
            height = min(band, p_all - p0)
            image = image // bands * images
            count = min(images, batch - image)
            pixels = height * width
            k0 = group * kg + v_first * n

            # gy into panels, a block of vectors after the other
            g, pitch = gy + ((image * p_all + p0) * q_all + q0) * outputs + k0, outputs
            if packed != 0:
                g = panels
                runs, length = height, width
                if width == q_all:
                    runs, length = 1, pixels
                v = v_first
                while v < v_end:
                    size = block(v_end - v)
                    kw = size * n
                    base = panels + (v - v_first) * n * count * pixels
                    for i in range(count * runs):
                        at = (image + i // runs) * p_all * q_all + (p0 + i % runs) * q_all + q0
                        to = base + i * length * kw
                        for u in range(v, v + size):
                            k = group * kg + u * n
                            real = min(n, kg - u * n)
                            beside = to + (u - v) * n
                            if u >= v_end:
                                for pixel in range(length):
                                    store(beside + pixel * kw, splat(gy, 0.0))
                            elif last == 0:
                                start = (image + i // runs) * outputs * p_all * q_all
                                start += k * p_all * q_all + (p0 + i % runs) * q_all + q0
                                panel(beside, kw, gy + start, p_all * q_all, real, length)
                            else:
                                for pixel in range(length):
                                    value = load_part(gy + (at + pixel) * outputs + k, real)
                                    store(beside + pixel * kw, value)
                    v += size

            # x, with its padding, if tiles mix taps
            if last == 0:
                step_x, step_y, image_x = stride_w, stride_h * w, channels * h * w
                origin = x + (image * channels + group * cg) * h * w
            else:
                step_x, step_y, image_x = stride_w * channels, stride_h * w * channels, h * w * channels
                origin = x + image * h * w * channels + group * cg
            origin = origin + (p0 * step_y + q0 * step_x)
            if copied == 1:
                planes, each = channels, 1
                if last != 0:
                    planes, each = 1, channels
                lines = (height - 1) * stride_h + reach_h
                line = ((width - 1) * stride_w + reach_w) * each
                full = ((span - 1) * stride_w + reach_w) * each
                full_lines = (band - 1) * stride_h + reach_h
                x0 = (q0 * stride_w - left) * each
                before = max(0, min(-x0, line))
                inside = max(0, min(w * each - x0, line) - before)
                for i in range(count * planes):
                    start = x + (image * planes + i) * h * w * each + x0 + before
                    for y in range(lines):
                        row = p0 * stride_h - top + y
                        to = x_copy + (i * full_lines + y) * full
                        clear(to, line)
                        if row >= 0 and row < h:
                            copy(to + before, start + row * w * each, inside)
                origin = x_copy
                step_x, step_y, image_x = stride_w * each, stride_h * full, planes * full_lines * full

            if copied == 2:
                y_step, x_step = 1, 1
                if reach_h == 1:
                    y_step = stride_h
                if reach_w == 1:
                    x_step = stride_w
                step_x = stride_w // x_step * rows
                line = ((span - 1) * stride_w + reach_w + x_step - 1) // x_step * rows
                step_y = stride_h // y_step * line
                lines = ((band - 1) * stride_h + reach_h + y_step - 1) // y_step
                image_x = lines * line
                x0, y0 = q0 * stride_w - left, p0 * stride_h - top
                c_first = tile_first // taps
                for i in range(count):
                    for y in range((height - 1) * stride_h // y_step + reach_h):
                        row = y0 + y * y_step
                        if row >= 0 and row < h:
                            start = x + ((image + i) * h + row) * w * channels + group * cg
                            for c in range(c_first, tile_end // taps):
                                many = min(rows, cg - c * rows)
                                to = x_copy + ((c - c_first) * images + i) * image_x + y * line
                                for q in range((width - 1) * stride_w // x_step + reach_w):
                                    col = x0 + q * x_step
                                    if col >= 0 and col < w:
                                        value = load_part(start + (col * channels + c * rows), many)
                                        store_part(to + q * rows, value, many)
                origin = x_copy + -c_first * images * image_x

            # the pixels that each tap sees, if they are others than in the last unit
            place = -1
            if p0 < p_inner or p0 + height > p_outer or spans > 1:
                place = unit % (bands * spans)
            if place != listed or count != images or height != band or unit == first:
                for l in range(lists):
                    here = table + l * entry
                    q1, q2 = max(here[rows + 2] - q0, 0), min(here[rows + 3] - q0, width)
                    m = 0
                    to = pixels_at + l * 2 * images * band * span
                    for i in range(count):
                        for p in range(max(here[rows] - p0, 0), min(here[rows + 1] - p0, height)):
                            pixel = (i * height + p) * width
                            at = i * image_x + p * step_y
                            for q in range(q1, q2):
                                to[m] = at + q * step_x
                                to[m + 1] = pixel + q
                                m += 2
                    lengths[l] = m // 2
                listed = place
                if count != images or height != band:
                    listed = -2

            v = v_first
            while v < v_end:
                size = block(v_end - v)
                if packed != 0:
                    pitch = size * n
                    g = panels + (v - v_first) * n * count * pixels
                into = sums_at + (v - v_first) * n * sum_rows
                for t in range(tile_first, tile_end):
                    l = t % lists
                    pixels_l = pixels_at + l * 2 * images * band * span
                    starts, add = table + t * entry, unit - first
                    if size == wide:
                        sweep_wide(origin, starts, g, pitch, pixels_l, lengths[l], into, add)
                    else:
                        sweep_narrow(origin, starts, g, pitch, pixels_l, lengths[l], into, add)
                    into = into + rows * n * size
                v += size

        j_first = j_part * j_each
        j_end = min(j_first + j_each, j_all)
        v = v_first
        while v < v_end:
            size = block(v_end - v)
            base = sums_at + (v - v_first) * n * sum_rows
            for u in range(v, min(v + size, v_end)):
                to = part + ((chunk * groups + group) * kg + u * n) * j_all
                real = kg - u * n
                for j in range(j_first, j_end, n):
                    many = min(n, j_end - j)
                    some = square_rows(base + (u - v) * n, order + j, row_first, size * n, many)
                    if real >= n and many == n:
                        store_tile(to + j, j_all, transposed(some))
                    else:
                        store_tile_part(to + j, j_all, transposed(some), real, many)
            v += size

    # Until the compiler makes a kernel's body internal: one symbol for each set of constants.
    weight.__qualname__ += f"_{current().name}_{dtype}_{rows}_{wide}_{narrow}"
    return weight


def _added(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, store, store_part

    n = lanes(dtype)

    def added(
        task: I64, thread: I64, part: Data, gw: Data, size: I64, chunks: I64, piece: I64
    ) -> None:
        end = min((task + 1) * piece, size)
        for i in range(task * piece, end, n):
            if i + n <= end:
                value = load(part + i)
                for chunk in range(1, chunks):
                    value = value + load(part + (chunk * size + i))
                store(gw + i, value)
            else:
                value = load_part(part + i, end - i)
                for chunk in range(1, chunks):
                    value = value + load_part(part + (chunk * size + i), end - i)
                store_part(gw + i, value, end - i)

    added.__qualname__ += f"_{current().name}_{dtype}"
    return added


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
    table, order = _table(spec, last, rows, mixed, copied, panelled)
    tiles, taps = len(table), r_all * s_all
    column, column_j = (1, rows) if mixed else (taps, rows * taps)  # tiles that stay together

    images, band, span = _unit(spec)
    units = -(-batch // images) * -(-p_all // band) * -(-q_all // span)
    chunks, k_cut, j_cut = _cut(spec, n, units, vectors, tiles // column, column_j)
    k_each, columns_each = -(-vectors // k_cut), -(-(tiles // column) // j_cut)
    k_cut, j_cut = -(-vectors // k_each), -(-(tiles // column) // columns_each)
    k_pad = k_each + narrow - 1  # vectors
    packed = last is False or vectors > wide or bool(kg % n) or span < q_all or spec.groups > 1
    packed = packed or vectors not in (wide, narrow)

    reach_h, reach_w = ((z - 1) * d + 1 for z, d in zip(spec.kernel, spec.dilation, strict=True))
    panels = (images * band * span * k_pad + n * wide) * n if packed else 0
    x_copy = 0
    if copied:
        lines, line = (band - 1) * spec.stride[0] + reach_h, (span - 1) * spec.stride[1] + reach_w
        x_copy = -(-images * channels * lines * line // 16) * 16
    elif panelled:
        lines, line = _lines(spec)
        x_copy = -(-images * columns_each * lines * line * rows // 16) * 16
    at_lists = panels + x_copy + columns_each * column * rows * k_pad * n
    lists = 1 if mixed else taps
    own = at_lists + lists * (2 * images * band * span + 1)  # 4 bytes each, or more
    own = -(-own // 16) * 16
    p_inner, p_outer = int(table[:, rows].max()), int(table[:, rows + 1].min())

    key = (("dtype", dtype), ("rows", rows), ("wide", wide), ("narrow", narrow))
    compute = device.prepare(
        Kernel("weight", _outer, key), chunks * spec.groups * k_cut * j_cut,
        scratch=own * np.dtype(dtype).itemsize, batch=batch, channels=channels, h=h, w=w,
        outputs=outputs, p_all=p_all, q_all=q_all, groups=spec.groups, taps=taps, last=int(last),
        stride_h=spec.stride[0], stride_w=spec.stride[1], top=spec.padding[0][0],
        left=spec.padding[1][0], reach_h=reach_h, reach_w=reach_w, images=images, band=band,
        span=span, chunks=chunks, k_cut=k_cut, j_cut=j_cut, k_each=k_each,
        j_each=columns_each * column_j, tiles_each=columns_each * column, tiles_all=tiles,
        packed=int(packed), copied=2 if panelled else int(copied), at_x=panels, at_sums=panels + x_copy,
        at_lists=at_lists, lists=lists, p_inner=p_inner, p_outer=p_outer, own=own,
    )  # fmt: skip
    size = outputs * cg * taps
    if chunks == 1:
        return lambda gy, x, gw: compute(x, gy, gw, table, order)
    piece = min(PIECE, -(-size // TASKS // n) * n)
    add = device.prepare(
        Kernel("weight_added", _added, (("dtype", dtype),)), -(-size // piece),
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


def _unit(spec: Any) -> tuple[int, int, int]:
    """(images, rows, columns) of the pixels that tiles pass over at a time."""
    batch, (p_all, q_all) = spec.y_shape[0], spec.y_shape[2:]
    if p_all * q_all <= PIXELS:
        each = max(1, min(batch, PIXELS // (p_all * q_all)))
        return -(-batch // -(-batch // each)), p_all, q_all
    spans = -(-q_all // (2 * PIXELS))
    span = -(-q_all // spans)
    bands = -(-p_all // max(1, PIXELS // span))
    return 1, -(-p_all // bands), span


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


def _lines(spec: Any) -> tuple[int, int]:
    """Rows and columns of x that are copied for a unit; of 1x1, those that are used."""
    found = []
    for size, kernel, step, dilation in zip(
        _unit(spec)[1:], spec.kernel, spec.stride, spec.dilation, strict=True
    ):
        reach = (kernel - 1) * dilation + 1
        found.append(size if reach == 1 else (size - 1) * step + reach)
    return found[0], found[1]


@cache
def _table(
    spec: Any, last: bool, rows: int, mixed: bool, copied: bool, panelled: bool
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
        band, span = _unit(spec)[1:]
        lines = (band - 1) * spec.stride[0] + (r_all - 1) * spec.dilation[0] + 1
        line = (span - 1) * spec.stride[1] + (s_all - 1) * spec.dilation[1] + 1
    offsets = (y * line + x) * spec.x_shape[1] + c if last else (c * lines + y) * line + x
    if panelled:
        lines, line = _lines(spec)
        y, x = r * spec.dilation[0], s * spec.dilation[1]
        size = _unit(spec)[0] * lines * line * rows
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
