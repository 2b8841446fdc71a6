"""Memory for results and workspaces, kept when it is free and given out again.

The first touch of fresh memory costs the system 5 microseconds a page, more than most kernels need
to fill it. So large arrays are made of blocks that a pool keeps: when the last array or view of a
block is gone, the block is free again. What is kept unused is bounded.
"""

import ctypes
import logging
import mmap
import os
import threading
import weakref
from collections import OrderedDict, deque
from functools import cache, lru_cache
from math import prod
from typing import Any

import numpy as np

from gpuconv.constant import CONSTANTS

SMALL = 1 << 16  # bytes below which malloc is quick enough
ALIGN, STEP = 64, 1 << 12  # of arrays; of the sizes of blocks
PAGE = 2 << 20  # bytes of a huge page
MOST = 2 << 30  # bytes of free blocks that are kept
_log = logging.getLogger("gpuconv")


class Pool:
    """Blocks by size class; safe to use from any thread, and from the garbage collector.

    Ctrl-C may end a call between any two steps. So the steps are in an order in which a block is
    lost to the pool at most, and `held` is too high at most.
    """

    def __init__(self, most: int = MOST, small: int = SMALL) -> None:
        self.most, self.small = most, small
        # By size, the size used last at the end.
        self.free: OrderedDict[int, list[Any]] = OrderedDict()
        self.held = 0  # bytes of free blocks
        self.lent: dict[int, tuple[weakref.ref[Any], Any, int]] = {}
        # Of arrays that are gone, their weak references. The collector appends to it, at any moment
        # and in any thread: one step of C, which nothing interrupts and which takes no lock.
        self.returned: deque[Any] = deque()
        self.lock = threading.RLock()
        self.releases = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialised C-contiguous array, at a multiple of 64 bytes if it is large."""
        size, kind = _block_for(shape, dtype, self.small)
        if not size:
            return np.empty(shape, kind)
        block = None
        with self.lock:
            if self.returned:
                self._take_back()
            blocks = self.free.get(size)
            if blocks:
                block = blocks.pop()
                self.held -= size
        if block is None:
            block = _block_at_need(size)
        array = np.ndarray(shape, kind, buffer=block)
        gone = weakref.ref(array, self.returned.append)
        self.lent[id(gone)] = gone, block, size
        return array

    def _take_back(self) -> None:
        """Sort what came back; give up the sizes used least lately where it is too much."""
        while self.returned:
            gone = self.returned[0]  # it stays there until its block is elsewhere
            found = self.lent.pop(id(gone), None)
            if found is not None:  # else Ctrl-C came before it was noted, or after
                _, block, size = found
                self.held += size
                self.free.setdefault(size, []).append(block)
                self.free.move_to_end(size)
            if self.returned and self.returned[0] is gone:  # no signal's handler was here
                self.returned.popleft()
        if self.held > self.most:
            self.held = sum(size * len(blocks) for size, blocks in self.free.items())
            for size, blocks in list(self.free.items()):
                while blocks and self.held > self.most:
                    _give_back(blocks.pop(0), size)
                    self.held -= size

    def spoil(self) -> None:
        """Fill all blocks with NaN, those of arrays that live too."""
        blocks = [block for some in self.free.values() for block in some]
        for block in (*blocks, *(block for _, block, _ in self.lent.values())):
            np.frombuffer(block, np.uint8)[:] = 0xFF

    def owns(self, array: np.ndarray) -> bool:
        """Whether an array, or what it is a view of, was made here."""
        while isinstance(array.base, np.ndarray):
            array = array.base
        return any(gone() is array for gone, *_ in self.lent.values())

    def release(self) -> int:
        """Give all free blocks back to the system; how many bytes went."""
        with self.lock:
            self._take_back()
            free, self.free = self.free, OrderedDict()
            self.held = 0
            self.releases += 1  # scratch arrays are given up when they are asked for next
        return sum(_give_back(block, size) for size, blocks in free.items() for block in blocks)

    def renew(self) -> None:
        """In a forked child: a lock of its own."""
        self.lock = threading.RLock()


@lru_cache(maxsize=4096)
def _block_for(shape: tuple[int, ...], dtype: Any, small: int) -> tuple[int, np.dtype[Any]]:
    """The size of the block for an array, at most an eighth more than needed, or 0 if it is small.

    And its dtype.
    """
    kind = np.dtype(dtype)
    needed = prod(shape) * kind.itemsize
    if needed < small:
        return 0, kind
    step = max(1 << max(needed.bit_length() - 4, 0), STEP)
    return -(-needed // step) * step, kind


def _block(size: int) -> Any:
    """Memory as an object that is no NumPy array, in pages of 2 MiB; small blocks share them.

    For of a view of an array of an array NumPy keeps the innermost alive, and not the one between,
    whose end the pool waits for. With pages of 4 KiB, which memory that was in use before has,
    kernels that go through megabytes in large steps can take three times as long, and numbers that
    would fit a cache displace each other.
    """
    return _pages(size) if size >= PAGE else CARVED.block(size)


def _block_at_need(size: int) -> Any:
    """A block, for which the common pool gives up what it has free if there is no memory.

    Only that one: launches that a tape noted address the free blocks of the tape's own pool.
    """
    try:
        return _block(size)
    except MemoryError:
        POOL.release()
        return _block(size)


def _give_back(block: Any, size: int) -> int:
    """Give a free block's memory to the system; how many bytes go.

    A large block has pages of its own, which go with it. Those that a small one was cut from stay
    as long as one of its neighbours: of them go what lies whole inside the block.
    """
    if size >= PAGE:
        return size
    if not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    first = -(-ctypes.addressof(block) // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (ctypes.addressof(block) + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if end <= first or _madvise()(first, end - first, mmap.MADV_DONTNEED):
        return 0  # the system keeps memory that is locked
    return end - first


@cache
def _madvise() -> Any:
    found = ctypes.CDLL(None).madvise
    found.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return found


def _pages(size: int) -> Any:
    if not hasattr(mmap, "MAP_PRIVATE"):
        raw: Any = np.empty(size + ALIGN, dtype=np.uint8)
        return (ctypes.c_char * size).from_buffer(raw, -raw.ctypes.data % ALIGN)
    try:
        pages = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {size} bytes for a result on the CPU ({error.strerror})") from None
    start = -ctypes.addressof(ctypes.c_char.from_buffer(pages)) % PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            pages.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a system without them: slower, and the same numbers
            _log.debug("there are no huge pages here")
    return (ctypes.c_char * size).from_buffer(pages, start)


class Carved(threading.local):
    """Small blocks cut from pages in a row; pages go back when all of their blocks have gone."""

    def __init__(self) -> None:
        self.pages: Any = None
        self.used = self.size = 0

    def block(self, size: int) -> Any:
        if self.used + size > self.size:
            self.pages = _pages(2 * PAGE)
            self.used, self.size = 0, 2 * PAGE
        start = self.used
        self.used += -(-size // STEP) * STEP  # so that free blocks are whole pages
        return (ctypes.c_char * size).from_buffer(self.pages, start)


class Scratch(threading.local):
    """For each thread one array that grows, for what a launch needs only while it runs."""

    def __init__(self) -> None:
        self.held = np.empty(0, np.uint8)
        self.releases = 0

    def array(self, size: int) -> np.ndarray:
        """Uninitialised, of at least `size` bytes, at a multiple of 64."""
        if self.held.nbytes < size or self.releases != POOL.releases:
            block = _block_at_need(size)
            self.held, self.releases = np.ndarray(size, np.uint8, buffer=block), POOL.releases
        return self.held


POOL = Pool()
CARVED = Carved()
SCRATCH = Scratch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: POOL.lock.acquire(),  # the lock of now: a child of a child has another
        after_in_parent=lambda: POOL.lock.release(),
        after_in_child=POOL.renew,
    )


def release_memory() -> int:
    """Return the memory that gpuconv keeps for results on the CPU to the system; bytes of it.

    Scratch memory follows when a thread next needs some; weights that were rearranged for inference
    are rearranged again, and plans of kernels are made again; none of these is counted.
    """
    from gpuconv.backends import get_backend  # which makes its results here

    be: Any = get_backend("cpu")
    for plans in (be.calls, be._plans, be._conv_plans):
        plans.clear()
    CONSTANTS.release()
    return POOL.release()
