"""What goes around a tiled convolution: arrays in the order it wants, and split sums added up.

turn     (B, rows, cols) -> (B, cols, rows): an NCHW image as channels-last (rows: channels,
         cols: pixels), a weight as the matrix B of a forward pass (rows: k, cols: c r s).
         Blocks of 256 threads take tiles of 32 x 32 through shared memory, so that both sides
         are read and written along memory. grid: tiles of cols, tiles of rows, B
gather   a weight (K, C/groups, R, S) as the matrix B of a gradient by input: rows (tap, k),
         columns c, for the taps of one class. A thread a number
widen    channels-last with C channels -> with a multiple of 4, zeros in the new ones
reduce   y = sum of slabs, in order, + bias, + an array, ReLU. A thread a number
"""

from collections.abc import Callable

from numba import cuda, types

from gpuconv.kernels.cuda.compiler import F32, I32, Kernel
from gpuconv.kernels.cuda.plan import Plan, blocks
from gpuconv.kernels.cuda.ptx import barrier, div, i32, lds, load_nc, rem, shared, store, sts

THREADS = 256


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    return [TURN, GATHER, WIDEN, REDUCE, SCATTER]


def _turn() -> Callable[..., None]:
    zero = types.float32(0)

    def turn(
        x: F32, y: F32, rows: I32, cols: I32, new_rows: I32, new_cols: I32, taps: I32, inner: I32
    ) -> None:
        """y[b, order(j), i] = x[b, i, j], zero outside of x; y is (B, new_cols, new_rows).

        Column j = c * taps + tap goes to row tap * inner + c: with taps = 1 all stay in order.
        """
        lane, warp = i32(cuda.threadIdx.x & 31), i32(cuda.threadIdx.x >> 5)
        i0, j0 = i32(cuda.blockIdx.y * 32), i32(cuda.blockIdx.x * 32)
        smem = shared()
        image = i32(cuda.blockIdx.z * rows * cols)
        for step in range(4):
            i, j = i32(i0 + warp + 8 * step), i32(j0 + lane)
            value = load_nc(x, i32(image + i * cols + j)) if i < rows and j < cols else zero
            sts(i32(smem + ((warp + 8 * step) * 33 + lane) * 4), value)
        barrier()
        for step in range(4):
            i, j = i32(i0 + lane), i32(j0 + warp + 8 * step)
            if i < new_rows and j < new_cols:
                value = lds(i32(smem + (lane * 33 + warp + 8 * step) * 4))
                c = div(j, taps)
                to = i32(rem(j, taps) * inner + c) if c < inner else j
                store(y, i32((cuda.blockIdx.z * new_cols + to) * new_rows + i), value)

    return turn


def _gather() -> Callable[..., None]:
    zero = types.float32(0)

    def gather(
        w: F32, y: F32, total: I32, K: I32, C: I32, R: I32, S: I32,
        rows: I32, new_k: I32, new_c: I32, taps_w: I32, taps: I32,
        first_r: I32, first_s: I32, step_r: I32, step_s: I32,
    ) -> None:  # fmt: skip
        """y[g, tap * new_k + k, c] = w[g * K + k, c, r, s], zero outside; y is (., rows, new_c).

        Tap number t is r = first_r + t // taps_w * step_r, s = first_s + t % taps_w * step_s.
        """
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i >= total:
            return
        c, rest = rem(i, new_c), div(i, new_c)
        row, group = rem(rest, rows), div(rest, rows)
        k, tap = rem(row, new_k), div(row, new_k)
        value = zero
        if c < C and k < K and tap < taps:
            r = i32(first_r + div(tap, taps_w) * step_r)
            s = i32(first_s + rem(tap, taps_w) * step_s)
            value = load_nc(w, i32((((group * K + k) * C + c) * R + r) * S + s))
        store(y, i, value)

    return gather


def _widen() -> Callable[..., None]:
    zero = types.float32(0)

    def widen(x: F32, y: F32, total: I32, C: I32, new_c: I32) -> None:
        """y[p, c] = x[p, c] for c < C, else 0; y has new_c channels."""
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i < total:
            c, pixel = rem(i, new_c), div(i, new_c)
            store(y, i, load_nc(x, i32(pixel * C + c)) if c < C else zero)

    return widen


