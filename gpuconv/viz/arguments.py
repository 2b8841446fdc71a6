"""What `gpuconv viz` and `gpuconv explain` are told on the command line, as numbers."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.data.image import SUFFIXES
from gpuconv.errors import ArgumentError

MOST = 1 << 20  # of a size
LARGEST = 1e15  # of a number: sums of products of these are finite


def sizes(option: str, text: str, axes: int = 2) -> tuple[int, ...]:
    """ "5x5", or "5" for a square; with three axes "3x5x5". ArgumentError names the option."""
    parts = text.lower().split("x")
    good = all(re.fullmatch(r"[0-9]{1,7}", part) for part in parts)
    found = tuple(int(part) for part in parts) if good else ()
    if len(found) == 1 and axes == 2:
        found *= 2
    if len(found) != axes or not 1 <= min(found) <= max(found) <= MOST:
        form, like = ("CxHxW", "3x32x32") if axes == 3 else ("HxW", "5x5")
        raise ArgumentError(
            f"{option} {text!r} is no size: write {form} with numbers from 1 to {MOST}, as in "
            f"{like}"
        )
    return found


def image(option: str, text: str, axes: int = 2) -> tuple[int, ...] | Path:
    """A size, "5x5" or with three axes "3x5x5", or the path of an image file."""
    if text.lower().endswith(SUFFIXES) or Path(text).is_file():
        return Path(text)
    try:
        return sizes(option, text, axes=axes)
    except ArgumentError as error:
        raise ArgumentError(f"{error}; or name an image file ({', '.join(SUFFIXES)})") from None


def padding(option: str, text: str) -> Any:
    """ "1", "1x2" (height x width), "0:1x2:1" (top:bottom x left:right), "same" or "valid"."""
    if text in ("same", "valid"):
        return text
    if re.fullmatch(r"[0-9]{1,7}(:[0-9]{1,7})?(x[0-9]{1,7}(:[0-9]{1,7})?)?", text):
        axes = [tuple(int(n) for n in axis.split(":")) for axis in text.split("x")]
        pairs = tuple((axis[0], axis[-1]) for axis in axes)
        return pairs * 2 if len(pairs) == 1 else pairs
    raise ArgumentError(
        f"{option} {text!r} is no padding: write 1, 1x2 (height x width), 0:1x2:1 (top:bottom x "
        f"left:right), same or valid"
    )


def numbers(option: str, text: str) -> np.ndarray:
    """ "1 2 3; 4 5 6": rows with semicolons between, numbers with spaces or commas; (H, W).

    In float64. ArgumentError names the option.
    """
    rows = [re.split(r"[\s,]+", row.strip()) for row in text.strip().strip(";").split(";")]
    try:
        found = np.array([[float(n) for n in row] for row in rows])
    except ValueError:  # no numbers, or rows of different lengths
        found = np.array([[np.nan]])
    if (np.abs(found) > LARGEST).any():
        raise ArgumentError(
            f"{option}: {np.abs(found).max():g} is too large; use numbers up to {LARGEST:g}"
        )
    if np.isfinite(found).all():
        return found
    raise ArgumentError(
        f"{option} {text!r:.60} is no matrix: write rows with semicolons between, all as long, as "
        f"in '1 2 3; 4 5 6'"
    )
