"""Matrix products: every tile and its edges, every way to read an operand; linear layers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpuconv.cpu.device import DEVICE
from gpuconv.cpu.linear import forward, grad_input, grad_weight
from gpuconv.kernels.cpu import compiler
from gpuconv.kernels.cpu.gemm import COLUMN, ROW
from gpuconv.kernels.cpu.gemm_plan import TILES, Cut, Product, _product, cut
from gpuconv.testing import assert_within_budget
from tests.cpu.conftest import REFERENCE, launched, numbers

TILES_HERE = TILES[compiler.host().registers]


def check(p: Product, c: Cut, a_turned: bool, b_turned: bool, dtype: str = "float32") -> None:
    """`p` with matrices that lie as it says; NaN around the result must stay."""
    a, b = numbers(0, p.m, p.k).astype(dtype), numbers(1, p.k, p.n).astype(dtype)
    bias = numbers(2, p.m if p.bias == ROW else p.n).astype(dtype) if p.bias else None
    given = (
        np.ascontiguousarray(a.T if a_turned else a),
        np.ascontiguousarray(b.T if b_turned else b),
        bias,
    )

    def make(device: Any) -> Any:
        run = _product(device, p, dtype, c)
        return lambda a, b, bias, y: run(a, b, y, bias, None)

    def truth(kind: str) -> Any:
        y = a.astype(kind) @ b.astype(kind)
        if bias is not None:
            y += bias.astype(kind)[:, None] if p.bias == ROW else bias.astype(kind)
        y = np.maximum(y, 0) if p.relu else y
        return y.T if p.turned else y

    shape = (p.n, p.m) if p.turned else (p.m, p.n)
    assert_within_budget(launched(make, given, shape, False), truth("float32"), truth("float64"))


def lying(m: int, n: int, k: int, a_turned: bool, b_turned: bool, **more: Any) -> Product:
    return Product(
        m=m, n=n, k=k, a_row=1 if a_turned else k, a_k=m if a_turned else 1,
        b_k=1 if b_turned else n, b_n=k if b_turned else 1,
        c_row=m if more.get("turned") else n, **more,
    )  # fmt: skip


@pytest.mark.parametrize("tile", TILES_HERE, ids=lambda t: f"{t[0]}x{t[1]}")
def test_edges_of_tiles(tile: tuple[int, int]) -> None:
    rows, vectors = tile
    wide = vectors * compiler.host().vector // 4
    for m in {rows, rows + 1, 2 * rows, 3 * rows - 1}:
        for n in (1, wide - 1, wide, wide + 1, 2 * wide + 5):
            for a_turned, b_turned in ((False, False), (True, False), (False, True)):
                p = lying(m, n, 37, a_turned, b_turned, bias=ROW, relu=True)
                check(p, Cut(rows, vectors, rows, wide, 16, 1), a_turned, b_turned)
                check(p, Cut(rows, vectors, 3 * rows, 3 * wide, 64, 1), a_turned, b_turned)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bias", [0, ROW, COLUMN])
@pytest.mark.parametrize(("a_turned", "b_turned"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_ways_to_read(isa: str, a_turned: bool, b_turned: bool, bias: int, turned: bool) -> None:
    for m, n, k in ((1, 1, 1), (4, 33, 3), (70, 70, 70), (9, 130, 600), (65, 34, 2048)):
        p = lying(m, n, k, a_turned, b_turned, bias=bias, turned=turned)
        check(p, cut(p, "float32"), a_turned, b_turned)


def test_parts_of_k() -> None:
    p = lying(20, 50, 1000, True, False, bias=COLUMN, relu=True)
    c = replace(cut(p, "float32"), k_block=64)
    for parts in (1, 2, 3, 16):
        check(p, replace(c, parts=parts), True, False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 2, 3, 64])
@pytest.mark.parametrize(
    ("inside", "outside"), [(1, 1), (400, 120), (84, 10), (33, 257), (2048, 65)]
)
def test_linear(inside: int, outside: int, rows: int, dtype: str) -> None:
    x, w, b, gy = (
        numbers(i, *shape).astype(np.float32)
        for i, shape in enumerate(((rows, inside), (outside, inside), (outside,), (rows, outside)))
    )
    key = rows, inside, outside, dtype
    for make, method, given, shape, more in (
        (forward, "linear", (x, w, b), gy.shape, (True,)),
        (forward, "linear", (x, w, None), gy.shape, (False,)),
        (grad_input, "linear_grad_input", (gy, w), x.shape, ()),
        (grad_weight, "linear_grad_weight", (gy, x), w.shape, ()),
    ):

        def cast(kind: str, given: Any = given) -> Any:
            return tuple(None if a is None else a.astype(kind) for a in given)

        plain, exact = (getattr(REFERENCE, method)(*cast(t)) for t in ("float32", "float64"))
        found = launched(make, cast(dtype), shape, False, *key, *more)
        if dtype == "float64":
            assert np.abs(found - exact).max() <= 1e-12 * max(np.abs(exact).max(), 1)
        else:
            assert_within_budget(found, plain, exact)


def test_not_a_number_and_infinity_propagate() -> None:
    x, w = np.ones((5, 40), np.float32), np.ones((40, 40), np.float32)
    x[1, 3], x[2, 7], w[4, 5] = np.nan, np.inf, -np.inf
    run, y = forward(DEVICE, 5, 40, 40, "float32", False), np.empty((5, 40), np.float32)
    run(x, w, None, y)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(y, REFERENCE.linear(x, w, None))


@pytest.mark.parametrize("outside", [1, 3, 4, 5, 130, 257])
def test_few_rows(isa: str, outside: int) -> None:
    for inside in (1, 15, 16, 17, 100):
        x, w, b = numbers(0, 2, inside), numbers(1, outside, inside), numbers(2, outside)
        given = tuple(a.astype(np.float32) for a in (x, w, b))
        found = launched(forward, given, (2, outside), False, 2, inside, outside, "float32", True)
        exact = REFERENCE.linear(*(a.astype(np.float64) for a in given))
        assert_within_budget(found, REFERENCE.linear(*given), exact)
