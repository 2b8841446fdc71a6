"""Measure where Winograd's algorithm beats sums of products: `python -m bench.thresholds`.

Prints the table for `gpuconv/cpu/thresholds.py`, and with --write puts it there. For each pass and
number of channels, problems of growing size are computed by both, in interleaved rounds, in
the faster memory format of each. The threshold is the number of tiles that loses the least time
against a choice that is always right (the sum over the problems of the logarithms of the ratios).
"""

import argparse
import re
import sys
from math import log
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import gpuconv as gc
from bench import machine, timing
from gpuconv.cpu import conv, thresholds
from gpuconv.files import write_atomically
from gpuconv.shapes import ConvSpec

CHANNELS = (16, 32, 64, 128, 256, 512)
IMAGES = ((1, 7), (1, 14), (4, 7), (1, 28), (8, 7), (4, 14), (1, 56), (16, 14), (8, 28), (8, 56))
MOST = 3e9  # multiply-adds of a problem: larger ones are decided by then
NEVER = 1 << 30


def measure(which: str, n: int, size: int, channels: int, rounds: int) -> tuple[int, float]:
    """(tiles, time of direct / time of winograd) of a problem."""
    rng = np.random.default_rng(0)
    x = rng.random((n, channels, size, size), dtype=np.float32)
    w = rng.random((channels, channels, 3, 3), dtype=np.float32)
    blocks = {}
    timer = timing.CpuTimer(settle=0.0)
    for algo in ("direct", "winograd"):
        for last in (False, True):
            a = (
                x
                if not last
                else np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            )
            blocks[f"{algo} {last}"] = _block(timer, which, a, w, algo)
    samples = timing.rounds(blocks, rounds, 0.01, 5.0)
    best = {
        algo: min(median(samples[f"{algo} {last}"].quiet()) for last in (False, True))
        for algo in ("direct", "winograd")
    }
    return n * (-(-size // thresholds.SIDE)) ** 2, best["direct"] / best["winograd"]


def takes(which: str, n: int, size: int, channels: int) -> bool:
    """Whether winograd may compute it; with few numbers it is not exact enough."""
    spec = ConvSpec.infer((n, channels, size, size), (channels, channels, 3, 3), padding=1)
    return not conv.obstacle("winograd", spec, np.dtype("float32"), which, "high")


def _block(timer: Any, which: str, x: Any, w: Any, algo: str) -> Any:
    if which == "forward":
        call = lambda: gc.conv2d(x, w, padding=1, algo=algo)  # noqa: E731
    elif which == "grad_input":
        call = lambda: gc.conv2d_grad_input(x, w, x.shape, padding=1, algo=algo)  # noqa: E731
    else:
        call = lambda: gc.conv2d_grad_weight(x, x, w.shape, padding=1, algo=algo)  # noqa: E731
    return lambda inner: timer.block(call, inner)


def threshold(found: list[tuple[int, float]]) -> int:
    """The number of tiles from which winograd is taken with the least loss."""
    bounds = [*sorted({tiles for tiles, _ in found}), NEVER]

    def loss(bound: int) -> float:
        return sum(
            max(0.0, -log(ratio)) if tiles >= bound else max(0.0, log(ratio))
            for tiles, ratio in found
        )

    return min(bounds, key=lambda bound: (loss(bound), bound))


def table(rounds: int) -> dict[str, dict[int, int]]:
    """`TILES` of gpuconv/cpu/thresholds.py."""
    result: dict[str, dict[int, int]] = {}
    for which in ("forward", "grad_input", "grad_weight"):
        result[which] = {}
        for channels in CHANNELS:
            found = []
            for n, size in IMAGES:
                if n * size**2 * channels**2 * 9 <= MOST and takes(which, n, size, channels):
                    found.append(measure(which, n, size, channels, rounds))
            bound = threshold(found) if found else NEVER
            said = ", ".join(f"{tiles}: {ratio:.2f}" for tiles, ratio in found)
            print(f"{which} {channels} channels: from {bound} tiles ({said})", flush=True)
            if bound != NEVER:
                result[which][channels] = bound
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=machine.processors())
    parser.add_argument("--write", action="store_true", help="into gpuconv/cpu/thresholds.py")
    o = parser.parse_args()
    machine.settle("cpu", o.threads)
    with gc.backend("cpu"):
        found = table(o.rounds)
    body = "".join(f'    "{which}": {bounds},\n' for which, bounds in found.items())
    text = f"TILES: dict[str, dict[int, int]] = {{\n{body}}}\n"
    print(text)
    if o.write:
        path = Path(thresholds.__file__)
        old = path.read_text()
        new = re.sub(r"TILES: .*?\n}\n", lambda _: text, old, flags=re.S)
        write_atomically(path, new.encode())
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
