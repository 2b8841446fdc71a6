"""Folding: the same scores as the network in evaluation, which stays as it is."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import models, nn
from gpuconv.constant import Constants
from gpuconv.errors import ArgumentError


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation, with statistics, weights and biases of its normalisations all different."""
    rng = np.random.default_rng(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for array, low in (
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
                (module.weight, 0.5),
                (module.bias, -0.5),
            ):
                if array is not None:
                    array.data[...] = rng.random(array.shape) + low
    return model.eval()


MODELS: dict[str, Any] = {
    "resnet20": lambda: models.resnet20(in_channels=3),
    "resnet18": lambda: models.resnet18(num_classes=7),
    "resnet50": lambda: models.resnet50(num_classes=7),
    "simple_cnn": lambda: models.simple_cnn(in_channels=3),
    "plain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.Conv2d(8, 6, (1, 3), dilation=2),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Identity()),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Dropout(0.5),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_a_folded_network_gives_the_same_scores(name: str, dtype: str) -> None:
    model = settled(MODELS[name]())
    if dtype == "float64":
        model.double()
    before = {key: value.copy() for key, value in model.state_dict().items()}
    folded = nn.fold(model)
    x = np.random.default_rng(1).standard_normal((2, 3, 40, 48)).astype(dtype)
    with gc.no_grad():
        expected, found = model(x).numpy(), folded(x).numpy()
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= (1e-12 if dtype == "float64" else 2e-5) * scale
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    kinds = [type(m).__name__ for m in folded.modules()]
    assert "Conv2d" not in kinds
    # One that uses the batch's own statistics cannot be folded, nor one after a max pooling.
    assert kinds.count("BatchNorm2d") == {"plain": 1, "simple_cnn": 3}.get(name, 0)
    assert "FusedConv2d" in repr(folded)


def test_the_weights_are_constants() -> None:
    model = settled(models.simple_cnn())
    folded = nn.fold(model)
    weights = [m.weight.data for m in folded.modules() if isinstance(m, nn.FusedConv2d)]
    assert weights
    for weight in weights:
        with pytest.raises(ValueError, match="read-only"):
            weight[...] = 0


def test_the_model_stays_as_it_is_and_shares_nothing() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 100

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5), Scaled(4, 2, 1), nn.Flatten()
    )
    before = [m.training for m in model.modules()]
    folded = nn.fold(model)
    assert [m.training for m in model.modules()] == before == [True] * len(before)
    assert not any(m.training for m in folded.modules())
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 9), dtype=np.float32)
    with gc.no_grad():
        expected = model.eval()(x).numpy()
        found = folded(x).numpy()
        for parameter in model.parameters():
            parameter.data *= 3
        again = folded(x).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(again, found)


def test_only_its_own_weights_are_taken_for_constants() -> None:
    """A weight that is read-only may change: through a view, or made writeable again."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 64, 28, 28), dtype=np.float32)
    w = rng.standard_normal((64, 64, 3, 3), dtype=np.float32)
    view = w.view()
    w.flags.writeable = False
    with gc.backend("cpu"):
        for shape in ((64, 64, 3, 3),):
            before = gc.fused_conv2d(x, w.reshape(shape), relu=False)
            view *= 2
            after = gc.fused_conv2d(x, w.reshape(shape), relu=False)
            np.testing.assert_array_equal(after, 2 * before)


def test_constants_may_end_while_what_is_kept_of_others_is_released() -> None:
    constants = Constants()
    first, purpose = constants.add(np.ones(3)), object()
    constants.derived(first, purpose, lambda _: constants.add(np.ones(4)))
    assert len(constants.known) == 2
    constants.release()
    assert list(constants.known) == [id(first)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_while_a_constant_is_packed() -> None:
    code = (
        "import os, signal, threading, time, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import numpy as np\n"
        "from gpuconv.constant import CONSTANTS\n"
        "first, second, purpose = CONSTANTS.add(np.ones(3)), CONSTANTS.add(np.ones(4)), object()\n"
        "def make(array): time.sleep(0.3); return array.sum()\n"
        "def derive(): print(CONSTANTS.derived(first, purpose, make), flush=True)\n"
        "thread = threading.Thread(target=derive); thread.start()\n"
        "time.sleep(0.1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(10)\n"
        "    print(CONSTANTS.derived(second, purpose, make), flush=True); os._exit(0)\n"
        "thread.join()\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert sorted(done.stdout.split()) == ["0", "3.0", "4.0"], done.stderr


def test_mistakes() -> None:
    with pytest.raises(ArgumentError, match=r"in training mode; call \.eval\(\) on it first"):
        nn.fold(models.simple_cnn())
    with pytest.raises(ArgumentError, match="FusedConv2d: Linear is no Conv2d"):
        nn.FusedConv2d.of(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="only a BatchNorm2d with running statistics"):
        nn.FusedConv2d.of(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
