"""The commands `gpuconv viz ...`: options to arguments, and one line that says what was written.

Nothing that draws is imported before a command runs.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gpuconv import models
from gpuconv.command import one_line_errors
from gpuconv.errors import ArgumentError
from gpuconv.shapes import PADDING_MODES

app = typer.Typer(
    help="Draw the convolution: pictures of what the library computes.", no_args_is_help=True
)
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The file to write; by default named for the command."),
]


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
    stride: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    padding: Annotated[
        str, typer.Option(help="1, 1x2 (HxW), 0:1x2:1 (top:bottom x left:right), same or valid.")
    ] = "0",
    dilation: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    padding_mode: Annotated[
        str, typer.Option(help=f"What the padding holds: {', '.join(PADDING_MODES)}.")
    ] = "zeros",
    bias: Annotated[float, typer.Option(help="Added to every sum.")] = 0.0,
    size: Annotated[str | None, typer.Option(help="HxW that an image file is resized to.")] = None,
    seed: Annotated[int, typer.Option(help="Decides numbers that are not given.", min=0)] = 0,
    frame: Annotated[
        int | None, typer.Option(help="Draw this output position only, counted from 1 (PNG).")
    ] = None,
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
        arguments.image("--image", image or "5x5")
        if values is None
        else arguments.numbers("--values", values),
        given,
        preset=preset,
        stride=arguments.sizes("--stride", stride),
        padding=arguments.padding("--padding", padding),
        dilation=arguments.sizes("--dilation", dilation),
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
    kernel: Annotated[str, typer.Option(help="Its size: HxW, or one number.")] = "3",
    filters: Annotated[int, typer.Option(help="How many: each gives a map.", min=1)] = 2,
    stride: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    padding: Annotated[
        str, typer.Option(help="1, 1x2 (HxW), 0:1x2:1 (top:bottom x left:right), same or valid.")
    ] = "0",
    dilation: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    padding_mode: Annotated[
        str, typer.Option(help=f"What the padding holds: {', '.join(PADDING_MODES)}.")
    ] = "zeros",
    bias: Annotated[
        str | None, typer.Option(help="One number a filter, as in '1 0'; small ones by default.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="HxW that an image file is resized to.")] = None,
    seed: Annotated[int, typer.Option(help="Decides numbers that are not given.", min=0)] = 0,
    frame: Annotated[
        int | None, typer.Option(help="Draw this output position only, counted from 1 (PNG).")
    ] = None,
    out: Out = None,
) -> None:
    """Animate how channels add up to maps: a kernel for each, and filters (GIF, HTML, PNG)."""
    from gpuconv.viz import arguments, channels as draw

    picture = draw(
        arguments.image("--image", image, axes=3),
        arguments.sizes("--kernel", kernel),
        filters,
        stride=arguments.sizes("--stride", stride),
        padding=arguments.padding("--padding", padding),
        dilation=arguments.sizes("--dilation", dilation),
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
    image: Annotated[str, typer.Option(help="The input's size, HxW.")] = "5x5",
    kernel: Annotated[str, typer.Option(help="Its size: HxW, or one number.")] = "3",
    stride: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    padding: Annotated[
        str, typer.Option(help="1, 1x2 (HxW), 0:1x2:1 (top:bottom x left:right), same or valid.")
    ] = "0",
    dilation: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    of: Annotated[str, typer.Option(help="The gradient by what: input or weight.")] = "input",
    seed: Annotated[int, typer.Option(help="Decides the numbers.", min=0)] = 0,
    frame: Annotated[
        int | None, typer.Option(help="Draw this position only, counted from 1 (PNG).")
    ] = None,
    out: Out = None,
) -> None:
    """Animate a gradient of a convolution: by input or by weight, with every sum written out."""
    from gpuconv.viz import arguments, backward as draw

    picture = draw(
        arguments.sizes("--image", image),
        arguments.sizes("--kernel", kernel),
        stride=arguments.sizes("--stride", stride),
        padding=arguments.padding("--padding", padding),
        dilation=arguments.sizes("--dilation", dilation),
        of=of,
        seed=seed,
        frame=frame,
    )
    write(picture, out, "backward.gif" if frame is None else "backward.png")


@app.command()
@one_line_errors
def coverage(
    image: Annotated[str, typer.Option(help="The input's size, HxW.")] = "7x7",
    kernel: Annotated[str, typer.Option(help="Its size: HxW, or one number.")] = "3",
    stride: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    padding: Annotated[
        str, typer.Option(help="1, 1x2 (HxW), 0:1x2:1 (top:bottom x left:right), same or valid.")
    ] = "0",
    dilation: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    out: Out = None,
) -> None:
    """Draw how often each pixel is used; warns of rows and columns that never are (PNG)."""
    from gpuconv.viz import arguments, visits

    seen = visits.visits(
        arguments.sizes("--image", image),
        arguments.sizes("--kernel", kernel),
        stride=arguments.sizes("--stride", stride),
        padding=arguments.padding("--padding", padding),
        dilation=arguments.sizes("--dilation", dilation),
    )
    write(visits.draw(seen), out, "coverage.png")
    if seen.warning:
        print(f"gpuconv: warning: {seen.warning}", file=sys.stderr)


@app.command()
@one_line_errors
def tile(
    image: Annotated[str, typer.Option(help="The input's size, HxW.")] = "16x16",
    channels: Annotated[int, typer.Option(help="Of the input.", min=1)] = 16,
    filters: Annotated[int, typer.Option(help="Output channels.", min=1)] = 32,
    kernel: Annotated[str, typer.Option(help="Its size: HxW, or one number.")] = "3",
    stride: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    padding: Annotated[
        str, typer.Option(help="1, 1x2 (HxW), 0:1x2:1 (top:bottom x left:right), same or valid.")
    ] = "0",
    dilation: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
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
        stride=arguments.sizes("--stride", stride),
        padding=arguments.padding("--padding", padding),
        dilation=arguments.sizes("--dilation", dilation),
        batch=batch,
        algo=algo,
        which=which,
        channels_last=not nchw,
        block=block,
    )
    write(picture, out, "tile.png")


@app.command("receptive-field")
@one_line_errors
def receptive_field(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(models.NAMES)}.")],
    input: Annotated[str, typer.Option(help="CxHxW.")] = "1x28x28",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="A layer by name; may be given again. By default those that see more."),
    ] = None,
    out: Out = None,
) -> None:
    """Draw what the layers of a model see of the input: what could matter, and what does (PNG)."""
    from gpuconv.viz import arguments, receptive_field as draw

    size = arguments.sizes("--input", input, axes=3)
    write(draw(model, size, layer), out, "receptive-field.png")


@app.command()
@one_line_errors
def matrix(
    image: Annotated[str, typer.Option(help="The input's size, HxW.")] = "4x4",
    kernel: Annotated[str, typer.Option(help="Its size: HxW, or one number.")] = "3",
    stride: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    padding: Annotated[
        str, typer.Option(help="1, 1x2 (HxW), 0:1x2:1 (top:bottom x left:right), same or valid.")
    ] = "0",
    dilation: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    out: Out = None,
) -> None:
    """Draw the convolution as a matrix, beside a dense layer of the same size (PNG)."""
    from gpuconv.viz import arguments, matrix as draw

    picture = draw(
        arguments.sizes("--image", image),
        arguments.sizes("--kernel", kernel),
        stride=arguments.sizes("--stride", stride),
        padding=arguments.padding("--padding", padding),
        dilation=arguments.sizes("--dilation", dilation),
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
    out: Out = None,
) -> None:
    """Draw a photo before and after a convolution with a known kernel, or your own."""
    from gpuconv.viz import apply as draw, arguments

    if kernel is not None and kernel_values is not None:
        raise ArgumentError("--kernel and --kernel-values were both given; leave one of them out")
    used: Any = kernel or "sobel"
    if kernel_values is not None:
        used = arguments.numbers("--kernel-values", kernel_values)
    write(draw(photo, used, longest=longest), out, "apply.png")


Saved = Annotated[
    Path,
    typer.Argument(
        metavar="SAVED",
        help="A run folder, its last or best, or a safetensors file (--model).",
    ),
]
Photo = Annotated[Path, typer.Option("--image", help="An image file.", show_default=False)]
Invert = Annotated[
    bool, typer.Option(help="Swap light and dark (for dark things on a light ground).")
]
Layer = Annotated[str | None, typer.Option(help="A layer's dotted name.")]
Checkpoint = Annotated[str, typer.Option(help="Of a run folder: best or last.")]
Model = Annotated[
    str | None, typer.Option(help=f"Of a safetensors file: one of {', '.join(models.NAMES)}.")
]
Size = Annotated[str | None, typer.Option(help="Of its images: HxW.")]
Numbers = Annotated[
    str | None, typer.Option(help="Its images were normalised so: numbers, one a channel.")
]
Most = Annotated[int, typer.Option(help="Draw at most so many.", min=1, max=256)]


def read_saved(
    path: Path,
    checkpoint: str,
    model: str | None,
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> tuple[Any, Any]:
    """(config, model) of what `Saved` and the options after it name."""
    from gpuconv.viz import arguments, read_model

    pixels: Any = None if size is None else arguments.sizes("--size", size)
    return read_model(
        path,
        checkpoint,
        model=model,
        size=pixels,
        mean=None if mean is None else arguments.numbers("--mean", mean).ravel().tolist(),
        std=None if std is None else arguments.numbers("--std", std).ravel().tolist(),
    )


@app.command()
@one_line_errors
def filters(
    saved: Saved,
    layer: Layer = None,
    most: Most = 16,
    checkpoint: Checkpoint = "best",
    model: Model = None,
    out: Out = None,
) -> None:
    """Draw the filters of a layer, by default the first convolution."""
    from gpuconv.viz import filters as draw

    _, net = read_saved(saved, checkpoint, model)
    write(draw(net, layer, most=most), out, "filters.png")


@app.command()
@one_line_errors
def features(
    saved: Saved,
    image: Photo,
    layer: Layer = None,
    most: Most = 16,
    invert: Invert = False,
    checkpoint: Checkpoint = "best",
    model: Model = None,
    size: Size = None,
    mean: Numbers = None,
    std: Numbers = None,
    out: Out = None,
) -> None:
    """Draw what a layer, by default the first convolution, makes of a photo."""
    from gpuconv.viz import features as draw, read_photo

    config, net = read_saved(saved, checkpoint, model, size, mean, std)
    x, shown = read_photo(config, image, invert)
    write(draw(net, x, layer, most=most, image=shown), out, "features.png")


@app.command()
@one_line_errors
def cam(
    saved: Saved,
    image: Photo,
    layer: Layer = None,
    target: Annotated[
        str | None, typer.Option("--class", help="A class's name; by default the predicted one.")
    ] = None,
    invert: Invert = False,
    checkpoint: Checkpoint = "best",
    model: Model = None,
    size: Size = None,
    mean: Numbers = None,
    std: Numbers = None,
    out: Out = None,
) -> None:
    """Draw where in a photo a model sees a class (Grad-CAM), by default at its last convolution."""
    from gpuconv.viz import cam as draw, read_photo

    config, net = read_saved(saved, checkpoint, model, size, mean, std)
    x, shown = read_photo(config, image, invert)
    write(draw(net, x, layer, target, classes=config.classes, image=shown), out, "cam.png")


Run = Annotated[Path, typer.Argument(help="A run folder.")]
Data = Annotated[str | None, typer.Option(help="Other data than the run's; its test part is used.")]


@app.command()
@one_line_errors
def curves(run: Run, out: Out = None) -> None:
    """Draw a run's loss, accuracy and learning rate over its epochs."""
    from gpuconv.viz import curves as draw

    write(draw(run), out, "curves.png")


@app.command()
@one_line_errors
def confusion(
    run: Run, data: Data = None, checkpoint: Checkpoint = "last", out: Out = None
) -> None:
    """Draw the confusion matrix of a run's model on its test data."""
    from gpuconv.viz import confusion as draw

    write(draw(run, data, checkpoint), out, "confusion.png")


@app.command()
@one_line_errors
def mistakes(
    run: Run,
    data: Data = None,
    checkpoint: Checkpoint = "last",
    most: Annotated[int, typer.Option(help="Draw at most so many.", min=1, max=100)] = 12,
    out: Out = None,
) -> None:
    """Draw the test images that a run's model gets most wrong: true and predicted class."""
    from gpuconv.viz import mistakes as draw

    write(draw(run, data, checkpoint, most=most), out, "mistakes.png")
