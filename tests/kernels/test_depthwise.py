"""Depthwise convolution: every window, option and tile edge, in both memory formats."""

from typing import Any

import numpy as np
import pytest

from gpuconv.cuda import CudaBackend
from gpuconv.cuda.device import EmulatedDevice
from gpuconv.kernels.cuda import depthwise, depthwise_weight
from gpuconv.shapes import ConvSpec
from tests.kernels.conftest import check
from tests.operations import channels_last

# x shape, multiplier, kernel, options. A thread has 4 or 8 outputs, a vector block 32 channels and
# 32 places, a block of the gradient by weight 32 channels and 8 outputs a tile.
PROBLEMS: dict[str, tuple[Any, int, Any, dict[str, Any]]] = {
    "one pixel": ((1, 1, 1, 1), 1, (1, 1), {}),
    "3x3 below a tile": ((2, 3, 7, 9), 1, (3, 3), {"padding": 1}),
    "3x3 a tile": ((1, 4, 8, 8), 1, (3, 3), {"padding": 1}),
    "3x3 above a tile": ((2, 4, 9, 17), 1, (3, 3), {"padding": 1}),
    "3x3 32 channels": ((2, 32, 5, 6), 1, (3, 3), {"padding": 1}),
    "3x3 33 channels": ((1, 33, 5, 6), 1, (3, 3), {}),
    "3x3 36 channels": ((1, 36, 6, 5), 1, (3, 3), {"padding": ((0, 1), (2, 1))}),
    "3x3 stride 2": ((2, 4, 9, 7), 1, (3, 3), {"padding": 1, "stride": 2}),
    "3x3 stride 2 same": ((1, 32, 8, 18), 1, (3, 3), {"padding": "same", "stride": 2}),
    "3x3 stride 2, 3 channels": ((2, 3, 17, 8), 1, (3, 3), {"padding": 1, "stride": 2}),
    "stride 1 and 2": ((1, 4, 7, 8), 1, (3, 3), {"padding": 1, "stride": (1, 2)}),
    "stride above the kernel": ((1, 4, 9, 11), 1, (2, 3), {"stride": (3, 5)}),
    "strides above the image": ((2, 4, 5, 7), 1, (3, 2), {"padding": (3, 1), "stride": (9, 2**20)}),
    "5x5": ((1, 4, 9, 10), 1, (5, 5), {"padding": 2}),
    "5x5 stride 2": ((1, 4, 11, 8), 1, (5, 5), {"padding": 2, "stride": 2}),
    "7x7": ((1, 8, 9, 10), 1, (7, 7), {"padding": 3}),
    "11x11 stride 4": ((1, 4, 15, 13), 1, (11, 11), {"padding": 4, "stride": 4}),
    "1x3": ((1, 4, 3, 6), 1, (1, 3), {"padding": (0, 1)}),
    "3x1": ((1, 4, 6, 3), 1, (3, 1), {"padding": (1, 0)}),
    "2x2": ((1, 33, 5, 6), 1, (2, 2), {"padding": "same"}),
    "4x4 stride 2": ((2, 4, 9, 7), 1, (4, 4), {"padding": "same", "stride": 2}),
    "two windows": ((1, 4, 9, 10), 1, (9, 6), {"padding": 4}),
    "padding beyond": ((1, 4, 3, 4), 1, (3, 3), {"padding": ((4, 3), (5, 4))}),
    "dilation": ((1, 4, 9, 8), 1, (3, 3), {"padding": 2, "dilation": 2}),
    "dilation of columns": ((1, 4, 9, 8), 1, (3, 3), {"padding": 2, "dilation": (1, 2)}),
    "dilation 2 stride 3": ((1, 4, 13, 12), 1, (3, 3), {"padding": 2, "dilation": 2, "stride": 3}),
    "dilation 2 stride 4": ((1, 4, 13, 12), 1, (3, 3), {"padding": 3, "dilation": 2, "stride": 4}),
    "multiplier": ((2, 3, 7, 6), 2, (3, 3), {"padding": 1}),
    "multiplier of fours": ((1, 4, 7, 6), 3, (3, 3), {"padding": 1}),
    "multiplier and stride": ((1, 4, 7, 6), 2, (3, 3), {"padding": 1, "stride": 2}),
    "one channel": ((1, 1, 7, 9), 6, (5, 5), {"padding": 2}),
    "conv1d": ((2, 3, 37), 1, (3,), {"padding": 1}),
    "conv1d stride 2": ((2, 4, 19), 1, (5,), {"padding": "same", "stride": 2}),
    "conv1d with lanes": ((1, 40, 9), 1, (4,), {"padding": (1,)}),
    "a column": ((2, 4, 9, 1), 1, (3, 1), {"padding": (1, 0)}),
    "more tap rows than threads": ((1, 1, 18, 17), 1, (17, 17), {"padding": 1}),
    "more taps than fit": ((1, 4, 19, 18), 1, (19, 18), {"padding": 1}),
    "many slabs": ((6, 1, 40, 40), 1, (3, 3), {"padding": 1}),
    "many slabs of channels": ((2, 20, 16, 16), 1, (3, 3), {"padding": 1}),
}


