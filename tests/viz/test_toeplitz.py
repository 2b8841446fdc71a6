"""The matrix of a convolution, against the convolution."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv.cli import app
from gpuconv.errors import ArgumentError
from gpuconv.viz.toeplitz import Toeplitz, toeplitz

pytestmark = pytest.mark.usefixtures("array_code")
SIZES = ((4, 4), (5, 3), (1, 7), (6, 8))
PADDINGS: tuple[Any, ...] = (0, 1, "same", ((0, 2), (1, 0)))


def placed(found: Toeplitz, kernel: np.ndarray) -> np.ndarray:
    """The matrix of this kernel."""
    return np.concatenate([[0.0], kernel.ravel()])[found.index]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", [1, 3, (2, 4), (1, 3), (4, 1)])
def test_the_matrix_times_an_image_is_the_convolution(
    kernel: Any, padding: Any, rng: np.random.Generator
) -> None:
    checked = 0
    for size, stride, dilation in product(SIZES, (1, (2, 3)), (1, (1, 2))):
        try:
            found = toeplitz(size, kernel, stride, padding, dilation)
        except ArgumentError:
            continue  # the kernel is larger than the image, or there are too many outputs
        x, w = rng.standard_normal(size), rng.standard_normal(found.spec.kernel)
        y = gc.conv2d(x[None, None], w[None, None], None, stride, padding, dilation)
        np.testing.assert_allclose(placed(found, w) @ x.ravel(), y.ravel(), rtol=1e-12, atol=1e-12)
        assert found.index.shape == (y.size, x.size)
        checked += 1
    assert checked >= 5


def test_the_transposed_matrix_is_the_gradient(rng: np.random.Generator) -> None:
    found = toeplitz((5, 6), (2, 3), (2, 1), ((0, 1), (1, 0)))
    spec = found.spec
    w, gy = rng.standard_normal(spec.w_shape), rng.standard_normal(spec.y_shape)
    gx = gc.conv2d_grad_input(gy, w, spec.x_shape, spec.stride, spec.padding)
    np.testing.assert_allclose(placed(found, w[0, 0]).T @ gy.ravel(), gx.ravel(), atol=1e-12)


def test_counts_of_the_example() -> None:
    found = toeplitz(4, 3)
    assert found.index.shape == (4, 16)
    assert (found.weights, found.dense, found.zeros) == (9, 64, 28)
    assert found.index[0].tolist() == [1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0]
    assert found.index[3].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9]
    padded = toeplitz(4, 3, padding=1)
    assert padded.index[0].tolist()[:6] == [5, 6, 0, 0, 8, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, 3), "81 pixels and 49 outputs would make a matrix too large to read"),
        ((5, 3, 1, 4), "at most 64 of each"),
        ((3, 4), "the output would be empty"),
        ((2, 3, 8000, 8000), "matrix: input 16002 x 16002 is too large"),
        (((4, 4, 4), 3), r"image=\(4, 4, 4\) must be one integer or 2"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        toeplitz(*arguments)


def test_the_picture_has_the_numbers_and_the_counts() -> None:
    pytest.importorskip("matplotlib")
    figure = gc.viz.matrix((3, 4), (2, 3), padding=((0, 0), (1, 0)))
    found = toeplitz((3, 4), (2, 3), padding=((0, 0), (1, 0)))
    kernel, large, dense = (axes for axes in figure.axes if axes.texts)
    assert [text.get_text() for text in kernel.texts] == list("123456")
    assert [text.get_text() for text in large.texts] == [
        str(n) if n else "" for n in found.index.flat
    ]
    assert len({text.get_text() for text in dense.texts}) == found.dense
    assert f"6 weights, tied; {found.zeros} of {found.dense} cells are 0" in large.get_title()
    assert f"{found.dense} weights, none tied" in dense.get_title()


def test_the_command(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.png"
    done = CliRunner().invoke(app, ["viz", "matrix", "--image", "4x4", "--kernel", "3", "-o", path])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{path}\n"
    with image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
    failed = CliRunner().invoke(app, ["viz", "matrix", "--image", "9x9", "-o", path])
    assert failed.exit_code == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith("gpuconv: error: matrix: 81 pixels")
