"""Convolution as one matrix product in tiles of shared memory: float32 on the ordinary cores.

The matrices are never built ("implicit GEMM"). Rows of A are output pixels, its columns k the
inputs of a pixel, k = (r*S + s)*C + c; B is the weight, packed as (k, output channel):

                  B  16 x bn                 a block makes bm x bn of the output, in steps of 16
                 +-----------+               columns of A: its threads copy the next tiles from
                 |    |      |               global to shared memory (cp.async, 3 stages) while they
      A bm x 16  +-----------+               multiply the present ones
     +----+      +-----------+
     |    |      | 32 | .... |               a warp owns 32 x 64 of it, a thread 8 x 8: pixels
     |----|      | x  |      |               lane//8 + 4*i, channels 4*(lane%8) + 0..3 and those
     |    |      | 64 | .... |               plus 32
     +----+      +-----------+

    grid.x  tiles of pixels x tiles of channels, channels fastest;  grid.y  groups;  grid.z  splits
    shared  3 stages of A (bm rows of 64 bytes) and B (16 rows of 4*bn bytes)

In A, the 16-byte chunk j of row i lies at place j ^ (i//2 % 4): eight rows' reads then meet all
banks. What is outside the image, or past the end of k, is copied as zeros (a copy of 0 bytes).

x is channels-last with a multiple of 4 channels a group; `product.py` says what is launched. The
result is stored channels-last, or as NCHW through shared memory. With several splits, each sums a
part of k into an array of its own, and `layout.reduce` adds them up in order: the same bits every
time.
"""

from collections.abc import Callable
from dataclasses import dataclass

from numba import cuda, types

from gpuconv.kernels.cuda.compiler import F32, I32, Kernel
from gpuconv.kernels.cuda.ptx import (
    barrier,
    block_again,
    block_y_again,
    block_z_again,
    commit,
    copy16,
    copy16_sync,
    div,
    divide,
    i32,
    lds,
    lds4,
    load4_nc,
    load_nc,
    nothing,
    rem,
    shared,
    store,
    store4,
    sts,
    thread_again,
    wait,
    within,
)

OLD = ("sm_70", "sm_72", "sm_75")  # without asynchronous copies
STEP = 16  # columns of A a tile
STAGES = 3
FAR = 1 << 28  # a row that is in no image
STAGED = 32 * 33 * 4  # bytes in which a warp turns 32 pixels x 32 channels around


