"""Initialisers: the distributions they promise, and the same ones as PyTorch's in layers."""

from math import erf, exp, pi, sqrt
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import nn
from gpuconv.errors import ArgumentError
from gpuconv.nn import init

SHAPE = (128, 64, 3, 3)  # 73,728 numbers: a standard deviation is known to a third of a per cent


def filled(fill: Any, *args: Any, shape: tuple[int, ...] = SHAPE, **options: Any) -> np.ndarray:
    parameter = nn.Parameter(np.zeros(shape, np.float32))
    assert fill(parameter, *args, **options) is parameter
    assert parameter.dtype == np.float32
    assert parameter.shape == shape
    return parameter.data.astype(np.float64)


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Kolmogorov's distance of the distribution; 2 / sqrt(n) is exceeded once in 1,500 seeds."""
    assert low <= values.min()
    assert values.max() <= high * (1 + 1e-6) if high > 0 else True
    ordered = np.sort(values, axis=None)
    expected = (ordered - low) / (high - low)
    distance = np.abs(expected - (np.arange(ordered.size) + 0.5) / ordered.size).max()
    assert distance < 2 / sqrt(ordered.size)


def assert_normal(values: np.ndarray, mean: float, std: float) -> None:
    ordered = np.sort(values, axis=None)
    expected = np.array([0.5 * (1 + erf((v - mean) / (std * sqrt(2)))) for v in ordered[::7]])
    ranks = (np.arange(ordered.size) + 0.5)[::7] / ordered.size
    assert np.abs(expected - ranks).max() < 2 / sqrt(ordered.size)


def test_constants() -> None:
    assert (filled(init.zeros_) == 0).all()
    assert (filled(init.ones_) == 1).all()
    assert (filled(init.constant_, 2.5) == 2.5).all()


def test_uniform_and_normal() -> None:
    assert_uniform(filled(init.uniform_), 0, 1)
    assert_uniform(filled(init.uniform_, -3, 5), -3, 5)
    assert_normal(filled(init.normal_), 0, 1)
    assert_normal(filled(init.normal_, 2, 0.5), 2, 0.5)


def test_xavier() -> None:
    fan_in, fan_out = 64 * 9, 128 * 9
    bound = sqrt(6 / (fan_in + fan_out))
    assert_uniform(filled(init.xavier_uniform_), -bound, bound)
    assert_uniform(filled(init.xavier_uniform_, gain=2), -2 * bound, 2 * bound)
    assert_normal(filled(init.xavier_normal_, gain=0.5), 0, 0.5 * sqrt(2 / (fan_in + fan_out)))


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 64 * 9), ("fan_out", 128 * 9)])
@pytest.mark.parametrize(
    ("nonlinearity", "a", "gain"),
    [
        ("relu", 0, sqrt(2)),
        ("leaky_relu", 0.3, sqrt(2 / 1.09)),
        ("linear", 0, 1),
        ("tanh", 0, 5 / 3),
    ],
)
def test_kaiming(mode: str, fan: int, nonlinearity: str, a: float, gain: float) -> None:
    bound = gain * sqrt(3 / fan)
    uniform = filled(init.kaiming_uniform_, a, mode=mode, nonlinearity=nonlinearity)
    assert_uniform(uniform, -bound, bound)
    normal = filled(init.kaiming_normal_, a, mode=mode, nonlinearity=nonlinearity)
    assert_normal(normal, 0, gain / sqrt(fan))


@pytest.mark.parametrize(("mean", "std", "a", "b"), [(0, 1, -2, 2), (0.5, 0.2, 0.4, 1.5)])
def test_trunc_normal(mean: float, std: float, a: float, b: float) -> None:
    values = filled(init.trunc_normal_, mean, std, a, b)
    assert np.float32(a) <= values.min()
    assert values.max() <= np.float32(b)
    # The mean of a truncated normal, from its density at the two ends.
    low, high = (a - mean) / std, (b - mean) / std
    density = [exp(-t * t / 2) / sqrt(2 * pi) for t in (low, high)]
    inside = 0.5 * (erf(high / sqrt(2)) - erf(low / sqrt(2)))
    expected = mean + std * (density[0] - density[1]) / inside
    assert abs(values.mean() - expected) < 4 * std / sqrt(values.size)


