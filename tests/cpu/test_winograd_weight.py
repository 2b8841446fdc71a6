"""Gradient by weight by Winograd's F(3x3, 4x4), against the reference in float64."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gpuconv.cpu.device import DEVICE
from gpuconv.kernels.cpu import winograd_weight
from gpuconv.kernels.cpu.cook_toom import matrices
from gpuconv.shapes import ConvSpec
from tests.cpu.conftest import PASSES, check_conv, launched, numbers


def spec(n: int, c: int, h: int, w: int, k: int, padding: Any = 1, **options: Any) -> ConvSpec:
    return ConvSpec.infer((n, c, h, w), (k, c, 3, 3), padding=padding, **options)


def check(problem: ConvSpec, last: bool) -> None:
    check_conv(winograd_weight, "grad_weight", problem, last)


@pytest.mark.parametrize(("m", "r"), [(2, 3), (3, 4), (4, 3), (3, 2), (1, 5), (5, 1)])
def test_matrices(m: int, r: int) -> None:
    points = (0, 1, -1, Fraction(1, 2), Fraction(-2), 3)[: m + r - 2]
    at, g, bt = matrices(m, r, points)
    weights = [Fraction(3 * j * j - 7, 5) for j in range(r)]
    data = [Fraction(j**3 - 11, 3) for j in range(m + r - 1)]

    def times(matrix: Any, vector: Any) -> list[Fraction]:
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    products = [a * b for a, b in zip(times(g, weights), times(bt, data), strict=True)]
    assert times(at, products) == [
        sum(weights[j] * data[i + j] for j in range(r)) for i in range(m)
    ]


@pytest.mark.parametrize("points", [(0, 1, -1, 2), (0, 1, -1, 2, 2)])
def test_wrong_points(points: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs 5 different points"):
        matrices(3, 4, points)


SHAPES = {
    "tiles that fit": spec(1, 16, 16, 16, 16),
    "one pixel more": spec(1, 17, 17, 17, 17),
    "one pixel less": spec(2, 31, 15, 15, 33),
    "few rows of tiles": spec(4, 32, 12, 40, 32),
    "few columns of tiles": spec(4, 33, 41, 12, 64),
    "a band and one tile": spec(1, 64, 12, 57, 65),
    "longer than bands": spec(1, 20, 13, 130, 20),
    "no padding": spec(2, 64, 18, 18, 63, 0),
    "asymmetric": spec(2, 20, 14, 13, 40, ((0, 1), (2, 1))),
    "much padding": spec(1, 48, 6, 7, 48, 5),
    "chunks of one block": spec(2, 33, 36, 32, 40),
    "chunks and parts": spec(8, 32, 36, 32, 32),
    "one block of panels": spec(1, 160, 14, 14, 96),
    "blocks and chunks": spec(2, 130, 30, 26, 150),
    "few tiles": spec(1, 200, 12, 12, 300),
    "thirteen pixels": spec(3, 100, 13, 13, 144),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(isa: str, name: str, last: bool) -> None:
    check(SHAPES[name], last)


@pytest.mark.parametrize(("down", "across"), [(3, 5), (4, 4), (3, 6), (3, 21), (4, 16), (5, 13)])
def test_tiles(down: int, across: int) -> None:
    """Around the numbers of tiles of chunks, 16 and 64, and twice as many."""
    for n in (1, 2):
        check(spec(n, 33, 4 * down, 4 * across - 1, 32), True)


@pytest.mark.parametrize("c", [16, 31, 32, 33, 64, 127, 128, 129])
@pytest.mark.parametrize("k", [16, 47, 64, 65])
def test_channels(c: int, k: int) -> None:
    check(spec(1, c, 13, 12, k), False)


def test_every_number_counts() -> None:
    """One pixel of x and of gy in turn, in each place of a tile, beside the edges and not."""
    problem = spec(1, 16, 12, 13, 16)
    for at in np.ndindex(12, 13):
        x = np.zeros(problem.x_shape, np.float32)
        gy = numbers(0, *problem.y_shape).astype(np.float32)
        x[0, 3, *at] = 1
        result = launched(
            winograd_weight.grad_weight, (gy, x), problem.w_shape, False, problem, "float32", False
        )
        around = np.pad(gy[0], ((0, 0), (1, 1), (1, 1)))
        window = around[:, at[0] : at[0] + 3, at[1] : at[1] + 3][:, ::-1, ::-1]
        np.testing.assert_allclose(result[:, 3], window, atol=2e-5)
        assert np.abs(np.delete(result, 3, 1)).max() == 0


def test_not_finite() -> None:
    """What is not finite stays in its channels, and does not vanish."""
    problem = spec(1, 32, 12, 12, 32)
    x, gy = (numbers(i, *s).astype(np.float32) for i, s in enumerate([problem.x_shape] * 2))
    x[0, 5, 6, 6], gy[0, 7, 3, 3] = np.inf, np.nan
    gw = np.empty(problem.w_shape, np.float32)
    winograd_weight.grad_weight(DEVICE, problem, "float32", False)(gy, x, gw)
    assert not np.isfinite(gw[:, 5]).any()
    assert np.isnan(gw[7]).all()
    assert np.isfinite(np.delete(np.delete(gw, 5, 1), 7, 0)).all()


def test_supports() -> None:
    problem = spec(1, 64, 28, 28, 64)
    assert [winograd_weight.supports(problem, "float32", which) for which in PASSES] == [
        False, False, True,
    ]  # fmt: skip
    refused = [
        spec(1, 64, 28, 28, 64, stride=2),
        spec(1, 64, 28, 28, 64, dilation=2),
        spec(1, 8, 28, 28, 64),
        spec(1, 64, 28, 28, 8),
        spec(1, 64, 11, 12, 64),
        spec(100, 64, 12, 11, 64),
        spec(1, 512, 7, 7, 512),
        ConvSpec.infer((1, 64, 28, 28), (64, 32, 3, 3), groups=2),
        ConvSpec.infer((1, 64, 28, 28), (64, 64, 1, 1)),
    ]
    assert not any(winograd_weight.supports(p, "float32", "grad_weight") for p in refused)
    assert not winograd_weight.supports(problem, "float64", "grad_weight")
