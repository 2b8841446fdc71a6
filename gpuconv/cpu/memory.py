"""Memory for results and workspaces, kept when it is free and given out again.

The first touch of fresh memory costs the system 5 microseconds a page, more than most kernels need
to fill it. So large arrays are made of blocks that a pool keeps: when the last array or view of a
block is gone, the block is free again. What is kept unused is bounded.
"""

import ctypes
import logging
import mmap
import threading
import weakref
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

SMALL = 1 << 16  # bytes below which malloc is quick enough
ALIGN = 64
PAGE = 2 << 20  # bytes of a huge page
MOST = 2 << 30  # bytes of free blocks that are kept
_log = logging.getLogger("gpuconv")


class Pool:
    """Blocks by size class; safe to use from any thread, and from the garbage collector."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.free: dict[int, list[Any]] = {}
        self.held = 0  # bytes of free blocks
        # The collector may free an array, and call `_back`, while its thread is inside: hence R.
        self.lock = threading.RLock()
        self.releases = 0
        self.lent: dict[int, tuple[weakref.ref[Any], Any, int]] = {}

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialised C-contiguous array, at a multiple of 64 bytes if it is large."""
        kind = np.dtype(dtype)
        needed = prod(shape) * kind.itemsize
        if needed < SMALL:
            return np.empty(shape, kind)
        size = _class(needed)
        block = None
        with self.lock:
            blocks = self.free.get(size)
            if blocks:
                block = blocks.pop()
                self.held -= size
        if block is None:
            block = _block(size)
        array = np.ndarray(shape, kind, buffer=block)
        number = id(array)
        self.lent[number] = weakref.ref(array, partial(self._back, number)), block, size
        return array

    def _back(self, number: int, _: Any) -> None:
        _, block, size = self.lent.pop(number)
        with self.lock:
            if self.held + size <= self.most:
                self.held += size
                self.free.setdefault(size, []).append(block)

    def release(self) -> int:
        """Give all free blocks back to the system; how many bytes they had."""
        with self.lock:
            total, self.held = self.held, 0
            self.free.clear()
            self.releases += 1  # scratch arrays are given up when they are asked for next
        return total


@lru_cache(maxsize=4096)
def _class(needed: int) -> int:
    """The size of block for so many bytes: at most an eighth more than needed."""
    step = 1 << max(needed.bit_length() - 4, 12)
    return -(-needed // step) * step


def _block(size: int) -> Any:
    """Memory as an object that is no NumPy array, in pages of 2 MiB where it is large.

    For of a view of an array of an array NumPy keeps the innermost alive, and not the one between,
    whose end the pool waits for. With pages of 4 KiB, which memory that was in use before has,
    kernels that go through megabytes in large steps can take three times as long.
    """
    if size < PAGE or not hasattr(mmap, "MAP_PRIVATE"):
        raw: Any = np.empty(size + ALIGN, dtype=np.uint8)
        return (ctypes.c_char * size).from_buffer(raw, -raw.ctypes.data % ALIGN)
    pages = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(pages)) % PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            pages.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a system without them: slower, and the same numbers
            _log.debug("there are no huge pages here")
    return (ctypes.c_char * size).from_buffer(pages, start)


class Scratch(threading.local):
    """For each thread one array that grows, for what a launch needs only while it runs."""

    def __init__(self) -> None:
        self.held = np.empty(0, np.uint8)
        self.releases = 0

    def array(self, size: int) -> np.ndarray:
        """Uninitialised, of at least `size` bytes, at a multiple of 64."""
        if self.held.nbytes < size or self.releases != POOL.releases:
            self.held, self.releases = (
                np.ndarray(size, np.uint8, buffer=_block(size)),
                POOL.releases,
            )
        return self.held


POOL = Pool()
SCRATCH = Scratch()


def release_memory() -> int:
    """Return the memory that gpuconv keeps for results on the CPU to the system; bytes of it."""
    return POOL.release()
