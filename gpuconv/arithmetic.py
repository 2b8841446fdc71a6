"""The arithmetic of one layer in words and numbers: `gpuconv.explain.arithmetic(...)`.

Sizes, padding and work are those of `ConvSpec` and `PoolSpec`, which the layers use.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import prod
from textwrap import wrap
from typing import Any

import numpy as np

from gpuconv.errors import ArgumentError
from gpuconv.lessons import lessons
from gpuconv.shapes import ConvSpec, IntOrInts, Ints, Padding, PoolSpec, ints
from gpuconv.words import count, lines, ranges, settings, shape

SIZE = "floor((input + before + after - dilation * (kernel - 1) - 1) / stride) + 1"  # of the output


@dataclass(frozen=True)
class Axis:
    """Height or width. `size`, `before`, `after` and `dropped` are rows (or columns) of pixels.

    `field` is what one output spans; `dropped` is how much of the padded input the floor leaves
    over at the end, and `dropped_pixels` how much of that is image, not padding; `unused` are the
    image's that no window reads, for any reason.
    """

    name: str
    size: int
    kernel: int
    stride: int
    before: int
    after: int
    dilation: int
    field: int
    output: int
    dropped: int
    dropped_pixels: int
    unused: Ints

    @property
    def formula(self) -> str:
        """The output size with the numbers in it, as in `SIZE`."""
        field = f"{self.dilation} * ({self.kernel} - 1) - 1"
        inside = f"{self.size} + {self.before} + {self.after} - {field}"
        return f"floor(({inside}) / {self.stride}) + 1 = {self.output}"

    @property
    def dropped_words(self) -> str:
        """What the floor drops: row 5 (from 0) of the image and 1 row of padding."""
        row, lost = self.line, self.dropped_pixels
        last = ranges(range(self.size - lost, self.size))
        padding = self.dropped - lost
        what = [f"{row}{'s' if lost > 1 else ''} {last} (from 0) of the image"] if lost else []
        return " and ".join(what + [f"{count(padding, row)} of padding"] * bool(padding))

    @property
    def left_out(self) -> list[str]:
        """What no window reads, and why, in a sentence each."""
        gaps = [i for i in self.unused if i < self.size - self.dropped_pixels]
        said = [f"the floor drops {self.dropped_words}"] if self.dropped else []
        if gaps:
            verb = "is" if len(gaps) == 1 else "are"
            rows = f"{self.line}{'s' * (len(gaps) > 1)} {ranges(gaps)}"
            said.append(f"{rows} (from 0) {verb} stepped over")
        return said

    @property
    def line(self) -> str:
        return "row" if self.name == "height" else "column"


@dataclass(frozen=True)
class Arithmetic:
    """All about one convolution or pooling; `print` it, or take the fields.

    `same` is whether that padding was asked for. `parameters` are weights and biases; `macs`
    multiply-accumulates of one image, 0 for pooling; `corner`, `edge` and `centre` are how many
    windows use such a pixel (the top left one, the middle of the top edge, the middle).
    """

    spec: ConvSpec | PoolSpec
    same: bool
    axes: tuple[Axis, Axis]
    weights: int
    biases: int
    macs: int
    receptive_field: Ints
    corner: int
    edge: int
    centre: int
    lessons: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return self.weights + self.biases

    @property
    def exact(self) -> bool:
        """If the windows end where the padded input ends, so that the floor drops nothing."""
        return not any(axis.dropped for axis in self.axes)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, fit for JSON."""
        found = asdict(self)
        found["axes"] = [
            {**fields, "unused": list(axis.unused), "formula": axis.formula}
            for fields, axis in zip(found["axes"], self.axes, strict=True)
        ]
        found["parameters"], found["exact"] = self.parameters, self.exact
        return found

    def __str__(self) -> str:
        spec = self.spec
        name = "convolution" if isinstance(spec, ConvSpec) else "pooling"
        shapes = f"{shape(spec.x_shape[1:])} -> {shape(spec.y_shape[1:])}"  # of one image
        height, width = self.axes
        text = wrap(f"{name} {shapes}: {settings(spec)}", 96, subsequent_indent="  ")
        fits = "exactly" if self.exact else "not exactly, which some courses call invalid"
        facts = [
            ("output size", SIZE),
            ("  height", height.formula),
            ("  width", width.formula),
            ("padding", _padding(self)),
            ("fits", f"{fits}: {each(self.axes, _steps)}"),
            ("parameters", _parameters(self)),
            ("work", _work(self)),
            ("receptive field", _field(self)),
            ("coverage", _coverage(self)),
            *(("so", lesson) for lesson in self.lessons),
        ]  # fmt: skip
        for name, fact in facts:
            start = f"  {name:17}"
            text += wrap(fact, 96, initial_indent=start, subsequent_indent=" " * len(start))
        return "\n".join(text)


