"""Access-pattern statistics: sectors per global request, wavefronts per shared request."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from gpuconv.emulator.isa import I8


def _distinct(keys: Any) -> Any:
    """Row-sorted keys -> mask of first occurrences; negative keys (inactive lanes) do not count."""
    d = np.empty(keys.shape, bool)
    d[:, 0] = True
    np.not_equal(keys[:, 1:], keys[:, :-1], out=d[:, 1:])
    return d & (keys >= 0)


def _rows(off: Any, idx: Any, n: Any, width: Any, shift: Any) -> Any:
    """Per-lane offsets -> matrix of offset>>shift, -1 for inactive lanes, active rows only."""
    key = off >> shift
    if idx is None:
        return key.reshape(-1, width)
    full = np.full(n, -1, I8)
    full[idx] = key
    full = full.reshape(-1, width)
    return full[(full >= 0).any(1)]


def sectors(off: Any, idx: Any, n: Any, nbytes: int) -> Any:
    """-> (warp requests, 32-byte sectors, ideal sectors)."""
    rows = _rows(off, idx, n, 32, 5)
    if not (rows[:, 1:] >= rows[:, :-1]).all():
        rows = np.sort(rows, axis=1)
    active = (rows >= 0).sum(1)
    got = _distinct(rows).sum(1)
    ideal = np.minimum((active * nbytes + 31) // 32, got)
    return len(rows), int(got.sum()), int(ideal.sum())


def wavefronts(off: Any, idx: Any, n: Any, nbytes: int) -> Any:
    """-> (warp requests, shared-memory wavefronts, ideal).

    8- and 16-byte accesses go by half and quarter warps.
    """
    unit = max(4, nbytes)
    width = 128 // unit
    rows = _rows(off, idx, n, width, unit.bit_length() - 1)
    key = np.sort(rows, axis=1)
    first = _distinct(key)
    slot = (key & (width - 1)) + np.arange(len(rows))[:, None] * width
    waves = np.bincount(slot[first], minlength=len(rows) * width).reshape(-1, width).max(1)
    nreq = n // 32 if idx is None else len(np.unique(idx >> 5))
    return nreq, int(waves.sum()), len(rows)


class Sampler:
    """Decides which executions of an instruction get their access pattern analysed."""

    def __init__(self, first: int = 24, every: int = 16) -> None:
        self.first, self.every = first, every
        self.seen: defaultdict[Any, int] = defaultdict(int)

    def take(self, pc: Any) -> bool:
        """Count an execution; whether to analyse it."""
        k = self.seen[pc] = self.seen[pc] + 1
        return k <= self.first or k % self.every == 0
