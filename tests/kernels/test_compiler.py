"""Compiling without a GPU, and what is kept on disk: complete, checked, built anew when damaged."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from numba import cuda

from gpuconv.kernels.cache import unwritable
from gpuconv.kernels.cuda import compiler, direct
from gpuconv.kernels.cuda.compiler import F32, CompileError, Kernel
from gpuconv.kernels.cuda.ptx import i32, load, store

KERNEL = direct.grad_input_kernel("float32", False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GPUCONV_KERNELS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are really compiled."""
    names = []
    build = compiler.build

    def counted(kernel: Kernel, arch: str) -> Any:
        names.append(kernel.name)
        return build(kernel, arch)

    monkeypatch.setattr(compiler, "build", counted)
    return names


def fresh(kernel: Kernel = KERNEL, arch: str = "sm_80") -> Any:
    """Compile as a new process would: nothing in memory."""
    compiler.compile.cache_clear()
    return compiler.compile(kernel, arch)


def test_a_binary_says_what_it_is(cache: Path) -> None:
    binary = fresh(arch="sm_90")
    assert ".target sm_90" in binary.ptx
    assert f".entry {KERNEL.name}(" in binary.ptx
    assert binary.cubin[:4] == b"\x7fELF"
    assert 0 < binary.registers <= 255
    assert (binary.spills, binary.stack, binary.static_shared) == (0, 0, 0)
    assert list(KERNEL.parameters)[:4] == ["gy", "w", "gx", "total"]
    assert KERNEL.parameters["gy"] == "float32*"


