"""What a repeated `gpuconv.conv2d` costs the host on the CUDA path: `python -m bench.launch`.

Without a GPU everything is real but the driver: CuPy's own arrays (over host memory that nobody
reads), the whole path through gpuconv, `CupyDevice.prepare` and its `run`; replaced are loading a
module, the launch, the current device and stream, and the memory pool (a constant address, so what
CuPy's pool costs is not in it). With a GPU (`--driver real`) nothing is replaced: the host's time
of an asynchronous call, and torch's beside it where torch is installed.
"""

import argparse
import cProfile
import json
import pstats
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

if not __package__:
    sys.exit("launch: error: it is a module, to be run as python -m bench.launch")

import gpuconv as gc
from bench import cases, machine, problems
from bench.options import number
from bench.terminal import complain
from gpuconv.backends import get_backend
from gpuconv.errors import DeviceError, Error
from gpuconv.files import write_atomically

BAR = 8.0  # microseconds of host time a call may take
CASE = "resnet50.3x3-64@56.n8"
BATCH = 100  # calls between two readings of the clock; far fewer than a GPU's queue takes


class Stub:
    """Some attributes of its own, and for the rest those of `real`."""

    def __init__(self, real: Any = None, **own: Any) -> None:
        # Held as a module holds them, so that looking one up costs the same.
        self.__dict__.update(vars(real) if real else {})
        self.__dict__.update(own)


class Counter:
    """The stub of launchKernel, and how often it was called."""

    def __init__(self) -> None:
        self.launches = 0

    def launch(self, *_: Any) -> None:
        self.launches += 1


class Loaded:
    """The stub of a module and of its function."""

    ptr = 1

    def load(self, cubin: bytes) -> None:
        assert cubin

    def get_function(self, name: str) -> "Loaded":
        return self


@contextmanager
def stubbed(capability: str = "90") -> Iterator[tuple[Any, Counter]]:
    """(a CudaBackend on a GPU that does nothing, what counts its launches)."""
    try:
        cupy, memory = import_module("cupy"), import_module("cupy.cuda.memory")
    except ImportError as error:
        raise DeviceError(f"CuPy is needed for its arrays ({error})") from None
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.device import CupyDevice

    block = np.empty(2**28, dtype=np.uint8)  # never touched, so never really there
    address = memory.UnownedMemory(block.ctypes.data, block.nbytes, block, 0)
    pointer, stream, counter = memory.MemoryPointer(address, 0), Stub(ptr=0), Counter()
    properties = {"multiProcessorCount": 132, "l2CacheSize": 50 << 20}
    real = cupy.cuda
    fake = Stub(
        cupy,
        cuda=Stub(
            real,
            driver=Stub(real.driver, launchKernel=counter.launch, funcSetAttribute=lambda *_: None),
            runtime=Stub(
                real.runtime,
                getDevice=lambda: 0,
                getDeviceCount=lambda: 1,
                streamIsCapturing=lambda _: False,
                getDeviceProperties=lambda _: properties,
            ),
            get_current_stream=lambda: stream,
            function=Stub(real.function, Module=Loaded),
            Device=lambda _=0: Stub(compute_capability=capability, id=0),
        ),
    )
    with cupy.cuda.using_allocator(lambda size: pointer):
        yield CudaBackend(CupyDevice(fake), "cuda"), counter


def calls(be: Any, case: cases.Case) -> dict[str, Callable[[], Any]]:
    """What is measured, by name, from the whole to its parts."""
    xp, spec, options = be.xp, case.spec, case.options
    x, w, gy = (
        xp.empty(shape, dtype=np.float32) for shape in (case.x_shape, case.w_shape, spec.y_shape)
    )
    n, c, h, v = case.x_shape
    last = xp.empty((n, h, v, c), dtype=np.float32).transpose(0, 3, 1, 2)
    b = xp.empty(spec.w_shape[:1], dtype=np.float32)
    with gc.backend(be):
        tx, tw = (gc.tensor(array, requires_grad=True) for array in (x, w))
    return {
        "conv2d": lambda: gc.conv2d(x, w, **options),
        "conv2d, bias": lambda: gc.conv2d(x, w, b, **options),
        "conv2d, channels_last": lambda: gc.conv2d(last, w, **options),
        "conv2d, Tensors, recorded": lambda: gc.conv2d(tx, tw, **options),
        "conv2d_grad_input": lambda: gc.conv2d_grad_input(gy, w, x.shape, **options),
        "conv2d_grad_weight": lambda: gc.conv2d_grad_weight(gy, x, w.shape, **options),
        "of conv2d: CudaBackend.conv": lambda: be.conv(spec, x, w),
        "of that: xp.empty": lambda: xp.empty(spec.y_shape, dtype=x.dtype),
    }


