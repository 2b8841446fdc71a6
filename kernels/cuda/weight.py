"""Gradient by weight as one matrix product in tiles of shared memory: float32, the sum split.

    gw[k, (r, s, c)] = sum over output pixels of gy[pixel, k] * x[pixel at (r, s), c]

                     x  16 x bn              a block makes bm x bn of gw and sums 16 pixels a step;
                    +-----------+            both matrices are rows of pixels, channels adjacent,
     gy 16 x bm     +-----------+            so that both are copied 16 bytes at a time and lie in
                    +-----------+            shared memory as they are multiplied
         +----+     | 32 | .... |            a warp owns 32 x 64 of it, a thread 8 x 8: rows
         |----|     |----+------|            4*(lane//8) + 0..3 and those plus 16, columns
         |    |     | x  |      |            4*(lane%8) + 0..3 and those plus 32
         +----+     | 64 | .... |

    grid.x  tiles of k x tiles of (r, s, c), the latter fastest;  grid.y  groups;  grid.z  splits
    shared  3 stages of gy (16 rows of 4*bm bytes) and x (16 rows of 4*bn bytes)

A column (r, s, c) stays with its thread, so only the pixel changes from step to step. The pixels
are split over grid.z, each part sums into an array of its own, and `layout.scatter` adds the parts
up in order, in the weight's own layout: the same bits every time, on one kind of GPU.
gy and x are channels-last with channels in fours (`layout.py` packs what is not).
"""

from collections.abc import Callable
from math import prod
from typing import Any

from numba import cuda, types

from gpuconv.kernels.cuda.compiler import F32, I32, Kernel
from gpuconv.kernels.cuda.layout import SCATTER, images, up
from gpuconv.kernels.cuda.plan import Plan, blocks
from gpuconv.kernels.cuda.product import cycles, parts_of
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
    lds4,
    nothing,
    reciprocal,
    rem,
    shared,
    store4,
    thread_again,
    wait,
    within,
)
from gpuconv.kernels.cuda.tiled import OLD, STAGES, STEP, Config

CONFIGS = (Config(128, 128), Config(64, 64))
LONG = 1024  # steps: with more products in one sequence, rounding errors outgrow array code's


def kernel(config: Config, asynchronous: bool = True) -> Kernel:
    """The kernel of a tile; `asynchronous` copies need sm_80."""
    name = f"grad_weight_{config}{'' if asynchronous else '_sm75'}"
    constants = (("bm", config.bm), ("bn", config.bn), ("asynchronous", asynchronous))
    shared_bytes = STAGES * (config.bm + config.bn) * STEP * 4
    return Kernel(
        name, _grad_weight, constants, config.threads, 512 // config.threads, shared_bytes
    )


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    return [kernel(c, a) for c in CONFIGS for a in (True, False)]


