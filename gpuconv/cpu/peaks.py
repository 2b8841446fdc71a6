"""This processor's peaks, measured when asked for: for the roofline of `gpuconv.explain`."""

import time
from functools import cache
from typing import Any

import numpy as np

from gpuconv.cpu.device import DEVICE
from gpuconv.cpu.team import get_num_threads
from gpuconv.kernels.cpu import peak
from gpuconv.kernels.cpu.compiler import Isa, current

TRIES = 5
DEPTH, STEPS = 128, 200  # of a task of products: some 0.1 ms
COPIED = 1 << 26  # bytes read, and as many written


def peaks() -> tuple[float, float, int]:
    """(float32 FLOP a second, GB read and written a second, threads); some 50 milliseconds once."""
    return _measured(get_num_threads(), current())


@cache
def _measured(threads: int, isa: Isa) -> tuple[float, float, int]:
    rows, vectors = peak.tile_of()
    columns = vectors * isa.vector // 4
    tasks = 16 * threads
    a, b, sums = (
        np.ones(shape, np.float32)
        for shape in ((DEPTH, rows), (DEPTH, columns), (tasks, rows, columns))
    )
    multiply = DEVICE.prepare(peak.products(), tasks, k=DEPTH, steps=STEPS)
    flops = 2 * tasks * STEPS * DEPTH * rows * columns / _least(multiply, a, b, sums)
    source, target = (np.ones(COPIED // 4, np.float32) for _ in range(2))
    copy = DEVICE.prepare(peak.COPY, tasks, part=len(source) // tasks // 64 * 64)
    moved = 2 * 4 * tasks * (len(source) // tasks // 64 * 64)
    return flops, moved / _least(copy, source, target) / 1e9, threads


def _least(run: Any, *arrays: Any) -> float:
    """The shortest of a few runs, in seconds."""
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        run(*arrays)
        times.append(time.perf_counter() - start)
    return min(times)