def _reduce() -> Callable[..., None]:
    zero = types.float32(0)

    def reduce(
        parts: F32, b: F32, add: F32, y: F32, total: I32, slabs: I32,
        has_bias: I32, has_add: I32, relu: I32, channels: I32, inner: I32,
    ) -> None:  # fmt: skip
        """y[i] = sum over z of parts[z, i], + b[i // inner % channels], + add[i]; ReLU."""
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i >= total:
            return
        value, at, z = load_nc(parts, i), i32(i + total), i32(1)
        while z < slabs:
            value += load_nc(parts, at)
            at, z = i32(at + total), i32(z + 1)
        if has_bias:
            value += load_nc(b, rem(div(i, inner), channels))
        if has_add:
            value += load_nc(add, i)
        if relu:
            value = zero if value < zero else value
        store(y, i, value)

    return reduce


def _scatter() -> Callable[..., None]:
    def scatter(
        parts: F32, gw: F32, total: I32, slabs: I32,
        rows: I32, K: I32, C: I32, taps: I32, new_c: I32,
    ) -> None:  # fmt: skip
        """gw[g * K + k, c, tap] = sum over z of parts[z, g, k, tap * new_c + c].

        Of the parts' `rows` and new_c channels, gw has the first K and C.
        """
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i >= total:
            return
        c, rest = rem(i, new_c), div(i, new_c)
        tap, rest = rem(rest, taps), div(rest, taps)
        k, group = rem(rest, rows), div(rest, rows)
        if c >= C or k >= K:
            return
        value, at, z = load_nc(parts, i), i32(i + total), i32(1)
        while z < slabs:
            value += load_nc(parts, at)
            at, z = i32(at + total), i32(z + 1)
        store(gw, i32(((group * K + k) * C + c) * taps + tap), value)

    return scatter


TURN = Kernel("layout_turn", _turn, (), THREADS, 1, 32 * 33 * 4)
GATHER = Kernel("layout_gather", _gather, (), THREADS)
WIDEN = Kernel("layout_widen", _widen, (), THREADS)
REDUCE = Kernel("layout_reduce", _reduce, (), THREADS)
SCATTER = Kernel("layout_scatter", _scatter, (), THREADS)


def up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple


def turn(
    plan: Plan,
    x: str,
    y: str,
    batch: int,
    rows: int,
    cols: int,
    new_rows: int,
    new_cols: int,
    taps: int = 1,
    inner: int = 0,
) -> None:
    """Launch `turn` from x (batch, rows, cols) to y (batch, new_cols, new_rows)."""
    plan.launch(
        TURN,
        (-(-new_cols // 32), -(-new_rows // 32), batch),
        x,
        y,
        rows=rows,
        cols=cols,
        new_rows=new_rows,
        new_cols=new_cols,
        taps=taps,
        inner=inner or new_cols,
    )


def images(plan: Plan, x: str, shape: tuple[int, ...], channels_last: bool) -> tuple[int, str]:
    """How many channels a channels-last copy of x (N, C, H, W) has, and the copy, launched.

    With a multiple of 4 channels in channels-last x itself is it.
    """
    n, c, h, w = shape
    wide = up(c, 4)
    if channels_last and wide == c:
        return c, x
    total = n * h * w * wide
    copy = plan.own(total)
    if channels_last:
        plan.launch(WIDEN, blocks(total, THREADS), x, copy, total=total, C=c, new_c=wide)
    else:
        turn(plan, x, copy, n, c, h * w, wide, h * w)
    return wide, copy


def reduction(
    plan: Plan,
    parts: str,
    b: str | None,
    add: str | None,
    y: str,
    total: int,
    slabs: int,
    channels: int,
    inner: int,
    relu: bool,
) -> None:
    """Launch `reduce`."""
    plan.launch(
        REDUCE,
        blocks(total, THREADS),
        parts,
        b,
        add,
        y,
        total=total,
        slabs=slabs,
        has_bias=b is not None,
        has_add=add is not None,
        relu=relu,
        channels=channels,
        inner=inner,
    )
