"""Register-to-register arithmetic: one table entry per opcode, vectorised over lanes.

An entry maps (instruction, operand type) to a NumPy function on decoded operand arrays. `build_alu`
wraps it with operand decoding, result encoding and the masked register write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.emulator.convert import MOVES, build_carry
from gpuconv.emulator.errors import Unsupported
from gpuconv.emulator.isa import F4, F8, I4, I8, SINT, TYPES, U1, U4, U8, UINT, Imm, Pair, Step, Ty
from gpuconv.emulator.linker import Instr, Program
from gpuconv.emulator.operands import reader, writer
from gpuconv.emulator.rounding import arith, flush, fma32, fma64, fmode, sat

if TYPE_CHECKING:
    from gpuconv.emulator.engine import State


ALU: dict[str, tuple[int, Any]] = {}  # opcode -> (number of sources, maker(ins, ty) -> function)


def alu(nsrc: int, *names: str) -> Any:
    """Enter a maker for opcodes with `nsrc` sources into the table."""

    def deco(f: Any) -> Any:
        for n in names:
            ALU[n] = (nsrc, f)
        return f

    return deco


@alu(2, "add", "sub")
def _add(ins: Instr, ty: Ty) -> Any:
    return arith(ins, ty, np.add if ins.op == "add" else np.subtract)


def mulhi(a: Any, b: Any, bits: int, signed: bool) -> Any:
    """Upper half of the product."""
    if bits < 64:
        w = (SINT if signed else UINT)[2 * bits]
        return ((a.astype(w) * b.astype(w)) >> w(bits)).astype(a.dtype)
    m, h = U8(0xFFFFFFFF), U8(32)
    x, y = a.view(U8), b.view(U8)
    x0, x1, y0, y1 = x & m, x >> h, y & m, y >> h
    mid = x1 * y0 + ((x0 * y0) >> h)
    hi = x1 * y1 + (mid >> h) + ((x0 * y1 + (mid & m)) >> h)
    if signed:
        hi = hi - np.where(a < 0, y, U8(0)) - np.where(b < 0, x, U8(0))
    return hi.view(a.dtype)


def product(ins: Instr, ty: Ty) -> Any:
    """Integer product: lower half, upper half or wide."""
    if ins.has("wide"):
        w = (SINT if ty.kind == "s" else UINT)[2 * ty.bits]
        return lambda a, b: a.astype(w) * b.astype(w)
    if ins.has("hi"):
        return lambda a, b: mulhi(a, b, ty.bits, ty.kind == "s")
    return np.multiply


@alu(2, "mul", "mul24")
def _mul(ins: Instr, ty: Ty) -> Any:
    return arith(ins, ty, np.multiply) if ty.isfloat else product(ins, ty)


@alu(3, "mad", "fma", "mad24")
def _mad(ins: Instr, ty: Ty) -> Any:
    if ty.isfloat:
        relu = ins.has("relu")
        f = fma64 if ty.dt is F8 else (lambda a, b, c: fma32(a, b, c, fmode(ins)))
        # Products of 11-bit significands are exact in f32 only without the addition: round once.
        if ty.half:

            def f(a: Any, b: Any, c: Any) -> Any:
                return (a.astype(F8) * b + c).astype(F4)

        return sat(ins, ty, (lambda a, b, c: np.fmax(f(a, b, c), F4(0))) if relu else f)
    p = product(ins, ty)
    return lambda a, b, c: p(a, b) + c


def int_div(a: Any, b: Any, signed: bool) -> Any:
    """Division toward zero; all ones where b is 0."""
    z = b == 0
    q = (
        (a - np.fmod(a, b)) // np.where(z, b.dtype.type(1), b)
        if signed
        else a // np.where(z, b.dtype.type(1), b)
    )
    return np.where(z, ~b.dtype.type(0), q).astype(a.dtype)


@alu(2, "div")
def _div(ins: Instr, ty: Ty) -> Any:
    if ty.isfloat:
        return arith(ins, ty, np.divide)
    return lambda a, b: int_div(a, b, ty.kind == "s")


@alu(2, "rem")
def _rem(ins: Instr, ty: Ty) -> Any:
    return lambda a, b: np.where(b == 0, a, np.fmod(a, np.where(b == 0, b.dtype.type(1), b)))


@alu(2, "min", "max")
def _minmax(ins: Instr, ty: Ty) -> Any:
    if ty.isfloat and not ins.has("NaN"):
        return np.fmin if ins.op == "min" else np.fmax
    return np.minimum if ins.op == "min" else np.maximum


@alu(1, "neg")
def _neg(ins: Instr, ty: Ty) -> Any:
    return np.negative if ty.isfloat else lambda a: ~a + a.dtype.type(1)


ALU["abs"] = (1, lambda ins, ty: np.abs)
ALU["rcp"] = (1, lambda ins, ty: arith(ins, ty, lambda a: a.dtype.type(1) / a))
ALU["sqrt"] = (1, lambda ins, ty: arith(ins, ty, np.sqrt))
ALU["rsqrt"] = (1, lambda ins, ty: lambda a: (1 / np.sqrt(a.astype(F8))).astype(a.dtype))


for _n, _f in (
    ("sin", np.sin),
    ("cos", np.cos),
    ("lg2", np.log2),
    ("ex2", np.exp2),
    ("tanh", np.tanh),
):
    ALU[_n] = (1, lambda ins, ty, f=_f: lambda a: f(a.astype(F8)).astype(a.dtype))


ALU["copysign"] = (2, lambda ins, ty: lambda a, b: np.copysign(b, a))
ALU["sad"] = (3, lambda ins, ty: lambda a, b, c: c + np.where(a > b, a - b, b - a))
ALU["popc"] = (1, lambda ins, ty: lambda a: np.bitwise_count(a).astype(U4))


def bit_length(a: Any) -> Any:
    """Position of the highest set bit plus one, per element."""
    x = a
    for s in range(a.dtype.itemsize.bit_length() + 2):
        x = x | (x >> a.dtype.type(1 << s)) if (1 << s) < a.dtype.itemsize * 8 else x
    return np.bitwise_count(x).astype(U4)


ALU["clz"] = (1, lambda ins, ty: lambda a: U4(ty.bits) - bit_length(a.view(UINT[ty.bits])))


@alu(1, "bfind")
def _bfind(ins: Instr, ty: Ty) -> Any:
    def f(a: Any) -> Any:
        u = np.where(a < 0, ~a, a).view(UINT[ty.bits]) if ty.kind == "s" else a
        n = bit_length(u)
        r = U4(ty.bits) - n if ins.has("shiftamt") else n - U4(1)
        return np.where(n == 0, U4(0xFFFFFFFF), r)

    return f


@alu(1, "brev")
def _brev(ins: Instr, ty: Ty) -> Any:
    def f(a: Any) -> Any:
        r = np.unpackbits(
            np.ascontiguousarray(a).view(U1).reshape(len(a), -1), axis=1, bitorder="little"
        )[:, ::-1]
        return np.packbits(r, axis=1, bitorder="little").view(a.dtype).reshape(-1)

    return f


@alu(3, "bfe")
def _bfe(ins: Instr, ty: Ty) -> Any:
    u: Any = UINT[ty.bits]
    n = ty.bits

    def f(a: Any, pos: Any, length: Any) -> Any:
        p, ln = (pos.astype(U4) & 255).astype(I8), (length.astype(U4) & 255).astype(I8)
        field = np.where(p >= n, 0, a.view(u) >> np.minimum(p, n - 1).astype(u)).astype(u)
        keep = np.where(ln >= n, ~u(0), (u(1) << np.minimum(ln, n - 1).astype(u)) - u(1)).astype(u)
        field = field & keep
        if ty.kind == "s":
            sign = (a.view(u) >> np.minimum(np.maximum(p + ln - 1, 0), n - 1).astype(u)) & u(1)
            width = np.minimum(ln, np.maximum(n - p, 0))
            kept = np.where(
                width >= n, ~u(0), (u(1) << np.minimum(width, n - 1).astype(u)) - u(1)
            ).astype(u)
            field = np.where((sign == 1) & (ln > 0), field | ~kept, field)
        return field.view(ty.dt)

    return f


@alu(4, "bfi")
def _bfi(ins: Instr, ty: Ty) -> Any:
    u: Any = UINT[ty.bits]
    n = ty.bits

    def f(a: Any, b: Any, pos: Any, length: Any) -> Any:
        p, ln = (pos.astype(U4) & 255).astype(I8), (length.astype(U4) & 255).astype(I8)
        keep = np.where(ln >= n, ~u(0), (u(1) << np.minimum(ln, n - 1).astype(u)) - u(1)).astype(u)
        keep = np.where(p >= n, 0, keep << np.minimum(p, n - 1).astype(u)).astype(u)
        return (b & ~keep) | ((a << np.minimum(p, n - 1).astype(u)) & keep)

    return f


@alu(3, "dp4a")
def _dp4a(ins: Instr, ty: Ty) -> Any:
    ta, tb = (np.int8 if t.kind == "s" else np.uint8 for t in ins.types[:2])

    def f(a: Any, b: Any, c: Any) -> Any:
        x = np.ascontiguousarray(a).view(ta).reshape(-1, 4).astype(I4)
        y = np.ascontiguousarray(b).view(tb).reshape(-1, 4).astype(I4)
        return c + (x * y).sum(1, dtype=I4).view(c.dtype)

    return f


ALU["and"] = (2, lambda ins, ty: np.bitwise_and)
ALU["or"] = (2, lambda ins, ty: np.bitwise_or)
ALU["xor"] = (2, lambda ins, ty: np.bitwise_xor)
ALU["not"] = (1, lambda ins, ty: np.invert)
ALU["cnot"] = (1, lambda ins, ty: lambda a: (a == 0).astype(a.dtype))


@alu(2, "shl", "shr")
def _shift(ins: Instr, ty: Ty) -> Any:
    n, op = ty.bits, np.left_shift if ins.op == "shl" else np.right_shift
    arithm = ins.op == "shr" and ty.kind == "s"
    if isinstance(ins.ops[2], Imm):
        k = ins.ops[2].value & 0xFFFFFFFF
        c = ty.dt(min(k, n - 1))
        return (lambda a, b: op(a, c)) if k < n or arithm else (lambda a, b: np.zeros_like(a))

    def f(a: Any, b: Any) -> Any:
        r = op(a, np.minimum(b, U4(n - 1)).astype(ty.dt))
        return r if arithm or int(b.max()) < n else np.where(b < n, r, ty.dt(0))

    return f


@alu(3, "shf")
def _shf(ins: Instr, ty: Ty) -> Any:
    def f(a: Any, b: Any, c: Any) -> Any:
        n = (np.minimum(c, U4(32)) if ins.has("clamp") else c & U4(31)).astype(U8)
        v = (b.astype(U8) << U8(32)) | a
        return ((v << n) >> U8(32) if ins.has("l") else v >> n).astype(U4)

    return f


@alu(4, "lop3")
def _lop3(ins: Instr, ty: Ty) -> Any:
    lut = ins.ops[4].value

    def f(a: Any, b: Any, c: Any, _: Any) -> Any:
        r = np.zeros_like(a | b | c)
        for k in range(8):
            if lut >> k & 1:
                r |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        return r

    return f


@alu(3, "prmt")
def _prmt(ins: Instr, ty: Ty) -> Any:
    mode = next((m for m in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16") if m in ins.mods), None)
    if mode:
        raise Unsupported(ins.text)

    def f(a: Any, b: Any, c: Any) -> Any:
        v = (b.astype(U8) << U8(32)) | a
        r: Any = U4(0)
        for k in range(4):
            s = (c >> U4(4 * k)) & U4(15)
            byte = ((v >> ((s & U4(7)).astype(U8) * U8(8))) & U8(0xFF)).astype(U4)
            byte = np.where(s & U4(8), np.where(byte & U4(0x80), U4(0xFF), U4(0)), byte)
            r = r | (byte << U4(8 * k))
        return r

    return f


def _flushed(f: Any) -> Any:
    return lambda *a: flush(f(*a))


def build_alu(ins: Instr, prog: Program) -> Step:
    """Compile a register-to-register instruction to function(S)."""
    if ins.op in ("add", "sub") and ins.has("cc"):
        return build_carry(ins, prog)
    if ins.op in MOVES:
        return MOVES[ins.op](ins, prog)
    if ins.op not in ALU:
        raise Unsupported(ins.text)
    nsrc, make = ALU[ins.op]
    ty = (
        ins.ty
        if ins.op != "dp4a"
        else TYPES["s32" if any(t.kind == "s" for t in ins.types) else "u32"]
    )
    f = make(ins, ty)
    dt = ty
    if ins.op in ("mul", "mad", "mul24") and ins.has("wide"):
        dt = TYPES[f"{ty.kind}{2 * ty.bits}"]
    elif ins.op in ("popc", "clz", "bfind"):
        dt = TYPES["u32"]
    st = [ty] * nsrc
    if ins.op in ("shl", "shr"):
        st[1] = TYPES["u32"]
    elif ins.op in ("bfe", "bfi"):
        st[-2:] = [TYPES["u32"]] * 2
    elif ins.op == "mad":
        st[2] = dt
    elif ins.op in ("shf", "prmt", "lop3"):
        st = [TYPES["b32"]] * nsrc
    get = [reader(o, t, prog) for o, t in zip(ins.ops[1 : 1 + nsrc], st, strict=False)]
    w = writer(ins.ops[0].a if isinstance(ins.ops[0], Pair) else ins.ops[0], dt)
    if ins.has("ftz") and ty.dt is F4 and prog.ftz:
        get = [_flushed(g) for g in get]
        f = _flushed(f)
    if ins.op in ("div", "rem") and not ty.isfloat:
        inner = f

        def check(S: State) -> None:
            a, b = get[0](S), get[1](S)
            z = np.broadcast_to(b == 0, (S.N,)) & S.mask if (b == 0).any() else None
            if z is not None and z.any():
                S.finding("div-by-zero", ins, int(z.sum()), S.who(int(np.flatnonzero(z)[0])))
            w(S, inner(a, b))

        return check
    if nsrc == 1:
        (g0,) = get
        return lambda S: w(S, f(g0(S)))
    if nsrc == 2:
        g0, g1 = get
        return lambda S: w(S, f(g0(S), g1(S)))
    if nsrc == 3:
        g0, g1, g2 = get
        return lambda S: w(S, f(g0(S), g1(S), g2(S)))
    return lambda S: w(S, f(*(g(S) for g in get)))
