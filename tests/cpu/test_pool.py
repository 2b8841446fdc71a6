"""Pooling kernels against array code: both formats, every instruction set, odd sizes."""

from typing import Any

import numpy as np
import pytest

from gpuconv.backends import Backend
from gpuconv.cpu import CpuBackend
from gpuconv.cpu.team import set_num_threads
from gpuconv.kernels.cpu import compiler, pool, pool_last, pool_plane
from gpuconv.reference.conv import is_channels_last
from gpuconv.reference.pool import window_sizes
from gpuconv.shapes import PoolSpec
from gpuconv.testing import assert_within_budget
from tests.cpu.conftest import REFERENCE, launched, numbers
from tests.operations import channels_last

FORMATS = [False, True]
Problem = tuple[tuple[int, ...], dict[str, Any]]

PROBLEMS: dict[str, Problem] = {
    "2x2/2": ((2, 3, 8, 28), {"kernel": 2}),
    "odd sizes": ((2, 33, 9, 15), {"kernel": 2}),
    "ceil": ((1, 4, 9, 15), {"kernel": 2, "ceil_mode": True}),
    "3x3/2": ((3, 64, 14, 14), {"kernel": 3, "stride": 2, "padding": 1}),
    "3x3/1": ((1, 65, 6, 7), {"kernel": 3, "stride": 1, "padding": 1}),
    "ceil past the padding": (
        (2, 5, 10, 11),
        {"kernel": 3, "stride": 3, "padding": 1, "ceil_mode": True},
    ),
    "asymmetric": (
        (2, 3, 11, 13),
        {"kernel": (3, 5), "stride": (1, 2), "padding": ((2, 0), (1, 4))},
    ),
    "stride past the kernel": ((1, 3, 17, 19), {"kernel": (1, 2), "stride": (3, 5)}),
    "a row": ((2, 4, 1, 40), {"kernel": (1, 3), "stride": (1, 2)}),
    "a column": ((2, 4, 40, 1), {"kernel": (3, 1), "stride": (2, 1), "padding": ((1, 1), (0, 0))}),
    "whole plane": ((5, 3, 7, 9), {"kernel": (7, 9)}),
    "whole plane but a row": ((2, 3, 8, 5), {"kernel": (7, 5)}),
    "one pixel": ((2, 7, 1, 1), {"kernel": 1}),
    "bands": ((1, 1, 150, 90), {"kernel": 3, "stride": 2, "padding": 1}),
    "bands that overlap": ((1, 2, 90, 110), {"kernel": (7, 2), "stride": 1, "padding": (3, 0)}),
    "several tasks": ((4, 70, 12, 12), {"kernel": 2}),
    "1-D": ((2, 6, 50), {"kernel": 3, "stride": 2, "padding": 1, "nd": 1}),
    "1-D whole": ((3, 6, 35), {"kernel": 35, "nd": 1}),
}
DILATED: dict[str, Problem] = {
    "dilation": ((2, 3, 12, 14), {"kernel": 3, "stride": 2, "padding": 2, "dilation": (2, 3)}),
    "dilation 1-D": ((2, 3, 40), {"kernel": 3, "stride": 1, "dilation": 4, "nd": 1}),
}
WIDTHS = [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 67]


def infer(problem: Problem) -> PoolSpec:
    shape, options = problem
    return PoolSpec.infer(shape, **options)


def dtypes(isa: str) -> list[str]:
    """Float64 differs in the width of vectors: it is tried for one instruction set."""
    return ["float32", "float64"] if isa == compiler.host().name else ["float32"]


def lying(x: Any, last: bool) -> Any:
    return channels_last(x) if last else np.ascontiguousarray(x)


