"""Build the documentation: python docs/build.py [OUT], by default build/docs.

A page is HTML, and each of its figures is what one command writes or prints:

    <figure data-command="gpuconv viz conv -o x.html" data-alt="What it shows">Caption</figure>

The commands of a page run in their order, in the folder `figures` of the result, where the images
that they name are too; one that fails fails the build. `data-needs="compiler"` is for those that
compile CUDA kernels: without the compiler a note takes the figure's place. All are computed in
array code, unless GPUCONV_BACKEND says otherwise: to compile kernels would take longer.
"""

import base64
import html
import os
import re
import shlex
import shutil
import struct
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from matplotlib.cbook import get_sample_data
from PIL import Image
from typer.testing import CliRunner

from gpuconv.cli import app
from gpuconv.data import fashion_mnist_mini
from gpuconv.kernels.cuda import compiler

FIGURE = re.compile(
    r'<figure data-command="([^"]+)"(?: data-alt="([^"]+)")?( data-needs="compiler")?>'
    r"(.*?)</figure>",
    re.DOTALL,
)
MARK = "made-by-docs-build"  # a file: this folder may be replaced


class DocsError(Exception):
    """Why the documentation cannot be built, in one line."""


def build(sources: Path, out: Path) -> list[str]:
    """Build the pages of `sources` to the folder `out`, which appears whole or not at all.

    Returns what was left out, a line each. DocsError for what is wrong.
    """
    pages = sorted(sources.glob("*.html"), key=lambda page: -page.stat().st_size)  # slow ones first
    if not pages:
        raise DocsError(f"{sources}: no pages (*.html) here")
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise DocsError(f"{out} holds other things than an earlier build: name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GPUCONV_BACKEND", "numpy")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with TemporaryDirectory(dir=out.parent, prefix=out.name) as folder:
        new = Path(folder).resolve() / "docs"
        (new / "figures").mkdir(parents=True)
        (new / MARK).touch()
        shutil.copy(sources / "style.css", new)
        examples(new / "figures")
        workers = min(len(pages), os.cpu_count() or 1)
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            tasks = [pool.submit(build_page, page.resolve(), new) for page in pages]
            left_out = [line for task in tasks for line in task.result()]
        if out.exists():
            shutil.rmtree(out)
        new.rename(out)
    return left_out


def examples(folder: Path) -> None:
    """The images that commands name: a photo, and one of the package's small test images."""
    shutil.copy(get_sample_data("grace_hopper.jpg", asfileobj=False), folder / "photo.jpg")
    Image.fromarray(fashion_mnist_mini("test").images[2, 0]).save(folder / "boot.png")


def build_page(source: Path, out: Path) -> list[str]:
    """Write one page, its figures made in this process; returns what was left out."""
    text = source.read_text(encoding="utf-8")
    text = re.sub(r"(?<=\d) x (?=\d)", "\u00a0x\u00a0", text)  # no line ends within 3 x 3
    if len(FIGURE.findall(text)) != text.count("<figure"):
        raise DocsError(f'{source.name}: a figure is not <figure data-command="..." ...>')
    has_compiler = bool(compiler.version("numba-cuda"))
    os.chdir(out / "figures")
    left_out = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal left_out
        command, alt = (html.unescape(part or "") for part in match.group(1, 2))
        if match[3] and not has_compiler:
            left_out += 1
            shown = (
                '<p class="absent">Not drawn: this page was built without the CUDA compiler '
                "(<code>pip install 'gpuconv[viz,cuda13]'</code>). With it, the command below "
                "draws the figure; it needs no GPU.</p>"
            )
        else:
            try:
                shown = figure(command, alt)
            except DocsError as error:
                raise DocsError(f"{source.name}: {command}: {error}") from error
        caption = f"<figcaption>{match[4].strip()}</figcaption>"
        # No line ends within an option.
        words = re.sub(r"(\S*-\S*)", r"<span>\1</span>", html.escape(command, quote=False))
        line = f'<pre class="command"><code>{words}</code></pre>'
        return f"<figure>\n{shown}\n{caption}\n{line}\n</figure>"

    page = FIGURE.sub(replace, text)
    (out / source.name).write_text(page, encoding="utf-8")
    if not left_out:
        return []
    return [f"{source.name}: no CUDA compiler here; figures left out: {left_out}"]


def figure(command: str, alt: str) -> str:
    """Run a command; the HTML of the picture that it wrote, or of what it printed."""
    words = shlex.split(command)
    printed = run(words)
    if "-o" not in words:
        return f'<pre class="output">{html.escape(printed, quote=False)}</pre>'
    path = Path(words[words.index("-o") + 1])
    if not path.is_file():
        raise DocsError(f"it wrote no {path}")
    if not alt:
        raise DocsError("the figure has no data-alt, which says what is seen")
    source, said = html.escape(f"figures/{path}"), html.escape(alt)
    if path.suffix == ".html":
        width, height = frame_size(path.read_text(encoding="utf-8"))
        # As wide as the picture and 9 pixels at each side; where that is too wide, it shrinks.
        tall = f"calc((100cqw - 18px) * {height / width:.4f} + var(--controls))"
        return (
            f'<div class="player" style="max-width: {width + 18}px">'
            f'<iframe src="{source}" title="{said}" style="height: {tall}"></iframe></div>'
        )
    with Image.open(path) as image:
        width, height = image.size
    picture = f'<img src="{source}" alt="{said}" width="{width}" height="{height}">'
    return f'<a href="{source}">{picture}</a>'


def run(words: list[str]) -> str:
    """What a command of the program prints; DocsError if it fails."""
    if words[0] != "gpuconv":
        raise DocsError("a figure's command is one of gpuconv")
    result = CliRunner().invoke(app, words[1:], env={"COLUMNS": "100"})
    if result.exit_code:
        said = " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split()) or repr(result.exception)
        raise DocsError(f"status {result.exit_code}: {said[-300:]}") from result.exception
    return result.stdout.strip()


def frame_size(player: str) -> tuple[int, int]:
    """Width and height of a player's picture, from the header of its first PNG."""
    found = re.search(r"data:image/png;base64,([A-Za-z0-9+/]{64})", player)
    if found is None:
        raise DocsError("its player holds no picture")
    width, height = struct.unpack(">II", base64.b64decode(found[1])[16:24])
    return width, height


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")] = Path("build/docs"),
    sources: Annotated[Path, typer.Option(help="The folder of the pages.")] = Path(__file__).parent,
) -> None:
    """Build the documentation."""
    try:
        left_out = build(sources, out)
    except (DocsError, OSError) as error:
        print(f"docs: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for line in left_out:
        print(f"docs: {line}")
    print(out / "index.html")


if __name__ == "__main__":
    typer.run(main)
