"""1x1 convolutions by matrix products, for every instruction set."""

from typing import Any

import numpy as np
import pytest

from gpuconv.cpu.device import DEVICE
from gpuconv.kernels.cpu import pointwise
from gpuconv.kernels.cpu.plan import Packed
from gpuconv.shapes import ConvSpec
from gpuconv.testing import assert_within_budget
from tests.cpu.conftest import PASSES, REFERENCE, check_conv, numbers
from tests.operations import channels_last

# (N, C, H, W), K, stride
PROBLEMS = {
    "one": ((1, 1, 1, 1), 1, 1),
    "small": ((2, 3, 5, 7), 4, 1),
    "33 channels": ((1, 33, 9, 9), 35, 1),
    "images side by side": ((3, 16, 7, 7), 64, 1),
    "wide": ((2, 64, 33, 33), 50, 1),
    "parts": ((2, 20, 40, 40), 17, 1),
    "deep": ((1, 530, 6, 6), 70, 1),
    "stride": ((3, 20, 15, 14), 35, 2),
    "stride, large": ((2, 40, 67, 70), 33, 2),
    "strides": ((2, 5, 37, 75), 18, (3, 2)),
    "pixels left over": ((2, 4, 11, 12), 7, (4, 5)),
}


def spec(name: str) -> ConvSpec:
    x, k, stride = PROBLEMS[name]
    return ConvSpec.infer(x, (k, x[1], 1, 1), stride)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels-last"])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_passes(isa: str, name: str, which: str, last: bool) -> None:
    check_conv(pointwise, which, spec(name), last)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels-last"])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", ["33 channels", "images side by side", "stride"])
def test_float64(name: str, which: str, last: bool) -> None:
    check_conv(pointwise, which, spec(name), last, "float64")


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels-last"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["images side by side", "wide", "deep", "stride"])
def test_epilogues(name: str, bias: bool, add: bool, relu: bool, last: bool) -> None:
    check_conv(pointwise, "forward", spec(name), last, bias=bias, add=add, relu=relu)


def test_what_it_does_not_take() -> None:
    x, w = (1, 4, 8, 8), (4, 4, 1, 1)
    assert not pointwise.supports(ConvSpec.infer(x, (4, 4, 3, 3)), "float32", "forward")
    assert not pointwise.supports(ConvSpec.infer(x, (4, 2, 1, 1), groups=2), "float32", "forward")
    assert not pointwise.supports(ConvSpec.infer(x, w, padding=1), "float32", "forward")
    assert not pointwise.supports(ConvSpec.infer(x, w), "float16", "forward")


class PackedOnce:
    """The forward pass with a weight that is packed once for two calls, which must agree."""

    __name__ = "packed"
    supports = staticmethod(pointwise.supports)

    @staticmethod
    def forward(*key: Any) -> Any:
        plan = pointwise.forward(*key)
        assert isinstance(plan, Packed)

        def run(x: Any, w: Any, b: Any, add: Any, y: Any) -> None:
            packed, first = plan.pack(w), np.empty_like(y)
            plan.compute(x, packed, b, add, first)
            plan.compute(x, packed, b, add, y)
            np.testing.assert_array_equal(first, y)

        return run


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels-last"])
@pytest.mark.parametrize("rest", [False, True], ids=["alone", "bias, add and relu"])
@pytest.mark.parametrize("name", ["33 channels", "images side by side", "deep", "stride"])
def test_weight_packed_once(isa: str, name: str, rest: bool, last: bool) -> None:
    problem = spec(name)
    check_conv(PackedOnce, "forward", problem, last, bias=rest, add=rest, relu=rest)
    if name == "33 channels":
        check_conv(PackedOnce, "forward", problem, last, "float64", bias=rest, add=rest, relu=rest)


@pytest.mark.parametrize("pixels", [(2, 7), (3, 5), (4, 7), (14, 14), (1, 29)])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels-last"])
@pytest.mark.parametrize("k", [31, 32, 33, 64, 97])
def test_packed_tiles(k: int, last: bool, pixels: tuple[int, int]) -> None:
    problem = ConvSpec.infer((1, 300, *pixels), (k, 300, 1, 1))
    check_conv(PackedOnce, "forward", problem, last, bias=True, add=True, relu=True)


@pytest.mark.parametrize("which", ["forward", "grad_input"])
@pytest.mark.parametrize(("c", "k"), [(1, 1), (33, 70), (64, 48)])
def test_many_pixels_are_worth_a_packed_weight(isa: str, which: str, c: int, k: int) -> None:
    spec = ConvSpec.infer((2, c, 33, 35), (k, c, 1, 1))
    check_conv(pointwise, which, spec, last=True)


# (N, C, H, W), K: few channels, of which plain code adds up few products in a row.
SUMS = [
    ((1, 31, 28, 8), 8),
    ((1, 3, 17, 17), 16),
    ((1, 64, 28, 28), 8),
    ((1, 8, 28, 28), 64),
    ((1, 64, 28, 28), 16),
    ((1, 64, 56, 56), 3),
    ((2, 1, 28, 28), 1),
    ((5, 1, 4, 31), 1),
]


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels-last"])
@pytest.mark.parametrize(("x_shape", "k"), SUMS, ids=str)
def test_sums_over_pixels_are_exact(isa: str, x_shape: Any, k: int, last: bool) -> None:
    """The median of 20 errors, in those of plain code, is within the budget."""
    problem = ConvSpec.infer(x_shape, (k, x_shape[1], 1, 1))
    form = channels_last if last else np.ascontiguousarray
    run = pointwise.grad_weight(DEVICE, problem, "float32", last)
    cases = []
    for seed in range(20):
        x, gy = (
            form(numbers(seed + i, *shape).astype(np.float32))
            for i, shape in ((0, problem.x_shape), (100, problem.y_shape))
        )
        found = np.empty(problem.w_shape, np.float32)
        run(gy, x, found)
        plain, exact = (
            REFERENCE.conv_grad_weight(problem, gy.astype(kind), x.astype(kind))
            for kind in (np.float32, np.float64)
        )
        error, of_plain = (np.abs(a - exact).max() for a in (found, plain))
        cases.append((error / max(of_plain, 1e-30), found, plain, exact))
    cases.sort(key=lambda case: case[0])
    assert_within_budget(*cases[len(cases) // 2][1:])
