"""y = x w^T + b of a single row or two: the linear layer at batch 1, which reads w only once.

    w[j]    ---------------->  k        vectors along k, `LINES` rows of w at a time (and in
    w[j+1]  ---------------->           `LINES` sums), so that w need not be packed: its bytes
    ...                                 are what the call waits for
    x[i]    ---------------->

A task is some rows of w. Sums are over the lanes of a vector first, then of the vector's halves.
"""

from collections.abc import Callable
from typing import Any

from gpuconv.kernels.cpu.compiler import I64, Data, Kernel

LINES = 4
TASKS = 32
MOST_ROWS = 2  # of x; with more, packing pays
SMALL = 100_000  # multiply-adds below which one thread is as quick


def _dots(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import address, fma, lanes, load, load_part, splat, total

    count = lanes(dtype)

    def dots(
        task: I64, thread: I64, x: Data, w: Data, bias: Data, y: Data, rows: I64, n: I64, k: I64,
        block: I64,
    ) -> None:  # fmt: skip
        whole = k - k % count
        end = min((task + 1) * block, n)
        for start in range(task * block, end, LINES):
            # A last group that does not fit takes its last row several times.
            w0 = w + start * k
            w1 = w + min(start + 1, end - 1) * k
            w2 = w + min(start + 2, end - 1) * k
            w3 = w + min(start + 3, end - 1) * k
            for i in range(rows):
                at = x + i * k
                s0, s1, s2, s3 = splat(x, 0), splat(x, 0), splat(x, 0), splat(x, 0)
                for c in range(0, whole, count):
                    value = load(at + c)
                    s0 = fma(value, load(w0 + c), s0)
                    s1 = fma(value, load(w1 + c), s1)
                    s2 = fma(value, load(w2 + c), s2)
                    s3 = fma(value, load(w3 + c), s3)
                if whole < k:
                    left = k - whole
                    value = load_part(at + whole, left)
                    s0 = fma(value, load_part(w0 + whole, left), s0)
                    s1 = fma(value, load_part(w1 + whole, left), s1)
                    s2 = fma(value, load_part(w2 + whole, left), s2)
                    s3 = fma(value, load_part(w3 + whole, left), s3)
                out = y + (i * n + start)
                out[0] = total(s0)
                if start + 1 < end:
                    out[1] = total(s1)
                if start + 2 < end:
                    out[2] = total(s2)
                if start + 3 < end:
                    out[3] = total(s3)
                if address(bias) != 0:
                    for j in range(min(end - start, LINES)):
                        out[j] = out[j] + bias[start + j]

    return dots


def forward(device: Any, rows: int, inside: int, outside: int, dtype: str) -> Callable[..., None]:
    """run(x, w, b, y): x (rows, in), w (out, in), b (out) or None, y (rows, out)."""
    block = -(-outside // (LINES * TASKS)) * LINES
    run: Callable[..., None] = device.prepare(
        Kernel(f"dots_{dtype}", _dots, (("dtype", dtype),)),
        -(-outside // block),
        several=rows * inside * outside >= SMALL,
        rows=rows, n=outside, k=inside, block=block,
    )  # fmt: skip
    return run
