"""Depthwise convolution: one input channel a group; forward, gradient by input and by weight.

NCHW is here: vectors hold pixels of a row. Channels-last, where vectors hold channels, is in
`depthwise_last`, gradients by weight in `depthwise_weight`. There are two ways in each.

*Rolling*, of 3x3 and 5x5 windows with stride 1 (see `depthwise_roll`): a strip of one vector of
columns is walked down, straight on the arrays, every weight in a register:

    strip of lanes columns        loads outside the image are masked off: that is the padding
    | . [--------] . . |  row h   is loaded once for each of the S columns of the window and
    | . [--------] . . |  h + 1   added to the R sums that it is part of; one of them is complete
    | . [--------] . . |  h + 2

*Tiled*, of all others: the rows that a task needs are copied to the thread's scratch, with the
padding, and by stride into phases, so that neighbours in a row of the output read neighbours:

    x:    0 1 2 3 4 5 6 ...      tile (stride 2): 0 2 4 6 ... | 1 3 5 ...

and tables say where in the tile the taps of a window lie. The gradient by input is the same sum:
with stride 1, the rolling one with the window turned; else tables for each of the phases of x that
take part in different taps. Tasks are planes, or bands of rows of them; several if they are small.
"""

from collections.abc import Callable
from math import ceil, inf
from typing import Any

import numpy as np

from gpuconv.kernels.cpu import depthwise_last, depthwise_weight
from gpuconv.kernels.cpu.compiler import I64, I64P, Data, Float, Kernel
from gpuconv.kernels.cpu.depthwise_last import BAND, WORK, lanes

ROLLING = ((3, 3), (5, 5))


def rolls(spec: Any) -> bool:
    """True if the rolling kernels take it."""
    return (
        tuple(spec.kernel) in ROLLING
        and spec.stride == (1, 1)
        and spec.dilation == (1, 1)
        and all(max(pads) < size for pads, size in zip(spec.padding, spec.kernel, strict=True))
    )


# --- rolling


def _walk(part: bool, add: bool) -> Any:
    """walk(...): one strip of one vector, down the rows h_first .. h_end of the input."""
    from numba import njit

    from gpuconv.kernels.cpu.depthwise_roll import advance, finished, row_products, write_rows
    from gpuconv.kernels.cpu.vector import prefetch

    def walk(  # type: ignore[no-untyped-def]
        sums, weights, start, least, x, y, added, rows, width, step, low, high, count, ahead
    ):
        first, middle, inside, end = rows
        for _ in range(first, min(middle, inside)):
            sums = advance(row_products(sums, weights, x, low, high, part), start)
            x, y, added = x + width, y + step, added + step
        for _ in range(middle, inside):
            prefetch(x + ahead)
            sums = row_products(sums, weights, x, low, high, part)
            write_rows(finished(sums), y, 0, 1, count, part, add, added, least)
            sums = advance(sums, start)
            x, y, added = x + width, y + step, added + step
        for h in range(inside, end):
            if h >= middle:
                write_rows(finished(sums), y, 0, 1, count, part, add, added, least)
            sums = advance(sums, start)
            y, added = y + step, added + step

    return njit(walk)


def _rows(dtype: str, high: int, wide: int, add: bool) -> Callable[..., None]:
    from gpuconv.kernels.cpu.depthwise_roll import filled, splats
    from gpuconv.kernels.cpu.vector import lanes, splat

    count, taps = lanes(dtype), high * wide
    edge, inner = _walk(True, add), _walk(False, add)

    def rows(
        task: I64,
        thread: I64,
        x: Data,
        w: Data,
        b: Data,
        added: Data,
        y: Data,
        units: I64,
        group: I64,
        bands: I64,
        band: I64,
        channels: I64,
        times: I64,
        height: I64,
        width: I64,
        out_height: I64,
        out_width: I64,
        top: I64,
        left: I64,
        bias: I64,
        turned: I64,
        floor: Float,
    ) -> None:
        least = splat(x, floor)
        outputs = channels * times
        unit = task * group
        plane = unit // bands
        turn, k = unit % bands, plane % outputs
        source, repeat = plane // times, plane % times
        for _ in range(min(group, units - unit)):
            begin = turn * band
            end = min(begin + band, out_height)
            window = w + (k * taps + turned * (taps - 1))
            weights = splats(window, 1 - 2 * turned, taps)
            value = 0.0
            if bias:
                value = float(b[k])
            start = splat(x, value)
            # Rows of the input: from the first; from where a sum is complete; to the last; and on.
            first = max(0, begin - top)
            middle = begin - top + high - 1
            last = end - top + high - 1
            inside = max(first, min(height, last))
            x_plane = x + (source * height + first) * width
            at = (plane * out_height + first + top - (high - 1)) * out_width
            for q in range(0, out_width, count):
                column = q - left
                sums = filled(start, high, 1)
                span = (first, middle, inside, last)
                room = min(width - column - (wide - 1), out_width - q)
                if column >= 0 and room >= count:
                    inner(
                        sums, weights, start, least, x_plane + column, y + (at + q),
                        added + (at + q), span, width, out_width, 0, 0, count, band * width,
                    )  # fmt: skip
                else:
                    edge(
                        sums, weights, start, least, x_plane + column, y + (at + q),
                        added + (at + q), span, width, out_width, -column, width - column,
                        out_width - q, band * width,
                    )  # fmt: skip
            # Divisions are slow: count on.
            turn += 1
            if turn == bands:
                turn = 0
                plane += 1
                k += 1
                repeat += 1
                if k == outputs:
                    k = 0
                if repeat == times:
                    repeat = 0
                    source += 1

    return rows


