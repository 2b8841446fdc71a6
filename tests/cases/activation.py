"""Activations, softmax and dropout without chance: every argument, both sides of every kink.

Names and arguments are PyTorch's, so one call serves both sides: `f` is `gpuconv.ops` or torch's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv import ops
from tests.cases.case import Case, Make

S = (2, 3, 4)


def values(*numbers: float) -> Make:
    return lambda rng: np.array(numbers)


def wide(rng: np.random.Generator) -> np.ndarray:
    """Over -8..8 in steps of 0.35, none on a kink."""
    return rng.permutation(np.arange(-23, 24) * 0.35 + 0.12).reshape(1, 47)


def row(name: str, call: Callable[..., Any], *inputs: Any, kinks: bool = False) -> Case:
    return Case(
        name,
        lambda *arrays: call(ops, *arrays),
        lambda t, *arrays: call(t.nn.functional, *arrays),
        inputs or (S,),
        kinks,
    )


def hardsigmoid(t: Any, x: Any) -> Any:
    return t.nn.functional.relu6(x + 3) / 6


SMOOTH: dict[str, Callable[[Any, Any], Any]] = {
    "sigmoid": lambda f, x: f.sigmoid(x),
    "tanh": lambda f, x: f.tanh(x),
    "silu": lambda f, x: f.silu(x),
    "gelu": lambda f, x: f.gelu(x),
    "gelu-tanh": lambda f, x: f.gelu(x, approximate="tanh"),
    "softplus": lambda f, x: f.softplus(x),
    "softplus-beta": lambda f, x: f.softplus(x, beta=2.5),
    "softplus-negative-beta": lambda f, x: f.softplus(x, -0.5),
    "mish": lambda f, x: f.mish(x),
}
KINKED: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda f, x: f.relu(x),
    "relu6": lambda f, x: f.relu6(x),
    "leaky-relu": lambda f, x: f.leaky_relu(x),
    "leaky-relu-slope": lambda f, x: f.leaky_relu(x, negative_slope=0.3),
    "leaky-relu-steep": lambda f, x: f.leaky_relu(x, 1.5),
    "leaky-relu-falling": lambda f, x: f.leaky_relu(x, -0.5),
    "elu": lambda f, x: f.elu(x),
    "elu-alpha": lambda f, x: f.elu(x, alpha=0.4),
    "elu-negative-alpha": lambda f, x: f.elu(x, -0.4),
    "selu": lambda f, x: f.selu(x),
    "celu": lambda f, x: f.celu(x),
    "celu-alpha": lambda f, x: f.celu(x, alpha=0.25),  # torch rounds 1 / alpha to float32
    "softplus-threshold": lambda f, x: f.softplus(x, 2.0, threshold=3.0),
    "hardswish": lambda f, x: f.hardswish(x),
    "hardtanh": lambda f, x: f.hardtanh(x),
    "hardtanh-limits": lambda f, x: f.hardtanh(x, min_val=-2.3, max_val=0.4),
}
PRELU = {
    "prelu-one": (S, (1,)),
    "prelu-channels": (S, (3,)),
    "prelu-2d": ((2, 3, 4, 2), (3,)),
    "prelu-0d": ((4, 3), (3,)),
    "prelu-one-channel": ((2, 1, 3), (1,)),
    "prelu-vector": ((5,), (1,)),
    "prelu-no-axes": ((), (1,)),
    "prelu-batch-0": ((0, 3, 2), (3,)),
}

CASES = [
    *(row(name, call) for name, call in SMOOTH.items()),
    *(row(f"{name}-wide", call, wide) for name, call in SMOOTH.items()),
    *(row(name, call, kinks=True) for name, call in KINKED.items()),
    *(row(f"{name}-wide", call, wide) for name, call in KINKED.items()),
    *(row(f"{name}-no-axes", call, ()) for name, call in SMOOTH.items()),
    *(row(f"{name}-batch-0", call, (0, 3, 2)) for name, call in SMOOTH.items()),
    *(row(f"{name}-no-axes", call, (), kinks=True) for name, call in KINKED.items()),
    *(row(f"{name}-batch-0", call, (0, 3, 2)) for name, call in KINKED.items()),
    # torch's own has the slope 1/6 rounded to float32
    Case("hardsigmoid", ops.hardsigmoid, hardsigmoid, (S,), kinks=True),
    Case("hardsigmoid-wide", ops.hardsigmoid, hardsigmoid, (wide,)),
    Case("hardsigmoid-no-axes", ops.hardsigmoid, hardsigmoid, ((),), kinks=True),
    *(row(n, lambda f, x, w: f.prelu(x, w), *shapes, kinks=True) for n, shapes in PRELU.items()),
    row("softmax", lambda f, x: f.softmax(x, dim=1)),
    row("softmax-last", lambda f, x: f.softmax(x, -1)),
    row("softmax-first", lambda f, x: f.softmax(x, 0)),
    row("softmax-one", lambda f, x: f.softmax(x, 1), (3, 1)),
    row("softmax-vector", lambda f, x: f.softmax(x, 0), (5,)),
    row("softmax-empty", lambda f, x: f.softmax(x, 1), (3, 0)),
    row("softmax-batch-0", lambda f, x: f.softmax(x, 1), (0, 3)),
    row("softmax-far", lambda f, x: f.softmax(x, 0), values(1e4, -1e4, 9999, 9998.5)),
    row("log-softmax", lambda f, x: f.log_softmax(x, dim=1)),
    row("log-softmax-last", lambda f, x: f.log_softmax(x, -1)),
    row("log-softmax-first", lambda f, x: f.log_softmax(x, 0)),
    row("log-softmax-one", lambda f, x: f.log_softmax(x, 1), (3, 1)),
    row("log-softmax-empty", lambda f, x: f.log_softmax(x, 1), (3, 0)),
    row("log-softmax-batch-0", lambda f, x: f.log_softmax(x, 1), (0, 3)),
    row("log-softmax-far", lambda f, x: f.log_softmax(x, 0), values(1e4, -1e4, 9999, 9998.5)),
    row("dropout-eval", lambda f, x: f.dropout(x, 0.5, training=False)),
    row("dropout-0", lambda f, x: f.dropout(x, p=0.0)),
    row("dropout-1", lambda f, x: f.dropout(x, p=1.0)),
    row("dropout2d-eval", lambda f, x: f.dropout2d(x, 0.5, False), (2, 3, 2, 2)),
    row("dropout2d-0", lambda f, x: f.dropout2d(x, 0), (2, 3, 2, 2)),
    row("dropout2d-1", lambda f, x: f.dropout2d(x, 1), (2, 3, 2, 2)),
]
