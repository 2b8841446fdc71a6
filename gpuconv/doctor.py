"""What works on this machine: versions, GPU, kernels, data, and convolutions that are checked."""

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import numpy as np

import gpuconv
from gpuconv import data, driver, ops
from gpuconv.backends import backend, get_backend, host_backend, to_device
from gpuconv.errors import DeviceError, Error, FileError
from gpuconv.kernels.cache import cache_folder, unwritable

# Distribution name, and what does not work without it (empty: nothing does).
PACKAGES = {
    "numpy": "",
    "numba": "",
    "llvmlite": "",
    "rich": "",
    "typer": "",
    "safetensors": "",
    "matplotlib": "no curves in results.png; install the extra viz",
    "pillow": "no images from files; install the extra viz",
}
# What the extras cuda12 and cuda13 bring, and the major version of CUDA (0: the package's own).
# PyTorch brings nvidia-nvjitlink-cu12, which is in nobody's way: it belongs to no side.
CUDA_PACKAGES = {
    "cupy": None,
    "cupy-cuda11x": 11,
    "cupy-cuda12x": 12,
    "cupy-cuda13x": 13,
    "numba-cuda": None,
    "cuda-bindings": 0,
    "nvidia-nvvm": 0,
    "nvidia-cuda-nvcc-cu12": 12,
    "nvidia-nvjitlink": 0,
    "nvidia-nvjitlink-cu12": None,
}
OLDEST_NUMBA_CUDA = (0, 30)
OLDEST_GPU = (7, 5)
# What packages that do not go together have raised so far, besides our own errors.
BROKEN = (Error, ImportError, AttributeError, OSError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Check:
    """One line of the report; `status` is "ok", "absent" (a stated gap) or "FAILED"."""

    name: str
    status: str
    detail: str


def examine() -> list[Check]:
    """Every check, in the order a reader would ask."""
    installed = _installed(CUDA_PACKAGES)
    machine, found = _driver()
    gpus = found.gpus if found else ()
    return [
        Check("gpuconv", "ok", f"{gpuconv.__version__} in {os.path.dirname(gpuconv.__file__)}"),
        Check("python", "ok", f"{platform.python_version()}, {platform.platform()}"),
        *(_package(name, without) for name, without in PACKAGES.items()),
        Check("processors", "ok", f"{len(os.sched_getaffinity(0))} usable")
        if hasattr(os, "sched_getaffinity")
        else Check("processors", "ok", f"{os.cpu_count()}"),
        *machine,
        *_cuda_packages(installed, found),
        _folder(),
        _compiles(gpus[0].arch if gpus else "sm_80"),
        *_ready_made(),
        _disassembler(),
        _processor(),
        _backend("cpu", required=True),
        _backend("numpy", required=True),
        _backend("emulated", required="numba-cuda" in installed),
        _backend("cuda", required=bool(gpus) and any(n.startswith("cupy") for n in installed)),
        _default(),
        _data("fashion-mnist-mini", data.fashion_mnist_mini),
        _data("fashion-mnist", data.fashion_mnist),
    ]


def works(report: list[Check]) -> str:
    """What can be done on this machine, what cannot and why: the report in one line."""
    checks = {check.name: check for check in report}

    def ok(name: str) -> bool:
        return checks[name].status == "ok"

    parts = []
    if ok("backend cpu"):
        parts.append("training and inference on the CPU")
    if ok("backend cuda"):
        parts.append("training and inference on the GPU with CUDA kernels")
    verbs = [
        verb
        for verb, name in (("compile", "kernels"), ("run in the emulator", "backend emulated"))
        if ok(name)
    ]
    if verbs:
        parts.append(f"CUDA kernels {' and '.join(verbs)}")
    if "ready-made kernels" in checks and ok("ready-made kernels"):
        parts.append(f"ready-made {checks['ready-made kernels'].detail}")
    elif not verbs:
        parts.append(f"no CUDA kernels: {checks['kernels'].detail}")
    if not ok("backend cuda"):
        parts.append(f"no GPU: {_why_no_gpu(checks)}")
    failed = [check.name for check in report if check.status == "FAILED"]
    if failed:
        parts.append(f"FAILED: {', '.join(failed)}")
    return "; ".join(parts)


def _why_no_gpu(checks: Mapping[str, Check]) -> str:
    for name in ("driver", "gpu 0"):
        if name in checks and checks[name].status != "ok":
            return checks[name].detail
    return checks["backend cuda"].detail


def _installed(names: Mapping[str, object]) -> dict[str, str]:
    """Name -> version, of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _package(name: str, without: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(
            name, "absent" if without else "FAILED", without or "needed; reinstall gpuconv"
        )


def _driver() -> tuple[list[Check], driver.Driver | None]:
    """The driver and its GPUs."""
    try:
        found = driver.find()
    except DeviceError as error:
        return [Check("driver", "FAILED", str(error))], None
    if found is None:
        return [Check("driver", "absent", "this machine has no NVIDIA driver")], None
    cuda = ".".join(map(str, found.cuda))
    report = [Check("driver", "ok", f"{found.version or 'version unknown'}, for CUDA {cuda}")]
    for i, gpu in enumerate(found.gpus):
        what = (
            f"{gpu.name}, {gpu.arch}, {gpu.multiprocessors} multiprocessors, "
            f"{gpu.memory / 2**30:.1f} GiB"
        )
        if gpu.capability < OLDEST_GPU:
            what += "; too old: the kernels need sm_75 or later"
        report.append(Check(f"gpu {i}", "ok" if gpu.capability >= OLDEST_GPU else "absent", what))
    if not found.gpus:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if chosen is None else f" with CUDA_VISIBLE_DEVICES={chosen!r}"
        report.append(Check("gpu 0", "absent", f"the driver shows no GPU{why}"))
    return report, found


def _cuda_packages(installed: Mapping[str, str], found: driver.Driver | None) -> list[Check]:
    """The packages of the CUDA extras, and whether they go together."""
    report = [Check(name, "ok", version) for name, version in installed.items()]
    cuda = found.cuda if found else None
    extra = _extra(12 if cuda and cuda[0] == 12 else 13)
    if not any(name.startswith("cupy") for name in installed):
        report.append(Check("cupy", "absent", f"nothing runs on a GPU; {extra}"))
    if "numba-cuda" not in installed:
        report.append(Check("numba-cuda", "absent", f"kernels do not compile; {extra}"))
    if problems := conflicts(installed, cuda):
        detail = f"{'; '.join(problems)}. Mend it in the checkout with: {mend(installed, cuda)}"
        report.append(Check("cuda packages", "FAILED", detail))
    elif majors := sorted(set(_majors(installed).values())):
        report.append(Check("cuda packages", "ok", f"all of CUDA {majors[0]}"))
    return report


def conflicts(installed: Mapping[str, str], cuda: tuple[int, int] | None) -> list[str]:
    """What does not fit among the CUDA packages (name -> version) and the driver's CUDA version."""
    problems, majors = [], _majors(installed)
    cupys = [name for name in installed if name.startswith("cupy")]
    if len(cupys) > 1:
        problems.append(f"{' and '.join(cupys)} overwrite each other's files")
    if len(set(majors.values())) > 1:
        sides = (
            f"{major} ({', '.join(name for name, m in majors.items() if m == major)})"
            for major in sorted(set(majors.values()))
        )
        problems.append(f"packages of CUDA {' and '.join(sides)} are mixed")
    nvvm, linker = installed.get("nvidia-nvvm"), installed.get("nvidia-nvjitlink")
    if nvvm and linker and _version(nvvm) > _version(linker):
        problems.append(f"nvidia-nvjitlink {linker} does not read what nvidia-nvvm {nvvm} writes")
    if cuda and cuda[0] < max(majors.values(), default=0):
        newest = max(majors, key=lambda name: majors[name])
        problems.append(
            f"the driver is for CUDA {cuda[0]}.{cuda[1]}, {newest} for {majors[newest]}: "
            f"update the driver, or take the packages it can use"
        )
    return problems


def mend(installed: Mapping[str, str], cuda: tuple[int, int] | None) -> str:
    """The commands after which `conflicts` finds nothing; for CUDA 13 unless all else is 12."""
    majors = _majors(installed)
    wanted = 12 if (cuda and cuda[0] == 12) or set(majors.values()) == {12} else 13
    cupys = [name for name in installed if name.startswith("cupy")]
    away = {name for name, major in majors.items() if major != wanted}
    if len(cupys) > 1:
        away.update(cupys)
    install = f"pip install '.[cuda{wanted}]'"
    return f"pip uninstall -y {' '.join(sorted(away))} && {install}" if away else install


def _extra(cuda: int) -> str:
    """The advice to install what the kernels need."""
    return f"install the extra cuda{cuda} (pip install '.[cuda{cuda}]' in the checkout)"


def _majors(installed: Mapping[str, str]) -> dict[str, int]:
    """Package -> the major version of CUDA that it is of."""
    known = ((name, CUDA_PACKAGES[name], version) for name, version in installed.items())
    return {name: m or _version(version)[0] for name, m, version in known if m is not None}


def _version(text: str) -> tuple[int, int]:
    major, minor = [*map(int, re.findall(r"\d+", text)), 0, 0][:2]
    return major, minor


def _folder() -> Check:
    try:
        kernels = import_module("gpuconv.kernels")
    except ImportError as error:
        return Check("gpuconv.kernels", "FAILED", f"{error}; reinstall gpuconv")
    return Check("gpuconv.kernels", "ok", os.path.dirname(str(kernels.__file__)))


def _compiles(arch: str) -> Check:
    """Compile a kernel: really, not looking for what was compiled before."""
    try:
        compiler = import_module("gpuconv.kernels.cuda.compiler")
    except ImportError as error:
        return Check("kernels", "FAILED", f"{error}; reinstall gpuconv")
    numba_cuda = compiler.version("numba-cuda")
    if not numba_cuda:
        return Check("kernels", "absent", f"there is no compiler; {_extra(13)}")
    start = time.perf_counter()
    try:
        kernel = import_module("gpuconv.kernels.cuda.direct").grad_input_kernel("float32", False)
        binary = compiler.build(kernel, arch)
    except BROKEN as error:
        old = _version(numba_cuda) < OLDEST_NUMBA_CUDA
        hint = f"; numba-cuda {numba_cuda} is old: {_extra(13)}" if old else ""
        return Check("kernels", "FAILED", f"{_one_line(error)}{hint}")
    seconds = time.perf_counter() - start
    detail = f"{kernel.name} compiled for {arch} in {seconds:.1f} s: {binary.registers} registers"
    folder = cache_folder()
    why = unwritable(folder)
    kept = f"they are not kept: {why}; set GPUCONV_CACHE" if why else f"they are kept in {folder}"
    return Check("kernels", "ok", f"{detail}; {kept}")


def _ready_made() -> list[Check]:
    """What is in $GPUCONV_KERNELS, if it is set."""
    given = os.environ.get("GPUCONV_KERNELS")
    if not given:
        return []
    try:
        study = import_module("gpuconv.study")
        compiler = import_module("gpuconv.kernels.cuda.compiler")
    except ImportError as error:
        return [Check("ready-made kernels", "FAILED", f"{error}; reinstall gpuconv")]
    folder = Path(given)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        why = f"GPUCONV_KERNELS={given} {what}; set it to a folder made by gpuconv kernels build"
        return [Check("ready-made kernels", "FAILED", why)]
    if counts := study.ready_made(folder):
        said = ", ".join(f"{n} kernel{'s'[: n != 1]} for {arch}" for arch, n in counts.items())
        return [Check("ready-made kernels", "ok", f"{said} in {given}")]
    why = "has no kernels"
    if compiler.ready_archs(folder):
        why = "has kernels of another version of the source only"
    return [Check("ready-made kernels", "FAILED", f"GPUCONV_KERNELS={given} {why}; build them")]


def _disassembler() -> Check:
    try:
        sass = import_module("gpuconv.kernels.cuda.sass")
        return Check("disassembler", "ok", sass.disassembler())
    except (ImportError, RuntimeError) as error:
        return Check("disassembler", "absent", f"no machine code is shown: {error}")


def _processor() -> Check:
    """What CPU kernels are compiled for, and on how many threads they run."""
    try:
        compiler = import_module("gpuconv.kernels.cpu.compiler")
        isa, threads = compiler.host(), gpuconv.get_num_threads()
    except BROKEN as error:
        return Check("processor", "FAILED", _one_line(error))
    several = f"{threads} threads" if threads > 1 else "1 thread"
    kept = cache_folder()
    return Check("processor", "ok", f"{isa.name} kernels ({isa.cpu}), {several}, kept in {kept}")


def _backend(name: str, required: bool) -> Check:
    """Run a small convolution and a product, and compare them with plain loops."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, 5, 4)), rng.standard_normal((3, 2, 3, 3))
    truth = np.zeros((1, 3, 3, 2))
    for k, p, q in np.ndindex(truth.shape[1:]):
        truth[0, k, p, q] = sum(
            x[0, c, p + r, q + s] * w[k, c, r, s] for c, r, s in np.ndindex(2, 3, 3)
        )
    try:
        be = get_backend(name)
        with backend(be):
            y = ops.conv2d(be.asarray(x), be.asarray(w))
            z = to_device(ops.matmul(y, be.asarray(np.ones((2, 1)))), "cpu")
            y = to_device(y, "cpu")
    except BROKEN as error:
        return Check(f"backend {name}", "FAILED" if required else "absent", _one_line(error))
    off = float(max(np.abs(y - truth).max(), np.abs(z[..., 0] - truth.sum(3)).max()))
    if off < 1e-12:
        return Check(f"backend {name}", "ok", "convolution and product agree with plain loops")
    return Check(f"backend {name}", "FAILED", f"convolution or product is off by {off:.2e}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _default() -> Check:
    try:
        return Check("default backend", "ok", f"{host_backend().name}, for NumPy arrays")
    except DeviceError as error:
        return Check("default backend", "FAILED", str(error))


def _data(name: str, read: Callable[[str], data.Dataset]) -> Check:
    try:
        return Check(f"data {name}", "ok", f"{len(read('test'))} test images")
    except FileError as error:
        status = "FAILED" if name.endswith("mini") else "absent"
        return Check(f"data {name}", status, str(error))
