"""Shadow memory: detects races, uninitialised reads and cp.async copies not waited for.

A stamp (int64) says who touched a granule last and when: bits 0-32 are the global thread id, then
flags, then the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.emulator.isa import I8

# A stamp says who touched a granule last and when: bits 0-32 global thread id, flags, then time.
TID = I8((1 << 33) - 1)
MULTI, MULTIW, MULTIB = (
    I8(1 << 33),
    I8(1 << 34),
    I8(1 << 35),
)  # also others: of several warps / one warp / several blocks


ATOMIC, PEND = I8(1 << 36), I8(1 << 37)  # atomic access; a cp.async to this granule is in flight
SEVERAL = MULTI | MULTIW | MULTIB
TSHIFT = 38
PLAIN = I8(0)


class Shadow:
    """Last-writer / reader-set stamps per granule; detects unordered conflicting accesses.

    Two accesses of different threads are ordered if a block barrier of their common block (or a
    bar.warp.sync of their common warp) lies between them. Accesses of different blocks never are.
    """

    def __init__(self, granules: int, gshift: int, block_threads: int, cross_block: bool) -> None:
        self.W = np.zeros(granules, I8)
        self.R = np.zeros(granules, I8)
        self.gshift, self.T, self.cross = gshift, block_threads, cross_block

    def granules(self, off: Any, nbytes: int) -> list[Any]:
        """The granule indices of an access, one array for each granule of its width."""
        g = off >> self.gshift
        n = max(1, nbytes >> self.gshift)
        return [g + k if k else g for k in range(n)]

    def _unordered(self, s: Any, me: Any, thr: Any, wthr: Any) -> Any:
        """Mask of stamps s that include another thread's access not ordered before one by `me`."""
        tid = s & TID
        late = s >= thr
        if self.cross:
            late |= (s != 0) & ((tid // self.T != me // self.T) | ((s & MULTIB) != 0))
        if wthr is not None:
            late &= (s >= wthr) | (tid >> 5 != me >> 5) | ((s & (MULTI | MULTIB)) != 0)
        return late & ((tid != me) | ((s & SEVERAL) != 0))

    def _join(self, old: Any, stamp: Any, me: Any, thr: Any, wthr: Any) -> Any:
        """Stamp after `me` joins those of `old` that later accesses can still race with."""
        tid = old & TID
        fresh = old >= thr
        if self.cross:
            far = (old != 0) & ((tid // self.T != me // self.T) | ((old & MULTIB) != 0))
            fresh |= far
        if wthr is not None:
            warp = (tid >> 5 == me >> 5) & ((old & (MULTI | MULTIB)) == 0)
            fresh &= ~(
                warp & (old < wthr)
            )  # ordered within the warp; for other warps the new access stands in
        more = fresh & ((tid != me) | ((old & SEVERAL) != 0))
        new = np.where(
            more, stamp | (MULTI if wthr is None else np.where(warp, MULTIW, MULTI)), stamp
        )
        return np.where(far, new | MULTIB, new) if self.cross else new

    def _scatter(self, table: Any, g: Any, new: Any, me: Any, wthr: Any) -> Any:
        """table[g] = new, marking granules that several lanes of this instruction touch.

        Returns the mask of those lanes.
        """
        table[g] = new
        back = table[g]
        dup = (back & TID) != me
        if dup.any():
            if wthr is None and not self.cross:
                table[g[dup]] = back[dup] | MULTI
                return dup
            back &= TID
            for m, flag in (
                (back >> 5 == me >> 5, MULTIW if wthr is not None else MULTI),
                (back >> 5 != me >> 5, MULTI),
                (back // self.T != me // self.T, MULTIB),
            ):
                table[g[dup & m]] |= flag
        return dup

    def read(
        self, off: Any, nbytes: int, me: Any, thr: Any, wthr: Any, now: Any, track: Any = True
    ) -> Any:
        """-> (uninitialised, pending, racing) masks over the accessing lanes, or None."""
        uninit = pend = race = None
        stamp = me | I8(now << TSHIFT)
        for g in self.granules(off, nbytes):
            w = self.W[g]
            if not self.cross:
                if w.min() == 0:
                    uninit = either(uninit, w == 0)
                if np.bitwise_or.reduce(w) & PEND:
                    p = (w & PEND) != 0
                    pend, w = either(pend, p), np.where(p, 0, w)
            if self.cross or (w >= thr).any():
                race = either(race, self._unordered(w, me, thr, wthr))
            if not track:
                continue
            r = self.R[g]
            settled = (
                (r & MULTIB) != 0 if self.cross else (r >= thr) & ((r & MULTI) != 0)
            )  # nothing to add
            if settled.all():
                continue
            if settled.any():
                k = ~settled
                wk = None if wthr is None else wthr[k]
                self._scatter(
                    self.R, g[k], self._join(r[k], stamp[k], me[k], thr[k], wk), me[k], wk
                )
            else:
                self._scatter(self.R, g, self._join(r, stamp, me, thr, wthr), me, wthr)
        return uninit, pend, race

    def write(
        self,
        off: Any,
        nbytes: int,
        me: Any,
        thr: Any,
        wthr: Any,
        now: Any,
        flags: Any = PLAIN,
        bits: Any = None,
    ) -> Any:
        """-> (pending, racing, same-value duplicate) masks.

        `bits` are the stored values, to tell benign duplicates.
        """
        pend = race = same = None
        stamp = me | I8(now << TSHIFT) | flags
        atomic = bool(flags & ATOMIC)
        for g in self.granules(off, nbytes):
            w, r = self.W[g], self.R[g]
            if not self.cross and np.bitwise_or.reduce(w) & PEND:
                p = (w & PEND) != 0
                pend, w = either(pend, p), np.where(p, 0, w)
            if self.cross or (w >= thr).any():
                c = self._unordered(w, me, thr, wthr)
                race = either(race, c & ((w & ATOMIC) == 0) if atomic else c)
            if self.cross or (r >= thr).any():
                race = either(race, self._unordered(r, me, thr, wthr))
            if atomic:  # a plain write of the same thread keeps the granule plain
                new = self._join(w, stamp, me, thr, wthr)
                plain = (w >= thr) & ((w & ATOMIC) == 0)
                self._scatter(self.W, g, np.where(plain, new & ~ATOMIC, new), me, wthr)
                continue
            dup = self._scatter(self.W, g, stamp, me, wthr)
            if dup.any():
                self.W[g] &= ~SEVERAL
                if bits is not None and nbytes <= 8:
                    order = np.argsort(g, kind="stable")
                    gs, bs = g[order], bits[order]
                    clash = gs[1:][(gs[1:] == gs[:-1]) & (bs[1:] != bs[:-1])]
                    eq = ~np.isin(g, clash)
                    same, dup = either(same, dup & eq), dup & ~eq
                race = either(race, dup)
        return pend, race, same


def either(a: Any, b: Any) -> Any:
    """Union of two masks; the first may be None."""
    return b if a is None else a | b
