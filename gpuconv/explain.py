"""What will run, and why, before it runs: `gpuconv.explain.conv2d(x_shape, weight_shape, ...)`.

For a GPU the launches are those of the library's own plan, recorded instead of launched, so what is
said here is what happens. No GPU is needed; registers, and with them occupancy, come from the
compiler where it is installed, else from the kernels' launch bounds. A CPU is always this one; its
peaks are measured, for the roofline, when they are first asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from textwrap import wrap
from typing import Any

import numpy as np

from gpuconv.arithmetic import Arithmetic as Arithmetic, arithmetic as arithmetic
from gpuconv.backends import get_backend, resolve_device
from gpuconv.errors import ArgumentError
from gpuconv.planned import padded
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


PASSES = ("forward", "grad_input", "grad_weight")


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

    @property
    def occupancy(self) -> str:
        """In words."""
        if not self.exact:
            return (
                f"at most {self.registers} registers, so at least {_count(self.blocks_per_sm)} an "
                f"SM; the compiler would say how many (extra cuda13)"
            )
        waves = f"{self.waves:.2f} waves" if self.waves >= 0.1 else "a part of one wave"
        return (
            f"{self.registers} registers, {_count(self.blocks_per_sm)} and {self.warps_per_sm} of "
            f"{self.max_warps} warps an SM, {waves}"
        )


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
    on: str
    determinism: str

    def __str__(self) -> str:
        shape = f"{self.spec.x_shape} * {self.spec.w_shape} -> {self.spec.y_shape}"
        facts = [
            ("algorithm", f"{self.algorithm}: {self.why}"),
            ("tile", self.tile),
            ("work", f"{_si(self.flops)}FLOP, at least {_si(self.bytes)}B of memory traffic"),
            ("roofline", f"{self.bound}-bound: at least {_si(self.least_seconds)}s on {self.on}"),
            ("determinism", self.determinism),
        ]  # fmt: skip
        for one in self.launches:
            grid = " x ".join(map(str, one.grid))
            facts.append(
                ("launch", f"{one.kernel}: grid {grid} of {one.threads} threads, {one.shared} B "
                 f"shared; {one.occupancy}")
            )  # fmt: skip
        lines = [f"conv2d {self.which}: {shape}, {self.dtype}, {self.memory_format}"]
        for name, text in facts:
            if text:
                start = f"  {name:13}"
                lines += wrap(text, 80, initial_indent=start, subsequent_indent=" " * len(start))
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

    def sequence(self, plan: Any) -> Any:
        self.launches += [(kernel, grid) for kernel, grid, *_ in plan]
        return lambda *arrays: None

    def maker(self, *_: Any) -> Any:
        return lambda: None

    def aligned(self, *_: Any) -> bool:
        return True


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
    arch: str = "",
    bias: bool = False,
) -> Explanation:
    """What `gpuconv.conv2d` of such arrays does on a GPU of architecture `arch`, or on "cpu".

    The default is the GPU of this machine, or "cpu" where there is none. Shapes and options as in
    `conv2d`; `which` is "forward", "grad_input" or "grad_weight", `channels_last` the memory format
    of the images. Raises ArgumentError for what `conv2d` would not compute, and for an unknown
    `arch`. FLOPs count a multiply-add as two, padding included; bytes are the least there can be,
    every number that is needed read or written once.
    """
    from gpuconv.ops.conv import check_rank

    arch = arch or _here()
    if arch != "cpu" and arch not in GPUS:
        known = ", ".join(("cpu", *GPUS))
        raise ArgumentError(f"explain: arch={arch!r} is unknown; use one of {known}")
    if which not in PASSES:
        raise ArgumentError(f"explain: which={which!r} is no pass; use one of {', '.join(PASSES)}")
    check_rank("explain", 2, x_shape, weight_shape)
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(bool)
    if kind.kind != "f":
        raise ArgumentError(f"explain: dtype={dtype!r} is no floating-point type")
    spec = ConvSpec.infer(x_shape, weight_shape, stride, padding, dilation, groups, padding_mode)
    explain = _on_cpu if arch == "cpu" else _on_gpu
    return explain(spec, kind, which, algo, channels_last, arch, bias)


def _on_cpu(
    spec: ConvSpec, kind: Any, which: str, algo: str, channels_last: bool, arch: str, bias: bool
) -> Explanation:
    from gpuconv.cpu.conv import choose
    from gpuconv.cpu.peaks import peaks
    from gpuconv.kernels.cpu.compiler import current
    from gpuconv.precision import get_float32_precision

    choice = choose(spec, kind, which, get_float32_precision(), algo)
    rate, gigabytes, threads = peaks()
    several = f"{threads} threads" if threads > 1 else "1 thread"
    return _explanation(
        spec,
        kind,
        which,
        channels_last,
        choice,
        # Winograd's F(4 x 4, 3 x 3) multiplies 36 times for 144 products.
        rate=rate * 4 / kind.itemsize * (4 if choice.algorithm == "winograd" else 1),
        moved=gigabytes * 1e9,
        on=f"this CPU ({current().name}, {several}), by its peaks, as measured just now",
        launches=(),
        tile="",
        determinism="the same bits every time, for every number of threads"
        if choice.algorithm != "im2col"
        else "the library's own sums are; the matrix product is as deterministic as NumPy's",
    )


def _on_gpu(
    spec: ConvSpec, kind: Any, which: str, algo: str, channels_last: bool, arch: str, bias: bool
) -> Explanation:
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.conv import choose
    from gpuconv.study import occupancy

    name, sms, gigahertz, lanes, gigabytes = GPUS[arch]
    device = Recorder(arch, sms)
    be = CudaBackend(device, "explain")
    be.record(which, spec, kind, channels_last, bias, algo)
    folded = which == "grad_input" and spec.padding_mode != "zeros"  # then that of a padded image
    choice = choose(padded(spec) if folded else spec, kind, which, sms, algo)

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
    return _explanation(
        spec,
        kind,
        which,
        channels_last,
        choice,
        rate=2e9 * sms * lanes * gigahertz * (1 if kind.itemsize == 4 else 0.5),
        moved=1e9 * gigabytes,
        on=f"{name} ({sms} SMs), by its data sheet; nothing was measured",
        launches=tuple(launches),
        tile=_tiles(choice),
        determinism=_determinism(choice.algorithm, choice.tiles),
    )


def _explanation(
    spec: ConvSpec,
    kind: Any,
    which: str,
    channels_last: bool,
    choice: Any,
    *,
    rate: float,
    moved: float,
    on: str,
    launches: tuple[Launch, ...],
    tile: str,
    determinism: str,
) -> Explanation:
    """With the least time at `rate` FLOP and `moved` bytes a second."""
    traffic = spec.bytes(kind.itemsize, whole=which == "grad_input")
    computing, moving = spec.flops / rate, traffic / moved
    return Explanation(
        which=which,
        spec=spec,
        dtype=kind.name,
        memory_format="channels-last" if channels_last else "NCHW",
        algorithm=choice.algorithm,
        why=choice.why,
        tile=tile,
        launches=launches,
        flops=spec.flops,
        bytes=traffic,
        bound="compute" if computing > moving else "memory",
        least_seconds=max(computing, moving),
        on=on,
        determinism=determinism,
    )


def _here() -> str:
    """The architecture that CuPy arrays are computed on here, or "cpu"."""
    if resolve_device("auto") == "cpu":
        return "cpu"
    device: Any = get_backend("cuda")
    return str(device.device.arch)


def _si(value: float) -> str:
    """Three digits and a prefix: 7.4 G, 12.3 k, 45.6 u."""
    if not value:
        return "0 "
    place = max(-4, min(4, math.floor(math.log10(value) / 3)))
    return f"{value / 1000**place:.3g} {'pnum kMGT'[place + 4].strip()}"


def _count(blocks: int) -> str:
    return "1 block" if blocks == 1 else f"{blocks} blocks"


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
        return "the library's own sums are; the matrix product is as deterministic as cuBLAS"
    if any(splits > 1 for _, splits in tiles):
        return (
            "the same bits every time on one kind of GPU: parts are added up in order, and how "
            "many there are depends on its multiprocessors"
        )
    return "the same bits every time: one order of sums, no atomics"
