"""PTX that NVRTC makes of CUDA C++: another front end, the C ABI. Skipped without NVRTC."""

from typing import Any

import numpy as np
import pytest

from gpuconv import emulator
from gpuconv.emulator import Ptr

pytest.importorskip("cuda.bindings.nvrtc")


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


ARCHS = ["compute_75", "compute_80", "compute_90", "compute_100", "compute_120"]


def launch(
    src: Any,
    grid: Any,
    block: Any,
    *args: Any,
    arch: str = "compute_80",
    shared: Any = 0,
    **kw: Any,
) -> Any:
    m = emulator.Module(emulator.nvrtc_ptx(src, arch))
    return m.launch(
        m.kernels[0],
        grid,
        block,
        [Ptr(a) if isinstance(a, np.ndarray) else a for a in args],
        shared,
        **kw,
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_float4_and_switch(rng: np.random.Generator, arch: str) -> None:
    src = """extern "C" __global__ void k(const float4* x, float4* y, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return; float4 v = x[i];
      switch (i % 9) { case 0: v.x *= 2; break; case 1: v.y = sinf(v.x); break;
      case 2: v.z = v.w - v.x; break; case 3: v.w = 1; break;
        case 4: v.x = v.y * v.z; break; case 5: v.y = -v.y; break;
      case 6: v = make_float4(1,2,3,4); break; case 7: v.z += 7; break; default: v.w = 0; }
      y[i] = v; }"""
    x, y = normal(rng, 500, 4), np.zeros((500, 4), np.float32)
    r = launch(src, 2, 256, x, y, np.int32(500), arch=arch)
    want, i = x.copy(), np.arange(500) % 9
    want[i == 0, 0] *= 2
    want[i == 1, 1] = np.sin(x[i == 1, 0])
    want[i == 2, 2] = x[i == 2, 3] - x[i == 2, 0]
    want[i == 3, 3] = 1
    want[i == 4, 0] = x[i == 4, 1] * x[i == 4, 2]
    want[i == 5, 1] *= -1
    want[i == 6] = [1, 2, 3, 4]
    want[i == 7, 2] += 7
    want[i == 8, 3] = 0
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)
    assert {m.per_request for m in r.mem.values()} <= {16.0} | {
        m.per_request for m in r.mem.values() if m.requests < 32
    }


@pytest.mark.parametrize("arch", ARCHS)
def test_half2_and_atomics(rng: np.random.Generator, arch: str) -> None:
    src = """#include <cuda_fp16.h>
    extern "C" __global__ void k(const __half2* a, const __half2* b, __half2* c,
                                 float* s, unsigned* mx, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return;
      __half2 v = __hfma2(a[i], b[i], a[i]); c[i] = __hmax2(v, __float2half2_rn(0.f));
      atomicAdd(s, __low2float(c[i])); atomicMax(mx, (unsigned)i * 7u % 1000u);
      atomicInc(mx + 1, 1000u); atomicXor(mx + 2, 1u << (i % 32)); }"""
    a, b = rng.standard_normal((2, 300, 2)).astype(np.float16)
    c, s, mx = np.zeros_like(a), np.zeros(1, np.float32), np.zeros(3, np.uint32)
    launch(src, 2, 256, a, b, c, s, mx, np.int32(300), arch=arch)
    want = np.maximum((a.astype(np.float64) * b + a).astype(np.float16), np.float16(0))
    assert np.array_equal(c, want)
    assert s[0] == pytest.approx(want[:, 0].astype(np.float64).sum(), rel=1e-5)
    x = 0
    for i in range(300):
        x ^= 1 << i % 32
    assert mx.tolist() == [max(i * 7 % 1000 for i in range(300)), 300, x]


