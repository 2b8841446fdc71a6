"""A convolution's real kernel, run in the emulator and written down: which thread touches what.

    found = trace(spec, "forward", "tiled")   # Trace: NumPy arrays, which `blocks.py` draws

Everything is from what the kernel does, nothing from what it should do. All numbers of the two
inputs differ, so that a number met anywhere, in a packed copy too, says which one of which input it
is; a zero is padding.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends import get_backend
from gpuconv.errors import ArgumentError
from gpuconv.shapes import ConvSpec
from gpuconv.viz.recorder import Launch, Pointer, Recorder

Array = Any
PASSES = {  # its two inputs and its result
    "forward": ("input", "weight", "output"),
    "grad_input": ("gradient of the output", "weight", "gradient of the input"),
    "grad_weight": ("gradient of the output", "input", "gradient of the weight"),
}
ALGORITHMS = ("auto", "tiled", "direct")
# What an instruction does. A copy goes from global to shared memory, and nobody waits for it
# (cp.async); copies are committed in groups, and a wait is for all groups but the last few.
KINDS = (
    "other", "copy", "commit", "wait", "barrier", "shared load", "shared store", "global load",
    "global store", "math",
)  # fmt: skip
MOST = 1 << 26  # multiply-adds, those of a tile's unused channels too: some seconds
ZERO = 3  # in `Trace.copied`


@dataclass(frozen=True)
class Trace:
    """One pass of one convolution as its kernel computed it; `block` is the one looked into.

    Blocks are numbered as a GPU does, x fastest, and on through the launches of a pass that has
    several. Where sums are split, each part of a number has an owner. A round is a group of copies
    that the block commits, and what it does until the next: no rounds, no pipeline.
    """

    spec: ConvSpec
    which: str
    kernel: str
    others: tuple[str, ...]  # launched around it: they pack arrays, or add up parts
    inputs: tuple[Array, Array]  # float32: (x, w), (gy, w) or (gy, x)
    result: Array
    owner: Array  # (parts, *result) int: the block that stored it, -1 for none
    thread: Array  # the same: which of the block's threads
    stores: int  # of results, or of parts of them, in all
    blocks: int
    threads: int  # of a block
    block: int
    loads: tuple[Array, Array]  # int, as inputs: how often the block read each from global memory
    copied: Array  # (rounds, words) int: from input 1 or 2, ZERO for padding, 0 for nothing
    reads: Array  # (rounds, words) int: how often threads read a word that was copied
    mine: Array  # (rounds, words) bool: those that thread 0 read
    rows: Array  # (rounds, N, *in) int: numbers copied of each pixel of inputs[image]
    kinds: Array  # (instructions,) int: index in KINDS of each, in the order the block ran them
    starts: Array  # (rounds,) int: the instruction that a round begins with
    bytes: dict[
        str, int
    ]  # by kind of access, of all blocks; copies as "global copy", "shared copy"
    math: int  # additions and multiplications of floats by all threads, a fused one counted once

    @property
    def roles(self) -> tuple[str, str, str]:
        """What the inputs and the result are."""
        return PASSES[self.which]

    @property
    def image(self) -> int:
        """Which of the inputs is the image whose windows are summed: x, or gy in its place."""
        return int(self.which == "grad_weight")

    @property
    def stages(self) -> list[tuple[int, int]]:
        """The words [from, to) of shared memory that rounds fill, in turn."""
        filled = [np.flatnonzero(words) for words in self.copied]
        return sorted({(int(words[0]), int(words[-1]) + 1) for words in filled if words.size})

    @property
    def reuse(self) -> float:
        """How often a number was read once the block had it: a word copied, or an input loaded."""
        if len(self.copied):
            return float(self.reads.sum() / np.count_nonzero(self.copied))
        loads = np.concatenate([array.ravel() for array in self.loads])
        return float(loads.sum() / max(1, np.count_nonzero(loads)))


def trace(
    spec: ConvSpec,
    which: str = "forward",
    algo: str = "tiled",
    channels_last: bool = True,
    block: int = 0,
) -> Trace:
    """Run pass `which` on float32 images by kernel `algo`: "tiled", "direct", "auto" for either.

    ArgumentError for what has no such kernel, is too much for the emulator or has no such block;
    DeviceError where there is no compiler.
    """
    if which not in PASSES:
        raise ArgumentError(f"which={which!r} is no pass; use one of {', '.join(PASSES)}")
    if algo not in ALGORITHMS:
        raise ArgumentError(f"algo={algo!r} is not traced; use one of {', '.join(ALGORITHMS)}")
    if spec.nd != 2:
        raise ArgumentError(f"images are traced, not {spec.x_shape}: give it a height and a width")
    shapes = {
        "forward": (spec.x_shape, spec.w_shape),
        "grad_input": (spec.y_shape, spec.w_shape),
        "grad_weight": (spec.y_shape, spec.x_shape),
    }[which]
    sizes = [prod(shape) for shape in shapes]
    if spec.macs * max(1, 64 // spec.w_shape[0]) > MOST or sum(sizes) > MOST >> 5:
        raise ArgumentError(
            f"input {spec.x_shape} and weight {spec.w_shape} make {spec.macs:,} multiply-adds: too "
            f"many to trace; take a smaller image, or fewer channels or filters"
        )
    get_backend("emulated")  # says what to install where there is no compiler
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.conv import choose
    from gpuconv.cuda.device import EmulatedDevice

    recorder = Recorder(block)
    device = EmulatedDevice(watch=recorder.end, trace=recorder)
    chosen = choose(spec, np.dtype("float32"), which, device.sms, algo).algorithm
    if chosen not in ALGORITHMS:
        raise ArgumentError(f"algo='auto' takes {chosen!r} here, not traced; use tiled or direct")
    values = (np.arange(sum(sizes), dtype=np.float32) + 0.75) / sum(sizes) - 0.5  # none is 0
    values = np.random.default_rng(0).permutation(values)
    first, second = (
        part.reshape(shape) for part, shape in zip(np.split(values, sizes[:1]), shapes, strict=True)
    )
    if channels_last:
        first = _channels_last(first)
        second = _channels_last(second) if which == "grad_weight" else second
    method = "conv" if which == "forward" else f"conv_{which}"
    result = getattr(CudaBackend(device, "emulated"), method)(spec, first, second, algo=algo)
    if not 0 <= block < recorder.blocks:
        raise ArgumentError(f"there is no block {block}: they are 0 to {recorder.blocks - 1}")
    return _read(spec, which, recorder, (first, second), result)


def _channels_last(x: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def _read(
    spec: ConvSpec, which: str, recorder: Recorder, inputs: tuple[Array, Array], result: Array
) -> Trace:
    """Words and addresses as numbers of the convolution."""
    main = [launch for launch in recorder.launches if launch.main]
    launch = [one for one in main if one.first <= recorder.block][-1]
    owner, thread, stores = _owners(recorder.launches, result)
    kinds = _kinds(launch)
    source = _sources(launch, inputs)
    loads = np.zeros(inputs[0].size + inputs[1].size, int)
    for event in launch.events:
        if event.what in ("global load", "global copy"):
            numbers = source(event.words()[0])
            np.add.at(loads, numbers[numbers >= 0], 1)
    total: Counter[str] = sum((one.bytes for one in main), Counter())
    return Trace(
        spec=spec,
        which=which,
        kernel=launch.kernel.name,
        others=tuple(one.kernel.name for one in recorder.launches if not one.main),
        inputs=inputs,
        result=result,
        owner=owner,
        thread=thread,
        stores=stores,
        blocks=recorder.blocks,
        threads=launch.kernel.threads,
        block=recorder.block,
        loads=(
            loads[: inputs[0].size].reshape(inputs[0].shape),
            loads[inputs[0].size :].reshape(inputs[1].shape),
        ),
        kinds=kinds,
        bytes=dict(total),
        math=sum(one.report.by_class.get("float", 0) for one in main),
        **_rounds(launch, kinds, inputs, int(which == "grad_weight"), source),
    )


def _rounds(
    launch: Launch, kinds: Array, inputs: tuple[Array, Array], image: int, source: Any
) -> dict[str, Array]:
    """What `Trace` says by rounds: copies before a commit, reads after it."""
    commits = np.flatnonzero(kinds == KINDS.index("commit"))
    if KINDS.index("copy") not in kinds:  # a gradient by input where no tap meets the pixels
        commits = commits[:0]
    shape = len(commits), launch.report.shared_bytes // 4
    copied, reads, mine = (np.zeros(shape, kind) for kind in (np.int8, np.int32, bool))
    pixels = inputs[image].shape[0], *inputs[image].shape[2:]
    rows = np.zeros((len(commits), *pixels), np.int32)
    held = np.zeros(shape[1], bool)  # words that hold what was copied
    fetched: dict[int, tuple[Array, Array]] = {}  # instruction -> threads, numbers that they copy
    nothing = np.zeros(0, int), np.zeros(0, int)
    for event in launch.events if len(commits) else []:
        words, threads = event.words()
        number = int(np.searchsorted(commits, event.at))
        if event.what == "global copy":
            fetched[event.at] = threads, source(words)
        elif event.what == "shared copy":
            takers, numbers = fetched.get(event.at, nothing)  # the others' copies are of 0 bytes
            copied[number, words] = ZERO
            of = np.where(numbers < inputs[0].size, 1, 2)
            copied[number, words[np.isin(threads, takers)]] = np.where(numbers < 0, ZERO, of)
            held[words] = True
            ours = numbers[(numbers >= 0) & (of == image + 1)] - image * inputs[0].size
            n, _, *pixel = np.unravel_index(ours, inputs[image].shape)
            np.add.at(rows[number], (n, *pixel), 1)
        elif event.what == "shared store":
            held[words] = False
        elif event.what == "shared load":
            known = held[words]
            np.add.at(reads[number - 1], words[known], 1)
            mine[number - 1, words[known & (threads == 0)]] = True
    begins = np.isin(kinds, [KINDS.index(kind) for kind in ("copy", "commit", "wait")])
    after = [0, *(commits[:-1] + 1)] if len(commits) else []
    starts = np.array([a + int(begins[a:].argmax()) for a in after], int)
    return {"copied": copied, "reads": reads, "mine": mine, "rows": rows, "starts": starts}


def _owners(launches: list[Launch], result: Array) -> tuple[Array, Array, int]:
    """(block, thread) of each part of each number of the result, and how many stores there were."""
    home, found, stores = result.__array_interface__["data"][0], [], 0
    for number, launch in enumerate(launches):
        if not launch.main:
            continue
        words, threads = launch.gathered("global store")
        array = launch.pointer(int(words[0]))
        to, part = words - array.first, np.zeros(len(words), int)
        if array.home != home:  # parts: whoever reads one stores the sum that it is part of
            later = next(
                (one, p)
                for one in launches[number:]
                for p in one.pointers
                if not one.main and p.home == array.home
            )
            to, part = _sums(*later, to)
        blocks, threads = np.divmod(threads, launch.kernel.threads)
        kept = to >= 0
        found.append((part[kept], to[kept], launch.first + blocks[kept], threads[kept]))
        stores += int(kept.sum())
    part, to, blocks, threads = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    owner = np.full((int(part.max()) + 1, result.size), -1)
    thread = owner.copy()
    owner[part, to], thread[part, to] = blocks, threads
    places = np.zeros((), int)  # in memory, of each number
    for size, stride in zip(result.shape, result.strides, strict=True):
        places = places[..., None] + np.arange(size) * (stride // result.itemsize)
    return owner[:, places], thread[:, places], stores


def _sums(launch: Launch, parts: Pointer, words: Array) -> tuple[Array, Array]:
    """Of words of the array `parts`, which number of the result they are summed into, -1 for none,
    and as which part; `launch` adds them up, a thread a number."""
    loaded, readers = launch.gathered("global load")
    stored, writers = launch.gathered("global store")
    target = np.full(int(max(readers.max(), writers.max())) + 1, -1)
    target[writers] = stored - launch.pointer(int(stored[0])).first
    here = (loaded >= parts.first) & (loaded < parts.first + parts.words.size)
    loaded, sums = loaded[here] - parts.first, target[readers[here]]
    to, part = np.full((2, parts.words.size), -1)
    to[loaded] = sums
    order = np.lexsort((loaded, sums))
    ordered = sums[order]
    part[loaded[order]] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return to[words], part[words]


def _kinds(launch: Launch) -> Array:
    """Of each instruction that the block ran, its index in KINDS."""
    from gpuconv.emulator.compiler import classify

    def kind(instruction: Any) -> str:
        if instruction.op == "cp":
            return next((k for k in ("commit", "wait") if instruction.has(f"{k}_group")), "copy")
        if instruction.op == "bar":
            return "other" if instruction.has("warp") else "barrier"
        verb, _, space = classify(instruction).partition(".")  # "load.shared", "float"
        what = "math" if verb == "float" else f"{space} {verb}"
        return what if what in KINDS else "other"

    table = np.array([KINDS.index(kind(instruction)) for instruction in launch.program.code])
    return table[np.concatenate(launch.pcs)].astype(np.int8)


def _sources(launch: Launch, inputs: tuple[Array, Array]) -> Any:
    """words -> the numbers' indices in both inputs, raveled, one after the other; below 0: none."""
    values = np.concatenate([array.ravel() for array in inputs])
    order = np.argsort(values)
    ordered = values[order]

    def source(words: Array) -> Array:
        array = launch.pointer(int(words[0]))
        held = array.words[words - array.first]
        at = np.searchsorted(ordered, held).clip(0, len(ordered) - 1)
        return np.where(ordered[at] == held, order[at], -1)

    return source
