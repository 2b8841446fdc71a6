"""Depthwise convolution, channels-last: vectors hold channels of a pixel.

*Rolling*, of 3x3 and 5x5 windows with stride 1: some rows of the output at once, `channels` of one
vector, are walked along the columns of the image, every weight in a register:

    w:    0   1   2   3  ...
    h-1   x   x   x             each pixel is loaded once and added to the sums of all the output
    h     x   x   x             pixels that it is part of, of `rows` rows and S columns; after each
    h+1   x   x   x             column, one column of sums is complete and stored
    h+2   x   x   x

*By pixels*, of all others: for each row and for each column of the result a list of the rows or
columns and taps that it takes; what lies in the padding is in no list. Forward and the gradient by
input differ in the lists only.

Weights are packed first, tap by tap. With several output channels a group, the input's channels are
repeated before, or the gradient's added up after. Tasks are bands of rows of an image, and runs of
channels where there are many.
"""

from collections.abc import Callable
from math import ceil, inf
from typing import Any

import numpy as np

from gpuconv.kernels.cpu.compiler import I64, I64P, Data, Float, Kernel, current

WORK = 1 << 14  # products of vectors that are worth a task
BAND = 1 << 14  # bytes of input rows that are walked at a time: they stay in the first cache


def lanes(dtype: str) -> int:
    """How many numbers a vector of the processor holds."""
    return current().vector // np.dtype(dtype).itemsize


# --- kernels


def _pack(dtype: str) -> Callable[..., None]:
    def pack(
        task: I64, thread: I64, w: Data, packed: Data, channels: I64, taps: I64, pitch: I64,
        turned: I64,
    ) -> None:  # fmt: skip
        t = task
        if turned:
            t = taps - 1 - task
        here = packed + task * pitch
        for c in range(channels):
            here[c] = w[c * taps + t]
        for c in range(channels, pitch):
            here[c] = 0.0

    return pack


def _expand(dtype: str) -> Callable[..., None]:
    def expand(
        task: I64, thread: I64, x: Data, y: Data, group: I64, pixels: I64, channels: I64, times: I64
    ) -> None:
        first = task * group
        for i in range(first * channels, min(pixels, first + group) * channels):
            for j in range(times):
                y[i * times + j] = x[i]

    return expand


def _reduce(dtype: str) -> Callable[..., None]:
    def reduce(
        task: I64, thread: I64, x: Data, y: Data, group: I64, pixels: I64, channels: I64, times: I64
    ) -> None:
        first = task * group
        for i in range(first * channels, min(pixels, first + group) * channels):
            number = x[i * times]
            for j in range(1, times):
                number += x[i * times + j]
            y[i] = number

    return reduce


def _columns(
    dtype: str, high: int, wide: int, rows: int, add: bool, part: bool
) -> Callable[..., None]:
    from gpuconv.kernels.cpu.depthwise_roll import (
        advance,
        column_products,
        filled,
        finished,
        load_rows,
        sources,
        write_rows,
    )
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, store

    count, taps, needed, behind = lanes(dtype), high * wide, rows + high - 1, wide - 1

    def columns(
        task: I64,
        thread: I64,
        x: Data,
        w: Data,
        b: Data,
        added: Data,
        y: Data,
        scratch: Data,
        chunks: I64,
        chunk: I64,
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
        bias: I64,
        floor: Float,
    ) -> None:
        nothing = scratch + thread * count  # what rows outside the image are read from
        store(nothing, splat(x, 0.0))
        least = splat(x, floor)
        step = out_width * channels
        image = task // (chunks * bands)
        turn = task - image * (chunks * bands)
        run = turn // bands
        begin = (turn - run * bands) * band
        end = min(begin + band, out_height)
        c_end = channels
        if run < chunks - 1:
            c_end = run * chunk + chunk
        before = min(behind - left, width)
        for p in range(begin, end, rows):
            valid = min(rows, end - p)
            for at in range(run * chunk, c_end, count):
                c = at
                if not part:
                    c = min(at, channels - count)  # the last vector may compute some again
                weights = load_rows(w + c, pitch, taps, taps, count, False)
                start = splat(x, 0.0)
                if bias:
                    start = load_part(b + c, channels - c) if part else load(b + c)
                pointers, masks = sources(
                    x + (image * height * width * channels + c), p - top, height,
                    width * channels, nothing, needed,
                )  # fmt: skip
                sums = filled(start, wide, rows)
                out = (image * out_height + p) * step + (left - behind) * channels + c
                here, more = y + out, added + out
                for i in range(before):
                    sums = column_products(
                        sums, weights, pointers, masks, i * channels, channels, part
                    )
                    sums = advance(sums, start)
                    here, more = here + channels, more + channels
                for i in range(before, width):
                    sums = column_products(
                        sums, weights, pointers, masks, i * channels, channels, part
                    )
                    write_rows(finished(sums), here, step, valid, channels, part, add, more, least)
                    sums = advance(sums, start)
                    here, more = here + channels, more + channels
                for i in range(width, out_width + behind - left):
                    if i >= behind - left:
                        write_rows(
                            finished(sums), here, step, valid, channels, part, add, more, least
                        )
                    sums = advance(sums, start)
                    here, more = here + channels, more + channels

    return columns


