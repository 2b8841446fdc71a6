"""The two gradients of a convolution, a position a frame, with the sum written out."""

import textwrap
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

from gpuconv import words
from gpuconv.arithmetic import each, each_axis
from gpuconv.shapes import IntOrInts, Padding
from gpuconv.viz import presets
from gpuconv.viz.gradients import Gradient, gradient
from gpuconv.viz.sheet import (
    GAP,
    LINE,
    MARGIN,
    TITLE,
    Plane,
    bracketed,
    cell_size,
    moving,
    say,
    shown,
)
from gpuconv.viz.style import NEGATIVE, PALE, STRONG, Array, Grid, new_figure, number
from gpuconv.words import settings, shape, short

TERMS = 9  # of a sum that is written out


def backward(
    image: Any = (5, 5),
    kernel: Any = (3, 3),
    gy: Array | None = None,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    of: str = "input",
    seed: int = 0,
    frame: int | None = None,
) -> Any:
    """A gradient of a convolution, one of its numbers a frame; a figure of one `frame` (from 1).

    `image` (H, W) and `kernel` (R, S) are sizes, whose numbers then come from `seed`, or arrays;
    `gy`, the output's gradient (P, Q), comes from `seed` if None. `stride`, `padding`, `dilation`
    as in `gpuconv.conv2d`. `of` "input": the rotated kernel slides over the output's gradient;
    "weight": the output's gradient slides over the input. Of more than 120 numbers as many are
    frames. ArgumentError for what `conv2d` does not take, and for what is too large to be drawn.
    """
    data = gradient(
        image, kernel, gy, stride=stride, padding=padding, dilation=dilation, of=of, seed=seed
    )
    presets.check_drawable("what the kernel slides over", data.plane.shape)
    total = data.result.size
    positions = shown(data.result.shape, frame, f"gradient by {of}")
    few = f"\n{len(positions)} of {total} positions are shown" if 1 < len(positions) < total else ""
    return moving(*_draw(data, few), positions, frame)


def _draw(data: Gradient, few: str) -> tuple[Any, Callable[[int], None]]:
    """The figure, and what draws a position, counted along the result's rows, into it."""
    rows = _rows(data)
    spans = [sum(plane.width + GAP for plane, _ in row.values()) - GAP for row in rows]
    width = max(*spans, 7.6)
    head = _wrapped(_heading(data) + few, width, 10.5)
    sums = [_wrapped(_sum(data, i, j), width, 10.5) for i, j in np.ndindex(data.result.shape)]
    tops, end = [], MARGIN + len(head) * LINE - 0.05
    for row in rows:
        tops.append(end)
        end += max(plane.height for plane, _ in row.values()) + 0.2
    foot = end + max(map(len, sums)) * LINE + 0.15
    figure = new_figure(width + 2 * MARGIN, foot + 0.4)
    figure.set_layout_engine("none")  # every plane has its place
    middle = MARGIN + width / 2
    say(figure, middle, MARGIN - 0.1, "\n".join(head), 10.5, ha="center")
    line = say(figure, middle, end, "", 10.5, ha="center")
    grids = {}
    for row, span, top in zip(rows, spans, tops, strict=True):
        tallest = max(plane.height for plane, _ in row.values())
        left, edge, between = middle - span / 2, 0.0, ""
        for name, (plane, sign) in row.items():
            grids[name] = plane.draw(figure, left, top + (tallest - plane.height) / 2)
            start = left + (plane.width - plane.across) / 2
            level = top + TITLE + (tallest - TITLE) / 2
            say(figure, (edge + start) / 2, level, between, 17, ha="center", va="center")
            left, edge, between = left + plane.width + GAP, start + plane.across, sign
    _legend(data, figure, grids, foot)

    def show(position: int) -> None:
        i, j = divmod(position, data.result.shape[1])
        now = f"{data.name}[{i}, {j}]"
        lies = [divmod(cell, data.plane.shape[1]) for cell in data.cells[i, j].ravel().tolist()]
        grids["plane"].mark("window", lies, STRONG)
        met = "window" if data.of == "input" else f"pixels that w[{i}, {j}] met"
        grids["window"].set(data.reads[i, j], f"{met}\n{shape(data.kernel.shape)}")
        grids["products"].set(data.reads[i, j] * data.kernel, f"products, whose sum\nis {now}")
        done = np.arange(data.result.size).reshape(data.result.shape) <= position
        grids["result"].set(np.where(done, data.result, np.nan))
        grids["result"].mark("now", [(i, j)], STRONG)
        line.set_text("\n".join(sums[position]))

    return figure, show


