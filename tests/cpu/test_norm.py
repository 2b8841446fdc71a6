"""Batch norm: sizes about every width, both memory formats, numbers that lose digits."""

from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import ops
from gpuconv.autograd import Tensor
from gpuconv.cpu import CpuBackend
from gpuconv.cpu.device import DEVICE
from gpuconv.cpu.team import set_num_threads
from gpuconv.kernels.cpu import norm
from gpuconv.testing import assert_within_budget
from tests.cpu.conftest import REFERENCE, guarded
from tests.cpu.operation import check, kernels_alone
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
    "a tile and one less": (2, 2, 9, 7),
    "a tile": (2, 2, 8, 8),
    "a tile and one more": (1, 2, 5, 13),
    "three axes": (2, 3, 3, 5, 4),
    "groups of channels": (2, 45, 7, 7),
    "runs": (5, 17, 31, 31),
    "pieces of a plane": (2, 2, 65, 67),
    "parts": (3, 2, 200, 111),
    "columns of one": (90, 63, 2, 2),
    "columns, whole": (30, 64, 3, 3),
    "columns, one more": (40, 65, 3, 3),
    "blocks of columns": (40, 300, 2, 1),
    "rows in parts": (9, 24, 31, 33),
    "a tail": (7, 5, 59, 61),
}
FORMATS = pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])


@pytest.fixture
def be(isa: str) -> CpuBackend:
    """Its plans are of one instruction set."""
    return CpuBackend()


@FORMATS
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(be: Any, rng: np.random.Generator, name: str, last: bool) -> None:
    x, w, b, gy = images(rng, SHAPES[name], last)
    y, *_, gx, _, _ = check(be, batch_norm, x, w, b, gy)
    assert y.strides == gx.strides == x.astype("float32").strides


@FORMATS
@pytest.mark.parametrize("name", ["rows", "7 x 7", "three axes", "parts", "rows in parts"])
def test_float64(be: Any, rng: np.random.Generator, name: str, last: bool) -> None:
    check(be, batch_norm, *images(rng, SHAPES[name], last), dtype="float64")


@FORMATS
def test_without_weight_or_bias(be: Any, rng: np.random.Generator, last: bool) -> None:
    x, w, b, gy = images(rng, (3, 5, 4, 6), last)
    for w_or_none, b_or_none in ((w, None), (None, b), (None, None)):
        check(be, batch_norm, x, w_or_none, b_or_none, gy)


@FORMATS
@pytest.mark.parametrize("shape", [(4, 3, 9, 11), (6, 2, 30, 31), (8, 3, 180, 180)])
def test_a_mean_far_from_zero(be: Any, rng: np.random.Generator, shape: Any, last: bool) -> None:
    """Standard deviation 1 at 1e4: a mean in one float32 would put 5e-4 into every result."""
    x, w, b, gy = images(rng, shape, last)
    check(be, batch_norm, rounded(x / 3 + 1e4), w, b, gy)


@FORMATS
@pytest.mark.parametrize("shape", [(5, 2, 30, 31), (4, 2, 200, 200)])
def test_first_numbers_far_from_the_others(
    be: Any, rng: np.random.Generator, shape: Any, last: bool
) -> None:
    """What a channel or a part begins with is no good guess of its mean."""
    x, w, b, gy = images(rng, shape, last)
    for where in (0, slice(0, 3), slice(None)):
        far = x + 1e3
        far[0, :, 0, where] = -1e4
        check(be, batch_norm, rounded(far), w, b, gy)


@FORMATS
@pytest.mark.parametrize("shape", [(4, 3, 7, 9), (3, 3, 130, 130)])
def test_channels_without_variance(
    be: Any, rng: np.random.Generator, shape: Any, last: bool
) -> None:
    x, w, b, gy = images(rng, shape, last)
    x[:, 0], x[:, 1] = 0, 1234.5625
    y, mean, var, *_ = check(be, batch_norm, x, w, b, gy)
    assert (var[:2] == 0).all()
    assert (mean[:2] == [0, 1234.5625]).all()
    assert (y[:, :2] == b[:2, None, None].astype("float32")).all()


@FORMATS
@pytest.mark.parametrize("shape", [(4, 4, 7, 9), (3, 4, 130, 130)])
def test_nan_and_infinity_stay_in_their_channel(
    be: Any, rng: np.random.Generator, shape: Any, last: bool
) -> None:
    x, w, b, gy = images(rng, shape, last)
    x[2, 0, 3, 3], x[0, 1, 0, 0], x[1, 2, 2, 2] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        y, mean, *_ = check(be, batch_norm, x, w, b, gy)
    assert np.isnan(y[:, :3]).all()
    assert np.isnan(mean[:3]).all()
    assert np.isfinite(y[:, 3]).all()


@FORMATS
def test_gradients_of_any_memory_format(be: Any, rng: np.random.Generator, last: bool) -> None:
    x, w, b, gy = images(rng, (3, 4, 5, 6), last)
    for other in (np.ascontiguousarray(gy), channels_last(gy), gy[::-1], gy[:, :, :, ::-1]):
        _, _, _, gx, _, _ = check(be, batch_norm, x, w, b, other)
        assert gx.strides == x.astype("float32").strides


