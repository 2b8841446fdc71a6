"""The `Trainer`: fits a model to batches, evaluates it and predicts with it."""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from itertools import islice
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import random
from gpuconv.autograd import Tensor, no_grad, tensor
from gpuconv.backends import backend_of, is_array
from gpuconv.errors import ArgumentError, DtypeError, FileError, TrainingError
from gpuconv.files import StrPath
from gpuconv.nn.module import Module
from gpuconv.ops.loss import cross_entropy
from gpuconv.optim import Optimizer, clip_grad_norm_
from gpuconv.schedule import Schedule
from gpuconv.train import checkpoint
from gpuconv.train.callbacks import Callback
from gpuconv.train.history import COLUMNS, History
from gpuconv.train.progress import Progress, check_show

Loader = Iterable[tuple[Any, Any]]  # batches of images and labels


@dataclass
class Running:
    """Sums over the epoch under way; Python numbers, which a checkpoint keeps to the last bit."""

    batches: int = 0
    images: int = 0
    labels: int = 0  # that are classes: one an image, or one a pixel
    loss: float = 0.0
    correct: int = 0
    lr: float = 0.0
    seconds: float = 0.0

    def add(self, output: Tensor, labels: Tensor, loss: float) -> None:
        y, t = output.data, labels.data
        self.batches += 1
        self.images += len(y)
        self.loss += loss * len(y)
        if t.dtype.kind in "iu" and y.ndim == t.ndim + 1:
            self.labels += t.size
            # The argmax of NaN is the NaN, but to have no answer is not to be right.
            right = (y.argmax(axis=1) == t) & ~backend_of(y).xp.isnan(y.max(axis=1))
            self.correct += int(right.sum())

    def means(self) -> dict[str, float | None]:
        """The loss an image, and the part of the labels predicted right (None if not classes)."""
        accuracy = self.correct / self.labels if self.labels else None
        return {"loss": self.loss / self.images, "accuracy": accuracy}


def _check_parts(model: Any, optimizer: Any, loss: Any, callbacks: Any) -> None:
    """ArgumentError for the mix-ups that would otherwise show far from here, or never."""
    if not isinstance(model, Module):
        raise ArgumentError(f"Trainer: the model is a {type(model).__name__}, not an nn.Module")
    if optimizer is not None:
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                f"Trainer: optimizer={optimizer!r} must be one of gpuconv.optim, made with "
                f"model.parameters()"
            )
        mine = {id(p) for p in model.parameters()}
        if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            raise ArgumentError(
                "Trainer: none of the optimizer's parameters is the model's; make the optimizer "
                "with the parameters() of this model"
            )
    if isinstance(loss, type) or not callable(loss):
        raise ArgumentError(
            f"Trainer: loss={loss!r} must be a function (output, labels), such as "
            f"gpuconv.cross_entropy or nn.CrossEntropyLoss()"
        )
    if isinstance(callbacks, Callback) or not all(isinstance(c, Callback) for c in callbacks):
        raise ArgumentError(
            f"Trainer: callbacks={callbacks!r} must be a list of callbacks, each made with its "
            f"arguments"
        )


