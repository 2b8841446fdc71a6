"""Pooling against plain loops; indices, ties, layouts, memory, errors."""

import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest

from gpuconv.autograd import Tensor, no_grad
from gpuconv.backends import get_backend
from gpuconv.errors import ArgumentError, DtypeError
from gpuconv.ops import pool
from gpuconv.reference.conv import is_channels_last
from gpuconv.reference.pool import window_sizes
from gpuconv.shapes import PoolSpec
from gpuconv.testing import check_gradients

BE = get_backend("numpy")
MAX = {1: pool.max_pool1d, 2: pool.max_pool2d, 3: pool.max_pool3d}
AVG = {1: pool.avg_pool1d, 2: pool.avg_pool2d, 3: pool.avg_pool3d}
Window = list[tuple[int, ...]]


def starts(n: int, k: int, s: int, d: int, lo: int, hi: int, ceil: bool) -> list[int]:
    """Where windows start, counted from the image's first pixel, by PyTorch's documented rules."""
    inside = n + hi - d * (k - 1)  # a window that starts below this ends in the padded image
    found = list(range(-lo, inside, s))
    after = -lo + len(found) * s
    # ceil_mode: one more for the pixels left over, unless it starts in the padding on the right.
    if ceil and after < min(inside + s - 1, n):
        found.append(after)
    return found


def draw(rng: np.random.Generator, dilated: bool) -> tuple[Any, ...]:
    """A small random problem: spatial sizes and one of each argument an axis."""
    nd = int(rng.integers(1, 4))
    size, kernel, stride = (rng.integers(1, m, nd).tolist() for m in (8, 5, 5))
    dilation = rng.integers(1, 4, nd).tolist() if dilated else [1] * nd
    pads = [
        tuple(int(rng.integers(0, d * (k - 1) + 1)) for _ in range(2))
        for k, d in zip(kernel, dilation, strict=True)
    ]
    return size, kernel, stride, dilation, pads, bool(rng.integers(2))


def every_window(problem: tuple[Any, ...]) -> tuple[tuple[int, ...], list[tuple[Window, Any]]]:
    """The output's spatial size; for each output pixel, row-major, the pixels and the corners."""
    size, kernel, stride, dilation, pads, ceil = problem
    axes = [
        starts(n, k, s, d, lo, hi, ceil)
        for n, k, s, d, (lo, hi) in zip(size, kernel, stride, dilation, pads, strict=True)
    ]
    windows = []
    for corner in product(*axes):
        pixels = [
            tuple(c + t * d for c, t, d in zip(corner, tap, dilation, strict=True))
            for tap in product(*map(range, kernel))
        ]
        inside = [p for p in pixels if all(0 <= i < n for i, n in zip(p, size, strict=True))]
        windows.append((inside, corner))
    return tuple(map(len, axes)), windows


def possible(problem: tuple[Any, ...]) -> bool:
    _, windows = every_window(problem)
    return bool(windows) and all(inside for inside, _ in windows)


def assert_refused(f: Any, x: np.ndarray, problem: tuple[Any, ...]) -> None:
    _, kernel, stride, dilation, pads, ceil = problem
    with pytest.raises(ArgumentError, match=r"output would be empty|steps over all"):
        f(x, kernel, stride, pads, dilation, ceil)


