"""Studying the CUDA kernels with no GPU: which there are, and what they compile to.

    families()                          # name -> module of kernels
    inspect(kernel, "direct", "sm_90")  # registers, spills, occupancy, inner loop
    build(kernels, ["sm_90"], folder)   # ready-made code, for machines with no compiler

How they behave when they run is `gpuconv.study.check`; what the program prints is
`gpuconv.study.commands`.
"""

import linecache
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from inspect import getmodule
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gpuconv.errors import ArgumentError, DeviceError
from gpuconv.kernels.cuda import compiler, sass
from gpuconv.kernels.cuda.compiler import Binary, CompileError, Kernel, NoCompiler
from gpuconv.kernels.cuda.sass import Instruction

# A family is a module of gpuconv.kernels.cuda with `kernels()`; it has rows in `problems.py`.
FAMILIES = (
    "direct",
    "tiled",
    "weight",
    "layout",
    "depthwise",
    "depthwise_weight",
    "pool",
    "pool_plane",
    "norm",
    "loss",
    "step",
)

# Threads, blocks and KiB of shared memory of an SM. "Technical Specifications per Compute
# Capability" in the CUDA C++ Programming Guide 13.0 (table 27); each has 65,536 registers.
LIMITS = {
    "sm_75": (1024, 16, 64),
    "sm_80": (2048, 32, 164),
    "sm_86": (1536, 16, 100),
    "sm_89": (1536, 24, 100),
    "sm_90": (2048, 32, 228),
    "sm_100": (2048, 32, 228),
    "sm_120": (1536, 24, 100),
}
REGISTERS = 65_536


def families() -> dict[str, Any]:
    """Name -> module, which has `kernels() -> list[Kernel]`."""
    return {name: import_module(f"gpuconv.kernels.cuda.{name}") for name in FAMILIES}


