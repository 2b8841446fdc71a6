"""`gpuconv kernels`: what it prints, its status, a line for a mistake."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from gpuconv import cli, study
from gpuconv.kernels.cuda import compiler, direct, sass
from gpuconv.study.problems import PROBLEMS, Numbers
from tests.test_cli import fails, gpuconv
from tests.test_study import FORWARD, copying, launching, needs_compiler, needs_nvdisasm

WEIGHT = "direct_grad_weight_zeros_float32"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of three kernels, which are all of the only family."""
    kernels = [k for k in direct.kernels() if k.name in (FORWARD, WEIGHT)]
    kernels.append(next(k for k in direct.kernels() if "grad_input" in k.name))
    family = SimpleNamespace(kernels=lambda: kernels, __doc__=direct.__doc__)
    monkeypatch.setattr(study, "families", lambda: {"direct": family})
    return [kernel.name for kernel in kernels]


def run(*arguments: object, columns: int = 100, status: int = 0) -> Any:
    """The program in this process, where a test can plant things; its lines are short enough."""
    done = CliRunner().invoke(
        cli.app, ["kernels", *map(str, arguments)], env={"COLUMNS": str(columns)}
    )
    assert done.exit_code == status, done.output
    if arguments[0] != "build" and "--json" not in arguments and "--ptx" not in arguments:
        assert max(map(len, done.stdout.splitlines()), default=0) <= columns
    return done


@pytest.mark.parametrize("columns", [80, 100])
def test_list(columns: int) -> None:
    lines = run("list", columns=columns).stdout.splitlines()
    for family, module in study.families().items():
        assert any(line.startswith(f"{family}: ") for line in lines)
        for kernel in module.kernels():
            (line,) = [line for line in lines if line.startswith(f"{kernel.name} ")]
            numbers = [kernel.threads, kernel.shared, len(kernel.parameters)]
            assert line.split()[1:4] == [f"{n:,}" for n in numbers]


