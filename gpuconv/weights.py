"""Models in safetensors files, with PyTorch's names and layouts.

The format (https://github.com/huggingface/safetensors): eight bytes for the length of a JSON
header, the header with dtype, shape and place of every array, the arrays one after the other.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor
from gpuconv.backends import from_foreign, is_array, to_device
from gpuconv.errors import ArgumentError, DtypeError, FileError
from gpuconv.files import StrPath, read_bytes, write_atomically
from gpuconv.nn.module import Module

_DTYPES = (
    *("bool", "float16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


def save(
    path: StrPath, model: Module | Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model's `state_dict`, or a dict of names to arrays, as a safetensors file.

    `metadata` is text to go with it (`read_metadata`). The file appears whole or not at all:
    FileError if it cannot be written, and one that was there stays. ArgumentError or DtypeError for
    what the format cannot hold.
    """
    write_atomically(path, pack(model, metadata))


def pack(model: Module | Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of the file that `save` writes; errors as there."""
    from safetensors import SafetensorError
    from safetensors.numpy import save as serialize

    values = model.state_dict() if isinstance(model, Module) else model
    if not isinstance(values, Mapping):
        raise ArgumentError(
            f"save: a {type(model).__name__} is neither a Module nor a dict of names to arrays"
        )
    arrays = {_text("name", name): _on_host(name, value) for name, value in values.items()}
    if "__metadata__" in arrays:
        raise ArgumentError("save: the name '__metadata__' belongs to the format; use another")
    notes = {_text("metadata", k): _text("metadata", v) for k, v in (metadata or {}).items()}
    try:
        return serialize(arrays, notes or None)
    except SafetensorError as error:
        raise ArgumentError(f"save: safetensors refuses these arrays ({error})") from error


def load(path: StrPath, model: Module | None = None, strict: bool = True) -> Any:
    """Read a safetensors file into `model`, which is returned, or as a dict of NumPy arrays.

    FileError, naming the file, for one that is missing, truncated, corrupted or of something else;
    ArgumentError, naming it too, if it holds another model (with nothing changed). `strict` as in
    `Module.load_state_dict`.
    """
    arrays = unpack(read_bytes(path), path)
    if model is None:
        return arrays
    try:
        model.load_state_dict(arrays, strict)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: holds another model: {error.message}") from error
    return model


def read_metadata(path: StrPath) -> dict[str, str]:
    """The text that was saved with a file; FileError as for `load`."""
    from safetensors import SafetensorError, safe_open

    read_bytes(path, 8)  # an error here says more than one from safetensors
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error


def unpack(data: bytes, path: StrPath) -> dict[str, np.ndarray]:
    """The arrays in the bytes of a safetensors file; FileError, naming `path`, as for `load`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as deserialize

    try:
        arrays = deserialize(data)
    except SafetensorError as error:
        # Asked only now: a good file may begin with these bytes too, they are its header's length.
        if data.startswith((b"PK\x03\x04", b"\x80")):
            raise FileError(
                f"{path}: a pickle or zip file, as torch.save writes, and no safetensors file; "
                f"with PyTorch use model.load_state_dict(torch.load(path, weights_only=True))"
            ) from error
        raise _broken(path, error) from error
    except KeyError as error:
        raise FileError(
            f"{path}: holds {error.args[0]} numbers, which NumPy has not; save it as F32"
        ) from error
    except ValueError as error:  # a shape that safetensors allows and NumPy does not
        raise _broken(path, error) from error
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise FileError(
                f"{path}: {name!r} is {array.dtype}, which no layer takes; save it as float32"
            )
    return {name: array.copy() for name, array in arrays.items()}  # theirs are read-only


def _broken(path: StrPath, error: Exception) -> FileError:
    return FileError(
        f"{path}: not a safetensors file, or a damaged one ({error}); copy or save it again"
    )


def _on_host(name: str, value: Any) -> np.ndarray:
    """A NumPy array that lies in memory in C order, as safetensors takes for granted."""
    if isinstance(value, Tensor):
        value = value.data
    elif not is_array(value):
        value = from_foreign(value)
    array = np.asarray(to_device(value, "cpu"), order="C")
    if array.dtype.name not in _DTYPES:
        raise DtypeError(f"save: {name!r} is {array.dtype}; convert it to float32 or an integer")
    return array


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"save: {what} {value!r:.60} must be text; use str(...) or json.dumps")
    return value
