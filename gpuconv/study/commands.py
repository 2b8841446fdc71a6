"""What the commands `gpuconv kernels list | inspect | build | check` print."""

import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gpuconv import study
from gpuconv.errors import ArgumentError, DeviceError
from gpuconv.kernels.cache import unwritable
from gpuconv.kernels.cuda import compiler, sass
from gpuconv.kernels.cuda.compiler import Kernel
from gpuconv.study import Inspection, check as checking
from gpuconv.study.check import Access, Check, Checked

ROWS = 12  # of the longer tables
UNCOUNTED = "accesses outside of arrays, and misaligned ones, are not counted"


def list_kernels(as_json: bool) -> None:
    """Print every kernel there is."""
    found = {
        family: [study.describe(kernel, family) for kernel in module.kernels()]
        for family, module in study.families().items()
    }
    if as_json:
        print(json.dumps([row for rows in found.values() for row in rows], indent=2))
        return
    console = _console()
    for family, rows in found.items():
        about = study.about(family)
        if family != next(iter(found)):
            console.print()
        console.print(f"{family}: {about}", style="bold")
        columns = "kernel|threads>|shared>|parameters>"
        own = any(row["what"] != about for row in rows)
        cells = [
            (row["name"], row["threads"], row["dynamic_shared"], len(row["parameters"]))
            + ((row["what"],) if own else ())
            for row in rows
        ]
        columns += "|what it does" if own else ""
        _table(console, columns, cells)
    count = sum(map(len, found.values()))
    console.print(f"{count} kernels; shared: dynamic shared memory of a block, in bytes")


def inspect(name: str, arch: str, show_sass: bool, show_ptx: bool, as_json: bool) -> None:
    """Compile a kernel, with no GPU: what it needs, and what its inner loop consists of."""
    (family, kernels), *_ = study.find(name).items()
    if name == family and (show_sass or show_ptx):
        raise ArgumentError(f"{name!r} is a family; name one of its kernels for --sass and --ptx")
    _announce(study.fitting(kernels, arch), arch)
    with _console(stderr=True).status(f"compiling for {arch}"):
        rows = study.inspect(kernels, family, arch)
    no_code = f"no instructions are shown: {rows[0].no_code}" if rows[0].no_code else ""
    if as_json:
        result = [row.to_dict(show_sass, show_ptx) for row in rows]
        print(json.dumps(result if name == family else result[0], indent=2))
        if no_code and show_sass:
            print(no_code, file=sys.stderr)
        return
    console = _console()
    if name == family:
        _show_family(console, rows)
    else:
        _show_inspection(console, rows[0])
        if show_sass and rows[0].code is not None:
            _show_sass(console, rows[0])
        if show_ptx:
            print(rows[0].binary.ptx.strip())
    if len(rows) < len(kernels):
        console.print(f"left out: {_count(len(kernels) - len(rows), 'kernel')} not for {arch}")
    if no_code:
        console.print(no_code, style="yellow", soft_wrap=True)


def build(out: Path, names: list[str] | None, arch: str, jobs: int) -> None:
    """Compile kernels for machines with no compiler: set GPUCONV_KERNELS to the folder there."""
    archs = [study.check_arch(part.strip()) for part in arch.split(",")]
    chosen = [study.find(name) for name in names or study.families()]
    kernels = [kernel for found in chosen for group in found.values() for kernel in group]
    kernels = list(dict.fromkeys(kernels))
    if why := unwritable(out):
        raise ArgumentError(f"--out {why}; name a folder that can be written to")
    counts = {"built": 0, "kept": 0, "skipped": 0, "failed": 0}
    size, total = 0, len(kernels) * len(archs)
    console, width = _console(), max(len(kernel.name) for kernel in kernels)
    with console.status("") as status:
        for number, made in enumerate(study.build(kernels, archs, out, jobs), 1):
            counts[made.status] += 1
            size += made.size
            if made.status == "skipped" and not names:
                continue
            bytes_ = f"{made.size:>9,} bytes" if made.size else made.detail
            line = f"{made.kernel:{width}}  {made.arch:7} {made.status:7} {bytes_}"
            console.print(line, soft_wrap=True)
            status.update(f"{number} of {total}")
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    told = " (not for that architecture)" if counts["skipped"] else ""
    print(f"{said}{told}: {size / 2**20:.1f} MiB in {out}")
    if counts["failed"]:
        raise DeviceError(f"{counts['failed']} of {_count(total, 'kernel')} did not compile")
    if counts["skipped"] == total:
        raise ArgumentError(f"none of these kernels is for {', '.join(archs)}")


