"""Captions, legends and marks say what is drawn; files hold the frames that they should.

Figures are read through matplotlib's texts and patches, and compared with what loops count.
"""

import io
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import nn
from tests.viz import numbers_on

style = pytest.importorskip("gpuconv.viz.style")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("array_code")

Cells = list[tuple[int, int]]
UNEVEN = ((1, 2), (3, 0))  # before, after; of the rows, of the columns
# (image, kernel, stride, padding before and after, dilation), none of them square
SETTINGS: list[Any] = [
    ((5, 6), (2, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ((7, 5), (2, 1), (3, 2), ((1, 0), (0, 2)), (1, 1)),
    ((6, 9), (1, 3), (2, 3), ((0, 1), (2, 0)), (1, 2)),
    ((8, 6), (3, 2), (1, 4), ((2, 1), (0, 0)), (2, 1)),
]


def panel(figure: Any, *words: str) -> Any:
    """The one panel whose title has these words."""
    (axes,) = (a for a in figure.axes if all(word in a.get_title() for word in words))
    return axes


def cells(patches: Any) -> Cells:
    """(row, column) of rectangles in cells, along the rows."""
    found = []
    for patch in patches:
        x, y = patch.get_center()
        found.append((round(y), round(x)))
        assert patch.get_center() == pytest.approx((round(x), round(y)))
    return sorted(found)


def outlined(axes: Any, line: str) -> Cells:
    return cells(p for p in axes.patches if not p.get_fill() and p.get_linestyle() == line)


def hatched(axes: Any, hatch: str) -> Cells:
    return cells(p for p in axes.patches if p.get_hatch() == hatch)


def written(figure: Any) -> str:
    return "\n".join(text.get_text() for text in figure.texts).replace("\xa0", " ")


def line_of(figure: Any, start: str) -> str:
    """The one line of the figure's texts that starts so."""
    (line,) = (line for line in written(figure).split("\n") if line.startswith(start))
    return line


def border(size: tuple[int, int], pads: Any) -> Cells:
    """The cells of a padded plane that are padding."""
    (top, bottom), (left, right) = pads
    rows, columns = size[0] + top + bottom, size[1] + left + right
    return [
        (i, j)
        for i, j in product(range(rows), range(columns))
        if not (top <= i < top + size[0] and left <= j < left + size[1])
    ]


def vector(figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    return stream.getvalue()


# Padding


@pytest.mark.parametrize("name", ["conv", "channels", "backward"])
def test_the_padding_is_told_side_by_side(name: str) -> None:
    size = (2, 4, 6) if name == "channels" else (4, 6)
    of = {"of": "weight"} if name == "backward" else {}
    figure = getattr(gc.viz, name)(size, (2, 3), padding=UNEVEN, frame=1, **of)
    axes = panel(figure, "input x") if of else figure.axes[0]
    assert hatched(axes, "///") == border((4, 6), UNEVEN)
    caption = line_of(figure, "Convolution of" if of else "hatched")
    for text in (axes.get_title(), caption):
        sides = dict(re.findall(r"(top|bottom|left|right) (\d+)", text))
        assert sides == {"top": "1", "bottom": "2", "left": "3"}


# What colours stand for


def colour_name(axes: Any, value: float) -> str:
    red, _, blue, _ = axes.images[0].cmap(axes.images[0].norm(value))
    return "purple" if blue > red + 0.05 else "orange" if red > blue + 0.05 else "neither"


@pytest.mark.parametrize("name", ["conv", "channels"])
def test_the_colours_of_planes_without_numbers_are_named(name: str) -> None:
    size = (20, 6) if name == "conv" else (2, 20, 6)
    animation = getattr(gc.viz, name)(size, (2, 3), seed=1)
    animation.show(animation.frames - 1)
    figure = animation.figure
    what, title = ("output", "output") if name == "conv" else ("maps", "map 1 of 2")
    axes, line = panel(figure, title), line_of(figure, f"{what} from")
    low, high = map(float, re.findall(r"-?[\d.]+\d|-?\d", line)[:2])
    assert low < 0 < high
    if name == "conv":
        values = axes.images[0].get_array()
        assert (low, high) == pytest.approx((values.min(), values.max()), abs=0.01)
    ((below, above),) = re.findall(r"(\w+) below 0, (\w+) above", line)
    assert (colour_name(axes, low), colour_name(axes, high)) == (below, above)
    pixels = figure.axes[0].images[0]
    assert line_of(figure, "input from 0 to").endswith("the brighter, the larger")
    least, most = (sum(pixels.cmap(pixels.norm(v))[:3]) for v in pixels.get_clim())
    assert most > least + 1


@pytest.mark.parametrize("sign", [1, -1])
def test_colours_of_filters_are_around_grey(sign: int, rng: np.random.Generator) -> None:
    layer = nn.Conv2d(3, 2, (2, 3), bias=False)
    weight = rng.uniform(-0.3, 0.2, (2, 3, 2, 3)).astype(np.float32) * sign
    layer.load_state_dict({"weight": weight})
    figure = gc.viz.filters(nn.Sequential(layer))
    largest = np.abs(weight).max()
    for k in range(2):
        pixels = panel(figure, f"filter {k}").images[0].get_array()
        np.testing.assert_allclose(
            pixels, 0.5 + weight[k].transpose(1, 2, 0) / largest / 2, atol=1e-6
        )
    ((white,),) = [re.findall(r"grey is 0, white ([\d.]+)", figure.get_suptitle())]
    assert float(white) == pytest.approx(largest, rel=0.06)


@pytest.mark.parametrize("sign", [1, -1])
def test_feature_maps_have_zero_in_the_middle_of_the_colours(sign: int) -> None:
    layer = nn.Conv2d(1, 2, 1, bias=False)
    layer.load_state_dict({"weight": np.array([1, 2], np.float32).reshape(2, 1, 1, 1)})
    x = np.array([[[-3, 0, 1], [0.5, 1, 0]]], np.float32) * sign
    model = nn.Sequential(layer, nn.ReLU())
    figure = gc.viz.features(model, x, "0")
    for i in range(2):
        axes = panel(figure, f"map {i}")
        assert axes.images[0].get_clim() == (-6, 6)
        pixels = axes.images[0]
        brightness = [sum(pixels.cmap(pixels.norm(v))[:3]) for v in (-3, -1, 0, 1, 3)]
        assert brightness == sorted(brightness)
        assert len(set(brightness)) == 5
        assert pixels.norm(0) == 0.5
    most = 2.0 if sign > 0 else 6.0
    assert panel(gc.viz.features(model, x, "1"), "map 0").images[0].get_clim() == (0, most)


# How often a pixel is used


@pytest.mark.parametrize(
    ("size", "kernel", "padding"),
    [
        ((7, 5), 3, 0),
        ((6, 9), (4, 3), ((2, 0), (0, 1))),
        ((9, 8), (4, 3), ((0, 1), (2, 1))),
        ((1, 6), (1, 2), 0),
    ],
)
def test_coverage_names_the_places_that_it_marks(size: Any, kernel: Any, padding: Any) -> None:
    figure = gc.viz.coverage(size, kernel, padding=padding)
    axes, (rows, columns) = figure.axes[0], size
    counts = numbers_on(axes)
    assert counts.shape == size
    middle = i, j = rows // 2, columns // 2
    assert outlined(axes, "-") == [(0, 0)]
    assert outlined(axes, "--") == [(0, j)]
    assert outlined(axes, ":") == [middle]
    assert "corner solid, edge dashed, centre dotted" in written(figure)
    places = {
        "top left": (0, 0), "top right": (0, -1), "bottom left": (-1, 0), "bottom right": (-1, -1),
        "top": (0, j), "left": (i, 0), "right": (i, -1), "bottom": (-1, j), "centre": middle,
        "corner": (0, 0), "edge": (0, j),
    }  # fmt: skip
    lines = [line for line in written(figure).split("\n") if re.match("corner|edges", line)]
    told = re.findall(rf"({'|'.join(places)}) (\d+)", "\n".join(lines))
    assert len(told) == (3 if lines[0].startswith("corner ") else 9)
    for place, n in told:
        assert int(n) == counts[places[place]], place
    ((mean, most),) = re.findall(r"([\d.]+) times on average, (\d+) at most", written(figure))
    assert float(mean) == pytest.approx(counts.mean(), abs=0.0051)
    assert int(most) == counts.max()


def test_the_places_of_an_uneven_image_have_counts_of_their_own() -> None:
    """Else the test above could not tell them apart."""
    counts = numbers_on(gc.viz.coverage((9, 8), (4, 3), padding=((0, 1), (2, 1))).axes[0])
    for some in (counts[[0, 4, 4, -1], [4, 0, -1, 4]], counts[[0, 0, -1, -1], [0, -1, 0, -1]]):
        assert len(set(some.tolist())) == 4


# Gradients


def used_pixels(setting: Any) -> tuple[tuple[int, int], set[tuple[int, int]]]:
    """(the output's size, the pixels that lie in a window), counted."""
    size, kernel, stride, padding, dilation = setting
    out = [
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    used = {
        (
            p * stride[0] + r * dilation[0] - padding[0][0],
            q * stride[1] + s * dilation[1] - padding[1][0],
        )
        for p, q, r, s in product(*map(range, (*out, *kernel)))
    }
    return (out[0], out[1]), used & set(product(range(size[0]), range(size[1])))


def drawn(setting: Any, of: str) -> Any:
    size, kernel, stride, padding, dilation = setting
    return gc.viz.backward(size, kernel, stride=stride, padding=padding, dilation=dilation, of=of)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_window_of_a_gradient_by_weight(setting: Any) -> None:
    _, kernel, stride, _, dilation = setting
    (rows, columns), _ = used_pixels(setting)
    animation = drawn(setting, "weight")
    figure = animation.figure
    plane, result = panel(figure, "input x"), panel(figure, "gradient by weight")
    for frame, (i, j) in enumerate(np.ndindex(*kernel)):
        animation.show(frame)
        window = [
            (i * dilation[0] + p * stride[0], j * dilation[1] + q * stride[1])
            for p, q in np.ndindex(rows, columns)
        ]
        assert outlined(plane, "-") == window
        assert outlined(result, "-") == [(i, j)]
        read = numbers_on(panel(figure, f"pixels that w[{i}, {j}] met"))
        assert [numbers_on(plane)[cell] for cell in window] == read.ravel().tolist()
        products = numbers_on(panel(figure, "products", f"gw[{i}, {j}]"))
        assert products.sum() == numbers_on(result)[i, j]
        assert f"\ngw[{i}, {j}] = " in written(figure)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_window_of_a_gradient_by_input(setting: Any) -> None:
    size, kernel, stride, padding, dilation = setting
    (rows, columns), _ = used_pixels(setting)
    animation = drawn(setting, "input")
    figure = animation.figure
    plane, result = panel(figure, "gy", "\n", "padd"), panel(figure, "gradient by input")
    before = [d * (k - 1) - p[0] for d, k, p in zip(dilation, kernel, padding, strict=True)]
    # Between the numbers of gy there are the zeros of the stride, and those have dots.
    numbers = list(
        product(
            [before[0] + p * stride[0] for p in range(rows)],
            [before[1] + q * stride[1] for q in range(columns)],
        )
    )
    inside = list(product(*(range(a, b + 1) for a, b in zip(numbers[0], numbers[-1], strict=True))))
    shape = plane.images[0].get_array().shape
    there = [cell for cell in inside if 0 <= cell[0] < shape[0] and 0 <= cell[1] < shape[1]]
    assert hatched(plane, "...") == sorted(set(there) - set(numbers))
    assert not set(hatched(plane, "///")) & set(numbers)
    for frame, (i, j) in enumerate(np.ndindex(*size)):
        if frame % 5:
            continue
        animation.show(frame)
        window = [(i + r * dilation[0], j + s * dilation[1]) for r, s in np.ndindex(*kernel)]
        assert outlined(plane, "-") == window
        assert outlined(result, "-") == [(i, j)]
        read = numbers_on(panel(figure, "window"))
        assert [numbers_on(plane)[cell] for cell in window] == read.ravel().tolist()
        assert f"\ngx[{i}, {j}] = " in written(figure)


@pytest.mark.parametrize("of", ["input", "weight"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_pixels_in_no_window_are_marked(setting: Any, of: str) -> None:
    size, _, _, ((top, _), (left, _)), _ = setting
    pixels = set(product(range(size[0]), range(size[1])))
    unused = sorted(pixels - used_pixels(setting)[1])
    animation = drawn(setting, of)
    animation.show(0)
    figure = animation.figure
    by_weight = of == "weight"
    axes = panel(figure, "input x" if by_weight else "gradient by input")
    shift = (top, left) if by_weight else (0, 0)
    assert outlined(axes, ":") == [(i + shift[0], j + shift[1]) for i, j in unused]
    told = re.findall(r"(\d+) of (\d+) pixels are in no window", written(figure))
    assert told == ([(str(len(unused)), str(len(pixels)))] if unused else [])
    # The legend names the marks that are there, drawn as they are, and no other.
    signs = {p.get_label(): p for p in figure.legends[0].legend_handles}
    plane = panel(figure, "input x") if by_weight else panel(figure, "gy", "\n", "padd")
    assert ("in no window" in signs) == bool(unused)
    assert ("padding" in signs) == bool(hatched(plane, "///"))
    assert ("zeros put in by the stride" in signs) == bool(hatched(plane, "..."))
    for label, line in (("window and its sum", "-"), ("in no window", ":")):
        marks = [p for p in plane.patches + axes.patches if p.get_linestyle() == line]
        edges = {p.get_edgecolor() for p in marks if not p.get_fill()}
        assert edges == ({signs[label].get_edgecolor()} if label in signs else set())
    legend = vector(figure).split('id="legend_1"')[1]
    assert legend.count("stroke-dasharray") == bool(unused)  # its sign is dotted too
    for label, hatch in (("padding", "///"), ("zeros put in by the stride", "...")):
        if label in signs:
            assert signs[label].get_hatch() == hatch


def test_of_these_settings_some_leave_pixels_out() -> None:
    """Else the test above could not tell."""
    left = [s[0][0] * s[0][1] - len(used_pixels(s)[1]) for s in SETTINGS]
    assert left[0] == 0
    assert min(left[1:3]) > 0


# Files

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def blinking(seconds: float = 0.7) -> Any:
    """Frames that are each of one of the colours."""
    from matplotlib.patches import Rectangle

    figure = style.new_figure(1, 1)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    patch = axes.add_patch(Rectangle((0, 0), 1, 1, linewidth=0))

    def show(i: int) -> None:
        patch.set_facecolor([part / 255 for part in COLOURS[i]])

    return style.Animation(figure, len(COLOURS), show, seconds)


def middle(image: Any) -> tuple[int, ...]:
    return tuple(image.convert("RGB").getpixel((50, 50)))


def test_a_png_is_the_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    animation = blinking()
    animation.show(1)
    animation.save(path)
    with Image.open(path) as image:
        assert middle(image) == COLOURS[-1]


@pytest.mark.parametrize("seconds", [0.7, 0.25])
def test_a_gif_shows_each_frame_so_long_and_begins_again(seconds: float, tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    blinking(seconds).save(path)
    with Image.open(path) as image:
        assert image.info["loop"] == 0  # for ever
        assert image.n_frames == len(COLOURS)
        times = []
        for i, colour in enumerate(COLOURS):
            image.seek(i)
            assert np.abs(np.subtract(middle(image), colour)).max() < 40
            times.append(image.info["duration"])
    assert times[:-1] == [seconds * 1000] * (len(COLOURS) - 1)  # milliseconds
    assert seconds * 1000 <= times[-1] <= 5000


class Page(HTMLParser):
    """A page's title, its elements, what stands for its picture, and the page in its frame."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.title, self.alt, self.inner = "", "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        given = dict(attrs)
        self.alt += given.get("alt") or ""
        self.inner += given.get("srcdoc") or ""

    def handle_data(self, data: str) -> None:
        self.title += data if self.elements[-1:] == ["title"] else ""


def test_a_title_is_text_and_no_html() -> None:
    title = """1 < 2 & </title><b> "x" 'y' &amp;"""
    animation = blinking()
    animation.figure.axes[0].set_title(title)
    cell = Page(animation._repr_html_())
    assert cell.elements == ["iframe"]
    for page in (Page(animation.to_jshtml()), Page(cell.inner)):
        assert page.title.strip() == title
        assert page.alt == title
        assert page.elements.count("title") == 1
        assert "b" not in page.elements
