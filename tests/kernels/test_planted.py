"""Bugs planted in the real kernels, each found by the check that is there for it.

A bug is a replacement of text in a kernel's source file. The plans of the backend run it on the
emulator, through the same `check` as all kernels: CheckFailed with the right kind of finding, or
the comparison with float64, or with a second run, fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpuconv.emulator import LEVELS, CheckFailed
from gpuconv.shapes import ConvSpec, PoolSpec
from tests.kernels import plant
from tests.kernels.conftest import check
from tests.operations import channels_last

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from gpuconv.cuda import CudaBackend
from gpuconv.cuda.device import EmulatedDevice

Run = Callable[[Any, np.random.Generator], None]
BUDGET = "exceeds the budget"
UNWRITTEN = "NaN where there should be none"
INFINITE = "infinity where there should be none"
DIFFERS = "two runs differ"
WRONG = "Arrays are not equal"


@dataclass(frozen=True)
class Bug:
    """`old` -> `new` in a module; `find` is a kind of finding, or what the assertion says."""

    module: str
    old: str
    new: str
    run: Run
    find: str


def conv(which: str, algo: str, x: Any, w: Any, last: bool = False, **options: Any) -> Run:
    """A pass of a convolution, by one algorithm."""
    spec = ConvSpec.infer(x, w, **options)

    def run(be: Any, rng: np.random.Generator) -> None:
        image, gy = (rng.standard_normal(shape) for shape in (x, spec.y_shape))
        if last:
            image, gy = channels_last(image), channels_last(gy)
        weight, bias = rng.standard_normal(w), rng.standard_normal(w[0])

        def operation(be: Any, *arrays: Any) -> Any:
            keys = {"algo": algo} if isinstance(be, CudaBackend) else {}
            return getattr(be, which)(spec, *arrays, **keys)

        first = {"conv": image, "conv_grad_input": gy, "conv_grad_weight": gy}[which]
        second = {"conv": weight, "conv_grad_input": weight, "conv_grad_weight": image}[which]
        check(be, operation, first, second, *((bias,) if which == "conv" else ()))

    return run


def pool(which: str, x: Any, *arguments: Any, last: bool = False, **options: Any) -> Run:
    """max_pool or avg_pool, or its gradient."""
    spec = PoolSpec.infer(x, *arguments, **options)

    def run(be: Any, rng: np.random.Generator) -> None:
        image, gy = rng.standard_normal(x), rng.standard_normal(spec.y_shape)
        if last:
            image, gy = channels_last(image), channels_last(gy)
        if which == "max_pool":
            check(be, lambda be, x: be.max_pool(spec, x), image)
        elif which == "avg_pool":
            check(be, lambda be, x: be.avg_pool(spec, x, 9.0), image)
        else:
            check(be, lambda be, gy: be.avg_pool_grad(spec, gy, 9.0), gy)

    return run


def norm(which: str, shape: Any, mean: float = 0.0, last: bool = False) -> Run:
    """Batch norm or its gradient."""

    def run(be: Any, rng: np.random.Generator) -> None:
        x, gy = rng.standard_normal(shape) + mean, rng.standard_normal(shape)
        if last:
            x, gy = channels_last(x), channels_last(gy)
        w, b = rng.standard_normal(shape[1]), rng.standard_normal(shape[1])

        def operation(be: Any, x: Any, w: Any, b: Any, gy: Any) -> Any:
            y, x_mean, var, saved = be.batch_norm(x, w, b, 1e-5)
            return (y, x_mean, var) if which == "y" else be.batch_norm_grad(gy, w, saved)

        check(be, operation, x, w, b, gy)

    return run


def loss(shape: Any, scale: float = 1.0) -> Run:
    """Softmax cross entropy."""

    def run(be: Any, rng: np.random.Generator) -> None:
        target = rng.integers(0, shape[1], shape[0])

        def operation(be: Any, x: Any) -> Any:
            return be.softmax_cross_entropy(x, target, None, -100, 0.0)[0]

        check(be, operation, rng.standard_normal(shape) * scale)

    return run


def sgd(size: int) -> Run:
    """A step with momentum, of a copy."""
    numbers = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1}

    def run(be: Any, rng: np.random.Generator) -> None:
        def operation(be: Any, w: Any, gw: Any, buffer: Any) -> Any:
            w, buffer = w.copy(), buffer.copy()
            be.sgd_step(w, gw, buffer, False, **numbers, nesterov=False)
            return w, buffer

        check(be, operation, *(rng.standard_normal(size) for _ in range(3)))

    return run


DIRECT = conv("conv", "direct", (2, 3, 5, 6), (4, 3, 3, 3), padding=1)
DIRECT_WEIGHT = conv("conv_grad_weight", "direct", (2, 2, 7, 6), (2, 2, 3, 3), padding=1)
TILED = conv("conv", "tiled", (2, 8, 6, 5), (8, 8, 3, 3), padding=1, last=True)
TILED_NCHW = conv("conv", "tiled", (2, 8, 6, 5), (8, 8, 3, 3), padding=1)
# Few pixels of many channels: the sums are split.
SPLIT = conv("conv", "tiled", (1, 64, 4, 4), (8, 64, 3, 3), padding=1, last=True)
TILED_WEIGHT = conv("conv_grad_weight", "tiled", (2, 8, 6, 5), (8, 8, 3, 3), padding=1, last=True)
# A block's 32 channels have 288 weights, more than it has threads.
DEPTHWISE = conv("conv", "depthwise", (1, 32, 5, 5), (32, 1, 3, 3), padding=1, groups=32, last=True)

BUGS: dict[str, Bug] = {
    "direct: threads past the end": Bug(
        "direct",
        "        if i >= total:\n            return\n        k, rest",
        "        k, rest",
        DIRECT, "oob-global",
    ),
    "direct: a tap in the wrong place": Bug(
        "direct", "h = index(i32(h0 + r * dil_h), H)", "h = index(i32(h0 + r), H)",
        conv("conv", "direct", (1, 2, 7, 6), (2, 2, 3, 3), dilation=2), BUDGET,
    ),
    "direct: what no tap meets is not written": Bug(
        "direct", "        store(gx, i, total_sum)",
        "        if total_sum != zero:\n            store(gx, i, total_sum)",
        conv("conv_grad_input", "direct", (1, 2, 5, 6), (3, 2, 1, 1), stride=2), UNWRITTEN,
    ),
    "direct: a tree without its barrier": Bug(
        "direct", "            barrier()\n", "", DIRECT_WEIGHT, "race-shared",
    ),
    "direct: a barrier for each half of the threads": Bug(
        "direct",
        "            barrier()\n            if me < half:\n",
        "            if me < half:\n                barrier()\n"
        "            else:\n                barrier()\n            if me < half:\n",
        DIRECT_WEIGHT, "barrier-diverged",
    ),
    "direct: sums one place too far": Bug(
        "direct", "place = i32(shared() + me * size)", "place = i32(shared() + (me + 1) * size)",
        DIRECT_WEIGHT, "oob-shared",
    ),
    "direct: idle threads leave their sums out": Bug(
        "direct", "        put(place, part)\n",
        "        if me < pixels:\n            put(place, part)\n",
        DIRECT_WEIGHT, "uninit-shared",
    ),
    "tiled: a copy that is not waited for": Bug(
        "tiled", "await_one = wait(STAGES - 2) if asynchronous else nothing",
        "await_one = nothing", TILED, "cp-async-unwaited",
    ),
    "tiled: a wait for one group too few": Bug(
        "tiled", "wait(STAGES - 2)", "wait(STAGES - 1)", TILED, "cp-async-unwaited",
    ),
    "tiled: a stage overwritten while it is read": Bug(
        "tiled",
        "                await_one()\n                barrier()\n",
        "                await_one()\n",
        TILED, "race-shared",
    ),
    "tiled: lanes that do not wait for each other": Bug(
        "tiled",
        "                cuda.syncwarp()\n                k, k_end",
        "                k, k_end",
        TILED_NCHW, "race-shared",
    ),
    "tiled: padding that is not zero": Bug(
        "tiled", "size = i32(16 if inside else 0)", "size = i32(16)", TILED, BUDGET,
    ),
    "tiled: the image's edge one too far": Bug(
        "tiled", "inside = within(i32(top[i] + dh), H)", "inside = within(i32(top[i] + dh), H + 1)",
        TILED, "oob-global",
    ),
    "tiled: a chunk of 16 bytes one number on": Bug(
        "tiled", "column, b_row = i32(me % (bn // 4) * 4)",
        "column, b_row = i32(me % (bn // 4) * 4 + 1)", TILED, "misaligned",
    ),
    "tiled: all parts in one place": Bug(
        "tiled", "out = i32(block_z_again() * slab)", "out = i32(0)", SPLIT, "race-global",
    ),
    "tiled: other parts at every other run": Bug(
        "product",
        "channels_last, relu)\n    return device.sequence(plan)\n",
        "channels_last, relu)\n"
        "    other = Plan(*plan.arrays)\n"
        "    other.owned, other.launches = dict(plan.owned), plan.launches[:-2]\n"
        "    _product(device, other, arrays, problem, config, splits - 1, channels_last, relu)\n"
        "    runs = [device.sequence(plan), device.sequence(other)]\n"
        "    return lambda *given: (runs.reverse(), runs[0](*given))[1]\n",
        SPLIT, DIFFERS,
    ),
    "weight: pixels past the end": Bug(
        "weight", "inside = within(h, H) & within(v, W) & (pixel < end)",
        "inside = within(h, H) & within(v, W)", TILED_WEIGHT, "oob-global",
    ),
    "weight: a stage too early": Bug(
        "weight", "wait(STAGES - 2)", "wait(STAGES - 1)", TILED_WEIGHT, "cp-async-unwaited",
    ),
    "layout: more than there is": Bug(
        "layout", "if i < new_rows and j < new_cols:", "if i < new_rows:", TILED, "oob-global",
    ),
    "layout: a tile turned too early": Bug(
        "layout", "        barrier()\n", "", TILED, "race-shared",
    ),
    "depthwise: weights used too early": Bug(
        "depthwise", "            barrier()\n            return", "            return",
        DEPTHWISE, "race-shared",
    ),
    "depthwise: weights of a block's first threads only": Bug(
        "depthwise", "            while i < count:\n", "            if i < count:\n",
        DEPTHWISE, "uninit-shared",
    ),
    "depthwise: a tree without its barrier": Bug(
        "depthwise_weight", "            barrier()\n            n = half\n",
        "            n = half\n",
        conv("conv_grad_weight", "depthwise", (2, 3, 9, 8), (3, 1, 3, 3), padding=1, groups=3),
        "race-shared",
    ),
    "pool: vectors at odd places": Bug(
        "pool", "v = load4_nc(p, i32(at * 4))", "v = load4_nc(p, i32(at * 4 + 1))",
        pool("avg_pool", (1, 4, 5, 6), 3, last=True), "misaligned",
    ),
    "pool: two windows in one place": Bug(
        "pool", "write(y, i32(((plane * P + p) * Q + q) * L + c), jumps, y_sum)",
        "write(y, i32(((plane * P + p) * Q + q // 2) * L + c), jumps, y_sum)",
        pool("avg_pool", (1, 4, 5, 6), 3), "race-global",
    ),
    "pool: into the image": Bug(
        "pool", "write(y, at, jumps, best)", "write(x, at, jumps, best)",
        pool("max_pool", (1, 4, 5, 6), 3), "readonly-store",
    ),
    "pool: the last of equal numbers": Bug(
        "pool", "if v[j] > best[j] or v[j] != v[j]:", "if v[j] >= best[j]:",
        lambda be, rng: check(
            be,
            lambda be, x: be.max_pool(PoolSpec.infer(x.shape, 2, stride=1), x)[1],
            rng.integers(0, 2, (1, 4, 5, 6)).astype(np.float64),
        ) and None, WRONG,
    ),
    "planes: a tree without its barrier": Bug(
        "pool_plane",
        "            barrier()\n            if member < half:\n                total +=",
        "            if member < half:\n                total +=",
        pool("avg_pool", (1, 3, 7, 9), (7, 9)), "race-shared",
    ),
    "norm: a tree overwritten while it is read": Bug(
        "norm",
        "                v = join(v, lds4(i32(place + half * 16)))\n            barrier()\n",
        "                v = join(v, lds4(i32(place + half * 16)))\n",
        norm("y", (2, 3, 5, 5)), "race-shared",
    ),
    "norm: deviations from nothing": Bug(
        "norm", "shift = load_nc(x, at) if i < end else ZERO", "shift = ZERO",
        norm("y", (4, 3, 8, 8), mean=1e4), BUDGET,
    ),
    "norm: a channel too many": Bug(
        "norm", "end = i32(min(first + per, count)) if c < C else i32(0)",
        "end = i32(min(first + per, count))",
        norm("y", (2, 5, 4, 4), last=True), "oob-global",
    ),
    "loss: lanes that leave before a shuffle": Bug(
        "loss", "        exps = total(exps, lanes)\n",
        "        if lane > 0:\n            return\n        exps = total(exps, lanes)\n",
        loss((3, 10)), "shfl-inactive",
    ),
    "loss: lanes at different shuffles": Bug(
        "loss", "        exps = total(exps, lanes)\n",
        "        if lane & 1:\n            exps = total(exps, lanes)\n"
        "        else:\n            exps = total(ZERO - exps, lanes)\n",
        loss((3, 10)), "warp-diverged",
    ),
    "loss: an exponential of the score itself": Bug(
        "loss", "inner)) - peak\n", "inner))\n", loss((3, 10), scale=100.0), INFINITE,
    ),
    "step: numbers past the end": Bug(
        "step", "                if k < total:\n                    store(p, k, v[j])",
        "                store(p, k, v[j])", sgd(1030), "oob-global",
    ),
}  # fmt: skip

# What a planted bug need not show: no kernel of ours has local memory, traps or atomics; the
# emulator's own tests have these.
ELSEWHERE = {"oob-local", "trap", "deadlock"}


def backend(**options: Any) -> CudaBackend:
    return CudaBackend(EmulatedDevice(**options), "emulated")


def module(name: str) -> ModuleType:
    return import_module(f"gpuconv.kernels.cuda.{name}")


@pytest.mark.parametrize("name", BUGS)
def test_found(
    name: str, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = BUGS[name]
    original = module(bug.module)
    plant.replace(monkeypatch, original, plant.planted(original, tmp_path, (bug.old, bug.new)))
    if bug.find in LEVELS:
        with pytest.raises(CheckFailed) as caught:
            bug.run(backend(), rng)
        assert bug.find in {finding.kind for finding in caught.value.report.errors}
    else:
        with pytest.raises(AssertionError, match=bug.find):
            bug.run(backend(), rng)


# Module, edits, and the kernel and memory whose accesses they make inefficient; right or wrong.
SLOW: dict[str, tuple[str, tuple[tuple[str, str], ...], str, str]] = {
    "a transposed tile without its odd column": (
        "layout",
        (
            (
                "((warp + 8 * step) * 33 + lane) * 4), value)",
                "((warp + 8 * step) * 32 + lane) * 4), value)",
            ),
            ("(lane * 33 + warp + 8 * step) * 4)", "(lane * 32 + warp + 8 * step) * 4)"),
        ),
        "layout_turn",
        "shared",
    ),
    "channels in eights": (
        "tiled",
        (("b_at = i32(smem + a_bytes + col * 4)", "b_at = i32(smem + a_bytes + col * 8)"),),
        "tiled",
        "shared",
    ),
    "neighbours that are not neighbours in memory": (
        "layout",
        (
            (
                "i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)\n        if i < total:",
                "i = i32(cuda.threadIdx.x * cuda.gridDim.x + cuda.blockIdx.x)\n"
                "        if i < total:",
            ),
        ),
        "layout_widen",
        "global",
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_access_is_counted(
    name: str, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    which, edits, kernel, space = SLOW[name]
    original = module(which)
    spec = ConvSpec.infer((1, 5, 17, 17), (8, 5, 2, 2))
    x, w = (rng.standard_normal(shape).astype("float32") for shape in (spec.x_shape, spec.w_shape))
    if space == "global":
        x = channels_last(x)

    def efficiency() -> float:
        reports: list[Any] = []
        be = backend(
            stats=True,
            strict=False,
            watch=lambda k, r: k.name.startswith(kernel) and reports.append(r),
        )
        be.conv(spec, x, w, algo="tiled")
        return float(reports[0].total(space, "ideal") / reports[0].total(space))

    good = efficiency()
    plant.replace(monkeypatch, original, plant.planted(original, tmp_path, *edits))
    assert efficiency() < 0.8 * good


@pytest.mark.parametrize("run", {id(bug.run): bug.run for bug in BUGS.values()}.values())
def test_not_found_where_there_is_none(run: Run, rng: np.random.Generator) -> None:
    run(backend(), rng)


def test_every_check_has_a_bug() -> None:
    errors = {kind for kind, (level, _) in LEVELS.items() if level == "error"}
    assert {bug.find for bug in BUGS.values()} >= errors - ELSEWHERE
    said = {BUDGET, UNWRITTEN, INFINITE, DIFFERS, WRONG}
    assert {bug.find for bug in BUGS.values()} - errors == said