def microseconds(call: Callable[[], Any], wait: Callable[[], Any], batches: int) -> float:
    """Of one call; the median batch. `wait` is made between batches and not counted.

    The processor time of this thread, so that other processes do not count.
    """
    call()
    wait()
    found = []
    for _ in range(batches):
        start = time.thread_time()
        for _ in range(BATCH):
            call()
        found.append((time.thread_time() - start) / BATCH * 1e6)
        wait()
    return median(found)


def profile(call: Callable[[], Any], count: int = 20_000) -> list[dict[str, Any]]:
    """Where the time goes: cProfile's own microseconds a call, which are longer than without it."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(count):
        call()
    profiler.disable()
    rows = []
    for (file, line, name), (_, n, own, *_) in pstats.Stats(profiler).stats.items():
        where = name if file == "~" else f"{Path(file).name}:{line} {name}"
        rows.append({"where": where, "calls": n / count, "own_us": own / count * 1e6})
    return sorted(rows, key=lambda row: -row["own_us"])


def torch_calls(be: Any, case: cases.Case) -> dict[str, Callable[[], Any]]:
    """torch's host time for the same, on a GPU."""
    if not problems.has_torch(be.xp):
        return {}
    shapes = case.x_shape, case.w_shape, case.spec.y_shape
    arrays = [problems.as_torch(be.xp.zeros(shape, dtype=np.float32)) for shape in shapes]
    return {"torch conv2d": problems.torch_pass(case, "forward", *arrays)}


def main(arguments: list[str]) -> int:
    """Measure and print; 1 where a conv2d takes longer than the bar, or nothing can be measured."""
    p = argparse.ArgumentParser(prog="python -m bench.launch", description=__doc__.split("\n\n")[0])
    p.add_argument("--driver", choices=("stub", "real"), default="stub")
    p.add_argument("--case", default=CASE, help="of the sets main and hard")
    p.add_argument("--batches", type=number(int, 1), default=50, help=f"of {BATCH} calls")
    p.add_argument("--bar", type=float, default=BAR, help="microseconds")
    p.add_argument("--profile", type=int, default=0, metavar="LINES", help="print cProfile's split")
    p.add_argument("--out", type=Path, help="FILE.json")
    o = p.parse_args(arguments)
    result: dict[str, Any] = {"driver": o.driver, "case": o.case, "bar": o.bar}
    known = {case.name: case for case in (*cases.SETS["main"], *cases.SETS["hard"])}
    if o.case not in known:
        complain(f"launch: error: case {o.case!r} is not in main or hard")
        return 1
    case = known[o.case]
    try:
        if o.driver == "real":
            be = get_backend("cuda")
            result["environment"] = machine.environment("cuda", be.xp, machine.processors())
            wait = be.xp.cuda.get_current_stream().synchronize
            found = {**calls(be, case), **torch_calls(be, case)}
            result["calls"] = _measure(be, found, wait, o.batches)
        else:
            with stubbed() as (be, counter):
                result["environment"] = machine.environment("cpu", np, machine.processors())
                found = calls(be, case)
                result["calls"] = _measure(be, found, lambda: None, o.batches, counter)
                with gc.backend(be):
                    result["profile"] = profile(found["conv2d"]) if o.profile else []
    except Error as error:
        complain(f"launch: error: {error}")
        return 1
    for name, row in result["calls"].items():
        times = f"{row['launches']:4.0f} launches" if "launches" in row else ""
        print(f"{row['microseconds']:8.2f} us {times}  {name}")
    for row in result.get("profile", [])[: o.profile]:
        print(f"{row['own_us']:8.3f} us  {row['calls']:5.1f} x  {row['where']}")
    if o.out:
        write_atomically(o.out, json.dumps(result, indent=1).encode())
    taken = result["calls"]["conv2d"]["microseconds"]
    print(f"conv2d takes {taken:.2f} us of the host, bar {o.bar:.1f}")
    return int(taken > o.bar)


def _measure(
    be: Any,
    found: dict[str, Callable[[], Any]],
    wait: Callable[[], Any],
    batches: int,
    counter: Counter | None = None,
) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    with gc.backend(be):
        for name, call in found.items():
            rows[name] = {"microseconds": microseconds(call, wait, batches)}
            if counter is not None:
                before = counter.launches
                call()
                rows[name]["launches"] = counter.launches - before
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
