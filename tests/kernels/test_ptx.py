"""The intrinsics one by one, in small kernels run by the emulator, against Python."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from numba import cuda, types

from gpuconv.cuda.device import EmulatedDevice
from gpuconv.kernels.cuda import ptx
from gpuconv.kernels.cuda.compiler import F32, F64, I32, I32P, Kernel, build

I = ptx.i32  # noqa: E741


def run(
    make: Callable[..., Any],
    *arrays: Any,
    constants: tuple[tuple[str, Any], ...] = (),
    shared: int = 0,
    **n: Any,
) -> None:
    kernel = Kernel(f"test_{make.__qualname__.split('.')[0]}", make, constants, 32, 1, shared)
    EmulatedDevice().prepare(kernel, (1, 1, 1), **n)(*arrays)


def test_divisions(rng: np.random.Generator) -> None:
    def make() -> Any:
        div, rem, divide = ptx.div, ptx.rem, ptx.divide

        def kernel(n: I32P, d: I32P, f: I32P, s: I32P, out: I32P, total: I32) -> None:
            i = I(cuda.threadIdx.x)
            while i < total:
                a, b = n[i], d[i]
                out[3 * i] = div(a, b)
                out[3 * i + 1] = rem(a, b)
                out[3 * i + 2] = divide(a, f[i], s[i])
                i = I(i + 32)

        return kernel

    edges = [0, 1, 2, 3, 5, 6, 7, 9, 255, 256, 257, 2**30, 2**31 - 2, 2**31 - 1]
    n = np.array([*np.repeat(edges, len(edges)), *rng.integers(0, 2**31, 3000)], np.int32)
    d = np.array(
        [*(edges * len(edges)), *2 ** rng.integers(0, 31, 1500), *rng.integers(1, 2**31, 1500)]
    )
    d = np.maximum(d, 1).astype(np.int32)
    factor, shift = np.array([ptx.reciprocal(int(v)) for v in d]).T
    out = np.zeros((len(n), 3), np.int32)
    run(make, n, d, factor.astype(np.int32), shift.astype(np.int32), out, total=len(n))
    np.testing.assert_array_equal(out, np.stack([n // d, n % d, n // d], 1))


def test_indices_stay_in_32_bits() -> None:
    def make() -> Any:
        within = ptx.within

        def kernel(x: I32P, out: I32P) -> None:
            i = I(cuda.threadIdx.x)
            out[2 * i] = I(x[i] * 3 + 5)
            out[2 * i + 1] = 1 if within(x[i], I(10)) else 0

        return kernel

    x = np.array([*range(-8, 20), 2**31 - 1, -(2**31), 2**30, 10], np.int32)
    out = np.zeros((32, 2), np.int32)
    run(make, x, out)
    wrapped = (x.astype(np.int64) * 3 + 5).astype(np.int32)
    np.testing.assert_array_equal(out, np.stack([wrapped, (x >= 0) & (x < 10)], 1))
    text = build(Kernel("test_index", make, (), 32), "sm_80").ptx
    assert "mul.lo.s64" not in text
    assert "mad.lo.s64" not in text


def test_four_at_once(rng: np.random.Generator) -> None:
    def make() -> Any:
        load4, load4_nc, store4 = ptx.load4, ptx.load4_nc, ptx.store4

        def kernel(x: F32, n: I32P, y: F32, m: I32P) -> None:
            i = I(cuda.threadIdx.x)
            a, b = load4(x, I(4 * i)), load4_nc(n, I(4 * i))
            store4(y, I(4 * i), a[3], a[2], a[1], a[0])
            store4(m, I(4 * i), b[1], b[0], b[3], b[2])

        return kernel

    x, n = rng.standard_normal((32, 4)).astype(np.float32), np.arange(128, dtype=np.int32)
    y, m = np.zeros_like(x), np.zeros((32, 4), np.int32)
    run(make, x, n, y, m)
    np.testing.assert_array_equal(y, x[:, ::-1])
    np.testing.assert_array_equal(m, n.reshape(32, 4)[:, [1, 0, 3, 2]])
    text = build(Kernel("test_four", make, (), 32), "sm_80").ptx
    for instruction in ("ld.global.v4", "ld.global.nc.v4", "st.global.v4"):
        assert instruction in text


@pytest.mark.parametrize("asynchronous", [True, False])
def test_copies_fill_with_zeros(rng: np.random.Generator, asynchronous: bool) -> None:
    def make(asynchronous: bool) -> Any:
        copy16 = ptx.copy16 if asynchronous else ptx.copy16_sync
        copy4 = ptx.copy4 if asynchronous else ptx.copy4_sync
        commit = ptx.commit if asynchronous else ptx.nothing
        wait = ptx.wait(0) if asynchronous else ptx.nothing
        shared, lds, lds4, barrier = ptx.shared, ptx.lds, ptx.lds4, ptx.barrier

        def kernel(x: F32, y: F32) -> None:
            i = I(cuda.threadIdx.x)
            odd = i & 1
            copy16(I(shared() + i * 16), x, I(4 * i), I(0 if odd else 16))
            copy4(I(shared() + 512 + i * 4), x, i, I(4 if odd else 0))
            commit()
            wait()
            barrier()
            a = lds4(I(shared() + (31 - i) * 16))
            y[5 * i], y[5 * i + 1], y[5 * i + 2], y[5 * i + 3] = a[0], a[1], a[2], a[3]
            y[5 * i + 4] = lds(I(shared() + 512 + (31 - i) * 4))

        return kernel

    x, y = rng.standard_normal((32, 4)).astype(np.float32), np.zeros((32, 5), np.float32)
    run(make, x, y, shared=640, constants=(("asynchronous", asynchronous),))
    kept = np.arange(32) % 2 == 0
    wide = np.where(kept[:, None], x, 0)[::-1]
    single = np.where(kept, 0, x.reshape(-1)[:32])[::-1]
    np.testing.assert_array_equal(y, np.concatenate([wide, single[:, None]], 1))


def test_shared_memory_of_each_kind(rng: np.random.Generator) -> None:
    def make() -> Any:
        shared, barrier = ptx.shared, ptx.barrier
        lds64, sts64, lds_i32, sts_i32 = ptx.lds64, ptx.sts64, ptx.lds_i32, ptx.sts_i32
        lds4, sts4, shuffle = ptx.lds4, ptx.sts4, ptx.shuffle_xor

        def kernel(x: F32, d: F64, n: I32P, y: F32, e: F64, m: I32P) -> None:
            i, s = I(cuda.threadIdx.x), shared()
            sts4(I(s + i * 16), x[i], x[i] * 2, x[i] * 3, x[i] * 4)
            sts64(I(s + 512 + i * 8), d[i])
            sts_i32(I(s + 768 + i * 4), n[i])
            barrier()
            j = I(31 - i)
            a = lds4(I(s + j * 16))
            y[i] = a[0] + a[1] + a[2] + a[3] + shuffle(x[i], I(5))
            e[i], m[i] = lds64(I(s + 512 + j * 8)), lds_i32(I(s + 768 + j * 4))

        return kernel

    x = np.arange(32, dtype=np.float32)
    d, n = rng.standard_normal(32), rng.integers(-(2**31), 2**31, 32).astype(np.int32)
    y, e, m = np.zeros_like(x), np.zeros_like(d), np.zeros_like(n)
    run(make, x, d, n, y, e, m, shared=896)
    np.testing.assert_array_equal(y, 10 * x[::-1] + x[np.arange(32) ^ 5])
    np.testing.assert_array_equal(e, d[::-1])
    np.testing.assert_array_equal(m, n[::-1])


def bf16(x: Any) -> Any:
    """The upper half of a float32, its bits as a 16-bit number; x must fit."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.int16)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_tensor_cores_of_16_bits(rng: np.random.Generator, kind: str) -> None:
    """A warp's 16x8 = A (16x16) B (16x8), operands through ldmatrix, B turned around."""

    def make(kind: str) -> Any:
        shared, barrier, sts = ptx.shared, ptx.barrier, ptx.sts_i32
        plain, turned = ptx.ldmatrix4, ptx.ldmatrix4_turned
        mma = ptx.mma_f16 if kind == "f16" else ptx.mma_bf16
        zero = types.float32(0)

        def kernel(a: I32P, b: I32P, c: F32) -> None:
            lane, s = I(cuda.threadIdx.x), shared()
            for i in range(4):  # 16 rows of 32 bytes
                sts(I(s + (lane + 32 * i) * 4), a[lane + 32 * i])
            for i in range(2):  # 16 rows of 16 bytes
                sts(I(s + 512 + (lane + 32 * i) * 4), b[lane + 32 * i])
            barrier()
            f = plain(I(s + (lane & 15) * 32 + (lane >> 4) * 16))
            g = turned(I(s + 512 + (lane & 15) * 16))
            v = mma(zero, zero, zero, zero, f[0], f[1], f[2], f[3], g[0], g[1])
            row, col = I(lane >> 2), I((lane & 3) * 2)
            c[row * 8 + col], c[row * 8 + col + 1] = v[0], v[1]
            c[(row + 8) * 8 + col], c[(row + 8) * 8 + col + 1] = v[2], v[3]

        return kernel

    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 16), (16, 8)))
    bits = bf16 if kind == "bf16" else lambda x: x.astype(np.float16).view(np.int16)
    c = np.full((16, 8), np.nan, np.float32)
    words = bits(a).view(np.int32), bits(b).view(np.int32)
    run(make, *words, c, shared=768, constants=(("kind", kind),))
    np.testing.assert_array_equal(c, a @ b)


