"""A stand-in for CuPy that is stricter than CuPy, so that code valid only on NumPy fails here.

`StrictArray` wraps a NumPy array and refuses what a GPU array refuses: conversion by `__array__`,
NumPy's own functions, and any mixing with a NumPy array. `strict` is its module: only functions
that CuPy has too exist in it, and all of them take StrictArrays. Numbers leave by `.get()`,
`.item()`, `float()` and come in by `asarray`, as with CuPy.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np


class StrictArray:
    """A NumPy array behind CuPy's rules."""

    __hash__ = None  # as every array

    def __init__(self, host: np.ndarray) -> None:
        assert isinstance(host, np.ndarray)
        self._host = host

    # Refused on a GPU.

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion of a device array to NumPy is not allowed; use .get()")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"NumPy's {func.__name__} was called on a device array")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        raise TypeError(f"NumPy's {ufunc.__name__} was called on a device array")

    # What every array has.

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    dtype = property(lambda self: self._host.dtype)
    strides = property(lambda self: self._host.strides)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: StrictArray(self._host.T))

    def get(self) -> np.ndarray:
        """The numbers on the host."""
        return self._host.copy()

    def item(self) -> Any:
        return self._host.item()

    def __float__(self) -> float:
        return float(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: Any) -> "StrictArray":
        return StrictArray(np.asarray(self._host[lower(index)]))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[lower(index)] = lower(value)


def lower(value: Any) -> Any:
    """StrictArrays as their NumPy arrays, inside tuples and lists too; NumPy arrays refused."""
    if isinstance(value, StrictArray):
        return value._host
    if isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"a NumPy {type(value).__name__} was mixed with device arrays")
    if isinstance(value, (tuple, list)):
        return type(value)(lower(v) for v in value)
    return value


def lift(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return StrictArray(np.asarray(value))
    if isinstance(value, (tuple, list)):
        return type(value)(lift(v) for v in value)
    return value


def _function(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        lowered = {name: lower(v) for name, v in kwargs.items()}
        return lift(function(*(lower(a) for a in args), **lowered))

    return call


def _method(name: str) -> Any:
    def call(self: StrictArray, *args: Any, **kwargs: Any) -> Any:
        lowered = {key: lower(v) for key, v in kwargs.items()}
        return lift(getattr(self._host, name)(*(lower(a) for a in args), **lowered))

    return call


def _inplace(name: str) -> Any:
    def call(self: StrictArray, other: Any) -> StrictArray:
        result = getattr(self._host, name)(lower(other))
        if result is NotImplemented:
            raise TypeError(f"{name} refused")
        self._host = result
        return self

    return call


def words(text: str) -> list[str]:
    return text.split()


_METHODS = words("""
    sum mean max min argmax argmin reshape transpose swapaxes astype copy squeeze ravel clip all any
    fill round take cumsum std var nonzero view
""")
_OPERATORS = words("""
    add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul
    neg pos abs eq ne lt le gt ge and rand or ror xor rxor invert lshift rshift
""")
_INPLACE = words("iadd isub imul itruediv ifloordiv ipow iand ior ixor")
for _name in _METHODS:
    setattr(StrictArray, _name, _method(_name))
for _name in _OPERATORS:
    setattr(StrictArray, f"__{_name}__", _method(f"__{_name}__"))
for _name in _INPLACE:
    setattr(StrictArray, f"__{_name}__", _inplace(f"__{_name}__"))


def _asarray(value: Any, dtype: Any = None) -> StrictArray:
    """The one way in from the host: a NumPy array is copied over, as `cupy.asarray` does."""
    if isinstance(value, StrictArray):
        return value if dtype in (None, value.dtype) else value.astype(dtype)
    return StrictArray(np.array(value, dtype=dtype))


# Functions of the array interface that CuPy 13 and 14 document; what is not here fails by name.
_FUNCTIONS = words("""
    abs absolute all any arange argmax argmin argsort array_equal ascontiguousarray broadcast_to
    clip concatenate copysign cos cosh cumsum divide einsum empty empty_like equal exp
    expand_dims expm1 eye flip floor full full_like isfinite isinf isnan linspace log log1p log2
    logaddexp matmul maximum may_share_memory mean minimum moveaxis multiply negative ones
    ones_like outer pad power prod reciprocal repeat reshape rint roll round sign sin sinh sort
    sqrt square squeeze stack std subtract sum swapaxes take take_along_axis tanh tensordot tile
    transpose tril triu trunc var where zeros zeros_like
""")


class _Add:
    """The ufunc `add`, callable and with `at`, as CuPy has it."""

    __call__ = staticmethod(_function(np.add))
    at = staticmethod(_function(np.add.at))


strict = SimpleNamespace(
    __name__="strict",
    ndarray=StrictArray,
    asarray=_asarray,
    array=_asarray,
    lib=SimpleNamespace(
        stride_tricks=SimpleNamespace(as_strided=_function(np.lib.stride_tricks.as_strided))
    ),
    add=_Add(),
    pi=np.pi,
    e=np.e,
    inf=np.inf,
    nan=np.nan,
    newaxis=None,
    float16=np.float16,
    float32=np.float32,
    float64=np.float64,
    int8=np.int8,
    uint8=np.uint8,
    int16=np.int16,
    int32=np.int32,
    int64=np.int64,
    bool_=np.bool_,
    finfo=np.finfo,
    iinfo=np.iinfo,
    dtype=np.dtype,
    result_type=np.result_type,
    **{name: _function(getattr(np, name)) for name in _FUNCTIONS},
)
