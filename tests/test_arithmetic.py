"""What `gpuconv explain` says, against the layers themselves and counts done by hand."""

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv import nn
from gpuconv.arithmetic import uses
from gpuconv.cli import app
from gpuconv.errors import ArgumentError
from gpuconv.explain import arithmetic
from gpuconv.viz.visits import visits
from gpuconv.words import count, lines, padding as padding_words, ranges, short

pytestmark = pytest.mark.usefixtures("array_code")
PADDINGS: tuple[Any, ...] = (0, 1, "same", "valid", ((0, 2), (1, 0)))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", [1, 2, 3, (4, 1), (2, 5)])
def test_numbers_are_those_of_the_layer(kernel: Any, padding: Any) -> None:
    for size, stride, dilation in product(((7, 7), (10, 13)), (1, 2, (3, 1)), (1, (1, 2))):
        layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups=2)
        try:
            found = arithmetic(
                size, kernel, stride, padding, dilation, channels=4, filters=6, groups=2
            )
        except ArgumentError:
            with pytest.raises(ArgumentError):
                layer(np.zeros((1, 4, *size), np.float32))
            continue
        (row,) = gc.summary(layer, (4, *size)).rows
        assert found.spec.y_shape == row.output_shape
        assert found.parameters == row.parameters
        assert (found.weights, found.biases) == (layer.weight.size, 6)
        assert found.macs == row.macs
        # The summary's is the image where one output sees all of it, padding or not.
        for ours, told, n in zip(found.receptive_field, row.receptive_field, size, strict=True):
            assert told == ours or told == n < ours
        seen = visits(size, kernel, stride, padding, dilation)
        assert found.corner == seen.corners[0]
        assert found.edge == seen.edges[0]
        assert found.centre == seen.centre
        assert tuple(axis.unused for axis in found.axes) == seen.unused
        np.testing.assert_array_equal(
            np.outer(uses(found.spec, 0), uses(found.spec, 1)), seen.counts
        )
        for axis in found.axes:
            assert axis.formula.endswith(f"= {axis.output}")
            last = (axis.output - 1) * axis.stride + axis.field  # where the last window ends
            assert axis.dropped == axis.before + axis.size + axis.after - last
            assert 0 <= axis.dropped < axis.stride
            assert axis.dropped_pixels == max(0, axis.before + axis.size - last)
        assert found.exact == all(axis.dropped == 0 for axis in found.axes)
        assert str(found)


def test_the_formula_with_its_values() -> None:
    found = arithmetic((7, 32), (4, 11), (1, 4), ((1, 2), (0, 0)), (2, 1))
    height, width = found.axes
    assert height.formula == "floor((7 + 1 + 2 - 2 * (4 - 1) - 1) / 1) + 1 = 4"
    assert width.formula == "floor((32 + 0 + 0 - 1 * (11 - 1) - 1) / 4) + 1 = 6"
    assert (width.dropped, width.dropped_pixels, width.unused) == (1, 1, (31,))
    assert "height: 3 / 1 = 3, a whole number; width: 21 / 4 is rounded down to 5" in one(found)
    assert (
        "(remainder 1), which drops column 31 (from 0) of the image; 3 more of padding at the right"
        in one(found)
    )
    assert arithmetic(32, 11, 4, ((0, 3), (0, 3))).spec.y_shape[2:] == (7, 7)
    assert "20000 / 2 = 10000, a whole number" in one(arithmetic(20001, 1, 2))
    assert "19999 / 2 is rounded down to 9999 (remainder 1)" in one(arithmetic(20001, 2, 2))


def one(found: Any) -> str:
    """The text with its lines joined."""
    return " ".join(str(found).split())


