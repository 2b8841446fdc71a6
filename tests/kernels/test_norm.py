"""Batch norm: sizes about every width, both memory formats, numbers that lose digits."""

from typing import Any

import numpy as np
import pytest

from gpuconv.kernels.cuda import norm
from tests.kernels.conftest import check
from tests.operations import batch_norm, channels_last, images, rounded

SHAPES = {
    "two numbers": (2, 1, 1, 1),
    "a number an image": (5, 3, 1, 1),
    "rows": (70, 33),
    "many rows": (600, 4),
    "a line": (3, 4, 9),
    "a batch of one": (1, 3, 5, 7),
    "7 x 7": (3, 4, 7, 7),
    "8 x 8": (3, 33, 8, 8),
    "a step and one less": (1, 2, 33, 31),
    "a step": (1, 1, 32, 32),
    "a step and one more": (1, 2, 5, 205),
    "three axes": (2, 3, 3, 5, 4),
    "splits": (5, 2, 41, 43),
    "splits of 16 bytes": (9, 1, 44, 48),
    "narrow splits": (4, 3, 30, 31),
    "splits by 32 channels": (7, 33, 7, 7),
    "splits by 16": (13, 48, 5, 5),
    "splits by 8": (13, 24, 7, 7),
}


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(be: Any, rng: np.random.Generator, name: str, last: bool) -> None:
    x, w, b, gy = images(rng, SHAPES[name], last)
    y, *_, gx, _, _ = check(be, batch_norm, x, w, b, gy)
    assert y.strides == gx.strides == x.astype("float32").strides


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_without_weight_or_bias(be: Any, rng: np.random.Generator, last: bool) -> None:
    x, w, b, gy = images(rng, (3, 5, 4, 6), last)
    for w_or_none, b_or_none in ((w, None), (None, b), (None, None)):
        check(be, batch_norm, x, w_or_none, b_or_none, gy)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(4, 3, 9, 11), (4, 3, 10, 12), (6, 2, 30, 31)])
def test_a_mean_far_from_zero(be: Any, rng: np.random.Generator, shape: Any, last: bool) -> None:
    """Standard deviation 1 at 1e4: a mean in one float32 would put 5e-4 into every result."""
    x, w, b, gy = images(rng, shape, last)
    check(be, batch_norm, rounded(x / 3 + 1e4), w, b, gy)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_a_first_number_far_from_the_others(be: Any, rng: np.random.Generator, last: bool) -> None:
    """What a thread, a block, or a channel begins with is no good guess of its mean."""
    x, w, b, gy = images(rng, (5, 2, 30, 31), last)
    for where in (0, slice(0, 3)):
        far = x + 1e3
        far[0, :, 0, where] = -1e4
        check(be, batch_norm, rounded(far), w, b, gy)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_channels_without_variance(be: Any, rng: np.random.Generator, last: bool) -> None:
    x, w, b, gy = images(rng, (4, 3, 7, 9), last)
    x[:, 0], x[:, 1] = 0, 1234.5625
    y, mean, var, *_ = check(be, batch_norm, x, w, b, gy)
    assert (var[:2] == 0).all()
    assert (mean[:2] == [0, 1234.5625]).all()
    assert (y[:, :2] == b[:2, None, None].astype("float32")).all()


def test_nan_and_infinity_stay_in_their_channel(be: Any, rng: np.random.Generator) -> None:
    x, w, b, gy = images(rng, (4, 4, 7, 9))
    x[2, 0, 3, 3], x[0, 1, 0, 0], x[1, 2, 2, 2] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        y, mean, *_ = check(be, batch_norm, x, w, b, gy)
    assert np.isnan(y[:, :3]).all()
    assert np.isnan(mean[:3]).all()
    assert np.isfinite(y[:, 3]).all()


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_gradients_of_any_memory_format(be: Any, rng: np.random.Generator, last: bool) -> None:
    x, w, b, gy = images(rng, (3, 4, 5, 6), last)
    for other in (np.ascontiguousarray(gy), channels_last(gy), gy[::-1], gy[:, :, :, ::-1]):
        _, _, _, gx, _, _ = check(be, batch_norm, x, w, b, other)
        assert gx.strides == x.astype("float32").strides


def test_no_gradient_of_x_where_none_is_wanted(be: Any, rng: np.random.Generator) -> None:
    x, w, b, gy = images(rng, (3, 4, 5, 6))

    def operation(be: Any, x: Any, w: Any, b: Any, gy: Any) -> Any:
        *_, saved = be.batch_norm(x, w, b, 1e-5)
        return be.batch_norm_grad(gy, w, saved, need_x=False)

    assert check(be, operation, x, w, b, gy)[0] is None


def test_views(be: Any, rng: np.random.Generator) -> None:
    """Arrays that are neither contiguous nor channels-last."""
    x, w, b, gy = images(rng, (6, 8, 5, 6))
    check(be, batch_norm, x[::2, ::2], w[::2], b[::2], gy[1::2, 1::2])


def test_float64_is_array_code(be: Any, rng: np.random.Generator) -> None:
    check(be, batch_norm, *images(rng, (3, 4, 5, 6)), dtype="float64")


def test_no_images(be: Any) -> None:
    x, w = be.asarray(np.zeros((0, 3, 2, 2), "float32")), be.asarray(np.ones(3, "float32"))
    y, mean, _, saved = be.batch_norm(x, w, None, 1e-5)
    gx, gw, _ = be.batch_norm_grad(x, w, saved)
    assert y.shape == gx.shape == x.shape
    assert mean.shape == gw.shape == (3,)


def test_what_the_kernels_take() -> None:
    single, double = np.dtype("float32"), np.dtype("float64")
    assert norm.supports((2, 3, 4), single)
    assert not norm.supports((2, 3, 4), double)
    assert not norm.supports((2, 3, 0), single)
    assert not norm.supports((2**20, 2**11), single)
    assert not norm.supports((2, 2**29), single)


@pytest.mark.parametrize(
    ("shape", "last"), [((256, 64, 112, 112), False), ((256, 64, 112, 112), True),
                        ((2**11, 1, 2**10, 2**9), False), ((2**24, 32), False), ((2, 2**29), False)]
)  # fmt: skip
def test_grids_of_large_arrays(shape: Any, last: bool) -> None:
    """Splits cover every pixel once, in a grid that a GPU takes, with no sum long in sequence."""

    class Device:
        sms = 132

    (blocks, splits, _), numbers = norm._walks(Device(), shape, last)
    assert blocks < 2**31
    assert splits < 2**16
    lanes = 1 << numbers["bits"]
    assert blocks * lanes >= shape[1]
    assert (splits - 1) * numbers["per"] < numbers["count"] <= splits * numbers["per"]
    assert numbers["per"] * lanes / norm.THREADS <= 257


def test_no_case_falls_back_to_array_code(rng: np.random.Generator) -> None:
    pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.device import EmulatedDevice

    seen: set[str] = set()
    device = EmulatedDevice(watch=lambda kernel, report: seen.add(kernel.name))
    be = CudaBackend(device, "emulated")
    for shape in ((2, 3, 4), (5, 2, 41, 43)):
        batch_norm(be, *(a.astype("float32") for a in images(rng, shape)))
    assert seen == {kernel.name for kernel in norm.kernels()}
