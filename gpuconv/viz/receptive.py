"""What a layer's pixels see of the input: `gpuconv.viz.receptive_field`.

The theoretical field is what could matter, worked out from the tape as in `gpuconv.summary`; the
effective one is what does: gradients of the layer's centre by the input. These fall off towards the
border, because fewer paths lead there. Source: Luo, Li, Urtasun and Zemel, "Understanding the
effective receptive field in deep convolutional neural networks", arXiv 1701.04128.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from gpuconv import models
from gpuconv.autograd import Tensor, enable_grad, tensor
from gpuconv.backends import backend
from gpuconv.errors import ArgumentError
from gpuconv.nn.module import Module
from gpuconv.nn.shape import PixelShuffle, PixelUnshuffle
from gpuconv.nn.summary import Row, summary
from gpuconv.shapes import ints
from gpuconv.viz.canvas import plain
from gpuconv.viz.layers import evaluating
from gpuconv.viz.places import Box, Places
from gpuconv.viz.saved import unknown

MOST = 8  # layers that are drawn, if they are not named
LARGEST = 1 << 18  # numbers of an image
IMAGES = 8  # of noise, over which gradients are averaged
SHARE = 0.95  # of the gradient


@dataclass(frozen=True, eq=False)
class LayerField:
    """What the centre of a layer's output sees of the input.

    `box` is the theoretical field, (start, stop) of rows and of columns; it may begin before 0 and
    end after the input, in the padding. `gradient` (H, W) is the mean size of the gradient, the sum
    of which is 1.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    field: tuple[int, ...]
    box: Box
    gradient: np.ndarray

    @property
    def effective(self) -> Box:
        """(start, stop) of the rows, and of the columns, that hold `SHARE` of the gradient.

        A half of the rest lies before them and a half after. (0, 0) if there is no gradient.
        """
        found = []
        for axis in (1, 0):
            part = np.cumsum(self.gradient.sum(axis=axis))
            if not part[-1]:
                return (0, 0), (0, 0)
            start = np.searchsorted(part, (1 - SHARE) / 2 * part[-1], side="right")
            stop = np.searchsorted(part, (1 + SHARE) / 2 * part[-1])
            found.append((int(start), int(min(stop + 1, len(part)))))
        return found[0], found[1]


def layer_fields(
    model: Module, input_shape: Sequence[int], layers: Sequence[str] | None = None
) -> tuple[LayerField, ...]:
    """What the centre pixels of `layers` see of an input (C, H, W).

    `layers` are dotted names; by default those where the field grows, `MOST` of them at most. The
    gradients are those of the sum of all channels at the centre, by some images of noise (always
    the same), in evaluation mode. The model is left as it was. ArgumentError for layers that the
    model does not have or that give no image, and the model's own errors.
    """
    shape = check_input(input_shape)
    if layers is not None and (isinstance(layers, str) or not layers):
        raise ArgumentError(
            f"receptive_field: layers={layers!r} must be names, as ['features.0'], or None"
        )
    table = summary(model, shape)
    calls: dict[str, int] = {}
    rows = []
    for row in table.rows:
        calls[row.name] = calls.get(row.name, -1) + 1
        if len(row.receptive_field) == 2:
            rows.append(Call(row, calls[row.name]))
    chosen = _growing(rows) if layers is None else [_named(rows, name) for name in layers]
    first = next(iter(model.parameters()), None)
    noise = np.random.default_rng(0).standard_normal((IMAGES, *shape)).astype(table.dtype)
    x = tensor(noise, device=None if first is None else first.device, requires_grad=True)
    with evaluating(model), _without_gradients(model), enable_grad():
        return tuple(_field(model, call, x) for call in chosen)


def check_input(given: Sequence[int]) -> tuple[int, ...]:
    """(C, H, W); ArgumentError for another shape, and for more than would take minutes."""
    shape = ints("receptive_field", "input_shape", given, 3, least=1)
    if prod(shape) > LARGEST:
        raise ArgumentError(
            f"receptive_field: {' x '.join(map(str, shape))} are {prod(shape):,} numbers, and at "
            f"most {LARGEST:,} can be drawn, as of 3 x 256 x 256; use a smaller input"
        )
    return shape


class Call(NamedTuple):
    """A row of the summary, and how many calls of that layer came before."""

    row: Row
    number: int


def _growing(calls: list[Call]) -> list[Call]:
    """Those where the field grows, from first to last; of many, some evenly among them."""
    found: list[Call] = []
    for call in calls:
        most = found[-1].row.receptive_field if found else (0, 0)
        field = call.row.receptive_field
        if call.row.memory and any(n > m for n, m in zip(field, most, strict=True)):
            found.append(call)
    if not found:
        raise ArgumentError("receptive_field: no layer of the model depends on pixels of the input")
    if len(found) > MOST:
        found = [found[i] for i in np.linspace(0, len(found) - 1, MOST).round().astype(int)]
    return found


def _named(calls: list[Call], name: str) -> Call:
    """The layer's first call."""
    found = {call.row.name: call for call in reversed(calls)}
    if name not in found:
        raise unknown("layer", name, tuple(reversed(found)))
    return found[name]


@contextmanager
def _without_gradients(model: Module) -> Iterator[None]:
    """Inside, no parameter requires a gradient, so that none is changed."""
    learned = [p for p in model.parameters() if p.requires_grad]
    for p in learned:
        p.requires_grad = False
    try:
        yield
    finally:
        for p in learned:
            p.requires_grad = True


