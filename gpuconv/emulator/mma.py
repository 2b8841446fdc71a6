"""Matrix fragments: mma, ldmatrix and stmatrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.emulator.errors import Unsupported
from gpuconv.emulator.isa import (
    F2,
    F4,
    F8,
    I4,
    I8,
    TYPES,
    U1,
    U2,
    U4,
    Sink,
    Step,
    Ty,
    Vec,
    bf16_to_f32,
)
from gpuconv.emulator.linker import Instr, Program
from gpuconv.emulator.memory import address, hazards, pattern, raw_reader, reach
from gpuconv.emulator.warp import LANE, rows

if TYPE_CHECKING:
    from gpuconv.emulator.engine import State


G, T4 = LANE // 4, LANE % 4  # "groupID" and "threadID_in_group" of the PTX fragment layouts


def _frag(n: Any, row: Any, col: Any) -> Any:
    """Element i of a lane's fragment -> (row, col) index arrays of shape (32, n)."""
    r = np.stack([np.broadcast_to(row(i), (32,)) for i in range(n)], 1)
    c = np.stack([np.broadcast_to(col(i), (32,)) for i in range(n)], 1)
    return r, c


ACC = _frag(4, lambda i: G + 8 * (i >> 1), lambda i: 2 * T4 + (i & 1))
MMA = {  # (shape, operand width in bits) -> (K, A fragment, B fragment)
    ("m16n8k4", 32): (
        4,
        _frag(2, lambda i: G + 8 * i, lambda i: T4),
        _frag(1, lambda i: T4, lambda i: G),
    ),
    ("m16n8k8", 32): (
        8,
        _frag(4, lambda i: G + 8 * (i & 1), lambda i: T4 + 4 * (i >> 1)),
        _frag(2, lambda i: T4 + 4 * i, lambda i: G),
    ),
    ("m16n8k8", 16): (
        8,
        _frag(4, lambda i: G + 8 * (i >> 1), lambda i: 2 * T4 + (i & 1)),
        _frag(2, lambda i: 2 * T4 + i, lambda i: G),
    ),
    ("m16n8k16", 16): (
        16,
        _frag(8, lambda i: G + 8 * (i >> 1 & 1), lambda i: 2 * T4 + (i & 1) + 8 * (i >> 2)),
        _frag(4, lambda i: 2 * T4 + (i & 1) + 8 * (i >> 1), lambda i: G),
    ),
    ("m16n8k16", 8): (
        16,
        _frag(8, lambda i: G + 8 * (i >> 2), lambda i: 4 * T4 + (i & 3)),
        _frag(4, lambda i: 4 * T4 + i, lambda i: G),
    ),
    ("m16n8k32", 8): (
        32,
        _frag(16, lambda i: G + 8 * (i >> 2 & 1), lambda i: 4 * T4 + (i & 3) + 16 * (i >> 3)),
        _frag(8, lambda i: 4 * T4 + (i & 3) + 16 * (i >> 2), lambda i: G),
    ),
}


def _elements(words: Any, ty: Ty) -> Any:
    """(warps, 32, registers) raw u32 -> (warps, 32, elements) numbers.

    Converted as the tensor core reads them.
    """
    if ty.name == "tf32":
        return (words & U4(0xFFFFE000)).view(F4)  # hardware ignores the low 13 bits (no rounding)
    words = np.ascontiguousarray(words)
    if ty.half:
        h = words.view(U2)
        return h.view(F2).astype(F4) if ty.kind == "f" else bf16_to_f32(h)
    return words.view(np.int8 if ty.kind == "s" else U1).astype(F4)


