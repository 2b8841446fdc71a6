"""Convolution, transposed convolution and their gradients: every argument, every dimension."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import ops
from tests.cases.case import Case

# name, x, w, stride, padding, dilation, groups, padding_mode
Row = tuple[str, Sequence[int], Sequence[int], Any, Any, Any, int, str]
ROWS: list[Row] = [
    ("3x3", (2, 3, 7, 8), (4, 3, 3, 3), 1, 0, 1, 1, "zeros"),
    ("3x3-pad1", (2, 3, 7, 8), (4, 3, 3, 3), 1, 1, 1, 1, "zeros"),
    ("1x1", (2, 5, 4, 3), (7, 5, 1, 1), 1, 0, 1, 1, "zeros"),
    ("1x1-stride2", (2, 5, 4, 3), (7, 5, 1, 1), 2, 0, 1, 1, "zeros"),
    ("1x1-pad", (1, 2, 3, 3), (2, 2, 1, 1), 1, 1, 1, 1, "zeros"),
    ("1x3", (1, 2, 5, 6), (3, 2, 1, 3), 1, (0, 1), 1, 1, "zeros"),
    ("3x1", (1, 2, 5, 6), (3, 2, 3, 1), 1, (1, 0), 1, 1, "zeros"),
    ("2x2", (1, 1, 5, 5), (1, 1, 2, 2), 1, 0, 1, 1, "zeros"),
    ("4x4-stride2", (2, 2, 8, 9), (2, 2, 4, 4), 2, 1, 1, 1, "zeros"),
    ("5x5", (1, 33, 6, 7), (3, 33, 5, 5), 1, 2, 1, 1, "zeros"),
    ("7x7-stride2", (1, 3, 17, 19), (2, 3, 7, 7), 2, 3, 1, 1, "zeros"),
    ("11x11-stride4", (1, 3, 31, 32), (2, 3, 11, 11), 4, 2, 1, 1, "zeros"),
    ("stride-2-3", (2, 3, 9, 10), (4, 3, 3, 2), (2, 3), (1, 0), 1, 1, "zeros"),
    ("stride-over-kernel", (1, 2, 9, 9), (2, 2, 2, 2), 4, 0, 1, 1, "zeros"),
    ("asymmetric", (2, 3, 6, 7), (4, 3, 3, 2), (2, 1), ((1, 0), (2, 3)), 1, 1, "zeros"),
    ("pad-over-kernel", (1, 1, 3, 3), (1, 1, 2, 2), 1, 4, 1, 1, "zeros"),
    ("dilated", (2, 2, 11, 9), (3, 2, 3, 3), 1, 2, 2, 1, "zeros"),
    ("dilated-2-3", (1, 2, 11, 12), (3, 2, 3, 3), (2, 1), (1, 2), (2, 3), 1, "zeros"),
    ("groups", (2, 6, 5, 5), (4, 3, 3, 3), 1, 1, 1, 2, "zeros"),
    ("depthwise", (2, 4, 6, 5), (4, 1, 3, 3), 1, 1, 1, 4, "zeros"),
    ("depthwise-times-3", (1, 4, 6, 5), (12, 1, 3, 3), 2, 1, 1, 4, "zeros"),
    ("same", (1, 2, 7, 8), (2, 2, 3, 5), 1, "same", 1, 1, "zeros"),
    ("same-even", (1, 2, 7, 8), (2, 2, 2, 4), 1, "same", 1, 1, "zeros"),
    ("same-stride2", (1, 2, 7, 8), (2, 2, 3, 3), 2, "same", 1, 1, "zeros"),
    ("same-even-stride3", (1, 2, 10, 8), (2, 2, 4, 2), 3, "same", 1, 1, "zeros"),
    ("same-stride-over-kernel", (1, 1, 9, 8), (1, 1, 1, 2), 3, "same", 1, 1, "zeros"),
    ("same-dilated", (1, 2, 9, 8), (2, 2, 3, 2), 1, "same", 3, 1, "zeros"),
    ("valid", (1, 2, 5, 5), (2, 2, 3, 3), 2, "valid", 1, 1, "zeros"),
    ("reflect", (2, 2, 5, 6), (3, 2, 3, 3), 1, (2, 1), 1, 1, "reflect"),
    ("reflect-most", (1, 1, 4, 4), (1, 1, 3, 3), 2, 3, 1, 1, "reflect"),
    ("reflect-asymmetric", (1, 2, 5, 6), (3, 2, 3, 3), 1, ((2, 0), (1, 3)), 1, 1, "reflect"),
    ("replicate", (2, 2, 5, 6), (3, 2, 3, 3), 1, 2, 1, 1, "replicate"),
    ("replicate-over-image", (1, 1, 2, 3), (1, 1, 3, 3), 1, 5, 1, 1, "replicate"),
    ("replicate-asymmetric", (1, 2, 5, 6), (2, 2, 2, 3), 1, ((0, 3), (1, 0)), 1, 1, "replicate"),
    ("circular", (2, 2, 5, 6), (3, 2, 3, 3), 1, 1, 1, 1, "circular"),
    ("circular-most", (1, 2, 3, 4), (3, 2, 3, 3), 2, (3, 4), 1, 1, "circular"),
    ("circular-asymmetric", (1, 2, 5, 6), (3, 2, 3, 3), 1, ((2, 1), (0, 4)), 1, 1, "circular"),
    ("circular-same", (1, 2, 5, 6), (3, 2, 4, 3), 1, "same", 1, 1, "circular"),
    ("reflect-same-grouped", (1, 4, 5, 6), (4, 2, 4, 3), 2, "same", 1, 2, "reflect"),
    ("one-pixel", (2, 3, 1, 1), (4, 3, 1, 1), 1, 0, 1, 1, "zeros"),
    ("one-pixel-padded", (2, 3, 1, 1), (4, 3, 3, 3), 1, 1, 1, 1, "zeros"),
    ("whole-image", (2, 3, 4, 5), (4, 3, 4, 5), 1, 0, 1, 1, "zeros"),
    ("batch-0", (0, 3, 4, 5), (4, 3, 3, 3), 1, 1, 1, 1, "zeros"),
    ("1d", (2, 3, 11), (4, 3, 3), 2, 1, 1, 1, "zeros"),
    ("1d-same-even-dilated", (2, 3, 11), (4, 3, 4), 1, "same", 2, 1, "zeros"),
    ("1d-reflect-grouped", (2, 4, 9), (6, 2, 5), 1, ((3, 1),), 1, 2, "reflect"),
    ("1d-circular", (1, 2, 9), (2, 2, 5), 2, 4, 1, 1, "circular"),
    ("3d", (2, 2, 4, 5, 6), (3, 2, 2, 3, 2), (1, 2, 1), (0, 1, 1), 1, 1, "zeros"),
    ("3d-same-dilated", (1, 2, 5, 6, 5), (2, 2, 2, 3, 2), 2, "same", (1, 1, 2), 1, "zeros"),
    ("3d-depthwise", (1, 3, 4, 4, 5), (6, 1, 3, 3, 3), 1, 1, 1, 3, "zeros"),
    ("3d-replicate", (1, 2, 3, 4, 3), (2, 2, 3, 3, 3), 1, 1, 1, 1, "replicate"),
    ("3d-reflect", (1, 1, 3, 4, 3), (1, 1, 3, 3, 3), 1, 2, 1, 1, "reflect"),
]

OURS = {1: ops.conv1d, 2: ops.conv2d, 3: ops.conv3d}
OURS_T = {1: ops.conv_transpose1d, 2: ops.conv_transpose2d, 3: ops.conv_transpose3d}
GRAD_INPUT = {1: ops.conv1d_grad_input, 2: ops.conv2d_grad_input, 3: ops.conv3d_grad_input}
GRAD_WEIGHT = {1: ops.conv1d_grad_weight, 2: ops.conv2d_grad_weight, 3: ops.conv3d_grad_weight}


def explicit_pads(
    padding: Any, x: Sequence[int], w: Sequence[int], stride: Any, dilation: Any
) -> list[tuple[int, int]]:
    """What `padding` means, worked out here and not by gpuconv, one pair an axis."""
    nd = len(x) - 2
    strides = [stride] * nd if isinstance(stride, int) else stride
    dilations = [dilation] * nd if isinstance(dilation, int) else dilation
    if padding == "valid":
        return [(0, 0)] * nd
    if padding == "same":
        pads = []
        for n, k, s, d in zip(x[2:], w[2:], strides, dilations, strict=True):
            out = int(np.ceil(n / s))
            total = max((out - 1) * s + (k - 1) * d + 1 - n, 0)
            pads.append((total // 2, (total + 1) // 2))
        return pads
    if isinstance(padding, int):
        return [(padding, padding)] * nd
    return [p if isinstance(p, tuple) else (p, p) for p in padding]


def peer_pad(torch: Any, x: Any, pads: Sequence[tuple[int, int]], mode: str) -> Any:
    flat = [n for pair in reversed(pads) for n in pair]
    if mode == "zeros":
        return torch.nn.functional.pad(x, flat)
    return torch.nn.functional.pad(x, flat, mode=mode)


def conv_case(row: Row) -> Case:
    name, xs, ws, stride, padding, dilation, groups, mode = row
    nd = len(xs) - 2
    pads = explicit_pads(padding, xs, ws, stride, dilation)

    def ours(x: Any, w: Any, b: Any) -> Any:
        return OURS[nd](x, w, b, stride, padding, dilation, groups, mode)

    def peer(torch: Any, x: Any, w: Any, b: Any) -> Any:
        conv = getattr(torch.nn.functional, f"conv{nd}d")
        padded = peer_pad(torch, x, pads, mode)
        return conv(padded, w, b, stride, 0, dilation, groups)

    return Case(f"conv-{name}", ours, peer, (tuple(xs), tuple(ws), (ws[0],)))


# name, x, w (C, K/groups, *kernel), stride, padding, output_padding, groups, dilation
TRANSPOSED: list[tuple[str, Sequence[int], Sequence[int], Any, Any, Any, int, Any]] = [
    ("3x3", (2, 3, 5, 4), (3, 4, 3, 3), 1, 0, 0, 1, 1),
    ("stride2", (2, 3, 5, 4), (3, 4, 3, 3), 2, 1, 1, 1, 1),
    ("stride-2-3", (2, 3, 4, 3), (3, 2, 3, 4), (2, 3), (1, 0), (0, 2), 1, 1),
    ("4x4-stride2", (1, 2, 4, 4), (2, 3, 4, 4), 2, 1, 0, 1, 1),
    ("groups", (2, 4, 4, 3), (4, 3, 3, 3), 2, 1, 1, 2, 1),
    ("depthwise", (1, 4, 4, 3), (4, 1, 2, 2), 2, 0, 0, 4, 1),
    ("dilated", (1, 2, 4, 5), (2, 3, 3, 2), 1, 1, 0, 1, 2),
    ("output-padding-over-stride", (1, 2, 4, 5), (2, 3, 3, 3), 1, 1, 2, 1, 3),
    ("pad-over-kernel", (1, 2, 6, 6), (2, 2, 3, 3), 1, 3, 0, 1, 1),
    ("asymmetric", (1, 2, 4, 5), (2, 3, 3, 3), 2, ((0, 1), (2, 1)), 1, 1, 1),
    ("stride-over-kernel", (1, 2, 3, 3), (2, 2, 1, 2), 3, 0, 0, 1, 1),
    ("batch-0", (0, 2, 3, 3), (2, 2, 2, 2), 1, 0, 0, 1, 1),
    ("one-pixel", (2, 3, 1, 1), (3, 2, 4, 4), 1, 0, 0, 1, 1),
    ("1d", (2, 3, 5), (3, 4, 4), 3, 1, 1, 1, 1),
    ("3d", (1, 2, 3, 2, 3), (2, 3, 2, 3, 2), (2, 1, 2), (0, 1, 0), (1, 0, 1), 1, 1),
    ("3d-grouped", (1, 4, 2, 2, 3), (4, 2, 3, 3, 3), 2, 1, 1, 2, 1),
    ("same", (2, 3, 5, 4), (3, 2, 3, 5), 1, "same", 0, 1, 1),
    ("same-even", (1, 2, 5, 4), (2, 3, 2, 4), 1, "same", 0, 1, 1),
    ("same-stride2", (2, 2, 4, 5), (2, 3, 3, 5), 2, "same", 0, 1, 1),
    ("same-even-stride2", (1, 2, 3, 5), (2, 3, 4, 2), 2, "same", 0, 1, 1),
    ("same-stride3", (1, 2, 3, 4), (2, 2, 5, 4), 3, "same", 0, 1, 1),
    ("same-stride-2-3", (1, 2, 4, 3), (2, 2, 5, 6), (2, 3), "same", 0, 1, 1),
    ("same-stride-over-kernel", (1, 2, 3, 4), (2, 2, 1, 2), 3, "same", 0, 1, 1),
    ("same-dilated", (1, 2, 4, 5), (2, 2, 2, 3), 1, "same", 0, 1, (3, 2)),
    ("same-dilated-stride2", (1, 2, 3, 4), (2, 2, 2, 4), 2, "same", 0, 1, 3),
    ("same-grouped", (2, 4, 3, 4), (4, 2, 4, 3), 2, "same", 0, 2, 1),
    ("same-1d", (2, 2, 5), (2, 3, 4), 3, "same", 0, 1, 1),
    ("same-3d", (1, 2, 2, 3, 2), (2, 2, 2, 3, 4), (1, 2, 3), "same", 0, 1, 1),
    ("valid", (1, 2, 4, 3), (2, 3, 3, 2), 2, "valid", 1, 1, 1),
]


def transposed_case(row: tuple[str, Sequence[int], Sequence[int], Any, Any, Any, int, Any]) -> Case:
    name, xs, ws, stride, padding, extra, groups, dilation = row
    nd = len(xs) - 2
    strides = [stride] * nd if isinstance(stride, int) else stride
    target = [n * s for n, s in zip(xs[2:], strides, strict=True)]
    pads = explicit_pads(padding, (*xs[:2], *target), ws, stride, dilation)

    def ours(x: Any, w: Any, b: Any) -> Any:
        return OURS_T[nd](x, w, b, stride, padding, extra, groups, dilation)

    def peer(torch: Any, x: Any, w: Any, b: Any) -> Any:
        conv = getattr(torch.nn.functional, f"conv_transpose{nd}d")
        if padding == "same":
            # `target` pixels of a result with none taken off; zeros after it where it is shorter.
            y = conv(x, w, None, stride, 0, 0, groups, dilation)
            for axis, ((lo, _), n) in enumerate(zip(pads, target, strict=True), start=2):
                missing = max(lo + n - y.shape[axis], 0)
                after = torch.zeros((*y.shape[:axis], missing, *y.shape[axis + 1 :]), dtype=y.dtype)
                y = torch.cat((y, after), axis).narrow(axis, lo, n)
            return y + b.reshape(-1, *(1,) * nd)
        if all(lo == hi for lo, hi in pads):
            symmetric = tuple(lo for lo, _ in pads)
            return conv(x, w, b, stride, symmetric, extra, groups, dilation)
        # Asymmetric: the same number taken off both sides of a result with none taken off.
        y = conv(x, w, b, stride, 0, extra, groups, dilation)
        for axis, (lo, hi) in enumerate(pads, start=2):
            y = y.narrow(axis, lo, y.shape[axis] - lo - hi)
        return y

    return Case(f"conv-transpose-{name}", ours, peer, (tuple(xs), tuple(ws), (ws[1] * groups,)))


def gradient_cases(row: Row) -> list[Case]:
    """The two gradients as operations of their own, themselves differentiated."""
    name, xs, ws, stride, padding, dilation, groups, mode = row
    nd = len(xs) - 2
    pads = explicit_pads(padding, xs, ws, stride, dilation)
    strides = [stride] * nd if isinstance(stride, int) else stride
    dilations = [dilation] * nd if isinstance(dilation, int) else dilation
    out = [
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(xs[2:], pads, dilations, ws[2:], strides, strict=True)
    ]
    gys = (xs[0], ws[0], *out)

    def plain(torch: Any, x: Any, w: Any) -> Any:
        conv = getattr(torch.nn.functional, f"conv{nd}d")
        return conv(peer_pad(torch, x, pads, mode), w, None, stride, 0, dilation, groups)

    def peer_input(torch: Any, gy: Any, w: Any) -> Any:
        x = torch.zeros(tuple(xs), dtype=gy.dtype, requires_grad=True)
        return torch.autograd.grad(plain(torch, x, w), x, gy, create_graph=True)[0]

    def peer_weight(torch: Any, gy: Any, x: Any) -> Any:
        w = torch.zeros(tuple(ws), dtype=gy.dtype, requires_grad=True)
        return torch.autograd.grad(plain(torch, x, w), w, gy, create_graph=True)[0]

    arguments = (stride, padding, dilation, groups, mode)
    return [
        Case(
            f"conv-grad-input-{name}",
            lambda gy, w: GRAD_INPUT[nd](gy, w, xs, *arguments),
            peer_input,
            (gys, tuple(ws)),
        ),
        Case(
            f"conv-grad-weight-{name}",
            lambda gy, x: GRAD_WEIGHT[nd](gy, x, ws, *arguments),
            peer_weight,
            (gys, tuple(xs)),
        ),
    ]


def channels_last(shape: Sequence[int]) -> Any:
    def make(rng: np.random.Generator) -> np.ndarray:
        x = rng.standard_normal((shape[0], *shape[2:], shape[1]))
        return x.transpose(0, len(shape) - 1, *range(1, len(shape) - 1))

    return make


def strided(shape: Sequence[int]) -> Any:
    """Every second element of a larger array, one axis reversed: contiguous in no order."""

    def make(rng: np.random.Generator) -> np.ndarray:
        x = rng.standard_normal([2 * n for n in shape])
        return x[tuple(slice(None, None, 2) for _ in shape)][..., ::-1]

    return make


def laid_out(name: str, layout: Any) -> Case:
    case = conv_case(("layout", (2, 3, 6, 7), (4, 3, 3, 3), 2, ((1, 0), (1, 1)), 1, 1, "zeros"))
    x, w, b = case.inputs
    return Case(f"conv-{name}", case.ours, case.peer, (layout(x), layout(w), b))


def fused_case(name: str, groups: int, relu: bool, residual: bool, bias: bool) -> Case:
    def given(rest: tuple[Any, ...]) -> tuple[Any, Any]:
        return rest[0] if bias else None, rest[-1] if residual else None

    def ours(x: Any, w: Any, *rest: Any) -> Any:
        return ops.fused_conv2d(x, w, *given(rest), 2, 1, 1, groups, relu=relu)

    def peer(torch: Any, x: Any, w: Any, *rest: Any) -> Any:
        b, r = given(rest)
        y = torch.nn.functional.conv2d(x, w, b, 2, 1, 1, groups)
        y = y + r if residual else y
        return torch.relu(y) if relu else y

    def far_from_0(rng: np.random.Generator) -> np.ndarray:
        """Difference quotients must not step over the kink of the ReLU."""
        return rng.choice([-50.0, 50.0], (2, 4, 4, 3)) + rng.standard_normal((2, 4, 4, 3))

    inputs: list[Any] = [(2, 4, 7, 6), (4, 4 // groups, 3, 3)]
    inputs += [(4,)] if bias else []
    inputs += [far_from_0] if residual else []
    return Case(name, ours, peer, tuple(inputs))


FUSED = [
    fused_case("fused-conv", 1, True, True, True),
    fused_case("fused-conv-grouped", 2, True, True, False),
    fused_case("fused-conv-relu", 1, True, False, True),
    fused_case("fused-conv-add", 4, False, True, True),
    fused_case("fused-conv-neither", 1, False, False, False),
]

CASES = [
    *(conv_case(row) for row in ROWS),
    *(transposed_case(row) for row in TRANSPOSED),
    # torch's double backward gives no gradient at all for a batch of 0, ours is an array of zeros.
    *(c for row in ROWS if row[1][0] for c in gradient_cases(row)),
    *FUSED,
    laid_out("channels-last", channels_last),
    laid_out("strided", strided),
    Case(
        "conv-no-bias",
        lambda x, w: ops.conv2d(x, w),
        lambda torch, x, w: torch.nn.functional.conv2d(x, w),
        ((1, 2, 4, 4), (3, 2, 3, 3)),
    ),
]
