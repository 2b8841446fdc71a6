"""Choosing who computes; errors for devices that are not there."""

import os
import subprocess
import sys

import numpy as np
import pytest

import gpuconv as gc
from gpuconv.backends import Backend, backend_of, get_backend, to_device
from gpuconv.errors import DeviceError, DtypeError
from tests.strict import strict


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_imports_neither_numba_nor_cupy_nor_anything_slow() -> None:
    code = (
        "import sys, gpuconv; slow = {'numba', 'cupy', 'torch', 'rich', 'typer', 'safetensors', "
        "'matplotlib', 'PIL'}; print(sorted(slow & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == "[]"


def test_the_block_decides_for_its_own_arrays_only() -> None:
    other = Backend(strict, "strict")
    with gc.backend(other):
        assert backend_of(strict.asarray([1.0])) is other
        assert backend_of(np.ones(2)) is get_backend("cpu")
        with pytest.raises(DeviceError, match="arrays of strict and cpu are mixed"):
            backend_of(strict.asarray([1.0]), np.ones(2))
    with pytest.raises(DtypeError, match="is no array gpuconv computes on"):
        backend_of(strict.asarray([1.0]))


def test_blocks_nest_and_end_with_an_exception() -> None:
    numpy, other = get_backend("numpy"), Backend(strict, "strict")

    def fail() -> None:
        with gc.backend(other), gc.backend("numpy") as be:
            assert be is numpy
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert backend_of() is get_backend("cpu")


def test_unknown_names() -> None:
    with pytest.raises(
        DeviceError, match="backend 'tpu' is unknown; use one of cpu, numpy, emulated, cuda"
    ):
        get_backend("tpu")
    with pytest.raises(DeviceError, match="device 'tpu' is unknown; use one of cpu, cuda, auto"):
        to_device(np.ones(1), "tpu")


def test_the_environment_chooses() -> None:
    code = "import gpuconv, numpy; print(gpuconv.conv1d(*[numpy.ones((1, 1, 1))] * 2))"
    assert run_python(code, GPUCONV_BACKEND="numpy").stdout.strip() == "[[[1.]]]"
    assert "backend 'typo' is unknown" in run_python(code, GPUCONV_BACKEND="typo").stderr


@pytest.mark.skipif(
    run_python("import cupy; cupy.cuda.runtime.getDeviceCount()").returncode == 0,
    reason="a GPU is here: what is said without one cannot be tested",
)
def test_without_a_gpu_cuda_says_what_to_do_and_auto_takes_the_cpu() -> None:
    with pytest.raises(DeviceError, match=r"device 'cuda'.*use (device )?'cpu'"):
        gc.tensor([1.0], device="cuda")
    assert gc.tensor([1.0], device="auto").device == "cpu"


def test_random_arrays_are_a_function_of_the_seed() -> None:
    be = get_backend("numpy")
    np.testing.assert_array_equal(be.random((3, 2), 7), be.random((3, 2), 7))
    assert be.random((3, 2), 7).dtype == np.float32
    assert (be.random((100,), 7) != be.random((100,), 8)).any()


def test_the_library_generator_can_be_saved_and_restored() -> None:
    state = gc.random.get_state()
    first = gc.random.draw_seed()
    assert gc.random.draw_seed() != first
    gc.random.set_state(state)
    assert gc.random.draw_seed() == first
    gc.manual_seed(3)
    a = gc.random.draw_seed()
    gc.manual_seed(3)
    assert gc.random.draw_seed() == a
