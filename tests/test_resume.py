"""Interrupted and resumed training equals uninterrupted training, bit for bit.

As a program (`python -m tests.test_resume FOLDER RECIPE ...`) this file is the training that gets
killed.
"""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import nn, ops, optim, schedule, weights
from gpuconv.autograd import Tensor
from gpuconv.data import DataLoader, Dataset, fashion_mnist_mini, transforms
from gpuconv.errors import FileError
from gpuconv.optim import Optimizer
from gpuconv.random import generator
from gpuconv.schedule import Schedule
from gpuconv.train import (
    Callback,
    CSVLogger,
    EarlyStopping,
    ModelCheckpoint,
    Trainer,
    checkpoint,
)

ROOT = Path(__file__).parent.parent
EPOCHS = 4
Make = Callable[[], Trainer]


class SmallCNN(nn.Module):
    """With what has a state of its own: batch normalisation (buffers), dropout (randomness)."""

    def __init__(self) -> None:
        self.conv1 = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8 * 7 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = ops.relu(self.bn1(self.conv1(x)))
        x = ops.relu(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x).flatten(1))


def sgd(model: nn.Module) -> tuple[Optimizer, Schedule]:
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    return optimizer, schedule.OneCycleLR(optimizer, 0.1, epochs=EPOCHS, steps_per_epoch=15)


def adam(model: nn.Module) -> tuple[Optimizer, Schedule]:
    heads = [model.fc.weight, model.fc.bias]
    rest = [p for p in model.parameters() if not any(p is h for h in heads)]
    groups = [{"params": rest, "weight_decay": 0.01}, {"params": heads, "lr": 2e-3}]
    optimizer = optim.AdamW(groups, 5e-3, amsgrad=True)
    plateau = schedule.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2)
    return optimizer, schedule.LinearWarmup(optimizer, 20, plateau)


def cnn_trainer(folder: Path, recipe: str, extra: list[Callback]) -> Trainer:
    gc.manual_seed(3)
    model = SmallCNN()
    optimizer, rates = {"sgd": sgd, "adam": adam}[recipe](model)
    callbacks = [
        ModelCheckpoint(folder, every_steps=2),
        EarlyStopping(patience=9, restore_best=True),
        CSVLogger(folder / "results.csv"),
        *extra,
    ]
    return Trainer(
        model, optimizer, schedule=rates, callbacks=callbacks, clip_grad_norm=5.0, progress=False
    )


def cnn_loaders() -> tuple[DataLoader, DataLoader]:
    """480 images with augmentation; the other 100 too, which nobody should, but it must resume."""
    augment = transforms.Compose(
        [transforms.RandomHorizontalFlip(), transforms.RandomCrop(28, 2), transforms.ToFloat()]
    )
    data = fashion_mnist_mini("train")
    train = DataLoader(data.subset(480), 32, shuffle=True, seed=5, transform=augment)
    valid = DataLoader(data.subset(np.arange(480, 580)), 50, seed=6, transform=augment)
    return train, valid


# The program.


class Announce(Callback):
    """Tells the parent about each batch; after `limit` batches waits to be killed."""

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit = limit

    def on_batch_end(self, trainer: Trainer) -> None:
        print(trainer.step, flush=True)
        self.limit -= 1
        if self.limit <= 0:
            time.sleep(100)


def die_before(operation: str, name: str, count: int) -> None:
    """Let the system kill this process just before the n-th `os.<operation>` of such a path."""
    original, calls = getattr(os, operation), [0]

    def fatal(*args: Any, **kwargs: Any) -> Any:
        calls[0] += str(args[0]).endswith(name)
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, operation, fatal)


def main(folder: str, recipe: str, operation: str = "", name: str = "", count: str = "0") -> None:
    run = Path(folder)
    announce = Announce(int(count)) if operation == "wait" else Announce()
    trainer = cnn_trainer(run, recipe, [announce])
    there = any((run / name).exists() for name in ("last", "last.old"))
    if operation not in ("", "wait"):
        die_before(operation, name, int(count))
    trainer.fit(*cnn_loaders(), epochs=EPOCHS, resume=run if there else None)
    weights.save(run / "final.safetensors", trainer.model)


# The tests.


def start(folder: Path, recipe: str, *die: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    # How OpenBLAS splits a sum depends on its number of threads, and that on the machine and what
    # else runs there; with one thread the last bits are always the same.
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.test_resume", str(folder), recipe, *die]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(child: subprocess.Popen[str]) -> int:
    _, errors = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL), errors
    return child.returncode


