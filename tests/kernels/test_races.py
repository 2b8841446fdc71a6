"""No schedule of any kernel has a race: proved by sentryward, launch by launch; and it can fail.

Each kernel is verified in one small launch, of which at most two blocks an axis: the blocks of a
grid are alike. Float64 is the same code as float32, and is left to the emulator.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuconv.shapes import ConvSpec, PoolSpec
from tests.operations import channels_last

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")
pytest.importorskip("sentryward", reason="installed with gpuconv[dev] on Linux on x86-64")

from gpuconv.cuda import CudaBackend
from gpuconv.kernels import cuda
from gpuconv.kernels.cuda import direct, product, tiled, weight
from gpuconv.kernels.cuda.compiler import Kernel
from tests.kernels import plant, sentry

# Kernels (by the start of their names) that sentryward does not follow, and what it says of them.
# Their branches depend on the data: on which number is larger, on labels.
UNSUPPORTED = {
    "plane_max": "control_predicate_not_static",
    "max_pool_grad_strided": "control_predicate_not_static",
    "cross_entropy": "control_predicate_not_static",
}


def _zeros(shape: tuple[int, ...], last: bool = False) -> Any:
    x = np.zeros(shape, np.float32)
    return channels_last(x) if last else x


def _conv(be: Any, algo: str, x: Any, w: Any, **options: Any) -> None:
    """The three passes in both memory formats."""
    spec = ConvSpec.infer(x, w, **options)
    for last in (False, True):
        image, gy = _zeros(x, last), _zeros(spec.y_shape, last)
        be.conv(spec, image, _zeros(w), _zeros(w[:1]), algo=algo, relu=True)
        be.conv_grad_input(spec, gy, _zeros(w), algo=algo)
        be.conv_grad_weight(spec, gy, image, algo=algo)


def _direct(be: Any) -> None:
    for mode in direct.MODES:
        _conv(be, "direct", (2, 2, 3, 3), (2, 2, 3, 2), padding=1, padding_mode=mode)


def _tiled(be: Any) -> None:
    """Five steps of a product, two more than there are stages; and a product in parts."""
    spec = ConvSpec.infer((1, 32, 4, 4), (8, 32, 3, 3), padding=1, stride=2)
    for last in (False, True):
        split = product.forward(be.device, spec, last, True, False, True, (tiled.CONFIGS[-1], 3))
        split(_zeros(spec.x_shape, last), None, None, None, None)
    spec = ConvSpec.infer((1, 8, 4, 4), (8, 8, 3, 3), padding=1)
    for config in tiled.CONFIGS:
        for last in (False, True):
            run = product.forward(be.device, spec, last, True, False, True, (config, 1))
            run(_zeros(spec.x_shape, last), None, None, None, None)


def _tiled_gradients(be: Any) -> None:
    """72 pixels: five steps of a product."""
    spec = ConvSpec.infer((2, 5, 6, 6), (6, 5, 3, 3), padding=1)
    for config in weight.CONFIGS:
        for last in (False, True):
            weight.grad_weight(be.device, spec, last, last, (config, 1))(None, None, None)
    _conv(be, "tiled", (1, 5, 5, 4), (6, 5, 3, 3), stride=2)


def _depthwise(be: Any) -> None:
    for channels in (3, 4):
        for size, stride in ((7, 1), (5, 1), (3, 1), (3, 2), (2, 1)):
            _conv(
                be, "depthwise", (2, channels, 8, 9), (channels, 1, size, size),
                padding=1, stride=stride, groups=channels,
            )  # fmt: skip
    # So many pixels that the sums are in slabs.
    _conv(be, "depthwise", (4, 1, 70, 70), (1, 1, 1, 1))


def _pool(be: Any) -> None:
    for spec in (
        PoolSpec.infer((2, 4, 7, 6), 3, stride=2, padding=1),
        PoolSpec.infer((2, 4, 3, 5), (3, 5)),
    ):
        for last in (False, True):
            x, gy = _zeros(spec.x_shape, last), _zeros(spec.y_shape, last)
            _, tap = be.max_pool(spec, x)
            be.avg_pool(spec, x, 9.0)
            be.max_pool_grad(spec, gy, tap)
            be.avg_pool_grad(spec, gy, 9.0)


def _norm(be: Any) -> None:
    for shape in ((2, 3, 3, 5), (2, 2, 80, 80)):
        for last in (False, True):
            x, w = _zeros(shape, last), _zeros(shape[1:2])
            *_, saved = be.batch_norm(x, w, w, 1e-5)
            be.batch_norm_grad(x, w, saved)


def _loss(be: Any) -> None:
    x, target = _zeros((3, 5)), np.zeros(3, np.int64)
    losses, saved = be.softmax_cross_entropy(x, target, _zeros((5,)), -100, 0.1)
    be.softmax_cross_entropy_grad(losses, saved, target, _zeros((5,)), -100, 0.1)


def _step(be: Any) -> None:
    a, b, c, d, e = (_zeros((1030,)) for _ in range(5))
    be.sgd_step(
        a, b, c, False, lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.1, nesterov=True
    )
    be.adam_step(
        a, b, c, d, e, 3, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, decoupled=True
    )
    be.rmsprop_step(a, b, c, d, e, lr=0.1, alpha=0.9, eps=1e-8, weight_decay=0.1, momentum=0.9)


FAMILIES: dict[str, Callable[[Any], None]] = {
    "direct": _direct,
    "tiled": _tiled,
    "tiled gradients": _tiled_gradients,
    "depthwise": _depthwise,
    "pool": _pool,
    "norm": _norm,
    "loss": _loss,
    "step": _step,
}


def recorded(family: Callable[[Any], None], arch: str = sentry.ARCH) -> dict[Kernel, sentry.Launch]:
    """A launch of each kernel that a family's problems launch, cut to a few blocks."""
    device = sentry.Recorder(arch)
    family(CudaBackend(device, "recorded"))
    found: dict[Kernel, sentry.Launch] = {}
    for launch in device.launches:
        x, y, z = (min(blocks, 2) for blocks in launch.grid)
        found.setdefault(launch.kernel, replace(launch, grid=(x, y, z)))
    return found


