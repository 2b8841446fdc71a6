"""Floating-point instructions and conversions."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gpuconv import emulator
from tests.emulator.ptx import NP, apply, kernel, values


@pytest.mark.parametrize("t", ["f32", "f64", "f16"])
def test_float_arithmetic(rng: np.random.Generator, t: str) -> None:
    a, b = values(rng, t), rng.permutation(values(rng, t))
    c = rng.permutation(values(rng, t))
    dt = NP[t]
    with np.errstate(all="ignore"):
        for op, ref in (
            ("add", a + b),
            ("sub", a - b),
            ("mul", a * b),
            ("min", np.fmin(a, b)),
            ("max", np.fmax(a, b)),
        ):
            np.testing.assert_array_equal(apply(f"{op}.{t} %d, %a, %b;", [a, b], [t, t], t), ref)
        assert np.array_equal(apply(f"neg.{t} %d, %a;", [a], [t], t), -a, equal_nan=True)
        assert np.array_equal(apply(f"abs.{t} %d, %a;", [a], [t], t), abs(a), equal_nan=True)
        if t != "f16":
            np.testing.assert_array_equal(
                apply(f"div.rn.{t} %d, %a, %b;", [a, b], [t, t], t), a / b
            )
            np.testing.assert_array_equal(apply(f"sqrt.rn.{t} %d, %a;", [a], [t], t), np.sqrt(a))
        wide = np.longdouble
        ref = (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(dt)
        got = apply(f"fma.rn.{t} %d, %a, %b, %c;", [a, b, c], [t] * 3, t)
        np.testing.assert_allclose(got, ref, rtol=np.finfo(dt).eps, atol=0)
        if t != "f64":
            np.testing.assert_array_equal(got, ref)


def test_fma_f64_is_fused(rng: np.random.Generator) -> None:
    a = rng.standard_normal(700)
    b = 1 + rng.standard_normal(700) * 1e-9
    p = a * b
    got = apply(
        "fma.rn.f64 %d, %a, %b, %c;", [a, b, -p], ["f64"] * 3, "f64"
    )  # the rounding error of a*b, exactly
    assert got.tolist() == [
        float(Fraction(x) * Fraction(y) - Fraction(z)) for x, y, z in zip(a, b, p, strict=False)
    ]


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_rounding(rng: np.random.Generator, mode: str) -> None:
    a, b = rng.standard_normal((2, 300)).astype(np.float32)
    for op, exact in (("add", lambda x, y: x + y), ("mul", lambda x, y: x * y)):
        got = apply(f"{op}.{mode}.f32 %d, %a, %b;", [a, b], ["f32", "f32"], "f32")
        for x, y, g in zip(a, b, got, strict=False):
            e, g = exact(Fraction(float(x)), Fraction(float(y))), np.float32(g)
            v, nxt, prv = (
                Fraction(float(g)),
                np.nextafter(g, np.float32(np.inf)),
                np.nextafter(g, np.float32(-np.inf)),
            )
            if mode == "rm" or (mode == "rz" and e > 0):
                assert v <= e < Fraction(float(nxt))
            elif mode == "rp" or (mode == "rz" and e < 0):
                assert Fraction(float(prv)) < e <= v


@pytest.mark.parametrize(
    "cmp",
    ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"],
)
def test_float_compare(rng: np.random.Generator, cmp: Any) -> None:
    a, b = values(rng, "f32"), rng.permutation(values(rng, "f32"))
    b[::3] = a[::3]
    got = apply(
        f"setp.{cmp}.f32 %q, %a, %b; selp.b32 %d, 1, 0, %q;", [a, b], ["f32", "f32"], "u32"
    ).astype(bool)
    nan = np.isnan(a) | np.isnan(b)
    base = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    want = (
        nan
        if cmp == "nan"
        else ~nan
        if cmp == "num"
        else base[cmp] & ~nan
        if cmp in base
        else base[cmp[:2]] | nan
    )
    assert np.array_equal(got, want)


def test_setp_combined_and_slct(rng: np.random.Generator) -> None:
    a, b = values(rng, "s32"), rng.permutation(values(rng, "s32"))
    body = (
        "setp.lt.and.s32 %q|%r, %a, %b, %s; selp.b32 %x, 1, 0, %q; selp.b32 %y, 2, 0, %r;"
        "add.u32 %d, %x, %y;"
    )
    regs = ".reg .pred %r, %s; .reg .b32 %x, %y;"
    got = apply("setp.gt.s32 %s, %a, 0;" + body, [a, b], ["s32", "s32"], "u32", regs)
    assert np.array_equal(got, ((a < b) & (a > 0)) + 2 * (~(a < b) & (a > 0)))
    assert np.array_equal(
        apply("slct.s32.s32 %d, %a, 7, %b;", [a, b], ["s32", "s32"], "s32"), np.where(b >= 0, a, 7)
    )


CVT_F2I = [
    ("rzi", math.trunc),
    ("rni", lambda v: int(np.rint(v))),
    ("rmi", math.floor),
    ("rpi", math.ceil),
]


@pytest.mark.parametrize("t", ["s32", "u32", "s64", "u64", "s8", "u16"])
@pytest.mark.parametrize(("rnd", "ref"), CVT_F2I, ids=[c[0] for c in CVT_F2I])
def test_float_to_int(rng: np.random.Generator, t: str, rnd: Any, ref: Any) -> None:
    a = np.r_[
        values(rng, "f32"),
        np.float32([2.0**31, -(2.0**31), 2.0**63, 2.0**64, 1e30, -1e30, 2.0**32, 254.5, 65535.5]),
    ]
    lim = np.iinfo(NP[t])
    want = [
        0
        if np.isnan(v)
        else lim.max
        if v == np.inf
        else lim.min
        if v == -np.inf
        else max(lim.min, min(lim.max, ref(float(v))))
        for v in a
    ]
    assert apply(f"cvt.{rnd}.{t}.f32 %d, %a;", [a], ["f32"], t).tolist() == want


def test_int_to_float_and_float_to_float(rng: np.random.Generator) -> None:
    for t in ("s32", "u32", "s64", "u64"):
        a = values(rng, t)
        assert np.array_equal(
            apply(f"cvt.rn.f32.{t} %d, %a;", [a], [t], "f32"), a.astype(np.float32)
        )
        assert np.array_equal(
            apply(f"cvt.rn.f64.{t} %d, %a;", [a], [t], "f64"), a.astype(np.float64)
        )
    a = values(rng, "f32")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            apply("cvt.rn.f16.f32 %d, %a;", [a], ["f32"], "f16"), a.astype(np.float16)
        )
    np.testing.assert_array_equal(
        apply("cvt.f64.f32 %d, %a;", [a], ["f32"], "f64"), a.astype(np.float64)
    )
    np.testing.assert_array_equal(
        apply("cvt.rmi.f32.f32 %d, %a;", [a], ["f32"], "f32"), np.floor(a)
    )
    got = apply("cvt.rna.tf32.f32 %d, %a;", [a], ["f32"], "f32")
    assert (got.view(np.uint32) & 0x1FFF == 0).all()
    fin = np.isfinite(a)
    assert (abs(got[fin] - a[fin]) <= abs(a[fin]) * 2.0**-11).all()


def test_bf16(rng: np.random.Generator) -> None:
    a, b = values(rng, "f32"), rng.permutation(values(rng, "f32"))

    def up(u: Any) -> Any:
        return (u.astype(np.uint32) << 16).view(np.float32)

    h = apply("cvt.rn.bf16.f32 %d, %a;", [a], ["f32"], "b16")
    fin = np.isfinite(a)
    assert (abs(up(h)[fin] - a[fin]) <= abs(a[fin]) * 2.0**-8).all()
    assert np.isnan(up(h)[np.isnan(a)]).all()
    packed = apply("cvt.rn.bf16x2.f32 %d, %a, %b;", [a, b], ["f32", "f32"], "u32")
    assert np.array_equal(packed >> 16, h)
    assert np.array_equal(
        (packed & 0xFFFF).astype(np.uint16), apply("cvt.rn.bf16.f32 %d, %a;", [b], ["f32"], "b16")
    )
    got = apply("fma.rn.bf16x2 %d, %a, %b, %c;", [packed, packed, packed], ["u32"] * 3, "u32")
    x = up((packed >> 16).astype(np.uint16)).astype(np.float64)
    with np.errstate(all="ignore"):
        e = x * x + x
    fin = np.isfinite(e) & (abs(e) < 1e38)
    assert (abs(up((got >> 16).astype(np.uint16))[fin] - e[fin]) <= abs(e[fin]) * 2.0**-8).all()


def test_half2(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal((700, 2)).astype(np.float16) for _ in range(2))

    def p(x: Any) -> Any:
        return np.ascontiguousarray(x).view(np.uint32).reshape(-1)

    assert np.array_equal(
        apply("add.f16x2 %d, %a, %b;", [p(a), p(b)], ["u32", "u32"], "u32"), p(a + b)
    )
    assert np.array_equal(
        apply("mul.rn.f16x2 %d, %a, %b;", [p(a), p(b)], ["u32", "u32"], "u32"), p(a * b)
    )


def test_approximate_functions(rng: np.random.Generator) -> None:
    a = np.abs(rng.standard_normal(700)).astype(np.float32) + np.float32(0.1)
    for op, ref in (
        ("rcp.approx.ftz.f32", 1 / a),
        ("sqrt.approx.f32", np.sqrt(a)),
        ("rsqrt.approx.f32", 1 / np.sqrt(a)),
        ("ex2.approx.f32", np.exp2(a)),
        ("lg2.approx.f32", np.log2(a)),
        ("sin.approx.f32", np.sin(a)),
        ("cos.approx.f32", np.cos(a)),
    ):
        np.testing.assert_allclose(
            apply(f"{op} %d, %a;", [a], ["f32"], "f32"), ref, rtol=2e-6, atol=1e-6
        )


def test_ftz_option() -> None:
    tiny = np.float32([1e-39, -1e-39, 1.0])
    text = kernel("add.ftz.f32 %d, %a, 0f00000000;", ["f32"], "f32")
    for ftz, want in ((True, [0, 0, 1]), (False, tiny)):
        d = np.zeros(256, np.float32)
        emulator.Module(text, ftz=ftz).launch(
            "k", 1, 256, [emulator.Ptr(np.resize(tiny, 256)), emulator.Ptr(d)]
        )
        assert np.array_equal(d[:3], np.float32(want))
