"""Kernels become machine code, kept on disk; what is damaged is built anew."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpuconv.cpu.device import DEVICE
from gpuconv.kernels.cpu import compiler
from gpuconv.kernels.cpu.compiler import F32, F64, I64, I64P, CompileError, Data, Float, Kernel


def _scale(dtype: str) -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import lanes, load, load_part, splat, store, store_part

    step = lanes(dtype)

    def scale(task: I64, thread: I64, x: Data, y: Data, n: I64, by: Float) -> None:
        i = 0
        while i + step <= n:
            store(y + i, load(x + i) * splat(x, by))
            i += step
        store_part(y + i, load_part(x + i, n - i) * splat(x, by), n - i)

    return scale


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path))
    return tmp_path


def scaled(dtype: str, n: int, name: str = "test_scale") -> tuple[np.ndarray, np.ndarray]:
    x, y = np.arange(n + 2, dtype=dtype), np.full(n + 2, -1, dtype)
    DEVICE.launch(Kernel(name, _scale, (("dtype", dtype),)), 1, x, y, n, 2.5)
    return x, y


@pytest.mark.parametrize("n", [0, 1, 3, 4, 7, 8, 15, 16, 17, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vectors_and_their_parts(isa: str, dtype: str, n: int) -> None:
    x, y = scaled(dtype, n)
    np.testing.assert_array_equal(y[:n], x[:n] * 2.5)
    assert (y[n:] == -1).all()


def test_a_kernel_is_read_from_disk_and_built_anew_if_damaged(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Kernel("test_kept", _scale, (("dtype", "float32"),))
    isa = compiler.current()
    path, key = compiler.place(kernel, isa)
    code = compiler.build(kernel, isa)
    assert code.parameters == {"x": "float32*", "y": "float32*", "n": "int64", "by": "float64"}
    compiler.write(path, key, code)
    assert compiler.read(path, key) == code
    assert compiler.read(path, "other") is None
    assert [p.name for p in folder.iterdir()] == [path.name]
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-1], whole.replace(b"sha256", b"sha257"), b"{" * 200):
        caplog.clear()
        path.write_bytes(damaged)
        assert compiler.read(path, key) is None
        assert "is damaged" in caplog.text
    path.unlink()
    assert compiler.read(path, key) is None


def test_the_key_knows_source_constants_and_processor() -> None:
    first = Kernel("test_kept", _scale, (("dtype", "float32"),))
    other = Kernel("test_kept", _scale, (("dtype", "float64"),))
    host = compiler.host()
    keys = [compiler.place(first, host)[1], compiler.place(other, host)[1]]
    for name in ("avx2", "generic"):
        if host.name != "generic" or name == "generic":
            with compiler.restricted(name) as lesser:
                keys.append(compiler.place(first, lesser)[1])
    assert len(set(keys)) == len(keys) - (host.name in ("avx2", "generic"))


def _wrong() -> Callable[..., None]:
    def wrong(task: I64, thread: I64, x: F32) -> None:
        x[0] = nothing  # type: ignore[name-defined] # noqa: F821

    return wrong


def _allocates() -> Callable[..., None]:
    def allocates(task: I64, thread: I64, x: I64P, n: I64) -> None:
        found = [task]
        for i in range(n):
            found.append(i)
        x[0] = found[n - 1]

    return allocates


def _gamma() -> Callable[..., None]:
    import math

    def gamma(task: I64, thread: I64, x: F64) -> None:
        x[0] = math.lgamma(x[0])

    return gamma


def test_what_cannot_be_compiled_is_said_in_a_line() -> None:
    with pytest.raises(CompileError, match=r"kernel test_wrong: .*'nothing'") as said:
        compiler.build(Kernel("test_wrong", _wrong), compiler.current())
    assert "\n" not in str(said.value)
    with pytest.raises(CompileError, match="kernel test_allocates: NRT required"):
        compiler.build(Kernel("test_allocates", _allocates), compiler.current())
    with pytest.raises(
        CompileError, match=r"kernel test_gamma: it needs .*gamma; kernels call none"
    ):
        compiler.build(Kernel("test_gamma", _gamma), compiler.current())
    with (
        pytest.raises(CompileError, match="instruction set 'mmx' is unknown; use one of avx2"),
        compiler.restricted("mmx"),
    ):
        pass


def test_plans_check_what_they_are_given() -> None:
    kernel = Kernel("test_scale", _scale, (("dtype", "float32"),))
    with pytest.raises(TypeError, match="kernel test_scale has no parameter speed"):
        DEVICE.prepare(kernel, 1, n=1, by=1.0, speed=3)
    with pytest.raises(TypeError, match="kernel test_scale takes 2 arrays, not 1"):
        DEVICE.prepare(kernel, 1, n=1, by=1.0)(np.ones(1))


def test_an_unwritable_cache_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("GPUCONV_CACHE", str(blocked))
    with caplog.at_level(logging.INFO):
        x, y = scaled("float32", 5, "test_blocked")
    np.testing.assert_array_equal(y[:5], x[:5] * 2.5)
    assert "compiled kernels are not kept" in caplog.text


CONV = (
    "import sys, numpy as np, gpuconv as gc\n"
    "x, w = np.ones((2, 8, 9, 9), np.float32), np.ones((8, 8, 3, 3), np.float32)\n"
    "gc.max_pool2d(gc.relu(gc.conv2d(x, w)), 2)\n"
    "print('numba' in sys.modules)\n"
)


def test_compiling_is_announced_once_and_what_is_on_disk_needs_no_numba(tmp_path: Path) -> None:
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CONV],
            env={**os.environ, "GPUCONV_CACHE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        said.append((done.stdout.strip(), done.stderr.strip().splitlines()))
    first, second = said
    assert first[0] == "True"
    assert first[1] == [
        "compiling CPU kernels for their first use, some seconds for each new kind of layer; they "
        f"are kept in {tmp_path}"
    ]
    assert second == ("False", [])


def test_two_processes_that_compile_the_same_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = (
        "import numpy as np, gpuconv as gc; x = np.arange(64, dtype='float32') - 9;"
        "assert (gc.relu(x) == np.maximum(x, 0)).all()"
    )
    environment = {**os.environ, "GPUCONV_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in running:
        said = process.communicate()[1].decode()
        assert process.returncode == 0, said
        assert "damaged" not in said
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names
    assert all(name.endswith(".o") for name in names)  # nothing partial is left
    last = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (last.returncode, last.stderr) == (0, b"")  # compiled no more


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_file_that_others_may_write_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("GPUCONV_CACHE", raising=False)
    path = tmp_path / "kernel.o"
    compiler.write(path, "key", compiler.Code("entry", {}, b"code"))
    assert compiler.read(path, "key") is not None
    path.chmod(0o666)
    assert compiler.read(path, "key") is None
    assert "could have been written by another user" in caplog.text
