"""Operations beside convolution: batch normalisation in training, pooling, ReLU.

Passes: "forward", and "both", forward and backward through each library's own automatic
differentiation, as a training step has them. What is compared is y, or the gradient by x.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any
from zlib import crc32

import numpy as np

import gpuconv as gc
from bench.cases import Op
from bench.problems import (
    Array,
    ConvProblem,
    Gap,
    as_torch,
    from_torch,
    has_torch,
    in_format,
    numbers,
)


class OpProblem:
    """One pass of an operation; `x` and `gy` are float32 arrays of `xp`."""

    precision = "float32"

    def __init__(self, case: Op, kind: str, xp: Any) -> None:
        self.case, self.kind, self.xp = case, kind, xp
        seed = crc32(case.name.encode())
        self.x = numbers(xp, case.x_shape, seed)
        c = case.x_shape[1]
        self.w, self.b = numbers(xp, (c,), seed + 1), numbers(xp, (c,), seed + 2)
        self.gy = numbers(xp, ours(case.op)(self.x, self.w, self.b).shape, seed + 3)

    flops = 0  # bound by memory

    @property
    def bytes(self) -> int:
        """Forward: x read and y written; both: these, gy read and gx written."""
        return 4 * (self.x.size + self.gy.size) * (2 if self.kind == "both" else 1)

    def solve(self) -> None:
        """As ConvProblem's; Gap without torch."""
        if not has_torch(self.xp):
            raise Gap("an operation is checked with torch, which is not installed")
        self.oracle = "torch float64"
        found = [from_torch(self.torch("nchw", kind)(), self.xp) for kind in ("float64", "float32")]
        self.truth = found[0]
        self.plain_error = self.error(found[1])

    error, bar = ConvProblem.error, ConvProblem.bar

    def ours(self, format: str) -> tuple[Callable[[], Any], Callable[[Any], Array]]:
        """(a call, the array of its result)."""
        run = ours(self.case.op)
        x, gy = (in_format(self.xp, array, format) for array in (self.x, self.gy))
        if self.kind == "forward":
            return lambda: run(x, self.w, self.b), lambda y: y
        leaf = gc.tensor(x, requires_grad=True)
        w, b = (gc.tensor(array, requires_grad=True) for array in (self.w, self.b))

        def both() -> Any:
            for tensor in (leaf, w, b):
                tensor.grad = None
            run(leaf, w, b).backward(gy)
            return leaf.grad

        return both, lambda g: g.data

    def torch(self, format: str, dtype: str = "float32") -> Callable[[], Any]:
        """A call that gives y or gx."""
        torch = import_module("torch")
        kind, run = getattr(torch, dtype), theirs(self.case.op)
        arrays = (in_format(self.xp, array, format) for array in (self.x, self.gy))
        x, gy = (as_torch(array).to(kind) for array in arrays)
        w, b = (as_torch(array).to(kind) for array in (self.w, self.b))
        if self.kind == "forward":

            def forward() -> Any:
                with torch.no_grad():
                    return run(x, w, b)

            return forward
        leaves = [t.detach().requires_grad_() for t in (x, w, b)]

        def both() -> Any:
            for leaf in leaves:
                leaf.grad = None
            run(*leaves).backward(gy)
            return leaves[0].grad

        return both


def ours(op: str) -> Callable[..., Any]:
    """Our function of (x, w, b)."""
    return {
        "batch_norm": lambda x, w, b: gc.batch_norm(x, None, None, w, b, True),
        "max_pool 3x3/2": lambda x, w, b: gc.max_pool2d(x, 3, 2, 1),
        "max_pool 2x2/2": lambda x, w, b: gc.max_pool2d(x, 2),
        "avg_pool 2x2/2": lambda x, w, b: gc.avg_pool2d(x, 2),
        "relu": lambda x, w, b: gc.relu(x),
    }[op]


def theirs(op: str) -> Callable[..., Any]:
    """Torch's function of (x, w, b)."""
    f: Any = import_module("torch").nn.functional
    return {
        "batch_norm": lambda x, w, b: f.batch_norm(x, None, None, w, b, True),
        "max_pool 3x3/2": lambda x, w, b: f.max_pool2d(x, 3, 2, 1),
        "max_pool 2x2/2": lambda x, w, b: f.max_pool2d(x, 2),
        "avg_pool 2x2/2": lambda x, w, b: f.avg_pool2d(x, 2),
        "relu": lambda x, w, b: f.relu(x),
    }[op]


def size(case: Op, kind: str) -> tuple[int, int]:
    """(operations: not counted, bytes of x and about as many of y)."""
    return 0, 8 * int(np.prod(case.x_shape)) * (2 if kind == "both" else 1)
