"""The Trainer: what it measures, how it stops, what it shows, and its callbacks."""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import nn, optim, schedule, weights
from gpuconv.autograd import Tensor
from gpuconv.data import DataLoader, Dataset
from gpuconv.errors import ArgumentError, DeviceError, DtypeError, FileError, TrainingError
from gpuconv.ops.loss import cross_entropy, mse_loss
from gpuconv.train import (
    Callback,
    CSVLogger,
    CurvePlot,
    EarlyStopping,
    History,
    ModelCheckpoint,
    TerminateOnNaN,
    Trainer,
    checkpoint,
)
from gpuconv.train.history import COLUMNS
from gpuconv.train.trainer import Running

Batches = list[tuple[np.ndarray, np.ndarray]]


class Classifier(nn.Module):
    """A linear one, that remembers in which mode it was used."""

    def __init__(self) -> None:
        self.fc = nn.Linear(4, 3)
        self.modes: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append("train" if self.training else "eval")
        return self.fc(x.flatten(1))


def images(count: int = 23, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, 2, 2) whose brightest of three pixels is their label."""
    x = np.random.default_rng(seed).random((count, 1, 2, 2)).astype(np.float32)
    return x, x.reshape(count, 4)[:, :3].argmax(axis=1)


def batches(count: int = 23, size: int = 5, seed: int = 0) -> Batches:
    x, t = images(count, seed)
    return [(x[i : i + size], t[i : i + size]) for i in range(0, count, size)]


def loader(count: int = 23, seed: int = 0, **options: Any) -> DataLoader:
    x, t = images(count, seed)
    return DataLoader(Dataset(x, t, ("a", "b", "c")), 5, **options)


def trainer(lr: float = 0.5, **options: Any) -> Trainer:
    gc.manual_seed(0)
    model = Classifier()
    options.setdefault("progress", False)
    return Trainer(model, optim.SGD(model.parameters(), lr), **options)


# What is measured.


def test_learns() -> None:
    t = trainer(2.0)
    history = t.fit(batches(200), batches(50, seed=1), epochs=30)
    assert len(history) == 30
    assert history["train_loss"][0] > 2 * history["train_loss"][-1]
    assert history.rows[-1]["valid_accuracy"] > 0.9
    assert history.stopped == ""
    assert (t.epoch, t.step) == (30, 30 * 40)


def test_means_are_over_images() -> None:
    """The last batch is smaller, and must weigh less."""
    t = trainer(lr=0.0)
    row = t.fit(batches(), batches(12, seed=1)).rows[0]
    for part, (x, labels) in {"train": images(), "valid": images(12, 1)}.items():
        logits = t.predict(x)
        assert row[f"{part}_loss"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
        assert row[f"{part}_accuracy"] == np.mean(logits.argmax(axis=1) == labels)
    assert list(row) == list(COLUMNS)
    assert row["epoch"] == 1
    assert row["lr"] == 0.0
    assert row["seconds"] > 0


def test_without_validation() -> None:
    row = trainer().fit(batches()).rows[0]
    assert row["valid_loss"] is None
    assert row["valid_accuracy"] is None


def test_numbers_as_labels_have_no_accuracy() -> None:
    x, _ = images()
    t = trainer(loss=mse_loss)
    row = t.fit([(x, np.zeros((23, 3), np.float32))], epochs=1).rows[0]
    assert row["train_accuracy"] is None
    assert t.evaluate([(x, np.ones((23, 3), np.float32))])["accuracy"] is None


def test_a_label_a_pixel() -> None:
    """Segmentation: accuracy is over all pixels."""

    class Pixels(nn.Module):
        def __init__(self) -> None:
            self.conv = nn.Conv2d(1, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    x, _ = images()
    labels = np.random.default_rng(0).integers(0, 3, (23, 2, 2))
    t = Trainer(Pixels(), None)
    result = t.evaluate([(x, labels)])
    assert result["accuracy"] == np.mean(t.predict(x).argmax(axis=1) == labels)


def test_evaluation_leaves_the_mode_alone() -> None:
    t = trainer()
    t.model.eval()
    t.model.fc.train()
    result = t.evaluate(batches())
    t.predict(images()[0])
    assert set(t.model.modes) == {"eval"}
    assert (t.model.training, t.model.fc.training) == (False, True)
    assert result.keys() == {"loss", "accuracy"}
    t.model.modes.clear()
    t.fit(batches(10), batches(5))
    assert t.model.modes == ["train", "train", "eval"]
    assert t.model.training


def test_predict() -> None:
    t = trainer()
    x, _ = images()
    whole = t.model(Tensor(x)).detach().numpy()
    for given in (x, Tensor(x), batches(), loader()):
        np.testing.assert_allclose(t.predict(given, batch_size=4), whole, rtol=1e-6)
    assert isinstance(t.predict(x), np.ndarray)
    assert t.predict(x[:0]).shape == (0, 3)
    with pytest.raises(ArgumentError, match="batch_size=0 must be at least 1"):
        t.predict(x, 0)


def test_no_batch() -> None:
    t = trainer()
    with pytest.raises(ArgumentError, match=r"train_loader has no batch in epoch 2; pass a DataL"):
        t.fit(iter(batches()), epochs=2)
    with pytest.raises(
        ArgumentError, match=r"Trainer.fit: the train_loader has no batch in epoch 1"
    ):
        t.fit([])
    with pytest.raises(ArgumentError, match=r"Trainer.evaluate: the loader has no batch"):
        t.evaluate([])
    with pytest.raises(ArgumentError, match=r"Trainer.predict: the loader has no batch"):
        t.predict([])


def test_schedules_step_when_they_say() -> None:
    t = trainer()
    t.schedule = schedule.StepLR(t.optimizer, 1, gamma=0.5)
    assert t.fit(batches(), epochs=3)["lr"] == [0.5, 0.25, 0.125]
    t = trainer()
    t.schedule = schedule.LinearWarmup(t.optimizer, 9)
    assert t.fit(batches(), epochs=3)["lr"] == [0.25, 0.5, 0.5]
    t = trainer()
    t.schedule = schedule.ReduceLROnPlateau(
        t.optimizer, patience=0, threshold=9.0, threshold_mode="abs"
    )
    np.testing.assert_allclose(t.fit(batches(), epochs=3)["lr"], [0.5, 0.5, 0.05])


def test_gradients_are_clipped() -> None:
    t = trainer(lr=1.0, clip_grad_norm=1e-3)
    before = t.model.fc.weight.numpy().copy()
    t.fit(batches(5), epochs=1)
    moved = np.linalg.norm(t.model.fc.weight.numpy() - before)
    assert 1e-4 < moved <= 1.001e-3


def test_fit_again_starts_anew() -> None:
    t = trainer()
    t.fit(batches(), epochs=2)
    assert len(t.fit(batches(), epochs=1)) == 1


# What can go wrong.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t.fit(batches(), epochs=0), "epochs=0 must be an int of at least 1"),
        (
            lambda t: Trainer(t.model, None).fit(batches()),
            "there is no optimizer; give the Trainer",
        ),
        (lambda t: Trainer(t.model, t.optimizer, progress="no"), "progress='no' is unknown; use"),
        (
            lambda t: Trainer(t.model, t.optimizer, clip_grad_norm=0),
            "clip_grad_norm=0 must be above",
        ),
        (
            lambda t: Trainer(
                t.model, t.optimizer, schedule=schedule.StepLR(trainer().optimizer, 1)
            ),
            "the schedule is of another optimizer",
        ),
        (lambda t: EarlyStopping(patience=0), "EarlyStopping: patience=0 must be at least 1"),
        (
            lambda t: EarlyStopping("loss"),
            "EarlyStopping: 'loss' is no figure; use one of epoch, tra",
        ),
        (lambda t: EarlyStopping(mode="up"), "EarlyStopping: mode='up' is unknown; use 'min'"),
        (lambda t: EarlyStopping(min_delta=-1), "min_delta=-1 must be at least 0"),
        (lambda t: ModelCheckpoint("x", every_steps=0), "every_steps=0 must be at least 1"),
        (
            lambda t: History().best(),
            "none of 0 epochs has a valid_loss; train with a valid_loader",
        ),
        (lambda t: History()["loss"], "History: 'loss' is no figure"),
    ],
)
def test_bad_arguments(make: Callable[[Trainer], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make(trainer())


def test_unknown_device() -> None:
    with pytest.raises(DeviceError, match="device 'tpu' is unknown; use one of cpu, cuda, auto"):
        trainer(device="tpu")


@pytest.mark.parametrize("make", [lambda p: EarlyStopping(), lambda p: ModelCheckpoint(p)])
def test_monitors_without_validation_say_so_at_once(make: Any, tmp_path: Path) -> None:
    t = trainer(callbacks=[make(tmp_path)])
    with pytest.raises(ArgumentError, match="monitor='valid_loss' needs a valid_loader; pass one"):
        t.fit(batches())
    assert t.step == 0


def test_labels_out_of_range() -> None:
    x, labels = images()
    with pytest.raises(ArgumentError, match=r"cross_entropy: .*3"):
        trainer().fit([(x, labels + 1)])


def test_images_that_are_not_floats() -> None:
    x, labels = images()
    with pytest.raises(DtypeError, match="uint8"):
        trainer().fit([((x * 255).astype(np.uint8), labels)])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite(bad: float) -> None:
    broken = batches()
    broken[3][0][0] = bad
    t = trainer(0.25)
    with np.errstate(invalid="ignore"), pytest.raises(TrainingError) as caught:
        t.fit(broken, epochs=2)
    assert str(caught.value) == (
        "epoch 1, step 4: the loss is nan: so are numbers in the images; check the data"
    )
    assert np.isfinite(t.model.fc.weight.numpy()).all(), "the weights are those before that batch"


def test_a_loss_that_diverges() -> None:
    with np.errstate(all="ignore"), pytest.raises(TrainingError) as caught:
        trainer(1e39).fit(batches(), epochs=2)  # over what a float32 holds
    message = str(caught.value)
    assert "at a learning rate of 1e+39; lower it (to 1e+38, say)" in message
    assert "Trainer(clip_grad_norm=1.0)" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_validation_loss_that_is_not_finite(bad: float, tmp_path: Path) -> None:
    """No success: neither the best epoch, nor one that counts."""
    valid = batches(12, seed=1)

    class Break(Callback):
        def on_epoch_begin(self, trainer: Trainer) -> None:
            if trainer.epoch == 1:
                valid[1][0][0] = bad

    t = trainer(0.25, callbacks=[ModelCheckpoint(tmp_path), Break()])
    with np.errstate(invalid="ignore"), pytest.raises(TrainingError) as caught:
        t.fit(batches(), valid, epochs=3)
    assert str(caught.value) == (
        "epoch 2: the validation loss is nan at a learning rate of 0.25; lower it (to 0.025, say), "
        "clip the gradients, with Trainer(clip_grad_norm=1.0), or check the validation images"
    )
    assert [checkpoint.load(tmp_path / name)["epoch"] for name in ("last", "best")] == [1, 1]
    assert len(t.history) == 1


def test_nan_is_no_correct_prediction() -> None:
    output = np.zeros((3, 3), np.float32)
    output[0, 0], output[1, 1], output[2, 2] = np.nan, np.inf, 1.0
    running = Running()
    running.add(Tensor(output), Tensor(np.arange(3)), 0.0)
    assert running.correct == 2


def test_what_killed_saves_left_is_removed_at_the_start(tmp_path: Path) -> None:
    for name in ("last.new", "best.new", "other.new"):
        (tmp_path / name).mkdir()
    t = trainer(callbacks=[ModelCheckpoint(tmp_path, "train_loss")])
    t.callbacks[0].on_train_begin(t)
    assert [path.name for path in tmp_path.iterdir()] == ["other.new"]


def test_best_is_saved_before_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two, a run that goes on must not believe to have saved both."""
    save, saved = checkpoint.save, []

    def killed(folder: Path, state: Any) -> None:
        saved.append(folder.name)
        if len(saved) == 4:
            raise KeyboardInterrupt
        save(folder, state)

    def fit(resume: Path | None) -> Trainer:
        t = trainer(0.5, callbacks=[ModelCheckpoint(tmp_path)])
        t.fit(batches(), batches(12, seed=1), epochs=2, resume=resume)
        return t

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(None)
    losses = fit(tmp_path).history["valid_loss"]
    assert losses[1] < losses[0], "the second epoch is the best"
    assert checkpoint.load(tmp_path / "best")["epoch"] == 2
    assert checkpoint.load(tmp_path / "last")["epoch"] == 2


