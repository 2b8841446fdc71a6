"""Bugs planted in Numba kernels are found: skipped where numba-cuda is not installed."""

from typing import Any

import numpy as np
import pytest

from gpuconv import emulator

pytest.importorskip("numba_cuda")
from tests.emulator import bugs, kernels as K


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def findings(kernel: Any, grid: Any, block: Any, *args: Any, **kw: Any) -> Any:
    return emulator.run(kernel, grid, block, *args, strict=False, **kw)


def test_bug_missing_sync(rng: np.random.Generator) -> None:
    a, b, c = normal(rng, 32, 32), normal(rng, 32, 32), np.zeros((32, 32), np.float32)
    for k in (bugs.no_sync, bugs.no_second_sync):
        r = findings(k, (2, 2), (16, 16), a, b, c)
        assert r.kinds() == {"race-shared"}, r.summary()
        assert "bugs.py" in r.errors[0].where
    with pytest.raises(emulator.CheckFailed, match="race-shared"):
        emulator.run(bugs.no_sync, (2, 2), (16, 16), a, b, c)


def test_bug_out_of_bounds(rng: np.random.Generator) -> None:
    a, b, c = normal(rng, 1000), normal(rng, 1000), np.zeros(1000, np.float32)
    r = findings(bugs.oob, 4, 256, a, b, c)
    assert r.kinds() == {"oob-global"}
    assert sum(x.count for x in r.findings) == 3 * 24
    assert np.array_equal(c, a + b)


def test_bug_shared_overrun(rng: np.random.Generator) -> None:
    x, y = normal(rng, 64), np.zeros(64, np.float32)
    assert "oob-shared" in findings(bugs.oob_shared, 1, 64, x, y).kinds()


def test_bug_uninitialised_shared(rng: np.random.Generator) -> None:
    x, y = normal(rng, 64), np.zeros(64, np.float32)
    r = findings(bugs.uninit, 1, 64, x, y)
    assert r.kinds() == {"uninit-shared"}
    assert r.findings[0].count == 1
    assert "thread (13,0,0)" in r.findings[0].detail
    assert np.isnan(y[13])


def test_bug_cp_async(rng: np.random.Generator) -> None:
    x, y = normal(rng, 2, 128), np.zeros(128, np.float32)
    r = findings(bugs.no_wait, 1, 128, x[0], y)
    assert "cp-async-unwaited" in r.kinds()
    assert np.isnan(y).all()
    r = findings(bugs.wait_wrong_group, 1, 128, x, y)
    assert "cp-async-unwaited" in r.kinds()
    r = findings(bugs.no_sync_after_wait, 1, 128, x[0], y)
    assert "race-shared" in r.kinds()


def test_bug_global_races(rng: np.random.Generator) -> None:
    x = normal(rng, 1000)
    assert findings(bugs.global_race, 4, 256, x).kinds() == {"race-global"}
    out = np.zeros(1, np.float32)
    assert "race-global" in findings(bugs.lost_update, 4, 256, x, out).kinds()


def test_bug_divergent_barrier_and_shuffle(rng: np.random.Generator) -> None:
    x, y = normal(rng, 64), np.zeros(64, np.float32)
    assert "barrier-diverged" in findings(bugs.divergent_barrier, 1, 64, x, y).kinds()
    assert "warp-diverged" in findings(bugs.divergent_shfl, 1, 32, x, y).kinds()
    assert "shfl-inactive" in findings(bugs.partial_shfl, 1, 64, x, y).kinds()


def test_bug_misaligned_and_readonly(rng: np.random.Generator) -> None:
    x, y = normal(rng, 128), np.zeros(32, np.float32)
    assert "misaligned" in findings(bugs.misaligned, 1, 32, x, y).kinds()
    a, b, c = normal(rng, 64), normal(rng, 64), np.zeros(64, np.float32)
    c.flags.writeable = False
    m = emulator.compile_kernel(K.vadd, a, b, np.zeros(64, np.float32))
    assert "readonly-store" in m.launch(None, 1, 64, (a, b, c), strict=False).kinds()
    assert not c.any()


def test_spinlock_makes_progress() -> None:
    lock, total = np.zeros(1, np.int32), np.zeros(1, np.int32)
    emulator.run(K.spinlock, 2, 64, lock, total, strict=False)
    assert total[0] == 128
