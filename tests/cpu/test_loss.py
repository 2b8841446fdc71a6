"""Softmax cross entropy: classes about every width, weights, smoothing, ignored labels, limits."""

from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import ops
from gpuconv.autograd import Tensor
from gpuconv.cpu import CpuBackend
from gpuconv.cpu.device import DEVICE
from gpuconv.kernels.cpu import compiler, loss
from gpuconv.kernels.cpu.compiler import I64, Data, Kernel
from tests.cpu.conftest import guarded
from tests.cpu.operation import check, kernels_alone
from tests.operations import cross_entropy, scores

FORMATS = pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])


@pytest.fixture
def be(isa: str) -> CpuBackend:
    """Its plans are of one instruction set."""
    return CpuBackend()


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 10, 15, 16, 17, 31, 32, 33, 129, 1000])
def test_rows_of_classes(be: Any, rng: np.random.Generator, classes: int) -> None:
    for n in (1, 7, 33):
        x, target, w, g = scores(rng, (n, classes))
        check(be, cross_entropy, x, target, None, g, -100, 0.0)
        check(be, cross_entropy, x, target, w, g, -100, 0.1)


@FORMATS
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 3, 5), (2, 21, 5, 7), (1, 33, 3, 3), (3, 150, 2, 2), (1, 5, 16, 16),
     (1, 5, 15, 17), (2, 4, 3, 4, 5), (2, 9, 47, 45)],
)  # fmt: skip
def test_positions(be: Any, rng: np.random.Generator, shape: Any, last: bool) -> None:
    x, target, w, g = scores(rng, shape, last)
    for weight, smoothing in ((None, 0.0), (w, 0.0), (None, 0.2), (w, 0.2), (w, 1.0)):
        _, gx = check(be, cross_entropy, x, target, weight, g, -100, smoothing)
        assert gx.strides == x.astype("float32").strides


@FORMATS
def test_float64(be: Any, rng: np.random.Generator, last: bool) -> None:
    for shape in ((4, 5, 2, 3), (6, 17), (2, 3, 9, 9)):
        x, target, w, g = scores(rng, shape, last and len(shape) > 2)
        check(be, cross_entropy, x, target, w, g, -100, 0.1, dtype="float64")


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 3, 2**40])
@pytest.mark.parametrize("shape", [(9, 5), (2, 5, 3, 4)])
def test_ignored_labels(be: Any, rng: np.random.Generator, shape: Any, ignore_index: int) -> None:
    x, target, w, g = scores(rng, shape)
    some = np.where(rng.random(target.shape) < 0.5, ignore_index, target)
    for labels in (some, np.full_like(target, ignore_index)):
        for smoothing in (0.0, 0.3):
            losses, gx = check(be, cross_entropy, x, labels, w, g, ignore_index, smoothing)
            ignored = labels == ignore_index
            assert (losses[ignored] == 0).all()
            assert (np.moveaxis(gx, 1, -1)[ignored] == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(8, 5), (8, 40), (8, 5, 3, 3)])
def test_scores_at_the_limits(
    be: Any, rng: np.random.Generator, shape: Any, smoothing: float
) -> None:
    x, target, w, g = scores(rng, shape)
    x[0] += 1e4
    x[1] *= 1e4
    x[2, 0] = -np.inf
    x[3] = -np.inf
    x[4, 1] = np.inf
    x[5, 2] = np.nan
    x[6, 1:] = -np.inf
    x = x.astype("float32").astype("float64")
    target[6] = 0
    with np.errstate(invalid="ignore", divide="ignore"):
        check(be, cross_entropy, x, target, None, g, -100, smoothing)
        check(be, cross_entropy, x, target, w, g, -100, smoothing)
        for i in range(len(x)):  # alone, each with a budget of its own size
            one = slice(i, i + 1)
            check(be, cross_entropy, x[one], target[one], None, g[one], -100, smoothing)


@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 3, 4)])
def test_one_gradient_for_all(be: Any, rng: np.random.Generator, shape: Any) -> None:
    """The gradient of a mean: one number, repeated without a copy."""
    x, target, w, g = scores(rng, shape)

    def operation(be: Any, x: Any, target: Any, w: Any, g: Any) -> Any:
        return cross_entropy(be, x, target, w, np.broadcast_to(g, target.shape), -100, 0.1)

    check(be, operation, x, target, w, np.array(0.37))
    check(be, operation, x, target, w, g[:1, ...] if len(shape) == 2 else g[:1, :1, :1])


