"""What one block of a kernel does, from round to round: the lower panels of `gpuconv.viz.tile`."""

from typing import Any

import numpy as np

from gpuconv.viz.style import (
    INK,
    INPUT,
    KERNEL,
    NEGATIVE,
    OUTPUT,
    STRONG,
    SUM,
    Grid,
    count,
    shape,
)
from gpuconv.viz.trace import KINDS, ZERO, Trace

Array = Any
LINES = {  # kinds of instructions: what they are called here, and their colour
    "global load": ("load from global memory", INPUT),
    "copy": ("copy global to shared (cp.async)", KERNEL),
    "commit": ("commit a group of copies", KERNEL),
    "wait": ("wait for an older group", NEGATIVE),
    "barrier": ("barrier: all of the block", INK),
    "shared load": ("read shared memory", INPUT),
    "shared store": ("write shared memory", STRONG),
    "math": ("multiply, add", SUM),
    "global store": ("store to global memory", OUTPUT),
    "other": ("index arithmetic, branches", "#999999"),
}
BANKS = 32  # words of shared memory side by side
BINS = 300  # of the time line: of two pixels


def title(axes: Any, *lines: str) -> None:
    """Of a panel without numbers at its sides."""
    axes.set_title("\n".join(lines), fontsize=9.5, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])


def borders(ids: Array, outside: Any) -> list[Any]:
    """Lines between neighbouring cells that differ, and around what is not `outside`."""
    wide = np.pad(ids, 1, constant_values=outside)
    upright = np.argwhere(wide[:, 1:] != wide[:, :-1])
    flat = np.argwhere(wide[1:] != wide[:-1])
    return [
        *([(j - 0.5, i - 1.5), (j - 0.5, i - 0.5)] for i, j in upright),
        *([(j - 1.5, i - 0.5), (j - 0.5, i - 0.5)] for i, j in flat),
    ]


def loads(axes: Any, found: Trace, index: int) -> tuple[Grid, int, int]:
    """Draw how often the block read each number of an input, of one channel if all are alike.

    Returns the grid, the image of the batch that it shows, and by what its numbers are divided.
    """
    read, role = found.loads[index], found.roles[index]
    verb = "copies" if len(found.copied) else "loads"
    n, each = 0, 1
    if role == "weight":
        k, c, *taps = read.shape
        values = read.transpose(0, 2, 3, 1).reshape(k, -1)
        of = f"{k} filters x ({shape(taps)} taps x {c} channels)"
        said = ""
    else:
        n = int(read.any((1, 2, 3)).argmax())
        values, used = read[n].sum(0), read[n][read[n].any((1, 2))]
        of, said = f"{shape(values.shape)} pixels", f"{read.shape[1]} channels together"
        if len(used) and (used == used[0]).all():
            each, said = len(used), f"in {len(used)} of {count(len(read[n]), 'channel')}, all alike"
        of += f"; image {n} of {len(read)}" if len(read) > 1 else ""
    values = values / each
    most, legible = float(values.max()), max(values.shape) <= 20
    if not legible and (values == most).all():
        said += f": {most:g} times"
    grid = Grid(
        axes, np.where(values > 0, values, np.nan), "", limits=(0, most), text=legible, font=8,
        digits=0,
    )  # fmt: skip
    axes.set_aspect("auto" if role == "weight" else "equal")
    how = f"how often block {found.block} {verb} each"
    lines = (how + said, "") if role == "weight" else (how, said)
    title(axes, f"{role}: {of}", *filter(None, lines))
    if not legible and (values != most).any():
        bar = axes.figure.colorbar(grid.image, cax=axes.inset_axes((1.03, 0, 0.035, 1)))
        bar.ax.tick_params(labelsize=8)
        bar.locator.set_params(integer=True)
    return grid, n, each


class Pixels:
    """The image, and how often each pixel was copied so far."""

    def __init__(self, axes: Any, found: Trace) -> None:
        from matplotlib.collections import LineCollection

        self.axes = axes
        self.grid, n, self.each = loads(axes, found, found.image)
        self.rows = found.rows[:, n]
        self.lines = LineCollection([], colors=NEGATIVE, linewidths=2.6, zorder=3)
        axes.add_collection(self.lines)

    def show(self, number: int, last: bool) -> None:
        values = self.rows[: None if last else number + 1].sum(0) / self.each
        self.grid.set(np.where(values > 0, values, np.nan))
        self.lines.set_segments([] if last else borders(self.rows[number] > 0, False))
        said = "in all rounds" if last else "so far; outlined: pixels whose copies begin now"
        self.axes.set_xlabel(said, fontsize=9)


