"""What layers and models are made of: `Parameter`, `Buffer`, `Module`.

A module's parameters, buffers and children are simply its attributes (or lies in lists of them):
there is nothing to register and no constructor to call first. Names are attribute names joined by
dots, so a `state_dict` has PyTorch's keys where the attributes are called as there.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, Self

import numpy as np

from gpuconv.autograd import Tensor, tensor
from gpuconv.backends import Array, to_device
from gpuconv.errors import ArgumentError, DtypeError, Error
from gpuconv.nn import state

Hook = Callable[["Module", tuple[Any, ...], Any], Any]

_hook_numbers = count()


class Parameter(Tensor):
    """A tensor that a module learns. Takes an array (kept, not copied), a list or a Tensor."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(tensor(data).data, requires_grad)


class Buffer(Tensor):
    """A tensor that belongs to a module's state but is not learned, such as running statistics."""

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(tensor(data).data)


class Module:
    """Base of layers and models: derive, set attributes, write `forward`."""

    training: bool = True
    _hooks: Mapping[int, Hook] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, then the hooks; an error that passes through learns which layer it is of."""
        try:
            y = self.forward(*args, **kwargs)
        except Error as error:
            self._locate(error)
            raise
        for hook in tuple(self._hooks.values()):
            changed = hook(self, args, y)
            y = y if changed is None else changed
        return y

    def register_buffer(self, name: str, value: Any) -> None:
        """As in torch: `self.name = nn.Buffer(value)`."""
        setattr(self, name, Buffer(value))

    def register_forward_hook(self, hook: Hook) -> "HookHandle":
        """Call `hook(module, inputs, output)` after each forward pass.

        What the hook returns, unless None, takes the place of the output. `remove()` of the result
        takes the hook off again.
        """
        hooks = self.__dict__.setdefault("_hooks", {})
        handle = HookHandle(hooks, next(_hook_numbers))
        hooks[handle.number] = hook
        return handle

    def __setattr__(self, name: str, value: Any) -> None:
        # A plain tensor in a parameter's place would silently leave state_dict and optimizers.
        held = self.__dict__.get(name)
        if isinstance(held, (Parameter, Buffer)) and not (
            value is None or isinstance(value, (Parameter, Buffer))
        ):
            kind = type(held).__name__
            raise ArgumentError(
                f"{type(self).__name__}.{name} is a {kind} {held.shape}, which a "
                f"{type(value).__name__} cannot replace; assign its .data, or a new nn.{kind}(...)"
            )
        object.__setattr__(self, name, value)

    # What is inside.

    def children(self) -> Iterator["Module"]:
        """The modules directly inside, each once."""
        for _, module in self.named_children():
            yield module

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules directly inside with their names, each once."""
        seen: set[int] = set()
        for name, module in self._own(Module):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def modules(self) -> Iterator["Module"]:
        """This module and all below it, each once."""
        for _, module in self.named_modules():
            yield module

    def named_modules(self) -> Iterator[tuple[str, "Module"]]:
        """This module as "" and all below it with dotted names, each once, outer ones first."""
        return self._walk("", set())

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with dotted names, each once."""
        return self._named(Parameter)

    def buffers(self) -> Iterator[Buffer]:
        """All buffers, each once."""
        for _, buffer in self.named_buffers():
            yield buffer

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """All buffers with dotted names, each once."""
        return self._named(Buffer)

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers in PyTorch's order, under every name that they have."""
        for prefix, module in self._walk("", None):
            for kind in (Parameter, Buffer):
                for name, value in module._own(kind):
                    yield _join(prefix, name), value

    def _own(self, kind: type) -> Iterator[tuple[str, Any]]:
        """Attributes of a kind, and those in lists and tuples as "name.0", "name.1", ..."""
        for name, value in vars(self).items():
            yield from _found(kind, name, value)

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, "Module"]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, module in self._own(Module):
            yield from module._walk(_join(prefix, name), seen)

    def _named(self, kind: type) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, value in module._own(kind):
                if id(value) not in seen:
                    seen.add(id(value))
                    yield _join(prefix, name), value

    # What can be done with all of it.

    def train(self, mode: bool = True) -> Self:
        """Training mode here and below: dropout drops, batch normalisation uses the batch."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Evaluation mode here and below."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether gradients by the parameters are wanted; False freezes them."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def apply(self, function: Callable[["Module"], Any]) -> Self:
        """Call `function` on every module below, inner ones first, and on this one."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    def to(self, device: str | None = None, dtype: Any = None) -> Self:
        """Move everything to a device, and floating-point numbers to a dtype; in place.

        DeviceError or DtypeError, with nothing changed, for what is not there.
        """
        if dtype is not None:
            dtype = floating(f"{type(self).__name__}.to", dtype)

        def convert(t: Tensor) -> Array:
            array = t.data
            if dtype is not None and array.dtype.kind == "f":
                array = array.astype(dtype, copy=False)
            return array if device is None else to_device(array, device)

        held: list[Tensor] = [*self.parameters(), *self.buffers()]
        held += [t.grad for t in held if t.grad is not None]
        moved = [convert(t) for t in held]
        for t, data in zip(held, moved, strict=True):
            t.data = data
        return self

    def float(self) -> Self:
        """Floating-point numbers to float32, in place."""
        return self.to(dtype=np.float32)

    def double(self) -> Self:
        """Floating-point numbers to float64, in place."""
        return self.to(dtype=np.float64)

    def state_dict(self) -> dict[str, Array]:
        """Name to array of every parameter and buffer, in PyTorch's order.

        These are the very arrays, not copies: training goes on changing them, as in PyTorch.
        """
        return {name: t.data for name, t in self.named_state()}

    def load_state_dict(self, values: Mapping[str, Any], strict: bool = True) -> "state.Loaded":
        """Take the values of a `state_dict`: arrays, Tensors, anything with `__dlpack__`.

        Values are copied, to the device and dtype of the parameter. With `strict` the names must be
        the same; without, those missing are left and those unexpected skipped. Returns the names of
        both. ArgumentError, with nothing changed, that lists names and shapes that do not fit.
        """
        return state.load(
            f"{type(self).__name__}.load_state_dict", self.named_state(), values, strict
        )

    # How it is shown.

    def extra_repr(self) -> str:
        """The arguments, for `repr` and error messages."""
        return ""

    def __repr__(self) -> str:
        parts = [f"({name}): {module!r}" for name, module in self._own(Module)]
        if not parts:
            return self._title()
        lines = "\n".join(parts).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {lines}\n)"

    def _title(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def _locate(self, error: Error) -> None:
        """Say where it happened; each outer module knows a longer name of the innermost."""
        if error.module is None:
            error.module, error.where = self, self._title()
        for name, module in self.named_modules():
            if module is error.module and name:
                error.where = f"{name} ({module._title()})"


class HookHandle:
    """Takes a hook off again."""

    def __init__(self, hooks: dict[int, Hook], number: int) -> None:
        self._hooks, self.number = hooks, number

    def remove(self) -> None:
        """Take the hook off; a second call does nothing."""
        self._hooks.pop(self.number, None)


def short(value: Any) -> Any:
    """One number for a tuple of equal ones, as `repr` shows sizes."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _found(kind: type, name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, kind):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _found(kind, f"{name}.{i}", item)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def floating(op: str, dtype: Any) -> np.dtype[Any]:
    """`dtype` as NumPy's; DtypeError unless it is floating point."""
    try:
        result = np.dtype(dtype)
    except TypeError:
        result = None
    if result is None or result.kind != "f":
        raise DtypeError(f"{op}: dtype={dtype!r} must be floating point: 'float32' or 'float64'")
    return result
