"""Transforms: values, randomness per image, arguments."""

from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest

from gpuconv.data.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToFloat
from gpuconv.errors import ArgumentError, DtypeError

BATCH = np.random.default_rng(0).integers(1, 256, (50, 3, 6, 5), dtype=np.uint8)
ALL = [
    ToFloat(),
    Compose([ToFloat(), Normalize((0.1, 0.2, 0.3), (1, 2, 3))]),
    RandomHorizontalFlip(),
    RandomCrop((4, 3), padding=1),
    Compose([]),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_leaves_its_argument_and_repeats_with_the_seed(transform):
    images = BATCH.copy()
    images.flags.writeable = False
    first, again = transform(images, rng(3)), transform(images, rng(3))
    np.testing.assert_array_equal(first, again, strict=True)
    np.testing.assert_array_equal(images, BATCH)
    assert len(transform(images[:0], rng())) == 0
    assert isinstance(asdict(transform), dict)
    with pytest.raises(FrozenInstanceError):
        transform.other = 1


def test_to_float():
    images = ToFloat()(np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1), rng())
    np.testing.assert_array_equal(images.ravel(), np.float32([0, 0.2, 1]), strict=True)
    with pytest.raises(DtypeError, match="ToFloat: images are float32, must be uint8"):
        ToFloat()(images, rng())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_normalize(dtype):
    images = np.ones((2, 2, 3, 4), dtype)
    out = Normalize((1, 3), (1, 0.5))(images, rng())
    assert out.dtype == dtype
    assert (out[:, 0] == 0).all()
    assert (out[:, 1] == -4).all()


def test_normalize_arguments():
    assert Normalize(0.5, 2) == Normalize((0.5,), [2])
    assert asdict(Normalize(0.5, 2)) == {"mean": (0.5,), "std": (2.0,)}
    for mean, std in (((0, 0), 1), ((), ()), (0, 0), (0, -1), (0, np.nan), (np.inf, 1)):
        with pytest.raises(ArgumentError, match="Normalize: "):
            Normalize(mean, std)
    with pytest.raises(ArgumentError, match="mean='grey', must be numbers"):
        Normalize("grey", 1)
    with pytest.raises(DtypeError, match=r"images are uint8; put ToFloat\(\) before"):
        Normalize(0, 1)(BATCH, rng())
    with pytest.raises(ArgumentError, match=r"shape \(50, 3, 6, 5\), .* for 2 channels"):
        Normalize((0, 0), (1, 1))(BATCH / 255, rng())


def test_flip_mirrors_whole_images_about_half_the_time():
    out = RandomHorizontalFlip()(BATCH, rng())
    same = (out == BATCH).all(axis=(1, 2, 3))
    mirrored = (out == BATCH[..., ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 15 < mirrored.sum() < 35
    np.testing.assert_array_equal(RandomHorizontalFlip(0)(BATCH, rng()), BATCH)
    np.testing.assert_array_equal(RandomHorizontalFlip(1)(BATCH, rng()), BATCH[..., ::-1])


def test_flip_arguments():
    for p in (-0.1, 1.1, float("nan"), "half"):
        with pytest.raises(ArgumentError, match="RandomHorizontalFlip: p="):
            RandomHorizontalFlip(p)


@pytest.mark.parametrize("size", [3, (4, 2), [2, 5]])
@pytest.mark.parametrize("padding", [0, 2])
def test_crop_takes_a_window_of_each_image(size, padding):
    crop = RandomCrop(size, padding)
    height, width = crop.size
    out = crop(BATCH, rng())
    assert out.shape == (50, 3, height, width)
    assert out.dtype == np.uint8
    assert out.flags.writeable
    padded = np.pad(BATCH, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    places = [
        {
            (top, left)
            for top in range(padded.shape[2] - height + 1)
            for left in range(padded.shape[3] - width + 1)
            if (padded[i, :, top : top + height, left : left + width] == out[i]).all()
        }
        for i in range(50)
    ]
    assert all(places)
    tops = {top for place in places for top, _ in place}
    assert tops >= {0, padded.shape[2] - height}  # both ends are reached


def test_crop_arguments():
    for size in (0, -1, 2.5, (2,), (2, 3, 4), (2, 0), True, "ab", None):
        with pytest.raises(ArgumentError, match="RandomCrop: size="):
            RandomCrop(size)
    for padding in (-1, 1.5, True, None):
        with pytest.raises(ArgumentError, match="RandomCrop: padding="):
            RandomCrop(2, padding)
    with pytest.raises(ArgumentError, match=r"size \(9, 9\) does not fit .* padding 1"):
        RandomCrop(9, 1)(BATCH, rng())


def test_compose_applies_in_order_and_shares_the_rng():
    steps = [RandomCrop(4), RandomHorizontalFlip()]
    one, other = rng(7), rng(7)
    expected = steps[1](steps[0](BATCH, one), one)
    np.testing.assert_array_equal(Compose(steps)(BATCH, other), expected)
    assert asdict(Compose(steps)) == {
        "transforms": ({"size": (4, 4), "padding": 0}, {"p": 0.5}),
    }
    for wrong in (3, ToFloat):
        with pytest.raises(ArgumentError, match="is not a transform"):
            Compose([wrong])


@pytest.mark.parametrize("transform", [Normalize(0, 1), RandomHorizontalFlip(), RandomCrop(2)])
def test_images_must_be_batches(transform):
    with pytest.raises(ArgumentError, match=r"images of shape \(3, 6, 5\), must be \(N, C, H, W\)"):
        transform(BATCH[0], rng())
