"""How long a call takes: blocks of calls, interleaved in rounds, disturbed ones measured again.

On a CPU by the clock, warm (the same arrays in every call). A block during which threads of this
process waited for a processor is disturbed by others and is measured again. On a GPU by events on
the current stream: "cold", with a buffer larger than the L2 cache written before each call, or
"warm", one call after another.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

Call = Callable[[], Any]
DISTURBED = 0.02  # waiting for a processor, as part of a block's time
RETRIES = 8  # of a disturbed block, before it is taken as it is
PAUSE = 0.05  # seconds, times the number of the retry
SETTLE = 0.005  # seconds; threads of what ran before spin for a while, and then sleep


@dataclass
class Block:
    """Of one block: seconds a call, whether others disturbed it, page faults a call."""

    seconds: float
    disturbed: bool = False
    faults: float = 0.0


@dataclass
class Sample:
    """What the rounds gave for one contender: a block a round, and how many were thrown away."""

    blocks: list[Block] = field(default_factory=list)
    repeated: int = 0

    def quiet(self) -> list[float]:
        """Seconds of the undisturbed blocks; of all, where there are none."""
        return [b.seconds for b in self.blocks if not b.disturbed] or [
            b.seconds for b in self.blocks
        ]

    def summary(self) -> dict[str, float]:
        """Median and quartiles in seconds, and what disturbed them."""
        seconds = self.quiet()
        several = quantiles(seconds, method="inclusive") if len(seconds) > 1 else seconds * 3
        return {
            "median": median(seconds),
            "q1": several[0],
            "q3": several[2],
            "least": min(seconds),
            "rounds": len(self.blocks),
            "repeated": self.repeated,
            "disturbed": sum(b.disturbed for b in self.blocks),
            "page_faults": self.blocks[-1].faults,
        }


class CpuTimer:
    """Blocks by the clock."""

    policy, most = "warm", 1000

    def __init__(self, settle: float = SETTLE) -> None:
        self.settle = settle
        self.watch = "waiting time of threads" if waiting() is not None else "none"

    def block(self, call: Call, inner: int) -> Block:
        time.sleep(self.settle)
        call()  # wakes this library's threads
        faults, waited = _faults(), waiting()
        start = time.perf_counter()
        for _ in range(inner):
            call()
        wall = time.perf_counter() - start
        lost = (waiting() or 0.0) - (waited or 0.0)
        return Block(wall / inner, lost > DISTURBED * wall, (_faults() - faults) / inner)


class CudaTimer:
    """Blocks by events on CuPy's current stream; `cold` writes `cache` bytes before each call."""

    watch = "none: time is the device's own"

    def __init__(self, cupy: Any, cold: bool, cache: int) -> None:
        self.cupy, self.policy = cupy, "cold" if cold else "warm"
        self.most = 20 if cold else 1000  # writing the cache takes longer than most calls
        self.cache = cupy.empty(cache, dtype="uint8") if cold else None

    def block(self, call: Call, inner: int) -> Block:
        event = self.cupy.cuda.Event
        if self.cache is None:
            call()
            pairs = [(event(), event())]
            pairs[0][0].record()
            for _ in range(inner):
                call()
            pairs[0][1].record()
        else:
            pairs = [(event(), event()) for _ in range(inner)]
            for start, stop in pairs:
                # Writing takes longer than the host needs to launch what follows, so the device
                # never waits for the host between the two events.
                self.cache.data.memset_async(0, self.cache.nbytes)
                start.record()
                call()
                stop.record()
        pairs[-1][1].synchronize()
        elapsed = self.cupy.cuda.get_elapsed_time  # milliseconds
        seconds = [elapsed(start, stop) / 1e3 for start, stop in pairs]
        return Block(median(seconds) if self.cache is not None else seconds[0] / inner)


def waiting() -> float | None:
    """Seconds that this process's threads have waited for a processor; None if not known.

    The second number of Linux's schedstat, in nanoseconds, of every thread alive.
    """
    total, seen = 0, False
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
            seen = True
        except (OSError, IndexError, ValueError):
            continue  # the thread has ended, or the kernel does not count
    return total / 1e9 if seen else None


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def rounds(
    blocks: dict[str, Callable[[int], Block]],
    count: int,
    block_seconds: float,
    limit: float,
    most: int = 1000,
    clock: Callable[[], float] = time.perf_counter,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Sample]:
    """Measure every contender once a round, `count` rounds, each round begun by another one.

    `blocks[name](inner)` measures a block of `inner` calls; inner is chosen so that a block takes
    about `block_seconds`, but at most `most`. After `limit` seconds no round is begun, but three
    are always made. `tell` hears, between blocks, which one comes.
    """
    start, names = clock(), list(blocks)
    inner = {}
    for name in names:
        once = blocks[name](1).seconds
        inner[name] = max(1, min(most, round(block_seconds / max(once, 1e-7))))
    samples = {name: Sample() for name in names}
    for i in range(count):
        if i >= 3 and clock() - start > limit:
            break
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            sample, at = samples[name], f"round {i + 1}/{count}"
            tell(at)
            block = blocks[name](inner[name])
            for attempt in range(RETRIES):
                if not block.disturbed or clock() - start > 2 * limit:
                    break
                sample.repeated += 1
                tell(f"{at}, repeat {attempt + 1}/{RETRIES}")
                time.sleep(PAUSE * attempt)
                block = blocks[name](inner[name])
            sample.blocks.append(block)
    return samples


def steady(timer: Any, call: Call, count: int = 5) -> tuple[float, bool]:
    """(seconds of the best of `count` undisturbed calls, False); (.., True) if all were disturbed.

    At most RETRIES calls more are made to find them.
    """
    calm: list[float] = []
    rough: list[float] = []
    while len(calm) < count and len(calm) + len(rough) < count + RETRIES:
        block = timer.block(call, 1)
        (rough if block.disturbed else calm).append(block.seconds)
        if block.disturbed:
            time.sleep(PAUSE)
    return min(calm or rough), not calm


def lost(peer: Sample, ours: Sample) -> int:
    """In how many rounds one of the two was disturbed."""
    return sum(p.disturbed or o.disturbed for p, o in zip(peer.blocks, ours.blocks, strict=True))


def ratio(peer: Sample, ours: Sample) -> float:
    """Peer's time over ours: the median over the rounds, of those in which neither was disturbed
    if there are any."""
    pairs = list(zip(peer.blocks, ours.blocks, strict=True))
    calm = [(p, o) for p, o in pairs if not (p.disturbed or o.disturbed)]
    return median(p.seconds / o.seconds for p, o in calm or pairs)
