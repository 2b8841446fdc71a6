"""What `explain` says is what is launched, on shapes of every algorithm."""

from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import explain
from gpuconv.errors import ArgumentError
from gpuconv.shapes import ConvSpec

PASSES = ("forward", "grad_input", "grad_weight")


def on_h100(*shapes: Any, **options: Any) -> explain.Explanation:
    return gc.explain.conv2d(*shapes, **{"arch": "sm_90", **options})


@pytest.mark.parametrize(
    ("x", "w", "options", "algorithm"),
    [
        ((8, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, "tiled"),
        ((8, 64, 56, 56), (128, 64, 1, 1), {}, "gemm"),
        ((8, 64, 56, 56), (128, 64, 2, 2), {"stride": 2}, "tiled"),
        ((8, 64, 56, 56), (64, 1, 3, 3), {"groups": 64}, "depthwise"),
        ((8, 6, 9, 9), (6, 2, 3, 3), {"groups": 3}, "direct"),
        ((8, 64, 56, 56), (64, 64, 3, 3), {"padding": 1, "padding_mode": "reflect"}, "direct"),
        ((8, 64, 56, 56), (64, 64, 3, 3), {"dtype": "float64"}, "direct"),
        ((8, 64, 56, 56), (64, 64, 3, 3), {"dtype": "float16"}, "im2col"),
        ((0, 64, 56, 56), (64, 64, 3, 3), {}, "im2col"),
    ],
)
@pytest.mark.parametrize("which", PASSES)
def test_algorithms(x: Any, w: Any, options: dict[str, Any], algorithm: str, which: str) -> None:
    said = on_h100(x, w, which=which, **options)
    if which == "grad_input" and "padding_mode" in options:
        algorithm = "tiled"  # of the padded image, whose gradient is then folded back
    assert said.algorithm == algorithm
    assert said.why
    assert bool(said.launches) == (algorithm not in ("gemm", "im2col"))
    assert said.flops == said.spec.flops
    assert all(launch.blocks_per_sm > 0 and launch.waves > 0 for launch in said.launches)
    text = str(said)
    for part in (which, algorithm, "FLOP", "roofline", "H100", "determinism"):
        assert part in text
    assert " ".join(said.why.split()) in " ".join(text.split())
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_roofline_by_hand() -> None:
    """One billion multiply-adds on 132 SMs of 128 lanes at 1.98 GHz; memory for a 1x1 of few."""
    said = on_h100((1, 1000, 32, 32), (1000, 1000, 1, 1))
    assert said.flops == 2 * 1000 * 1000 * 1024
    assert said.least_seconds == pytest.approx(said.flops / (2 * 132 * 128 * 1.98e9))
    assert said.bound == "compute"
    thin = on_h100((64, 2, 64, 64), (2, 2, 1, 1))
    assert thin.bytes == 4 * (2 * 64 * 2 * 64 * 64 + 4)
    assert thin.bound == "memory"
    assert thin.least_seconds == pytest.approx(thin.bytes / 3350e9)


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((1, 1, 56, 9), (1, 1, 1, 2), {"stride": 4}),
        ((1, 1, 32, 33), (1, 1, 11, 3), {"stride": 4, "padding": ((2, 0), (1, 3))}),
        ((1, 1, 9, 8), (1, 1, 3, 2), {"stride": 5, "padding": 1, "dilation": 2}),
        ((1, 1, 4, 4), (1, 1, 2, 2), {"padding": 5}),
    ],
)
def test_bytes_count_the_pixels_that_are_read(x: Any, w: Any, options: dict[str, Any]) -> None:
    spec = ConvSpec.infer(x, w, **options)
    image = np.zeros(spec.x_shape)
    gx = gc.conv2d_grad_input(np.ones(spec.y_shape), np.ones(w), x, **options)
    image[gx > 0] = 1
    others = 2 * np.prod(w[2:]) + 2 * np.prod(spec.y_shape)
    assert spec.bytes(1) * 2 == 2 * image.sum() + others
    assert spec.bytes(1, whole=True) * 2 == 2 * np.prod(x) + others


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 "), (68, "68 "), (7.4e9, "7.4 G"), (2.03e-11, "20.3 p"), (0.5, "500 m")],
)
def test_numbers_have_prefixes(value: float, said: str) -> None:
    assert explain._si(value) == said


def test_parts_are_said_to_depend_on_the_gpu() -> None:
    few = on_h100((1, 512, 7, 7), (512, 512, 3, 3), padding=1)
    assert "in" in few.tile
    assert "parts" in few.tile
    assert "one kind of GPU" in few.determinism
    many = on_h100((64, 64, 56, 56), (64, 64, 3, 3), padding=1)
    assert "parts" not in many.tile
    assert "no atomics" in many.determinism


