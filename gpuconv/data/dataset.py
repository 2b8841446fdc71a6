"""Labelled images: the `Dataset`, and those that gpuconv finds, carries, or reads from folders."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpuconv.data.idx import read_idx
from gpuconv.data.image import SUFFIXES, ImageFiles, check_size_and_mode
from gpuconv.errors import ArgumentError, DtypeError, FileError

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_FASHION_BYTES = 64 << 20  # the 60,000 training images are 47 million


class Images(Protocol):
    """What a `Dataset` needs of its images: a NumPy array has it, so has a file-backed one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (N, C, H, W), uint8 or floating, and their labels (N,), int64, indices into `classes`.

    Without `classes` they are called "0", "1", ... up to the largest label.

    Raises `ArgumentError` if the shapes do not agree or a label has no class, and `DtypeError` for
    images that are neither uint8 nor floating, or labels that are not integers.
    """

    images: Images
    labels: np.ndarray
    classes: tuple[str, ...] = ()
    name: str = "dataset"

    def __post_init__(self) -> None:
        images: Any = self.images if hasattr(self.images, "shape") else np.asarray(self.images)
        if hasattr(images, "__dlpack__") and not isinstance(images, np.ndarray):
            images = np.from_dlpack(images)  # PyTorch's tensors, for instance; no copy
        labels = np.asarray(self.labels)
        classes = tuple(self.classes)
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise DtypeError(f"{self.name}: images are {images.dtype}, must be uint8 or floating")
        if len(images.shape) != 4:
            raise ArgumentError(
                f"{self.name}: images of shape {tuple(images.shape)}, must be (N, C, H, W)"
            )
        if labels.size and labels.dtype.kind not in "iu":
            raise DtypeError(f"{self.name}: labels are {labels.dtype}, must be integers")
        if labels.shape != (images.shape[0],):
            raise ArgumentError(
                f"{self.name}: labels of shape {labels.shape} for {images.shape[0]} images,"
                f" must be ({images.shape[0]},)"
            )
        if not classes and labels.size:
            classes = tuple(str(i) for i in range(int(labels.max()) + 1))
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if wrong.size:
            raise ArgumentError(
                f"{self.name}: label {labels[wrong[0]]} at index {wrong[0]} ({wrong.size} such in"
                f" all), must be 0 to {len(classes) - 1}, for {len(classes)} classes"
            )
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int64))
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """`(images, labels)` of an array of indices, a mask or a slice; an int drops the N axis.

        Raises `IndexError` as NumPy does.
        """
        if isinstance(rows, (list, tuple)):
            rows = np.asarray(rows) if len(rows) else np.empty(0, np.intp)
        return self.images[rows], self.labels[rows]

    def subset(self, rows: Any) -> "Dataset":
        """The first `rows` items if it is an int, else those at these indices or under this mask.

        Images that are not a NumPy array stay where they are until asked for.
        """
        count = len(self)
        if isinstance(rows, (int, np.integer)):
            if not 0 <= rows <= count:
                raise ArgumentError(f"{self.name}: subset({rows}), must be 0 to {count}")
            rows = slice(int(rows))
        try:
            rows = np.arange(count)[rows]
        except IndexError as error:
            raise ArgumentError(f"{self.name}: subset of {count} items: {error}") from error
        held = isinstance(self.images, np.ndarray)
        images = self.images[rows] if held else Rows(self.images, rows)
        return Dataset(images, self.labels[rows], self.classes, self.name)

    def split(self, fraction: float, seed: int = 0) -> tuple["Dataset", "Dataset"]:
        """Two datasets, `fraction` of the items drawn by `seed` and the rest, in this order."""
        count = len(self)
        first = round(fraction * count) if 0 < fraction < 1 else 0
        if not 0 < first < count:
            raise ArgumentError(
                f"{self.name}: {count} items split by the fraction {fraction} leave a part empty;"
                " add items, or use a fraction between 0 and 1"
            )
        order = np.random.default_rng(seed).permutation(count)
        return self.subset(np.sort(order[:first])), self.subset(np.sort(order[first:]))


class Rows:
    """Some rows of an array-like, still read only when indexed."""

    def __init__(self, images: Images, rows: np.ndarray) -> None:
        self.images = images
        self.rows = rows
        self.shape = (len(rows), *images.shape[1:])
        self.dtype = images.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.images[self.rows[rows]]


def fashion_mnist(split: str = "train") -> Dataset:
    """Fashion-MNIST: 60,000 "train" or 10,000 "test" images, uint8 (N, 1, 28, 28), of 10 classes.

    Looks for the four files as published (``train-images-idx3-ubyte.gz``, ..., unpacked or not) in
    ``$GPUCONV_DATA/fashion-mnist``, ``$GPUCONV_DATA``, the user's cache and where Debian's package
    puts them. Raises `FileError` if they are not there, or not whole. Source: Xiao, Rasul and
    Vollgraf, "Fashion-MNIST", arXiv 1708.07747.
    """
    prefix = {"train": "train", "test": "t10k"}[_check_split("fashion_mnist", split)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    folders = [cache / "gpuconv" / "fashion-mnist", Path("/usr/share/datasets/fashion-mnist")]
    if own := os.environ.get("GPUCONV_DATA"):
        if not Path(own).is_dir():
            raise FileError(f"GPUCONV_DATA={own!r} is no folder; set it to one, or unset it")
        # The folder itself comes second: MNIST, whose files have the same names, may lie in it.
        folders[:0] = [Path(own, "fashion-mnist"), Path(own)]
    for folder in folders:
        found = [
            path
            for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
            for path in [folder / f"{name}.gz", folder / name]
            if path.is_file()
        ]
        images = next((path for path in found if "-images-" in path.name), None)
        labels = next((path for path in found if "-labels-" in path.name), None)
        if images and labels:
            return _read_fashion(images, labels, f"fashion_mnist {split}")
    raise FileError(
        f"fashion_mnist: {prefix}-images-idx3-ubyte.gz and {prefix}-labels-idx1-ubyte.gz are not in"
        f" {', '.join(map(str, folders))}; apt install dataset-fashion-mnist, or put the four files"
        f" of https://github.com/zalandoresearch/fashion-mnist into {folders[-2]}, or set"
        " GPUCONV_DATA to the folder that holds them"
    )


def fashion_mnist_mini(split: str = "train") -> Dataset:
    """A part of Fashion-MNIST that comes with gpuconv: 4,000 "train" or 1,000 "test" images.

    uint8 (N, 1, 28, 28), as many of each of the 10 classes, the first from the official training
    set, the second from the official test set. MIT licence, (c) 2017 Zalando SE.
    """
    folder = Path(__file__).parent / "fashion_mnist_mini"
    _check_split("fashion_mnist_mini", split)
    return _read_fashion(
        folder / f"{split}-images.idx.gz",
        folder / f"{split}-labels.idx.gz",
        f"fashion_mnist_mini {split}",
    )


def image_folder(root: str | os.PathLike[str], size: tuple[int, int], mode: str = "RGB") -> Dataset:
    """Images in one folder per class, ``root/<class>/*.png`` and so on, decoded when indexed.

    Each becomes uint8 (C, H, W) of `size` (height, width) by `gpuconv.data.read_image`. Classes are
    the folders' names and sorted, as are the files. Hidden names and deeper folders are left out.
    Raises `FileError` if there is no class or one has no image, and when a file cannot be decoded.
    """
    check_size_and_mode("image_folder", size, mode)
    root = Path(root)
    try:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        files = [
            sorted(
                p
                for p in folder.iterdir()
                if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
            )
            for folder in folders
        ]
    except OSError as error:
        raise FileError(f"{root}: cannot be listed ({error}); check the path") from error
    if not folders:
        raise FileError(f"{root}: no folders in it; it must hold one folder of images per class")
    for folder, images in zip(folders, files, strict=True):
        if not images:
            raise FileError(
                f"{folder}: a class without images ({', '.join(SUFFIXES)});"
                " add some, or remove the folder"
            )
    return Dataset(
        ImageFiles([path for images in files for path in images], size, mode),
        np.repeat(np.arange(len(files)), [len(images) for images in files]),
        tuple(folder.name for folder in folders),
        root.name,
    )


def _check_split(where: str, split: str) -> str:
    if split not in ("train", "test"):
        raise ArgumentError(f'{where}: split={split!r}, must be "train" or "test"')
    return split


def _read_fashion(images_path: Path, labels_path: Path, name: str) -> Dataset:
    """Pair two IDX files; what is wrong with them is a `FileError`, not the caller's argument."""
    images, labels = (read_idx(path, _FASHION_BYTES) for path in (images_path, labels_path))
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise FileError(
            f"{images_path}: images of shape {images.shape} of {images.dtype}, must be"
            " (N, 28, 28) of uint8; fetch the file again"
        )
    try:
        return Dataset(images[:, None], labels, FASHION_MNIST_CLASSES, name)
    except (ArgumentError, DtypeError) as error:
        raise FileError(f"{labels_path}: {error}; fetch both files again") from error