def forward(be: Any, spec: ConvSpec, x: Any, w: Any, b: Any = None, relu: bool = False) -> Any:
    if not hasattr(be, "device"):
        y = be.conv(spec, x, w, b)
        return np.maximum(y, 0) if relu else y
    x, last = be.dense(x)
    y = be.empty_like_format(x, spec.y_shape, x.dtype)
    depthwise.forward(be.device, spec, x.dtype, last, b is not None, relu)(x, w, b, y)
    return y


def grad_input(be: Any, spec: ConvSpec, gy: Any, w: Any) -> Any:
    if not hasattr(be, "device"):
        return be.conv_grad_input(spec, gy, w)
    gy, last = be.dense(gy)
    gx = be.empty_like_format(gy, spec.x_shape, gy.dtype)
    depthwise.grad_input(be.device, spec, gy.dtype, last)(gy, w, gx)
    return gx


def grad_weight(be: Any, spec: ConvSpec, gy: Any, x: Any) -> Any:
    if not hasattr(be, "device"):
        return be.conv_grad_weight(spec, gy, x)
    (gy, gy_last), (x, last) = be.dense(gy), be.dense(x)
    gw = be.device.empty(spec.w_shape, x.dtype)
    depthwise_weight.grad_weight(be.device, spec, x.dtype, last, gy_last)(gy, x, gw)
    return gw


def problem(name: str, rng: np.random.Generator) -> tuple[ConvSpec, Any, Any, Any, Any]:
    """The spec, and x, w, b, gy."""
    x_shape, multiplier, kernel, options = PROBLEMS[name]
    k = x_shape[1] * multiplier
    spec = ConvSpec.infer(x_shape, (k, 1, *kernel), groups=x_shape[1], **options)
    assert depthwise.supports(spec, np.dtype("float32"))
    x, w, b, gy = (rng.standard_normal(s) for s in (x_shape, spec.w_shape, k, spec.y_shape))
    return spec, x, w, b, gy


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_three_passes(be: Any, rng: np.random.Generator, name: str, last: bool) -> None:
    spec, x, w, b, gy = problem(name, rng)
    if last:
        x, gy = channels_last(x), channels_last(gy)
    check(be, lambda be, x, w, b: forward(be, spec, x, w, b), x, w, b)
    check(be, lambda be, gy, w: grad_input(be, spec, gy, w), gy, w)
    check(be, lambda be, gy, x: grad_weight(be, spec, gy, x), gy, x)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_epilogue(be: Any, rng: np.random.Generator, last: bool) -> None:
    spec, x, w, b, _ = problem("3x3 above a tile", rng)
    x[0, 0, 4, 4] = np.nan
    x = channels_last(x) if last else x
    for bias in (None, b):
        y = check(be, lambda be, x, w, b: forward(be, spec, x, w, b, relu=True), x, w, bias)[0]
        assert np.isnan(y[0, 0, 4, 4])
        assert (y[1] == 0).any()


@pytest.mark.parametrize("name", ["3x3 36 channels", "3x3 stride 2", "multiplier"])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_grad_weight_of_two_formats(
    be: Any, rng: np.random.Generator, name: str, last: bool
) -> None:
    spec, x, _, _, gy = problem(name, rng)
    x, gy = (channels_last(x), gy) if last else (x, channels_last(gy))
    check(be, lambda be, gy, x: grad_weight(be, spec, gy, x), gy, x)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_pixels_that_no_tap_meets_may_be_infinite(
    be: Any, rng: np.random.Generator, last: bool, stride: int
) -> None:
    """The last row and column: at stride 2 of nobody, at stride 1 of the last taps alone."""
    shape = (1, 4, 10, 12)
    spec = ConvSpec.infer(shape, (4, 1, 3, 3), stride=stride, groups=4)
    x, w, gy = (rng.standard_normal(s) for s in (shape, spec.w_shape, spec.y_shape))
    x[:, :, 9], x[..., 11] = np.inf, np.inf
    w, gy = np.abs(w), np.abs(gy)
    if last:
        x, gy = channels_last(x), channels_last(gy)
    y = check(be, lambda be, x, w: forward(be, spec, x, w), x, w)[0]
    gw = check(be, lambda be, gy, x: grad_weight(be, spec, gy, x), gy, x)[0]
    assert np.isfinite(y).all() == np.isfinite(gw).all() == (stride == 2)
    assert np.isfinite(gw[:, :, :2, :2]).all()


