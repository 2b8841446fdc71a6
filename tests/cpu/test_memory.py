"""The pool: what is free is given out again, what is in use never is."""

import gc as garbage
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import gpuconv as gc
from gpuconv.cpu import memory
from gpuconv.cpu.memory import SMALL, Pool

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