@pytest.mark.parametrize("arch", ARCHS[1:])
def test_pipeline_primitives_and_zfill(rng: np.random.Generator, arch: str) -> None:
    src = """#include <cuda_pipeline.h>
    extern "C" __global__ void k(const float* x, float* y, int n) {
      __shared__ __align__(16) float s[4][256]; int t = threadIdx.x;
      for (int j = 0; j < 3; ++j) {
        int first = j * 256 + t * 4; int left = n - first;
      left = left < 0 ? 0 : left > 4 ? 4 : left;
        if (t < 64) __pipeline_memcpy_async(&s[j][t * 4], left ? x + first : x, 16, 16 - 4 * left);
        __pipeline_commit(); }
      for (int j = 0; j < 3; ++j) { __pipeline_wait_prior(0); __syncthreads();
      y[j * 256 + t] = s[j][255 - t]; } }"""
    n = 701
    x, y = normal(rng, n), np.zeros(768, np.float32)
    launch(src, 1, 256, x, y, np.int32(n), arch=arch)
    assert np.array_equal(
        y.reshape(3, 256)[:, ::-1].reshape(-1), np.r_[x, np.zeros(768 - n, np.float32)]
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_shared_tile_template_and_device_functions(rng: np.random.Generator, arch: str) -> None:
    src = """
    __device__ __noinline__ float act(float v, float k) { return v > 0 ? v : k * expm1f(v); }
    __device__ __noinline__ double3 triple(double v) { return make_double3(v, v * v, v * v * v); }
    __constant__ float coef[5] = {1.f, -2.f, 3.f, -4.f, 5.f};
    __device__ int counter;
    template <int R> __device__ float fir(const float* s, int t) { float a = 0; for (int k = 0;
        k < R; ++k) a += coef[k] * s[t + k]; return a; }
    extern "C" __global__ void __launch_bounds__(128)
      k(const float* x, float* y, double* z, int n) {
      extern __shared__ float s[]; int t = threadIdx.x, b = blockIdx.x * 128;
      for (int e = t; e < 132; e += 128) s[e] = b + e < n ? x[b + e] : 0.f;
      __syncthreads();
      if (b + t < n) { y[b + t] = act(fir<5>(s, t), .5f); double3 d = triple(y[b + t]);
      z[b + t] = d.x + d.y + d.z; }
      if (t == 0) atomicAdd(&counter, 1); }"""
    n = 1000
    x, y, z = normal(rng, n), np.zeros(n, np.float32), np.zeros(n)
    m = emulator.Module(emulator.nvrtc_ptx(src, arch))
    name = next(k for k in m.kernels if "k" in k)
    for _ in range(2):
        r = m.launch(name, 8, 128, [Ptr(x), Ptr(y), Ptr(z), np.int32(n)], 132 * 4)
    assert r.ok
    assert m.data["counter"].view(np.int32)[0] == 16
    xp = np.r_[x, np.zeros(5)].astype(np.float64)
    v = sum(c * xp[k : k + n] for k, c in enumerate([1, -2, 3, -4, 5]))
    want = np.where(v > 0, v, 0.5 * np.expm1(v))
    np.testing.assert_allclose(y, want, rtol=2e-5, atol=2e-5)
    yd = y.astype(np.float64)
    np.testing.assert_allclose(z, yd + yd**2 + yd**3, rtol=1e-12)


@pytest.mark.parametrize("arch", ARCHS)
def test_double_math(arch: str) -> None:
    src = """extern "C" __global__ void k(const double* x, double* y, int n) {
      int i = threadIdx.x + blockIdx.x * blockDim.x; if (i < n) {
      double v = x[i]; y[i] = exp(v); y[n + i] = log(fabs(v) + 1);
      y[2 * n + i] = sin(v) / cos(v); y[3 * n + i] = pow(fabs(v), 1.7); y[4 * n + i] = erf(v);
      y[5 * n + i] = rsqrt(fabs(v) + .1) ; y[6 * n + i] = cbrt(v); y[7*n+i] = fmod(v * 10, 3.0);
      } }"""
    from math import erf

    x = np.linspace(-4, 4, 257)
    y = np.zeros((8, 257))
    launch(src, 2, 256, x, y, np.int32(257), arch=arch)
    want = [
        np.exp(x),
        np.log1p(abs(x)),
        np.tan(x),
        abs(x) ** 1.7,
        [erf(v) for v in x],
        1 / np.sqrt(abs(x) + 0.1),
        np.cbrt(x),
        np.fmod(x * 10, 3),
    ]
    for got, w in zip(y, want, strict=False):
        np.testing.assert_allclose(got, w, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("arch", ARCHS)
def test_cooperative_reduce_scan(rng: np.random.Generator, arch: str) -> None:
    src = """#include <cooperative_groups.h>
    #include <cooperative_groups/reduce.h>
    namespace cg = cooperative_groups;
    extern "C" __global__ void k(const int* x, int* sum, int* scan) {
      auto w = cg::tiled_partition<32>(cg::this_thread_block());
      int i = blockIdx.x * blockDim.x + threadIdx.x; int v = x[i];
      int s = cg::reduce(w, v, cg::plus<int>()); if (w.thread_rank() == 0) atomicAdd(sum, s);
      int p = v; for (int o = 1; o < 32; o *= 2) { int q = w.shfl_up(p, o);
      if (w.thread_rank() >= o) p += q; } scan[i] = p; }"""
    x = rng.integers(-50, 50, 512).astype(np.int32)
    s, scan = np.zeros(1, np.int32), np.zeros(512, np.int32)
    launch(src, 2, 256, x, s, scan, arch=arch)
    assert s[0] == x.sum()
    assert np.array_equal(scan, x.reshape(-1, 32).cumsum(1).reshape(-1))
