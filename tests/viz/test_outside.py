"""What comes from outside: names in any letters, numbers too large, outputs that cannot be."""

import logging
import re
import warnings
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv import nn
from gpuconv.cli import app
from gpuconv.errors import ArgumentError, Error
from gpuconv.viz import style
from gpuconv.viz.canvas import plain
from gpuconv.viz.convolution import sliding, written
from gpuconv.viz.sheet import text_width

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
NAMES = ("a$\\frac$", "a$b$", "x\ny\t z", "图像_日本", "\udcff", "{}%s<b>")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["viz", *map(str, arguments)])


def words(figure: Any) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def ink(figure: Any) -> int:
    figure.canvas.draw()
    return int((np.asarray(figure.canvas.buffer_rgba())[..., :3] < 128).sum())


@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_as_they_are_written(name: str, tmp_path: Path) -> None:
    """With no warning, and no error of a formula."""
    pixels = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    path = path.rename(tmp_path / f"{name.replace('/', '')}.png")
    seen = gc.viz.Evaluation(
        (name, "b"), [0, 1, 1], [[1, 0], [1, 0], [0, 1.0]], pixels[None][[0] * 3]
    )
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(18, 2))
    x = pixels.transpose(2, 0, 1) / 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            gc.viz.conv(path, frame=1),
            gc.viz.channels(path, frame=1),
            gc.viz.confusion(seen),
            gc.viz.mistakes(seen),
            gc.viz.cam(model, x, target=0, classes=(name, "b")),
        ):
            figure.canvas.draw()
            assert plain(name)[:14] in words(figure) or plain(name)[:6] in words(figure)
            gc.viz.save(figure, tmp_path / "out.png")
        gc.viz.save(gc.viz.conv(path, kernel=4), tmp_path / "out.gif")  # text that is drawn again
    assert "\n" not in plain(name)


def test_dollars_are_no_formula() -> None:
    figures = []
    for text in ("a$b$", "a$\\frac$"):
        figure = style.new_figure(3, 2)
        axes = figure.subplots()
        axes.set_title(text)
        axes.set_xticks([0, 1], [text, text])
        figure.suptitle(text)
        figures.append(figure)
    plainly = style.new_figure(3, 2)
    plainly.subplots().set_title("ab")
    assert ink(figures[0]) > ink(plainly)
    assert ink(figures[1]) > ink(figures[0])
    assert not figures[0].axes[0].title.get_parse_math()
    assert not any(label.get_parse_math() for label in figures[0].axes[0].get_xticklabels())


def test_letters_that_no_font_has_are_boxes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gpuconv"):
        assert plain("a\U00012000b.png") == "a□b.png"
    (record,) = caplog.records
    assert "no font has the letters \U00012000" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert plain("é → ×") == "é → ×"
    assert plain(" a\n b\x00 ") == "a b�"
    assert text_width(["图像"], 10) == text_width(["abcd"], 10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("receptive-field", "lenet5"), "is a folder"),
        (("receptive-field", "lenet5"), "there is no folder"),
        (("receptive-field", "lenet5"), "must end with .png"),
        (("mistakes", "no-run"), "must end with .png"),
        (("apply", "none.png"), "there is no folder"),
        (("conv", "--image", "40x40"), "there is no folder"),
        (("conv", "--image", "40x40"), "is a folder"),
    ],
)
def test_the_output_is_looked_at_before_the_work(
    arguments: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("receptive_field", "mistakes", "apply", "conv"):
        monkeypatch.setattr(gc.viz, name, lambda *_, **__: pytest.fail("it was drawn first"))
    (tmp_path / "a.png").mkdir()
    out = {"is a folder": "a.png", "there is no folder": "none/a.png"}.get(said, "a.jpg")
    done = run(*arguments, "-o", tmp_path / out)
    assert done.exit_code == 1, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpuconv: error: ")
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("conv", "--values", "1e39 1;2 3"), "--values: 1e+39 is too large"),
        (("conv", "--values", "1 inf"), "too large"),
        (("conv", "--values", "1 nan"), "is no matrix"),
        (("conv", "--values", "1 2;3"), "is no matrix"),
        (("conv", "--bias", "1e300"), "too large"),
        (("conv", "--image", ""), "--image '' is no size"),
        (("conv", "--image", "9999999"), "numbers from 1 to 1048576"),
        (("apply", "PHOTO", "--kernel", ""), "kernel '' is unknown"),
        (("apply", "PHOTO", "--kernel-values", "3e38 3e38;3e38 3e38"), "too large"),
        (("conv", "--image", "40x40", "--kernel", "20"), "441 windows of 400 products"),
        (("channels", "--image", "64x20x20", "--kernel", "5"), "are too many to write out"),
        (("backward", "--image", "40x40", "--kernel", "20"), "are too many to write out"),
        (("receptive-field", "simple_cnn", "--input", "1x3000x3000"), "use a smaller input"),
        (("matrix", "--image", "2x2", "--padding", "8000", "--stride", "8000"), "too large"),
    ],
    ids=str,
)
def test_what_is_too_large_or_empty_is_refused(arguments: Any, said: str, tmp_path: Path) -> None:
    photo = tmp_path / "p.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(photo)
    given = [photo if word == "PHOTO" else word for word in arguments]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = run(*given, "-o", tmp_path / "a.png")
    assert done.exit_code == 1, done.output
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "a.png").exists()


