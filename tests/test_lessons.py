"""What `explain` says of layers at random, parsed, against counting taps one by one."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.arithmetic import each_axis, uses
from gpuconv.errors import ArgumentError
from gpuconv.lessons import lessons
from gpuconv.shapes import ConvSpec, PoolSpec
from gpuconv.words import count, lines, settings

Layer = ConvSpec | PoolSpec


def settings_at_random(rng: np.random.Generator) -> Layer | None:
    """A layer, some of its settings rare ones; None if it cannot be computed."""

    def pair(*choice: int) -> tuple[int, int]:
        first, second = (int(n) for n in rng.choice(choice, 2))
        return (first, first) if rng.random() < 0.5 else (first, second)

    c, groups = (int(n) for n in rng.choice([(1, 1), (4, 1), (4, 2), (4, 4)]))
    size, kernel = pair(*range(4, 16)), pair(1, 1, 2, 3, 4, 5, 6, 7)
    stride, dilation = pair(1, 1, 1, 2, 3), pair(1, 1, 1, 2, 3)
    pads: Any = 0 if rng.random() < 0.4 else (pair(0, 1, 2), pair(0, 1, 3))
    try:
        if rng.random() < 0.2:
            return PoolSpec.infer((1, c, *size), kernel, stride, pads, dilation)
        return ConvSpec.infer(
            (1, c, *size), (4, c // groups, *kernel), stride, pads, dilation, groups
        )
    except ArgumentError:
        return None


def read_by(spec: Layer, axis: int, p: int) -> list[int]:
    """The rows (columns) that output row (column) p reads, padding too: its taps, one by one."""
    start = p * spec.stride[axis] - spec.padding[axis][0]
    return [start + tap * spec.dilation[axis] for tap in range(spec.kernel[axis])]


def in_windows(spec: Layer) -> np.ndarray:
    """How many windows read each pixel, window by window and tap by tap: (H, W)."""
    counts = np.zeros(spec.x_shape[2:], int)
    for p, q in np.ndindex(*spec.y_shape[2:]):
        for i in read_by(spec, 0, p):
            for j in read_by(spec, 1, q):
                if 0 <= i < counts.shape[0] and 0 <= j < counts.shape[1]:
                    counts[i, j] += 1
    return counts


def spans(spec: Layer) -> list[int]:
    """How many rows and columns a window spans."""
    reads = [read_by(spec, axis, 0) for axis in (0, 1)]
    return [rows[-1] - rows[0] + 1 for rows in reads]


def parsed(pattern: str, words: str) -> tuple[str, ...]:
    """The groups of a pattern that all of the words must have."""
    found = re.fullmatch(pattern, words)
    assert found, words
    return found.groups()


def check_even(spec: Layer, words: str) -> None:
    pattern = (
        r"a window of (\d+) (row|column)s has no middle one: keeping the size takes (\d+) of "
        r"padding, an odd number, (\d+) before and (\d+) after; output i then reads "
        r"(?:row|column)s (i.*), half a pixel off .*"
    )
    n, name, more, before, after, where = parsed(pattern, words)
    axis = ("row", "column").index(name)
    assert int(n) == spans(spec)[axis]
    assert int(n) % 2 == 0
    assert spec.stride[axis] == 1
    assert int(before) + int(after) == int(more)
    d, size = spec.dilation[axis], spec.x_shape[2 + axis]
    kept = ConvSpec.infer((1, 1, size), (1, 1, spec.kernel[axis]), 1, "same", d)
    assert kept.padding == ((int(before), int(after)),)
    assert kept.y_shape[2] == size
    first, last, step = parsed(r"i(?: - (\d+))? to i \+ (\d+)(?: in steps of (\d+))?", where)
    said = range(-int(first or 0), int(last) + 1, int(step or 1))
    assert list(said) == read_by(kept, 0, 0)


def check_smaller(spec: Layer, words: str) -> None:
    pattern = (
        r"(\d+ x \d+) becomes (\d+ x \d+): with (no|so little) padding a window of (\d+ x \d+) "
        r"takes (.*?)(, and large kernels shrink an image quickly)?"
    )
    old, new, little, window, taken, large = parsed(pattern, words)
    assert old == " x ".join(map(str, spec.x_shape[2:]))
    assert new == " x ".join(map(str, spec.y_shape[2:]))
    assert window == " x ".join(map(str, spans(spec)))
    assert spec.stride == (1, 1)
    assert (little == "no") == (sum(map(sum, spec.padding)) == 0)
    lost = {}
    for part in taken.split(" and "):
        n, name = parsed(r"(\d+) off the (height|width)", part)
        lost[name] = int(n)
    sizes = zip(("height", "width"), spec.x_shape[2:], spec.y_shape[2:], spec.kernel, strict=True)
    shrunk = {name: (n - out, k) for name, n, out, k in sizes if n > out}
    assert lost == {name: n for name, (n, _) in shrunk.items()}
    assert bool(large) == all(k >= 5 for _, k in shrunk.values())


def check_corner(spec: Layer, words: str) -> None:
    pattern = (
        r"what lies in a corner counts for less: the top left pixel is in (\d+) windows?, the "
        r"centre in (\d+)"
    )
    corner, centre = map(int, parsed(pattern, words))
    counts = in_windows(spec)
    assert corner == counts[0, 0]
    assert centre == counts[counts.shape[0] // 2, counts.shape[1] // 2]
    assert max(counts[i, j] for i in (0, -1) for j in (0, -1)) < centre
    # Nowhere else is less than in the corners: it is not the stride or the dilation that does it.
    assert counts.min() == min(counts[i, j] for i in (0, -1) for j in (0, -1))


def check_kernel(spec: Layer, words: str) -> None:
    assert isinstance(spec, ConvSpec)
    r, s = spec.kernel
    plain = spec.stride == spec.dilation == (1, 1)
    if words.startswith("a 1 x 1 kernel sees no neighbours: it "):
        assert r * s == 1
        inputs = spec.x_shape[1] // spec.groups  # that an output has products of
        mixes = re.search(r"it mixes channels, (\d+) to an output$", words)
        assert int(mixes[1]) == inputs > 1 if mixes else words.endswith("it scales each channel")
        assert mixes or inputs == 1
    elif words.startswith("a kernel of "):
        assert 1 in (r, s)
        assert r * s > 1
        pattern = (
            r"a kernel of (\d+ x \d+) sees along one axis only(?:; with one of (\d+) x (\d+) after "
            r"it, that makes a separable (\d+) x (\d+) of (\d+) weights instead of (\d+))?"
        )
        size, *other = parsed(pattern, words)
        assert size == f"{r} x {s}"
        assert (other[0] is not None) == (plain and r * s > 2)
        if other[0]:
            a, b, high, wide, weights, instead = map(int, other)
            together = np.convolve(np.ones(r), np.ones(a)), np.convolve(np.ones(s), np.ones(b))
            assert (high, wide) == tuple(map(len, together))
            assert weights == r * s + a * b < instead == high * wide
    elif words.startswith("each filter sees one channel"):
        assert spec.w_shape[1] == 1 < spec.x_shape[1]
        assert r * s > 1
    else:
        pattern = (
            r"(\d+) layers of 3 x 3 see (\d+) x (\d+) pixels too, with (\d+) weights a pair of "
            r"channels instead of (\d+)"
        )
        n, a, b, weights, instead = map(int, parsed(pattern, words))
        seen = 1
        for _ in range(n):
            seen += 2
        assert plain
        assert (a, b) == (r, s) == (seen, seen)
        assert weights == n * 3 * 3 < instead == r * s


def expected(spec: Layer) -> set[str]:
    """The checks that must find a sentence: by what is known of such layers, not by the code."""
    counts, found = in_windows(spec), set()
    if any(n % 2 == 0 and s == 1 for n, s in zip(spans(spec), spec.stride, strict=True)):
        found.add("check_even")
    if spec.stride == (1, 1):
        if any(n > out for n, out in zip(spec.x_shape[2:], spec.y_shape[2:], strict=True)):
            found.add("check_smaller")
        corners = max(counts[i, j] for i in (0, -1) for j in (0, -1))
        middle = counts[counts.shape[0] // 2, counts.shape[1] // 2]
        if spec.dilation == (1, 1) and corners < middle:
            found.add("check_corner")
    if isinstance(spec, PoolSpec):
        return found
    r, s = spec.kernel
    stack = r == s and r % 2 and r >= 5 and spec.stride == spec.dilation == (1, 1)
    if 1 in (r, s) or stack or (spec.w_shape[1] == 1 < spec.x_shape[1] and r * s > 1):
        found.add("check_kernel")
    return found


def test_every_lesson_is_true_of_its_layer() -> None:
    rng, heard = np.random.default_rng(0), dict.fromkeys(CHECKS.values(), 0)
    for _ in range(1500):
        spec = settings_at_random(rng)
        if spec is None:
            continue
        counts = in_windows(spec)
        rows, columns = uses(spec, 0), uses(spec, 1)
        np.testing.assert_array_equal(np.outer(rows, columns), counts)
        said = set()
        for words in lessons(spec, rows, columns):
            if words.startswith("pooling has nothing to learn"):
                assert isinstance(spec, PoolSpec)
                continue
            check = next(check for start, check in CHECKS.items() if re.match(start, words))
            check(spec, words)
            said.add(check.__name__)
            heard[check] += 1
        assert said == expected(spec), settings(spec)
    assert min(heard.values()) > 50


CHECKS: dict[str, Callable[[Layer, str], None]] = {
    r"a window of": check_even,
    r"\d+ x \d+ becomes": check_smaller,
    r"what lies in a corner": check_corner,
    r"": check_kernel,
}


def test_what_no_window_reads_is_told() -> None:
    rng, gaps, dropped = np.random.default_rng(1), 0, 0
    for _ in range(600):
        spec = settings_at_random(rng)
        if spec is None:
            continue
        for axis, found in enumerate(each_axis(spec)):
            last = read_by(spec, axis, spec.y_shape[2 + axis] - 1)[-1]
            n, name = spec.x_shape[2 + axis], ("row", "column")[axis]
            read = {i for p in range(spec.y_shape[2 + axis]) for i in read_by(spec, axis, p)}
            expected = []
            if over := n + spec.padding[axis][1] - 1 - last:
                pixels = [i for i in range(n) if i > last]
                words = [f"{lines(one_of(axis, pixels))} (from 0) of the image"] if pixels else []
                if rest := over - len(pixels):
                    words.append(f"{count(rest, name)} of padding")
                expected = [f"the floor drops {' and '.join(words)}"]
                dropped += 1
            if between := [i for i in range(n) if i < last and i not in read]:
                verb = "is" if len(between) == 1 else "are"
                expected.append(f"{lines(one_of(axis, between))} (from 0) {verb} stepped over")
                gaps += 1
            assert found.left_out == expected
            assert list(found.unused) == [i for i in range(n) if i not in read]
    assert min(gaps, dropped) > 50


def one_of(axis: int, numbers: list[int]) -> list[tuple[int, ...]]:
    return [tuple(numbers) if axis == i else () for i in (0, 1)]
