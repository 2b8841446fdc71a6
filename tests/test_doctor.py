"""The doctor: what it says here, of mixed CUDA packages, and of drivers and GPUs of all kinds."""

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuconv import backends, doctor, driver
from gpuconv.doctor import Check, conflicts, mend
from gpuconv.driver import Driver, Gpu
from gpuconv.errors import DeviceError
from tests.test_cli import gpuconv as program

CUDA13 = {
    "cupy-cuda13x": "14.2.0",
    "numba-cuda": "0.30.4",
    "cuda-bindings": "13.0.3",
    "nvidia-nvvm": "13.0.88",
    "nvidia-nvjitlink": "13.0.88",
}
CUDA12 = {
    "cupy-cuda12x": "14.2.0",
    "numba-cuda": "0.30.4",
    "cuda-bindings": "12.9.10",
    "nvidia-cuda-nvcc-cu12": "12.9.86",
    "nvidia-nvjitlink-cu12": "12.9.86",
}
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 85_520_809_984)


def test_content_here() -> None:
    done = program("doctor")
    assert done.returncode == 0, done.stdout
    *lines, last = done.stdout.splitlines()
    assert "ok      backend numpy           convolution and product agree with plain loops" in lines
    assert last.startswith("works here: training and inference on the CPU; ")


def test_as_json() -> None:
    report = json.loads(program("doctor", "--json").stdout)
    assert report["ok"] is True
    assert report["works"].startswith("training and inference on the CPU; ")
    assert {check["status"] for check in report["checks"]} <= {"ok", "absent"}
    names = [check["name"] for check in report["checks"]]
    assert len(set(names)) == len(names)
    assert {"gpuconv", "driver", "kernels", "disassembler", "backend emulated"} <= set(names)
    assert {"processor", "backend cpu", "backend numpy"} <= set(names)


def test_a_failure_is_status_1() -> None:
    done = program("doctor", GPUCONV_BACKEND="cuda")
    assert done.returncode == 1
    assert "FAILED  default backend" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("FAILED: default backend")
    assert json.loads(program("doctor", "--json", GPUCONV_BACKEND="cuda").stdout)["ok"] is False


@pytest.mark.parametrize(
    ("installed", "cuda"),
    [
        ({}, None),
        ({}, (12, 4)),
        (CUDA13, None),
        (CUDA13, (13, 0)),
        (CUDA12, (12, 4)),
        (CUDA12, (13, 0)),
        # PyTorch for CUDA 12 brings this one; nothing of ours looks at it.
        (CUDA13 | {"nvidia-nvjitlink-cu12": "12.8.93"}, (13, 0)),
        (CUDA13 | {"nvidia-nvjitlink": "13.1.2"}, None),
        # A toolkit of the system may bring the compiler, conda a CuPy of either version.
        ({"cupy": "14.2.0", "numba-cuda": "0.31", "cuda-bindings": "13.1.0"}, (13, 0)),
    ],
)
def test_packages_that_go_together(installed: dict[str, str], cuda: tuple[int, int] | None) -> None:
    assert conflicts(installed, cuda) == []


