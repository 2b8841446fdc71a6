"""The program `gpuconv`: train | eval | predict | summary | explain | viz | kernels | doctor.

Results go to standard output, progress and errors to standard error. A problem the user can mend is
one line there and exit status 1; a wrong command line is status 2.
"""

import json
import os
import sys
import warnings
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

import gpuconv
from gpuconv import doctor as checks, models, run as runs
from gpuconv.backends import BACKENDS, backend, host_backend, resolve_device
from gpuconv.command import one_line_errors
from gpuconv.errors import ArgumentError
from gpuconv.run import Config
from gpuconv.viz import arguments
from gpuconv.viz.program_models import app as viz

app = typer.Typer(
    name="gpuconv",
    help="Convolutional neural networks with kernels written in Python.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Backend = Annotated[
    str,
    typer.Option(
        "--backend", help=f"Who computes: auto, {', '.join(BACKENDS)}.", show_default=True
    ),
]


def choose(name: str) -> tuple[AbstractContextManager[Any], str]:
    """(a block that computes so, the device) of a --backend option; says what "auto" took."""
    if name == "auto":
        device = resolve_device("auto")
        name = "cuda" if device == "cuda" else host_backend().name
        print(f"computing with {name} on {device}", file=sys.stderr)
    return backend(name), "cuda" if name == "cuda" else "cpu"


@app.command()
@one_line_errors
def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(runs.DATASETS)}, or a folder: of one folder of images a class, or of "
            f"train/ and test/ with such."
        ),
    ] = Config.data,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(models.NAMES)}.")] = Config.model,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = Config.epochs,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = Config.batch_size,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = Config.lr,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = Config.weight_decay,
    augment: Annotated[
        bool, typer.Option(help="Random flips and shifts of the training images.")
    ] = Config.augment,
    image_size: Annotated[
        int, typer.Option(help="Height and width for images from a folder.")
    ] = Config.image_size[0],
    limit: Annotated[
        int | None, typer.Option(help="Use at most so many training and test images.")
    ] = Config.limit,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = Config.seed,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/MODEL-DATA if not given.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is in the folder.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this folder (from its last/; RUN/best works too)."
        ),
    ] = None,
    compute: Backend = "auto",
) -> None:
    """Train a model on images and keep its weights, figures and curves in a run folder."""
    block, device = choose(compute)
    if resume is not None:
        given = sorted(
            name
            for name in context.params
            if name not in ("resume", "compute")
            and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
        )
        if given:
            raise ArgumentError(
                f"--resume goes on as the run was configured; leave out "
                f"{', '.join('--' + name.replace('_', '-') for name in given)}"
            )
    folder = resume or out or Path("runs") / f"{model}-{Path(data).name}"
    try:
        with block:
            if resume is not None:
                history = runs.resume(folder, device)
            else:
                config = Config(
                    data=data,
                    model=model,
                    epochs=epochs,
                    batch_size=batch_size,
                    lr=lr,
                    weight_decay=weight_decay,
                    augment=augment,
                    seed=seed,
                    image_size=(image_size, image_size),
                    limit=limit,
                )
                history = runs.start(config, folder, device, overwrite)
    except KeyboardInterrupt:
        begun = (folder / "config.json").exists()
        hint = f"; go on with: gpuconv train --resume {folder}" if begun else ""
        print(f"\nstopped{hint}", file=sys.stderr)
        raise typer.Exit(130) from None
    last, best = history.rows[-1], history.best("valid_accuracy")
    seconds = sum(row["seconds"] for row in history.rows)
    print(
        f"test accuracy {last['valid_accuracy']:.4f} after the last epoch "
        f"({best['valid_accuracy']:.4f} in the best, {best['epoch']} of {last['epoch']}); "
        f"{seconds:.1f} s; saved in {folder}"
    )


@app.command("eval")
@one_line_errors
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[
        str | None, typer.Option(help="Other data than the run's; its test part is used.")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="last, or best: chosen on these images, so optimistic.")
    ] = "last",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    compute: Backend = "auto",
) -> None:
    """Evaluate a run's model on its test data."""
    block, device = choose(compute)
    with block:
        result = runs.evaluate(folder, device, data, checkpoint)
    if as_json:
        print(json.dumps(result))
    else:
        print(
            f"test accuracy {result['accuracy']:.4f}, loss {result['loss']:.4f} "
            f"on {result['images']} images of {result['data']}"
        )


