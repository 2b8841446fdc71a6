"""Planes copied with their padding, by stride into phases, for depthwise convolution in NCHW.

This file imports Numba; only kernels, while they are compiled, import it.
"""

from typing import Any

from numba import njit


@njit
def fill_tile(
    tile: Any,
    x: Any,
    row: int,
    rows: int,
    height: int,
    width: int,
    left: int,
    step: int,
    pitch: int,
) -> None:
    """Rows row .. row + rows of the plane x, with zeros around it, each in `step` phases.

    Phase f of a row is `pitch` numbers: columns left + f, left + f + step, and so on.
    """
    for i in range(rows):
        h = row + i
        for f in range(step):
            here = tile + (i * step + f) * pitch
            first = pitch
            end = pitch
            if 0 <= h < height:
                first = min(pitch, max(0, (step - 1 - left - f) // step))
                end = min(pitch, max(first, (width - left - f + step - 1) // step))
            source = x + (h * width + left + f)
            for j in range(first):
                here[j] = 0.0
            if step == 1:
                for j in range(first, end):
                    here[j] = source[j]
            elif step == 2:
                for j in range(first, end):
                    here[j] = source[2 * j]
            else:
                for j in range(first, end):
                    here[j] = source[step * j]
            for j in range(end, pitch):
                here[j] = 0.0
