"""Whole kernels written in PTX by hand: results, statistics, and each planted bug found."""

import subprocess
import sys

import numpy as np
import pytest

from gpuconv import emulator
from gpuconv.emulator import Ptr
from gpuconv.errors import Error

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"

VECTOR_ADD = (
    HEAD
    + """
.visible .entry add(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u32 pn) {
    .reg .pred %q; .reg .b32 %i, %b, %n; .reg .b64 %a<4>, %o; .reg .f32 %x, %y;
    mov.u32 %i, %tid.x; mov.u32 %b, %ctaid.x; mov.u32 %n, %ntid.x;
    mad.lo.s32 %i, %b, %n, %i;
    ld.param.u32 %n, [pn];
    setp.ge.s32 %q, %i, %n;
    @%q bra DONE;
    mul.wide.s32 %o, %i, 4;
    ld.param.u64 %a0, [pa]; ld.param.u64 %a1, [pb]; ld.param.u64 %a2, [pc];
    add.s64 %a0, %a0, %o; add.s64 %a1, %a1, %o; add.s64 %a2, %a2, %o;
    ld.global.f32 %x, [%a0]; ld.global.f32 %y, [%a1];
    add.f32 %x, %x, %y;
    st.global.f32 [%a2], %x;
DONE:
    ret;
}
"""
)

# 64 threads add up 64 numbers in shared memory.
REDUCTION = (
    HEAD
    + """
.visible .entry sum(.param .u64 px, .param .u64 py) {
    .reg .pred %q; .reg .b32 %i, %k, %s, %t; .reg .b64 %x, %y; .reg .f32 %u, %v;
    .shared .align 4 .b8 s[256];
    mov.u32 %i, %tid.x; mov.u32 %s, s; mad.lo.u32 %s, %i, 4, %s;
    ld.param.u64 %x, [px]; mad.wide.u32 %x, %i, 4, %x; ld.global.f32 %u, [%x];
    st.shared.f32 [%s], %u;
    mov.u32 %k, 32;
LOOP:
    bar.sync 0;
    setp.ge.u32 %q, %i, %k;
    @%q bra SKIP;
    mad.lo.u32 %t, %k, 4, %s;
    ld.shared.f32 %u, [%s]; ld.shared.f32 %v, [%t];
    add.f32 %u, %u, %v;
    st.shared.f32 [%s], %u;
SKIP:
    shr.u32 %k, %k, 1;
    setp.ne.u32 %q, %k, 0;
    @%q bra LOOP;
    setp.ne.u32 %q, %i, 0;
    @%q bra DONE;
    ld.param.u64 %y, [py]; st.global.f32 [%y], %u;
DONE:
    ret;
}
"""
)

# Each thread copies 16 bytes to shared memory and reads what it copied.
COPY = (
    HEAD
    + """
.visible .entry copy(.param .u64 px, .param .u64 py) {
    .reg .b32 %i, %s; .reg .b64 %x, %y; .reg .f32 %u<4>;
    .shared .align 16 .b8 s[512];
    mov.u32 %i, %tid.x; mov.u32 %s, s; mad.lo.u32 %s, %i, 16, %s;
    ld.param.u64 %x, [px]; mad.wide.u32 %x, %i, 16, %x;
    ld.param.u64 %y, [py]; mad.wide.u32 %y, %i, 16, %y;
    cp.async.cg.shared.global [%s], [%x], 16;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.v4.f32 {%u0, %u1, %u2, %u3}, [%s];
    st.global.v4.f32 [%y], {%u0, %u1, %u2, %u3};
    ret;
}
"""
)

BARRIERS = (
    HEAD
    + """
.visible .entry wait() {
    .reg .pred %q; .reg .b32 %i;
    mov.u32 %i, %tid.x; setp.lt.u32 %q, %i, 32;
    @%q bra LOW;
    bar.sync 0;
    bra DONE;
LOW:
    bar.sync 0;
DONE:
    ret;
}
"""
)


def without(text: str, line: str, instead: str = "") -> str:
    """The kernel with a bug: one piece of its text replaced."""
    assert line in text
    return text.replace(line, instead)


