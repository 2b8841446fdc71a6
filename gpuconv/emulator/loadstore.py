"""Load, store, atomic and cp.async instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.emulator.errors import PtxError, Unsupported
from gpuconv.emulator.isa import (
    I8,
    TYPES,
    U1,
    U4,
    Addr,
    Mem,
    Reg,
    Sink,
    Step,
    Ty,
    Vec,
    decode,
    encode,
    widen,
)
from gpuconv.emulator.linker import Instr, Program
from gpuconv.emulator.memory import (
    LOG,
    address,
    buffer_of,
    by_space,
    hazards,
    pattern,
    raw_reader,
    reach,
    space_of,
)
from gpuconv.emulator.shadow import TSHIFT

if TYPE_CHECKING:
    from gpuconv.emulator.engine import State


def _shape(ins: Instr) -> Any:
    """(element type, element count, register operands) of a load or store."""
    ty = ins.ty
    n = next((int(m[1]) for m in ins.mods if m in ("v2", "v4", "v8")), 1)
    regs = ins.ops[0 if ins.op in ("ld", "ldu") else 1]
    regs = list(regs.items) if isinstance(regs, Vec) else [regs]
    if ty.bits == 128:
        raise Unsupported(ins.text)
    return ty if ty.bits > 1 else TYPES["b8"], n, regs


def build_ld(ins: Instr, prog: Program) -> Step:
    """ld, ldu."""
    ty, n, regs = _shape(ins)
    esz = ty.bits // 8
    space = space_of(ins)
    mem = ins.ops[1]
    if isinstance(mem, Mem) and isinstance(mem.base, Addr):
        if mem.base.space == "param":
            off = mem.base.off + mem.off

            def run_param(S: State) -> None:
                for k, r in enumerate(regs):
                    if not isinstance(r, Sink):
                        o = (off + k * esz) // esz
                        S.put(r.id, widen(S.params.win[esz][o : o + 1], ty, r.ty.bits))

            return run_param
        space = (
            {"dyn": "shared"}.get(mem.base.space, mem.base.space)
            if space in ("param", "generic")
            else space
        )
    addr = address(mem, prog)

    def body_for(S: State) -> Any:
        def body(space: str, a: Any) -> None:
            off, idx, clean, raw = reach(S, ins, space, a, esz * n, False)
            vals = buffer_of(S, space).gather(off, esz, n)
            if clean:
                pattern(S, ins, space, raw, idx, esz * n)
                hazards(S, ins, space, off, raw, idx, esz * n, "r")
            for r, v in zip(regs, vals, strict=False):
                if not isinstance(r, Sink):
                    v = widen(v, ty, r.ty.bits)
                    S.put(r.id, v) if v.size == 1 else S.put_lanes(r.id, v, idx)

        return body

    return lambda S: by_space(S, space, addr(S), body_for(S))


def build_st(ins: Instr, prog: Program) -> Step:
    """st."""
    ty, n, regs = _shape(ins)
    esz = ty.bits // 8
    space = space_of(ins)
    mem = ins.ops[0]
    if isinstance(mem, Mem) and isinstance(mem.base, Addr) and space in ("param", "generic"):
        space = {"dyn": "shared"}.get(mem.base.space, mem.base.space)
    addr = address(mem, prog)
    get = [raw_reader(r, ty.raw, prog) for r in regs]

    def body_for(S: State) -> Any:
        def body(space: str, a: Any) -> None:
            off, idx, clean, raw = reach(S, ins, space, a, esz * n, True)
            if clean and space == "global":
                check_writable(S, ins, off)
            vals = [v if v.size == 1 or idx is None else v[idx] for v in (g(S) for g in get)]
            if clean:
                bits = np.broadcast_to(vals[0], (S.n,)) if n == 1 else None
                pattern(S, ins, space, raw, idx, esz * n)
                hazards(S, ins, space, off, raw, idx, esz * n, "w", bits)
            if (
                off.size == 1 and vals[0].size > 1
            ):  # every lane stores to one address: the last one wins
                vals = [v[-1:] for v in vals]
            buffer_of(S, space).scatter(off, esz, vals)

        return body

    return lambda S: by_space(S, space, addr(S), body_for(S))


def check_writable(S: State, ins: Instr, off: Any) -> None:
    """Report a store to a read-only array."""
    if S.gmem.ro[S.gmem.owner(int(off[0]))]:
        S.finding(
            "readonly-store",
            ins,
            S.n,
            f"{S.who(int(S.active()[0]))}, {S.gmem.describe(int(off[0]))}",
        )


def _atomic_value(op: Any, ty: Ty, old: Any, b: Any, c: Any) -> Any:
    """One atomic step on distinct addresses: raw operands -> new raw value."""
    if op == "exch":
        return b
    if op == "cas":
        return np.where(old == b, c, old)
    if op in ("and", "or", "xor"):
        return {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[op](old, b)
    if op == "inc":
        return np.where(old >= b, 0, old + old.dtype.type(1)).astype(old.dtype)
    if op == "dec":
        return np.where((old == 0) | (old > b), b, old - old.dtype.type(1)).astype(old.dtype)
    x, y = decode(old, ty), decode(b, ty)
    return encode({"add": np.add, "min": np.minimum, "max": np.maximum}[op](x, y), ty)


def build_atom(ins: Instr, prog: Program) -> Step:
    """atom, red."""
    op = next(
        m
        for m in ins.mods
        if m in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
    )
    ty, space = ins.ty, space_of(ins)
    if any(isinstance(o, Vec) for o in ins.ops):
        raise Unsupported(ins.text)
    ops = ins.ops if ins.op == "atom" else [Sink(), *ins.ops]
    dst = ops[0]
    addr = address(ops[1], prog)
    get = [raw_reader(o, ty.raw, prog) for o in ops[2 : 4 if op == "cas" else 3]]
    esz = ty.bits // 8
    fast = (
        {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }.get(op)
        if not ty.half
        else None
    )
    dead = isinstance(dst, Sink) or not prog.is_read[dst.id]

    def body_for(S: State) -> Any:
        def body(space: str, a: Any) -> None:
            off, idx, clean, raw = reach(S, ins, space, a, esz, True)
            n = S.n
            off = np.broadcast_to(off, (n,))
            vals = [
                np.broadcast_to(v if v.size == 1 or idx is None else v[idx], (n,))
                for v in (g(S) for g in get)
            ]
            if clean:
                if space == "global":
                    check_writable(S, ins, off)
                pattern(S, ins, space, np.broadcast_to(raw, (n,)), idx, esz)
                hazards(S, ins, space, off, raw, idx, esz, "a")
            win = buffer_of(S, space).win[esz]
            i = off >> LOG[esz]
            if dead and fast is not None:
                w = win.view(ty.dt)
                fast.at(w, i, decode(vals[0], ty))
                return
            order = np.argsort(i, kind="stable")
            start = np.flatnonzero(np.r_[True, np.diff(i[order]) != 0])
            size = np.diff(np.r_[start, n])
            old = np.empty(n, win.dtype)
            for k in range(int(size.max())):  # k-th contender of every address
                sel = order[start[size > k] + k]
                j = i[sel]
                cur = win[j]
                old[sel] = cur
                win[j] = _atomic_value(
                    op, ty, cur, vals[0][sel], vals[1][sel] if len(vals) > 1 else None
                )
            if not dead:
                S.put_lanes(dst.id, widen(old, ty, dst.ty.bits), idx)

        return body

    return lambda S: by_space(S, space, addr(S), body_for(S))


def build_cp_async(ins: Instr, prog: Program) -> Step:
    """Copies are queued per lane and reach shared memory only when a wait names their group."""
    if ins.has("mbarrier", "bulk", "reduce"):
        raise Unsupported(ins.text)
    if ins.has("commit_group"):

        def commit(S: State) -> None:
            S.cp_group = S.cp_group + S.mask

        return commit
    if ins.has("wait_group", "wait_all"):
        keep = ins.ops[0].value if ins.has("wait_group") else None
        return lambda S: cp_complete(S, keep)
    dst, src = address(ins.ops[0], prog), address(ins.ops[1], prog)
    nbytes = ins.ops[2].value
    words = nbytes // 4
    if nbytes not in ((16,) if ins.has("cg") else (4, 8, 16)):
        raise PtxError(f"bad cp.async size: {ins.text}")
    size = None
    if len(ins.ops) > 3 and not (isinstance(ins.ops[3], Reg) and ins.ops[3].ty.bits != 32):
        size = raw_reader(ins.ops[3], TYPES["u32"], prog)

    def run(S: State) -> None:
        d, s, idx, n = dst(S), src(S), S.lanes(), S.n
        lanes = np.arange(S.N) if idx is None else idx
        doff, _, clean, draw = reach(S, ins, "shared", d, nbytes, True)
        take = np.full(n, nbytes, I8)
        if size is not None:
            z = size(S)
            take = np.broadcast_to(
                np.minimum(z if z.size == 1 or idx is None else z[idx], nbytes).astype(I8), (n,)
            )
        data = np.zeros((n, words), U4)
        reads = np.zeros(S.N, bool)  # lanes with src-size 0 read nothing and zero-fill
        reads[lanes] = take > 0
        with S.narrowed(reads) as k:
            if k:
                part = nbytes if int(take[take > 0].min()) == nbytes else 4
                soff, sidx, sclean, sraw = reach(S, ins, "global", s, part, False)
                if sclean:
                    pattern(S, ins, "global", sraw, sidx, part)
                    hazards(S, ins, "global", soff, sraw, sidx, part, "r")
                data[take > 0] = S.gmem.buf.win[4].reshape(-1, words)[soff >> LOG[nbytes]]
        if (take < nbytes).any():
            data.view(U1)[np.arange(nbytes) >= take[:, None]] = 0
        if clean:
            pattern(S, ins, "shared", draw, idx, nbytes)
            hazards(S, ins, "shared", doff, draw, idx, nbytes, "p")
            S.cp_queue.append((lanes, doff, data, S.cp_group[lanes]))

    return run


def cp_complete(S: State, keep: Any) -> None:
    """Finish the active lanes' queued copies: all (keep None) or all but the last `keep` groups."""
    S.now += 1
    rest = []
    for lanes, off, data, group in S.cp_queue:
        done = S.mask[lanes] & (True if keep is None else group < S.cp_group[lanes] - keep)
        if done.any():
            o, w = off[done], data.shape[1]
            if S.race:
                for k in range(0, 4 * w, 1 << S.shadow.gshift):
                    S.shadow.W[(o + k) >> S.shadow.gshift] = S.gtid[lanes[done]] | (S.now << TSHIFT)
            S.smem.win[4].reshape(-1, w)[o >> LOG[4 * w]] = data[done]
        if not done.all():
            m = ~done
            rest.append((lanes[m], off[m], data[m], group[m]))
    S.cp_queue = rest
