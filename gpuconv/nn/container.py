"""Modules that hold others: a chain, a list; and the one that does nothing."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, overload

from gpuconv.errors import ArgumentError
from gpuconv.nn.module import Module


class _Chain(Module):
    """Modules under the names "0", "1", ..., or names given, that can be indexed like a list."""

    def __len__(self) -> int:
        return sum(1 for _ in self._own(Module))

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self._own(Module))

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Module | Self:
        if isinstance(index, int):
            return getattr(self, self._name(index))
        part = type(self)()
        for name, module in list(self._own(Module))[index]:
            part._add(name, module)
        part.training = self.training
        return part

    def __setitem__(self, index: int, module: Module) -> None:
        self._add(self._name(index), module, replace=True)

    def append(self, module: Module) -> Self:
        """Add a module at the end, named by its position."""
        self._add(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add several."""
        for module in modules:
            self.append(module)
        return self

    def _name(self, index: int) -> str:
        names = [name for name, _ in self._own(Module)]
        if not -len(names) <= index < len(names):
            raise IndexError(f"{type(self).__name__}: index {index} of {len(names)} modules")
        return names[index]

    def _add(self, name: str, module: Module, replace: bool = False) -> None:
        if not isinstance(module, Module):
            raise ArgumentError(
                f"{type(self).__name__}: {module!r:.60} is no Module; wrap a function in a class "
                f"derived from nn.Module"
            )
        if not name or "." in name or (hasattr(self, name) and not replace):
            raise ArgumentError(
                f"{type(self).__name__}: a module cannot be called {name!r}; use a name without "
                f"dots that is not taken"
            )
        setattr(self, name, module)


class Sequential(_Chain):
    """Modules applied one after the other: `Sequential(a, b)`, or of a dict of names to modules."""

    def __init__(self, *modules: Any) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self._add(name, module)
        else:
            self.extend(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


class ModuleList(_Chain):
    """A list of modules, for a `forward` of one's own to use."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)


class Identity(Module):
    """The input itself. Takes any arguments, so that it can stand in for another layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def forward(self, x: Any) -> Any:
        return x