def _pixels(dtype: str, add: bool, part: bool) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import (
        fma,
        lanes,
        load,
        load_part,
        maximum,
        splat,
        store,
        store_part,
    )

    count = lanes(dtype)

    def pixels(
        task: I64,
        thread: I64,
        x: Data,
        w: Data,
        b: Data,
        added: Data,
        y: Data,
        down: I64P,
        along: I64P,
        bands: I64,
        band: I64,
        channels: I64,
        image: I64,
        out_height: I64,
        out_width: I64,
        bias: I64,
        floor: Float,
    ) -> None:
        least = splat(x, floor)
        n = task // bands
        begin = (task - n * bands) * band
        rows, columns = down + (out_height + 1), along + (out_width + 1)
        for p in range(begin, min(begin + band, out_height)):
            for at in range(0, channels, count):
                c = at
                if not part:
                    c = min(at, channels - count)
                left = channels - c
                start = splat(x, 0.0)
                if bias:
                    start = load_part(b + c, left) if part else load(b + c)
                x_at, w_at = x + (n * image + c), w + c
                out = (n * out_height + p) * out_width * channels + c
                for q in range(out_width):
                    sums = start
                    for i in range(down[p], down[p + 1]):
                        x_row, w_row = x_at + rows[2 * i], w_at + rows[2 * i + 1]
                        for j in range(along[q], along[q + 1]):
                            pixel = x_row + columns[2 * j]
                            number = load_part(pixel, left) if part else load(pixel)
                            sums = fma(load(w_row + columns[2 * j + 1]), number, sums)
                    here = out + q * channels
                    if add:
                        other = added + here
                        sums = sums + (load_part(other, left) if part else load(other))
                    sums = maximum(sums, least)
                    if part:
                        store_part(y + here, sums, left)
                    else:
                        store(y + here, sums)

    return pixels


# --- plans


def packed(
    device: Any, dtype: str, channels: int, taps: int, turned: bool
) -> tuple[Callable[..., Any], int]:
    """(run(w) -> the weights as (taps, pitch), pitch); from the last tap if `turned`."""
    pitch = max(channels, lanes(dtype))
    prepared = device.prepare(
        Kernel("depthwise_pack", _pack, (("dtype", dtype),)),
        taps, several=channels * taps > WORK, channels=channels, taps=taps, pitch=pitch,
        turned=int(turned),
    )  # fmt: skip

    def run(w: Any) -> Any:
        result = device.empty((taps, pitch), dtype)
        prepared(w, result)
        return result

    return run, pitch


