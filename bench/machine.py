"""What a measurement was made on: versions, processors, code; settings; measured peaks."""

import hashlib
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import gpuconv
from bench import timing
from bench.problems import as_torch, has_torch
from gpuconv.cpu.peaks import peaks as cpu_peaks

ROOT = Path(gpuconv.__file__).parents[1]
PACKAGES = (
    *("numpy", "numba", "numba-cuda", "cupy-cuda13x", "cupy-cuda12x", "torch", "onnxruntime"),
    "nvidia-cudnn-cu13",
)
# Fresh memory costs 5 microseconds a page at its first touch. With these, glibc keeps what was
# freed and gives it out again, to every contender alike, instead of returning it to the system.
TUNABLES = ":".join(
    f"glibc.malloc.{name}"
    for name in ("mmap_max=0", "trim_threshold=1099511627776", "top_pad=67108864")
)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle(device: str, threads: int) -> None:
    """Run this program anew with so many threads, on a CPU also with TUNABLES, if it has not."""
    wanted = dict.fromkeys(THREADS, str(threads))
    if device == "cpu":
        wanted["GLIBC_TUNABLES"] = TUNABLES
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def environment(device: str, xp: Any, threads: int) -> dict[str, Any]:
    """All that a reader needs to judge the figures, as JSON values."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(ROOT),
        "dirty": dirty(ROOT),
        "source": source(ROOT),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "processors": processors(),
        "threads": threads,
        "settings": {name: os.environ.get(name, "") for name in (*THREADS, "GLIBC_TUNABLES")},
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
    }
    if device == "cuda":
        found["gpu"] = gpu(xp)
    return found


def gpu(cupy: Any) -> dict[str, Any]:
    """The current device, its driver, and the CUDA that CuPy was built for."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    release = Path("/proc/driver/nvidia/version")
    line = release.read_text().splitlines()[0] if release.exists() else ""
    words = [word for word in line.split() if word[:1].isdigit() and "." in word]
    return {
        "name": properties["name"].decode(),
        "driver": words[0] if words else "unknown",
        "driver_cuda": runtime.driverGetVersion(),
        "runtime_cuda": runtime.runtimeGetVersion(),
        "multiprocessors": properties["multiProcessorCount"],
        "l2_bytes": properties["l2CacheSize"],
        "memory_bytes": properties["totalGlobalMem"],
    }


def peaks(device: str, xp: Any, small: bool = False) -> dict[str, Any]:
    """Measured: "flops", of a float32 matrix product, and "bytes" read and written, of a copy.

    Both a second. The best of a few runs; NumPy's and, where there is one, torch's product, and on
    a CPU ours in registers.
    "disturbed" names those of which no run was undisturbed; `small` arrays fit into caches.
    """
    timer = timing.CpuTimer() if xp is np else timing.CudaTimer(xp, False, 0)
    n = 256 if small else 8192 if device == "cuda" else 2048
    size = 2**20 if small else 2**30 if device == "cuda" else 2**28
    a, b = (xp.asarray(np.random.default_rng(i).random((n, n), dtype=np.float32)) for i in (0, 1))
    products = [lambda: xp.matmul(a, b)]
    if xp is np and has_torch(np):
        s, t = as_torch(a), as_torch(b)
        products.append(lambda: s @ t)
    source, target = xp.ones(size // 4, dtype=np.float32), xp.empty(size // 4, dtype=np.float32)

    def copy() -> None:
        target[...] = source

    found = [timing.steady(timer, call) for call in (*products, copy)]
    disturbed = [
        name
        for name, part in (("flops", found[:-1]), ("bytes", found[-1:]))
        if any(rough for _, rough in part)
    ]
    flops = 2 * n**3 / min(seconds for seconds, _ in found[:-1])
    if xp is np:
        flops = max(flops, cpu_peaks()[0])
    return {
        "flops": flops,
        "bytes": 2 * size / found[-1][0],
        "disturbed": disturbed,
        "small": small,
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In what two results' machines, code and settings differ, such that rows must not be mixed."""
    mine, theirs = _matters(new), _matters(old)
    return [
        f"{name} was {theirs.get(name)!r}, is {mine.get(name)!r}"
        for name in dict.fromkeys((*mine, *theirs))
        if mine.get(name) != theirs.get(name)
    ]


def _matters(result: dict[str, Any]) -> dict[str, Any]:
    """All of the environment, and of the settings, that times depend on, by name."""
    found = dict(result.get("settings", {}))
    for name, value in result.get("environment", {}).items():
        if isinstance(value, dict):  # versions, variables, the GPU
            found |= {inner if name != "gpu" else f"gpu {inner}": v for inner, v in value.items()}
        elif name not in ("date", "commit", "dirty"):  # `source` says whether the code is the same
            found[name] = value
    return found


def commit(root: Path) -> str:
    """The commit checked out, or what $BENCH_COMMIT says where there is no repository."""
    return os.environ.get("BENCH_COMMIT") or _git(root, "rev-parse", "HEAD") or "unknown"


def revision(rev: str) -> str:
    """The commit that `rev` stands for; `rev` itself where there is no repository to ask."""
    return _git(ROOT, "rev-parse", "--verify", "--quiet", rev) or rev


def dirty(root: Path) -> bool | None:
    """Whether tracked files of the library differ from the commit; None if that is not known."""
    if _git(root, "rev-parse", "HEAD") is None:
        return None
    return bool(_git(root, "status", "--porcelain", "gpuconv", "kernels"))


def source(root: Path) -> str:
    """A hash of the library's source: the same for the same code, committed or not."""
    total = hashlib.sha256()
    for path in sorted(p for part in ("gpuconv", "kernels") for p in (root / part).rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def cpu_model() -> str:
    """As Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