def test_an_even_kernel_is_split_unevenly() -> None:
    found = arithmetic(7, 4, padding="same")
    assert [(axis.before, axis.after) for axis in found.axes] == [(1, 2), (1, 2)]
    text = one(found)
    assert "(7 - 1) * 1 + 4 = 10, 3 more than 7: 1 before and 2 after, as of an odd" in text
    assert "a window of 4 rows has no middle one" in text
    assert "output i then reads rows i - 1 to i + 2, half a pixel off" in text
    assert "no middle" not in one(arithmetic(7, 3, padding="same"))
    assert "no middle" not in one(arithmetic(7, 4, dilation=2))  # 7 pixels: symmetric again
    assert "columns i to i + 1" in one(arithmetic(7, (3, 2)))
    assert "rows i - 1 to i + 2 in steps of 3, half" in one(arithmetic(7, 2, dilation=3))


def test_padding_that_the_floor_drops_is_no_pixel() -> None:
    found = arithmetic(6, 3, 3, 1)
    assert [(axis.dropped, axis.dropped_pixels) for axis in found.axes] == [(2, 1), (2, 1)]
    assert "drops row 5 (from 0) of the image and 1 row of padding" in one(found)
    found = arithmetic(5, 3, 3, 1)
    assert [(axis.dropped, axis.dropped_pixels) for axis in found.axes] == [(1, 0), (1, 0)]
    assert "drops 1 row of padding; 2 more of padding at the bottom" in one(found)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((7, 3), {}, "7 x 7 becomes 5 x 5: with no padding a window of 3 x 3 takes 2"),
        ((30, 11), {}, "and large kernels shrink an image quickly"),
        ((8, 1), {"channels": 16, "filters": 4}, "it mixes channels, 16 to an output"),
        ((8, 1), {}, "it scales each channel"),
        ((8, (1, 3)), {}, "with one of 3 x 1 after it, that makes a separable 3 x 3 of 6 weights"),
        ((9, 7), {}, "3 layers of 3 x 3 see 7 x 7 pixels too, with 27 weights"),
        ((8, 3), {"channels": 4, "groups": 4}, "depthwise"),
        ((8, 3), {}, "the top left pixel is in 1 window, the centre in 9"),
        ((9, 3, 1, 0, 2), {}, "reads 3 x 3 of the pixels in 5 x 5 of this layer's input"),
        (
            (7, (3, 1), 1, (0, 1)),
            {},
            "with so little padding a window of 3 x 1 takes 2 off the height",
        ),
        ((8, 2), {"pooling": True}, "translation invariance"),
    ],
)
def test_lessons_where_they_apply(arguments: Any, options: Any, sentence: str) -> None:
    assert sentence in one(arithmetic(*arguments, **options))


def test_large_layers_take_no_time() -> None:
    found = arithmetic(100_000, 10_000)
    assert (found.corner, found.centre) == (1, 10_000**2)
    assert arithmetic(5, 3, padding=(9_999_999, 1)).centre == 9
    assert arithmetic(1 << 20, 250, 3, 7).axes[0].output == ((1 << 20) + 14 - 250) // 3 + 1


def test_lessons_stay_away_where_they_do_not_apply() -> None:
    assert arithmetic(8, 1, channels=2, filters=2).lessons == (
        "a 1 x 1 kernel sees no neighbours: it mixes channels, 2 to an output",
    )
    assert not any("becomes" in lesson for lesson in arithmetic(8, 3, padding=1).lessons)
    assert not any("counts for less" in n for n in arithmetic(7, 1, 2, 1).lessons)


