"""How often a pixel is used, against counting the windows one by one."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv.cli import app
from gpuconv.errors import ArgumentError
from gpuconv.viz.visits import Visits, figures, visits

pytestmark = pytest.mark.usefixtures("array_code")
SIZES = ((5, 5), (7, 4), (1, 6), (11, 9))
KERNELS = (1, 3, (2, 4), (1, 3))
PADDINGS: tuple[Any, ...] = (0, 1, "same", ((0, 2), (1, 0)))


def counted(seen: Visits) -> np.ndarray:
    """Each window's taps that are pixels, added up in a loop."""
    spec = seen.spec
    counts = np.zeros(spec.x_shape[2:], dtype=int)
    for p, q in np.ndindex(*spec.y_shape[2:]):
        for r, s in np.ndindex(*spec.kernel):
            i = p * spec.stride[0] - spec.padding[0][0] + r * spec.dilation[0]
            j = q * spec.stride[1] - spec.padding[1][0] + s * spec.dilation[1]
            if 0 <= i < counts.shape[0] and 0 <= j < counts.shape[1]:
                counts[i, j] += 1
    return counts


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_counts_for_a_grid_of_settings(kernel: Any, padding: Any) -> None:
    checked = 0
    for size, stride, dilation in product(SIZES, (1, 2, (3, 1)), (1, (2, 1))):
        try:
            seen = visits(size, kernel, stride, padding, dilation)
        except ArgumentError:
            continue  # the kernel is larger than the image
        np.testing.assert_array_equal(seen.counts, counted(seen))
        assert seen.counts.shape == size
        checked += 1
    assert checked >= 10


def test_it_is_the_gradient_of_ones() -> None:
    x = gc.Tensor(np.zeros((1, 1, 6, 9)), requires_grad=True)
    gc.conv2d(x, np.ones((1, 1, 3, 2)), stride=(2, 1), padding="same").sum().backward()
    assert x.grad is not None
    seen = visits((6, 9), (3, 2), (2, 1), "same")
    np.testing.assert_array_equal(seen.counts, x.grad.numpy()[0, 0])


def test_corner_edge_and_centre() -> None:
    seen = visits(5, 3)
    assert seen.corners == (1, 1, 1, 1)
    assert seen.edges == (3, 3, 3, 3)
    assert seen.centre == 9
    assert figures(seen) == ["corner 1, edge 3, centre 9"]
    uneven = visits((6, 8), 4, padding="same")  # 1 before, 2 after
    assert uneven.corners == (4, 6, 6, 9)
    assert uneven.edges == (8, 8, 12, 12)
    assert uneven.centre == 16
    assert figures(uneven) == [
        "corners: top left 4, top right 6, bottom left 6, bottom right 9",
        "edges: top 8, left 8, right 12, bottom 12; centre 16",
    ]


def test_what_is_never_used_is_said() -> None:
    assert visits(32, 11, 4).unused == ((31,), (31,))
    assert "row 31 and column 31 (counted from 0)" in visits(32, 11, 4).warning
    assert visits(35, 11, 4).warning == ""
    skipped = visits((9, 5), (1, 5), (4, 1))
    assert skipped.unused == ((1, 2, 3, 5, 6, 7), ())
    assert skipped.warning.startswith("never used: rows 1 to 3, 5 to 7 (counted")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 5), "the output would be empty"),
        ((0, 1), r"coverage: image=0 must be at least 1"),
        ((5, "3"), "kernel='3' must be an integer"),
        ((100_000, 3), "a smaller image shows the same"),
        ((4000, 400), "a smaller image shows the same"),
        ((5, 3, 1, "full"), "padding='full' is unknown"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        visits(*arguments)


def test_the_picture_says_what_the_numbers_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = gc.viz.coverage((7, 9), (3, 2), stride=2, padding=1)
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    seen = visits((7, 9), (3, 2), 2, 1)
    assert written == [str(n) for n in seen.counts.flat]
    assert figure.axes[0].get_title() == "input 7 x 9: how often each pixel is used"
    assert "kernel 3 x 2, stride 2, padding 1" in figure.get_supxlabel()
    assert figure.get_suptitle() == ""
    warned = gc.viz.coverage(32, 11, 4)
    assert warned.get_suptitle().startswith("WARNING, never used: row 31")
    assert not gc.viz.coverage((50, 70), 3).axes[0].texts  # too many to read


def test_the_command(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.png"
    line = ["viz", "coverage", "--image", "32x32", "--kernel", "11", "--stride", "4", "-o"]
    done = CliRunner().invoke(app, [*line, str(path)])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{path}\n"
    assert done.stderr.startswith("gpuconv: warning: never used: row 31 and column 31")
    with image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    quiet = CliRunner().invoke(
        app, ["viz", "coverage", "--kernel", "2x3", "--padding", "0:1x1", "-o", str(path)]
    )
    assert quiet.exit_code == 0
    assert quiet.stderr == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image", "4x4", "--kernel", "5"), "the output would be empty (0 x 0)"),
        (("--image", "4by4"), "--image '4by4' is no size"),
        (("--padding", "most"), "--padding 'most' is no padding"),
        (("--out", "a.gif"), "a.gif: the name must end with .png"),
    ],
)
def test_mistakes_get_one_line(
    options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["viz", "coverage", *options])
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpuconv: error: ")
    assert message in line
    assert not list(tmp_path.iterdir())
