"""Elementwise arithmetic and reductions, with broadcasting."""

from typing import Any

import numpy as np

from gpuconv import ops
from tests.cases.case import Case, Make

S = (2, 3, 4)


def positive(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.5, 2.0, S)


def small_positive(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.5, 2.0, (3, 1))


def mask(rng: np.random.Generator) -> np.ndarray:
    return rng.random(S) < 0.5


def ties(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2, S).astype(np.float64)


def some_zeros(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(S) < 0.5, 0.0, rng.uniform(0.5, 2.0, S))


def number(low: float, high: float) -> Make:
    """An array of no axes."""
    return lambda rng: np.asarray(rng.uniform(low, high))


N, M, POSITIVE = number(-1.0, -0.1), number(0.1, 1.0), number(0.5, 2.0)


def true(rng: np.random.Generator) -> np.ndarray:
    return np.asarray(True)


def to_power_of_mask(a: Any, m: Any) -> Any:
    return ops.power(a, ops.astype(m, a.dtype))


NO_AXES = [
    Case("add-0d", ops.add, lambda t, a, b: a + b, (N, M)),
    Case("add-0d-scalar", lambda a: ops.add(2, a), lambda t, a: 2 + a, (N,)),
    Case("subtract-0d", ops.subtract, lambda t, a, b: a - b, (N, M)),
    Case("subtract-0d-from-axes", ops.subtract, lambda t, a, b: a - b, (S, M)),
    Case("multiply-0d", ops.multiply, lambda t, a, b: a * b, (N, M)),
    Case("multiply-0d-scalar", lambda a: ops.multiply(a, 0.5), lambda t, a: a * 0.5, (N,)),
    Case("multiply-0d-by-axes", ops.multiply, lambda t, a, b: a * b, (N, S)),
    Case("divide-0d", ops.divide, lambda t, a, b: a / b, (N, POSITIVE)),
    Case("divide-0d-scalar", lambda a: ops.divide(a, 3), lambda t, a: a / 3, (N,)),
    Case("divide-0d-of-scalar", lambda a: ops.divide(3, a), lambda t, a: 3 / a, (POSITIVE,)),
    Case("power-0d", ops.power, lambda t, a, b: a**b, (POSITIVE, N)),
    Case("power-0d-scalar", lambda a: ops.power(a, 3), lambda t, a: a**3, (N,)),
    Case("power-0d-zeroth", lambda a: ops.power(a, 0), lambda t, a: a**0, (number(0.0, 0.0),)),
    Case("power-0d-of-scalar", lambda b: ops.power(2.0, b), lambda t, b: 2.0**b, (N,)),
    Case("maximum-0d", ops.maximum, lambda t, a, b: t.maximum(a, b), (N, M)),
    Case("maximum-0d-scalar", lambda a: ops.maximum(a, 0.0), lambda t, a: a.clamp(min=0.0), (N,)),
    Case("minimum-0d", ops.minimum, lambda t, a, b: t.minimum(a, b), (N, M)),
    Case("where-0d", ops.where, lambda t, c, a, b: t.where(c, a, b), (true, N, M)),
    Case("where-0d-axes", ops.where, lambda t, c, a, b: t.where(c, a, b), (true, S, M)),
    Case("negative-0d", ops.negative, lambda t, a: -a, (N,)),
    Case("absolute-0d", ops.absolute, lambda t, a: a.abs(), (N,)),
    Case("exp-0d", ops.exp, lambda t, a: a.exp(), (N,)),
    Case("log-0d", ops.log, lambda t, a: a.log(), (POSITIVE,)),
    Case("sqrt-0d", ops.sqrt, lambda t, a: a.sqrt(), (POSITIVE,)),
    Case("clip-0d", lambda a: ops.clip(a, -2, 2), lambda t, a: a.clamp(-2, 2), (N,)),
    Case("clip-0d-clipped", lambda a: ops.clip(a, low=0), lambda t, a: a.clamp(min=0), (N,)),
    Case("sum-0d", ops.sum, lambda t, a: a.sum(), (N,)),
    Case("sum-0d-keepdims", lambda a: ops.sum(a, None, True), lambda t, a: a.sum(), (N,)),
    Case("mean-0d", ops.mean, lambda t, a: a.mean(), (N,)),
    Case("mean-0d-keepdims", lambda a: ops.mean(a, None, True), lambda t, a: a.mean(), (N,)),
    Case("var-0d", lambda a: ops.var(a, None, 0), lambda t, a: a.var(correction=0), (N,)),
    Case("max-0d", ops.max, lambda t, a: a.amax(), (N,)),
    Case("max-0d-keepdims", lambda a: ops.max(a, None, True), lambda t, a: a.amax(), (N,)),
    Case("min-0d", ops.min, lambda t, a: a.amin(), (N,)),
]