@pytest.mark.parametrize(
    ("installed", "cuda", "said", "commands"),
    [
        (
            CUDA13 | CUDA12,
            None,
            "cupy-cuda13x and cupy-cuda12x overwrite each other's files; packages of CUDA 12 "
            "(cuda-bindings, cupy-cuda12x, nvidia-cuda-nvcc-cu12) and 13 (cupy-cuda13x, "
            "nvidia-nvvm, nvidia-nvjitlink) are mixed",
            "pip uninstall -y cuda-bindings cupy-cuda12x cupy-cuda13x nvidia-cuda-nvcc-cu12 && "
            "pip install '.[cuda13]'",
        ),
        (
            CUDA13 | CUDA12,
            (12, 4),
            "overwrite each other's files",
            "pip uninstall -y cupy-cuda12x cupy-cuda13x nvidia-nvjitlink nvidia-nvvm && "
            "pip install '.[cuda12]'",
        ),
        (
            CUDA13 | {"cuda-bindings": "12.9.10"},
            None,
            "packages of CUDA 12 (cuda-bindings) and 13 (cupy-cuda13x, nvidia-nvvm, "
            "nvidia-nvjitlink) are mixed",
            "pip uninstall -y cuda-bindings && pip install '.[cuda13]'",
        ),
        (
            CUDA13 | {"nvidia-nvvm": "13.5.37"},
            None,
            "nvidia-nvjitlink 13.0.88 does not read what nvidia-nvvm 13.5.37 writes",
            "pip install '.[cuda13]'",
        ),
        (
            {"cupy": "13.6.0", "cupy-cuda13x": "14.2.0"},
            None,
            "cupy and cupy-cuda13x overwrite each other's files",
            "pip uninstall -y cupy cupy-cuda13x && pip install '.[cuda13]'",
        ),
        (
            CUDA13,
            (12, 4),
            "the driver is for CUDA 12.4, cupy-cuda13x for 13: update the driver",
            "pip uninstall -y cuda-bindings cupy-cuda13x nvidia-nvjitlink nvidia-nvvm && "
            "pip install '.[cuda12]'",
        ),
    ],
)
def test_packages_that_do_not(
    installed: dict[str, str], cuda: tuple[int, int] | None, said: str, commands: str
) -> None:
    assert said in "; ".join(conflicts(installed, cuda))
    assert mend(installed, cuda) == commands
    (check,) = [
        check
        for check in doctor._cuda_packages(installed, cuda and Driver("", cuda, ()))
        if check.name == "cuda packages"
    ]
    assert check.status == "FAILED"
    assert check.detail.endswith(f". Mend it in the checkout with: {commands}")


def test_packages_of_cuda_that_are_absent() -> None:
    report = doctor._cuda_packages({}, Driver("", (12, 8), (H100,)))
    assert [(check.name, check.status) for check in report] == [
        ("cupy", "absent"),
        ("numba-cuda", "absent"),
    ]
    assert all("pip install '.[cuda12]' in the checkout" in check.detail for check in report)


class Library:
    """Answers as the driver's library does."""

    def __init__(self, started: int = 0, cuda: int = 13000, gpus: tuple[Gpu, ...] = ()) -> None:
        self.started, self.cuda, self.gpus, self.error = started, cuda, gpus, 0

    def cuInit(self, flags: int) -> int:
        return self.started

    def _give(self, out: Any, value: int) -> int:
        out._obj.value = value
        return self.error

    def cuDriverGetVersion(self, out: Any) -> int:
        return self._give(out, self.cuda)

    def cuDeviceGetCount(self, out: Any) -> int:
        return self._give(out, len(self.gpus))

    def cuDeviceGet(self, out: Any, index: int) -> int:
        return self._give(out, index)

    def cuDeviceGetName(self, name: Any, size: int, index: int) -> int:
        name.value = self.gpus[index].name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, index: int) -> int:
        return self._give(out, self.gpus[index].memory)

    def cuDeviceGetAttribute(self, out: Any, attribute: int, index: int) -> int:
        gpu = self.gpus[index]
        major, minor = gpu.capability
        return self._give(out, {16: gpu.multiprocessors, 75: major, 76: minor}[attribute])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], None]:
    """machine(library): the driver's library of this machine; an exception, to have none."""

    def become(library: Any) -> None:
        def load(name: str) -> Any:
            if isinstance(library, Exception):
                raise library
            return library

        monkeypatch.setattr(ctypes, "CDLL", load)
        path = tmp_path / "version"
        path.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Rel\n")
        monkeypatch.setattr(driver, "VERSION_FILE", path)

    return become


