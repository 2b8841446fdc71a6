"""A model whose arrays are not NumPy's: the strict stand-in for CuPy in every step of its life."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import models, nn, ops, weights
from gpuconv.backends import Backend
from gpuconv.nn import init
from tests.strict import StrictArray, strict


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with gc.backend(Backend(strict, "strict")):
        yield


def moved(model: nn.Module) -> nn.Module:
    for _, t in model.named_state():
        t.data = strict.asarray(t.data)
    return model


@pytest.mark.usefixtures("array_code")
def test_a_step_of_training_is_the_same(rng: np.random.Generator) -> None:
    host, device = models.simple_cnn(width=2), models.simple_cnn(width=2)
    device.load_state_dict(host.state_dict())
    moved(device)
    images = rng.standard_normal((4, 1, 8, 8)).astype(np.float32)
    labels = np.array([1, 5, 0, 9])
    for model, convert in ((host, np.asarray), (device, strict.asarray)):
        loss = ops.cross_entropy(model(gc.tensor(convert(images))), gc.tensor(convert(labels)))
        loss.backward()
    for p, q in zip(host.parameters(), device.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        np.testing.assert_array_equal(p.grad.data, q.grad.data.get())
    for name, array in device.state_dict().items():
        assert isinstance(array, StrictArray), name
        np.testing.assert_array_equal(array.get(), host.state_dict()[name], err_msg=name)


def test_states_cross_from_one_device_to_the_other(tmp_path: Path) -> None:
    host, device = models.lenet5(), moved(models.lenet5())
    device.load_state_dict(host.state_dict())
    assert all(isinstance(p.data, StrictArray) for p in device.parameters())
    back = models.lenet5()
    back.load_state_dict(device.state_dict())
    weights.save(tmp_path / "m", device)
    loaded = weights.load(tmp_path / "m", moved(models.lenet5()))
    for name, array in host.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name], array)
        np.testing.assert_array_equal(loaded.state_dict()[name].get(), array)
    back.load_state_dict({n: gc.tensor(a) for n, a in device.state_dict().items()})
    device.to("cpu")
    assert all(isinstance(p.data, np.ndarray) for p in device.parameters())


def test_dtypes_and_initialisers() -> None:
    model = moved(models.simple_cnn(width=2))
    for p in model.double().parameters():
        assert isinstance(init.normal_(p).data, StrictArray)
        assert p.dtype == np.float64