def build_mma(ins: Instr, prog: Program) -> Step:
    """mma.sync m16n8kK row.col: D = A*B + C.

    A*B is summed in float64 and rounded once to the accumulator type.
    """
    shape = next((m for m in ins.mods if m.startswith("m16n8k")), None)
    if len(ins.types) != 4 or shape is None or not ins.has("row") or ins.has("sp"):
        raise Unsupported(ins.text)
    td, ta, tb, tc = ins.types
    width = 32 if ta.name == "tf32" else ta.bits
    if (shape, width) not in MMA:
        raise Unsupported(ins.text)
    K, (ra, ca), (rb, cb) = MMA[shape, width]

    def vec(o: Any) -> Any:
        return o.items if isinstance(o, Vec) else (o,)

    d, (a, b, c) = (
        vec(ins.ops[0]),
        ([raw_reader(r, TYPES["b32"], prog) for r in vec(o)] for o in ins.ops[1:4]),
    )
    flops = 2 * 16 * 8 * K
    integer = td.name == "s32"

    def run(S: State) -> None:
        act = S.mask.reshape(-1, 32)
        part = act.any(1) & ~act.all(1)
        if part.any():
            k = int(np.flatnonzero(part)[0]) * 32
            S.finding(
                "warp-diverged",
                ins,
                int(part.sum()),
                f"mma with inactive lanes in the warp of {S.who(k)}",
            )

        def load(gs: Any) -> Any:
            return np.stack([rows(S, g(S)) for g in gs], 2)

        nw = S.N // 32
        A, B = np.zeros((nw, 16, K), F8), np.zeros((nw, K, 8), F8)
        A[:, ra, ca] = _elements(load(a), ta)
        B[:, rb, cb] = _elements(load(b), tb)
        w = load(c)
        C = w.view(I4) if integer else _elements(w, tc) if tc.half else w.view(F4)
        prod = np.matmul(A, B)[:, ACC[0], ACC[1]]
        if integer:
            out = (prod.astype(I8) + C).astype(I4).view(U4)
        elif td.half:
            out = np.ascontiguousarray((prod + C).astype(F2)).view(U4)
        else:
            out = (prod + C).astype(F4).view(U4)
        for k, r in enumerate(d):
            if not isinstance(r, Sink):
                S.put(r.id, np.ascontiguousarray(out[:, :, k]).reshape(-1))
        S.flops += flops * int(act.any(1).sum())

    return run


def build_ldmatrix(ins: Instr, prog: Program) -> Step:
    """ldmatrix / stmatrix .m8n8.x{1,2,4}[.trans].b16.

    Lane 8*j+i supplies the address of row i of matrix j.
    """
    store = ins.op == "stmatrix"
    n = int(next(m for m in ins.mods if m in ("x1", "x2", "x4"))[1])
    if not ins.has("m8n8"):
        raise Unsupported(ins.text)
    vec, mem = (ins.ops[1], ins.ops[0]) if store else ins.ops[:2]
    regs = vec.items if isinstance(vec, Vec) else (vec,)
    addr = address(mem, prog)
    get = [raw_reader(r, TYPES["b32"], prog) for r in regs] if store else []
    r0, c0 = (G, 2 * T4) if not ins.has("trans") else (2 * T4, G)
    r1, c1 = (G, 2 * T4 + 1) if not ins.has("trans") else (2 * T4 + 1, G)

    def run(S: State) -> None:
        givers = S.mask & (np.arange(S.N) % 32 < 8 * n)
        a = addr(S)
        with S.narrowed(givers) as k:
            if not k:
                return
            off, idx, clean, raw = reach(S, ins, "shared", a, 16, store)
            if clean:
                pattern(S, ins, "shared", raw, idx, 16)
                hazards(S, ins, "shared", off, raw, idx, 16, "w" if store else "r")
            lanes = np.arange(S.N) if idx is None else idx
        at = np.zeros(S.N, I8)
        at[lanes] = off
        at = at.reshape(-1, 32)[:, : 8 * n].reshape(-1, n, 8)  # byte offset of each row
        win = S.smem.win[2]
        e = (at[:, :, :, None] >> 1) + np.arange(8)  # element indices (warps, n, 8 rows, 8 columns)
        if store:
            tile = np.zeros(e.shape, U2)
            for j, g in enumerate(get):
                v = rows(S, g(S))
                tile[:, j, r0, c0], tile[:, j, r1, c1] = v.astype(U2), (v >> U4(16)).astype(U2)
            live = S.mask.reshape(-1, 32).any(1)
            win[e[live]] = tile[live]
            return
        tile = win[e].astype(U4)
        for j, r in enumerate(regs):
            S.put(r.id, (tile[:, j, r0, c0] | (tile[:, j, r1, c1] << U4(16))).reshape(-1))

    return run
