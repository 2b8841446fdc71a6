"""The commands `gpuconv viz ...` of trained models, and of runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gpuconv import models
from gpuconv.command import one_line_errors
from gpuconv.viz.program import Still, app, write

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
    out: Still = None,
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
    out: Still = None,
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
    out: Still = None,
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
def curves(run: Run, out: Still = None) -> None:
    """Draw a run's loss, accuracy and learning rate over its epochs."""
    from gpuconv.viz import curves as draw

    write(draw(run), out, "curves.png")


@app.command()
@one_line_errors
def confusion(
    run: Run, data: Data = None, checkpoint: Checkpoint = "last", out: Still = None
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
    out: Still = None,
) -> None:
    """Draw the test images that a run's model gets most wrong: true and predicted class."""
    from gpuconv.viz import mistakes as draw

    write(draw(run, data, checkpoint, most=most), out, "mistakes.png")


@app.command("receptive-field")
@one_line_errors
def receptive_field(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(models.NAMES)}.")],
    input: Annotated[str, typer.Option(help="CxHxW.")] = "1x28x28",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="A layer by name; may be given again. By default those that see more."),
    ] = None,
    out: Still = None,
) -> None:
    """Draw what the layers of a model see of the input: what could matter, and what does (PNG)."""
    from gpuconv.viz import arguments, receptive_field as draw

    size = arguments.sizes("--input", input, axes=3)
    write(draw(model, size, layer), out, "receptive-field.png")
