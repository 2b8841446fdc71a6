"""The tools for testing operations: each of their rules can fail."""

from typing import Any

import numpy as np
import pytest

from gpuconv import ops
from gpuconv.autograd import Function, Tensor
from gpuconv.backends import Array, Backend
from gpuconv.errors import ArgumentError
from gpuconv.testing import assert_within_budget, check_gradients

TRUTH = np.array([1.0, -2.0, 4.0])
PLAIN = (TRUTH + 1e-5).astype(np.float32)
INF, NAN = np.inf, np.nan


def with_last(array: np.ndarray, *numbers: float) -> np.ndarray:
    return np.concatenate((array, np.asarray(numbers, dtype=array.dtype)))


def test_within_the_budget_passes() -> None:
    assert_within_budget(PLAIN, PLAIN, TRUTH)
    assert_within_budget((TRUTH + 3e-5).astype(np.float32), PLAIN, TRUTH)
    assert_within_budget((TRUTH * (1 + 1e-7)).astype(np.float32), TRUTH.astype(np.float32), TRUTH)
    assert_within_budget(*(with_last(a, INF, -INF, NAN) for a in (PLAIN, PLAIN, TRUTH)))
    assert_within_budget(*(np.array([INF], dtype=np.float32),) * 2, np.array([INF]))
    assert_within_budget(*(np.zeros((0, 2), dtype=np.float32),) * 2, np.zeros((0, 2)))


def test_what_overflows_in_the_precision_under_test_is_infinite_there() -> None:
    fast = with_last(PLAIN.astype(np.float16), INF)
    assert_within_budget(fast, fast, with_last(TRUTH, 1e5))
    with pytest.raises(AssertionError, match="infinity where there should be none"):
        assert_within_budget(fast, fast, with_last(TRUTH, 1e4))


def test_a_plain_that_overflows_is_no_budget_for_the_rest() -> None:
    off = (TRUTH + 1e-3).astype(np.float32)
    for number in (INF, NAN):
        with pytest.raises(AssertionError, match="exceeds the budget"):
            assert_within_budget(with_last(off, 1), with_last(PLAIN, number), with_last(TRUTH, 1))


# What is wrong in fast, plain or truth, and what is said.
WRONG: dict[str, tuple[Any, Any, Any, str]] = {
    "off": (TRUTH + 5e-5, PLAIN, TRUTH, "error 5.* exceeds the budget 4"),
    "off-beside-infinity": (
        with_last(TRUTH + 5e-5, INF),
        with_last(PLAIN, INF),
        with_last(TRUTH, INF),
        "exceeds the budget",
    ),
    "off-beside-nan": (
        with_last(TRUTH + 5e-5, NAN),
        with_last(PLAIN, NAN),
        with_last(TRUTH, NAN),
        "exceeds the budget",
    ),
    "infinity-missing": (
        with_last(PLAIN, 3),
        with_last(PLAIN, INF),
        with_last(TRUTH, INF),
        "infinity where",
    ),
    "infinity-of-the-other-sign": (
        with_last(PLAIN, -INF),
        with_last(PLAIN, INF),
        with_last(TRUTH, INF),
        "of the wrong sign",
    ),
    "infinity-too-many": (
        with_last(PLAIN, INF),
        with_last(PLAIN, 3),
        with_last(TRUTH, 3),
        "infinity where",
    ),
    "nan": (with_last(PLAIN, NAN), with_last(PLAIN, 3), with_last(TRUTH, 3), "NaN where"),
    "nan-missing": (with_last(PLAIN, 3), with_last(PLAIN, 3), with_last(TRUTH, NAN), "NaN where"),
    "nan-for-infinity": (
        with_last(PLAIN, NAN),
        with_last(PLAIN, INF),
        with_last(TRUTH, INF),
        "NaN where",
    ),
    "shape": (PLAIN[:, None], PLAIN, TRUTH, r"shape \(3, 1\), expected \(3,\)"),
    "shape-of-plain": (PLAIN, PLAIN[:1] + 9, TRUTH, r"shape \(1,\) of plain, expected \(3,\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    fast, plain, truth, message = WRONG[name]
    with pytest.raises(AssertionError, match=message):
        assert_within_budget(fast.astype(np.float32), plain.astype(np.float32), truth)


def test_factor_scales_the_budget() -> None:
    fast = (TRUTH + 3e-5).astype(np.float32)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        assert_within_budget(fast, PLAIN, TRUTH, factor=2.0)


class Scaled(Function):
    """a * b, whose gradients are off by the factors given."""

    def __init__(self, *off: Any) -> None:
        self.off = off

    def forward(self, be: Backend, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return a * b

    def backward(self, be: Backend, gy: Array) -> tuple[Array, Array]:
        return gy * self.b * self.off[0], gy * self.a * self.off[1]


def scaled(*off: float) -> Any:
    return lambda a, b: Scaled(*off).apply(a, b)


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((3, 4)), rng.standard_normal((3, 4))


def test_right_gradients_pass(pair: tuple[np.ndarray, np.ndarray]) -> None:
    check_gradients(scaled(1, 1), *pair)
    check_gradients(lambda x: ops.sum(ops.exp(x)), pair[0])


@pytest.mark.parametrize("off", [1 + 1e-4, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("which", [0, 1])
def test_a_wrong_gradient_is_found(
    pair: tuple[np.ndarray, np.ndarray], which: int, off: float
) -> None:
    factors = [1.0, 1.0]
    factors[which] = off
    with pytest.raises(AssertionError, match=rf"input {which}: gradient .* above 1e-06"):
        check_gradients(scaled(*factors), *pair)


def test_two_errors_do_not_cancel(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Both gradients of a * b are off, but not their sum along the direction (a, b)."""
    with pytest.raises(AssertionError, match="input 0: gradient"):
        check_gradients(scaled(0.5, 1.5), *pair)


def test_one_wrong_element_is_found(pair: tuple[np.ndarray, np.ndarray]) -> None:
    def f(x: Tensor) -> Tensor:
        wrong = np.ones(x.shape)
        wrong[1, 2] = 1.01
        return Scaled(wrong, 1).apply(x, pair[1])

    with pytest.raises(AssertionError, match="input 0: gradient"):
        check_gradients(f, pair[0])


def test_a_missing_gradient_is_found(pair: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(AssertionError, match="input 1 got no gradient"):
        check_gradients(lambda a, b: ops.multiply(a, b.detach()), *pair)


def test_other_inputs_are_passed_on_and_not_differentiated(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    check_gradients(lambda c, a, b: ops.where(c, a, b), pair[0] > 0, *pair)


def test_nothing_to_check_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="no input is float64"):
        check_gradients(lambda x: x, np.ones(2, np.float32))
