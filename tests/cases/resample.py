"""Interpolation and pixel shuffling: every mode and argument, every dimension."""

from collections.abc import Sequence
from typing import Any

from gpuconv import ops
from gpuconv.ops import resample
from tests.cases.case import Case

# name, x, size, scale_factor; each is run in all modes of its dimension
ROWS: list[tuple[str, Sequence[int], Any, Any]] = [
    ("size", (2, 3, 4, 5), (9, 7), None),
    ("one-size", (1, 2, 4, 5), 8, None),
    ("smaller", (1, 2, 9, 8), (4, 3), None),
    ("up-and-down", (1, 2, 5, 9), (11, 4), None),
    ("to-one-pixel", (1, 2, 5, 4), 1, None),
    ("of-one-pixel", (2, 3, 1, 1), (3, 4), None),
    ("same-size", (1, 2, 4, 5), (4, 5), None),
    ("same-rows", (1, 2, 4, 5), (4, 8), None),
    ("half-size", (1, 2, 8, 6), (4, 3), None),
    ("twice", (2, 3, 4, 5), None, 2),
    ("by-2-3", (1, 2, 4, 3), None, (2, 3.0)),
    ("by-fractions", (1, 2, 5, 7), None, (2.5, 0.6)),
    ("by-1.7", (1, 2, 7, 6), None, 1.7),
    ("by-0.3", (1, 2, 7, 11), None, 0.3),
    ("batch-0", (0, 3, 4, 5), (7, 8), None),
    ("1d", (2, 3, 7), 10, None),
    ("1d-smaller", (2, 3, 11), 4, None),
    ("1d-by-2.4", (2, 3, 6), None, 2.4),
    ("3d", (1, 2, 3, 4, 5), (5, 3, 7), None),
    ("3d-by", (1, 2, 3, 4, 3), None, (2, 0.5, 1.5)),
    # Factors that are not 1 or 2, but whose results have the input's size or twice that.
    ("by-1.1", (1, 2, 5, 9), None, 1.1),
    ("by-2.1", (2, 2, 5, 7), None, 2.1),
    ("by-1.15-2.15", (1, 2, 6, 6), None, (1.15, 2.15)),
    ("by-2.1-1.5", (1, 2, 6, 5), None, (2.1, 1.5)),
    ("1d-by-1.1", (2, 3, 9), None, 1.1),
    ("1d-by-2.1", (2, 3, 7), None, 2.1),
]
# On two or three axes torch takes these for factors of 1 and 2 in "nearest", but not in every path
# of its forward pass: on a contiguous input not in 3-D, nor in 2-D where height and width of the
# result add up to more than 128. It does with four channels or more that come last, as here, and
# its backward pass does always.
LAST_ROWS: list[tuple[str, Sequence[int], Any, Any]] = [
    ("2d-by-2.02", (1, 4, 40, 30), None, (2.02, 2.02)),
    ("3d-by-1.1", (1, 4, 3, 5, 4), None, 1.1),
    ("3d-by-2.1", (1, 4, 4, 3, 5), None, 2.1),
    ("3d-by-1.2-2.1-1.5", (1, 4, 3, 5, 4), None, (1.2, 2.1, 1.5)),
]
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def cases(row: tuple[str, Sequence[int], Any, Any], last: bool = False) -> list[Case]:
    """In all modes; with `last`, on images that lie in memory as (N, *in, C)."""
    name, xs, size, scale = row
    nd = len(xs) - 2
    order = (0, nd + 1, *range(1, nd + 1))
    shape = (xs[0], *xs[2:], xs[1]) if last else tuple(xs)

    def case(mode: str, corners: bool) -> Case:
        def ours(x: Any) -> Any:
            x = ops.transpose(x, order) if last else x
            return resample.interpolate(x, size, scale, mode, corners)

        def peer(torch: Any, x: Any) -> Any:
            x = x.permute(order) if last else x
            aligned = None if mode == "nearest" else corners
            if mode == "nearest" and nd == 1 and scale is not None:
                # torch's backward pass takes other pixels than its forward pass, see LAST_ROWS.
                ramp = torch.arange(xs[2], dtype=torch.float64).reshape(1, 1, -1)
                chosen = torch.nn.functional.interpolate(ramp, None, scale, mode)
                return x[..., chosen.long().flatten()]
            return torch.nn.functional.interpolate(x, size, scale, mode, aligned)

        label = f"{mode}{'-corners' if corners else ''}{'-channels-last' if last else ''}"
        return Case(f"interpolate-{name}-{label}", ours, peer, (shape,))

    return [case("nearest", False), case(LINEAR[nd], False), case(LINEAR[nd], True)]


SHUFFLED: list[tuple[str, Sequence[int], int]] = [
    ("2", (2, 8, 3, 4), 2),
    ("3", (1, 9, 2, 3), 3),
    ("1", (1, 2, 3, 4), 1),
    ("one-pixel", (2, 4, 1, 1), 2),
]


def shuffle_case(row: tuple[str, Sequence[int], int]) -> Case:
    name, xs, factor = row
    return Case(
        f"pixel-shuffle-{name}",
        lambda x: resample.pixel_shuffle(x, factor),
        lambda torch, x: torch.nn.functional.pixel_shuffle(x, factor),
        (tuple(xs),),
    )


def unshuffle_case(row: tuple[str, Sequence[int], int]) -> Case:
    name, (n, c, h, w), factor = row
    return Case(
        f"pixel-unshuffle-{name}",
        lambda x: resample.pixel_unshuffle(x, factor),
        lambda torch, x: torch.nn.functional.pixel_unshuffle(x, factor),
        ((n, c, h * factor, w * factor),),
    )


CASES = [
    *(case for row in ROWS for case in cases(row)),
    *(case for row in ROWS if row[0] in ("size", "1d", "3d") for case in cases(row, last=True)),
    *(case for row in LAST_ROWS for case in cases(row, last=True)),
    *(shuffle_case(row) for row in SHUFFLED),
    *(unshuffle_case(row) for row in SHUFFLED),
]