def choose(spec: Any, sms: int) -> tuple[Config, int, float]:
    """The tile, into how many parts the pixels are split, and the `cycles` that takes.

    No part is longer than `LONG` where the parts' memory allows it.
    """
    pixels = spec.y_shape[0] * prod(spec.y_shape[2:])
    rows, columns = spec.w_shape[0] // spec.groups, up(spec.w_shape[1], 4) * prod(spec.kernel)
    steps, size = -(-pixels // STEP), spec.groups * rows * columns
    most = max(512, 2 * steps // LONG)  # parts are added up one after another

    def tiles(config: Config) -> int:
        return -(-rows // config.bm) * -(-columns // config.bn) * spec.groups

    candidates = [
        (
            config,
            parts_of(steps, splits),
            cycles(tiles(config), steps, config, splits, size, sms),
        )
        for config in CONFIGS
        for splits in (2**i for i in range(14))
        if splits <= min(max(1, steps // 8), most) and splits * size < 1 << 28
    ]
    return min(candidates, key=lambda found: (max(-(-steps // found[1]), LONG), found[2]))


def grad_weight(
    device: Any, spec: Any, channels_last: bool, gy_channels_last: bool, tile: Any = None
) -> Callable[..., None]:
    """run(gy, x, gw): gw, contiguous (K, C/groups, R, S), of gy and x in a memory format each."""
    config, splits = tile or choose(spec, device.sms)[:2]
    plan = Plan("gy", "x", "gw")
    y_wide, gy = images(plan, "gy", spec.y_shape, gy_channels_last)
    x_wide, x = images(plan, "x", spec.x_shape, channels_last)
    pixels = spec.y_shape[0] * prod(spec.y_shape[2:])
    # With one group the padding channels are columns and rows of their own, of zeros.
    rows = y_wide // spec.groups
    inputs = x_wide // spec.groups
    taps = prod(spec.kernel)
    columns = inputs * taps
    steps = -(-pixels // (STEP * splits))
    splits = -(-pixels // (steps * STEP))
    across = -(-columns // config.bn)
    c_factor, c_shift = reciprocal(inputs)
    s_factor, s_shift = reciprocal(spec.kernel[1])
    p_factor, p_shift = reciprocal(spec.y_shape[2])
    q_factor, q_shift = reciprocal(spec.y_shape[3])
    size = spec.groups * rows * columns
    parts = plan.own(splits * size)
    plan.launch(
        kernel(config, device.arch not in OLD),
        (-(-rows // config.bm) * across, spec.groups, splits),
        gy,
        x,
        parts,
        pixels=pixels,
        steps=steps,
        tiles_n=across,
        rows=rows,
        columns=columns,
        slab=size,
        YC=y_wide,
        XC=x_wide,
        C=inputs,
        c_factor=c_factor,
        c_shift=c_shift,
        S=spec.kernel[1],
        s_factor=s_factor,
        s_shift=s_shift,
        H=spec.x_shape[2],
        W=spec.x_shape[3],
        P=spec.y_shape[2],
        p_factor=p_factor,
        p_shift=p_shift,
        Q=spec.y_shape[3],
        q_factor=q_factor,
        q_shift=q_shift,
        stride_h=spec.stride[0],
        stride_w=spec.stride[1],
        pad_h=spec.padding[0][0],
        pad_w=spec.padding[1][0],
        dil_h=spec.dilation[0],
        dil_w=spec.dilation[1],
    )
    plan.launch(
        SCATTER,
        blocks(size, SCATTER.threads),
        parts,
        "gw",
        total=size,
        slabs=splits,
        rows=rows,
        K=spec.w_shape[0] // spec.groups,
        C=spec.w_shape[1],
        taps=taps,
        new_c=inputs,
    )
    return device.sequence(plan)


def _grad_weight(bm: int, bn: int, asynchronous: bool) -> Callable[..., None]:
    threads = bm * bn // 64
    wide = bn // 64  # warps side by side
    a_copies, b_copies = STEP * bm // 4 // threads, STEP * bn // 4 // threads
    a_step, b_step = threads * 4 // bm, threads * 4 // bn  # pixels between two copies of a thread
    a_bytes = bm * STEP * 4
    stage_bytes = a_bytes + bn * STEP * 4
    copy = copy16 if asynchronous else copy16_sync
    close = commit if asynchronous else nothing
    await_one = wait(STAGES - 2) if asynchronous else nothing
    await_all = wait(0) if asynchronous else nothing
    zero = types.float32(0)

    def grad_weight(
        gy: F32, x: F32, parts: F32,
        pixels: I32, steps: I32, tiles_n: I32, rows: I32, columns: I32, slab: I32,
        YC: I32, XC: I32, C: I32, c_factor: I32, c_shift: I32, S: I32, s_factor: I32, s_shift: I32,
        H: I32, W: I32, P: I32, p_factor: I32, p_shift: I32, Q: I32, q_factor: I32, q_shift: I32,
        stride_h: I32, stride_w: I32, pad_h: I32, pad_w: I32, dil_h: I32, dil_w: I32,
    ) -> None:  # fmt: skip
        me, group = i32(cuda.threadIdx.x), i32(cuda.blockIdx.y)
        m0 = i32(div(cuda.blockIdx.x, tiles_n) * bm)
        n0 = i32(rem(cuda.blockIdx.x, tiles_n) * bn)
        smem = shared()
        first = i32(cuda.blockIdx.z * steps * STEP)
        end = i32(min(first + steps * STEP, pixels))
        # This thread copies 4 channels of gy of the pixels a_pixel, a_pixel + a_step, ...
        a_column, a_row = i32(me % (bm // 4) * 4), i32(me // (bm // 4))
        a_pixel = i32(first + a_row if m0 + a_column < rows else pixels)
        a_from = i32((first + a_row) * YC + group * rows + m0 + a_column)
        a_to = i32(smem + (a_row * bm + a_column) * 4)
        # ... and 4 channels of one tap of x of the pixels b_pixel, ...
        b_column, b_row = i32(me % (bn // 4) * 4), i32(me // (bn // 4))
        b_to = i32(smem + a_bytes + (b_row * bn + b_column) * 4)
        b_pixel = i32(first + b_row if n0 + b_column < columns else pixels)
        tap = divide(i32(n0 + b_column), c_factor, c_shift)
        c = i32(n0 + b_column - tap * C)
        r = divide(tap, s_factor, s_shift)
        top, left = i32(r * dil_h - pad_h), i32((tap - r * S) * dil_w - pad_w)
        c = i32(group * C + c)

        lane, warp = i32(me & 31), i32(me >> 5)
        a_at = i32(smem + ((warp // wide) * 32 + (lane >> 3) * 4) * 4)
        b_at = i32(smem + a_bytes + ((warp % wide) * 64 + (lane & 7) * 4) * 4)
        acc = cuda.local.array(64, types.float32)
        for i in range(64):
            acc[i] = zero
        a = cuda.local.array(16, types.float32)
        b = cuda.local.array(16, types.float32)

        here = i32((end - first + STEP - 1) >> 4)
        loading, stage_in, stage = i32(0), i32(0), i32(0)
        done = i32(1 - STAGES)  # of the steps, those multiplied; the first rounds only copy
        while done < here:
            if done >= 0:
                await_one()
                barrier()
            if loading < here:
                for i in range(a_copies):
                    inside = i32(a_pixel + i * a_step) < end
                    at = i32(a_from + i * a_step * YC) if inside else i32(0)
                    to = i32(a_to + stage_in + i * a_step * bm * 4)
                    copy(to, gy, at, i32(16 if inside else 0))
                for i in range(b_copies):
                    pixel = i32(b_pixel + i * b_step)
                    rest = divide(pixel, q_factor, q_shift)
                    n = divide(rest, p_factor, p_shift)
                    h = i32((rest - n * P) * stride_h + top)
                    v = i32((pixel - rest * Q) * stride_w + left)
                    inside = within(h, H) & within(v, W) & (pixel < end)
                    at = i32(((n * H + h) * W + v) * XC + c) if inside else i32(0)
                    to = i32(b_to + stage_in + i * b_step * bn * 4)
                    copy(to, x, at, i32(16 if inside else 0))
                a_pixel, b_pixel = i32(a_pixel + STEP), i32(b_pixel + STEP)
                a_from = i32(a_from + STEP * YC)
                stage_in = i32(stage_in + stage_bytes)
                if stage_in == STAGES * stage_bytes:
                    stage_in = i32(0)
            close()
            loading = i32(loading + 1)
            if done >= 0:
                for four in range(4):
                    for k in range(4):
                        # Buffers indexed by k: for their sake the compiler unrolls this loop.
                        own, pixel = (k & 1) * 8, i32(four * 4 + k)
                        for half in range(2):
                            v4 = lds4(i32(a_at + stage + pixel * bm * 4 + half * 64))
                            w4 = lds4(i32(b_at + stage + pixel * bn * 4 + half * 128))
                            for j in range(4):
                                a[own + half * 4 + j] = v4[j]
                                b[own + half * 4 + j] = w4[j]
                        for i in range(8):
                            for j in range(8):
                                acc[i * 8 + j] += a[own + i] * b[own + j]
                stage = i32(stage + stage_bytes)
                if stage == STAGES * stage_bytes:
                    stage = i32(0)
            done = i32(done + 1)
        await_all()

        # All numbered anew: what is not kept through the loop above leaves registers to it.
        me, tile, group = thread_again(), block_again(), block_y_again()
        lane, warp = i32(me & 31), i32(me >> 5)
        k0 = i32(div(tile, tiles_n) * bm + (warp // wide) * 32 + (lane >> 3) * 4)
        j0 = i32(rem(tile, tiles_n) * bn + (warp % wide) * 64 + (lane & 7) * 4)
        out = i32(block_z_again() * slab + group * rows * columns)
        for i in range(8):
            k = i32(k0 + (i // 4) * 16 + i % 4)
            for half in range(2):
                j = i32(j0 + half * 32)
                if k < rows and j < columns:
                    o = i * 8 + half * 4
                    at = i32(out + k * columns + j)
                    store4(parts, at, acc[o], acc[o + 1], acc[o + 2], acc[o + 3])

    return grad_weight
