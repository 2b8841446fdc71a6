"""Loading a `state_dict`: everything is checked before anything changes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpuconv.autograd import Tensor
from gpuconv.backends import Array, backend_of, from_foreign, is_array, to_device
from gpuconv.errors import ArgumentError, DtypeError

SHOWN = 3  # names an error lists of each kind


class Loaded(NamedTuple):
    """What a load without `strict` left out: names of the model, and names of the values."""

    missing: list[str]
    unexpected: list[str]


def load(
    op: str, held: Iterable[tuple[str, Tensor]], values: Mapping[str, Any], strict: bool
) -> Loaded:
    """Copy `values` into the tensors `held` under the same names; see `Module.load_state_dict`."""
    if not isinstance(values, Mapping):
        raise ArgumentError(
            f"{op}: a {type(values).__name__} is no state_dict; pass a dict of names to arrays"
        )
    tensors = dict(held)
    given = {name: _array(op, name, value) for name, value in values.items()}
    missing = [name for name in tensors if name not in given]
    unexpected = [name for name in given if name not in tensors]
    misfits = [
        name for name, t in tensors.items() if name in given and given[name].shape != t.shape
    ]
    problems = []
    if strict and missing:
        problems.append("missing " + _listed(missing, lambda n: _shape(tensors[n])))
    if strict and unexpected:
        problems.append("unexpected " + _listed(unexpected, lambda n: _shape(given[n])))
    if misfits:
        problems.append(
            "of another shape "
            + _listed(misfits, lambda n: f"{_shape(given[n])} instead of {_shape(tensors[n])}")
        )
    if problems:
        fix = "; build the model with the arguments it was saved with"
        if not misfits:
            fix += ", or pass strict=False"
        raise ArgumentError(f"{op}: {'; '.join(problems)}{fix}")
    copies = [(t, _copied(t, given[name])) for name, t in tensors.items() if name in given]
    for t, copy in copies:
        t.data = copy
    return Loaded(missing, unexpected)


def _array(op: str, name: str, value: Any) -> Array:
    """The array behind a value; PyTorch's parameters only give theirs when detached."""
    if isinstance(value, Tensor):
        return value.data
    if isinstance(value, np.generic):
        return np.asarray(value)
    try:
        plain = value.detach() if hasattr(value, "detach") else value
        array = plain if is_array(plain) else from_foreign(plain)
    except (DtypeError, BufferError, RuntimeError) as error:
        raise DtypeError(
            f"{op}: {name!r} is {type(value).__name__} and cannot be read as an array ({error}); "
            f"convert it to float32 first"
        ) from error
    if array.dtype.kind not in "fiub":
        raise DtypeError(f"{op}: {name!r} is {array.dtype}, but real numbers are needed")
    return array


def _copied(like: Tensor, value: Array) -> Array:
    """A new array with the values, on the device and with the dtype and memory format of `like`."""
    be = backend_of(like.data)
    if type(value) is not type(like.data):
        value = be.asarray(to_device(value, "cpu"))
    copy = be.xp.empty_like(like.data)
    copy[...] = value
    return copy


def _shape(array: Any) -> str:
    return str(tuple(array.shape))


def _listed(names: list[str], describe: Callable[[str], str]) -> str:
    shown = ", ".join(f"{name!r} {describe(name)}" for name in names[:SHOWN])
    rest = len(names) - SHOWN
    return shown + (f" and {rest} more" if rest > 0 else "")