@FORMATS
def test_no_gradient_of_x_where_none_is_wanted(
    be: Any, rng: np.random.Generator, last: bool
) -> None:
    x, w, b, gy = images(rng, (3, 4, 5, 6), last)

    def operation(be: Any, x: Any, w: Any, b: Any, gy: Any) -> Any:
        *_, saved = be.batch_norm(x, w, b, 1e-5)
        return be.batch_norm_grad(gy, w, saved, need_x=False)

    assert check(be, operation, x, w, b, gy)[0] is None


def test_views(be: Any, rng: np.random.Generator) -> None:
    """Arrays that are neither contiguous nor channels-last."""
    x, w, b, gy = images(rng, (6, 8, 5, 6))
    check(be, batch_norm, x[::2, ::2], w[::2], b[::2], gy[1::2, 1::2])


def test_what_no_kernel_takes_is_array_code() -> None:
    be = CpuBackend()
    x, w = np.zeros((0, 3, 2, 2), "float32"), np.ones(3, "float32")
    y, mean, _, saved = be.batch_norm(x, w, None, 1e-5)
    gx, gw, _ = be.batch_norm_grad(x, w, saved)
    assert gx is not None
    assert y.shape == gx.shape == x.shape
    assert mean.shape == gw.shape == (3,)
    for kind in ("float16", ">f4"):
        x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(kind)
        both = (backend.batch_norm(x, None, None, 1e-5)[:3] for backend in (be, REFERENCE))
        for ours, theirs in zip(*both, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@FORMATS
@pytest.mark.parametrize("shape", [(2, 3, 9, 11), (2, 2, 200, 111), (9, 24, 31, 33)])
def test_nothing_beyond_results(isa: str, rng: np.random.Generator, shape: Any, last: bool) -> None:
    x, w, b, gy = (a.astype("float32") for a in images(rng, shape, last))
    for count in (1, 3):
        set_num_threads(count)
        (y, y_all), (gx, gx_all) = (guarded(shape, "float32", last) for _ in range(2))
        mean, var, gw, gb = (np.full(shape[1] + 2, np.nan, "float32") for _ in range(4))
        run = norm.forward(DEVICE, shape, "float32", last, count, 1e-5)
        stats = run(x, w, b, y, mean[1:-1], var[1:-1])
        run = norm.backward(DEVICE, shape, "float32", last, count)
        run(gy, x, stats, w, gx, gw[1:-1], gb[1:-1])
        for result, whole in ((y, y_all), (gx, gx_all)):
            assert np.isfinite(result).all()
            assert np.isfinite(whole).sum() == result.size
        for vector in (mean, var, gw, gb):
            assert np.isfinite(vector[1:-1]).all()
            assert np.isnan(vector[[0, -1]]).all()


@FORMATS
@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (6, 20)])
def test_the_operation(be: Any, rng: np.random.Generator, shape: Any, last: bool) -> None:
    """Training and evaluation by the public function, with running statistics."""
    x, w, b, gy = images(rng, shape, last and len(shape) > 2)

    def operation(backend: Any, x: Any, w: Any, b: Any, gy: Any) -> list[Any]:
        with gc.backend(backend):
            results = []
            mean, var = np.zeros_like(w), np.ones_like(w)
            for training in (True, False):
                tensors = [Tensor(a, requires_grad=True) for a in (x, w, b)]
                y = ops.batch_norm(tensors[0], mean, var, *tensors[1:], training=training)
                y.backward(gy)
                results += [y.data, *(t.grad.data for t in tensors if t.grad is not None)]
            return [*results, mean, var]

    assert len(check(be, operation, x, w, b, gy)) == 10


@pytest.mark.parametrize("name", ["rows", "7 x 7", "parts", "rows in parts"])
def test_cuts_cover_everything_once(isa: str, name: str) -> None:
    shape = SHAPES[name]
    for dtype in ("float32", "float64"):
        for threads in (1, 2, 7):
            cut = norm._planes(shape, dtype, threads)
            assert (cut["parts"] - 1) * cut["per"] < cut["pieces"] <= cut["parts"] * cut["per"]
            assert cut["pieces"] * cut["size"] >= shape[0] * int(np.prod(shape[2:]))
            _, cut, tasks = norm._rows(shape, dtype, threads)
            assert cut["V"] * cut["rows"] + cut["tail"] == int(np.prod(shape))
            assert (cut["parts"] - 1) * cut["per"] < cut["rows"] <= cut["parts"] * cut["per"]
            assert tasks[0][0] * cut["many"] >= cut["parts"]


def test_kernels_take_it(rng: np.random.Generator, monkeypatch: Any) -> None:
    x, w, b, gy = (a.astype("float32") for a in images(rng, (2, 3, 4, 5)))
    be = CpuBackend()
    truth = batch_norm(REFERENCE, *(a.astype("float64") for a in (x, w, b, gy)))
    plain = batch_norm(REFERENCE, x, w, b, gy)
    kernels_alone(be, monkeypatch, "batch_norm", "batch_norm_grad")
    for ours, p, t in zip(batch_norm(be, x, w, b, gy), plain, truth, strict=True):
        assert_within_budget(ours, p, t)
