"""PTX scalar types, operand classes and raw-bit <-> value conversions.

Registers hold *raw bits*: a NumPy array of unsigned integers (bool for predicates) whose length
is either N (one element per lane) or 1 (every lane of the batch holds that value). The length-1
form is a free "uniform register" optimisation: NumPy broadcasting does the rest. Stored arrays are
never modified in place, so registers may share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

U1, U2, U4, U8 = np.uint8, np.uint16, np.uint32, np.uint64
I1, I2, I4, I8 = np.int8, np.int16, np.int32, np.int64
F2, F4, F8 = np.float16, np.float32, np.float64

UINT = {8: U1, 16: U2, 32: U4, 64: U8}
SINT = {8: I1, 16: I2, 32: I4, 64: I8}
FLOAT = {16: F2, 32: F4, 64: F8}
Step = Callable[[Any], Any]  # a compiled instruction or operand: called with a State


@dataclass(frozen=True)
class Ty:
    """A PTX type: its kind, register width in bits, and the number of values packed into it."""

    name: str
    # 'p' predicate, 'u' unsigned or untyped bits, 's' signed, 'f' IEEE float, 'B' bfloat16
    kind: str
    bits: int  # register width
    pack: int = 1  # 2 for f16x2 / bf16x2

    @property
    def dt(self) -> Any:
        """NumPy type that arithmetic on this type is carried out in (f16/bf16: float32)."""
        if self.kind in "fB":
            return F4 if self.kind == "B" or self.bits // self.pack == 16 else FLOAT[self.bits]
        return np.bool_ if self.kind == "p" else (SINT if self.kind == "s" else UINT)[self.bits]

    @property
    def isfloat(self) -> bool:
        """Whether values are floating-point numbers."""
        return self.kind in "fB"

    @property
    def half(self) -> bool:
        """Whether each value has 16 floating-point bits."""
        return self.isfloat and self.bits // self.pack == 16

    @property
    def raw(self) -> Ty:
        """The untyped bits of the same width."""
        return TYPES["pred" if self.kind == "p" else f"b{self.bits}"]


TYPES = {
    "pred": Ty("pred", "p", 1),
    "bf16": Ty("bf16", "B", 16),
    "tf32": Ty("tf32", "u", 32),
    "f16x2": Ty("f16x2", "f", 32, 2),
    "bf16x2": Ty("bf16x2", "B", 32, 2),
    "b128": Ty("b128", "u", 128),
}


for _b in (8, 16, 32, 64):
    TYPES[f"b{_b}"] = Ty(f"b{_b}", "u", _b)
    TYPES[f"u{_b}"] = Ty(f"u{_b}", "u", _b)
    TYPES[f"s{_b}"] = Ty(f"s{_b}", "s", _b)
    if _b > 8:
        TYPES[f"f{_b}"] = Ty(f"f{_b}", "f", _b)


@dataclass(frozen=True)
class Reg:
    """A virtual register."""

    id: int
    ty: Ty


@dataclass(frozen=True)
class Imm:
    """A literal."""

    value: Any  # int, or float for kind "d"
    kind: str  # 'i' integer, 'x32'/'x64' float bit pattern, 'd' decimal float


@dataclass(frozen=True)
class Sreg:
    """A special register such as tid.x."""

    name: str


@dataclass(frozen=True)
class Addr:  # address of a named variable; space tells how to read the offset
    """Address of a named variable; `space` tells how to read the offset."""

    space: str
    off: int
    name: str


@dataclass(frozen=True)
class Mem:
    """A memory operand, [base+off]."""

    base: Any  # Reg | Imm | Addr
    off: int


@dataclass(frozen=True)
class Vec:
    """A vector operand, {a, b, ...}."""

    items: tuple


@dataclass(frozen=True)
class Pair:  # d|p
    """Two destinations, d|p."""

    a: Any
    b: Any


@dataclass(frozen=True)
class Not:  # !p
    """A negated predicate, !p."""

    a: Any


@dataclass(frozen=True)
class Sink:  # _
    """The bit bucket, _."""


@dataclass(frozen=True)
class Label:
    """A branch target."""

    pc: int


def bf16_to_f32(bits: Any) -> Any:
    """uint16 bits of bfloat16 numbers -> float32 values."""
    return (bits.astype(U4) << U4(16)).view(F4)


def f32_to_bf16(v: Any) -> Any:
    """float32 values -> uint16 bits of bfloat16 numbers, to nearest even."""
    u = np.ascontiguousarray(v, F4).view(U4)
    r = (u + (U4(0x7FFF) + ((u >> U4(16)) & U4(1)))) >> U4(16)
    return np.where(np.isnan(v), U4(0x7FFF), r).astype(U2)


def tf32_round(u: Any, mode: str) -> Any:
    """Round f32 bit patterns to tf32 (10 mantissa bits): 'rna' ties away, 'rn' ties to even."""
    r = u + U4(0x1000) if mode == "rna" else u + (U4(0xFFF) + ((u >> U4(13)) & U4(1)))
    special = (u & U4(0x7F800000)) == U4(0x7F800000)
    return np.where(special, u, r) & U4(0xFFFFE000)


def decode(raw: Any, ty: Ty) -> Any:
    """Raw bits of a register at least as wide as ty -> array of ty.dt ((n, 2) when packed)."""
    if ty.kind == "p":
        return raw
    u = UINT[ty.bits]
    if raw.dtype != u:
        raw = raw.astype(u)
    if not ty.half:
        return raw if ty.kind == "u" else raw.view(ty.dt)
    if ty.pack == 2:
        raw = np.ascontiguousarray(raw).view(U2).reshape(-1, 2)
    return raw.view(F2).astype(F4) if ty.kind == "f" else bf16_to_f32(raw)


def encode(v: Any, ty: Ty) -> Any:
    """Inverse of decode: values in ty.dt -> raw unsigned bits of width ty.bits."""
    if ty.kind == "p":
        return v
    if ty.half:
        h = v.astype(F2).view(U2) if ty.kind == "f" else f32_to_bf16(v)
        return np.ascontiguousarray(h).view(U4).reshape(-1) if ty.pack == 2 else h
    return v.view(UINT[ty.bits])


def widen(raw: Any, ty: Ty, regbits: int) -> Any:
    """Fit raw bits of type ty into a destination register of regbits (sign- or zero-extend)."""
    if ty.kind == "p" or ty.bits == regbits:
        return raw
    if ty.kind == "s" and regbits > ty.bits:
        return raw.view(SINT[ty.bits]).astype(SINT[regbits]).view(UINT[regbits])
    return raw.astype(UINT[regbits])


def imm_raw(imm: Imm, ty: Ty) -> Any:
    """Immediate -> length-1 raw array of width ty.bits."""
    if ty.kind == "p":
        return np.array([bool(imm.value)])
    u = UINT[ty.bits]
    if imm.kind == "d" or (imm.kind[0] == "x" and imm.kind != f"x{ty.bits}"):
        val = (
            imm.value
            if imm.kind == "d"
            else float(
                np.array(imm.value, U4).view(F4)
                if imm.kind == "x32"
                else np.array(imm.value, U8).view(F8)
            )
        )
        if ty.half:
            return (
                encode(np.full(ty.pack, val, F4), ty)
                if ty.pack == 1
                else encode(np.full((1, 2), val, F4), ty)
            )
        return np.array([val], FLOAT[ty.bits]).view(u)
    return np.array([int(imm.value) & ((1 << ty.bits) - 1)], u)
