"""Winograd's convolution F(4x4, 3x3) on CPUs: 3x3 filters, stride 1, in float32; either format.

    image (N, C, H, W)      a band: rows of tiles,         V: 36 values a tile and channel
      +---+---+---+         16 channels a vector             [panel][block][xi][tile][channel]
      |   |   |   |  fetch  +-------------------+  B' x B
      +---+---+---+ ------> | h x w x 16, with  | ------->     M = V U for each of 36 xi,
      |   |   |   |         | its padding       |            a sum over the channels
      +---+---+---+         +-------------------+
    filters (K, C, 3, 3)   ------------------------------>     U: [panel][block][xi][c][k]
                                   G w G'
    y <- emit (bias, add, relu) <- rows of pixels, 16 k a vector <- A' M A <- M

Vectors are channels (16 with AVX-512: a *block*), so that transforms are plain arithmetic, and an
image with channels in planes is turned over when it is fetched and emitted. The products are loops
of `outer` over registers of `ROWS` tiles (a panel of V) times `vectors` vectors of output channels
(a panel of U).

A *task* is some rows of tiles and some panels of U. There are two ways:

- The filters fit the second cache: one launch transforms all of them (a task: a panel and a block);
  a task of the second has its rows of tiles for itself, from the image to y.
- They do not: one launch transforms the whole image (a task: some rows of tiles and a block); a
  task of the second transforms the filters of its panels, `chunk` blocks at a time, and uses them
  at once for all of its tiles. This costs a few transforms more, and saves writing and reading 4
  times the weight, which in deep layers is most of the traffic. Of a constant weight, all filters
  are transformed beforehand (FILTERS), and such a task reads them.

Sums over the channels are made of partial sums of `CHUNK` channels: as exact as blocked plain sums.
The gradient by input is the same of gy, with rotated filters, c and k exchanged, padding 2 - pad.
Results have the same bits for every number of threads. An infinity or NaN in the input makes NaN of
the tiles that see it. (Lavin and Gray, arXiv 1509.09308.)
"""

from collections.abc import Callable
from typing import Any

from gpuconv.kernels.cpu.compiler import F32, I64, Kernel, current
from gpuconv.kernels.cpu.plan import Packed, PackedByTasks

FILTERS, INPUTS, OUTPUTS = range(3)  # what a launch computes
CHUNK = 32  # channels a partial sum
LEAST = 16  # channels, in and out: with fewer, plain sums are 4 times as exact, and faster
SECOND_CACHE = 1 << 20  # bytes of it that the filters may take
BAND = 1 << 16  # bytes of an image that are transformed at a time
TASK_BYTES = 1 << 19  # what a task's V and M should take of that cache
MOST_TILES = 112  # a task
LEAST_TASKS = 14  # if there are so many rows of tiles
FEW_TILES = 8  # fewer are sooner summed than filters for them are read
MOST_WORKSPACE = 1 << 26  # bytes of a transformed image


