"""Every kernel test runs on each device there is: the emulator with all its checks, and a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpuconv.backends import Backend, resolve_device
from gpuconv.testing import assert_within_budget

REFERENCE = Backend(np, "numpy")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On a machine without a GPU there is one device; --require-gpu asks for both anyway."""
    if "where" in metafunc.fixturenames:
        gpu = metafunc.config.getoption("--require-gpu") or resolve_device("auto") == "cuda"
        devices = ["emulated", "cuda"] if gpu else ["emulated"]
        metafunc.parametrize("where", devices, scope="session")


@pytest.fixture(scope="session")
def emulated() -> Any:
    """A CudaBackend over the emulator, with every check; one for all tests, as it keeps kernels."""
    pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.device import EmulatedDevice

    return CudaBackend(EmulatedDevice(), "emulated")


@pytest.fixture
def be(where: str, request: pytest.FixtureRequest) -> Any:
    """A CudaBackend on each device there is."""
    return request.getfixturevalue("emulated" if where == "emulated" else "gpu")


def check(
    be: Any, operation: Callable[..., Any], *inputs: Any, dtype: str = "float32"
) -> list[Any]:
    """operation(backend, *inputs) on `be`, within the error budget; its results, on the host.

    Inputs are float64 host arrays (in the memory format wanted), or anything else, passed as it is.
    Truth is the reference in float64; the budget is 4 times the reference's error in `dtype`, and
    for float64 itself 1e-12 of the largest number. Run twice, and the bits must agree.
    """

    def cast(value: Any, kind: str) -> Any:
        known = isinstance(value, np.ndarray) and value.dtype == np.float64
        return value.astype(kind) if known else value  # astype keeps the memory format

    def given(backend: Any, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        value = backend.asarray(value)
        if isinstance(value, np.ndarray):  # to the emulator, memory that no kernel may write to
            value = value.view()
            value.flags.writeable = False
        return value

    def on(backend: Any, kind: str) -> list[Any]:
        results = operation(backend, *(given(backend, cast(value, kind)) for value in inputs))
        results = results if isinstance(results, (tuple, list)) else [results]
        return [r if isinstance(r, np.ndarray) or r is None else r.get() for r in results]

    fast, again = on(be, dtype), on(be, dtype)
    truth, plain = on(REFERENCE, "float64"), on(REFERENCE, dtype)
    for f, g, t, p in zip(fast, again, truth, plain, strict=True):
        if t is None:
            assert f is None
            continue
        assert f.dtype == p.dtype, f"dtype {f.dtype}, expected {p.dtype}"
        np.testing.assert_array_equal(f, g, err_msg="two runs differ")
        if f.dtype == np.float64:
            np.testing.assert_allclose(f, t, rtol=0, atol=1e-12 * np.abs(t).max(initial=1e-300))
        elif f.dtype.kind == "f":
            assert_within_budget(f, p, t)
        else:
            np.testing.assert_array_equal(f, t)
    return fast
