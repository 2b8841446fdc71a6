"""Instructions in which the lanes of a warp exchange data."""

from typing import Any

import numpy as np
import pytest

from gpuconv import emulator
from tests.emulator.ptx import apply


def test_match_redux_activemask(rng: np.random.Generator) -> None:
    a = rng.integers(0, 4, 256).astype(np.uint32)
    w = a.reshape(-1, 32)
    got = apply("match.any.sync.b32 %d, %a, 0xffffffff;", [a], ["u32"], "u32")
    want = ((w[:, :, None] == w[:, None, :]) << np.arange(32)).sum(2).astype(np.uint32).reshape(-1)
    assert np.array_equal(got, want)
    assert np.array_equal(
        apply("redux.sync.add.u32 %d, %a, 0xffffffff;", [a], ["u32"], "u32"),
        np.repeat(w.sum(1), 32),
    )
    assert np.array_equal(
        apply("redux.sync.max.u32 %d, %a, 0xffffffff;", [a], ["u32"], "u32"),
        np.repeat(w.max(1), 32),
    )
    body = "mov.u32 %d, 0; setp.gt.u32 %q, %a, 1; @!%q bra SKIP; activemask.b32 %d; SKIP:"
    got = apply(body, [a], ["u32"], "u32")
    assert np.array_equal(got, np.where(a > 1, np.repeat(((w > 1) << np.arange(32)).sum(1), 32), 0))


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8])
def test_shfl(mode: str, width: int) -> None:
    a = np.arange(256, dtype=np.uint32)
    lane = a % 32
    for b in (0, 1, 3, 5, 9, 17):
        c = (32 - width) << 8 | (0 if mode == "up" else 31)
        got = apply(f"shfl.sync.{mode}.b32 %d, %a, {b}, {c}, -1;", [a], ["u32"], "u32")
        seg = lane // width * width
        j = {
            "up": lane.astype(int) - b,
            "down": lane + b,
            "bfly": lane ^ b,
            "idx": seg + b % width,
        }[mode]
        ok = j >= seg if mode == "up" else j < seg + width
        assert np.array_equal(got, np.where(ok, a - lane + j, a))


MMA_CASES = [
    ("m16n8k8", "tf32", 8),
    ("m16n8k4", "tf32", 4),
    ("m16n8k16", "f16", 16),
    ("m16n8k8", "f16", 8),
    ("m16n8k16", "bf16", 16),
    ("m16n8k8", "bf16", 8),
    ("m16n8k32", "s8", 32),
    ("m16n8k16", "u8", 16),
]


@pytest.mark.parametrize(("shape", "t", "K"), MMA_CASES)
def test_mma_layouts(rng: np.random.Generator, shape: str, t: str, K: int) -> None:
    """Fragments gathered by formulas written out from the PTX ISA text, independent of gpuconv."""
    per = {"tf32": 1, "f16": 2, "bf16": 2, "s8": 4, "u8": 4}[t]  # elements per register
    lane = np.arange(32)
    g, q = lane // 4, lane % 4
    A, B, C = (
        rng.integers(-8, 8, (16, K)),
        rng.integers(-8, 8, (K, 8)),
        rng.integers(-50, 50, (16, 8)),
    )
    if t == "u8":
        A, B = abs(A), abs(B)

    def enc(x: Any) -> Any:
        if t == "tf32":
            return np.float32(x).view(np.uint32).reshape(-1, 1)
        if t == "f16":
            return np.float16(x).view(np.uint16)
        if t == "bf16":
            return (np.float32(x).view(np.uint32) >> 16).astype(np.uint16)
        return x.astype(np.int8).view(np.uint8)

    def frag(elems: Any) -> Any:  # list of (32,) element arrays -> registers (32, n)
        m = np.ascontiguousarray(
            enc(np.stack(elems, 1).astype(np.float32 if t in ("tf32", "f16", "bf16") else np.int64))
        )
        return m.reshape(32, -1).view(np.uint32).reshape(32, -1)

    ea, eb = [], []
    na, nb = 16 * K // 32, 8 * K // 32
    for i in range(na):
        r, i_in = i // per, i % per  # register, element within it
        row = g + 8 * (r % 2)  # registers alternate between the upper and lower 8 rows
        col = per * q + i_in + 4 * per * (r // 2)
        ea.append(A[row, col])
    for i in range(nb):
        eb.append(B[per * q + i % per + 4 * per * (i // per), g])
    a, b = frag(ea), frag(eb)
    integer = t in ("s8", "u8")
    acc, _reg = ("s32", "r") if integer else ("f32", "f")
    cfrag = np.stack([C[g + 8 * (i // 2), 2 * q + i % 2] for i in range(4)], 1).astype(
        np.int32 if integer else np.float32
    )

    def vec(p: Any, n: int) -> Any:
        return "{" + ", ".join(f"%{p}{k}" for k in range(n)) + "}"

    ld = "".join(
        f"ld.global.b32 %{p}{k}, [%q{p}+{4 * k}];"
        for p, n in (("a", a.shape[1]), ("b", b.shape[1]), ("c", 4))
        for k in range(n)
    )
    text = f""".version 8.0\n.target sm_80\n.address_size 64
.visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 pd) {{
.reg .b32 %a<4>, %b<2>, %c<4>, %d<4>, %t; .reg .b64 %qa, %qb, %qc, %qd;
ld.param.u64 %qa, [pa]; ld.param.u64 %qb, [pb]; ld.param.u64 %qc, [pc]; ld.param.u64 %qd, [pd];
      mov.u32 %t, %laneid;
mad.wide.u32 %qa, %t, {4 * a.shape[1]}, %qa; mad.wide.u32 %qb, %t, {4 * b.shape[1]}, %qb;
      mad.wide.u32 %qc, %t, 16, %qc; mad.wide.u32 %qd, %t, 16, %qd;
{ld}
mma.sync.aligned.{shape}.row.col.{acc}.{t}.{t}.{acc} {vec("d", 4)}, {vec("a", a.shape[1])},
      {vec("b", b.shape[1])}, {vec("c", 4)};
st.global.v4.b32 [%qd], {vec("d", 4)};
ret;
}}"""
    d = np.zeros((32, 4), cfrag.dtype)
    emulator.Module(text).launch("k", 1, 32, [emulator.Ptr(x) for x in (a, b, cfrag, d)])
    D = A @ B + C
    for i in range(4):
        assert np.array_equal(d[:, i], D[g + 8 * (i // 2), 2 * q + i % 2])