def test_pooling_is_that_of_the_layer() -> None:
    for size, kernel, stride, padding in (
        (9, 2, None, 0),
        ((8, 11), (3, 2), (2, 1), 1),
        (6, 3, 1, "same"),
    ):
        found = arithmetic(size, kernel, stride, padding, channels=5, pooling=True)
        height, width = (axis.size for axis in found.axes)
        (row,) = gc.summary(nn.MaxPool2d(kernel, stride, padding), (5, height, width)).rows
        assert found.spec.y_shape == row.output_shape
        assert found.receptive_field == row.receptive_field
        assert (found.parameters, found.macs) == (0, 0)
        text = str(found)
        assert text.startswith(f"pooling 5 x {height} x {width}")
        assert "no products" in text
    nine = arithmetic(9, 2, pooling=True)
    assert nine.axes[0].unused == (8,)
    assert "in none at all: row 8 and column 8 (from 0)" in one(nine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": 5, "kernel": 7}, r"the output would be empty \(-1 x -1\)"),
        ({"input": 0, "kernel": 1}, "explain: input=0 must be at least 1"),
        ({"input": 5, "kernel": (3, 3, 3)}, "must be one integer or 2"),
        ({"input": 5, "kernel": 3, "channels": 3, "groups": 2}, "must divide the input channels"),
        ({"input": 5, "kernel": 3, "channels": 2, "groups": 4}, "must divide the input channels"),
        ({"input": 5, "kernel": 3, "padding": "full"}, "padding='full' is unknown"),
        ({"input": 5, "kernel": 3, "stride": 0}, "stride=0 must be at least 1"),
        ({"input": 5, "kernel": 3, "pooling": True, "filters": 2}, "leave out groups and filters"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        arithmetic(**options)


def test_words() -> None:
    assert ranges([]) == ""
    assert ranges([3]) == "3"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0 to 2, 5, 7 to 8"
    assert ranges(range(0, 20, 2)) == "0, 2, 4, 6, 8, ..."
    assert ranges([0, 2, 4, 6, 8, 9]) == "0, 2, 4, 6, 8 to 9"
    assert lines([(), (4,)]) == "column 4"
    assert lines([(1, 2), ()]) == "rows 1 to 2"
    assert (short((2, 2)), short((2, 1))) == ("2", "2 x 1")
    assert (count(1, "window"), count(1000, "window")) == ("1 window", "1,000 windows")
    assert padding_words(((0, 0), (0, 0))) == "no padding"
    assert padding_words(((1, 1), (1, 1))) == "padding 1"
    assert padding_words(((-1, -1), (-1, -1))) == "cut off 1"
    assert padding_words(((0, 1), (2, 3))) == "padding bottom 1, left 2, right 3"
    assert padding_words(((1, -2), (0, 0))) == "padding top 1; cut off bottom 2"


def explain(*options: str) -> Any:
    return CliRunner().invoke(app, ["explain", *options])


def test_the_command_prints_the_same() -> None:
    done = explain("--input", "7x7", "--kernel", "4", "--padding", "same")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{arithmetic(7, 4, padding='same')}\n"
    assert max(map(len, done.stdout.splitlines())) <= 96
    done = explain(
        "--input", "9x12", "--kernel", "3", "--stride", "2x1", "--padding", "0:1x2:3",
        "--channels", "4", "--filters", "8", "--groups", "2", "--no-bias", "--json",
    )  # fmt: skip
    found = arithmetic(
        (9, 12), 3, (2, 1), ((0, 1), (2, 3)), channels=4, filters=8, groups=2, bias=False
    )
    assert json.loads(done.stdout) == json.loads(json.dumps(found.to_dict()))
    report = json.loads(done.stdout)
    assert report["parameters"] == 8 * 2 * 9
    assert report["macs"] == found.macs
    assert report["axes"][1]["after"] == 3
    pooled = json.loads(explain("--input", "8", "--kernel", "2", "--pooling", "--json").stdout)
    assert pooled["spec"]["y_shape"] == [1, 1, 4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--input", "5", "--kernel", "7"), "the output would be empty (-1 x -1)"),
        (("--input", "five", "--kernel", "3"), "--input 'five' is no size"),
        (("--input", "5x5", "--kernel", "3", "--channels", "0"), "channels=0 must be at least 1"),
    ],
)
def test_mistakes_get_one_line(options: tuple[str, ...], message: str) -> None:
    done = explain(*options)
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpuconv: error: ")
    assert message in line


def test_a_wrong_command_line_is_status_2() -> None:
    assert explain("--kernel", "3").exit_code == 2
    assert explain("--input", "5", "--kernel", "3", "--filters", "many").exit_code == 2
