"""Depthwise convolution: windows that roll along the image, and all others; both formats."""

from typing import Any

import numpy as np
import pytest

from gpuconv.cpu.device import DEVICE
from gpuconv.kernels.cpu import depthwise
from gpuconv.shapes import ConvSpec
from tests.cpu.conftest import PASSES, REFERENCE, check_conv, launched, numbers
from tests.operations import channels_last


def spec(
    x: tuple[int, int, int, int], window: tuple[int, int], times: int = 1, **options: Any
) -> ConvSpec:
    """Each of x's channels is a group, with `times` outputs."""
    return ConvSpec.infer(x, (x[1] * times, 1, *window), groups=x[1], **options)


# For every instruction set: few kernels, and sizes around the vectors of all (4, 8, 16 lanes).
SAME = {"padding": 1}
EVERY = {
    "1 pixel": spec((1, 3, 1, 1), (3, 3), **SAME),
    "width 4": spec((2, 4, 5, 4), (3, 3), **SAME),
    "width 14": spec((1, 33, 14, 14), (3, 3), **SAME),
    "width 18": spec((1, 16, 7, 18), (3, 3), **SAME),
    "width 33": spec((2, 1, 3, 33), (3, 3), **SAME),
    "wide": spec((1, 5, 70, 100), (3, 3), padding=((2, 0), (1, 2))),
    "stride": spec((2, 4, 19, 22), (3, 3), stride=2, **SAME),
    "stride, 33 channels": spec((1, 33, 9, 40), (3, 3), stride=(1, 2), padding=((0, 2), (1, 0))),
}
MORE = {
    "width 15": spec((1, 15, 16, 15), (3, 3), **SAME),
    "width 16": spec((3, 17, 4, 16), (3, 3), **SAME),
    "width 17": spec((1, 32, 3, 17), (3, 3)),
    "height 1": spec((1, 18, 1, 50), (3, 3), padding=2),
    "width 1": spec((2, 40, 9, 1), (3, 3), padding=2),
    "no padding": spec((1, 3, 3, 3), (3, 3)),
    "128 channels": spec((9, 130, 6, 5), (3, 3), **SAME),
    "5x5": spec((2, 16, 11, 13), (5, 5), padding=2),
    "5x5, all of it padded": spec((1, 35, 3, 2), (5, 5), padding=((4, 3), (0, 4))),
    "5x5 wide": spec((1, 3, 65, 50), (5, 5), padding=((1, 2), (2, 0))),
    "5x5 stride": spec((1, 20, 12, 13), (5, 5), stride=2, padding=2),
    "1x1": spec((2, 6, 5, 7), (1, 1)),
    "1x1 stride": spec((1, 5, 10, 9), (1, 1), stride=3, padding=1),
    "1x3": spec((1, 4, 6, 37), (1, 3), padding=(0, 1)),
    "3x1": spec((1, 4, 6, 37), (3, 1), padding=(1, 0)),
    "2x2": spec((1, 18, 9, 8), (2, 2), stride=2),
    "4x2": spec((1, 3, 9, 9), (4, 2), stride=(3, 2), padding=((0, 3), (1, 0))),
    "7x7": spec((2, 20, 12, 14), (7, 7), padding=3),
    "11x11 stride 4": spec((1, 3, 40, 41), (11, 11), stride=4, padding=2),
    "dilation": spec((1, 18, 17, 40), (3, 3), dilation=(2, 3), padding=(2, 3)),
    "stride and dilation": spec((1, 3, 17, 19), (3, 2), stride=(2, 3), dilation=2, padding=2),
    "stride past the window": spec((1, 3, 13, 70), (2, 2), stride=(3, 4), padding=1),
    "padding past the window": spec((1, 19, 2, 3), (3, 3), padding=4),
    "twice": spec((2, 5, 8, 9), (3, 3), times=2, **SAME),
    "three times": spec((1, 12, 7, 20), (3, 3), times=3, stride=2, padding=((1, 0), (0, 2))),
    "twice, 5x3": spec((1, 17, 8, 9), (5, 3), times=2, dilation=(1, 2), padding=2),
    "tall tile": spec((1, 2, 150, 90), (4, 4), padding=2),
    "tall tile, stride": spec((1, 2, 151, 290), (3, 3), stride=2),
}


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "last"])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", EVERY)
def test_every_instruction_set(isa: str, name: str, which: str, last: bool) -> None:
    check_conv(depthwise, which, EVERY[name], last)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "last"])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", MORE)
