"""Grad-CAM: where in an image the evidence for a class lies.

Source: Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, "Grad-CAM: Visual explanations from
deep networks via gradient-based localization", arXiv 1610.02391, equations 1 and 2.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.autograd import Tensor, enable_grad
from gpuconv.errors import ArgumentError
from gpuconv.nn.module import Module
from gpuconv.shapes import ints
from gpuconv.viz.canvas import plain
from gpuconv.viz.layers import (
    convolutions,
    evaluating,
    find_layer,
    model_input,
    outputs,
    plane,
    shown_input,
)
from gpuconv.viz.saved import listed, unknown
from gpuconv.viz.style import HEAT, INK, Grid, count, new_figure, number, shape, show_image


@dataclass(frozen=True)
class Cam:
    """The evidence for class `target` at `layer`, whose output for the image is `maps` (K, h, w).

    `scores` (N,) is the model's output, `weights` (K,) the mean over the pixels of the gradient of
    the class's score by the maps, `heat` (h, w) what is positive in the sum of the weighted maps,
    `over` (H, W) the same, bilinearly resized to the image. `predicted` is the best class.
    """

    layer: str
    target: int
    scores: np.ndarray
    maps: np.ndarray
    weights: np.ndarray
    heat: np.ndarray
    over: np.ndarray

    @property
    def predicted(self) -> int:
        return int(self.scores.argmax())

    @property
    def probabilities(self) -> np.ndarray:
        return np.asarray(ops.softmax(self.scores.astype(np.float64)[None], dim=1)[0])


def grad_cam(model: Module, x: Any, layer: str | None = None, target: int | None = None) -> Cam:
    """The Grad-CAM of one image x (C, H, W), as the model takes it; scores are before softmax.

    `layer` is by default the last convolution that the model calls, `target` the class it finds
    best. ArgumentError if there is no such layer or class, or the score does not depend on it.
    """
    if layer is not None:
        find_layer(model, layer)
    found, output = outputs(model, x)
    if output.ndim != 2:
        raise ArgumentError(f"the model gives {output.shape}, but (N, classes) scores are needed")
    layer = convolutions(model, found)[-1] if layer is None else layer
    if layer not in found or found[layer][-1].ndim != 4:
        given = found[layer][-1].shape if layer in found else "nothing"
        good = [name for name, ys in found.items() if name and ys[-1].ndim == 4]
        raise ArgumentError(
            f"{layer} gives {given}, but feature maps (N, K, H, W) are needed; use one of "
            f"{listed(good[::-1])}"
        )
    scores = output.numpy()[0]
    if not np.isfinite(scores).all():
        raise ArgumentError(
            "the model gives NaN or infinity for this image: are its weights finite, and is the "
            "image normalised as in training?"
        )
    (target,) = ints("cam", "target", int(scores.argmax()) if target is None else target, 1)
    if not 0 <= target < len(scores):
        raise ArgumentError(f"there is no class {target}: the model has 0 to {len(scores) - 1}")
    maps = _made_leaf(model, x, layer, target)
    if maps.grad is None:
        raise ArgumentError(f"the score of class {target} does not depend on {layer}")
    weights = ops.mean(maps.grad.detach(), (2, 3), keepdims=True)
    heat = ops.relu(ops.sum(weights * maps.detach(), 1, keepdims=True))
    size = model_input(model, x).shape[2:]
    over = ops.interpolate(heat, size=size, mode="bilinear")
    return Cam(
        layer,
        target,
        scores,
        maps.numpy()[0],
        weights.numpy().reshape(-1),
        heat.numpy()[0, 0],
        over.numpy()[0, 0],
    )


def _made_leaf(model: Module, x: Any, layer: str, target: int) -> Tensor:
    """The output of the layer's last call, with the gradient of the class's score by it."""
    leaves: list[Tensor] = []

    def cut(module: Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        leaves.append(Tensor(output.data, requires_grad=True))
        return leaves[-1]

    handle = find_layer(model, layer).register_forward_hook(cut)
    try:
        with evaluating(model), _frozen(model), enable_grad():
            score = model(model_input(model, x))[0, target]
            if score.requires_grad:  # else it does not come of the layer
                score.backward()
    finally:
        handle.remove()
    return leaves[-1]


@contextmanager
def _frozen(model: Module) -> Iterator[None]:
    """No gradients by the parameters inside: those that are there stay as they are."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad = flag


def cam(
    model: Module,
    x: Any,
    layer: str | None = None,
    target: int | str | None = None,
    *,
    classes: Sequence[str] = (),
    image: Any = None,
) -> Any:
    """Draw the Grad-CAM of the image x (C, H, W), as the model takes it; see `grad_cam`.

    `target` is a class's number, or its name in `classes`. `image` (C, H, W) in 0..1 is what is
    shown; by default x itself, from its least value to its largest.
    """
    if isinstance(target, str):
        if target not in classes:
            raise unknown("class", target, classes)
        target = list(classes).index(target)
    found = grad_cam(model, x, layer, target)
    if classes and len(classes) != len(found.scores):
        raise ArgumentError(
            f"cam: {count(len(classes), 'name')} of classes for a model of {len(found.scores)}: "
            f"give one a class, or none"
        )
    names = tuple(map(plain, classes)) or tuple(f"class {i}" for i in range(len(found.scores)))
    shown = shown_input(x, image)
    height, width = shown.shape[1:]
    tall = min(max(3.2 * height / width, 1.2), 4.8)
    figure = new_figure(10.6, tall + 1.7)
    figure.get_layout_engine().set(h_pad=0.08)
    left, middle, right = figure.subplots(1, 3)
    for axes in (left, right):
        axes.set_anchor("N")
    show_image(left, shown, f"input {shape(shown.shape)}")
    most = float(found.heat.max())
    heat, over = found.heat / (most or 1.0), found.over / (most or 1.0)
    title = f"heat at {found.layer}: {shape(heat.shape)}"
    if max(heat.shape) <= 8:
        drawn = Grid(middle, heat.astype(float).round(2), title, limits=(0.0, 1.0), font=8).image
    else:
        drawn = plane(middle, heat, title, 0.0, 1.0)
    bar = figure.colorbar(
        drawn, ax=middle, location="bottom", fraction=0.06, pad=0.03, panchor=(0.5, 1.0)
    )
    bar.set_label(f"evidence for the class; 1 is {number(most)}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    title = f"over the input, resized to {shape(over.shape)}"
    show_image(right, _blended(shown, over), title)
    if over.min() < 0.5 < over.max() and min(over.shape) > 1:
        right.contour(over, [0.5], colors="white", linewidths=1.5)
        right.set_xlabel("white line: half of the largest", fontsize=9)
    elif not most:
        right.set_xlabel("nothing here speaks for the class", fontsize=9)
    figure.suptitle(_headline(found, names), fontsize=11, color=INK)
    return figure


def _headline(found: Cam, names: Sequence[str]) -> str:
    chances = found.probabilities
    text = f"Grad-CAM for {names[found.target]}, probability {chances[found.target]:.3f}"
    if found.target == found.predicted:
        return f"{text}: the predicted class"
    best = found.predicted
    return f"{text}; predicted is {names[best]}, probability {chances[best]:.3f}"


def _blended(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image in grey under the colours of the heat (H, W) in 0..1; (3, H, W)."""
    from matplotlib import colormaps

    colours = colormaps[HEAT](heat)[..., :3].transpose(2, 0, 1)
    blended: np.ndarray = 0.45 * image.mean(axis=0) + 0.55 * colours
    return blended
