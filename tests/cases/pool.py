"""Pooling and unpooling: every argument, every dimension."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.ops import pool
from tests.cases.case import Case
from tests.cases.conv import explicit_pads

MAX = {1: pool.max_pool1d, 2: pool.max_pool2d, 3: pool.max_pool3d}
AVG = {1: pool.avg_pool1d, 2: pool.avg_pool2d, 3: pool.avg_pool3d}
UNPOOL = {1: pool.max_unpool1d, 2: pool.max_unpool2d, 3: pool.max_unpool3d}
ADAPTIVE_AVG = {
    1: pool.adaptive_avg_pool1d,
    2: pool.adaptive_avg_pool2d,
    3: pool.adaptive_avg_pool3d,
}
ADAPTIVE_MAX = {
    1: pool.adaptive_max_pool1d,
    2: pool.adaptive_max_pool2d,
    3: pool.adaptive_max_pool3d,
}

# name, x, kernel, stride, padding, dilation, ceil_mode; what torch cannot pad is padded for it
MAX_ROWS: list[tuple[str, Sequence[int], Any, Any, Any, Any, bool]] = [
    ("2x2", (2, 3, 6, 8), 2, None, 0, 1, False),
    ("2x2-rest", (2, 3, 7, 5), 2, None, 0, 1, False),
    ("2x2-rest-ceil", (2, 3, 7, 5), 2, None, 0, 1, True),
    ("3x3-stride2-pad1", (2, 3, 8, 7), 3, 2, 1, 1, False),
    ("3x3-stride2-pad1-ceil", (2, 3, 8, 7), 3, 2, 1, 1, True),
    ("3x3-stride1", (1, 2, 6, 6), 3, 1, 1, 1, False),
    ("1x1", (1, 2, 4, 3), 1, 1, 0, 1, False),
    ("1x1-stride3", (1, 2, 8, 7), 1, 3, 0, 1, False),
    ("2x3-stride-3-1", (2, 3, 8, 9), (2, 3), (3, 1), (1, 0), 1, False),
    ("stride-over-kernel", (1, 2, 9, 10), 2, 4, 0, 1, False),
    ("stride-over-kernel-ceil", (1, 2, 9, 10), 2, 4, 0, 1, True),
    ("ceil-starts-in-padding", (1, 2, 5, 6), 2, 2, 1, 1, True),
    ("ceil-wide-stride", (1, 1, 6, 7), 3, 4, 1, 1, True),
    ("dilated", (2, 2, 9, 8), 3, 2, 1, 2, False),
    ("dilated-2-3-ceil", (1, 2, 10, 11), (3, 2), (2, 3), (1, 0), (2, 3), True),
    ("one-pixel", (2, 3, 1, 1), 1, 1, 0, 1, False),
    ("one-pixel-pad", (2, 3, 1, 1), 3, 2, 1, 1, False),
    ("one-pixel-ceil", (2, 3, 1, 1), 2, 2, 0, 1, True),
    ("whole-image", (2, 3, 4, 5), (4, 5), None, 0, 1, False),
    ("one-window-cut", (2, 3, 4, 5), (3, 2), (9, 9), 0, 1, False),
    ("whole-image-pad", (2, 3, 3, 3), 5, None, 1, 1, False),
    ("same", (1, 2, 7, 8), 3, 1, "same", 1, False),
    ("same-even", (1, 2, 7, 8), 2, 1, "same", 1, False),
    ("same-stride2", (1, 2, 7, 8), 3, 2, "same", 1, False),
    ("same-dilated", (1, 2, 8, 9), (2, 3), 2, "same", (3, 2), False),
    ("same-stride-over-kernel", (1, 1, 9, 8), 1, 3, "same", 1, False),
    ("valid", (1, 2, 7, 8), 3, 2, "valid", 1, False),
    ("asymmetric", (1, 2, 6, 7), 3, 2, ((0, 2), (1, 0)), 1, False),
    ("asymmetric-most", (1, 1, 4, 4), 3, 1, ((2, 0), (2, 2)), 1, False),
    ("pad-over-half", (1, 1, 4, 4), 3, 1, ((2, 2), (2, 2)), 1, False),
    ("asymmetric-dilated", (1, 2, 9, 9), 2, 2, ((0, 3), (1, 2)), 4, False),
    ("batch-0", (0, 3, 6, 6), 2, None, 0, 1, False),
    ("batch-0-whole", (0, 3, 4, 4), 4, None, 0, 1, False),
    ("1d", (2, 3, 11), 3, 2, 1, 1, False),
    ("1d-ceil-dilated", (2, 3, 12), 2, 3, 1, 3, True),
    ("1d-asymmetric", (2, 3, 9), 4, 1, ((3, 1),), 1, False),
    ("3d", (1, 2, 5, 6, 7), (2, 3, 2), (2, 1, 3), (1, 1, 0), 1, False),
    ("3d-ceil", (1, 2, 5, 6, 7), 3, 2, 1, 1, True),
    ("3d-same-dilated", (1, 1, 5, 6, 5), 2, 2, "same", (1, 2, 3), False),
]

# name, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
AVG_ROWS: list[tuple[str, Sequence[int], Any, Any, Any, bool, bool, float | None]] = [
    ("2x2", (2, 3, 6, 8), 2, None, 0, False, True, None),
    ("2x2-rest", (2, 3, 7, 5), 2, None, 0, False, True, None),
    ("2x2-rest-ceil", (2, 3, 7, 5), 2, None, 0, True, True, None),
    ("2x2-rest-ceil-exclude", (2, 3, 7, 5), 2, None, 0, True, False, None),
    ("3x3-pad1", (2, 3, 8, 7), 3, 2, 1, False, True, None),
    ("3x3-pad1-exclude", (2, 3, 8, 7), 3, 2, 1, False, False, None),
    ("3x3-pad1-ceil", (2, 3, 8, 7), 3, 2, 1, True, True, None),
    ("3x3-pad1-ceil-exclude", (2, 3, 8, 7), 3, 2, 1, True, False, None),
    ("3x3-stride1", (1, 2, 6, 6), 3, 1, 1, False, True, None),
    ("1x1-stride3", (1, 2, 8, 7), 1, 3, 0, False, True, None),
    ("2x3-stride-3-1", (2, 3, 8, 9), (2, 3), (3, 1), (1, 0), False, False, None),
    ("stride-over-kernel", (1, 2, 9, 10), 2, 4, 0, False, True, None),
    ("stride-over-kernel-ceil", (1, 2, 9, 10), 2, 4, 1, True, False, None),
    ("divisor", (2, 3, 8, 7), 3, 2, 1, True, True, 5),
    ("divisor-exclude", (2, 3, 8, 7), 3, 2, 1, False, False, 2),
    ("divisor-negative", (1, 2, 4, 4), 2, None, 0, False, True, -3),
    ("one-pixel", (2, 3, 1, 1), 1, 1, 0, False, True, None),
    ("one-pixel-pad", (2, 3, 1, 1), 3, 2, 1, False, True, None),
    ("one-pixel-pad-exclude", (2, 3, 1, 1), 3, 2, 1, False, False, None),
    ("one-pixel-ceil", (2, 3, 1, 1), 2, 2, 0, True, True, None),
    ("whole-image", (2, 3, 4, 5), (4, 5), None, 0, False, True, None),
    ("one-window-cut", (2, 3, 4, 5), (3, 2), (9, 9), 0, False, True, None),
    ("same", (1, 2, 7, 8), 3, 2, "same", False, True, None),
    ("same-exclude", (1, 2, 7, 8), (2, 3), 1, "same", False, False, None),
    ("same-even-divisor", (1, 2, 7, 8), 2, 3, "same", False, False, 7),
    ("valid", (1, 2, 7, 8), 3, 2, "valid", False, True, None),
    ("asymmetric", (1, 2, 6, 7), 3, 2, ((0, 2), (1, 0)), False, True, None),
    ("asymmetric-exclude", (1, 2, 6, 7), 3, 2, ((0, 2), (1, 0)), False, False, None),
    ("pad-over-half-exclude", (1, 1, 4, 4), 3, 1, ((2, 2), (2, 2)), False, False, None),
    ("batch-0", (0, 3, 6, 6), 2, None, 0, False, True, None),
    ("1d", (2, 3, 11), 3, 2, 1, True, False, None),
    ("1d-include", (2, 3, 11), 4, 3, 2, True, True, None),
    ("1d-asymmetric", (2, 3, 9), 4, 1, ((3, 1),), False, False, None),
    ("3d", (1, 2, 5, 6, 7), (2, 3, 2), (2, 1, 3), (1, 1, 0), False, True, None),
    ("3d-ceil-exclude", (1, 2, 5, 6, 7), 3, 2, 1, True, False, None),
    ("3d-divisor", (1, 2, 5, 4, 4), 2, 2, 1, True, True, 3),
]

# name, x, output_size
ADAPTIVE_ROWS: list[tuple[str, Sequence[int], Any]] = [
    ("even", (2, 3, 8, 6), (4, 2)),
    ("uneven", (2, 3, 7, 5), (3, 2)),
    ("even-and-uneven", (1, 2, 8, 7), (4, 3)),
    ("one", (2, 3, 5, 7), 1),
    ("larger-than-input", (1, 2, 3, 4), (5, 7)),
    ("keep-rows", (1, 2, 5, 7), (None, 3)),
    ("keep-columns", (1, 2, 5, 6), (2, None)),
    ("keep-both", (1, 2, 4, 3), (None, None)),
    ("same-size", (1, 2, 4, 3), (4, 3)),
    ("one-pixel", (2, 3, 1, 1), 3),
    ("batch-0", (0, 3, 7, 6), (3, 2)),
    ("1d", (2, 3, 11), 4),
    ("1d-even", (2, 3, 12), 4),
    ("3d", (1, 2, 5, 6, 7), (2, 4, 3)),
    ("3d-keep", (1, 2, 4, 6, 5), (2, None, 1)),
]

# name, x, kernel, stride, padding, output_size, pixels of the plane that results
UNPOOL_ROWS: list[tuple[str, Sequence[int], Any, Any, Any, Any, int]] = [
    ("2x2", (2, 3, 3, 4), 2, None, 0, None, 6 * 8),
    ("3x3-stride2-pad1", (1, 2, 3, 4), 3, 2, 1, None, 5 * 7),
    ("2x3-stride-3-2", (1, 2, 3, 4), (2, 3), (3, 2), (1, 0), None, 6 * 9),
    ("size", (1, 2, 3, 4), 2, None, 0, (7, 9), 7 * 9),
    ("size-smaller", (1, 2, 3, 4), 2, None, 0, (5, 7), 5 * 7),
    ("size-with-batch", (1, 2, 3, 4), 2, None, 0, (1, 2, 7, 8), 7 * 8),
    ("one-pixel", (2, 3, 1, 1), 2, None, 0, None, 2 * 2),
    ("batch-0", (0, 3, 2, 2), 2, None, 0, None, 4 * 4),
    ("1d", (2, 3, 5), 3, 2, 1, None, 9),
    ("1d-size", (2, 3, 5), 2, None, 0, (11,), 11),
    ("3d", (1, 2, 2, 3, 2), 2, None, 0, None, 4 * 6 * 4),
]


def max_case(row: tuple[str, Sequence[int], Any, Any, Any, Any, bool]) -> Case:
    name, xs, kernel, stride, padding, dilation, ceil = row
    nd = len(xs) - 2

    def ours(x: Any) -> Any:
        return MAX[nd](x, kernel, stride, padding, dilation, ceil)

    def peer(torch: Any, x: Any) -> Any:
        pooled = getattr(torch.nn.functional, f"max_pool{nd}d")
        x, own = pad_for_torch(torch, x, kernel, stride, padding, dilation, -np.inf)
        return pooled(x, kernel, stride, own, dilation, ceil)

    return Case(f"max-pool-{name}", ours, peer, (tuple(xs),), kinks=True)


def avg_case(row: tuple[str, Sequence[int], Any, Any, Any, bool, bool, float | None]) -> Case:
    name, xs, kernel, stride, padding, ceil, include, divisor = row
    nd = len(xs) - 2

    def ours(x: Any) -> Any:
        return AVG[nd](x, kernel, stride, padding, ceil, include, divisor)

    def peer(torch: Any, x: Any) -> Any:
        pooled = getattr(torch.nn.functional, f"avg_pool{nd}d")
        ones = torch.ones_like(x)
        x, own = pad_for_torch(torch, x, kernel, stride, padding, 1, 0.0)
        if nd == 1:
            y = pooled(x, kernel, stride, own, ceil, include)
        else:
            y = pooled(x, kernel, stride, own, ceil, include, divisor)
        if x.shape == ones.shape or include or divisor:
            return y
        # Padded for torch: the share of each window that is image tells what to divide by.
        ones, own = pad_for_torch(torch, ones, kernel, stride, padding, 1, 0.0)
        return y / pooled(ones, kernel, stride, own, ceil, include)

    return Case(f"avg-pool-{name}", ours, peer, (tuple(xs),))


def pad_for_torch(
    torch: Any, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, value: float
) -> tuple[Any, Any]:
    """x and the padding for torch: numbers are its own business, all else is padded here."""
    if isinstance(padding, int) or isinstance(padding[0], int):
        return x, padding
    nd = x.ndim - 2
    kernels = (kernel,) * nd if isinstance(kernel, int) else kernel
    stride = kernels if stride is None else stride
    pads = explicit_pads(padding, tuple(x.shape), (0, 0, *kernels), stride, dilation)
    flat = [n for pair in reversed(pads) for n in pair]
    return torch.nn.functional.pad(x, flat, value=value), 0


def adaptive_cases(row: tuple[str, Sequence[int], Any]) -> list[Case]:
    name, xs, size = row
    nd = len(xs) - 2

    def peer(kind: str) -> Callable[..., Any]:
        return lambda torch, x: getattr(torch.nn.functional, f"adaptive_{kind}_pool{nd}d")(x, size)

    return [
        Case(
            f"adaptive-avg-pool-{name}",
            lambda x: ADAPTIVE_AVG[nd](x, size),
            peer("avg"),
            (tuple(xs),),
        ),
        Case(
            f"adaptive-max-pool-{name}",
            lambda x: ADAPTIVE_MAX[nd](x, size),
            peer("max"),
            (tuple(xs),),
            kinks=True,
        ),
    ]


def unpool_case(row: tuple[str, Sequence[int], Any, Any, Any, Any, int]) -> Case:
    name, xs, kernel, stride, padding, size, plane = row
    nd = len(xs) - 2

    def indices(rng: np.random.Generator) -> np.ndarray:
        """No two alike in a plane: torch leaves undefined what repeated ones do."""
        order = rng.permuted(np.tile(np.arange(plane), (xs[0] * xs[1], 1)), axis=1)
        return order[:, : prod(xs[2:])].reshape(xs)

    def ours(x: Any, at: Any) -> Any:
        return UNPOOL[nd](x, at, kernel, stride, padding, size)

    def peer(torch: Any, x: Any, at: Any) -> Any:
        unpooled = getattr(torch.nn.functional, f"max_unpool{nd}d")
        return unpooled(x, at, kernel, stride, padding, size)

    return Case(f"max-unpool-{name}", ours, peer, (tuple(xs), indices))


def with_values(*values: float) -> Callable[[np.random.Generator], np.ndarray]:
    """A (2, 3, 7, 6) image sprinkled with `values`."""

    def make(rng: np.random.Generator) -> np.ndarray:
        x = rng.standard_normal((2, 3, 7, 6))
        where = np.array_split(rng.permutation(x.size)[: x.size // 3], len(values))
        for value, at in zip(values, where, strict=True):
            x.reshape(-1)[at] = value
        return x

    return make


def all_minus_inf(rng: np.random.Generator) -> np.ndarray:
    return np.full((2, 3, 7, 6), -np.inf)


def special_cases() -> list[Case]:
    """NaN and infinities, in every kind of pooling; gradients too."""
    kinds: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "max-pool": (
            lambda x: pool.max_pool2d(x, 3, 2, 1),
            lambda torch, x: torch.nn.functional.max_pool2d(x, 3, 2, 1),
        ),
        "max-pool-ceil-dilated": (
            lambda x: pool.max_pool2d(x, 2, 3, 1, 2, True),
            lambda torch, x: torch.nn.functional.max_pool2d(x, 2, 3, 1, 2, True),
        ),
        "max-pool-whole": (
            lambda x: pool.max_pool2d(x, (7, 6)),
            lambda torch, x: torch.nn.functional.max_pool2d(x, (7, 6)),
        ),
        "avg-pool": (
            lambda x: pool.avg_pool2d(x, 3, 2, 1),
            lambda torch, x: torch.nn.functional.avg_pool2d(x, 3, 2, 1),
        ),
        "adaptive-max": (
            lambda x: pool.adaptive_max_pool2d(x, (4, 5)),
            lambda torch, x: torch.nn.functional.adaptive_max_pool2d(x, (4, 5)),
        ),
        "adaptive-avg": (
            lambda x: pool.adaptive_avg_pool2d(x, (4, 5)),
            lambda torch, x: torch.nn.functional.adaptive_avg_pool2d(x, (4, 5)),
        ),
    }
    inputs = {
        "nan": with_values(np.nan),
        "inf": with_values(np.inf),
        "nan-inf": with_values(np.nan, np.inf),
        "minus-inf": all_minus_inf,
    }
    cases = [
        Case(f"{kind}-of-{name}", ours, peer, (make,))
        for kind, (ours, peer) in kinds.items()
        for name, make in inputs.items()
    ]
    # Sums of both infinities make NumPy warn; a maximum is at ease with them.
    both = with_values(np.inf, -np.inf, np.nan)
    return cases + [
        Case(f"{kind}-of-infinities", ours, peer, (both,))
        for kind, (ours, peer) in kinds.items()
        if "max" in kind
    ]


def pooled_and_unpooled(x: Any) -> Any:
    y, at = pool.max_pool2d(x, (2, 3), return_indices=True)
    return pool.max_unpool2d(y, at, (2, 3), output_size=tuple(x.shape))


def peer_pooled_and_unpooled(torch: Any, x: Any) -> Any:
    y, at = torch.nn.functional.max_pool2d(x, (2, 3), return_indices=True)
    return torch.nn.functional.max_unpool2d(y, at, (2, 3), output_size=tuple(x.shape))


def indices_case(name: str, *arguments: Any) -> Case:
    """The maxima times their indices, so that both are compared."""

    def ours(x: Any) -> Any:
        y, at = getattr(pool, name)(x, *arguments, return_indices=True)
        return y * at.astype(y.dtype)

    def peer(torch: Any, x: Any) -> Any:
        y, at = getattr(torch.nn.functional, name)(x, *arguments, return_indices=True)
        return y * at.to(y.dtype)

    return Case(f"{name}-indices", ours, peer, ((2, 3, 9, 7),), kinks=True)


def layout_case(name: str, ours: Callable[..., Any], peer: Callable[..., Any], nd: int = 2) -> Case:
    """On images that lie in memory as (N, *in, C)."""
    shape = {1: (2, 7, 3), 2: (2, 7, 6, 3), 3: (1, 5, 4, 5, 2)}[nd]
    order = (0, nd + 1, *range(1, nd + 1))
    return Case(
        f"{name}-channels-last",
        lambda x: ours(ops.transpose(x, order)),
        lambda torch, x: peer(torch, x.permute(order)),
        (shape,),
        kinks=True,
    )


WHOLE = {1: (2, 3, 9), 2: (2, 3, 5, 4), 3: (1, 2, 3, 4, 2)}
CASES = [
    *(max_case(row) for row in MAX_ROWS),
    *(avg_case(row) for row in AVG_ROWS),
    *(case for row in ADAPTIVE_ROWS for case in adaptive_cases(row)),
    *(unpool_case(row) for row in UNPOOL_ROWS),
    *special_cases(),
    *(
        Case(
            f"global-avg-pool-{nd}d",
            pool.global_avg_pool,
            lambda torch, x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True),
            (shape,),
        )
        for nd, shape in WHOLE.items()
    ),
    *(
        Case(
            f"global-max-pool-{nd}d",
            pool.global_max_pool,
            lambda torch, x: x.amax(dim=tuple(range(2, x.ndim)), keepdim=True),
            (shape,),
            kinks=True,
        )
        for nd, shape in WHOLE.items()
    ),
    indices_case("max_pool2d", 3, (2, 3), 1, (1, 2), True),
    indices_case("adaptive_max_pool2d", (4, 5)),
    Case(
        "max-pool-unpool",
        pooled_and_unpooled,
        peer_pooled_and_unpooled,
        ((2, 3, 7, 8),),
        kinks=True,
    ),
    layout_case(
        "max-pool",
        lambda x: pool.max_pool2d(x, 3, 2, 1),
        lambda torch, x: torch.nn.functional.max_pool2d(x, 3, 2, 1),
    ),
    layout_case(
        "max-pool-3d",
        lambda x: pool.max_pool3d(x, 2, 1),
        lambda torch, x: torch.nn.functional.max_pool3d(x, 2, 1),
        nd=3,
    ),
    layout_case(
        "avg-pool-1d",
        lambda x: pool.avg_pool1d(x, 3, 2, 1),
        lambda torch, x: torch.nn.functional.avg_pool1d(x, 3, 2, 1),
        nd=1,
    ),
    layout_case(
        "avg-pool",
        lambda x: pool.avg_pool2d(x, 3, 2, 1, True, False),
        lambda torch, x: torch.nn.functional.avg_pool2d(x, 3, 2, 1, True, False),
    ),
    layout_case(
        "adaptive-max-pool",
        lambda x: pool.adaptive_max_pool2d(x, (3, 4)),
        lambda torch, x: torch.nn.functional.adaptive_max_pool2d(x, (3, 4)),
    ),
    layout_case(
        "adaptive-avg-pool",
        lambda x: pool.adaptive_avg_pool2d(x, (3, 4)),
        lambda torch, x: torch.nn.functional.adaptive_avg_pool2d(x, (3, 4)),
    ),
    layout_case("max-pool-unpool", pooled_and_unpooled, peer_pooled_and_unpooled),
]