def test_parts_that_do_not_fit_together() -> None:
    model, x = trainer().model, np.ones((1, 1), np.float32)
    mine = optim.SGD(model.parameters(), 0.1)
    for arguments, options, message in (
        ((1, mine), {}, "the model is a int"),
        ((model, "adam"), {}, "optimizer='adam' must be one of gpuconv.optim"),
        ((model, optim.SGD([nn.Parameter(x)], 0.1)), {}, "none of the optimizer's parameters is"),
        ((model, mine), {"loss": "mse"}, "loss='mse' must be a function"),
        ((model, mine), {"loss": nn.MSELoss}, r"such as .* nn.CrossEntropyLoss\(\)"),
        ((model, mine), {"callbacks": TerminateOnNaN()}, "must be a list of callbacks"),
        ((model, mine), {"callbacks": [TerminateOnNaN]}, "must be a list of callbacks"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Trainer(*arguments, **options)


def test_terminate_on_nan_ends_regularly(tmp_path: Path) -> None:
    broken = batches()
    t = trainer(callbacks=[TerminateOnNaN(), EarlyStopping("train_loss", restore_best=True)])

    class Break(Callback):
        def on_epoch_end(self, trainer: Trainer) -> None:
            if trainer.epoch == 2:
                broken[1][0][0] = np.nan

    t.callbacks.append(Break())
    with np.errstate(invalid="ignore"):
        history = t.fit(broken, epochs=9)
    assert history.stopped.startswith("epoch 3, step 12: the loss is nan")
    assert len(history) == 2


# Callbacks.


class Script(Callback):
    """Makes up the figures of the epochs, before the other callbacks see them."""

    rank = -1

    def __init__(self, column: str, values: list[float]) -> None:
        self.column, self.values = column, values

    def on_epoch_end(self, trainer: Trainer) -> None:
        trainer.history.rows[-1][self.column] = self.values[trainer.epoch - 1]


class Snapshots(Callback):
    rank = -1

    def __init__(self) -> None:
        self.weights: list[np.ndarray] = []

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.weights.append(trainer.model.fc.weight.numpy().copy())


@pytest.mark.parametrize(
    ("options", "values", "epochs"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.5, 2.0, 1.0], 4),
        ({"patience": 2}, [3.0, 2.0, 2.5, 1.9, 2.0, 1.95, 0.1], 6),
        ({"patience": 1, "min_delta": 0.5}, [3.0, 2.4, 2.0, 1.0], 3),
        ({"patience": 1, "mode": "max"}, [1.0, 2.0, 1.0], 3),
        ({"patience": 1, "monitor": "valid_accuracy"}, [0.1, 0.2, 0.2, 0.9], 3),
        ({"patience": 2}, [float("nan"), float("nan"), 1.0], 2),
        ({"patience": 2}, [1.0, float("nan"), 0.9, 0.8], 4),
    ],
)
def test_early_stopping(options: dict[str, Any], values: list[float], epochs: int) -> None:
    stopping, seen = EarlyStopping(restore_best=True, **options), Snapshots()
    script = Script(stopping.monitor, values)
    t = trainer(0.01, callbacks=[stopping, seen, script])
    history = t.fit(batches(), batches(5), epochs=len(values))
    assert len(history) == epochs
    assert history.stopped.startswith(f"{stopping.monitor} was no better for") == (
        epochs < len(values) or stopping.waited >= stopping.patience
    )
    finite = [v for v in values[:epochs] if np.isfinite(v)]
    if finite:
        best = history.best(stopping.monitor, stopping.mode)["epoch"]
        if stopping.min_delta == 0:
            assert stopping.best.epoch == best
        kept = seen.weights[stopping.best.epoch - 1]
        np.testing.assert_array_equal(t.model.fc.weight.numpy(), kept)