CASES = [
    Case("astype", lambda a: ops.astype(a * 2, a.dtype), lambda t, a: (a * 2).to(a.dtype), (S,)),
    *NO_AXES,
    Case("add", ops.add, lambda t, a, b: a + b, (S, S)),
    Case("add-broadcast", ops.add, lambda t, a, b: a + b, (S, (3, 1))),
    Case("add-broadcast-both", ops.add, lambda t, a, b: a + b, ((2, 1, 4), (3, 1))),
    Case("add-no-axes", ops.add, lambda t, a, b: a + b, (S, ())),
    Case("add-itself", lambda a: ops.add(a, a), lambda t, a: a + a, (S,)),
    Case("add-scalar", lambda a: ops.add(a, 2), lambda t, a: a + 2, (S,)),
    Case("subtract", ops.subtract, lambda t, a, b: a - b, (S, S)),
    Case("subtract-broadcast", ops.subtract, lambda t, a, b: a - b, ((4,), S)),
    Case("subtract-from-scalar", lambda a: ops.subtract(1.5, a), lambda t, a: 1.5 - a, (S,)),
    Case("multiply", ops.multiply, lambda t, a, b: a * b, (S, S)),
    Case("multiply-broadcast", ops.multiply, lambda t, a, b: a * b, (S, (3, 1))),
    Case("multiply-itself", lambda a: ops.multiply(a, a), lambda t, a: a * a, (S,)),
    Case("multiply-scalar", lambda a: ops.multiply(0.5, a), lambda t, a: 0.5 * a, (S,)),
    Case("divide", ops.divide, lambda t, a, b: a / b, (S, positive)),
    Case("divide-broadcast", ops.divide, lambda t, a, b: a / b, (S, small_positive)),
    Case("divide-scalar", lambda a: ops.divide(2, a), lambda t, a: 2 / a, (positive,)),
    Case("power-scalar", lambda a: ops.power(a, 3), lambda t, a: a**3, (S,)),
    Case("power-half", lambda a: ops.power(a, 0.5), lambda t, a: a**0.5, (positive,)),
    Case("power-zeroth", lambda a: ops.power(a, 0), lambda t, a: a**0, (some_zeros,)),
    Case("power-zeroth-float", lambda a: ops.power(a, 0.0), lambda t, a: a**0.0, (some_zeros,)),
    Case(
        "power-of-mask",
        to_power_of_mask,
        lambda t, a, m: a ** m.to(a.dtype),
        (some_zeros, mask),
    ),
    Case("power", ops.power, lambda t, a, b: a**b, (positive, S)),
    Case("power-of-scalar", lambda b: ops.power(2.0, b), lambda t, b: 2.0**b, (S,)),
    Case("maximum", ops.maximum, lambda t, a, b: t.maximum(a, b), (S, S), kinks=True),
    Case("minimum", ops.minimum, lambda t, a, b: t.minimum(a, b), (S, S), kinks=True),
    Case("where", ops.where, lambda t, c, a, b: t.where(c, a, b), (mask, S, (4,))),
    Case("negative", ops.negative, lambda t, a: -a, (S,)),
    Case("absolute", ops.absolute, lambda t, a: a.abs(), (S,), kinks=True),
    Case("exp", ops.exp, lambda t, a: a.exp(), (S,)),
    Case("log", ops.log, lambda t, a: a.log(), (positive,)),
    Case("sqrt", ops.sqrt, lambda t, a: a.sqrt(), (positive,)),
    Case(
        "clip", lambda a: ops.clip(a, -0.5, 0.7), lambda t, a: a.clamp(-0.5, 0.7), (S,), kinks=True
    ),
    Case(
        "clip-low", lambda a: ops.clip(a, low=0.1), lambda t, a: a.clamp(min=0.1), (S,), kinks=True
    ),
    Case("clip-high", lambda a: ops.clip(a, high=0), lambda t, a: a.clamp(max=0), (S,), kinks=True),
    Case("sum", ops.sum, lambda t, a: a.sum(), (S,)),
    Case("sum-axis", lambda a: ops.sum(a, 1), lambda t, a: a.sum(1), (S,)),
    Case("sum-axes", lambda a: ops.sum(a, (0, -1)), lambda t, a: a.sum((0, -1)), (S,)),
    Case("sum-keepdims", lambda a: ops.sum(a, 1, True), lambda t, a: a.sum(1, keepdim=True), (S,)),
    Case("mean", ops.mean, lambda t, a: a.mean(), (S,)),
    Case("mean-axes", lambda a: ops.mean(a, (0, 2)), lambda t, a: a.mean((0, 2)), (S,)),
    Case("mean-keepdims", lambda a: ops.mean(a, -1, True), lambda t, a: a.mean(-1, True), (S,)),
    Case("var", ops.var, lambda t, a: a.var(), (S,)),
    Case("var-biased", lambda a: ops.var(a, None, 0), lambda t, a: a.var(correction=0), (S,)),
    Case("var-axes", lambda a: ops.var(a, (0, 2), 1), lambda t, a: a.var((0, 2)), (S,)),
    Case(
        "var-keepdims",
        lambda a: ops.var(a, 1, 0, True),
        lambda t, a: a.var(1, correction=0, keepdim=True),
        (S,),
    ),
    Case("max", ops.max, lambda t, a: a.amax(), (S,), kinks=True),
    Case("max-axis", lambda a: ops.max(a, 1), lambda t, a: a.amax(1), (S,), kinks=True),
    Case(
        "max-axes",
        lambda a: ops.max(a, (0, 2), True),
        lambda t, a: a.amax((0, 2), True),
        (S,),
        kinks=True,
    ),
    Case("min-axis", lambda a: ops.min(a, -1), lambda t, a: a.amin(-1), (S,), kinks=True),
]
# Ties have a gradient by convention, not by differences: test_elementwise.py compares those.
