"""How exact float32 convolutions must be: one setting of the process, as PyTorch's is."""

from gpuconv.errors import ArgumentError

LEVELS = ("highest", "high", "tf32")
_level = "high"


def set_float32_precision(level: str) -> None:
    """Which algorithms may compute float32 convolutions from now on, in all threads.

    "highest": sums of float32 products only. "high", the default: Winograd's algorithm too, which
    adds and subtracts before it multiplies; float32 throughout, the largest error of a result
    several times as large (mostly 2 to 6 times; more where most of an image is zeros), about 1e-6
    of the largest number. An infinity, or a NaN, makes NaN of all of its tile of 4 x 4 outputs.
    "tf32": products of TF32's 10 bits too, where a kernel uses them; none does yet.
    `gpuconv.explain.conv2d` says what is used. ArgumentError for anything else.
    """
    global _level
    if level not in LEVELS:
        raise ArgumentError(
            f"set_float32_precision: level={level!r} is unknown; use one of {', '.join(LEVELS)}"
        )
    _level = level


def get_float32_precision() -> str:
    """What `set_float32_precision` was given last, "high" at first."""
    return _level
