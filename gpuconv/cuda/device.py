"""Where compiled kernels run: a GPU through CuPy, or the emulator on a CPU; same kernels and calls.

    run = device.prepare(kernel, grid, n=n, ...)    # once: code, grid and numbers are fixed
    run(x, w, y)                                    # any number of times: pointers only

`prepare` takes the kernel's numbers by name; what it returns takes its arrays in order, None for a
null pointer. Numbers that change from call to call (a learning rate) are named in `varying` and
given to each call by name. A launch goes to CuPy's current stream, synchronises nothing, allocates
nothing and can be captured into a graph (which keeps the numbers of its capture).
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.errors import DeviceError
from gpuconv.kernels.cuda.compiler import CompileError, Kernel, compile

Array = Any
Grid = tuple[int, int, int]
Run = Callable[..., None]
_CTYPES: dict[str, Any] = {
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
}


class CupyDevice:
    """The current CUDA device."""

    def __init__(self, cupy: Any) -> None:
        self.xp = cupy
        self._driver, self._runtime = cupy.cuda.driver, cupy.cuda.runtime
        self._stream = cupy.cuda.get_current_stream
        self._loaded: dict[tuple[Kernel, int], Any] = {}
        self._archs: dict[int, str] = {}
        self._sms: dict[int, int] = {}

    @property
    def number(self) -> int:
        """Which device is the current one."""
        return int(self._runtime.getDevice())

    @property
    def arch(self) -> str:
        """ "sm_90" for compute capability 9.0."""
        number = self.number
        if number not in self._archs:
            self._archs[number] = f"sm_{self.xp.cuda.Device(number).compute_capability}"
        return self._archs[number]

    @property
    def sms(self) -> int:
        """How many multiprocessors it has."""
        number = self.number
        if number not in self._sms:
            count = self._runtime.getDeviceProperties(number)["multiProcessorCount"]
            self._sms[number] = int(count)
        return self._sms[number]

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.empty(shape, dtype=dtype)

    def aligned(self, array: Array) -> bool:
        """Whether its data is at a multiple of 16 bytes."""
        return not array.data.ptr & 15

    def prepare(
        self, kernel: Kernel, grid: Grid, varying: tuple[str, ...] = (), **numbers: float
    ) -> Run:
        """A launch of `kernel`, complete but for its pointers and the `varying` numbers."""
        function = self._function(kernel)
        # One slot of 8 bytes a parameter, written once but for the pointers; the driver copies them
        # during the call, so one buffer serves every launch that the lock lets through.
        slots = (ctypes.c_uint64 * len(kernel.parameters))()
        start = ctypes.addressof(slots)
        addresses = (ctypes.c_uint64 * len(slots))(*(start + 8 * i for i in range(len(slots))))
        pointers: list[int] = []
        cells: dict[str, Any] = {}
        for i, (name, kind) in enumerate(kernel.parameters.items()):
            if kind.endswith("*"):
                pointers.append(i)
                continue
            cell = _CTYPES[kind].from_buffer(slots, 8 * i)
            if name in varying:
                cells[name] = cell
            else:
                cell.value = numbers.pop(name)
        _none_left(kernel, numbers)
        launch, stream, lock = self._driver.launchKernel, self._stream, threading.Lock()
        block, where = (kernel.threads, 1, 1), ctypes.addressof(addresses)

        def run(*arrays: Array | None, **given: float) -> None:
            if (given or cells) and given.keys() != cells.keys():
                raise TypeError(f"kernel {kernel.name} is launched with {', '.join(cells)}")
            with lock:
                for name, value in given.items():
                    cells[name].value = value
                for i, array in zip(pointers, arrays, strict=True):
                    slots[i] = 0 if array is None else array.data.ptr
                launch(function.ptr, *grid, *block, kernel.shared, stream().ptr, where, 0)

        run.buffers = slots, addresses  # type: ignore[attr-defined]  # they must live as long as it
        return run

    def _function(self, kernel: Kernel) -> Any:
        key = kernel, self.number
        if key not in self._loaded:
            module = self.xp.cuda.function.Module()
            module.load(_compiled(kernel, self.arch).cubin)
            function = module.get_function(kernel.name)
            if kernel.shared > 48 * 1024:
                self._driver.funcSetAttribute(
                    function.ptr,
                    self._driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    kernel.shared,
                )
            self._loaded[key] = function
        return self._loaded[key]


class EmulatedDevice:
    """Runs the PTX of `arch` on NumPy arrays; `options` go to `emulator.Module.launch`.

    Fresh arrays are filled with NaN (integers with their smallest), so that a kernel which leaves
    something unwritten is found out. Every launch's report is passed to `watch`, if given.
    """

    number = 0
    xp = np

    def __init__(
        self,
        arch: str = "sm_80",
        sms: int = 4,
        watch: Callable[[Kernel, Any], None] | None = None,
        **options: Any,
    ) -> None:
        self.arch, self.sms, self.watch = arch, sms, watch
        self.options = {"stats": False, **options}
        self._modules: dict[Kernel, Any] = {}

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        dtype = np.dtype(dtype)
        return np.full(shape, np.nan if dtype.kind == "f" else np.iinfo(dtype).min, dtype=dtype)

    def aligned(self, array: Array) -> bool:
        """True: the emulator places every array at a multiple of 256 bytes."""
        return True

    def prepare(
        self, kernel: Kernel, grid: Grid, varying: tuple[str, ...] = (), **numbers: float
    ) -> Run:
        """A launch of `kernel`, complete but for its pointers and the `varying` numbers."""
        from gpuconv.emulator import Module, Ptr

        if kernel not in self._modules:
            self._modules[kernel] = Module(_compiled(kernel, self.arch).ptx)
        module, parameters = self._modules[kernel], kernel.parameters
        fixed = {
            name: np.dtype(kind).type(numbers.pop(name))
            for name, kind in parameters.items()
            if not kind.endswith("*") and name not in varying
        }
        _none_left(kernel, numbers)

        def run(*arrays: Array | None, **given: float) -> None:
            if given.keys() != set(varying):
                raise TypeError(f"kernel {kernel.name} is launched with {', '.join(varying)}")
            scalars = {k: np.dtype(parameters[k]).type(v) for k, v in given.items()}
            known, pointers = {**fixed, **scalars}, iter(arrays)
            values = []
            for name in parameters:
                value = known[name] if name in known else next(pointers)
                values.append(
                    0 if value is None else Ptr(value) if isinstance(value, np.ndarray) else value
                )
            report = module.launch(
                kernel.name, grid, kernel.threads, values, kernel.shared, **self.options
            )
            if self.watch is not None:
                self.watch(kernel, report)

        return run


def _compiled(kernel: Kernel, arch: str) -> Any:
    try:
        return compile(kernel, arch)
    except CompileError as error:
        raise DeviceError(str(error)) from error


def _none_left(kernel: Kernel, numbers: dict[str, float]) -> None:
    if numbers:
        raise TypeError(f"kernel {kernel.name} has no parameter {', '.join(numbers)}")