def _winograd(size: int, rows: int, vectors: int) -> Callable[..., None]:
    from numba import njit

    from gpuconv.kernels.cpu.tile import outer, tile
    from gpuconv.kernels.cpu.vector import address, lanes, load_part, prefetch, splat, store
    from gpuconv.kernels.cpu.winograd_transform import (
        add_blocks,
        copies,
        store_blocks,
        transforms,
    )  # fmt: skip

    count = lanes("float32")
    wide = vectors * count
    all_xi = (size + 2) ** 2
    v_block = all_xi * rows * count  # numbers of V in a panel and block; M's blocks are alike
    few = count // 2
    u_part = all_xi * few * wide  # of so few channels that its pages fit the processor's tables
    u_block = 2 * u_part
    filter_tile, input_tile, inverse_tile = transforms(size)
    device = njit(error_model="numpy")
    turn, fetch, emit = copies(device)

    @device
    def following(u: Any) -> None:
        """The caches ask for what lies beside u for the next xi."""
        for i in range(vectors):
            prefetch(u + (few * wide + i * count))

    def product(tiles: int) -> Any:
        @device
        def sums(m: Any, v: Any, u: Any, channels: Any, more: Any) -> None:
            """One tile of registers of M for one xi, or more added to it."""
            acc = tile(m, tiles, vectors)
            while channels >= count:
                for c in range(few):
                    acc = outer(acc, v + c, count, u + c * wide)
                    following(u + c * wide)
                u = u + u_part
                for c in range(few):
                    acc = outer(acc, v + (few + c), count, u + c * wide)
                    following(u + c * wide)
                v, u, channels = v + v_block, u + u_part, channels - count
            for c in range(channels):
                if c == few:
                    u = u + (u_part - few * wide)
                acc = outer(acc, v + c, count, u + c * wide)
            if more:
                acc = add_blocks(acc, m, v_block)
            store_blocks(m, v_block, acc)

        return sums

    steps = [rows, *(r for r in (10, 7, 4, 2) if r < rows)]
    steps += [2] * (5 - len(steps))
    all_rows, second, third, fourth, fifth = (product(r) for r in steps)
    r2, r3, r4, r5 = steps[1:]

    @device
    def filters(
        u: Any, w: Any, spare: Any, panel: Any, block: Any, k: Any, c: Any,
        k_step: Any, c_step: Any, flip: Any,
    ) -> None:  # fmt: skip
        """The filters of a block of channels and a panel of output channels, transformed."""
        c0 = block * count
        inner = min(c - c0, count)
        for vector in range(vectors):
            k0 = panel * wide + vector * count
            outputs = k - k0
            to = u + vector * count
            if outputs <= 0:
                for xi in range(all_xi):
                    for i in range(inner):
                        at_i = to + (i // few * u_part + i % few * wide)
                        store(at_i + xi * few * wide, splat(u, 0))
            else:
                at = w + (k0 * k_step + c0 * c_step)
                if c_step == 9:
                    turn(spare, at, k_step, inner * 9, outputs)
                else:
                    for i in range(inner):
                        turn(spare + i * 9 * count, at + i * c_step, k_step, 9, outputs)
                for i in range(inner):
                    taps, step = spare + i * 9 * count, count
                    if flip:
                        taps, step = taps + 8 * count, -count
                    at_i = to + (i // few * u_part + i % few * wide)
                    filter_tile(taps, 3 * step, step, at_i, few * wide)

    @device
    def inputs(
        v: Any, band: Any, x: Any, first: Any, end: Any, block: Any, blocks: Any, most: Any,
        across: Any, down: Any, top: Any, left: Any, c: Any, h: Any, w: Any, last: Any,
    ) -> None:  # fmt: skip
        """Rows of tiles first .. end, transformed, from the beginning of V on; one block."""
        v, slot = v + block * v_block, 0
        image, y = first // down, first % down
        left_over = end - first
        wide_band = size * across + 2
        while left_over > 0:
            some = min(min(most, down - y), left_over)
            fetch(
                band, x, image, size * y - top, size * some + 2, left, wide_band, block, c, h, w,
                last,
            )  # fmt: skip
            for i in range(some):
                at = band + size * i * wide_band * count
                for _ in range(across):
                    input_tile(at, wide_band * count, count, v + slot * count, rows * count)
                    at, slot = at + size * count, slot + 1
                    if slot == rows:
                        v, slot = v + blocks * v_block, 0
            left_over, y = left_over - some, y + some
            if y == down:
                image, y = image + 1, 0

    @device
    def products(
        m: Any, v: Any, u: Any, tiles: Any, m_blocks: Any, v_blocks: Any, u_blocks: Any,
        panels: Any, channels: Any, more: Any,
    ) -> None:  # fmt: skip
        """M, of `panels` panels of U, for all xi; the sum over `channels`, at v and u."""
        for xi in range(all_xi):
            for panel in range(panels):
                m_at = m + (panel * vectors * v_block + xi * rows * count)
                v_at = v + xi * rows * count
                u_at = u + (panel * u_blocks * u_block + xi * few * wide)
                left = tiles
                while left > 0:
                    if left > r2:
                        all_rows(m_at, v_at, u_at, channels, more)
                    elif left > r3:
                        second(m_at, v_at, u_at, channels, more)
                    elif left > r4:
                        third(m_at, v_at, u_at, channels, more)
                    elif left > r5:
                        fourth(m_at, v_at, u_at, channels, more)
                    else:
                        fifth(m_at, v_at, u_at, channels, more)
                    m_at, v_at = m_at + m_blocks * v_block, v_at + v_blocks * v_block
                    left -= rows

    @device
    def outputs(
        y: Any, m: Any, pixels: Any, b: Any, add: Any, first: Any, end: Any, k0: Any, most: Any,
        m_blocks: Any, across: Any, down: Any, k: Any, p: Any, q: Any, last: Any, relu: Any,
        spare: Any,
    ) -> None:  # fmt: skip
        """Rows of tiles first .. end of a block of output channels, from its M to y."""
        store(spare, splat(y, 0))
        if address(b) != 0:
            store(spare, load_part(b + k0, k - k0))
        image, line = first // down, first % down
        left, slot = end - first, 0
        while left > 0:
            some = min(min(most, down - line), left)
            for i in range(some):
                # From right to left: what a tile has beyond the right edge lies where the next row
                # begins, and is overwritten.
                slot += across
                back = slot
                for tile_x in range(across - 1, -1, -1):
                    back -= 1
                    at = m + (back // rows * m_blocks * v_block + back % rows * count)
                    to = pixels + size * (i * q + tile_x) * count
                    inverse_tile(at, rows * count, to, q * count)
            total = (min(size * (line + some), p) - size * line) * q
            if last:
                place = (image * p + size * line) * q * k + k0
                emit(y, pixels, add, spare, place, k, total, k - k0, last, relu)
            else:
                place = ((image * k + k0) * p + size * line) * q
                emit(y, pixels, add, spare, place, p * q, total, k - k0, last, relu)
            left, line = left - some, line + some
            if line == down:
                image, line = image + 1, 0

    def winograd(
        task: I64, thread: I64, x: F32, w: F32, b: F32, add: F32, y: F32, u: F32, v: F32,
        scratch: F32, what: I64, c: I64, h: I64, w_in: I64, k: I64, p: I64, q: I64, top: I64,
        left: I64, last: I64, relu: I64, k_step: I64, c_step: I64, flip: I64, across: I64,
        down: I64, lines: I64, each: I64, some: I64, panels: I64, group: I64, chunk: I64,
        fused: I64, kept: I64, m_at: I64, u_at: I64, band_at: I64, spare_at: I64, room: I64,
    ) -> None:  # fmt: skip
        """What a task is depends on `what`.

        `lines` rows of tiles in all, `each` a task, `some` at most in a band; `panels` of U a task,
        `group` of them at a time. A thread's scratch, `room` numbers, begins with its own V;
        other parts are at `m_at` and so on.
        """
        own = scratch + thread * room
        band, spare = own + band_at, own + spare_at
        blocks = (c + count - 1) // count
        all_panels = (k + wide - 1) // wide
        if what == 0:
            panel, block = task // blocks, task % blocks
            to = u + task * u_block
            filters(to, w, spare, panel, block, k, c, k_step, c_step, flip)
            return
        tasks_across = blocks
        if what == 2:
            tasks_across = (all_panels + panels - 1) // panels
        part, other = task // tasks_across, task % tasks_across
        first = part * each
        end = min(first + each, lines)
        tile_panels = (each * across + rows - 1) // rows
        v_at = v + part * tile_panels * blocks * v_block
        if what == 1:
            inputs(
                v_at, band, x, first, end, other, blocks, some, across, down, top, left, c, h,
                w_in, last,
            )  # fmt: skip
            return
        if not fused:
            v_at = own
            for block in range(blocks):
                inputs(
                    own, band, x, first, end, block, blocks, some, across, down, top, left, c, h,
                    w_in, last,
                )  # fmt: skip
        m, tiles = own + m_at, (end - first) * across
        panel, stop = other * panels, min((other + 1) * panels, all_panels)
        while panel < stop:
            now = min(group, stop - panel)
            block = 0
            while block < blocks:
                part_blocks = min(chunk, blocks - block)
                u_here, u_blocks = u + (panel * blocks + block) * u_block, blocks
                if fused > kept:
                    u_here, u_blocks = own + u_at, part_blocks
                    for i in range(now):
                        for j in range(part_blocks):
                            filters(
                                u_here + (i * part_blocks + j) * u_block, w, spare, panel + i,
                                block + j, k, c, k_step, c_step, flip,
                            )  # fmt: skip
                channels = min(part_blocks * count, c - block * count)
                products(
                    m, v_at + block * v_block, u_here, tiles, group * vectors, blocks, u_blocks,
                    now, channels, block > 0,
                )  # fmt: skip
                block += part_blocks
            for i in range(now * vectors):
                k0 = panel * wide + i * count
                if k0 < k:
                    outputs(
                        y, m + i * v_block, band, b, add, first, end, k0, some, group * vectors,
                        across, down, k, p, q, last, relu, spare,
                    )  # fmt: skip
            panel += now

    return winograd


def supports(spec: Any, dtype: str, which: str) -> bool:
    """Whether the plan maker of this name takes the problem."""
    return (
        dtype == "float32"
        and which in ("forward", "grad_input")
        and spec.kernel == (3, 3)
        and spec.stride == spec.dilation == (1, 1)
        and spec.groups == 1
        and min(spec.w_shape[:2]) >= LEAST
    )


def constant_prefers_direct(spec: Any) -> bool:
    """Whether direct convolution is faster if the weight is constant, and packed beforehand.

    For few tiles the time goes into reading filters, and transformed ones are 4 times as large: of
    512 channels at 7x7 (4 tiles) Winograd took 1.2 ms, direct 0.86; of 256 at 14x14 (16 tiles)
    0.59, 0.78.
    """
    (n, _, p, q), (k, c) = spec.y_shape, spec.w_shape[:2]
    return bool(n * -(-p // 4) * -(-q // 4) < FEW_TILES and 144 * c * k > SECOND_CACHE)


def forward(
    device: Any, spec: Any, dtype: str, last: bool, bias: bool, add: bool, relu: bool
) -> Any:
    """run(x, w, b, add, y): y = relu(conv + b + add), `Packed` where that pays."""
    (top, _), (left, _) = spec.padding
    c = spec.w_shape[1]
    plan = _plan(device, spec.x_shape, spec.y_shape, (top, left), last, relu, (9 * c, 9, 0))
    if isinstance(plan, PackedByTasks) and constant_prefers_direct(spec):
        return plan.run  # reading transformed filters takes longer than transforming them
    return plan


def grad_input(device: Any, spec: Any, dtype: str, last: bool) -> Any:
    """run(gy, w, gx)."""
    (top, _), (left, _) = spec.padding
    steps = 9, 9 * spec.w_shape[1], 1
    run = _plan(device, spec.y_shape, spec.x_shape, (2 - top, 2 - left), last, False, steps)
    return lambda gy, w, gx: run(gy, w, None, None, gx)


def _plan(
    device: Any, x_shape: Any, y_shape: Any, pads: Any, last: bool, relu: bool, steps: Any
) -> Any:
    """run(x, w, b, add, y) for a correlation of x with 3x3 filters.

    `steps` are the weight's over output channels and over channels, and whether to rotate it.
    """
    isa = current()
    count = isa.vector // 4
    (n, c, h, w), (_, k, p, q) = x_shape, y_shape
    size = 3 if steps[2] and c < 200 else 4
    xi = (size + 2) ** 2
    vectors = 1 if k <= count else 2
    rows = 14 if isa.registers >= 32 else 6
    wide = vectors * count
    kernel = Kernel("winograd", _winograd, (("size", size), ("rows", rows), ("vectors", vectors)))
    blocks, panels = -(-c // count), -(-k // wide)
    down, across = -(-p // size), -(-q // size)
    lines = n * down
    fused = xi * 4 * blocks * count * panels * wide > SECOND_CACHE
    if fused and n > 1 and 4 * xi * n * down * across * blocks * count > MOST_WORKSPACE:
        return _halves(device, x_shape, y_shape, pads, last, relu, steps)
    fit = TASK_BYTES // (4 * xi * (blocks * count + wide))
    fit = max(rows, min(fit, MOST_TILES))
    each, part, chunk = _cut(lines, across, panels, rows, fit, fused, count)
    some = max(1, min(each, BAND // (size * (size * across + 2) * count * 4)))
    tile_panels = -(-each * across // rows)
    v_block, u_block = xi * rows * count, xi * count * wide
    v_size = tile_panels * blocks * v_block
    m_at = 0 if fused else v_size
    group = part if fused else 1
    u_at = m_at + tile_panels * group * vectors * v_block
    band_at = u_at + (group * chunk * u_block if fused else 0)
    spare_at = band_at + ((size * some + 2) * (size * across + 2) + count) * count
    room = spare_at + 9 * count * count
    numbers = {
        "c": c, "h": h, "w_in": w, "k": k, "p": p, "q": q, "top": pads[0], "left": pads[1],
        "last": int(last), "relu": int(relu), "k_step": steps[0], "c_step": steps[1],
        "flip": steps[2], "across": across, "down": down, "lines": lines, "each": each,
        "some": some, "panels": part, "group": group, "chunk": chunk, "fused": int(fused),
        "m_at": m_at, "u_at": u_at, "band_at": band_at, "spare_at": spare_at, "room": room,
    }  # fmt: skip

    def launch(what: int, tasks: int, kept: bool = False) -> Any:
        return device.prepare(kernel, tasks, scratch=4 * room, what=what, kept=kept, **numbers)

    parts = -(-lines // each)
    tasks = parts * -(-panels // part)
    multiply = launch(OUTPUTS, tasks, kept=True)
    pack = launch(FILTERS, panels * blocks)

    def packed(w: Any) -> Any:
        u = device.empty((panels * blocks * u_block,), "float32")
        pack(None, w, None, None, None, u, None)
        return u

    if not fused:
        return Packed(packed, lambda x, u, b, add, y: multiply(x, None, b, add, y, u, None))
    transform, both = launch(INPUTS, parts * blocks), launch(OUTPUTS, tasks)

    def inputs(x: Any) -> Any:
        v = device.empty((parts * v_size,), "float32")
        transform(x, None, None, None, None, None, v)
        return v

    return PackedByTasks(
        packed,
        lambda x, u, b, add, y: multiply(x, None, b, add, y, u, inputs(x)),
        lambda x, w, b, add, y: both(x, w, b, add, y, None, inputs(x)),
    )


def _halves(device: Any, x_shape: Any, y_shape: Any, *others: Any) -> Any:
    """The plan of a large batch: one half of the images, then the other."""
    half = x_shape[0] // 2
    first, second = (
        _plan(device, (count, *x_shape[1:]), (count, *y_shape[1:]), *others)
        for count in (half, x_shape[0] - half)
    )

    def run(x: Any, w: Any, b: Any, add: Any, y: Any) -> None:
        first(x[:half], w, b, None if add is None else add[:half], y[:half])
        second(x[half:], w, b, None if add is None else add[half:], y[half:])

    return run


def _cut(
    lines: int, across: int, panels: int, rows: int, fit: int, fused: bool, count: int
) -> tuple[int, int, int]:
    """(rows of tiles a task, panels of U a task, blocks a partial sum), from the shapes alone."""
    chunk = max(1, CHUNK // count)
    if not fused:
        each = min(fit // across, -(-lines // LEAST_TASKS))
        # A panel of tiles at least, unless there would be hardly any tasks.
        return max(1, each, min(-(-rows // across), lines // 4)), panels, chunk
    parts = -(-lines // max(1, MOST_TILES // across))
    each = -(-lines // parts)
    if each * across <= 16:
        return each, 1, 1  # the transformed filters are used for little: they stay close
    return each, 1 if parts * panels < 8 else 2, chunk
