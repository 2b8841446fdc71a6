"""The machine code of a kernel (SASS), as nvdisasm prints it; no GPU and no driver needed.

    code = disassemble(binary.cubin)    # one Instruction an instruction, in the order they lie
    loop = inner_loop(code)             # those of the loop where the arithmetic is
    mix(loop)                           # {"FFMA": 256, "integer": 20, ...}
    spills_in(loop)                     # 0, or there is something to mend

Loops are found in the graph of the branches, not by the direction of jumps: a slow path that the
compiler has put behind the end jumps back too, and is no loop. Counts are of instructions as they
stand there, each once, whether or not a branch skips it.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Class -> the first words of its opcodes. "integer" is more: index arithmetic, comparisons, moves,
# selections and shifts, also uniform ones, which are named I*, U* and V*, and _MOVES.
CLASSES = {
    "FFMA": "FFMA FFMA2 FFMA32I",
    "other FP32": "FADD FADD2 FADD32I FMUL FMUL2 FMUL32I FMNMX FMNMX3 FSEL FSET FSETP FCHK FSWZADD",
    "FP64": "DFMA DADD DMUL DSETP DMNMX",
    "HMMA": "HMMA IMMA BMMA DMMA QMMA OMMA",
    "HGMMA": "HGMMA IGMMA BGMMA QGMMA UTCHMMA UTCQMMA UTCIMMA UTCOMMA",
    "special": "MUFU I2F F2I F2F I2I I2FP F2FP F2IP FRND UI2F UF2I UF2F UFRND UI2FP",
    "LDS": "LDS LDSM",
    "LDG": "LDG LD",
    "LDGSTS": "LDGSTS",
    "STS": "STS STSM",
    "STG": "STG ST",
    "LDL/STL": "LDL STL",
    "integer": "",
    "branch": "BRA BRX BRXU JMP JMX CALL RET EXIT KILL BSSY BSYNC BREAK BMOV WARPSYNC YIELD",
    "other": "ULDC UBLKCP UTMALDG UTMASTG UTMACMDFLUSH UTCBAR USETMAXREG UCGABAR_ARV "
    "UCGABAR_WAIT VOTE VOTEU",
}
_CLASS_OF = {word: name for name, words in CLASSES.items() for word in words.split()}
_MOVES = "LEA LOP LOP3 PLOP3 POPC PRMT P2R R2P SEL SGXT SHF SHL SHR BMSK BREV CS2R FLO MOV R2UR"

JUMPS = ("BRA", "BRX", "BRXU", "JMP", "JMX")

_LINE = re.compile(r"//## File \"(?P<file>[^\"]+)\", line (?P<line>\d+)")
_CODE = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:(?P<guard>@!?U?P\w+)\s+)?"
    r"(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
)
_LABEL = re.compile(r"`\(([^)]+)\)|(\.L_\w+)")


class SassError(RuntimeError):
    """There is no disassembler, or it cannot read the code; one line, with what to do."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: "@!P0 BRA 0x340" has the guard "@!P0" and the opcode "BRA".

    `targets` are the addresses that it may jump to; `file` and `line` are where it comes from in
    the Python source ("" and 0: unknown).
    """

    address: int
    guard: str
    opcode: str
    operands: str
    targets: tuple[int, ...]
    file: str
    line: int

    @property
    def name(self) -> str:
        """The opcode without its modifiers: "LDG" of "LDG.E.128.CONSTANT"."""
        return self.opcode.partition(".")[0]

    @property
    def kind(self) -> str:
        """Which of CLASSES it counts as."""
        if found := _CLASS_OF.get(self.name):
            return found
        # HFMA2 of zeros is how ptxas puts a constant into a register by another pipe.
        move = self.name in _MOVES.split() or (self.name == "HFMA2" and "-RZ, RZ" in self.operands)
        return "integer" if move or self.name[0] in "IUV" else "other"

    def __str__(self) -> str:
        return f"{self.guard:>5} {self.opcode} {self.operands}".rstrip()


@cache
def disassembler() -> str:
    """The path of nvdisasm: of a package, of $CUDA_HOME or $CUDA_PATH, or on the PATH."""
    found = importlib.util.find_spec("nvidia")
    folders = [
        path / "bin"
        for root in (found.submodule_search_locations or [] if found else [])
        for path in sorted(Path(root).iterdir(), reverse=True)
    ]
    folders += [Path(os.environ[n]) / "bin" for n in ("CUDA_HOME", "CUDA_PATH") if n in os.environ]
    search = [*map(str, folders), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    path = shutil.which("nvdisasm", path=os.pathsep.join(search))
    if path is None:
        raise SassError(
            "nvdisasm is not installed; pip install nvidia-cuda-nvdisasm, or set CUDA_HOME"
        )
    return path


def disassemble(cubin: bytes) -> list[Instruction]:
    """The code of the kernel in `cubin`, without the padding behind it and functions it calls.

    Raises SassError where there is no nvdisasm, or an older one than the code.
    """
    tool = disassembler()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run(
            [tool, "-c", "-g", str(path)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[0]
        raise SassError(f"{tool} cannot read the code ({said}); install a newer one")
    return parse(done.stdout)


def parse(text: str) -> list[Instruction]:
    """The instructions of the one entry in what nvdisasm has printed."""
    sections = [s for s in re.split(r"(?m)^\s*\.section\s", text) if "STO_CUDA_ENTRY" in s]
    if len(sections) != 1:
        raise SassError(f"nvdisasm's output has {len(sections)} kernels, expected 1")
    labels: dict[str, int] = {}
    waiting: list[str] = []  # labels of the instruction that comes next
    rows = []
    file, number = "", 0
    for line in sections[0].splitlines():
        if source := _LINE.search(line):
            file, number = source["file"], int(source["line"])
        elif code := _CODE.search(line):
            address = int(code["address"], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting = []
            rows.append((address, code, file, number))
        elif line.rstrip().endswith(":"):
            waiting.append(line.strip()[:-1])
    instructions = [
        Instruction(
            address,
            code["guard"] or "",
            code["opcode"],
            _LABEL.sub(lambda m: _address(m, labels), code["operands"]).strip(),
            tuple(labels[a or b] for a, b in _LABEL.findall(code["operands"]) if (a or b) in labels)
            if code["opcode"].partition(".")[0] in JUMPS
            else (),
            file,
            number,
        )
        for address, code, file, number in rows
    ]
    while instructions and (
        instructions[-1].name == "NOP" or instructions[-1].targets == (instructions[-1].address,)
    ):
        instructions.pop()
    if not instructions:
        raise SassError("nvdisasm's output has no instructions")
    return instructions


def _address(label: re.Match[str], labels: dict[str, int]) -> str:
    address = labels.get(label[1] or label[2])
    return label[0] if address is None else f"{address:#x}"


def mix(instructions: list[Instruction]) -> dict[str, int]:
    """How many there are of each class; every class is in it, in the order of CLASSES."""
    counts = Counter(i.kind for i in instructions)
    return {name: counts[name] for name in CLASSES}


def arithmetic(instructions: list[Instruction]) -> int:
    """How many do the multiplications: FFMA, DFMA and those of tensor cores."""
    return sum(i.kind in ("FFMA", "HMMA", "HGMMA") or i.name == "DFMA" for i in instructions)


def spills_in(instructions: list[Instruction]) -> int:
    """Loads and stores of local memory: spilled registers, or arrays that did not fit in them."""
    return sum(i.kind == "LDL/STL" for i in instructions)


def inner_loop(instructions: list[Instruction]) -> list[Instruction]:
    """The loop with the most arithmetic, or of those without any the longest innermost one.

    A loop that holds others counts without them. Empty where there is no loop.
    """
    loops = _loops(instructions) if instructions else []
    best: tuple[tuple[int, bool, int], list[Instruction]] = (0, False, 0), []
    for body in loops:
        inside = [other for other in loops if other < body]
        own = [instructions[i] for i in sorted(body.difference(*inside))]
        best = max(best, ((arithmetic(own), not inside, len(own)), own), key=lambda t: t[0])
    return best[1]


def _loops(code: list[Instruction]) -> list[set[int]]:
    """The natural loops, as sets of positions: one a header (Aho et al., Compilers, 9.6)."""
    follows = list(_successors(code))
    leads: list[set[int]] = [set() for _ in code]
    for i, targets in enumerate(follows):
        for j in targets:
            leads[j].add(i)
    reached = _reach({0}, follows, set())
    loops = []
    for header in sorted(reached):
        if len(leads[header] & reached) < 2 and header != 0:
            continue
        # What cannot be reached past the header is dominated by it: jumps from there close loops.
        past = _reach({0} - {header}, follows, {header})
        ends = {i for i in leads[header] & reached if i not in past}
        if ends:
            loops.append({header} | (_reach(ends, leads, {header}) & reached))
    return loops


def _reach(start: set[int], edges: list[set[int]], without: set[int]) -> set[int]:
    seen, todo = set(start - without), list(start - without)
    while todo:
        new = edges[todo.pop()] - seen - without
        seen |= new
        todo += new
    return seen


def _successors(code: list[Instruction]) -> Iterator[set[int]]:
    """For each instruction, the positions of those that may come after it."""
    place = {instruction.address: i for i, instruction in enumerate(code)}
    for i, ins in enumerate(code):
        jumps = {place[t] for t in ins.targets if t in place}
        goes_on = True
        if ins.name in ("EXIT", "RET", "KILL"):
            goes_on = bool(ins.guard)
        elif ins.opcode.startswith("BRA.DIV"):  # a slow path, for warps that have diverged
            jumps = set()
        elif ins.opcode.startswith("BRA.CONV"):  # the slow path comes next
            goes_on = False
        elif ins.name in ("BRA", "JMP"):
            # The condition is the guard, or an operand before the label.
            goes_on = bool(ins.guard) or not ins.operands.startswith("0x")
        elif ins.name in JUMPS:
            goes_on = bool(ins.guard)
        yield jumps | ({i + 1} if goes_on and i + 1 < len(code) else set())
