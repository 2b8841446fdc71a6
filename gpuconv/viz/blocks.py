"""A convolution as the GPU sees it: `tile` draws a `Trace` of the real kernel, run in the emulator.

Which block computes which outputs; which warp and thread of one block; what that block reads of the
image; what it holds in shared memory; and what it does in which order.
"""

from textwrap import fill
from typing import Any

import numpy as np

from gpuconv.shapes import ConvSpec, IntOrInts, Padding, ints
from gpuconv.viz.pipeline import Memory, Pixels, TimeLine, borders, loads, title
from gpuconv.viz.style import (
    INK,
    INPUT,
    KERNEL,
    OUTPUT,
    STRONG,
    SUM,
    Animation,
    count,
    new_figure,
    panel,
    shape,
)
from gpuconv.viz.trace import Trace, trace

Array = Any
TINTS = (INPUT, KERNEL, "#F0E442", SUM, OUTPUT, "#BBBBBB")
MOST = 24  # rounds of an animation: of more, the first and the last


def tile(
    image: IntOrInts = (16, 16),
    channels: int = 16,
    filters: int = 32,
    kernel: IntOrInts = 3,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    batch: int = 1,
    algo: str = "tiled",
    which: str = "forward",
    channels_last: bool = True,
    block: int = 0,
) -> Any:
    """How a kernel computes a convolution of `image` (H, W): blocks, threads, memory, order.

    The kernel `algo` ("tiled", "direct", or "auto" for what the library takes) runs pass `which`
    ("forward", "grad_input", "grad_weight") in the emulator, in float32; `block` is looked into. An
    `Animation` over the rounds of its pipeline, whose last frame is the sum of all; a figure for a
    kernel that has none. ArgumentError for what cannot be traced, DeviceError with no compiler.
    """
    pixels, size = ints("tile", "image", image, 2, 1), ints("tile", "kernel", kernel, 2, 1)
    for name, value in (("channels", channels), ("filters", filters), ("batch", batch)):
        ints("tile", name, value, 1, least=1)
    ints("tile", "block", block, 1)
    spec = ConvSpec.infer(
        (batch, channels, *pixels), (filters, channels, *size), stride, padding, dilation
    )
    return draw(trace(spec, which, algo, channels_last, block))


