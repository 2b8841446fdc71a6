"""A run folder: the recipe of a training run, and everything made again from it.

`config.json` holds the recipe; `last/` and `best/` hold checkpoints, `results.csv` and
`results.png` the curves. `train`, `eval` and `predict` of the command line are thin covers of the
functions here.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import data, models, nn, ops, optim, schedule
from gpuconv.data import transforms
from gpuconv.errors import ArgumentError, FileError
from gpuconv.files import is_partial, read_bytes, sweep_partials, write_atomically
from gpuconv.random import manual_seed
from gpuconv.train import CSVLogger, CurvePlot, History, ModelCheckpoint, Trainer, checkpoint

EMBEDDED = "fashion-mnist-mini"
DATASETS: dict[str, Callable[[str], data.Dataset]] = {
    EMBEDDED: data.fashion_mnist_mini,
    "fashion-mnist": data.fashion_mnist,
}


_LOCK = ".lock"
_RUN_FILES = {"config.json", "results.csv", "results.png", _LOCK} | {
    f"{name}{suffix}" for name in ("last", "best") for suffix in ("", ".new", ".old")
}
_CHECKPOINT_FILES = {checkpoint.STATE} | {f"{part}.safetensors" for part in checkpoint.PARTS}
_log = logging.getLogger("gpuconv")


@dataclass(frozen=True)
class Config:
    """The recipe of a run: what `config.json` holds, and all of it."""

    data: str = EMBEDDED
    model: str = "simple_cnn"
    epochs: int = 12
    batch_size: int = 64
    lr: float = 1e-2
    weight_decay: float = 0.05
    augment: bool = True
    seed: int = 0
    image_size: tuple[int, int] = (32, 32)
    limit: int | None = None
    # Worked out from the data when the run starts, so that a photo meets the model as training did.
    classes: tuple[str, ...] = ()
    channels: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            if not least <= getattr(self, name) < 1 << 31:
                raise ArgumentError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.limit is not None and self.limit < 1:
            raise ArgumentError(f"limit={self.limit} must be at least 1")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ArgumentError(f"lr={self.lr} must be greater than 0, and finite")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ArgumentError(f"weight_decay={self.weight_decay} must be at least 0, and finite")
        if (
            len(self.image_size) != 2
            or not 1 <= min(self.image_size) <= max(self.image_size) <= 4096
        ):
            raise ArgumentError(f"image_size={self.image_size} must be two numbers of 1 to 4096")
        if not 0 <= self.channels <= 4096:
            raise ArgumentError(f"channels={self.channels} must be at most 4096")

    def save(self, path: Path) -> None:
        write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @staticmethod
    def load(path: Path) -> "Config":
        """The config stored at `path`; FileError naming the field that is wrong."""
        if not path.exists():
            raise FileError(
                f"{path} does not exist: {path.parent} is no run folder; see gpuconv train"
            )
        content = read_bytes(path)
        try:
            stored = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise FileError(f"{path} cannot be read as JSON: {error}") from error
        known = {f.name: f for f in fields(Config)}
        if not isinstance(stored, dict) or stored.keys() != known.keys():
            keys = set(stored) if isinstance(stored, dict) else set()
            wrong = sorted(keys ^ known.keys()) or ["(not an object)"]
            raise FileError(f"{path} is no config of this version: check {', '.join(wrong)}")
        example = asdict(Config(channels=1, classes=("a",), mean=(0.0,), std=(1.0,), limit=1))
        for name, value in stored.items():
            right: Any = type(example[name])
            if name == "limit" and value is None:
                continue
            if right is tuple and isinstance(value, list):
                part = type(example[name][0])
                if all(type(v) in ((int, float) if part is float else (part,)) for v in value):
                    stored[name] = tuple(value)
                    continue
            if type(value) is right or (right is float and type(value) is int):
                continue
            raise FileError(f"{path}: {name}={value!r} must be a {right.__name__}")
        try:
            return Config(**stored)
        except ArgumentError as error:
            raise FileError(f"{path}: {error}") from error


def datasets(config: Config) -> tuple[data.Dataset, data.Dataset]:
    """(training, test) data of `config.data`: a name, or a folder of images.

    A folder holds `train/` and `test/` (or `valid/`, `val/`) with one folder a class each, or the
    class folders themselves; then a fifth is kept for testing.
    """
    if config.data in DATASETS:
        parts = [DATASETS[config.data](split) for split in ("train", "test")]
    else:
        root = Path(config.data)
        if not config.data or not root.is_dir():
            raise FileError(
                f"data {config.data!r} is neither a folder of images nor one of "
                f"{', '.join(DATASETS)}"
            )
        held_out = [root / name for name in ("test", "valid", "val") if (root / name).is_dir()]
        if (root / "train").is_dir() and held_out:
            parts = [
                data.image_folder(part, config.image_size) for part in (root / "train", held_out[0])
            ]
            if parts[0].classes != parts[1].classes:
                raise FileError(
                    f"{root}: train has the classes {parts[0].classes}, {held_out[0].name} has "
                    f"{parts[1].classes}; they must be the same"
                )
        else:
            parts = list(data.image_folder(root, config.image_size).split(0.8, seed=config.seed))
    if config.limit is not None:
        parts = [_some(part, config.limit, config.seed) for part in parts]
    return parts[0], parts[1]


def _some(dataset: data.Dataset, count: int, seed: int) -> data.Dataset:
    """At most `count` items drawn by `seed`: the first ones of a folder would be of one class."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.subset(np.sort(order[:count]))