def test_a_driver_with_gpus(machine: Callable[[Any], None]) -> None:
    old = Gpu("Tesla V100", (7, 0), 80, 16 << 30)
    machine(Library(gpus=(H100, old)))
    assert driver.find() == Driver("580.95.05", (13, 0), (H100, old))
    assert H100.arch == "sm_90"
    report, _ = doctor._driver()
    assert report == [
        Check("driver", "ok", "580.95.05, for CUDA 13.0"),
        Check("gpu 0", "ok", "NVIDIA H100 80GB HBM3, sm_90, 132 multiprocessors, 79.6 GiB"),
        Check(
            "gpu 1",
            "absent",
            "Tesla V100, sm_70, 80 multiprocessors, 16.0 GiB; too old: the kernels need sm_75 or "
            "later",
        ),
    ]


def test_machines_without_a_gpu(
    machine: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(OSError("libcuda.so.1: cannot open shared object file"))
    assert doctor._driver() == (
        [Check("driver", "absent", "this machine has no NVIDIA driver")],
        None,
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine(Library(driver.NO_DEVICE, 12080))
    report, found = doctor._driver()
    assert found == Driver("580.95.05", (12, 8), ())
    said = "the driver shows no GPU with CUDA_VISIBLE_DEVICES=''"
    assert report[1:] == [Check("gpu 0", "absent", said)]


def test_a_driver_that_is_broken(machine: Callable[[Any], None]) -> None:
    machine(Library(803))
    report, found = doctor._driver()
    assert found is None
    assert [check.status for check in report] == ["FAILED"]
    assert "cuInit answers 803; a reboot helps" in report[0].detail
    broken = Library()
    broken.error = 999
    machine(broken)
    with pytest.raises(DeviceError, match="answers cuDriverGetVersion with error 999"):
        driver.find()


def test_the_gpu_is_the_one_that_computes(gpu: Any) -> None:
    found = driver.find()
    assert found is not None
    assert gpu.device.arch in {each.arch for each in found.gpus}
    checks = {check.name: check for check in doctor.examine()}
    assert checks["backend cuda"].status == "ok", checks["backend cuda"].detail
    assert f"compiled for {found.gpus[0].arch}" in checks["kernels"].detail


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba_cuda")
    from gpuconv.kernels.cuda import compiler

    def refuse(ptx: str, arch: str) -> Any:
        raise compiler.CompileError("Unsupported .version 9.5; current version is '9.0'")

    assert doctor._compiles("sm_80").status == "ok"
    monkeypatch.setattr(compiler, "_to_cubin", refuse)
    check = doctor._compiles("sm_80")
    assert check == Check("kernels", "FAILED", "Unsupported .version 9.5; current version is '9.0'")
    monkeypatch.setattr(compiler, "version", lambda package: "0.18.1")
    hint = f"; numba-cuda 0.18.1 is old: {compiler.INSTALL}"
    assert doctor._compiles("sm_80").detail == check.detail + hint


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuconv.kernels.cuda import compiler

    monkeypatch.setattr(compiler, "version", lambda package: "")
    monkeypatch.delenv("GPUCONV_KERNELS", raising=False)
    check = doctor._compiles("sm_80")
    assert check == Check("kernels", "absent", f"there is no compiler; {compiler.INSTALL}")


def test_ready_made_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuconv.kernels.cuda import compiler, direct

    monkeypatch.delenv("GPUCONV_KERNELS", raising=False)
    assert doctor._ready_made() == []
    monkeypatch.setenv("GPUCONV_KERNELS", str(tmp_path / "ready"))
    assert "does not exist" in doctor._ready_made()[0].detail
    (tmp_path / "ready").mkdir()
    assert "has no kernels" in doctor._ready_made()[0].detail
    binary = compiler.Binary("", "sm_90", "", b"", 1, 0, 0, 0, 0)
    kernels = direct.kernels()[:2]
    for kernel in kernels:
        compiler.write(tmp_path / "ready" / f"{kernel.name}-0.json", "0", binary)
    assert "of another version of the source only" in doctor._ready_made()[0].detail
    for kernel in kernels:
        key = compiler.source_key(kernel, "sm_90")
        compiler.write(tmp_path / "ready" / compiler.file_name(kernel, key), key, binary)
    said = f"2 kernels for sm_90 in {tmp_path / 'ready'}"
    assert doctor._ready_made() == [Check("ready-made kernels", "ok", said)]
    monkeypatch.setenv("GPUCONV_KERNELS", str(tmp_path / "ready" / compiler.file_name(kernel, key)))
    (check,) = doctor._ready_made()
    assert check.status == "FAILED"
    assert "is a file" in check.detail


def test_kernels_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba_cuda")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path / "file"))
    check = doctor._compiles("sm_80")
    assert check.status == "ok"
    said = f"; they are not kept: {tmp_path / 'file'} is a file; set GPUCONV_CACHE"
    assert check.detail.endswith(said)
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path / "cache"))
    assert doctor._compiles("sm_80").detail.endswith(f"; they are kept in {tmp_path / 'cache'}")


