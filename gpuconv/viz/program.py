"""The commands `gpuconv viz ...` of a convolution: options to arguments, then what was written.

Those of models and runs are in `program_models`.

Nothing that draws is imported before a command runs.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gpuconv.command import one_line_errors
from gpuconv.errors import ArgumentError
from gpuconv.shapes import PADDING_MODES

app = typer.Typer(
    help="Draw the convolution: pictures of what the library computes.", no_args_is_help=True
)


@one_line_errors
def _check(path: Path, moving: bool) -> None:
    from gpuconv.viz.style import check_target

    check_target(path, moving)


def out_option(moving: bool) -> Any:
    """The option `--out`, which is looked at before any work is done."""

    def checked(path: Path | None) -> Path | None:
        if path is not None:
            _check(path, moving)
        return path

    words = "The file to write; by default named for the command."
    return typer.Option("--out", "-o", help=words, callback=checked)


Out = Annotated[Path | None, out_option(moving=True)]
Still = Annotated[Path | None, out_option(moving=False)]
InputSize = Annotated[str, typer.Option(help="The input's size, HxW.")]
KernelSize = Annotated[str, typer.Option(help="Its size: HxW, or one number.")]
Stride = Annotated[str, typer.Option(help="A number, or HxW.")]
Dilation = Annotated[str, typer.Option(help="A number, or HxW.")]
Pad = Annotated[
    str, typer.Option(help="1, 1x2 (HxW), 0:1x2:1 (top:bottom x left:right), same or valid.")
]
Mode = Annotated[str, typer.Option(help=f"What the padding holds: {', '.join(PADDING_MODES)}.")]
Resize = Annotated[str | None, typer.Option(help="HxW that an image file is resized to.")]
Seed = Annotated[int, typer.Option(help="Decides numbers that are not given.", min=0)]
Frame = Annotated[int | None, typer.Option(help="Draw this position only, counted from 1 (PNG).")]


def geometry(stride: str, padding: str, dilation: str) -> dict[str, Any]:
    """The options as the functions take them."""
    from gpuconv.viz import arguments

    return {
        "stride": arguments.sizes("--stride", stride),
        "padding": arguments.padding("--padding", padding),
        "dilation": arguments.sizes("--dilation", dilation),
    }


def write(picture: Any, out: Path | None, default: str) -> None:
    """Save, and say where."""
    from gpuconv.viz.style import save

    path = out if out is not None else Path(default)
    save(picture, path)
    print(path)


@app.command()
@one_line_errors
def conv(
    image: Annotated[
        str | None, typer.Option(help="The input: a size HxW (5x5), or an image file.")
    ] = None,
    kernel: Annotated[str | None, typer.Option(help="Its size: HxW, or one number (3).")] = None,
    preset: Annotated[
        str | None, typer.Option(help="A named kernel: edge, blur, sharpen, sobel or sobel-y.")
    ] = None,
    values: Annotated[
        str | None, typer.Option(help="The input's own numbers, as in '1 2 3; 4 5 6'.")
    ] = None,
    kernel_values: Annotated[str | None, typer.Option(help="The kernel's own numbers.")] = None,
    stride: Stride = "1",
    padding: Pad = "0",
    dilation: Dilation = "1",
    padding_mode: Mode = "zeros",
    bias: Annotated[float, typer.Option(help="Added to every sum.")] = 0.0,
    size: Resize = None,
    seed: Seed = 0,
    frame: Frame = None,
    out: Out = None,
) -> None:
    """Animate a kernel sliding over an image, with every product and sum (GIF, HTML, PNG)."""
    from gpuconv.viz import arguments, conv as draw

    for one, other in (
        (("--image", image), ("--values", values)),
        (("--kernel", kernel), ("--kernel-values", kernel_values)),
        (("--preset", preset), ("--kernel-values", kernel_values)),
    ):
        if one[1] is not None and other[1] is not None:
            raise ArgumentError(f"{one[0]} and {other[0]} say the same thing: give one of them")
    given: Any = None
    if kernel_values is not None:
        given = arguments.numbers("--kernel-values", kernel_values)
    elif kernel is not None:
        given = arguments.sizes("--kernel", kernel)
    picture = draw(
        arguments.image("--image", "5x5" if image is None else image)
        if values is None
        else arguments.numbers("--values", values),
        given,
        preset=preset,
        **geometry(stride, padding, dilation),
        padding_mode=padding_mode,
        bias=bias,
        size=None if size is None else arguments.sizes("--size", size),
        seed=seed,
        frame=frame,
    )
    write(picture, out, "conv.gif" if frame is None else "conv.png")


@app.command()
@one_line_errors
def channels(
    image: Annotated[
        str, typer.Option(help="The input: a size CxHxW, or an image file (RGB).")
    ] = "3x5x5",
    kernel: KernelSize = "3",
    filters: Annotated[int, typer.Option(help="How many: each gives a map.", min=1)] = 2,
    stride: Stride = "1",
    padding: Pad = "0",
    dilation: Dilation = "1",
    padding_mode: Mode = "zeros",
    bias: Annotated[
        str | None, typer.Option(help="One number a filter, as in '1 0'; small ones by default.")
    ] = None,
    size: Resize = None,
    seed: Seed = 0,
    frame: Frame = None,
    out: Out = None,
) -> None:
    """Animate how channels add up to maps: a kernel for each, and filters (GIF, HTML, PNG)."""
    from gpuconv.viz import arguments, channels as draw

    picture = draw(
        arguments.image("--image", image, axes=3),
        arguments.sizes("--kernel", kernel),
        filters,
        **geometry(stride, padding, dilation),
        padding_mode=padding_mode,
        bias=None if bias is None else arguments.numbers("--bias", bias).ravel(),
        size=None if size is None else arguments.sizes("--size", size),
        seed=seed,
        frame=frame,
    )
    write(picture, out, "channels.gif" if frame is None else "channels.png")


@app.command()
@one_line_errors
def backward(
    image: InputSize = "5x5",
    kernel: KernelSize = "3",
    stride: Stride = "1",
    padding: Pad = "0",
    dilation: Dilation = "1",
    of: Annotated[str, typer.Option(help="The gradient by what: input or weight.")] = "input",
    seed: Seed = 0,
    frame: Frame = None,
    out: Out = None,
) -> None:
    """Animate a gradient of a convolution: by input or by weight, with every sum written out."""
    from gpuconv.viz import arguments, backward as draw

    picture = draw(
        arguments.sizes("--image", image),
        arguments.sizes("--kernel", kernel),
        **geometry(stride, padding, dilation),
        of=of,
        seed=seed,
        frame=frame,
    )
    write(picture, out, "backward.gif" if frame is None else "backward.png")


@app.command()
@one_line_errors
def coverage(
    image: InputSize = "7x7",
    kernel: KernelSize = "3",
    stride: Stride = "1",
    padding: Pad = "0",
    dilation: Dilation = "1",
    out: Still = None,
) -> None:
    """Draw how often each pixel is used; warns of rows and columns that never are (PNG)."""
    from gpuconv.viz import arguments, visits

    seen = visits.visits(
        arguments.sizes("--image", image),
        arguments.sizes("--kernel", kernel),
        **geometry(stride, padding, dilation),
    )
    write(visits.draw(seen), out, "coverage.png")
    if seen.warning:
        print(f"gpuconv: warning: {seen.warning}", file=sys.stderr)


@app.command()
@one_line_errors
def tile(
    image: InputSize = "16x16",
    channels: Annotated[int, typer.Option(help="Of the input.", min=1)] = 16,
    filters: Annotated[int, typer.Option(help="Output channels.", min=1)] = 32,
    kernel: KernelSize = "3",
    stride: Stride = "1",
    padding: Pad = "0",
    dilation: Dilation = "1",
    batch: Annotated[int, typer.Option(help="Images.", min=1)] = 1,
    algo: Annotated[
        str, typer.Option(help="The kernel: tiled, direct, or auto for what the library takes.")
    ] = "tiled",
    which: Annotated[
        str, typer.Option(help="The pass: forward, grad_input or grad_weight.")
    ] = "forward",
    nchw: Annotated[
        bool, typer.Option("--nchw", help="Images lie channel by channel, not channels last.")
    ] = False,
    block: Annotated[int, typer.Option(help="The block to look into.", min=0)] = 0,
    out: Out = None,
) -> None:
    """Trace the GPU kernel of a convolution: blocks, warps, shared memory (PNG; tiled: GIF too)."""
    from gpuconv.viz import arguments, tile as draw

    picture = draw(
        arguments.sizes("--image", image),
        channels,
        filters,
        arguments.sizes("--kernel", kernel),
        **geometry(stride, padding, dilation),
        batch=batch,
        algo=algo,
        which=which,
        channels_last=not nchw,
        block=block,
    )
    write(picture, out, "tile.png")


@app.command()
@one_line_errors
def matrix(
    image: InputSize = "4x4",
    kernel: KernelSize = "3",
    stride: Stride = "1",
    padding: Pad = "0",
    dilation: Dilation = "1",
    out: Still = None,
) -> None:
    """Draw the convolution as a matrix, beside a dense layer of the same size (PNG)."""
    from gpuconv.viz import arguments, matrix as draw

    picture = draw(
        arguments.sizes("--image", image),
        arguments.sizes("--kernel", kernel),
        **geometry(stride, padding, dilation),
    )
    write(picture, out, "matrix.png")


@app.command()
@one_line_errors
def apply(
    photo: Annotated[Path, typer.Argument(help="An image file.")],
    kernel: Annotated[
        str | None, typer.Option(help="edge, blur, sharpen, sobel (the default) or sobel-y.")
    ] = None,
    kernel_values: Annotated[
        str | None, typer.Option(help="Your own: '1 2 1; 0 0 0; -1 -2 -1'.", show_default=False)
    ] = None,
    longest: Annotated[
        int, typer.Option(help="Shrink the photo's longer side to so many pixels.", min=1)
    ] = 480,
    out: Still = None,
) -> None:
    """Draw a photo before and after a convolution with a known kernel, or your own."""
    from gpuconv.viz import apply as draw, arguments

    if kernel is not None and kernel_values is not None:
        raise ArgumentError("--kernel and --kernel-values were both given; leave one of them out")
    used: Any = "sobel" if kernel is None else kernel
    if kernel_values is not None:
        used = arguments.numbers("--kernel-values", kernel_values)
    write(draw(photo, used, longest=longest), out, "apply.png")
