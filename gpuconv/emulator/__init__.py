"""Runs compiled PTX on the CPU, lane-parallel in NumPy, with checks like compute-sanitizer's.

    report = emulator.run(kernel, grid, block, x, y, np.float32(0.5), cc=(8, 0))  # Numba kernel
    module = emulator.Module(ptx_text)  # any PTX
    report = module.launch("name", grid, block, [emulator.Ptr(x), np.int32(n)])

No GPU, driver or toolkit is needed to run PTX; `run`, `compile_kernel` and `numba_ptx` need the
package numba-cuda to make it, `nvrtc_ptx` the package cuda-bindings with NVRTC. Arrays are modified
in place, as a GPU launch would. The report has findings, instruction counts and access statistics;
a launch with error findings raises `CheckFailed` unless `strict=False`.

Limits. It runs PTX, not machine code: no timing, registers, occupancy or caches. Only the paths
and sizes that are run are checked. Memory is sequentially consistent, fences do nothing, and the
blocks of later batches are not co-resident (no grid barriers). Unsupported, and reported when
reached: wmma, wgmma, tcgen05, bulk copies, mbarrier, clusters, textures, indirect or recursive
calls, fp8/fp4, sparse/f64/m8n8 mma, vector atomics, 128-bit registers; device printf prints
nothing. Numerics: f32 fma is rounded twice (off by 1 ulp about once in 2**29), directed rounding
only for f32, `.approx` functions are computed accurately, mma sums in float64 and rounds once, tf32
operands are truncated to 10 mantissa bits.
"""

from gpuconv.emulator.errors import CheckFailed, EmulatorError, PtxError, Unsupported
from gpuconv.emulator.findings import LEVELS, Finding, MemStat, Report
from gpuconv.emulator.frontend import numba_ptx, nvrtc_ptx
from gpuconv.emulator.launch import Module, Ptr, compile_kernel, run

__all__ = [
    "LEVELS",
    "CheckFailed",
    "EmulatorError",
    "Finding",
    "MemStat",
    "Module",
    "Ptr",
    "PtxError",
    "Report",
    "Unsupported",
    "compile_kernel",
    "numba_ptx",
    "nvrtc_ptx",
    "run",
]