class Memory:
    """Shared memory, 32 words in a row: what is in it, and what becomes of it."""

    def __init__(self, axes: Any, found: Trace) -> None:
        from matplotlib.colors import to_rgb
        from matplotlib.patches import Patch, Rectangle

        self.found = found
        rows = -(-found.stages[-1][1] // BANKS)
        tints = [to_rgb(tint) for tint in ("white", INPUT, KERNEL, "#BBBBBB")]
        self.colours = 0.3 + 0.7 * np.array(tints)
        self.image = axes.imshow(
            np.ones((rows, BANKS, 3)), aspect="auto", interpolation="nearest",
            extent=(0, BANKS, rows, 0),
        )  # fmt: skip
        (self.dots,) = axes.plot([], [], "s", markersize=1.4, color=INK)
        self.frames, self.states = [], []
        for first, end in found.stages:
            top, height = first / BANKS, (end - first) / BANKS
            frame = Rectangle((0, top), BANKS, height, fill=False, clip_on=False, zorder=3)
            self.frames.append(axes.add_patch(frame))
            place = BANKS * 1.05, top + height / 2
            self.states.append(axes.text(*place, "", fontsize=8.5, va="center", color=INK))
        names = {1: found.roles[0], 2: found.roles[1], ZERO: "zeros beyond the edges"}
        handles = [
            Patch(facecolor=self.colours[i], edgecolor=INK, label=name) for i, name in names.items()
        ]
        handles += axes.plot([], [], "s", markersize=3, color=INK, label="read by thread 0 now")
        axes.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(-0.06, -0.02), ncols=2,
            fontsize=8.5, frameon=False, columnspacing=1.0,
        )  # fmt: skip
        size = 4 * found.copied.shape[1]
        title(axes, f"shared memory of block {found.block}: {size:,} bytes", "32 words in a row")

    def show(self, number: int) -> None:
        found, held = self.found, np.zeros(self.image.get_array().shape[:2], np.int8)
        flat = held.reshape(-1)
        for words in found.copied[: number + 1, : flat.size]:
            flat[words > 0] = words[words > 0]
        self.image.set_data(self.colours[held])
        words = np.flatnonzero(found.mine[number])
        self.dots.set_data(words % BANKS + 0.5, words // BANKS + 0.5)
        for stage, frame, state in zip(found.stages, self.frames, self.states, strict=True):
            text, colour, style = self._state(number, *stage)
            state.set_text(text)
            frame.set(edgecolor=colour, linestyle=style, linewidth=1.0 if style == ":" else 2.6)

    def _state(self, number: int, first: int, end: int) -> tuple[str, str, str]:
        """Of a stage in a round: in words, and the colour and style of its frame."""
        copied, reads = self.found.copied[:, first:end], self.found.reads[:, first:end]
        if copied[number].any():
            return "copies to here\nbegin", NEGATIVE, "--"
        filled = np.flatnonzero(copied[:number].any(1))
        if reads[number].any():
            times = reads[number][copied[filled[-1]] > 0]
            least, most = times.min(), times.max()
            span = f"{least}" if least == most else f"{least} to {most}"
            return f"multiplied:\neach word read\n{span} times", STRONG, "-"
        used = np.flatnonzero(reads[:number].any(1))
        if not filled.size:
            return "empty", INK, ":"
        return ("used up" if used.size and used[-1] > filled[-1] else "copies under way"), INK, ":"


class TimeLine:
    """What the block's warps do, one kind of instruction a line."""

    def __init__(self, axes: Any, found: Trace) -> None:
        from matplotlib.colors import to_rgb

        total = len(found.kinds)
        self.ends = [*found.starts.tolist(), total]
        kinds = [kind for kind in LINES if (found.kinds == KINDS.index(kind)).any()]
        picture = np.ones((len(kinds), min(BINS, total), 3))
        for row, kind in enumerate(kinds):
            at = np.flatnonzero(found.kinds == KINDS.index(kind))
            picture[row, at * picture.shape[1] // total] = to_rgb(LINES[kind][1])
            axes.text(total * 1.01, row, f"{len(at):,}", va="center", fontsize=8.5, color=INK)
        axes.imshow(
            picture, aspect="auto", interpolation="nearest",
            extent=(0, total, len(kinds) - 0.5, -0.5),
        )  # fmt: skip
        for row in range(1, len(kinds)):
            axes.axhline(row - 0.5, color="white", linewidth=5)
        axes.set_yticks(range(len(kinds)), [LINES[kind][0] for kind in kinds])
        axes.tick_params(length=0, labelsize=8.5)
        axes.set_xlabel(
            "instructions of its warps, in the order of the emulator, which has no clock",
            fontsize=9,
        )
        axes.set_title(
            f"block {found.block}: what its warps do" + ", by rounds" * (len(self.ends) > 1),
            fontsize=9.5, color=INK, pad=18,
        )  # fmt: skip
        shown = -total
        for number, (start, end) in enumerate(zip(self.ends, self.ends[1:], strict=False)):
            middle = (start + end) / 2
            if min(end - start, middle - shown) > total * 0.03:
                axes.text(middle, -0.62, str(number), ha="center", fontsize=8.5, color=INK)
                shown = middle
        if len(self.ends) > 1:
            self.frame = axes.axvspan(0, 0, fill=False, edgecolor=STRONG, linewidth=2.4, zorder=3)

    def show(self, number: int) -> None:
        start, end = self.ends[number : number + 2]
        self.frame.set(x=start - self.ends[-1] * 0.008, width=end - start)
