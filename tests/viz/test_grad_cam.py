"""Grad-CAM against an independent implementation in PyTorch, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv import nn
from gpuconv.cli import app
from gpuconv.errors import ArgumentError
from gpuconv.viz.grad_cam import grad_cam

CHANNELS, CLASSES = 2, 4
CASES = {
    "plain": {"stride": 1, "padding": 1},
    "strided": {"stride": (2, 1), "padding": (0, 2)},
    "valid": {"stride": 1, "padding": 0},
}


def net(stride: Any, padding: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 5, (3, 2), stride=stride, padding=padding, dtype="float64"),
        nn.BatchNorm2d(5, dtype="float64"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, padding=1, dtype="float64"),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES, dtype="float64"),
    )


def theirs(
    model: nn.Module, x: np.ndarray, layer: int, target: int, stride: Any, padding: Any
) -> Any:
    """(weights, heat, over) as the paper has them, by PyTorch."""
    torch = pytest.importorskip("torch")
    other = torch.nn.Sequential(
        torch.nn.Conv2d(CHANNELS, 5, (3, 2), stride=stride, padding=padding),
        torch.nn.BatchNorm2d(5),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(5, 6, 3, padding=1),
        torch.nn.Tanh(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(24, CLASSES),
    ).double()
    state = {k: torch.tensor(np.asarray(v)) for k, v in model.state_dict().items()}
    other.load_state_dict(state)
    other.eval()
    maps = other[: layer + 1](torch.tensor(x)[None]).detach().requires_grad_()
    score = other[layer + 1 :](maps)[0, target]
    (gradient,) = torch.autograd.grad(score, maps)
    weights = gradient.mean(dim=(2, 3))[0]
    heat = torch.einsum("k,khw->hw", weights, maps.detach()[0]).clamp(min=0)
    over = torch.nn.functional.interpolate(
        heat[None, None], size=x.shape[1:], mode="bilinear", align_corners=False
    )[0, 0]
    return weights.numpy(), heat.numpy(), over.numpy()


@pytest.mark.parametrize("size", [(12, 12), (15, 10)])
@pytest.mark.parametrize("case", CASES)
def test_as_pytorch(case: str, size: tuple[int, int], rng: np.random.Generator) -> None:
    model = net(**CASES[case])
    model[1].running_mean.data[...] = rng.normal(size=5)
    x = rng.normal(size=(CHANNELS, *size))
    lit = 0
    for layer in (0, 1, 2, 3, 4, 5):
        for target in range(CLASSES):
            found = grad_cam(model, x, str(layer), target)
            weights, heat, over = theirs(model, x, layer, target, **CASES[case])
            np.testing.assert_allclose(found.weights, weights, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found.heat, heat, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found.over, over, rtol=1e-9, atol=1e-12)
            assert found.over.shape == size
            lit += heat.max() > 0
    assert lit > 12  # not all of it is zero


def test_defaults_and_the_models_own_answer(rng: np.random.Generator) -> None:
    model, x = net(**CASES["plain"]), rng.normal(size=(CHANNELS, 9, 12))
    found = grad_cam(model, x)
    model.eval()
    scores = model(gc.tensor(x[None])).numpy()[0]
    np.testing.assert_allclose(found.scores, scores)
    assert found.layer == "4"
    assert found.target == found.predicted == scores.argmax()
    np.testing.assert_allclose(found.probabilities, np.exp(scores) / np.exp(scores).sum())
    folded = grad_cam(nn.fold(model), x)
    assert folded.layer == "2"  # the normalisation and the ReLU are in the convolution
    np.testing.assert_allclose(folded.heat, found.heat, rtol=1e-6, atol=1e-9)


def test_the_model_is_left_as_it_was(rng: np.random.Generator) -> None:
    model, x = net(**CASES["plain"]), rng.normal(size=(CHANNELS, 9, 9))
    model[0].weight.requires_grad = False
    model(gc.tensor(x[None])).sum().backward()
    before = {n: v.copy() for n, v in model.state_dict().items()}
    grads = {n: p.grad for n, p in model.named_parameters()}
    with gc.no_grad():
        inside = grad_cam(model, x, "2", 1)
    np.testing.assert_array_equal(inside.heat, grad_cam(model, x, "2", 1).heat)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    for name, parameter in model.named_parameters():
        assert parameter.grad is grads[name]
        assert parameter.requires_grad == (name != "0.weight")
    assert all(module.training and not module._hooks for module in model.modules())
    with pytest.raises(ArgumentError, match="class 4"):
        grad_cam(model, x, "2", 4)
    assert all(parameter.requires_grad for parameter in model[4].parameters())


class Beside(nn.Module):
    """Scores that one of two convolutions has no part in, and a layer without pixels."""

    def __init__(self) -> None:
        self.used, self.unused = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3)
        self.flat = nn.Flatten()

    def forward(self, x: Any) -> Any:
        self.flat(self.unused(x))
        return self.used(x).mean((2, 3))


def test_wrong_arguments() -> None:
    model, x = Beside(), np.zeros((1, 6, 7), np.float32)
    with pytest.raises(ArgumentError, match="score of class 0 does not depend on unused"):
        grad_cam(model, x, "unused", 0)
    with pytest.raises(ArgumentError, match=r"flat gives \(1, 60\), but feature maps.*use one of"):
        grad_cam(model, x, "flat")
    with pytest.raises(ArgumentError, match="no layer 'use'; use one of used, unused"):
        grad_cam(model, x, "use")
    with pytest.raises(ArgumentError, match="no class 3: the model has 0 to 2"):
        grad_cam(model, x, "used", 3)
    with pytest.raises(ArgumentError, match="no class 'dgo'; use one of dog, cat"):
        gc.viz.cam(model, x, "used", "dgo", classes=("cat", "dog", "ant"))
    with pytest.raises(ArgumentError, match="scores are needed"):
        grad_cam(nn.Sequential(nn.Conv2d(1, 2, 3)), x)


def test_the_picture_says_class_probability_and_layer(rng: np.random.Generator) -> None:
    pytest.importorskip("matplotlib")
    model, x = net(**CASES["strided"]), rng.normal(size=(CHANNELS, 14, 9))
    names = ("ant", "bee", "cat", "dog")
    found = grad_cam(model, x)
    figure = gc.viz.cam(model, x, classes=names)
    chance = found.probabilities[found.target]
    assert figure.get_suptitle() == (
        f"Grad-CAM for {names[found.target]}, probability {chance:.3f}: the predicted class"
    )
    rest = min(set(range(CLASSES)) - {found.target})
    figure = gc.viz.cam(model, x, "2", names[rest], classes=names)
    assert figure.get_suptitle() == (
        f"Grad-CAM for {names[rest]}, probability {found.probabilities[rest]:.3f}; predicted is "
        f"{names[found.target]}, probability {chance:.3f}"
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "input 2 x 14 x 9"
    height, width = grad_cam(model, x, "2").heat.shape
    assert titles[1] == f"heat at 2: {height} x {width}"
    assert titles[2] == "over the input, resized to 14 x 9"


def test_a_class_nothing_speaks_for() -> None:
    pytest.importorskip("matplotlib")
    model = Beside()
    model.used.weight.data[...] = -1.0
    model.used.bias.data[...] = 0.0
    x = np.ones((1, 6, 7), np.float32)
    found = grad_cam(model, x, "used", 0)
    assert not found.heat.any()
    figure = gc.viz.cam(model, x, "used", 0)
    assert figure.axes[2].get_xlabel() == "nothing here speaks for the class"
    figure.canvas.draw()


def test_the_command(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    weights, photo, out = (tmp_path / n for n in ("net.safetensors", "photo.png", "out.png"))
    gc.save(weights, gc.models.lenet5(num_classes=3))
    image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(photo)
    common = ["viz", "cam", str(weights), "--model", "lenet5", "--image", str(photo)]

    def run(*options: str) -> Any:
        return CliRunner().invoke(app, [*common, "-o", str(out), *options])

    for options in ((), ("--class", "2", "--layer", "act1", "--invert")):
        out.unlink(missing_ok=True)
        done = run(*options)
        assert (done.exit_code, done.stdout) == (0, f"{out}\n"), done.stderr
        with image.open(out) as picture:
            picture.load()
            assert picture.format == "PNG"
    for options, said in (
        (("--class", "3"), "there is no class '3'; use one of "),
        (("--layer", "conv"), "there is no layer 'conv'; use one of conv"),
        (("--layer", "fc1"), "fc1 gives (1, 120), but feature maps"),
    ):
        done = run(*options)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"gpuconv: error: {said}")
        assert done.stderr.count("\n") == 1
