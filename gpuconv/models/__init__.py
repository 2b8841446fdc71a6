"""Models by name, for images (N, C, H, W): each a function that builds one, freshly initialised."""

from collections.abc import Callable, Sequence
from typing import Any

from gpuconv.errors import ArgumentError
from gpuconv.models.lenet import lenet5 as lenet5
from gpuconv.models.resnet import (
    resnet18 as resnet18,
    resnet20 as resnet20,
    resnet34 as resnet34,
    resnet50 as resnet50,
)
from gpuconv.models.simple import simple_cnn as simple_cnn
from gpuconv.nn.module import Module

_BUILDERS: dict[str, Callable[..., Module]] = {
    "lenet5": lenet5,
    "simple_cnn": simple_cnn,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}
NAMES = tuple(_BUILDERS)


def create(name: str, **options: Any) -> Module:
    """The model called `name`; `options` are the arguments of its function."""
    if name not in _BUILDERS:
        raise ArgumentError(f"model {name!r} is unknown; use one of {', '.join(NAMES)}")
    return _BUILDERS[name](**options)


def for_images(name: str, num_classes: int, shape: Sequence[int]) -> Module:
    """The model called `name` for images of `shape` (C, H, W)."""
    channels, height, width = shape
    options: dict[str, Any] = {"num_classes": num_classes, "in_channels": channels}
    if name == "lenet5":  # its size is built in
        if height != width:
            raise ArgumentError(f"lenet5 takes square images, not {height} x {width}; resize them")
        options["image_size"] = height
    return create(name, **options)
