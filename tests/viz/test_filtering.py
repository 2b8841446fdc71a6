"""Kernels applied to photos: the numbers against loops, the picture's scales, the command."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv.cli import app
from gpuconv.errors import ArgumentError
from gpuconv.viz import presets
from gpuconv.viz.filtering import _in_greys, as_image, filtered

Image = pytest.importorskip("PIL.Image")


def looped(plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Cross-correlation of one channel in float64; "same", the edge repeated, more of it behind."""
    rows, columns = kernel.shape
    top, left = (rows - 1) // 2, (columns - 1) // 2
    padded = np.pad(
        plane.astype(np.float64), ((top, rows - 1 - top), (left, columns - 1 - left)), mode="edge"
    )
    result = np.zeros(plane.shape)
    for i, j in np.ndindex(plane.shape):
        for r, s in np.ndindex(kernel.shape):
            result[i, j] += padded[i + r, j + s] * kernel[r, s]
    return result


@pytest.mark.parametrize("size", [(1, 7, 9), (3, 6, 11), (5, 4, 4), (3, 1, 6)])
@pytest.mark.parametrize(
    "kernel",
    ["edge", "blur", "sharpen", "sobel-y", (1, 3), (3, 1), (2, 2), (4, 3), (7, 9)],
    ids=str,
)
def test_each_channel_is_convolved_alone(
    size: tuple[int, ...], kernel: str | tuple[int, int], rng: np.random.Generator
) -> None:
    image = rng.random(size).astype(np.float32)
    values = presets.preset(kernel).weight if isinstance(kernel, str) else rng.normal(size=kernel)
    found = filtered(image, kernel if isinstance(kernel, str) else values)
    (result,) = found.results.values()
    assert result.shape == size
    expected = np.stack([looped(plane, values) for plane in image])
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_array_equal(next(iter(found.kernels.values())), values)
    assert found.magnitude is None
    height, width = values.shape
    assert [sum(pair) for pair in found.padding] == [height - 1, width - 1]


def test_sobel_is_both_directions_and_their_magnitude(rng: np.random.Generator) -> None:
    image = rng.random((3, 8, 5)).astype(np.float32)
    found = filtered(image)
    assert list(found.results) == ["sobel", "sobel-y"]
    across, down = found.results.values()
    np.testing.assert_array_equal(found.kernels["sobel"], found.kernels["sobel-y"].T)
    np.testing.assert_allclose(across[1], looped(image[1], found.kernels["sobel"]), atol=1e-5)
    np.testing.assert_allclose(down[1], looped(image[1], found.kernels["sobel-y"]), atol=1e-5)
    np.testing.assert_allclose(found.magnitude, np.hypot(across, down), atol=1e-6)


def test_what_black_and_white_stand_for(rng: np.random.Generator) -> None:
    differences = np.array([[[-2.0, 0.0, 1.0]]])
    pixels, scale = _in_greys(differences, presets.preset("edge").weight)
    np.testing.assert_allclose(pixels, [[[0.0, 0.5, 0.75]]])
    assert scale == "grey is 0, black is -2, white is 2"
    means = rng.random((1, 2, 3))
    pixels, scale = _in_greys(means, presets.preset("blur").weight)
    np.testing.assert_array_equal(pixels, means)
    assert scale == "black is 0, white is 1"
    _, scale = _in_greys(np.array([-0.25, 1.5]), presets.preset("sharpen").weight)
    assert scale == "black is 0, white is 1 (from -0.25 to 1.5)"
    pixels, scale = _in_greys(np.array([0.0, 3.0]), np.ones((3, 3)))
    np.testing.assert_array_equal(pixels, [0.0, 1.0])
    assert scale == "black is 0, white is 3"
    pixels, _ = _in_greys(np.full(4, 1e-8), presets.preset("edge").weight)
    np.testing.assert_allclose(pixels, 0.5, atol=1e-6)  # rounding is not blown up


def test_images_of_all_kinds(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (6, 10, 4), dtype=np.uint8)
    for name, array, channels in (
        ("rgb.png", pixels[..., :3], 3),
        ("alpha.png", pixels, 3),
        ("grey.png", pixels[..., 0], 1),
    ):
        Image.fromarray(array).save(tmp_path / name)
        image = as_image(tmp_path / name)
        assert image.shape == (channels, 6, 10)
        assert image.dtype == np.float32
        expected = np.atleast_3d(array)[..., :channels].transpose(2, 0, 1) / 255
        np.testing.assert_allclose(image, expected, atol=1e-6)
        assert as_image(str(tmp_path / name), longest=5).shape == (channels, 3, 5)
    np.testing.assert_allclose(as_image(pixels[..., 0])[0], pixels[..., 0] / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "kernel", "said"),
    [
        (np.zeros(3), "blur", r"an image of shape \(3,\)"),
        (np.zeros((1, 0, 3)), "blur", r"an image of shape \(1, 0, 3\)"),
        (np.zeros((4, 4)), "embos", "'embos' is unknown: use one of edge, blur"),
        (np.zeros((4, 4)), np.ones(3), r"a kernel of shape \(3,\)"),
        (np.zeros((4, 4)), np.ones((0, 3)), r"a kernel of shape \(0, 3\)"),
        (np.zeros((4, 4)), np.ones((3, 41)), "use at most 40 x 40"),
    ],
)
def test_wrong_arguments(image: np.ndarray, kernel: object, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        filtered(image, kernel)


def test_the_panels_say_what_they_are(rng: np.random.Generator) -> None:
    pytest.importorskip("matplotlib")
    titles = [axes.get_title() for axes in gc.viz.apply(rng.random((3, 5, 9))).axes]
    assert titles[0].startswith("before: input 3 x 5 x 9\n")
    assert titles[1].startswith("after sobel: output 3 x 5 x 9\ngrey is 0")
    assert titles[2].startswith("after sobel-y: output 3 x 5 x 9\n")
    assert titles[3].startswith("magnitude: 3 x 5 x 9\nblack is 0")
    assert titles[5:7] == ["kernel sobel: 3 x 3", "kernel sobel-y: 3 x 3"]


def test_the_command(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("matplotlib")
    photo, out = tmp_path / "photo.png", tmp_path / "out.png"
    Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)).save(photo)

    def run(*options: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["viz", "apply", str(photo), "-o", str(out), *options])
        return done.exit_code, done.stdout, done.stderr

    for options in ((), ("--kernel", "blur"), ("--kernel-values", "1 0 -1; 2 0 -2")):
        out.unlink(missing_ok=True)
        assert run(*options) == (0, f"{out}\n", "")
        with Image.open(out) as picture:
            picture.load()
            assert picture.format == "PNG"
    for options, said in (
        (("--kernel", "embos"), "kernel 'embos' is unknown: use one of edge"),
        (("--kernel", "blur", "--kernel-values", "1"), "leave one of them out"),
        (("--kernel-values", "1 2; 3"), "'1 2; 3' is no matrix"),
        (("-o", str(tmp_path / "out.gif")), "the name must end with .png"),
    ):
        status, _, error = run(*options)
        assert status == 1
        assert error.startswith("gpuconv: error: ")
        assert said in error
        assert error.count("\n") == 1
    photo.unlink()
    assert "photo.png: cannot be read" in run()[2]
