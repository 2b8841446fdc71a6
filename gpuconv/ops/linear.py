"""Matrix products."""

from math import prod
from typing import Any

from gpuconv.autograd import Function
from gpuconv.backends import Array, Backend
from gpuconv.errors import ArgumentError
from gpuconv.ops.dtypes import check_dtypes
from gpuconv.ops.elementwise import Like, unbroadcast


class MatMul(Function):
    """NumPy's matmul: stacks of matrices broadcast; a vector is a matrix of one row or column."""

    a: Any  # the array where it is needed again, else a `Like` of it
    b: Any

    def forward(self, be: Backend, a: Array, b: Array) -> Array:
        check_dtypes("matmul", a=a, b=b)
        inner = b.shape[-2] if b.ndim > 1 else b.shape[-1] if b.ndim else None
        if not a.ndim or a.shape[-1] != inner:
            raise ArgumentError(
                f"matmul: shapes {a.shape} and {b.shape} do not fit; the last size of the first "
                f"must be the last but one of the second"
            )
        self.a, self.b = (a if self.needs[1] else Like(a)), (b if self.needs[0] else Like(b))
        y = be.xp.matmul(a, b)
        self.macs = y.size * a.shape[-1]
        return y

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        xp, a, b = be.xp, self.a, self.b
        if a.ndim == 1:
            gy = gy[..., None, :] if b.ndim > 1 else gy[..., None]
        if b.ndim == 1:
            gy = gy[..., None]
        ga = gb = None
        if self.needs[0]:
            b2 = b[:, None] if b.ndim == 1 else b
            row = (1, *a.shape) if a.ndim == 1 else a.shape
            ga = unbroadcast(xp.matmul(gy, b2.swapaxes(-1, -2)), Like(a, row)).reshape(a.shape)
        if self.needs[1]:
            a2 = a[None, :] if a.ndim == 1 else a
            column = (*b.shape, 1) if b.ndim == 1 else b.shape
            gb = unbroadcast(xp.matmul(a2.swapaxes(-1, -2), gy), Like(b, column)).reshape(b.shape)
        return ga, gb


class Linear(Function):
    """y = x w^T + b over the last axis of x."""

    def forward(self, be: Backend, x: Array, w: Array, b: Array | None) -> Array:
        check_dtypes("linear", x=x, weight=w, bias=b)
        if w.ndim != 2:
            raise ArgumentError(f"linear: the weight {w.shape} must have 2 axes, (out, in)")
        if x.ndim < 1 or x.shape[-1] != w.shape[1]:
            raise ArgumentError(
                f"linear: the input {x.shape} has {x.shape[-1] if x.ndim else 0} features, but the "
                f"weight {w.shape} (out, in) takes {w.shape[-1]}; flatten the input to (N, "
                f"{w.shape[-1]}), or set in_features={x.shape[-1] if x.ndim else 0}"
            )
        if b is not None and b.shape != w.shape[:1]:
            raise ArgumentError(f"linear: the bias {b.shape} must be ({w.shape[0]},)")
        self.x: Any = x if self.needs[1] else None
        self.w: Any = w if self.needs[0] else None
        self.macs = prod(x.shape) * w.shape[0]
        return be.linear(x, w, b)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        rows = gy.reshape(-1, gy.shape[-1])
        need_x, need_w, need_b = self.needs
        return (
            be.linear_grad_input(gy, self.w) if need_x else None,
            be.linear_grad_weight(gy, self.x) if need_w else None,
            be.bias_gradient(rows) if need_b else None,
        )


def matmul(a: Any, b: Any) -> Any:
    """The matrix product, with NumPy's rules for stacks and vectors."""
    return MatMul().apply(a, b)


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x (..., in) times weight (out, in), plus bias (out,): (..., out)."""
    return Linear().apply(x, weight, bias)