def _rolling(
    device: Any,
    dtype: str,
    images: int,
    channels: int,
    times: int,
    size: tuple[int, int],
    out: tuple[int, int],
    window: tuple[int, int],
    start: tuple[int, int],
    **options: Any,
) -> Callable[..., None]:
    """run(x, w, b, add, y) for planes of `size` to planes of `out`; `start` is the padding."""
    bias, add, relu, turned = (options.get(k, False) for k in ("bias", "add", "relu", "turned"))
    row = size[1] * np.dtype(dtype).itemsize
    bands = max(1, round(out[0] * row / BAND))
    band = ceil(out[0] / bands)
    bands = ceil(out[0] / band)
    units = images * channels * times * bands
    work = band * ceil(out[1] / lanes(dtype)) * window[0] * window[1]
    group = max(1, min(WORK // work, units // 16))
    constants = ("dtype", dtype), ("high", window[0]), ("wide", window[1]), ("add", add)
    return device.prepare(
        Kernel("depthwise_rows", _rows, constants),
        ceil(units / group),
        units=units, group=group, bands=bands, band=band, channels=channels, times=times,
        height=size[0], width=size[1], out_height=out[0], out_width=out[1], top=start[0],
        left=start[1], bias=int(bias), turned=int(turned), floor=0.0 if relu else -inf,
    )  # fmt: skip


# --- tiled


def axis(
    taps: int, stride: int, dilation: int, before: int, turned: bool
) -> tuple[list[list[tuple[int, int]]], int]:
    """What outputs along an axis read: ([[(tap, offset), ...] for each class], step).

    Output o = u * classes + c reads, for each tap of class c, input u * step + offset. Forward
    there is one class; of the gradient by input (`turned`) there are as many as the stride.
    """
    if not turned:
        return [[(r, r * dilation - before) for r in range(taps)]], stride
    reach = [[(r, c + before - r * dilation) for r in range(taps)] for c in range(stride)]
    return [[(r, far // stride) for r, far in row if far % stride == 0] for row in reach], 1


def axes(spec: Any, turned: bool) -> tuple[Any, Any]:
    """`axis` of both."""
    rows, columns = (
        axis(spec.kernel[a], spec.stride[a], spec.dilation[a], spec.padding[a][0], turned)
        for a in (0, 1)
    )
    return rows, columns


def _planes(dtype: str, vectors: int, add: bool) -> Callable[..., None]:
    from gpuconv.kernels.cpu.depthwise_tile import fill_tile
    from gpuconv.kernels.cpu.tile import outer, store_tile, tile
    from gpuconv.kernels.cpu.vector import lanes

    wide = lanes(dtype) * vectors

    def planes(
        task: I64,
        thread: I64,
        x: Data,
        w: Data,
        b: Data,
        added: Data,
        y: Data,
        table: I64P,
        scratch: Data,
        room: I64,
        bands: I64,
        band: I64,
        outputs: I64,
        times: I64,
        summed: I64,
        height: I64,
        width: I64,
        out_height: I64,
        out_width: I64,
        classes_h: I64,
        classes_w: I64,
        step_h: I64,
        step_w: I64,
        top: I64,
        left: I64,
        tile_rows: I64,
        pitch: I64,
        taps: I64,
        bias: I64,
        floor: Float,
    ) -> None:
        plane = task // bands
        begin = (task - plane * bands) * band
        end = min(begin + band, out_height)
        k = plane % outputs
        one = tile_rows * pitch * step_w
        mine = scratch + thread * room
        lines = mine + summed * one
        lines[0] = floor
        least = lines[0]
        lines[0] = 0.0
        value = lines[0]
        if bias:
            value = b[k]
        below = begin // classes_h
        for j in range(summed):
            source = x + (plane // times * summed + j) * height * width
            fill_tile(
                mine + j * one, source, below * step_h + top, tile_rows, height, width, left,
                step_w, pitch,
            )  # fmt: skip
        window = w + k * taps * summed
        places = table + (classes_h * classes_w + 1)
        for p in range(begin, end):
            u = p // classes_h
            kind = (p - u * classes_h) * classes_w
            row = mine + (u - below) * step_h * pitch * step_w
            out = (plane * out_height + p) * out_width
            for f in range(classes_w):
                count = (out_width - f + classes_w - 1) // classes_w
                line = lines + f * pitch
                for q in range(0, count, wide):
                    sums = tile(x, 1, vectors)
                    for t in range(table[kind + f], table[kind + f + 1]):
                        sums = outer(sums, window + places[2 * t + 1], 0, row + (places[2 * t] + q))
                    store_tile(line + q, 0, sums)
            for f in range(classes_w):
                line, here, more = lines + f * pitch, y + (out + f), added + (out + f)
                for i in range((out_width - f + classes_w - 1) // classes_w):
                    number = line[i] + value
                    if add:
                        number += more[i * classes_w]
                    if number < least:
                        number = least
                    here[i * classes_w] = number

    return planes


def _tiled(
    device: Any, spec: Any, dtype: str, turned: bool, bias: bool, add: bool, relu: bool
) -> Callable[..., None]:
    """run(x, w, b, add, y), or of the gradient by input (gy, w, None, None, gx) if `turned`."""
    (_, channels, *x_size), outputs = spec.x_shape, spec.w_shape[0]
    size, out = x_size, list(spec.y_shape[2:])
    times, summed = outputs // channels, 1
    if turned:
        size, out, outputs, times, summed = out, size, channels, 1, times
    item, taps = np.dtype(dtype).itemsize, spec.kernel[0] * spec.kernel[1]
    (rows, step_h), (columns, step_w) = axes(spec, turned)
    (top, bottom), (left, right) = (
        (min(offsets), max(offsets)) if offsets else (0, 0)
        for offsets in ([far for row in found for _, far in row] for found in (rows, columns))
    )
    vectors = 4 if ceil(out[1] / len(columns)) > 2 * lanes(dtype) else 1
    wide = vectors * lanes(dtype)
    pitch = ceil(ceil(out[1] / len(columns)) / wide) * wide + (right - left) // step_w
    # As many classes of rows as fit into the first cache, at least one.
    line = summed * pitch * step_w * item
    most = max(1, (2 * BAND // line - (bottom - top + 1)) // step_h + 1)
    band = min(most, ceil(out[0] / len(rows))) * len(rows)
    tile_rows = (band // len(rows) - 1) * step_h + bottom - top + 1
    bands = ceil(out[0] / band)
    starts, places = [0], []
    for row in rows:
        for column in columns:
            for j in range(summed):
                for r, down in row:
                    for s, along in column:
                        at = (j * tile_rows + down - top) * pitch * step_w
                        at += (along - left) % step_w * pitch + (along - left) // step_w
                        places += [at, j * taps + r * spec.kernel[1] + s]
            starts.append(len(places) // 2)
    table = np.array(starts + places, np.int64)
    room = (summed * tile_rows * step_w + len(columns)) * pitch
    run = device.prepare(
        Kernel("depthwise_planes", _planes, (("dtype", dtype), ("vectors", vectors), ("add", add))),
        spec.x_shape[0] * outputs * bands,
        scratch=room * item, room=room, bands=bands, band=band, outputs=outputs, times=times,
        summed=summed, height=size[0], width=size[1], out_height=out[0], out_width=out[1],
        classes_h=len(rows), classes_w=len(columns), step_h=step_h, step_w=step_w, top=top,
        left=left, tile_rows=tile_rows, pitch=pitch, taps=taps, bias=int(bias),
        floor=0.0 if relu else -inf,
    )  # fmt: skip
    return lambda x, w, b, add, y: run(x, w, b, add, y, table)


# --- plans


def supports(spec: Any, dtype: str, which: str) -> bool:
    """True for one input channel a group, whatever the window."""
    return spec.groups == spec.x_shape[1] and spec.nd == 2


def forward(
    device: Any, spec: Any, dtype: str, last: bool, bias: bool, add: bool, relu: bool
) -> Callable[..., None]:
    """run(x, w, b, add, y): y = relu(conv(x, w) + b + add)."""
    if last:
        lists = None if rolls(spec) else axes(spec, False)
        return depthwise_last.forward(device, spec, dtype, lists, bias, add, relu)
    if not rolls(spec):
        return _tiled(device, spec, dtype, False, bias, add, relu)
    n, c, *size = spec.x_shape
    start = spec.padding[0][0], spec.padding[1][0]
    return _rolling(
        device, dtype, n, c, spec.w_shape[0] // c, size, spec.y_shape[2:], spec.kernel, start,
        bias=bias, add=add, relu=relu,
    )  # fmt: skip


def grad_input(device: Any, spec: Any, dtype: str, last: bool) -> Callable[..., None]:
    """run(gy, w, gx)."""
    if last:
        lists = None if rolls(spec) else axes(spec, True)
        return depthwise_last.grad_input(device, spec, dtype, lists)
    n, c, *size = spec.x_shape
    if rolls(spec) and spec.w_shape[0] == c:
        start = tuple(k - 1 - lo for k, (lo, _) in zip(spec.kernel, spec.padding, strict=True))
        run = _rolling(
            device, dtype, n, c, 1, spec.y_shape[2:], size, spec.kernel, start, turned=True
        )
    else:
        run = _tiled(device, spec, dtype, True, False, False, False)
    return lambda gy, w, gx: run(gy, w, None, None, gx)


def grad_weight(device: Any, spec: Any, dtype: str, last: bool) -> Callable[..., None]:
    """run(gy, x, gw)."""
    return depthwise_weight.grad_weight(device, spec, dtype, last, rolls(spec), axes(spec, False))
