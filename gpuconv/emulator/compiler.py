"""`Program` -> basic blocks of closures, each called with the `State` of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.emulator.alu import build_alu
from gpuconv.emulator.errors import Unsupported
from gpuconv.emulator.isa import Imm, Label, Mem, Not, Pair, Reg, Step, Vec
from gpuconv.emulator.linker import Instr, Program
from gpuconv.emulator.loadstore import build_atom, build_cp_async, build_ld, build_st
from gpuconv.emulator.memory import LOG, space_of
from gpuconv.emulator.mma import build_ldmatrix, build_mma
from gpuconv.emulator.warp import build_shfl, build_vote, is_sync

if TYPE_CHECKING:
    from gpuconv.emulator.engine import State


NOPS = {
    "membar",
    "fence",
    "nanosleep",
    "prefetch",
    "prefetchu",
    "pmevent",
    "discard",
    "applypriority",
    "griddepcontrol",
    "setmaxnreg",
    "createpolicy",
}


CONTROL = {"bra", "brx", "exit", "ret", "trap", "bar", "barrier"}
CLASS = {
    "ld": "load",
    "ldu": "load",
    "st": "store",
    "atom": "atomic",
    "red": "atomic",
    "cp": "cp.async",
    "ldmatrix": "load",
    "stmatrix": "store",
    "mma": "mma",
    "bar": "barrier",
    "barrier": "barrier",
    "bra": "branch",
    "brx": "branch",
    "exit": "branch",
    "ret": "branch",
    "setp": "compare",
    "selp": "compare",
    "mov": "move",
    "cvt": "convert",
    "cvta": "convert",
    "shfl": "warp",
    "vote": "warp",
    "match": "warp",
    "redux": "warp",
    "activemask": "warp",
    "rcp": "special",
    "sqrt": "special",
    "rsqrt": "special",
    "sin": "special",
    "cos": "special",
    "ex2": "special",
    "lg2": "special",
    "tanh": "special",
    "extcall": "call",
}


FLOPS = {
    "add": 1,
    "sub": 1,
    "mul": 1,
    "fma": 2,
    "mad": 2,
    "div": 1,
    "rcp": 1,
    "sqrt": 1,
    "rsqrt": 1,
}


WARP = {
    "shfl": build_shfl,
    "vote": build_vote,
    "activemask": build_vote,
    "match": build_vote,
    "redux": build_vote,
    "elect": build_vote,
    "mma": build_mma,
    "ldmatrix": build_ldmatrix,
    "stmatrix": build_ldmatrix,
}


def classify(ins: Instr) -> str:
    """Class of an instruction in `Report.by_class`."""
    if ins.op in ("ld", "ldu", "st", "atom", "red"):
        return f"{CLASS[ins.op]}.{space_of(ins)}"
    if ins.op in CLASS:
        return CLASS[ins.op]
    return "float" if ins.types and ins.types[-1].isfloat else "integer"


class Block:
    """Basic block: straight-line closures and a terminator.

    The terminator returns the next block number, or None.
    """

    def __init__(self, start: int, n: int, sync: Instr | None, ops: list[Step], term: Step) -> None:
        self.start, self.n, self.sync, self.ops, self.term = start, n, sync, ops, term


def regs_in(op: Any) -> Iterator[int]:
    """Numbers of the registers in an operand."""
    if isinstance(op, Reg):
        yield op.id
    elif isinstance(op, Mem):
        yield from regs_in(op.base)
    elif isinstance(op, Vec):
        for o in op.items:
            yield from regs_in(o)
    elif isinstance(op, Pair):
        yield from regs_in(op.a)
        yield from regs_in(op.b)
    elif isinstance(op, Not):
        yield from regs_in(op.a)


def compile_program(prog: Program, ftz: bool = False) -> Program:
    """Attach executable basic blocks to a Program."""
    prog.ftz = ftz
    uses = Counter(r for ins in prog.code for o in ins.ops for r in regs_in(o))
    uses.update(ins.pred[0].id for ins in prog.code if ins.pred)
    prog.is_read = [uses[r] > 1 for r in range(len(prog.regs))]
    leaders = {0}
    for ins in prog.code:
        if ins.op in CONTROL or ins.op == "bar":
            leaders.add(ins.pc + 1)
        if is_sync(ins):
            leaders.add(ins.pc)
        for o in ins.ops:
            leaders.update(
                x.pc for x in (o.items if isinstance(o, Vec) else (o,)) if isinstance(x, Label)
            )
    starts = sorted(p for p in leaders if p < len(prog.code))
    number = {p: k for k, p in enumerate(starts)}
    prog.blocks = []
    for k, s in enumerate(starts):
        e = starts[k + 1] if k + 1 < len(starts) else len(prog.code)
        body, last = prog.code[s:e], prog.code[e - 1]
        ctl = last.op in CONTROL and not (last.op == "bar" and last.has("warp"))
        steps = [predicated(ins, build(ins, prog)) for ins in (body[:-1] if ctl else body)]
        ops = [f for f in steps if f is not None]
        term = terminator(last, k, number) if ctl else _jump(k + 1)
        prog.blocks.append(Block(s, e - s, body[0] if is_sync(body[0]) else None, ops, term))
    spaces: dict[str, int] = {}
    for ins in prog.code:
        if ins.op in ("ld", "ldu", "st", "atom", "red") and ins.types:
            size = max(1, ins.ty.bits // 8)
            sp = space_of(ins)
            for name in ("global", "shared") if sp == "generic" else (sp,):
                spaces[name] = min(spaces.get(name, 4), size)
        elif ins.op in ("ldmatrix", "stmatrix", "cp"):
            spaces.setdefault("shared", 4)
    prog.gshift = {name: LOG[spaces.get(name, 4)] for name in ("shared", "global")}
    prog.warp_sync = any(ins.op == "bar" and ins.has("warp") for ins in prog.code)
    return prog


def build(ins: Instr, prog: Program) -> Step | None:
    """Compile one instruction that is not control flow; None for one without effect."""
    try:
        if ins.op in NOPS:
            return None
        if ins.op in ("ld", "ldu"):
            return build_ld(ins, prog)
        if ins.op == "st":
            return build_st(ins, prog)
        if ins.op in ("atom", "red"):
            return build_atom(ins, prog)
        if ins.op == "cp":
            return build_cp_async(ins, prog)
        if ins.op in WARP:
            return WARP[ins.op](ins, prog)
        if ins.op == "bar":  # bar.warp.sync
            return lambda S: S.warp_barrier()
        if ins.op == "extcall":
            return extern_call(ins)
        return build_alu(ins, prog)
    except (Unsupported, KeyError, StopIteration) as e:  # an error only if it is reached
        reason = f"unsupported instruction: {ins} ({type(e).__name__} {e})"

        def unsupported(S: State) -> None:
            raise Unsupported(reason)

        return unsupported


def extern_call(ins: Instr) -> Step | None:
    """A call of a function without a body: only device printf, which prints nothing."""
    name = ins.mods[0]
    if name not in ("vprintf",):
        raise Unsupported(f"call of undefined function {name}")
    return None


def predicated(ins: Instr, f: Any) -> Step | None:
    """Restrict a compiled instruction to the lanes whose predicate holds."""
    if ins.pred is None or f is None:
        return f
    i, neg = ins.pred[0].id, ins.pred[1]

    def run(S: State) -> None:
        p = S.R[i]
        with S.narrowed(~p if neg else p) as n:
            if n:
                f(S)

    return run


def _jump(target: int) -> Step:
    return lambda S: target


def terminator(ins: Instr, k: int, number: dict[int, int]) -> Step:
    """Compile the last instruction of a block."""
    nxt = k + 1
    act: Step
    guard = (ins.pred[0].id, ins.pred[1]) if ins.pred else None
    if ins.op == "bra":
        target = number[ins.ops[0].pc]
        return _jump(target) if guard is None else branch(ins, guard, target, nxt)
    if ins.op == "brx":
        reg, targets = ins.ops[0].id, [number[t.pc] for t in ins.ops[1].items]

        def brx(S: State) -> None:
            v = np.broadcast_to(S.R[reg], (S.N,))
            for t in range(len(targets)):
                m = S.mask & (v == t)
                if m.any():
                    S.push(targets[t], m)

        act = brx
    elif ins.op in ("exit", "ret"):

        def leave(S: State) -> None:
            S.exit()

        act = leave
    elif ins.op == "trap":

        def trap(S: State) -> None:
            S.finding("trap", ins, S.n, S.who(int(S.active()[0])))
            S.exit()

        act = trap
    else:
        act = barrier(ins, nxt)
    if guard is None:
        return act

    def guarded(S: State) -> None:
        p = S.R[guard[0]]
        t = S.mask & (~p if guard[1] else p)
        rest = S.mask & ~t
        if rest.any():
            S.push(nxt, rest)
        if not t.any():
            return None
        S.activate(t)
        r = act(S)
        if r is not None:
            S.push(r, t)
        return None

    return guarded


def branch(ins: Instr, guard: Any, target: Any, nxt: Any) -> Step:
    """A conditional bra."""
    i, neg = guard

    def bra(S: State) -> Any:
        p = S.R[i]
        S.branches += S.nwarps
        if p.size == 1:
            return target if bool(p[0]) != neg else nxt
        t = S.mask & ~p if neg else S.mask & p
        nt = int(np.count_nonzero(t))
        if nt == 0:
            return nxt
        if nt == S.n:
            return target
        f = S.mask ^ t
        S.divergent += int((t.reshape(-1, 32).any(1) & f.reshape(-1, 32).any(1)).sum())
        S.push(target, t)
        S.push(nxt, f)
        return None

    return bra


def barrier(ins: Instr, nxt: Any) -> Step:
    """bar.sync/arrive/red id[, count] and barrier[.cta].* for whole blocks or `count` threads."""
    ops = list(ins.ops)
    red = (
        next((m for m in ins.mods if m in ("popc", "and", "or")), None) if ins.has("red") else None
    )
    dst = ops.pop(0) if red else None
    pred = ops.pop() if red else None
    bar = ops[0] if ops else Imm(0, "i")
    cnt = ops[1] if len(ops) > 1 else None
    arrive = ins.has("arrive")
    if any(isinstance(o, Reg) for o in (bar, cnt)):

        def unsupported(S: State) -> None:
            raise Unsupported(str(ins))

        return unsupported
    return lambda S: S.barrier(
        ins, bar.value, cnt.value if cnt else None, arrive, red, dst, pred, nxt
    )
