"""The kernels of `weight`: tiles of outer products over lists of pixels, and the sum of chunks.

What a task does with each unit: copy gy into panels, copy x where the plan says so, list the pixels
that each tap sees, then pass every tile over its list. At the end its sums go into gw, transposed.
"""

from collections.abc import Callable
from typing import Any

from gpuconv.kernels.cpu.compiler import I32P, I64, I64P, Data


def outer(dtype: str, rows: int, wide: int, narrow: int) -> Callable[..., None]:
    from numba import njit

    from gpuconv.kernels.cpu.square import (
        rows_at,
        square,
        square_part,
        square_rows,
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
    entry = rows + 4

    def swept(vectors: int) -> Any:
        columns = vectors * n

        @njit(inline="always")
        def sweep(
            x: Any, starts: Any, g: Any, pitch: Any, pixels: Any, count: Any, sums_at: Any, add: Any
        ) -> None:
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
    def block(left: Any) -> Any:
        """How many of the `left` vectors the next block takes: a last one alone is avoided."""
        if left >= wide and (left - wide != 1 or narrow == 1):
            return wide
        return narrow

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
    def panel(to: Any, kw: Any, start: Any, step: Any, channels: Any, count: Any) -> None:
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
        for number in range(first, (chunk + 1) * units // chunks):
            q0 = number % spans * span
            width = min(span, q_all - q0)
            image = number // spans
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
                step_x, step_y, image_x = (
                    stride_w * channels,
                    stride_h * w * channels,
                    h * w * channels,
                )
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
                step_x, step_y, image_x = (
                    stride_w * each,
                    stride_h * full,
                    planes * full_lines * full,
                )

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
                                        for e in range(0, rows, n):
                                            value = load_part(
                                                start + (col * channels + c * rows + e), many - e
                                            )
                                            store_part(to + (q * rows + e), value, many - e)
                origin = x_copy + -c_first * images * image_x

            # the pixels that each tap sees, if they are others than in the last number
            place = -1
            if p0 < p_inner or p0 + height > p_outer or spans > 1:
                place = number % (bands * spans)
            if place != listed or count != images or height != band or number == first:
                for tap in range(lists):
                    here = table + tap * entry
                    q1, q2 = max(here[rows + 2] - q0, 0), min(here[rows + 3] - q0, width)
                    m = 0
                    to = pixels_at + tap * 2 * images * band * span
                    for i in range(count):
                        for p in range(max(here[rows] - p0, 0), min(here[rows + 1] - p0, height)):
                            pixel = (i * height + p) * width
                            at = i * image_x + p * step_y
                            for q in range(q1, q2):
                                to[m] = at + q * step_x
                                to[m + 1] = pixel + q
                                m += 2
                    lengths[tap] = m // 2
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
                    tap = t % lists
                    seen = pixels_at + tap * 2 * images * band * span
                    starts, add = table + t * entry, number - first
                    if size == wide:
                        sweep_wide(origin, starts, g, pitch, seen, lengths[tap], into, add)
                    else:
                        sweep_narrow(origin, starts, g, pitch, seen, lengths[tap], into, add)
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

    return weight


def added_up(dtype: str) -> Callable[..., None]:
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

    return added
