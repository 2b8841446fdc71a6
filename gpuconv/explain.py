"""What will run, and why, before it runs: `gpuconv.explain.conv2d(x_shape, weight_shape, ...)`.

The launches are those of the library's own plan, recorded instead of launched, so what is said here
is what happens. No GPU is needed; registers, and with them occupancy, come from the compiler where
it is installed, else from the kernels' launch bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gpuconv.errors import ArgumentError
from gpuconv.shapes import ConvSpec, IntOrInts, Padding

# A GPU of each architecture: name, multiprocessors, GHz (boost), float32 lanes of one, GB/s.
# Sources: NVIDIA's data sheets and architecture white papers of these products.
GPUS: dict[str, tuple[str, int, float, int, float]] = {
    "sm_75": ("T4", 40, 1.59, 64, 320),
    "sm_80": ("A100 SXM 40 GB", 108, 1.41, 64, 1555),
    "sm_86": ("RTX 3090", 82, 1.695, 128, 936),
    "sm_89": ("RTX 4090", 128, 2.52, 128, 1008),
    "sm_90": ("H100 SXM", 132, 1.98, 128, 3350),
}


@dataclass(frozen=True)
class Launch:
    """One kernel of the plan; `waves` is its blocks over those that all multiprocessors hold."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    registers: int
    exact: bool  # whether the compiler said so, or the launch bounds
    blocks_per_sm: int
    warps_per_sm: int
    max_warps: int
    waves: float


@dataclass(frozen=True)
class Explanation:
    """What computes one pass of a convolution; `print` it, or take the fields."""

    which: str
    spec: ConvSpec
    dtype: str
    memory_format: str
    algorithm: str
    why: str
    tile: str
    launches: tuple[Launch, ...]
    flops: int
    bytes: int
    bound: str
    least_seconds: float
    gpu: str
    determinism: str

    def __str__(self) -> str:
        shape = f"{self.spec.x_shape} * {self.spec.w_shape} -> {self.spec.y_shape}"
        lines = [
            f"conv2d {self.which}: {shape}, {self.dtype}, {self.memory_format}",
            f"  algorithm    {self.algorithm}: {self.why}",
            *([f"  tile         {self.tile}"] if self.tile else []),
            f"  work         {self.flops / 1e9:.4g} GFLOP, at least {self.bytes / 1e6:.4g} MB",
            f"  roofline     {self.bound}-bound on {self.gpu}: at least "
            f"{self.least_seconds * 1e6:.3g} us (data sheet, not measured)",
            f"  determinism  {self.determinism}",
        ]
        for one in self.launches:
            grid = " x ".join(map(str, one.grid))
            about = "" if one.exact else "at most "
            lines.append(
                f"  launch       {one.kernel}: grid {grid} of {one.threads} threads, "
                f"{one.shared} B shared, {about}{one.registers} registers"
            )
            lines.append(
                f"               {one.blocks_per_sm} blocks and {one.warps_per_sm} of "
                f"{one.max_warps} warps an SM, {one.waves:.2f} waves"
            )
        return "\n".join(lines)


class Recorder:
    """A device that notes what is prepared, and launches nothing."""

    number = 0
    xp = np

    def __init__(self, arch: str, sms: int) -> None:
        self.arch, self.sms = arch, sms
        self.launches: list[tuple[Any, tuple[int, int, int]]] = []

    def prepare(self, kernel: Any, grid: tuple[int, int, int], *_: Any, **__: Any) -> Any:
        self.launches.append((kernel, grid))
        return lambda *arrays: None


def conv2d(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    which: str = "forward",
    algo: str = "auto",
    dtype: str = "float32",
    channels_last: bool = False,
    arch: str = "sm_90",
    bias: bool = False,
) -> Explanation:
    """What `gpuconv.conv2d` of such arrays does on a GPU of architecture `arch`.

    Shapes and options as in `conv2d`; `which` is "forward", "grad_input" or "grad_weight",
    `channels_last` the memory format of the images. Raises ArgumentError for what `conv2d` would
    not compute, and for an unknown `arch`. FLOPs count a multiply-add as two; bytes are the least
    there can be, every array read or written once.
    """
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.conv import PASSES, choose
    from gpuconv.study import occupancy

    if arch not in GPUS:
        raise ArgumentError(f"explain: arch={arch!r} is unknown; use one of {', '.join(GPUS)}")
    if which not in PASSES:
        raise ArgumentError(f"explain: which={which!r} is no pass; use one of {', '.join(PASSES)}")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(bool)
    if kind.kind != "f":
        raise ArgumentError(f"explain: dtype={dtype!r} is no floating-point type")
    spec = ConvSpec.infer(x_shape, weight_shape, stride, padding, dilation, groups, padding_mode)
    name, sms, gigahertz, lanes, gigabytes = GPUS[arch]
    device = Recorder(arch, sms)
    be = CudaBackend(device, "explain")
    be.record(which, spec, kind, channels_last, bias, algo)
    choice = choose(spec, kind, which, sms, algo)

    launches = []
    for kernel, grid in device.launches:
        registers, exact = _registers(kernel, arch)
        held = occupancy(arch, kernel.threads, registers, kernel.shared)
        launches.append(
            Launch(
                kernel.name,
                grid,
                kernel.threads,
                kernel.shared,
                registers,
                exact,
                held.blocks,
                held.warps,
                held.max_warps,
                prod(grid) / max(held.blocks * sms, 1),
            )
        )
    rate = 2e9 * sms * lanes * gigahertz * (1 if kind.itemsize == 4 else 0.5)
    computing, moving = spec.flops / rate, spec.bytes(kind.itemsize) / (1e9 * gigabytes)
    return Explanation(
        which=which,
        spec=spec,
        dtype=kind.name,
        memory_format="channels-last" if channels_last else "NCHW",
        algorithm=choice.algorithm,
        why=choice.why,
        tile=_tiles(choice),
        launches=tuple(launches),
        flops=spec.flops,
        bytes=spec.bytes(kind.itemsize),
        bound="compute" if computing > moving else "memory",
        least_seconds=max(computing, moving),
        gpu=f"{name} ({sms} SMs)",
        determinism=_determinism(choice.algorithm, choice.tiles),
    )


def _tiles(choice: Any) -> str:
    counts: dict[str, int] = {}
    for config, splits in choice.tiles:
        parts = f", k in {splits} parts" if splits > 1 else ""
        counts[f"{config}{parts}"] = counts.get(f"{config}{parts}", 0) + 1
    return "; ".join(f"{n} x {tile}" if n > 1 else tile for tile, n in counts.items())


def _registers(kernel: Any, arch: str) -> tuple[int, bool]:
    """Registers of a thread, and whether the compiler said so."""
    from gpuconv.kernels.cuda.compiler import CompileError, compile

    try:
        return compile(kernel, arch).registers, True
    except CompileError:
        return min(255, 65536 // (kernel.threads * kernel.min_blocks) // 8 * 8), False


def _determinism(algorithm: str, tiles: tuple[Any, ...]) -> str:
    if algorithm in ("gemm", "im2col"):
        return "the library's sums are; the matrix product is as deterministic as cuBLAS"
    if any(splits > 1 for _, splits in tiles):
        return (
            "the same bits every time on one kind of GPU: parts are added up in order, and how "
            "many there are depends on its multiprocessors"
        )
    return "the same bits every time: one order of sums, no atomics"
