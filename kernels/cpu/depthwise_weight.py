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

from gpuconv.kernels.cpu import depthwise_last_weight
from gpuconv.kernels.cpu.compiler import I64, I64P, Data, Kernel
from gpuconv.kernels.cpu.depthwise_last import BAND, WORK, lanes
from gpuconv.kernels.cpu.depthwise_last_weight import added, shares

# --- kernels


def _strip(part: bool) -> Any:
    """strip(...): sums with the rows first .. end of the input, of one vector of columns."""
    from numba import njit

    from gpuconv.kernels.cpu.depthwise_roll import advance, filled, load_rows, row_weights
    from gpuconv.kernels.cpu.vector import prefetch

    def strip(  # type: ignore[no-untyped-def]
        sums, zero, high, x, gy, first, end, ahead, top, width, out_height, out_width, bounds
    ):
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
            prefetch(at + ahead * width)
            prefetch(near + ahead * out_width)
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
        walk: I64,
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
        end = min(begin + band, height)
        channel, repeat = first // times, first % times
        channels = outputs // times
        for k in range(first, min(first + group, outputs)):
            sums = filled(zero, taps, 1)
            for n in range(turn * images_each, min(images, (turn + 1) * images_each)):
                x_at = x + (n * channels + channel) * height * width
                gy_at = gy + (n * outputs + k) * out_height * out_width
                for low in range(begin, end, walk):
                    most = min(low + walk, end)
                    for q in range(0, out_width, count):
                        column = q - left
                        bounds = -column, width - column, out_width - q
                        room = min(width - column - (wide - 1), out_width - q)
                        if column >= 0 and room >= count:
                            sums = inner(
                                sums, zero, high, x_at + column, gy_at + q, low, most, walk, top,
                                width, out_height, out_width, bounds,
                            )  # fmt: skip
                        else:
                            sums = edge(
                                sums, zero, high, x_at + column, gy_at + q, low, most, walk, top,
                                width, out_height, out_width, bounds,
                            )  # fmt: skip
            sums_of(sums_at + (part * pitch + k * taps), sums)
            repeat += 1
            if repeat == times:
                repeat = 0
                channel += 1

    return rows_weight


def _planes_weight(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.depthwise_tile import fill_tile
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


# --- plans


def grad_weight(
    device: Any, spec: Any, dtype: str, last: bool, rolling: bool, axes: Any
) -> Callable[..., None]:
    """run(gy, x, gw); `axes` is `depthwise.axis` of both axes, forward."""
    if last:
        return depthwise_last_weight.grad_weight(device, spec, dtype, rolling, axes)
    return _nchw(device, spec, dtype, rolling, axes)


def _nchw(device: Any, spec: Any, dtype: str, rolling: bool, axes: Any) -> Callable[..., None]:
    (n, c, *size), out, outputs = spec.x_shape, spec.y_shape[2:], spec.w_shape[0]
    taps, count = spec.kernel[0] * spec.kernel[1], lanes(dtype)
    numbers = {
        "outputs": outputs, "times": outputs // c, "height": size[0], "width": size[1],
        "out_height": out[0], "out_width": out[1], "top": spec.padding[0][0],
        "left": spec.padding[1][0], "pitch": ceil(outputs * taps / count) * count,
    }  # fmt: skip
    if rolling:
        work = ceil(out[1] / lanes(dtype)) * taps
        images_each, band = shares(n, size[0], outputs, work)
        bands = ceil(size[0] / band)
        walk = ceil(band / max(1, round(band * size[1] * np.dtype(dtype).itemsize / BAND)))
        group = max(1, min(WORK // (work * band * images_each), outputs // 16))
        parts = ceil(n / images_each) * bands
        constants = ("dtype", dtype), ("high", spec.kernel[0]), ("wide", spec.kernel[1])
        run = device.prepare(
            Kernel("depthwise_rows_weight", _rows_weight, constants),
            parts * ceil(outputs / group),
            group=group, images=n, images_each=images_each, bands=bands, band=band, walk=walk,
            **numbers,
        )  # fmt: skip
        table: tuple[Any, ...] = ()
    else:
        run, places, parts = _tiled(device, spec, dtype, numbers, axes)
        table = (places,)
    add, shape = added(device, dtype, parts, 1, outputs * taps)

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
