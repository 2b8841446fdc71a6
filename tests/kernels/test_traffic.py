"""What the tiled kernels ask of memory, on shapes as networks have them: sectors and wavefronts."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from gpuconv.cuda import CudaBackend
from gpuconv.cuda.device import EmulatedDevice
from gpuconv.kernels.cuda import product, weight
from gpuconv.kernels.cuda.tiled import CONFIGS
from gpuconv.shapes import ConvSpec
from tests.operations import channels_last

# As in ResNets, but for their size.
SPECS = {
    "3x3": ConvSpec.infer((1, 64, 14, 12), (64, 64, 3, 3), padding=1),
    "3x3 stride 2": ConvSpec.infer((1, 32, 16, 16), (72, 32, 3, 3), padding=1, stride=2),
    "1x1 stride 2": ConvSpec.infer((1, 64, 16, 16), (128, 64, 1, 1), stride=2),
}


def reports(spec: ConvSpec, last: bool, tile: int, which: str) -> list[Any]:
    """Of the products of one pass, with every access looked at."""
    rng, found = np.random.default_rng(0), []
    device = EmulatedDevice(
        watch=lambda kernel, report: found.append((kernel.name, report)), stats=True, sample=None
    )
    be = CudaBackend(device, "emulated")
    x, w, gy = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in (spec.x_shape, spec.w_shape, spec.y_shape)
    )
    if last:
        x, gy = channels_last(x), channels_last(gy)
    if which == "forward":
        y = be.empty_like_format(x, spec.y_shape, x.dtype)
        product.forward(device, spec, last, False, False, False, (CONFIGS[tile], 1))(
            x, w, None, None, y
        )
    elif which == "grad_input":
        tiles = [(CONFIGS[tile], 1)] * len(product.grad_input_problems(spec))
        gx = be.empty_like_format(x, spec.x_shape, x.dtype)
        product.grad_input(device, spec, last, tiles)(gy, w, gx)
    else:
        gw = device.empty(spec.w_shape, x.dtype)
        weight.grad_weight(device, spec, last, last, (weight.CONFIGS[tile], 1))(gy, x, gw)
    return [report for name, report in found if name.startswith(("tiled_", "grad_weight_"))]


PASSES = [("forward", t) for t in range(len(CONFIGS))]
PASSES += [("grad_input", t) for t in range(len(CONFIGS))]
PASSES += [("grad_weight", t) for t in range(len(weight.CONFIGS))]


@pytest.mark.parametrize(("which", "tile"), PASSES)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", SPECS)
def test_sectors_and_bank_conflicts(name: str, last: bool, which: str, tile: int) -> None:
    found = reports(SPECS[name], last, tile, which)
    assert any("cp.async" in m.where for report in found for m in report.mem.values())
    for report in found:
        for stat in report.mem.values():
            if stat.space == "global" and "cp.async" in stat.where:
                assert stat.units <= 1.1 * stat.ideal, stat
        for stat in report.mem.values():
            if stat.space == "shared":
                assert stat.units == stat.ideal, f"bank conflicts: {stat}"
        # Stores of a strided gradient in NCHW are every other pixel: not adjacent in any order.
        if not (which == "grad_input" and not last and SPECS[name].stride != (1, 1)):
            units, ideal = report.total("global"), report.total("global", "ideal")
            assert units <= 1.1 * ideal, report.summary()
