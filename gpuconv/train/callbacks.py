"""What can be hooked into a training run: stopping, saving, logging, drawing."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpuconv.errors import ArgumentError, Error, TrainingError
from gpuconv.files import StrPath, write_atomically
from gpuconv.train import checkpoint
from gpuconv.train.history import History, check_column, is_number, mode_of

if TYPE_CHECKING:
    from gpuconv.train.trainer import Trainer

_log = logging.getLogger("gpuconv")


class Callback:
    """Derive and override what is needed. `trainer.history.rows[-1]` is the epoch that just ended.

    `trainer.stop(reason)` ends the training after the batch or the epoch. Callbacks are called in
    their order, those with a higher `rank` later: a checkpoint must hold what the others decided.
    """

    rank: ClassVar[int] = 0

    def reset(self) -> None:
        """A training run begins: forget an earlier one."""

    def on_train_begin(self, trainer: "Trainer") -> None:
        """Before the first epoch, or, when resumed, after the state was loaded."""

    def on_epoch_begin(self, trainer: "Trainer") -> None:
        """Before an epoch's first batch, or, when resumed in its middle, the first one then."""

    def on_batch_end(self, trainer: "Trainer") -> None:
        """After each batch and the step of the optimizer."""

    def on_epoch_end(self, trainer: "Trainer") -> None:
        """After each epoch and its validation."""

    def on_train_end(self, trainer: "Trainer") -> None:
        """After the last epoch, also when it was stopped early; not after an error."""

    def on_failure(self, trainer: "Trainer", error: TrainingError) -> bool:
        """Training cannot go on. True makes that a regular end instead of an error."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: plain values, and arrays; all keys are text without "/"."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Best:
    """The best value so far of one figure, and its epoch."""

    def __init__(self, where: str, monitor: str, mode: str | None, min_delta: float = 0.0) -> None:
        check_column(where, monitor)
        if not min_delta >= 0:
            raise ArgumentError(f"{where}: min_delta={min_delta!r} must be at least 0")
        self.where, self.monitor, self.min_delta = where, monitor, min_delta
        self.mode = mode_of(where, monitor, mode)
        self.value: float | None = None
        self.epoch = 0

    def check(self, trainer: "Trainer") -> None:
        """ArgumentError, before an epoch was spent, if the figure will not be there."""
        if self.monitor.startswith("valid_") and trainer.valid_loader is None:
            raise ArgumentError(
                f"{self.where}: monitor={self.monitor!r} needs a valid_loader; pass one to fit, or "
                f"monitor={self.monitor.replace('valid', 'train')!r}"
            )

    def update(self, history: History) -> bool:
        """Whether the last epoch is the best one so far, by more than `min_delta`."""
        row = history.rows[-1]
        value = row[self.monitor]
        if value is None:
            raise ArgumentError(
                f"{self.where}: epoch {row['epoch']} has no {self.monitor}, as the labels are no "
                f"classes; monitor a loss"
            )
        if not is_number(value):
            return False
        if self.value is not None:
            gain = self.value - value if self.mode == "min" else value - self.value
            if not gain > self.min_delta:
                return False
        self.value, self.epoch = value, row["epoch"]
        return True

    def load(self, state: Mapping[str, Any]) -> None:
        """Take `best` and `best_epoch` of a callback's state."""
        value, epoch = state["best"], int(state["best_epoch"])
        self.value, self.epoch = None if value is None else float(value), epoch


class EarlyStopping(Callback):
    """Stop when `monitor` was not better by more than `min_delta` for `patience` epochs.

    `mode` "min" or "max"; None: what suits the figure. `restore_best` gives the model the weights
    of its best epoch at the end, however that comes, short of an error.
    """

    def __init__(
        self,
        monitor: str = "valid_loss",
        patience: int = 5,
        mode: str | None = None,
        min_delta: float = 0.0,
        restore_best: bool = False,
    ) -> None:
        if patience < 1:
            raise ArgumentError(f"EarlyStopping: patience={patience!r} must be at least 1")
        self.monitor, self.patience = monitor, patience
        self.mode, self.min_delta, self.restore_best = mode, min_delta, restore_best
        self.reset()

    def reset(self) -> None:
        self.best = Best("EarlyStopping", self.monitor, self.mode, self.min_delta)
        self.waited = 0
        self.weights: dict[str, Any] = {}

    def on_train_begin(self, trainer: "Trainer") -> None:
        self.best.check(trainer)
        self._stop_if_due(trainer)

    def on_epoch_end(self, trainer: "Trainer") -> None:
        if self.best.update(trainer.history):
            self.waited = 0
            if self.restore_best:
                # Copies: the arrays of a state_dict are the model's own and will change.
                self.weights = {k: v.copy() for k, v in trainer.model.state_dict().items()}
        else:
            self.waited += 1
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: "Trainer") -> None:
        if self.waited >= self.patience:
            best = "it never was a number"
            if self.best.value is not None:
                best = f"the best was {self.best.value:.6g} in epoch {self.best.epoch}"
            trainer.stop(f"{self.monitor} was no better for {self.waited} epochs; {best}")

    def on_train_end(self, trainer: "Trainer") -> None:
        if self.weights:
            trainer.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best.value,
            "best_epoch": self.best.epoch,
            "waited": self.waited,
            "weights": self.weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        waited, weights = int(state["waited"]), dict(state["weights"])
        self.best.load(state)
        self.waited, self.weights = waited, weights


