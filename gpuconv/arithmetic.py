"""The arithmetic of one layer in words and numbers: `gpuconv.explain.arithmetic(...)`.

Sizes, padding and work are those of `ConvSpec` and `PoolSpec`, which the layers use; how often a
pixel is used is a gradient (`gpuconv.viz.visits`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from textwrap import wrap
from typing import Any

import numpy as np

from gpuconv.errors import ArgumentError
from gpuconv.lessons import lessons, times
from gpuconv.shapes import ConvSpec, IntOrInts, Ints, Padding, Pads, PoolSpec, ints


@dataclass(frozen=True)
class Axis:
    """Height or width. `size`, `before`, `after` and `dropped` are rows (or columns) of pixels.

    `field` is what one output sees; `dropped` is how much of the padded input the floor leaves over
    at the end, and `dropped_pixels` how much of that is image, not padding; `unused` are those that
    no window meets, for any reason.
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
        """The output size with the numbers in it."""
        field = f"{self.dilation} * ({self.kernel} - 1) - 1"
        inside = f"{self.size} + {self.before} + {self.after} - {field}"
        return f"floor(({inside}) / {self.stride}) + 1 = {self.output}"


@dataclass(frozen=True)
class Arithmetic:
    """All about one convolution or pooling; `print` it, or take the fields.

    `asked` is the padding as it was asked for. `parameters` are weights and biases; `macs`
    multiply-accumulates of one image, 0 for pooling; `corner`, `edge` and `centre` are how many
    windows use such a pixel (the top left one, the middle of the top edge, the middle).
    """

    spec: ConvSpec | PoolSpec
    asked: str
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
        shapes = f"{times(spec.x_shape[1:])} -> {times(spec.y_shape[1:])}"  # of one image
        height, width = self.axes
        lines = wrap(f"{name} {shapes}: {settings(spec)}", 96, subsequent_indent="  ")
        fits = "exactly" if self.exact else "not exactly, which some courses call invalid"
        facts = [
            ("output size", "floor((input + before + after - dilation * (kernel - 1) - 1) / stride)"
             " + 1"),
            ("  height", height.formula),
            ("  width", width.formula),
            ("padding", _padding(self)),
            ("fits", f"{fits}: {_each(self.axes, _steps)}"),
            ("parameters", _parameters(self)),
            ("work", _work(self)),
            ("field", f"an output sees {times(self.receptive_field)} pixels of this layer's input"
             ", padding counted (the receptive field)"),
            ("visits", _visits(self)),
            *(("so", lesson) for lesson in self.lessons),
        ]  # fmt: skip
        for name, text in facts:
            start = f"  {name:13}"
            lines += wrap(text, 96, initial_indent=start, subsequent_indent=" " * len(start))
        return "\n".join(lines)


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
    from gpuconv.viz.visits import visits

    size = ints("explain", "input", input, 2, least=1)
    taps = ints("explain", "kernel", kernel, 2, least=1)
    (c,) = ints("explain", "channels", channels, 1, least=1)
    (g,) = ints("explain", "groups", groups, 1, least=1)
    (k,) = ints("explain", "filters", g if filters is None else filters, 1, least=1)
    spec: ConvSpec | PoolSpec
    if pooling:
        if g != 1 or filters is not None:
            raise ArgumentError(
                f"explain: pooling keeps its {_many(c, 'channel')}; leave out groups and filters"
            )
        spec = PoolSpec.infer((1, c, *size), taps, stride, padding, dilation)
        weights = biases = macs = 0
    else:
        spec = ConvSpec.infer(
            (1, c, *size), (k, max(c // g, 1), *taps), 1 if stride is None else stride,
            padding, dilation, g,
        )  # fmt: skip
        weights, biases, macs = prod(spec.w_shape), k if bias else 0, spec.macs
    # Each axis by itself: the counts of an image are the products of its rows' and its columns'.
    seen = [
        visits((n, 1), (r, 1), (s, 1), (pads, (0, 0)), (d, 1)).counts[:, 0]
        for n, r, s, pads, d in zip(
            size, taps, spec.stride, spec.padding, spec.dilation, strict=True
        )
    ]
    axes = _axis(spec, 0, seen[0]), _axis(spec, 1, seen[1])
    rows, columns = seen
    i, j = size[0] // 2, size[1] // 2
    corner, edge, centre = (int(rows[a] * columns[b]) for a, b in ((0, 0), (0, j), (i, j)))
    return Arithmetic(
        spec,
        padding if isinstance(padding, str) else sides(spec.padding),
        axes,
        weights,
        biases,
        macs,
        (axes[0].field, axes[1].field),
        corner,
        edge,
        centre,
        tuple(lessons(spec, corner, centre)),
    )


def settings(spec: ConvSpec | PoolSpec) -> str:
    """A layer's settings in words: kernel 3 x 3, stride 2, padding 1."""
    words = [f"kernel {times(spec.kernel)}", f"stride {_alike(spec.stride)}"]
    words.append(f"padding {sides(spec.padding)}")
    if max(spec.dilation) > 1:
        words.append(f"dilation {_alike(spec.dilation)}")
    if isinstance(spec, ConvSpec) and spec.groups > 1:
        words.append(f"{spec.groups} groups")
    return ", ".join(words)


def sides(padding: Pads) -> str:
    """Padding (before, after) of height and width in words: 1, or that of each side."""
    (top, bottom), (left, right) = padding
    if top == bottom == left == right:
        return str(top)
    return f"top {top}, bottom {bottom}, left {left}, right {right}"


def _axis(spec: ConvSpec | PoolSpec, axis: int, counts: Any) -> Axis:
    n, out = spec.x_shape[2 + axis], spec.y_shape[2 + axis]
    k, s, d = spec.kernel[axis], spec.stride[axis], spec.dilation[axis]
    before, after = spec.padding[axis]
    field = d * (k - 1) + 1
    dropped = before + n + after - field - (out - 1) * s
    return Axis(
        name=("height", "width")[axis], size=n, kernel=k, stride=s, before=before, after=after,
        dilation=d, field=field, output=out, dropped=dropped,
        dropped_pixels=min(max(dropped - after, 0), n),
        unused=tuple(np.flatnonzero(counts == 0).tolist()),
    )  # fmt: skip


def _each(axes: tuple[Axis, Axis], words: Callable[[Axis], str]) -> str:
    """What there is to say of each axis, once where it is the same."""
    height, width = (words(axis) for axis in axes)
    if height == width:
        return height
    if replace(axes[0], name="") == replace(axes[1], name=""):
        return f"{height}; columns alike"
    return f"height: {height}; width: {width}"


def _padding(found: Arithmetic) -> str:
    if found.asked == "same":
        return f"same: {_each(found.axes, _same)}"
    if not any(axis.before or axis.after for axis in found.axes):
        return 'none, also called "valid": every window lies inside the image'
    return _each(found.axes, lambda axis: f"{axis.before} before and {axis.after} after")


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
    steps = f"{room} / {axis.stride} = {room / axis.stride:.4g}"
    if not axis.dropped:
        return f"{steps}, a whole number"
    row, side = ("row", "bottom") if axis.name == "height" else ("column", "right")
    lost, padding = axis.dropped_pixels, axis.dropped - axis.dropped_pixels
    what = [f"{_many(padding, row)} of padding"] if padding else []
    if lost:
        last = ranges(range(axis.size - lost, axis.size))
        what = [f"{row}{'s' if lost > 1 else ''} {last} (from 0) of the image", *what]
    return (
        f"{steps} is rounded down to {axis.output - 1}, which drops {' and '.join(what)}; "
        f"{axis.stride - axis.dropped} more of padding at the {side} would give an output more"
    )


def _parameters(found: Arithmetic) -> str:
    if isinstance(found.spec, PoolSpec):
        return "none"
    weights = f"{times(found.spec.w_shape)} = {_many(found.weights, 'weight')}"
    if not found.biases:
        return f"{weights}, no bias"
    biases = "1 bias" if found.biases == 1 else f"{found.biases:,} biases"
    return f"{weights} + {biases} = {found.parameters:,}"


def _work(found: Arithmetic) -> str:
    spec = found.spec
    outputs = f"{times(spec.y_shape[1:])} outputs"
    if isinstance(spec, PoolSpec):
        return f"{outputs} of {prod(spec.kernel)} pixels each, no multiplication"
    each = f"{times(spec.w_shape[1:])} multiply-accumulates (MACs)"
    return f"{outputs} x {each} = {found.macs:,}, padding counted"


def _visits(found: Arithmetic) -> str:
    used = (
        f"a corner pixel is in {_many(found.corner, 'window')}, one in the middle of the top edge "
        f"in {found.edge}, the centre in {found.centre}"
    )
    never = unused([axis.unused for axis in found.axes])
    return f"{used}; in none at all: {never} (from 0)" if never else used


def _alike(numbers: Sequence[int]) -> str:
    """One number where all are the same."""
    return str(numbers[0]) if len(set(numbers)) == 1 else times(numbers)


def _many(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def unused(axes: Sequence[Ints]) -> str:
    """Rows and columns in words: rows 3 to 5 and column 31; empty if there are none."""
    named = zip(("row", "column"), axes, strict=True)
    return " and ".join(f"{name}{'s' * (len(n) > 1)} {ranges(n)}" for name, n in named if n)


def ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers, those in a row joined: 0 to 2, 5; of many parts only the first."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1][1:] = [n]
        else:
            parts.append([n])
    words = [" to ".join(map(str, part)) for part in parts[:5]]
    return ", ".join([*words, "..."] if len(parts) > 5 else words)
