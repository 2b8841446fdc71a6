"""What all pictures share: colours, cells with numbers in them, and files that appear whole.

Colours are Okabe and Ito's, which colour-blind people tell apart, and a role has a shape, a pattern
or a word too, never a colour alone. Nothing here needs a display. matplotlib and Pillow are the
extra `viz`, and imported when something is drawn.
"""

import base64
import io
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from gpuconv.errors import ArgumentError, FileError
from gpuconv.files import StrPath, write_atomically
from gpuconv.viz.canvas import DPI, new_figure as new_figure
from gpuconv.words import count as count, shape as shape

Array = Any
# By role. Source: Okabe and Ito, "Color universal design", https://jfly.uni-koeln.de/color.
INPUT, KERNEL, OUTPUT, SUM = "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
NEGATIVE, STRONG, INK, PALE = "#D55E00", "#0072B2", "#1A1A1A", "#F0F0F0"
HEAT, SIGNED = "cividis", "PuOr_r"  # colour maps: from nothing up; around zero
SUFFIXES = (".gif", ".html", ".png")
WHOLE = 1e7  # whole numbers below are written in full
COLOURS = 64  # of a frame, which makes files small; there is no dithering
_BUTTONS = "".join(  # of triangles and lines, which every font has
    f".fa-{name}:before{{content:'{text}'}}"
    for name, text in {
        "minus": "−", "plus": "+", "play": "▶", "pause": "||", "fast-backward": "|◀◀",
        "fast-forward": "▶▶|", "step-backward": "◀|", "step-forward": "|▶",
    }.items()
)  # fmt: skip
_BUTTONS += (
    ".fa{font-style:normal;font-size:12px;white-space:nowrap}"
    ".fa-flip-horizontal{display:inline-block;transform:scaleX(-1)}"
    ".animation{font-family:sans-serif;max-width:100%}"
    ".animation img,.animation .anim-slider{max-width:100%}"  # on a narrow screen
)


def number(value: float, digits: int = 2) -> str:
    """A number as short as it can be with so many decimals: 3, -0.5, 1.25, 100001, 1.5e-06."""
    if not np.isfinite(value):
        return str(value)
    if abs(value) < 1e-12:  # what rounding leaves of 0
        return "0"
    if value == round(value) and abs(value) < WHOLE:  # so that sums of them are right
        return f"{value:.0f}"
    if not 1e-2 <= abs(value) < 1e5:
        return f"{value:.1e}"
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
    return "0" if text == "-0" else text


def equals(total: float, *terms: float, times: Fraction = Fraction(1), plus: float = 0) -> str:
    """The sign between the sum of terms, `times` a factor, and what it comes to, as both are
    written: "=", or "≈" if that is not so of the rounded numbers."""
    added = sum(Fraction(number(term)) for term in terms) * times + Fraction(number(plus))
    return "=" if added == Fraction(number(total)) else "≈"


def show_image(axes: Any, image: Array, title: str) -> None:
    """An image (C, H, W) in 0..1 on one panel: C = 3 in colour, else grey, the mean of channels."""
    image = np.clip(np.asarray(image, dtype=float), 0, 1)
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)  # antialiased where it is shrunk
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])