def check_max(be: Backend, spec: PoolSpec, last: bool, dtype: str) -> None:
    """Values, taps and gradient, bit for bit, of numbers with many ties, NaN and -inf."""
    rng = np.random.default_rng(0)
    x = rng.choice([0.0, 1.0, -0.0, -np.inf, np.nan], spec.x_shape, p=[0.3, 0.2, 0.1, 0.35, 0.05])
    x = lying(x.astype(dtype), last)
    x.flags.writeable = False
    y, tap = be.max_pool(spec, x)
    expected, expected_tap = REFERENCE.max_pool(spec, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(tap, expected_tap)
    assert tap.dtype == np.int32
    assert is_channels_last(y) == is_channels_last(expected) == is_channels_last(tap)
    if compiler.current() == compiler.host():  # a kernel of its own, to save compiling it thrice
        np.testing.assert_array_equal(be.max_pool(spec, x, taps=False)[0], expected)
    gy = lying(numbers(1, *spec.y_shape).astype(dtype), last)
    gx = be.max_pool_grad(spec, gy, tap)
    np.testing.assert_array_equal(gx, REFERENCE.max_pool_grad(spec, gy, expected_tap))
    assert gx.dtype == dtype


def check_avg(be: Backend, spec: PoolSpec, last: bool, dtype: str, divisor: Any) -> None:
    if isinstance(divisor, np.ndarray):
        divisor = divisor.astype(dtype)
    x, gy = (lying(numbers(i, *s), last) for i, s in enumerate((spec.x_shape, spec.y_shape)))
    for name, array in (("avg_pool", x), ("avg_pool_grad", gy)):
        given = array.astype(np.float32).astype(dtype)
        exact = getattr(REFERENCE, name)(spec, given.astype(np.float64), divisor)
        result = getattr(be, name)(spec, given, divisor)
        assert result.dtype == dtype
        if dtype == "float64":
            np.testing.assert_allclose(result, exact, rtol=1e-13, atol=1e-14)
        else:
            assert_within_budget(result, getattr(REFERENCE, name)(spec, given, divisor), exact)
        assert is_channels_last(result) == is_channels_last(exact)


@pytest.mark.parametrize("last", FORMATS, ids=["nchw", "last"])
def test_maximum(isa: str, last: bool) -> None:
    be = CpuBackend()
    for problem in {**PROBLEMS, **DILATED}.values():
        for dtype in dtypes(isa):
            check_max(be, infer(problem), last, dtype)


@pytest.mark.parametrize("last", FORMATS, ids=["nchw", "last"])
def test_average(isa: str, last: bool) -> None:
    be = CpuBackend()
    for problem in PROBLEMS.values():
        spec = infer(problem)
        for include in (True, False):
            for dtype in dtypes(isa):
                check_avg(be, spec, last, dtype, window_sizes(spec, include))
        check_avg(be, spec, last, "float32", 2.5)


@pytest.mark.parametrize("last", FORMATS, ids=["nchw", "last"])
def test_every_width(isa: str, last: bool) -> None:
    """Rows, and numbers of channels, around one and several vectors."""
    be = CpuBackend()
    for n in WIDTHS:
        shape = (2, n, 3, 4) if last else (2, 3, 3, n)
        for options in ({"kernel": (2, 1), "stride": (1, 2)}, {"kernel": (3, 1), "stride": (1, 3)}):
            spec = PoolSpec.infer(shape, **options)
            check_max(be, spec, last, "float32")
            check_avg(be, spec, last, "float32", 2)
        spec = PoolSpec.infer(shape, 3, 1, 1)
        check_max(be, spec, last, "float32")
        check_max(be, PoolSpec.infer(shape, shape[2:]), last, "float32")
        check_avg(be, PoolSpec.infer(shape, shape[2:]), last, "float32", shape[2] * shape[3])


@pytest.mark.parametrize("seed", range(4))
def test_random_problems(seed: int) -> None:
    be, rng = CpuBackend(), np.random.default_rng(seed)
    done = 0
    while done < 25:
        shape = (
            int(rng.integers(1, 3)),
            int(rng.integers(1, 40)),
            *rng.integers(1, 25, 2).tolist(),
        )
        kernel, stride = rng.integers(1, 5, 2).tolist(), rng.integers(1, 5, 2).tolist()
        dilation = [1, 1] if seed % 2 else rng.integers(1, 4, 2).tolist()
        pads = [
            tuple(int(rng.integers(0, d * (k - 1) + 1)) for _ in range(2))
            for k, d in zip(kernel, dilation, strict=True)
        ]
        try:
            spec = PoolSpec.infer(shape, kernel, stride, pads, dilation, bool(rng.integers(2)))
        except ValueError:  # nothing would be left of it
            continue
        last = bool(rng.integers(2))
        check_max(be, spec, last, "float32")
        if max(dilation) == 1:
            check_avg(be, spec, last, "float32", window_sizes(spec, bool(rng.integers(2))))
        done += 1


PLANS = {"nchw": pool, "plane": pool_plane, "last": pool_last}


@pytest.mark.parametrize("which", PLANS)
def test_nothing_else_is_written_and_threads_do_not_matter(isa: str, which: str) -> None:
    kernels, last = PLANS[which], which == "last"
    for shape, options in (
        ((6, 37, 15, 21), {"kernel": 2, "stride": 2, "padding": 1, "ceil_mode": True}),
        ((6, 32, 16, 16), {"kernel": 2}),
        ((2, 3, 100, 67), {"kernel": 3, "stride": 1}),
    ):
        spec = PoolSpec.infer(shape, **options)
        if which == "plane":
            spec = PoolSpec.infer(shape, shape[2:])
        x, gy = (
            lying(numbers(i, *s).astype(np.float32), last)
            for i, s in enumerate((spec.x_shape, spec.y_shape))
        )
        _, tap = REFERENCE.max_pool(spec, x)
        table = np.full(spec.y_shape[2:], 0.3, np.float32)
        launched(kernels.avg_pool, (x, table), spec.y_shape, last, spec, "float32", False)
        launched(kernels.avg_pool_grad, (gy, table), spec.x_shape, last, spec, "float32")
        launched(kernels.max_pool_grad, (gy, tap), spec.x_shape, last, spec, "float32")

        if not last:
            launched(_both(kernels.max_pool), (x,), (2, *spec.y_shape), False, spec)


def _both(make: Any) -> Any:
    """A plan that writes y and its taps into one array: what lies around both is looked at."""

    def plan(device: Any, spec: PoolSpec) -> Any:
        run = make(device, spec, "float32", True)

        def into(x: Any, both: Any) -> None:
            taps = both[1].view(np.int32)
            run(x, both[0], taps)
            both[1] = taps.copy()

        return into

    return plan


def test_what_lies_anyhow_in_memory() -> None:
    be, spec = CpuBackend(), PoolSpec.infer((2, 6, 10, 12), 2)
    wide = numbers(0, 2, 12, 10, 12).astype(np.float32)
    x = wide[:, ::2]
    expected, expected_tap = REFERENCE.max_pool(spec, x)
    y, tap = be.max_pool(spec, x)
    np.testing.assert_array_equal(y, expected)
    gy = np.broadcast_to(np.float32(1), spec.y_shape)
    other = channels_last(tap).astype(np.int64)
    expected = REFERENCE.max_pool_grad(spec, gy, expected_tap)
    np.testing.assert_array_equal(be.max_pool_grad(spec, gy, other), expected)
    np.testing.assert_array_equal(be.max_pool_grad(spec, channels_last(gy), tap), expected)


@pytest.mark.parametrize(
    ("shape", "nd", "dtype"),
    [((1, 2, 4, 4, 4), 3, "float32"), ((1, 2, 4, 4), 2, "float16"), ((0, 2, 4, 4), 2, "float32")],
    ids=["3-D", "float16", "empty"],
)
def test_array_code_takes_the_rest(shape: Any, nd: int, dtype: str) -> None:
    be, spec = CpuBackend(), PoolSpec.infer(shape, 2, nd=nd)
    x = numbers(0, *shape).astype(dtype)
    y, tap = be.max_pool(spec, x)
    np.testing.assert_array_equal(y, REFERENCE.max_pool(spec, x)[0])
    np.testing.assert_array_equal(
        be.max_pool_grad(spec, y, tap), REFERENCE.max_pool_grad(spec, y, tap)
    )
    mean = be.avg_pool(spec, x, 4)
    np.testing.assert_array_equal(mean, REFERENCE.avg_pool(spec, x, 4))
    np.testing.assert_array_equal(
        be.avg_pool_grad(spec, mean, 4), REFERENCE.avg_pool_grad(spec, mean, 4)
    )


@pytest.mark.parametrize("last", FORMATS, ids=["nchw", "last"])
def test_large_planes_keep_the_error_small(last: bool) -> None:
    """Sums of 12,544 numbers, all of one sign."""
    spec = PoolSpec.infer((2, 17, 112, 112), 112)
    x = lying((numbers(0, *spec.x_shape) + 3).astype(np.float32), last)
    exact = REFERENCE.avg_pool(spec, x.astype(np.float64), 12544)
    set_num_threads(2)
    result = CpuBackend().avg_pool(spec, x, 12544)
    assert_within_budget(result, REFERENCE.avg_pool(spec, x, 12544), exact)
