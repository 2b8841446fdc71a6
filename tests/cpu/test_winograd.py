"""Winograd's convolution: the kernels against the reference, and the exactness of its matrices."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gpuconv.cpu.device import DEVICE
from gpuconv.kernels.cpu import winograd
from gpuconv.kernels.cpu.cook_toom import matrices
from gpuconv.shapes import ConvSpec
from tests.cpu.conftest import check_conv, check_packed, numbers

FORMATS = (False, True)


def spec(n: int, c: int, h: int, w: int, k: int, padding: Any = 1) -> ConvSpec:
    return ConvSpec.infer((n, c, h, w), (k, c, 3, 3), padding=padding)


@pytest.mark.parametrize("last", FORMATS)
@pytest.mark.parametrize("which", ["forward", "grad_input"])
def test_each_instruction_set(isa: str, which: str, last: bool) -> None:
    """Odd sizes, blocks and panels that are not full."""
    check_conv(winograd, which, spec(2, 35, 9, 11, 33), last)


@pytest.mark.parametrize("last", FORMATS)
@pytest.mark.parametrize("which", ["forward", "grad_input"])
@pytest.mark.parametrize(
    ("c", "k", "side"),
    [
        (128, 100, 9),  # filters do not fit: both launches
        (70, 260, 5),
        (260, 70, 6),  # 4x4 tiles in the gradient by input too
        (16, 16, 30),  # one vector of output channels
        (64, 64, 61),  # several tasks
    ],
)
def test_each_way(which: str, c: int, k: int, side: int, last: bool) -> None:
    check_conv(winograd, which, spec(1, c, side, side + 1, k), last)


@pytest.mark.parametrize("last", FORMATS)
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8, 12, 13, 15, 16, 17])
def test_sizes_around_tiles(side: int, last: bool) -> None:
    """Widths around tiles, groups of 4 pixels and vectors; several images in a panel of tiles."""
    check_conv(winograd, "forward", spec(3, 24, side, 18 - side, 20), last)
    check_conv(winograd, "grad_input", spec(3, 24, 18 - side, side, 20), last)


@pytest.mark.parametrize("last", FORMATS)
@pytest.mark.parametrize("tiles", [1, 2, 3, 6, 7, 8, 10, 11, 13, 14, 15, 28, 29])
def test_numbers_of_tiles(tiles: int, last: bool) -> None:
    """Around every number of rows that the products have."""
    check_conv(winograd, "forward", spec(1, 17, 4, 4 * tiles, 18), last)


@pytest.mark.parametrize("last", FORMATS)
@pytest.mark.parametrize("which", ["forward", "grad_input"])
@pytest.mark.parametrize("padding", [0, 2, 3, ((0, 1), (2, 0)), ((1, 0), (0, 3)), ((5, 4), (1, 6))])
def test_padding(which: str, padding: Any, last: bool) -> None:
    """Also more than 2, where the gradient by input leaves out a border of gy."""
    check_conv(winograd, which, spec(2, 20, 10, 7, 19, padding), last)


@pytest.mark.parametrize("last", FORMATS)
@pytest.mark.parametrize(("c", "k"), [(16, 33), (17, 16), (32, 31), (33, 48)])
def test_channels(c: int, k: int, last: bool) -> None:
    check_conv(winograd, "forward", spec(1, c, 12, 10, k), last)
    check_conv(winograd, "grad_input", spec(1, k, 12, 10, c), last)


@pytest.mark.parametrize("last", FORMATS)
@pytest.mark.parametrize(
    ("bias", "add", "relu"),
    [(True, False, False), (False, True, False), (False, False, True), (True, True, True)],
)
def test_fused(bias: bool, add: bool, relu: bool, last: bool) -> None:
    for k in (16, 37):
        check_conv(winograd, "forward", spec(2, 16, 9, 10, k), last, bias=bias, add=add, relu=relu)


@pytest.mark.parametrize("last", FORMATS)
def test_large_batches_in_parts(monkeypatch: pytest.MonkeyPatch, last: bool) -> None:
    monkeypatch.setattr(winograd, "MOST_WORKSPACE", 1 << 18)
    problem = spec(5, 128, 7, 9, 80)
    check_conv(winograd, "forward", problem, last, bias=True, add=True, relu=True)
    check_conv(winograd, "forward", problem, last)


@pytest.mark.parametrize("last", FORMATS)
@pytest.mark.parametrize(
    ("n", "c", "k", "side"), [(1, 32, 33, 9), (1, 128, 100, 9), (8, 70, 260, 5), (1, 160, 130, 20)]
)
def test_weights_packed_beforehand(isa: str, n: int, c: int, k: int, side: int, last: bool) -> None:
    """Filters that fit the cache, and that do not."""
    check_packed(winograd, spec(n, c, side, side, k), last)


def test_constant_weights_that_direct_reads_faster() -> None:
    assert winograd.constant_prefers_direct(spec(1, 512, 7, 7, 512))
    assert not winograd.constant_prefers_direct(spec(8, 512, 7, 7, 512))
    assert not winograd.constant_prefers_direct(spec(1, 256, 14, 14, 256))
    assert not winograd.constant_prefers_direct(spec(1, 32, 7, 7, 32))


@pytest.mark.parametrize("which", ["forward", "grad_input"])
@pytest.mark.parametrize("channels", [16, 17, 32, 64, 128, 256])
def test_errors_stay_in_the_budget(which: str, channels: int) -> None:
    """Sums of few and of many products, over more pixels: what is rare is met."""
    c, k = (channels, 24) if which == "forward" else (24, channels)
    check_conv(winograd, which, spec(1, c, 26, 26, k))


@pytest.mark.parametrize("relu", [False, True])
def test_nan_and_infinity_are_seen(relu: bool) -> None:
    x = numbers(0, 1, 16, 12, 12).astype(np.float32)
    x[0, 3, 5, 5], x[0, 4, 11, 11] = np.nan, np.inf
    w = numbers(1, 16, 16, 3, 3).astype(np.float32)
    y = np.zeros((1, 16, 12, 12), np.float32)
    problem = spec(1, 16, 12, 12, 16)
    winograd.forward(DEVICE, problem, "float32", False, False, False, relu)(x, w, None, None, y)
    assert np.isnan(y[:, :, 4:7, 4:7]).all()
    assert not np.isfinite(y[:, :, 10:, 10:]).any()
    assert np.isfinite(y[:, :, :4, 8:]).all()


def test_what_is_not_taken() -> None:
    def takes(which: str = "forward", dtype: str = "float32", **options: Any) -> bool:
        shape = options.pop("w_shape", (16, 16, 3, 3))
        x_shape = (1, shape[1] * options.get("groups", 1), 12, 12)
        return winograd.supports(ConvSpec.infer(x_shape, shape, **options), dtype, which)

    assert takes()
    assert takes("grad_input")
    assert not takes("grad_weight")
    assert not takes(dtype="float64")
    assert not takes(stride=2)
    assert not takes(stride=(1, 2))
    assert not takes(dilation=2)
    assert not takes(groups=2)
    assert not takes(w_shape=(16, 16, 3, 2))
    assert not takes(w_shape=(16, 15, 3, 3))  # too few channels for the budget of errors
    assert not takes("grad_input", w_shape=(15, 16, 3, 3))


@pytest.mark.parametrize("m", [3, 4])
def test_transforms_are_exact(m: int) -> None:
    """In fractions, the three matrices compute a correlation with no error at all."""
    from gpuconv.kernels.cpu.winograd_transform import POINTS

    a, g, b = matrices(m, 3, [Fraction(*point) for point in POINTS[m]])
    x, w = [Fraction(i * i - 7 * i + 3) for i in range(m + 2)], [Fraction(v) for v in (2, -5, 3)]
    products = [
        sum(r * v for r, v in zip(row, x, strict=True))
        * sum(r * v for r, v in zip(line, w, strict=True))
        for row, line in zip(b, g, strict=True)
    ]
    y = [sum(r * v for r, v in zip(row, products, strict=True)) for row in a]
    assert y == [sum(w[j] * x[i + j] for j in range(3)) for i in range(m)]