def test_a_forced_algorithm_is_used_or_refused() -> None:
    shapes = (2, 8, 9, 9), (8, 8, 3, 3)
    for algo in ("tiled", "direct", "im2col"):
        assert on_h100(*shapes, algo=algo).algorithm == algo
    with pytest.raises(ArgumentError, match="algo='gemm' cannot take this problem: it is for 1x1"):
        on_h100(*shapes, algo="gemm")
    with pytest.raises(ArgumentError, match="takes one input channel a group, not 8"):
        on_h100(*shapes, algo="depthwise")
    with pytest.raises(ArgumentError, match="algo='winograd' is unknown here"):
        on_h100(*shapes, algo="winograd")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arch": "sm_60"}, "arch='sm_60' is unknown; use one of cpu, sm_75"),
        ({"which": "backward"}, "which='backward' is no pass; use one of forward"),
        ({"dtype": "int32"}, "dtype='int32' is no floating-point type"),
        ({"dtype": "f99"}, "dtype='f99'"),
        ({"groups": 3}, "groups=3 must divide"),
    ],
)
def test_mistakes(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        on_h100((2, 8, 9, 9), (8, 8, 3, 3), **options)


@pytest.mark.parametrize(
    ("x", "w", "options", "algorithm"),
    [
        ((8, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, "winograd"),
        ((8, 64, 56, 56), (64, 64, 3, 3), {"padding": 1, "padding_mode": "reflect"}, "winograd"),
        ((8, 64, 56, 56), (64, 64, 3, 3), {"stride": 2}, "direct"),
        ((8, 64, 56, 56), (64, 64, 3, 3), {"dtype": "float64"}, "direct"),
        ((8, 3, 56, 56), (64, 3, 3, 3), {}, "direct"),
        ((8, 64, 56, 56), (128, 64, 1, 1), {}, "gemm"),
        ((8, 64, 56, 56), (64, 1, 3, 3), {"groups": 64}, "depthwise"),
        ((8, 6, 9, 9), (6, 2, 3, 3), {"groups": 3}, "direct"),
        ((8, 64, 56, 56), (64, 64, 3, 3), {"dtype": "float16"}, "im2col"),
        ((0, 64, 56, 56), (64, 64, 3, 3), {}, "im2col"),
    ],
)
@pytest.mark.parametrize("which", PASSES)
def test_a_cpu_is_explained_too(
    x: Any, w: Any, options: dict[str, Any], algorithm: str, which: str
) -> None:
    said = gc.explain.conv2d(x, w, which=which, arch="cpu", **options)
    assert said.algorithm == algorithm
    assert said.why
    assert said.flops == said.spec.flops
    assert said.least_seconds > 0 or not said.flops
    text = str(said)
    for part in (which, algorithm, "FLOP", "roofline", "this CPU", "threads", "determinism"):
        assert part in text
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_what_is_explained_is_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plans of the algorithm that `explain` names are made, and no others."""
    from gpuconv.cpu import CpuBackend, conv

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 32, 28, 28), dtype=np.float32)
    w = rng.standard_normal((32, 32, 3, 3), dtype=np.float32)
    made: list[str] = []
    find = conv.kernels

    def noted(algorithm: str, which: str) -> Any:
        made.append(algorithm)
        return find(algorithm, which)

    exact = gc.conv2d(x.astype("float64"), w.astype("float64"), padding=1)
    for level in ("high", "highest"):
        gc.set_float32_precision(level)
        try:
            said = gc.explain.conv2d(x.shape, w.shape, padding=1, arch="cpu")
            with monkeypatch.context() as patch, gc.backend(CpuBackend()):
                made.clear()
                patch.setattr(conv, "kernels", noted)
                y = gc.conv2d(x, w, padding=1)
        finally:
            gc.set_float32_precision("high")
        assert made[-1] == said.algorithm == ("winograd" if level == "high" else "direct")
        error = np.abs(y - exact).max() / np.abs(exact).max()
        assert error < (2e-5 if level == "high" else 2e-6)


def test_winograd_is_refused_at_the_highest_precision() -> None:
    shapes = (2, 32, 28, 28), (32, 32, 3, 3)
    gc.set_float32_precision("highest")
    try:
        with pytest.raises(ArgumentError, match=r"winograd.*the precision is 'highest'"):
            gc.explain.conv2d(*shapes, algo="winograd", arch="cpu")
    finally:
        gc.set_float32_precision("high")
    assert gc.explain.conv2d(*shapes, algo="winograd", arch="cpu").why == "asked for"


def test_algo_on_the_reference() -> None:
    x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    np.testing.assert_array_equal(gc.conv2d(x, w, algo="im2col"), gc.conv2d(x, w))
    with pytest.raises(ArgumentError, match="algo='tiled' is unknown here"):
        gc.conv2d(x, w, algo="tiled")
    with pytest.raises(ArgumentError, match="algo='tiled' is unknown here"):
        gc.conv2d_grad_input(np.ones((1, 1, 2, 2)), w, (1, 1, 3, 3), algo="tiled")
    with pytest.raises(ArgumentError, match="algo='tiled' is unknown here"):
        gc.conv2d_grad_weight(np.ones((1, 1, 2, 2)), x, (1, 1, 2, 2), algo="tiled")


@pytest.mark.parametrize(
    ("algo", "x", "w", "options", "reason"),
    [
        ("gemm", (1, 8, 9, 9), (8, 8, 3, 3), {}, r"not \(3, 3\) at \(1, 1\)"),
        ("gemm", (1, 8, 9, 9), (8, 8, 1, 1), {"padding": 1}, r"takes no padding \(\(1, 1\)"),
        ("tiled", (0, 8, 9, 9), (8, 8, 3, 3), {}, "the batch is empty"),
        (
            "tiled",
            (1, 8, 9, 9),
            (8, 8, 3, 3),
            {"dtype": "float64"},
            "computes float32, not float64",
        ),
        ("tiled", (1, 6, 9, 9), (6, 2, 3, 3), {"groups": 3}, "multiples of 4, not 2 in and 2 out"),
        ("tiled", (1, 8, 9, 9), (8, 8, 3, 3), {"padding_mode": "circular"}, "not 'circular'"),
        ("tiled", (8, 1024, 512, 513), (1, 1024, 1, 1), {"stride": 2}, "too large"),
        ("direct", (1, 8, 9, 9), (8, 8, 3, 3), {"dtype": "float16"}, "float32 and float64, not fl"),
    ],
)
def test_the_reason_of_a_refusal(
    algo: str, x: Any, w: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ArgumentError, match=reason):
        on_h100(x, w, algo=algo, **options)
