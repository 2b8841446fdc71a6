"""The one check of dtypes: operations with weights mix none."""

import numpy as np

from gpuconv.backends import Array
from gpuconv.errors import DtypeError


def check_dtypes(op: str, **arrays: Array | None) -> None:
    """DtypeError unless all arrays (None skipped) share one floating-point dtype."""
    if len(arrays) == 1:
        (only,) = arrays.values()
        if isinstance(only, np.ndarray) and only.dtype.kind == "f":
            return
    for name, array in arrays.items():
        if not hasattr(array, "dtype") and (array is not None or name in ("x", "gy")):
            raise DtypeError(
                f"{op}: {name} is {array!r:.40}, not an array; wrap it with gpuconv.tensor(...)"
            )
    given = {name: array.dtype for name, array in arrays.items() if array is not None}
    first = next(iter(given.values()))
    for name, dtype in given.items():
        if dtype.kind != "f":
            raise DtypeError(
                f"{op}: {name} is {dtype}, but floating point is needed; convert it with "
                f".astype('float32')"
            )
        if dtype != first:
            listed = ", ".join(f"{n} {d}" for n, d in given.items())
            raise DtypeError(f"{op}: dtypes are mixed ({listed}); convert them to one with .astype")