@pytest.mark.parametrize("shape", [(8, 8), (6, 3, 2, 2), (20, 2, 3), (1, 5)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(np.zeros(shape, np.float64))
    init.orthogonal_(parameter, gain=1.5)
    q = parameter.data.reshape(shape[0], -1) / 1.5
    product = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-14)


def test_orthogonal_signs_are_drawn_evenly() -> None:
    signs = [filled(init.orthogonal_, shape=(2, 2))[0, 0] > 0 for _ in range(400)]
    assert 140 < sum(signs) < 260


def test_eye_and_dirac() -> None:
    np.testing.assert_array_equal(filled(init.eye_, shape=(2, 3)), [[1, 0, 0], [0, 1, 0]])
    for nd in (1, 2, 3):
        x = np.random.default_rng(0).standard_normal((1, 4, *(5,) * nd)).astype(np.float32)
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[nd - 1](4, 4, 3, padding=1, bias=False)
        init.dirac_(layer.weight)
        np.testing.assert_array_equal(layer(x).numpy(), x)
        grouped = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[nd - 1](4, 4, 3, 1, 1, groups=2, bias=False)
        init.dirac_(grouped.weight, groups=2)
        np.testing.assert_array_equal(grouped(x).numpy(), x)


def test_gains_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    for name in (*init._GAINS, "leaky_relu"):
        assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name), 1e-15)
    assert init.calculate_gain("leaky_relu", 0.2) == torch.nn.init.calculate_gain("leaky_relu", 0.2)


@pytest.mark.parametrize(
    ("fill", "args", "shape", "message"),
    [
        (init.calculate_gain, ("swish",), None, "nonlinearity='swish', use one of linear, conv1d"),
        (init.kaiming_normal_, (0, "fan"), (2, 2), "mode='fan' is unknown; use 'fan_in'"),
        (init.kaiming_uniform_, (), (2,), r"shape \(2,\) must have at least 2 axes"),
        (init.xavier_normal_, (), (0, 2), r"shape \(0, 2\) must have at least 2 axes, none of"),
        (init.orthogonal_, (), (3,), r"orthogonal_: shape \(3,\)"),
        (init.eye_, (), (2, 2, 2), r"eye_: shape \(2, 2, 2\) must have two axes"),
        (init.dirac_, (), (2, 2), r"dirac_: shape \(2, 2\) must have 3, 4 or 5 axes"),
        (init.dirac_, (2,), (3, 2, 1), "dirac_: groups=2 must divide the 3 output channels"),
        (init.trunc_normal_, (0, 1, 9, 10), (2,), "a=9 to b=10 holds .* widen it"),
    ],
)
def test_refusals(fill: Any, args: Any, shape: Any, message: str) -> None:
    first = () if shape is None else (nn.Parameter(np.zeros(shape, np.float32)),)
    with pytest.raises(ArgumentError, match=message):
        fill(*first, *args)


def test_a_seed_gives_the_same_numbers_in_both_precisions() -> None:
    gc.manual_seed(5)
    single = nn.Conv2d(3, 4, 3)
    gc.manual_seed(5)
    double = nn.Conv2d(3, 4, 3, dtype=np.float64)
    np.testing.assert_array_equal(single.weight.data, double.weight.data.astype(np.float32))
    assert double.weight.dtype == np.float64


def test_filling_leaves_shared_arrays_alone() -> None:
    array = np.zeros((2, 2), np.float32)
    init.ones_(nn.Parameter(array))
    assert (array == 0).all()


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (lambda: nn.Conv1d(64, 128, 5, groups=2), 32 * 5),
        (lambda: nn.Conv2d(32, 128, (3, 5)), 32 * 15),
        (lambda: nn.Conv3d(16, 64, 3), 16 * 27),
        (lambda: nn.ConvTranspose2d(64, 128, 3), 128 * 9),
        (lambda: nn.ConvTranspose1d(128, 128, 3, groups=2), 64 * 3),
        (lambda: nn.Linear(200, 300), 200),
    ],
)
def test_layers_start_uniform_within_one_over_the_root_of_fan_in(layer: Any, fan_in: int) -> None:
    bound = 1 / sqrt(fan_in)
    made = layer()
    assert_uniform(made.weight.data.astype(np.float64), -bound, bound)
    assert_uniform(made.bias.data.astype(np.float64), -bound, bound)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "Linear"])
def test_layers_start_as_in_torch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    arguments = (64, 96) if name == "Linear" else (64, 96, 3)
    ours, peer = getattr(nn, name)(*arguments), getattr(torch.nn, name)(*arguments)
    for key, theirs in peer.state_dict().items():
        mine = ours.state_dict()[key]
        for q in (0, 0.25, 0.75, 1):
            a, b = np.quantile(mine, q), np.quantile(theirs.numpy(), q)
            spread = theirs.numpy().max()
            assert abs(a - b) < 6 * spread / sqrt(mine.size), (key, q)
