"""What `viz channels` shows: partial maps against loops in float64, and their sums."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv.cli import app
from gpuconv.data import read_image
from gpuconv.errors import Error
from gpuconv.viz import presets
from gpuconv.viz.channel_sums import channel_sums, equation
from tests.viz import check_legible, numbers_on
from tests.viz.test_convolution import taken_apart, value

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

# Image, kernels, options, the padding that they mean, the maps.
CASES: list[tuple[Any, Any, dict[str, Any], Any, Any]] = [
    ((3, 5, 5), (2, 3, 3, 3), {"stride": 2, "padding": 1}, ((1, 1), (1, 1)), (3, 3)),
    ((1, 4, 6), (3, 1, 2, 3), {}, ((0, 0), (0, 0)), (3, 4)),
    ((4, 7, 5), (1, 4, 4, 2), {"padding": "same"}, ((1, 2), (0, 1)), (7, 5)),
    ((2, 6, 7), (2, 2, 3, 3), {"dilation": (2, 1), "stride": (1, 3)}, ((0, 0), (0, 0)), (2, 2)),
    ((2, 4, 5), (2, 2, 2, 2), {"padding": ((0, 2), (1, 0)), "stride": 2}, ((0, 2), (1, 0)), (3, 3)),
    ((3, 4, 4), (2, 3, 1, 1), {}, ((0, 0), (0, 0)), (4, 4)),
    ((5, 4, 5), (6, 5, 3, 1), {"padding": 2, "padding_mode": "reflect"}, ((2, 2),) * 2, (6, 9)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_partial_maps_sum_to_the_convolution(case: Any, rng: np.random.Generator) -> None:
    size, kernels, options, pads, out = case
    x, w, b = (
        rng.standard_normal(size),
        rng.standard_normal(kernels),
        rng.standard_normal(kernels[0]),
    )
    data = channel_sums(x, w, b, **options)
    assert data.spec.padding == pads
    assert data.partial.shape == (*kernels[:2], *out)
    assert data.output.shape == (kernels[0], *out)
    for k, c in np.ndindex(kernels[:2]):
        padded, reads, cells = taken_apart(x[c], w[k, c], options, pads, out)
        np.testing.assert_allclose(
            data.partial[k, c], (reads * w[k, c]).sum(axis=(2, 3)), atol=1e-12
        )
        np.testing.assert_array_equal(data.padded[c], padded)
        np.testing.assert_array_equal(data.cells, cells)
    total = data.partial.sum(axis=1) + b[:, None, None]
    np.testing.assert_allclose(data.output, total, atol=1e-12)
    np.testing.assert_array_equal(data.padding, np.pad(np.ones(size[1:]), pads) == 0)
    with gc.backend("numpy"):
        np.testing.assert_array_equal(data.output, gc.conv2d(x[None], w, b, **options)[0])


def test_torch_gives_the_same(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, w, b = rng.standard_normal((3, 5, 7)), rng.standard_normal((4, 3, 3, 2)), np.ones(4)
    data = channel_sums(x, w, b, stride=(2, 1), padding=(1, 2))
    x4, w4, b4 = (torch.from_numpy(a) for a in (x[None], w, b))
    theirs = torch.nn.functional.conv2d(x4, w4, b4, (2, 1), (1, 2))
    np.testing.assert_allclose(data.output, theirs[0].numpy(), atol=1e-12)


def test_the_well_known_example_in_shape() -> None:
    picture = gc.viz.channels((3, 5, 5), 3, filters=2, stride=2, padding=1)
    assert picture.frames == 9
    picture.show(8)
    titles = [axes.get_title() for axes in picture.figure.axes]
    planes = [f"channel {c} of 3 ({name})" for c, name in enumerate(("red", "green", "blue"), 1)]
    assert titles[:3] == [f"{plane}\n5 x 5, padding 1" for plane in planes]
    per_filter = ["kernel\n3 x 3", "partial map\n3 x 3"] * 3
    assert titles[3:] == [*per_filter, "map 1 of 2\n3 x 3", *per_filter, "map 2 of 2\n3 x 3"]
    assert [numbers_on(axes).shape for axes in picture.figure.axes[:3]] == [(7, 7)] * 3


def test_what_is_drawn_is_the_data() -> None:
    x, w = presets.whole_image((2, 4, 5), 7, 2), presets.whole_kernel((2, 2, 2, 3), 7)
    data = channel_sums(x, w, np.array([1.0, 0.0]), padding=1)
    picture = gc.viz.channels((2, 4, 5), (2, 3), padding=1, seed=7)
    for frame in (0, 13, 24):
        picture.show(frame)
        p, q = divmod(frame, 5)
        so_far = np.arange(25).reshape(5, 5) <= frame
        axes = iter(picture.figure.axes)
        for c in range(2):
            plane = next(axes)
            np.testing.assert_array_equal(numbers_on(plane), data.padded[c])
            windows = [patch for patch in plane.patches if not patch.get_fill()]
            marked = {(round(r.get_y() + 0.44), round(r.get_x() + 0.44)) for r in windows}
            assert marked == {divmod(cell, 7) for cell in data.cells[p, q].ravel().tolist()}
        for k in range(2):
            for c in range(2):
                np.testing.assert_array_equal(numbers_on(next(axes)), data.kernels[k, c])
                partial = np.where(so_far, data.partial[k, c], np.nan)
                np.testing.assert_array_equal(numbers_on(next(axes)), partial)
            made = np.where(so_far, data.output[k], np.nan)
            np.testing.assert_array_equal(numbers_on(next(axes)), made)
        words = [text.get_text() for text in picture.figure.texts]
        assert [equation(data, k, p, q) in words for k in range(2)] == [True, True]
        assert next(axes, None) is None


def test_the_sum_as_it_is_written() -> None:
    for channels in (1, 3, 6):
        x, w = (
            presets.whole_image((channels, 4, 5), 0, 9),
            presets.whole_kernel((3, channels, 2, 2), 0),
        )
        data = channel_sums(x, w, np.array([2.0, 0.0, -3.0]))
        for k, p, q in np.ndindex(data.output.shape):
            left, right = equation(data, k, p, q).split(" = ")
            assert value(left) == float(right) == data.output[k, p, q]
            assert len(re.findall(r"\d+", left)) == min(channels, 4) + 1


def test_of_many_channels_and_filters_some_are_drawn() -> None:
    figure = gc.viz.channels((8, 4, 5), 2, filters=9, frame=12)
    x, w = presets.whole_image((8, 4, 5), 0, 2), presets.whole_kernel((9, 8, 2, 2), 0)
    data = channel_sums(x, w, np.zeros(9))
    titles = [axes.get_title() for axes in figure.axes]
    assert sum(title.startswith("channel ") for title in titles) == 3
    assert [t for t in titles if t.startswith("map")] == [f"map {k} of 9\n3 x 4" for k in (1, 2, 3)]
    rest = [axes for axes in figure.axes if axes.get_title().startswith("channels 4 to 8 added")]
    assert len(rest) == 3
    for k, axes in enumerate(rest):
        np.testing.assert_array_equal(numbers_on(axes), data.partial[k, 3:].sum(axis=0))
    said = " ".join(text.get_text() for text in figure.texts)
    assert "5 more channels" in said
    assert "filters 4 to 9 are not drawn" in said


LOOKS: list[dict[str, Any]] = [
    {"stride": 2, "padding": 1},
    {"image": (1, 2, 9), "kernel": (1, 4), "padding": ((0, 0), (3, 0)), "filters": 1},
    {"image": (8, 5, 5), "filters": 6},
    {"image": (2, 1, 1), "kernel": 1},
    {"image": (2, 9, 9), "kernel": 5, "padding": "same"},
    {"image": (2, 15, 14), "kernel": (5, 3)},
    {"image": np.linspace(-999, 9999, 40).reshape(2, 4, 5), "bias": [-0.25, 1234.5]},
]


@pytest.mark.parametrize("options", LOOKS, ids="-".join)
def test_nothing_is_small_cut_off_or_overlaps(options: dict[str, Any]) -> None:
    picture = gc.viz.channels(**options)
    picture.show(picture.frames // 2)
    check_legible(picture.figure)


def test_an_image_file(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(path)
    figure = gc.viz.channels(path, 3, filters=1, frame=1)
    for axes, plane in zip(figure.axes, read_image(path, (4, 7), "RGB"), strict=False):
        np.testing.assert_array_equal(numbers_on(axes), plane)
    check_legible(figure)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image": (5, 5)}, "image=.* must be one integer or 3"),
        ({"image": (3, 21, 5)}, "21 x 5 is too large .* 20 x 20"),
        ({"image": (3, 5, 5), "padding": 9}, "23 x 23 is too large"),
        ({"image": (65, 5, 5)}, "channels=65 must be from 1 to 64"),
        ({"filters": 0}, "filters=0 must be from 1 to 64"),
        ({"kernel": 6}, "output would be empty"),
        ({"kernel": np.ones((2, 4, 3, 3))}, "has 3 channels, but the weight"),
        ({"kernel": np.full((2, 3, 3, 3), np.nan)}, "finite numbers"),
        ({"kernel": np.ones((65, 3, 1, 1))}, "65 filters are too many"),
        ({"bias": [1.0]}, r"the bias \(1,\) must be \(2,\)"),
        ({"size": (3, 3)}, "is for an image file"),
        ({"frame": 10}, "positions 1 to 9"),
    ],
    ids=str,
)
def test_errors(options: dict[str, Any], match: str) -> None:
    with pytest.raises(Error, match=match) as caught:
        gc.viz.channels(**options)
    assert "\n" not in str(caught.value)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["viz", "channels", *map(str, arguments)])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = "--image", "3x5x5", "--kernel", 3, "--filters", 2, "--stride", 2, "--padding", 1
    done = run(*example)
    assert (done.exit_code, done.stdout) == (0, "channels.gif\n")
    assert Path("channels.gif").stat().st_size < 400_000
    with Image.open("channels.gif") as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 9, 0)
    assert run(*example, "-o", "channels.html").exit_code == 0
    assert Path("channels.html").stat().st_size < 400_000
    assert Path("channels.html").read_text(encoding="utf-8").count("frames[") > 9
    assert run(*example, "--bias", "1 -2.5", "-o", "all.png").exit_code == 0
    with Image.open("all.png") as png:
        assert png.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--image", "5x5"), "--image '5x5' is no size: write CxHxW"),
        (("--image", "none.png"), "none.png: cannot be read"),
        (("--kernel", "9"), "the output would be empty"),
        (("--bias", "1 2 3"), r"the bias \(3,\) must be \(2,\)"),
        (("--bias", "one"), "--bias 'one' is no matrix"),
        (("--filters", "100"), "filters=100 must be from 1 to 64"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(arguments: Any, match: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert re.match(f"gpuconv: error: .*{match}", line)
    assert run("--filters", "0").exit_code == 2
