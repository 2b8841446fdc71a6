"""How shapes, settings and places are written, wherever they are: in `explain` and in pictures."""

from collections.abc import Sequence

from gpuconv.shapes import ConvSpec, Ints, Pads, PoolSpec


def shape(value: Sequence[int]) -> str:
    """A shape: 5 x 5."""
    return " x ".join(map(str, value))


def short(value: Sequence[int]) -> str:
    """A number an axis, once if it is the same: 2, or 2 x 1."""
    return shape(value[:1] if len(set(value)) == 1 else value)


def count(value: int, noun: str) -> str:
    """How many of something: 1 filter, 2 filters."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def padding(pads: Pads) -> str:
    """What is added (before, after) to height and width, below 0 cut off: padding top 1, left 2."""
    sides = [n for pair in pads for n in pair]
    if len(set(sides)) == 1:
        n = sides[0]
        return f"padding {n}" if n > 0 else f"cut off {-n}" if n else "no padding"
    named = list(zip(("top", "bottom", "left", "right"), sides, strict=True))
    added = ", ".join(f"{side} {n}" for side, n in named if n > 0)
    cut = ", ".join(f"{side} {-n}" for side, n in named if n < 0)
    return "; ".join([f"padding {added}"] * bool(added) + [f"cut off {cut}"] * bool(cut))


def settings(spec: ConvSpec | PoolSpec) -> str:
    """A layer's settings: kernel 3 x 3, stride 2, padding 1."""
    words = [f"kernel {shape(spec.kernel)}", f"stride {short(spec.stride)}", padding(spec.padding)]
    if max(spec.dilation) > 1:
        words.append(f"dilation {short(spec.dilation)}")
    if isinstance(spec, ConvSpec) and spec.groups > 1:
        words.append(f"{spec.groups} groups")
    return ", ".join(words)


def lines(axes: Sequence[Ints]) -> str:
    """Rows and columns: rows 3 to 5 and column 31; empty if there are none."""
    named = zip(("row", "column"), axes, strict=True)
    return " and ".join(f"{name}{'s' * (len(n) > 1)} {ranges(n)}" for name, n in named if n)


def ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers, those in a row joined: 0 to 2, 5; of many parts only the first."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1][1:] = [n]
        elif len(parts) == 6:
            break
        else:
            parts.append([n])
    words = [" to ".join(map(str, part)) for part in parts[:5]]
    return ", ".join([*words, "..."] if len(parts) > 5 else words)