def test_views(be: Any, rng: np.random.Generator) -> None:
    """Arrays that are neither contiguous nor channels-last."""
    x, target, w, g = scores(rng, (6, 8, 5, 6))
    target = target // 2
    check(be, cross_entropy, x[::2, ::2], target[::2], w[::2], g[1::2], -100, 0.1)
    check(be, cross_entropy, x[:, ::2, ::2], target[:, ::2], w[1::2], g[:, ::2], -100, 0.1)


def test_no_positions_and_no_classes() -> None:
    be = CpuBackend()
    for shape in ((0, 3), (2, 3, 0), (0, 0)):
        x = np.zeros(shape, "float32")
        target = np.zeros((shape[0], *shape[2:]), "int64")
        losses, gx = cross_entropy(be, x, target, None, target.astype("float32"), -100, 0.0)
        assert losses.shape == target.shape
        assert gx.shape == shape


@FORMATS
@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 5, 7)])
def test_nothing_beyond_results(isa: str, rng: np.random.Generator, shape: Any, last: bool) -> None:
    last = last and len(shape) > 2
    x, target, w, g = scores(rng, shape, last)
    x, w, g = (a.astype("float32") for a in (x, w, g))
    gx, whole = guarded(shape, "float32", last)
    size = target.size
    results = [np.full(size + 2, np.nan, "float32") for _ in range(3)]
    inside = [a[1:-1] for a in results]
    w_sum = np.asarray(w.sum(), float)
    loss.forward(DEVICE, shape, "float32", last, -100, 0.1)(x, target, w, w_sum, *inside)
    run = loss.grad(DEVICE, shape, "float32", last, -100, 0.1, False)
    run(g, x, *inside[1:], target, w, w_sum, gx)
    for a in results:
        assert np.isfinite(a[1:-1]).all()
        assert np.isnan(a[[0, -1]]).all()
    assert np.isfinite(gx).all()
    assert np.isfinite(whole).sum() == gx.size


def test_the_operation(be: Any, rng: np.random.Generator) -> None:
    x, target, w, _ = scores(rng, (64, 10))

    def operation(backend: Any, x: Any, target: Any, w: Any) -> Any:
        with gc.backend(backend):
            t = Tensor(x, requires_grad=True)
            y = ops.cross_entropy(t, target, weight=w, label_smoothing=0.1)
            y.backward()
            assert t.grad is not None
            return [y.data, t.grad.data]

    check(be, operation, x, target, w)


def _exponents(dtype: str) -> Any:
    from gpuconv.kernels.cpu.rows import exp_negative
    from gpuconv.kernels.cpu.vector import lanes, load, store

    wide = lanes(dtype)

    def kernel(task: I64, thread: I64, x: Data, y: Data) -> None:
        store(y + task * wide, exp_negative(load(x + task * wide)))

    return kernel


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponential(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """To a unit in the last place (two without fused multiply-add), 0 where the result is below all
    numbers."""
    single = dtype == "float32"
    least = -87.3 if single else -708.3
    x = np.linspace(least, 0, 1 << 16).astype(dtype)
    x[:8] = [0, -0.0, -1e-30, -np.inf, np.nan, least * 1.02, least * 1.5, -1e30]
    y = np.empty_like(x)
    kernel = Kernel("exponents", _exponents, (("dtype", dtype),))
    vectors = x.nbytes // compiler.current().vector
    DEVICE.prepare(kernel, vectors, several=False)(x, y)
    truth = np.exp(x.astype(np.longdouble))
    ulp = np.spacing(truth.astype(dtype)).astype(np.longdouble)
    units = 2 if isa == "generic" else 1
    near = (np.abs(y - truth) <= units * ulp) | (np.isnan(y) & np.isnan(x))
    assert near.all(), x[~near]
    np.testing.assert_array_equal(y[[0, 1, 3, 7]], [1, 1, 0, 0])
    assert np.isnan(y[4])


def test_kernels_take_it(rng: np.random.Generator, monkeypatch: Any) -> None:
    be = CpuBackend()
    kernels_alone(be, monkeypatch, "softmax_cross_entropy", "softmax_cross_entropy_grad")
    for shape in ((4, 5), (2, 3, 4, 4)):
        x, target, w, g = scores(rng, shape)
        given = (a.astype("float32") if a.dtype.kind == "f" else a for a in (x, target, w, g))
        cross_entropy(be, *given, -100, 0.1)
