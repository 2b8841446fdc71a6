"""The commands `gpuconv viz ...`: options to arguments, and one line that says what was written.

Nothing that draws is imported before a command runs.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

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
