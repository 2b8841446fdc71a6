"""What a layer has learned and what it sees: its filters, and its feature maps of an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np

from gpuconv import nn
from gpuconv.autograd import Tensor, no_grad, tensor
from gpuconv.errors import ArgumentError
from gpuconv.nn.module import Module
from gpuconv.shapes import ints
from gpuconv.viz import presets
from gpuconv.viz.saved import listed, unknown
from gpuconv.viz.style import (
    HEAT,
    INK,
    STRONG,
    Grid,
    count,
    new_figure,
    number,
    shape,
    show_image,
)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.FusedConv2d, *TRANSPOSED)
MOST = 16  # filters, channels or maps that are drawn, if not said otherwise


@dataclass(frozen=True)
class Filters:
    """The weight of a convolution, (K, C, R, S): K filters of C channels; R is 1 for one axis.

    With groups C is the channels of one group.
    """

    layer: str
    kind: str
    weight: np.ndarray


@dataclass(frozen=True)
class Features:
    """What a layer gave for one image: `maps` (M, H, W), or (M,) for a layer without pixels.

    `calls` says how often the model calls the layer; the maps are those of the last call.
    """

    layer: str
    kind: str
    maps: np.ndarray
    calls: int


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """The model in evaluation mode inside; each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def find_layer(model: Module, name: str) -> Module:
    """The module of this dotted name; ArgumentError that lists the names that there are."""
    modules = {n: module for n, module in model.named_modules() if n}
    if name not in modules:
        raise unknown("layer", name, tuple(modules))
    return modules[name]


def model_input(model: Module, x: Any) -> Tensor:
    """One image (C, H, W) or (1, C, H, W) as the model's input, of its dtype and device."""
    presets.axes("input", x)
    array = x.numpy() if isinstance(x, Tensor) else np.asarray(x)
    if array.ndim not in (3, 4) or (array.ndim == 4 and len(array) != 1):
        raise ArgumentError(f"the input {array.shape} must be one image, (C, H, W)")
    array = array.reshape(1, *array.shape[-3:])
    if not array.size or array.dtype.kind not in "uif" or not np.isfinite(array).all():
        raise ArgumentError(f"the input {array.shape[1:]} must be finite numbers, without NaN")
    first = next((held for _, held in model.named_state() if held.dtype.kind == "f"), None)
    if first is None:
        return tensor(array)
    return tensor(array.astype(first.dtype), device=first.device)


