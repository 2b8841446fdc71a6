"""What the table of problems cannot show of normalisation, activations and dropout."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import ops, random
from gpuconv.autograd import Tensor
from gpuconv.errors import ArgumentError, DeviceError, DtypeError
from gpuconv.ops.activation import erfc
from gpuconv.reference.conv import is_channels_last
from gpuconv.testing import assert_within_budget
from tests.strict import strict


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


# Running statistics.


def test_training_moves_running_statistics_in_place() -> None:
    x = np.array([[[1.0, 3.0], [5.0, 5.0]], [[2.0, 6.0], [5.0, 9.0]]])  # means 3 and 6
    mean, var = np.array([1.0, 2.0]), np.array([10.0, 20.0])
    ops.batch_norm(x, mean, var, training=True, momentum=0.25)
    np.testing.assert_allclose(mean, [0.75 * 1 + 0.25 * 3, 0.75 * 2 + 0.25 * 6], rtol=1e-15)
    unbiased = [(4 + 0 + 1 + 9) / 3, (1 + 1 + 1 + 9) / 3]
    np.testing.assert_allclose(var, 0.75 * np.array([10, 20]) + 0.25 * np.array(unbiased))


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
@pytest.mark.parametrize("op", ["batch_norm", "instance_norm"])
def test_running_statistics_agree_with_torch(
    op: str, shape: tuple[int, ...], momentum: float, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    if op == "instance_norm" and len(shape) == 2:
        shape = (6, 3, 2)
    x, mean, var = rng.standard_normal(shape), rng.standard_normal(3), rng.uniform(1, 2, 3)
    theirs = [torch.tensor(a) for a in (x, mean, var)]
    flag = {"training": True} if op == "batch_norm" else {}
    buffers = Tensor(mean), Tensor(var)
    for _ in range(2):
        y = getattr(ops, op)(x, *buffers, momentum=momentum, **flag)
        getattr(torch.nn.functional, op)(*theirs, momentum=momentum, **flag)
    assert isinstance(y, np.ndarray)  # buffers do not make a result a Tensor
    assert buffers[0].data is mean
    np.testing.assert_allclose(mean, theirs[1].numpy(), rtol=1e-12)
    np.testing.assert_allclose(var, theirs[2].numpy(), rtol=1e-12)


def test_running_statistics_stay_in_eval_and_for_an_empty_batch(rng: np.random.Generator) -> None:
    mean, var = rng.standard_normal(3), rng.uniform(1, 2, 3)
    before = mean.copy(), var.copy()
    ops.batch_norm(rng.standard_normal((4, 3)), mean, var)
    ops.instance_norm(rng.standard_normal((4, 3, 2)), mean, var, use_input_stats=False)
    ops.batch_norm(np.empty((0, 3, 2)), mean, var, training=True)
    assert ops.instance_norm(np.empty((0, 3, 2)), mean, var).shape == (0, 3, 2)
    np.testing.assert_array_equal(mean, before[0])
    np.testing.assert_array_equal(var, before[1])


def test_eval_gradient_does_not_see_buffers_that_moved(rng: np.random.Generator) -> None:
    x, mean, var = rng.standard_normal((4, 3)), np.zeros(3), np.ones(3)
    w = Tensor(np.ones(3), requires_grad=True)
    y = ops.batch_norm(x, mean, var, w, eps=0.0)
    mean += 7
    y.sum().backward()
    assert w.grad is not None
    np.testing.assert_allclose(w.grad.data, x.sum(axis=0), rtol=1e-12)


def test_running_statistics_stay_float32(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 2)).astype(np.float32)
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert ops.batch_norm(x, mean, var, training=True).dtype == np.float32
    assert (mean.dtype, var.dtype) == (np.float32, np.float32)


# Digits, and memory format.


@pytest.mark.parametrize("layout", [np.ascontiguousarray, channels_last])
def test_a_large_mean_costs_no_digits(
    layout: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> None:
    """float32 with a mean of 1e4 is as near to float64 as the same numbers about 0 are."""
    far = layout((1e4 + rng.standard_normal((16, 3, 32, 32))).astype(np.float32))
    near = far - np.float32(1e4)  # exact
    gy = rng.standard_normal(far.shape)
    for norm in (
        lambda x: ops.batch_norm(x, None, None, training=True),
        lambda x: ops.group_norm(x, 1),
        lambda x: ops.instance_norm(x),
        lambda x: ops.layer_norm(x, x.shape[1:]),
    ):
        values, grads = [], []
        for x in (far, near, far.astype(np.float64)):
            t = Tensor(x, requires_grad=True)
            y = norm(t)
            y.backward(gy.astype(x.dtype))
            assert t.grad is not None
            values.append(y.data)
            grads.append(t.grad.data)
        assert_within_budget(*values)
        assert_within_budget(*grads)


def test_eval_with_a_large_mean_costs_no_digits(rng: np.random.Generator) -> None:
    far = (1e4 + rng.standard_normal((8, 2, 5))).astype(np.float32)
    mean, var, none = np.full(2, 1e4, np.float32), np.ones(2, np.float32), np.zeros(2, np.float32)
    truth = ops.batch_norm(*(a.astype(np.float64) for a in (far, mean, var)))
    plain = ops.batch_norm(far - np.float32(1e4), none, var)
    assert_within_budget(ops.batch_norm(far, mean, var), plain, truth)


def test_float16_statistics_do_not_overflow(rng: np.random.Generator) -> None:
    x = rng.standard_normal((128, 2, 32, 32)).astype(np.float16)  # squares sum to 131072
    y = ops.batch_norm(x, None, None, training=True)
    assert y.dtype == np.float16
    truth = ops.batch_norm(x.astype(np.float64), None, None, training=True)
    assert np.abs(y - truth).max() <= 8 * np.finfo(np.float16).eps * np.abs(truth).max()


FORMATTED: dict[str, Callable[[Any], Any]] = {
    "batch": lambda x: ops.batch_norm(x, None, None, training=True),
    "batch-eval": lambda x: ops.batch_norm(x, np.zeros(4), np.ones(4)),
    "group": lambda x: ops.group_norm(x, 2, np.ones(4), np.ones(4)),
    "instance": lambda x: ops.instance_norm(x, weight=np.ones(4)),
    "local-response": lambda x: ops.local_response_norm(x, 3),
    "relu": ops.relu,
    "gelu": ops.gelu,
    "hardswish": ops.hardswish,
    "prelu": lambda x: ops.prelu(x, np.full(4, 0.1)),
    "dropout2d": lambda x: ops.dropout2d(x, 0.5),
}


@pytest.mark.parametrize("name", FORMATTED)
def test_channels_last_stays(name: str, rng: np.random.Generator) -> None:
    x = Tensor(channels_last(rng.standard_normal((2, 4, 3, 5))), requires_grad=True)
    y = FORMATTED[name](x)
    y.backward(channels_last(rng.standard_normal(y.shape)))
    assert is_channels_last(y.data)
    assert x.grad is not None
    assert is_channels_last(x.grad.data)


# Activations.

EXTREMES: list[tuple[str, Callable[[Any], Any], float, float, float, float]] = [
    # name, f, f(1e4), f(-1e4), f'(1e4), f'(-1e4)
    ("relu", ops.relu, 1e4, 0, 1, 0),
    ("relu6", ops.relu6, 6, 0, 0, 0),
    ("leaky_relu", lambda x: ops.leaky_relu(x, 0.25), 1e4, -2500, 1, 0.25),
    ("prelu", lambda x: ops.prelu(x, np.full(1, 0.25, x.dtype)), 1e4, -2500, 1, 0.25),
    ("elu", ops.elu, 1e4, -1, 1, 0),
    ("celu", lambda x: ops.celu(x, 2.0), 1e4, -2, 1, 0),
    ("silu", ops.silu, 1e4, 0, 1, 0),
    ("gelu", ops.gelu, 1e4, 0, 1, 0),
    ("gelu-tanh", lambda x: ops.gelu(x, "tanh"), 1e4, 0, 1, 0),
    ("sigmoid", ops.sigmoid, 1, 0, 0, 0),
    ("tanh", ops.tanh, 1, -1, 0, 0),
    ("softplus", ops.softplus, 1e4, 0, 1, 0),
    ("softplus-no-threshold", lambda x: ops.softplus(x, 1, math.inf), 1e4, 0, 1, 0),
    ("hardsigmoid", ops.hardsigmoid, 1, 0, 0, 0),
    ("hardswish", ops.hardswish, 1e4, 0, 1, 0),
    ("hardtanh", ops.hardtanh, 1, -1, 0, 0),
    ("mish", ops.mish, 1e4, 0, 1, 0),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("row", EXTREMES, ids=[r[0] for r in EXTREMES])
def test_extreme_inputs_give_the_limits_without_a_warning(row: Any, dtype: Any) -> None:
    _, f, high, low, slope_high, slope_low = row
    x = Tensor(np.array([1e4, -1e4], dtype), requires_grad=True)
    y = f(x)
    y.sum().backward()
    assert x.grad is not None
    assert y.dtype == x.grad.dtype == dtype
    np.testing.assert_array_equal(y.data, np.array([high, low], dtype))
    np.testing.assert_array_equal(x.grad.data, np.array([slope_high, slope_low], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("row", [*EXTREMES, ("selu", ops.selu)], ids=lambda r: r[0])
def test_nan_gives_nan_and_the_largest_numbers_no_warning(row: Any, dtype: Any) -> None:
    f, most = row[1], np.finfo(dtype).max / 8
    x = Tensor(np.array([np.nan, 1.0, most, -most], dtype), requires_grad=True)
    y = f(x)
    y.sum().backward()
    np.testing.assert_array_equal(np.isnan(y.data), [True, False, False, False])
    assert x.grad is not None
    assert not np.isnan(x.grad.data[1:]).any()


def test_gradients_at_kinks_are_torchs() -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    points, f = [-3.0, -1.0, 0.0, 1.0, 3.0, 6.0], torch.nn.functional
    peers = {n: getattr(f, n) for n in ("relu", "relu6", "leaky_relu", "elu", "selu", "celu")}
    peers |= {n: getattr(f, n) for n in ("hardtanh", "hardswish")}
    peers["hardsigmoid"] = lambda t: f.relu6(t + 3) / 6  # its own has 1/6 in float32
    for name, peer in peers.items():
        x = Tensor(np.array(points), requires_grad=True)
        getattr(ops, name)(x).sum().backward()
        t = torch.tensor(points, dtype=torch.float64, requires_grad=True)
        peer(t).sum().backward()
        assert x.grad is not None
        np.testing.assert_allclose(x.grad.data, t.grad.numpy(), rtol=1e-9, err_msg=name)


def test_relu_of_minus_zero_and_infinities() -> None:
    np.testing.assert_array_equal(ops.relu(np.array([-np.inf, np.inf, -0.0])), [0, np.inf, 0])
    np.testing.assert_array_equal(ops.sigmoid(np.array([-np.inf, np.inf])), [0, 1])
    np.testing.assert_array_equal(ops.elu(np.array([-np.inf, np.inf])), [-1, np.inf])


def test_erfc_has_full_double_precision() -> None:
    x = np.concatenate([np.linspace(-6, 26, 40001), np.linspace(-0.5, 0.5, 2001)])
    truth = np.array([math.erfc(v) for v in x])
    assert np.abs(erfc(np, x) / truth - 1).max() <= 8 * np.finfo(np.float64).eps
    limits = erfc(np, np.array([-np.inf, -40, 40, np.inf, np.nan]))
    np.testing.assert_array_equal(limits, [2, 2, 0, 0, np.nan])


def test_sigmoid_and_gelu_keep_their_digits_in_the_tail() -> None:
    x = np.array([-10.0, -20.0, -30.0])
    np.testing.assert_allclose(ops.sigmoid(x), np.exp(x) / (1 + np.exp(x)), rtol=1e-15)
    gelu = [v / 2 * math.erfc(-v / math.sqrt(2)) for v in x]
    np.testing.assert_allclose(ops.gelu(x), gelu, rtol=1e-12)


def test_log_softmax_of_masked_scores() -> None:
    x = Tensor(np.array([0.0, -np.inf, 0.0]), requires_grad=True)
    y = ops.log_softmax(x, 0)
    np.testing.assert_allclose(y.data, [-math.log(2), -np.inf, -math.log(2)], rtol=1e-15)
    y[0].backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.data, [0.5, 0, -0.5], rtol=1e-15)


# Dropout.


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(p: float) -> None:
    n = 200_000
    y = ops.dropout(np.full(n, 3.0), p)
    kept = y != 0
    np.testing.assert_allclose(y[kept], 3 / (1 - p), rtol=1e-15)
    assert abs(kept.mean() - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / n)  # five sigma


def test_dropout_gradient_has_the_same_mask(rng: np.random.Generator) -> None:
    x = Tensor(np.ones((50, 20), np.float32), requires_grad=True)
    y = ops.dropout(x, 0.75)  # a factor of 4: exact
    gy = rng.standard_normal((50, 20)).astype(np.float32)
    y.backward(gy)
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.data, gy * y.data)
    assert y.dtype == x.grad.dtype == np.float32


def test_dropout2d_drops_whole_channels() -> None:
    y = ops.dropout2d(np.ones((40, 50, 2, 3)), 0.4)
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :, :1, :1], y.shape))
    assert abs((y[:, :, 0, 0] == 0).mean() - 0.4) <= 5 * math.sqrt(0.24 / 2000)


def test_dropout_follows_the_librarys_generator() -> None:
    x = np.ones(1000)
    gc.manual_seed(5)
    first, second = ops.dropout(x), ops.dropout(x)
    assert (first != second).any()
    state = random.get_state()
    third = ops.dropout(x)
    gc.manual_seed(5)
    np.testing.assert_array_equal(ops.dropout(x), first)
    random.set_state(state)
    np.testing.assert_array_equal(ops.dropout(x), third)


@pytest.mark.parametrize("options", [{"p": 0}, {"training": False}, {"p": 1, "training": False}])
def test_dropout_that_drops_nothing_is_exact_and_draws_nothing(options: dict[str, Any]) -> None:
    x, state = np.array([1.0, np.nan, -np.inf]), random.get_state()
    np.testing.assert_array_equal(ops.dropout(x, **options), x)
    assert random.get_state() == state


def test_dropped_numbers_are_zero_even_if_infinite() -> None:
    assert set(np.abs(ops.dropout(np.full(100, np.inf)))) == {0.0, np.inf}
    np.testing.assert_array_equal(ops.dropout(np.array([1.0, np.nan, np.inf]), 1.0), [0, 0, 0])


def test_dropout_runs_as_on_a_gpu(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 5, 2, 2))
    gc.manual_seed(1)
    here = ops.dropout(x), ops.dropout2d(x, 0.3)
    gc.manual_seed(1)
    with gc.backend(gc.backends.Backend(strict, "strict")):
        there = ops.dropout(strict.asarray(x)), ops.dropout2d(strict.asarray(x), 0.3)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b.get())


# Errors.

X = np.ones((2, 4, 3))
C3, C4 = np.ones(3), np.ones(4)
ERRORS: list[tuple[str, type[Exception], Callable[[], Any]]] = [
    (r"batch_norm.*one value a channel.*\.eval\(\)", ArgumentError, lambda: train(X[:1, :, :1])),
    (r"batch_norm.*one value a channel", ArgumentError, lambda: train(C4[None])),
    (r"4 channels, but weight has the shape \(3,\)", ArgumentError, lambda: train(X, weight=C3)),
    (r"but bias has the shape \(3,\)", ArgumentError, lambda: train(X, bias=C3)),
    (r"running_mean has the shape \(3,\)", ArgumentError, lambda: ops.batch_norm(X, C3, C3)),
    (r"running_var.*\(3,\).*make it \(4,\)", ArgumentError, lambda: ops.batch_norm(X, C4, C3)),
    (r"must both be given.*training=True", ArgumentError, lambda: ops.batch_norm(X, None, None)),
    (r"must both be given", ArgumentError, lambda: ops.batch_norm(X, C4, None, training=True)),
    (r"batch_norm: the input \(4,\) must be", ArgumentError, lambda: train(C4)),
    (r"batch_norm: x is int64.*astype", DtypeError, lambda: train(X.astype(np.int64))),
    (r"dtypes are mixed", DtypeError, lambda: train(X, weight=np.ones(4, np.float32))),
    (r"mixed.*running_mean float32", DtypeError, lambda: ops.batch_norm(X, C4.astype("f"), C4)),
    (r"instance_norm.*one value a channel", ArgumentError, lambda: ops.instance_norm(X[:, :, :1])),
    (r"instance_norm.*one value a channel", ArgumentError, lambda: ops.instance_norm(X[:, :, 0])),
    (r"instance_norm.*weight", ArgumentError, lambda: ops.instance_norm(X, weight=C3)),
    (
        r"instance_norm.*both be given, or set use_input_stats=True",
        ArgumentError,
        lambda: ops.instance_norm(X, use_input_stats=False),
    ),
    (r"instance_norm.*both be given, or neither", ArgumentError, lambda: ops.instance_norm(X, C4)),
    (r"num_groups=3 does not divide the 4 channels", ArgumentError, lambda: ops.group_norm(X, 3)),
    (r"num_groups=0 must be at least 1", ArgumentError, lambda: ops.group_norm(X, 0)),
    (r"group_norm.*weight.*\(3,\)", ArgumentError, lambda: ops.group_norm(X, 2, C3)),
    (r"group_norm.*one value a group", ArgumentError, lambda: ops.group_norm(X[:1, :, :1], 4)),
    (r"does not end in normalized_shape=\(4,\)", ArgumentError, lambda: ops.layer_norm(X, 4)),
    (r"does not end in normalized_shape=\(\)", ArgumentError, lambda: ops.layer_norm(X, ())),
    (r"layer_norm: weight.*\(4,\).*\(3,\)", ArgumentError, lambda: ops.layer_norm(X, 3, C4)),
    (r"layer_norm: bias", ArgumentError, lambda: ops.layer_norm(X, (4, 3), None, C3)),
    (r"size=0 must be at least 1", ArgumentError, lambda: ops.local_response_norm(X, 0)),
    (r"at least one spatial", ArgumentError, lambda: ops.local_response_norm(X[:, :, 0], 3)),
    (r"relu: x is int64", DtypeError, lambda: ops.relu(np.arange(3))),
    (r"relu6: x is bool", DtypeError, lambda: ops.relu6(np.ones(3, bool))),
    (r"prelu: the weight \(3,\) must be \(1,\) or \(4,\)", ArgumentError, lambda: ops.prelu(X, C3)),
    (r"prelu.*\(1,\) or \(1,\)", ArgumentError, lambda: ops.prelu(C4, C4)),
    (r"prelu: dtypes are mixed", DtypeError, lambda: ops.prelu(X, np.ones(1, np.float32))),
    (r"celu: alpha=0 must be positive", ArgumentError, lambda: ops.celu(X, 0)),
    (r"softplus: beta=0", ArgumentError, lambda: ops.softplus(X, 0)),
    (r"hardtanh: min_val=2 must not exceed", ArgumentError, lambda: ops.hardtanh(X, 2, 1)),
    (r"approximate='fast' is unknown", ArgumentError, lambda: ops.gelu(X, "fast")),
    (r"softmax: dim=3 is no axis of shape \(2, 4, 3\)", ArgumentError, lambda: ops.softmax(X, 3)),
    (r"log_softmax: dim=-4 is no axis", ArgumentError, lambda: ops.log_softmax(X, -4)),
    (r"dropout: p=1.5 is no probability", ArgumentError, lambda: ops.dropout(X, 1.5)),
    (r"dropout: p=-0.1", ArgumentError, lambda: ops.dropout(X, -0.1, training=False)),
    (r"dropout2d: p=nan", ArgumentError, lambda: ops.dropout2d(X, math.nan)),
    (r"dropout2d: the input \(4,\) must be", ArgumentError, lambda: ops.dropout2d(C4)),
    (r"dropout: x is int64", DtypeError, lambda: ops.dropout(np.arange(3))),
]


def train(x: np.ndarray, **vectors: Any) -> Any:
    return ops.batch_norm(x, None, None, training=True, **vectors)


@pytest.mark.parametrize(("message", "kind", "call"), ERRORS, ids=[e[0] for e in ERRORS])
def test_errors_say_what_is_wrong(
    message: str, kind: type[Exception], call: Callable[[], Any]
) -> None:
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_running_statistics_on_another_device_are_refused() -> None:
    with (
        gc.backend(gc.backends.Backend(strict, "strict")),
        pytest.raises(DeviceError, match="mixed"),
    ):
        ops.batch_norm(strict.asarray(X), C4, C4)
