"""Kernels that Numba compiled, against NumPy: skipped where numba-cuda is not installed."""

from typing import Any

import numpy as np
import pytest

from gpuconv import emulator

pytest.importorskip("numba_cuda")
from tests.emulator import kernels as K


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


CCS = [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)]


def tf32(x: Any) -> Any:
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def conv_ref(x: Any, w: Any, pad: Any) -> Any:
    _n, _c, _h, _wd = x.shape
    _k, _, r, s = w.shape
    xp = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    win = np.lib.stride_tricks.sliding_window_view(xp, (r, s), axis=(2, 3))
    return np.einsum("nchwrs,kcrs->nkhw", win, w.astype(np.float64))


@pytest.mark.parametrize("cc", CCS)
def test_vadd(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    a, b, c = normal(rng, 5000), normal(rng, 5000), np.zeros(5000, np.float32)
    r = emulator.run(K.vadd, 20, 256, a, b, c, cc=cc)
    assert np.array_equal(c, a + b)
    assert r.total("global") / r.total("global", "requests") == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32)])
def test_coalescing(rng: np.random.Generator, stride: int, sectors: int) -> None:
    n = 4096 * stride
    a, b, c = normal(rng, n), normal(rng, n), np.zeros(n, np.float32)
    r = emulator.run(K.vadd_strided, 16, 256, a, b, c, np.int64(stride))
    assert np.array_equal(c[::stride], (a + b)[::stride])
    assert all(m.per_request == sectors for m in r.mem.values())


