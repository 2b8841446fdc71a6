"""The CUDA driver, asked directly: its version and its GPUs, with neither CuPy nor a toolkit."""

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuconv.errors import DeviceError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
VERSION_FILE = Path("/proc/driver/nvidia/version")  # Linux
# Answers of cuInit, and attributes of cuDeviceGetAttribute, as cuda.h numbers them.
STUB_LIBRARY, NO_DEVICE = 34, 100
MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU that programs may use; `memory` in bytes."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int

    @property
    def arch(self) -> str:
        """ "sm_90" for compute capability 9.0."""
        return "sm_{}{}".format(*self.capability)


@dataclass(frozen=True)
class Driver:
    """`version` is the driver's own ("" where it is not told), `cuda` the newest CUDA it runs."""

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def find() -> Driver | None:
    """The driver of this machine, None if there is none. DeviceError if it does not start."""
    try:
        library: Any = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    started = library.cuInit(0)
    if started not in (0, STUB_LIBRARY, NO_DEVICE):
        raise DeviceError(
            f"the NVIDIA driver does not start: cuInit answers {started}; a reboot helps after an "
            f"update of the driver, else reinstall it"
        )
    number = _ask(library.cuDriverGetVersion)
    count = 0 if started else _ask(library.cuDeviceGetCount)
    gpus = tuple(_gpu(library, i) for i in range(count))
    return Driver(_version(), (number // 1000, number % 1000 // 10), gpus)


def _gpu(library: Any, index: int) -> Gpu:
    device = _ask(library.cuDeviceGet, index)
    name = ctypes.create_string_buffer(256)
    _check(library.cuDeviceGetName, name, len(name), device)
    memory = ctypes.c_size_t()
    _check(library.cuDeviceTotalMem_v2, ctypes.byref(memory), device)
    major, minor, multiprocessors = (
        _ask(library.cuDeviceGetAttribute, attribute, device)
        for attribute in (MAJOR, MINOR, MULTIPROCESSORS)
    )
    return Gpu(name.value.decode(), (major, minor), multiprocessors, memory.value)


def _ask(function: Any, *arguments: int) -> int:
    """The int that `function` writes to its first argument."""
    answer = ctypes.c_int()
    _check(function, ctypes.byref(answer), *arguments)
    return answer.value


def _check(function: Any, *arguments: Any) -> None:
    if error := function(*arguments):
        raise DeviceError(f"the NVIDIA driver answers {function.__name__} with error {error}")


def _version() -> str:
    try:
        found = re.search(r"\b\d{3}\.[\d.]+", VERSION_FILE.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[0] if found else ""
