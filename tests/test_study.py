"""Studying kernels: SASS read, occupancy worked out, findings told, code built ahead of time."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpuconv import study
from gpuconv.errors import ArgumentError, DeviceError
from gpuconv.kernels.cuda import compiler, sass, tiled
from gpuconv.kernels.cuda.compiler import F32, I32, CompileError, Data, Kernel
from gpuconv.study import check
from gpuconv.study.problems import PROBLEMS, Numbers

FORWARD = "direct_forward_nchw_zeros_float32"
needs_compiler = pytest.mark.skipif(
    not compiler.version("numba-cuda"), reason="kernels are compiled by numba-cuda"
)


def _disassembles() -> bool:
    try:
        return bool(compiler.version("numba-cuda") and sass.disassembler())
    except sass.SassError:
        return False


needs_nvdisasm = pytest.mark.skipif(not _disassembles(), reason="needs numba-cuda and nvdisasm")


def listing(body: str) -> str:
    """What nvdisasm prints of a kernel; `body` has a label or an instruction a line."""
    lines, address = [], 0
    for line in filter(None, (line.strip() for line in body.splitlines())):
        if line.endswith(":") or line.startswith("//"):
            lines.append(line)
        else:
            guard, text = line.split(" ", 1) if line.startswith("@") else ("", line)
            lines.append(f"        /*{address:04x}*/   {guard:>10} {text} ;")
            address += 16
    code = "\n".join(lines)
    return f"""	.target	sm_90
//--------------------- .text.slow_division --------------------------
	.section	.text.slow_division,"ax",@progbits
        .other          slow_division,@"STO_CUDA_FUNC STV_DEFAULT"
        /*0000*/                   DFMA R2, R2, R4, R6 ;
//--------------------- .text.entry --------------------------
	.section	.text.entry,"ax",@progbits
        .type           entry,@function
        .other          entry,@"STO_CUDA_ENTRY STV_DEFAULT"
entry:
.text.entry:
{code}
.L_x_99:
        /*{address:04x}*/                   BRA `(.L_x_99);
        /*{address + 16:04x}*/                   NOP;
"""


NESTED = """
    //## File "/far/away/direct.py", line 3
    S2R R0, SR_TID.X
    @P0 EXIT
    .L_x_1:
    IMAD R1, R1, R2, R3
    //## File "/far/away/direct.py", line 4
    .L_x_2:
    LDS.128 R4, [R1]
    FFMA R8, R4, R5, R8
    FFMA R9, R4, R6, R9
    @!P1 BRA.DIV UR4, `(.L_x_4)
    .L_x_5:
    SHFL.BFLY PT, R4, R4, 0x1, 0x1f
    @P2 BRA `(.L_x_2)
    //## File "/far/away/direct.py", line 5
    IADD3 R1, R1, 0x1, RZ
    @P3 BRA `(.L_x_1)
    .L_x_3:
    STG.E desc[UR4][R2.64], R8
    IADD3 R1, R1, 0x2, RZ
    IADD3 R1, R1, 0x3, RZ
    IADD3 R1, R1, 0x4, RZ
    IADD3 R1, R1, 0x5, RZ
    @P4 BRA `(.L_x_3)
    EXIT
    .L_x_4:
    NOP
    BRA `(.L_x_5)