def kill_in_the_middle(folder: Path, recipe: str, dice: random.Random) -> int:
    """SIGKILL some 2 to 8 batches later, at any moment; the batches of the run by then, about."""
    count = dice.randint(1, 6)
    # It never gets further than that, so it cannot end before the kill, however late that comes.
    child = start(folder, recipe, "wait", "", str(count + 3))
    assert child.stdout is not None
    assert child.stderr is not None
    step = child.stdout.readline()
    assert step, child.stderr.read()
    began = time.perf_counter()
    for _ in range(count):
        step = child.stdout.readline() or step
    time.sleep(dice.uniform(0, 2) * (time.perf_counter() - began) / count)
    child.send_signal(signal.SIGKILL)
    assert finish(child) == -signal.SIGKILL
    return int(step)


def without_clocks(state: Any) -> Any:
    """A state without the seconds that were measured, the one thing that may differ."""
    if isinstance(state, dict):
        return {k: without_clocks(v) for k, v in state.items() if k != "seconds"}
    return [without_clocks(v) for v in state] if isinstance(state, list) else state


def assert_same_run(a: Path, b: Path) -> None:
    for path in sorted(a.rglob("*.safetensors")):
        other = b / path.relative_to(a)
        assert path.read_bytes() == other.read_bytes(), f"{path.relative_to(a)} differs"
    for name in ("last", "best"):
        contents = [json.loads((run / name / "state.json").read_text()) for run in (a, b)]
        for content in contents:
            del content["sha256"]  # of all the rest, the clocks too
        assert without_clocks(contents[0]) == without_clocks(contents[1])
    rows = [
        [line.split(",")[:-1] for line in (run / "results.csv").read_text().splitlines()]
        for run in (a, b)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 1 + EPOCHS
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())


# Inside the save: while files are written to last.new, before last is moved away, between that and
# the new one's coming (there is no last then), before last.old is removed.
AIMED = [
    ("replace", "", 6),
    ("fsync", "", 11),
    ("rename", "last", 2),
    ("rename", "last.new", 2),
    ("rmdir", "", 2),
]


@pytest.mark.parametrize("recipe", ["sgd", "adam"])
def test_killed_again_and_again(recipe: str, tmp_path: Path) -> None:
    dice = random.Random(f"kills of {recipe}")
    whole = start(tmp_path / "whole", recipe)
    watch = threading.Thread(target=finish, args=(whole,))  # empties its pipe meanwhile
    watch.start()
    run, steps = tmp_path / "killed", []
    for operation, name, count in AIMED if recipe == "sgd" else AIMED[2:4]:
        # Alternately: at any moment, and at this one.
        steps.append(kill_in_the_middle(run, recipe, dice))
        assert finish(start(run, recipe, operation, name, str(count))) == -signal.SIGKILL
        if name == "last.new":
            assert not (run / "last").exists(), "the moment aimed at"
            assert (run / "last.old").exists()
            assert (run / "last.new").exists()
    assert any(step % 15 not in (0, 14) for step in steps), "in the middle of an epoch"
    assert steps[-1] > steps[0], "it gets on"
    assert finish(start(run, recipe)) == 0
    watch.join()
    assert whole.returncode == 0
    assert_same_run(tmp_path / "whole", run)


class Interrupt(Exception):
    pass


class InterruptAt(Callback):
    rank = 9  # after the checkpoint

    def __init__(self, step: int) -> None:
        self.at = step

    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.step == self.at:
            raise Interrupt


class Tiny(nn.Module):
    def __init__(self) -> None:
        self.fc1 = nn.Linear(4, 8)
        self.drop = nn.Dropout(0.4)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(ops.relu(self.fc1(x.flatten(1)))))


def tiny_data() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.random((23, 1, 2, 2)).astype(np.float32)
    return Dataset(x, x.reshape(23, 4)[:, :3].argmax(axis=1), ("a", "b", "c"))


def flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return transforms.RandomHorizontalFlip()(images, rng)


def tiny_loaders(kind: str) -> tuple[Any, Any]:
    data = tiny_data()
    if kind == "lists":
        batches = [data[i : i + 5] for i in range(0, 23, 5)]
        return batches, batches[:2]
    train = DataLoader(data, 5, shuffle=True, transform=flip, prefetch=0)
    return train, DataLoader(data, 8, shuffle=True, transform=flip, prefetch=0)


