"""Compiling to PTX on a machine without GPU or driver: Numba kernels, and CUDA C++ with NVRTC.

The compilers are imported when they are called, so that the emulator itself needs only NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpuconv.emulator.errors import EmulatorError, PtxError


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as e:
        raise EmulatorError(
            f"emulator: compiling to PTX needs {name}: install the extra cuda13 "
            f"(pip install '.[cuda13]' in the checkout)"
        ) from e


def signature(args: Any) -> tuple[Any, ...]:
    """Numba types of kernel arguments."""
    typeof = _import("numba").typeof
    return tuple(typeof(a) for a in args)


def nvrtc_ptx(src: str, arch: str = "compute_80", options: Any = ()) -> str:
    """CUDA C++ source -> PTX, with the CUDA runtime headers on the include path."""
    pathfinder = _import("cuda.pathfinder")
    nvrtc = _import("cuda.bindings.nvrtc")
    inc = [pathfinder.locate_nvidia_header_directory(n) for n in ("cudart", "cccl")]
    args = [
        f"--gpu-architecture={arch}",
        "-lineinfo",
        *(f"-I{d.abs_path}" for d in inc if d),
        *options,
    ]
    _, prog = nvrtc.nvrtcCreateProgram(src.encode(), b"source.cu", 0, [], [])
    (err,) = nvrtc.nvrtcCompileProgram(prog, len(args), [a.encode() for a in args])
    size, get = (
        (nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        if int(err)
        else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    )
    out = b" " * size(prog)[1]
    get(prog, out)
    nvrtc.nvrtcDestroyProgram(prog)
    text = out.decode().rstrip("\0 ")
    if int(err):
        raise PtxError(f"NVRTC: {text}")
    return text


@contextmanager
def _driverless(cc: Any) -> Iterator[None]:
    """Answer for the driver that numba-cuda asks while it compiles device functions."""
    dispatcher = _import("numba.cuda.dispatcher")
    nvrtc = _import("numba.cuda.cudadrv.nvrtc")
    _, major, _ = _import("cuda.bindings.nvrtc").nvrtcVersion()
    here = Path(nvrtc.__file__).resolve().parent.parent
    inc = [f"-I{here / d}" for d in (f"include/{major}", "memory_management")]

    def compile_helper(src: Any, name: str, cc: Any, **_: Any) -> Any:
        src = src.decode() if isinstance(src, bytes) else src
        return nvrtc_ptx(src, f"compute_{cc[0]}{cc[1]}", ["-rdc=true", *inc]), ""

    saved = dispatcher.get_current_device, nvrtc.compile
    dispatcher.get_current_device, nvrtc.compile = (
        lambda: SimpleNamespace(compute_capability=cc),
        compile_helper,
    )
    try:
        yield
    finally:
        dispatcher.get_current_device, nvrtc.compile = saved


@lru_cache(maxsize=256)
def numba_ptx(fn: Any, sig: Any, cc: Any = (8, 0), fastmath: bool = True) -> tuple[str, ...]:
    """Kernel (function or dispatcher) and argument types -> its PTX and that of its helpers."""
    _import("numba_cuda")  # numba.cuda itself may be the older one that comes with Numba
    cuda = _import("numba.cuda")
    with _driverless(cc):
        codes, _ = cuda.compile_all(
            getattr(fn, "py_func", fn),
            sig,
            cc=cc,
            device=False,
            abi="numba",
            fastmath=fastmath,
            lineinfo=True,
            output="ptx",
        )
    return tuple(codes)
