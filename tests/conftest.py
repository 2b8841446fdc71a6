"""Fixtures for every test; the one place where a test gets its randomness."""

import os

# Before NumPy is imported: tests run side by side, and OpenBLAS threads that wait for each other on
# busy cores take 8 ms a product instead of microseconds.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator

import numpy as np
import pytest

import gpuconv
from gpuconv.backends import host_backend


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded: a test that needs random numbers takes them here."""
    return np.random.default_rng(20)


@pytest.fixture(autouse=True)
def _library_seed() -> None:
    """Layers and dropout start from the same generator in every test."""
    gpuconv.manual_seed(0)


@pytest.fixture
def array_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """NumPy arrays are computed by the reference, whose bits those of other array code equal."""
    monkeypatch.setenv("GPUCONV_BACKEND", "numpy")
    host_backend.cache_clear()
    yield
    host_backend.cache_clear()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="fail, instead of skipping, what needs a GPU"
    )


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> object:
    """The CUDA backend on this machine's GPU."""
    from gpuconv.backends import get_backend
    from gpuconv.errors import DeviceError

    try:
        return get_backend("cuda")
    except DeviceError as error:
        if request.config.getoption("--require-gpu"):
            pytest.fail(f"--require-gpu: {error}")
        pytest.skip(str(error))