def with_statistics(config: Config, train: data.Dataset) -> Config:
    """`config` with what (10,000 of) the training images say: classes, channels, mean, spread."""
    images, _ = _some(train, 10_000, config.seed)[:]
    scaled = transforms.ToFloat()(images, np.random.default_rng(0)).astype(np.float64)
    return replace(
        config,
        classes=train.classes,
        channels=images.shape[1],
        image_size=tuple(images.shape[2:]),
        mean=tuple(round(float(m), 6) for m in scaled.mean(axis=(0, 2, 3))),
        std=tuple(round(float(max(s, 1e-3)), 6) for s in scaled.std(axis=(0, 2, 3))),
    )


def make_model(config: Config) -> nn.Module:
    """The model of `config`, freshly initialised from its seed."""
    manual_seed(config.seed)
    shape = (config.channels, *config.image_size)
    return models.for_images(config.model, len(config.classes), shape)


def loader(config: Config, dataset: data.Dataset, training: bool) -> data.DataLoader:
    """Batches of `dataset`: shuffled and augmented in training, in order otherwise."""
    steps: list[transforms.Transform] = []
    if training and config.augment:
        steps += [transforms.RandomHorizontalFlip(), transforms.RandomCrop(config.image_size, 1)]
    steps += [transforms.ToFloat(), transforms.Normalize(config.mean, config.std)]
    return data.DataLoader(
        dataset,
        batch_size=config.batch_size if training else 250,
        shuffle=training,
        seed=config.seed,
        drop_last=training and len(dataset) >= config.batch_size,
        transform=transforms.Compose(steps),
    )


def start(config: Config, folder: Path, device: str, overwrite: bool = False) -> History:
    """Train by `config` into a new run folder, made once data and model are known to be good."""
    parts = datasets(config)
    if config.data not in DATASETS:  # the run must find it from wherever it is evaluated
        config = replace(config, data=str(Path(config.data).resolve()))
    config = with_statistics(config, parts[0])
    make_model(config)
    with _new_folder(folder, overwrite):
        config.save(folder / "config.json")
        return _train(config, parts, folder, device, resume=None)


def resume(folder: Path, device: str) -> History:
    """Go on with a run from its `last/`, or from the beginning if it has no checkpoint yet.

    `folder` may also name one of the run's checkpoints, to go on from that.
    """
    name = "last"
    if folder.name in ("last", "best") and not (folder / "config.json").exists():
        folder, name = folder.parent, folder.name
    config = Config.load(folder / "config.json")
    begun = bool(_held(folder))
    if not begun:
        _log.warning("%s has no checkpoint yet: the run starts from the beginning", folder)
    return _train(config, datasets(config), folder, device, folder / name if begun else None)


def _train(
    config: Config,
    parts: tuple[data.Dataset, data.Dataset],
    folder: Path,
    device: str,
    resume: Path | None,
) -> History:
    with _locked(folder):
        sweep_partials(folder)
        return _fit(config, parts, folder, device, resume)


def _fit(
    config: Config,
    parts: tuple[data.Dataset, data.Dataset],
    folder: Path,
    device: str,
    resume: Path | None,
) -> History:
    model = make_model(config)
    training, testing = parts
    batches = loader(config, training, training=True)
    optimizer = optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    trainer = Trainer(
        model,
        optimizer,
        schedule=schedule.OneCycleLR(
            optimizer, max_lr=config.lr, total_steps=config.epochs * len(batches)
        ),
        callbacks=[
            ModelCheckpoint(folder, monitor="valid_accuracy", mode="max"),
            CSVLogger(folder / "results.csv"),
            CurvePlot(folder / "results.png"),
        ],
        device=device,
    )
    # A loss that overflows is told by the Trainer, in one line; NumPy's warnings would bury it.
    with np.errstate(over="ignore", invalid="ignore"):
        return trainer.fit(batches, loader(config, testing, training=False), config.epochs, resume)