def check(name: str, arch: str | None, as_json: bool) -> None:
    """Run a kernel in the emulator, with every check, on small problems; status 1 if one fails."""
    (family, kernels), *_ = study.find(name).items()
    target = checking.target(kernels, arch)
    _announce(study.fitting(kernels, target), target)
    with _console(stderr=True).status("") as status:
        result = checking.check(family, kernels, arch, status.update)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    elif name == family:
        _show_family_check(_console(), result)
    else:
        _show_check(_console(), result, result.kernels[0])
    if not result.ok:
        raise typer.Exit(1)


def _announce(kernels: list[Kernel], arch: str) -> None:
    """Say that it will take a while, where no spinner says so."""
    console, cold = _console(stderr=True), study.cold(kernels, arch)
    if cold and compiler.version("numba-cuda") and not console.is_terminal:
        console.print(f"compiling {_count(len(cold), 'kernel')} for {arch} ...")


def _count(number: int, what: str) -> str:
    """ "1 block", "2 blocks"."""
    return f"{number:,} {what}{'' if number == 1 else 'es' if what.endswith('ch') else 's'}"


def _console(stderr: bool = False) -> Console:
    """Prints what it is given as it is; at least 100 columns wide where nobody looks."""
    console = Console(markup=False, highlight=False, emoji=False, stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 100
    return console


def _table(
    console: Console,
    columns: str,
    rows: Iterable[tuple[Any, ...]],
    title: str | None = None,
    marked: Collection[int] = (),
) -> None:
    """Print rows under headings: "kernel|threads>|source", where > is for numbers.

    Where the lines would be too long, "kernel", "source" and "what it does" are folded.
    Rows whose position is in `marked` (-1: the last) stand out.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    headings = columns.split("|")
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [
        max(map(len, column))
        for column in zip([h.rstrip(">") for h in headings], *cells, strict=True)
    ]
    for heading, width in zip(headings, widths, strict=True):
        gives_way = heading in ("kernel", "source", "what it does")
        table.add_column(
            heading.rstrip(">"),
            justify="right" if heading.endswith(">") else "left",
            no_wrap=not gives_way,
            overflow="fold",
            min_width=None if gives_way else width,
        )
    for i, row in enumerate(cells):
        table.add_row(*row, style="bold" if {i, i - len(cells)} & set(marked) else None)
    console.print()
    if title:
        console.print(title, style="bold")
    console.print(table)


def _text(cell: Any) -> str:
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def _place(file: str, line: int) -> str:
    return f"{Path(file).name}:{line}" if line else file or "?"


def _facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    """Lines "name  value", the values under each other."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for name, value in facts:
        grid.add_row(name, value)
    console.print(grid)


def _show_family(console: Console, rows: list[Inspection]) -> None:
    about = study.about(rows[0].family)
    console.print(f"{rows[0].family} on {rows[0].binary.arch}: {about}", style="bold")
    cells = [
        (
            row.kernel.name,
            row.binary.registers,
            row.binary.spills,
            row.binary.static_shared + row.kernel.shared,
            row.occupancy.warps,
            len(row.loop) or "-",
            f"{study.share(row.loop):.0%}" if row.loop else "-",
        )
        for row in rows
    ]
    spilled = [i for i, row in enumerate(rows) if row.binary.spills]
    _table(console, "kernel|regs>|spills>|shared>|warps>|loop>|FFMA>", cells, marked=spilled)
    console.print(
        "registers a thread; spills and shared memory in bytes; warps an SM; instructions of the "
        "inner loop, and the share of FFMA"
    )


def _show_inspection(console: Console, row: Inspection) -> None:
    kernel, b, o = row.kernel, row.binary, row.occupancy
    console.print(f"{kernel.name} ({row.family}) on {b.arch}", style="bold")
    console.print(study.what(kernel))
    kinds: dict[str, list[str]] = {}
    for parameter, kind in kernel.parameters.items():
        kinds.setdefault(kind, []).append(parameter)
    asked = f"room for {kernel.min_blocks} on an SM was asked for"
    allowed = ", ".join(f"{name} {blocks}" for name, blocks in o.allowed.items())
    _facts(
        console,
        [
            ("constants", ", ".join(f"{k}={v}" for k, v in kernel.constants) or "none"),
            *((f"{kind} ({len(names)})", " ".join(names)) for kind, names in kinds.items()),
            ("block", f"{_count(kernel.threads, 'thread')}; {asked}"),
            ("registers", f"{b.registers} a thread"),
            ("spills", f"{b.spill_stores} bytes stored, {b.spill_loads} loaded; stack {b.stack}"),
            ("shared memory", f"{b.static_shared:,} bytes static, {kernel.shared:,} dynamic"),
            (
                "occupancy",
                f"{_count(o.blocks, 'block')}, {o.warps} of {o.max_warps} warps an SM "
                f"({o.warps / o.max_warps:.0%}), limited by {' and '.join(o.limit)}",
            ),
            ("blocks allowed by", allowed),
        ],
    )
    if row.code is None:
        return
    loop, whole = sass.mix(row.loop), sass.mix(row.code)
    cells = [
        (kind, loop[kind], f"{loop[kind] / len(row.loop):.0%}" if loop[kind] else "", count)
        for kind, count in whole.items()
        if count
    ]
    cells.append(("all", len(row.loop), "", len(row.code)))
    _table(console, "instructions|inner loop>|share>|whole kernel>", cells, marked=[-1])
    if not row.loop:
        console.print("there is no loop")
        return
    first, last = row.loop[0].address, row.loop[-1].address
    console.print(f"inner loop: {first:#06x} to {last:#06x}, {study.share(row.loop):.0%} FFMA")
    if spills := sass.spills_in(row.loop):
        said = f"{_count(spills, 'instruction')} with local memory in the inner loop"
        console.print(said, style="yellow")
    lines = Counter((i.file, i.line) for i in row.loop)
    _show_lines(console, "inner loop by line", lines)


def _show_lines(console: Console, title: str, lines: Counter[tuple[str, int]]) -> None:
    """The lines of Python that count most, with their text."""
    total = max(1, lines.total())
    rows = [
        (_place(*place), count, f"{count / total:.0%}", study.source_line(*place))
        for place, count in lines.most_common(ROWS)
        if count
    ]
    _table(console, "line|instructions>|share>|source", rows, title)


def _show_sass(console: Console, row: Inspection) -> None:
    """The Python that instructions come from, and these: address, | in the inner loop."""
    inside = {i.address for i in row.loop}
    place = ("", 0)
    console.print()
    for i in row.code or []:
        if (i.file, i.line) != place:
            place = i.file, i.line
            console.print(f"{_place(*place)}  {study.source_line(*place)}", style="bold")
        print(f"0x{i.address:04x} {'|' if i.address in inside else ' '}{i!s}")


def _show_family_check(console: Console, result: Check) -> None:
    console.print(f"PTX of {result.arch}, emulated", style="bold")
    uncounted = False
    rows, bad = [], []
    for i, seen in enumerate(result.kernels):
        errors = sum(f.level == "error" for f in seen.findings.values())
        cells: list[Any] = [seen.kernel.name, errors]
        for space in ("global", "shared"):
            a = seen.total(space)
            n = a.requests
            cells += [f"{a.units / n:.1f}", f"{a.units / a.minimum:.2f}x"] if n else ["-", "-"]
        rows.append(tuple(cells))
        uncounted |= seen.uncounted
        bad += [i] * bool(errors)
    _table(console, "kernel|errors>|sectors>|ratio>|waves>|ratio>", rows, marked=bad)
    console.print(
        "32-byte sectors a global request, wavefronts a shared one, their ratio to the fewest "
        "possible"
    )
    if uncounted:
        console.print(UNCOUNTED, style="yellow")
    for seen in result.kernels:
        _show_findings(console, seen)
    _show_results(console, result)


def _show_findings(console: Console, seen: Checked) -> None:
    for found in seen.findings.values():
        style = {"error": "red", "warning": "yellow"}.get(found.level)
        console.print(f"{seen.kernel.name}: {found.text}", style=style)
        console.print(f"    {_place(found.file, found.line)}  ", end="")
        console.print(study.source_line(found.file, found.line))
        console.print(f"    in problem: {found.problem}")


def _show_results(console: Console, result: Check) -> None:
    off = max(r.off for r in result.results)
    plain = max(r.plain for r in result.results)
    far = f"off by at most {off:.1e} of the largest number (NumPy's: {plain:.1e})"
    said = far if off else "equal to the truth bit for bit"
    if off < float("inf"):
        console.print(f"{_count(len(result.results), 'problem')}; results are {said}")
    for bad in (r for r in result.results if not r.ok):
        if bad.unwritten:
            left = "number is" if bad.unwritten == 1 else "numbers are"
            console.print(f"error: {bad.unwritten:,} {left} left unwritten", style="red")
        if bad.off == float("inf"):
            said = "infinite, NaN or of another shape where they should not be"
            console.print(f"error: results are {said}", style="red")
        elif bad.off > bad.allowed:
            said = f"{bad.off:.1e} of the largest number ({bad.allowed:.1e} is allowed"
            said += f"; NumPy's are off by {bad.plain:.1e})" if bad.allowed else ")"
            console.print(f"error: results are off by {said}", style="red")
        console.print(f"    in problem: {bad.problem}")
    if result.not_launched:
        console.print(f"not launched on {result.arch}: {', '.join(result.not_launched)}")


def _show_check(console: Console, result: Check, seen: Checked) -> None:
    console.print(f"{seen.kernel.name}, PTX of {result.arch}", style="bold")
    branches = f"{seen.divergent:,} of {_count(seen.branches, 'branch')} of warps diverge"
    _facts(
        console,
        [
            *(
                ("problem" if number == 1 else "", f"{label}: {_count(launches, 'launch')}")
                for number, (label, launches) in enumerate(seen.problems.items(), 1)
            ),
            ("launches", f"{seen.launches:,}, {seen.thread_instructions:,} thread instructions"),
            ("findings", "below" if seen.findings else "none"),
            ("divergence", f"{branches}; {seen.lanes:.0%} of lanes active"),
        ],
    )
    _show_findings(console, seen)
    for space, unit, about in (
        ("global", "sectors", "global memory: 32-byte sectors a request, and the fewest possible"),
        ("shared", "wavefronts", "shared memory: wavefronts a request, more with bank conflicts"),
    ):
        rows = [a for a in seen.access.values() if a.space == space and a.requests]
        if rows:
            rows.sort(key=lambda a: (a.minimum - a.units, -a.requests))
            _show_access(console, about, unit, [*rows[:ROWS], seen.total(space)])
    if seen.uncounted:
        console.print(UNCOUNTED, style="yellow")
    classes = [
        (kind, count, f"{count / seen.thread_instructions:.1%}")
        for kind, count in seen.by_class.most_common()
    ]
    _table(console, "class|instructions>|share>", classes, "PTX instructions of all threads")
    _show_lines(console, "where they are", seen.by_line)
    _show_results(console, result)


def _show_access(console: Console, title: str, unit: str, accesses: list[Access]) -> None:
    rows = []
    for a in accesses:
        place, n = _place(a.file, a.line) if a.line else "", a.requests
        rows.append((place, a.op, n, a.units / n, a.minimum / n, f"{a.units / a.minimum:.2f}x"))
    columns = f"line|instruction|requests>|{unit}>|minimum>|ratio>"
    _table(console, columns, rows, title, marked=[-1])
