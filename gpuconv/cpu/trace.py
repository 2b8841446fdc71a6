"""A function of arrays as the list of its kernels' launches, which run again without Python.

Between two kernels the interpreter looks for plans and makes arrays: some 20 microseconds a layer
with what it needs in the caches, more after a kernel has emptied them. Of a network with fixed
shapes every launch is the same each time, so the launches are noted once, and run in a row.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor, no_grad
from gpuconv.backends import backend_of
from gpuconv.cpu.device import DEVICE, Tape
from gpuconv.cpu.team import get_num_threads, team
from gpuconv.errors import ArgumentError, DeviceError
from gpuconv.reference.conv import is_channels_last

Array = Any
_all: "weakref.WeakSet[Traced]" = weakref.WeakSet()


class Traced:
    """What `trace` made: call it with arrays of the examples' shapes, dtypes and memory formats.

    Results are new arrays. Calls from several threads wait for each other.
    """

    def __init__(self, inputs: list[Array], result: Any, tape: Tape, tensor: bool) -> None:
        self.inputs, self.result, self.tape, self.tensor = inputs, result, tape, tensor
        # Of each launch: function, tasks, threads, address of its numbers.
        self.launches = np.array(tape.launches, dtype=np.int64).reshape(-1, 4)
        self.lock = threading.Lock()
        _all.add(self)

    def __repr__(self) -> str:
        made = _said([_kind(array) for array in self.inputs])
        return f"Traced({len(self.launches)} launches, for {made})"

    def __call__(self, *arrays: Any) -> Any:
        given = [_raw(a) for a in arrays]
        kinds, wanted = [_kind(a) for a in given], [_kind(a) for a in self.inputs]
        if kinds != wanted:
            raise ArgumentError(f"traced: made for {_said(wanted)}, called with {_said(kinds)}")
        with self.lock:
            for own, array in zip(self.inputs, given, strict=True):
                np.copyto(own, array)
            team().replay(self.launches, min(self.tape.threads, get_num_threads()))
            if isinstance(self.result, tuple):
                return tuple(self._new(array) for array in self.result)
            return self._new(self.result)

    def _new(self, array: Array) -> Any:
        copy = array.copy(order="K")
        return Tensor(copy) if self.tensor else copy


def trace(function: Callable[..., Any], *examples: Any) -> Traced:
    """`function` of NumPy arrays (or Tensors), noted as the kernels it launches: for inference.

    It is called with copies of `examples`, without recording gradients, and must give one array or
    Tensor, or a tuple of them. Then it is called with other numbers, three times, to see that its
    launches compute the same bits. What it reads besides its arguments, such as weights, must not
    change any more, and what it keeps from this call is overwritten later. Raises ArgumentError for
    a model in training mode, and for a function of which a part is not done by CPU kernels, or
    whose steps depend on the numbers (as far as those three calls show); DeviceError for other
    backends.
    """
    if not callable(function):
        raise ArgumentError(f"trace: it takes a function or a Module, not {function!r:.60}")
    given = [_raw(a) for a in examples]
    if not given or any(type(array) is not np.ndarray for array in given):
        kinds = ", ".join(type(array).__name__ for array in given) or "nothing"
        raise DeviceError(f"trace: it takes examples that are NumPy arrays, not {kinds}")
    if backend_of(*given).name != "cpu":
        raise DeviceError(
            f"trace: it notes kernels of the backend 'cpu', not {backend_of(*given).name!r}"
        )
    _check_evaluating(function)
    tensors = [isinstance(a, Tensor) for a in examples]

    def call(arrays: list[Array]) -> Any:
        with no_grad():
            return function(*(Tensor(a) if t else a for a, t in zip(arrays, tensors, strict=True)))

    call([array.copy(order="K") for array in given])  # weights are rearranged, and plans made
    tape, inputs = Tape(), [array.copy(order="K") for array in given]
    with _noting(tape):
        y = call(inputs)
    several = isinstance(y, (tuple, list))
    parts = list(y) if several else [y]
    arrays = [_raw(part) for part in parts]
    if not all(type(array) is np.ndarray for array in arrays):
        raise ArgumentError("trace: the function must give an array or a Tensor, or several")
    tensor = any(isinstance(part, Tensor) for part in parts)
    traced = Traced(inputs, tuple(arrays) if several else arrays[0], tape, tensor)
    rng = np.random.default_rng(0)
    for scale in (1.0, -30.0, 0.1):
        example = [_other(array, rng, scale) for array in given]
        wanted = call([array.copy(order="K") for array in example])
        tape.pool.spoil()
        found = traced(*example)
        pairs = zip(wanted, found, strict=True) if several else [(wanted, found)]
        if not all(np.array_equal(_raw(a), _raw(b), equal_nan=True) for a, b in pairs):
            raise ArgumentError(
                f"trace: {_culprit(function, given)}is not done by CPU kernels alone, or its steps "
                f"depend on the numbers; call it as it is. (Array code are, for instance, "
                f"activations other than ReLU, transposed convolutions, adaptive pooling to sizes "
                f"that do not divide the image, and arithmetic of your own)"
            )
    return traced


def _check_evaluating(function: Any) -> None:
    from gpuconv.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, Dropout, Module

    changing = BatchNorm1d, BatchNorm2d, BatchNorm3d, Dropout
    for name, module in function.named_modules() if isinstance(function, Module) else ():
        if module.training and isinstance(module, changing):
            raise ArgumentError(
                f"trace: {name or 'the model'} ({type(module).__name__}) is in training mode; call "
                f".eval() on the model first"
            )


def _other(array: Array, rng: np.random.Generator, scale: float) -> Array:
    """Other numbers in an array that lies alike; integers are only shuffled."""
    other = np.empty_like(array)
    if array.dtype.kind == "f":
        other[...] = rng.standard_normal(array.shape) * scale + scale / 2
    else:
        other[...] = rng.permutation(array.ravel()).reshape(array.shape)
    return other


def _culprit(function: Any, given: list[Array]) -> str:
    """The first of a model's innermost layers that cannot be traced, by name."""
    from gpuconv.nn import Module

    if not isinstance(function, Module) or next(function.children(), None) is None:
        return "what it computes "
    seen: list[tuple[str, Any, Any]] = []

    def watch(name: str, module: Any) -> Any:
        return module.register_forward_hook(
            lambda _, inputs, y: seen.append((name, module, inputs))
        )

    handles = [
        watch(name, module)
        for name, module in function.named_modules()
        if next(module.children(), None) is None
    ]
    try:
        with no_grad():
            function(*given)
    finally:
        for handle in handles:
            handle.remove()
    for name, module, inputs in seen:
        try:
            trace(module, *inputs)
        except (ArgumentError, DeviceError):
            return f"{name} ({type(module).__name__}) "
    return "what it computes between its layers "


@contextmanager
def _noting(tape: Tape) -> Iterator[None]:
    DEVICE.tapes.tape = tape
    try:
        yield
    finally:
        DEVICE.tapes.tape = None


def _raw(value: Any) -> Array:
    return value.data if isinstance(value, Tensor) else value


def _kind(array: Any) -> str:
    if type(array) is not np.ndarray:
        return type(array).__name__
    last = array.ndim > 2 and is_channels_last(array)
    return f"{array.dtype} {array.shape}{' channels-last' if last else ''}"


def _said(kinds: list[str]) -> str:
    return ", ".join(kinds) or "nothing"


def _forked() -> None:
    """In a child: whoever held a lock in the parent is not here to release it."""
    for traced in _all:
        traced.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