def _held(folder: Path) -> set[str]:
    """The names in a folder that stand for something to keep: none of a run without checkpoint."""
    names = {path.name for path in folder.iterdir()}
    if _is_run(folder):
        names -= {"config.json", "results.csv", "results.png", _LOCK}
    return names


def _is_run(folder: Path) -> bool:
    """Whether the folder's config.json is one of ours: other programs have files of that name."""
    try:
        Config.load(folder / "config.json")
    except FileError:
        return False
    return True


@contextmanager
def _new_folder(folder: Path, overwrite: bool) -> Iterator[None]:
    """The folder of a new run; ArgumentError if something is in it already.

    With `overwrite` an earlier run that is there is set aside, and removed when the new one has
    ended, or has failed with a checkpoint to show; otherwise it comes back.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"{folder} cannot be made ({error.strerror}); choose another folder with --out"
        ) from error
    if not _held(folder):
        yield
        return
    if not overwrite:
        raise ArgumentError(
            f"{folder} is not empty; go on with --resume {folder}, start over with --overwrite, "
            f"or choose another folder with --out"
        )
    _check_run_files(folder)
    aside = folder.with_name(f".{folder.name}.replaced")
    if aside.exists():
        raise ArgumentError(f"{aside} holds a run that was being replaced; move or remove it first")
    with _locked(folder):
        os.rename(folder, aside)
    folder.mkdir()
    try:
        yield
    except BaseException:
        if not any((folder / name).exists() for name in ("last", "best")):
            shutil.rmtree(folder)
            os.rename(aside, folder)
        raise
    finally:
        if aside.exists():
            shutil.rmtree(aside)


def _check_run_files(folder: Path) -> None:
    """ArgumentError for anything in a run folder that no run made: it would be deleted."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        known = _RUN_FILES if len(name.parts) == 1 else _CHECKPOINT_FILES
        made = path.name in known or is_partial(path.name)
        if path.is_symlink() or len(name.parts) > 2 or not made:
            raise ArgumentError(
                f"{folder} holds {str(name)!r}, which no run made; choose another with --out"
            )
    if not _is_run(folder):
        raise ArgumentError(
            f"{folder} holds no config.json of a run of this version, so it is not replaced; "
            f"choose another with --out"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second training out of the folder, for as long as this process is in the block."""
    if os.name != "posix":
        yield
        return
    import fcntl

    with open(folder / _LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArgumentError(
                f"another training is under way in {folder}; wait for it, or use another folder"
            ) from None
        yield


def trained(folder: Path, device: str, which: str) -> tuple[Config, Trainer]:
    """The config of a run and a Trainer around its model, the "last" or the "best"."""
    if which not in ("last", "best"):
        raise ArgumentError(f"checkpoint {which!r} is unknown; use last or best")
    config = Config.load(folder / "config.json")
    model = make_model(config)
    place = folder / which
    state = checkpoint.load(place)  # checks sizes and SHA-256, which the bare file cannot
    try:
        model.load_state_dict(state["model"])
    except (KeyError, ArgumentError) as error:
        raise FileError(f"{place}: holds another model than config.json says: {error}") from error
    return config, Trainer(model, None, device=device, progress=False)


def evaluate(
    folder: Path, device: str, other: str | None = None, which: str = "last"
) -> dict[str, Any]:
    """Loss and accuracy of a run's model on the test part of its data, or of `other` data.

    The "best" model was chosen on those test images, so its figures are optimistic; those of the
    "last" are not.
    """
    config, trainer = trained(folder, device, which)
    source = config if other is None else replace(config, data=other)
    _, testing = datasets(source)
    if testing.classes != config.classes:
        raise ArgumentError(
            f"{source.data} has the classes {testing.classes}, the run was trained on "
            f"{config.classes}"
        )
    result = trainer.evaluate(loader(config, testing, training=False))
    return {"data": source.data, "checkpoint": which, "images": len(testing), **result}


def predict(
    folder: Path, paths: list[Path], device: str, invert: bool = False
) -> list[dict[str, float]]:
    """For each image its classes and their probabilities, by a run's best model."""
    config, trainer = trained(folder, device, "best")
    logits = trainer.predict(read_images(config, paths, invert))
    rows = ops.softmax(logits.astype(np.float64), dim=1)
    return [dict(zip(config.classes, row.tolist(), strict=True)) for row in rows]


def read_images(config: Config, paths: list[Path], invert: bool) -> np.ndarray:
    """Images of any size as the model of `config` takes them, (N, C, H, W) float32."""
    mode = "L" if config.channels == 1 else "RGB"
    images = np.stack([data.read_image(path, config.image_size, mode) for path in paths])
    if invert:
        images = 255 - images
    steps = transforms.Compose(
        [transforms.ToFloat(), transforms.Normalize(config.mean, config.std)]
    )
    return steps(images, np.random.default_rng(0))
