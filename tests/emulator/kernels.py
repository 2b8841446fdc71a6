"""Numba CUDA kernels that are right."""

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int32, types

from tests.emulator.intrinsics import (
    cp_async16,
    cp_commit,
    cp_wait1,
    ldmatrix_x2_trans,
    ldmatrix_x4,
    mma_f16,
    mma_tf32,
)

F32 = np.float32


def vadd(a: Any, b: Any, c: Any) -> None:
    i = cuda.grid(1)
    if i < c.shape[0]:
        c[i] = a[i] + b[i]


def vadd_strided(a: Any, b: Any, c: Any, stride: int) -> None:
    i = cuda.grid(1) * stride
    if i < c.shape[0]:
        c[i] = a[i] + b[i]


def reduce_sum(x: Any, out: Any) -> None:
    part = cuda.shared.array(32, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    v = float32(0)
    while i < x.shape[0]:
        v += x[i]
        i += cuda.gridsize(1)
    for o in (16, 8, 4, 2, 1):
        v += cuda.shfl_down_sync(0xFFFFFFFF, v, o)
    if t % 32 == 0:
        part[t // 32] = v
    cuda.syncthreads()
    if t < 32:
        v = part[t] if t < cuda.blockDim.x // 32 else float32(0)
        for o in (16, 8, 4, 2, 1):
            v += cuda.shfl_down_sync(0xFFFFFFFF, v, o)
        if t == 0:
            cuda.atomic.add(out, 0, v)


TILE = 16


def matmul(a: Any, b: Any, c: Any) -> None:
    sa = cuda.shared.array((TILE, TILE), float32)
    sb = cuda.shared.array((TILE, TILE), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, col = cuda.blockIdx.y * TILE + ty, cuda.blockIdx.x * TILE + tx
    acc = float32(0)
    for k0 in range(0, a.shape[1], TILE):
        sa[ty, tx] = a[row, k0 + tx] if row < a.shape[0] and k0 + tx < a.shape[1] else float32(0)
        sb[ty, tx] = b[k0 + ty, col] if k0 + ty < b.shape[0] and col < b.shape[1] else float32(0)
        cuda.syncthreads()
        for k in range(TILE):
            acc += sa[ty, k] * sb[k, tx]
        cuda.syncthreads()
    if row < c.shape[0] and col < c.shape[1]:
        c[row, col] = acc


def conv_naive(x: Any, w: Any, y: Any, pad: Any) -> None:
    """x (N,C,H,W), w (K,C,R,S), y (N,K,P,Q): one thread per output."""
    q = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    p = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    nk = cuda.blockIdx.z
    n, k = nk // w.shape[0], nk % w.shape[0]
    if p >= y.shape[2] or q >= y.shape[3]:
        return
    acc = float32(0)
    for c in range(x.shape[1]):
        for r in range(w.shape[2]):
            h = p + r - pad
            if h >= 0 and h < x.shape[2]:
                for s in range(w.shape[3]):
                    v = q + s - pad
                    if v >= 0 and v < x.shape[3]:
                        acc += x[n, c, h, v] * w[k, c, r, s]
    y[n, k, p, q] = acc


KB = 8  # output channels per thread


def conv_tiled(x: Any, w: Any, y: Any) -> None:
    """3x3, pad 1, 16x16 spatial tiles: block (16,16), grid (W/16, H/16, N*K/KB)."""
    sx = cuda.shared.array((18, 18), float32)
    sw = cuda.shared.array((KB, 9), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    t = ty * 16 + tx
    groups = w.shape[0] // KB
    n, k0 = cuda.blockIdx.z // groups, cuda.blockIdx.z % groups * KB
    q0, p0 = cuda.blockIdx.x * 16, cuda.blockIdx.y * 16
    acc = cuda.local.array(KB, float32)
    for j in range(KB):
        acc[j] = float32(0)
    for c in range(x.shape[1]):
        for e in range(t, 324, 256):
            h, v = p0 + e // 18 - 1, q0 + e % 18 - 1
            inside = h >= 0 and h < x.shape[2] and v >= 0 and v < x.shape[3]
            sx[e // 18, e % 18] = x[n, c, h, v] if inside else float32(0)
        if t < KB * 9:
            sw[t // 9, t % 9] = w[k0 + t // 9, c, t % 9 // 3, t % 3]
        cuda.syncthreads()
        for r in range(3):
            for s in range(3):
                v = sx[ty + r, tx + s]
                for j in range(KB):
                    acc[j] += v * sw[j, r * 3 + s]
        cuda.syncthreads()
    for j in range(KB):
        y[n, k0 + j, p0 + ty, q0 + tx] = acc[j]


def histogram(x: Any, h: Any, index: Any) -> None:
    """Atomics whose result is used (index) and not used (h)."""
    i = cuda.grid(1)
    if i < x.shape[0]:
        index[i] = cuda.atomic.add(h, x[i], 1)


def atomics(x: Any, lo: Any, hi: Any, cas: Any) -> None:
    i = cuda.grid(1)
    if i < x.shape[0]:
        cuda.atomic.min(lo, 0, x[i])
        cuda.atomic.max(hi, 0, x[i])
        cuda.atomic.cas(cas, x[i] % cas.shape[0], -1, i)


def matmul_mma(a: Any, b: Any, c: Any) -> None:
    """One warp per 16x8 tile of C, tf32 tensor cores, operands straight from global memory."""
    lane = cuda.threadIdx.x
    g, t = lane // 4, lane % 4
    r, n = cuda.blockIdx.y * 16 + g, cuda.blockIdx.x * 8
    c0 = c1 = c2 = c3 = float32(0)
    for k in range(0, a.shape[1], 8):
        c0, c1, c2, c3 = mma_tf32(
            c0,
            c1,
            c2,
            c3,
            a[r, k + t],
            a[r + 8, k + t],
            a[r, k + t + 4],
            a[r + 8, k + t + 4],
            b[k + t, n + g],
            b[k + t + 4, n + g],
        )
    c[r, n + 2 * t], c[r, n + 2 * t + 1] = c0, c1
    c[r + 8, n + 2 * t], c[r + 8, n + 2 * t + 1] = c2, c3


def matmul_ldmatrix(a: Any, b: Any, c: Any) -> None:
    """f16 bit patterns in int16 arrays: A (16,16), B (16,8) -> C (16,8) through ldmatrix and
    m16n8k16."""
    sa = cuda.shared.array((16, 16), types.int16)
    sb = cuda.shared.array((16, 8), types.int16)
    lane = cuda.threadIdx.x
    for e in range(lane, 256, 32):
        sa[e // 16, e % 16] = a[e // 16, e % 16]
    for e in range(lane, 128, 32):
        sb[e // 8, e % 8] = b[e // 8, e % 8]
    cuda.syncthreads()
    a0, a1, a2, a3 = ldmatrix_x4(sa, (lane % 16) * 16 + (lane // 16) * 8)
    b0, b1 = ldmatrix_x2_trans(sb, (lane % 16) * 8)
    z = float32(0)
    c0, c1, c2, c3 = mma_f16(z, z, z, z, a0, a1, a2, a3, b0, b1)
    g, t = lane // 4, lane % 4
    c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1] = c0, c1, c2, c3


def pipeline(x: Any, y: Any) -> None:
    """Two-stage cp.async pipeline: every block sums its rows of 128 floats, thread t reads its
    neighbour's column."""
    buf = cuda.shared.array((2, 128), float32)
    t = cuda.threadIdx.x
    rows = x.shape[0] // cuda.gridDim.x
    r0 = cuda.blockIdx.x * rows
    acc = float32(0)
    if t < 32:
        cp_async16(buf, t * 4, x, r0 * 128 + t * 4)
    cp_commit()
    for r in range(rows):
        if r + 1 < rows and t < 32:
            cp_async16(buf, ((r + 1) % 2) * 128 + t * 4, x, (r0 + r + 1) * 128 + t * 4)
        cp_commit()
        cp_wait1()
        cuda.syncthreads()
        acc += buf[r % 2, (t + 1) % 128]
        cuda.syncthreads()
    y[cuda.blockIdx.x, t] = acc


def collatz(x: Any, y: Any) -> None:
    """Data-dependent trip counts."""
    i = cuda.grid(1)
    if i < x.shape[0]:
        v, n = x[i], 0
        while v != 1:
            v = v // 2 if v % 2 == 0 else 3 * v + 1
            n += 1
        y[i] = n


def math_mix(x: Any, y: Any) -> None:
    i = cuda.grid(1)
    if i < x.shape[0]:
        v = x[i]
        y[0, i] = math.exp(v) if v > 0 else math.log(float32(1) - v)
        y[1, i] = math.sin(v) * math.cos(v)
        y[2, i] = math.sqrt(abs(v)) / (v * v + float32(1))
        y[3, i] = math.tanh(v)
        y[4, i] = abs(v) ** float32(1.5)
        y[5, i] = min(max(v, float32(-1)), float32(1))


def int_mix(x: Any, y: Any) -> None:
    i = cuda.grid(1)
    if i < x.shape[0]:
        v = x[i]
        y[0, i] = v // 7
        y[1, i] = v % 7
        y[2, i] = (v << 3) ^ (v >> 2)
        y[3, i] = cuda.popc(v)
        y[4, i] = cuda.clz(v)
        y[5, i] = cuda.brev(v)
        y[6, i] = v * v
        y[7, i] = v // (i % 5 + 1)


def votes(x: Any, y: Any) -> None:
    t = cuda.threadIdx.x
    p = x[t] > 0
    y[0, t] = cuda.ballot_sync(0xFFFFFFFF, p)
    y[1, t] = cuda.any_sync(0xFFFFFFFF, p)
    y[2, t] = cuda.all_sync(0xFFFFFFFF, p)
    y[3, t] = cuda.shfl_xor_sync(0xFFFFFFFF, t, 5)
    y[4, t] = cuda.shfl_up_sync(0xFFFFFFFF, t, 3)
    y[5, t] = cuda.shfl_sync(0xFFFFFFFF, t, 7)
    y[6, t] = cuda.syncthreads_count(int32(p))
    y[7, t] = cuda.syncthreads_or(int32(p))


def warp_exchange(x: Any, y: Any) -> None:
    """Neighbours of one warp exchange through shared memory ordered by syncwarp only."""
    s = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    s[t] = x[t]
    cuda.syncwarp()
    y[t] = s[t ^ 1]


def dyn_shared(x: Any, y: Any) -> None:
    s = cuda.shared.array(0, float32)
    t = cuda.threadIdx.x
    s[t] = x[t]
    cuda.syncthreads()
    y[t] = s[cuda.blockDim.x - 1 - t]


def transpose(x: Any, y: Any) -> None:
    s = cuda.shared.array((32, 32), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    for j in range(0, 32, 8):
        s[ty + j, tx] = x[ty + j, tx]
    cuda.syncthreads()
    for j in range(0, 32, 8):
        y[ty + j, tx] = s[tx, ty + j]


def transpose_padded(x: Any, y: Any) -> None:
    s = cuda.shared.array((32, 33), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    for j in range(0, 32, 8):
        s[ty + j, tx] = x[ty + j, tx]
    cuda.syncthreads()
    for j in range(0, 32, 8):
        y[ty + j, tx] = s[tx, ty + j]


def spinlock(lock: Any, total: Any) -> None:
    """A critical section per thread: needs forward progress of the lock holder."""
    while cuda.atomic.cas(lock, 0, 0, 1) != 0:
        pass
    cuda.threadfence()
    total[0] += 1
    cuda.threadfence()
    cuda.atomic.exch(lock, 0, 0)


TABLE = np.arange(10, 18).astype(np.float32)


@cuda.jit(device=True)
def helper(v: Any, k: int) -> Any:
    return v * k + float32(1)


@cuda.jit(device=True, inline="never")
def helper_call(v: Any) -> Any:
    return v * v if v > 0 else -v


@cuda.jit
def features(x: Any, y: Any, scale: Any, flag: bool, shape: str) -> None:
    """3-D views, tuple, boolean and float arguments, constant memory, device functions, a
    dispatcher as kernel."""
    t = cuda.const.array_like(TABLE)
    i, j = cuda.grid(2)
    if i < shape[0] and j < shape[1]:
        v = helper(x[i, j, 1], scale)
        if flag:
            v += t[(i + j) % 8]
        y[i, j] = helper_call(v)


def conv_local_index(x: Any, y: Any) -> None:
    """A dynamically indexed local array lives in .local memory."""
    i = cuda.grid(1)
    a = cuda.local.array(16, float32)
    for k in range(16):
        a[(k * 7 + i) % 16] = x[k]
    s = float32(0)
    for k in range(16):
        s = s * float32(0.5) + a[(k + i * 3) % 16]
    y[i] = s


def half_arrays(x: Any, y: Any) -> None:
    i = cuda.grid(1)
    if i < x.shape[0]:
        y[i] = x[i] * x[i] + x[0]


def block_loops(y: Any) -> None:
    """Barriers in a loop whose trip count differs from block to block;
    some blocks leave at once."""
    s = cuda.shared.array(64, float32)
    t, b = cuda.threadIdx.x, cuda.blockIdx.x
    if b % 5 == 4:
        return
    v = float32(t)
    for _r in range(b % 7 + 1):
        s[t] = v
        cuda.syncthreads()
        v = v + s[(t + 1) % 64]
        cuda.syncthreads()
    y[b, t] = v
