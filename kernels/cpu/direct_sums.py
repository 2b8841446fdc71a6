"""The kernels of the direct convolution; `direct` makes their tables and says how it works."""

from collections.abc import Callable
from typing import Any

from gpuconv.kernels.cpu.compiler import I64, I64P, Data, Kernel

TASK, PHASE, PIXELS, PACK = 14, 5, 5, 5  # numbers a record of each kind of table has


def sums(dtype: str, rows: int, vectors: int) -> Kernel:
    """Tasks of sums, with tiles of `rows` pixels by `vectors` vectors of output channels."""
    constants = (("dtype", dtype), ("rows", rows), ("vectors", vectors))
    return Kernel("direct_sums", _sums, constants)


def pack(dtype: str, vectors: int) -> Kernel:
    """Tasks that bring weights into the order of the sums."""
    return Kernel("direct_pack", _pack, (("dtype", dtype), ("vectors", vectors)))


def _pack(dtype: str, vectors: int) -> Callable[..., None]:
    from gpuconv.kernels.cpu.direct_tiles import packer
    from gpuconv.kernels.cpu.vector import lanes

    block = lanes(dtype) * vectors
    bring = packer(lanes(dtype), vectors)

    def kernel(
        task: I64, thread: I64, w: Data, packed: Data, table: I64P,
        phase_at: I64, tasks_at: I64, channels: I64, blocks: I64, depth: I64,
        w_group: I64, w_lane: I64, w_depth: I64, taps: I64, merged: I64,
    ) -> None:  # fmt: skip
        record = table + (tasks_at + task * PACK)
        phase, group, kb, first, last = record[0], record[1], record[2], record[3], record[4]
        about = table + (phase_at + phase * PHASE)
        source = w + (group * w_group + kb * block * w_lane + first * w_depth)
        to = packed + (about[0] + (group * blocks + kb) * depth * about[1] * block)
        order = table + (about[4] + first * taps)
        runs, length = last - first, taps
        if merged:
            runs, length = 1, runs * taps
        bring(source, to, order, w_lane, channels - kb * block, runs, w_depth, length)

    return kernel


