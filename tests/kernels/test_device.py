"""Launching through CuPy, with the driver's call stubbed: what would reach the driver."""

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from gpuconv.cuda import CudaBackend
from gpuconv.cuda.device import CupyDevice, EmulatedDevice
from gpuconv.kernels.cuda import direct
from gpuconv.kernels.cuda.compiler import Kernel
from gpuconv.kernels.cuda.tiled import CONFIGS, kernel as tiled_kernel


class Driver:
    """Notes launches: grid, block, shared bytes, stream, and every parameter's 8 bytes."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self) -> None:
        self.launches: list[Any] = []
        self.attributes: list[Any] = []
        self.parameters = 0

    def funcSetAttribute(self, *arguments: Any) -> None:
        self.attributes.append(arguments)

    def launchKernel(self, function: int, *rest: Any) -> None:
        grid, block, (shared, stream, where, extra) = rest[:3], rest[3:6], rest[6:]
        assert extra == 0
        places = (ctypes.c_uint64 * self.parameters).from_address(where)
        values = [ctypes.c_uint64.from_address(p).value for p in places]
        self.launches.append(SimpleNamespace(
            function=function, grid=grid, block=block, shared=shared, stream=stream, values=values
        ))  # fmt: skip


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def device(driver: Driver) -> CupyDevice:
    """CuPy's module as far as `CupyDevice` knows it; compute capability 9.0, two GPUs."""
    loaded: list[Any] = []

    class Module:
        def load(self, cubin: bytes) -> None:
            assert cubin[:4] == b"\x7fELF"
            loaded.append(self)

        def get_function(self, name: str) -> Any:
            return SimpleNamespace(ptr=1000 + len(loaded), module=self, name=name)

    runtime = SimpleNamespace(current=0)
    runtime.getDevice = lambda: runtime.current
    runtime.getDeviceProperties = lambda number: {"multiProcessorCount": 132 - number}
    cuda = SimpleNamespace(
        driver=driver,
        runtime=runtime,
        get_current_stream=lambda: SimpleNamespace(ptr=77),
        Device=lambda number: SimpleNamespace(compute_capability="90"),
        function=SimpleNamespace(Module=Module),
    )
    return CupyDevice(SimpleNamespace(cuda=cuda, ndarray=np.ndarray, empty=np.empty))


def array(pointer: int) -> Any:
    return SimpleNamespace(data=SimpleNamespace(ptr=pointer))


def test_pointers_and_numbers_reach_the_driver(device: CupyDevice, driver: Driver) -> None:
    def make() -> Any:
        def f(x, n, a, y, k) -> None:  # type: ignore[no-untyped-def]
            pass

        from gpuconv.kernels.cuda.compiler import F32, I32, I64, Float

        f.__annotations__.update(x=F32, n=I32, a=Float, y=F32, k=I64)
        return f

    kernel = Kernel("a_test", make, (), 96, 1, 512)
    driver.parameters = 5
    run = device.prepare(kernel, (3, 2, 1), n=-5, a=1.5, k=1 << 40)
    run(array(0xA000), None)
    run(array(0xB000), array(0xC000))
    first, second = driver.launches
    assert first.grid == (3, 2, 1)
    assert first.block == (96, 1, 1)
    assert (first.shared, first.stream) == (512, 77)
    half = np.float32(1.5).view(np.uint32)
    assert [v & 0xFFFFFFFF for v in first.values[1:3]] == [2**32 - 5, half]
    assert (first.values[0], first.values[3], first.values[4]) == (0xA000, 0, 1 << 40)
    assert (second.values[0], second.values[3]) == (0xB000, 0xC000)
    with pytest.raises(ValueError, match="zip"):
        run(array(1))


def test_numbers_are_checked_by_name(device: CupyDevice) -> None:
    kernel = direct.grad_input_kernel("float32", False)
    with pytest.raises(KeyError):
        device.prepare(kernel, (1, 1, 1), total=1)
    numbers = {name: 1 for name, kind in kernel.parameters.items() if not kind.endswith("*")}
    with pytest.raises(TypeError, match="has no parameter speed"):
        device.prepare(kernel, (1, 1, 1), **numbers, speed=2)
    with pytest.raises(TypeError, match="has no parameter speed"):
        EmulatedDevice().prepare(kernel, (1, 1, 1), **numbers, speed=2)


def test_more_shared_memory_than_usual_is_asked_for(device: CupyDevice, driver: Driver) -> None:
    plain = tiled_kernel(CONFIGS[0], False)
    numbers = {name: 1 for name, kind in plain.parameters.items() if not kind.endswith("*")}
    assert plain.shared <= 48 * 1024
    device.prepare(plain, (1, 1, 1), **numbers)
    assert driver.attributes == []
    large = Kernel(plain.name, plain.make, plain.constants, plain.threads, 2, 65536)
    other = CupyDevice(device.xp)
    other.prepare(large, (1, 1, 1), **numbers)
    ((_, attribute, size),) = driver.attributes
    assert (attribute, size) == (8, 65536)


def test_each_gpu_loads_its_own(device: CupyDevice) -> None:
    kernel = direct.grad_input_kernel("float32", False)
    first = device._function(kernel)
    assert device._function(kernel) is first
    assert (device.arch, device.sms) == ("sm_90", 132)
    device._runtime.current = 1
    assert device._function(kernel) is not first
    assert device.sms == 131


def test_arrays_that_start_anywhere_are_copied(device: CupyDevice) -> None:
    be = CudaBackend(EmulatedDevice(), "emulated")
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    be.device.aligned = lambda a: False
    copy, last = be.dense(x)
    assert copy is not x
    assert not last
    np.testing.assert_array_equal(copy, x)
    turned = np.moveaxis(np.arange(24, dtype=np.float32).reshape(1, 3, 4, 2), -1, 1)
    copy, last = be.dense(turned)
    assert last
    assert copy.strides == turned.strides
    assert not np.shares_memory(copy, turned)
    np.testing.assert_array_equal(copy, turned)
    assert not device.aligned(array(0xA004))
    assert device.aligned(array(0xA010))
