"""Pooling: every option, both memory formats, both precisions; maxima and taps to the bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpuconv import ops
from gpuconv.autograd import Tensor
from gpuconv.backends import Backend, backend
from gpuconv.reference.conv import is_channels_last
from gpuconv.reference.pool import window_sizes
from gpuconv.shapes import PoolSpec
from tests.kernels.conftest import REFERENCE, check
from tests.operations import channels_last

# Shape, kernel and the other arguments of `PoolSpec.infer`.
PROBLEMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "one pixel": ((1, 1, 1, 1), 1, {}),
    "2x2": ((2, 3, 6, 8), 2, {}),
    "3x3 stride 2": ((1, 33, 7, 9), 3, {"stride": 2, "padding": 1}),
    "3x3 stride 1": ((2, 4, 6, 5), 3, {"stride": 1, "padding": "same"}),
    "1x3": ((1, 4, 5, 6), (1, 3), {"stride": (1, 2)}),
    "3x1": ((4, 5, 5, 6), (3, 1), {"stride": (2, 1), "padding": (1, 0)}),
    "4x4 same": ((5, 1, 9, 7), 4, {"stride": 2, "padding": "same"}),
    "ceil": ((1, 8, 8, 6), 3, {"stride": 2, "ceil_mode": True}),
    "ceil and padding": ((1, 3, 6, 7), (2, 3), {"stride": 3, "padding": 1, "ceil_mode": True}),
    "asymmetric": ((2, 4, 5, 6), (3, 2), {"stride": 2, "padding": ((2, 0), (0, 1))}),
    "holes": ((1, 4, 9, 8), 2, {"stride": 3}),
    "dilation": ((1, 4, 9, 8), (3, 2), {"stride": 1, "padding": (2, 1), "dilation": (2, 3)}),
    "dilation and stride": ((1, 3, 11, 8), 3, {"stride": 2, "padding": 2, "dilation": (3, 2)}),
    "dilation over the edge": ((1, 4, 2, 9), 3, {"stride": 1, "padding": (4, 2), "dilation": 2}),
    "long rows": ((1, 4, 2, 40), (2, 35), {"stride": 1, "padding": (0, 3)}),
    "one cut window": ((1, 4, 5, 7), (4, 4), {"stride": 9}),
    "one padded window": ((1, 4, 3, 4), (5, 4), {"stride": 9, "padding": (1, 0)}),
    "127 threads": ((1, 1, 1, 127), 1, {}),
    "128 threads": ((1, 4, 2, 64), 1, {}),
    "129 threads": ((1, 1, 3, 43), 1, {}),
    "pool1d": ((2, 4, 17), 4, {"stride": 3, "padding": 2, "nd": 1}),
    "pool1d ceil": ((1, 3, 11), 2, {"dilation": 2, "ceil_mode": True, "nd": 1}),
}
# Planes of one window: members of a tree below, at and above their powers of two, and blocks.
PLANES = {
    "2 pixels": (1, 3, 1, 2),
    "7x7": (2, 33, 7, 7),
    "31 pixels": (3, 5, 1, 31),
    "32 pixels": (1, 8, 4, 8),
    "33 pixels": (1, 9, 3, 11),
    "255 pixels": (1, 3, 15, 17),
    "256 pixels": (1, 4, 16, 16),
    "257 pixels": (1, 3, 257),
    "more rounds": (1, 9, 25, 41),
    "line": (2, 3, 50),
    "volume": (2, 4, 3, 4, 5),
}
LAYOUTS = pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def spec_of(name: str) -> PoolSpec:
    shape, kernel, options = PROBLEMS[name]
    return PoolSpec.infer(shape, kernel, **options)


def same(be: Any, operation: Callable[[Any, Any, Any], Any], *inputs: Any) -> list[np.ndarray]:
    """operation(backend, *inputs) on `be`, twice, and on the reference: the same to the bit."""

    def on(backend: Backend) -> list[np.ndarray]:
        results = operation(backend, *map(backend.asarray, inputs))
        return [r if isinstance(r, np.ndarray) else r.get() for r in results]

    first, again, expected = on(be), on(be), on(REFERENCE)
    for a, b, e in zip(first, again, expected, strict=True):
        assert a.dtype == e.dtype
        assert is_channels_last(a) == is_channels_last(e)
        np.testing.assert_array_equal(a, e)
        np.testing.assert_array_equal(a, b)
    return first


def tied(rng: np.random.Generator, shape: Any, last: bool, dtype: str) -> np.ndarray:
    """Numbers with many ties, infinities and NaN."""
    x = rng.choice([0, 1, 2, -np.inf, np.inf, np.nan], shape, p=[0.3, 0.3, 0.1, 0.2, 0.03, 0.07])
    return (channels_last(x) if last else x).astype(dtype)


def max_both(spec: PoolSpec) -> Callable[..., Any]:
    def operation(be: Any, x: Any, gy: Any) -> Any:
        y, tap = be.max_pool(spec, x)
        assert be.max_pool(spec, x, taps=False)[1] is None
        return y, tap, be.max_pool(spec, x, taps=False)[0], be.max_pool_grad(spec, gy, tap)

    return operation


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("name", PROBLEMS)
def test_maximum(be: Any, rng: np.random.Generator, name: str, last: bool, dtype: str) -> None:
    spec = spec_of(name)
    gy = rng.standard_normal(spec.y_shape)
    gy = (channels_last(gy) if last else gy).astype(dtype)
    same(be, max_both(spec), tied(rng, spec.x_shape, last, dtype), gy)
    same(be, max_both(spec), np.full_like(tied(rng, spec.x_shape, last, dtype), -np.inf), gy)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("name", PROBLEMS)
def test_average(be: Any, rng: np.random.Generator, name: str, last: bool, dtype: str) -> None:
    spec = spec_of(name)
    x, gy = rng.standard_normal(spec.x_shape) + 1, rng.standard_normal(spec.y_shape)
    if last:
        x, gy = channels_last(x), channels_last(gy)
    sizes = rng.integers(1, 10, spec.y_shape[2:]).astype(dtype)
    for by in (2.5, sizes):
        check(be, lambda be, x, by=by: be.avg_pool(spec, x, by), x, dtype=dtype)
        check(be, lambda be, gy, by=by: be.avg_pool_grad(spec, gy, by), gy, dtype=dtype)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("name", PLANES)
def test_whole_planes(be: Any, rng: np.random.Generator, name: str, last: bool, dtype: str) -> None:
    shape = PLANES[name]
    spec = PoolSpec.infer(shape, shape[2:], nd=len(shape) - 2)
    from gpuconv.kernels.cuda import pool_plane

    assert pool_plane.supports(spec, np.dtype(dtype))
    x, gy = rng.standard_normal(shape) + 1, rng.standard_normal(spec.y_shape)
    x = channels_last(x) if last else x
    check(be, lambda be, x: be.avg_pool(spec, x, 7), x, dtype=dtype)
    gy = gy.astype(dtype)
    several = rng.integers(0, 5, shape).astype(dtype)
    for values in (tied(rng, shape, last, dtype), several, np.full_like(several, -np.inf)):
        same(be, max_both(spec), values, gy)


@LAYOUTS
@pytest.mark.parametrize("shape", [(1, 33, 5, 7), (3, 1, 13, 9), (2, 31, 4, 8), (1, 3, 3, 3)])
def test_a_warp_a_plane(
    be: Any, rng: np.random.Generator, monkeypatch: Any, shape: Any, last: bool
) -> None:
    """What happens where there are many planes: with few, so that it is quick."""
    from gpuconv.kernels.cuda import pool_plane

    monkeypatch.setattr(pool_plane, "MANY", 1)
    spec = PoolSpec.infer(shape, shape[2:])
    x, gy = rng.standard_normal(shape), rng.standard_normal(spec.y_shape).astype("float32")
    check(be, lambda be, x: be.avg_pool(spec, x, 7), channels_last(x) if last else x)
    same(be, max_both(spec), tied(rng, shape, last, "float32"), gy)


@LAYOUTS
def test_rounding_grows_slowly_on_large_planes(
    be: Any, rng: np.random.Generator, last: bool
) -> None:
    """More numbers a member than one of its partial sums takes; NumPy adds in pairs."""
    shape = (1, 8, 200, 300) if last else (1, 1, 300, 500)
    x = rng.random(shape) + 1
    x = channels_last(x) if last else x
    spec = PoolSpec.infer(shape, shape[2:])
    check(be, lambda be, x: be.avg_pool(spec, x, 150_000), x)


def test_rounding_grows_slowly_in_long_windows(be: Any, rng: np.random.Generator) -> None:
    """One window along W: the reference adds it up in pairs."""
    x = rng.random((1, 1, 2, 5000)) + 1
    spec = PoolSpec.infer(x.shape, (1, 5000))
    check(be, lambda be, x: be.avg_pool(spec, x, 5000), x)


def test_arrays_that_lie_otherwise(be: Any, rng: np.random.Generator) -> None:
    """Slices, reversed axes, gradient and taps in different formats, addresses not of 16 bytes."""
    spec = PoolSpec.infer((2, 4, 6, 5), 3, 2, 1)
    whole = rng.integers(0, 9, (3, 8, 8, 6)).astype("float32")
    gy = rng.standard_normal(spec.y_shape).astype("float32")

    def sliced(be: Any, whole: Any, gy: Any) -> Any:
        x = whole[1:, ::2, 7:1:-1, 1:]
        y, tap = be.max_pool(spec, x)
        return y, tap, be.avg_pool(spec, x, 9), be.max_pool_grad(spec, gy.transpose(), tap)

    def shifted(be: Any, flat: Any, gy: Any) -> Any:
        x = flat[1:241].reshape(2, 6, 5, 4).transpose(0, 3, 1, 2)
        y, tap = be.max_pool(spec, x)
        moved = be.xp.zeros(tap.size + 1, dtype="int32")[1:].reshape(tap.shape)
        moved[...] = tap
        return y, tap, be.max_pool_grad(spec, gy, moved), be.avg_pool(spec, x, 8)

    same(be, sliced, whole, np.ascontiguousarray(gy.transpose()))
    same(be, shifted, np.arange(260, dtype="float32") % 7, gy)
    same(be, shifted, np.arange(260, dtype="float32") % 7, channels_last(gy))


def test_what_no_kernel_takes_is_array_code(be: Any, rng: np.random.Generator) -> None:
    """Windows in three dimensions, half precision, an empty batch, numbers above 32 bits."""
    from gpuconv.kernels.cuda import pool

    for spec, dtype in (
        (PoolSpec.infer((1, 2, 4, 5, 3), 2, 1, nd=3), "float32"),
        (PoolSpec.infer((1, 2, 5, 4), 2), "float16"),
        (PoolSpec.infer((0, 2, 5, 4), 2), "float32"),
        (PoolSpec.infer((1, 2, 5, 4), 2, 2**40), "float32"),
    ):
        assert not pool.supports(spec, np.dtype(dtype))
        x = rng.integers(0, 9, spec.x_shape).astype(dtype)
        gy = rng.integers(0, 9, spec.y_shape).astype(dtype)
        same(be, max_both(spec), x, gy)
        same(be, lambda be, x, s=spec: [be.avg_pool(s, x, 4)], x)
        same(be, lambda be, gy, s=spec: [be.avg_pool_grad(s, gy, 4)], gy)
    assert not pool.supports(PoolSpec.infer((1, 2, 5, 4), 2), np.dtype(">f4"))


def test_divisors_from_the_host_are_copied_once(be: Any, rng: np.random.Generator) -> None:
    spec = PoolSpec.infer((1, 3, 5, 5), 3, 2, 1)
    sizes = window_sizes(spec, False)
    assert isinstance(sizes, np.ndarray)
    x = be.asarray(rng.standard_normal(spec.x_shape).astype("float32"))
    y = be.avg_pool(spec, x, sizes)
    known = len(be._plans)
    np.testing.assert_array_equal(y, be.avg_pool(spec, x, sizes.copy()))
    assert len(be._plans) == known
    np.testing.assert_array_equal(y, be.avg_pool(spec, x, be.asarray(sizes, dtype="float32")))


@LAYOUTS
def test_operations(be: Any, rng: np.random.Generator, last: bool) -> None:
    """Through the differentiable operations: adaptive and global pooling, indices, gradients."""
    numbers = rng.integers(0, 9, (2, 4, 7, 8)).astype("float32")
    numbers = channels_last(numbers) if last else numbers

    def operation(be: Any, array: Any, _: Any) -> Any:
        results = []
        with backend(be):
            for f in (
                lambda t: ops.max_pool2d(t, 3, 2, 1, return_indices=True),
                lambda t: ops.adaptive_max_pool2d(t, (3, 4), return_indices=True),
                lambda t: (ops.global_max_pool(t),),
                lambda t: (ops.avg_pool2d(t, 2, 1, ceil_mode=True, count_include_pad=False),),
            ):
                t = Tensor(array, requires_grad=True)
                y, *indices = f(t)
                y.sum().backward()
                results += [y.data, *(i.data for i in indices), t.grad.data]
        return results

    same(be, operation, numbers, numbers)