class ModelCheckpoint(Callback):
    """Keep checkpoints: `folder/last` after each epoch, `folder/best` when `monitor` is better.

    `every_steps` also saves `folder/last` after so many batches. Resume with
    `trainer.fit(..., resume=folder)`.
    """

    rank = 1

    def __init__(
        self,
        folder: StrPath,
        monitor: str = "valid_loss",
        mode: str | None = None,
        every_steps: int | None = None,
    ) -> None:
        if every_steps is not None and every_steps < 1:
            raise ArgumentError(f"ModelCheckpoint: every_steps={every_steps!r} must be at least 1")
        self.folder, self.every_steps = Path(folder), every_steps
        self.monitor, self.mode = monitor, mode
        self.reset()

    def reset(self) -> None:
        self.best = Best("ModelCheckpoint", self.monitor, self.mode)

    def on_train_begin(self, trainer: "Trainer") -> None:
        self.best.check(trainer)
        for name in ("last", "best"):  # a `best` may not come again in this run
            checkpoint.sweep(self.folder / name)

    def on_batch_end(self, trainer: "Trainer") -> None:
        if self.every_steps is not None and trainer.step % self.every_steps == 0:
            checkpoint.save(self.folder / "last", trainer.state_dict())

    def on_epoch_end(self, trainer: "Trainer") -> None:
        # `best` first: a run killed between the two repeats the epoch, and then saves both again.
        if self.best.update(trainer.history):
            checkpoint.save(self.folder / "best", trainer.state_dict())
        checkpoint.save(self.folder / "last", trainer.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best.value, "best_epoch": self.best.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best.load(state)


class CSVLogger(Callback):
    """Write the history to a CSV file after each epoch.

    The file is written anew each time, so a resumed run neither loses nor repeats an epoch.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)

    def on_train_begin(self, trainer: "Trainer") -> None:
        trainer.history.to_csv(self.path)

    def on_epoch_end(self, trainer: "Trainer") -> None:
        trainer.history.to_csv(self.path)


class TerminateOnNaN(Callback):
    """Make a loss that is not finite a regular end of training; `history.stopped` tells of it."""

    def on_failure(self, trainer: "Trainer", error: TrainingError) -> bool:
        return True


class CurvePlot(Callback):
    """Draw loss and accuracy over the epochs to an image file after each epoch.

    Does nothing without matplotlib, which is an extra (`gpuconv[viz]`).
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)

    def on_train_begin(self, trainer: "Trainer") -> None:
        if find_spec("matplotlib") is None:
            _log.info("%s is not drawn: install gpuconv[viz]", self.path)
            return
        try:  # now, and not after an epoch
            import matplotlib.figure as figure
        except ImportError as error:
            raise Error(
                f"matplotlib is installed but does not import ({error}); reinstall or remove it"
            ) from error
        assert figure

    def on_epoch_end(self, trainer: "Trainer") -> None:
        if find_spec("matplotlib") is None:
            return
        write_atomically(self.path, curves(trainer.history, self.path.suffix[1:] or "png"))


def curves(history: History, kind: str = "png") -> bytes:
    """An image file of losses and accuracies over the epochs; needs matplotlib, but no display."""
    image = BytesIO()
    draw_curves(history).savefig(image, format=kind, dpi=120)
    return image.getvalue()


def draw_curves(history: History) -> Any:
    """matplotlib's figure of the losses, accuracies and learning rates that there are."""
    from matplotlib.ticker import MaxNLocator

    from gpuconv.viz.style import new_figure

    panels = {
        "loss": {"train": "train_loss", "valid": "valid_loss"},
        "accuracy": {"train": "train_accuracy", "valid": "valid_accuracy"},
        "learning rate": {"": "lr"},
    }
    drawn: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, columns in panels.items():
        for part, column in columns.items():
            points = [(r["epoch"], r[column]) for r in history.rows if is_number(r[column])]
            if points:
                drawn.setdefault(name, {})[part] = points
    count = max(len(drawn), 1)
    figure = new_figure(4.2 * count, 3.6)
    panes = figure.subplots(1, count, squeeze=False)[0]
    for axes, (name, lines) in zip(panes, drawn.items(), strict=False):
        for part, points in lines.items():
            style = "--" if part == "train" else "-"
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=part)
        if "" not in lines:
            axes.legend()
        last = ", ".join(f"{part} {points[-1][1]:.4g}".strip() for part, points in lines.items())
        axes.set_title(f"{name}: {last}", fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    return figure
