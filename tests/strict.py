"""A stand-in for CuPy that is stricter than CuPy, so that code valid only on NumPy fails here.

`StrictArray` wraps a NumPy array and refuses what a GPU array refuses: conversion by `__array__`,
NumPy's own functions, and any mixing with a NumPy array or a list. `strict` is its module: only
functions that CuPy has too exist in it, with CuPy's arguments and no others, and all of them take
StrictArrays. Numbers leave by `.get()`, `.item()`, `float()` and come in by `asarray`, as with
CuPy. Where CuPy is silent and wrong (an index out of range wraps around), this raises.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np


class StrictArray:
    """A NumPy array behind CuPy's rules."""

    __hash__ = None  # as every array

    def __init__(self, host: np.ndarray) -> None:
        assert isinstance(host, np.ndarray)
        if host.dtype.kind not in "biuf" or host.itemsize > 8:
            raise TypeError(f"dtype {host.dtype} is not used on a GPU")
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
        self._host[lower(index)] = lower(operand("__setitem__", value))


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


def operand(what: str, value: Any) -> Any:
    """`value` if CuPy computes with it: an array of its own, a Python scalar, or None left out."""
    if value is None or isinstance(value, (StrictArray, bool, int, float)):
        return value
    raise TypeError(f"{what}: a {type(value).__name__} is no operand on a GPU, only arrays are")


def array(what: str, value: Any) -> Any:
    """`value` if it is an array of this module."""
    if isinstance(value, StrictArray):
        return value
    raise TypeError(f"{what}: a {type(value).__name__} was given where CuPy takes arrays only")


# What a parameter of these names takes; the others (shapes, axes, flags) are not looked at.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(["a", "a1", "a2", "b", "m", "A", "array", "prototype", "condition"], array),
    **dict.fromkeys(["x", "y", "x1", "x2", "fill_value", "a_min", "a_max", "other"], operand),
    **dict.fromkeys(["min", "max", "value"], operand),
    "tup": lambda what, several: [array(what, v) for v in several],
    "operands": lambda what, several: [array(what, v) for v in several],
}

# CuPy 14's functions by their parameters, written as CuPy writes them (for the ufuncs without
# `casting`). What is not here fails by name.
FUNCTIONS = {
    "x, /, out=None, *, dtype=None": """
        abs absolute cos cosh exp expm1 floor isfinite isinf isnan log log1p log2 negative
        reciprocal rint sign sin sinh sqrt square tanh trunc""",
    "x1, x2, /, out=None, *, dtype=None": """
        add copysign divide equal logaddexp maximum minimum multiply power subtract""",
    "a, b, /, out=None, *, dtype=None": "matmul",
    "a, axis=None, dtype=None, out=None, keepdims=False": "sum mean prod argmax argmin",
    "a, axis=None, out=None, keepdims=False": "all any",
    "a, axis=None, dtype=None, out=None, ddof=0, keepdims=False": "std var",
    "a, axis=None, dtype=None, out=None": "cumsum",
    "a, axis=-1, kind=None": "argsort sort",
    "start, stop=None, step=1, dtype=None": "arange",
    "start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0": "linspace",
    "N, M=None, k=0, dtype=float, order='C'": "eye",
    "shape, dtype=float, order='C'": "empty ones zeros",
    "shape, fill_value, dtype=None, order='C'": "full",
    "prototype, dtype=None, order='K', subok=None, shape=None": "empty_like",
    "a, dtype=None, order='K', subok=None, shape=None": "ones_like zeros_like",
    "a, fill_value, dtype=None, order='K', subok=None, shape=None": "full_like",
    "a1, a2, equal_nan=False": "array_equal",
    "a, dtype=None": "ascontiguousarray",
    "array, shape": "broadcast_to",
    "a, a_min, a_max, out=None": "clip",
    "tup, axis=0, out=None, *, dtype=None, casting='same_kind'": "concatenate stack",
    "subscripts, *operands, dtype=None, optimize=False": "einsum",
    "a, axis": "expand_dims",
    "a, axis=None": "flip squeeze",
    "a, b, max_work=None": "may_share_memory",
    "a, source, destination": "moveaxis",
    "a, b, out=None": "outer",
    "array, pad_width, mode='constant', *, constant_values=0, reflect_type='even'": "pad",
    "a, repeats, axis=None": "repeat",
    "a, newshape, order='C', *, copy=None": "reshape",
    "a, shift, axis=None": "roll",
    "a, decimals=0, out=None": "round",
    "a, axis1, axis2": "swapaxes",
    "a, indices, axis=None, out=None": "take",
    "a, indices, axis": "take_along_axis",
    "a, b, axes=2": "tensordot",
    "A, reps": "tile",
    "a, axes=None": "transpose",
    "m, k=0": "tril triu",
    "condition, x=None, y=None": "where",
}
METHODS = {
    "axis=None, dtype=None, out=None, keepdims=False": "sum mean",
    "axis=None, out=None, keepdims=False": "max min all any",
    "axis=None, out=None, dtype=None, keepdims=False": "argmax argmin",
    "axis=None, dtype=None, out=None, ddof=0, keepdims=False": "std var",
    "axis=None, dtype=None, out=None": "cumsum",
    "*shape, order='C', copy=None": "reshape",
    "*axes": "transpose",
    "axis1, axis2": "swapaxes",
    "dtype, order='K', casting=None, subok=None, copy=True": "astype",
    "order='C'": "copy ravel",
    "axis=None": "squeeze",
    "min=None, max=None, out=None": "clip",
    "value": "fill",
    "decimals=0, out=None": "round",
    "indices, axis=None, out=None": "take",
    "dtype=None, type=None": "view",
    "": "nonzero",
}


