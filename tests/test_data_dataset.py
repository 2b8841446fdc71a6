"""Datasets: the class, Fashion-MNIST from disk and as shipped, folders of images."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from gpuconv.data import Dataset, fashion_mnist, fashion_mnist_mini, image_folder, write_idx
from gpuconv.data.dataset import FASHION_MNIST_CLASSES
from gpuconv.errors import ArgumentError, DtypeError, FileError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_full_set = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="needs the full set: apt install dataset-fashion-mnist"
)


@pytest.fixture
def ten() -> Dataset:
    images = np.arange(10 * 2 * 3 * 4, dtype=np.uint8).reshape(10, 2, 3, 4)
    return Dataset(images, np.arange(10) % 3, ("a", "b", "c"), "ten")


class Lazy:
    """Images that count the rows they were asked for."""

    shape, dtype = (10, 1, 1, 1), np.dtype(np.uint8)

    def __init__(self):
        self.read = 0

    def __len__(self):
        return 10

    def __getitem__(self, rows):
        picked = np.arange(10, dtype=np.uint8)[rows]
        self.read += picked.size
        return picked[..., None, None, None]


def test_dataset_indexes_like_numpy(ten):
    assert len(ten) == 10
    assert ten.labels.dtype == np.int64
    for rows in (np.array([3, 1, -1]), slice(2, 5), ten.labels == 1):
        images, labels = ten[rows]
        np.testing.assert_array_equal(images, ten.images[rows])
        np.testing.assert_array_equal(labels, ten.labels[rows])
    images, labels = ten[(1, 2)]
    assert images.shape == (2, 2, 3, 4)
    assert ten[[]][0].shape == (0, 2, 3, 4)
    assert ten[4][0].shape == (2, 3, 4)
    assert sum(1 for _ in ten) == 10
    with pytest.raises(IndexError):
        ten[10]


def test_dataset_takes_lists_and_is_frozen():
    data = Dataset([[[[0.5]]], [[[1.5]]]], np.array([1, 0], np.uint8), ["a", "b"])
    assert data.images.shape == (2, 1, 1, 1)
    assert data.classes == ("a", "b")
    with pytest.raises(FrozenInstanceError):
        data.name = "other"


def test_dataset_may_be_empty():
    empty = Dataset(np.zeros((0, 1, 2, 2), np.uint8), [], ())
    assert len(empty) == 0
    assert empty.labels.dtype == np.int64


IMAGES = np.zeros((3, 1, 2, 2), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "error", "says"),
    [
        (IMAGES[0], [0], ArgumentError, r"images of shape \(1, 2, 2\), must be \(N, C, H, W\)"),
        (IMAGES.astype(int), [0, 0, 0], DtypeError, "images are int64"),
        (IMAGES, [0, 0], ArgumentError, r"labels of shape \(2,\) for 3 images, must be \(3,\)"),
        (IMAGES, [[0], [0], [0]], ArgumentError, r"labels of shape \(3, 1\)"),
        (IMAGES, [0.0, 0.0, 0.0], DtypeError, "labels are float64"),
        (IMAGES, [True, False, True], DtypeError, "labels are bool"),
        (IMAGES, [1, 2, 0], ArgumentError, r"x: label 2 at index 1 \(1 such in all\).* 0 to 1"),
        (IMAGES, [0, 1, -1], ArgumentError, "label -1 at index 2"),
        (IMAGES, np.array([0, 2**64 - 1, 9], "u8"), ArgumentError, f"label {2**64 - 1} at index 1"),
    ],
)
def test_dataset_refuses(images, labels, error, says):
    with pytest.raises(error, match=says):
        Dataset(images, labels, ("a", "b"), "x")


def test_subset(ten):
    np.testing.assert_array_equal(ten.subset(4).labels, ten.labels[:4])
    part = ten.subset([7, 2])
    np.testing.assert_array_equal(part.images, ten.images[[7, 2]])
    assert (part.classes, part.name) == (ten.classes, "ten")
    assert len(ten.subset(ten.labels == 1)) == 3
    assert len(ten.subset(0)) == len(ten.subset([])) == 0
    for wrong in (11, -1):
        with pytest.raises(ArgumentError, match=rf"ten: subset\({wrong}\), must be 0 to 10"):
            ten.subset(wrong)
    for wrong in ([10], [0.5], np.ones(3, bool)):
        with pytest.raises(ArgumentError, match="ten: subset of 10 items"):
            ten.subset(wrong)


def test_split(ten):
    for fraction in (0.3, 0.75):
        first, rest = ten.split(fraction, seed=5)
        assert len(first) == round(10 * fraction)
        both = np.concatenate([first.images, rest.images])
        np.testing.assert_array_equal(np.sort(both[:, 0, 0, 0]), np.sort(ten.images[:, 0, 0, 0]))
    np.testing.assert_array_equal(ten.split(0.5, 1)[0].images, ten.split(0.5, 1)[0].images)
    assert any((ten.split(0.5, s)[0].images != ten.split(0.5, 1)[0].images).any() for s in (2, 3))
    for wrong in (0, 1, 0.01, -3, 2, float("nan")):
        with pytest.raises(ArgumentError, match="ten: 10 items split by the fraction"):
            ten.split(wrong)


def test_lazy_images_stay_lazy():
    data = Dataset(Lazy(), np.arange(10), tuple("abcdefghij"))
    first, rest = data.split(0.5, 0)
    part = rest.subset([4, 0])
    assert data.images.read == 0
    assert part.images.shape == (2, 1, 1, 1)
    assert len(part.images) == 2
    images, labels = part[[0, 1, 1]]
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
    assert data.images.read == 3
    assert len(first) == 5


@pytest.mark.parametrize(("split", "per_class"), [("train", 400), ("test", 100)])
def test_fashion_mnist_mini(split, per_class):
    data = fashion_mnist_mini(split)
    assert data.images.shape == (10 * per_class, 1, 28, 28)
    assert data.images.dtype == np.uint8
    assert data.classes == FASHION_MNIST_CLASSES
    assert data.name == f"fashion_mnist_mini {split}"
    np.testing.assert_array_equal(np.bincount(data.labels), [per_class] * 10)
    assert 70 < data.images.mean() < 76
    assert len(np.unique(data.labels[:50])) == 10  # not sorted by class


@needs_full_set
def test_fashion_mnist_and_mini_is_a_part_of_it(monkeypatch, tmp_path):
    monkeypatch.delenv("GPUCONV_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for split, count in (("train", 60000), ("test", 10000)):
        data = fashion_mnist(split)
        assert data.images.shape == (count, 1, 28, 28)
        np.testing.assert_array_equal(np.bincount(data.labels), [count // 10] * 10)
        full = {
            (i.tobytes(), label) for i, label in zip(data.images, data.labels.tolist(), strict=True)
        }
        mini = fashion_mnist_mini(split)
        for image, label in zip(mini.images, mini.labels.tolist(), strict=True):
            assert (image.tobytes(), label) in full


def put_fashion(folder: Path, count: int = 6, labels: object = None, end: str = ".gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.full((count, 28, 28), count, np.uint8)
    labels = np.arange(count) % 10 if labels is None else labels
    write_idx(folder / f"t10k-images-idx3-ubyte{end}", images)
    write_idx(folder / f"t10k-labels-idx1-ubyte{end}", np.asarray(labels, np.uint8))


def test_fashion_mnist_is_looked_for_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GPUCONV_DATA", str(tmp_path / "data"))
    put_fashion(tmp_path / "cache" / "gpuconv" / "fashion-mnist", 3, end="")
    with pytest.raises(FileError, match=r"GPUCONV_DATA=.*/data' is no folder"):
        fashion_mnist("test")
    (tmp_path / "data").mkdir()
    assert len(fashion_mnist("test")) == 3
    put_fashion(tmp_path / "data", 4)
    assert len(fashion_mnist("test")) == 4
    put_fashion(tmp_path / "data" / "fashion-mnist", 5)
    assert len(fashion_mnist("test")) == 5
    (tmp_path / "data" / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert len(fashion_mnist("test")) == 4  # half a set is no set


def test_fashion_mnist_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GPUCONV_DATA", raising=False)
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    with pytest.raises(FileError) as caught:
        fashion_mnist("test")
    for part in (
        "t10k-images-idx3-ubyte.gz",
        "apt install dataset-fashion-mnist",
        f"into {tmp_path}/cache/gpuconv/fashion-mnist,",
        "GPUCONV_DATA",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fashion_mnist_files_that_do_not_agree(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUCONV_DATA", str(tmp_path))
    put_fashion(tmp_path, 6, labels=[1, 2])
    with pytest.raises(FileError, match=r"t10k-labels.*labels of shape \(2,\) for 6 images"):
        fashion_mnist("test")
    put_fashion(tmp_path, 2, labels=[1, 10])
    with pytest.raises(FileError, match=r"t10k-labels.*label 10 at index 1"):
        fashion_mnist("test")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(2, np.float32))
    with pytest.raises(FileError, match=r"t10k-labels.*labels are float32"):
        fashion_mnist("test")
    for wrong in (np.zeros((2, 28), np.uint8), np.zeros((2, 28, 28), np.int8)):
        write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", wrong)
        with pytest.raises(FileError, match=r"t10k-images.*must be \(N, 28, 28\) of uint8"):
            fashion_mnist("test")


@pytest.mark.parametrize("load", [fashion_mnist, fashion_mnist_mini])
def test_unknown_split(load):
    with pytest.raises(ArgumentError, match='split=\'valid\', must be "train" or "test"'):
        load("valid")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; the grey level of an image is ten times its place in sorted order."""
    image_module = pytest.importorskip("PIL.Image")
    names = ["cat/0.png", "cat/1.BMP", "dog/a.jpg", "dog/b.gif", "dog/c.webp"]
    for i, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        image_module.new("L", (8 + i, 6), 10 * i).save(path)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.png").write_text("not in a class")
    return tmp_path


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_image_folder(folder, mode, channels):
    data = image_folder(folder, (4, 5), mode)
    assert data.images.shape == (5, channels, 4, 5)
    assert data.images.dtype == np.uint8
    assert data.classes == ("cat", "dog")
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1, 1])
    images, labels = data[np.array([4, 1, 0])]
    assert images.shape == (3, channels, 4, 5)
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), [40, 10, 0], atol=1)
    np.testing.assert_array_equal(labels, [1, 0, 0])
    assert data[2][0].shape == (channels, 4, 5)
    assert data[3:][0].shape == (2, channels, 4, 5)
    assert data[[]][0].shape == (0, channels, 4, 5)
    assert data.subset([3, 4])[[1]][0].mean() == pytest.approx(40, abs=1)


def test_image_folder_is_lazy(folder):
    (folder / "dog" / "b.gif").write_bytes(b"GIF89a broken")
    data = image_folder(folder, (4, 5))
    assert data[[0, 2]][0].shape == (2, 3, 4, 5)
    with pytest.raises(FileError, match=r"b\.gif"):
        data[[0, 3]]
    with pytest.raises(IndexError):
        data[5]


def test_image_folder_refuses(tmp_path):
    with pytest.raises(FileError, match="none: cannot be listed"):
        image_folder(tmp_path / "none", (4, 4))
    with pytest.raises(FileError, match="no folders in it; it must hold one folder"):
        image_folder(tmp_path, (4, 4))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("")
    with pytest.raises(FileError, match="cat: a class without images"):
        image_folder(tmp_path, (4, 4))
    for size in ((4,), (4, 0), (4.0, 4), 4, (True, 2)):
        with pytest.raises(ArgumentError, match="image_folder: size="):
            image_folder(tmp_path, size)
    with pytest.raises(ArgumentError, match="mode='CMYK'"):
        image_folder(tmp_path, (4, 4), "CMYK")