def outputs(model: Module, x: Any) -> tuple[dict[str, list[Tensor]], Tensor]:
    """What each module gave, by name and in the order of the calls; and the model's own output."""
    found: dict[str, list[Tensor]] = {}
    names = {id(module): name for name, module in model.named_modules()}

    def called(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            found.setdefault(names[id(module)], []).append(output)

    handles = [module.register_forward_hook(called) for module in model.modules()]
    try:
        with evaluating(model), no_grad():
            return found, model(model_input(model, x))
    finally:
        for handle in handles:
            handle.remove()


def feature_maps(model: Module, x: Any, layer: str | None = None) -> Features:
    """What `layer` gives for x (C, H, W); None is the first convolution that the model calls.

    ArgumentError if there is no such layer, or the model does not call it.
    """
    if layer is not None:
        find_layer(model, layer)
    found, _ = outputs(model, x)
    if layer is None:
        layer = next(iter(convolutions(model, found)))
    if layer not in found:
        raise ArgumentError(
            f"{layer} gives no tensor for this image: the model does not call it; use one of "
            f"{listed([name for name in found if name])}"
        )
    y = found[layer][-1].numpy()
    maps = y[0] if y.ndim == 4 and y[0, 0].size > 1 else y.reshape(-1)
    if not np.isfinite(maps).all():
        raise ArgumentError(
            f"{layer} gives NaN or infinity for this image: are the weights finite, and is the "
            f"image normalised as in training?"
        )
    return Features(layer, type(find_layer(model, layer)).__name__, maps, len(found[layer]))


def convolutions(model: Module, found: dict[str, list[Tensor]]) -> list[str]:
    """The layers among `found` that are two-dimensional convolutions; ArgumentError if none is."""
    modules = dict(model.named_modules())
    names = [name for name in found if isinstance(modules[name], CONVOLUTIONS)]
    names = [name for name in names if found[name][-1].ndim == 4]
    if not names:
        raise ArgumentError(
            f"the model calls no layer such as nn.Conv2d; choose a layer: "
            f"{listed([name for name in found if name]) or 'it has none'}"
        )
    return names


def filter_weights(model: Module, layer: str | None = None) -> Filters:
    """The filters of `layer`, by default the first convolution; ArgumentError if it has none."""
    drawable = {n: m for n, m in model.named_modules() if isinstance(m, CONVOLUTIONS)}
    if not drawable:
        raise ArgumentError("the model has no convolution over one or two axes, so no filters")
    if layer is None:
        layer = next(iter(drawable))
    module = find_layer(model, layer)
    if layer not in drawable:
        raise ArgumentError(
            f"{layer} ({type(module).__name__}) has no filters to draw; use one of "
            f"{listed(tuple(drawable))}"
        )
    held: Any = drawable[layer]
    weight = held.weight.numpy()
    if isinstance(module, TRANSPOSED):  # (C, K / groups, ...), a group's channels together
        weight = weight.reshape(held.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        weight = weight.reshape(-1, *weight.shape[2:])
    if weight.ndim == 3:
        weight = weight[:, :, None]
    return Filters(layer, type(module).__name__, weight)


def filters(model: Module, layer: str | None = None, *, most: int = MOST) -> Any:
    """Draw the filters of a convolution, by its dotted name; by default the first.

    Filters of one channel are drawn one by one, those of three as colours (grey is 0), others as
    a table of filters by channels; at most `most` of each. ArgumentError if there is none.
    """
    _check_most(most)
    found = filter_weights(model, layer)
    weight = found.weight[:most]
    title = f"{found.layer} ({found.kind}): {count(len(found.weight), 'filter')} of "
    title += shape(found.weight.shape[1:])
    if len(weight) < len(found.weight):
        title += f"; the first {len(weight)} of them"
    largest = float(np.abs(weight).max()) or 1.0
    channels = weight.shape[1]
    if channels in (1, 3):
        figure, panels = _panels(len(weight), weight.shape[2:])
        numbers = max(weight.shape[2:]) <= 4 and largest >= 0.1  # they fit, with two decimals
        for k, axes in enumerate(panels):
            if channels == 3:
                show_image(axes, 0.5 + weight[k] / (2 * largest), f"filter {k}")
            else:
                grid = Grid(
                    axes, weight[k, 0].astype(float).round(2 if numbers else 9), f"filter {k}",
                    signed=True, limits=(-largest, largest), text=numbers, font=8,
                )  # fmt: skip
        if channels == 3:
            title += f"\nthe three channels as red, green and blue; grey is 0, white {largest:.2g}"
        else:
            _colour_bar(figure, grid.image, panels, "weight")
    else:
        if most < channels:
            title += f", the first {most} of their channels"
        figure = _table(weight[:, :most], largest)
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def features(
    model: Module, x: Any, layer: str | None = None, *, most: int = MOST, image: Any = None
) -> Any:
    """Draw what a layer, by its dotted name, gives for an image x (C, H, W) as the model takes it.

    `layer` None is the first convolution; at most `most` maps are drawn. `image` (C, H, W) in 0..1
    is shown as the input; by default x itself, from its least value to its largest. ArgumentError
    if there is no such layer.
    """
    _check_most(most)
    found = feature_maps(model, x, layer)
    image = shown_input(x, image)
    caption = f"input {shape(image.shape)}"
    title = f"{found.layer} ({found.kind}): "
    calls = f", of the last of {found.calls} calls" if found.calls > 1 else ""
    if found.maps.ndim == 1:
        figure = new_figure(9, 3.4)
        left, right = figure.subplots(1, 2, width_ratios=(1, 2.2))
        show_image(left, image, caption)
        _bars(right, found.maps)
        title += f"{count(len(found.maps), 'value')}{calls}"
    else:
        maps = found.maps[:most]
        figure, panels, first = _panels(len(maps), maps.shape[1:], beside=True)
        show_image(first, image, caption)
        low, high = min(float(maps.min()), 0.0), max(float(maps.max()), 0.0)
        if low < 0:
            high = max(high, -low)
            low = -high
        for i, axes in enumerate(panels):
            drawn = plane(axes, maps[i], f"map {i}", low, high)
        _colour_bar(figure, drawn, panels, "activation")
        title += f"{count(len(found.maps), 'feature map')} of {shape(found.maps.shape[1:])}{calls}"
        if len(maps) < len(found.maps):
            title += f"; the first {len(maps)} of them"
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def shown_input(x: Any, image: Any) -> np.ndarray:
    """The image (C, H, W) in 0..1 to show for x: `image`, or x from its least value to its most."""
    if image is None:
        image = np.asarray(x.numpy() if isinstance(x, Tensor) else x, dtype=float)
        low, high = image.min(), image.max()
        image = (image - low) / ((high - low) or 1)
    array = np.asarray(image, dtype=float)
    return array.reshape(array.shape[-3:])


def _check_most(most: int) -> None:
    if not 1 <= ints("viz", "most", most, 1)[0] <= 256:
        raise ArgumentError(f"most={most} must be 1 to 256")


def _panels(total: int, pixels: tuple[int, ...], beside: bool = False) -> Any:
    """A figure with so many small panels for planes of `pixels`, and a larger one `beside` them."""
    columns = min(total, max(4, ceil(sqrt(total))))
    left = 2 if beside else 0
    rows = max(ceil(total / columns), left)
    tall = 1.4 * min(max(pixels[0] / pixels[1], 0.4), 2.0) + 0.3
    figure = new_figure(max(1.5 * (columns + left) + 0.8, 6), tall * rows + 0.6)
    grid = figure.add_gridspec(rows, columns + left)
    cells = [grid[i // columns, left + i % columns] for i in range(total)]
    panels = [figure.add_subplot(cell) for cell in cells]
    return (figure, panels, figure.add_subplot(grid[:2, :2])) if beside else (figure, panels)


def plane(axes: Any, values: np.ndarray, title: str, low: float, high: float) -> Any:
    """One plane of numbers as colours, the brighter the larger; the image, for a colour bar.

    With no numbers in the cells, brightness says more than two hues about 0 would.
    """
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    values = np.ma.masked_invalid(values)
    return axes.imshow(values, cmap=HEAT, vmin=low, vmax=high or 1, interpolation="nearest")


def _colour_bar(figure: Any, image: Any, panels: list[Any], label: str) -> None:
    bar = figure.colorbar(image, ax=panels, fraction=0.04, pad=0.02, panchor=False)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _table(weight: np.ndarray, largest: float) -> Any:
    """Filters in rows and their channels in columns, a gap between."""
    k, c, r, s = weight.shape
    cells = np.full((k, r + 1, c, s + 1), np.nan)
    cells[:, :r, :, :s] = weight.transpose(0, 2, 1, 3)
    cells = cells.reshape(k * (r + 1), c * (s + 1))[:-1, :-1]
    rows, columns = cells.shape
    inch = min(8.5 / max(rows, columns), 0.4)
    figure = new_figure(max(columns * inch + 1.9, 6), max(rows * inch + 1.3, 3))
    axes = figure.subplots()
    image = plane(axes, cells, "", -largest, largest)
    for side, total, size in (("y", k, r), ("x", c, s)):
        at = np.arange(0, total, ceil(total / 32))
        getattr(axes, f"set_{side}ticks")(at * (size + 1) + (size - 1) / 2, at, fontsize=8)
    axes.tick_params(length=0)
    axes.set_ylabel("filter", fontsize=9)
    axes.set_xlabel("channel", fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _colour_bar(figure, image, [axes], "weight")
    return figure


def _bars(axes: Any, values: np.ndarray) -> None:
    axes.bar(np.arange(len(values)), values, color=STRONG)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("unit", fontsize=9)
    axes.set_ylabel("activation", fontsize=9)
    axes.tick_params(labelsize=8)
    if len(values) <= 16:
        axes.set_xticks(np.arange(len(values)))
        for i, value in enumerate(values):
            axes.annotate(
                number(float(value)), (i, value), ha="center", fontsize=8,
                va="bottom" if value >= 0 else "top",
            )  # fmt: skip
        axes.margins(y=0.12)