def dunder(names: str) -> list[str]:
    return [f"__{name}__" for name in names.split()]


_UNARY = dunder("neg pos abs invert")
_BINARY = dunder("""
    add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul
    eq ne lt le gt ge and rand or ror xor rxor lshift rshift
""")
_INPLACE = dunder("iadd isub imul itruediv ifloordiv ipow iand ior ixor")


def _binder(name: str, parameters: str) -> Callable[..., None]:
    """A function of these parameters that raises TypeError for arguments CuPy would refuse."""
    bind = eval(f"lambda {parameters}: locals()")

    def check(*args: Any, **kwargs: Any) -> None:
        try:
            given = bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"CuPy's {name}({parameters}): {error}") from None
        for parameter, value in given.items():
            if parameter in _CHECKS:
                _CHECKS[parameter](name, value)
        if given.get("kind", "stable") not in (None, "stable"):
            raise TypeError(f"{name}: CuPy sorts by kind=None or 'stable' only")

    return check


def _function(name: str, parameters: str, function: Any = None) -> Any:
    function, check = function or getattr(np, name), _binder(name, parameters)

    def call(*args: Any, **kwargs: Any) -> Any:
        lowered = [lower(a) for a in args], {key: lower(v) for key, v in kwargs.items()}
        check(*args, **kwargs)
        return lift(function(*lowered[0], **lowered[1]))

    return call


def _method(name: str, parameters: str) -> Any:
    check = _binder(name, parameters)

    def call(self: StrictArray, *args: Any, **kwargs: Any) -> Any:
        lowered = [lower(a) for a in args], {key: lower(v) for key, v in kwargs.items()}
        check(*args, **kwargs)
        return lift(getattr(self._host, name)(*lowered[0], **lowered[1]))

    return call


def _inplace(name: str) -> Any:
    def call(self: StrictArray, other: Any) -> StrictArray:
        result = getattr(self._host, name)(lower(operand(name, other)))
        if result is NotImplemented:
            raise TypeError(f"{name} refused")
        self._host = result
        return self

    return call


for _parameters, _names in [*METHODS.items(), ("", " ".join(_UNARY)), ("other", " ".join(_BINARY))]:
    for _name in _names.split():
        setattr(StrictArray, _name, _method(_name, _parameters))
for _name in _INPLACE:
    setattr(StrictArray, _name, _inplace(_name))


def _asarray(value: Any, dtype: Any = None) -> StrictArray:
    """The one way in from the host: a NumPy array is copied over, as `cupy.asarray` does."""
    if isinstance(value, StrictArray):
        return value if dtype in (None, value.dtype) else value.astype(dtype)
    return StrictArray(np.array(value, dtype=dtype))


class _Add:
    """The ufunc `add`, callable and with `at`, as CuPy has it."""

    __call__ = staticmethod(_function("add", "x1, x2, /, out=None, *, dtype=None"))
    at = staticmethod(_function("add.at", "a, indices, x2, /", np.add.at))


strict = SimpleNamespace(
    __name__="strict",
    ndarray=StrictArray,
    asarray=_asarray,
    array=_asarray,
    lib=SimpleNamespace(
        stride_tricks=SimpleNamespace(
            as_strided=_function(
                "as_strided", "x, shape=None, strides=None", np.lib.stride_tricks.as_strided
            )
        )
    ),
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
    **{
        name: _function(name, parameters)
        for parameters, names in FUNCTIONS.items()
        for name in names.split()
    }
    | {"add": _Add()},
)
