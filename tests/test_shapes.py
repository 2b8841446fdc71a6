"""The arithmetic of sizes, against counting windows one by one."""

from itertools import product

import numpy as np
import pytest

from gpuconv.errors import ArgumentError
from gpuconv.shapes import ConvSpec, PoolSpec, fingerprint


def count_windows(n: int, lo: int, hi: int, reach: int, stride: int) -> int:
    """Slide a window of `reach` over the padded line and count where it fits."""
    return sum(1 for start in range(0, lo + n + hi, stride) if start + reach <= lo + n + hi)


@pytest.mark.parametrize(
    ("n", "k", "stride", "dilation"), list(product((1, 4, 7, 8), (1, 2, 3, 4), (1, 2, 3), (1, 2)))
)
def test_output_sizes(n: int, k: int, stride: int, dilation: int) -> None:
    reach = dilation * (k - 1) + 1
    for lo, hi in product(range(3), range(3)):
        expected = count_windows(n, lo, hi, reach, stride)
        arguments = ((1, 1, n), (1, 1, k), stride, ((lo, hi),), dilation)
        if expected:
            assert ConvSpec.infer(*arguments).y_shape == (1, 1, expected)
        else:
            with pytest.raises(ArgumentError, match="output would be empty"):
                ConvSpec.infer(*arguments)
    same = ConvSpec.infer((1, 1, n), (1, 1, k), stride, "same", dilation)
    (lo, hi) = same.padding[0]
    assert same.y_shape[2] == -(-n // stride)
    assert hi - lo in (0, 1), "the extra row goes to the end"
    assert count_windows(n, lo, hi, reach, stride) == -(-n // stride)
    if lo + hi:
        assert count_windows(n, lo, hi - 1, reach, stride) < -(-n // stride), "padding to spare"


def test_work_of_a_known_layer() -> None:
    """ResNet-50's first layer: 118 M multiply-accumulates, as published."""
    spec = ConvSpec.infer((1, 3, 224, 224), (64, 3, 7, 7), 2, 3)
    assert spec.y_shape == (1, 64, 112, 112)
    assert spec.macs == 118_013_952
    assert spec.flops == 2 * spec.macs
    assert spec.bytes() == 4 * (3 * 224 * 224 + 64 * 147 + 64 * 112 * 112)
    assert ConvSpec.infer((1, 32, 8, 8), (32, 1, 3, 3), 1, 1, groups=32).macs == 32 * 9 * 64


def test_transposed_undoes_the_sizes() -> None:
    for n, k, stride, pad in product((4, 5, 9), (2, 3, 4), (1, 2, 3), (0, 1)):
        spec = ConvSpec.infer((1, 2, n), (3, 2, k), stride, pad)
        extra = (n + 2 * pad - k) % stride
        back = ConvSpec.infer_transposed(spec.y_shape, spec.w_shape, stride, pad, extra)
        assert back.x_shape == spec.x_shape
        assert back == spec
    assert ConvSpec.infer_transposed((1, 2, 5), (2, 3, 4), 3, "same").x_shape == (1, 3, 15)


def test_the_same_arguments_give_the_same_object() -> None:
    one = ConvSpec.infer((1, 2, 5, 5), (3, 2, 3, 3), [1, 1], [[1, 1], [1, 1]])
    assert one is ConvSpec.infer([1, 2, 5, 5], [3, 2, 3, 3], (1, 1), ((1, 1), (1, 1)))
    assert hash(one) is not None
    with pytest.raises(ArgumentError, match="must be an integer"):
        ConvSpec.infer((1, 2, 5, 5), (3, 2, 3, 3), 1.0)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pool_windows_start_inside(ceil_mode: bool) -> None:
    for n, k, stride, lo, hi, dilation in product(
        (1, 5, 6), (1, 2, 3), (1, 2, 4), (0, 1), (0, 1), (1, 2)
    ):
        reach = dilation * (k - 1) + 1
        stepped_over = dilation > n and lo
        if max(lo, hi) >= reach or lo + n + hi < reach or stepped_over:
            continue
        spec = PoolSpec.infer((1, 1, n), k, stride, ((lo, hi),), dilation, ceil_mode, nd=1)
        starts = [
            s
            for s in range(0, lo + n + hi, stride)
            if s + reach <= lo + n + hi
            or (ceil_mode and s < lo + n and s - stride + reach < lo + n + hi)
        ]
        assert spec.y_shape[2] == len(starts)
        ((before, after),) = spec.window
        assert before == lo
        assert lo + n + after == starts[-1] + reach


def test_pool_errors() -> None:
    for arguments, message in (
        (((1, 5, 5), 2), r"has 3 axes, but \(N, C, \*in\) with 2 spatial axes is needed"),
        (
            ((1, 1, 5, 5), 2, 2, 2),
            "leaves windows of 2 pixels wholly in the padding; use at most 1",
        ),
        (((1, 1, 5, 5), 6), "output would be empty"),
        (((1, 1, 5, 5), 0), "kernel_size=0 must be at least 1"),
        (((1, 1, 5, 5), 2, 0), "stride=0 must be at least 1"),
        (((1, 1, 1, 5), 2, 1, 1, (2, 1)), "steps over all of its 1 pixels"),
        (((1, 1, 5, 5), 2, 2, -1), "padding=-1 must be at least 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            PoolSpec.infer(*arguments)


def test_arguments_may_be_numpy_numbers_and_nothing_unhashable() -> None:
    x, w = (1, 2, 5, 5), (3, 2, 3, 3)
    spec = ConvSpec.infer(x, w, np.array([1, 2]), np.array(1))
    assert spec == ConvSpec.infer(x, w, (1, 2), 1)
    for arguments in ({"padding": {1}}, {"padding_mode": ["zeros"]}, {"stride": {"a": 1}}):
        with pytest.raises(ArgumentError):
            ConvSpec.infer(x, w, **arguments)
    assert ConvSpec.infer(x, w, 1, 1) is ConvSpec.infer(x, w, (1, 1), ((1, 1), (1, 1)))
    with pytest.raises(ArgumentError, match="must be integers"):
        ConvSpec.infer((1, 2, 5.0, 5), w)
    for options in ((1.0, 1), (1, 1.0), ((1, 1.0), 1), (1, ((1, 1), (1, 1.0)))):
        with pytest.raises(ArgumentError, match="must be an integer"):
            ConvSpec.infer(x, w, *options)


def test_lists_count_for_what_is_in_them_now() -> None:
    stride = [1, 1]
    x, w = (1, 2, 5, 5), (3, 2, 3, 3)
    assert ConvSpec.infer(x, w, stride).y_shape == (1, 3, 3, 3)
    stride[0] = 2
    assert ConvSpec.infer(x, w, stride).y_shape == (1, 3, 2, 3)


def test_bytes_are_no_numbers() -> None:
    """NumPy's numbers are known by their bytes; others may have the same."""
    x, w = (1, 2, 5, 5), (3, 2, 3, 3)
    pair, number, tiny = np.int8([2, 1]), np.int16(258), np.float16(1.54e-5)
    assert fingerprint(pair) == fingerprint(number) == fingerprint(tiny)
    assert ConvSpec.infer(x, w, 1, pair).padding == ((2, 2), (1, 1))
    assert ConvSpec.infer(x, w, 1, number).padding == ((258, 258), (258, 258))
    with pytest.raises(ArgumentError, match="must be an integer"):
        ConvSpec.infer(x, w, 1, tiny)


def test_transposed_same_and_output_padding_exclude_each_other() -> None:
    with pytest.raises(ArgumentError, match="output_padding=1 has no place beside padding='same'"):
        ConvSpec.infer_transposed((1, 2, 5), (2, 3, 4), 3, "same", 1)