RECIPES: dict[str, Callable[[Optimizer], Schedule | None]] = {
    "none": lambda o: None,
    "step": lambda o: schedule.StepLR(o, 1, 0.5),
    "cosine": lambda o: schedule.CosineAnnealingLR(o, 13, per_batch=True),
    "plateau": lambda o: schedule.ReduceLROnPlateau(o, patience=0, threshold=0.2),
    "one cycle": lambda o: schedule.OneCycleLR(o, 0.3, 15),
}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, 0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
}


def tiny_trainer(folder: Path, optimizer: str, rates: str, *extra: Callback) -> Trainer:
    gc.manual_seed(1)
    model = Tiny()
    opt = OPTIMIZERS[optimizer](model.parameters())
    callbacks: list[Callback] = [
        ModelCheckpoint(folder, every_steps=1),
        EarlyStopping(patience=1, min_delta=0.02, restore_best=True),
        CSVLogger(folder / "results.csv"),
        *extra,
    ]
    return Trainer(model, opt, schedule=RECIPES[rates](opt), callbacks=callbacks, progress=False)


@pytest.mark.parametrize(
    ("loaders", "optimizer", "rates"),
    [
        ("loaders", "sgd", "step"),
        ("loaders", "sgd", "one cycle"),
        ("loaders", "adam", "cosine"),
        ("loaders", "rmsprop", "plateau"),
        ("lists", "adam", "none"),
    ],
)
def test_interrupted_after_any_step(
    loaders: str, optimizer: str, rates: str, tmp_path: Path
) -> None:
    """Every step of three epochs, the last of an epoch too; state and results must not notice."""

    def results(trainer: Trainer, folder: Path) -> Any:
        return without_clocks([trainer.history.rows, checkpoint.load(folder)]), {
            name: array.tobytes() for name, array in trainer.model.state_dict().items()
        }

    (tmp_path / "whole").mkdir()
    whole = tiny_trainer(tmp_path / "whole", optimizer, rates)
    whole.fit(*tiny_loaders(loaders), epochs=3)
    expected = results(whole, tmp_path / "whole")
    assert whole.step > 5
    for step in range(1, whole.step + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        first = tiny_trainer(folder, optimizer, rates, InterruptAt(step))
        with pytest.raises(Interrupt):
            first.fit(*tiny_loaders(loaders), epochs=3)
        generator().random(17)  # other things happen in between
        again = tiny_trainer(folder, optimizer, rates)
        history = again.fit(*tiny_loaders(loaders), epochs=3, resume=folder)
        found = results(again, folder)
        np.testing.assert_equal(found[0], expected[0])
        assert found[1] == expected[1]
        assert history.stopped == whole.history.stopped


def test_a_finished_run_stays_finished_and_can_be_prolonged(tmp_path: Path) -> None:
    def run(epochs: int, resume: bool) -> Trainer:
        trainer = tiny_trainer(tmp_path, "sgd", "step")
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, EarlyStopping)]
        trainer.fit(*tiny_loaders("loaders"), epochs=epochs, resume=tmp_path if resume else None)
        return trainer

    whole = run(4, resume=False).model.state_dict()
    run(2, resume=False)
    assert run(2, resume=True).step == 10
    np.testing.assert_equal(run(4, resume=True).model.state_dict(), whole)


def test_a_run_that_was_stopped_stays_stopped(tmp_path: Path) -> None:
    trainers = []
    for resume in (None, tmp_path):
        trainer = tiny_trainer(tmp_path, "sgd", "none")
        trainer.callbacks[0].best.min_delta = 10.0
        trainer.callbacks[0].min_delta = 10.0
        trainer.fit(*tiny_loaders("loaders"), epochs=9, resume=resume)
        trainers.append(trainer)
    a, b = trainers
    assert a.history.stopped == b.history.stopped != ""
    assert a.step == b.step == 10
    np.testing.assert_equal(a.model.state_dict(), b.model.state_dict())


def other_model(trainer: Trainer, loaders: list[Any]) -> None:
    trainer.model.fc2 = nn.Linear(8, 4)


def other_parameters(trainer: Trainer, loaders: list[Any]) -> None:
    trainer.optimizer = optim.SGD([trainer.model.fc1.weight], 0.1)
    trainer.schedule.optimizer = trainer.optimizer


