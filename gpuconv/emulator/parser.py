"""PTX text -> `Source`: variables, functions and kernels of a module, as lists of items."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

from gpuconv.emulator.errors import PtxError
from gpuconv.emulator.isa import TYPES, Imm, Ty

VAR = re.compile(
    r"^(?P<link>(?:\.(?:extern|visible|weak|common)\s+)*)\.(?P<space>global|const|shared|local|param)\s+"
    r"(?P<q>(?:\.align\s+\d+\s+|\.attribute\([^)]*\)\s*)*)\.(?P<ty>\w+)\s+(?P<ptr>(?:\.ptr|\.global|\.shared"
    r"|\.const|\.local|\.align\s+\d+|\s)*)(?P<name>[\w$%]+)\s*(?P<dims>(?:\[\s*\d*\s*\])*)\s*(?:=\s*(?P<init>.*))?$",
    re.S,
)


FUNC = re.compile(
    r"^(?:\.(?:extern|visible|weak)\s+)*\.(entry|func)\b\s*(?:\.noreturn\s*)?(?:\(([^)]*)\)\s*)?([\w$]+)\s*"
    r"(?:\(([^)]*)\))?(.*)$",
    re.S,
)


ITEM = re.compile(
    r"\s*(?:(?P<label>[A-Za-z_$%][\w$]*)\s*:(?!:)|(?P<brace>[{}])|(?P<stmt>[^;{}\s][^;{}]*(?:\{[^{}]*\}[^;{}]*)*);)"
)


@dataclass
class Var:
    """A variable declaration; `size` in bytes."""

    name: str
    space: str
    align: int
    size: int
    init: bytes | None = None
    extern: bool = False
    ty: Ty | None = None


@dataclass
class Func:
    """A kernel or device function."""

    name: str
    entry: bool
    params: list
    rets: list
    body: list = field(default_factory=list)
    directives: str = ""
    files: dict = field(default_factory=dict)  # .file numbers of its module


def split(s: str, sep: str = ",") -> list[str]:
    """Split at separators outside brackets."""
    out, depth, cur = [], 0, ""
    for c in s:
        depth += (c in "[{(") - (c in "]})")
        if c == sep and depth == 0:
            out.append(cur.strip())
            cur = ""
        else:
            cur += c
    return [*out, cur.strip()] if cur.strip() else out


def number(tok: str) -> Imm | None:
    """A PTX literal -> Imm, or None."""
    neg, t = tok.startswith("-"), tok.lstrip("+-").strip()
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", t):
        return Imm(int(t[2:], 16) ^ (neg << 31), "x32")
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", t):
        return Imm(int(t[2:], 16) ^ (neg << 63), "x64")
    if re.fullmatch(r"(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", t):
        t = t.rstrip("U")
        v = int(t, 8) if re.fullmatch(r"0[0-7]+", t) else int(t, 0)
        return Imm(-v if neg else v, "i")
    if re.fullmatch(r"\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+", t):
        return Imm(-float(t) if neg else float(t), "d")
    return None


def parse_var(st: str) -> Var | None:
    """A variable declaration -> Var, or None where the text is something else."""
    m = VAR.match(st.strip())
    if not m:
        return None
    vec = re.match(r"v([24])$", m["ty"])
    ty = TYPES.get(m["ty"], TYPES["b8"])
    esz = max(1, ty.bits // 8) if not vec else 4
    count, dims = 1, re.findall(r"\[\s*(\d*)\s*\]", m["dims"])
    for d in dims:
        count *= int(d) if d else 0
    al = re.search(r"\.align\s+(\d+)", m["q"])
    init = None
    if m["init"]:
        words = [v.strip() for v in re.sub(r"[{}]", " ", m["init"]).split(",")]
        vals = [v for word in words if word and (v := number(word)) is not None]
        if len(vals) < sum(map(bool, words)):
            raise PtxError(f"initialiser with symbols is not supported: {m['name']}")
        fmt = {4: "<f", 8: "<d"}
        init = b"".join(
            struct.pack(fmt[esz], v.value)
            if v.kind == "d"
            else (int(v.value) & ((1 << 8 * esz) - 1)).to_bytes(esz, "little")
            for v in vals
        )
    return Var(
        m["name"],
        m["space"],
        int(al[1]) if al else esz,
        esz * count,
        init,
        "extern" in m["link"],
        ty,
    )


def parse_body(src: str) -> list:
    """The text of a function body -> a list of (kind, ...) items."""
    items: list[tuple[Any, ...]] = []
    i = 0
    while m := ITEM.match(src, i):
        i = m.end()
        if m["label"]:
            items.append(("label", m["label"]))
        elif m["brace"]:
            items.append(("scope", 1 if m["brace"] == "{" else -1))
        else:
            st = " ".join(m["stmt"].split())
            if st.startswith(".loc "):
                p = st.split()
                items.append(("loc", int(p[1]), int(p[2])))
            elif st.startswith(".reg"):
                decl = re.match(r"\.reg\s*\.(\w+)\s+(.*)$", st)
                if decl is None:
                    raise PtxError(f"cannot parse declaration: {st}")
                ty, names = decl.groups()
                for nm in split(names):
                    r = re.fullmatch(r"([%\w$]+)<(\d+)>", nm)
                    items.append(
                        ("reg", TYPES[ty], [f"{r[1]}{k}" for k in range(int(r[2]))] if r else [nm])
                    )
            elif st.startswith((".branchtargets", ".calltargets")):
                items.append(("targets", split(st.split(None, 1)[1])))
            elif st.startswith("."):
                if (v := parse_var(st)) is not None:
                    items.append(("var", v))
                elif not st.startswith((".pragma", ".file", ".callprototype")):
                    raise PtxError(f"unknown directive: {st}")
            else:
                items.append(("ins", st))
    if src[i:].strip():
        raise PtxError(f"cannot parse near: {src[i : i + 80]!r}")
    return items


class Source:
    """A parsed PTX module: variables, functions and kernels by name."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
        self.files = {
            int(a): b for a, b in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)
        }
        text = re.sub(r"//[^\n]*", "", re.sub(r'"[^"\n]*"', '""', text))
        text = re.sub(r"\.section\s+\S+\s*\{[^}]*\}", "", text)
        text = re.sub(r"^\s*\.file\b.*$", "", text, flags=re.M)
        text = re.sub(r"^(\s*\.loc\b[^;\n]*)$", r"\1;", text, flags=re.M)
        head = dict(re.findall(r"^\s*\.(version|target|address_size)\s+(.+?)\s*$", text, re.M))
        self.version, self.target = head.get("version"), head.get("target")
        text = re.sub(r"^\s*\.(version|target|address_size)\s+.*$", "", text, flags=re.M)
        self.vars: dict[str, Var] = {}
        self.funcs: dict[str, Func] = {}
        i = 0
        while i < len(text):
            if text[i].isspace() or text[i] == ";":
                i += 1
                continue
            j = min([k for k in (text.find(";", i), text.find("{", i)) if k >= 0], default=-1)
            if j < 0:
                raise PtxError(f"cannot parse near: {text[i : i + 80]!r}")
            if f := FUNC.match(text[i:j].strip()):
                params, rets = ([parse_var(p) for p in split(f[k] or "")] for k in (4, 2))
                func = Func(f[3], f[1] == "entry", params, rets, directives=f[5], files=self.files)
                if text[j] == "{":
                    end = self._close(text, j)
                    func.body = parse_body(text[j + 1 : end])
                    self.funcs[func.name] = func
                    i = end + 1
                else:
                    self.funcs.setdefault(func.name, func)
                    i = j + 1
                continue
            end = text.find(";", i)
            if (v := parse_var(text[i:end])) is None:
                raise PtxError(f"cannot parse directive: {text[i:end][:80]!r}")
            self.vars[v.name] = v
            i = end + 1

    def add(self, other: Source) -> None:
        """Link in another module: definitions replace declarations."""
        for v in other.vars.values():
            if v.name not in self.vars or self.vars[v.name].extern:
                self.vars[v.name] = v
        for g in other.funcs.values():
            if g.body or g.name not in self.funcs:
                self.funcs[g.name] = g

    @staticmethod
    def _close(text: str, j: Any) -> int:
        depth = 0
        for m in re.finditer(r"[{}]", text[j:]):
            depth += 1 if m[0] == "{" else -1
            if depth == 0:
                return j + m.start()
        raise PtxError("unbalanced braces")

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels, in order of definition."""
        return [f.name for f in self.funcs.values() if f.entry]
