"""Reading and writing instruction operands as decoded values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpuconv.emulator.isa import (
    UINT,
    Imm,
    Not,
    Reg,
    Sink,
    Sreg,
    Step,
    Ty,
    decode,
    encode,
    imm_raw,
    widen,
)
from gpuconv.emulator.linker import Program
from gpuconv.emulator.memory import raw_reader


def reader(op: Any, ty: Ty, prog: Program) -> Step:
    """function(S) -> decoded operand values (length 1 or N)."""
    if isinstance(op, Not):
        g = reader(op.a, ty, prog)
        return lambda S: ~g(S)
    if isinstance(op, Sreg):
        name, dt = op.name, UINT[ty.bits]
        return lambda S: decode(S.special(name).astype(dt, copy=False), ty)
    if isinstance(op, Reg):
        i = op.id
        if ty.kind == "p" or (ty.kind == "u" and op.ty.bits == ty.bits):
            return lambda S: S.R[i]
        if not ty.half and op.ty.bits == ty.bits:
            dt = ty.dt
            return lambda S: S.R[i].view(dt)
        return lambda S: decode(S.R[i], ty)
    if isinstance(op, Imm):
        c = decode(imm_raw(op, ty), ty)
        return lambda S: c
    g = raw_reader(op, ty.raw, prog)
    return lambda S: decode(g(S), ty)


def writer(op: Any, ty: Ty) -> Callable[[Any, Any], Any]:
    """function(S, values) storing decoded values into a destination register."""
    if isinstance(op, Sink):
        return lambda S, v: None
    i, bits = op.id, op.ty.bits
    if ty.kind == "p":
        return lambda S, v: S.put(i, v)
    if bits == ty.bits and not ty.half:
        u = UINT[bits]
        return lambda S, v: S.put(i, v.view(u))
    return lambda S, v: S.put(i, widen(encode(v, ty), ty, bits))
