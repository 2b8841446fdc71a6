"""What `viz conv` shows: against loops in float64, and read back from what it draws and writes."""

import base64
import io
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv.cli import app
from gpuconv.data import read_image
from gpuconv.errors import ArgumentError, Error, FileError
from gpuconv.viz import presets
from gpuconv.viz.convolution import Sliding, sliding, written
from gpuconv.viz.sheet import FRAMES, captions, shown
from tests.viz import check_legible, numbers_on

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

# Image, kernel, options, the padding that they mean, the output.
CASES: list[tuple[Any, Any, dict[str, Any], Any, Any]] = [
    ((5, 5), (3, 3), {}, ((0, 0), (0, 0)), (3, 3)),
    ((5, 5), (3, 3), {"padding": 1}, ((1, 1), (1, 1)), (5, 5)),
    ((7, 7), (3, 3), {"stride": 2}, ((0, 0), (0, 0)), (3, 3)),
    ((6, 9), (3, 2), {"stride": (2, 3), "padding": (1, 0)}, ((1, 1), (0, 0)), (3, 3)),
    ((6, 5), (2, 2), {"padding": "same"}, ((0, 1), (0, 1)), (6, 5)),
    ((7, 6), (4, 4), {"padding": "same", "stride": (2, 1)}, ((1, 2), (1, 2)), (4, 6)),
    ((5, 7), (2, 3), {"padding": ((0, 1), (2, 1)), "dilation": (1, 2)}, ((0, 1), (2, 1)), (5, 6)),
    ((9, 8), (3, 3), {"dilation": 2, "stride": 3, "padding": 2}, ((2, 2), (2, 2)), (3, 3)),
    ((4, 5), (3, 3), {"padding": 2, "padding_mode": "reflect"}, ((2, 2), (2, 2)), (6, 7)),
    ((4, 5), (1, 4), {"padding": (0, 3), "padding_mode": "replicate"}, ((0, 0), (3, 3)), (4, 8)),
    ((3, 4), (3, 1), {"padding": (3, 1), "padding_mode": "circular"}, ((3, 3), (1, 1)), (7, 6)),
    ((3, 9), (1, 1), {"stride": 2}, ((0, 0), (0, 0)), (2, 5)),
    ((4, 3), (4, 3), {}, ((0, 0), (0, 0)), (1, 1)),
]
MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def taken_apart(
    x: np.ndarray, w: np.ndarray, options: dict[str, Any], pads: Any, out: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x padded, what each tap reads, where) from the definition."""
    padded = np.pad(x, pads, mode=MODES.get(options.get("padding_mode", ""), "constant"))
    stride, dilation = (np.broadcast_to(options.get(n, 1), 2) for n in ("stride", "dilation"))
    reads, cells = np.zeros((*out, *w.shape)), np.zeros((*out, *w.shape), int)
    for p, q, r, s in np.ndindex(reads.shape):
        i, j = p * stride[0] + r * dilation[0], q * stride[1] + s * dilation[1]
        reads[p, q, r, s], cells[p, q, r, s] = padded[i, j], i * padded.shape[1] + j
    return padded, reads, cells


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_the_frames_are_the_convolution(case: Any, whole: bool, rng: np.random.Generator) -> None:
    size, kernel, options, pads, out = case
    x = rng.integers(0, 9, size).astype(float) if whole else rng.standard_normal(size)
    w = rng.integers(-3, 4, kernel).astype(float) if whole else rng.standard_normal(kernel)
    padded, reads, cells = taken_apart(x, w, options, pads, out)
    data = sliding(x, w, Fraction(1, 4), 0.5, **options)
    assert data.spec.padding == pads
    assert data.output.shape == out
    np.testing.assert_array_equal(data.padded, padded)
    np.testing.assert_array_equal(data.padding, np.pad(np.ones(size), pads) == 0)
    np.testing.assert_array_equal(data.cells, cells)
    np.testing.assert_array_equal(data.reads, reads)
    np.testing.assert_allclose(data.products, reads * w, atol=1e-15)
    total = (reads * w).sum(axis=(2, 3)) / 4 + 0.5
    np.testing.assert_allclose(data.output, total, rtol=1e-12, atol=1e-12)
    with gc.backend("numpy"):
        y = gc.conv2d(x[None, None], w[None, None] / 4, np.array([0.5]), **options)
    np.testing.assert_array_equal(data.output, y[0, 0])


def test_the_machines_kernels_give_the_same() -> None:
    x, w = presets.whole_image((5, 5), 0, 4), presets.whole_kernel((3, 3), 0)
    y = gc.conv2d(x[None, None].astype("float32"), w[None, None].astype("float32"), padding=1)
    np.testing.assert_array_equal(sliding(x, w, padding=1).output, y[0, 0])


def test_torch_gives_the_same(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, w = rng.standard_normal((6, 9)), rng.standard_normal((3, 2))
    data = sliding(x, w, stride=(1, 2), padding=(2, 1), dilation=(2, 3))
    theirs = torch.nn.functional.conv2d(
        *(torch.from_numpy(a[None, None]) for a in (x, w)), None, (1, 2), (2, 1), (2, 3)
    )
    np.testing.assert_allclose(data.output, theirs[0, 0].numpy(), rtol=1e-12)


def value(text: str) -> float:
    """What "3 + 0 - 2" or "45 × 1/9 + bias (-1)" comes to."""
    text = text.replace("bias ", "").replace("(", "").replace(")", "")
    text = re.sub(r"\+ -", "- ", text)
    total, sign = 0.0, 1.0
    for word in text.split(" "):
        if word in "+-":
            sign = 1.0 if word == "+" else -1.0
        elif "×" in word:
            sign = 0.0  # the next word is a factor
        elif sign == 0.0:
            total, sign = total * float(Fraction(word)), 1.0
        else:
            total += sign * float(word)
    return total


@pytest.mark.parametrize(("factor", "bias"), [(1, 0), (1, 2), (1, -3), ("1/9", 0), ("1/9", -2)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 5), (1, 1), (3, 6)])
def test_the_sum_as_it_is_written(factor: Any, bias: float, kernel: Any) -> None:
    x, w = presets.whole_image((6, 8), 1, 9), presets.whole_kernel(kernel, 2)
    data = sliding(x, w, Fraction(factor), bias)
    for p, q in np.ndindex(data.output.shape):
        *rows, last = written(data, p, q)
        so_far = 0.0
        for row, products in zip(rows, data.products[p, q], strict=True):
            terms, total = row.split("so far")
            if 1 < kernel[1] <= 5:
                left, right = terms.split(" =")
                assert value(left.strip()) == products.sum()
                assert len(re.findall(r"\d+", left)) == kernel[1]
            else:
                right = terms.split(":")[1]
            assert float(right) == products.sum()
            so_far += products.sum()
            assert float(total) == so_far
        left, sign, right = re.split("([=≈])", last.removeprefix("sum"))
        assert float(right) == pytest.approx(data.output[p, q], abs=0.0051)
        if left.strip():
            assert value(left.strip()) == pytest.approx(data.output[p, q])
            assert (sign == "=") == (abs(value(left.strip()) - float(right)) < 1e-9)
        else:
            assert (factor, bias) == (1, 0)


def test_large_kernels_write_the_total_alone() -> None:
    data = sliding(np.ones((14, 14)), np.ones((13, 13)))
    assert written(data, 1, 0) == ["sum = 169"]
    assert len(written(sliding(np.ones((12, 12)), np.ones((12, 12))), 0, 0)) == 13


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_formula_has_the_numbers(case: Any) -> None:
    size, kernel, options, _, out = case
    data = sliding(np.ones(size), np.ones(kernel), **options)
    lines = [line for line in captions(data.spec, [0]) if re.match(r"(height|width)", line)]
    assert len(lines) in (1, 2)
    last = np.max(data.cells, axis=(0, 1, 2, 3))
    ends = divmod(int(last), data.padded.shape[1])
    for axis, name in enumerate(("height", "width")):
        (line,) = [line for line in lines if name in line]
        formula = line.split(": floor")[1]
        n, before, after, d, k, one, last, s, more, size = map(int, re.findall(r"\d+", formula))
        assert one == last == more == 1
        assert (n + before + after - d * (k - 1) - 1) // s + 1 == size == out[axis]
        assert n + before + after == data.padded.shape[axis]
        unread = data.padded.shape[axis] - 1 - ends[axis]
        assert unread == (n + before + after - d * (k - 1) - 1) % s


def drawn(picture: Any) -> list[np.ndarray]:
    """The numbers on the input, the kernel, the products and the output."""
    return [numbers_on(axes) for axes in picture.figure.axes]


def test_what_is_drawn_is_the_data() -> None:
    x = presets.whole_image((5, 6), 0, 4)
    w = presets.whole_kernel((2, 3), 0)
    data = sliding(x, w, stride=(1, 2), padding=1)
    picture = gc.viz.conv((5, 6), (2, 3), stride=(1, 2), padding=1)
    assert picture.frames == data.output.size == 18
    for frame in (0, 7, 17):
        picture.show(frame)
        p, q = divmod(frame, 3)
        source, kernel, products, output = drawn(picture)
        np.testing.assert_array_equal(source, data.padded)
        np.testing.assert_array_equal(kernel, data.kernel)
        np.testing.assert_array_equal(products, data.products[p, q])
        so_far = np.arange(18).reshape(6, 3) <= frame
        np.testing.assert_array_equal(output, np.where(so_far, data.output, np.nan))
        windows = [patch for patch in picture.figure.axes[0].patches if not patch.get_fill()]
        marked = {(round(r.get_y() + 0.44), round(r.get_x() + 0.44)) for r in windows}
        assert marked == {divmod(cell, 8) for cell in data.cells[p, q].ravel().tolist()}
        (now,) = picture.figure.axes[3].patches
        assert (round(now.get_y() + 0.44), round(now.get_x() + 0.44)) == (p, q)
        words = [text.get_text() for text in picture.figure.texts]
        assert written(data, p, q)[-1] in words
        assert any(f"Position {frame + 1} of 18" in text for text in words)
    titles = [axes.get_title() for axes in picture.figure.axes]
    assert titles[0] == "input 5 x 6\npadding 1"
    assert titles[1].startswith("kernel 2 x 3\n")
    assert titles[2].startswith("products\n")
    assert titles[3] == "output 6 x 3\n18 of 18 so far"


LOOKS: list[dict[str, Any]] = [
    {},
    {"image": (9, 9), "kernel": (5, 5), "padding": "same", "bias": -12.5},
    {"image": (2, 12), "kernel": (1, 4), "padding": ((0, 1), (3, 0)), "padding_mode": "replicate"},
    {"image": (1, 1), "kernel": 1},
    {"image": np.linspace(-99, 9999, 35).reshape(7, 5), "kernel": np.full((2, 2), -0.333)},
    {"image": (13, 13), "kernel": 11, "stride": 2},
    {"image": (30, 24), "kernel": 3},
    {"image": (9, 9), "preset": "sobel", "padding": 1},
    {"image": (6, 6), "preset": "blur", "kernel": (2, 4), "bias": 1},
]


@pytest.mark.parametrize("options", LOOKS, ids="-".join)
def test_nothing_is_small_cut_off_or_overlaps(options: dict[str, Any]) -> None:
    picture = gc.viz.conv(**options)
    picture.show(picture.frames // 2)
    check_legible(picture.figure)


def test_frames_drawn_again_in_part_look_whole() -> None:
    from gpuconv.viz.redraw import frames

    picture = gc.viz.conv((4, 4), 2, padding=1)
    fast = list(frames(picture.figure, picture.frames, picture.show))
    for frame in (0, 3, 24):
        picture.show(frame)
        picture.figure.canvas.draw()
        whole = np.asarray(picture.figure.canvas.buffer_rgba())[..., :3]
        np.testing.assert_array_equal(fast[frame], whole)


def test_one_frame_is_a_figure() -> None:
    data = sliding(presets.whole_image((5, 5), 3, 4), presets.whole_kernel((3, 3), 3))
    figure = gc.viz.conv(seed=3, frame=5)
    np.testing.assert_array_equal(numbers_on(figure.axes[2]), data.products[1, 1])
    with pytest.raises(ArgumentError, match=r"frame 10 .*3 x 3 has positions 1 to 9"):
        gc.viz.conv(frame=10)
    with pytest.raises(ArgumentError, match="frame 0"):
        gc.viz.conv(frame=0)


def test_of_many_positions_some_are_shown() -> None:
    picture = gc.viz.conv((16, 14), 3)
    assert picture.frames == FRAMES < 14 * 12
    said = " ".join(text.get_text() for text in picture.figure.texts)
    assert f"{FRAMES} of the 168 positions are shown" in said
    positions = shown((14, 12), None)
    assert (positions[0], positions[-1]) == (0, 167)
    steps = np.diff(positions)
    assert set(steps.tolist()) == {1, 2}
    assert numbers_on(gc.viz.conv((16, 14), 3, frame=168).axes[3]).shape == (14, 12)
    assert "positions are shown" not in str(gc.viz.conv().figure.texts)


def test_seeds() -> None:
    def pixels(seed: int) -> np.ndarray:
        return numbers_on(gc.viz.conv(seed=seed).figure.axes[0])

    np.testing.assert_array_equal(pixels(4), pixels(4))
    assert (pixels(4) != pixels(5)).any()
    assert pixels(4).min() >= 0
    kernel = presets.whole_kernel((4, 5), 0)
    assert sorted(kernel.ravel().tolist()) == sorted([1, -1, 0] * 6 + [1, -1])


def test_presets_are_what_they_are_called() -> None:
    ramp = np.add.outer(np.arange(6.0) * 10, np.arange(7.0))  # 1 a column, 10 a row

    def made(name: str, size: Any = None) -> np.ndarray:
        with gc.backend("numpy"):
            weight = presets.preset(name, size).weight
            return np.asarray(gc.conv2d(ramp[None, None], weight[None, None])[0, 0])

    np.testing.assert_allclose(made("sobel"), 8)  # 2 apart, weighted by 1 + 2 + 1
    np.testing.assert_allclose(made("sobel-y"), 80)
    np.testing.assert_allclose(made("edge"), 0)
    np.testing.assert_allclose(made("sharpen"), ramp[1:-1, 1:-1])
    np.testing.assert_allclose(made("blur"), ramp[1:-1, 1:-1])
    np.testing.assert_allclose(made("blur", (1, 5)), ramp[:, 2:-2])
    np.testing.assert_allclose(presets.preset("edge").weight.sum(), 0)
    assert presets.preset("blur", (2, 4)).factor == Fraction(1, 8)
    assert (presets.preset("sharpen").weight == presets.preset("sharpen").weight.T).all()
    for name in presets.NAMES:
        assert presets.preset(name).meaning


def test_a_preset_says_its_factor_and_meaning() -> None:
    picture = gc.viz.conv((7, 7), preset="blur")
    picture.show(0)
    assert picture.figure.axes[1].get_title() == "kernel 3 x 3\ntimes 1/9"
    np.testing.assert_array_equal(numbers_on(picture.figure.axes[1]), np.ones((3, 3)))
    words = [text.get_text() for text in picture.figure.texts]
    assert "sum 41 × 1/9 ≈ 4.56" in words  # 5 pixels of 1, 4 of the box's 9
    assert any("blur: the mean of the window" in text for text in words)
    assert numbers_on(picture.figure.axes[0]).max() == 9


@pytest.fixture
def photo(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (30, 60, 3), dtype=np.uint8)).save(path)
    return path


def test_an_image_file(photo: Path) -> None:
    figure = gc.viz.conv(photo, preset="edge", size=(6, 8), frame=1)
    grey = read_image(photo, (6, 8), "L")[0]
    np.testing.assert_array_equal(numbers_on(figure.axes[0]), grey)
    assert any("photo.png as grey, 6 x 8" in text.get_text() for text in figure.texts)
    by_default = gc.viz.conv(str(photo), frame=1)
    np.testing.assert_array_equal(
        numbers_on(by_default.axes[0]), read_image(photo, (6, 12), "L")[0]
    )
    check_legible(by_default)
    with pytest.raises(FileError, match=r"none\.png: cannot be read"):
        gc.viz.conv("none.png")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kernel": 7}, r"output would be empty .*input \(5, 5\), kernel \(7, 7\).*larger input"),
        ({"image": (41, 5)}, "41 x 5 is too large .* at most 40 x 40"),
        ({"image": (5, 5), "padding": 20}, "45 x 45 is too large"),
        ({"image": (1 << 20, 1 << 20)}, "too large"),
        ({"kernel": 50}, "too large"),
        ({"image": (5,)}, "image"),
        ({"image": (0, 5)}, "must be at least 1"),
        ({"image": np.full((3, 3), np.nan)}, r"image must be finite numbers \(H, W\)"),
        ({"image": np.zeros((0, 3))}, r"image \(0, 3\) must be \(H, W\)"),
        ({"preset": "emboss"}, "'emboss' is unknown: use one of edge, blur, sharpen, sobel"),
        ({"preset": "sobel", "kernel": 5}, "3 x 3 and was asked for as 5 x 5"),
        ({"preset": "sobel", "kernel": np.ones((3, 3))}, "another is given"),
        ({"size": (3, 3)}, "is for an image file"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"padding_mode": "mirror"}, "'mirror' is unknown"),
        ({"bias": np.inf}, "bias must be finite numbers"),
        ({"seed": -1}, "seed -1 must be a whole number from 0"),
    ],
    ids=str,
)
def test_errors(options: dict[str, Any], match: str) -> None:
    with pytest.raises(Error, match=match) as caught:
        gc.viz.conv(**options)
    assert "\n" not in str(caught.value)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["viz", "conv", *map(str, arguments)])


def test_the_command_writes_a_gif_that_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("--image", "5x5", "--kernel", 3)
    assert (done.exit_code, done.stdout) == (0, "conv.gif\n")
    path = tmp_path / "conv.gif"
    assert path.stat().st_size < 400_000
    with Image.open(path) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 9, 0)
        first = np.array(gif.convert("RGB"))
        gif.seek(8)
        assert (np.array(gif.convert("RGB")) != first).any()
    assert run("--frame", 4).stdout == "conv.png\n"
    with Image.open(tmp_path / "conv.png") as png:
        assert png.format == "PNG"


def test_the_command_writes_a_page_whose_frames_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "conv.html"
    done = run("--image", "5x5", "--padding", 1, "-o", path)
    assert done.exit_code == 0, done.output
    assert path.stat().st_size < 400_000
    page = path.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=.https?:", page)
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
        for data in re.findall(r"data:image/png;base64,([^\")]+)", page)
    ]
    under, *frames = pictures  # the first frame, and what differs from it
    expected = gc.viz.conv(padding=1).images()
    assert len(frames) == len(expected) == 25
    for frame, image in zip(frames, expected, strict=True):
        seen = Image.alpha_composite(under, frame).convert("RGB")
        np.testing.assert_array_equal(np.asarray(seen), np.asarray(image.convert("RGB")))


def test_the_commands_options_arrive(tmp_path: Path, photo: Path) -> None:
    path = tmp_path / "a.png"
    numbers = ("--values", "1 2 3 4; 5 6 7 8; 9 1 2 3", "--kernel-values", "1 0; 0 -1")
    options = ("--stride", "1x2", "--padding", "0:1x2:1", "--dilation", 1, "--bias", 2, "-o", path)
    assert run(*numbers, *options, "--padding-mode", "replicate").exit_code == 0
    assert path.stat().st_size > 5000
    assert run("--image", photo, "--size", "5x6", "--preset", "sobel", "-o", path).exit_code == 0
    with Image.open(path) as png:
        assert png.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--image", "five"), "--image 'five' is no size: .*as in 5x5; or name an image file"),
        (("--image", "0x5"), "--image '0x5' is no size"),
        (("--image", "none.jpg"), "none.jpg: cannot be read"),
        (("--kernel", "7"), "the output would be empty"),
        (("--preset", "none"), "'none' is unknown: use one of edge, blur"),
        (("--values", "1 2; 3"), "--values '1 2; 3' is no matrix"),
        (("--values", "1", "--image", "1x1"), "--image and --values .* one of them"),
        (("--kernel-values", "1", "--kernel", "1"), "--kernel and --kernel-values"),
        (("--kernel-values", "1", "--preset", "blur"), "--preset and --kernel-values"),
        (("--padding", "x"), "--padding 'x' is no padding"),
        (("--frame", "10"), "positions 1 to 9"),
        (("--out", "conv.mp4"), "must end with .gif, .html or .png"),
        (("--frame", "1", "--out", "conv.gif"), "must end with .png"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(arguments: Any, match: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match(f"gpuconv: error: .*{match}", line)


def test_a_wrong_command_line_is_status_2() -> None:
    assert run("--stride").exit_code == 2
    assert run("--seed", "-1").exit_code == 2


def test_the_data_can_be_had_without_drawing() -> None:
    data = sliding([[1, 2], [3, 4]], [[1, 0], [0, 1]])  # type: ignore[arg-type]
    assert isinstance(data, Sliding)
    assert data.output.tolist() == [[5.0]]
