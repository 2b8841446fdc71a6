"""What all pictures share: colours, cells with numbers in them, and files that appear whole.

Colours are Okabe and Ito's, which colour-blind people tell apart, and a role has a shape, a pattern
or a word too, never a colour alone. Nothing here needs a display. matplotlib and Pillow are the
extra `viz`, and imported when something is drawn.
"""

import base64
import io
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from gpuconv.errors import ArgumentError, Error
from gpuconv.files import StrPath, write_atomically

Array = Any
# By role. Source: Okabe and Ito, "Color universal design", https://jfly.uni-koeln.de/color.
INPUT, KERNEL, OUTPUT, SUM = "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
NEGATIVE, STRONG, INK, PALE = "#D55E00", "#0072B2", "#1A1A1A", "#F0F0F0"
HEAT, SIGNED = "cividis", "PuOr_r"  # colour maps: from nothing up; around zero
DPI = 100
SUFFIXES = (".gif", ".html", ".png")
COLOURS = 64  # of a frame, which makes files small; there is no dithering
_BUTTONS = "".join(
    f".fa-{name}:before{{content:'\\{code}'}}"
    for name, code in {
        "minus": "2212", "plus": "002B", "play": "25B6", "pause": "23F8", "fast-backward": "23EE",
        "fast-forward": "23ED", "step-backward": "25C0\\2009|", "step-forward": "|\\2009 25B6",
    }.items()
)  # fmt: skip
_BUTTONS += ".fa{font-style:normal}.fa-flip-horizontal{display:inline-block;transform:scaleX(-1)}"


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches, whose panels do not overlap; no display.

    Error without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Error(f'pictures need matplotlib ({error}): pip install "gpuconv[viz]"') from error
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def number(value: float, digits: int = 2) -> str:
    """A number as short as it can be with so many decimals: 3, -0.5, 1.25, 1e+06."""
    if not np.isfinite(value):
        return str(value)
    if value and not 1e-2 <= abs(value) < 1e5:
        return f"{value:.1e}"
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
    return "0" if text == "-0" else text


def shape(value: Sequence[int]) -> str:
    """A shape in words: 5 x 5."""
    return " x ".join(map(str, value))


class Grid:
    """Cells with numbers in them on one panel: a plane of an image, a kernel, a result.

    `values` is (H, W), NaN where a cell is empty. `limits` are the values of the darkest and the
    lightest colour, those of `values` if None; `signed` centres the colours on 0. `text` says
    whether numbers are written; by default they are where they are legible. `padding`, a mask
    (H, W), hatches cells that are no pixels.
    """

    def __init__(
        self,
        axes: Any,
        values: Array,
        title: str,
        *,
        signed: bool = False,
        limits: tuple[float, float] | None = None,
        text: bool | None = None,
        padding: Array | None = None,
        font: float | None = None,
        digits: int = 2,
    ) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import Normalize
        from matplotlib.patches import Rectangle

        values = np.asarray(values, dtype=float)
        self.axes, self.digits = axes, digits
        rows, columns = values.shape
        if limits is None:
            finite = values[np.isfinite(values)]
            low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
            limits = (float(low), float(high))
        if signed:
            most = max(abs(limits[0]), abs(limits[1])) or 1.0
            limits = (-most, most)
        self.colours = colormaps[SIGNED if signed else HEAT].with_extremes(bad="white")
        self.norm = Normalize(limits[0], limits[1] if limits[1] > limits[0] else limits[0] + 1)
        self.image = axes.imshow(
            np.ma.masked_invalid(values), cmap=self.colours, norm=self.norm, interpolation="nearest"
        )
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        if max(rows, columns) <= 40:
            for i in range(1, rows):
                axes.axhline(i - 0.5, color="white", linewidth=0.8)
            for j in range(1, columns):
                axes.axvline(j - 0.5, color="white", linewidth=0.8)
        if padding is not None:
            for i, j in np.argwhere(padding):
                axes.add_patch(
                    Rectangle(
                        (j - 0.5, i - 0.5), 1, 1, facecolor=PALE, edgecolor="#999999",
                        hatch="///", linewidth=0,
                    )
                )  # fmt: skip
        self.padding = padding
        legible = max(rows, columns) <= 16
        self.font = font or max(5.0, min(11.0, 70 / max(rows, columns)))
        self.texts: dict[tuple[int, int], Any] = {}
        if legible if text is None else text:
            for i in range(rows):
                for j in range(columns):
                    self.texts[i, j] = axes.text(
                        j, i, "", ha="center", va="center", fontsize=self.font
                    )
        self.marks: dict[str, list[Any]] = {}
        self.set(values)

    def set(self, values: Array, title: str | None = None) -> None:
        """Other numbers in the same cells; NaN empties one."""
        values = np.asarray(values, dtype=float)
        self.image.set_data(np.ma.masked_invalid(values))
        for (i, j), text in self.texts.items():
            value = values[i, j]
            empty = not np.isfinite(value)
            text.set_text("" if empty else number(value, self.digits))
            if not empty:
                padded = self.padding is not None and self.padding[i, j]
                text.set_color("#666666" if padded else self._ink(value))
        if title is not None:
            self.axes.set_title(title, fontsize=10, color=INK)

    def _ink(self, value: float) -> str:
        red, green, blue, _ = self.colours(self.norm(value))
        return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK

    def mark(
        self, name: str, cells: Sequence[tuple[int, int]], colour: str, style: str = "-"
    ) -> None:
        """Outline cells (row, column); those marked under this name before are so no more."""
        from matplotlib.patches import Rectangle

        for patch in self.marks.pop(name, []):
            patch.remove()
        self.marks[name] = [
            self.axes.add_patch(
                Rectangle(
                    (j - 0.44, i - 0.44), 0.88, 0.88, fill=False, edgecolor=colour,
                    linewidth=2.4, linestyle=style, zorder=3,
                )
            )
            for i, j in cells
        ]  # fmt: skip


