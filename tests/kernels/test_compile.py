"""Every kernel for every architecture, compiled with no GPU: registers, spills, the inner loop.

The budgets are what the kernels have reached: a change that costs more fails here.
"""

from typing import Any

import pytest

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from gpuconv.kernels.cuda import sass
from gpuconv.kernels.cuda.compiler import Kernel, compile
from gpuconv.study import families, unfit

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
KERNELS = [(family, kernel) for family, module in families().items() for kernel in module.kernels()]
# The most registers that a kernel of a family takes, on any of these architectures.
REGISTERS = {
    "direct": 40,
    "tiled": 128,
    "weight": 128,
    "layout": 32,
    "depthwise": 128,
    "depthwise_weight": 64,
    "pool": 80,
    "pool_plane": 40,
    "norm": 48,
    "loss": 40,
    "step": 80,
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("family", "kernel"), KERNELS, ids=[k.name for _, k in KERNELS])
def test_budget(family: str, kernel: Kernel, arch: str) -> None:
    if unfit(kernel, arch):
        return
    binary = compile(kernel, arch)
    assert binary.registers <= REGISTERS[family], binary.registers
    assert (binary.spills, binary.stack) == (0, 0)
    assert binary.registers * kernel.threads * kernel.min_blocks <= 65536
    if "float64" not in kernel.name:
        assert ".f64" not in binary.ptx, "float32 arithmetic has slipped into float64"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    "kernel", [k for f, k in KERNELS if f in ("tiled", "weight")], ids=lambda k: k.name
)
def test_the_inner_loop_is_multiply_adds(kernel: Kernel, arch: str) -> None:
    if unfit(kernel, arch):
        return
    loop = sass.inner_loop(sass.disassemble(compile(kernel, arch).cubin))
    counts = sass.mix(loop)
    assert counts["FFMA"] == 256
    assert counts["FFMA"] >= 0.85 * len(loop), counts
    assert sass.spills_in(loop) == 0


def test_names_are_unique() -> None:
    names: list[Any] = [kernel.name for _, kernel in KERNELS]
    assert len(set(names)) == len(names)