def test_callbacks_begin_anew_with_each_fit() -> None:
    stopping = EarlyStopping("train_loss", patience=1, min_delta=100.0)
    t = trainer(callbacks=[stopping])
    for _ in range(2):
        history = t.fit(batches(), epochs=9)
        assert len(history) == 2
        assert history.stopped.startswith("train_loss was no better for 1 epochs; the best was")


def test_a_callback_can_stop_in_the_middle() -> None:
    class Stop(Callback):
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 7:
                trainer.stop("enough")

    t = trainer(callbacks=[Stop()])
    history = t.fit(batches(), epochs=9)
    assert (t.step, len(history), history.stopped) == (7, 1, "enough")


def test_order_of_events() -> None:
    events: list[str] = []

    class Record(Callback):
        pass

    for name in vars(Callback):
        if name.startswith("on_"):
            setattr(Record, name, lambda self, trainer, name=name: events.append(name[3:]))

    trainer(callbacks=[Record()]).fit(batches(10), epochs=2)
    epoch = ["epoch_begin", "batch_end", "batch_end", "epoch_end"]
    assert events == ["train_begin", *epoch, *epoch, "train_end"]


def test_checkpoints_last_and_best(tmp_path: Path) -> None:
    values = [2.0, 1.0, 3.0]
    saving, seen = ModelCheckpoint(tmp_path / "run"), Snapshots()
    t = trainer(callbacks=[saving, seen, Script("valid_loss", values)])
    t.fit(batches(), batches(5), epochs=3)
    for name, epoch in (("last", 3), ("best", 2)):
        folder = tmp_path / "run" / name
        assert checkpoint.load(folder)["epoch"] == epoch
        model = Classifier()
        weights.load(folder / "model.safetensors", model)
        np.testing.assert_array_equal(model.fc.weight.numpy(), seen.weights[epoch - 1])


