"""Automatic differentiation, whole: `Tensor`, `Function`, `backward`, `no_grad`.

A `Function` instance is one node of the tape. It holds what it saved for its backward pass and
edges to what made its inputs, never its own output, so a graph has no reference cycles: arrays are
freed as soon as the last name for them is gone, without the garbage collector. `backward` visits
nodes from the newest to the oldest (by creation number; no recursion) and frees each as the
gradient passes through it.
"""

import heapq
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any, ClassVar

import numpy as np

from gpuconv.backends import (
    Array,
    Backend,
    backend_of,
    device_of,
    from_foreign,
    is_array,
    to_device,
)
from gpuconv.errors import ArgumentError, DtypeError, GraphError

_recording: ContextVar[bool] = ContextVar("gpuconv_recording", default=True)
_numbers = count()


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside this block nothing is recorded: results do not require gradients."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


@contextmanager
def enable_grad() -> Iterator[None]:
    """Inside this block operations are recorded, also within `no_grad()`."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)


class Function:
    """One differentiable operation: derive, and write `forward` and `backward` side by side.

    Hyperparameters go to the constructor; `apply` takes the inputs. `forward(be, *arrays)` gets raw
    arrays (or Python scalars, or None, as they were passed) and returns one array; it may keep what
    `backward(be, gy)` will need as attributes. `backward` returns one gradient an input (a single
    array where there is one input); `self.needs[i]` says whether input i's gradient is wanted: do
    not compute one that is not, return None. Never change `gy` or a saved array in place: they may
    be shared.
    """

    needs: tuple[bool, ...] = ()
    edges: "tuple[Function | Tensor | None, ...]" = ()
    be: Backend
    number: int = -1
    freed: bool = False
    _made: tuple[Any, Any] = ((), None)  # shape and dtype of what `apply` gave
    macs: int = 0  # multiply-accumulates of the last forward pass, for `summary`

    def forward(self, be: Backend, *arrays: Any) -> Array:
        raise NotImplementedError(f"{type(self).__name__} has no forward(be, *arrays)")

    def backward(self, be: Backend, gy: Array) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no backward(be, gy)")

    def apply(self, *inputs: Any) -> Any:
        """Compute; a Tensor among the inputs gives a Tensor, arrays alone give an array."""
        if not isinstance(self, Function):
            raise GraphError("apply belongs to an instance: write MyFunction().apply(x)")
        if self.number >= 0:
            raise GraphError(
                f"this {type(self).__name__} was applied before: an instance is one node of one "
                f"graph; make a new one for each call"
            )
        arrays, wanted, tensors = [], [], False
        for value in inputs:
            if isinstance(value, Tensor):
                tensors = True
                arrays.append(value.data)
                wanted.append(value.requires_grad)
            else:
                arrays.append(_raw(value))
                wanted.append(False)
        be = self.be = backend_of(*arrays)
        if not (True in wanted and _recording.get()):
            self.needs = (False,) * len(inputs)
            y = _array(self.forward(be, *arrays))
            return Tensor(y) if tensors else y
        self.needs = tuple(wanted)
        y = _array(self.forward(be, *arrays))
        self.edges = tuple(
            (v._node or v) if w else None for v, w in zip(inputs, wanted, strict=True)
        )
        self.number = next(_numbers)
        result = Tensor(y, requires_grad=True, node=self)
        self._made = y.shape, y.dtype
        return result

    def free(self) -> None:
        """Forget saved arrays and edges; the node can be seen afterwards, but not passed again."""
        number = self.number
        self.__dict__.clear()
        self.number, self.freed = number, True


class Tensor:
    """An array with a place on the tape.

    `data` is the raw array (NumPy or CuPy); `grad` a Tensor or None, filled by `backward` for
    leaves that require it and never changed in place by the library. Arithmetic follows the array's
    library; Python scalars do not change a dtype.
    """

    __slots__ = ("__weakref__", "_node", "data", "grad", "requires_grad")
    __array_priority__: ClassVar[float] = 1000.0  # ndarray + Tensor is Tensor's __radd__
    __array_ufunc__: ClassVar[None] = None
    __hash__ = object.__hash__

    def __init__(
        self, data: Array, requires_grad: bool = False, node: Function | None = None
    ) -> None:
        if not hasattr(data, "strides"):
            raise DtypeError(
                f"a Tensor holds one array, not a {type(data).__name__}; make it with "
                f"gpuconv.tensor(...), and return one array from a Function's forward"
            )
        if requires_grad and data.dtype.kind != "f":
            raise DtypeError(
                f"only floating-point tensors can require gradients, not {data.dtype}; "
                f"convert with .astype('float32')"
            )
        self.data = data
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self._node = node

    # What it is.

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def ndim(self) -> int:
        return int(self.data.ndim)

    @property
    def size(self) -> int:
        return int(self.data.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.data.dtype)

    @property
    def device(self) -> str:
        return device_of(self.data)

    def __repr__(self) -> str:
        numbers = np.array2string(self.numpy(), separator=", ", prefix="tensor(")
        grad = ", requires_grad=True" if self.requires_grad else ""
        device = "" if self.device == "cpu" else f", device={self.device!r}"
        return f"tensor({numbers}, dtype={self.dtype}{device}{grad})"

    def __len__(self) -> int:
        if not self.shape:
            raise ArgumentError("a tensor of no axes has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item() if spec else str(self), spec)

    def item(self) -> Any:
        """The only element as a Python number; ArgumentError if there are more."""
        if self.size != 1:
            raise ArgumentError(
                f"a tensor of shape {self.shape} is not one number; reduce it first"
            )
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The data on the host; the very array, not a copy, if it lives there."""
        return to_device(self.data, "cpu")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad:
            raise GraphError("this tensor requires gradients; take .detach().numpy() of it")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def detach(self) -> "Tensor":
        """The same array, off the tape."""
        return Tensor(self.data)

    def to(self, device: str) -> "Tensor":
        """On "cpu", "cuda" or "auto"; itself if there; the gradient comes back to this device."""
        moved = to_device(self.data, device)
        return self if moved is self.data else ops.ToDevice(device).apply(self)

    def astype(self, dtype: Any) -> "Tensor":
        """With another dtype; the gradient comes back in this one."""
        return ops.astype(self, dtype)

    def backward(self, grad: "Tensor | Array | None" = None) -> None:
        """Fill `.grad` of every leaf this tensor was computed from, and free the graph.

        `grad` is the gradient of this tensor, of its shape; it may be left out for a single number.
        GraphError if nothing here requires a gradient, or the graph was freed by an earlier call.
        """
        if not self.requires_grad:
            raise GraphError(
                "backward: this tensor does not depend on anything that requires a gradient; "
                "create the parameters with requires_grad=True, outside no_grad()"
            )
        be = backend_of(self.data)
        if grad is None:
            if self.size != 1:
                raise GraphError(
                    f"backward: a tensor of shape {self.shape} needs its gradient passed as grad=; "
                    f"or reduce it first, with .sum() or .mean()"
                )
            gy = be.xp.ones_like(self.data)
        else:
            gy = _raw(grad)
            if gy.shape != self.data.shape or gy.dtype != self.data.dtype:
                raise ArgumentError(
                    f"backward: grad is {gy.dtype} {gy.shape}, the tensor {self.dtype} "
                    f"{self.shape}; they must agree"
                )
        if self._node is None:
            self._accumulate(gy.copy())
        else:
            _run_backward(self._node, gy)

    def _accumulate(self, g: Array) -> None:
        if g.shape != self.data.shape or g.dtype != self.data.dtype:
            raise GraphError(
                f"backward gave a gradient {g.dtype} {g.shape} for a leaf {self.dtype} "
                f"{self.shape}; the Function that made it is wrong"
            )
        if self.grad is not None:
            g = _array(self.grad.data + g)
        elif 0 in g.strides and g.size > 1:
            g = g.copy()  # a broadcast view: give the user a real array
        self.grad = Tensor(g)

    # Arithmetic. Scalars and arrays on the other side are constants.

    def __add__(self, other: Any) -> "Tensor":
        return ops.add(self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return ops.add(other, self)

    def __sub__(self, other: Any) -> "Tensor":
        return ops.subtract(self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return ops.subtract(other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return ops.multiply(self, other)

    def __rmul__(self, other: Any) -> "Tensor":
        return ops.multiply(other, self)

    def __truediv__(self, other: Any) -> "Tensor":
        return ops.divide(self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return ops.divide(other, self)

    def __pow__(self, exponent: Any) -> "Tensor":
        return ops.power(self, exponent)

    def __rpow__(self, base: Any) -> "Tensor":
        return ops.power(base, self)

    def __matmul__(self, other: Any) -> "Tensor":
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return ops.matmul(other, self)

    def __neg__(self) -> "Tensor":
        return ops.negative(self)

    def __abs__(self) -> "Tensor":
        return ops.absolute(self)

    def __getitem__(self, index: Any) -> "Tensor":
        return ops.getitem(self, index)

    # Comparisons give boolean tensors, off the tape.

    def _compare(self, other: Any, compare: Callable[[Any, Any], Any]) -> "Tensor":
        a, b = self.data, _raw(other)
        backend_of(a, b)
        return Tensor(_array(compare(a, b)))

    def __eq__(self, other: Any) -> Any:
        return self._compare(other, operator.eq)

    def __ne__(self, other: Any) -> Any:
        return self._compare(other, operator.ne)

    def __lt__(self, other: Any) -> "Tensor":
        return self._compare(other, operator.lt)

    def __le__(self, other: Any) -> "Tensor":
        return self._compare(other, operator.le)

    def __gt__(self, other: Any) -> "Tensor":
        return self._compare(other, operator.gt)

    def __ge__(self, other: Any) -> "Tensor":
        return self._compare(other, operator.ge)

    # Methods as in torch.Tensor.

    def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return ops.mean(self, axis, keepdims)

    def var(self, axis: Any = None, correction: int = 1, keepdims: bool = False) -> "Tensor":
        return ops.var(self, axis, correction, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return ops.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return ops.min(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> "Tensor":
        return Tensor(backend_of(self.data).xp.asarray(self.data.argmax(axis=axis)))

    def argmin(self, axis: int | None = None) -> "Tensor":
        return Tensor(backend_of(self.data).xp.asarray(self.data.argmin(axis=axis)))

    def reshape(self, *shape: Any) -> "Tensor":
        return ops.reshape(self, shape[0] if len(shape) == 1 else shape)

    def flatten(self, start: int = 0, end: int = -1) -> "Tensor":
        return ops.flatten(self, start, end)

    def transpose(self, *axes: Any) -> "Tensor":
        """With the axes reversed, or in the order given (as NumPy's; torch calls it `permute`)."""
        return ops.transpose(self, *axes)

    @property
    def T(self) -> "Tensor":
        return ops.transpose(self)

    def squeeze(self, axis: Any = None) -> "Tensor":
        return ops.squeeze(self, axis)

    def unsqueeze(self, axis: int) -> "Tensor":
        return ops.unsqueeze(self, axis)

    def broadcast_to(self, shape: Any) -> "Tensor":
        return ops.broadcast_to(self, shape)

    def exp(self) -> "Tensor":
        return ops.exp(self)

    def log(self) -> "Tensor":
        return ops.log(self)

    def sqrt(self) -> "Tensor":
        return ops.sqrt(self)

    def abs(self) -> "Tensor":
        return ops.absolute(self)

    def clip(self, low: float | None = None, high: float | None = None) -> "Tensor":
        return ops.clip(self, low, high)


def tensor(
    data: Any, device: str | None = None, requires_grad: bool = False, dtype: Any = None
) -> Tensor:
    """A Tensor of an array (kept where it lives, not copied), a list, a number, or a Tensor's data.

    Lists and numbers of floats become float32. `device` "cpu", "cuda" or "auto" moves it first;
    DeviceError if there is no such device here.
    """
    if isinstance(data, Tensor):
        array = data.data
    elif isinstance(data, (list, tuple, int, float, bool, np.generic)):
        array = np.asarray(data)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(np.float32)
        if array.dtype.kind not in "fiub":
            raise DtypeError(f"a tensor cannot be made of {type(data).__name__} {data!r:.60}")
    else:
        array = _raw(data)
        backend_of(array)
    if dtype is not None:
        array = array.astype(dtype, copy=False)
    if device is not None:
        array = to_device(array, device)
    return Tensor(array, requires_grad)


def _raw(value: Any) -> Any:
    """What `forward` gets: the array of a Tensor, an array, a Python scalar, or None."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, Tensor):
        return value.data
    if isinstance(value, np.generic):
        return value.item()  # a NumPy scalar must not decide the dtype of a tensor
    if value is None or isinstance(value, (int, float)) or is_array(value):
        return value
    return from_foreign(value)


def raw_arrays(*values: Any) -> list[Any] | None:
    """The values with arrays for Tensors; None if an operation on them is to be recorded."""
    arrays = []
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad and _recording.get():
                return None
            value = value.data
        arrays.append(value)
    return arrays


def _array(value: Any) -> Any:
    """NumPy's arithmetic turns arrays of no axes into scalars: those become arrays again."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def _check_not_freed(root: Function) -> None:
    """Before anything is accumulated: a graph that is freed in part gives no half gradients."""
    seen, todo = {root}, [root]
    while todo:
        node = todo.pop()
        if node.freed:
            raise GraphError(
                "backward: this graph was freed by an earlier backward; compute the loss again, "
                "or add the losses and call backward once"
            )
        for edge in node.edges:
            if isinstance(edge, Function) and edge not in seen:
                seen.add(edge)
                todo.append(edge)


def _run_backward(root: Function, gy: Array) -> None:
    _check_not_freed(root)
    waiting: dict[Function, Array] = {root: gy}
    heap = [(-root.number, root)]
    while heap:
        _, node = heapq.heappop(heap)
        gy = waiting.pop(node)
        be = node.be
        grads = node.backward(be, gy)
        if not isinstance(grads, tuple):
            grads = (grads,)
        edges, needs = node.edges, node.needs
        if len(grads) != len(edges):
            raise GraphError(
                f"{type(node).__name__}.backward returned {len(grads)} gradients "
                f"for {len(edges)} inputs"
            )
        name = type(node).__name__
        node.free()
        for edge, g, needed in zip(edges, grads, needs, strict=True):
            if not needed or edge is None:
                continue
            if g is None:
                raise GraphError(
                    f"{name}.backward returned None for an input that needs a gradient"
                )
            g = _array(g)
            if isinstance(edge, Function) and (g.shape, g.dtype) != edge._made:
                shape, dtype = edge._made
                raise GraphError(
                    f"{name}.backward gave a gradient {g.dtype} {g.shape} for an input {dtype} "
                    f"{shape}; they must agree"
                )
            if isinstance(edge, Tensor):
                # An array passed on as it came may go to others too: a leaf gets its own.
                edge._accumulate(g.copy() if be.xp.may_share_memory(g, gy) else g)
            elif edge not in waiting:
                waiting[edge] = g
                heapq.heappush(heap, (-edge.number, edge))
            else:  # a new array, never in place: others may hold the one that is there
                waiting[edge] = _array(be.add(waiting[edge], g))
        del edges, grads


# The operators above are thin names for these. Last, because ops derives from Function.
from gpuconv import ops  # noqa: E402
