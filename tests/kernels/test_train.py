"""Whole training steps through the kernels: the losses and the weights are the reference's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

import gpuconv as gc
from gpuconv import nn
from gpuconv.testing import assert_within_budget


def residual_net() -> nn.Module:
    """What LeNet-5 has not: batch norm, depthwise, strided and grouped convolutions, averages."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(12, 6, 3, padding="same", padding_mode="reflect", groups=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    )


def train(
    be: Any, make: Callable[[], nn.Module], optimizer: Any, shape: tuple[int, ...], dtype: str
) -> tuple[list[float], list[Any]]:
    """Losses and final weights of three steps on the same data, from the same seed."""
    gc.manual_seed(3)
    rng = np.random.default_rng(4)
    x, labels = rng.standard_normal((3, *shape)), rng.integers(0, 10, (3, shape[0]))
    model = make()
    for p in model.parameters():
        p.data = be.asarray(p.data.astype(dtype))
    for _, buffer in model.named_buffers():
        buffer.data = be.asarray(buffer.data.astype(dtype))
    opt = optimizer(model.parameters())
    losses = []
    with gc.backend(be):
        for images, answers in zip(x, labels, strict=True):
            opt.zero_grad()
            scores = model(gc.Tensor(be.asarray(images.astype(dtype))))
            loss = gc.cross_entropy(scores, be.asarray(answers))
            loss.backward()
            opt.step()
            losses.append(float(loss.data))
    weights = [
        p.data if isinstance(p.data, np.ndarray) else p.data.get() for p in model.parameters()
    ]
    return losses, weights


@pytest.mark.parametrize(
    ("make", "shape"),
    [(gc.models.lenet5, (2, 1, 28, 28)), (residual_net, (2, 3, 12, 11))],
    ids=["lenet5", "everything"],
)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: gc.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: gc.optim.AdamW(p, lr=0.002),
    ],
    ids=["sgd", "adamw"],
)
def test_losses_are_the_reference_s(be: Any, make: Any, shape: Any, optimizer: Any) -> None:
    reference = gc.backends.get_backend("numpy")
    fast, fast_weights = train(be, make, optimizer, shape, "float32")
    plain, plain_weights = train(reference, make, optimizer, shape, "float32")
    truth, true_weights = train(reference, make, optimizer, shape, "float64")
    assert len(set(truth)) == 3
    assert_within_budget(np.array(fast, np.float32), np.array(plain, np.float32), np.array(truth))
    for f, p, t in zip(fast_weights, plain_weights, true_weights, strict=True):
        assert_within_budget(f, p, t)


def test_the_kernels_are_what_runs() -> None:
    """A whole step of LeNet-5 on the emulated backend, by name: every family takes its part."""
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.device import EmulatedDevice

    launched: list[str] = []
    be = CudaBackend(EmulatedDevice(watch=lambda kernel, report: launched.append(kernel.name)), "e")
    train(
        be,
        gc.models.lenet5,
        lambda p: gc.optim.SGD(p, lr=0.1, momentum=0.9),
        (2, 1, 28, 28),
        "float32",
    )
    for family in ("direct_", "depthwise_", "pool", "cross_entropy", "sgd"):
        assert any(family in name for name in launched), (family, sorted(set(launched)))
