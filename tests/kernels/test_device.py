"""Launching through CuPy, with the driver's call stubbed: what would reach the driver."""

import ctypes
import weakref
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from gpuconv.cuda import CudaBackend
from gpuconv.cuda.device import CupyDevice, EmulatedDevice
from gpuconv.emulator import CheckFailed
from gpuconv.kernels.cuda import direct, layout
from gpuconv.kernels.cuda.compiler import Kernel
from gpuconv.kernels.cuda.plan import Plan
from gpuconv.kernels.cuda.tiled import CONFIGS, kernel as tiled_kernel


class Driver:
    """Notes launches: grid, block, shared bytes, stream, and every parameter's 8 bytes."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self) -> None:
        self.launches: list[Any] = []
        self.attributes: list[Any] = []
        self.allocated: list[int] = []
        self.freed: list[int] = []
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


class Memory:
    """A block of CuPy's pool."""

    ptr = 0


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

    runtime = SimpleNamespace(current=0, capturing=False)
    runtime.streamIsCapturing = lambda stream: stream == 77 and runtime.capturing
    runtime.getDevice = lambda: runtime.current
    runtime.getDeviceProperties = lambda number: {"multiProcessorCount": 132 - number}

    def alloc(size: int) -> Any:
        driver.allocated.append(size)
        memory = Memory()
        memory.ptr = 0x10000 * len(driver.allocated)
        weakref.finalize(memory, driver.freed.append, memory.ptr)
        return memory

    cuda = SimpleNamespace(
        alloc=alloc,
        driver=driver,
        runtime=runtime,
        get_current_stream=lambda: SimpleNamespace(ptr=77),
        Device=lambda number: SimpleNamespace(compute_capability="90"),
        function=SimpleNamespace(Module=Module),
    )
    return CupyDevice(SimpleNamespace(cuda=cuda, ndarray=np.ndarray))


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
    with pytest.raises(TypeError, match="kernel a_test is launched with 2 arrays, not 1"):
        run(array(1))


def test_what_a_graph_captured_is_kept(device: CupyDevice, driver: Driver) -> None:
    """A graph writes to the plan's memory whenever it is launched: nobody else may have it."""
    plan, kernel = Plan("x"), layout.WIDEN
    plan.launch(kernel, (1, 1, 1), "x", plan.own(100), total=100, C=1, new_c=4)
    driver.parameters = 5
    run = device.sequence(plan)
    run(array(0xA000))
    assert driver.freed == [0x10000]
    device._runtime.capturing = True
    run(array(0xA000))
    assert driver.freed == [0x10000]
    device._runtime.capturing = False
    run(array(0xA000))
    assert driver.freed == [0x10000, 0x30000]


def test_numbers_that_do_not_fit_are_refused(device: CupyDevice) -> None:
    """ctypes would take the lower 32 bits, and say nothing."""
    with pytest.raises(OverflowError, match=r"layout_widen: total=1099511627781 is no int32"):
        device.prepare(layout.WIDEN, (1, 1, 1), total=2**40 + 5, C=1, new_c=4)


def test_a_plan_is_one_allocation_and_its_launches_in_order(
    device: CupyDevice, driver: Driver
) -> None:
    widen, reduce = layout.WIDEN, layout.REDUCE
    plan = Plan("x", "b", "y")
    parts, more = plan.own(65), plan.own(1)
    plan.launch(widen, (2, 1, 1), "x", parts, total=1, C=2, new_c=3)
    plan.launch(widen, (3, 1, 1), parts, more, total=4, C=5, new_c=6)
    run = device.sequence(plan)
    driver.parameters = 5
    run(array(0xA000), None, array(0xC000))
    first, second = driver.launches
    assert (first.grid, second.grid) == ((2, 1, 1), (3, 1, 1))
    assert first.values == [0xA000, 0x10000, 1, 2, 3]
    assert second.values == [0x10000, 0x10200, 4, 5, 6]  # after 260 bytes, at a multiple of 256
    run(array(0xA000), None, array(0xC000))
    assert driver.launches[-1].values[:2] == [0x20000, 0x20200], "memory was kept between calls"
    assert driver.allocated == [768, 768]

    plan = Plan("x", "b", "y")
    numbers = {name: 1 for name, kind in reduce.parameters.items() if not kind.endswith("*")}
    plan.launch(reduce, (1, 1, 1), "x", "b", None, "y", **numbers)
    driver.parameters = 4
    device.sequence(plan)(array(0xA000), None, array(0xC000))
    assert driver.launches[-1].values == [0xA000, 0, 0, 0xC000]
    assert len(driver.allocated) == 2
    with pytest.raises(TypeError, match="kernel layout_reduce takes the arrays parts, b, add, y"):
        plan.launch(reduce, (1, 1, 1), "x", **numbers)


def test_a_plan_on_the_emulator_has_arrays_of_its_own() -> None:
    """Each of them of its own: what is written past one end is found, and what is not written."""
    device, x = EmulatedDevice(), np.ones(6, np.float32)
    plan = Plan("x", "y")
    wide = plan.own(8)
    plan.launch(layout.WIDEN, (1, 1, 1), "x", wide, total=8, C=3, new_c=4)
    plan.launch(layout.WIDEN, (1, 1, 1), wide, "y", total=4, C=4, new_c=2)
    y = device.empty((4,), "float32")
    device.sequence(plan)(x, y)
    np.testing.assert_array_equal(y, 1)
    plan.launches[0].numbers["total"] = 4
    device.sequence(plan)(x, y)
    assert np.isnan(y).tolist() == [False, False, True, True]
    plan.launches[0].numbers["total"] = 9
    with pytest.raises(CheckFailed, match="oob"):
        device.sequence(plan)(x, y)


def test_outputs_lie_in_the_format_asked_for(device: CupyDevice) -> None:
    def ndarray(shape: Any, dtype: Any, memory: Any = None, strides: Any = None) -> Any:
        assert memory is None or memory.ptr
        return np.ndarray(shape, dtype, strides=strides)

    device.xp.ndarray = ndarray
    for shape in (2, 3, 5), (2, 3, 5, 7), (2, 3, 5, 7, 4):
        for dtype, last in product(("float32", np.dtype("float64")), (False, True)):
            ours, theirs = (d.maker(shape, dtype, last)() for d in (device, EmulatedDevice()))
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) == (shape, dtype)
            assert ours.strides == theirs.strides


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
