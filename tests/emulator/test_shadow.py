"""The race detector against a brute-force oracle."""

from typing import Any

import numpy as np
import pytest

from gpuconv.emulator import shadow


class Oracle:
    """Remembers every access.

    Two conflict if unordered, of different threads, and one writes, but not both atomically.
    """

    def __init__(self, T: Any) -> None:
        self.T, self.log, self.bar, self.wbar = T, [], {}, {}

    def access(self, g: Any, lanes: Any, mode: str, now: Any) -> Any:
        hit = False
        for x, t in zip(g, lanes, strict=False):
            for y, u, m, when in self.log + [
                (y, u, mode, now) for y, u in zip(g, lanes, strict=False)
            ]:
                if x != y or t == u or (mode == "r" and m == "r") or (mode == "a" and m == "a"):
                    continue
                same_block, same_warp = t // self.T == u // self.T, t // 32 == u // 32
                if (same_block and when < self.bar.get(t // self.T, 0)) or (
                    same_warp and when < self.wbar.get(t // 32, 0)
                ):
                    continue
                hit = True
        self.log += [(x, t, mode, now) for x, t in zip(g, lanes, strict=False)]
        return hit


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("warpsync", [False, True])
def test_race_detector_against_oracle(cross: bool, warpsync: bool) -> None:
    outcomes = set()
    for trial in range(1500):
        r = np.random.default_rng([trial, cross, warpsync])
        T, blocks = 64, 2 if cross else 1
        N, G = T * blocks, 6
        sh, oracle = shadow.Shadow(G, 0, T, cross), Oracle(T)
        sh.W[:] = 0 if cross else 1 << shadow.TSHIFT  # shared: all initialised long ago
        thr = np.full(N, 2 << shadow.TSHIFT, np.int64)
        wthr = np.zeros(N, np.int64) if warpsync else None
        now = 2
        for _ in range(int(r.integers(2, 12))):
            now += 1
            what = r.choice(["r", "w", "a", "bar", "warp"], p=[0.4, 0.2, 0.1, 0.2, 0.1])
            if what == "bar":
                b = int(r.integers(blocks))
                thr[b * T : (b + 1) * T] = (now + 1) << shadow.TSHIFT
                oracle.bar[b] = now + 1
                continue
            if what == "warp":
                if warpsync:
                    w = int(r.integers(N // 32))
                    wthr[w * 32 : (w + 1) * 32] = (now + 1) << shadow.TSHIFT
                    oracle.wbar[w] = now + 1
                continue
            lanes = np.sort(
                r.choice(r.choice(N, 5, replace=False), int(r.integers(1, 5)), replace=False)
            ).astype(np.int64)
            g = r.integers(0, G, len(lanes)).astype(np.int64)
            args = (g, 1, lanes, thr[lanes], None if wthr is None else wthr[lanes], now)
            if what == "r":
                race = sh.read(*args)[2]
            else:
                race = sh.write(*args, shadow.ATOMIC if what == "a" else np.int64(0))[1]
            got, want = (
                race is not None and bool(race.any()),
                oracle.access(g.tolist(), lanes.tolist(), what, now),
            )
            assert got == want, (trial, what, g, lanes)
            outcomes.add(want)
            if want:
                break  # stamps are only exact up to the first race
    assert outcomes == {True, False}
