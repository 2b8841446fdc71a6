"""Direct convolution: both passes, whatever the kernel, stride, dilation, groups and padding."""

from typing import Any

import pytest

from gpuconv.kernels.cpu import direct
from gpuconv.shapes import ConvSpec
from tests.cpu.conftest import check_conv, check_packed

PASSES = ("forward", "grad_input")
FORMATS = pytest.mark.parametrize("last", [False, True], ids=["NCHW", "NHWC"])
S = ConvSpec.infer
SPECS = {
    "one number": S((1, 1, 1, 1), (1, 1, 1, 1)),
    "3x3": S((2, 3, 9, 10), (5, 3, 3, 3), 1, 1),
    "one row": S((2, 4, 1, 19), (3, 4, 1, 5), 1, ((0, 0), (2, 2))),
    "stride 2": S((1, 33, 7, 9), (70, 33, 3, 3), 2, 1),
    "stride beyond the kernel": S((2, 16, 9, 8), (34, 16, 1, 1), 2),
    "stride 3, kernel 2": S((3, 4, 13, 11), (6, 4, 2, 2), 3, 1),
    "all at once": S((3, 4, 13, 11), (6, 2, 3, 2), (2, 3), ((0, 2), (1, 0)), (2, 1), 2),
    "stride and dilation 2": S((1, 5, 14, 15), (17, 5, 3, 3), 2, 2, 2),
    "dilation 3, stride 2": S((1, 2, 15, 17), (4, 2, 3, 3), 2, 3, 3),
    "groups of one": S((2, 5, 6, 6), (10, 1, 3, 3), 1, 1, 1, 5),
    "groups of many": S((1, 66, 5, 5), (34, 33, 3, 3), 1, 1, 1, 2),
    "11x11, stride 4": S((1, 3, 39, 37), (64, 3, 11, 11), 4, 2),
    "large padding": S((1, 2, 3, 3), (3, 2, 3, 3), 1, ((5, 4), (0, 6))),
    "rows that no window reads": S((1, 3, 11, 11), (4, 3, 2, 2), 4),
    "many small images": S((37, 6, 5, 4), (16, 6, 3, 3), 1, 1),
    "deep": S((1, 600, 4, 4), (20, 600, 3, 3), 1, 1),
    "wide": S((1, 2, 4, 1100), (5, 2, 3, 3), 1, 1),
}


@pytest.mark.parametrize("which", PASSES)
@FORMATS
@pytest.mark.parametrize("name", SPECS)
def test_specs(isa: str, name: str, last: bool, which: str) -> None:
    check_conv(direct, which, SPECS[name], last)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("channels", [1, 4, 5, 8, 9, 15, 16, 17, 32, 33, 48, 49, 64, 65])
def test_channels_around_tiles(isa: str, channels: int, which: str) -> None:
    """One below, at, above the widths of vectors and tiles, of either side of the sum."""
    other = 4
    pair = (channels, other) if which == "forward" else (other, channels)
    spec = S((1, pair[1], 5, 6), (pair[0], pair[1], 3, 3), 1, 1)
    for last in (False, True):
        check_conv(direct, which, spec, last)


@pytest.mark.parametrize("width", [1, 5, 6, 7, 8, 9, 15, 16, 17, 33])
def test_pixels_around_tiles(isa: str, width: int) -> None:
    for last in (False, True):
        for channels in (3, 33):
            check_conv(direct, "forward", S((2, 3, 3, width), (channels, 3, 3, 3), 1, 1), last)


@FORMATS
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_epilogue(isa: str, last: bool, bias: bool, add: bool, relu: bool) -> None:
    for channels in (4, 33):
        spec = S((2, 6, 7, 9), (channels, 6, 3, 3), 1, 1)
        check_conv(direct, "forward", spec, last, bias=bias, add=add, relu=relu)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", ["3x3", "stride 2", "groups of many"])
def test_float64(isa: str, name: str, which: str) -> None:
    options: dict[str, Any] = {}
    if which == "forward":
        options = {"bias": True, "add": True, "relu": True}
    for last in (False, True):
        check_conv(direct, which, SPECS[name], last, "float64", **options)


@FORMATS
@pytest.mark.parametrize("name", ["3x3", "stride 2", "one number", "all at once", "deep"])
def test_weights_packed_beforehand(isa: str, name: str, last: bool) -> None:
    check_packed(direct, SPECS[name], last)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_packed_beforehand_for_many_tasks(dtype: str) -> None:
    check_packed(direct, S((2, 20, 40, 40), (70, 20, 3, 3), 2, 1), False, dtype)


def test_takes_images_only() -> None:
    two, one = S((1, 2, 5, 5), (3, 2, 3, 3)), S((1, 2, 5), (3, 2, 3))
    assert direct.supports(two, "float32", "forward")
    assert direct.supports(two, "float64", "grad_input")
    assert not direct.supports(two, "float32", "grad_weight")
    assert not direct.supports(one, "float32", "forward")
    assert not direct.supports(two, "float16", "forward")