@app.command()
@one_line_errors
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    run: Annotated[Path, typer.Option(help="A run folder.")],
    top: Annotated[int, typer.Option(help="How many classes to print.", min=1)] = 3,
    invert: Annotated[
        bool, typer.Option(help="Swap light and dark (for dark things on a light ground).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    compute: Backend = "auto",
) -> None:
    """Say what is on images, by a run's best model."""
    block, device = choose(compute)
    with block:
        rows = runs.predict(folder=run, paths=images, device=device, invert=invert)
    for path, row in zip(images, rows, strict=True):
        ranked = sorted(row.items(), key=lambda item: -item[1])[:top]
        if as_json:
            print(json.dumps({"image": str(path), "classes": dict(ranked)}))
        else:
            print(f"{path}: " + ", ".join(f"{name} {p:.3f}" for name, p in ranked))


@app.command()
@one_line_errors
def summary(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(models.NAMES)}.")],
    input: Annotated[str, typer.Option(help="CxHxW, or NxCxHxW.")] = "1x28x28",
    classes: Annotated[int, typer.Option(help="Output classes.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a model's layers: shapes, parameters, work, memory, receptive field."""
    try:
        shape = tuple(int(part) for part in input.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise ArgumentError(f"--input {input!r} is no shape; write CxHxW, as in 3x32x32")
    table = gpuconv.summary(models.for_images(model, classes, shape[-3:]), shape)
    print(json.dumps(table.to_dict(), indent=2) if as_json else str(table))


@app.command()
@one_line_errors
def explain(
    input: Annotated[str, typer.Option(help="The image's size: HxW, or one number.")],
    kernel: Annotated[str, typer.Option(help="Its size: HxW, or one number.")],
    stride: Annotated[
        str | None, typer.Option(help="A number, or HxW; 1 if not given, for pooling the kernel.")
    ] = None,
    padding: Annotated[
        str, typer.Option(help="1, 1x2 (HxW), 0:1x2:1 (top:bottom x left:right), same or valid.")
    ] = "0",
    dilation: Annotated[str, typer.Option(help="A number, or HxW.")] = "1",
    channels: Annotated[int, typer.Option(help="Of the input.")] = 1,
    filters: Annotated[
        int | None, typer.Option(help="Channels of the output; by default one a group.")
    ] = None,
    groups: Annotated[int, typer.Option(help="Groups of channels.")] = 1,
    bias: Annotated[bool, typer.Option(help="One bias a filter.")] = True,
    pooling: Annotated[bool, typer.Option("--pooling", help="A pooling instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say the arithmetic of a convolution: sizes, padding, what is dropped, parameters, work."""
    found = gpuconv.explain.arithmetic(
        arguments.sizes("--input", input),
        arguments.sizes("--kernel", kernel),
        None if stride is None else arguments.sizes("--stride", stride),
        arguments.padding("--padding", padding),
        arguments.sizes("--dilation", dilation),
        channels=channels,
        filters=filters,
        groups=groups,
        bias=bias,
        pooling=pooling,
    )
    print(json.dumps(found.to_dict(), indent=2) if as_json else str(found))


@app.command()
@one_line_errors
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what works on this machine; status 1 if something that should does not."""
    report = checks.examine()
    failed, works = any(check.status == "FAILED" for check in report), checks.works(report)
    if as_json:
        found = {"ok": not failed, "works": works, "checks": [asdict(check) for check in report]}
        print(json.dumps(found, indent=2))
    else:
        for one in report:
            print(f"{one.status:7} {one.name:23} {one.detail}")
        print(f"works here: {works}")
    if failed:
        raise typer.Exit(1)


kernels = typer.Typer(help="Study the CUDA kernels, with no GPU.", no_args_is_help=True)
app.add_typer(kernels, name="kernels")
Name = Annotated[str, typer.Argument(help="A kernel, or a family of them.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def commands() -> Any:
    """Imported when it is called: it imports Numba, which the other commands do without."""
    return import_module("gpuconv.study.commands")


@kernels.command("list")
@one_line_errors
def list_kernels(as_json: Json = False) -> None:
    """Print every kernel there is."""
    commands().list_kernels(as_json)


@kernels.command()
@one_line_errors
def inspect(
    name: Name,
    arch: Annotated[str, typer.Option(help="sm_75, sm_80, sm_86, sm_89, sm_90, ...")] = "sm_90",
    show_sass: Annotated[
        bool, typer.Option("--sass", help="Print the machine code; | marks the inner loop.")
    ] = False,
    show_ptx: Annotated[bool, typer.Option("--ptx", help="Print the PTX.")] = False,
    as_json: Json = False,
) -> None:
    """Compile a kernel, with no GPU: what it needs, and what its inner loop consists of."""
    commands().inspect(name, arch, show_sass, show_ptx, as_json)


@kernels.command()
@one_line_errors
def build(
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Kernels or families; all if not given.", show_default=False),
    ] = None,
    arch: Annotated[str, typer.Option(help="Architectures, with commas between.")] = "sm_80,sm_90",
    jobs: Annotated[int, typer.Option(help="Compile so many at a time.", min=1)] = os.cpu_count()
    or 1,
) -> None:
    """Compile kernels for machines with no compiler: set GPUCONV_KERNELS to the folder there."""
    commands().build(out, names, arch, jobs)


@kernels.command()
@one_line_errors
def check(
    name: Name,
    arch: Annotated[
        str | None,
        typer.Option(
            help="Whose PTX to run: sm_80 if not given, or the kernel's own.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a kernel in the emulator, with every check, on small problems; status 1 if one fails."""
    commands().check(name, arch, as_json)


app.add_typer(viz, name="viz")


def version(wanted: bool) -> None:
    if wanted:
        print(f"gpuconv {gpuconv.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=version, is_eager=True)
    ] = False,
) -> None:
    """Convolutional neural networks with kernels written in Python."""


def main() -> None:
    """Run the program on the command line's arguments; does not return."""
    # Pillow warns of large images before our one line about them.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    app()