"""


def test_the_inner_loop_is_the_one_with_the_arithmetic() -> None:
    code = sass.parse(listing(NESTED))
    assert len(code) == 20, "the padding is no code, nor is the function called"
    loop = sass.inner_loop(code)
    assert [i.name for i in loop] == ["LDS", "FFMA", "FFMA", "BRA", "SHFL", "BRA"]
    assert str(loop[-1]) == "  @P2 BRA 0x30", "labels become addresses"
    assert {(i.file, i.line) for i in loop} == {("/far/away/direct.py", 4)}
    counts = {kind: n for kind, n in sass.mix(loop).items() if n}
    assert counts == {"FFMA": 2, "LDS": 1, "branch": 2, "other": 1}
    assert list(sass.mix([])) == list(sass.CLASSES)
    assert sass.inner_loop([]) == []


def test_without_arithmetic_the_longest_innermost_loop_is_taken() -> None:
    plain = NESTED.replace("FFMA", "FADD")
    assert [i.name for i in sass.inner_loop(sass.parse(listing(plain)))].count("LDS") == 1
    short = plain.replace("FADD R8, R4, R5, R8", "").replace("FADD R9, R4, R6, R9", "")
    names = [i.name for i in sass.inner_loop(sass.parse(listing(short)))]
    assert names == ["STG", "IADD3", "IADD3", "IADD3", "IADD3", "BRA"]


def test_a_loop_counts_without_the_loops_inside_it() -> None:
    moved = NESTED.replace("IMAD R1, R1, R2, R3", "FFMA R1, R1, R2, R3\nHMMA.1688.F32 R1, R2, R3\n")
    moved = moved.replace("IADD3 R1, R1, 0x1, RZ", "DFMA R1, R2, R3, R4")
    loop = sass.inner_loop(sass.parse(listing(moved)))
    assert [i.name for i in loop] == ["FFMA", "HMMA", "DFMA", "BRA"]


@pytest.mark.parametrize(
    "back",
    ["BRA.U !UP0, `(.L_x_1)", "@P0 BRA P1, `(.L_x_1)", "@P0 BRA `(.L_x_1)", "BRA `(.L_x_1)"],
)
def test_every_way_to_jump_back_makes_a_loop(back: str) -> None:
    code = sass.parse(listing(f"MOV R1, R2\n.L_x_1:\n@P1 EXIT\nFFMA R1, R2, R3, R1\n{back}\nEXIT"))
    assert [i.name for i in sass.inner_loop(code)] == ["EXIT", "FFMA", "BRA"]


@pytest.mark.parametrize(
    "slow",  # behind the end, and back: taken by warps that have diverged, or by few numbers
    ["BRA.DIV UR4, `(.L_x_7)", "@P0 BRA `(.L_x_7)", "@P0 BRA P1, `(.L_x_7)"],
)
def test_a_slow_path_behind_the_end_is_no_loop(slow: str) -> None:
    body = f"MOV R1, R2\n{slow}\n.L_x_8:\nFFMA R1, R2, R3, R1\nEXIT\n.L_x_7:\nNOP\nBRA `(.L_x_8)"
    assert sass.inner_loop(sass.parse(listing(body))) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("FFMA.FTZ R1, R2, R3, R4", "FFMA"),
        ("FMNMX R1, R2, R3, !PT", "other FP32"),
        ("DADD R2, R4, R6", "FP64"),
        ("HMMA.16816.F32 R4, R8, R12, R4", "HMMA"),
        ("HGMMA.64x256x16.F32 R24, gdesc[UR4], R24", "HGMMA"),
        ("MUFU.RCP R1, R2", "special"),
        ("LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", "LDG"),
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", "LDGSTS"),
        ("LDSM.16.M88.4 R4, [R1]", "LDS"),
        ("STS.64 [R1], R2", "STS"),
        ("STG.E desc[UR4][R2.64], R8", "STG"),
        ("STL [R1+0x4], R2", "LDL/STL"),
        ("UIADD3 UR4, UR4, 0x1, URZ", "integer"),
        ("IMAD.MOV.U32 R1, RZ, RZ, R2", "integer"),
        ("HFMA2.MMA R2, -RZ, RZ, 0, 0", "integer"),
        ("HFMA2 R2, R3, R4, R5", "other"),
        ("LDC.64 R2, c[0x0][0x210]", "other"),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "other"),
        ("@!P0 BSYNC B0", "branch"),
    ],
)
def test_classes(text: str, kind: str) -> None:
    (found,) = sass.parse(listing(text))
    assert found.kind == kind
    assert sass.spills_in([found]) == (kind == "LDL/STL")


def test_a_listing_of_nothing_is_refused() -> None:
    with pytest.raises(sass.SassError, match="0 kernels"):
        sass.parse("")
    with pytest.raises(sass.SassError, match="no instructions"):
        sass.parse(listing(""))


@pytest.fixture
def no_nvdisasm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sass.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sass.shutil, "which", lambda *args, **kwargs: None)
    sass.disassembler.cache_clear()
    yield
    sass.disassembler.cache_clear()


@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
@needs_nvdisasm
def test_inspecting_a_kernel(arch: str) -> None:
    ((family, kernels),) = study.find(FORWARD).items()
    (row,) = study.inspect(kernels, family, arch)
    assert row.code is not None
    assert row.binary.spills == sass.spills_in(row.code) == 0
    counts = sass.mix(row.loop)
    assert counts["FFMA"] * 2 == counts["LDG"] > 0, "two numbers are loaded for each product"
    assert study.share(row.loop) == counts["FFMA"] / len(row.loop)
    assert any("load_nc" in study.source_line(i.file, i.line) for i in row.loop)
    assert sass.mix(row.code)["STG"] == 1
    held = row.to_dict(with_sass=True, with_ptx=True)
    assert json.loads(json.dumps(held)) == held
    assert held["occupancy"]["warps"] == row.occupancy.warps > 0
    assert len(held["sass"]) == len(row.code)
    assert "sass" not in row.to_dict()


@needs_nvdisasm
def test_what_is_no_code_is_refused() -> None:
    with pytest.raises(sass.SassError, match="cannot read the code"):
        sass.disassemble(b"nothing")


@needs_compiler
def test_inspecting_without_a_disassembler(no_nvdisasm: None) -> None:
    ((family, kernels),) = study.find(FORWARD).items()
    (row,) = study.inspect(kernels, family, "sm_90")
    assert row.code is None
    assert "pip install nvidia-cuda-nvdisasm" in row.no_code
    assert row.to_dict()["registers"] > 0


def planted(name: str, make: Callable[..., Any], threads: int = 32, shared: int = 0) -> Kernel:
    return Kernel(name, make, (), threads, 1, shared)


def _spilling() -> Callable[..., None]:
    from numba import cuda, types

    from gpuconv.kernels.cuda.ptx import i32, load, store

    def spilling(x: F32, y: F32, n: I32) -> None:
        held = cuda.local.array(64, types.float32)
        for j in range(64):
            held[j] = load(x, i32(j))
        i, total = i32(0), types.float32(0)
        while i < n:
            total = total + held[i & 63] * load(x, i)  # indexed at run time: not in registers
            i = i32(i + 1)
        store(y, i32(cuda.threadIdx.x), total)

    return spilling


@needs_nvdisasm
def test_local_memory_in_the_loop_is_counted() -> None:
    code = sass.disassemble(compiler.build(planted("spilling", _spilling), "sm_90").cubin)
    assert sass.spills_in(sass.inner_loop(code)) > 0


def _static() -> Callable[..., None]:
    from numba import cuda, types

    def static(x: F32) -> None:
        s = cuda.shared.array(128, types.float32)
        i = cuda.threadIdx.x
        s[i] = x[i]
        cuda.syncthreads()
        x[i] = s[127 - i]

    return static


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_90a", "sm_100"])
@needs_compiler
def test_shared_memory_is_the_kernels_own(arch: str) -> None:
    assert compiler.build(planted("static", _static, 128), arch).static_shared == 512


@pytest.mark.parametrize(  # figures of cuda_occupancy.h
    ("arch", "threads", "registers", "shared", "blocks", "limit"),
    [
        ("sm_80", 256, 32, 0, 8, ["registers", "threads"]),
        ("sm_80", 256, 33, 0, 6, ["registers"]),
        ("sm_80", 32, 16, 0, 32, ["blocks"]),
        ("sm_80", 128, 40, 48 * 1024, 3, ["shared memory"]),
        ("sm_80", 256, 128, 54 * 1024, 2, ["registers", "shared memory"]),
        ("sm_80", 128, 32, 164 * 1024, 0, ["shared memory"]),
        ("sm_75", 256, 32, 0, 4, ["threads"]),
        ("sm_75", 64, 32, 64 * 1024, 1, ["shared memory"]),
        ("sm_86", 256, 40, 0, 6, ["registers", "threads"]),
        ("sm_86", 32, 32, 0, 16, ["blocks"]),
        ("sm_89", 32, 32, 0, 24, ["blocks"]),
        ("sm_90", 256, 128, 54 * 1024, 2, ["registers"]),
        ("sm_90a", 384, 168, 193 * 1024, 1, ["registers", "shared memory"]),
        ("sm_90", 256, 255, 0, 1, ["registers"]),
        ("sm_90", 288, 255, 0, 0, ["registers"]),
        ("sm_100", 1024, 64, 0, 1, ["registers"]),
        ("sm_120", 256, 64, 99 * 1024, 1, ["shared memory"]),
    ],
)
def test_occupancy(
    arch: str, threads: int, registers: int, shared: int, blocks: int, limit: list[str]
) -> None:
    held = study.occupancy(arch, threads, registers, shared)
    assert (held.blocks, held.limit) == (blocks, limit)
    assert held.warps == blocks * -(-threads // 32) <= held.max_warps


def test_every_kernel_is_launched_by_a_problem_of_its_family() -> None:
    assert list(PROBLEMS) == list(study.families())
    for family, module in study.families().items():
        kernels = module.kernels()
        found: set[str] = set()
        for arch in ("sm_80", "sm_75"):
            for _, problem in PROBLEMS[family]:
                found |= check.launched(problem, arch)
        missing = [k.name for k in kernels if k.name not in found]
        assert missing == [], f"add rows for family {family}"
        labels = [label for label, _ in PROBLEMS[family]]
        assert len(labels) == len(set(labels))


def test_kernels_have_names_of_their_own() -> None:
    names = [k.name for module in study.families().values() for k in module.kernels()]
    assert len(names) == len(set(names))
    assert not set(names) & set(study.families())
    assert all(study.about(family) for family in study.families())


def test_unknown_names_and_architectures() -> None:
    with pytest.raises(ArgumentError, match=f"did you mean {FORWARD}"):
        study.find(FORWARD[:-1])
    with pytest.raises(ArgumentError, match="gpuconv kernels list"):
        study.find("")
    for arch in ("sm_70", "sm_80a", "90", ""):
        with pytest.raises(ArgumentError, match=r"unknown; use one of sm_75, .* sm_90"):
            study.check_arch(arch)


def launching(kernel: Kernel, size: int, blocks: int = 1) -> Callable[..., Any]:
    """A problem: `kernel` from an array x of `size` numbers to one y; the truth is x."""

    def problem(be: Any, numbers: Numbers) -> Any:
        x = numbers.draw((size,))
        if not hasattr(be, "device"):
            return x
        y = be.device.empty(x.shape, x.dtype)
        be.device.prepare(kernel, (blocks, 1, 1))(x, y)
        return y

    return problem


def _copy(stride: int, beyond: int) -> Callable[..., None]:
    """y = x by the threads of a block, `stride` apart; `beyond` the end, or short of it."""
    from numba import cuda

    from gpuconv.kernels.cuda.ptx import i32, load, rem, store

    def copy(x: F32, y: F32) -> None:
        i = rem(i32(cuda.threadIdx.x * stride), i32(1023))
        if cuda.threadIdx.x == 1022:
            i = i32(i + beyond)
        store(y, i, load(x, i))

    return copy


def _turn() -> Callable[..., None]:
    """y = x through shared memory, 32 columns of 32, with a bank conflict and without barrier."""
    from numba import cuda

    from gpuconv.kernels.cuda.ptx import i32, lds, load, shared, store, sts

    def turn(x: F32, y: F32) -> None:
        i = i32(cuda.threadIdx.x)
        place = i32(shared() + 4 * ((i & 31) * 32 + (i >> 5)))
        sts(place, load(x, i))
        store(y, i, lds(i32(place ^ 4)))

    return turn


def run_check(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, size: int) -> check.Check:
    monkeypatch.setitem(PROBLEMS, "planted", [("a problem", launching(kernel, size))])
    return check.check("planted", [kernel])


def copying(stride: int, beyond: int) -> Kernel:
    return Kernel("copy", _copy, (("stride", stride), ("beyond", beyond)), 1023)


@needs_compiler
def test_checking_a_sound_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_check(monkeypatch, copying(1, 0), 1023)
    (seen,) = result.kernels
    assert result.ok
    assert result.arch == "sm_80"
    (numbers,) = result.results
    assert (numbers.unwritten, numbers.off, numbers.plain, numbers.allowed) == (0, 0, 0, 1e-5)
    assert (seen.launches, seen.problems) == (1, {"a problem": 1})
    load, store = sorted(seen.access.values(), key=lambda a: a.op)
    assert (load.op, store.op) == ("ld.global.f32", "st.global.f32")
    assert load.requests == store.requests == 32
    assert load.units == load.minimum == 128
    assert study.source_line(load.file, load.line) == "store(y, i, load(x, i))"
    assert seen.by_class["load.global"] == seen.by_class["store.global"] == 1023
    assert seen.by_line.total() == seen.thread_instructions
    assert seen.by_line[check.PARAMETERS] == seen.by_class["load.param"] == 2 * 1023
    sources = {study.source_line(*place) for place in seen.by_line}
    assert "def copy(x: F32, y: F32) -> None:" not in sources
    assert json.loads(json.dumps(result.to_dict()))["ok"] is True


@needs_compiler
def test_scattered_access_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    (seen,) = run_check(monkeypatch, copying(8, 0), 1023).kernels
    total = seen.total("global")
    assert total.units / total.minimum > 6, "a sector a thread, where eight could share one"


@needs_compiler
def test_findings_of_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_check(monkeypatch, copying(1, 1), 1023)
    assert not result.ok
    found = {f.kind: f for f in result.kernels[0].findings.values()}
    error = found["oob-global"]
    assert (error.level, error.problem) == ("error", "a problem")
    assert study.source_line(error.file, error.line) == "store(y, i, load(x, i))"
    assert json.loads(json.dumps(result.to_dict()))["ok"] is False


@needs_compiler
def test_numbers_left_unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_check(monkeypatch, copying(1, -1), 1023)
    assert result.results[0].unwritten == 1
    assert not result.ok


@needs_compiler
def test_races_and_bank_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_check(monkeypatch, planted("turn", _turn, 1024, 4096), 1024)
    (seen,) = result.kernels
    assert {f.kind for f in seen.findings.values()} == {"race-shared"}
    shared = seen.total("shared")
    assert shared.units == 32 * shared.minimum, "all lanes of a warp in one bank"
    assert result.results[0].off > 0.1, "its numbers are wrong too"


def test_a_kernel_that_nothing_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROBLEMS, "planted", [("a problem", launching(copying(1, 0), 9))])
    other = dataclasses.replace(copying(2, 0), name="other")
    with pytest.raises(ArgumentError, match="no problem launches other on sm_86: add a row"):
        check.check("planted", [other], "sm_86")
    with pytest.raises(ArgumentError, match="no problem launches other on sm_80: add a row"):
        check.check("planted", [other])


@needs_compiler
def test_a_kernel_whose_shared_memory_is_the_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = dataclasses.replace(copying(1, 0), shared=256)
    monkeypatch.setitem(PROBLEMS, "planted", [("a problem", launching(launched, 1023))])
    (seen,) = check.check("planted", [copying(1, 0)]).kernels
    assert seen.launches == 1


def _times(dtype: str, factor: float) -> Callable[..., None]:
    from numba import cuda, types

    from gpuconv.kernels.cuda.ptx import i32, load, store

    by = getattr(types, dtype)(factor)

    def times(x: Data, y: Data) -> None:
        i = i32(cuda.threadIdx.x)
        store(y, i, load(x, i) * by)

    return times


@pytest.mark.parametrize(
    ("dtype", "factor", "ok"),
    [
        ("float32", 1 + 1e-6, True),
        ("float32", 1 + 1e-3, False),
        ("float32", np.inf, False),
        ("float64", 1 + 1e-13, True),
        ("float64", 1 + 1e-9, False),
        ("int32", 1, True),
        ("int32", 2, False),
    ],
)
@needs_compiler
def test_wrong_numbers_are_an_error(
    dtype: str, factor: float, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel("times", _times, (("dtype", dtype), ("factor", factor)), 32)

    def problem(be: Any, numbers: Numbers) -> Any:
        x = numbers.draw((32,), dtype) if dtype != "int32" else np.arange(32, dtype=dtype)
        if not hasattr(be, "device"):
            return x
        y = be.device.empty(x.shape, x.dtype)
        be.device.prepare(kernel, (1, 1, 1))(x, y)
        return y

    monkeypatch.setitem(PROBLEMS, "planted", [("a problem", problem)])
    result = check.check("planted", [kernel])
    assert result.ok == ok
    (numbers,) = result.results
    assert numbers.off == (np.inf if factor == np.inf else pytest.approx(factor - 1, rel=0.1))
    held = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (held["ok"], held["problems"][0]["ok"]) == (ok, ok)


def test_numbers_are_judged_by_the_error_budget_or_the_limit() -> None:
    truth = np.array([1.0, -2.0, np.inf])
    plain = (truth * (1 + 1e-3)).astype(np.float32)  # a problem that is badly conditioned
    ours = (truth * (1 - 3e-3)).astype(np.float32)
    assert check._judge("", ours, plain, truth).ok
    assert not check._judge("", ours, truth.astype(np.float32), truth).ok
    assert not check._judge("", -ours, plain, truth).ok
    assert not check._judge("", ours[:2], plain, truth).ok
    ours[1] = np.nan
    assert check._judge("", ours, plain, truth).unwritten == 1


@needs_compiler
def test_building_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    kernels = [copying(1, 0), copying(2, 0)]
    out = tmp_path / "kernels"
    made = list(study.build(kernels, ["sm_80", "sm_90"], out))
    assert [(b.kernel, b.status) for b in made] == [("copy", "built")] * 4
    assert sum(path.stat().st_size for path in out.iterdir()) == sum(b.size for b in made)

    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    damaged = next(iter(stamps))
    damaged.write_text(damaged.read_text()[:-9])
    again = list(study.build(kernels, ["sm_80", "sm_90"], out))
    assert sorted(b.status for b in again) == ["built", "kept", "kept", "kept"]
    assert {path for path in out.iterdir() if path.stat().st_mtime_ns != stamps[path]} == {damaged}
    assert "is damaged" in caplog.text

    monkeypatch.setenv("GPUCONV_KERNELS", str(out))
    monkeypatch.setattr(compiler, "build", None)
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path / "none"))
    compiler.compile.cache_clear()
    assert compiler.compile(kernels[1], "sm_90").registers > 0


@needs_compiler
def test_building_in_several_processes(tmp_path: Path) -> None:
    kernels = study.families()["direct"].kernels()[:4]
    made = list(study.build(kernels, ["sm_80"], tmp_path, jobs=2))
    assert {(b.kernel, b.status) for b in made} == {(k.name, "built") for k in kernels}


def test_what_does_not_compile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = copying(1, 0)

    def raising(error: Exception) -> None:
        def refuse(*_: Any) -> None:
            raise error

        monkeypatch.setattr(compiler, "compile", refuse)

    raising(CompileError("error\n  in line 3"))
    (made,) = study.build([kernel], ["sm_75"], tmp_path)
    assert (made.status, made.detail) == ("failed", "error in line 3")
    raising(compiler.NoCompiler("nothing here compiles"))
    with pytest.raises(DeviceError, match="nothing here"):
        list(study.build([kernel], ["sm_75"], tmp_path))
    with pytest.raises(DeviceError, match="nothing here"):
        study.inspect([kernel], "planted", "sm_75")


def test_kernels_that_are_for_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = (tiled.kernel(tiled.CONFIGS[2], False, way) for way in (True, False))
    plain = copying(1, 0)
    assert study.fitting([new, old, plain], "sm_75") == [old, plain]
    assert study.fitting([new, old, plain], "sm_90a") == [new, plain]
    monkeypatch.setattr(compiler, "compile", None)  # nothing is compiled in vain
    for way in (study.inspect, check.check):
        with pytest.raises(ArgumentError, match=f"needs sm_80 or later; use {old.name}"):
            way([new], "tiled", "sm_75") if way is study.inspect else way("tiled", [new], "sm_75")
    with pytest.raises(ArgumentError, match=f"is for sm_75 only; .* or {new.name}"):
        study.inspect([old], "tiled", "sm_90")
    assert (check.target([old], None), check.target([old, new], None)) == ("sm_75", "sm_80")
    (built,) = study.build([old], ["sm_90"], Path("nowhere"))
    assert (built.status, built.detail.split(";")[0]) == ("skipped", "is for sm_75 only")


def test_sources_of_code_compiled_elsewhere() -> None:
    assert study.source_line("/far/away/direct.py", 1).startswith('"""Direct convolution')
    assert study.source_line("/far/away/nowhere.py", 1) == ""


