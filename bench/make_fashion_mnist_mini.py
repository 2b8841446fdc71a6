"""Make gpuconv/data/fashion_mnist_mini: `python -m bench.make_fashion_mnist_mini`.

400 training images of each class from the official training set and 100 test images of each from
the official test set, drawn by a seed and kept in the official order. Needs the full set, for
example from `apt install dataset-fashion-mnist`. The values are the same on every run; the packed
bytes may differ between versions of zlib.
"""

from pathlib import Path

import numpy as np

import gpuconv.data.dataset
from gpuconv.data import fashion_mnist, write_idx

SEED = 2017
FOLDER = Path(gpuconv.data.dataset.__file__).parent / "fashion_mnist_mini"


def main() -> None:
    """Write the four files and print their sizes."""
    for split, per_class in (("train", 400), ("test", 100)):
        full = fashion_mnist(split)
        rng = np.random.default_rng(SEED)
        chosen = [
            rng.choice(np.flatnonzero(full.labels == label), per_class, replace=False)
            for label in range(len(full.classes))
        ]
        images, labels = full[np.sort(np.concatenate(chosen))]
        for kind, array in (("images", images[:, 0]), ("labels", labels.astype(np.uint8))):
            path = FOLDER / f"{split}-{kind}.idx.gz"
            write_idx(path, array)
            print(f"{path.name}: {array.shape}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
