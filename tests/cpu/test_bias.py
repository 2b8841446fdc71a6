"""The gradient by bias, in both formats, around every width that its loops have."""

from typing import Any

import numpy as np
import pytest

from gpuconv.kernels.cpu.bias import ROUNDS, SEGMENT, bias_gradient
from gpuconv.testing import assert_within_budget
from tests.cpu.conftest import launched, numbers

# (N, K, pixels)
SIZES = [
    (1, 1, 1), (1, 6, 1), (5, 10, 1), (70, 10, 1), (64, 1000, 1), (3, 1, 17), (2, 3, 63),
    (1, 33, 49), (2, 16, 64), (3, 17, 65), (2, 4, 128), (9, 6, 784), (1, 1, 3 * SEGMENT + 5),
    (2, 2, SEGMENT + 1), (3, 5, SEGMENT), (2, 64, 1023), (40, 16, 4 * ROUNDS), (2, 48, 4097),
    (1, 8, 9 * 4 * ROUNDS),
]  # fmt: skip


def _check(n: int, k: int, pixels: int, dtype: str, last: bool, seed: int = 0) -> None:
    gy = numbers(seed, n, k, pixels).astype(np.float32).astype(dtype) + np.array(0.5, dtype)
    lies = np.ascontiguousarray(gy.transpose(0, 2, 1)) if last else gy
    found = launched(bias_gradient, (lies,), (k,), False, n, k, pixels, dtype, last)
    exact = gy.astype(np.float64).sum(axis=(0, 2))
    if dtype == "float64":
        assert np.abs(found - exact).max() <= 1e-12 * np.abs(gy).sum(axis=(0, 2)).max()
    else:
        assert_within_budget(found, gy.sum(axis=(0, 2)), exact)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums(isa: str, size: tuple[int, int, int], last: bool) -> None:
    _check(*size, "float32", last)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", SIZES[::3], ids=str)
def test_float64(isa: str, size: tuple[int, int, int], last: bool) -> None:
    _check(*size, "float64", last)


@pytest.mark.parametrize("last", [False, True])
def test_many_numbers_are_summed_accurately(last: bool) -> None:
    _check(64, 24, 3000, "float32", last)


@pytest.mark.parametrize("last", [False, True])
def test_what_is_no_number_stays_in_its_channel(last: bool) -> None:
    gy: Any = np.ones((3, 5, 37), np.float32)
    gy[1, 2, 36], gy[2, 4, 0] = np.nan, np.inf
    lies = np.ascontiguousarray(gy.transpose(0, 2, 1)) if last else gy
    found = launched(bias_gradient, (lies,), (5,), False, 3, 5, 37, "float32", last)
    np.testing.assert_array_equal(found, [111, 111, np.nan, 111, np.inf])