def vectors(rng: np.random.Generator, n: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = rng.standard_normal((2, n)).astype(np.float32)
    return a, b, np.zeros(n, np.float32)


def add(text: str, arrays: tuple[np.ndarray, ...], n: int, strict: bool = True) -> emulator.Report:
    args = [*(Ptr(a) for a in arrays), np.int32(n)]
    return emulator.Module(text).launch("add", 4, 256, args, strict=strict)


def reduce(text: str, x: np.ndarray, y: np.ndarray) -> emulator.Report:
    return emulator.Module(text).launch("sum", 1, 64, [Ptr(x), Ptr(y)], strict=False)


def copy(text: str, x: np.ndarray, y: np.ndarray) -> emulator.Report:
    return emulator.Module(text).launch("copy", 1, 32, [Ptr(x), Ptr(y)], strict=False)


def test_vector_add(rng: np.random.Generator) -> None:
    a, b, c = vectors(rng)
    report = add(VECTOR_ADD, (a, b, c), 1000)
    np.testing.assert_array_equal(c, a + b)
    assert report.ok
    assert not report.findings
    assert report.flops == 1000
    requests = report.total("global", "requests")
    assert requests == 3 * 32  # two loads and a store in each of 32 warps
    assert report.total("global") == 3 * 4000 / 32  # coalesced: every sector once
    assert report.by_class["load.global"] == 2000
    assert report.by_class["store.global"] == 1000
    assert "4.00 sectors/request" not in report.summary()  # the last warp has 8 lanes
    assert f"{requests} requests" in report.summary()


def test_out_of_bounds(rng: np.random.Generator) -> None:
    a, b, c = vectors(rng)
    report = add(VECTOR_ADD, (a, b, c), 1024, strict=False)
    assert report.kinds() == {"oob-global"}
    assert sum(f.count for f in report.findings) == 3 * 24
    first = report.findings[0].detail
    assert "block (3,0,0) thread (232,0,0), 4-byte load" in first
    assert "4000 bytes from its start, size 4000" in first
    np.testing.assert_array_equal(c, a + b)  # the rest was carried out


def test_strict_launch_raises(rng: np.random.Generator) -> None:
    arrays = vectors(rng)
    with pytest.raises(emulator.CheckFailed, match=r"add: error: oob-global x24 at") as caught:
        add(VECTOR_ADD, arrays, 1024)
    assert isinstance(caught.value, Error)
    assert "\n" not in str(caught.value)
    assert caught.value.report.kinds() == {"oob-global"}


def test_readonly_array(rng: np.random.Generator) -> None:
    a, b, c = vectors(rng)
    c.flags.writeable = False
    report = add(VECTOR_ADD, (a, b, c), 1000, strict=False)
    assert report.kinds() == {"readonly-store"}
    assert not c.any()


def test_views_stay_aliased(rng: np.random.Generator) -> None:
    base = rng.standard_normal(3000).astype(np.float32)
    want = base[:1000] + base[1000:2000]
    add(VECTOR_ADD, (base[:1000], base[1000:2000], base[2000:]), 1000)
    np.testing.assert_array_equal(base[2000:], want)


def test_reduction(rng: np.random.Generator) -> None:
    x, y = rng.integers(-9, 9, 64).astype(np.float32), np.zeros(1, np.float32)
    report = reduce(REDUCTION, x, y)
    assert report.ok
    assert not report.findings
    assert y[0] == x.sum()


def test_reduction_without_barrier(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal(64).astype(np.float32), np.zeros(1, np.float32)
    report = reduce(without(REDUCTION, "bar.sync 0;"), x, y)
    assert report.kinds() == {"race-shared"}
    assert all("shared offset" in f.detail for f in report.errors)


def test_race_check_can_be_left_out(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal(64).astype(np.float32), np.zeros(1, np.float32)
    module = emulator.Module(without(REDUCTION, "bar.sync 0;"))
    assert module.launch("sum", 1, 64, [Ptr(x), Ptr(y)], race=False).ok


def test_uninitialised_shared(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal(64).astype(np.float32), np.zeros(1, np.float32)
    text = without(
        REDUCTION,
        "st.shared.f32 [%s], %u;\n    mov",
        "setp.ne.u32 %q, %i, 40;\n    @%q st.shared.f32 [%s], %u;\n    mov",
    )
    report = reduce(text, x, y)
    assert report.kinds() == {"uninit-shared"}
    assert report.findings[0].count == 1
    assert "thread (8,0,0)" in report.findings[0].detail  # 8 reads what 40 did not write
    assert np.isnan(y[0])


def test_shared_overrun(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal(64).astype(np.float32), np.zeros(1, np.float32)
    report = reduce(without(REDUCTION, "s[256]", "s[252]"), x, y)
    assert "oob-shared" in report.kinds()
    assert "252 bytes declared" in report.findings[0].detail


def test_cp_async(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal(128).astype(np.float32), np.zeros(128, np.float32)
    report = copy(COPY, x, y)
    assert report.ok
    assert not report.findings
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("instead", ["", "cp.async.wait_group 1;"])
def test_cp_async_not_waited_for(rng: np.random.Generator, instead: str) -> None:
    x, y = rng.standard_normal(128).astype(np.float32), np.zeros(128, np.float32)
    report = copy(without(COPY, "cp.async.wait_group 0;", instead), x, y)
    assert report.kinds() == {"cp-async-unwaited", "cp-async-unfinished"}
    assert np.isnan(y).all()


def test_misaligned(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal(128).astype(np.float32), np.zeros(128, np.float32)
    report = copy(without(COPY, "%y, %i, 16", "%y, %i, 12"), x, y)
    assert report.kinds() == {"misaligned"}
    assert report.findings[0].count == 24  # one in four addresses is a multiple of 16
    assert "16-byte store" in report.findings[0].detail


def test_divergent_barrier() -> None:
    module = emulator.Module(BARRIERS)
    assert module.launch("wait", 1, 64, [], strict=False).kinds() == {"barrier-diverged"}
    other = emulator.Module(without(BARRIERS, "LOW:\n    bar.sync 0", "LOW:\n    bar.sync 1"))
    assert "deadlock" in other.launch("wait", 1, 64, [], strict=False).kinds()


def test_global_variables_persist() -> None:
    text = (
        HEAD
        + """
.visible .global .align 4 .u32 count = 5;
.visible .entry next(.param .u64 py) {
    .reg .b32 %v; .reg .b64 %y;
    atom.global.add.u32 %v, [count], 1; ld.param.u64 %y, [py]; st.global.u32 [%y], %v;
    ret;
}
"""
    )
    module, y = emulator.Module(text), np.zeros(1, np.uint32)
    assert module.kernels == ["next"]
    for want in (5, 6, 7):
        module.launch(None, 1, 1, [Ptr(y)])
        assert y[0] == want


def test_launch_errors(rng: np.random.Generator) -> None:
    module = emulator.Module(VECTOR_ADD)
    with pytest.raises(emulator.PtxError, match=r"4 parameters, the arguments expand to 1"):
        module.launch("add", 1, 32, [Ptr(np.zeros(4, np.float32))])
    wide = (1, 2**16, 1), (1, 1, 2**16), (2**31, 1, 1)
    for grid, block in ((1, 2048), (0, 32), (1, (1, 1, 65)), *((grid, 32) for grid in wide)):
        with pytest.raises(emulator.PtxError, match="invalid launch configuration"):
            module.launch("add", grid, block, [])
    bounded = emulator.Module(without(BARRIERS, "wait()", "wait() .maxntid 32"))
    with pytest.raises(emulator.PtxError, match=r"64 threads exceed .* 32"):
        bounded.launch("wait", 1, 64, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (without(BARRIERS, "bra LOW", "bra NOWHERE"), "unknown name 'NOWHERE'"),
        (without(BARRIERS, "%tid.x", "%tjd.x"), "unknown name '%tjd.x'"),
        (without(BARRIERS, ".reg .b32 %i;", ".strange .b32 %i;"), "unknown directive"),
        (BARRIERS.rstrip()[:-1], "unbalanced braces"),
    ],
)
def test_malformed_ptx(text: str, message: str) -> None:
    with pytest.raises(emulator.PtxError, match=message) as caught:
        emulator.Module(text).launch("wait", 1, 32, [])
    assert isinstance(caught.value, emulator.EmulatorError)


def test_imports_no_compiler() -> None:
    code = "import sys, gpuconv.emulator; sys.exit('numba' in sys.modules or 'cuda' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_compilers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba_cuda", None)
    with pytest.raises(emulator.EmulatorError, match=r"needs numba_cuda: install the extra cuda13"):
        emulator.numba_ptx(test_missing_compilers_are_named, ())
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(emulator.EmulatorError, match=r"needs cuda.pathfinder: install the extra"):
        emulator.nvrtc_ptx("")
