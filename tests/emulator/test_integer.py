"""Integer and bit instructions against references on Python integers."""

from typing import Any

import numpy as np
import pytest

from tests.emulator.ptx import NP, apply, values


def wrap(v: Any, t: str) -> Any:
    bits = np.dtype(NP[t]).itemsize * 8
    v &= (1 << bits) - 1
    return v - (1 << bits) if np.issubdtype(NP[t], np.signedinteger) and v >> (bits - 1) else v


def tdiv(a: Any, b: Any) -> Any:
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def bfe(a: Any, p: Any, ln: Any, bits: Any, signed: Any) -> Any:
    p, ln = p & 255, ln & 255
    msb = bits - 1
    u = a & ((1 << bits) - 1)
    sbit = 0 if not signed or ln == 0 else u >> min(p + ln - 1, msb) & 1
    d = 0
    for i in range(bits):
        d |= ((u >> (p + i) & 1) if i < ln and p + i <= msb else sbit) << i
    return d


def bfi(a: Any, b: Any, p: Any, ln: Any, bits: Any) -> Any:
    p, ln = p & 255, ln & 255
    for i in range(ln):
        if p + i < bits:
            b = b & ~(1 << (p + i)) | (a >> i & 1) << (p + i)
    return b


def prmt(a: Any, b: Any, c: Any) -> Any:
    by = [(a | b << 32) >> 8 * k & 255 for k in range(8)]
    r = 0
    for k in range(4):
        s = c >> 4 * k & 15
        v = by[s & 7]
        r |= ((255 if v & 128 else 0) if s & 8 else v) << 8 * k
    return r


INT = [  # instruction, operand types, result type, reference on Python ints
    ("add.s32", "s32 s32", "s32", lambda a, b: a + b),
    ("sub.u64", "u64 u64", "u64", lambda a, b: a - b),
    ("add.sat.s32", "s32 s32", "s32", lambda a, b: max(-(2**31), min(2**31 - 1, a + b))),
    ("mul.lo.s32", "s32 s32", "s32", lambda a, b: a * b),
    ("mul.hi.s32", "s32 s32", "s32", lambda a, b: a * b >> 32),
    ("mul.hi.u32", "u32 u32", "u32", lambda a, b: a * b >> 32),
    ("mul.hi.s64", "s64 s64", "s64", lambda a, b: a * b >> 64),
    ("mul.hi.u64", "u64 u64", "u64", lambda a, b: a * b >> 64),
    ("mul.wide.s32", "s32 s32", "s64", lambda a, b: a * b),
    ("mul.wide.u16", "u16 u16", "u32", lambda a, b: a * b),
    ("mad.lo.u32", "u32 u32 u32", "u32", lambda a, b, c: a * b + c),
    ("mad.hi.s32", "s32 s32 s32", "s32", lambda a, b, c: (a * b >> 32) + c),
    ("mad.wide.s32", "s32 s32 s64", "s64", lambda a, b, c: a * b + c),
    ("sad.s32", "s32 s32 s32", "s32", lambda a, b, c: c + abs(a - b)),
    ("min.s32", "s32 s32", "s32", min),
    ("max.u64", "u64 u64", "u64", max),
    ("neg.s32", "s32", "s32", lambda a: -a),
    ("abs.s32", "s32", "s32", abs),
    ("not.b64", "b64", "b64", lambda a: ~a),
    ("cnot.b32", "b32", "b32", lambda a: int(a == 0)),
    ("and.b32", "b32 b32", "b32", lambda a, b: a & b),
    ("xor.b16", "b16 b16", "b16", lambda a, b: a ^ b),
    ("shl.b32", "b32 u32", "b32", lambda a, b: a << b if b < 32 else 0),
    ("shr.u32", "u32 u32", "u32", lambda a, b: a >> min(b, 32)),
    ("shr.s64", "s64 u32", "s64", lambda a, b: a >> min(b, 63)),
    ("shl.b64", "b64 u32", "b64", lambda a, b: a << b if b < 64 else 0),
    ("shf.l.wrap.b32", "b32 b32 u32", "b32", lambda a, b, c: (b << 32 | a) << (c & 31) >> 32),
    ("shf.r.clamp.b32", "b32 b32 u32", "b32", lambda a, b, c: (b << 32 | a) >> min(c, 32)),
    ("popc.b32", "b32", "u32", lambda a: a.bit_count()),
    ("popc.b64", "b64", "u32", lambda a: a.bit_count()),
    ("clz.b32", "b32", "u32", lambda a: 32 - a.bit_length()),
    ("clz.b64", "b64", "u32", lambda a: 64 - a.bit_length()),
    ("bfind.u32", "u32", "u32", lambda a: a.bit_length() - 1),
    ("bfind.s32", "s32", "u32", lambda a: (~a if a < 0 else a).bit_length() - 1),
    ("bfind.shiftamt.u64", "u64", "u32", lambda a: 64 - a.bit_length() if a else -1),
    ("brev.b32", "b32", "b32", lambda a: int(f"{a:032b}"[::-1], 2)),
    ("brev.b64", "b64", "b64", lambda a: int(f"{a:064b}"[::-1], 2)),
    ("prmt.b32", "b32 b32 b32", "b32", prmt),
    ("cvt.s32.s8", "s8", "s32", lambda a: a),
    ("cvt.u32.u16", "u16", "u32", lambda a: a),
    ("cvt.s64.s32", "s32", "s64", lambda a: a),
    ("cvt.u8.u32", "u32", "u8", lambda a: a),
    ("cvt.sat.s8.s32", "s32", "s8", lambda a: max(-128, min(127, a))),
    ("cvt.sat.u32.s32", "s32", "u32", lambda a: max(0, a)),
    ("cvt.u64.s32", "s32", "u64", lambda a: a),
]