def other_optimizer(trainer: Trainer, loaders: list[Any]) -> None:
    trainer.optimizer = optim.Adam(trainer.model.parameters())


def other_schedule(trainer: Trainer, loaders: list[Any]) -> None:
    trainer.schedule = None


def other_batches(trainer: Trainer, loaders: list[Any]) -> None:
    loaders[0] = DataLoader(tiny_data(), 6, shuffle=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_model, r"last: is a checkpoint of another run: .*'fc2.weight' \(3, 8\) instead"),
        (other_parameters, r"last: is a .*groups of \[4\] parameters, this optimizer of \[1\]"),
        (
            other_optimizer,
            r"last: is a .*: its optimizer is SGD, that of this run Adam; resume with",
        ),
        (
            other_schedule,
            r"last: is a .*: its schedule is StepLR, that of this run None; resume with",
        ),
        (
            other_batches,
            r"last: is a .*: DataLoader: the state has batch_size=5, this loader batch",
        ),
    ],
)
def test_a_checkpoint_of_another_run(change: Any, message: str, tmp_path: Path) -> None:
    tiny_trainer(tmp_path, "sgd", "step").fit(*tiny_loaders("loaders"), epochs=1)
    trainer, loaders = tiny_trainer(tmp_path, "sgd", "step"), list(tiny_loaders("loaders"))
    change(trainer, loaders)
    with pytest.raises(FileError, match=message):
        trainer.fit(*loaders, epochs=2, resume=tmp_path)


def test_a_refused_resume_changes_nothing(tmp_path: Path) -> None:
    """Not by a state that fails at its very end, nor by one of something else altogether."""

    def snapshot(trainer: Trainer) -> Any:
        positions = [{**vars(loader), "dataset": None} for loader in loaders]
        return copy.deepcopy([trainer.state_dict(), positions])

    tiny_trainer(tmp_path, "adam", "plateau").fit(*tiny_loaders("loaders"), epochs=1)
    good = checkpoint.load(tmp_path)
    assert good["callbacks"]["EarlyStopping.1"]["weights"]
    changes: list[tuple[list[str], Any]] = [
        (["random"], {}),
        (["random"], {"bit_generator": "PCG64", "state": 3}),
        (["random", "state", "state"], -1),
        (["running"], {}),
        (["running", "loss"], "much"),
        (["history"], 3),
        (["history"], [3]),
        (["epoch"], "1"),
        (["step"], None),
        (["classes"], []),
        (["schedule"], None),
        (["schedule", "best"], []),
        (["callbacks"], None),
        (["callbacks", "ModelCheckpoint.1"], {}),
        (["callbacks", "EarlyStopping.1"], [1]),
        (["callbacks", "EarlyStopping.1", "waited"], "x"),
        (["valid_loader"], {}),
        (["valid_loader"], []),
        (["train_loader", "batch"], 99),
        (["optimizer", "param_groups"], [1]),
        (["optimizer", "state"], []),
        (["optimizer", "state", "0", "step"], "x"),
        (["optimizer", "state", "0", "step"], float("inf")),
    ]
    trainer, loaders = tiny_trainer(tmp_path, "adam", "plateau"), tiny_loaders("loaders")
    trainer.fit(*tiny_loaders("loaders"), epochs=2)
    trainer.train_loader, trainer.valid_loader = loaders
    before = snapshot(trainer)
    for keys, value in changes:
        *path, last = keys
        state = place = copy.deepcopy(good)
        for key in path:
            place = place[key]
        place[last] = value
        checkpoint.save(tmp_path / "foreign", state)
        with pytest.raises(FileError, match=r"foreign: is (no|a) checkpoint of (a Trai|another)"):
            trainer._resume(tmp_path / "foreign")
        np.testing.assert_equal(snapshot(trainer), before, err_msg=str(keys))
    trainer._resume(tmp_path / "last")


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no checkpoint"):
        tiny_trainer(tmp_path, "sgd", "step").fit(*tiny_loaders("loaders"), resume=tmp_path)


def test_a_state_that_lacks_something(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, "sgd", "step")
    trainer.fit(*tiny_loaders("loaders"), epochs=1)
    state = trainer.state_dict()
    del state["random"]
    checkpoint.save(tmp_path / "last", state)
    with pytest.raises(FileError, match=r"another run: the state lacks random"):
        trainer.fit(*tiny_loaders("loaders"), epochs=2, resume=tmp_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