@pytest.mark.parametrize("seed", range(40))
def test_max_pool_agrees_with_plain_loops(seed: int) -> None:
    """Values, indices and gradient, of numbers with many ties, NaN and -inf."""
    rng = np.random.default_rng(seed)
    for _ in range(5):
        problem = size, kernel, stride, dilation, pads, ceil = draw(rng, dilated=True)
        nd = len(size)
        x = rng.choice([0.0, 1.0, 2.0, -np.inf, np.nan], (2, 1, *size), p=[0.3, 0.3, 0.1, 0.2, 0.1])
        if not possible(problem):
            assert_refused(MAX[nd], x, problem)
            continue
        t = Tensor(x, requires_grad=True)
        y, at = MAX[nd](t, kernel, stride, pads, dilation, ceil, return_indices=True)
        gy = rng.standard_normal(y.shape)
        y.backward(gy)
        out, windows = every_window(problem)
        assert y.shape == at.shape == (2, 1, *out)
        gx = np.zeros_like(x)
        for n, cell, (inside, _) in ((n, *cw) for n in range(2) for cw in enumerate(windows)):
            best = inside[0]
            for pixel in inside[1:]:
                value = x[(n, 0, *pixel)]
                if value > x[(n, 0, *best)] or np.isnan(value):
                    best = pixel
            np.testing.assert_equal(y.data[n, 0].flat[cell], x[(n, 0, *best)])
            assert at.data[n, 0].flat[cell] == np.ravel_multi_index(best, size), problem
            gx[(n, 0, *best)] += gy[n, 0].flat[cell]
        np.testing.assert_allclose(t.grad.data, gx, rtol=1e-12, atol=1e-15)
        with no_grad():  # without the record of taps
            np.testing.assert_array_equal(MAX[nd](x, kernel, stride, pads, dilation, ceil), y.data)


@pytest.mark.parametrize("seed", range(40))
def test_avg_pool_agrees_with_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(5):
        problem = size, kernel, stride, _, pads, ceil = draw(rng, dilated=False)
        include, nd = bool(rng.integers(2)), len(size)
        x = rng.standard_normal((2, 1, *size))
        if not possible(problem):
            with pytest.raises(ArgumentError, match="output would be empty"):
                AVG[nd](x, kernel, stride, pads, ceil, include)
            continue
        t = Tensor(x, requires_grad=True)
        y = AVG[nd](t, kernel, stride, pads, ceil, include)
        gy = rng.standard_normal(y.shape)
        y.backward(gy)
        out, windows = every_window(problem)
        assert y.shape == (2, 1, *out)
        gx = np.zeros_like(x)
        for n, cell, (inside, corner) in ((n, *cw) for n in range(2) for cw in enumerate(windows)):
            counted = len(inside)
            if include:
                counted = 1
                for c, k, m, (_, hi) in zip(corner, kernel, size, pads, strict=True):
                    counted *= min(c + k, m + hi) - c
            mean = sum(x[(n, 0, *pixel)] for pixel in inside) / counted
            assert abs(y.data[n, 0].flat[cell] - mean) < 1e-13, problem
            for pixel in inside:
                gx[(n, 0, *pixel)] += gy[n, 0].flat[cell] / counted
        np.testing.assert_allclose(t.grad.data, gx, rtol=1e-12, atol=1e-15)


def test_numbers_worked_out_by_hand() -> None:
    x = np.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    np.testing.assert_array_equal(pool.max_pool2d(x, 2)[0, 0], [[6, 8], [14, 16]])
    np.testing.assert_array_equal(pool.avg_pool2d(x, 2)[0, 0], [[3.5, 5.5], [11.5, 13.5]])
    np.testing.assert_array_equal(
        pool.avg_pool2d(x, 2, padding=1, count_include_pad=False)[0, 0],
        [[1, 2.5, 4], [7, 8.5, 10], [13, 14.5, 16]],
    )
    np.testing.assert_array_equal(pool.avg_pool2d(x, 4, divisor_override=8)[0, 0], [[17]])
    np.testing.assert_array_equal(pool.adaptive_avg_pool2d(x, (1, 3))[0, 0], [[7.5, 8.5, 9.5]])
    np.testing.assert_array_equal(pool.global_max_pool(x), [[[[16]]]])


