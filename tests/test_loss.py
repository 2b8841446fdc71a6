"""What the table of problems cannot show of losses: exact values, bad labels, errors, extremes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import ops
from gpuconv.autograd import Tensor
from gpuconv.backends import Backend
from gpuconv.errors import ArgumentError, DeviceError, DtypeError
from tests.strict import strict


def gradient(loss: Callable[[Any], Any], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value and the gradient of a loss of x."""
    t = Tensor(x, requires_grad=True)
    y = loss(t)
    y.sum().backward()
    assert t.grad is not None
    return y.data, t.grad.data


def test_cross_entropy_of_equal_scores_is_the_logarithm_of_the_classes() -> None:
    target = np.array([0, 3])
    y, g = gradient(lambda x: ops.cross_entropy(x, target), np.zeros((2, 4)))
    assert y == pytest.approx(math.log(4), rel=1e-15)
    np.testing.assert_allclose(g, [[-0.375, 0.125, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]])


def test_mean_counts_by_the_weights_of_the_labels() -> None:
    x, w = -np.array([[1.0, 9], [9, 2], [9, 4]]), np.array([3.0, 1.0])
    y = ops.nll_loss(x, np.array([0, 1, 1]), w)
    assert y == pytest.approx((3 * 1 + 2 + 4) / 5, rel=1e-15)


def test_one_hot_probabilities_equal_labels(rng: np.random.Generator) -> None:
    x, target = rng.standard_normal((5, 3, 2)), rng.integers(0, 3, (5, 2))
    one_hot = np.eye(3)[target].transpose(0, 2, 1)
    for smoothing in (0.0, 0.3):
        np.testing.assert_allclose(
            ops.cross_entropy(x, one_hot, label_smoothing=smoothing, reduction="none"),
            ops.cross_entropy(x, target, label_smoothing=smoothing, reduction="none"),
            rtol=1e-12,
        )


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_labels_may_be_any_integers(dtype: str, rng: np.random.Generator) -> None:
    x, target = rng.standard_normal((4, 3)), np.array([2, 0, 1, 2])
    expected = ops.cross_entropy(x, target)
    np.testing.assert_array_equal(ops.cross_entropy(x, target.astype(dtype)), expected)
    np.testing.assert_array_equal(ops.cross_entropy(x, Tensor(target.astype(dtype))), expected)


def test_a_label_outside_may_be_ignored(rng: np.random.Generator) -> None:
    """A border's label 255, say; the scores of an ignored position may be masked ones."""
    x = rng.standard_normal((3, 4))
    target = np.array([1, 255, 2], np.uint8)
    expected, g_expected = gradient(lambda x: ops.cross_entropy(x, target[[0, 2]]), x[[0, 2]])
    x[1, 0] = -np.inf
    y, g = gradient(lambda x: ops.cross_entropy(x, target, ignore_index=255), x)
    np.testing.assert_allclose(y, expected, rtol=1e-15)
    np.testing.assert_allclose(g[[0, 2]], g_expected, rtol=1e-12)
    np.testing.assert_array_equal(g[1], 0)