def _field(model: Module, call: Call, x: Tensor) -> LayerField:
    """By a pass forward, in which the layer's output is caught, and one backward from it."""
    row, places = call.row, Places(x)
    outputs: list[Any] = []
    module = dict(model.named_modules())[row.name]

    def called(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)

    def resized(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        r = getattr(module, "downscale_factor", 0)
        taps, scale = (r, r) if r else (1, 1 / module.upscale_factor)
        places.resize(inputs[0], output, taps, scale)

    shufflers = [m for m in model.modules() if isinstance(m, (PixelShuffle, PixelUnshuffle))]
    handles = [m.register_forward_hook(resized) for m in shufflers]
    handles.append(module.register_forward_hook(called))
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    y = outputs[call.number]
    pixel = tuple(n // 2 for n in y.shape[2:]) if y.ndim == 4 else ()
    box = places.box(y, pixel or (0, 0))
    grad = np.zeros(y.shape, dtype=y.dtype)
    grad[(..., *pixel)] = 1
    y.backward(tensor(grad, device=y.device))
    gx: Any = x.grad
    x.grad = None
    gradient = np.abs(gx.numpy().astype(np.float64)).mean(axis=0).sum(axis=0)
    total = gradient.sum()
    return LayerField(
        row.name or row.type, row.type, row.output_shape, row.receptive_field, box,
        gradient / total if total else gradient,
    )  # fmt: skip


def receptive_field(
    model: Module | str,
    input_shape: Sequence[int] = (1, 28, 28),
    layers: Sequence[str] | None = None,
) -> Any:
    """Draw how the receptive field grows through a model; a matplotlib Figure.

    `model` is a Module or a name of `gpuconv.models.NAMES`, which is then freshly initialised, for
    ten classes. For each layer the theoretical field of its centre pixel on the input, with those
    of the layers before it, and beside it the effective one. Other arguments and errors as in
    `layer_fields`, which has the numbers.
    """
    if isinstance(model, str):
        input_shape = check_input(input_shape)
        # Array code has nothing to compile, and is fast enough for one picture.
        with backend("numpy"):
            found = layer_fields(models.for_images(model, 10, input_shape), input_shape, layers)
        return draw(found, model, input_shape)
    found = layer_fields(model, input_shape, layers)
    return draw(found, type(model).__name__, input_shape)


def draw(found: Sequence[LayerField], name: str, input_shape: Sequence[int]) -> Any:
    """Two panels a layer: the theoretical field, and the effective one."""
    from gpuconv.viz import style

    columns = 1 if len(found) <= 3 else 2
    rows = ceil(len(found) / columns)
    size = input_shape[1:]
    tall = 2.3 * min(max(size[0] / size[1], 0.4), 2)
    width = 6.0 * columns
    figure = style.new_figure(width, rows * (tall + 0.85) + 1.3)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    panels = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for i, layer in enumerate(found):
        row, column = i % rows, i // rows * 2
        left, right = panels[row, column], panels[row, column + 1]
        kind = f" ({layer.type})" if layer.type != layer.name else ""
        beyond = any(
            start < 0 or stop > n or field > n
            for (start, stop), field, n in zip(layer.box, layer.field, size, strict=True)
        )
        left.set_title(
            f"{fill(layer.name + kind, 38)}\noutput {style.shape(layer.output_shape[1:])}\n"
            f"receptive field {style.shape(layer.field)}{', partly padding' if beyond else ''}",
            fontsize=9, color=style.INK,
        )  # fmt: skip
        _outline(left, ((0, size[0]), (0, size[1])), style.INK, "-", 1, face=style.PALE)
        for before in found[:i]:
            _outline(left, before.box, style.INK, ":", 1)
        _outline(left, layer.box, style.STRONG, "-", 2, face=style.INPUT, alpha=0.6)
        effective = [stop - start for start, stop in layer.effective]
        right.set_title(
            f"effective: {SHARE:.0%} of the gradient\nin {style.shape(effective)} pixels",
            fontsize=9, color=style.INK,
        )  # fmt: skip
        right.imshow(layer.gradient, cmap=style.HEAT, interpolation="nearest")
        _outline(right, ((0, size[0]), (0, size[1])), style.INK, "-", 1)
        _outline(right, layer.box, style.STRONG, "-", 2)
        _outline(right, layer.effective, style.NEGATIVE, "--", 2)
        margin = max(2.0, max(size) / 8)
        for axes in (left, right):
            axes.set_aspect("equal")
            axes.set_xlim(-0.5 - margin, size[1] - 0.5 + margin)
            axes.set_ylim(size[0] - 0.5 + margin, -0.5 - margin)
    figure.suptitle(
        f"{plain(name)}: what the centre pixel of a layer sees of an input "
        f"{style.shape(input_shape)}",
        fontsize=11, color=style.INK,
    )  # fmt: skip
    notes = (
        "left: what could matter, and dotted that of the layers before; around the grey input lies "
        "padding",
        f"right: the mean gradient over {IMAGES} images of noise, from dark (0) to light (most); "
        f"blue, solid: the field on the left; red, dashed: what holds {SHARE:.0%}",
    )
    figure.supxlabel("\n".join(fill(note, int(14 * width)) for note in notes), fontsize=9)
    return figure


def _outline(
    axes: Any, box: Box, colour: str, line: str, width: float, face: str = "none", alpha: float = 1
) -> None:
    """A rectangle around whole pixels; `alpha` is its face's."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    (top, bottom), (left, right) = box
    axes.add_patch(
        Rectangle(
            (left - 0.5, top - 0.5), right - left, bottom - top, edgecolor=colour,
            facecolor="none" if face == "none" else to_rgba(face, alpha), linestyle=line,
            linewidth=width,
        )
    )  # fmt: skip
