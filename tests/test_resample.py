"""Resampling: numbers worked out by hand, all small sizes against torch, layouts, errors."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from gpuconv.autograd import Tensor
from gpuconv.errors import ArgumentError, DtypeError
from gpuconv.ops import pool, resample
from gpuconv.reference.conv import is_channels_last


def test_numbers_worked_out_by_hand() -> None:
    x = np.array([[[0.0, 4.0]]])
    y = resample.interpolate(x, scale_factor=2, mode="linear")
    np.testing.assert_array_equal(y, [[[0, 1, 3, 4]]])
    y = resample.interpolate(x, size=5, mode="linear", align_corners=True)
    np.testing.assert_array_equal(y, [[[0, 1, 2, 3, 4]]])
    np.testing.assert_array_equal(resample.interpolate(x, size=3), [[[0, 0, 4]]])
    x = np.arange(4.0).reshape(1, 4, 1, 1)
    np.testing.assert_array_equal(resample.pixel_shuffle(x, 2), [[[[0, 1], [2, 3]]]])


def test_a_long_signal_is_resampled_without_a_matrix() -> None:
    """200,000 samples to 300,001: a matrix of weights would have 60 billion."""
    x = Tensor(np.ones((1, 1, 200_000)), requires_grad=True)
    y = resample.interpolate(x, 300_001, mode="linear")
    np.testing.assert_allclose(y.data, 1, rtol=1e-12)
    y.sum().backward()
    assert abs(float(x.grad.data.sum()) - 300_001) < 1e-4


def test_interpolation_agrees_with_torch_for_all_small_sizes() -> None:
    """Nearest in float32: torch's own float64 results differ with the number of axes."""
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    for n, out in product(range(1, 25), range(1, 41)):
        x = np.arange(n, dtype=np.float32)[None, None] ** 2
        peer = torch.tensor(x)
        y = torch.nn.functional.interpolate(peer, out).numpy()
        np.testing.assert_array_equal(resample.interpolate(x, out), y, err_msg=f"{n} to {out}")
        y = torch.nn.functional.interpolate(peer.double(), out, mode="linear").numpy()
        ours = resample.interpolate(x.astype(np.float64), out, mode="linear")
        np.testing.assert_allclose(ours, y, rtol=1e-12, atol=1e-12, err_msg=f"{n} to {out}")


def test_an_infinite_pixel_stays_where_it_is() -> None:
    """No output that does not lie beside it sees it, nor does a weight of 0 make it NaN."""
    x = np.ones((1, 1, 1, 6))
    x[..., 3] = np.inf
    y = resample.interpolate(x, (1, 12), mode="bilinear")
    np.testing.assert_array_equal(np.flatnonzero(np.isinf(y)), [5, 6, 7, 8])
    assert not np.isnan(y).any()
    y = resample.interpolate(x, (1, 11), mode="bilinear", align_corners=True)
    np.testing.assert_array_equal(np.flatnonzero(np.isinf(y)), [5, 6, 7])
    np.testing.assert_array_equal(pool.adaptive_avg_pool2d(x, (1, 4)).ravel(), [1, 1, np.inf, 1])


def test_pixel_unshuffle_is_the_inverse_of_shuffle(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 12, 3, 5))
    y = resample.pixel_shuffle(x, 2)
    assert y.shape == (2, 3, 6, 10)
    np.testing.assert_array_equal(resample.pixel_unshuffle(y, 2), x)
    assert resample.pixel_shuffle(x[:0], 2).shape == (0, 3, 6, 10)
    assert resample.pixel_unshuffle(y[:0], 2).shape == (0, 12, 3, 5)


def test_upsample_is_interpolate() -> None:
    assert resample.upsample is resample.interpolate


@pytest.mark.parametrize(
    "f",
    [
        lambda x: resample.interpolate(x, 9),
        lambda x: resample.interpolate(x, (3, 12), mode="bilinear"),
        lambda x: resample.interpolate(x, (6, 7), mode="bilinear"),
    ],
)
def test_formats_are_kept_and_results_are_new(rng: np.random.Generator, f: Any) -> None:
    x = rng.standard_normal((2, 3, 6, 7))
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    last.flags.writeable = x.flags.writeable = False
    plain, t = Tensor(x, requires_grad=True), Tensor(last, requires_grad=True)
    y, y_last = f(plain), f(t)
    assert is_channels_last(y_last.data)
    assert y.data.flags.c_contiguous
    assert not np.shares_memory(y.data, x)
    assert not np.shares_memory(y_last.data, last)
    np.testing.assert_array_equal(y_last.data, y.data)
    gy = rng.standard_normal(y.shape)
    y.backward(gy)
    y_last.backward(np.ascontiguousarray(gy.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    assert is_channels_last(t.grad.data)
    np.testing.assert_array_equal(t.grad.data, plain.grad.data)
    np.testing.assert_array_equal(f(x[:, :, ::-1]), f(x[:, :, ::-1].copy()))


def test_arrays_of_other_libraries_are_taken_through_dlpack(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((1, 4, 5, 6))
    for f in (lambda x: resample.interpolate(x, 7), lambda x: resample.pixel_shuffle(x, 2)):
        np.testing.assert_array_equal(f(torch.tensor(x)), f(x))


X = np.zeros((1, 4, 5, 5))
BAD = {
    "no-size": (lambda: resample.interpolate(X), "give one of size and scale_factor"),
    "both-sizes": (lambda: resample.interpolate(X, 2, 2), "not size=2 and scale_factor=2"),
    "size-0": (lambda: resample.interpolate(X, 0), "size=0 must be at least 1"),
    "scale-0": (lambda: resample.interpolate(X, scale_factor=0), "must be one number above 0 or 2"),
    "scale-inf": (
        lambda: resample.interpolate(X, scale_factor=(1, np.inf)),
        "must be one number above 0 or 2",
    ),
    "scale-3": (lambda: resample.interpolate(X, scale_factor=(1, 2, 3)), "or 2, one an axis"),
    "scale-small": (lambda: resample.interpolate(X, scale_factor=0.1), "leaves no pixel of .5, 5."),
    "mode": (lambda: resample.interpolate(X, 2, mode="cubic"), "'cubic' is unknown for 2 spatial"),
    "mode-1d": (lambda: resample.interpolate(X, 2, mode="linear"), "'linear' .* 'bilinear'"),
    "corners": (lambda: resample.interpolate(X, 2, align_corners=True), "leave it out"),
    "resample-rank": (lambda: resample.interpolate(X[0, 0], 2), "one to three spatial axes"),
    "shuffle": (lambda: resample.pixel_shuffle(X, 3), "4 channels do not divide .* multiple of 9"),
    "shuffle-0": (lambda: resample.pixel_shuffle(X, 0), "upscale_factor=0 must be at least 1"),
    "shuffle-rank": (
        lambda: resample.pixel_shuffle(X[0], 2),
        r"\(4, 5, 5\) must be \(N, C, H, W\)",
    ),
    "unshuffle": (
        lambda: resample.pixel_unshuffle(X, 2),
        "5 x 5 pixels do not divide .*crop or pad",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_get_one_line_with_the_values_and_a_fix(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ArgumentError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_integers_are_refused() -> None:
    with pytest.raises(DtypeError, match=r"interpolate: x is int64.*astype"):
        resample.interpolate(X.astype(np.int64), 3)
