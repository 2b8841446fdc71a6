"""Frames of which only what moves is drawn again look as if all of it were."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

import gpuconv as gc
from gpuconv.viz.redraw import frames
from gpuconv.viz.style import Animation, Grid, new_figure

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")


def whole(picture: Animation, frame: int) -> np.ndarray:
    picture.show(frame)
    picture.figure.canvas.draw()
    return np.array(picture.figure.canvas.buffer_rgba())[..., :3]


def grids() -> Animation:
    """Two grids that no one placed: numbers, titles, outlines and a word change."""
    figure = new_figure(4, 2)
    left, right = (
        Grid(axes, np.eye(3), f"panel {i}") for i, axes in enumerate(figure.subplots(1, 2))
    )
    word = figure.text(0.5, 0.02, "")
    left.mark("always", [(0, 0)], "black")

    def show(frame: int) -> None:
        left.mark("now", [(frame, 1)], "red", "--")
        if frame != 2:  # what changes in some frames only
            right.set(np.eye(3) * frame + 0.5, f"panel {frame}")
        right.mark("some", [(1, 1)] * (frame == 1), "black")
        word.set_text("word " * frame)

    return Animation(figure, 3, show)


@pytest.mark.parametrize("make", [grids, lambda: gc.viz.backward((3, 4), 2, stride=2, padding=1)])
def test_frames_are_those_of_whole_drawings(make: Callable[[], Animation]) -> None:
    picture = make()
    fast = list(frames(picture.figure, picture.frames, picture.show))
    assert len(fast) == picture.frames
    for frame, image in enumerate(fast):
        np.testing.assert_array_equal(image, whole(picture, frame))
    assert any((a != b).any() for a, b in pairwise(fast))


def test_one_frame() -> None:
    picture = grids()
    (only,) = frames(picture.figure, 1, picture.show)
    np.testing.assert_array_equal(only, whole(picture, 0))