@pytest.mark.parametrize(("op", "ins", "out", "ref"), INT, ids=[i[0] for i in INT])
def test_integer_op(rng: np.random.Generator, op: str, ins: Any, out: Any, ref: Any) -> None:
    ins = ins.split()
    arrays = [rng.permutation(values(rng, t)) for t in ins]
    if op.startswith(("shl", "shr", "shf")):
        arrays[-1] = rng.integers(0, 80, 700).astype(np.uint32)
    got = apply(f"{op} %d, {', '.join('%' + v for v in 'abc'[: len(ins)])};", arrays, ins, out)
    want = [wrap(ref(*map(int, row)), out) for row in zip(*arrays, strict=False)]
    assert got.tolist() == want


@pytest.mark.parametrize("t", ["s32", "u32", "s64", "u64"])
def test_div_rem(rng: np.random.Generator, t: str) -> None:
    a, b = values(rng, t), rng.permutation(values(rng, t))
    b[b == 0] = 3
    q, r = (
        apply(f"div.{t} %d, %a, %b;", [a, b], [t, t], t),
        apply(f"rem.{t} %d, %a, %b;", [a, b], [t, t], t),
    )
    for x, y, qq, rr in zip(map(int, a), map(int, b), q, r, strict=False):
        if not (x == np.iinfo(NP[t]).min and y == -1):
            assert int(qq) == tdiv(x, y)
            assert int(rr) == x - y * tdiv(x, y)


@pytest.mark.parametrize("t", ["u32", "s32", "u64", "s64"])
def test_bitfields(rng: np.random.Generator, t: str) -> None:
    bits = int(t[1:])
    a, p, ln = (
        values(rng, t),
        rng.integers(0, bits + 4, 700).astype(np.uint32),
        rng.integers(0, bits + 4, 700).astype(np.uint32),
    )
    got = apply(f"bfe.{t} %d, %a, %b, %c;", [a, p, ln], [t, "u32", "u32"], f"u{bits}")
    assert got.tolist() == [
        bfe(int(x), int(y), int(z), bits, t[0] == "s") for x, y, z in zip(a, p, ln, strict=False)
    ]
    if t[0] == "u":
        b = rng.permutation(a)
        for pos, length in ((0, 8), (5, 11), (bits - 3, 9), (bits, 4), (3, 0), (0, bits)):
            got = apply(f"bfi.b{bits} %d, %a, %b, {pos}, {length};", [a, b], [t, t], t)
            assert got.tolist() == [
                bfi(int(x), int(y), pos, length, bits) for x, y in zip(a, b, strict=False)
            ]


@pytest.mark.parametrize("lut", [0x80, 0xFE, 0x96, 0xCA, 0x00, 0xFF, 0x1B])
def test_lop3(rng: np.random.Generator, lut: int) -> None:
    a, b, c = (values(rng, "u32") for _ in range(3))
    got = apply(f"lop3.b32 %d, %a, %b, %c, {lut:#x};", [a, b, c], ["u32"] * 3, "u32")
    want = np.zeros_like(a)
    for k in range(8):
        if lut >> k & 1:
            want |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    assert np.array_equal(got, want)


def test_carry_chain(rng: np.random.Generator) -> None:
    a, b = values(rng, "u64"), rng.permutation(values(rng, "u64"))
    body = (
        "mov.b64 {%al,%ah}, %a; mov.b64 {%bl,%bh}, %b; {} %l, %al, %bl; {} %h, %ah, %bh;"
        "mov.b64 %d, {%l,%h};"
    )
    regs = ".reg .b32 %al, %ah, %bl, %bh, %l, %h;"

    def fill(x: Any, y: Any) -> Any:
        return body.replace("{} %l", x + " %l").replace("{} %h", y + " %h")

    assert np.array_equal(
        apply(fill("add.cc.u32", "addc.u32"), [a, b], ["u64", "u64"], "u64", regs), a + b
    )
    assert np.array_equal(
        apply(fill("sub.cc.u32", "subc.u32"), [a, b], ["u64", "u64"], "u64", regs), a - b
    )


def test_dp4a(rng: np.random.Generator) -> None:
    a, b, c = values(rng, "u32"), rng.permutation(values(rng, "u32")), values(rng, "s32")
    got = apply("dp4a.s32.s32 %d, %a, %b, %c;", [a, b, c], ["u32", "u32", "s32"], "s32")
    x, y = (
        a.view(np.int8).reshape(-1, 4).astype(np.int64),
        b.view(np.int8).reshape(-1, 4).astype(np.int64),
    )
    assert np.array_equal(got, ((x * y).sum(1) + c).astype(np.int32))
