"""Small PTX kernels around the instructions under test, and the values to try them on."""

from typing import Any

import numpy as np

from gpuconv import emulator

NP = {
    "u8": np.uint8,
    "s8": np.int8,
    "u16": np.uint16,
    "s16": np.int16,
    "b16": np.uint16,
    "f16": np.float16,
    "b32": np.uint32,
    "u32": np.uint32,
    "s32": np.int32,
    "f32": np.float32,
    "b64": np.uint64,
    "u64": np.uint64,
    "s64": np.int64,
    "f64": np.float64,
}
REG = {"u8": "b16", "s8": "b16", "f16": "b16", "u16": "b16", "s16": "b16"}


def kernel(body: str, ins: list[str], out: str, regs: str = "") -> str:
    """PTX applying `body` (operands %d, %a, %b, %c) element by element."""
    n = len(ins)
    names = "abc"[:n]

    def size(t: str) -> int:
        return np.dtype(NP[t]).itemsize

    def mem(t: str) -> str:
        return f"b{8 * size(t)}"

    decl = "".join(
        f".reg .{REG.get(t, mem(t))} %{v};\n"
        for v, t in zip(names + "d", [*ins, out], strict=False)
    )
    loads = "".join(
        f"ld.param.u64 %p, [p{k}]; mad.wide.u32 %p, %i, {size(t)}, %p;"
        f"ld.global.{mem(t)} %{v}, [%p];\n"
        for k, (v, t) in enumerate(zip(names, ins, strict=False))
    )
    params = ", ".join(f".param .u64 p{k}" for k in range(n + 1))
    return f""".version 8.0\n.target sm_80\n.address_size 64
.visible .entry k({params}) {{
.reg .u64 %p; .reg .u32 %i, %t; .reg .pred %q; {decl} {regs}
mov.u32 %i, %tid.x; mov.u32 %t, %ctaid.x; mad.lo.u32 %i, %t, 256, %i;
{loads}
{body}
ld.param.u64 %p, [p{n}]; mad.wide.u32 %p, %i, {size(out)}, %p; st.global.{mem(out)} [%p], %d;
ret;
}}"""


def apply(body: str, arrays: Any, ins: list[str], out: str, regs: str = "") -> Any:
    """The elements that `kernel(body, ...)` makes of those of the arrays."""
    n = -(-len(arrays[0]) // 256) * 256
    padded = [np.resize(a, n).astype(NP[t]) for a, t in zip(arrays, ins, strict=False)]
    d = np.zeros(n, NP[out])
    emulator.Module(kernel(body, ins, out, regs)).launch(
        "k", n // 256, 256, [emulator.Ptr(x) for x in [*padded, d]]
    )
    return d[: len(arrays[0])]


def values(rng: np.random.Generator, t: str, n: int = 700) -> Any:
    """n values of a PTX type, the special ones first."""
    dt = NP[t]
    if np.issubdtype(dt, np.floating):
        special = [0.0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 3e4, -3e4, 1e-3]
        return np.r_[
            np.array(special, dt), (rng.standard_normal(n - len(special)) * 100).astype(dt)
        ]
    lim = np.iinfo(dt)
    special = [0, 1, 2, 3, 31, 32, 33, 63, 64, lim.max, lim.min, lim.max - 1]
    special = [v for v in special if lim.min <= v <= lim.max]
    return np.r_[
        np.array(special, dt), rng.integers(lim.min, lim.max, n - len(special), dt, endpoint=True)
    ]


def raw(
    body: str, out_words: int, block: int, grid: int = 1, shared: int = 512, **kw: Any
) -> tuple[np.ndarray, emulator.Report]:
    """Run `body` (%i: thread, %t: 4*%i, %p: its output word); returns output and report."""
    text = f""".version 8.0\n.target sm_80\n.address_size 64
.visible .entry k(.param .u64 p0) {{
.reg .u64 %p; .reg .u32 %i, %t, %v, %w; .reg .pred %q; .shared .align 16 .b8 s[{shared}];
      .local .align 16 .b8 loc[64];
mov.u32 %i, %tid.x; ld.param.u64 %p, [p0]; mad.wide.u32 %p, %i, 4, %p; shl.b32 %t, %i, 2;
{body}
ret;
}}"""
    d = np.zeros(out_words, np.uint32)
    return d, emulator.Module(text).launch("k", grid, block, [emulator.Ptr(d)], strict=False, **kw)
