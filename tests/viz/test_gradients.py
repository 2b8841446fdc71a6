"""Both gradients taken apart: against loops in float64, the library's own results, and torch."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv.arithmetic import each_axis
from gpuconv.cli import app
from gpuconv.errors import ArgumentError
from gpuconv.viz.gradients import Gradient, gradient

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

OF = ("input", "weight")
CASES: list[dict[str, Any]] = [
    {},
    {"padding": 1},
    {"stride": 2},
    {"stride": 2, "padding": 1},
    {"image": (6, 6), "stride": 2},  # the floor drops a row and a column
    {"image": (6, 8), "kernel": (2, 4), "stride": (2, 3), "padding": "same"},
    {"image": (7, 5), "kernel": 4, "padding": "same"},
    {"image": (8, 7), "kernel": (3, 2), "stride": (1, 2), "padding": ((0, 2), (3, 1))},
    {"image": (9, 7), "kernel": (3, 2), "dilation": (2, 3), "padding": (1, 2)},
    {"image": (9, 8), "dilation": 2, "stride": 3, "padding": ((2, 0), (0, 1))},
    {"image": (7, 5), "kernel": 1, "stride": 3, "padding": ((1, 0), (0, 2))},  # crops gy
    {"image": (4, 10), "kernel": 1, "stride": 20, "padding": 5},  # and leaves nothing of it
    {"image": (1, 6), "kernel": (1, 3)},
    {"image": (5, 4), "kernel": (5, 4)},
]


def loops(data: Gradient) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """gx, gw, and in how many windows each pixel is, from the definition."""
    spec = data.spec
    gx, gw, visits = np.zeros(data.x.shape), np.zeros(data.w.shape), np.zeros(data.x.shape)
    for p, q in np.ndindex(data.gy.shape):
        for r, s in np.ndindex(data.w.shape):
            i = p * spec.stride[0] + r * spec.dilation[0] - spec.padding[0][0]
            j = q * spec.stride[1] + s * spec.dilation[1] - spec.padding[1][0]
            if 0 <= i < data.x.shape[0] and 0 <= j < data.x.shape[1]:
                gx[i, j] += data.gy[p, q] * data.w[r, s]
                gw[r, s] += data.gy[p, q] * data.x[i, j]
                visits[i, j] += 1
    return gx, gw, visits


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_result_is_the_gradient(case: dict[str, Any], of: str) -> None:
    data = gradient(**case, of=of)
    gx, gw, visits = loops(data)
    np.testing.assert_allclose(data.result, gx if of == "input" else gw, rtol=1e-12)
    np.testing.assert_array_equal(data.unused, visits == 0)
    torch = pytest.importorskip("torch")
    x, w, gy = (torch.from_numpy(a[None, None].copy()) for a in (data.x, data.w, data.gy))
    x.requires_grad_(True)
    w.requires_grad_(True)
    (top, bottom), (left, right) = data.spec.padding
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(padded, w, stride=data.spec.stride, dilation=data.spec.dilation)
    y.backward(gy)
    theirs = (x if of == "input" else w).grad
    np.testing.assert_allclose(data.result, theirs.numpy()[0, 0], rtol=1e-12)


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("array_code")
def test_the_windows_give_it(case: dict[str, Any], of: str) -> None:
    data = gradient(**case, of=of)
    np.testing.assert_allclose((data.reads * data.kernel).sum((2, 3)), data.result, atol=1e-12)
    np.testing.assert_array_equal(data.plane.ravel()[data.cells], data.reads)
    for i, j in np.ndindex(data.result.shape):
        for r, s in np.ndindex(data.kernel.shape):
            cell = divmod(int(data.cells[i, j, r, s]), data.plane.shape[1])
            row, column = i * data.step[0] + r * data.apart[0], j * data.step[1] + s * data.apart[1]
            assert cell == (row, column)
    rows, columns = data.result.shape
    y = gc.conv2d(
        data.plane[None, None], np.ascontiguousarray(data.kernel)[None, None], stride=data.step,
        dilation=data.apart,
    )  # fmt: skip
    np.testing.assert_allclose(y[0, 0, :rows, :columns], data.result, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_slides_over_what(case: dict[str, Any]) -> None:
    data = gradient(**case)
    np.testing.assert_array_equal(data.kernel, np.rot90(data.w, 2))
    (top, _), (left, _) = data.pads
    real = np.zeros(data.plane.shape, bool)
    for p, q in np.ndindex(data.gy.shape):
        i, j = top + p * data.spec.stride[0], left + q * data.spec.stride[1]
        if 0 <= i < real.shape[0] and 0 <= j < real.shape[1]:
            real[i, j] = True
            assert data.plane[i, j] == data.gy[p, q]
    np.testing.assert_array_equal(data.padding | data.spread, ~real)
    assert not (data.padding & data.spread).any()
    assert not data.plane[~real].any()
    data = gradient(**case, of="weight")
    np.testing.assert_array_equal(data.kernel, data.gy)
    (top, bottom), (left, right) = data.spec.padding
    np.testing.assert_array_equal(data.plane, np.pad(data.x, ((top, bottom), (left, right))))
    np.testing.assert_array_equal(
        ~data.padding, np.pad(data.x < 99, ((top, bottom), (left, right)))
    )
    assert not data.spread.any()


@pytest.mark.parametrize(
    ("case", "pads", "dropped"),
    [
        ({}, ((2, 2), (2, 2)), (0, 0)),
        ({"padding": 1, "stride": 2}, ((1, 1), (1, 1)), (0, 0)),
        ({"image": (6, 7), "stride": 2}, ((2, 3), (2, 2)), (1, 0)),
        ({"kernel": (2, 4), "padding": "same"}, ((1, 0), (2, 1)), (0, 0)),
        ({"kernel": 1, "padding": ((1, 0), (0, 2))}, ((-1, 0), (0, -2)), (0, 0)),
        ({"image": (32, 9), "kernel": (11, 3), "stride": 4}, ((10, 11), (2, 4)), (1, 2)),
    ],
    ids=str,
)
def test_padding_of_the_spread_gradient(case: dict[str, Any], pads: Any, dropped: Any) -> None:
    data = gradient(**case)
    assert data.pads == pads
    assert tuple(axis.dropped_pixels for axis in each_axis(data.spec)) == dropped
    for axis, count in enumerate(dropped):
        assert data.unused.swapaxes(0, axis)[data.x.shape[axis] - count :].all()


@pytest.mark.usefixtures("array_code")
def test_own_numbers_and_seeds() -> None:
    x, w = np.arange(12.0).reshape(3, 4), [[1, 2], [3, 4.5]]
    gy = np.array([[1.0, 0.0, -1.0], [2.0, 0.5, 0.0]])
    data = gradient(x, w, gy)
    np.testing.assert_array_equal(data.x, x)
    expected = gc.conv2d_grad_input(gy[None, None], np.array(w)[None, None], (1, 1, 3, 4))
    np.testing.assert_array_equal(data.result, expected[0, 0])
    same, other = gradient(of="weight"), gradient(seed=1)
    for name in ("x", "w", "gy"):
        assert (getattr(same, name) == getattr(gradient(), name)).all()
        assert (getattr(same, name) != getattr(other, name)).any()


def written(text: str) -> tuple[float, float]:
    """(The sum of the products that a line has, what it says that it is)."""
    _, sum_, total = text.replace("\xa0", " ").split(" = ")
    numbers = [
        [float(n.strip("()")) for n in term.split(" × ")] for term in re.split(r" \+ ", sum_)
    ]
    return sum(a * b for a, b in numbers), float(total)


@pytest.mark.parametrize("of", OF)
def test_the_sums_are_written_out(of: str) -> None:
    animation = gc.viz.backward((4, 5), (2, 3), stride=(2, 1), padding=(0, 1), of=of)
    data = gradient((4, 5), (2, 3), stride=(2, 1), padding=(0, 1), of=of)
    assert animation.frames == data.result.size
    for frame, value in enumerate(data.result.ravel()):
        animation.show(frame)
        texts = [t.get_text().replace("\n", " ") for t in animation.figure.texts]
        (line,) = [t for t in texts if re.match(r"g[xw]\[", t)]
        if "more" in line:
            assert float(line.split("= ")[-1]) == value
        else:
            assert written(line) == (value, value)
    panels = [axes.get_title() for axes in animation.figure.axes]
    shown = [text.get_text() for text in animation.figure.axes[2 if of == "input" else 1].texts]
    assert [float(text) for text in shown] == [round(v, 2) for v in data.result.ravel()]
    assert all("\n" in title for title in panels)
    if of == "input":
        assert panels[:2] == [
            "output's gradient gy\n2 x 5",
            "gy, spread by stride 2 x 1, padding 1\n5 x 7",
        ]
        assert "w rotated by 180°\n2 x 3" in panels
    else:
        assert panels[0] == "input x, padding left 1, right 1\n4 x 7"
        assert panels[3] == "output's gradient gy\n2 x 5, 2 x 1 apart (stride)"


def test_dropped_pixels_are_told() -> None:
    for of, effect in (("input", "their gradient is 0"), ("weight", "they add nothing")):
        figure = gc.viz.backward((6, 6), 3, stride=2, of=of, frame=1)
        head = " ".join(figure.texts[0].get_text().split())
        assert f"11 of 36 pixels are in no window, so {effect}" in head
        assert ": the floor drops row 5 (from 0) of the image; columns alike" in head
    figure = gc.viz.backward((5, 5), 3, stride=2, frame=1)
    assert "no window" not in figure.texts[0].get_text()
    figure = gc.viz.backward((8, 3), 3, stride=(5, 1), frame=1)
    head = " ".join(figure.texts[0].get_text().split())
    assert "6 of 24 pixels are in no window" in head
    assert ": height: rows 3 to 4 (from 0) are stepped over" in head


def test_frames() -> None:
    long = gc.viz.backward((12, 11), 3)
    assert long.frames == 120
    assert "120 of 132 positions are shown" in long.figure.texts[0].get_text()
    long.show(119)
    (line,) = [t.get_text() for t in long.figure.texts if t.get_text().startswith("gx[")]
    assert line.startswith("gx[11, 10]")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "bias"}, "of='bias' is no gradient to draw: use 'input' or 'weight'"),
        ({"image": (2, 2)}, "the output would be empty"),
        ({"image": (60, 4)}, "image 60 x 4 is too large to draw its cells: use at most 40 x 40"),
        ({"image": 39, "padding": 1}, "input 41 x 41 is too large"),
        ({"image": 39}, "what the kernel slides over 41 x 41 is too large"),
        ({"frame": 26}, "frame 26 is not there: the gradient by input 5 x 5 has positions 1 to 25"),
        ({"frame": 0}, "frame 0 is not there"),
        ({"image": [[1.0, np.nan]], "kernel": 1}, "the image must be finite numbers (H, W)"),
        ({"gy": np.ones((2, 2))}, r"gy (1, 1, 2, 2) must have the shape of the output"),
        ({"image": [[1, 2], [3]]}, "the image must have rows of the same length"),
        ({"frame": 1.5}, "frame=1.5 must be an integer"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"stride": 0}, "stride=0 must be at least 1"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        gc.viz.backward(**options)


class Frames(HTMLParser):
    """Counts what a page would load from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [v for k, v in attrs if k in ("src", "href") and v and "//" in v]


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("suffix", ["gif", "html", "png"])
def test_the_command(suffix: str, of: str, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / f"picture.{suffix}"
    done = CliRunner().invoke(
        app,
        ["viz", "backward", "--image", "4x5", "--kernel", "2x3", "--of", of, "-o", str(path)],
    )
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(path)
    assert path.stat().st_size < 400_000
    count = 20 if of == "input" else 6
    if suffix == "html":
        page = path.read_text(encoding="utf-8")
        assert len(re.findall(r"frames\[\d+\] = ", page)) == count
        assert not Frames(page).outside
        return
    with Image.open(path) as image:
        assert image.format == suffix.upper()
        if suffix == "gif":
            assert image.n_frames == count
            assert image.info["loop"] == 0  # for ever


def test_one_frame(tmp_path: Path) -> None:
    runner, path = CliRunner(), tmp_path / "third.png"
    command = ["viz", "backward", "--stride", "2", "--padding", "0:1x1:0", "--dilation", "1x2"]
    assert runner.invoke(app, [*command, "--frame", "3", "-o", str(path)]).exit_code == 0
    last = tmp_path / "last.png"
    assert runner.invoke(app, [*command, "-o", str(last)]).exit_code == 0
    assert path.read_bytes()[:8] == last.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.read_bytes() != last.read_bytes()
    done = runner.invoke(app, [*command, "--frame", "3", "-o", str(tmp_path / "third.gif")])
    assert done.exit_code == 1
    assert not (tmp_path / "third.gif").exists()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--image", "5y5"], 1, "--image '5y5' is no size: write HxW"),
        (["--image", "2x2"], 1, "the output would be empty"),
        (["--padding", "-1"], 1, "--padding '-1' is no padding"),
        (["--of", "bias"], 1, "of='bias' is no gradient to draw"),
        (["--frame", "99"], 1, "has positions 1 to 25"),
        (["-o", "picture.jpeg"], 1, "must end with .gif, .html or .png"),
        (["--seed", "one"], 2, ""),
    ],
    ids=str,
)
def test_errors_are_one_line(options: list[str], status: int, message: str) -> None:
    done = CliRunner().invoke(app, ["viz", "backward", *options])
    assert done.exit_code == status
    if status == 1:
        assert done.stderr.startswith("gpuconv: error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
