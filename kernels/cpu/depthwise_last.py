"""Depthwise convolution, channels-last."""

from collections.abc import Callable
from math import ceil, inf
from typing import Any

from gpuconv.kernels.cpu.compiler import I64, Data, Float, Kernel, current

ZEROS = 64  # bytes of zeros that rows outside the image are read from


def _columns(dtype: str, high: int, wide: int, rows: int, add: bool, part: bool) -> Any:
    from gpuconv.kernels.cpu.depthwise_roll import (
        advance,
        column_products,
        filled,
        finished,
        sources,
        write_rows,
    )
    from gpuconv.kernels.cpu.depthwise_roll import load_rows
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, store

    count, taps, needed, behind = lanes(dtype), high * wide, rows + high - 1, wide - 1

    def columns(
        task: I64,
        thread: I64,
        x: Data,
        w: Data,
        b: Data,
        add_to: Data,
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
        nothing = scratch + thread * count
        zero = splat(x, 0.0)
        store(nothing, zero)
        least = splat(x, floor)
        image = task // (chunks * bands)
        rest = task - image * chunks * bands
        part_of = rest // bands
        low = (rest - part_of * bands) * band
        high_row = min(low + band, out_height)
        c_first = part_of * chunk
        c_end = channels if part_of == chunks - 1 else c_first + chunk
        x_image = x + image * height * width * channels
        y_image = y + image * out_height * out_width * channels
        add_image = add_to + image * out_height * out_width * channels
        before = min(behind - left, width)
        for p in range(low, high_row, rows):
            valid = min(rows, high_row - p)
            at_row = p * out_width * channels
            for begin in range(c_first, c_end, count):
                c = begin
                if not part:
                    c = min(begin, channels - count)
                weights = load_rows(w + c, pitch, taps, taps, 0, False)
                start = zero
                if bias:
                    start = load_part(b + c, channels - c) if part else load(b + c)
                pointers, masks = sources(
                    x_image + c, p - top, height, width * channels, nothing, needed
                )
                sums = filled(start, wide, rows)
                out = at_row + c + (left - behind) * channels
                for i in range(before):
                    sums = column_products(
                        sums, weights, pointers, masks, i * channels, channels, part
                    )
                    sums = advance(sums, start)
                    out += channels
                for i in range(before, width):
                    sums = column_products(
                        sums, weights, pointers, masks, i * channels, channels, part
                    )
                    write_rows(
                        finished(sums), y_image + out, out_width * channels, valid, channels,
                        part, add, add_image + out, least,
                    )
                    sums = advance(sums, start)
                    out += channels
                for i in range(width, out_width + behind - left):
                    if i >= behind - left:
                        write_rows(
                            finished(sums), y_image + out, out_width * channels, valid, channels,
                            part, add, add_image + out, least,
                        )
                    sums = advance(sums, start)
                    out += channels

    return columns


def _pack(dtype: str) -> Any:
    def pack(
        task: I64, thread: I64, w: Data, packed: Data, channels: I64, taps: I64, pitch: I64, flip: I64
    ) -> None:
        for t in range(taps):
            source = t
            if flip:
                source = taps - 1 - t
            for c in range(channels):
                packed[t * pitch + c] = w[c * taps + source]
            for c in range(channels, pitch):
                packed[t * pitch + c] = 0.0

    return pack
def fast(device: Any, dtype: str, shape: Any, out: Any, window: Any, pads: Any, bias, add, relu, flip, chunk=None, band=None, rows=2):
    lanes = current().vector // (4 if dtype == "float32" else 8)
    n, c, h, w_ = shape
    p, q = out
    r, s = window
    part = c < lanes
    chunk = chunk or c
    band = band or p
    chunks = max(1, c // chunk)
    bands = ceil(p / band)
    pitch = max(c, lanes)
    kernel = Kernel("depthwise_columns", _columns, (("dtype", dtype), ("high", r), ("wide", s), ("rows", rows), ("add", add), ("part", part)))
    packer = Kernel("depthwise_pack", _pack, (("dtype", dtype),))
    first = device.prepare(packer, 1, channels=c, taps=r * s, pitch=pitch, flip=int(flip))
    second = device.prepare(kernel, n * chunks * bands, scratch=ZEROS, chunks=chunks, chunk=chunk, bands=bands, band=band, channels=c, pitch=pitch,
        height=h, width=w_, out_height=p, out_width=q, top=pads[0], left=pads[1], bias=int(bias), floor=0.0 if relu else -inf)
    def run(x, w, b, add, y):
        packed = device.empty((r * s, pitch), dtype)
        first(w, packed)
        second(x, packed, b, add, y)
    return run, kernel
