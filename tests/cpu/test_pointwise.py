"""1x1 convolutions by matrix products, for every instruction set."""

import pytest

from gpuconv.kernels.cpu import pointwise
from gpuconv.shapes import ConvSpec
from tests.cpu.conftest import PASSES, check_conv

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
