"""What a training run came to: its curves, its confusion matrix, its worst mistakes."""

import csv
import io
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import ops, run
from gpuconv.data.dataset import Images
from gpuconv.errors import ArgumentError, FileError
from gpuconv.files import StrPath, read_bytes
from gpuconv.shapes import ints
from gpuconv.train.callbacks import draw_curves
from gpuconv.train.history import COLUMNS, History
from gpuconv.viz.canvas import plain
from gpuconv.viz.layers import plane
from gpuconv.viz.style import INK, count, new_figure, show_image

NUMBERED = 24  # classes, up to which cells are large enough for their numbers
LONGEST = 14  # letters of a class's name


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model gives for labelled images: `labels` (N,), `scores` (N, K) before softmax.

    `classes` are the K names, `images` (N, C, H, W), uint8 or in 0..1, those that were shown to it.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    images: Images

    def __post_init__(self) -> None:
        for name in ("labels", "scores"):  # lists will do
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        if isinstance(self.images, list):
            object.__setattr__(self, "images", np.asarray(self.images))
        if self.labels.dtype.kind not in "ui" or self.scores.dtype.kind not in "uif":
            raise ArgumentError(
                f"Evaluation: labels of {self.labels.dtype} must be whole numbers, and scores of "
                f"{self.scores.dtype} numbers"
            )
        n, k = len(self.labels), len(self.classes)
        if not n or self.scores.shape != (n, k) or len(self.images) != n:
            raise ArgumentError(
                f"Evaluation: scores {self.scores.shape} for {n} labels, {len(self.images)} images "
                f"and {k} classes must be one row an image, one column a class, and not empty"
            )
        if not 0 <= self.labels.min() <= self.labels.max() < k:
            raise ArgumentError(
                f"Evaluation: labels from {self.labels.min()} to {self.labels.max()} must be 0 to "
                f"{k - 1}, for {k} classes"
            )

        if not np.isfinite(self.scores).all():
            bad = int(np.flatnonzero(~np.isfinite(self.scores).all(axis=1))[0])
            raise ArgumentError(
                f"Evaluation: the scores of image {bad} are NaN or infinite; are the model's "
                f"weights finite?"
            )

    @property
    def predicted(self) -> np.ndarray:
        """The class with the highest score, (N,)."""
        return self.scores.argmax(axis=1)

    @property
    def probabilities(self) -> np.ndarray:
        """(N, K), float64."""
        return np.asarray(ops.softmax(self.scores.astype(np.float64), dim=1))

    @property
    def losses(self) -> np.ndarray:
        """The cross entropy of each image, (N,), float64."""
        scores = self.scores.astype(np.float64)
        return np.asarray(ops.cross_entropy(scores, self.labels, reduction="none"))

    @property
    def counts(self) -> np.ndarray:
        """The confusion matrix (K, K): images of the true class (row) by predicted class."""
        size = len(self.classes)
        cells = self.labels * size + self.predicted
        return np.bincount(cells, minlength=size * size).reshape(size, size)

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.labels).mean())

    def worst(self, most: int) -> np.ndarray:
        """The indices of at most so many images that are classified wrongly, highest loss first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        order = np.argsort(-self.losses[wrong], kind="stable")
        return wrong[order[:most]]


def evaluate(folder: StrPath, data: str | None = None, checkpoint: str = "last") -> Evaluation:
    """A run's model on its test images, or on the test part of other `data` with the same classes.

    The "best" checkpoint was chosen on the run's own test images, so its figures are optimistic.
    FileError for a folder that is no run's, ArgumentError for data with other classes.
    """
    config, trainer = run.trained(Path(folder), "cpu", checkpoint)
    source = config if data is None else replace(config, data=data)
    _, testing = run.datasets(source)
    if testing.classes != config.classes:
        raise ArgumentError(
            f"{source.data} has the classes {', '.join(testing.classes)}, the run was trained on "
            f"{', '.join(config.classes)}"
        )
    scores = trainer.predict(run.loader(config, testing, training=False))
    return Evaluation(config.classes, testing.labels, scores, testing.images)


def read_history(folder: StrPath) -> History:
    """The history in the results.csv of a run folder; FileError if it is missing or damaged."""
    path = Path(folder) / "results.csv"
    content = read_bytes(path)
    history = History()
    try:
        header, *rows = csv.reader(io.StringIO(content.decode("utf-8"), newline=""))
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(header)}")
        for row in rows:
            values = dict(zip(COLUMNS, (float(v) if v else None for v in row), strict=True))
            history.rows.append({**values, "epoch": int(row[0])})
    except (ValueError, csv.Error) as error:
        raise FileError(
            f"{path}: is no history of a run ({error}); its columns must be {', '.join(COLUMNS)}"
        ) from error
    if not history.rows:
        raise FileError(f"{path}: holds no epoch yet; wait for the first, or train")
    return history


def curves(source: StrPath | History) -> Any:
    """Draw loss, accuracy and learning rate over the epochs of a run folder, or of a `History`.

    FileError if there is no history.
    """
    history = source if isinstance(source, History) else read_history(source)
    figure = draw_curves(history)
    name = "" if isinstance(source, History) else f"{plain(str(source))}, "
    figure.suptitle(f"{name}{count(len(history), 'epoch')}", fontsize=11, color=INK)
    return figure


def confusion(
    source: StrPath | Evaluation, data: str | None = None, checkpoint: str = "last"
) -> Any:
    """Draw the confusion matrix of a run folder, see `evaluate`, or of an `Evaluation`.

    Rows are the true classes; a cell has the number of images and its share of the row.
    """
    found = source if isinstance(source, Evaluation) else evaluate(source, data, checkpoint)
    counts, size = found.counts, len(found.classes)
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    numbered = size <= NUMBERED
    inches = max(0.62 * size if numbered else 8.0, 3.0)
    figure = new_figure(inches + 3.4, inches + 2.2)
    axes = figure.subplots()
    image = plane(axes, shares, "", 0.0, 1.0)
    if numbered:
        for i, j in np.ndindex(size, size):
            share = f"\n{100 * shares[i, j]:.0f}%" if counts[i, j] else ""
            axes.text(
                j, i, f"{counts[i, j]}{share}", ha="center", va="center", fontsize=8,
                fontweight="bold" if i == j else "normal",
                color="white" if shares[i, j] < 0.5 else INK,
            )  # fmt: skip
    at = np.arange(0, size, ceil(size / 40))
    names = [_short(name) for name in found.classes]
    axes.set_yticks(at, [f"{names[i]} ({totals[i]})" for i in at], fontsize=8)
    axes.set_xticks(at, [names[i] for i in at], fontsize=8, rotation=90)
    axes.set_ylabel("true class (images)", fontsize=9)
    axes.set_xlabel("predicted class", fontsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("share of the true class's images", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    right = int(np.trace(counts))
    figure.suptitle(
        f"confusion matrix: {right:,} of {count(len(found.labels), 'image')} right, "
        f"accuracy {found.accuracy:.4f}",
        fontsize=11, color=INK,
    )  # fmt: skip
    return figure


def mistakes(
    source: StrPath | Evaluation,
    data: str | None = None,
    checkpoint: str = "last",
    *,
    most: int = 12,
) -> Any:
    """Draw the wrongly classified images with the highest losses of a run folder or `Evaluation`.

    Each has its true and its predicted class, with the probabilities the model gave them.
    ArgumentError if there is no mistake.
    """
    if not 1 <= ints("mistakes", "most", most, 1)[0] <= 100:
        raise ArgumentError(f"most={most} must be 1 to 100")
    found = source if isinstance(source, Evaluation) else evaluate(source, data, checkpoint)
    worst = found.worst(most)
    if not len(worst):
        raise ArgumentError(
            f"all of {count(len(found.labels), 'image')} are classified right: no mistake to draw"
        )
    wrong = int((found.predicted != found.labels).sum())
    chances, losses, predicted = found.probabilities, found.losses, found.predicted
    columns = min(4, len(worst))
    rows = ceil(len(worst) / columns)
    _, height, width = found.images.shape[1:]
    tall = min(max(2.3 * height / width, 0.8), 3.5)
    figure = new_figure(max(2.5 * columns, 6), (tall + 0.75) * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes in panels[len(worst) :]:
        axes.set_axis_off()
    for axes, i in zip(panels, worst, strict=False):
        image = np.asarray(found.images[i])
        lines = [f"image {i}, loss {losses[i]:.2f}"]
        for what, k in (("true", found.labels[i]), ("predicted", predicted[i])):
            lines.append(f"{what}: {_short(found.classes[k])}, {chances[i, k]:.3f}")
        show_image(axes, image / (255 if image.dtype == np.uint8 else 1), "\n".join(lines))
    figure.suptitle(
        f"the {f'{len(worst)} ' if len(worst) > 1 else ''}worst of {count(wrong, 'mistake')} "
        f"in {count(len(found.labels), 'image')}, with the probabilities given",
        fontsize=11, color=INK,
    )  # fmt: skip
    return figure


def _short(name: str) -> str:
    name, half = plain(name), LONGEST // 2
    cut = f"{name[:half].strip()}…{name[-half:].strip()}"
    return name if len(name) <= LONGEST else cut