@pytest.mark.parametrize("cc", CCS)
def test_reduction(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    x, out = normal(rng, 10000), np.zeros(1, np.float32)
    emulator.run(K.reduce_sum, 7, 256, x, out, cc=cc)
    assert out[0] == pytest.approx(x.astype(np.float64).sum(), abs=1e-3)


@pytest.mark.parametrize("cc", CCS)
@pytest.mark.parametrize(("m", "n", "k"), [(64, 48, 32), (50, 37, 29)])
def test_matmul(rng: np.random.Generator, cc: tuple[int, int], m: int, n: int, k: int) -> None:
    a, b, c = normal(rng, m, k), normal(rng, k, n), np.zeros((m, n), np.float32)
    r = emulator.run(K.matmul, ((n + 15) // 16, (m + 15) // 16), (16, 16), a, b, c, cc=cc)
    np.testing.assert_allclose(c, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)
    assert r.ok
    assert r.flops >= 2 * m * n * k


@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
def test_conv_naive(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    x, w, y = (
        normal(rng, 2, 3, 10, 13),
        normal(rng, 4, 3, 3, 3),
        np.zeros((2, 4, 10, 13), np.float32),
    )
    emulator.run(K.conv_naive, (2, 2, 8), (8, 8), x, w, y, np.int64(1), cc=cc)
    np.testing.assert_allclose(y, conv_ref(x, w, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
def test_conv_tiled(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    x, w, y = (
        normal(rng, 2, 4, 16, 16),
        normal(rng, 16, 4, 3, 3),
        np.zeros((2, 16, 16, 16), np.float32),
    )
    emulator.run(K.conv_tiled, (1, 1, 4), (16, 16), x, w, y, cc=cc)
    np.testing.assert_allclose(y, conv_ref(x, w, 1), rtol=1e-4, atol=1e-5)


def test_atomics(rng: np.random.Generator) -> None:
    x = rng.integers(0, 10, 3000).astype(np.int32)
    h, index = np.zeros(10, np.int32), np.zeros(3000, np.int32)
    emulator.run(K.histogram, 12, 256, x, h, index)
    assert np.array_equal(h, np.bincount(x, minlength=10))
    for v in range(10):  # returned old values are a permutation of 0..count-1
        assert np.array_equal(np.sort(index[x == v]), np.arange((x == v).sum()))
    lo, hi, cas = np.full(1, 99, np.int32), np.full(1, -99, np.int32), np.full(10, -1, np.int32)
    emulator.run(K.atomics, 12, 256, x, lo, hi, cas)
    assert lo[0] == 0
    assert hi[0] == 9
    assert all(x[cas[v]] == v for v in range(10))


@pytest.mark.parametrize("cc", CCS[1:])
def test_mma_tf32(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    a, b, c = normal(rng, 64, 40), normal(rng, 40, 24), np.zeros((64, 24), np.float32)
    emulator.run(K.matmul_mma, (3, 4), 32, a, b, c, cc=cc)
    np.testing.assert_allclose(c, tf32(a).astype(np.float64) @ tf32(b), rtol=1e-5, atol=1e-5)
    assert np.abs(c - a @ b).max() > 1e-4  # the operand truncation is visible


@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
def test_ldmatrix_mma_f16(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    a, b, c = (
        rng.standard_normal((16, 16)).astype(np.float16),
        rng.standard_normal((16, 8)).astype(np.float16),
        np.zeros((16, 8), np.float32),
    )
    emulator.run(K.matmul_ldmatrix, 1, 32, a.view(np.int16), b.view(np.int16), c, cc=cc)
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cc", CCS[1:])
def test_cp_async_pipeline(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    x, y = normal(rng, 12, 128), np.zeros((3, 128), np.float32)
    r = emulator.run(K.pipeline, 3, 128, x, y, cc=cc)
    np.testing.assert_allclose(
        y, np.roll(x.reshape(3, 4, 128).sum(1), -1, axis=1), rtol=1e-5, atol=1e-5
    )
    assert r.ok
    assert not r.findings


def test_divergent_loops() -> None:
    x, y = np.arange(1, 1000, dtype=np.int64), np.zeros(999, np.int64)
    r = emulator.run(K.collatz, 4, 256, x, y)

    def steps(v: Any) -> Any:
        n = 0
        while v != 1:
            v, n = v // 2 if v % 2 == 0 else 3 * v + 1, n + 1
        return n

    assert y.tolist() == [steps(int(v)) for v in x]
    assert r.divergent > 100


@pytest.mark.parametrize("fastmath", [True, False])
@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
def test_math(cc: tuple[int, int], fastmath: bool) -> None:
    x = np.r_[np.linspace(-5, 5, 501), 0].astype(np.float32)
    y = np.zeros((6, len(x)), np.float32)
    emulator.run(K.math_mix, 2, 256, x, y, cc=cc, fastmath=fastmath)
    v = x.astype(np.float64)
    with np.errstate(all="ignore"):
        ref = [
            np.where(v > 0, np.exp(v), np.log(1 - v)),
            np.sin(v) * np.cos(v),
            np.sqrt(abs(v)) / (v * v + 1),
            np.tanh(v),
            abs(v) ** 1.5,
            np.clip(v, -1, 1),
        ]
    np.testing.assert_allclose(y, ref, rtol=5e-5 if fastmath else 1e-6, atol=1e-6)


@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
def test_integers(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    x = np.r_[rng.integers(-(2**31), 2**31, 500), -(2**31), 2**31 - 1, 0, -1, 1, 7, -7].astype(
        np.int32
    )
    y = np.zeros((8, len(x)), np.int64)
    emulator.run(K.int_mix, 2, 256, x, y, cc=cc)
    v, u = x.astype(np.int64), x.view(np.uint32)
    clz = np.array([32 - int(k).bit_length() for k in u])
    brev = np.array([int(f"{int(k):032b}"[::-1], 2) for k in u])
    assert np.array_equal(y[0], v // 7)
    assert np.array_equal(y[1], v % 7)
    assert np.array_equal(y[2], (v << 3) ^ (v >> 2))
    assert np.array_equal(y[3], np.bitwise_count(u))
    assert np.array_equal(y[4] & 0xFFFFFFFF, clz)
    assert np.array_equal(y[5] & 0xFFFFFFFF, brev)
    assert np.array_equal(y[6], v * v)
    assert np.array_equal(y[7], v // (np.arange(len(x)) % 5 + 1))


@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
def test_warp_functions(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    x, y = normal(rng, 64), np.zeros((8, 64), np.int64)
    emulator.run(K.votes, 1, 64, x, y, cc=cc)
    p, t = (x > 0).reshape(2, 32), np.arange(64)
    lane, base = t % 32, t // 32 * 32
    assert np.array_equal(y[0].astype(np.uint32), np.repeat((p << np.arange(32)).sum(1), 32))
    assert np.array_equal(y[1], np.repeat(p.any(1), 32))
    assert np.array_equal(y[2], np.repeat(p.all(1), 32))
    assert np.array_equal(y[3], t ^ 5)
    assert np.array_equal(y[4], np.where(lane < 3, t, t - 3))
    assert np.array_equal(y[5], base + 7)
    assert (y[6] == p.sum()).all()
    assert (y[7] != 0).all()


def test_syncwarp_orders_one_warp_only(rng: np.random.Generator) -> None:
    x, y = normal(rng, 64), np.zeros(64, np.float32)
    r = emulator.run(K.warp_exchange, 1, 64, x, y)
    assert r.ok
    assert np.array_equal(y, x[np.arange(64) ^ 1])


def test_dynamic_shared(rng: np.random.Generator) -> None:
    x, y = normal(rng, 128), np.zeros(128, np.float32)
    emulator.run(K.dyn_shared, 1, 128, x, y, shared_bytes=512)
    assert np.array_equal(y, x[::-1])
    r = emulator.run(K.dyn_shared, 1, 128, x, y, shared_bytes=256, strict=False)
    assert "oob-shared" in r.kinds()


def test_bank_conflicts(rng: np.random.Generator) -> None:
    x = normal(rng, 32, 32)
    for kernel, waves in ((K.transpose, 32), (K.transpose_padded, 1)):
        y = np.zeros_like(x)
        r = emulator.run(kernel, 1, (32, 8), x, y)
        assert np.array_equal(y, x.T)
        assert max(m.per_request for m in r.mem.values() if m.space == "shared") == waves


def test_strided_and_aliased_arrays(rng: np.random.Generator) -> None:
    base = normal(rng, 3000)
    c = np.zeros(1500, np.float32)
    emulator.run(K.vadd, 6, 256, base[::2], base[1::2], c)
    assert np.array_equal(c, base[::2] + base[1::2])
    base2 = base.copy()
    emulator.run(K.vadd, 6, 256, base2[:1500], base2[1500:], base2[:1500])
    assert np.array_equal(base2[:1500], base[:1500] + base[1500:])


@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
@pytest.mark.parametrize("flag", [True, False])
def test_arguments_and_device_functions(
    rng: np.random.Generator, cc: tuple[int, int], flag: bool
) -> None:
    x, y = normal(rng, 20, 9, 3), np.zeros((20, 9), np.float32)
    emulator.run(K.features, (3, 2), (8, 8), x, y, np.float32(1.5), flag, (20, 9), cc=cc)
    i, j = np.indices((20, 9))
    v = x[:, :, 1] * np.float32(1.5) + 1 + (K.TABLE[(i + j) % 8] if flag else 0)
    np.testing.assert_allclose(y, np.where(v > 0, v * v, -v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
def test_local_memory(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    x, y = normal(rng, 16), np.zeros(64, np.float32)
    emulator.run(K.conv_local_index, 2, 32, x, y, cc=cc)
    for i in range(64):
        a = np.zeros(16)
        for k in range(16):
            a[(k * 7 + i) % 16] = x[k]
        s = 0.0
        for k in range(16):
            s = s * 0.5 + a[(k + i * 3) % 16]
        assert y[i] == pytest.approx(s, abs=1e-5)


@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
def test_float16_arrays(rng: np.random.Generator, cc: tuple[int, int]) -> None:
    x, y = rng.standard_normal(100).astype(np.float16), np.zeros(100, np.float16)
    emulator.run(K.half_arrays, 1, 128, x, y, cc=cc)
    np.testing.assert_allclose(y, x * x + x[0], rtol=4e-3, atol=4e-3)


def test_conv_at_benchmark_size(rng: np.random.Generator) -> None:
    x, w, y = (
        normal(rng, 8, 16, 16, 16),
        normal(rng, 32, 16, 3, 3),
        np.zeros((8, 32, 16, 16), np.float32),
    )
    r = emulator.run(K.conv_tiled, (1, 1, 32), (16, 16), x, w, y)
    np.testing.assert_allclose(y, conv_ref(x, w, 1), rtol=1e-4, atol=1e-4)
    z = np.zeros_like(y)
    emulator.run(K.conv_naive, (2, 2, 256), (8, 8), x, w, z, np.int64(1))
    np.testing.assert_allclose(z, y, rtol=1e-4, atol=1e-4)
    assert r.flops >= 2 * y.size * 16 * 9


@pytest.mark.parametrize("lanes", [64, 512, 8192])
def test_barriers_in_block_dependent_loops(lanes: int) -> None:
    y = np.full((40, 64), -1, np.float32)
    r = emulator.run(K.block_loops, 40, 64, y, lanes=lanes)
    for b in range(40):
        v = np.arange(64, dtype=np.float32)
        for _ in range(b % 7 + 1):
            v = v + np.roll(v, -1)
        assert np.array_equal(y[b], np.full(64, -1) if b % 5 == 4 else v)
    assert not r.findings