@dataclass(frozen=True)
class Config:
    """A tile: bm output pixels by bn output channels."""

    bm: int
    bn: int

    @property
    def threads(self) -> int:
        return self.bm * self.bn // 64

    @property
    def shared(self) -> int:
        return max(STAGES * (self.bm + self.bn) * STEP * 4, self.threads // 32 * STAGED)

    def __str__(self) -> str:
        return f"{self.bm}x{self.bn}"


CONFIGS = (Config(128, 128), Config(128, 64), Config(64, 64))


def kernel(config: Config, nchw: bool, asynchronous: bool = True) -> Kernel:
    """The kernel of a tile; `asynchronous` copies need sm_80."""
    name = f"tiled_{config}_{'nchw' if nchw else 'nhwc'}{'' if asynchronous else '_sm75'}"
    constants = (
        ("bm", config.bm),
        ("bn", config.bn),
        ("nchw", nchw),
        ("asynchronous", asynchronous),
    )
    # 128 registers a thread: with more, an SM would hold only one block of 256 threads.
    blocks = 512 // config.threads
    return Kernel(name, _tiled, constants, config.threads, blocks, config.shared)


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    return [kernel(c, nchw, a) for c in CONFIGS for nchw in (False, True) for a in (True, False)]


def _tiled(bm: int, bn: int, nchw: bool, asynchronous: bool) -> Callable[..., None]:
    threads = bm * bn // 64
    wide = bn // 64  # warps side by side
    a_copies, b_copies = bm * 4 // threads, STEP * bn // 4 // threads
    a_step, b_step = threads // 4, threads * 4 // bn  # rows between two copies of a thread
    a_bytes = bm * STEP * 4
    stage_bytes = a_bytes + bn * STEP * 4
    copy = copy16 if asynchronous else copy16_sync
    close = commit if asynchronous else nothing
    await_one = wait(STAGES - 2) if asynchronous else nothing
    await_all = wait(0) if asynchronous else nothing
    zero = types.float32(0)

    def tiled(
        x: F32, w: F32, b: F32, add: F32, y: F32,
        has_bias: I32, has_add: I32, relu: I32, vectors: I32, slab: I32,
        M: I32, KD: I32, all_tiles: I32, tiles: I32, tiles_n: I32,
        H: I32, W: I32, XC: I32, C: I32, c_factor: I32, c_shift: I32,
        S: I32, s_factor: I32, s_shift: I32,
        P: I32, Q: I32, stride_h: I32, stride_w: I32, off_h: I32, off_w: I32,
        dil_h: I32, dil_w: I32, WK: I32, K: I32, YK: I32,
        YH: I32, YW: I32, step_h: I32, step_w: I32, first_h: I32, first_w: I32,
    ) -> None:  # fmt: skip
        me, group = i32(cuda.threadIdx.x), i32(cuda.blockIdx.y)
        m0 = i32(div(cuda.blockIdx.x, tiles_n) * bm)
        n0 = i32(rem(cuda.blockIdx.x, tiles_n) * bn)
        # This thread copies chunk `chunk` (4 channels) of A's rows a_row + i * a_step ...
        chunk, a_row = i32(me & 3), i32(me >> 2)
        top = cuda.local.array(a_copies, types.int32)
        left = cuda.local.array(a_copies, types.int32)
        base = cuda.local.array(a_copies, types.int32)
        for i in range(a_copies):
            m = i32(m0 + a_row + i * a_step)
            q, rest = rem(m, Q), div(m, Q)
            p, n = rem(rest, P), div(rest, P)
            # Rows past the last pixel are far outside of the image, so that all copies are zeros.
            top[i] = i32(p * stride_h + off_h if m < M else FAR)
            left[i] = i32(q * stride_w + off_w)
            base[i] = i32(((n * H + top[i]) * W + left[i]) * XC + group * C)
        # ... and chunk `column` of B's rows b_row + i * b_step.
        column, b_row = i32(me % (bn // 4) * 4), i32(me // (bn // 4))
        smem = shared()
        a_to = i32(smem + a_row * 64 + ((chunk ^ ((a_row >> 1) & 3)) << 4))
        b_to = i32(smem + a_bytes + (b_row * bn + column) * 4)
        k_first = i32(cuda.blockIdx.z * tiles * STEP)
        b_from = i32((group * all_tiles * STEP + k_first + b_row) * WK + n0 + column)
        k_a = i32(k_first + chunk * 4)

        # What it multiplies: its warp's 32 x 64, its own 8 x 8.
        lane, warp = i32(me & 31), i32(me >> 5)
        row, col = i32((warp // wide) * 32 + (lane >> 3)), i32((warp % wide) * 64 + (lane & 7) * 4)
        odd = i32((lane >> 4) & 1)
        a_even = i32(smem + row * 64 + odd * 16)
        a_odd = i32(smem + row * 64 + (1 - odd) * 16)
        b_at = i32(smem + a_bytes + col * 4)
        acc = cuda.local.array(64, types.float32)
        for i in range(64):
            acc[i] = zero
        a = cuda.local.array(32, types.float32)
        bb = cuda.local.array(8, types.float32)

        loading, stage_in, stage = i32(0), i32(0), i32(0)
        here = i32(min(tiles, all_tiles - cuda.blockIdx.z * tiles))
        done = i32(1 - STAGES)  # of the tiles, those multiplied; the first rounds only copy
        while done < here:
            if done >= 0:
                await_one()
                barrier()
            if loading < here:
                rs = divide(k_a, c_factor, c_shift)
                c = i32(k_a - rs * C)
                r = divide(rs, s_factor, s_shift)
                s = i32(rs - r * S)
                dh, dw = i32(r * dil_h if k_a < KD else FAR), i32(s * dil_w)
                delta = i32((dh * W + dw) * XC + c)
                for i in range(a_copies):
                    inside = within(i32(top[i] + dh), H) & within(i32(left[i] + dw), W)
                    at = i32(base[i] + delta) if inside else i32(0)
                    size = i32(16 if inside else 0)
                    copy(i32(a_to + stage_in + i * a_step * 64), x, at, size)
                for i in range(b_copies):
                    at = i32(b_from + i * b_step * WK)
                    copy(i32(b_to + stage_in + i * b_step * bn * 4), w, at, i32(16))
                k_a, b_from = i32(k_a + STEP), i32(b_from + STEP * WK)
                stage_in = i32(stage_in + stage_bytes)
                if stage_in == STAGES * stage_bytes:
                    stage_in = i32(0)
            close()
            loading = i32(loading + 1)
            if done >= 0:
                for four in range(4):
                    for i in range(8):
                        place = four ^ (2 * (i & 1))
                        start = a_odd if place & 1 else a_even
                        v4 = lds4(i32(start + stage + i * 256 + (place & 2) * 16))
                        for j in range(4):
                            a[i * 4 + j] = v4[j]
                    for k in range(4):
                        for half in range(2):
                            v4 = lds4(i32(b_at + stage + (four * 4 + k) * bn * 4 + half * 128))
                            for j in range(4):
                                bb[half * 4 + j] = v4[j]
                        for i in range(8):
                            for j in range(8):
                                acc[i * 8 + j] += a[i * 4 + k] * bb[j]
                stage = i32(stage + stage_bytes)
                if stage == STAGES * stage_bytes:
                    stage = i32(0)
            done = i32(done + 1)
        await_all()

        # From sums to output: channel n0 + col + 32 * half + j of pixel m0 + row + 4 * i. Each warp
        # takes its 32 channels at a time through shared memory: in NCHW, lanes become pixels.
        barrier()
        # All numbered anew: what is not kept through the loop above leaves registers to it.
        me = thread_again()
        lane, warp = i32(me & 31), i32(me >> 5)
        row, col = i32((warp // wide) * 32 + (lane >> 3)), i32((warp % wide) * 64 + (lane & 7) * 4)
        tile, group = block_again(), block_y_again()
        m0, n0 = i32(div(tile, tiles_n) * bm), i32(rem(tile, tiles_n) * bn)
        mine = i32(shared() + warp * STAGED)
        k0 = i32(n0 + (warp % wide) * 64)
        out = i32(block_z_again() * slab)
        to = i32(mine + ((lane >> 3) * 33 + (lane & 7) * 4) * 4)
        if nchw:
            m = i32(m0 + (warp // wide) * 32 + lane)
            q, rest = rem(m, Q), div(m, Q)
            p, n = rem(rest, P), div(rest, P)
            plane = i32(YH * YW)
            pixel = i32((p * step_h + first_h) * YW + q * step_w + first_w)
            pixel = i32((n * YK + group * K) * plane + pixel + out)
            for half in range(2):
                for i in range(8):
                    for j in range(4):
                        sts(i32(to + (i * 4 * 33 + j) * 4), acc[i * 8 + half * 4 + j])
                cuda.syncwarp()
                k, k_end = i32(k0 + half * 32), i32(min(k0 + half * 32 + 32, K))
                place, at = i32(mine + lane * 33 * 4), i32(pixel + k * plane)
                while k < k_end and m < M:
                    value = lds(place)
                    if has_bias:
                        value += load_nc(b, i32(group * K + k))
                    if has_add:
                        value += load_nc(add, at)
                    if relu:
                        value = zero if value < zero else value
                    store(y, at, value)
                    k, place, at = i32(k + 1), i32(place + 4), i32(at + plane)
                cuda.syncwarp()
        else:
            for half in range(2):
                for i in range(8):
                    for j in range(4):
                        # Not sts4: it wants sums in groups of registers, and the loop spills.
                        sts(i32(to + (i * 4 * 33 + j) * 4), acc[i * 8 + half * 4 + j])
                k = i32(n0 + col + half * 32)
                m, place = i32(m0 + row), to
                m_end = i32(min(m + 29, M)) if k < K else i32(0)
                while m < m_end:
                    q, rest = rem(m, Q), div(m, Q)
                    p, n = rem(rest, P), div(rest, P)
                    h, v = i32(p * step_h + first_h), i32(q * step_w + first_w)
                    at = i32(((n * YH + h) * YW + v) * YK + group * K + k + out)
                    v0, v1 = lds(place), lds(i32(place + 4))
                    v2, v3 = lds(i32(place + 8)), lds(i32(place + 12))
                    if has_bias:
                        bk, last = i32(group * K + k), i32(K - 1 - k)
                        v0 += load_nc(b, bk)
                        v1 += load_nc(b, i32(bk + min(last, 1)))
                        v2 += load_nc(b, i32(bk + min(last, 2)))
                        v3 += load_nc(b, i32(bk + min(last, 3)))
                    if vectors:
                        if has_add:
                            a4 = load4_nc(add, at)
                            v0, v1, v2, v3 = v0 + a4[0], v1 + a4[1], v2 + a4[2], v3 + a4[3]
                        if relu:
                            v0, v1, v2, v3 = (
                                zero if v0 < zero else v0,
                                zero if v1 < zero else v1,
                                zero if v2 < zero else v2,
                                zero if v3 < zero else v3,
                            )
                        store4(y, at, v0, v1, v2, v3)
                    else:
                        sts(place, v0)
                        sts(i32(place + 4), v1)
                        sts(i32(place + 8), v2)
                        sts(i32(place + 12), v3)
                        j = i32(0)
                        while j < 4 and k + j < K:
                            value = lds(i32(place + j * 4))
                            if has_add:
                                value += load_nc(add, i32(at + j))
                            if relu:
                                value = zero if value < zero else value
                            store(y, i32(at + j), value)
                            j = i32(j + 1)
                    m, place = i32(m + 4), i32(place + 4 * 33 * 4)

    return tiled
