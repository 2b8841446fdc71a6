"""A whole training step as on a GPU: model, loss, gradients, clipping, every optimizer."""

from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import models, nn, optim
from gpuconv.backends import Backend
from tests.strict import StrictArray, strict

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: optim.Adam(p, lr=1e-2, amsgrad=True, weight_decay=1e-3),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-2),
    "RMSprop": lambda p: optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
}


def train(optimizer: str, model: nn.Module, x: Any, labels: Any) -> list[float]:
    chosen = OPTIMIZERS[optimizer](model.parameters())
    losses = []
    for _ in range(3):
        loss = gc.cross_entropy(model(x), labels, label_smoothing=0.1)
        chosen.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", models.NAMES)
def test_training_runs_as_on_a_gpu(name: str, optimizer: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 1, 28, 28)).astype(np.float32)
    labels = rng.integers(0, 10, 4)
    gc.manual_seed(1)
    expected_model = models.create(name)
    state = {k: v.copy() for k, v in expected_model.state_dict().items()}
    gc.manual_seed(2)
    expected = train(optimizer, expected_model, gc.tensor(x), gc.tensor(labels))
    with gc.backend(Backend(strict, "strict")):
        model = models.create(name)
        model.load_state_dict(state)
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = strict.asarray(tensor.data)
        gc.manual_seed(2)
        losses = train(
            optimizer, model, gc.tensor(strict.asarray(x)), gc.tensor(strict.asarray(labels))
        )
        # Evaluation mode uses the running statistics that training left on the device.
        model.eval()
        model(gc.tensor(strict.asarray(x)))
    assert losses == expected
    after = expected_model.state_dict()
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.get(), after[key], err_msg=key)


def test_the_stand_in_has_nothing_that_cupy_lacks() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy imports without a GPU; it is not installed")
    assert [name for name in vars(strict) if not hasattr(cupy, name)] == []
    methods = [name for name in vars(StrictArray) if not name.startswith("_")]
    assert [name for name in methods if not hasattr(cupy.ndarray, name)] == []