def times(
    device: Any, dtype: str, pixels: int, channels: int, factor: int, add: bool = False
) -> Callable[..., None]:
    """run(x, y): each channel of x (pixels, channels) `factor` times in y, or such added up."""
    group = max(1, WORK // (channels * factor))
    name, make = ("reduce", _reduce) if add else ("expand", _expand)
    run: Callable[..., None] = device.prepare(
        Kernel(f"depthwise_{name}", make, (("dtype", dtype),)),
        ceil(pixels / group), group=group, pixels=pixels, channels=channels, times=factor,
    )  # fmt: skip
    return run


def rolling(
    device: Any,
    dtype: str,
    images: int,
    channels: int,
    size: Any,
    out: Any,
    window: Any,
    start: Any,
    bias: bool = False,
    add: bool = False,
    relu: bool = False,
    turned: bool = False,
) -> Callable[..., None]:
    """run(x, w, b, add, y) of images of `size` to images of `out`; `start` is the padding."""
    count, taps = lanes(dtype), window[0] * window[1]
    weights, pitch = packed(device, dtype, channels, taps, turned)
    rows = tall(window)
    vectors = ceil(channels / count)
    row = out[1] * taps * vectors
    band = min(out[0], rows * max(1, ceil(WORK / (row * rows))))
    bands = ceil(out[0] / band)
    chunks = min(max(1, 8 // (images * bands)), max(1, channels // (4 * count)))
    chunk = vectors // chunks * count
    constants = (
        ("dtype", dtype), ("high", window[0]), ("wide", window[1]), ("rows", rows), ("add", add),
        ("part", channels < count),
    )  # fmt: skip
    run = device.prepare(
        Kernel("depthwise_columns", _columns, constants),
        images * chunks * bands,
        scratch=current().vector, chunks=chunks, chunk=chunk, bands=bands, band=band,
        channels=channels, pitch=pitch, height=size[0], width=size[1], out_height=out[0],
        out_width=out[1], top=start[0], left=start[1], bias=int(bias), floor=0.0 if relu else -inf,
    )  # fmt: skip
    return lambda x, w, b, add, y: run(x, weights(w), b, add, y)


def tall(window: Any) -> int:
    """How many rows of the output the rolling kernels have in registers."""
    if current().registers < 32:
        return 1
    return 2 if window[0] > 3 else 4


def by_pixels(
    device: Any,
    spec: Any,
    dtype: str,
    axes: Any,
    turned: bool,
    bias: bool = False,
    add: bool = False,
    relu: bool = False,
) -> Callable[..., None]:
    """run(x, w, b, add, y), or of the gradient by input; `axes`: `depthwise.axis` of both."""
    channels, images = spec.w_shape[0], spec.x_shape[0]
    size, out = spec.x_shape[2:], spec.y_shape[2:]
    if turned:
        size, out = out, size
    taps = spec.kernel[0] * spec.kernel[1]
    weights, pitch = packed(device, dtype, channels, taps, False)
    down = _lists(axes[0], size[0], out[0], size[1] * channels, spec.kernel[1] * pitch)
    along = _lists(axes[1], size[1], out[1], channels, pitch)
    band = min(out[0], ceil(WORK / (out[1] * taps * ceil(channels / lanes(dtype)))))
    bands = ceil(out[0] / band)
    constants = ("dtype", dtype), ("add", add), ("part", channels < lanes(dtype))
    run = device.prepare(
        Kernel("depthwise_pixels", _pixels, constants),
        images * bands, bands=bands, band=band, channels=channels,
        image=size[0] * size[1] * channels, out_height=out[0], out_width=out[1], bias=int(bias),
        floor=0.0 if relu else -inf,
    )  # fmt: skip
    return lambda x, w, b, add, y: run(x, weights(w), b, add, y, down, along)


def _lists(axis: Any, size: int, out: int, step: int, w_step: int) -> Any:
    """For each output along an axis where its list begins; then (distance in x, in w) of all."""
    classes, stride = axis
    starts, entries = [0], []
    for o in range(out):
        u, c = divmod(o, len(classes))
        for tap, offset in classes[c]:
            if 0 <= u * stride + offset < size:
                entries += [(u * stride + offset) * step, tap * w_step]
        starts.append(len(entries) // 2)
    return np.array(starts + entries, np.int64)


def forward(
    device: Any, spec: Any, dtype: str, axes: Any, bias: bool, add: bool, relu: bool
) -> Callable[..., None]:
    """run(x, w, b, add, y); `axes` is None for the rolling kernel."""
    (n, c, *size), outputs = spec.x_shape, spec.w_shape[0]
    options = {"bias": bias, "add": add, "relu": relu}
    if axes is None:
        start = spec.padding[0][0], spec.padding[1][0]
        run = rolling(
            device, dtype, n, outputs, size, spec.y_shape[2:], spec.kernel, start, **options
        )
    else:
        run = by_pixels(device, spec, dtype, axes, False, **options)
    if outputs == c:
        return run
    pixels = n * size[0] * size[1]
    repeat = times(device, dtype, pixels, c, outputs // c)

    def repeated(x: Any, w: Any, b: Any, add: Any, y: Any) -> None:
        more = device.empty((pixels, outputs), dtype)
        repeat(x, more)
        run(more, w, b, add, y)

    return repeated


def grad_input(device: Any, spec: Any, dtype: str, axes: Any) -> Callable[..., None]:
    """run(gy, w, gx); `axes` is None for the rolling kernel."""
    (n, c, *size), outputs = spec.x_shape, spec.w_shape[0]
    if axes is None:
        start = tuple(k - 1 - lo for k, (lo, _) in zip(spec.kernel, spec.padding, strict=True))
        run = rolling(
            device, dtype, n, outputs, spec.y_shape[2:], size, spec.kernel, start, turned=True
        )
    else:
        run = by_pixels(device, spec, dtype, axes, True)
    if outputs == c:
        return lambda gy, w, gx: run(gy, w, None, None, gx)
    pixels = n * size[0] * size[1]
    reduce = times(device, dtype, pixels, c, outputs // c, add=True)

    def reduced(gy: Any, w: Any, gx: Any) -> None:
        more = device.empty((pixels, outputs), dtype)
        run(gy, w, None, None, more)
        reduce(more, gx)

    return reduced
