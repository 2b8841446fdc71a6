"""Labelled images: finding and reading them, transforming them, and handing them out in batches."""

from gpuconv.data import idx, transforms
from gpuconv.data.dataset import Dataset, fashion_mnist, fashion_mnist_mini, image_folder
from gpuconv.data.idx import read_idx, write_idx
from gpuconv.data.image import ImageFiles, read_image
from gpuconv.data.loader import DataLoader

__all__ = [
    "DataLoader",
    "Dataset",
    "ImageFiles",
    "fashion_mnist",
    "fashion_mnist_mini",
    "idx",
    "image_folder",
    "read_idx",
    "read_image",
    "transforms",
    "write_idx",
]
