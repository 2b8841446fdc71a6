"""Batch norm on CPUs: how the work is cut, for the kernels of `norm_planes` and `norm_rows`.

How sums are cut depends on the shape and the vectors' width alone, and those of parts are put
together in a fixed order: the same bits for any number of threads. A tensor is best cut by
channels, since a task that has all of a channel finds it in its second cache when the statistics
are known, and one launch does it all. Where channels are too few for that, each is cut into parts.
How many channels or parts are one task is another matter: as many tasks as threads where the caches
hold the tensor, so that each thread finds what it had in the pass before.
"""

from collections.abc import Callable
from math import ceil, prod
from typing import Any

import numpy as np

from gpuconv.kernels.cpu import norm_planes, norm_rows
from gpuconv.kernels.cpu.compiler import current

Ints = tuple[int, ...]
ITEM = {"float32": 4, "float64": 8}
RUN = 4096  # numbers that are summed together, of a size that stays in the first cache
TASK = 8192  # numbers a task should have at least
ENOUGH = 16  # channels, or blocks of them, that are tasks enough
ALONE = 1 << 21  # bytes, in the second cache of a core or two, up to which fewer tasks will do
PART, PARTS = 1 << 15, 32  # bytes of a part at least, and how many there should be at most
CACHED = 3 << 19  # bytes of x a thread that are worth being where they were the last time
SEVERAL = 1 << 14  # numbers from which a second thread is worth its start
SUMS = 1 << 10  # sums from which it is for putting them together


def supports(shape: Ints) -> bool:
    """Whether the kernels take (N, C, *in)."""
    return prod(shape) > 0


def forward(
    device: Any, shape: Ints, dtype: str, last: bool, threads: int, eps: float
) -> Callable[..., Any]:
    """run(x, w, b, y, mean, var) -> stats, for `backward`; w and b may be None.

    x, y (N, C, *in) lie in memory as (N, *in, C) if `last`, else as they are; the others are (C,).
    """
    if last or prod(shape[2:]) == 1:
        return _forward_rows(device, shape, dtype, threads, eps)
    cut = _planes(shape, dtype, threads)
    parts, tasks = cut["parts"], cut.pop("tasks")
    kernel, C = norm_planes.forward(dtype), shape[1]
    phases = [norm_planes.SUMS | norm_planes.APPLY]
    if parts > 1:
        phases = [norm_planes.SUMS, norm_planes.APPLY]
    several = prod(shape) >= SEVERAL
    runs = [device.prepare(kernel, tasks, several=several, phase=p, eps=eps, **cut) for p in phases]

    def run(x: Any, w: Any, b: Any, y: Any, mean: Any, var: Any) -> Any:
        stats = device.empty((3, C), dtype)
        work = device.empty((C, parts, 3), "float64") if parts > 1 else None
        for each in runs:
            each(x, w, b, y, mean, var, stats, work)
        return stats

    return run


def backward(device: Any, shape: Ints, dtype: str, last: bool, threads: int) -> Callable[..., None]:
    """run(gy, x, stats, w, gx, gw, gb), where gx may be None; gy lies in memory as x does."""
    if last or prod(shape[2:]) == 1:
        return _backward_rows(device, shape, dtype, threads)
    cut = _planes(shape, dtype, threads)
    parts, tasks = cut["parts"], cut.pop("tasks")
    kernel, C, count = norm_planes.backward(dtype), shape[1], prod(shape) // shape[1]
    phases = [norm_planes.SUMS | norm_planes.APPLY]
    if parts > 1:
        phases = [norm_planes.SUMS, norm_planes.APPLY]
    several = prod(shape) >= SEVERAL
    runs = [
        device.prepare(kernel, tasks, several=several, phase=p, count=count, **cut) for p in phases
    ]

    def run(gy: Any, x: Any, stats: Any, w: Any, gx: Any, gw: Any, gb: Any) -> None:
        work = device.empty((C, parts, 2), "float64") if parts > 1 else None
        for each in runs:
            each(gy, x, stats, w, gx, gw, gb, work)

    return run


