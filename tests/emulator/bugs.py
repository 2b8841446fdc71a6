"""Numba CUDA kernels with a bug planted in each."""

from typing import Any

from numba import cuda, float32

from tests.emulator.intrinsics import (
    cp_async16,
    cp_commit,
    cp_wait0,
    cp_wait1,
)
from tests.emulator.kernels import TILE


def no_sync(a: Any, b: Any, c: Any) -> None:
    """matmul without the barrier after the tile is filled."""
    sa = cuda.shared.array((TILE, TILE), float32)
    sb = cuda.shared.array((TILE, TILE), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, col = cuda.blockIdx.y * TILE + ty, cuda.blockIdx.x * TILE + tx
    acc = float32(0)
    for k0 in range(0, a.shape[1], TILE):
        sa[ty, tx] = a[row, k0 + tx]
        sb[ty, tx] = b[k0 + ty, col]
        for k in range(TILE):
            acc += sa[ty, k] * sb[k, tx]
        cuda.syncthreads()
    c[row, col] = acc


def no_second_sync(a: Any, b: Any, c: Any) -> None:
    """matmul without the barrier before the tile is overwritten."""
    sa = cuda.shared.array((TILE, TILE), float32)
    sb = cuda.shared.array((TILE, TILE), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, col = cuda.blockIdx.y * TILE + ty, cuda.blockIdx.x * TILE + tx
    acc = float32(0)
    for k0 in range(0, a.shape[1], TILE):
        sa[ty, tx] = a[row, k0 + tx]
        sb[ty, tx] = b[k0 + ty, col]
        cuda.syncthreads()
        for k in range(TILE):
            acc += sa[ty, k] * sb[k, tx]
    c[row, col] = acc


def oob(a: Any, b: Any, c: Any) -> None:
    i = cuda.grid(1)
    c[i] = a[i] + b[i]  # no bounds test


def oob_shared(x: Any, y: Any) -> None:
    s = cuda.shared.array(64, float32)
    u = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    s[t + 1] = x[t]
    u[t] = x[t]
    cuda.syncthreads()
    y[t] = s[t] + u[t] if t > 0 else float32(0)


def uninit(x: Any, y: Any) -> None:
    s = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    if t != 13:
        s[t] = x[t]
    cuda.syncthreads()
    y[t] = s[t]


def no_wait(x: Any, y: Any) -> None:
    """cp.async read after the barrier but without a wait."""
    buf = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    if t < 32:
        cp_async16(buf, t * 4, x, t * 4)
    cp_commit()
    cuda.syncthreads()
    y[t] = buf[t]


def wait_wrong_group(x: Any, y: Any) -> None:
    """pipeline that waits for all but one group although it needs the newest."""
    buf = cuda.shared.array((2, 128), float32)
    t = cuda.threadIdx.x
    for s in range(2):
        if t < 32:
            cp_async16(buf, s * 128 + t * 4, x, s * 128 + t * 4)
        cp_commit()
    cp_wait1()
    cuda.syncthreads()
    y[t] = buf[0, t] + buf[1, t]


def no_sync_after_wait(x: Any, y: Any) -> None:
    """Each thread waits for its own copies, but reads another thread's without a barrier."""
    buf = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    if t < 32:
        cp_async16(buf, t * 4, x, t * 4)
    cp_commit()
    cp_wait0()
    y[t] = buf[127 - t]


def global_race(x: Any) -> None:
    """In-place smoothing: neighbours read what others write."""
    i = cuda.grid(1)
    if i < x.shape[0] - 1:
        x[i] = (x[i] + x[i + 1]) * float32(0.5)


def lost_update(x: Any, out: Any) -> None:
    i = cuda.grid(1)
    if i < x.shape[0]:
        out[0] += x[i]


def divergent_barrier(x: Any, y: Any) -> None:
    s = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    if t < 40:
        s[t] = x[t]
        cuda.syncthreads()
        y[t] = s[39 - t]
    else:
        y[t] = x[t]
        cuda.syncthreads()


def divergent_shfl(x: Any, y: Any) -> None:
    """Both sides of a branch name the whole warp: neither group ever sees the other arrive."""
    t = cuda.threadIdx.x
    if t < 16:
        y[t] = cuda.shfl_down_sync(0xFFFFFFFF, x[t], 8)
    else:
        y[t] = cuda.shfl_xor_sync(0xFFFFFFFF, x[t] * x[t], 4) + float32(1)


def partial_shfl(x: Any, y: Any) -> None:
    t = cuda.threadIdx.x
    if t < 16:
        y[t] = cuda.shfl_down_sync(0xFFFFFFFF, x[t], 8)


def misaligned(x: Any, y: Any) -> None:
    buf = cuda.shared.array(130, float32)
    t = cuda.threadIdx.x
    cp_async16(buf, t * 4 + 1, x, t * 4)
    cp_commit()
    cp_wait0()
    y[t] = buf[t * 4 + 1]