def _rows(data: Gradient) -> list[dict[str, tuple[Plane, str]]]:
    """Planes, each with the sign after it: what slides over what, its result; one position."""
    by_input, small = data.of == "input", shape(data.kernel.shape)

    def plane(values: Array, title: str, sign: str = "", **options: Any) -> tuple[Plane, str]:
        every = values.reshape(-1, *values.shape[-2:])
        most = 1.6 * float(np.abs(values).max())  # pale colours, on which outlines stand out
        limits: dict[str, Any] = {"signed": True, "limits": (-most, most)}
        size = cell_size(every, every.shape[1:], 0.42)
        return Plane(every[0], title, size, **(limits | options)), sign

    padded = f"{words.padding(data.pads)}\n{shape(data.plane.shape)}"
    hatched = {"padding": data.padding} if data.padding.any() else {}
    result = plane(data.result, f"gradient by {data.of} {data.name}\n{shape(data.result.shape)}")
    products = plane(data.reads * data.kernel, "products, whose sum\nis " + f"{data.name}[0, 0]")
    gy = f"output's gradient gy\n{shape(data.gy.shape)}"
    apart = "" if max(data.apart) == 1 else f", {short(data.apart)} apart"
    if not by_input:
        apart += " (stride)" if apart else ""
        return [
            {"plane": plane(data.plane, f"input x, {padded}", **hatched), "result": result},
            {
                "window": plane(data.reads, f"pixels that w[0, 0] met\n{small}", "\u00d7"),
                "kernel": plane(data.gy, gy + apart, "="),
                "products": products,
            },
        ]
    apart += " (dilation)" if apart else ""
    spread = "" if max(data.spec.stride) == 1 else f", spread by stride {short(data.spec.stride)}"
    return [
        {
            "gy": plane(data.gy, gy, "\u2192"),
            "plane": plane(data.plane, f"gy{spread}, {padded}", **hatched),
            "result": result,
        },
        {
            "w": plane(data.w, f"kernel w\n{small}", "\u2192"),
            "kernel": plane(data.kernel, f"w rotated by 180\u00b0\n{small}{apart}", "\u00d7"),
            "window": plane(data.reads, f"window\n{small}", "="),
            "products": products,
        },
    ]


def _legend(data: Gradient, figure: Any, grids: dict[str, Grid], top: float) -> None:
    """Mark the zeros of the stride and the unused pixels, and say below what the marks mean."""
    from matplotlib.patches import Patch, Rectangle

    hatch: dict[str, Any] = {"facecolor": PALE, "edgecolor": "#999999", "linewidth": 0}
    dots = hatch | {"facecolor": "white", "hatch": "..."}
    for i, j in np.argwhere(data.spread):
        grids["plane"].axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **dots))
    if data.unused.any():
        (above, _), (left, _) = data.pads if data.of == "weight" else ((0, 0), (0, 0))
        cells = [(i + above, j + left) for i, j in np.argwhere(data.unused).tolist()]
        grids["plane" if data.of == "weight" else "result"].mark("unused", cells, NEGATIVE, ":")
    edge = {"linewidth": 0.8}
    outline: dict[str, Any] = {"fill": False, "linewidth": 2.4}
    signs = [
        (True, Patch(label="window and its sum", edgecolor=STRONG, **outline)),
        (data.padding.any(), Patch(label="padding", hatch="///", **(hatch | edge))),
        (data.spread.any(), Patch(label="zeros put in by the stride", **(dots | edge))),
        (
            data.unused.any(),
            Patch(label="in no window", edgecolor=NEGATIVE, linestyle=":", **outline),
        ),
    ]
    handles = [patch for there, patch in signs if there]
    figure.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1 - top / figure.get_figheight()),
        ncols=len(handles), fontsize=9, frameon=False, borderaxespad=0,
    )  # fmt: skip


def _heading(data: Gradient) -> str:
    spec, by_input = data.spec, data.of == "input"
    lines = [
        f"Convolution of input {shape(data.x.shape)}, {settings(spec)}: "
        f"output\xa0{shape(data.gy.shape)}"
    ]
    count = int(data.unused.sum())
    if count:
        effect = "their gradient is 0" if by_input else "they add nothing"
        why = each(each_axis(spec), lambda axis: "; ".join(axis.left_out))
        lines += [f"{count} of {data.x.size} pixels are in no window, so {effect}:", why]
    how = "the rotated kernel" if by_input else "the output's gradient, as a kernel,"
    over = "the output's gradient" if by_input else "the input"
    lines.insert(1, f"Its gradient by {data.of}: {how} slides over {over}")
    return "\n".join(lines)


def _sum(data: Gradient, i: int, j: int) -> str:
    """How `result[i, j]` comes about, in numbers; the zeros that were put in are left out."""
    real = ~(data.padding | data.spread).ravel()[data.cells[i, j]].ravel()
    pairs = zip(data.reads[i, j].ravel()[real], data.kernel.ravel()[real], strict=True)
    terms = [f"{bracketed(value)} \u00d7 {bracketed(by)}" for value, by in pairs]
    if not terms:
        what = "number of gy" if data.of == "input" else "pixel of x"
        return f"{data.name}[{i}, {j}] = 0: no {what} is in the window"
    more = [f"({len(terms) - TERMS} more)"] if len(terms) > TERMS else []
    total = number(data.result[i, j])
    return f"{data.name}[{i}, {j}] = {' + '.join(terms[:TERMS] + more)} = {total}"


def _wrapped(text: str, width: float, font: float) -> list[str]:
    """Lines of at most so many inches."""
    most = int(width / (0.57 * font / 72))  # wide ones are rarer here than narrow ones
    kept = text.replace(" x ", "\xa0x\xa0").replace(" × ", "\xa0×\xa0")  # together
    return list(chain(*(textwrap.wrap(line, most) for line in kept.split("\n"))))
