"""Depthwise convolution's gradient by weight, channels-last; and the sums of several tasks.

See `depthwise_weight`. Here lanes are channels: a task has the R x S sums of a run of channels in
scratch, and walks along rows of the image, some rows of gy at once, with one vector of channels and
its sums in registers.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np

from gpuconv.kernels.cpu.compiler import I64, I64P, Data, Kernel
from gpuconv.kernels.cpu.depthwise_last import WORK, lanes, tall, times

# --- kernels


def _columns_weight(dtype: str, high: int, wide: int, rows: int, part: bool) -> Callable[..., None]:
    from gpuconv.kernels.cpu.depthwise_roll import (
        advance,
        column_weights,
        filled,
        load_rows,
        sources,
    )
    from gpuconv.kernels.cpu.tile import store_tile
    from gpuconv.kernels.cpu.vector import lanes, splat, store

    count, taps, needed, behind = lanes(dtype), high * wide, rows + high - 1, wide - 1

    def columns_weight(
        task: I64,
        thread: I64,
        gy: Data,
        x: Data,
        parts: Data,
        scratch: Data,
        room: I64,
        chunks: I64,
        chunk: I64,
        images: I64,
        images_each: I64,
        bands: I64,
        band: I64,
        channels: I64,
        pitch: I64,
        height: I64,
        width: I64,
        out_height: I64,
        out_width: I64,
        top: I64,
        left: I64,
    ) -> None:
        nothing = scratch + thread * room
        mine = nothing + count  # the sums of each vector of channels
        zero = splat(x, 0.0)
        step = out_width * channels
        place = task // chunks
        run = task - place * chunks
        turn = place // bands
        begin = (place - turn * bands) * band
        end = min(begin + band, out_height)
        c_end = channels
        if run < chunks - 1:
            c_end = run * chunk + chunk
        for i in range(0, room, count):
            store(nothing + i, zero)
        # Columns of the input that meet all of the window's columns of gy.
        low = min(width, max(0, behind - left))
        full = max(low, min(width, out_width - left))
        for n in range(turn * images_each, min(images, (turn + 1) * images_each)):
            for p in range(begin, end, rows):
                valid = min(rows, end - p)
                slot = mine
                for at in range(run * chunk, c_end, count):
                    c = at
                    if not part:
                        c = min(at, channels - count)  # the last vector may compute some again
                    pointers, masks = sources(
                        x + (n * height * width * channels + c), p - top, height,
                        width * channels, nothing, needed,
                    )  # fmt: skip
                    near = gy + ((n * out_height + p) * step + c)
                    sums = load_rows(slot, count, taps, taps, count, False)
                    g = filled(zero, wide, rows)
                    for q in range(left - behind, left):
                        inside = valid if 0 <= q < out_width else 0
                        fresh = load_rows(near + q * channels, step, rows, inside, channels, part)
                        g = advance(g, fresh)
                    edge = low if valid == rows else width
                    for w in range(edge):
                        q = w + left
                        inside = valid if q < out_width else 0
                        fresh = load_rows(near + q * channels, step, rows, inside, channels, part)
                        g = advance(g, fresh)
                        reach = q - out_width + 1, q + 1, valid
                        sums = column_weights(
                            sums, g, pointers, masks, w * channels, channels, reach, part, True
                        )
                    here = near + (edge + left) * channels
                    for w in range(edge, full):
                        g = advance(g, load_rows(here, step, rows, rows, channels, part))
                        sums = column_weights(
                            sums, g, pointers, masks, w * channels, channels, (0, 0, 0), part, False
                        )
                        here = here + channels
                    for w in range(max(edge, full), width):
                        q = w + left
                        g = advance(g, filled(zero, rows, 1))
                        reach = q - out_width + 1, q + 1, valid
                        sums = column_weights(
                            sums, g, pointers, masks, w * channels, channels, reach, part, True
                        )
                    store_tile(slot, count, sums)
                    slot = slot + taps * count
        slot = mine
        for at in range(run * chunk, c_end, count):
            c = at
            if not part:
                c = min(at, channels - count)
            sums = load_rows(slot, count, taps, taps, count, False)
            store_tile(parts + (place * taps * pitch + c), pitch, sums)
            slot = slot + taps * count

    return columns_weight


def _pixels_weight(dtype: str, part: bool) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import fma, lanes, load, load_part, splat, store

    count = lanes(dtype)

    def pixels_weight(
        task: I64,
        thread: I64,
        gy: Data,
        x: Data,
        parts: Data,
        spans: I64P,
        bands: I64,
        band: I64,
        channels: I64,
        pitch: I64,
        height: I64,
        width: I64,
        out_height: I64,
        out_width: I64,
        step_h: I64,
        step_w: I64,
        high: I64,
        wide: I64,
    ) -> None:
        n = task // bands
        begin = (task - n * bands) * band
        end = min(begin + band, out_height)
        for at in range(0, channels, count):
            c = at
            if not part:
                c = min(at, channels - count)
            left = channels - c
            for r in range(high):
                # Of each tap: the first and the end of the outputs that it meets, its offset.
                p_first = max(begin, spans[3 * r])
                p_end = min(end, spans[3 * r + 1])
                for s in range(wide):
                    span = spans + 3 * (high + s)
                    q_first, q_end = span[0], span[1]
                    s0 = splat(x, 0.0)
                    s1, s2, s3 = s0, s0, s0
                    for p in range(p_first, p_end):
                        h, w = p * step_h + spans[3 * r + 2], q_first * step_w + span[2]
                        g = gy + (((n * out_height + p) * out_width + q_first) * channels + c)
                        a = x + (((n * height + h) * width + w) * channels + c)
                        far = step_w * channels
                        for _ in range((q_end - q_first) // 4):
                            if part:
                                s0 = fma(load_part(g, left), load_part(a, left), s0)
                                g, a = g + channels, a + far
                                s1 = fma(load_part(g, left), load_part(a, left), s1)
                                g, a = g + channels, a + far
                                s2 = fma(load_part(g, left), load_part(a, left), s2)
                                g, a = g + channels, a + far
                                s3 = fma(load_part(g, left), load_part(a, left), s3)
                                g, a = g + channels, a + far
                            else:
                                s0 = fma(load(g), load(a), s0)
                                g, a = g + channels, a + far
                                s1 = fma(load(g), load(a), s1)
                                g, a = g + channels, a + far
                                s2 = fma(load(g), load(a), s2)
                                g, a = g + channels, a + far
                                s3 = fma(load(g), load(a), s3)
                                g, a = g + channels, a + far
                        for _ in range(max(0, q_end - q_first) % 4):
                            if part:
                                s0 = fma(load_part(g, left), load_part(a, left), s0)
                            else:
                                s0 = fma(load(g), load(a), s0)
                            g, a = g + channels, a + far
                    sums = (s0 + s1) + (s2 + s3)
                    store(parts + ((task * high * wide + r * wide + s) * pitch + c), sums)

    return pixels_weight


def _add_parts(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load, store

    count = lanes(dtype)

    def add_parts(
        task: I64, thread: I64, parts: Data, gw: Data, number: I64, group: I64, taps: I64,
        channels: I64, pitch: I64,
    ) -> None:  # fmt: skip
        first = task * group
        end = min(first + group, pitch)
        for t in range(taps):
            row = parts + t * pitch
            for c in range(first, end, count):
                sums = load(row + c)
                for i in range(1, number):
                    sums = sums + load(row + (i * taps * pitch + c))
                store(row + c, sums)
            for c in range(first, min(end, channels)):
                gw[c * taps + t] = row[c]

    return add_parts


# --- plans


def shares(images: int, rows: int, channels: int, work: int) -> tuple[int, int]:
    """(images a task, rows a task) for tasks of enough work of which there are 8, if possible.

    `work` is the products of vectors of one row of one image.
    """
    most = max(1, ceil(8 / channels))  # parts that are needed to keep threads busy
    images_each = max(1, min(images // most, ceil(64 * WORK / (work * rows))))
    band = rows
    if images_each == 1:
        bands = max(1, min(ceil(most / images), work * rows // WORK))
        band = ceil(rows / bands)
    return images_each, band


def grad_weight(
    device: Any, spec: Any, dtype: str, rolling: bool, axes: Any
) -> Callable[..., None]:
    """run(gy, x, gw); `axes` is `depthwise.axis` of both axes, forward."""
    (n, c, *size), out, outputs = spec.x_shape, spec.y_shape[2:], spec.w_shape[0]
    high, wide = spec.kernel
    count, taps = lanes(dtype), high * wide
    vectors = ceil(outputs / count)
    work = out[1] * taps
    numbers = {
        "channels": outputs, "pitch": vectors * count, "height": size[0], "width": size[1],
        "out_height": out[0], "out_width": out[1],
    }  # fmt: skip
    constants = ("dtype", dtype), ("part", outputs < count)
    if rolling:
        rows = tall((high, wide))
        images_each, band = shares(n, out[0], 1 if n > 1 else ceil(vectors / 4), work * vectors)
        band = ceil(band / rows) * rows
        bands = ceil(out[0] / band)
        parts = ceil(n / images_each) * bands
        # Whole pixels where there are parts enough: memory is then read in order.
        chunks = min(ceil(8 / parts), max(1, vectors // 4))
        chunk = vectors // chunks * count
        room = count * (1 + taps * (vectors - (chunks - 1) * (chunk // count)))
        run = device.prepare(
            Kernel(
                "depthwise_columns_weight", _columns_weight,
                (constants[0], ("high", high), ("wide", wide), ("rows", rows), constants[1]),
            ),
            parts * chunks,
            scratch=room * np.dtype(dtype).itemsize, room=room, chunks=chunks, chunk=chunk,
            images=n, images_each=images_each, bands=bands, band=band, top=spec.padding[0][0],
            left=spec.padding[1][0], **numbers,
        )  # fmt: skip
        table: tuple[Any, ...] = ()
    else:
        band = min(out[0], ceil(4 * WORK / (work * vectors)))
        bands = ceil(out[0] / band)
        parts = n * bands
        run = device.prepare(
            Kernel("depthwise_pixels_weight", _pixels_weight, constants),
            parts, bands=bands, band=band, step_h=spec.stride[0], step_w=spec.stride[1], high=high,
            wide=wide, **numbers,
        )  # fmt: skip
        table = (_spans(axes, size, out),)
    add, shape = added(device, dtype, parts, taps, outputs)
    pixels = n * size[0] * size[1]
    repeat = None
    if outputs != c:
        repeat = times(device, dtype, pixels, c, outputs // c)

    def whole(gy: Any, x: Any, gw: Any) -> None:
        if repeat is not None:
            more = device.empty((pixels, outputs), dtype)
            repeat(x, more)
            x = more
        sums = device.empty(shape, dtype)
        run(gy, x, sums, *table)
        add(sums, gw)

    return whole


def _spans(axes: Any, size: Any, out: Any) -> Any:
    """Of each tap down, then along: (first, end) of outputs o that it meets; o * step + offset."""
    spans = []
    for (classes, step), most, count in zip(axes, size, out, strict=True):
        for _, offset in classes[0]:
            first = min(count, max(0, -(offset // step)))
            end = max(first, min(count, (most - 1 - offset) // step + 1))
            spans += [first, end, offset]
    return np.array(spans, np.int64)


def added(
    device: Any, dtype: str, parts: int, taps: int, channels: int
) -> tuple[Callable[..., None], tuple[int, int, int]]:
    """(run(sums, gw), the shape of sums): gw (channels, taps) of sums (parts, taps, channels)."""
    count = lanes(dtype)
    pitch, group = ceil(channels / count) * count, max(1, 256 // count) * count
    run: Callable[..., None] = device.prepare(
        Kernel("depthwise_add_parts", _add_parts, (("dtype", dtype),)),
        ceil(pitch / group), several=parts * taps * pitch > 4 * WORK, number=parts, group=group,
        taps=taps, channels=channels, pitch=pitch,
    )  # fmt: skip
    return run, (parts, taps, pitch)
