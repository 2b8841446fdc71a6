"""Matrix products."""

import numpy as np

from gpuconv import ops
from tests.cases.case import Case


def transposed(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((5, 4)).T


CASES = [
    Case(
        "linear",
        ops.linear,
        lambda t, x, w, b: t.nn.functional.linear(x, w, b),
        ((3, 5), (4, 5), (4,)),
    ),
    Case(
        "linear-no-bias", ops.linear, lambda t, x, w: t.nn.functional.linear(x, w), ((3, 5), (4, 5))
    ),
    Case(
        "linear-3-axes",
        ops.linear,
        lambda t, x, w, b: t.nn.functional.linear(x, w, b),
        ((2, 3, 5), (4, 5), (4,)),
    ),
    Case("linear-vector", ops.linear, lambda t, x, w: t.nn.functional.linear(x, w), ((5,), (4, 5))),
    Case(
        "linear-batch-0", ops.linear, lambda t, x, w: t.nn.functional.linear(x, w), ((0, 5), (4, 5))
    ),
    Case("matmul", ops.matmul, lambda t, a, b: a @ b, ((3, 4), (4, 5))),
    Case("matmul-strided", ops.matmul, lambda t, a, b: a @ b, ((3, 4), (lambda r: transposed(r)))),
    Case("matmul-vectors", ops.matmul, lambda t, a, b: a @ b, ((4,), (4,))),
    Case("matmul-vector-matrix", ops.matmul, lambda t, a, b: a @ b, ((4,), (4, 5))),
    Case("matmul-matrix-vector", ops.matmul, lambda t, a, b: a @ b, ((3, 4), (4,))),
    Case("matmul-stack", ops.matmul, lambda t, a, b: a @ b, ((2, 3, 4), (2, 4, 5))),
    Case("matmul-broadcast", ops.matmul, lambda t, a, b: a @ b, ((2, 1, 3, 4), (6, 4, 5))),
    Case("matmul-stack-vector", ops.matmul, lambda t, a, b: a @ b, ((2, 3, 4), (4,))),
    Case("matmul-vector-stack", ops.matmul, lambda t, a, b: a @ b, ((4,), (2, 4, 3))),
]