def test_an_installation_without_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpuconv.kernels", "gpuconv.kernels.cuda.compiler", "gpuconv.kernels.cuda.sass"):
        monkeypatch.setitem(sys.modules, name, None)
    checks = {check.name: check for check in doctor.examine()}
    assert [checks[name].status for name in ("gpuconv.kernels", "kernels", "disassembler")] == [
        "FAILED", "FAILED", "absent",
    ]  # fmt: skip


def report(**given: str) -> list[Check]:
    """The lines that `works` reads; given as kernels="ok", or status and detail: "absent: why"."""
    found = {"backend cpu": "ok", "backend emulated": "ok", "backend cuda": "ok", "kernels": "ok"}
    found |= {"driver": "ok", "gpu 0": "ok"}
    found |= {name.replace("_", " "): said for name, said in given.items()}
    parts = ((name, *said.partition(": ")[::2]) for name, said in found.items())
    return [Check(name, status, detail) for name, status, detail in parts]


def test_the_closing_line() -> None:
    cpu = "training and inference on the CPU"
    gpu = "training and inference on the GPU with CUDA kernels"
    both = "CUDA kernels compile and run in the emulator"
    assert doctor.works(report()) == f"{cpu}; {gpu}; {both}"
    none = report(driver="absent: no driver", backend_cuda="absent: no CuPy")
    assert doctor.works(none) == f"{cpu}; {both}; no GPU: no driver"
    assert doctor.works(report(gpu_0="absent: hidden", backend_cuda="absent: why")) == (
        f"{cpu}; {both}; no GPU: hidden"
    )
    bare = report(
        kernels="absent: why not", backend_emulated="absent: why", backend_cuda="FAILED: x"
    )
    assert doctor.works(bare) == (
        f"{cpu}; no CUDA kernels: why not; no GPU: x; FAILED: backend cuda"
    )
    ready = report(kernels="absent: no compiler")
    assert doctor.works(ready) == f"{cpu}; {gpu}; CUDA kernels run in the emulator"
    made = [*bare, Check("ready-made kernels", "ok", "2 kernels for sm_90 in /x")]
    assert "; ready-made 2 kernels for sm_90 in /x; " in doctor.works(made)
    assert "no CUDA kernels" not in doctor.works(made)
    none = [*bare, Check("ready-made kernels", "FAILED", "/x does not exist")]
    assert "no CUDA kernels: why not; " in doctor.works(none)
    assert doctor.works(none).endswith("FAILED: backend cuda, ready-made kernels")


@pytest.mark.parametrize(
    ("error", "found", "said"),
    [
        ("cudaErrorInsufficientDriver", None, "not usable: this machine has no NVIDIA driver; use"),
        ("cudaErrorNoDevice", Driver("", (13, 0), ()), "not usable: the driver shows no GPU; use"),
        ("cudaErrorInsufficientDriver", Driver("", (12, 0), (H100,)), "driver with nvidia-smi"),
        ("cudaErrorUnknown", None, "cudaErrorUnknown: what it means; check the driver"),
    ],
)
def test_a_gpu_that_cupy_does_not_find(
    error: str, found: Driver | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CUDARuntimeError(Exception):
        pass

    def count() -> int:
        raise CUDARuntimeError(f"{error}: what it means")

    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(driver, "find", lambda: found)
    with pytest.raises(DeviceError, match=said):
        backends._cupy.__wrapped__()