def test_what_a_kernel_does_is_listed_where_it_says_so(
    few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "what it does" not in run("list").stdout
    monkeypatch.setattr(direct._forward, "__doc__", "Sums and sums, " * 9 + "and is done.")
    said = run("list", columns=80).stdout
    assert "what it does" in said
    assert "done." in said


def test_list_as_json() -> None:
    rows = {row["name"]: row for row in json.loads(gpuconv("kernels", "list", "--json").stdout)}
    row = rows[WEIGHT]
    assert (row["family"], row["threads"], row["dynamic_shared"]) == ("direct", 128, 512)
    assert row["constants"] == {"dtype": "float32", "mode": "zeros"}
    assert row["parameters"]["gw"] == "float32*"


@needs_compiler
def test_inspect() -> None:
    done = run("inspect", WEIGHT, "--arch", "sm_80", columns=80)
    said = " ".join(done.stdout.split())
    for part in ("dtype=float32, mode=zeros", "128 threads", "512 dynamic", "of 64 warps an SM"):
        assert part in said
    assert "0 bytes stored, 0 loaded" in said
    held = json.loads(run("inspect", WEIGHT, "--arch", "sm_80", "--json").stdout)
    assert f"registers {held['registers']} a thread" in said
    assert held["arch"] == "sm_80"
    if held["code"] is not None:
        assert held["code"]["loop"]["FFMA"] == 1
        assert "part += load_nc(x, at)" in said


@needs_compiler
def test_inspecting_a_family(few: list[str]) -> None:
    done = run("inspect", "direct", "--arch", "sm_80", columns=80)
    assert {line.split()[0] for line in done.stdout.splitlines() if line.strip()} >= set(few)
    rows = json.loads(run("inspect", "direct", "--arch", "sm_80", "--json").stdout)
    assert [row["name"] for row in rows] == few


@needs_nvdisasm
def test_inspecting_the_code_itself() -> None:
    done = run("inspect", FORWARD, "--sass", "--ptx")
    assert f".visible .entry {FORWARD}(" in done.stdout
    (loop,) = [line for line in done.stdout.splitlines() if " |" in line and "FFMA" in line]
    assert loop.startswith("0x")
    assert loop.split()[1:3] == ["|", "FFMA"]
    assert "total_sum += load_nc" in done.stdout


@needs_compiler
def test_without_a_disassembler_the_rest_is_printed(
    few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> str:
        raise sass.SassError("nvdisasm is not installed; install it")

    monkeypatch.setattr(sass, "disassembler", absent)
    lines = run("inspect", FORWARD, "--sass").stdout.splitlines()
    assert lines[-1] == "no instructions are shown: nvdisasm is not installed; install it"
    assert any(line.startswith("registers") for line in lines)
    done = run("inspect", FORWARD, "--sass", "--json")
    assert json.loads(done.stdout)["sass"] is None
    assert lines[-1] in done.stderr
    family = run("inspect", "direct").stdout.splitlines()
    assert family[-1] == lines[-1]
    assert any(line.startswith(WEIGHT) for line in family)


@needs_compiler
def test_check() -> None:
    done = run("check", WEIGHT, columns=80)
    said = " ".join(done.stdout.split())
    for part in ("findings none", "ld.global.nc.f32", "ld.shared.f32", "sectors", "wavefronts"):
        assert part in said
    assert "part += load_nc(x, at)" in said
    done = gpuconv("kernels", "check", WEIGHT, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    held = json.loads(done.stdout)
    assert held["ok"] is True
    (kernel,) = held["kernels"]
    assert kernel["kernel"] == WEIGHT
    assert {row["space"] for row in kernel["access"]} == {"global", "shared"}


@needs_compiler
def test_a_failed_check_is_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = copying(1, 1)
    monkeypatch.setattr(study, "find", lambda name: {"direct": [kernel]})
    monkeypatch.setitem(PROBLEMS, "direct", [("too far", launching(kernel, 1023))])
    for name in ("copy", "direct"):
        said = " ".join(run("check", name, columns=80, status=1).stdout.split())
        assert "error: oob-global x1 at" in said
        assert "store(y, i, load(x, i))" in said
        assert "in problem: too far" in said
        assert "accesses outside of arrays, and misaligned ones, are not counted" in said
    run("check", "copy", "--json", status=1)
    kernel = copying(1, -1)
    monkeypatch.setitem(PROBLEMS, "direct", [("too short", launching(kernel, 1023))])
    said = run("check", "copy", status=1).stdout
    assert "error: 1 number is left unwritten\n    in problem: too short" in said


@needs_compiler
def test_wrong_numbers_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = copying(1, 0)
    monkeypatch.setattr(study, "find", lambda name: {"direct": [kernel]})

    def problem(be: Any, numbers: Numbers) -> Any:
        y = launching(kernel, 1023)(be, numbers)
        return y * 1.5 if hasattr(be, "device") else y

    monkeypatch.setitem(PROBLEMS, "direct", [("three halves", problem)])
    for name in ("copy", "direct"):
        said = run("check", name, status=1).stdout
        assert "error: results are off by 5.0e-01 of the largest number (1.0e-05 is allowed" in said
        assert "\n    in problem: three halves" in said
    held = json.loads(run("check", "copy", "--json", status=1).stdout)
    assert held["ok"] is False
    assert held["problems"][0]["off"] == pytest.approx(0.5)
    monkeypatch.setitem(PROBLEMS, "direct", [("a copy", launching(kernel, 1023))])
    said = run("check", "copy").stdout
    assert "1 problem; results are equal to the truth bit for bit" in said
    assert "a copy: 1 launch\n" in "\n".join(line.rstrip() for line in said.splitlines())


@needs_compiler
def test_long_source_lines_are_folded(few: list[str]) -> None:
    said = run("check", FORWARD, columns=80).stdout
    assert "…" not in said
    assert "parameters" in said
    assert "x (2, 4, 3, 7, 9), w (6, 2, 2, 3, 3), padding" in " ".join(said.split())


@needs_compiler
def test_what_takes_long_is_announced(
    few: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCONV_CACHE", str(tmp_path))
    compiler.compile.cache_clear()
    assert run("inspect", "direct").stderr == "compiling 3 kernels for sm_90 ...\n"
    assert run("inspect", "direct").stderr == ""
    assert run("check", FORWARD).stderr == "compiling 1 kernel for sm_80 ...\n"


def test_a_folder_to_build_in_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiler, "compile", None)  # nothing is compiled
    for out, said in (("file", "is a file; name a folder"), ("file/x", "(Not a directory); name")):
        done = run("build", "--out", tmp_path / out, FORWARD, status=1)
        (line,) = done.stderr.splitlines()
        assert f"--out {tmp_path / out} " in line
        assert said in line
    monkeypatch.setenv("GPUCONV_KERNELS", str(tmp_path / "file"))
    for command in ("inspect", "check"):
        done = run(command, FORWARD, status=1)
        assert done.stderr.endswith(
            f"GPUCONV_KERNELS={tmp_path / 'file'} is a file; name a folder\n"
        )
    done = run("build", "--out", tmp_path / "new", FORWARD, status=1)
    assert done.stderr.endswith("is a file; name a folder\n")


def test_kernels_for_other_architectures_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "compile", None)  # nothing is compiled
    new, old = "tiled_64x64_nhwc", "tiled_64x64_nhwc_sm75"
    for command in ("inspect", "check"):
        done = run(command, new, "--arch", "sm_75", status=1)
        assert done.stderr == f"gpuconv: error: kernel {new} needs sm_80 or later; use {old}\n"
    done = run("build", "--out", tmp_path, "--arch", "sm_75", new, status=1)
    assert f"{new}  sm_75   skipped needs sm_80 or later; use {old}\n" in done.stdout
    assert done.stderr == "gpuconv: error: none of these kernels is for sm_75\n"


@needs_compiler
def test_build(few: list[str], tmp_path: Path) -> None:
    out = tmp_path / "kernels"
    arguments = ("build", "--out", out, "--arch", "sm_80, sm_90", FORWARD, FORWARD)
    *lines, total = run(*arguments).stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        [FORWARD, "sm_80", "built"],
        [FORWARD, "sm_90", "built"],
    ]
    assert total.startswith("2 built: 0.")
    *lines, total = run("build", "--out", out, "--arch", "sm_80", "--jobs", 1).stdout.splitlines()
    assert {line.split()[0] for line in lines} == set(few)
    assert total.startswith("2 built, 1 kept: 0.")


@needs_compiler
def test_ready_made_code_serves_where_nothing_can_be_compiled(tmp_path: Path) -> None:
    out, blocked = tmp_path / "kernels", tmp_path / "blocked"
    run("build", "--out", out, "--arch", "sm_80", FORWARD)
    for package in ("numba_cuda", "cuda"):
        (blocked / package).mkdir(parents=True)
        (blocked / package / "__init__.py").write_text("raise ImportError('not here')")
    env = {
        "PYTHONPATH": f"{blocked}:{Path(cli.__file__).parents[1]}",
        "GPUCONV_CACHE": str(tmp_path / "none"),
        "GPUCONV_KERNELS": str(out),
    }
    found = gpuconv("kernels", "inspect", FORWARD, "--arch", "sm_80", **env)
    assert found.returncode == 0, found.stderr
    refused = gpuconv("kernels", "inspect", FORWARD, "--arch", "sm_86", **env)
    last = refused.stderr.splitlines()[-1]
    assert f"{out} has kernels for sm_80, none for sm_86; use --arch sm_80" in last
    refused = gpuconv("kernels", "build", "--out", tmp_path, "--arch", "sm_86", FORWARD, **env)
    fails(refused, "there is no compiler", f"{out} has kernels for sm_80")
    env.pop("GPUCONV_KERNELS")
    refused = gpuconv("kernels", "build", "--out", tmp_path, "--arch", "sm_86", FORWARD, **env)
    fails(refused, "needs numba-cuda", compiler.INSTALL)


def test_a_build_that_fails_is_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise compiler.CompileError("it cannot be")

    monkeypatch.setattr(compiler, "compile", refuse)
    done = run("build", "--out", tmp_path, "--jobs", 1, "--arch", "sm_80", FORWARD, status=1)
    assert f"{FORWARD}  sm_80   failed  it cannot be" in done.stdout
    assert "1 of 1 kernel did not compile" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "direct_forward"), "did you mean direct_forward_"),
        (("check", "directs"), "did you mean direct"),
        (("inspect", "zzz"), "see: gpuconv kernels list"),
        (("inspect", FORWARD, "--arch", "sm_1"), "'sm_1' is unknown; use one of sm_75, "),
        (("check", FORWARD, "--arch", "hopper"), "'hopper' is unknown"),
        (("build", "--arch", "sm_80,", "--out", "nowhere"), "'' is unknown"),
        (("inspect", "direct", "--sass"), "'direct' is a family"),
    ],
)
def test_mistakes_get_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments, status=1)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpuconv: error: ")
    assert said in line
    assert not Path("nowhere").exists()


def test_wrong_usage_is_status_2() -> None:
    run("build", status=2)
    run("check", status=2)
    run("fly", status=2)
