"""Figures whose text is drawn as it is written, in a notebook too; no display is needed.

matplotlib takes what stands between two dollars for a formula, which names of files and of classes
are not, and it knows no fonts but the first for letters that this one lacks.
"""

import logging
from collections.abc import Iterable
from functools import cache
from io import BytesIO
from typing import Any

from gpuconv.errors import Error

DPI = 100
FALLBACKS = (  # for names in other scripts, if they are installed
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Source Han Sans SC", "IPAexGothic",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans",
    "Arial Unicode MS", "Unifont", "Noto Sans", "FreeSans", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Emoji",
)  # fmt: skip
_log = logging.getLogger("gpuconv")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches, whose panels do not overlap; no display.

    A notebook shows it. Error without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = _figure()(figsize=(width, height), dpi=DPI, layout="constrained")
    except ImportError as error:
        raise Error(f'pictures need matplotlib ({error}): pip install "gpuconv[viz]"') from error
    FigureCanvasAgg(figure)
    return figure


@cache
def _figure() -> Any:
    """The class of our figures."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Base
    from matplotlib.text import Text

    class Figure(Base):
        def draw(self, renderer: Any) -> None:
            as_written(self.findobj(Text))
            with rc_context({"text.parse_math": False}):  # ticks are made when they are drawn
                super().draw(renderer)

        def _repr_png_(self) -> bytes:
            stream = BytesIO()
            self.savefig(stream, format="png")
            return stream.getvalue()

    return Figure


def as_written(parts: Iterable[Any]) -> None:
    """Those of these parts of a figure that are text have no formulas, and all fonts' letters."""
    from matplotlib.text import Text

    for part in parts:
        if isinstance(part, Text):
            part.set_parse_math(False)
            if not part.get_text().isascii() and _fallbacks():
                families = part.get_fontfamily()
                missing = [name for name in _fallbacks() if name not in families]
                if missing:
                    part.set_fontfamily([*families, *missing])


def plain(text: str) -> str:
    """A name from outside, of a file or a class, as it can be drawn: one line, of known letters.

    What no installed font has is a box, and one line of the log says so.
    """
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "�" for c in text)
    if text.isascii():
        return text
    known = _letters()
    unknown = "".join(sorted({c for c in text if ord(c) not in known}))
    if unknown:
        _log.warning(
            "no font has the letters %s of %r, which are drawn as boxes; install one that has, "
            "such as Noto Sans CJK", unknown, text,
        )  # fmt: skip
    return "".join(c if ord(c) in known else "□" for c in text)


@cache
def _fallbacks() -> tuple[str, ...]:
    """Those of the fonts that are installed."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FALLBACKS if name in installed)


@cache
def _letters() -> frozenset[int]:
    """The characters that the first font or a fallback has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    found: set[int] = set()
    for family in ("sans-serif", *_fallbacks()):
        found |= set(get_font(findfont(FontProperties(family=[family]))).get_charmap())
    return frozenset(found)
