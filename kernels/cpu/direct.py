"""Direct convolution on a CPU: any kernel size, stride, dilation, groups, padding; no im2col.

A tile of sums has pixels for rows and output channels for columns: a number of x is broadcast and
multiplied with a vector of weights of several channels.

                   output channels, vectors * lanes
                 +------------------------------+        for j in (c, r, s):
      pixel 0    |  sums, in registers          |            for each pixel i:
      pixel 1    |                              |                sums[i] += x[pixel[i] + offset[j]]
      ...        |                              |                           * weight[j][channels]
                 +------------------------------+

As x is only broadcast, it may lie as it likes: stride, dilation, format are a table of offsets, and
the pixels of a tile may be any, over the ends of rows and of images.

A task is a band of rows (or several small images) and some blocks of output channels. It copies the
rows of x that it reads, with zeros around them, to memory of its thread (the level-2 cache), then
takes a block of the weights at a time, of a size for the level-1 cache, past all its pixels; sums
wait in [pixel][channel] order in between, and are written to y, in its format, at the end.

Few output channels and stride 1 are `direct_rows`'.

Weights are first brought into the order [block of channels][j][channel]: by a launch of their own,
or, where one or two tasks would read them, by these, block by block.

The gradient by input is the same with channels and taps exchanged. With a stride, the pixels of gx
fall into stride * stride phases, which have different taps; each is a convolution of stride 1 of
gy. One task computes all phases of its band, from the same copy of gy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpuconv.kernels.cpu import direct_rows, direct_sums
from gpuconv.kernels.cpu.compiler import current
from gpuconv.kernels.cpu.direct_problem import Problem, forward_axis, grad_axis
from gpuconv.kernels.cpu.plan import Packed, PackedByTasks

TILE = 768 << 10  # bytes of x that a task copies at most: the level-2 cache has weights in it too
SLOTS = 256  # pixels of a task, about
STEP = 128  # products between two reads and writes of a sum, about
ALIGNED = 1 << 16  # bytes from which the device's memory begins at a cache line
TASKS = 16  # how many are enough for all threads to have something to do
Run = Callable[..., None]


def supports(spec: Any, dtype: str, which: str) -> bool:
    """True for both passes with an image as a result, in two dimensions."""
    return which != "grad_weight" and spec.nd == 2 and dtype in ("float32", "float64")


def forward(
    device: Any, spec: Any, dtype: str, last: bool, bias: bool, add: bool, relu: bool
) -> Packed:
    """run(x, w, b, add, y): y = relu(conv(x, w) + b + add); the weight may be packed before."""
    taps = prod(spec.kernel)
    depth = spec.w_shape[1]
    problem = Problem(
        dtype, last, spec.x_shape[0], spec.groups, depth, spec.w_shape[0] // spec.groups,
        forward_axis(spec, 0), forward_axis(spec, 1),
        w_lane=depth * taps, w_depth=taps, merged=True,
    )  # fmt: skip
    return _prepare(device, problem, {"with_bias": bias, "with_add": add, "relu": relu})


def grad_input(device: Any, spec: Any, dtype: str, last: bool) -> Run:
    """run(gy, w, gx)."""
    taps = prod(spec.kernel)
    channels = spec.w_shape[1]
    problem = Problem(
        dtype, last, spec.x_shape[0], spec.groups, spec.w_shape[0] // spec.groups, channels,
        grad_axis(spec, 0), grad_axis(spec, 1),
        w_lane=taps, w_depth=channels * taps, merged=False,
    )  # fmt: skip
    run = _prepare(device, problem, {"with_bias": False, "with_add": False, "relu": False})

    def call(gy: Any, w: Any, gx: Any) -> None:
        run(gy, w, None, None, gx)

    return call


@dataclass(frozen=True)
class Cut:
    """Images, rows, columns of a task; a tile; in how many parts the blocks of channels are."""

    images: int
    rows: int
    columns: int
    tile: tuple[int, int]  # pixels, vectors
    lanes: int
    parts: int

    @property
    def block(self) -> int:
        """Output channels of a tile."""
        return self.tile[1] * self.lanes


def _tile(channels: int, lanes: int) -> tuple[int, int]:
    """(pixels, vectors) that take the fewest cycles: two sums, or two loads, in each."""
    choices = [(6, 4), (8, 3), (8, 2), (8, 1)] if current().registers > 16 else [(6, 2), (8, 1)]

    def cycles(tile: tuple[int, int]) -> float:
        pixels, vectors = tile
        each = max(pixels * vectors, pixels + vectors + 1, 8) / 2
        return -(-channels // (vectors * lanes)) * each / pixels

    return min(choices, key=cycles)


def _cut(problem: Problem) -> Cut:
    """A function of the shapes, not of the number of threads."""
    item = 4 if problem.dtype == "float32" else 8
    lanes = current().vector // item
    tile = _tile(problem.channels, lanes)
    blocks = -(-problem.channels // (tile[1] * lanes))
    rows, columns = problem.rows, problem.columns
    slots = SLOTS
    while True:
        wide = _even(columns.result, 2 * slots, len(columns.taps))
        high = _even(rows.result, max(slots // wide, 1), len(rows.taps))
        several = 1
        if wide == columns.result and high == rows.result:
            several = _even(problem.images, max(slots // (wide * high), 1), 1)
        bytes_read = item * problem.depth * several * rows.reads(high) * columns.reads(wide)
        count = -(-problem.images // several) * problem.groups
        count *= -(-rows.result // high) * -(-columns.result // wide)
        least = slots <= 2 * tile[0] * len(rows.taps) * len(columns.taps)
        if least or (bytes_read <= TILE and count * blocks >= TASKS // 2):
            break
        slots //= 2
    parts = min(blocks, -(-TASKS // count))
    return Cut(several, high, wide, tile, lanes, parts)


def _even(total: int, most: int, unit: int) -> int:
    """A multiple of `unit`, about `most` at most, that cuts `total` into parts of one size."""
    most = max(most // unit * unit, unit)
    parts = -(-total // most)
    return min(-(-total // (parts * unit)) * unit, total)


class Table:
    """Integers one after the other, for a kernel."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.length = 0

    def append(self, numbers: Any) -> int:
        """The place of the first."""
        at = self.length
        self.parts.append(np.asarray(numbers, dtype=np.int64).reshape(-1))
        self.length += self.parts[-1].size
        return at

    def array(self) -> Any:
        return np.concatenate(self.parts)