def test_wrong_arguments_of_the_api_are_said(rng: np.random.Generator) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))
    x, bad = rng.random((1, 5, 5)), np.full((1, 5, 5), np.nan)
    viz: Any = gc.viz
    labels, pixels = [0, 1], np.zeros((2, 1, 2, 2))
    calls = {
        "frame=1.5": lambda: viz.conv(frame=1.5),
        "frame='a'": lambda: viz.channels(frame="a"),
        "bias must be": lambda: viz.conv(bias=None),
        "rows of the same length": lambda: viz.conv([[1, 2], [3]]),
        "must be numbers": lambda: viz.conv([["a", "b"]]),
        "kernel must have rows": lambda: viz.conv(kernel=[[1, 2], [3]]),
        "size=(3,) must": lambda: viz.conv("a.png", size=(3,)),
        "layers=[] must": lambda: viz.receptive_field("lenet5", layers=[]),
        "1 name of classes": lambda: viz.cam(model, x, classes=("a",)),
        "target=1.5": lambda: viz.cam(model, x, target=1.5),
        "most=1.5": lambda: viz.features(model, x, most=1.5),
        "finite numbers, without NaN": lambda: viz.cam(model, bad),
        "image must be finite": lambda: viz.apply(bad),
        "scores of image 1 are NaN": lambda: viz.Evaluation(
            ("a", "b"), labels, [[0, 1], [np.nan, 0]], pixels
        ),
        "channels='a' must": lambda: viz.tile(channels="a"),
    }
    for said, call in calls.items():
        with pytest.raises(Error, match=re.escape(said)):
            call()
    with pytest.raises(ArgumentError, match="NaN or infinity"):
        gc.viz.features(nn.Sequential(nn.Conv2d(1, 1, 1), Spoiled()), x, "1")


class Spoiled(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * np.nan


@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ([[0, 0, 0], [0, 0, 0], [0, 99999, 100001]], [[0, 0], [1, -1]]),
        ([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1 / 3, 1 / 3], [0.125, 2 / 3]]),
        ([[1e8, 3, 1], [4, 5e-4, 1e7], [7, 8, 9]], [[1, 1 / 3], [0.005, 1]]),
    ],
)
def test_written_sums_are_right_or_said_to_be_rounded(image: Any, kernel: Any) -> None:
    data = sliding(image, kernel)
    signs = set()
    for p, q in np.ndindex(data.output.shape):
        for line in written(data, p, q)[:-1]:
            terms, sign, total = re.split(" ([=≈]) ", line.split("so far")[0])
            exact = abs(sum(map(float, terms.replace("- ", "+ -").split(" + "))) - float(total))
            assert (sign == "=") == (exact < 1e-9), line
            signs.add(sign)
    assert signs == ({"="} if image[2][1] == 99999 else {"=", "≈"} & signs)
    if image[2][1] == 99999:
        assert "99999 - 100001 = -2" in "\n".join(written(data, 1, 1))


def test_a_notebook_shows_pictures() -> None:
    assert gc.viz.matrix(3, 2)._repr_png_().startswith(b"\x89PNG")
    moving = gc.viz.conv((3, 3), 2)
    cell = moving._repr_html_()
    assert re.fullmatch(r"<iframe [^<>]*></iframe>", cell)  # nothing of it is the host's
    (page,) = re.findall('srcdoc="([^"]*)"', cell)
    assert unescape(page).startswith("<!DOCTYPE html>")
    assert "<title>input 3 x 3; kernel 2 x 2; products; output 2 x 2</title>" in unescape(page)


def test_frames_are_kept_as_a_byte_a_pixel() -> None:
    assert {image.mode for image in gc.viz.conv((3, 3), 2).images()} == {"P"}
