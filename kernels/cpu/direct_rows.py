"""Direct convolution of stride 1 to few output channels: vectors along rows of pixels.

Where there are fewer output channels than a vector has lanes, as in LeNet's first layer, `direct`
would leave lanes idle. Here a vector is that many pixels of a row, and a tile of sums has output
channels for rows:

                   pixels of a row, of another row, ...
                 +--------------+--------------+---     for j in (c, r, s):
      channel 0  |              |              |            for each vector of pixels v:
      channel 1  |              |              |                sums[i][v] +=
      ...        |              |              |                    weight[j][i] * x[v + offset[j]]
                 +--------------+--------------+---

A task is some images, or a band of rows of one. As in `direct`, it copies the rows of x that it
reads, with zeros around them, to memory of its thread: by channels, whatever the format of x.
Weights are brought into the order [block of channels][j][channel] by a table of their places.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from gpuconv.kernels.cpu.compiler import I64, I64P, Data, Kernel, current
from gpuconv.kernels.cpu.plan import Packed

WEIGHTS = 1 << 14  # numbers of one block of channels: half a level-1 cache of float64
CHUNK = 4096  # weights that a task brings into order
ALIGNED = 1 << 16  # bytes from which the device's memory begins at a cache line
TASK = 5  # numbers of a task's record


def _order(dtype: str) -> Callable[..., None]:
    def kernel(task: I64, thread: I64, w: Data, packed: Data, table: I64P, count: I64) -> None:
        for i in range(task * CHUNK, min((task + 1) * CHUNK, count)):
            place = table[i]
            packed[i] = w[place] if place >= 0 else 0.0

    return kernel


def _sums(dtype: str, rows: int, vectors: int) -> Callable[..., None]:
    from gpuconv.kernels.cpu.direct_tiles import copy_rows, outer_columns, places
    from gpuconv.kernels.cpu.tile import store_tile, tile
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, maximum, splat, store, store_part

    wide = lanes(dtype)

    def kernel(
        task: I64, thread: I64,
        x: Data, w: Data, bias: Data, add: Data, y: Data, table: I64P, scratch: Data,
        room: I64, sums_at: I64, offsets_at: I64, pixels_at: I64, places_at: I64,
        x_n: I64, x_group: I64, x_c: I64, x_h: I64, x_w: I64, height: I64, row_step: I64,
        low: I64, inside: I64, columns: I64, skipped: I64, t_c: I64, depth: I64,
        y_n: I64, y_k: I64, y_h: I64, y_w: I64, result: I64,
        channels: I64, blocks: I64, length: I64,
        with_bias: I64, with_add: I64, relu: I64,
    ) -> None:  # fmt: skip
        record = table + task * TASK
        own = scratch + thread * room
        sums, offsets = own + sums_at, table + offsets_at
        group, row, high = record[4], record[2], record[3]
        each = (result + wide - 1) // wide
        origin = table[places_at] + row * table[places_at + 1]
        nothing = splat(y, 0.0)
        for image in range(record[0], record[0] + record[1]):
            for c in range(depth):
                copy_rows(
                    own + c * t_c, x + (image * x_n + group * x_group + c * x_c + skipped * x_w),
                    origin, t_c // columns, row_step, height, low, inside, columns,
                    1, x_h, x_w, columns, 1, wide,
                )  # fmt: skip
            for kb in range(blocks):
                weights = w + (group * blocks + kb) * length * rows
                first = group * channels + kb * rows
                some = min(rows, channels - kb * rows)
                o, q = 0, 0
                for i in range(0, high * each, vectors):
                    here = places(own, table + (pixels_at + i), vectors)
                    total = tile(w, rows, vectors)
                    for j in range(length):
                        total = outer_columns(total, weights + j * rows, here, offsets[j])
                    store_tile(sums, vectors * wide, total)
                    for v in range(min(vectors, high * each - i)):
                        at = image * y_n + first * y_k + (row + o) * y_h + q * y_w
                        left = min(result - q, wide)
                        for k in range(some):
                            value = load(sums + (k * vectors + v) * wide)
                            if with_bias:
                                value = value + splat(y, bias[first + k])
                            if y_w == 1:
                                if with_add:
                                    value = value + load_part(add + (at + k * y_k), left)
                                if relu:
                                    value = maximum(value, nothing)
                                if left == wide:
                                    store(y + (at + k * y_k), value)
                                else:
                                    store_part(y + (at + k * y_k), value, left)
                                continue
                            store(sums + (k * vectors + v) * wide, value)
                        if y_w > 1:
                            for t in range(left):
                                for k in range(some):
                                    number = sums[(k * vectors + v) * wide + t]
                                    if with_add:
                                        number += add[at + t * y_w + k]
                                    if relu and number < 0:
                                        y[at + t * y_w + k] = 0.0
                                    else:
                                        y[at + t * y_w + k] = number
                        q += wide
                        if q >= result:
                            q = 0
                            o += 1

    return kernel


def _rows(channels: int) -> int:
    """Channels of a tile: all, or equal parts; few sizes, as each is a kernel to compile."""
    sizes = (1, 2, 3, 4, 6, 8) if current().registers > 16 else (1, 2, 4, 6)
    each = -(-channels // -(-channels // sizes[-1]))
    return next(size for size in sizes if size >= each)


def suits(problem: Any) -> bool:
    """True where lanes along pixels beat lanes along output channels."""
    rows, columns = problem.rows, problem.columns
    lanes = current().vector // (4 if problem.dtype == "float32" else 8)
    tile = _rows(problem.channels)
    if len(rows.taps) * len(columns.taps) * columns.stride > 1:
        return False
    if problem.depth * problem.taps * tile > WEIGHTS:
        return False
    used = columns.result / (-(-columns.result // lanes) * lanes)
    return bool(
        problem.channels <= lanes / 2 + lanes / 4 * used and used > problem.channels / lanes
    )


def prepare(device: Any, problem: Any, epilogue: dict[str, bool], slots: int) -> Packed:
    """run(x, w, b, add, y) of a problem that `suits`, with about `slots` vectors a task."""
    rows, columns, depth = problem.rows, problem.columns, problem.depth
    item = 4 if problem.dtype == "float32" else 8
    lanes = current().vector // item
    tile = _rows(problem.channels)
    registers = 24 if current().registers > 16 else 12
    vectors = max(min(registers // tile, 8 if registers == 24 else 4), 1)
    blocks = -(-problem.channels // tile)
    each = -(-columns.result // lanes)

    parts = -(-rows.result // max(slots // each, 1))
    high = -(-rows.result // parts)
    images = max(slots // (each * rows.result), 1) if parts == 1 else 1
    images = max(min(images, problem.images * problem.groups // 16), 1)
    tasks = [
        (n, min(images, problem.images - n), row, min(high, rows.result - row), g)
        for g in range(problem.groups)
        for n in range(0, problem.images, images)
        for row in range(0, rows.result, high)
    ]

    wide, t_rows = columns.reads(columns.result), rows.reads(high)
    t_c = wide * t_rows
    taps = list(product(rows.taps[0], columns.taps[0]))
    offsets = [
        c * t_c + (at - rows.start) // rows.step * wide + (left - columns.start) // columns.step
        for c in range(depth)
        for (_, at), (_, left) in taps
    ]
    down = rows.stride // rows.step * wide
    pixels = [o * down + v * lanes for o in range(high) for v in range(each)]
    pixels += pixels[-1:] * vectors
    k = np.arange(blocks * tile).reshape(1, blocks, 1, 1, tile)
    tap = np.array([t * columns.size + u for (t, _), (u, _) in taps])
    order = np.arange(problem.groups).reshape(-1, 1, 1, 1, 1) * problem.w_group + k * problem.w_lane
    order = order + np.arange(depth).reshape(-1, 1, 1) * problem.w_depth + tap.reshape(-1, 1)
    order = np.where(k < problem.channels, order, -1).reshape(-1)

    numbers = [np.asarray(part, dtype=np.int64).reshape(-1) for part in (tasks, offsets, pixels)]
    numbers.append(np.asarray([rows.start, rows.stride], dtype=np.int64))
    ends = np.cumsum([part.size for part in numbers]).tolist()
    table = np.concatenate(numbers)

    height, width = rows.source, columns.source
    low = min(max(-columns.start, 0), wide)
    skipped = max(columns.start, 0)
    inside = max(min(width - skipped, wide - low), 0)
    p, q, groups = rows.result, columns.result, problem.groups
    x_c, x_w, y_k, y_w = height * width, 1, p * q, 1
    if problem.last:
        x_c, x_w, y_k, y_w = 1, groups * depth, 1, groups * problem.channels
    sums_at = -(-(depth * t_c + 2 * lanes) // 64) * 64
    room = -(-(sums_at + tile * vectors * lanes) // 64) * 64
    launch = device.prepare(
        Kernel(
            "direct_rows", _sums,
            (("dtype", problem.dtype), ("rows", tile), ("vectors", vectors)),
        ),
        len(tasks), scratch=max(room * item, ALIGNED),
        room=room, sums_at=sums_at, offsets_at=ends[0], pixels_at=ends[1], places_at=ends[2],
        x_n=groups * depth * height * width, x_group=depth * x_c, x_c=x_c, x_h=width * x_w,
        x_w=x_w, height=height, row_step=rows.step, low=low, inside=inside, columns=wide,
        skipped=skipped, t_c=t_c, depth=depth,
        y_n=groups * problem.channels * p * q, y_k=y_k, y_h=q * y_w, y_w=y_w, result=q,
        channels=problem.channels, blocks=blocks, length=depth * len(taps), **epilogue,
    )  # fmt: skip
    bring = device.prepare(
        Kernel("direct_order", _order, (("dtype", problem.dtype),)),
        -(-order.size // CHUNK),
        count=order.size,
    )

    def pack(w: Any) -> Any:
        packed = device.empty((max(order.size, ALIGNED // item),), problem.dtype)
        bring(w, packed, order)
        return packed

    def compute(x: Any, packed: Any, b: Any, add: Any, y: Any) -> None:
        launch(x, packed, b, add, y, table)

    return Packed(pack, compute)
