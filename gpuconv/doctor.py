"""What works on this machine: versions, devices, data, and a convolution that is checked."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata

import numpy as np

import gpuconv
from gpuconv import data, ops
from gpuconv.backends import backend, get_backend, host_backend, to_device
from gpuconv.errors import DeviceError, FileError

# Distribution name, and what does not work without it (empty: nothing does).
PACKAGES = {
    "numpy": "",
    "numba": "",
    "rich": "",
    "typer": "",
    "safetensors": "",
    "matplotlib": "no curves in results.png; install gpuconv[viz]",
    "pillow": "no images from files; install gpuconv[viz]",
}


@dataclass(frozen=True)
class Check:
    """One line of the report; `status` is "ok", "absent" (a stated gap) or "FAILED"."""

    name: str
    status: str
    detail: str


def examine() -> list[Check]:
    """Every check, in the order a reader would ask."""
    report = [
        Check("gpuconv", "ok", f"{gpuconv.__version__} in {os.path.dirname(gpuconv.__file__)}"),
        Check("python", "ok", f"{platform.python_version()}, {platform.platform()}"),
        *(_package(name, without) for name, without in PACKAGES.items()),
        Check("processors", "ok", f"{len(os.sched_getaffinity(0))} usable")
        if hasattr(os, "sched_getaffinity")
        else Check("processors", "ok", f"{os.cpu_count()}"),
    ]
    for name in ("numpy", "cuda"):
        report.append(_backend(name))
    report += [_default(), _kernels()]
    report.append(_data("fashion-mnist-mini", data.fashion_mnist_mini))
    report.append(_data("fashion-mnist", data.fashion_mnist))
    return report


def _package(name: str, without: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(
            name, "absent" if without else "FAILED", without or "needed; reinstall gpuconv"
        )


def _backend(name: str) -> Check:
    """Run a small convolution and compare it with plain loops."""
    try:
        be = get_backend(name)
    except DeviceError as error:
        return Check(f"backend {name}", "absent", str(error))
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, 5, 4)), rng.standard_normal((3, 2, 3, 3))
    truth = np.zeros((1, 3, 3, 2))
    for k, p, q in np.ndindex(truth.shape[1:]):
        truth[0, k, p, q] = sum(
            x[0, c, p + r, q + s] * w[k, c, r, s] for c, r, s in np.ndindex(2, 3, 3)
        )
    with backend(be):
        y = to_device(ops.conv2d(be.asarray(x), be.asarray(w)), "cpu")
    off = float(np.abs(y - truth).max())
    if off < 1e-12:
        return Check(f"backend {name}", "ok", "convolution agrees with plain loops")
    return Check(f"backend {name}", "FAILED", f"convolution is off by {off:.2e}")


def _default() -> Check:
    try:
        return Check("default backend", "ok", f"{host_backend().name}, for NumPy arrays")
    except DeviceError as error:
        return Check("default backend", "FAILED", str(error))


def _kernels() -> Check:
    try:
        kernels = import_module("gpuconv.kernels")
    except ImportError as error:
        return Check("gpuconv.kernels", "FAILED", f"{error}; reinstall gpuconv")
    return Check("gpuconv.kernels", "ok", os.path.dirname(str(kernels.__file__)))


def _data(name: str, read: Callable[[str], data.Dataset]) -> Check:
    try:
        return Check(f"data {name}", "ok", f"{len(read('test'))} test images")
    except FileError as error:
        status = "FAILED" if name.endswith("mini") else "absent"
        return Check(f"data {name}", status, str(error))