def arithmetic(
    input: IntOrInts,
    kernel: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    *,
    channels: int = 1,
    filters: int | None = None,
    groups: int = 1,
    bias: bool = True,
    pooling: bool = False,
) -> Arithmetic:
    """What a convolution of one image does to sizes, and what it costs; or a `pooling`.

    `input` and `kernel` are (height, width) or one number for both; `stride` None is 1, for pooling
    the kernel; `padding` as in `gpuconv.conv2d`. `channels` and `filters` are the input's and the
    output's channels (None: one a group); pooling keeps the former. Raises ArgumentError as the
    layers do.
    """
    size = ints("explain", "input", input, 2, least=1)
    taps = ints("explain", "kernel", kernel, 2, least=1)
    (c,) = ints("explain", "channels", channels, 1, least=1)
    (g,) = ints("explain", "groups", groups, 1, least=1)
    (k,) = ints("explain", "filters", g if filters is None else filters, 1, least=1)
    spec: ConvSpec | PoolSpec
    if pooling:
        if g != 1 or filters is not None:
            raise ArgumentError(
                f"explain: pooling keeps its {count(c, 'channel')}; leave out groups and filters"
            )
        spec = PoolSpec.infer((1, c, *size), taps, stride, padding, dilation)
        weights = biases = macs = 0
    else:
        spec = ConvSpec.infer(
            (1, c, *size), (k, max(c // g, 1), *taps), 1 if stride is None else stride,
            padding, dilation, g,
        )  # fmt: skip
        weights, biases, macs = prod(spec.w_shape), k if bias else 0, spec.macs
    height, width = axes = each_axis(spec)
    rows, columns = uses(spec, 0), uses(spec, 1)
    i, j = size[0] // 2, size[1] // 2
    corner, edge, centre = (int(rows[a]) * int(columns[b]) for a, b in ((0, 0), (0, j), (i, j)))
    return Arithmetic(
        spec,
        padding == "same",
        axes,
        weights,
        biases,
        macs,
        (height.field, width.field),
        corner,
        edge,
        centre,
        tuple(lessons(spec, rows, columns)),
    )


def uses(spec: ConvSpec | PoolSpec, axis: int) -> Any:
    """How many windows read each row, for axis 0, or column: (n,), integers.

    Those of a pixel are the product of its row's and its column's, and the gradient by the input of
    a convolution whose weights are 1.
    """
    n, out = spec.x_shape[2 + axis], spec.y_shape[2 + axis]
    k, s, d = spec.kernel[axis], spec.stride[axis], spec.dilation[axis]
    before, after = spec.padding[axis]
    # A window adds 1 where it starts and takes it away after its end, in steps of the dilation.
    size = before + n + after + d
    change = np.zeros(size + -size % d, np.int32)
    change[: out * s : s] += 1
    change[d * k : d * k + out * s : s] -= 1
    steps = change.reshape(-1, d)
    return np.cumsum(steps, axis=0, dtype=np.int32, out=steps).ravel()[before : before + n]


def each_axis(spec: ConvSpec | PoolSpec) -> tuple[Axis, Axis]:
    """The height and the width of a layer of images."""
    return _axis(spec, 0), _axis(spec, 1)


def each(axes: tuple[Axis, Axis], words: Callable[[Axis], str]) -> str:
    """What there is to say of each axis, once where it is the same."""
    height, width = (words(axis) for axis in axes)
    if height == width:
        return height
    if replace(axes[0], name="") == replace(axes[1], name=""):
        return f"{height}; columns alike"
    return "; ".join(f"{axis.name}: {said}" for axis in axes if (said := words(axis)))


def _axis(spec: ConvSpec | PoolSpec, axis: int) -> Axis:
    n, out = spec.x_shape[2 + axis], spec.y_shape[2 + axis]
    k, s, d = spec.kernel[axis], spec.stride[axis], spec.dilation[axis]
    before, after = spec.padding[axis]
    field = d * (k - 1) + 1
    dropped = before + n + after - field - (out - 1) * s
    return Axis(
        name=("height", "width")[axis], size=n, kernel=k, stride=s, before=before, after=after,
        dilation=d, field=field, output=out, dropped=dropped,
        dropped_pixels=min(max(dropped - after, 0), n),
        unused=tuple(np.flatnonzero(uses(spec, axis) == 0).tolist()),
    )  # fmt: skip


def _padding(found: Arithmetic) -> str:
    if found.same:
        return f"same: {each(found.axes, _same)}"
    if not any(axis.before or axis.after for axis in found.axes):
        return 'none, also called "valid": every window lies inside the image'
    return each(found.axes, lambda axis: f"{axis.before} before and {axis.after} after")


def _same(axis: Axis) -> str:
    total = axis.before + axis.after
    reach = f"({axis.output} - 1) * {axis.stride} + {axis.field} = {axis.size + total}"
    size = f"ceil({axis.size} / {axis.stride}) = {axis.output} outputs"
    if not total:
        return f"{size} need none"
    split = f"{size} reach over {reach}, {total} more than {axis.size}: {axis.before} before"
    split += f" and {axis.after} after"
    return f"{split}, as of an odd number the extra one goes to the end" if total % 2 else split


def _steps(axis: Axis) -> str:
    room = axis.size + axis.before + axis.after - axis.field
    steps, side = f"{room} / {axis.stride}", "bottom" if axis.name == "height" else "right"
    if not axis.dropped:
        return f"{steps} = {axis.output - 1}, a whole number"
    return (
        f"{steps} is rounded down to {axis.output - 1} (remainder {axis.dropped}), which drops "
        f"{axis.dropped_words}; {axis.stride - axis.dropped} more of padding at the {side} would "
        f"give an output more"
    )


def _parameters(found: Arithmetic) -> str:
    if isinstance(found.spec, PoolSpec):
        return "none"
    weights = f"{shape(found.spec.w_shape)} = {count(found.weights, 'weight')}"
    if not found.biases:
        return f"{weights}, no bias"
    biases = "1 bias" if found.biases == 1 else f"{found.biases:,} biases"
    return f"{weights} + {biases} = {found.parameters:,}"


def _work(found: Arithmetic) -> str:
    spec = found.spec
    outputs = f"{shape(spec.y_shape[1:])} outputs"
    if isinstance(spec, PoolSpec):
        return (
            f"{outputs} of {count(prod(spec.kernel), 'pixel')} each, padding counted, no products"
        )
    each = f"{shape(spec.w_shape[1:])} multiply-accumulates (MACs)"
    return f"{outputs} x {each} = {found.macs:,}, padding counted"


def _field(found: Arithmetic) -> str:
    kernel, field = shape(found.spec.kernel), shape(found.receptive_field)
    pixels = f"{kernel} of the pixels in {field}" if kernel != field else f"{kernel} pixels"
    return f"an output reads {pixels} of this layer's input, padding counted"


def _coverage(found: Arithmetic) -> str:
    used = (
        f"the top left pixel is in {count(found.corner, 'window')}, the middle of the top edge in "
        f"{found.edge:,}, the centre in {found.centre:,}"
    )
    never = lines([axis.unused for axis in found.axes])
    return f"{used}; in none at all: {never} (from 0)" if never else used
