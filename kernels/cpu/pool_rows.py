"""A row of an image and the phases of its columns, for `gpuconv.kernels.cpu.pool`.

With a stride of 2 and 1 pixel of padding, columns 0 1 2 3 4 5 lie as

    phase 0:  . 1 3 5        phase 1:  0 2 4

`area` numbers apart: column w is number (w + before) // stride of phase (w + before) % stride.
"""

from typing import Any


def movers(dtype: str) -> tuple[Any, Any]:
    """spread and collect: a row of an image to the phases of its columns, and back."""
    import numba

    from gpuconv.kernels.cpu.choose import evens, odds, zip_high, zip_low
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, store, store_part

    width = lanes(dtype)

    @numba.njit(inline="always")
    def spread(row: Any, to: Any, area: int, count: int, before: int, stride: int) -> None:
        if stride == 1:
            whole = count // width * width
            for w in range(0, whole, width):
                store(to + (before + w), load(row + w))
            if whole < count:
                value = load_part(row + whole, count - whole)
                store_part(to + (before + whole), value, count - whole)
        elif stride == 2:
            half = before >> 1
            odd = before & 1
            even_to = to + (odd * area + half)
            odd_to = to + ((1 - odd) * area + half + odd)
            whole = count // (2 * width) * (2 * width)
            for w in range(0, whole, 2 * width):
                a, b = load(row + w), load(row + (w + width))
                store(even_to + (w >> 1), evens(a, b))
                store(odd_to + (w >> 1), odds(a, b))
            if whole < count:
                left, at = count - whole, whole >> 1
                a = load_part(row + whole, left)
                b = load_part(row + (whole + width), left - width)
                store_part(even_to + at, evens(a, b), (left + 1) >> 1)
                store_part(odd_to + at, odds(a, b), left >> 1)
        else:
            for phase in range(stride):
                w = (phase - before) % stride
                at = phase * area + (w + before) // stride
                while w < count:
                    to[at] = row[w]
                    at += 1
                    w += stride

    @numba.njit(inline="always")
    def collect(row: Any, of: Any, area: int, count: int, before: int, stride: int) -> None:
        if stride == 1:
            whole = count // width * width
            for w in range(0, whole, width):
                store(row + w, load(of + (before + w)))
            if whole < count:
                store_part(row + whole, load(of + (before + whole)), count - whole)
        elif stride == 2:
            half = before >> 1
            odd = before & 1
            even_of = of + (odd * area + half)
            odd_of = of + ((1 - odd) * area + half + odd)
            whole = count // (2 * width) * (2 * width)
            for w in range(0, whole, 2 * width):
                a, b = load(even_of + (w >> 1)), load(odd_of + (w >> 1))
                store(row + w, zip_low(a, b))
                store(row + (w + width), zip_high(a, b))
            if whole < count:
                left, at = count - whole, whole >> 1
                a, b = load(even_of + at), load(odd_of + at)
                store_part(row + whole, zip_low(a, b), left)
                store_part(row + (whole + width), zip_high(a, b), left - width)
        else:
            for phase in range(stride):
                w = (phase - before) % stride
                at = phase * area + (w + before) // stride
                while w < count:
                    row[w] = of[at]
                    at += 1
                    w += stride

    return spread, collect