def _prepare(device: Any, problem: Problem, epilogue: dict[str, bool]) -> Packed:
    """run(x, w, b, add, y) of a problem."""
    if direct_rows.suits(problem):
        return direct_rows.prepare(device, problem, epilogue, SLOTS)
    cut = _cut(problem)
    block, blocks = cut.block, -(-problem.channels // cut.block)
    rows, columns = problem.rows, problem.columns
    t_rows, t_columns = rows.reads(cut.rows), columns.reads(cut.columns)
    strides = _strides(problem, t_rows, t_columns)
    phases = list(product(rows.taps, columns.taps))
    step = max(min(STEP // len(p[0]) // len(p[1]) for p in phases if p[0] and p[1]), 1)
    fused = _regions(problem, cut) <= 2

    tasks = list(_tasks(problem, cut, blocks, strides))
    table = Table()
    table.append(np.zeros((len(tasks), direct_sums.TASK)))
    about, size = [], 0
    for down, right in phases:
        count = len(down) * len(right)
        most = problem.depth if count == 0 else -(-problem.depth // -(-problem.depth // step))
        offsets, order = _reduction(problem, strides, down, right, most)
        about.append((size, count, most, table.append(offsets), table.append(order)))
        size += problem.groups * blocks * problem.depth * count * block
    phase_at = table.append(about)
    classes: dict[Any, int] = {}
    for task in tasks:
        if task[9] not in classes:
            classes[task[9]] = _pixels(problem, cut, strides, task[9], table)
        task[9] = classes[task[9]]
    table.parts[0] = np.asarray(tasks, dtype=np.int64).reshape(-1)

    most_slots = cut.images * cut.rows * cut.columns
    partial_at = _aligned(cut.images * strides["t_n"] + cut.lanes)
    # A square that is turned over reads up to `lanes` pixels beyond the last.
    bias_at = partial_at + (most_slots + cut.lanes) * block
    weights_at = bias_at + block
    most_weights = max(each * most for _, each, most, _, _ in about)
    room = _aligned(weights_at + (most_weights * block if fused else 0))
    weights = {
        "phase_at": phase_at,
        "channels": problem.channels,
        "blocks": blocks,
        "depth": problem.depth,
        "w_group": problem.w_group,
        "w_lane": problem.w_lane,
        "w_depth": problem.w_depth,
        "taps": problem.taps,
        "merged": problem.merged,
    }
    packs = [
        (p, g, kb, first, min(first + most, problem.depth))
        for p, (_, each, _, _, _) in enumerate(about)
        if each
        for most in [max(65536 // (each * block), 1)]
        for g in range(problem.groups)
        for kb in range(blocks)
        for first in range(0, problem.depth, most)
    ]
    pack_at = table.append(packs)
    numbers = table.array()
    item = np.dtype(problem.dtype).itemsize

    def launch(fused: bool) -> Run:
        return device.prepare(
            direct_sums.sums(problem.dtype, *cut.tile), len(tasks),
            scratch=max(room * item, ALIGNED),
            room=room, partial_at=partial_at, bias_at=bias_at, weights_at=weights_at,
            height=rows.source, width=columns.source, row_step=rows.step,
            column_step=columns.step, phases=len(phases), fused=fused, **strides, **weights,
            **epilogue,
        )  # fmt: skip

    bring = device.prepare(
        direct_sums.pack(problem.dtype, cut.tile[1]), len(packs), tasks_at=pack_at, **weights
    )
    multiply = launch(fused=False)

    def pack(w: Any) -> Any:
        packed = device.empty((max(size, ALIGNED // item),), problem.dtype)
        bring(w, packed, numbers)
        return packed

    def compute(x: Any, packed: Any, b: Any, add: Any, y: Any) -> None:
        multiply(x, packed, b, add, y, numbers)

    if not fused:
        return Packed(pack, compute)
    whole = launch(fused=True)
    return PackedByTasks(pack, compute, lambda x, w, *others: whole(x, w, *others, numbers))


def _aligned(count: int) -> int:
    return -(-count // 64) * 64


def _regions(problem: Problem, cut: Cut) -> int:
    """Tasks that read the same weights."""
    return (
        -(-problem.images // cut.images)
        * -(-problem.rows.result // cut.rows)
        * -(-problem.columns.result // cut.columns)
    )


def _strides(problem: Problem, t_rows: int, t_columns: int) -> dict[str, int]:
    """Where numbers lie: in x (or gy), in its copy (t_), in y (or gx)."""
    height, width = problem.rows.source, problem.columns.source
    p, q = problem.rows.result, problem.columns.result
    depth, channels, groups = problem.depth, problem.channels, problem.groups
    common = {"x_n": groups * depth * height * width, "y_n": groups * channels * p * q}
    if problem.last:
        t_h = t_columns * depth
        return common | {
            "x_group": depth, "x_outer": 0, "x_h": width * groups * depth, "x_w": groups * depth,
            "outers": 1, "unit": depth,
            "t_n": t_rows * t_h, "t_outer": 0, "t_h": t_h, "t_w": depth,
            "y_k": 1, "y_w": groups * channels,
        }  # fmt: skip
    plane = height * width
    return common | {
        "x_group": depth * plane, "x_outer": plane, "x_h": width, "x_w": 1,
        "outers": depth, "unit": 1,
        "t_n": depth * t_rows * t_columns, "t_outer": t_rows * t_columns, "t_h": t_columns,
        "t_w": 1, "y_k": p * q, "y_w": 1,
    }  # fmt: skip


def _tasks(problem: Problem, cut: Cut, blocks: int, strides: dict[str, int]) -> Iterator[list[Any]]:
    """The records of tasks, the shape of their region still in the place of its table."""
    rows, columns = problem.rows, problem.columns
    each = -(-blocks // cut.parts)
    y_w = strides["y_w"]
    y_h = columns.result * y_w
    for group, kb in product(range(problem.groups), range(0, blocks, each)):
        for n in range(0, problem.images, cut.images):
            several = min(cut.images, problem.images - n)
            for (row, high), (column, wide) in product(
                rows.bands(cut.rows), columns.bands(cut.columns)
            ):
                whole = wide == columns.result
                yield [
                    n, several,
                    row // len(rows.taps) * rows.stride + rows.start, rows.reads(high),
                    column // len(columns.taps) * columns.stride + columns.start,
                    columns.reads(wide),
                    group, kb, min(kb + each, blocks), (several, high, wide),
                    n * strides["y_n"] + row * y_h + column * y_w,
                    1 if whole else high, high * wide if whole else wide, y_h,
                ]  # fmt: skip


def _reduction(
    problem: Problem, strides: dict[str, int], down: Any, right: Any, most: int
) -> tuple[Any, Any]:
    """For a phase: (offsets in the copy of x, by j; j of each weight as they lie in w, or -1).

    j counts in blocks of `most` channels; in a block the numbers of x that lie side by side come
    one after the other: channels for channels-last, else columns.
    """
    taps = [
        (
            t * problem.columns.size + u,
            (at - problem.rows.start) // problem.rows.step * strides["t_h"]
            + (left - problem.columns.start) // problem.columns.step * strides["t_w"],
        )
        for (t, at), (u, left) in product(down, right)
    ]
    taps.sort(key=lambda tap: tap[1])
    c_step = 1 if problem.last else strides["t_outer"]
    offsets: list[int] = []
    order = np.full((problem.depth, problem.taps), -1)
    for first in range(0, problem.depth, most):
        channels = range(first, min(first + most, problem.depth))
        pairs: Any = product(taps, channels) if problem.last else product(channels, taps)
        for one, other in pairs:
            (tap, at), c = (one, other) if problem.last else (other, one)
            order[c, tap] = len(offsets)
            offsets.append(at + c * c_step)
    return offsets, order


def _pixels(
    problem: Problem, cut: Cut, strides: dict[str, int], shape: tuple[int, int, int], table: Table
) -> int:
    """The place of the records of a region's pixels, by phase.

    They are: places in the copy, slots, count; and see below.
    The last tile is filled with its last pixel, whose sums go to a slot that nobody reads.
    """
    several, high, wide = shape
    rows, columns = problem.rows, problem.columns
    records = []
    for a, b in product(range(len(rows.taps)), range(len(columns.taps))):
        n, i, j = np.ogrid[
            :several,
            : len(range(a, high, len(rows.taps))),
            : len(range(b, wide, len(columns.taps))),
        ]
        at = n * strides["t_n"] + i * (rows.stride // rows.step) * strides["t_h"]
        at = (at + j * (columns.stride // columns.step) * strides["t_w"]).reshape(-1)
        row, column = i * len(rows.taps) + a, j * len(columns.taps) + b
        slot = (((n * high + row) * wide + column) * cut.block).reshape(-1)
        spare = -at.size % cut.tile[0] if at.size else cut.tile[0]
        at = np.concatenate([at, np.repeat(at[-1:] if at.size else 0, spare)])
        slot = np.concatenate([slot, np.repeat(several * high * wide * cut.block, spare)])
        # When so many pixels of the last phase are done, so many slots are complete.
        done, complete = 1, 1
        if len(rows.taps) * len(columns.taps) > 1:
            done, complete = j.size, len(rows.taps) * wide
            if several > 1 or done == 0:
                done, complete = at.size, 0
        records.append((table.append(at), table.append(slot), at.size, done, complete))
    return table.append(records)