def scale_shift(
    device: Any, shape: Ints, dtype: str, last: bool, threads: int
) -> Callable[..., None]:
    """run(x, mean, scale, b, y): y = (x - mean) * scale + b; mean, scale, b (C,), b may be None."""
    if not last and prod(shape[2:]) > 1:
        cut = _planes(shape, dtype, threads)
        several, tasks = prod(shape) >= SEVERAL, cut.pop("tasks")
        apply = device.prepare(
            norm_planes.forward(dtype), tasks, several=several, phase=norm_planes.GIVEN, eps=0.0,
            **cut,
        )  # fmt: skip

        def run(x: Any, mean: Any, scale: Any, b: Any, y: Any) -> None:
            apply(x, None, b, y, mean, None, scale, None)

        return run
    _, cut, launches = _rows(shape, dtype, threads)
    count, several = launches[0]
    C, V = cut["C"], cut["V"]
    apply_rows = device.prepare(
        norm_rows.forward(dtype), count, several=several, phase=norm_rows.APPLY, eps=0.0, **cut
    )

    def run_rows(x: Any, mean: Any, scale: Any, b: Any, y: Any) -> None:
        given = np.zeros((3, V // C, C), dtype)  # repeated for the copies of a row
        given[0], given[1] = mean, scale
        if b is not None:
            given[2] = b
        apply_rows(x, None, None, y, None, None, given[0], given[1:], None)

    return run_rows


def _planes(shape: Ints, dtype: str, threads: int) -> dict[str, int]:
    """How NCHW is cut, as `norm_planes` calls it, and `tasks`."""
    N, C, HW = shape[0], shape[1], prod(shape[2:])
    cuts = ceil(HW / RUN)
    size = ceil(ceil(HW / cuts) / 64) * 64 if cuts > 1 else HW  # pieces begin like their plane
    cuts = ceil(HW / size)
    pieces, per, group = N * cuts, N * cuts, 1
    total = prod(shape) * ITEM[dtype]
    if C >= ENOUGH or total <= (ALONE if C > 3 else ALONE // 8):
        # A channel's numbers are summed alone: how many a task has decides no bit.
        tasks = threads if total <= CACHED * threads else 8 * threads
        group = max(ceil(TASK / (N * HW)), ceil(C / tasks))
    else:
        per = max(ceil(pieces * C / PARTS), ceil(TASK / size))
    parts = ceil(pieces / per)
    return {
        "C": C, "HW": HW, "pieces": pieces, "cuts": cuts, "size": size, "run": max(RUN // size, 1),
        "group": group, "per": per, "parts": parts, "tasks": ceil(C / group) * parts,
    }  # fmt: skip


def _forward_rows(
    device: Any, shape: Ints, dtype: str, threads: int, eps: float
) -> Callable[..., Any]:
    phases, cut, tasks = _rows(shape, dtype, threads)
    kernel, V, parts = norm_rows.forward(dtype), cut["V"], cut["parts"]
    runs = [
        device.prepare(kernel, count, several=several, phase=phase, eps=eps, **cut)
        for phase, (count, several) in zip(phases, tasks, strict=True)
    ]

    def run(x: Any, w: Any, b: Any, y: Any, mean: Any, var: Any) -> Any:
        stats, coefficients = (device.empty((n, V), dtype) for n in (3, 2))
        work = device.empty((parts, 3, V), dtype)
        for each in runs:
            each(x, w, b, y, mean, var, stats, coefficients, work)
        return stats

    return run


def _backward_rows(device: Any, shape: Ints, dtype: str, threads: int) -> Callable[..., None]:
    phases, cut, tasks = _rows(shape, dtype, threads)
    kernel, V, parts = norm_rows.backward(dtype), cut["V"], cut["parts"]
    pixels = prod(shape) // shape[1]
    runs = [
        device.prepare(kernel, count, several=several, phase=phase, count=pixels, **cut)
        for phase, (count, several) in zip(phases, tasks, strict=True)
    ]

    def run(gy: Any, x: Any, stats: Any, w: Any, gx: Any, gw: Any, gb: Any) -> None:
        coefficients, work = (device.empty(s, dtype) for s in ((3, V), (parts, 2, V)))
        for each in runs:
            each(gy, x, stats, w, gx, gw, gb, coefficients, work)

    return run


def _rows(
    shape: Ints, dtype: str, threads: int
) -> tuple[list[int], dict[str, int], list[tuple[int, bool]]]:
    """(phases of the launches, how they are cut, as `norm_rows` calls it, their tasks)."""
    C, pixels, item = shape[1], prod(shape) // shape[1], ITEM[dtype]
    wide = 4 * current().vector // item
    copies = min(_copies(C, wide), pixels)
    V, rows = C * copies, pixels // copies
    cut = {"C": C, "V": V, "rows": rows, "tail": pixels % copies * C, "step": C}
    if prod(shape) < SEVERAL:
        cut |= {"per": rows, "parts": 1, "many": 1}
        return [norm_rows.SUMS | norm_rows.COMBINE | norm_rows.APPLY], cut, [(1, False)]
    total = prod(shape) * item
    per = max(max(total // PARTS, PART) // (V * item), 1)
    parts = ceil(rows / per)
    many = ceil(parts / threads) if total <= CACHED * threads else 1
    cut |= {"per": per, "parts": parts, "many": many}
    if copies == 1:
        cut["step"] = wide
    several = parts * V >= 4 * SUMS
    tasks = [(ceil(parts / many), True), (ceil(C / cut["step"]), several)]
    return [norm_rows.SUMS, norm_rows.COMBINE, norm_rows.APPLY], cut, [*tasks, tasks[0]]


def _copies(C: int, wide: int) -> int:
    """Pixels a row so that at most a twentieth of its last `wide` columns is idle."""
    for copies in range(1, wide):
        if (-copies * C) % wide <= copies * C // 20:
            return copies
    return wide
