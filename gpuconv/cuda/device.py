"""Where compiled kernels run: a GPU through CuPy, or the emulator on a CPU; same kernels and calls.

    run = device.prepare(kernel, grid, n=n, ...)    # once: code, grid and numbers are fixed
    run(x, w, y)                                    # any number of times: pointers only

`prepare` takes the kernel's numbers by name; what it returns takes its arrays in order, None for a
null pointer. Numbers that change from call to call (a learning rate) are named in `varying` and
given to each call by name. `sequence` prepares a `Plan` of several launches, which are run by one
call and may have memory of their own: on a GPU one block from CuPy's pool, a new one each call, so
that streams and threads may run the same plan at once. A launch goes to CuPy's current stream,
synchronises nothing and can be captured into a graph (which keeps the numbers of its capture).
"""

import ctypes
import struct
import threading
from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from gpuconv.errors import DeviceError
from gpuconv.kernels.cuda.compiler import CompileError, Kernel, compile
from gpuconv.kernels.cuda.plan import Plan

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
        return self.xp.ndarray(shape, dtype)  # as xp.empty, in less time

    def maker(self, shape: tuple[int, ...], dtype: Any, channels_last: bool) -> Callable[[], Array]:
        """What makes new arrays (N, C, *in), in memory (N, *in, C) if asked for."""
        if not channels_last:
            return partial(self.xp.ndarray, shape, dtype)
        size = np.dtype(dtype).itemsize
        inner = [size * shape[1] * prod(shape[axis + 1 :]) for axis in range(2, len(shape))]
        strides = size * prod(shape[1:]), size, *inner
        new, alloc, total = self.xp.ndarray, self.xp.cuda.alloc, size * prod(shape)
        return lambda: new(shape, dtype, alloc(total), strides)

    def aligned(self, *arrays: Array) -> bool:
        """Whether the data of all is at multiples of 16 bytes."""
        address = 0
        for array in arrays:
            address |= array.data.ptr
        return not address & 15

    def prepare(
        self, kernel: Kernel, grid: Grid, varying: tuple[str, ...] = (), **numbers: float
    ) -> Run:
        """A launch of `kernel`, complete but for its pointers and the `varying` numbers."""
        plan = Plan(*(name for name, kind in kernel.parameters.items() if kind.endswith("*")))
        plan.launch(kernel, grid, *plan.arrays, **numbers)
        return self.sequence(plan, varying)

    def sequence(self, plan: Plan, varying: tuple[str, ...] = ()) -> Run:
        """The launches of `plan`, complete but for the pointers and the `varying` numbers."""
        # A slot of 8 bytes for each array, the null pointer, and each number. The driver copies
        # what a launch needs during its call: one buffer serves every run that the lock lets in.
        names = [*plan.arrays, *plan.owned, None]
        places = {name: i for i, name in enumerate(names)}
        slots = (ctypes.c_uint64 * (len(names) + sum(len(p.kernel.parameters) for p in plan)))()
        used, start = len(names), ctypes.addressof(slots)
        cells: dict[str, Any] = {}
        launches, tables = [], []
        for kernel, grid, arrays, given in plan:
            pointers, numbers, table = iter(arrays), dict(given), []
            for name, kind in kernel.parameters.items():
                if kind.endswith("*"):
                    table.append(start + 8 * places[next(pointers)])
                    continue
                cell = _CTYPES[kind].from_buffer(slots, 8 * used)
                table.append(start + 8 * used)
                used += 1
                if name in varying:
                    cells[name] = cell
                else:
                    number = numbers.pop(name)
                    cell.value = number
                    if "int" in kind and cell.value != number:
                        raise OverflowError(f"kernel {kernel.name}: {name}={number} is no {kind}")
            _none_left(kernel, numbers)
            tables.append((ctypes.c_uint64 * len(table))(*table))
            head = self._function(kernel).ptr, *grid, kernel.threads, 1, 1, kernel.shared
            launches.append((head, ctypes.addressof(tables[-1])))

        starts, total = _starts(plan.owned.values())
        taken, write = len(plan.arrays), struct.Struct(f"{len(names) - 1}Q").pack_into
        launch, stream, lock = self._driver.launchKernel, self._stream, threading.Lock()
        alloc = self.xp.cuda.alloc if total else None
        capturing, captured = self._runtime.streamIsCapturing, []

        def run(*arrays: Array | None, **numbers: float) -> None:
            if (numbers or cells) and numbers.keys() != cells.keys():
                raise TypeError(f"{plan} is launched with {', '.join(cells)}")
            if len(arrays) != taken:
                raise TypeError(f"{plan} is launched with {taken} arrays, not {len(arrays)}")
            pointers = [0 if array is None else array.data.ptr for array in arrays]
            if alloc:
                memory = alloc(total)  # back in the pool when this returns, for the same stream
                first = memory.ptr
                for start in starts:
                    pointers.append(first + start)
            with lock:
                write(slots, 0, *pointers)
                for name, value in numbers.items():
                    cells[name].value = value
                current = stream().ptr
                if alloc and current and capturing(current):
                    captured.append(memory)  # the graph writes there whenever it is launched
                for head, table in launches:
                    launch(*head, current, table, 0)

        run.buffers = slots, tables  # type: ignore[attr-defined]  # they must live as long as it
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

    def maker(self, shape: tuple[int, ...], dtype: Any, channels_last: bool) -> Callable[[], Array]:
        """What makes new arrays (N, C, *in), in memory (N, *in, C) if asked for."""
        if not channels_last:
            return lambda: self.empty(shape, dtype)
        turned = shape[0], *shape[2:], shape[1]
        order = 0, len(shape) - 1, *range(1, len(shape) - 1)
        return lambda: self.empty(turned, dtype).transpose(*order)

    def aligned(self, *arrays: Array) -> bool:
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

    def sequence(self, plan: Plan) -> Run:
        """The launches of `plan`, complete but for the pointers; its own arrays are new ones."""
        prepared = [
            (self.prepare(kernel, grid, (), **numbers), arrays)
            for kernel, grid, arrays, numbers in plan
        ]

        def run(*given: Array | None) -> None:
            known: dict[str | None, Array | None] = {None: None}
            known.update(zip(plan.arrays, given, strict=True))
            known.update({n: self.empty((size,), "float32") for n, size in plan.owned.items()})
            for launch, arrays in prepared:
                launch(*(known[name] for name in arrays))

        return run


def _compiled(kernel: Kernel, arch: str) -> Any:
    try:
        return compile(kernel, arch)
    except CompileError as error:
        raise DeviceError(str(error)) from error


def _starts(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where in one block each array of so many float32 starts, and the block's size, in bytes."""
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += -(-4 * size // 256) * 256
    return starts, total


def _none_left(kernel: Kernel, numbers: dict[str, float]) -> None:
    if numbers:
        raise TypeError(f"kernel {kernel.name} has no parameter {', '.join(numbers)}")