def draw(found: Trace) -> Any:
    """The picture of a trace."""
    figure = new_figure(13.2, 10.45)
    figure.set_layout_engine("none")  # every panel has its place
    first, second, result = (
        f"{role} {shape(array.shape)}"
        for role, array in zip(found.roles, (*found.inputs, found.result), strict=True)
    )
    whole = f"{found.kernel}: {first}, {second}; {result}"
    figure.text(0.5, 0.985, whole, ha="center", va="top", fontsize=12, color=INK)
    _owners(panel(figure, 0.45, 1.25, 3.65, 3.65), found)
    _threads(panel(figure, 4.8, 1.25, 3.65, 3.65), found)
    axes, lower = panel(figure, 9.1, 1.25, 3.65, 3.65), panel(figure, 0.45, 5.9, 2.6, 3.0)
    line = TimeLine(panel(figure, 6.45, 5.9, 6.0, 3.0), found)
    figure.text(0.034, 0.012, _caption(found), ha="left", va="bottom", fontsize=9, color=INK)
    if not len(found.copied):
        loads(axes, found, found.image)
        loads(lower, found, 1 - found.image)
        return figure
    pixels, memory = Pixels(axes, found), Memory(lower, found)
    said = figure.text(0.5, 0.957, "", ha="center", va="top", fontsize=10, color=STRONG)
    rounds = list(range(len(found.copied)))
    if len(rounds) > MOST:
        rounds = rounds[: MOST // 2] + rounds[-MOST // 2 :]
    busy = int((found.copied.any(1) & found.reads.any(1)).argmax())

    def show(frame: int) -> None:
        last = frame == len(rounds)
        number = busy if last else rounds[frame]
        pixels.show(number, last)
        memory.show(number)
        line.show(number)
        said.set_text(_round(found, number, last))

    return Animation(figure, len(rounds) + 1, show, 1.0)


def matrix(found: Trace, array: Array) -> Array:
    """A result (N, K, *out) as (pixels, channels), a weight's gradient as (K, taps x C)."""
    rows = len(array) if found.which == "grad_weight" else -1
    columns = -1 if found.which == "grad_weight" else array.shape[1]
    return array.transpose(0, 2, 3, 1).reshape(rows, columns)


def _regions(axes: Any, ids: Array, name: str = "", chosen: int | None = None) -> None:
    """Cells of the same number in one colour, a line around, the number in it where it fits."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    tints = 0.45 + 0.55 * np.array([to_rgb(tint) for tint in TINTS])
    colours = np.where(ids[..., None] < 0, 1.0, tints[ids % len(TINTS)])
    axes.imshow(colours, interpolation="nearest", aspect=axes.get_aspect())
    if max(ids.shape) <= 40:
        for i in range(1, ids.shape[0]):
            axes.axhline(i - 0.5, color="white", linewidth=0.6)
        for j in range(1, ids.shape[1]):
            axes.axvline(j - 0.5, color="white", linewidth=0.6)
    if chosen is not None:
        around = borders(ids == chosen, False)
        axes.add_collection(LineCollection(around, colors=STRONG, linewidths=3.2, zorder=3))
    box = axes.get_position(original=True)
    size = axes.figure.get_size_inches() * (box.width, box.height) / ids.shape[::-1]
    width, height = (size.min(), size.min()) if axes.get_aspect() != "auto" else size
    if min(width, height) > 0.05:  # smaller ones would be nothing but lines
        axes.add_collection(LineCollection(borders(ids, -1), colors=INK, linewidths=0.8, zorder=2))
    style: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "fontsize": 9,
        "color": INK,
        "zorder": 4,
    }
    for one in np.unique(ids[ids >= 0]):
        cells = np.argwhere(ids == one)
        i, j = cells[((cells - cells.mean(0)) ** 2).sum(1).argmin()]
        (left, right), (top, bottom) = _run(ids[i] == one, j), _run(ids[:, j] == one, i)
        text, place = f"{name} {one}".strip(), ((left + right) / 2, (top + bottom) / 2)
        style["weight"] = "bold" if one == chosen else "normal"
        long = (right - left + 1) * width >= 0.08 * len(text) + 0.03
        if long and (bottom - top + 1) * height >= 0.14:
            box = {"facecolor": "white", "alpha": 0.9, "linewidth": 0, "pad": 1.5}
            axes.text(*place, text, bbox=box if name else None, **style)
        elif one == chosen:
            inwards = [
                -28 if at > n / 2 else 28 for at, n in zip(place, ids.shape[::-1], strict=True)
            ]
            axes.annotate(
                text, place, (inwards[0], -inwards[1]), textcoords="offset points",
                arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 1.5},
                bbox={"facecolor": "white", "edgecolor": INK, "pad": 2}, **style,
            )  # fmt: skip


def _run(line: Array, at: int) -> tuple[int, int]:
    """The first and the last of the true values around one."""
    ends = np.flatnonzero(~line)
    return int(ends[ends < at].max(initial=-1)) + 1, int(ends[ends > at].min(initial=len(line))) - 1


def _sides(axes: Any, found: Trace, owned: Array) -> None:
    """What the rows and columns of a `matrix`, or of a part of one, are."""
    rows, columns = owned.shape
    if found.which == "grad_weight":
        _, c, *taps = found.result.shape
        whole = c * taps[0] * taps[1]
        part = f"{columns} of {whole}: " if columns < whole else ""
        axes.set_xlabel(f"{part}{shape(taps)} taps x {count(c, 'channel')}", fontsize=9)
        axes.set_ylabel(count(rows, "filter"), fontsize=9)
    else:
        axes.set_xlabel(count(columns, "channel"), fontsize=9)
        axes.set_ylabel(f"{count(rows, 'pixel')}, row after row", fontsize=9)


def _owners(axes: Any, found: Trace) -> None:
    part, n, k, *_ = np.argwhere(found.owner == found.block)[0]
    owner, parts = found.owner[part], len(found.owner)
    said = f"outlined: block {found.block} of {found.blocks:,}"
    if found.which == "grad_weight":
        _regions(axes, matrix(found, owner), chosen=found.block)
        _sides(axes, found, matrix(found, owner))
    else:
        axes.set_aspect("equal")
        _regions(axes, owner[n, k], chosen=found.block)
        more = int((owner[n] == owner[n, k]).all((1, 2)).sum()) - 1
        axes.set_xlabel(f"channel {k}" + f", and {more} more alike" * (more > 0), fontsize=9)
        said += f"; image {n} of {len(owner)}" if len(owner) > 1 else ""
    said += f"; part {part} of {parts} of each sum" if parts > 1 else ""
    size = shape(found.result.shape[2:])
    of = "" if found.which == "grad_weight" else f" {size}"
    title(axes, f"{found.roles[2]}{of}:", "which block computes what", said)


def _threads(axes: Any, found: Trace) -> None:
    from matplotlib.patches import Patch, Rectangle

    part, n, k, *_ = np.argwhere(found.owner == found.block)[0]
    thread = np.where(found.owner[part] == found.block, found.thread[part], -1)
    owned = matrix(found, thread)
    owned = owned[(owned >= 0).any(1)][:, (owned >= 0).any(0)]
    if owned.shape[1] == 1 and found.which != "grad_weight":
        first, last = np.flatnonzero((thread[n, k] >= 0).any(1))[[0, -1]]
        owned = thread[n, k, first : last + 1]
        axes.set_xlabel(
            f"rows {first} to {last} of channel {k}, each of {owned.shape[1]} pixels", fontsize=9
        )
    else:
        _sides(axes, found, owned)
    _regions(axes, np.where(owned < 0, -1, owned // 32), "warp")
    threads = np.unique(owned[owned >= 0])
    patches = []
    for one, colour in {
        threads[(len(threads) // 2 + 9) % len(threads)]: "white",
        threads[0]: INK,
    }.items():
        cells = np.argwhere(owned == one)
        style: dict[str, Any] = {"facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
        for i, j in cells:
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, zorder=3, **style))
        has = f"thread {one}, of warp {one // 32}: {count(len(cells), 'output')}"
        patches.append(Patch(label=has, **style))
    axes.legend(
        handles=patches[::-1], loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2,
        fontsize=8.5, frameon=False,
    )  # fmt: skip
    warps = count(len(np.unique(threads // 32)), "warp")
    having = (
        f"{count(int((thread >= 0).sum()), 'output')}, {count(len(threads), 'thread')}, {warps}"
    )
    title(axes, f"outputs of block {found.block}:", "which warp and thread stores what", having)


def _round(found: Trace, number: int, last: bool) -> str:
    """What happens in a round, in words."""
    rounds, reads = len(found.copied), found.reads[number]
    if last:
        return f"all {rounds} rounds; shared memory and the frame: round {number}"
    words = np.count_nonzero(found.copied[number])
    begun = f"copies of {words:,} words begin" if words else "nothing is left to copy"
    done = "nothing is there to multiply yet"
    if reads.any():
        words = np.count_nonzero(reads)
        done = f"{words:,} words of an older round are multiplied, in {reads.sum():,} reads"
    return f"round {number} of 0 to {rounds - 1}: {begun}; {done}"


def _caption(found: Trace) -> str:
    """The totals, in lines."""

    def total(*kinds: str) -> int:
        return sum(found.bytes.get(kind, 0) for kind in kinds)

    both = 4 * sum(array.size for array in found.inputs)
    loaded, read = total("global load", "global copy"), total("shared load")
    warps = count(-(-found.threads // 32), "warp")
    grid = f"{count(found.blocks, 'block')} of {warps} ({count(found.threads, 'thread')})"
    if stages := found.stages:
        grid += (
            f"; {len(stages)} pipeline stages of {4 * (stages[0][1] - stages[0][0]):,} bytes in "
            f"the shared memory of each block"
        )
    if found.others:
        grid += f". Around it run: {', '.join(dict.fromkeys(found.others))}"
    moved = (
        f"All blocks: {loaded:,} bytes loaded from global memory, {loaded / both:.1f} times the "
        f"{both:,} of the two inputs (on a GPU, caches serve repeated ones)"
    )
    if copied := total("shared copy"):
        moved += f"; {copied:,} written to shared memory by copies, zeros too"
    if read:
        moved += f"; {read:,} read from shared memory"
    where = "each word that it copies" if stages else "each number that it needs"
    reuse = f"{where} {found.reuse:.1f} times" if found.reuse else "none of the inputs"
    done = (
        f"Reuse: block {found.block} reads {reuse}. Float instructions of all threads, a "
        f"multiply-add counted as one: {found.math:,} (the convolution has {found.spec.macs:,} "
        f"multiply-adds, zeros counted), "
        f"{found.math * 4 / loaded:.1f} for each number from global memory"
    )
    if read:
        done += f", {found.math * 4 / read:.1f} for each from shared memory"
    return "\n".join(fill(f"{line}.", 185) for line in (grid, moved, done))
