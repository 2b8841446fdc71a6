"""Saved models and the photos that are put to them: run folders, and files of weights alone."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from gpuconv import models, run, weights
from gpuconv.errors import ArgumentError
from gpuconv.files import StrPath
from gpuconv.nn.module import Module

SHOWN = 8  # names that an error lists
SIZES = {"lenet5": 28, "simple_cnn": 32, "resnet20": 32}  # of images; 224 for the other models


def read_model(
    path: StrPath,
    checkpoint: str = "best",
    *,
    model: str | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[run.Config, Module]:
    """A saved model, in evaluation mode, and the `Config` that says how it takes images.

    `path` is a run folder, whose "best" or "last" model is read, or the folder of one of these
    two; nothing else is to be said then. Or it is a safetensors file made by `gpuconv.save`, which
    holds weights alone: `model` says which of `gpuconv.models` they are, `size` (height, width)
    of the images it was trained on (by default `SIZES`), `mean` and `std` how they were normalised,
    one number a channel of images in 0..1 (by default they were not). Its classes are called "0",
    "1", ...

    FileError for what is missing or damaged, ArgumentError for what does not fit.
    """
    place = Path(path)
    if place.name == "model.safetensors" and (place.parent / "state.json").exists():
        place = place.parent  # a checkpoint's, which knows more
    if place.is_file():
        return _weights_alone(place, model, size, mean, std)
    if (model, size, mean, std) != (None,) * 4:
        raise ArgumentError(
            f"{path} is a run folder, which says itself what its model is; leave out model, size, "
            f"mean and std, which are for a safetensors file"
        )
    if place.name in ("last", "best") and not (place / "config.json").exists():
        place, checkpoint = place.parent, place.name
    config, trainer = run.trained(place, "cpu", checkpoint)
    return config, trainer.model.eval()


def _weights_alone(
    path: Path,
    name: str | None,
    size: tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[run.Config, Module]:
    arrays = weights.load(path)
    if name is None:
        raise ArgumentError(
            f"{path} holds weights alone: say with model (--model) what they are of, one of "
            f"{', '.join(models.NAMES)}"
        )
    # The first convolution of any of the models tells the channels, its last layer the classes.
    shapes = [(n, p.ndim) for n, p in models.create(name).named_parameters()]
    first = next(n for n, axes in shapes if axes == 4)
    last = next(n for n, axes in reversed(shapes) if axes == 2)
    for wanted, axes in ((first, 4), (last, 2)):
        if wanted not in arrays or arrays[wanted].ndim != axes:
            raise ArgumentError(f"{path} is no {name}: it has no {wanted} of {axes} axes")
    channels, count = arrays[first].shape[1], arrays[last].shape[0]
    config = run.Config(
        data="",
        model=name,
        image_size=size or (SIZES.get(name, 224),) * 2,
        classes=tuple(map(str, range(count))),
        channels=channels,
        mean=tuple(mean if mean is not None else (0.0,) * channels),
        std=tuple(std if std is not None else (1.0,) * channels),
    )
    built = models.for_images(name, count, (channels, *config.image_size))
    weights.load(path, built)
    return config, built.eval()


def read_photo(
    config: run.Config, path: StrPath, invert: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A photo as the model takes it and as it is shown, both (C, H, W): normalised, and in 0..1."""
    (x,) = run.read_images(config, [Path(path)], invert)
    mean, std = (np.array(v, x.dtype)[:, None, None] for v in (config.mean, config.std))
    return x, x * std + mean


def unknown(what: str, name: str, names: Sequence[str]) -> ArgumentError:
    """The error for a name that is not there, with those that are: the most similar first."""
    similar = get_close_matches(name, names, n=max(len(names), 1), cutoff=0.0)
    return ArgumentError(f"there is no {what} {name!r}; use one of {listed(similar)}")


def listed(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
