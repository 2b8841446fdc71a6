"""The pool: what is free is given out again, what is in use never is."""

import ctypes
import gc as garbage
import mmap
import os
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv.backends import get_backend
from gpuconv.cpu import conv, memory
from gpuconv.cpu.memory import POOL, SMALL, Pool, Scratch
from gpuconv.kernels.cpu import gemm_plan, weight
from gpuconv.planned import padded

BIG = (SMALL // 4, 7)  # float32: several blocks' worth of SMALL


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_block_comes_back_when_its_last_view_is_gone() -> None:
    pool = Pool()
    first = pool.empty(BIG, np.float32)
    where = address(first)
    view = first[3:, ::2].T
    del first
    assert pool.held == 0
    assert address(pool.empty(BIG, np.float32)) != where, "a block in use was given out"
    returned = len(pool.returned)
    del view
    assert len(pool.returned) == returned + 1
    addresses = {address(a) for a in [pool.empty(BIG, np.float32) for _ in range(2)]}
    assert where in addresses


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (1,), BIG, (1000, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_arrays_are_like_any_other(shape: tuple[int, ...], dtype: str) -> None:
    array = Pool().empty(shape, dtype)
    assert (array.shape, array.dtype.name) == (shape, dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    if array.nbytes >= SMALL:
        assert address(array) % 64 == 0
    array[...] = 1
    assert array.sum() == array.size


def test_arrays_in_use_do_not_overlap() -> None:
    pool = Pool()
    arrays = [pool.empty((30_000 + 100 * i,), np.float32) for i in range(20)]
    for i, array in enumerate(arrays):
        array[...] = i
    del arrays[::2]
    arrays += [pool.empty((30_000,), np.float32) for _ in range(5)]
    for array in arrays[10:]:
        array[...] = -1
    assert [float(a.min()) for a in arrays[:10]] == list(range(1, 20, 2))


def test_what_is_kept_is_bounded_and_can_be_released() -> None:
    pool = Pool(most=1 << 20)
    arrays = [pool.empty((100_000,), np.float32) for _ in range(10)]
    del arrays
    pool.empty((1 << 18,), np.float32)
    assert 0 < pool.held <= 1 << 20
    assert pool.release() >= 1 << 20
    assert pool.held == 0
    assert not any(pool.free.values())
    assert pool.release() == 0


def test_sizes_used_lately_are_kept() -> None:
    pool = Pool(most=4 << 20)
    old = [pool.empty((1 << 18,), np.float32) for _ in range(4)]
    del old
    for _ in range(3):
        first, second = (pool.empty((300_000,), np.float32) for _ in range(2))
        del first, second
    pool.empty((1 << 17,), np.float32)
    assert len(pool.free[memory._block_for((300_000,), "float32", memory.SMALL)[0]]) == 2
    assert pool.held <= 4 << 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_inside_the_pool_gets_a_lock_of_its_own() -> None:
    code = (
        "import os, threading, time, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import gpuconv as gc, numpy as np\n"
        "from gpuconv.cpu.memory import POOL\n"
        "def hold():\n"
        "    with POOL.lock: time.sleep(0.5)\n"
        "threading.Thread(target=hold).start()\n"
        "time.sleep(0.1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    POOL.empty((1 << 20,), 'float32'); os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forks_from_another_thread() -> None:
    code = (
        "import os, signal, threading, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import gpuconv\n"
        "def fork():\n"
        "    child = os.fork()\n"
        "    if not child: os._exit(7)\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(20)\n"
        "    threading.Thread(target=fork).start(); signal.pause()\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "7", done.stderr


def refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on: the system has no memory for one block."""
    refusals, block = [MemoryError()], memory._block

    def refuse(size: int) -> Any:
        if refusals:
            raise refusals.pop()
        return block(size)

    monkeypatch.setattr(memory, "_block", refuse)


def test_without_memory_the_common_pool_gives_up_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tape's does not: its launches address what is free in it."""
    POOL.empty(BIG, np.float32)
    tape = Pool(most=1 << 62, small=0)
    tape.empty(BIG, np.float32)
    refused_once(monkeypatch)
    tape.empty((10, *BIG), np.float32)
    assert len(tape.lent) == 1
    assert sum(map(len, tape.free.values())) == 1
    assert not POOL.returned
    assert not POOL.free


def test_without_memory_scratch_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    POOL.empty(BIG, np.float32)
    refused_once(monkeypatch)
    assert Scratch().array(1000).nbytes == 1000
    assert not POOL.free


def test_an_interrupt_anywhere_leaves_a_pool_that_works() -> None:
    def interrupted(pool: Pool, line: int) -> bool:
        """Whether Ctrl-C came: before a line of the pool's, as many lines from now."""
        left = [line]

        def count(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code.co_filename != memory.__file__:
                return None
            left[0] -= event == "line"
            if event == "line" and left[0] < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            for shape in ((90_000,), (70_000,), (300_000,)):
                pool.empty(shape, np.float32)
            pool.release()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    line, kept = 0, 0
    while True:
        pool = Pool(most=900_000)
        blocks = [pool.empty((70_000,), np.float32) for _ in range(3)]
        del blocks
        if not interrupted(pool, line):
            break
        line += 1
        kept += sum(map(len, pool.free.values())) + len(pool.returned) >= 2
        pool.empty((40_000,), np.float32)
        for shape in ((90_000,), (90_000,), (40_000,)):
            pool.empty(shape, np.float32)
            assert pool.held <= pool.most
        assert len(pool.lent) == len(pool.returned) == 1
        pool.most = 0
        for _ in range(2):
            pool.empty((40_000,), np.float32)
        assert pool.held == 0
        assert not any(pool.free.values())
    assert line > 40
    assert kept > 0.7 * line, "blocks were lost"


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="parts of pages cannot be given")
def test_small_blocks_go_back_beside_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CARVED", memory.Carved())
    pool = Pool()
    arrays = [pool.empty((100_000,), np.uint8) for _ in range(3)]
    for array in arrays:
        array[...] = 7
    where, size = address(arrays[1]), address(arrays[1]) - address(arrays[0])
    middle = ctypes.string_at(where, 1)
    del arrays[1], array
    assert pool.release() == size
    assert (middle, ctypes.string_at(where, 1)) == (b"\7", b"\0")
    assert all((array == 7).all() for array in arrays)


def test_threads_and_the_garbage_collector() -> None:
    pool = Pool()
    failed = []

    class Cycle:
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.me = array, self

    def churn(number: int) -> None:
        for i in range(300):
            array = pool.empty((20_000 + i * 64,), np.float32)
            array[...] = number
            Cycle(pool.empty((20_000,), np.float32))
            if not (array == number).all():
                failed.append(number)

    threads = [threading.Thread(target=churn, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    garbage.collect()
    pool.empty(BIG, np.float32)
    assert not failed
    assert len(pool.lent) == len(pool.returned) == 1
    assert pool.held == sum(size * len(blocks) for size, blocks in pool.free.items())


def test_the_librarys_own_can_be_released() -> None:
    x, w = np.ones((4, 16, 64, 64), np.float32), np.ones((16, 16, 3, 3), np.float32)
    gc.conv2d(x, w)
    assert gc.release_memory() > 0
    assert gc.release_memory() == 0


def test_plans_can_be_released_and_are_made_again() -> None:
    x, w = np.ones((4, 16, 64, 64), np.float32), np.ones((16, 16, 3, 3), np.float32)
    be: Any = get_backend("cpu")
    with gc.backend(be):
        first = gc.conv2d(gc.relu(x), w)
        assert be.calls
        assert be._plans
        assert be._conv_plans
        gc.release_memory()
        assert not any((be.calls, be._plans, be._conv_plans))
        np.testing.assert_array_equal(gc.conv2d(gc.relu(x), w), first)


@pytest.mark.parametrize("function", [conv.flat, padded, gemm_plan._cut, weight._table])
def test_what_is_worked_out_of_shapes_is_bounded(function: Any) -> None:
    assert function.cache_info().maxsize == 4096