def find(name: str) -> dict[str, list[Kernel]]:
    """Family -> its kernels of that name: all of a family, or one. ArgumentError: there is none."""
    modules = families()
    if name in modules:
        return {name: modules[name].kernels()}
    known = {
        kernel.name: (f, kernel) for f, module in modules.items() for kernel in module.kernels()
    }
    if name in known:
        family, kernel = known[name]
        return {family: [kernel]}
    names = [*modules, *known]
    close = [n for n in names if name and name in n][:3] or get_close_matches(name, names, 3, 0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "see: gpuconv kernels list"
    raise ArgumentError(f"kernel {name!r} is unknown; {hint}")


def check_arch(arch: str) -> str:
    """`arch` itself, "sm_90" or "sm_90a"; ArgumentError if it is none of LIMITS."""
    if arch not in (*LIMITS, "sm_90a", "sm_100a", "sm_120a"):
        raise ArgumentError(f"architecture {arch!r} is unknown; use one of {', '.join(LIMITS)}")
    return arch


def unfit(kernel: Kernel, arch: str) -> str:
    """Why a kernel is never launched on `arch`, and what is; "" for one that is.

    Kernels with asynchronous copies are for sm_80 and later, their twins NAME_sm75 for sm_75.
    """
    asynchronous = dict(kernel.constants).get("asynchronous")
    if asynchronous is None or asynchronous == (arch != "sm_75"):
        return ""
    if asynchronous:
        return f"needs sm_80 or later; use {kernel.name}_sm75"
    return f"is for sm_75 only; use --arch sm_75, or {kernel.name.removesuffix('_sm75')}"


def fitting(kernels: list[Kernel], arch: str) -> list[Kernel]:
    """Those that are launched on `arch`; ArgumentError if none is."""
    found = [kernel for kernel in kernels if not unfit(kernel, check_arch(arch))]
    if kernels and not found:
        raise ArgumentError(f"kernel {kernels[0].name} {unfit(kernels[0], arch)}")
    return found


def cold(kernels: list[Kernel], arch: str) -> list[Kernel]:
    """Those that are yet to be compiled. DeviceError if $GPUCONV_KERNELS is no folder."""
    try:
        places = [compiler.places(kernel, arch) for kernel in kernels]
    except CompileError as error:
        raise DeviceError(str(error)) from error
    return [
        kernel
        for kernel, files in zip(kernels, places, strict=True)
        if not any(path.is_file() for path, _ in files)
    ]


def ready_made(folder: Path) -> dict[str, int]:
    """Architecture -> how many kernels the folder has for it, made from the source there is now."""
    every = [kernel for module in families().values() for kernel in module.kernels()]
    archs = compiler.ready_archs(folder)
    counts = {arch: sum(compiler.is_ready(folder, k, arch) for k in every) for arch in archs}
    return {arch: count for arch, count in counts.items() if count}


def about(family: str) -> str:
    """The first line of the family's docstring."""
    return (families()[family].__doc__ or "").strip().split("\n")[0]


def what(kernel: Kernel) -> str:
    """The first line of its factory's docstring, or of its file's."""
    text = kernel.make.__doc__ or getattr(getmodule(kernel.make), "__doc__", None)
    return (text or "").strip().split("\n")[0]


def source_line(file: str, line: int) -> str:
    """A line of Python, stripped; "" where it is not on this machine."""
    here = Path(compiler.__file__).with_name(Path(file).name)  # compiled on another machine
    return (linecache.getline(file, line) or linecache.getline(str(here), line)).strip()


@dataclass(frozen=True)
class Occupancy:
    """How many blocks one SM holds at a time; `allowed` by each of its resources."""

    blocks: int
    warps: int
    max_warps: int
    allowed: dict[str, int]

    @property
    def limit(self) -> list[str]:
        """The resources that allow no more."""
        return [name for name, blocks in self.allowed.items() if blocks == self.blocks]


def occupancy(arch: str, threads: int, registers: int, shared: int) -> Occupancy:
    """Of blocks with so many threads, registers a thread and bytes of shared memory.

    The arithmetic of cuda_occupancy.h in the CUDA toolkit: registers are given to warps, 256 at a
    time, in each quarter of an SM; shared memory in pieces of 128 bytes (sm_75: 256), and from
    sm_80 on 1 KiB of each block's is the system's.
    """
    max_threads, max_blocks, kib = LIMITS[check_arch(arch).removesuffix("a")]
    turing = arch == "sm_75"
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // 4 // of_warp * 4 // warps if of_warp else max_blocks
    if of_warp * -(-warps // 4) * 4 > REGISTERS:
        by_registers = 0
    piece = 256 if turing else 128
    of_block = -(-(shared + (0 if turing else 1024)) // piece) * piece
    allowed = {
        "registers": by_registers,
        "threads": max_threads // 32 // warps,
        "blocks": max_blocks,
        "shared memory": kib * 1024 // of_block if of_block else max_blocks,
    }
    blocks = min(allowed.values())
    return Occupancy(blocks, blocks * warps, max_threads // 32, allowed)


@dataclass(frozen=True)
class Inspection:
    """What a kernel compiles to. `code` is None where it cannot be disassembled: `no_code` says
    why."""

    kernel: Kernel
    family: str
    binary: Binary
    occupancy: Occupancy
    code: list[Instruction] | None
    no_code: str

    @cached_property
    def loop(self) -> list[Instruction]:
        """The inner loop."""
        return sass.inner_loop(self.code or [])

    def to_dict(self, with_sass: bool = False, with_ptx: bool = False) -> dict[str, Any]:
        """Fit for JSON."""
        b, o = self.binary, self.occupancy
        result: dict[str, Any] = {
            **describe(self.kernel, self.family),
            "arch": b.arch,
            "registers": b.registers,
            "spill_stores": b.spill_stores,
            "spill_loads": b.spill_loads,
            "stack": b.stack,
            "static_shared": b.static_shared,
            "occupancy": {
                "blocks": o.blocks,
                "warps": o.warps,
                "max_warps": o.max_warps,
                "blocks_allowed": o.allowed,
                "limit": o.limit,
            },
            "code": None,
            "no_code": self.no_code or None,
        }
        if self.code is not None:
            result["code"] = {
                "kernel": sass.mix(self.code),
                "loop": sass.mix(self.loop),
                "loop_addresses": [self.loop[0].address, self.loop[-1].address]
                if self.loop
                else [],
                "loop_spills": sass.spills_in(self.loop),
                "loop_ffma_share": share(self.loop),
            }
        if with_sass:  # null where there is no disassembler, as "no_code" says
            result["sass"] = self.code and [
                {"address": i.address, "text": str(i).strip(), "file": i.file, "line": i.line}
                for i in self.code
            ]
        if with_ptx:
            result["ptx"] = b.ptx
        return result


def describe(kernel: Kernel, family: str) -> dict[str, Any]:
    """What is known of a kernel that is not compiled; fit for JSON."""
    return {
        "name": kernel.name,
        "family": family,
        "what": what(kernel),
        "constants": dict(kernel.constants),
        "parameters": kernel.parameters,
        "threads": kernel.threads,
        "min_blocks": kernel.min_blocks,
        "dynamic_shared": kernel.shared,
    }


def share(instructions: list[Instruction]) -> float:
    """Which part of them is FFMA."""
    return sass.mix(instructions)["FFMA"] / len(instructions) if instructions else 0.0


def inspect(kernels: list[Kernel], family: str, arch: str) -> list[Inspection]:
    """Compile for `arch` and take apart; without those that are not for it, if there are others.

    ArgumentError where all are for another, DeviceError where one cannot be compiled.
    """
    try:
        return [_inspect(kernel, family, arch) for kernel in fitting(kernels, arch)]
    except CompileError as error:
        raise DeviceError(str(error)) from error


def _inspect(kernel: Kernel, family: str, arch: str) -> Inspection:
    binary = compiler.compile(kernel, arch)
    shared = binary.static_shared + kernel.shared
    held = occupancy(arch, kernel.threads, binary.registers, shared)
    try:
        return Inspection(kernel, family, binary, held, sass.disassemble(binary.cubin), "")
    except sass.SassError as error:
        return Inspection(kernel, family, binary, held, None, str(error))


@dataclass(frozen=True)
class Built:
    """One file that `build` made; `status` is "built", "kept", "skipped" (the kernel is not
    for the architecture) or "failed", and `detail` says why."""

    kernel: str
    arch: str
    status: str
    size: int = 0
    detail: str = ""


def build(kernels: list[Kernel], archs: list[str], out: Path, jobs: int = 1) -> Iterator[Built]:
    """Compile for each of `archs` into `out`, which $GPUCONV_KERNELS may then name.

    A file that fits the source is kept, whatever tools made it: empty the folder after changing
    those. Several are compiled at a time, in up to `jobs` processes. DeviceError where there is no
    compiler.
    """
    todo = []
    cold(kernels[:1], archs[0])  # raises what is wrong for all of them
    for kernel in kernels:
        for arch in map(check_arch, archs):
            if why := unfit(kernel, arch):
                yield Built(kernel.name, arch, "skipped", detail=why)
                continue
            key = compiler.source_key(kernel, arch)
            path = out / compiler.file_name(kernel, key)
            if compiler.read(path, key):
                yield Built(kernel.name, arch, "kept", path.stat().st_size)
            else:
                todo.append((kernel, arch, key, path))
    try:
        for (kernel, arch, key, path), made in _compile_all(todo, min(jobs, len(todo) // 2)):
            if isinstance(made, Binary):
                compiler.write(path, key, made)
                yield Built(kernel.name, arch, "built", path.stat().st_size)
            else:
                yield Built(kernel.name, arch, "failed", detail=" ".join(made.split()))
    except NoCompiler as error:
        raise DeviceError(str(error)) from error


def _compile_all(todo: list[Any], jobs: int) -> Iterator[tuple[Any, Binary | str]]:
    if jobs < 2:
        yield from ((item, _compile(*item[:2])) for item in todo)
        return
    pool = ProcessPoolExecutor(
        jobs, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
    try:
        futures = {pool.submit(_compile, *item[:2]): item for item in todo}
        yield from ((futures[done], done.result()) for done in as_completed(futures))
    finally:
        pool.shutdown(cancel_futures=True)


def _compile(kernel: Kernel, arch: str) -> Binary | str:
    """The code, or why there is none; NoCompiler as it is."""
    try:
        return compiler.compile(kernel, arch)
    except NoCompiler:
        raise
    except CompileError as error:
        return str(error)