def _sums(dtype: str, rows: int, vectors: int) -> Callable[..., None]:
    import numba

    from gpuconv.kernels.cpu.direct_tiles import (
        add_places,
        copy_rows,
        packer,
        places,
        prefetch_second,
        store_places,
        turned,
    )
    from gpuconv.kernels.cpu.tile import (
        add_column,
        add_tile_part,
        outer_rows,
        relu_tile,
        store_tile,
        store_tile_part,
        tile,
    )
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, maximum, splat, store, store_part

    wide = lanes(dtype)
    block = wide * vectors
    bring = packer(wide, vectors)

    @numba.njit(inline="always")
    def write_planes(
        y: Any, add: Any, partial: Any, bias: Any, count: Any,
        left: Any, y_k: Any, with_add: Any, relu: Any,
    ) -> None:  # fmt: skip
        """`count` pixels of NCHW: squares of [pixel][channel] are turned over."""
        for v in range(0, min(left, block), wide):
            for i in range(0, count, wide):
                square = add_column(turned(partial + (i * block + v), block), bias + v)
                at, there = v * y_k + i, min(left - v, wide)
                if with_add:
                    square = add_tile_part(square, add + at, y_k, there, count - i)
                if relu:
                    square = relu_tile(square)
                if there == wide and i + wide <= count:
                    store_tile(y + at, y_k, square)
                else:
                    store_tile_part(y + at, y_k, square, there, count - i)

    @numba.njit(inline="always")
    def write_pixels(
        y: Any, add: Any, partial: Any, bias: Any, count: Any,
        left: Any, y_w: Any, with_add: Any, relu: Any,
    ) -> None:  # fmt: skip
        """`count` pixels of channels-last."""
        nothing = splat(y, 0.0)
        for i in range(count):
            for v in range(0, min(left, block), wide):
                value = load(partial + (i * block + v)) + load(bias + v)
                at = i * y_w + v
                if with_add:
                    value = value + load_part(add + at, left - v)
                if relu:
                    value = maximum(value, nothing)
                if left - v >= wide:
                    store(y + at, value)
                else:
                    store_part(y + at, value, left - v)

    @numba.njit(inline="always")
    def write(
        y: Any, add: Any, partial: Any, bias: Any, count: Any, left: Any,
        y_k: Any, y_w: Any, with_add: Any, relu: Any,
    ) -> None:  # fmt: skip
        if y_w == 1:
            write_planes(y, add, partial, bias, count, left, y_k, with_add, relu)
        else:
            write_pixels(y, add, partial, bias, count, left, y_w, with_add, relu)

    def kernel(
        task: I64, thread: I64,
        x: Data, w: Data, bias: Data, add: Data, y: Data, table: I64P, scratch: Data,
        room: I64, partial_at: I64, bias_at: I64, weights_at: I64,
        x_n: I64, x_group: I64, x_outer: I64, x_h: I64, x_w: I64, height: I64, width: I64,
        outers: I64, unit: I64, row_step: I64, column_step: I64,
        t_n: I64, t_outer: I64, t_h: I64, t_w: I64,
        y_n: I64, y_k: I64, y_w: I64, channels: I64, blocks: I64,
        phases: I64, phase_at: I64, depth: I64,
        fused: I64, w_group: I64, w_lane: I64, w_depth: I64, taps: I64, merged: I64,
        with_bias: I64, with_add: I64, relu: I64,
    ) -> None:  # fmt: skip
        record = table + task * TASK
        own = scratch + thread * room
        partial, own_bias, own_weights = own + partial_at, own + bias_at, own + weights_at
        image, images, group = record[0], record[1], record[6]

        column, columns = record[4], record[5]
        low = min(max((column_step - 1 - column) // column_step, 0), columns)
        high = min(columns, (width - column + column_step - 1) // column_step)
        source = x + (group * x_group + max(column + low * column_step, 0) * x_w)
        for i in range(images):
            for outer in range(outers):
                copy_rows(
                    own + (i * t_n + outer * t_outer),
                    source + ((image + i) * x_n + outer * x_outer),
                    record[2], record[3], row_step, height, low, high - low, columns,
                    unit, x_h, x_w * column_step, t_h, t_w, wide,
                )  # fmt: skip

        for kb in range(record[7], record[8]):
            channel = group * channels + kb * block
            left = channels - kb * block
            y_at = record[10] + channel * y_k
            pixels_in_all = images * record[11] * record[12]
            written, run, run_end, at = 0, 0, record[12], y_at
            for v in range(0, block, wide):
                values = splat(y, 0.0)
                if with_bias:
                    values = load_part(bias + (channel + v), left - v)
                store(own_bias + v, values)
            for phase in range(phases):
                about = table + (phase_at + phase * PHASE)
                which = table + (record[9] + phase * PIXELS)
                pixels, slots, count = table + which[0], table + which[1], which[2]
                each, step = about[1], about[2]
                ready = w + (about[0] + (group * blocks + kb) * depth * each * block)
                first = 0
                while first < depth:
                    last = min(first + step, depth)
                    weights = ready + first * each * block
                    if fused:
                        raw = w + (group * w_group + kb * block * w_lane + first * w_depth)
                        runs, length = last - first, taps
                        if merged:
                            runs, length = 1, runs * taps
                        weights = own_weights
                        order = table + (about[4] + first * taps)
                        base = own_weights + -first * each * block
                        bring(
                            raw, base, order, w_lane, channels - kb * block, runs, w_depth, length
                        )
                    begun, final = first > 0, last == depth and phase == phases - 1
                    offsets, length = table + (about[3] + first * each), (last - first) * each
                    # While sums are computed, the caches ask for the next weights, a line for each
                    # product, then for the lines of y, which are in as many pages as channels.
                    ahead, beside, asked = ready + last * each * block, wide, vectors * length
                    if fused or (last == depth and kb + 1 == record[8]):
                        asked = 0
                    for i in range(0, count, rows):
                        here, there = (
                            places(own, pixels + i, rows),
                            places(partial, slots + i, rows),
                        )
                        total = tile(weights, rows, vectors)
                        now = min(length, asked)
                        for j in range(now):
                            total = outer_rows(total, here, offsets[j], weights + j * block)
                            prefetch_second(ahead + j * beside)
                        for j in range(now, length):
                            total = outer_rows(total, here, offsets[j], weights + j * block)
                        ahead, asked = ahead + now * beside, asked - now
                        if begun:
                            total = add_places(total, there)
                        store_places(there, total)
                        if not final:
                            continue
                        # What is complete is written at once, while the next sums are computed.
                        ready_now = min((i + rows) // which[3] * which[4], pixels_in_all)
                        if i + rows >= count:
                            ready_now = pixels_in_all
                        while written < ready_now:
                            some = min(ready_now, run_end) - written
                            if y_w == 1 and ready_now < run_end:
                                some = some // wide * wide
                            if some == 0:
                                break
                            write(
                                y + at, add + at, partial + written * block, own_bias,
                                some, left, y_k, y_w, with_add, relu,
                            )  # fmt: skip
                            written += some
                            at += some * y_w
                            if written == run_end:
                                run += 1
                                image_at = run // record[11]
                                at = (
                                    y_at
                                    + image_at * y_n
                                    + (run - image_at * record[11]) * record[13]
                                )
                                run_end += record[12]
                            if y_w == 1 and asked == 0:
                                ahead, beside, asked = y + at, y_k, min(left, block)
                    first = last

    return kernel