def panel(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Axes at so many inches from the figure's left and upper edge, which no layout moves."""
    whole_width, whole_height = figure.get_size_inches()
    bottom = (whole_height - top - height) / whole_height
    return figure.add_axes((left / whole_width, bottom, width / whole_width, height / whole_height))


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
        self.colours = colormaps[SIGNED if signed else HEAT].with_extremes(bad=PALE)
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
                        (j - 0.5, i - 0.5), 1, 1, facecolor=PALE, edgecolor="#C4C4C4",
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
        hidden = ~np.isfinite(values)
        self.image.set_data(
            np.ma.array(values, mask=hidden if self.padding is None else hidden | self.padding)
        )
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
        """Outline cells (row, column); those marked under this name before are so no more.

        A white edge keeps the outline apart from a cell of its own colour.
        """
        from matplotlib.patches import Rectangle
        from matplotlib.patheffects import withStroke

        for patch in self.marks.pop(name, []):
            patch.remove()
        self.marks[name] = [
            self.axes.add_patch(
                Rectangle(
                    (j - 0.44, i - 0.44), 0.88, 0.88, fill=False, edgecolor=colour,
                    linewidth=2.4, linestyle=style, zorder=3,
                    path_effects=[withStroke(linewidth=4.8, foreground="white")],
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
        from PIL import Image

        from gpuconv.viz.redraw import frames as drawn

        def colours(frames: Iterable[Array]) -> Any:
            return _few_colours(Image.fromarray(np.concatenate([f[::2, ::2] for f in frames])))

        # Only what has few colours is kept: a byte a pixel. Three frames say which.
        some = [0, self.frames // 2, self.frames - 1]
        palette = colours(drawn(self.figure, 3, lambda i: self.show(some[i])))
        frames = drawn(self.figure, self.frames, self.show)
        return [_few_colours(Image.fromarray(frame), palette) for frame in frames]

    def to_jshtml(self) -> str:
        """One page with the frames and matplotlib's player, which loads nothing from elsewhere.

        Its title, which is what stands for the frames where they are not seen, is the panels'.
        The first frame lies under all of them, and they hold only what differs from it.
        """
        from matplotlib.animation import HTMLWriter

        frames, title = self.images(), _words(self.figure)
        images = (_difference(frame, frames[0]) for frame in frames)

        class Writer(HTMLWriter):
            fps: Any
            _saved_frames: list[str]

            def grab_frame(self, **_: Any) -> None:
                data = _base64(next(images))
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
        under = f"background:url(data:image/png;base64,{_base64(frames[0])}) 0 0/100% 100%"
        player = player.replace("<img id=", f'<img alt="{escape(title)}" style="{under}" id=', 1)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title></head>\n<body>{player}</body></html>\n"
        )

    def _repr_html_(self) -> str:
        # A frame of its own: the page's styles are not those of the notebook around it.
        width, height = (round(inches * DPI) for inches in self.figure.get_size_inches())
        return (
            f'<iframe srcdoc="{escape(self.to_jshtml())}" title="{escape(_words(self.figure))}" '
            f'width="{width + 20}" height="{height + 110}" '
            f'style="border:0;max-width:100%"></iframe>'
        )


def _words(figure: Any) -> str:
    """The first lines of the panels' titles."""
    titles = [axes.get_title() for axes in figure.axes]
    lines = dict.fromkeys(title.split("\n")[0] for title in titles if title)
    return "; ".join(lines) or "gpuconv"


def check_target(path: StrPath, moving: bool = True) -> Path:
    """The file that a picture, `moving` or not, is to be written to, before it is made.

    ArgumentError for another suffix, FileError for a folder, or for one that is not there.
    """
    target = Path(path)
    if target.suffix.lower() not in (SUFFIXES if moving else (".png",)):
        known = ".gif, .html or .png" if moving else ".png (it does not move)"
        raise ArgumentError(f"{path}: the name must end with {known}")
    if target.is_dir():
        raise FileError(f"{path}: is a folder; name a file in it, such as {target / 'a.png'}")
    if not target.parent.is_dir():
        raise FileError(f"{path}: there is no folder {target.parent}; make it first")
    return target


def save(picture: Any, path: StrPath) -> None:
    """Write a figure (.png) or an `Animation` (.gif, .html, .png) so that it appears whole.

    ArgumentError for another suffix or a GIF of one picture, FileError if it cannot be written.
    """
    moving = isinstance(picture, Animation)
    target = check_target(path, moving)
    suffix = target.suffix.lower()
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
        data = _png(_image(picture.figure))
    write_atomically(target, data)


def _image(figure: Any) -> Any:
    """The figure as Pillow's image."""
    from PIL import Image

    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def _few_colours(image: Any, palette: Any = None) -> Any:
    from PIL import Image

    # Of Pillow's methods the one that keeps white white; the means keep pale grey grey.
    way, means = Image.Quantize.MAXCOVERAGE, 1
    return image.quantize(COLOURS, way, means, palette=palette, dither=Image.Dither.NONE)


def _difference(image: Any, other: Any) -> Any:
    """An image of the same few colours as another, transparent where the two are equal."""
    from PIL import Image

    pixels = np.asarray(image)
    result = Image.fromarray(np.where(pixels == np.asarray(other), COLOURS, pixels))
    result.putpalette([*image.getpalette(), *[255] * 3 * COLOURS][: 3 * (COLOURS + 1)])
    result.info["transparency"] = COLOURS
    return result


def _base64(image: Any) -> str:
    return base64.b64encode(_png(image)).decode("ascii")


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
