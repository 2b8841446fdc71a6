"""The options of `gpuconv viz ...`: each one reaches the function that draws, as what it says.

A row runs one command with options that are not their defaults, and says what the functions of
`gpuconv.viz` are called with. An option that no row of its command has, fails.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv.cli import app
from gpuconv.viz import style

pytest.importorskip("matplotlib")
PROGRAM: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = PROGRAM.commands["viz"].commands
CONFIG, NET = SimpleNamespace(classes=("cat", "dog")), object()
X, SHOWN = object(), object()
GIVEN = {"read_model": (CONFIG, NET), "read_photo": (X, SHOWN)}
PADS = "1:2x3:0", ((1, 2), (3, 0))
GEOMETRY = ("--stride", "2x3", "--padding", PADS[0], "--dilation", "5x4")
# What the same options are by default.
ONE = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
READ: dict[str, Any] = {"stride": (2, 3), "padding": PADS[1], "dilation": (5, 4)}
PIXELS = ("--size", "8x9", "--mean", "0.25 0.5", "--std", "1, 2")
MODEL = ("--checkpoint", "last", "--model", "lenet5")
MODEL_READ: dict[str, Any] = {"path": Path("m"), "checkpoint": "last", "model": "lenet5"}
PIXELS_READ = {"size": (8, 9), "mean": [0.25, 0.5], "std": [1.0, 2.0]}
NO_PIXELS = {"size": None, "mean": None, "std": None}


@dataclass
class Row:
    """A command line, the functions that it calls with what, and the file that it then writes.

    A function's arguments that are not named are the function's own defaults.
    """

    command: str
    words: tuple[str, ...]
    calls: dict[str, dict[str, Any]]
    file: str

    def __str__(self) -> str:
        return " ".join((self.command, *self.words))


def row(command: str, *words: str, file: str = "", **arguments: Any) -> Row:
    """Of a command that calls one function of its own name."""
    name = command.replace("-", "_")
    return Row(command, words, {name: arguments}, file or f"{command}.gif")


def of_model(command: str, *words: str, read: Any = NO_PIXELS, **arguments: Any) -> Row:
    """Of a command that reads a model first, and a photo if it has one."""
    calls = {"read_model": MODEL_READ | read}
    if "--image" in words:
        invert = "--invert" in words
        calls["read_photo"] = {"config": CONFIG, "path": Path("p.png"), "invert": invert}
        arguments |= {"x": X, "image": SHOWN}
    calls[command] = {"model": NET, **arguments}
    return Row(command, ("m", *MODEL, *words), calls, f"{command}.png")


ROWS = [
    row("conv", image=(5, 5), kernel=None),
    row(
        "conv", "--image", "6x7", "--kernel", "3x2", *GEOMETRY, "--padding-mode", "reflect",
        "--bias", "1.5", "--seed", "4", "--frame", "2", file="conv.png",
        image=(6, 7), kernel=(3, 2), **READ, padding_mode="reflect", bias=1.5, seed=4, frame=2,
    ),
    row("conv", "--image", "p.png", "--size", "8x9", "--preset", "blur",
        image=Path("p.png"), kernel=None, size=(8, 9), preset="blur"),
    row("conv", "--values", "1 2;3 4", "--kernel-values", "5,6",
        image=[[1.0, 2.0], [3.0, 4.0]], kernel=[[5.0, 6.0]]),
    row("channels", image=(3, 5, 5), kernel=(3, 3), filters=2),
    row(
        "channels", "--image", "2x6x7", "--kernel", "3x2", "--filters", "4", *GEOMETRY,
        "--padding-mode", "circular", "--bias", "1 0.5 2 3", "--seed", "6", "--frame", "2",
        file="channels.png", image=(2, 6, 7), kernel=(3, 2), filters=4, **READ,
        padding_mode="circular", bias=[1.0, 0.5, 2.0, 3.0], seed=6, frame=2,
    ),
    row("channels", "--image", "p.png", "--size", "8x9",
        image=Path("p.png"), kernel=(3, 3), filters=2, size=(8, 9)),
    row("backward", image=(5, 5), kernel=(3, 3)),
    row(
        "backward", "--image", "6x7", "--kernel", "3x2", *GEOMETRY, "--of", "weight",
        "--seed", "6", "--frame", "2", file="backward.png",
        image=(6, 7), kernel=(3, 2), **READ, of="weight", seed=6, frame=2,
    ),
    row("tile", image=(16, 16), channels=16, filters=32, kernel=(3, 3), file="tile.png"),
    row(
        "tile", "--image", "6x7", "--channels", "8", "--filters", "9", "--kernel", "3x2", *GEOMETRY,
        "--batch", "10", "--algo", "direct", "--which", "grad_weight", "--nchw", "--block", "11",
        file="tile.png", image=(6, 7), channels=8, filters=9, kernel=(3, 2), **READ, batch=10,
        algo="direct", which="grad_weight", channels_last=False, block=11,
    ),
    row("matrix", image=(4, 4), kernel=(3, 3), file="matrix.png"),
    row("matrix", "--image", "6x7", "--kernel", "3x2", *GEOMETRY, file="matrix.png",
        image=(6, 7), kernel=(3, 2), **READ),
    row("apply", "p.png", file="apply.png", image=Path("p.png"), kernel="sobel", longest=480),
    row("apply", "p.png", "--kernel", "blur", "--longest", "99", file="apply.png",
        image=Path("p.png"), kernel="blur", longest=99),
    row("apply", "p.png", "--kernel-values", "1 2; 3 4", file="apply.png",
        image=Path("p.png"), kernel=[[1.0, 2.0], [3.0, 4.0]], longest=480),
    of_model("filters", "--layer", "conv1", "--most", "7", layer="conv1", most=7),
    of_model("features", "--image", "p.png", "--layer", "conv1", "--most", "7", "--invert", *PIXELS,
             read=PIXELS_READ, layer="conv1", most=7),
    of_model("cam", "--image", "p.png", "--layer", "conv1", "--class", "dog", "--invert", *PIXELS,
             read=PIXELS_READ, layer="conv1", target="dog", classes=CONFIG.classes),
    row("curves", "r", file="curves.png", source=Path("r")),
    row("confusion", "r", "--data", "d", "--checkpoint", "best", file="confusion.png",
        source=Path("r"), data="d", checkpoint="best"),
    row("mistakes", "r", "--data", "d", "--checkpoint", "best", "--most", "5", file="mistakes.png",
        source=Path("r"), data="d", checkpoint="best", most=5),
    row("receptive-field", "lenet5", "--input", "3x8x9", "--layer", "a", "--layer", "b",
        file="receptive-field.png", model="lenet5", input_shape=(3, 8, 9), layers=["a", "b"]),
]  # fmt: skip
COVERAGE = ("--image", "29x38", "--kernel", "3x2", *GEOMETRY)  # drawn, as there is no one function
LINES = [(row.command, row.words) for row in ROWS] + [("coverage", COVERAGE)]


def plain(value: Any) -> Any:
    """Arrays as lists, which can be compared."""
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, Path]]:
    """What is saved, and as what, instead of being written."""
    monkeypatch.chdir(tmp_path)
    found: list[tuple[Any, Path]] = []
    monkeypatch.setattr(style, "save", lambda picture, path: found.append((picture, Path(path))))
    return found


def called(monkeypatch: pytest.MonkeyPatch, row: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the functions are to be called with, and what they will have been), by name."""
    wanted, found = {}, {}
    for name, arguments in row.calls.items():
        signature = inspect.signature(getattr(gc.viz, name))
        defaults = {
            key: one.default
            for key, one in signature.parameters.items()
            if one.default != one.empty
        }
        same = {key: value for key, value in ONE.items() if key in defaults}
        wanted[name] = defaults | same | arguments

        def record(*args: Any, _name: str = name, _of: Any = signature, **options: Any) -> Any:
            bound = _of.bind(*args, **options)
            bound.apply_defaults()
            assert _name not in found
            found[_name] = {key: plain(value) for key, value in bound.arguments.items()}
            return GIVEN.get(_name, f"picture of {_name}")

        monkeypatch.setattr(gc.viz, name, record)
    return wanted, found


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_options_become_arguments(
    row: Row, monkeypatch: pytest.MonkeyPatch, saved: list[tuple[Any, Path]], tmp_path: Path
) -> None:
    wanted, found = called(monkeypatch, row)
    done = CliRunner().invoke(app, ["viz", row.command, *row.words])
    assert done.exit_code == 0, done.output
    assert found == wanted
    picture = f"picture of {list(row.calls)[-1]}"
    assert saved == [(picture, Path(row.file))]
    assert done.stdout == f"{row.file}\n"
    path = tmp_path / "other.png"
    for option in ("--out", "-o"):
        saved.clear()
        found.clear()
        done = CliRunner().invoke(app, ["viz", row.command, *row.words, option, str(path)])
        assert done.exit_code == 0, done.output
        assert saved == [(picture, path)]
        assert done.stdout == f"{path}\n"


@pytest.mark.parametrize("words", [(), COVERAGE], ids=["defaults", "options"])
def test_coverage_draws_what_its_function_does(
    words: tuple[str, ...], saved: list[tuple[Any, Path]]
) -> None:
    done = CliRunner().invoke(app, ["viz", "coverage", *words])
    assert done.exit_code == 0, done.output
    ((figure, path),) = saved
    assert path == Path("coverage.png")
    same = gc.viz.coverage((29, 38), (3, 2), **READ) if words else gc.viz.coverage((7, 7), 3)
    assert said(figure) == said(same)
    numbers = [drawn.axes[0].images[0].get_array() for drawn in (figure, same)]
    np.testing.assert_array_equal(*numbers)


def said(figure: Any) -> list[str]:
    titles = [axes.get_title() for axes in figure.axes]
    return titles + [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_left_out(command: str) -> None:
    parsed = [
        COMMANDS[command].make_context(command, list(words)).params
        for name, words in LINES
        if name == command
    ]
    assert parsed, "a row in ROWS is needed"
    for option in COMMANDS[command].params:
        if option.name in ("help", "out"):
            continue
        values = [params[option.name] for params in parsed]
        assert any(value not in (None, option.default) for value in values), option.name