def test_sum_of_more_slabs_than_one_round(be: Any, rng: np.random.Generator) -> None:
    slabs, taps, k = 300, 3, 7

    def total(be: Any, part: Any) -> Any:
        if not hasattr(be, "device"):
            return part.sum(0, dtype=part.dtype).T
        gw = be.device.empty((k, taps), part.dtype)
        sizes = {"total": taps * k, "slabs": slabs, "K": k, "taps": taps}
        be.device.prepare(depthwise_weight.SUM, (3, 1, 1), **sizes)(part, gw)
        return gw

    check(be, total, rng.standard_normal((slabs, taps, k)))


def test_shares_cover_all_rounds() -> None:
    for rounds in (1, 3, 4, 9, 64, 65, 1000, 100_000, 10**7):
        for blocks in (1, 3, 500, 5000):
            share, slabs = depthwise_weight._share(rounds, blocks, 288)
            assert share * slabs >= rounds > share * (slabs - 1)
            assert slabs <= depthwise_weight.SLABS
            assert slabs == 1 or share >= depthwise_weight.LEAST


def test_what_it_does_not_take() -> None:
    f32 = np.dtype("float32")

    def supports(x: Any, w: Any, dtype: Any = f32, **options: Any) -> bool:
        return depthwise.supports(ConvSpec.infer(x, w, **options), dtype)

    assert supports((1, 4, 5, 5), (4, 1, 3, 3), groups=4)
    for other in "float64", ">f4":
        assert not supports((1, 4, 5, 5), (4, 1, 3, 3), np.dtype(other), groups=4)
    assert not supports((1, 4, 5, 5), (4, 2, 3, 3), groups=2)
    assert not supports((1, 4, 5, 5), (4, 1, 3, 3), groups=4, padding=1, padding_mode="reflect")
    assert not supports((1, 4, 5, 5, 5), (4, 1, 3, 3, 3), groups=4)
    assert not supports((0, 4, 5, 5), (4, 1, 3, 3), groups=4)
    assert not supports((2**11, 2**10, 2**5, 2**5), (2**10, 1, 1, 1), groups=2**10)
    # A thread that begins 3000 lines of 2**20 numbers before the image needs more than 32 bits.
    far = {"padding": ((3000, 0), (0, 0)), "stride": (1000, 1)}
    assert supports((1, 1, 2, 2**19), (1, 1, 1, 1), **far)
    assert not supports((1, 1, 2, 2**20), (1, 1, 1, 1), **far)
    assert not supports((1, 1, 2, 2), (1, 1, 1, 1), stride=2**28)


def test_every_kernel_is_launched_and_vectors_lie_along_memory(rng: np.random.Generator) -> None:
    pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")
    reports: dict[str, Any] = {}
    device = EmulatedDevice(stats=True, watch=lambda k, r: reports.__setitem__(k.name, r))
    be = CudaBackend(device, "emulated")
    for size, stride in (3, 1), (3, 2), (5, 1), (7, 1), (2, 1):
        spec = ConvSpec.infer((2, 32, 9, 18), (32, 1, size, size), stride, 1, groups=32)
        shapes = spec.x_shape, spec.w_shape, spec.y_shape
        x, w, gy = (rng.standard_normal(shape).astype("float32") for shape in shapes)
        for xx, yy in ((x, gy), (channels_last(x), channels_last(gy))):
            forward(be, spec, xx, w)
            grad_input(be, spec, yy, w)
            grad_weight(be, spec, yy, xx)
    assert set(reports) == {k.name for k in depthwise.kernels() + depthwise_weight.kernels()}
    for name, report in reports.items():
        assert not report.findings, (name, report.findings)
        if "vector" in name:
            assert report.total("global") <= 1.02 * report.total("global", "ideal"), name
