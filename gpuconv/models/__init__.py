"""Models by name, for images (N, C, H, W): each a function that builds one, freshly initialised."""

from collections.abc import Callable
from typing import Any

from gpuconv.errors import ArgumentError
from gpuconv.models.lenet import lenet5 as lenet5
from gpuconv.models.simple import simple_cnn as simple_cnn
from gpuconv.nn.module import Module

_BUILDERS: dict[str, Callable[..., Module]] = {"lenet5": lenet5, "simple_cnn": simple_cnn}
NAMES = tuple(_BUILDERS)


def create(name: str, **options: Any) -> Module:
    """The model called `name`; `options` are the arguments of its function."""
    if name not in _BUILDERS:
        raise ArgumentError(f"model {name!r} is unknown; use one of {', '.join(NAMES)}")
    return _BUILDERS[name](**options)
