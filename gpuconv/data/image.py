"""Image files through Pillow: one as an array, or many as one array that decodes what is asked for.

Only `FORMATS` are opened: some of Pillow's other readers start programs or fetch files.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv.errors import ArgumentError, Error, FileError
from gpuconv.files import open_regular

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
CHANNELS = {"RGB": 3, "L": 1}

# What Pillow raises for broken files. A `Warning` is raised only where warnings are made errors.
_BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(struct.error, zlib.error, Warning),
)


def read_image(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, mode: str | None = None
) -> np.ndarray:
    """Read an image file as uint8 (C, H, W), turned upright by its EXIF orientation.

    `size` is (height, width), reached by bilinear resizing, None keeps the file's own. `mode` is
    "RGB" (C = 3), "L" (grey, C = 1), or None for "L" if the file is grey and "RGB" if not. Alpha is
    dropped, 16 bits are cut to the upper 8, an animation gives its first frame.

    Raises `FileError`, naming the file, for one that is missing, truncated, corrupted, no image, or
    of more pixels than `PIL.Image.MAX_IMAGE_PIXELS`; `Error` without Pillow.
    """
    check_size_and_mode("read_image", size, mode)
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise Error(f'{path}: reading images needs Pillow: pip install "gpuconv[viz]"') from error
    stream = open_regular(path)
    try:
        with stream as file, Image.open(file, formats=FORMATS) as opened:
            # Pillow itself only warns up to twice its limit. Filters are not per thread, so look.
            if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(
                    f"{opened.width} x {opened.height} pixels, at most {Image.MAX_IMAGE_PIXELS}"
                )
            image = ImageOps.exif_transpose(opened)
            if mode is None:
                mode = "L" if Image.getmodebase(image.mode) == "L" else "RGB"
            if image.mode.startswith("I"):  # convert() would clip 16 bits to 255
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            elif "transparency" in image.info:  # convert() warns of it unless it becomes alpha
                image = image.convert("RGBA")
            image = image.convert(mode)
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FileError(f"{path}: size: {error}; make the image smaller") from error
    except _BROKEN as error:
        raise FileError(
            f"{path}: not a readable image ({error or type(error).__name__});"
            f" expected a whole file of {', '.join(FORMATS)}"
        ) from error
    return np.array(np.atleast_3d(pixels).transpose(2, 0, 1), order="C")


class ImageFiles:
    """Image files as one read-only uint8 array (N, C, H, W) whose rows are decoded when indexed."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], size: tuple[int, int], mode: str = "RGB"
    ) -> None:
        check_size_and_mode("ImageFiles", size, mode)
        self.paths = tuple(paths)
        self.mode = mode
        self.shape = (len(self.paths), CHANNELS[mode], *size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Decode the rows that an int, slice, mask or array of ints names; see `read_image`."""
        wanted = np.arange(len(self))[rows]
        images = np.empty((wanted.size, *self.shape[1:]), np.uint8)
        for image, row in zip(images, wanted.flat, strict=True):
            image[:] = read_image(self.paths[row], self.shape[2:], self.mode)
        return images.reshape(*wanted.shape, *self.shape[1:])


def check_size_and_mode(where: str, size: object, mode: str | None) -> None:
    """Raise `ArgumentError` unless size is None or (H, W) of ints >= 1, and mode RGB, L or None."""
    if size is not None and not (
        isinstance(size, tuple)
        and len(size) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in size)
    ):
        raise ArgumentError(f"{where}: size={size!r}, must be (height, width), both ints >= 1")
    if mode is not None and mode not in CHANNELS:
        raise ArgumentError(f'{where}: mode={mode!r}, must be "RGB" or "L"')
