"""What plans of CPU kernels are made with: the same seam as `gpuconv.cuda.device`."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.cpu.memory import POOL, SCRATCH, Pool, Scratch
from gpuconv.cpu.team import get_num_threads, team
from gpuconv.kernels.cpu import compiler
from gpuconv.kernels.cpu.compiler import Kernel

Array = Any
# By dtype, which is not its name: that does not say the order of bytes.
NAMES = {np.dtype(name): name for name in ("float32", "float64")}
Run = Callable[..., None]
_NOTHING = (ctypes.c_int64 * (compiler.OBJECT // 8 + 1))()
NOTHING = ctypes.addressof(_NOTHING)  # as an array whose data lies at address 0
_PROBE = np.empty(1)
if ctypes.c_void_p.from_address(id(_PROBE) + compiler.OBJECT).value != _PROBE.ctypes.data:
    raise ImportError("gpuconv.cpu: arrays are not laid out as NumPy's are in CPython")


class Tape:
    """The launches of a function, in order, and the memory they use: see `gpuconv.cpu.trace`.

    Arrays made meanwhile come from a pool of the tape's own, and are used again within it only.
    """

    def __init__(self) -> None:
        self.pool = Pool(most=1 << 62, small=0)
        self.launches: list[tuple[int, int, int, int]] = []
        self.kept: list[Any] = []
        self.threads = 1
        self.scratch = Scratch()  # that of the thread is in use when others run the tape

    def add(self, function: int, tasks: int, threads: int, values: list[Any], pack: Any) -> None:
        """A launch; `values` are arrays, None, and numbers, as its kernel's parameters are."""
        places = []
        for value in values:
            if isinstance(value, np.ndarray):
                # What stands for an array: all that a kernel looks at is where its numbers are.
                place = (ctypes.c_int64 * len(_NOTHING))()
                place[-1] = value.ctypes.data
                self.kept.append(place)
                if not self.pool.owns(value):
                    self.kept.append(value)
                places.append(ctypes.addressof(place))
            else:
                places.append(NOTHING if value is None else value)
        block = ctypes.create_string_buffer(pack(*places))
        self.kept.append(block)
        self.launches.append((function, tasks, threads, ctypes.addressof(block)))
        self.threads = max(self.threads, threads if tasks > 1 else 1)


class Tapes(threading.local):
    tape: Tape | None = None


class Device:
    """This processor."""

    xp = np

    def __init__(self) -> None:
        self.tapes = Tapes()

    @property
    def number(self) -> int:
        """Plans are for one instruction set."""
        return compiler.current().vector

    @property
    def threads(self) -> int:
        """How many threads take part in a launch."""
        return get_num_threads()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array from the pool."""
        tape = self.tapes.tape
        return (POOL if tape is None else tape.pool).empty(shape, dtype)

    def prepare(
        self, kernel: Kernel, tasks: int, *, scratch: int = 0, several: bool = True, **numbers: Any
    ) -> Run:
        """run(*arrays): the kernel for tasks 0 .. tasks-1, on several threads if it is worth it.

        A kernel's parameters are its pointers, in the order of `arrays` (None is address 0), then
        its numbers, given here by name. With `scratch`, bytes that each thread has for itself, the
        last pointer is to `threads` times as many; a thread's own begin at thread * scratch.
        """
        names = list(kernel.parameters)
        pointers = [name for name, kind in kernel.parameters.items() if kind.endswith("*")]
        if names[: len(pointers)] != pointers:
            raise TypeError(f"kernel {kernel.name}: its pointers must come before its numbers")
        given = [numbers.pop(name) for name in names[len(pointers) :]]
        if numbers:
            raise TypeError(f"kernel {kernel.name} has no parameter {', '.join(numbers)}")
        function, pack, count = compiler.function(kernel), compiler.packer(kernel), len(pointers)

        several = several and tasks > 1

        def run(*arrays: Array) -> None:
            threads, tape = get_num_threads() if several else 1, self.tapes.tape
            if scratch:
                own = SCRATCH if tape is None else tape.scratch
                arrays = (*arrays, own.array(threads * scratch))
            if len(arrays) != count:
                raise TypeError(f"kernel {kernel.name} takes {count} arrays, not {len(arrays)}")
            if tape is not None:
                tape.add(function, tasks, threads, [*arrays, *given], pack)
            places = [NOTHING if a is None else id(a) for a in arrays]
            team().run(function, tasks, pack(*places, *given), threads)

        return run

    def launch(self, kernel: Kernel, tasks: int, *values: Any, several: bool = True) -> None:
        """The kernel once, with arrays and numbers in the order of its parameters."""
        given = [
            NOTHING if v is None else id(v) if isinstance(v, np.ndarray) else v for v in values
        ]
        function, pack = compiler.function(kernel), compiler.packer(kernel)
        threads = get_num_threads() if several else 1
        if self.tapes.tape is not None:
            self.tapes.tape.add(function, tasks, threads, list(values), pack)
        team().run(function, tasks, pack(*given), threads)


DEVICE = Device()