@pytest.mark.parametrize("op", [ops.cross_entropy, ops.nll_loss])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_counted_gives_nan_without_a_warning(op: Any, dtype: Any) -> None:
    x, target = np.zeros((2, 3), dtype), np.array([-100, -100])
    y, g = gradient(lambda x: op(x, target), x)
    assert np.isnan(y)
    assert y.dtype == g.dtype == dtype
    np.testing.assert_array_equal(g, 0)
    assert op(x, target, reduction="sum") == 0
    np.testing.assert_array_equal(op(x, target, reduction="none"), 0)
    assert np.isnan(op(x, np.array([1, 1]), np.array([1, 0, 1], dtype)))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_of_masked_and_of_far_scores(label_smoothing: float) -> None:
    if not label_smoothing:
        y, g = gradient(
            lambda x: ops.cross_entropy(x, np.array([0])), np.array([[0.0, -np.inf, 0.0]])
        )
        assert y == pytest.approx(math.log(2), rel=1e-15)
        np.testing.assert_allclose(g, [[-0.5, 0, 0.5]], rtol=1e-15)
    for dtype in (np.float32, np.float64):
        far = np.array([[1e4, -1e4], [1e4, -1e4]], dtype)
        y, g = gradient(
            lambda x: ops.cross_entropy(
                x, np.array([0, 1]), reduction="none", label_smoothing=label_smoothing
            ),
            far,
        )
        s = label_smoothing / 2
        np.testing.assert_allclose(y, [2e4 * s, 2e4 * (1 - s)], rtol=1e-6)
        np.testing.assert_allclose(g, [[s, -s], [1 - s, s - 1]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_with_far_logits(dtype: Any) -> None:
    x = np.array([1e4, -1e4, 1e4, -1e4, 50, -50], dtype)
    target = np.array([1, 0, 0, 1, 1, 0], dtype)
    y, g = gradient(lambda x: ops.binary_cross_entropy_with_logits(x, target, reduction="none"), x)
    small = math.exp(-50)
    np.testing.assert_allclose(y, [0, 0, 1e4, 1e4, small, small], rtol=1e-6)
    np.testing.assert_allclose(g, [0, 0, 1, -1, -small, small], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_at_the_ends_is_cut_off(dtype: Any) -> None:
    x, target = np.array([0, 1, 0, 1], dtype), np.array([0, 1, 1, 0], dtype)
    y, g = gradient(lambda x: ops.binary_cross_entropy(x, target, reduction="none"), x)
    np.testing.assert_array_equal(y, [0, 0, 100, 100])
    np.testing.assert_allclose(g, [0, 0, -1e12, 1e12], rtol=1e-6)
    t = Tensor(target, requires_grad=True)
    ops.binary_cross_entropy(x, t, reduction="sum").backward()
    assert t.grad is not None
    np.testing.assert_array_equal(t.grad.data, [100, -100, 100, -100])


def test_equal_numbers_have_no_gradient() -> None:
    x = np.array([1.0, -2.0])
    for op in (ops.mse_loss, ops.l1_loss, ops.smooth_l1_loss, ops.huber_loss):
        y, g = gradient(lambda t, op=op: op(t, x), x)
        assert y == 0
        np.testing.assert_array_equal(g, 0)


def test_kl_div_of_no_probability_is_nothing() -> None:
    y, g = gradient(
        lambda x: ops.kl_div(x, np.array([0.0, 0.5]), "none"), np.array([-1.0, math.log(0.5)])
    )
    np.testing.assert_array_equal(y, [0, 0])
    np.testing.assert_array_equal(g, [0, -0.5])
    assert np.isnan(ops.kl_div(np.zeros(1), np.array([-0.5])))
    _, g = gradient(lambda t: ops.kl_div(np.zeros(2), t, "sum"), np.array([0.0, 1.0]))
    np.testing.assert_array_equal(g, [np.nan, 1])  # as in torch: the logarithm's slope is not there


def test_the_kernel_seam_ignores_and_weights(rng: np.random.Generator) -> None:
    """`Backend.softmax_cross_entropy` alone, as a kernel has to do it."""
    be = Backend(np, "numpy")
    x, target, w = rng.standard_normal((4, 3)), np.array([0, 7, 2, 1]), np.array([1.0, 2.0, 4.0])
    loss, saved = be.softmax_cross_entropy(x, target, w, 7, 0.0)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    expected = [-log_p[0, 0], 0, -4 * log_p[2, 2], -2 * log_p[3, 1]]
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    g = np.array([1.0, 1.0, 0.0, 3.0])
    gx = be.softmax_cross_entropy_grad(g, saved, target, w, 7, 0.0)
    one_hot = np.eye(3)[[0, 0, 2, 1]]
    scale = (g * [1, 0, 4, 2])[:, None]
    np.testing.assert_allclose(gx, scale * (np.exp(log_p) - one_hot), rtol=1e-12, atol=0)


# Errors.

X, D = np.zeros((4, 3)), np.zeros((2, 3, 2))
L = np.array([0, 1, 2, 0])
FAR = np.array([0, 1, 3, 9])
T = Tensor(np.ones(3), requires_grad=True)
HALF = np.full((4, 3), 0.5)
bce, logits = ops.binary_cross_entropy, ops.binary_cross_entropy_with_logits
ERRORS: list[tuple[str, type[Exception], Callable[[], Any]]] = [
    (
        r"cross_entropy: label 3 at \(2,\) is out of range 0\.\.2 for 3 classes.*ignore_index=3",
        ArgumentError,
        lambda: ops.cross_entropy(X, FAR),
    ),
    (r"label -1 at \(1,\)", ArgumentError, lambda: ops.cross_entropy(X, L - 2 * (L == 1))),
    (r"label -100 at \(0,\)", ArgumentError, lambda: ops.cross_entropy(X, L - 100, None, 5)),
    (r"nll_loss: label 3 at \(2,\)", ArgumentError, lambda: ops.nll_loss(X, FAR)),
    (
        r"label 4 at \(1, 0\)",
        ArgumentError,
        lambda: ops.cross_entropy(D, np.array([[0, 1], [4, 5]])),
    ),
    (
        r"labels are float64.*astype\('int64'\)",
        DtypeError,
        lambda: ops.cross_entropy(X, L.astype(np.float64)),
    ),
    (r"nll_loss: labels are float32", DtypeError, lambda: ops.nll_loss(X, L.astype("f"))),
    (r"nll_loss: labels are float64", DtypeError, lambda: ops.nll_loss(X, HALF)),
    (r"labels are bool", DtypeError, lambda: ops.cross_entropy(X, L > 1)),
    (r"labels \(3,\) for x \(4, 3\) must be \(4,\)", ArgumentError, lambda: ops.nll_loss(X, L[:3])),
    (r"labels \(4,\).*must be \(2, 2\)", ArgumentError, lambda: ops.cross_entropy(D, L)),
    (
        r"labels \(4, 3\).*argmax",
        ArgumentError,
        lambda: ops.cross_entropy(X, np.eye(3, dtype=int)[L]),
    ),
    (r"wrap lists", DtypeError, lambda: ops.cross_entropy(X, [0, 1, 2, 0])),
    (r"x \(3,\) must be \(N, C\)", ArgumentError, lambda: ops.cross_entropy(X[0], L[:1])),
    (r"x \(3,\) must be \(N, C\)", ArgumentError, lambda: ops.cross_entropy(X[0], X[0])),
    (r"x is int64", DtypeError, lambda: ops.cross_entropy(X.astype(int), L)),
    (r"weight \(4,\) must be \(3,\)", ArgumentError, lambda: ops.cross_entropy(X, L, np.ones(4))),
    (r"weight \(4,\) must be \(3,\)", ArgumentError, lambda: ops.cross_entropy(X, X, np.ones(4))),
    (r"mixed.*weight float32", DtypeError, lambda: ops.cross_entropy(X, L, np.ones(3, "f"))),
    (r"weight is not differentiable", ArgumentError, lambda: ops.cross_entropy(X, L, T)),
    (r"label_smoothing=1.5", ArgumentError, lambda: ops.cross_entropy(X, L, label_smoothing=1.5)),
    (
        r"label_smoothing=nan",
        ArgumentError,
        lambda: ops.cross_entropy(X, L, label_smoothing=math.nan),
    ),
    (
        r"probabilities \(4, 2\) must have the shape of x, \(4, 3\)",
        ArgumentError,
        lambda: ops.cross_entropy(X, HALF[:, :2]),
    ),
    (
        r"mixed \(x float64, target float32\)",
        DtypeError,
        lambda: ops.cross_entropy(X, HALF.astype("f")),
    ),
    (r"ignore_index=2 is for labels", ArgumentError, lambda: ops.cross_entropy(X, HALF, None, 2)),
    (r"mse_loss: x \(4, 3\) and target \(4, 1\)", ArgumentError, lambda: ops.mse_loss(X, X[:, :1])),
    (r"l1_loss: x \(4, 3\) and target \(3,\)", ArgumentError, lambda: ops.l1_loss(X, X[0])),
    (r"smooth_l1_loss: x.*differ", ArgumentError, lambda: ops.smooth_l1_loss(X[:1], X)),
    (r"huber_loss: x.*differ", ArgumentError, lambda: ops.huber_loss(X, D)),
    (r"kl_div: x.*differ", ArgumentError, lambda: ops.kl_div(X, X[:1])),
    (r"logits: x \(4, 1\).*differ", ArgumentError, lambda: logits(X[:, :1], X[:, 0])),
    (r"binary_cross_entropy: x.*differ", ArgumentError, lambda: bce(HALF, HALF[0])),
    (r"mse_loss: dtypes are mixed", DtypeError, lambda: ops.mse_loss(X, X.astype("f"))),
    (r"mse_loss: target is int64", DtypeError, lambda: ops.mse_loss(X, X.astype(int))),
    (r"beta=-1 must not be negative", ArgumentError, lambda: ops.smooth_l1_loss(X, X, beta=-1)),
    (r"delta=0 must be positive", ArgumentError, lambda: ops.huber_loss(X, X, delta=0)),
    (
        r"x is 1.5 at \(3, 0\), but must be in 0\.\.1",
        ArgumentError,
        lambda: bce(HALF + (np.arange(12).reshape(4, 3) == 9), HALF),
    ),
    (r"x is nan at \(0, 0\)", ArgumentError, lambda: bce(HALF * np.nan, HALF)),
    (r"weight \(4,\) does not broadcast", ArgumentError, lambda: bce(HALF, HALF, np.ones(4))),
    (
        r"pos_weight \(2, 4, 3\) does not",
        ArgumentError,
        lambda: logits(X, X, None, np.ones((2, 4, 3))),
    ),
    (r"mixed.*pos_weight float32", DtypeError, lambda: logits(X, X, None, np.ones(3, "f"))),
    (r"pos_weight is not differentiable", ArgumentError, lambda: logits(X, X, pos_weight=T)),
]


@pytest.mark.parametrize(("message", "kind", "call"), ERRORS, ids=[e[0] for e in ERRORS])
def test_errors_say_what_is_wrong(
    message: str, kind: type[Exception], call: Callable[[], Any]
) -> None:
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "op",
    [
        "cross_entropy",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "kl_div",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
    ],
)
def test_an_unknown_reduction_is_refused(op: str) -> None:
    f = getattr(ops, op)
    with pytest.raises(ArgumentError, match=rf"{op}: reduction='avg' is unknown.*'mean'"):
        f(HALF, HALF, reduction="avg")
    if op != "kl_div":
        with pytest.raises(ArgumentError, match="batchmean"):
            f(HALF, HALF, reduction="batchmean")


def test_bad_labels_on_a_device_are_found_too() -> None:
    with gc.backend(Backend(strict, "strict")):
        with pytest.raises(ArgumentError, match=r"label 3 at \(2,\)"):
            ops.cross_entropy(strict.asarray(X), strict.asarray(FAR))
        with pytest.raises(ArgumentError, match=r"x is 1\.5 at \(0, 0\)"):
            bce(strict.asarray(HALF + 1), strict.asarray(HALF))
        with pytest.raises(DeviceError, match="mixed"):
            ops.cross_entropy(strict.asarray(X), L)
        with pytest.raises(DeviceError, match="mixed"):
            ops.cross_entropy(strict.asarray(X), HALF)
