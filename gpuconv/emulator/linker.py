"""`Source` -> `Program`: a flat list of resolved instructions for one kernel.

Device functions are inlined, names become registers and addresses, and the shared and local
variables are laid out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from gpuconv.emulator.errors import PtxError
from gpuconv.emulator.isa import TYPES, Addr, Label, Mem, Not, Pair, Reg, Sink, Sreg, Ty, Vec
from gpuconv.emulator.parser import Func, Source, Var, number, split

SPECIAL = {
    "tid",
    "ntid",
    "ctaid",
    "nctaid",
    "laneid",
    "warpid",
    "nwarpid",
    "smid",
    "nsmid",
    "gridid",
    "clock",
    "clock64",
    "clock_hi",
    "globaltimer",
    "globaltimer_lo",
    "globaltimer_hi",
    "lanemask_eq",
    "lanemask_le",
    "lanemask_lt",
    "lanemask_ge",
    "lanemask_gt",
    "dynamic_smem_size",
    "total_smem_size",
    "WARP_SZ",
}


@dataclass
class Instr:
    """One resolved instruction.

    `mods` are the dot-separated parts after the opcode, `types` those of them that are types.
    """

    op: str
    mods: tuple
    ops: list
    pred: tuple | None  # (Reg, negated)
    text: str
    loc: tuple | None  # (file, line)
    pc: int = -1
    types: tuple = ()

    @property
    def ty(self) -> Ty:
        """The last type: that of the operands."""
        if not self.types:
            raise PtxError(f"no type on: {self.text}")
        return self.types[-1]

    def has(self, *names: str) -> bool:
        """Whether any of the names is among the modifiers."""
        return any(n in self.mods for n in names)

    def __str__(self) -> str:
        where = f"  ({self.loc[0].rsplit('/', 1)[-1]}:{self.loc[1]})" if self.loc else ""
        return f"[pc {self.pc}] {self.text}{where}"


@dataclass
class Program:
    """One kernel, ready for `compile_program`, which adds the basic blocks."""

    name: str
    code: list
    regs: list  # Ty of each register id
    params: list  # [(Var, offset)]
    param_bytes: int
    shared: list  # [(name, offset, size)]; dynamic shared memory starts at shared_bytes
    shared_bytes: int
    local_bytes: int
    max_threads: int | None
    # Added by compile_program:
    ftz: bool = False
    blocks: list = field(default_factory=list)
    is_read: list = field(default_factory=list)  # per register; False: only ever a destination
    gshift: dict = field(default_factory=dict)  # space -> log2 of the bytes in a shadow granule
    warp_sync: bool = False


def align(x: int, a: int) -> int:
    """Round x up to a multiple of a."""
    return (x + a - 1) // a * a


class Linker:
    """Flattens one kernel: resolves names to registers/addresses and inlines every call."""

    def __init__(self, src: Source, module_syms: dict[str, Addr]) -> None:
        self.src, self.syms = src, module_syms
        self.code: list[Instr] = []
        self.regs: list[Ty] = []
        self.local = 0
        self.shared: list[tuple] = []
        self.shared_bytes = 0
        self.labels: dict = {}  # label key -> pc
        self.depth: list[str] = []

    def link(self, name: str) -> Program:
        """Flatten one kernel."""
        f = self.src.funcs[name]
        env, params, off = dict(self.syms), [], 0
        for v in f.params:
            off = align(off, v.align)
            env[v.name] = Addr("param", off, v.name)
            params.append((v, off))
            off += v.size
        # Shared variables are laid out as the hardware would pack them, plus a guard gap (a
        # multiple of 128 bytes, so bank numbers stay the same) after each to make overruns visible.
        self._emit(f, env)
        for ins in self.code:
            ins.ops = [
                Label(self.labels[o])
                if isinstance(o, tuple)
                else Vec(tuple(Label(self.labels[k]) for k in o))
                if isinstance(o, list)
                else o
                for o in ins.ops
            ]
        mt = re.search(
            r"\.(?:maxntid|reqntid)\s+(\d+)\s*(?:,\s*(\d+))?\s*(?:,\s*(\d+))?", f.directives
        )
        maxt = None
        if mt:
            maxt = int(mt[1]) * int(mt[2] or 1) * int(mt[3] or 1)
        return Program(
            name,
            self.code,
            self.regs,
            params,
            max(off, 8),
            self.shared,
            self.shared_bytes,
            align(max(self.local, 16), 16),
            maxt,
        )

    def _shared_var(self, v: Var) -> Addr:
        """Static variables get packed offsets in order of first use; extern [] has space 'dyn'."""
        if v.extern or v.size == 0:
            return Addr("dyn", 0, v.name)
        for name, off, _ in self.shared:
            if name == v.name:
                return Addr("shared", off, name)
        packed = sum(s for *_, s in self.shared)  # real layout; guard = 128 per variable
        off = align(packed, v.align) + 128 * len(self.shared)
        if self.shared and off < self.shared[-1][1] + self.shared[-1][2] + 64:
            off += 128
        self.shared.append((v.name, off, v.size))
        self.shared_bytes = max(self.shared_bytes, align(off + v.size, 128) + 128)
        return Addr("shared", off, v.name)

    def _emit(self, f: Func, env: dict) -> None:
        if f.name in self.depth:
            raise PtxError(f"recursive call of {f.name} is not supported")
        self.depth.append(f.name)
        uid = (f.name, len(self.code), len(self.labels))
        names = {n[1] for n in f.body if n[0] == "label"}
        targets = {
            f.body[k][1]: f.body[k + 1][1]
            for k in range(len(f.body) - 1)
            if f.body[k + 1][0] == "targets"
        }
        scopes, loc, end = [dict(env)], None, (uid, "$end")

        def lab(n: Any) -> Any:
            return (uid, n)

        for item in f.body:
            kind = item[0]
            if kind == "scope":
                scopes.append(dict(scopes[-1])) if item[1] > 0 else scopes.pop()
            elif kind == "label":
                self.labels[lab(item[1])] = len(self.code)
            elif kind == "loc":
                if item[2]:
                    loc = (f.files.get(item[1], f"file{item[1]}"), item[2])
            elif kind == "reg":
                for nm in item[2]:
                    scopes[-1][nm] = Reg(len(self.regs), item[1])
                    self.regs.append(item[1])
            elif kind == "var":
                v = item[1]
                if v.space == "shared":
                    scopes[-1][v.name] = self._shared_var(v)
                else:  # .local, and .param variables used to pass call arguments
                    self.local = align(self.local, max(v.align, 8))
                    scopes[-1][v.name] = Addr("local", self.local, v.name)
                    self.local += max(v.size, 8)
            elif kind == "ins":
                self._instr(item[1], scopes[-1], names, targets, lab, loc, end)
        self.labels[end] = len(self.code)
        if len(self.depth) == 1:
            self.code.append(Instr("exit", (), [], None, "exit  // end of kernel", loc))
        self.depth.pop()

    def _instr(
        self, st: str, env: dict[str, Any], names: Any, targets: Any, lab: Any, loc: Any, end: Any
    ) -> Any:
        text, pred = st, None
        if st.startswith("@"):
            p, st = st[1:].split(None, 1)
            pred = (env[p.lstrip("!")], p.startswith("!"))
        m = re.match(r"[\w.:]+", st)
        if m is None:
            raise PtxError(f"cannot parse instruction: {text}")
        parts = m[0].split(".")
        op, mods, rest = parts[0], tuple(parts[1:]), st[m.end() :].strip()
        types = tuple(TYPES[p] for p in mods if p in TYPES)
        ins = Instr(op, mods, [], pred, text, loc, types=types)
        if op == "call":
            return self._call(ins, rest, env)
        if op == "ret" and len(self.depth) > 1:  # return from an inlined function
            ins.op, ins.ops = "bra", [end]
        elif op == "brx":
            a, t = split(rest)
            ins.ops = [self._operand(a, env, ins), [lab(n) for n in targets[t]]]
        else:
            ins.ops = [
                lab(o) if op == "bra" and o in names else self._operand(o, env, ins)
                for o in split(rest)
            ]
        self._add(ins)

    def _add(self, ins: Instr) -> None:
        ins.pc = len(self.code)
        self.code.append(ins)

    def _call(self, ins: Instr, rest: str, env: dict[str, Any]) -> Any:
        parts = split(rest)
        rets = split(parts.pop(0)[1:-1]) if parts[0].startswith("(") else []
        name = parts.pop(0)
        args = split(parts[0][1:-1]) if parts else []
        f = self.src.funcs.get(name)
        if f is None or not f.body:
            ins.op, ins.mods = "extcall", (name,)
            ins.ops = [env.get(a, a) for a in rets + args]
            ins.ops = [o if isinstance(o, Addr) else Sink() for o in ins.ops]
            return self._add(ins)
        if ins.pred:
            raise PtxError(f"predicated call is not supported: {ins.text}")
        inner = dict(self.syms)
        for v, a in zip(f.rets + f.params, rets + args, strict=False):
            inner[v.name] = env[a]
        self._emit(f, inner)

    def _operand(self, tok: str, env: dict[str, Any], ins: Instr) -> Any:
        if (n := number(tok)) is not None:
            return n
        if tok == "_":
            return Sink()
        if tok[0] == "{":
            return Vec(tuple(self._operand(t, env, ins) for t in split(tok[1:-1])))
        if tok[0] == "[":
            inner = tok[1:-1].strip()
            m = re.fullmatch(r"([%\w$.]+)\s*([-+])\s*([-+]?\s*\w+)", inner)
            if m is None:
                return Mem(self._operand(inner, env, ins), 0)
            off = number(m[3].replace(" ", ""))
            if off is None:
                raise PtxError(f"bad offset in: {ins.text}")
            return Mem(self._operand(m[1], env, ins), int(m[2] + "1") * off.value)
        if tok[0] == "!":
            return Not(self._operand(tok[1:].strip(), env, ins))
        if "|" in tok:
            a, b = tok.split("|")
            return Pair(self._operand(a.strip(), env, ins), self._operand(b.strip(), env, ins))
        if (m := re.fullmatch(r"(?:generic\()?([%\w$]+)\)?\s*(?:([-+])\s*(\d+))?", tok)) and m[
            1
        ] in env:
            o, k = env[m[1]], int(m[2] + m[3]) if m[2] else 0
            if isinstance(o, Reg):
                return o
            return Addr(o.space, o.off + k, o.name)
        name = tok.lstrip("%")
        if name.split(".")[0] in SPECIAL:
            return Sreg(name)
        v = self.src.vars.get(tok)
        if v is not None and v.space == "shared":
            return self._shared_var(v)
        raise PtxError(f"unknown name {tok!r} in: {ins.text}")