def test_kept_between_processes(cache: Path, builds: list[str]) -> None:
    first = fresh()
    again = fresh()
    assert again == first
    assert builds == [KERNEL.name]
    (file,) = cache.iterdir()
    assert file.name.startswith(KERNEL.name)


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "not json", "other key"])
def test_a_damaged_entry_is_built_anew(
    cache: Path, builds: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = fresh()
    (file,) = cache.iterdir()
    text = file.read_text()
    stored = json.loads(text)
    if damage == "changed":
        stored["binary"]["registers"] += 1
    elif damage == "other key":
        stored["key"] = "0" * 64
    file.write_text(
        {"truncated": text[: len(text) // 2], "empty": "", "not json": "\x00\xff{"}.get(
            damage, json.dumps(stored)
        )
    )
    with caplog.at_level(logging.WARNING, "gpuconv"):
        assert fresh() == first
    assert "is damaged" in caplog.text
    assert len(builds) == 2
    assert fresh() == first  # mended on disk too
    assert len(builds) == 2


def test_the_key_has_all_that_decides_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [
        KERNEL,
        direct.grad_input_kernel("float64", False),
        direct.grad_input_kernel("float32", True),
        Kernel(KERNEL.name, KERNEL.make, KERNEL.constants, KERNEL.threads, 2),
    ]
    keys = {compiler.source_key(k, arch) for k in kernels for arch in ("sm_80", "sm_90", "sm_90a")}
    monkeypatch.setattr(compiler, "digest", lambda path: "another source")
    keys.add(compiler.source_key(KERNEL, "sm_80"))
    assert len(keys) == 13


def test_other_tools_make_another_entry(
    cache: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh()
    monkeypatch.setattr(compiler, "version", lambda package: "0.0")
    fresh()
    assert len(builds) == 2
    assert len(list(cache.iterdir())) == 2


def test_ready_made_code_needs_no_compiler(
    cache: Path, builds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = fresh()
    ready = tmp_path / "ready"
    key = compiler.source_key(KERNEL, "sm_80")
    compiler.write(ready / compiler.file_name(KERNEL, key), key, binary)
    monkeypatch.setenv("GPUCONV_KERNELS", str(ready))
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(compiler, "version", lambda package: "")
    assert fresh() == binary
    assert builds == [KERNEL.name]


def test_a_folder_that_cannot_be_written_is_said_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, "gpuconv"):
        assert fresh().registers
        assert fresh(direct.grad_input_kernel("float64", False)).registers
    (record,) = caplog.records  # once, not for each kernel
    assert "compiled kernels are not kept" in record.message
    assert "cannot be written to (Not a directory)" in record.message
    assert "is a file" in unwritable(tmp_path / "file")
    assert unwritable(tmp_path / "new") == ""


def test_an_interrupted_write_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(compiler.os, "replace", fails)
    fresh()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("arch", ["sm90", "90", "sm_9", "sm_90b", "compute_90", ""])
def test_unknown_architectures(arch: str) -> None:
    with pytest.raises(CompileError, match="write it as 'sm_90'"):
        compiler.capability(arch)


def test_an_architecture_the_tools_do_not_know(cache: Path) -> None:
    with pytest.raises(CompileError, match="for sm_35: GPU compute capability"):
        fresh(arch="sm_35")


def test_a_file_instead_of_a_folder_of_ready_made_code(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUCONV_KERNELS", str(tmp_path / "file"))
    with pytest.raises(CompileError, match="file is a file; name a folder"):
        fresh()


def test_ready_made_code_that_does_not_serve(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any) -> None:
        raise ImportError("not here")

    def said() -> str:
        with pytest.raises(compiler.NoCompiler) as caught:
            fresh()
        return str(caught.value)

    binary = fresh(arch="sm_90")
    monkeypatch.setattr(compiler, "_to_ptx", absent)
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path / "none"))
    assert said().endswith(compiler.INSTALL)
    ready = tmp_path / "ready"
    monkeypatch.setenv("GPUCONV_KERNELS", str(ready))
    assert f"{ready} does not exist" in said()
    ready.mkdir()
    assert f"{ready} has no kernels" in said()
    compiler.write(ready / "another-0.json", "0", binary)
    assert "has others, but not this one" in said()
    compiler.write(ready / f"{KERNEL.name}-0.json", "0", binary)
    assert "has it from another version of the source" in said()
    key = compiler.source_key(KERNEL, "sm_90")
    compiler.write(ready / compiler.file_name(KERNEL, key), key, binary)
    assert f"kernel {KERNEL.name} for sm_80: there is no compiler" in said()
    assert f"{ready} has kernels for sm_90, none for sm_80; use --arch sm_90, or build" in said()
    assert fresh(arch="sm_90") == binary


def _unknown_name() -> Any:
    def relu(x: F32, y: F32) -> None:
        i = i32(cuda.threadIdx.x)
        store(y, i, totl)  # noqa: F821

    return relu


def _no_operator() -> Any:
    def relu(x: F32, y: F32) -> None:
        i = i32(cuda.threadIdx.x)
        store(y, i, x + y)

    return relu


def _missing_argument() -> Any:
    def relu(x: F32, y: F32) -> None:
        i = i32(cuda.threadIdx.x)
        store(y, i)

    return relu


def _unknown_attribute() -> Any:
    def relu(x: F32, y: F32) -> None:
        i = i32(cuda.nothing.x)
        store(y, i, load(x, i))

    return relu


@pytest.mark.parametrize(
    ("make", "line", "said"),
    [
        (_unknown_name, 3, "name 'totl' is not defined"),
        (_no_operator, 3, "No implementation of function Function(<built-in function add>)"),
        (_missing_argument, 3, "store() missing 1 required positional argument: 'value'"),
        (_unknown_attribute, 2, "has no attribute 'nothing'"),
    ],
)
def test_mistakes_in_a_kernel(make: Any, line: int, said: str) -> None:
    with pytest.raises(CompileError) as caught:
        compiler.build(Kernel("relu", make, (), 32), "sm_80")
    start = make.__code__.co_firstlineno
    (text,) = str(caught.value).splitlines()
    assert text.startswith(f"test_compiler.py:{start + line}: ")
    assert said in text
    assert caught.value.__cause__ is not None


def test_what_the_assembler_refuses(cache: Path) -> None:
    ptx = fresh(arch="sm_80").ptx
    with pytest.raises(CompileError, match=rf"kernel {KERNEL.name} for sm_75: .*\S") as caught:
        compiler._to_cubin(ptx, "sm_75")
    assert len(str(caught.value)) < 300
    log = "line 8; error   : Feature 'cp.async' requires .target sm_80 or higher\n" * 9
    said = compiler._refusal(log, "ERROR", ptx, "sm_75")
    assert said == f"kernel {KERNEL.name} for sm_75: needs sm_80 or later"
    log = "line 8; error   : Unknown symbol 'a'\nline 9; error   : Unknown symbol 'b'\n"
    assert compiler._refusal(log, "ERROR", ptx, "sm_75").endswith(": ERROR: Unknown symbol 'a'")
