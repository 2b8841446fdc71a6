"""One check for the methods of a backend: within the error budget, the same bits each time."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.cpu.team import set_num_threads
from gpuconv.testing import assert_within_budget
from tests.cpu.conftest import REFERENCE


def check(
    be: Any, operation: Callable[..., Any], *inputs: Any, dtype: str = "float32"
) -> list[Any]:
    """operation(backend, *inputs) on `be`, with 1, 2 and 4 threads; its results.

    Inputs are float64 arrays (in the memory format wanted), or anything else, passed as it is.
    Truth is the reference in float64; the budget is 4 times the reference's error in `dtype`, and
    for float64 itself 1e-12 of the largest number. Arrays given may not be written to.
    """

    def given(value: Any, kind: str) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        value = value.astype(kind) if value.dtype == np.float64 else value.view()
        value.flags.writeable = False
        return value

    def on(backend: Any, kind: str) -> list[Any]:
        results = operation(backend, *(given(value, kind) for value in inputs))
        return list(results) if isinstance(results, (tuple, list)) else [results]

    runs = []
    for count in (1, 2, 4, 1):
        set_num_threads(count)
        runs.append(on(be, dtype))
    truth, plain = on(REFERENCE, "float64"), on(REFERENCE, dtype)
    for fast, *others, t, p in zip(*runs, truth, plain, strict=True):
        if t is None:
            assert fast is None
            continue
        assert fast.dtype == p.dtype, f"dtype {fast.dtype}, expected {p.dtype}"
        for other in others:
            np.testing.assert_array_equal(fast, other, err_msg="runs or threads differ")
        if fast.dtype == np.float64:
            with np.errstate(invalid="ignore"):
                largest = np.abs(t[np.isfinite(t)]).max(initial=1e-300)
                np.testing.assert_allclose(fast, t, rtol=0, atol=1e-12 * largest)
        else:
            assert_within_budget(fast, p, t)
    return runs[0]


def kernels_alone(be: Any, monkeypatch: Any, *methods: str) -> None:
    """From here on the reference's methods, where kernels should do, fail."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("fell back to array code")

    for part in type(REFERENCE).__mro__:
        for method in methods:
            if method in vars(part):
                monkeypatch.setattr(part, method, refused)