def test_what_a_kernel_does() -> None:
    kernel = study.families()["direct"].kernels()[0]
    assert study.what(kernel) == study.about("direct")
    own = dataclasses.replace(kernel, make=_copy)
    assert study.what(own).startswith("y = x by the threads")


def test_findings_of_several_launches_are_one() -> None:
    place = SimpleNamespace(pc=7, loc=("a.py", 3), op="ld", mods=("global", "f32"))
    finding = SimpleNamespace(kind="trap", pc=7, level="error", count=2)
    report = SimpleNamespace(
        thread_instr=32, warp_instr=1, branches=0, divergent=0, by_class={"load": 32},
        by_pc=[(place, 32, 1)], findings=[finding],
        mem={(7, "global"): SimpleNamespace(requests=1, units=8, ideal=4)},
    )  # fmt: skip
    seen = check.Checked(copying(1, 0))
    seen.add("first", report)
    seen.add("second", report)
    (found,) = seen.findings.values()
    assert (found.count, found.problem, found.line) == (4, "first", 3)
    (access,) = seen.access.values()
    assert (access.op, access.requests, access.units) == ("ld.global.f32", 2, 16)
    assert seen.problems == {"first": 1, "second": 1}
    assert not seen.uncounted
    assert seen.lanes == 1.0
