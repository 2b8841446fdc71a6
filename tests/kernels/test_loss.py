"""Softmax cross entropy: classes about every width, weights, smoothing, ignored labels, limits."""

from typing import Any

import numpy as np
import pytest

from gpuconv.kernels.cuda import loss
from tests.kernels.conftest import check
from tests.operations import cross_entropy, scores


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 10, 31, 32, 33, 127, 128, 129, 1000])
def test_rows_of_classes(be: Any, rng: np.random.Generator, classes: int) -> None:
    for n in (1, 7, 33):
        x, target, w, g = scores(rng, (n, classes))
        check(be, cross_entropy, x, target, None, g, -100, 0.0)
        check(be, cross_entropy, x, target, w, g, -100, 0.1)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
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
        return cross_entropy(be, x, target, w, be.xp.broadcast_to(g, target.shape), -100, 0.1)

    check(be, operation, x, target, w, np.array(0.37))
    check(be, operation, x, target, w, g[:1])


def test_views(be: Any, rng: np.random.Generator) -> None:
    """Arrays that are neither contiguous nor channels-last."""
    x, target, w, g = scores(rng, (6, 8, 5, 6))
    target = target // 2
    check(be, cross_entropy, x[::2, ::2], target[::2], w[::2], g[1::2], -100, 0.1)
    check(be, cross_entropy, x[:, ::2, ::2], target[:, ::2], w[1::2], g[:, ::2], -100, 0.1)


def test_float64_is_array_code(be: Any, rng: np.random.Generator) -> None:
    x, target, w, g = scores(rng, (4, 5, 2, 3))
    check(be, cross_entropy, x, target, w, g, -100, 0.1, dtype="float64")


def test_no_positions_and_no_classes(be: Any) -> None:
    for shape in ((0, 3), (2, 3, 0), (0, 0)):
        x = be.asarray(np.zeros(shape, "float32"))
        target = be.asarray(np.zeros((shape[0], *shape[2:]), "int64"))
        losses, gx = cross_entropy(be, x, target, None, target.astype("float32"), -100, 0.0)
        assert losses.shape == target.shape
        assert gx.shape == shape


def test_what_the_kernels_take() -> None:
    single = np.dtype("float32")
    assert loss.supports((2, 3, 4), single)
    assert not loss.supports((2, 3, 4), np.dtype("float64"))
    assert not loss.supports((2, 0, 4), single)
    assert not loss.supports((2**26, 2), single)


def test_no_case_falls_back_to_array_code(rng: np.random.Generator) -> None:
    pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.device import EmulatedDevice

    seen: set[str] = set()
    device = EmulatedDevice(watch=lambda kernel, report: seen.add(kernel.name))
    be = CudaBackend(device, "emulated")
    x, target, w, g = scores(rng, (2, 3, 4))
    x, w, g = (a.astype("float32") for a in (x, w, g))
    cross_entropy(be, x, target, w, g, -100, 0.1)
    assert seen == {kernel.name for kernel in loss.kernels()}
