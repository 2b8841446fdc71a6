"""Rounding modes, fused multiply-add, saturation and flushing of floating-point results."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.emulator.isa import F4, F8, SINT, U4, Ty
from gpuconv.emulator.linker import Instr


def flush(v: Any) -> Any:
    """Subnormals to signed zero (.ftz); f32 only."""
    u = v.view(U4)
    return np.where((u & U4(0x7F800000)) == 0, u & U4(0x80000000), u).view(F4)


def rounded(x: Any, mode: str) -> Any:
    """float64 -> float32 with PTX rounding mode rn, rz, rm or rp."""
    y = x.astype(F4)
    if mode == "rn":
        return y
    back = y.astype(F8)
    big = {"rz": np.abs(back) > np.abs(x), "rm": back > x, "rp": back < x}[mode]
    toward = {"rz": F4(0), "rm": F4(-np.inf), "rp": F4(np.inf)}[mode]
    return np.where(big, np.nextafter(y, toward), y)


def fmode(ins: Instr) -> str:
    """Rounding mode of an instruction."""
    return next((m for m in ("rz", "rm", "rp") if m in ins.mods), "rn")


def two_prod(a: Any, b: Any) -> Any:
    """a*b = p + e exactly (Dekker), for float64."""
    p = a * b
    s = 134217729.0
    ah = a * s - (a * s - a)
    bh = b * s - (b * s - b)
    al, bl = a - ah, b - bh
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def fma64(a: Any, b: Any, c: Any) -> Any:
    """a*b + c in float64, nearly always rounded once."""
    p, e = two_prod(a, b)
    s = p + c
    z = s - p
    t = (p - (s - z)) + (c - z)
    r = s + (t + e)
    return np.where(np.isfinite(r), r, a * b + c)


def fma32(a: Any, b: Any, c: Any, mode: str = "rn") -> Any:
    """a*b + c in float32. The product is exact in float64; the sum is rounded twice.

    53, then 24 bits: wrong by 1 ulp about once in 2**29.
    """
    return rounded(a.astype(F8) * b.astype(F8) + c.astype(F8), mode)


def sat(ins: Instr, ty: Ty, f: Any) -> Any:
    """Clamp results: [0, 1] for floats, the range of the type for integers."""
    if not ins.has("sat"):
        return f
    if ty.isfloat:
        return lambda *a: np.fmin(np.fmax(f(*a), F4(0)), F4(1))
    w = SINT[64] if ty.bits == 32 else None
    lim = np.iinfo(ty.dt)
    return lambda *a: np.clip(f(*(x.astype(w) for x in a)), lim.min, lim.max).astype(ty.dt)


def arith(ins: Instr, ty: Ty, f: Any) -> Any:
    """Rounding mode and saturation for an operation computed exactly enough in float64."""
    mode = fmode(ins)
    if ty.dt is F4 and mode != "rn":

        def g(*a: Any) -> Any:
            return rounded(f(*(x.astype(F8) for x in a)), mode)

        return sat(ins, ty, g)
    return sat(ins, ty, f)
