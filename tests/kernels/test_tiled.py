"""The tiled kernels: every tile, split and epilogue; sizes around the tile; both memory formats."""

from typing import Any

import numpy as np
import pytest

from gpuconv.shapes import ConvSpec
from tests.kernels import plain
from tests.kernels.conftest import check
from tests.operations import channels_last

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from gpuconv.kernels.cuda import product, weight
from gpuconv.kernels.cuda.tiled import CONFIGS

Problem = tuple[Any, Any, dict[str, Any]]
# Pixels, channels out, and C*R*S around the sizes of tiles and steps; every option of the geometry.
PROBLEMS: dict[str, Problem] = {
    "one of everything": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "127 pixels, 127 channels": ((1, 4, 1, 127), (127, 4, 1, 1), {}),
    "128 pixels, 128 channels": ((1, 4, 8, 16), (128, 4, 1, 2), {"padding": "same"}),
    "129 pixels, 129 channels": ((3, 4, 1, 43), (129, 4, 1, 1), {}),
    "63 and 63": ((7, 16, 3, 3), (63, 16, 1, 1), {}),
    "65 and 65": ((5, 8, 1, 13), (65, 8, 1, 1), {}),
    "3 channels": ((2, 3, 7, 9), (20, 3, 5, 5), {"padding": 2, "stride": 2}),
    "33 channels": ((1, 33, 6, 5), (33, 33, 2, 2), {"padding": ((1, 0), (0, 1))}),
    "1x3": ((1, 5, 4, 9), (6, 5, 1, 3), {"padding": (0, 1)}),
    "3x1": ((1, 5, 9, 4), (6, 5, 3, 1), {"padding": (1, 0)}),
    "4x4 same": ((1, 4, 7, 6), (4, 4, 4, 4), {"padding": "same", "stride": 2}),
    "7x7": ((1, 3, 13, 12), (9, 3, 7, 7), {"padding": 3, "stride": 2}),
    "11x11 stride 4": ((1, 3, 19, 15), (8, 3, 11, 11), {"padding": 2, "stride": 4}),
    "stride beyond the kernel": ((1, 4, 9, 8), (5, 4, 2, 1), {"stride": 3}),
    "dilation": ((1, 6, 9, 8), (7, 6, 3, 2), {"padding": 1, "dilation": (2, 3)}),
    "dilation and stride": ((1, 4, 11, 12), (8, 4, 3, 3), {"stride": (2, 3), "dilation": (3, 2)}),
    "stride 4, dilation 2": ((1, 4, 13, 12), (8, 4, 3, 2), {"stride": 4, "dilation": 2}),
    "groups": ((2, 16, 5, 6), (24, 8, 3, 3), {"padding": 1, "groups": 2, "stride": (1, 2)}),
    "rows no window visits": ((1, 4, 12, 11), (4, 4, 3, 3), {"stride": 5}),
}
every_problem = pytest.mark.parametrize("name", PROBLEMS)
both_formats = pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
every_tile = pytest.mark.parametrize(
    "tile", [*((c, 1) for c in CONFIGS), (CONFIGS[2], 3)], ids=lambda t: f"{t[0]}-{t[1]}"
)


def arrays(name: str, rng: np.random.Generator, last: bool) -> tuple[ConvSpec, dict[str, Any]]:
    x_shape, w_shape, options = PROBLEMS[name]
    spec = ConvSpec.infer(x_shape, w_shape, **options)
    x, w, gy = (rng.standard_normal(shape) for shape in (x_shape, w_shape, spec.y_shape))
    add = rng.standard_normal(spec.y_shape)
    if last:
        x, gy, add = channels_last(x), channels_last(gy), channels_last(add)
    return spec, {"x": x, "w": w, "gy": gy, "add": add, "b": rng.standard_normal(w_shape[0])}


@every_tile
@both_formats
@every_problem
def test_forward(be: Any, rng: np.random.Generator, name: str, last: bool, tile: Any) -> None:
    spec, a = arrays(name, rng, last)

    def conv(be: Any, x: Any, w: Any, b: Any, add: Any) -> Any:
        if not hasattr(be, "device"):
            return np.maximum(plain.conv(spec, x, w) + b[:, None, None] + add, 0)
        y = be.empty_like_format(x, spec.y_shape, x.dtype)
        product.forward(be.device, spec, last, True, True, True, tile)(x, w, b, add, y)
        return y

    check(be, conv, a["x"], a["w"], a["b"], a["add"])


@every_tile
@both_formats
@every_problem
def test_grad_input(be: Any, rng: np.random.Generator, name: str, last: bool, tile: Any) -> None:
    spec, a = arrays(name, rng, last)

    def grad(be: Any, gy: Any, w: Any) -> Any:
        if not hasattr(be, "device"):
            return plain.conv_grad_input(spec, gy, w)
        gx = be.empty_like_format(gy, spec.x_shape, gy.dtype)
        tiles = [tile] * len(product.grad_input_problems(spec))
        product.grad_input(be.device, spec, last, tiles)(gy, w, gx)
        return gx

    check(be, grad, a["gy"], a["w"])


@pytest.mark.parametrize(
    "tile",
    [*((c, 1) for c in weight.CONFIGS), (weight.CONFIGS[1], 3)],
    ids=lambda t: f"{t[0]}-{t[1]}",
)
@both_formats
@every_problem
def test_grad_weight(be: Any, rng: np.random.Generator, name: str, last: bool, tile: Any) -> None:
    spec, a = arrays(name, rng, last)

    def grad(be: Any, gy: Any, x: Any) -> Any:
        if not hasattr(be, "device"):
            return be.conv_grad_weight(spec, gy, x)
        gw = be.device.empty(spec.w_shape, x.dtype)
        weight.grad_weight(be.device, spec, last, last, tile)(gy, x, gw)
        return gw

    check(be, grad, a["gy"], a["x"])


@pytest.mark.parametrize("sms", [4, 132])
@pytest.mark.parametrize("n", [1, 16, 400])
def test_no_sum_in_sequence_is_long(n: int, sms: int) -> None:
    """Above about 40000 products the error budget is exceeded; parts of 2**14 keep within half."""
    spec = ConvSpec.infer((n, 4, 512, 512), (4, 4, 3, 3), padding=1)
    _, splits, _ = weight.choose(spec, sms)
    assert n * 512 * 512 / splits <= 2**14