@pytest.mark.parametrize("kind", ["normal", "ties", "nan"])
def test_indices_are_torchs(rng: np.random.Generator, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    x = rng.standard_normal((2, 3, 9, 7)) if kind == "normal" else np.ones((2, 3, 9, 7))
    if kind == "nan":
        x[rng.random(x.shape) < 0.2] = np.nan
    f = torch.nn.functional
    for name, arguments in (
        ("max_pool2d", (3, 2, 1, 1, False)),
        ("max_pool2d", (2, 3, 1, 2, True)),
        ("max_pool2d", ((9, 7),)),
        ("adaptive_max_pool2d", ((3, 7),)),
        ("adaptive_max_pool2d", ((4, 5),)),
        ("adaptive_max_pool2d", (1,)),
    ):
        y, at = getattr(pool, name)(x, *arguments, return_indices=True)
        y_peer, at_peer = getattr(f, name)(torch.tensor(x), *arguments, return_indices=True)
        assert at.dtype == np.int64
        np.testing.assert_array_equal(at, at_peer.numpy())
        np.testing.assert_array_equal(y, y_peer.numpy())


def test_ties_send_the_gradient_where_torch_does() -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    x = np.zeros((1, 1, 6, 6))
    t, peer = Tensor(x, requires_grad=True), torch.zeros(x.shape, requires_grad=True)
    pool.max_pool2d(t, 3, 2, 1).sum().backward()
    torch.nn.functional.max_pool2d(peer, 3, 2, 1).sum().backward()
    np.testing.assert_array_equal(t.grad.data, peer.grad.numpy())


def test_indices_are_of_the_inputs_kind_and_off_the_tape() -> None:
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    for f in (
        lambda x: pool.max_pool2d(x, 2, return_indices=True),
        lambda x: pool.adaptive_max_pool2d(x, 3, return_indices=True),
    ):
        y, at = f(x)
        assert isinstance(y, np.ndarray)
        assert isinstance(at, np.ndarray)
        y, at = f(Tensor(x, requires_grad=True))
        assert y.requires_grad
        assert isinstance(at, Tensor)
        assert not at.requires_grad
        with no_grad():
            y, at = f(Tensor(x, requires_grad=True))
        assert not y.requires_grad
        assert at.dtype == np.int64


@pytest.mark.usefixtures("array_code")
def test_taps_are_kept_only_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    plain = type(BE).max_pool

    def spy(self: Any, spec: PoolSpec, x: Any, taps: bool = True) -> Any:
        asked.append(taps)
        return plain(self, spec, x, taps)

    monkeypatch.setattr(type(BE), "max_pool", spy)
    x = np.zeros((1, 1, 4, 4))
    pool.max_pool2d(x, 2)
    pool.max_pool2d(Tensor(x), 2)
    pool.max_pool2d(Tensor(x, requires_grad=True), 2)
    pool.max_pool2d(x, 2, return_indices=True)
    assert asked == [False, False, True, True]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: pool.max_pool2d(x, 3, 2, 1),
        lambda x: pool.max_pool2d(x, 2, 3, 0, 1, True),
        lambda x: pool.avg_pool2d(x, 3, 2, 1),
        lambda x: pool.avg_pool2d(x, (2, 7), ceil_mode=True, count_include_pad=False),
        lambda x: pool.adaptive_avg_pool2d(x, (4, 5)),
        lambda x: pool.adaptive_max_pool2d(x, (4, 5)),
    ],
)
@pytest.mark.usefixtures("array_code")
def test_channels_last_stays_channels_last(rng: np.random.Generator, f: Any) -> None:
    x = rng.standard_normal((2, 3, 6, 7))
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    plain, t = Tensor(x, requires_grad=True), Tensor(last, requires_grad=True)
    y, y_last = f(plain), f(t)
    assert is_channels_last(y_last.data)
    assert not is_channels_last(y.data)
    np.testing.assert_array_equal(y_last.data, y.data)
    gy = rng.standard_normal(y.shape)
    y.backward(gy)
    y_last.backward(np.ascontiguousarray(gy.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    assert is_channels_last(t.grad.data)
    np.testing.assert_array_equal(t.grad.data, plain.grad.data)


def test_results_are_new_arrays_and_inputs_stay_as_they_are(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 2, 4, 4))
    x.flags.writeable = False
    for y in (
        pool.max_pool2d(x, 1),
        pool.avg_pool2d(x, 1),
        pool.adaptive_avg_pool2d(x, None),
    ):
        assert y.flags.writeable
        assert not np.shares_memory(x, y)
        np.testing.assert_array_equal(x, y)


def test_arrays_that_are_not_contiguous(rng: np.random.Generator) -> None:
    wide = rng.standard_normal((2, 3, 14, 12))
    x, same = wide[:, ::2, ::2, ::-1], wide[:, ::2, ::2, ::-1].copy()
    for f in (
        lambda x: pool.max_pool2d(x, 3, 2, 1),
        lambda x: pool.avg_pool2d(x, 3, 2, 1),
        lambda x: pool.adaptive_max_pool2d(x, (3, 5)),
    ):
        np.testing.assert_array_equal(f(x), f(same))


def test_memory_is_bounded() -> None:
    """A 5x5 pooling of 4x16x112x112: its windows would be 80 MB; here input and output are 3.2."""
    x = np.ones((4, 16, 112, 112), dtype=np.float32)
    spec = PoolSpec.infer(x.shape, 5, 1, 2)
    _, tap = BE.max_pool(spec, x)
    divisor = np.asarray(window_sizes(spec, False), dtype=np.float32)
    for run in (
        lambda: BE.max_pool(spec, x),
        lambda: BE.max_pool_grad(spec, x, tap),
        lambda: BE.avg_pool(spec, x, divisor),
        lambda: BE.avg_pool_grad(spec, x, divisor),
    ):
        tracemalloc.start()
        run()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 6 * x.nbytes, f"{peak >> 20} MiB"


def test_repeated_indices_take_the_last_and_only_that_has_a_gradient() -> None:
    x = np.arange(1.0, 13.0).reshape(1, 2, 2, 3)
    at = np.array([[[[4, 0, 4], [4, 7, 0]], [[5, 5, 5], [5, 5, 5]]]])
    y = pool.max_unpool2d(x, at, 2, output_size=(3, 5))
    expected = np.zeros((1, 2, 15))
    expected[0, 0, [4, 7, 0]] = [4, 5, 6]
    expected[0, 1, 5] = 12
    np.testing.assert_array_equal(y.reshape(1, 2, 15), expected)
    check_gradients(lambda x: pool.max_unpool2d(x, at, 2, output_size=(3, 5)), x)


def test_unpooling_undoes_overlapping_pooling(rng: np.random.Generator) -> None:
    """Repeated indices carry the same value: each maximum stays, all else is 0."""
    x = rng.standard_normal((2, 3, 9, 9)) + 10
    y, at = pool.max_pool2d(x, 3, 2, "same", return_indices=True)
    back = pool.max_unpool2d(y, at, 3, 2, "same", output_size=x.shape)
    kept = back != 0
    np.testing.assert_array_equal(back[kept], x[kept])
    np.testing.assert_array_equal(
        kept.reshape(6, 81).sum(1), [len(set(p.flat)) for p in at.reshape(6, -1)]
    )


def test_unpooling_of_same_padding_gives_stride_times_the_size() -> None:
    x, at = np.ones((1, 1, 3, 2)), np.arange(6).reshape(1, 1, 3, 2)
    assert pool.max_unpool2d(x, at, 5, 2, "same").shape == (1, 1, 6, 4)
    assert pool.max_unpool2d(x, at, 3, 2, "valid").shape == (1, 1, 7, 5)
    assert pool.max_unpool2d(x, at, 3, 2, ((1, 0), (0, 2))).shape == (1, 1, 6, 3)


def test_arrays_of_other_libraries_are_taken_through_dlpack(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((1, 4, 5, 6))
    for f in (
        lambda x: pool.max_pool2d(x, 2),
        lambda x: pool.adaptive_avg_pool2d(x, (2, None)),
        lambda x: pool.global_max_pool(x),
    ):
        np.testing.assert_array_equal(f(torch.tensor(x)), f(x))


X = np.zeros((1, 4, 5, 5))
AT = np.zeros((1, 4, 5, 5), dtype=np.int64)
BAD = {
    "rank": (lambda: pool.max_pool2d(X[0], 2), "has 3 axes, but .N, C, .in. with 2 spatial"),
    "rank-avg": (lambda: pool.avg_pool3d(X, 2), "has 4 axes, but .* 3 spatial"),
    "empty": (lambda: pool.max_pool2d(X, 6), "output would be empty .0 x 0.*use a larger input"),
    "kernel": (lambda: pool.max_pool2d(X, 0), "kernel_size=0 must be at least 1"),
    "kernel-3": (lambda: pool.avg_pool2d(X, (2, 2, 2)), "kernel_size=.* one integer or 2"),
    "stride": (lambda: pool.avg_pool2d(X, 2, 0), "stride=0 must be at least 1"),
    "dilation": (lambda: pool.max_pool2d(X, 2, dilation=0), "dilation=0 must be at least 1"),
    "padding": (lambda: pool.max_pool2d(X, 2, padding=-1), "padding=-1 must be at least 0"),
    "padding-name": (lambda: pool.avg_pool2d(X, 2, padding="full"), "'full' is unknown"),
    "in-padding": (
        lambda: pool.max_pool2d(X, 2, padding=2),
        "wholly in the padding; use at most 1",
    ),
    "stepped-over": (
        lambda: pool.max_pool1d(np.zeros((1, 1, 2)), 2, 1, 1, 3),
        "max_pool1d: dilation 3 on spatial axis 0 steps over all of its 2 pixels.*use less",
    ),
    "divisor": (lambda: pool.avg_pool2d(X, 2, divisor_override=0), "divisor_override is 0; give"),
    "adaptive-rank": (lambda: pool.adaptive_avg_pool2d(X[0], 2), "with 2 spatial axes.*x.None."),
    "adaptive-0": (lambda: pool.adaptive_max_pool2d(X, 0), "output_size=0 must be at least 1"),
    "adaptive-3": (lambda: pool.adaptive_max_pool2d(X, (1, 2, 3)), "one integer or 2"),
    "adaptive-1.5": (lambda: pool.adaptive_avg_pool2d(X, 1.5), "output_size=1.5 must be an int"),
    "adaptive-empty": (lambda: pool.adaptive_avg_pool2d(X[:, :, :0], 1), "none of them empty"),
    "global-rank": (lambda: pool.global_avg_pool(X[0, 0]), "global_avg_pool: .* one to three"),
    "unpool-rank": (lambda: pool.max_unpool3d(X, AT, 2), "max_unpool3d: the input .* 3 spatial"),
    "unpool-shape": (
        lambda: pool.max_unpool2d(X, AT[:, :2], 2),
        "must have the shape of the input",
    ),
    "unpool-negative": (lambda: pool.max_unpool2d(X, AT - 1, 2), "indices -1 to -1 do not fit"),
    "unpool-high": (lambda: pool.max_unpool2d(X, AT + 100, 2), "100 to 100 .* 10 x 10 pixels; set"),
    "unpool-size": (
        lambda: pool.max_unpool2d(X, AT, 2, output_size=(12, 10)),
        r"output_size \(12, 10\) must be less than a stride \(2, 2\) from \(10, 10\)",
    ),
    "unpool-empty": (
        lambda: pool.max_unpool2d(X[..., :1, :1], AT[..., :1, :1], 2, padding=1),
        "output would be empty .0 x 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_get_one_line_with_the_values_and_a_fix(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ArgumentError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    x = X.astype(dtype)
    for f, name in (
        (lambda: pool.max_pool2d(x, 2), "max_pool2d"),
        (lambda: pool.avg_pool2d(x, 2), "avg_pool2d"),
        (lambda: pool.adaptive_avg_pool2d(x, 5), "adaptive_avg_pool2d"),
        (lambda: pool.adaptive_avg_pool2d(x, 3), "adaptive_avg_pool2d"),
        (lambda: pool.adaptive_max_pool2d(x, 3), "adaptive_max_pool2d"),
        (lambda: pool.global_max_pool(x), "global_max_pool"),
        (lambda: pool.max_unpool2d(x, AT, 2), "max_unpool2d"),
    ):
        with pytest.raises(DtypeError, match=rf"{name}: x is {np.dtype(dtype)}.*astype"):
            f()
    with pytest.raises(DtypeError, match="indices are float64, but integers are needed"):
        pool.max_unpool2d(X, X, 2)