def test_checkpoints_come_after_what_others_decide(tmp_path: Path) -> None:
    t = trainer(callbacks=[ModelCheckpoint(tmp_path, "train_loss"), EarlyStopping("train_loss")])
    assert [type(c).__name__ for c in t.callbacks] == ["EarlyStopping", "ModelCheckpoint"]
    t.fit(batches(), epochs=1)
    saved = checkpoint.load(tmp_path)["callbacks"]["EarlyStopping.1"]
    assert saved["best"] == t.history.rows[0]["train_loss"]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("of another run")
    history = trainer(callbacks=[CSVLogger(path)]).fit(batches(), epochs=3)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["train_loss"]) for row in rows] == history["train_loss"]
    assert rows[0]["valid_loss"] == ""


def test_a_csv_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere/results.csv: cannot be written"):
        trainer(callbacks=[CSVLogger(tmp_path / "nowhere" / "results.csv")]).fit(batches())


def test_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "results.png"
    trainer(callbacks=[CurvePlot(path)]).fit(batches(10), batches(5), epochs=2)
    with image.open(path) as opened:
        opened.load()
        assert opened.size[0] > 500
    assert "matplotlib.pyplot" not in sys.modules


def test_no_curves_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuconv.train.callbacks.find_spec", lambda name: None)
    trainer(callbacks=[CurvePlot(tmp_path / "results.png")]).fit(batches(10))
    assert list(tmp_path.iterdir()) == []


def test_batches_of_another_library_are_taken_through_dlpack() -> None:
    torch = pytest.importorskip("torch")
    x, labels = images()
    ours, theirs = trainer(), trainer()
    ours.fit([(x, labels)])
    theirs.fit([(torch.tensor(x), torch.tensor(labels))])
    np.testing.assert_array_equal(ours.model.fc.weight.numpy(), theirs.model.fc.weight.numpy())
    dataset = Dataset(torch.tensor(np.ones((3, 1, 2, 2), np.float32)), torch.tensor([0, 1, 1]))
    assert isinstance(dataset.images, np.ndarray)
    assert dataset.classes == ("0", "1")