def verdict(launch: sentry.Launch, folder: Path) -> str:
    """ "race_free", or the result and why."""
    answer = sentry.verify(launch, folder)
    return f"{answer['result']} {sentry.reason(answer)}".strip()


def expected(kernel: Kernel) -> str:
    """What `verdict` should be."""
    for name, code in UNSUPPORTED.items():
        if kernel.name.startswith(name):
            return f"unsupported {code}"
    return "race_free"


@pytest.mark.parametrize("name", FAMILIES)
def test_race_free(name: str, tmp_path: Path) -> None:
    launches = recorded(FAMILIES[name])
    found = {kernel.name: verdict(launch, tmp_path) for kernel, launch in launches.items()}
    assert found == {kernel.name: expected(kernel) for kernel in launches}


def test_race_free_without_asynchronous_copies(tmp_path: Path) -> None:
    """The variants for sm_75, of the smallest tiles."""
    launches = {
        kernel.name: launch
        for family in (_tiled, _tiled_gradients)
        for kernel, launch in recorded(family, "sm_75").items()
    }
    for name in ("tiled_64x64_nhwc_sm75", "grad_weight_64x64_sm75"):
        assert verdict(launches[name], tmp_path) == "race_free", name


def test_every_kernel_has_a_problem() -> None:
    there = {
        kernel.name
        for module in pkgutil.iter_modules(cuda.__path__)
        for kernel in getattr(
            importlib.import_module(f"{cuda.__name__}.{module.name}"), "kernels", list
        )()
        if not kernel.name.endswith(("_float64", "_sm75"))
    }
    mine = {kernel.name for family in FAMILIES.values() for kernel in recorded(family)}
    assert there == mine, "add a problem to FAMILIES"


# Module, the text to replace, what by, and the family whose first such launch then has a race.
RACES = {
    "a tree without its barrier": (
        "direct", "            barrier()\n", "", "direct", "direct_grad_weight_zeros_float32",
    ),
    "a stage overwritten while it is read": (
        "tiled",
        "                await_one()\n                barrier()\n",
        "                await_one()\n",
        "tiled",
        "tiled_64x64_nhwc",
    ),
    "a copy that is not waited for": (
        "tiled",
        "                await_one()\n                barrier()\n",
        "                barrier()\n",
        "tiled",
        "tiled_64x64_nhwc",
    ),
    "one stage too few": (
        "tiled", "wait(STAGES - 2)", "wait(STAGES - 1)", "tiled", "tiled_64x64_nhwc",
    ),
    "two threads write one number": (
        "layout", "        store(y, i, value)\n\n    return gather",
        "        store(y, i32(i & ~1), value)\n\n    return gather", "tiled gradients",
        "layout_gather",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", RACES)
def test_a_planted_race_is_found(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, old, new, family, kernel = RACES[bug]
    module = sys.modules[f"{cuda.__name__}.{name}"]
    plant.replace(monkeypatch, module, plant.planted(module, tmp_path, (old, new)))
    launches = {k.name: launch for k, launch in recorded(FAMILIES[family]).items()}
    assert verdict(launches[kernel], tmp_path).startswith("potential_race")
