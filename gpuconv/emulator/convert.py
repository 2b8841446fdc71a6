"""Comparison, selection, moves, conversions and carry arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.emulator.errors import Unsupported
from gpuconv.emulator.isa import (
    F2,
    F4,
    F8,
    I8,
    TYPES,
    U2,
    U4,
    U8,
    UINT,
    Pair,
    Sink,
    Step,
    Ty,
    Vec,
    bf16_to_f32,
    f32_to_bf16,
    tf32_round,
)
from gpuconv.emulator.linker import Instr, Program
from gpuconv.emulator.memory import LOCAL_WIN, SHARED_WIN, WIN
from gpuconv.emulator.operands import reader, writer
from gpuconv.emulator.rounding import fmode, rounded

if TYPE_CHECKING:
    from gpuconv.emulator.engine import State


CMP = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def compare(ins: Instr, ty: Ty) -> Any:
    """Comparison of a setp or set as a function of two arrays."""
    name = next(
        m for m in ins.mods if m in CMP or m in ("num", "nan") or (m[:-1] in CMP and m[-1] == "u")
    )
    if not ty.isfloat:
        return CMP[name]

    def unordered(a: Any, b: Any) -> Any:
        return np.isnan(a) | np.isnan(b)

    if name in ("num", "nan"):
        return unordered if name == "nan" else lambda a, b: ~unordered(a, b)
    if name == "ne":  # ordered not-equal
        return lambda a, b: (a < b) | (a > b)
    if name in CMP:
        return CMP[name]
    f = CMP[name[:-1]]
    return f if name == "neu" else lambda a, b: f(a, b) | unordered(a, b)


def build_setp(ins: Instr, prog: Program) -> Step:
    """setp."""
    ty = ins.ty
    f, dst = compare(ins, ty), ins.ops[0]
    a, b = (reader(o, ty, prog) for o in ins.ops[1:3])
    p, q = (dst.a, dst.b) if isinstance(dst, Pair) else (dst, Sink())
    wp, wq = (writer(o, TYPES["pred"]) for o in (p, q))
    if len(ins.ops) == 3 and isinstance(q, Sink):
        return lambda S: wp(S, f(a(S), b(S)))
    logic = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    comb: Any = next((logic[m] for m in ins.mods if m in logic), lambda t, c: t)
    c = reader(ins.ops[3], TYPES["pred"], prog) if len(ins.ops) > 3 else lambda S: True

    def run(S: State) -> None:
        t, z = f(a(S), b(S)), c(S)
        wp(S, comb(t, z))
        wq(S, comb(~t, z))

    return run


def build_set(ins: Instr, prog: Program) -> Step:
    """set."""
    dt, ty = ins.types[-2:]
    f = compare(ins, ty)
    a, b = (reader(o, ty, prog) for o in ins.ops[1:3])
    w = writer(ins.ops[0], dt)
    one = (
        F4(1)
        if dt.half or dt.dt is F4
        else dt.dt(1)
        if dt.isfloat
        else dt.dt(-1)
        if dt.kind == "s"
        else ~dt.dt(0)
    )
    return lambda S: w(S, np.where(f(a(S), b(S)), one, type(one)(0)))


def build_selp(ins: Instr, prog: Program) -> Step:
    """selp."""
    ty = ins.ty.raw
    a, b = (reader(o, ty, prog) for o in ins.ops[1:3])
    p, w = reader(ins.ops[3], TYPES["pred"], prog), writer(ins.ops[0], ty)
    return lambda S: w(S, np.where(p(S), a(S), b(S)))


def build_slct(ins: Instr, prog: Program) -> Step:
    """slct."""
    ty, ct = ins.types
    a, b = (reader(o, ty.raw, prog) for o in ins.ops[1:3])
    c, w = reader(ins.ops[3], ct, prog), writer(ins.ops[0], ty.raw)
    return lambda S: w(S, np.where(c(S) >= 0, a(S), b(S)))


def build_testp(ins: Instr, prog: Program) -> Step:
    """testp."""
    tests: dict[str, Any] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "notanumber": np.isnan,
        "number": lambda a: ~np.isnan(a),
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
        "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
    }
    f = next(tests[m] for m in ins.mods if m in tests)
    a, w = reader(ins.ops[1], ins.ty, prog), writer(ins.ops[0], TYPES["pred"])
    return lambda S: w(S, f(a(S)))


def build_mov(ins: Instr, prog: Program) -> Step:
    """mov, packing and unpacking of vectors included."""
    ty, (d, s) = ins.ty.raw if ins.ty.bits < 128 else ins.ty, ins.ops
    if isinstance(s, Vec):  # pack
        part = TYPES[f"b{ty.bits // len(s.items)}"]
        get = [reader(o, part, prog) for o in s.items]
        w, u = writer(d, ty), UINT[ty.bits]

        def pack(S: State) -> None:
            r = u(0)
            for k, g in enumerate(get):
                r = r | (g(S).astype(u) << u(k * part.bits))
            w(S, r)

        return pack
    if isinstance(d, Vec):  # unpack
        part = TYPES[f"b{ty.bits // len(d.items)}"]
        a, u = reader(s, ty, prog), UINT[ty.bits]
        ws = [writer(o, part) for o in d.items]

        def unpack(S: State) -> None:
            v = a(S)
            for k, w in enumerate(ws):
                w(S, (v >> u(k * part.bits)).astype(UINT[part.bits]))

        return unpack
    a, w = reader(s, ty, prog), writer(d, ty)
    return lambda S: w(S, a(S))


def build_cvta(ins: Instr, prog: Program) -> Step:
    """cvta."""
    space = next(
        (m for m in ins.mods if m in ("global", "shared", "local", "const", "param")), "global"
    )
    ty = ins.ty
    base = {"shared": SHARED_WIN, "local": LOCAL_WIN}.get(space, 0)
    a, w = reader(ins.ops[1], ty, prog), writer(ins.ops[0], ty)
    if not base:
        return lambda S: w(S, a(S))
    k = U8(base)
    if ins.has("to"):
        return lambda S: w(S, a(S) - k)
    return lambda S: w(S, a(S) + k)


def build_isspacep(ins: Instr, prog: Program) -> Step:
    """isspacep."""
    base = {"shared": SHARED_WIN, "local": LOCAL_WIN}.get(next(m.split("::")[0] for m in ins.mods))
    a, w = reader(ins.ops[1], TYPES["u64"], prog), writer(ins.ops[0], TYPES["pred"])
    if base is None:
        return lambda S: w(S, a(S) >= U8(LOCAL_WIN + WIN))
    return lambda S: w(S, (a(S) >= U8(base)) & (a(S) < U8(base + WIN)))


ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def float_to_int(x: Any, dt: Any, rnd: Any) -> Any:
    """Round, clamp to the destination range, NaN -> 0."""
    x = rnd(x.astype(F8))
    lim = np.iinfo(dt)
    top = float(lim.max)  # 2**63 and 2**64 are exact, max itself is not: clamp by comparison
    ok = np.where(np.isnan(x), 0.0, x)
    over, under = ok >= top, ok <= float(lim.min)
    mid = np.where(over | under, 0.0, ok)
    r = (
        mid.astype(dt)
        if dt is not U8
        else np.where(
            mid >= 2.0**63,
            (mid - 2.0**63).astype(I8).view(U8) + U8(1 << 63),
            mid.astype(I8).view(U8),
        )
    )
    return np.where(over, dt(lim.max), np.where(under, dt(lim.min), r))


def build_cvt(ins: Instr, prog: Program) -> Step:
    """cvt."""
    if len(ins.types) != 2 or ins.has("pack"):
        raise Unsupported(ins.text)
    dt, st = ins.types
    w = writer(ins.ops[0], dt)
    if dt.name == "tf32":
        a, mode = reader(ins.ops[1], TYPES["b32"], prog), "rna" if ins.has("rna") else "rn"
        return lambda S: w(S, tf32_round(a(S), mode))
    relu = (lambda v: np.fmax(v, F4(0))) if ins.has("relu") else lambda v: v
    if dt.pack == 2:  # cvt.rn.f16x2.f32 d, a, b: a goes to the upper half
        hi, lo = (reader(o, st, prog) for o in ins.ops[1:3])

        def pack(S: State) -> None:
            x, y = np.broadcast_arrays(lo(S), hi(S))
            w(S, relu(np.stack([x, y], axis=1)))

        return pack
    a = reader(ins.ops[1], st, prog)
    irnd = next((ROUND[m] for m in ins.mods if m in ROUND), None)
    if st.isfloat and dt.isfloat:
        mode = fmode(ins)

        def f(x: Any) -> Any:
            if irnd is not None:
                x = irnd(x)
            if ins.has("sat"):
                x = np.fmin(np.fmax(x, x.dtype.type(0)), x.dtype.type(1))
            if dt.dt is F4 and x.dtype == F8:
                return rounded(x, mode)
            if dt.half and mode == "rz":
                y = x.astype(F2).astype(F4) if dt.kind == "f" else bf16_to_f32(f32_to_bf16(x))
                down = (
                    np.nextafter(y.astype(F2), F2(0)).astype(F4)
                    if dt.kind == "f"
                    else bf16_to_f32((y.view(U4) >> U4(16)).astype(U2) - U2(1))
                )
                return np.where(np.abs(y) > np.abs(x), down, y)
            return x.astype(dt.dt)

        return lambda S: w(S, relu(f(a(S))))
    if st.isfloat:
        t = dt.dt
        return lambda S: w(S, float_to_int(a(S), t, irnd or np.trunc))
    if dt.isfloat:
        mode, t = fmode(ins), dt.dt
        if t is F4 and mode != "rn":
            return lambda S: w(S, rounded(a(S).astype(F8), mode))
        return lambda S: w(S, a(S).astype(t))
    t = dt.dt
    if ins.has("sat"):
        lim = np.iinfo(t)
        least, most = max(lim.min, np.iinfo(st.dt).min), min(lim.max, np.iinfo(st.dt).max)
        return lambda S: w(S, np.clip(a(S), least, most).astype(t))
    return lambda S: w(S, a(S).astype(t))


def build_carry(ins: Instr, prog: Program) -> Step:
    """add.cc, addc, sub.cc, subc on 32- or 64-bit integers.

    S.cc holds the carry (add) or borrow (sub).
    """
    ty, sub = ins.ty, ins.op.startswith("sub")
    raw, use, keep = ty.raw, ins.op in ("addc", "subc"), ins.has("cc")
    a, b = (reader(o, raw, prog) for o in ins.ops[1:3])
    w = writer(ins.ops[0], raw)

    def run(S: State) -> None:
        x, y = a(S), b(S)
        c = S.cc.astype(x.dtype) if use else x.dtype.type(0)
        s = x - y if sub else x + y
        r = s - c if sub else s + c
        if keep:
            S.cc = np.broadcast_to((x < y) | (s < c) if sub else (s < x) | (r < s), (S.N,))
        w(S, r)

    return run


MOVES = {
    "setp": build_setp,
    "set": build_set,
    "selp": build_selp,
    "slct": build_slct,
    "testp": build_testp,
    "mov": build_mov,
    "cvt": build_cvt,
    "cvta": build_cvta,
    "isspacep": build_isspacep,
    "addc": build_carry,
    "subc": build_carry,
}
