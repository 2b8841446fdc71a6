"""What the emulator tells of each launch, kept: `Recorder` is the `trace` of its launches."""

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

Array = Any


@dataclass
class Pointer:
    """An array that a launch was given."""

    home: int  # its address on the host, which tells the arrays of several launches apart
    first: int  # its first word in the emulated memory
    words: Array  # what was in it before the launch


@dataclass
class Event:
    """One access to memory."""

    at: int  # the instruction's number among those that the block ran
    what: str  # "global load", "shared copy", ...
    threads: Array
    offsets: Array  # bytes
    nbytes: int

    def words(self) -> tuple[Array, Array]:
        """(word, thread) of every 4 bytes."""
        count = self.nbytes // 4
        each = self.offsets[:, None] // 4 + np.arange(count)
        return each.ravel(), np.repeat(self.threads, count)


class Launch:
    """What was seen of one launch."""

    def __init__(self, program: Any, grid: Any, first: int, pointers: list[Pointer]) -> None:
        self.program, self.first, self.pointers = program, first, pointers
        self.blocks = prod(grid)
        self.main = not program.name.startswith("layout_")  # these pack, and add up parts
        self.kept: list[Event] = []  # of all blocks: stores, and loads where it is not main
        self.events: list[Event] = []  # of the block looked into
        self.pcs: list[Array] = []  # the instructions that it ran
        self.ran = 0
        self.bytes: Counter[str] = Counter()
        self.kernel: Any = None
        self.report: Any = None

    def gathered(self, what: str) -> tuple[Array, Array]:
        """(words, threads) of all accesses of a kind that were kept, in order."""
        found = [event.words() for event in self.kept if event.what == what]
        words, threads = zip(*found, strict=True)
        return np.concatenate(words), np.concatenate(threads)

    def pointer(self, word: int) -> Pointer:
        """The array that a word of global memory is in."""
        return max((p for p in self.pointers if p.first <= word), key=lambda p: p.first)


class Recorder:
    """Is told by the emulator what happens, and keeps what a `Trace` is made of."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.launches: list[Launch] = []
        self.blocks = 0

    def begin(self, program: Any, grid: Any, arguments: Any, params: Any, memory: Any) -> None:
        from gpuconv.emulator.memory import GLOBAL

        pointers = []
        for (_, at), argument in zip(program.params, arguments, strict=True):
            array = getattr(argument, "array", None)
            if array is not None:
                start = int(params.win[8][at // 8]) - GLOBAL
                words = memory.buf.win[4][start // 4 : memory.hi[memory.owner(start)] // 4]
                home = array.__array_interface__["data"][0]
                pointers.append(Pointer(home, start // 4, words.view(np.float32).copy()))
        self.now = Launch(program, grid, self.blocks, pointers)

    def enter(self, state: Any, code: Any) -> None:
        now, self.at, self.start = self.now, self.now.ran, code.start
        number = self.block - now.first - state.blocks[0]
        inside = now.main and 0 <= number < state.nblk
        if inside and state.mask[number * state.T : (number + 1) * state.T].any():
            now.pcs.append(np.arange(code.start, code.start + code.n))
            now.ran += code.n

    def access(
        self, state: Any, instruction: Any, space: str, offsets: Any, lanes: Any, nbytes: int
    ) -> None:
        if space not in ("global", "shared"):
            return
        now = self.now
        what = f"{space} { ({'ld': 'load', 'st': 'store', 'cp': 'copy'}[instruction.op]) }"
        threads = state.gtid if lanes is None else state.gtid[lanes]
        offsets = np.broadcast_to(offsets, threads.shape)
        now.bytes[what] += nbytes * len(threads)
        if what == "global store" or (what == "global load" and not now.main):
            now.kept.append(Event(0, what, threads, offsets, nbytes))
        mine = threads // state.T == self.block - now.first
        if now.main and mine.any():
            at = self.at + instruction.pc - self.start
            now.events.append(Event(at, what, threads[mine] % state.T, offsets[mine], nbytes))

    def end(self, kernel: Any, report: Any) -> None:
        """The launch that began last is over; those it began before were tries."""
        self.now.kernel, self.now.report = kernel, report
        self.launches.append(self.now)
        self.blocks += self.now.blocks if self.now.main else 0
