"""A run's curves, confusion matrix and mistakes: the numbers, and what the pictures say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv import run
from gpuconv.cli import app
from gpuconv.errors import ArgumentError, FileError
from gpuconv.train.history import COLUMNS
from gpuconv.viz.results import Evaluation, evaluate, read_history

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "run"
    run.start(run.Config(epochs=2, batch_size=32, limit=96), place, "cpu")
    return place


@pytest.fixture
def made(rng: np.random.Generator) -> Evaluation:
    labels = rng.integers(0, 3, 40)
    images = rng.integers(0, 256, (40, 3, 6, 9), dtype=np.uint8)
    return Evaluation(("ant", "bee", "cat", "dog"), labels, rng.normal(size=(40, 4)), images)


def test_figures_of_an_evaluation(made: Evaluation) -> None:
    torch = pytest.importorskip("torch")
    counts = np.zeros((4, 4), int)
    right = 0
    for label, row in zip(made.labels, made.scores, strict=True):
        guess = max(range(4), key=lambda k, row=row: row[k])
        counts[label, guess] += 1
        right += guess == label
    np.testing.assert_array_equal(made.counts, counts)
    assert made.accuracy == right / 40
    scores, labels = torch.tensor(made.scores), torch.tensor(made.labels)
    losses = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    np.testing.assert_allclose(made.losses, losses.numpy(), rtol=1e-12)
    np.testing.assert_allclose(made.probabilities, torch.softmax(scores, 1).numpy(), rtol=1e-12)


def test_the_worst_are_wrong_and_in_order(made: Evaluation) -> None:
    wrong = {i for i in range(40) if made.predicted[i] != made.labels[i]}
    worst = made.worst(100)
    assert set(worst) == wrong
    assert (np.diff(made.losses[worst]) <= 0).all()
    np.testing.assert_array_equal(made.worst(5), worst[:5])


def test_evaluating_a_run_gives_its_figures(folder: Path) -> None:
    for checkpoint in ("last", "best"):
        found = evaluate(folder, checkpoint=checkpoint)
        said = run.evaluate(folder, "cpu", None, checkpoint)
        assert found.accuracy == pytest.approx(said["accuracy"])
        assert found.losses.mean() == pytest.approx(said["loss"], rel=1e-5)
        assert found.counts.sum() == said["images"] == 96
        _, testing = run.datasets(run.Config.load(folder / "config.json"))
        np.testing.assert_array_equal(found.counts.sum(axis=1), np.bincount(testing.labels))
        np.testing.assert_array_equal(found.images[:5], testing.images[:5])


def test_other_data(folder: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    classes = run.Config.load(folder / "config.json").classes
    for part in ("train", "test"):
        for name in classes:
            place = tmp_path / "data" / part / name.replace("/", "-")
            place.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(place / "a.png")
    with pytest.raises(ArgumentError, match=r"has the classes Ankle boot, Bag,.*was trained on"):
        evaluate(folder, str(tmp_path / "data"))
    with pytest.raises(FileError, match="'nowhere' is neither a folder of images nor one of"):
        evaluate(folder, "nowhere")


def test_the_confusion_matrix_drawn(made: Evaluation) -> None:
    figure = gc.viz.confusion(made)
    right = int(np.trace(made.counts))
    said = f"confusion matrix: {right} of 40 images right, accuracy {right / 40:.4f}"
    assert figure.get_suptitle() == said
    axes = figure.axes[0]
    shares = np.asarray(axes.images[0].get_array())
    texts = [text.get_text() for text in axes.texts]
    for i in range(4):
        total = (made.labels == i).sum()
        for j in range(4):
            count = made.counts[i, j]
            share = count / total if total else 0
            assert shares[i, j] == pytest.approx(share)
            text = f"{count}\n{100 * share:.0f}%" if count else "0"
            assert texts[4 * i + j] == text
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [f"{n} ({(made.labels == i).sum()})" for i, n in enumerate(made.classes)]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(made.classes)


def test_many_classes_have_colours_only(rng: np.random.Generator) -> None:
    names = tuple(f"a long name of class {i}" for i in range(90))
    labels, images = rng.integers(0, 90, 50), np.zeros((50, 1, 2, 2), np.uint8)
    axes = gc.viz.confusion(Evaluation(names, labels, rng.normal(size=(50, 90)), images)).axes[0]
    assert not axes.texts
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown[:2] == ["a long…class 0", "a long…class 3"]
    assert len(shown) == 30


def test_mistakes_say_true_and_predicted_class(made: Evaluation) -> None:
    figure = gc.viz.mistakes(made, most=5)
    wrong = int((made.predicted != made.labels).sum())
    said = f"the 5 worst of {wrong} mistakes in 40 images, with the probabilities given"
    assert figure.get_suptitle() == said
    for axes, i in zip(figure.axes, made.worst(5), strict=False):
        true, guess = made.labels[i], made.predicted[i]
        chances = made.probabilities[i]
        assert axes.get_title() == (
            f"image {i}, loss {-np.log(chances[true]):.2f}\n"
            f"true: {made.classes[true]}, {chances[true]:.3f}\n"
            f"predicted: {made.classes[guess]}, {chances[guess]:.3f}"
        )
        pixels = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(pixels, made.images[i].transpose(1, 2, 0) / 255)


def test_wrong_evaluations(made: Evaluation) -> None:
    right = Evaluation(made.classes, made.predicted, made.scores, made.images)
    with pytest.raises(ArgumentError, match="all of 40 images are classified right"):
        gc.viz.mistakes(right)
    with pytest.raises(ArgumentError, match="most=0 must be 1 to 100"):
        gc.viz.mistakes(made, most=0)
    with pytest.raises(ArgumentError, match=r"scores \(40, 4\) for 39 labels, 40 images"):
        Evaluation(made.classes, made.labels[1:], made.scores, made.images)
    with pytest.raises(ArgumentError, match="labels from 0 to 4 must be 0 to 3, for 4 classes"):
        Evaluation(made.classes, made.labels * 2, made.scores, made.images)
    with pytest.raises(ArgumentError, match="not empty"):
        Evaluation(made.classes, made.labels[:0], made.scores[:0], made.images[:0])


def test_curves_are_the_history(folder: Path) -> None:
    history = read_history(folder)
    assert [row["epoch"] for row in history.rows] == [1, 2]
    again = folder / "again.csv"
    history.to_csv(again)
    assert again.read_bytes() == (folder / "results.csv").read_bytes()
    again.unlink()
    figure = gc.viz.curves(folder)
    assert figure.get_suptitle() == f"{folder}, 2 epochs"
    drawn = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(drawn) == ["loss", "accuracy", "learning rate"]
    for name, columns in (
        ("loss", ("train_loss", "valid_loss")),
        ("accuracy", ("train_accuracy", "valid_accuracy")),
        ("learning rate", ("lr",)),
    ):
        lines = drawn[name].lines
        assert len(lines) == len(columns)
        for line, column in zip(lines, columns, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [1, 2])
            np.testing.assert_array_equal(line.get_ydata(), history[column])
    styles = [line.get_linestyle() for line in drawn["loss"].lines]
    assert styles == ["--", "-"]


def test_curves_without_some_figures() -> None:
    history = gc.train.History()
    history.rows = [
        {**dict.fromkeys(COLUMNS), "epoch": i, "train_loss": loss, "lr": 0.1}
        for i, loss in ((1, 2.0), (2, float("nan")), (3, 1.0))
    ]
    figure = gc.viz.curves(history)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "learning rate"]
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 3])
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("lr", "rate"), "its columns are epoch, train_loss"),
        (lambda text: text.replace("\n1,", "\none,"), "is no history of a run"),
        (lambda text: text.replace("\n1,", "\n1,1,"), "is no history of a run"),
        (lambda text: text.split("\n")[0] + "\n", "holds no epoch yet"),
        (lambda text: "", "is no history of a run"),
        (lambda text: text + "\0\udcff", "is no history of a run"),
    ],
)
def test_a_damaged_history(
    folder: Path, tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    text = change((folder / "results.csv").read_text())
    (tmp_path / "results.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FileError, match=said):
        read_history(tmp_path)


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"

    def invoke(command: str, *options: object) -> Any:
        arguments = ["viz", command, *map(str, options), "-o", str(out)]
        return CliRunner().invoke(app, arguments)

    for command, *options in (
        ("curves", folder),
        ("confusion", folder),
        ("confusion", folder, "--checkpoint", "best", "--data", "fashion-mnist-mini"),
        ("mistakes", folder, "--most", 3),
    ):
        out.unlink(missing_ok=True)
        done = invoke(command, *options)
        assert (done.exit_code, done.stdout) == (0, f"{out}\n"), done.stderr
        with Image.open(out) as picture:
            picture.load()
            assert picture.format == "PNG"
    for options, said in (
        (("curves", tmp_path), "results.csv: cannot be read (No such file or directory)"),
        (("confusion", tmp_path), "is no run folder; see gpuconv train"),
        (("confusion", folder, "--checkpoint", "first"), "'first' is unknown; use last or best"),
        (("mistakes", folder, "--data", "nowhere"), "'nowhere' is neither a folder of images nor"),
    ):
        done = invoke(*options)
        assert done.exit_code == 1
        assert done.stderr.startswith("gpuconv: error: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert invoke("mistakes", folder, "--most", 0).exit_code == 2
