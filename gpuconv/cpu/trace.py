"""A function of arrays as the list of its kernels' launches, which run again without Python.

Between two kernels the interpreter looks for plans and makes arrays: some 20 microseconds a layer
with what it needs in the caches, more after a kernel has emptied them. Of a network with fixed
shapes every launch is the same each time, so the launches are noted once, and run in a row.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor, no_grad
from gpuconv.backends import backend_of
from gpuconv.cpu.device import DEVICE, Tape
from gpuconv.cpu.team import team
from gpuconv.errors import ArgumentError, DeviceError

Array = Any


class Traced:
    """What `trace` made: call it with arrays of the examples' shapes, dtypes and strides.

    Results are new arrays. Calls from several threads wait for each other.
    """

    def __init__(
        self, inputs: list[Array], result: Any, tape: Tape, launches: Array, tensor: bool
    ) -> None:
        self.inputs, self.result, self.tape, self.tensor = inputs, result, tape, tensor
        self.launches = launches  # of each launch: function, tasks, threads, address of its numbers
        self.lock = threading.Lock()

    def __call__(self, *arrays: Any) -> Any:
        given = [a.data if isinstance(a, Tensor) else a for a in arrays]
        kinds, wanted = [_kind(a) for a in given], [_kind(a) for a in self.inputs]
        if kinds != wanted:
            raise ArgumentError(f"traced: made for {_said(wanted)}, called with {_said(kinds)}")
        with self.lock:
            for own, array in zip(self.inputs, given, strict=True):
                np.copyto(own, array)
            team().replay(self.launches, self.tape.threads)
            if isinstance(self.result, tuple):
                return tuple(self._new(array) for array in self.result)
            return self._new(self.result)

    def _new(self, array: Array) -> Any:
        copy = array.copy(order="K")
        return Tensor(copy) if self.tensor else copy


def trace(function: Callable[..., Any], *examples: Any) -> Traced:
    """`function` of NumPy arrays (or Tensors), noted as the kernels it launches: for inference.

    It is called with `examples` (and once with other numbers, to see that it computes the same),
    without recording gradients, and must give one array or Tensor, or a tuple of them. What it
    reads besides its arguments, such as weights, must not change any more. ArgumentError for a
    function of which a part is not done by CPU kernels, or whose steps depend on the numbers;
    DeviceError for other backends.
    """
    given = [a.data if isinstance(a, Tensor) else a for a in examples]
    if not given or any(type(array) is not np.ndarray for array in given):
        kinds = ", ".join(type(array).__name__ for array in given) or "nothing"
        raise DeviceError(f"trace: it takes examples that are NumPy arrays, not {kinds}")
    if backend_of(*given).name != "cpu":
        raise DeviceError(
            f"trace: it notes kernels of the backend 'cpu', not {backend_of(*given).name!r}"
        )
    tensors = [isinstance(a, Tensor) for a in examples]
    inputs = [array.copy(order="K") for array in given]

    def call(arrays: list[Array]) -> Any:
        with no_grad():
            return function(*(Tensor(a) if t else a for a, t in zip(arrays, tensors, strict=True)))

    call(inputs)  # weights are rearranged, and plans made
    tape = Tape()
    with _noting(tape):
        y = call(inputs)
    several = isinstance(y, (tuple, list))
    parts = list(y) if several else [y]
    tensor = any(isinstance(part, Tensor) for part in parts)
    arrays = [part.data if isinstance(part, Tensor) else part for part in parts]
    if not all(type(array) is np.ndarray for array in arrays):
        raise ArgumentError("trace: the function must give an array or a Tensor, or several")
    launches = np.array(tape.launches, dtype=np.int64).reshape(-1, 4)
    traced = Traced(inputs, tuple(arrays) if several else arrays[0], tape, launches, tensor)
    others = [np.flip(array).copy(order="K") for array in given]
    others = [o * o.dtype.type(0.5) if o.dtype.kind == "f" else o for o in others]
    for example in (others, given):
        wanted, found = call(example), traced(*example)
        pairs = zip(wanted, found, strict=True) if several else [(wanted, found)]
        if not all(np.array_equal(_raw(a), _raw(b), equal_nan=True) for a, b in pairs):
            raise ArgumentError(
                "trace: not all that the function does is done by CPU kernels (other activations "
                "than ReLU and pooling in 3-D are not, for instance), or its steps depend on the "
                "numbers; call it as it is"
            )
    return traced


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
    if isinstance(array, np.ndarray):
        return f"{array.dtype} {array.shape}"
    return type(array).__name__


def _said(kinds: list[str]) -> str:
    return ", ".join(kinds) or "nothing"
