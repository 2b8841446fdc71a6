"""Synchronisation and faults."""

import pytest

from gpuconv import emulator
from tests.emulator.ptx import raw


def test_named_barriers() -> None:
    """Warp 0 produces, warp 1 consumes: bar.arrive / bar.sync with a thread count."""
    body = """setp.lt.u32 %q, %i, 32; @%q bra PROD;
    bar.sync 1, 64; mov.u32 %w, s; add.u32 %w, %w, %t; ld.shared.u32 %v, [%w+-128];
      st.global.u32 [%p], %v; bra END;
    PROD: mad.lo.u32 %v, %i, 3, 1; mov.u32 %w, s; add.u32 %w, %w, %t; st.shared.u32 [%w], %v;
      bar.arrive 1, 64; END:"""
    d, r = raw(body, 64, 64)
    assert r.ok
    assert d[32:].tolist() == [3 * i + 1 for i in range(32)]


def test_deadlock_exit_trap_and_faults() -> None:
    _, r = raw(
        "setp.lt.u32 %q, %i, 32; @%q bra A; bar.sync 0; bra END; A: bar.sync 1; END:", 64, 64
    )
    assert "deadlock" in r.kinds()
    d, r = raw("setp.gt.u32 %q, %i, 40; @%q exit; bar.sync 0; st.global.u32 [%p], 5;", 64, 64)
    assert r.kinds() == {"barrier-exited"}
    assert d.tolist() == [5] * 41 + [0] * 23
    _, r = raw("setp.eq.u32 %q, %i, 7; @%q trap;", 64, 64)
    assert r.kinds() == {"trap"}
    assert r.findings[0].count == 1
    d, r = raw("rem.u32 %v, 7, %i; st.global.u32 [%p], %v;", 64, 64)
    assert r.kinds() == {"div-by-zero"}
    assert d[3] == 1
    d, r = raw(
        "add.u32 %t, %t, 16; st.local.u32 [%t], %i; ld.local.u32 %v, [%t]; st.global.u32 [%p], %v;",
        64,
        64,
    )
    assert r.kinds() == {"oob-local"}
    assert d[:12].tolist() == list(range(12))
    with pytest.raises(emulator.PtxError, match="endless"):
        raw("L: bra L;", 64, 64, max_steps=1000)
    with pytest.raises(emulator.Unsupported, match="wgmma"):
        raw("wgmma.fence.sync.aligned;", 64, 64)


def test_barrier_reduction_and_generic_addressing() -> None:
    body = """setp.lt.u32 %q, %i, 10; barrier.sync.aligned 0; bar.red.popc.u32 %v, 0, %q;
      st.global.u32 [%p], %v;
    .reg .u64 %g, %l, %m; mov.u64 %g, s; cvta.shared.u64 %g, %g; mov.u64 %l, loc;
      cvta.local.u64 %l, %l; and.b32 %w, %i, 1;
    setp.eq.u32 %q, %w, 0; selp.b64 %m, %g, %l, %q; cvt.u64.u32 %g, %t; @!%q mov.u64 %g, 4;
      add.u64 %m, %m, %g;
    st.u32 [%m], %i; ld.u32 %v, [%m]; st.global.u32 [%p+256], %v;"""
    d, r = raw(body, 128, 64)
    assert r.ok, r.summary()
    assert (d[:64] == 10).all()
    assert d[64:].tolist() == list(range(64))
