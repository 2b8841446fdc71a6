"""Gradient by weight with vectors of x: for few outputs, which would fill vectors of gy badly.

As in `weight`, an outer product a pixel, but the other way round: gy is read one number at a time,
where it lies, and x as vectors. For that x is copied, a unit of pixels at a time, to
[row][column][channel] with its padding, so that channels and then taps s of a row r of the kernel
follow each other: a vector is a stretch of one such run of S * C numbers.

                run of r = 0        run of r = 1        ...
               +------+------+     +------+------+
      k: rows  |  v0  |  v1  |     |  v2  |  v3  |              a tile: rows x vectors registers
               +------+------+     +------+------+

Tasks: chunks of units x blocks of k. Each leaves its tiles as they are; a second launch adds up the
chunks and puts their numbers in the order of gw.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.kernels.cpu.compiler import I32P, I64, I64P, Data, Kernel, current

TASKS = 8


def _lanes(dtype: str, rows: int, vectors: int) -> Callable[..., None]:
    from numba import njit

    from gpuconv.kernels.cpu.square import (
        rows_from,
        square,
        square_part,
        transposed,
    )  # fmt: skip
    from gpuconv.kernels.cpu.tile import add_tile, outer_rows, store_tile, store_tile_part, tile
    from gpuconv.kernels.cpu.vector import (
        address,
        lanes,
        load,
        load_part,
        pointer,
        splat,
        store,
        store_part,
    )

    n = lanes(dtype)
    columns = vectors * n

    @njit(inline="always")
    def copy(to: Any, start: Any, count: Any) -> None:
        for i in range(0, count - n + 1, n):
            store(to + i, load(start + i))
        done = count - count % n
        store_part(to + done, load_part(start + done, count - done), count - done)

    @njit(inline="always")
    def clear(to: Any, count: Any) -> None:
        zero = splat(to, 0.0)
        for i in range(0, count - n + 1, n):
            store(to + i, zero)
        done = count - count % n
        store_part(to + done, zero, count - done)

    @njit(inline="always")
    def turn(to: Any, start: Any, step: Any, channels: Any, count: Any) -> None:
        """`count` pixels of all channels, `step` apart, to to[pixel * channels + channel]."""
        for c in range(0, channels, n):
            many = min(n, channels - c)
            whole = many == n or c == 0  # else what is too much would fall on the next pixel
            done = count - count % n
            for i in range(0, done, n):
                part = transposed(square(start + (c * step + i), step, many))
                if whole:
                    store_tile(to + (i * channels + c), channels, part)
                else:
                    store_tile_part(to + (i * channels + c), channels, part, n, many)
            if done < count:
                part = transposed(square_part(start + (c * step + done), step, many, count - done))
                place = to + (done * channels + c)
                store_tile_part(place, channels, part, count - done, many)

    def weight(
        task: I64, thread: I64, x: Data, gy: Data, part: Data, table: I64P, order: I32P,
        scratch: Data, batch: I64, channels: I64, h: I64, w: I64, outputs: I64, p_all: I64,
        q_all: I64, last: I64, stride_h: I64, stride_w: I64, top: I64, left: I64, reach_h: I64,
        reach_w: I64, images: I64, band: I64, span: I64, chunks: I64, k_cut: I64, k_each: I64,
        tiles: I64, at_list: I64, own: I64,
    ) -> None:  # fmt: skip
        k_first = task % k_cut * k_each
        k_end = min(k_first + k_each, outputs)
        chunk = task // k_cut
        copied = scratch + thread * own
        pixels = pointer(order, address(copied + at_list))

        step_k, step_p = p_all * q_all, 1
        if last != 0:
            step_k, step_p = 1, outputs
        step_x, step_y = stride_w * channels, ((span - 1) * stride_w + reach_w) * channels
        image_x = ((band - 1) * stride_h + reach_h) * step_y
        k_tiles = (outputs + rows - 1) // rows

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

            # x with its padding, channels last
            line = (width - 1) * stride_w + reach_w
            x0 = q0 * stride_w - left
            before = max(0, min(-x0, line))
            inside = max(0, min(w - x0, line) - before)
            y0 = p0 * stride_h - top
            for i in range(count):
                for y in range(y0, y0 + (height - 1) * stride_h + reach_h):
                    to = copied + (i * image_x + (y - y0) * step_y)
                    if y < 0 or y >= h:
                        clear(to, line * channels)
                        continue
                    clear(to, before * channels)
                    if last == 0:
                        start = x + ((image + i) * channels * h + y) * w + (x0 + before)
                        turn(to + before * channels, start, h * w, channels, inside)
                    else:
                        start = x + (((image + i) * h + y) * w + x0 + before) * channels
                        copy(to + before * channels, start, inside * channels)
                    right = before + inside
                    clear(to + right * channels, (line - right) * channels)
            clear(copied + count * image_x, columns)  # the last vectors reach beyond it

            m = 0
            for i in range(count):
                for p in range(height):
                    for q in range(width):
                        pixels[m] = i * outputs * p_all * q_all + (p * q_all + q) * step_p
                        pixels[m + 1] = i * image_x + p * stride_h * step_y + q * step_x
                        m += 2
            origin = gy + image * outputs * p_all * q_all + (p0 * q_all + q0) * step_p

            for k in range(k_first, k_end, rows):
                for t in range(tiles):
                    many = min(rows, k_end - k)
                    numbers = rows_from(origin + k * step_k, step_k, many, rows)
                    others = copied + table[t]
                    sums = tile(x, rows, vectors)
                    for i in range(count * height * width):
                        sums = outer_rows(sums, numbers, pixels[2 * i], others + pixels[2 * i + 1])
                    into = part + ((chunk * k_tiles + k // rows) * tiles + t) * rows * columns
                    if unit > first:
                        sums = add_tile(sums, into, columns)
                    store_tile(into, columns, sums)

    return weight


def _gathered(dtype: str, rows: int) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load, store

    n = lanes(dtype)

    def gathered(
        task: I64, thread: I64, part: Data, gw: Data, order: I32P, scratch: Data,
        outputs: I64, chunks: I64, size: I64, columns: I64, j_all: I64, own: I64,
    ) -> None:  # fmt: skip
        """Rows task * rows of gw: `chunks` copies of `size` numbers of their tiles, added up."""
        sums = scratch + thread * own
        whole = (outputs + rows - 1) // rows * size
        for i in range(0, size, n):
            value = load(part + (task * size + i))
            for chunk in range(1, chunks):
                value = value + load(part + (chunk * whole + task * size + i))
            store(sums + i, value)
        for k in range(min(rows, outputs - task * rows)):
            to = gw + (task * rows + k) * j_all
            for j in range(j_all):
                to[j] = sums[order[j] + k * columns]

    return gathered


def fill(spec: Any, dtype: str) -> float:
    """The share of the registers' lanes that would hold sums; 0 for what is not taken."""
    n = current().vector // np.dtype(dtype).itemsize
    outputs, channels, r_all, s_all = spec.w_shape
    runs, run = _runs(spec)
    rows, vectors = _tile(-(-run // n))
    if spec.groups > 1 or vectors == 1:
        return 0.0
    tiles, k_tiles = runs * -(-run // n) // vectors, -(-outputs // rows)
    if tiles * k_tiles * rows * vectors * n * 4 > 1 << 20:
        return 0.0
    return outputs * channels * r_all * s_all / (tiles * vectors * n * k_tiles * rows)


def unit(spec: Any) -> tuple[int, int, int]:
    """(images, rows, columns) of the pixels that are summed up one after the other.

    Few numbers are summed in short stretches, so that the error stays near that of plain code,
    which has several sums too; without fused multiply-add, all are.
    """
    batch, (p_all, q_all) = spec.y_shape[0], spec.y_shape[2:]
    pixels = 192 if batch * p_all * q_all > 700 else 96
    if current().name == "generic":
        pixels = 64
    if p_all * q_all <= pixels:
        each = min(batch, pixels // (p_all * q_all))
        return -(-batch // -(-batch // each)), p_all, q_all
    span = -(-q_all // -(-q_all // (2 * pixels)))
    return 1, -(-p_all // -(-p_all // max(1, pixels // span))), span


def _tile(each: int) -> tuple[int, int]:
    """(rows, vectors) of a tile, for runs of `each` vectors."""
    if current().registers < 32:
        return (6, 2) if each % 2 == 0 else (6, 1)
    return (8, 3) if each % 3 == 0 else (8, 2) if each % 2 == 0 else (8, 1)


def _runs(spec: Any) -> tuple[int, int]:
    """How many stretches of x lie side by side in a window, and how long each is."""
    channels, r_all, s_all = spec.w_shape[1:]
    together = spec.dilation[1] == 1
    return (r_all, s_all * channels) if together else (r_all * s_all, channels)


def grad_weight(device: Any, spec: Any, dtype: str, last: bool) -> Callable[..., None]:
    """run(gy, x, gw), of one group."""
    size = np.dtype(dtype).itemsize
    n = current().vector // size
    runs, run = _runs(spec)
    each = -(-run // n)  # vectors
    rows, vectors = _tile(each)
    batch, channels, h, w = spec.x_shape
    outputs, _, r_all, s_all = spec.w_shape
    p_all, q_all = spec.y_shape[2:]
    columns = vectors * n

    # a unit, and x of it
    images, band, span = unit(spec)
    units = -(-batch // images) * -(-p_all // band) * -(-q_all // span)
    reach_h, reach_w = ((z - 1) * d + 1 for z, d in zip(spec.kernel, spec.dilation, strict=True))
    lines, line = (band - 1) * spec.stride[0] + reach_h, (span - 1) * spec.stride[1] + reach_w

    # where each tile begins in x, and where each j = (c, r, s) is in a row of tiles
    tiles = runs * each // vectors
    number = np.arange(tiles) * vectors
    row, col = number // each, number % each * n
    if runs == r_all:
        table = row * spec.dilation[0] * line * channels + col
    else:
        table = row // s_all * spec.dilation[0] * line + row % s_all * spec.dilation[1]
        table = table * channels + col
    j = np.arange(channels * r_all * s_all)
    c, r, s = j // (r_all * s_all), j // s_all % r_all, j % s_all
    in_run = s * channels + c if runs == r_all else c
    vector = (r if runs == r_all else r * s_all + s) * each + in_run // n
    order = vector // vectors * rows * columns + vector % vectors * n + in_run % n
    table, order = table.astype(np.int64), order.astype(np.int32)

    k_tiles = -(-outputs // rows)
    chunks = min(units, TASKS)
    k_cut = 1 if units >= TASKS else min(k_tiles, -(-TASKS // chunks))
    k_each = -(-k_tiles // k_cut) * rows
    k_cut = -(-outputs // k_each)
    at_list = -(-(images * lines * line * channels + columns) // 16) * 16
    own = -(-(at_list + 2 * images * band * span) // 16) * 16
    key = (("dtype", dtype), ("rows", rows), ("vectors", vectors))
    compute = device.prepare(
        Kernel("weight_lanes", _lanes, key), chunks * k_cut, scratch=own * size, batch=batch,
        channels=channels, h=h, w=w, outputs=outputs, p_all=p_all, q_all=q_all, last=int(last),
        stride_h=spec.stride[0], stride_w=spec.stride[1], top=spec.padding[0][0],
        left=spec.padding[1][0], reach_h=reach_h, reach_w=reach_w, images=images, band=band,
        span=span, chunks=chunks, k_cut=k_cut, k_each=k_each, tiles=tiles, at_list=at_list, own=own,
    )  # fmt: skip
    row_size = tiles * rows * columns
    gather = device.prepare(
        Kernel("weight_gathered", _gathered, (("dtype", dtype), ("rows", rows))), k_tiles,
        scratch=row_size * size, outputs=outputs, chunks=chunks, size=row_size, columns=columns,
        j_all=len(j), own=row_size,
    )  # fmt: skip

    def execute(gy: Any, x: Any, gw: Any) -> None:
        part = device.empty((chunks, k_tiles * row_size), dtype)
        compute(x, gy, part, table, order)
        gather(part, gw, order)

    return execute