def test_windows(name: str, which: str, last: bool) -> None:
    check_conv(depthwise, which, MORE[name], last)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "last"])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", ["width 18", "wide", "stride, 33 channels"])
def test_float64(name: str, which: str, last: bool) -> None:
    check_conv(depthwise, which, EVERY[name], last, "float64")


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "last"])
@pytest.mark.parametrize("name", ["width 18", "width 4", "stride", "stride, 33 channels"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("add", [False, True], ids=["", "add"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_epilogues(name: str, last: bool, bias: bool, add: bool, relu: bool) -> None:
    check_conv(depthwise, "forward", EVERY[name], last, bias=bias, add=add, relu=relu)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "last"])
def test_epilogue_of_several_outputs_a_channel(last: bool) -> None:
    check_conv(depthwise, "forward", MORE["twice"], last, bias=True, add=True, relu=True)
    check_conv(depthwise, "forward", MORE["three times"], last, bias=True, add=True, relu=True)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "last"])
@pytest.mark.parametrize(
    "s",
    [
        spec((2, 17, 9, 21), (3, 3), **SAME),
        spec((1, 17, 9, 21), (3, 3), padding=((0, 2), (2, 0))),
        spec((1, 17, 9, 21), (3, 3), stride=2),
    ],
    ids=["same", "uneven", "stride"],
)
@pytest.mark.parametrize("which", PASSES)
def test_infinite_numbers_stay_where_they_belong(which: str, s: ConvSpec, last: bool) -> None:
    form = channels_last if last else np.ascontiguousarray
    x, w, gy = (numbers(i, *shape) for i, shape in enumerate((s.x_shape, s.w_shape, s.y_shape)))
    for array in (gy,) if which == "grad_input" else (x,):
        array[0, 3, 0, 0] = array[0, 5, -1, -1] = array[0, 16, 3, -2] = np.inf
        array[0, 7, 3, 5] = np.nan
    x, w, gy = (array.astype(np.float32) for array in (x, w, gy))
    with np.errstate(invalid="ignore"):
        if which == "forward":
            exact = REFERENCE.conv(s, form(x), w, None)
            arrays, key = (form(x), w, None, None), (s, "float32", last, False, False, False)
        elif which == "grad_input":
            exact = REFERENCE.conv_grad_input(s, form(gy), w)
            arrays, key = (form(gy), w), (s, "float32", last)
        else:
            exact = REFERENCE.conv_grad_weight(s, form(gy), form(x))
            arrays, key = (form(gy), form(x)), (s, "float32", last)
    lies = last and which != "grad_weight"
    result = launched(getattr(depthwise, which), arrays, exact.shape, lies, *key)
    np.testing.assert_array_equal(np.isfinite(result), np.isfinite(exact))
    np.testing.assert_array_equal(np.isnan(result), np.isnan(exact))


def test_what_it_takes() -> None:
    assert depthwise.supports(EVERY["wide"], "float64", "grad_weight")
    grouped = ConvSpec.infer((1, 8, 9, 9), (8, 2, 3, 3), groups=4)
    assert not depthwise.supports(grouped, "float32", "forward")


def test_relu_keeps_nan() -> None:
    s = EVERY["width 18"]
    x, w = (numbers(i, *shape).astype(np.float32) for i, shape in enumerate((s.x_shape, s.w_shape)))
    x[0, 2, 3, 4] = np.nan
    for last in (False, True):
        form = channels_last if last else np.ascontiguousarray
        run = depthwise.forward(DEVICE, s, "float32", last, False, False, True)
        y = form(np.zeros(s.y_shape, np.float32))
        run(form(x), w, None, None, y)
        assert np.isnan(y).sum() == 9
