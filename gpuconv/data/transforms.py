"""Transforms of a batch of images, `(images, rng) -> images`; the argument is never written to.

`images` is (N, C, H, W), `rng` a `numpy.random.Generator` that all randomness comes from, drawn
anew for each image. Any callable of this form will do; the ones here are frozen dataclasses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpuconv.errors import ArgumentError, DtypeError

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class ToFloat:
    """uint8 in 0..255 to `dtype` in 0..1. Raises `DtypeError` for images that are not uint8."""

    dtype: str = "float32"

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if images.dtype != np.uint8:
            raise DtypeError(f"ToFloat: images are {images.dtype}, must be uint8; leave it out")
        return images.astype(self.dtype) / np.dtype(self.dtype).type(255)


@dataclass(frozen=True)
class Normalize:
    """`(images - mean) / std` of floating images; one mean and one std for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            try:
                values = tuple(float(value) for value in np.atleast_1d(values))
            except (TypeError, ValueError) as error:
                raise ArgumentError(f"Normalize: {name}={values!r}, must be numbers") from error
            if not all(math.isfinite(v) and (name == "mean" or v > 0) for v in values):
                raise ArgumentError(f"Normalize: {name}={values}, must be finite and std over 0")
            object.__setattr__(self, name, values)
        if not self.mean or len(self.mean) != len(self.std):
            raise ArgumentError(
                f"Normalize: mean={self.mean}, std={self.std}, must have one number per channel"
            )

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        _check_images("Normalize", images)
        if images.dtype.kind != "f":
            raise DtypeError(f"Normalize: images are {images.dtype}; put ToFloat() before it")
        if images.shape[1] != len(self.mean):
            raise ArgumentError(
                f"Normalize: images of shape {images.shape}, mean and std are for"
                f" {len(self.mean)} channels"
            )
        mean, std = (np.array(v, images.dtype)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror each image left to right with probability `p`."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.p, (int, float)) or not 0 <= self.p <= 1:
            raise ArgumentError(f"RandomHorizontalFlip: p={self.p!r}, must be 0 to 1")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        _check_images("RandomHorizontalFlip", images)
        flip = rng.random(len(images)) < self.p
        return np.where(flip[:, None, None, None], images[..., ::-1], images)


@dataclass(frozen=True)
class RandomCrop:
    """Cut a random window of `size`, (height, width) or one int, after `padding` zeros all around.

    Raises `ArgumentError` if the padded images are smaller than the window.
    """

    size: int | tuple[int, int]
    padding: int = 0

    def __post_init__(self) -> None:
        size = self.size if isinstance(self.size, (tuple, list)) else (self.size, self.size)
        if len(size) != 2 or not all(_is_int(n, 1) for n in size):
            raise ArgumentError(f"RandomCrop: size={self.size!r}, must be one or two ints >= 1")
        if not _is_int(self.padding, 0):
            raise ArgumentError(f"RandomCrop: padding={self.padding!r}, must be an int >= 0")
        object.__setattr__(self, "size", tuple(size))

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        _check_images("RandomCrop", images)
        assert isinstance(self.size, tuple)
        height, width = self.size
        pad = (self.padding, self.padding)
        padded = np.pad(images, ((0, 0), (0, 0), pad, pad))
        down, right = padded.shape[2] - height, padded.shape[3] - width
        if down < 0 or right < 0:
            raise ArgumentError(
                f"RandomCrop: size {self.size} does not fit images of shape {images.shape} with"
                f" padding {self.padding}; lower size or raise padding"
            )
        top = rng.integers(0, down + 1, len(images))
        left = rng.integers(0, right + 1, len(images))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=(2, 3))
        return windows[np.arange(len(images)), :, top, left]


@dataclass(frozen=True)
class Compose:
    """One transform after the other."""

    transforms: Sequence[Transform]

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))
        for transform in self.transforms:
            if not callable(transform) or isinstance(transform, type):
                raise ArgumentError(
                    f"Compose: {transform!r} is not a transform, a callable (images, rng) -> images"
                )

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for transform in self.transforms:
            images = transform(images, rng)
        return images


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_images(where: str, images: np.ndarray) -> None:
    if images.ndim != 4:
        raise ArgumentError(f"{where}: images of shape {images.shape}, must be (N, C, H, W)")
