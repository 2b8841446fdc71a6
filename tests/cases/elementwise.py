"""Elementwise arithmetic and reductions, with broadcasting."""

import numpy as np

from gpuconv import ops
from tests.cases.case import Case

S = (2, 3, 4)


def positive(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.5, 2.0, S)


def small_positive(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.5, 2.0, (3, 1))


def mask(rng: np.random.Generator) -> np.ndarray:
    return rng.random(S) < 0.5


def ties(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2, S).astype(np.float64)


CASES = [
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
