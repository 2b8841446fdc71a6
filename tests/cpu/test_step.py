"""Optimizer steps: every option, in both precisions and memory formats, several steps on end."""

from typing import Any

import numpy as np
import pytest

from gpuconv.cpu import CpuBackend
from gpuconv.testing import assert_within_budget
from tests.cpu.conftest import REFERENCE
from tests.cpu.operation import check, kernels_alone
from tests.operations import ADAM, RULES, SGD, channels_last, three_steps


@pytest.fixture
def be(isa: str) -> CpuBackend:
    """Its plans are of one instruction set."""
    return CpuBackend()


def check_steps(
    be: Any, w: Any, gradients: list[Any], rule: str, dtype: str = "float32"
) -> list[Any]:
    def operation(be: Any, w: Any, *gradients: Any) -> list[Any]:
        return three_steps(be, w, list(gradients), rule)

    return check(be, operation, w, *gradients, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_three_steps(be: Any, rng: np.random.Generator, rule: str, dtype: str) -> None:
    for size in (1, 1025):
        w, *gradients = rng.standard_normal((4, size))
        check_steps(be, w, gradients, rule, dtype)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 15, 16, 17, 8191, 8192, 8193, 40000])
def test_sizes(be: Any, rng: np.random.Generator, size: int) -> None:
    w, *gradients = rng.standard_normal((4, size))
    check_steps(be, w, gradients, "amsgrad")


def test_one_number_of_no_axes(be: Any) -> None:
    check_steps(be, np.array(2.0), [np.array(0.5), np.array(-1.0)], "momentum")


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("rule", ["nesterov", "amsgrad", "rmsprop, centered, momentum"])
def test_gradients_of_any_memory_format(
    be: Any, rng: np.random.Generator, rule: str, last: bool
) -> None:
    w, g = rng.standard_normal((2, 5, 3, 2, 4))
    w = channels_last(w) if last else w
    gradients = [g, channels_last(g), np.broadcast_to(g[:, :1, :1, :1], g.shape), g[::-1]]
    fast = check_steps(be, w, gradients, rule)
    assert all(channels_last(f).strides == f.strides for f in fast) == last


def test_what_no_kernel_takes_is_array_code(rng: np.random.Generator) -> None:
    be = CpuBackend()
    w, g = rng.standard_normal((2, 12, 3))
    strided = [(w.copy()[::2], g[::2], np.zeros((12, 3))[::2]) for _ in range(2)]
    for backend, (part, gw, buffer) in zip((be, REFERENCE), strided, strict=True):
        backend.sgd_step(part, gw, buffer, False, **{**SGD, "momentum": 0.9})
    for ours, theirs in zip(*strided, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    check_steps(be, np.zeros((0, 3)), [np.zeros((0, 3))], "adam")
    ours, theirs = ([a.astype("float16") for a in (w, g)] for _ in range(2))
    be.sgd_step(*ours, None, True, **SGD)
    REFERENCE.sgd_step(*theirs, None, True, **SGD)
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_what_may_not_be_written_to_is_not(rng: np.random.Generator) -> None:
    w, g = rng.standard_normal((2, 12)).astype("float32")
    before = w.copy()
    w.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        CpuBackend().sgd_step(w, g, None, True, **SGD)
    np.testing.assert_array_equal(w, before)


def test_nan_and_infinity_stay_where_they_are(be: Any, rng: np.random.Generator) -> None:
    w, g = rng.standard_normal((2, 70))
    g[3], g[40], w[7] = np.nan, np.inf, np.nan
    again = rng.standard_normal(70)
    for rule in ("sgd", "nesterov", "amsgrad", "rmsprop, centered, momentum"):
        with np.errstate(invalid="ignore"):
            check_steps(be, w, [g, again], rule)


@pytest.mark.parametrize("offset", [1, 3])
def test_nothing_beyond_the_arrays(be: Any, rng: np.random.Generator, offset: int) -> None:
    """A part of an array, its ends at no multiple of a vector."""
    whole, g = rng.standard_normal((2, 1100)).astype("float32")
    moved = whole.copy()
    be.sgd_step(moved[offset:-2], g[offset:-2], None, True, **SGD)
    np.testing.assert_array_equal(moved[:offset], whole[:offset])
    np.testing.assert_array_equal(moved[-2:], whole[-2:])
    truth = whole.astype(float) - 0.1 * g.astype(float)
    inside = slice(offset, -2)
    assert_within_budget(moved[inside], (whole - np.float32(0.1) * g)[inside], truth[inside])


def test_numbers_are_rounded_once(be: Any) -> None:
    """1 - beta is worked out in float64: with float32's beta it would be off by 6e-5 of itself."""
    w, g, mean, square = (np.full(1, v, "float32") for v in (0, 1, 0, 0))
    options = {**ADAM, "beta2": 0.9999, "weight_decay": 0.0, "decoupled": False}
    be.adam_step(w, g, mean, square, None, 1, **options)
    assert float(square[0]) == np.float32(1 - 0.9999)


def test_kernels_take_it(rng: np.random.Generator, monkeypatch: Any) -> None:
    be = CpuBackend()
    kernels_alone(be, monkeypatch, "sgd_step", "adam_step", "rmsprop_step")
    for dtype in ("float32", "float64"):
        w, *gradients = rng.standard_normal((4, 5)).astype(dtype)
        for rule in RULES:
            three_steps(be, w, gradients, rule)
