"""The linear layer of `CpuBackend`: products by `kernels.cpu.gemm` and `dot`, with the bias."""

from dataclasses import replace
from typing import Any

from gpuconv.cpu.device import NAMES
from gpuconv.kernels.cpu import dot
from gpuconv.kernels.cpu.gemm import COLUMN, ROW
from gpuconv.kernels.cpu.gemm_plan import SMALL, Product, cut, product
from gpuconv.reference.linear import Linear

Array = Any


def forward(device: Any, rows: int, inside: int, outside: int, dtype: str, bias: bool) -> Any:
    """y (rows, out) of x (rows, in), w (out, in), b.

    One row or two are dot products. Otherwise, either x is read as numbers and w turned over into
    panels, or, where that would be much of the work, the other way round, and y is turned over at
    the end.
    """
    if rows <= dot.MOST_ROWS:
        return dot.forward(device, rows, inside, outside, dtype)
    by_row = Product(
        m=rows, n=outside, k=inside, a_row=inside, a_k=1, b_k=1, b_n=inside, c_row=outside,
        bias=COLUMN if bias else 0,
    )  # fmt: skip
    by_column = replace(by_row, m=outside, n=rows, bias=ROW if bias else 0, turned=True)
    if by_row.macs >= SMALL and cut(by_column, dtype).cost < cut(by_row, dtype).cost:
        turned = product(device, by_column, dtype)
        return lambda x, w, b, y: turned(w, x, y, b, None)
    straight = product(device, by_row, dtype)
    return lambda x, w, b, y: straight(x, w, y, b, None)


def grad_input(device: Any, rows: int, inside: int, outside: int, dtype: str) -> Any:
    """gx (rows, in) of gy (rows, out) and w (out, in)."""
    p = Product(
        m=rows, n=inside, k=outside, a_row=outside, a_k=1, b_k=inside, b_n=1, c_row=inside
    )  # fmt: skip
    multiply = product(device, p, dtype)
    return lambda gy, w, gx: multiply(gy, w, gx, None, None)


def grad_weight(device: Any, rows: int, inside: int, outside: int, dtype: str) -> Any:
    """gw (out, in) of gy (rows, out) and x (rows, in)."""
    p = Product(
        m=outside, n=inside, k=rows, a_row=1, a_k=outside, b_k=inside, b_n=1, c_row=inside
    )  # fmt: skip
    multiply = product(device, p, dtype)
    return lambda gy, x, gw: multiply(gy, x, gw, None, None)


class CpuLinear(Linear):
    """float32 and float64; the rest is array code."""

    plan: Any  # of CpuBackend, which mixes this class in
    contiguous: Any
    device: Any

    def linear(self, x: Array, w: Array, b: Array | None) -> Array:
        if not _takes(x, w):
            return super().linear(x, w, b)
        outside, inside = w.shape
        y = self.device.empty((*x.shape[:-1], outside), x.dtype)
        key = x.size // inside, inside, outside, NAMES[x.dtype], b is not None
        run = self.plan(forward, *key)
        run(self.contiguous(x), self.contiguous(w), self.contiguous(b), y)
        return y

    def linear_grad_input(self, gy: Array, w: Array) -> Array:
        if not _takes(gy, w):
            return super().linear_grad_input(gy, w)
        outside, inside = w.shape
        gx = self.device.empty((*gy.shape[:-1], inside), gy.dtype)
        run = self.plan(grad_input, gy.size // outside, inside, outside, NAMES[gy.dtype])
        run(self.contiguous(gy), self.contiguous(w), gx)
        return gx

    def linear_grad_weight(self, gy: Array, x: Array) -> Array:
        if not _takes(gy, x):
            return super().linear_grad_weight(gy, x)
        outside, inside = gy.shape[-1], x.shape[-1]
        gw = self.device.empty((outside, inside), gy.dtype)
        run = self.plan(grad_weight, gy.size // outside, inside, outside, NAMES[gy.dtype])
        run(self.contiguous(gy), self.contiguous(x), gw)
        return gw


def _takes(a: Array, b: Array) -> bool:
    """Numbers of one dtype that kernels know, and not none of them."""
    return bool(a.dtype in NAMES and a.dtype == b.dtype and a.size and b.size)
