"""Elementwise kernels against array code: values, NaN, memory formats, every tail."""

from typing import Any

import numpy as np
import pytest

from gpuconv.autograd import Tensor
from gpuconv.backends import backend
from gpuconv.cpu import CpuBackend, activation as cpu_activation
from gpuconv.cpu.device import DEVICE
from gpuconv.cpu.team import set_num_threads
from gpuconv.kernels.cpu import activation
from gpuconv.ops.activation import relu
from gpuconv.reference.conv import is_channels_last
from tests.cpu.conftest import REFERENCE, guarded, numbers
from tests.operations import channels_last

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0)
SIZES = [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1023, 1025]


def mixed(seed: int, *shape: int) -> Any:
    """Numbers with NaN, infinities and zeros of both signs among them."""
    x = numbers(seed, *shape)
    x.flat[:: max(x.size // 50, 1)] = np.resize(SPECIAL, len(x.flat[:: max(x.size // 50, 1)]))
    return x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_length(monkeypatch: pytest.MonkeyPatch, isa: str, dtype: str) -> None:
    be = CpuBackend()
    monkeypatch.setattr(cpu_activation, "FEW", 0)
    for size in SIZES:
        x, gy = mixed(0, size).astype(dtype), mixed(1, size).astype(dtype)
        y = be.relu(x)
        np.testing.assert_array_equal(y, REFERENCE.relu(x))
        np.testing.assert_array_equal(be.relu_grad(gy, y), REFERENCE.relu_grad(gy, y))
        np.testing.assert_array_equal(be.add(x, gy), x + gy)
        assert y.dtype == dtype


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_several_tasks(monkeypatch: pytest.MonkeyPatch, isa: str, stream: bool, count: int) -> None:
    """Also of results written past the caches; nothing around them is."""
    monkeypatch.setattr(activation, "STREAM", 0 if stream else 1 << 40)
    monkeypatch.setattr(activation, "CACHED", 1 << 18)
    set_num_threads(count)
    for size in (activation.SEVERAL - 1, activation.SEVERAL + 1, 3 * activation.CHUNK + 5):
        a, b = mixed(0, size).astype(np.float32), mixed(1, size).astype(np.float32)
        y = DEVICE.empty((size,), np.float32)
        for op, expected in (
            ("relu", REFERENCE.relu(a)),
            ("relu_grad", REFERENCE.relu_grad(a, b)),
            ("add", a + b),
        ):
            run = activation.elementwise(DEVICE, op, size - 64, "float32", count)
            y[...] = 7
            run(a, None if op == "relu" else b, y)
            np.testing.assert_array_equal(y[:-64], expected[:-64])
            assert (y[-64:] == 7).all()


def test_nothing_else_is_written(isa: str) -> None:
    for size in SIZES:
        x = numbers(0, 1, size).astype(np.float32)
        y, whole = guarded((1, size), "float32", False)
        activation.elementwise(DEVICE, "relu", size, "float32", 1)(x, None, y)
        assert np.isnan(whole).sum() == whole.size - size


@pytest.mark.parametrize("form", [np.ascontiguousarray, channels_last], ids=["nchw", "last"])
def test_memory_formats(monkeypatch: pytest.MonkeyPatch, form: Any) -> None:
    be = CpuBackend()
    monkeypatch.setattr(cpu_activation, "FEW", 0)
    x, gy = (form(mixed(i, 2, 5, 7, 9).astype(np.float32)) for i in range(2))
    y = be.relu(x)
    gx = be.relu_grad(gy, y)
    for result in (y, gx, be.add(x, gy)):
        assert is_channels_last(result) == is_channels_last(x)
    np.testing.assert_array_equal(y, REFERENCE.relu(x))
    np.testing.assert_array_equal(gx, REFERENCE.relu_grad(gy, y))
    # A gradient that lies otherwise: it is y whose format counts.
    for other in (channels_last(gy), np.ascontiguousarray(gy), np.broadcast_to(gy[:1], gy.shape)):
        gx = be.relu_grad(other, y)
        np.testing.assert_array_equal(gx, REFERENCE.relu_grad(other, y))
        assert is_channels_last(gx) == is_channels_last(y)
        np.testing.assert_array_equal(be.add(x, other), x + other)


@pytest.mark.parametrize(
    "x",
    [np.arange(-6.0, 6).astype("float16"), np.arange(-6.0, 6)[::2], np.zeros((0, 3)),
     np.arange(-6.0, 6).astype(">f4"), np.arange(-6.0, 6).reshape(3, 4).T, np.array(-1.0)],
    ids=["float16", "strided", "empty", "big-endian", "transposed", "no axes"],
)  # fmt: skip
def test_array_code_takes_the_rest(x: Any) -> None:
    be = CpuBackend()
    y = be.relu(x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(be.relu_grad(x, np.asarray(y)), np.where(y <= 0, 0, x))
    np.testing.assert_array_equal(be.add(x, x), x + x)


def test_the_operation_uses_them() -> None:
    x = numbers(0, 2, 3, 4, 5).astype(np.float32)
    with backend(CpuBackend()):
        t = Tensor(x, requires_grad=True)
        y = relu(t)
        y.sum().backward()
    np.testing.assert_array_equal(y.data, np.maximum(x, 0))
    np.testing.assert_array_equal(t.grad.data, (x > 0).astype(np.float32))