class Trainer:
    """Trains `model` by `optimizer` on the mean loss of batches.

    `loss(output, labels)` takes Tensors and gives a Tensor of one number, a mean over the batch.
    `schedule` is stepped after each batch or epoch, as it says. `device` moves the model and all
    batches there; None leaves the model where it is. `clip_grad_norm` bounds the norm of all
    gradients together. `progress` "auto" shows a bar on a terminal and a line an epoch elsewhere,
    on standard error; True always a bar; False nothing. A trainer that only evaluates or predicts
    needs no optimizer: None.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer | None,
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        schedule: Schedule | None = None,
        callbacks: Sequence[Callback] = (),
        device: str | None = None,
        clip_grad_norm: float | None = None,
        progress: bool | str = "auto",
    ) -> None:
        if schedule is not None and schedule.optimizer is not optimizer:
            raise ArgumentError(
                "Trainer: the schedule is of another optimizer; make it with this one"
            )
        _check_parts(model, optimizer, loss, callbacks)
        if clip_grad_norm is not None and not clip_grad_norm > 0:
            raise ArgumentError(
                f"Trainer: clip_grad_norm={clip_grad_norm!r} must be above 0, or None"
            )
        self.model = model if device is None else model.to(device)
        self.optimizer, self.loss, self.schedule = optimizer, loss, schedule
        self.callbacks = sorted(callbacks, key=lambda callback: callback.rank)
        self.clip_grad_norm = clip_grad_norm
        self.progress = check_show(progress)
        self.train_loader: Loader = ()
        self.valid_loader: Loader | None = None
        self._begin()

    def _begin(self) -> None:
        self.epoch = 0  # epochs completed
        self.step = 0  # batches trained on, in all epochs
        self.history = History()
        self.running = Running()

    def stop(self, reason: str) -> None:
        """End the training after this batch or epoch; `reason` goes to `history.stopped`."""
        self.history.stopped = self.history.stopped or reason

    # Training.

    def fit(
        self,
        train_loader: Loader,
        valid_loader: Loader | None = None,
        epochs: int = 1,
        resume: StrPath | None = None,
    ) -> History:
        """Train until `epochs` epochs are done, and return what was measured.

        A loader gives batches (images, labels) each time it is iterated over: a `DataLoader`, or a
        list. `resume` is the folder of a checkpoint, or the run folder that its `last` is in:
        training goes on from there as if it had never been interrupted, bit for bit, if model,
        optimizer, schedule, callbacks and loaders were made by the same code. FileError if there is
        none, it is damaged or of another run; nothing is changed then. TrainingError if the loss is
        not finite, before the weights are changed by it, or the validation loss, before the epoch
        is saved.
        """
        if self.optimizer is None:
            raise ArgumentError("Trainer.fit: there is no optimizer; give the Trainer one")
        if not isinstance(epochs, int) or epochs < 1:
            raise ArgumentError(f"Trainer.fit: epochs={epochs!r} must be an int of at least 1")
        self.train_loader, self.valid_loader = train_loader, valid_loader
        self._begin()
        for callback in self.callbacks:
            callback.reset()
        if resume is not None:
            self._resume(Path(resume))
        self._call("on_train_begin")
        try:
            with Progress(self.progress, epochs) as shown:
                while self.epoch < epochs and not self.history.stopped:
                    self._train_epoch(shown)
        except TrainingError as error:
            if not any(callback.on_failure(self, error) for callback in self.callbacks):
                raise
            self.stop(str(error))
        if self.history.stopped and self.progress is not False:
            print(f"stopped: {self.history.stopped}", file=sys.stderr, flush=True)
        self._call("on_train_end")
        return self.history

    def _train_epoch(self, shown: Progress) -> None:
        running = self.running
        length = len(self.train_loader) if isinstance(self.train_loader, Sized) else None
        shown.epoch_begin(self.epoch + 1, running.batches, length)
        self.model.train()
        self._call("on_epoch_begin")
        began = time.perf_counter() - running.seconds
        for images, labels in self._remaining_batches():
            self._train_batch(images, labels)
            running.seconds = time.perf_counter() - began
            self._call("on_batch_end")
            shown.batch_end(running.loss / running.images)
            if self.history.stopped:
                return
        if not running.images:
            raise ArgumentError(
                f"Trainer.fit: the train_loader has no batch in epoch {self.epoch + 1}; pass a "
                f"DataLoader or a list, which can be iterated over again"
            )
        train = running.means()
        valid = self._validate(running.lr)
        row = {
            "epoch": self.epoch + 1,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "valid_loss": valid.get("loss"),
            "valid_accuracy": valid.get("accuracy"),
            "lr": running.lr,
            "seconds": time.perf_counter() - began,
        }
        self.epoch += 1
        self.history.rows.append(row)
        self.running = Running()
        if self.schedule is not None:
            self.schedule.epoch_end(row)
        shown.epoch_end(row)
        self._call("on_epoch_end")

    def _validate(self, lr: float) -> dict[str, float | None]:
        """What `evaluate` gives; TrainingError, before anything is saved, if it is no success."""
        if self.valid_loader is None:
            return {}
        valid = self.evaluate(self.valid_loader)
        if not math.isfinite(valid["loss"] or 0.0):
            raise TrainingError(
                f"epoch {self.epoch + 1}: the validation loss is {valid['loss']} at a learning "
                f"rate of {lr:.4g}; lower it (to {lr / 10:.2g}, say), clip the gradients, with "
                f"Trainer(clip_grad_norm=1.0), or check the validation images"
            )
        return valid

    def _train_batch(self, images: Any, labels: Any) -> None:
        assert self.optimizer is not None
        x, t = self._tensor(images), self._tensor(labels)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad()
        output = self.model(x)
        loss = self.loss(output, t)
        value = float(loss.item())
        if not math.isfinite(value):
            where = f"epoch {self.epoch + 1}, step {self.step + 1}: the loss is {value}"
            if not bool(backend_of(x.data).xp.isfinite(x.data).all()):
                raise TrainingError(f"{where}: so are numbers in the images; check the data")
            raise TrainingError(
                f"{where} at a learning rate of {lr:.4g}; lower it (to {lr / 10:.2g}, say), or "
                f"clip the gradients, with Trainer(clip_grad_norm=1.0)"
            )
        loss.backward()
        if self.clip_grad_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self.optimizer.step()
        self.running.add(output, t, value)
        self.running.lr = lr
        self.step += 1
        if self.schedule is not None:
            self.schedule.batch_end()

    def _remaining_batches(self) -> Iterator[tuple[Any, Any]]:
        """The batches of the epoch that were not trained on yet."""
        if hasattr(self.train_loader, "load_state_dict"):
            return iter(self.train_loader)  # it knows its position
        return islice(self.train_loader, self.running.batches, None)

    def _tensor(self, array: Any) -> Tensor:
        return tensor(array, device=self._device())

    def _device(self) -> str:
        for _, held in self.model.named_state():
            return held.device
        return "cpu"

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)

    # Using the model.

    def evaluate(self, loader: Loader) -> dict[str, float | None]:
        """{"loss", "accuracy"} of the model in evaluation mode, means over all images of `loader`.

        Accuracy is None where the labels are not classes.
        """
        running = Running()
        for images, labels in loader:
            t = self._tensor(labels)
            output = self._infer(images)
            with no_grad():
                running.add(output, t, float(self.loss(output, t).item()))
        if not running.images:
            raise ArgumentError("Trainer.evaluate: the loader has no batch; check its dataset")
        return running.means()

    def predict(self, images: Any, batch_size: int = 256) -> np.ndarray:
        """The model's output (N, ...) in evaluation mode, on the host, for an array or a loader.

        For a classifier these are logits; `gpuconv.softmax(logits, 1)` makes probabilities of them.
        Of a loader's batches the images are used, in the loader's order.
        """
        if batch_size < 1:
            raise ArgumentError(f"Trainer.predict: batch_size={batch_size!r} must be at least 1")
        if isinstance(images, Tensor) or is_array(images):
            # One batch even of no images: its output has the right shape.
            starts = range(0, max(len(images), 1), batch_size)
            batches: Iterable[Any] = (images[i : i + batch_size] for i in starts)
        else:
            batches = (batch[0] for batch in images)
        outputs = [self._infer(batch).numpy() for batch in batches]
        if not outputs:
            raise ArgumentError("Trainer.predict: the loader has no batch; check its dataset")
        return np.concatenate(outputs)

    def _infer(self, images: Any) -> Tensor:
        """The output for one batch; the model's mode is the same afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with no_grad():
                return self.model(self._tensor(images))
        finally:
            for module, training in modes:
                module.training = training

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """All that `fit` needs to go on, for `checkpoint.save`; arrays are the ones in use."""
        assert self.optimizer is not None
        return {
            "classes": self._classes(),
            "epoch": self.epoch,
            "step": self.step,
            "running": asdict(self.running),
            "history": self.history.rows,
            "random": random.get_state(),
            "train_loader": _position(self.train_loader),
            "valid_loader": _position(self.valid_loader),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "callbacks": {name: c.state_dict() for name, c in self._named_callbacks()},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; ArgumentError if it is of another run.

        After any error all parts are as they were.
        """
        before = _copied(self.state_dict())
        missing = sorted(before.keys() - state.keys())
        if missing:
            raise ArgumentError(f"the state lacks {', '.join(missing)}")
        for part, name in self._classes().items():
            if state["classes"].get(part) != name:
                raise ArgumentError(
                    f"its {part} is {state['classes'].get(part)}, that of this run {name}; resume "
                    f"with the same {part}"
                )
        # A loader cannot be put back in the middle of what it did, so it is tried on copies.
        loaders = {"train_loader": self.train_loader, "valid_loader": self.valid_loader}
        positions: list[tuple[Any, Any]] = [
            (loader, state[name])
            for name, loader in loaders.items()
            if state[name] is not None and hasattr(loader, "load_state_dict")
        ]
        for loader, position in positions:
            copy.copy(loader).load_state_dict(position)
        try:
            self._load(state)
        except Exception:
            self._load(before)
            raise
        for loader, position in positions:
            loader.load_state_dict(position)

    def _load(self, state: Mapping[str, Any]) -> None:
        """Take a state, short of the loaders' positions."""
        assert self.optimizer is not None
        # Through float or int, as the field is: a state of something else fails here, not later.
        running = {k: type(v)(state["running"][k]) for k, v in asdict(Running()).items()}
        rows = [{**dict.fromkeys(COLUMNS), **row} for row in state["history"]]
        epoch, step = index(state["epoch"]), index(state["step"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for name, callback in self._named_callbacks():
            if name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][name])
        random.set_state(state["random"])
        self.epoch, self.step, self.running = epoch, step, Running(**running)
        self.history = History()
        self.history.rows = rows

    def _resume(self, folder: Path) -> None:
        state = checkpoint.load(folder)
        try:
            self.load_state_dict(state)
        except (ArgumentError, DtypeError) as error:
            raise FileError(
                f"{checkpoint.find(folder)}: is a checkpoint of another run: {error.message}"
            ) from error
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FileError(
                f"{checkpoint.find(folder)}: is no checkpoint of a Trainer like this one "
                f"({type(error).__name__}: {error}); resume from another one, such as best"
            ) from error

    def _classes(self) -> dict[str, str | None]:
        parts = {"optimizer": self.optimizer, "schedule": self.schedule}
        return {k: None if part is None else type(part).__name__ for k, part in parts.items()}

    def _named_callbacks(self) -> Iterator[tuple[str, Callback]]:
        """Callbacks under names that stay the same when one of another class is added."""
        counts: dict[str, int] = {}
        for callback in self.callbacks:
            name = type(callback).__name__
            counts[name] = counts.get(name, 0) + 1
            yield f"{name}.{counts[name]}", callback


def _copied(value: Any) -> Any:
    """A state with arrays, dicts and lists of its own."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value.copy() if is_array(value) else value


def _position(loader: Any) -> Any:
    return loader.state_dict() if hasattr(loader, "state_dict") else None