def test_tensor_cores_of_tf32(rng: np.random.Generator) -> None:
    def make() -> Any:
        mma = ptx.mma_tf32

        def kernel(a: F32, b: F32, c: F32) -> None:
            lane = I(cuda.threadIdx.x)
            g, t = I(lane >> 2), I(lane & 3)
            v = mma(
                c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1],
                c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1],
                a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4],
                b[t * 8 + g], b[(t + 4) * 8 + g],
            )  # fmt: skip
            c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1] = v[0], v[1]
            c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1] = v[2], v[3]

        return kernel

    a, b, c = (rng.integers(-8, 9, s).astype(np.float32) for s in ((16, 8), (8, 8), (16, 8)))
    expected = c + a @ b
    run(make, a, b, c)
    np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_tensor_cores_become_machine_code(arch: str) -> None:
    """What PTX the emulator takes, the assembler must take too."""

    def make() -> Any:
        mma, ldmatrix = ptx.mma_bf16, ptx.ldmatrix4_turned

        def kernel(c: F32) -> None:
            f = ldmatrix(ptx.shared())
            v = mma(c[0], c[1], c[2], c[3], f[0], f[1], f[2], f[3], f[0], f[1])
            c[0] = v[0]

        return kernel

    from gpuconv.kernels.cuda import sass

    names = {i.name for i in sass.disassemble(build(Kernel("t", make, (), 32, 1, 512), arch).cubin)}
    assert {"HMMA", "LDSM"} <= names