class Animation:
    """Frames of one figure: `show(i)` draws number i of `frames`. In a notebook it plays.

    `save(path)` writes a GIF that loops, one HTML file with a player, or a PNG of the last frame.
    """

    def __init__(
        self, figure: Any, frames: int, show: Callable[[int], object], seconds: float = 0.7
    ) -> None:
        self.figure, self.frames, self.show, self.seconds = figure, frames, show, seconds

    def save(self, path: StrPath) -> None:
        """Write .gif, .html or .png; ArgumentError for another name, FileError if it fails."""
        save(self, path)

    def images(self) -> list[Any]:
        """The frames, as Pillow's images that have the same few colours."""
        frames = []
        for i in range(self.frames):
            self.show(i)
            frames.append(_image(self.figure))
            if i == 0:  # panels stay where they are, and are not laid out again
                self.figure.set_layout_engine("none")
        from PIL import Image

        some = [frames[0], frames[len(frames) // 2], frames[-1]]
        beside = Image.fromarray(np.concatenate([np.asarray(frame) for frame in some]))
        palette = _few_colours(beside)
        return [_few_colours(frame, palette) for frame in frames]

    def to_jshtml(self, title: str = "gpuconv") -> str:
        """One page with the frames and matplotlib's player, which loads nothing from elsewhere."""
        from matplotlib.animation import HTMLWriter

        images = iter(self.images())

        class Writer(HTMLWriter):
            fps: Any
            _saved_frames: list[str]

            def grab_frame(self, **_: Any) -> None:
                data = base64.encodebytes(_png(next(images))).decode("ascii")
                self._saved_frames.append(data)

        with TemporaryDirectory() as folder:
            path = Path(folder, "player.html")
            writer = Writer(embed_frames=True, default_mode="loop")
            writer.fps = 1 / self.seconds
            with writer.saving(self.figure, str(path), DPI):
                for _ in range(self.frames):
                    writer.grab_frame()
            player = path.read_text(encoding="utf-8")
        # Its buttons are drawn with a font from another site: letters of this page's do.
        player = re.sub(r"<link[^>]*>", lambda _: f"<style>{_BUTTONS}</style>", player, count=1)
        player = player.replace("<img id=", f'<img alt="{escape(title)}" id=', 1)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{escape(title)}</title></head>\n<body>{player}</body></html>\n"
        )

    def _repr_html_(self) -> str:
        return self.to_jshtml()


def save(picture: Any, path: StrPath) -> None:
    """Write a figure (.png) or an `Animation` (.gif, .html, .png) so that it appears whole.

    ArgumentError for another suffix or a GIF of one picture, FileError if it cannot be written.
    """
    target = Path(path)
    suffix, moving = target.suffix.lower(), isinstance(picture, Animation)
    if suffix not in (SUFFIXES if moving else (".png",)):
        known = ".gif, .html or .png" if moving else ".png (it does not move)"
        raise ArgumentError(f"{path}: the name must end with {known}")
    if suffix == ".html":
        data = picture.to_jshtml().encode()
    elif suffix == ".gif":
        first, *others = picture.images()
        stream = io.BytesIO()
        first.save(
            stream, "GIF", save_all=True, append_images=others, loop=0, optimize=True,
            duration=[*[round(picture.seconds * 1000)] * len(others), 2000],
        )  # fmt: skip
        data = stream.getvalue()
    else:
        if moving:
            picture.show(picture.frames - 1)
        data = _png(_few_colours(_image(picture.figure if moving else picture)))
    write_atomically(target, data)


def _image(figure: Any) -> Any:
    """The figure as Pillow's image."""
    from PIL import Image

    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def _few_colours(image: Any, palette: Any = None) -> Any:
    from PIL import Image

    return image.quantize(COLOURS, palette=palette, dither=Image.Dither.NONE)


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
