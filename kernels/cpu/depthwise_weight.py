"""Depthwise convolution's gradient by weight: each channel's R x S sums over all pixels.

*Rolling*, of 3x3 and 5x5 windows with stride 1: all R * S sums are vectors in registers. In NCHW,
lanes are neighbours in a row: an input row is loaded once for each of the S columns of the window
and multiplied by the R rows of gy that it meets, which move along in registers; at the end the
lanes are added up. In channels-last, lanes are channels, and rows of the image are walked along.

*Tiled* (NCHW): of x copied with its padding as in `depthwise`, four taps at a time. *By pixels*
(channels-last): tap by tap, over the pixels that the tap meets.

A task takes some channels of some images or of a band of rows. What tasks have of the same channel
is added up in a second launch, in the order of the tasks: the same bits for any number of threads.
Lanes and rows in the padding are left out, not multiplied by zero: infinite numbers stay where they
belong.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np

from gpuconv.kernels.cpu.compiler import I64, Data, I64P, Kernel, current
from gpuconv.kernels.cpu.depthwise_last import WORK, lanes, tall, times

# --- kernels, NCHW


def _strip(part: bool) -> Any:
    """strip(...): sums with the rows first .. end of the input, of one vector of columns."""
    from numba import njit

    from gpuconv.kernels.cpu.depthwise_roll import advance, filled, load_rows, row_weights

    def strip(sums, zero, high, x, gy, first, end, top, width, out_height, out_width, bounds):
        g = filled(zero, high, 1)
        count = bounds[2]
        for p in range(first + top - high + 1, first + top):
            inside = 1 if 0 <= p < out_height else 0
            g = advance(g, load_rows(gy + p * out_width, 0, 1, inside, count, part))
        # All rows of gy that an input row in low .. full meets are there.
        low = min(end, max(first, high - 1 - top))
        full = max(low, min(end, out_height - top))
        for h in range(first, low):
            inside = 1 if h + top < out_height else 0
            g = advance(g, load_rows(gy + (h + top) * out_width, 0, 1, inside, count, part))
            reach = h + top - out_height + 1, h + top + 1
            sums = row_weights(sums, g, x + h * width, bounds, reach, part, True)
        at, near = x + low * width, gy + (low + top) * out_width
        for _ in range(low, full):
            g = advance(g, load_rows(near, 0, 1, 1, count, part))
            sums = row_weights(sums, g, at, bounds, (0, 0), part, False)
            at, near = at + width, near + out_width
        for h in range(full, end):
            inside = 1 if h + top < out_height else 0
            g = advance(g, load_rows(gy + (h + top) * out_width, 0, 1, inside, count, part))
            reach = h + top - out_height + 1, h + top + 1
            sums = row_weights(sums, g, x + h * width, bounds, reach, part, True)
        return sums

    return njit(strip)


def _rows_weight(dtype: str, high: int, wide: int) -> Callable[..., None]:
    from gpuconv.kernels.cpu.depthwise_roll import filled, sums_of
    from gpuconv.kernels.cpu.vector import lanes, splat

    count, taps = lanes(dtype), high * wide
    edge, inner = _strip(True), _strip(False)

    def rows_weight(
        task: I64,
        thread: I64,
        gy: Data,
        x: Data,
        sums_at: Data,
        group: I64,
        images: I64,
        images_each: I64,
        bands: I64,
        band: I64,
        outputs: I64,
        times: I64,
        height: I64,
        width: I64,
        out_height: I64,
        out_width: I64,
        top: I64,
        left: I64,
        pitch: I64,
    ) -> None:
        zero = splat(x, 0.0)
        groups = (outputs + group - 1) // group
        part = task // groups
        turn = part // bands
        begin = (part - turn * bands) * band
        first = (task - part * groups) * group
        for k in range(first, min(first + group, outputs)):
            sums = filled(zero, taps, 1)
            for n in range(turn * images_each, min(images, (turn + 1) * images_each)):
                plane = n * outputs + k
                x_at = x + plane // times * height * width
                gy_at = gy + plane * out_height * out_width
                end = min(begin + band, height)
                for q in range(0, out_width, count):
                    column = q - left
                    bounds = -column, width - column, out_width - q
                    if column >= 0 and column + count + wide - 1 <= width and q + count <= out_width:
                        sums = inner(
                            sums, zero, high, x_at + column, gy_at + q, begin, end, top, width,
                            out_height, out_width, bounds,
                        )  # fmt: skip
                    else:
                        sums = edge(
                            sums, zero, high, x_at + column, gy_at + q, begin, end, top, width,
                            out_height, out_width, bounds,
                        )  # fmt: skip
            sums_of(sums_at + (part * pitch + k * taps), sums)

    return rows_weight


def _planes_weight(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.depthwise_roll import fill_tile
    from gpuconv.kernels.cpu.vector import fma, lanes, load, load_part, splat, total

    count = lanes(dtype)

    def planes_weight(
        task: I64,
        thread: I64,
        gy: Data,
        x: Data,
        sums: Data,
        places: I64P,
        scratch: Data,
        room: I64,
        bands: I64,
        band: I64,
        outputs: I64,
        times: I64,
        height: I64,
        width: I64,
        out_height: I64,
        out_width: I64,
        step_h: I64,
        step_w: I64,
        top: I64,
        left: I64,
        tile_rows: I64,
        tile_pitch: I64,
        taps: I64,
        pitch: I64,
    ) -> None:
        tile = scratch + thread * room
        part, k = task // outputs, task % outputs
        n = part // bands
        begin = (part - n * bands) * band
        end = min(begin + band, out_height)
        plane = n * outputs + k
        fill_tile(
            tile, x + plane // times * height * width, begin * step_h - top, tile_rows, height,
            width, -left, step_w, tile_pitch,
        )  # fmt: skip
        whole = out_width // count * count
        for t in range(0, taps, 4):
            s0 = splat(x, 0.0)
            s1, s2, s3 = s0, s0, s0
            # Beyond the last tap, the last again.
            t1, t2, t3 = min(t + 1, taps - 1), min(t + 2, taps - 1), min(t + 3, taps - 1)
            for p in range(begin, end):
                near = gy + (plane * out_height + p) * out_width
                row = tile + (p - begin) * step_h * step_w * tile_pitch
                a, b, c, d = row + places[t], row + places[t1], row + places[t2], row + places[t3]
                for q in range(0, whole, count):
                    g = load(near + q)
                    s0, s1 = fma(g, load(a + q), s0), fma(g, load(b + q), s1)
                    s2, s3 = fma(g, load(c + q), s2), fma(g, load(d + q), s3)
                if whole < out_width:
                    left_over = out_width - whole
                    g = load_part(near + whole, left_over)
                    s0 = fma(g, load_part(a + whole, left_over), s0)
                    s1 = fma(g, load_part(b + whole, left_over), s1)
                    s2 = fma(g, load_part(c + whole, left_over), s2)
                    s3 = fma(g, load_part(d + whole, left_over), s3)
            here = sums + (part * pitch + k * taps)
            here[t3] = total(s3)
            here[t2] = total(s2)
            here[t1] = total(s1)
            here[t] = total(s0)

    return planes_weight


# --- kernels, channels-last


def _columns_weight(dtype: str, high: int, wide: int, rows: int, part: bool) -> Callable[..., None]:
    from gpuconv.kernels.cpu.depthwise_roll import (
        advance,
        column_weights,
        filled,
        load_rows,
        sources,
    )
    from gpuconv.kernels.cpu.vector import lanes, splat, store, store_tile

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


def grad_weight(
    device: Any, spec: Any, dtype: str, last: bool, rolling: bool, axes: Any
) -> Callable[..., None]:
    """run(gy, x, gw); `axes` is `depthwise.axis` of both axes, forward."""
    if last:
        return _last(device, spec, dtype, rolling, axes)
    return _nchw(device, spec, dtype, rolling, axes)


def _parts(images: int, rows: int, channels: int, work: int) -> tuple[int, int]:
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


def _nchw(
    device: Any, spec: Any, dtype: str, rolling: bool, axes: Any
) -> Callable[..., None]:
    (n, c, *size), out, outputs = spec.x_shape, spec.y_shape[2:], spec.w_shape[0]
    taps, count = spec.kernel[0] * spec.kernel[1], lanes(dtype)
    numbers = {
        "outputs": outputs, "times": outputs // c, "height": size[0], "width": size[1],
        "out_height": out[0], "out_width": out[1], "top": spec.padding[0][0],
        "left": spec.padding[1][0], "pitch": ceil(outputs * taps / count) * count,
    }  # fmt: skip
    if rolling:
        work = ceil(out[1] / lanes(dtype)) * taps
        images_each, band = _parts(n, size[0], outputs, work)
        bands = ceil(size[0] / band)
        group = max(1, min(WORK // (work * band * images_each), outputs // 16))
        parts = ceil(n / images_each) * bands
        constants = ("dtype", dtype), ("high", spec.kernel[0]), ("wide", spec.kernel[1])
        run = device.prepare(
            Kernel("depthwise_rows_weight", _rows_weight, constants),
            parts * ceil(outputs / group),
            group=group, images=n, images_each=images_each, bands=bands, band=band, **numbers,
        )  # fmt: skip
        table: tuple[Any, ...] = ()
    else:
        run, places, parts = _tiled(device, spec, dtype, numbers, axes)
        table = (places,)
    add, shape = _added(device, dtype, parts, 1, outputs * taps)

    def whole(gy: Any, x: Any, gw: Any) -> None:
        if parts == 1:
            run(gy, x, gw, *table)
            return
        sums = device.empty(shape, dtype)
        run(gy, x, sums, *table)
        add(sums, gw)

    return whole


def _tiled(
    device: Any, spec: Any, dtype: str, numbers: dict[str, int], axes: Any
) -> tuple[Callable[..., None], Any, int]:
    (rows, step_h), (columns, step_w) = ((a[0], step) for a, step in axes)
    out, count, item = spec.y_shape[2:], lanes(dtype), np.dtype(dtype).itemsize
    down, along = rows[-1][1] - rows[0][1], columns[-1][1] - columns[0][1]
    pitch = ceil(out[1] / count) * count + along // step_w
    band = min(out[0], max(1, ((1 << 15) // (pitch * step_w * item) - down - 1) // step_h + 1))
    bands = ceil(out[0] / band)
    tile_rows = (band - 1) * step_h + down + 1
    room = tile_rows * step_w * pitch
    places = [
        (far - rows[0][1]) * step_w * pitch
        + (wide - columns[0][1]) % step_w * pitch
        + (wide - columns[0][1]) // step_w
        for _, far in rows
        for _, wide in columns
    ]
    parts = spec.x_shape[0] * bands
    run = device.prepare(
        Kernel("depthwise_planes_weight", _planes_weight, (("dtype", dtype),)),
        parts * spec.w_shape[0],
        scratch=room * item, room=room, bands=bands, band=band, step_h=step_h, step_w=step_w,
        tile_rows=tile_rows, tile_pitch=pitch, taps=len(places), **numbers,
    )  # fmt: skip
    return run, np.array(places, np.int64), parts


def _last(
    device: Any, spec: Any, dtype: str, rolling: bool, axes: Any
) -> Callable[..., None]:
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
        images_each, band = _parts(n, out[0], ceil(vectors / 4), work * vectors)
        band = ceil(band / rows) * rows
        bands = ceil(out[0] / band)
        chunks = max(1, vectors // 4)
        chunk = vectors // chunks * count
        room = count * (1 + taps * (vectors - (chunks - 1) * (chunk // count)))
        parts = ceil(n / images_each) * bands
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
    add, shape = _added(device, dtype, parts, taps, outputs)
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
    """(first, end, offset) of each tap down, then along: outputs that it meets, o * step + offset."""
    spans = []
    for (classes, step), most, count in zip(axes, size, out, strict=True):
        for _, offset in classes[0]:
            first = min(count, max(0, -(offset // step)))
            end = max(first, min(count, (most - 1 - offset) // step + 1))
            spans += [first, end, offset]
    return np.array(spans, np.int64)


def _added(
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
