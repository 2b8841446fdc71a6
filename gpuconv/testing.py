"""For testing operations, ours and yours: gradients by differences, errors by a budget."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor, no_grad
from gpuconv.backends import backend_of, to_device
from gpuconv.errors import ArgumentError


def check_gradients(
    f: Callable[..., Tensor], *arrays: Any, seed: int = 0, step: float = 1e-5, rel: float = 1e-6
) -> None:
    """Compare the gradients of `f` with a central difference along one random direction, in
    float64.

    `f` takes Tensors of the `arrays` (float64; others are passed as they are and not
    differentiated) and returns one Tensor. Every input is checked alone, so that errors cannot
    cancel. Raises AssertionError naming the input, both numbers and their relative difference if
    that exceeds `rel` (the rounding of the difference quotient itself is allowed for). Away from
    kinks only: the step is `step`.
    """
    rng = np.random.default_rng(seed)
    be = backend_of(*arrays)

    def is_input(array: Any) -> bool:
        return hasattr(array, "dtype") and array.dtype == np.float64

    if not any(is_input(array) for array in arrays):
        raise ArgumentError("check_gradients: no input is float64; convert them with .astype")
    tensors = [Tensor(a, requires_grad=True) if is_input(a) else a for a in arrays]
    y = f(*tensors)
    weight = be.asarray(np.asarray(rng.standard_normal(y.shape)))
    y.backward(Tensor(weight))

    def along(i: int, direction: Any, t: float) -> tuple[float, float]:
        moved = [a + t * direction if j == i else a for j, a in enumerate(arrays)]
        with no_grad():
            terms = f(*(Tensor(a) if is_input(a) else a for a in moved)).data * weight
        return float(terms.sum()), float(be.xp.abs(terms).sum())

    for i, tensor in enumerate(tensors):
        if not is_input(arrays[i]):
            continue
        assert tensor.grad is not None, f"input {i} got no gradient"
        direction = be.asarray(np.asarray(rng.standard_normal(tensor.shape)))
        up, size = along(i, direction, step)
        down, _ = along(i, direction, -step)
        numeric = (up - down) / (2 * step)
        products = tensor.grad.data * direction
        analytic = float(products.sum())
        scale = max(abs(numeric), float(be.xp.abs(products).sum()))
        # A sum of `size` is exact to about eps; divided by the step, that is what numeric can be
        # off.
        rounding = 8 * np.finfo(np.float64).eps * size / step
        assert abs(numeric - analytic) <= rel * scale + rounding, (
            f"input {i}: gradient {analytic!r} along a direction, difference quotient {numeric!r}, "
            f"{abs(numeric - analytic) / max(scale, 1e-300):.2e} of their terms, above {rel:.0e}"
        )


def assert_within_budget(fast: Any, plain: Any, truth: Any, factor: float = 4.0) -> None:
    """Assert that `fast` is at most `factor` times as far from `truth` as `plain` code is.

    `truth` is float64; `fast` and `plain` are of the precision under test. The distance is the
    largest absolute difference of finite numbers; one rounding of the largest value is always
    allowed. The three shapes must agree, NaN must be in `fast` where it is in `truth`, and
    infinities too, with their sign (those of `truth` in the precision of `fast`, which may
    overflow).
    """
    fast, plain, truth = (to_device(a, "cpu") for a in (fast, plain, truth))
    assert fast.shape == truth.shape, f"shape {fast.shape}, expected {truth.shape}"
    assert plain.shape == truth.shape, f"shape {plain.shape} of plain, expected {truth.shape}"
    with np.errstate(over="ignore"):
        rounded = truth.astype(fast.dtype)
    finite = np.isfinite(rounded)
    assert np.array_equal(np.isnan(fast), np.isnan(rounded)), (
        "NaN where there should be none, or none"
    )
    assert np.array_equal(
        np.where(np.isinf(fast), fast, 0), np.where(np.isinf(rounded), rounded, 0)
    ), "infinity where there should be none, or none, or of the wrong sign"
    if not finite.any():
        return

    def distance(array: Any) -> float:
        known = finite & np.isfinite(array)
        return float(np.abs(array[known].astype(np.float64) - truth[known]).max(initial=0.0))

    tiny = np.finfo(fast.dtype).eps * np.abs(truth[finite]).max()
    error, budget = distance(fast), factor * distance(plain) + tiny
    assert error <= budget, f"error {error:.3e} exceeds the budget {budget:.3e}"
