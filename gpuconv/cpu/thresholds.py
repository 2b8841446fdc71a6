"""Where Winograd's algorithm is faster than sums of products: measured by `bench.thresholds`.

`TILES[which]` has, for the lesser of the input and output channels, how many tiles of 4 x 4 outputs
a problem must have (images times rows times columns of tiles). Measured on an AVX-512 processor,
2 threads; the balance is about the same on others, for both algorithms are bound by products.
"""

from gpuconv.shapes import ConvSpec

TILES: dict[str, dict[int, int]] = {
    "forward": {16: 49, 32: 32, 64: 4, 128: 4, 256: 4, 512: 16},
    "grad_input": {16: 49, 32: 32, 64: 16, 128: 4, 256: 4, 512: 4},
    "grad_weight": {16: 16, 32: 16, 64: 16, 128: 16, 256: 16, 512: 16},
}
SIDE = 4  # of a tile of outputs


def winograd(which: str, spec: ConvSpec) -> tuple[bool, str]:
    """Whether Winograd's algorithm is the faster one, and why, in words."""
    rows, columns = (-(-n // SIDE) for n in _tiled(which, spec))
    tiles, channels = spec.x_shape[0] * rows * columns, min(spec.x_shape[1], spec.w_shape[0])
    fitting = [bound for bound in TILES[which] if bound <= channels]
    if not fitting:
        least = min(TILES[which])
        return False, f"winograd pays from {least} channels, here are {channels}"
    needed = TILES[which][max(fitting)]
    said = f"{tiles} tiles of 4x4 outputs with {channels} channels, winograd pays from {needed}"
    return tiles >= needed, said


def _tiled(which: str, spec: ConvSpec) -> tuple[int, ...]:
    """The spatial size of what comes in tiles of 4 x 4."""
    return (spec.x_shape if which == "grad_input" else spec.y_shape)[2:]
