"""A run folder: the recipe of a training run, and everything made again from it.

`config.json` holds the recipe; `last/` and `best/` hold checkpoints, `results.csv` and
`results.png` the curves. `train`, `eval` and `predict` of the command line are thin covers of the
functions here.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import data, models, nn, ops, optim, schedule
from gpuconv.data import transforms
from gpuconv.errors import ArgumentError, FileError
from gpuconv.files import write_atomically
from gpuconv.random import manual_seed
from gpuconv.train import CSVLogger, CurvePlot, History, ModelCheckpoint, Trainer, checkpoint

EMBEDDED = "fashion-mnist-mini"
DATASETS: dict[str, Callable[[str], data.Dataset]] = {
    EMBEDDED: data.fashion_mnist_mini,
    "fashion-mnist": data.fashion_mnist,
}


_RUN_FILES = {"config.json", "results.csv", "results.png"} | {
    f"{name}{suffix}" for name in ("last", "best") for suffix in ("", ".new", ".old")
}


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
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise ArgumentError(f"seed={self.seed} must be at least 0")
        if min(self.image_size) < 1:
            raise ArgumentError(f"image_size={self.image_size} must be at least 1 x 1")
        if self.limit is not None and self.limit < 1:
            raise ArgumentError(f"limit={self.limit} must be at least 1")
        if not self.lr > 0:
            raise ArgumentError(f"lr={self.lr} must be greater than 0")

    def save(self, path: Path) -> None:
        write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @staticmethod
    def load(path: Path) -> "Config":
        """The config stored at `path`; FileError naming the field that is wrong."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileError(
                f"{path} does not exist: {path.parent} is no run folder; see gpuconv train"
            ) from None
        except (OSError, ValueError) as error:
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
        return Config(**stored)


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
        parts = [part.subset(min(config.limit, len(part))) for part in parts]
    return parts[0], parts[1]


def with_statistics(config: Config, train: data.Dataset) -> Config:
    """`config` with what the training data say: classes, channels, mean and spread a channel."""
    images, _ = train[np.arange(min(len(train), 2000))]
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
    prepare(folder, overwrite)
    config.save(folder / "config.json")
    return _train(config, parts, folder, device, resume=None)


def resume(folder: Path, device: str) -> History:
    """Go on with a run from its `last/` checkpoint, or from the beginning if it has none yet."""
    config = Config.load(folder / "config.json")
    begun = any(path.name in _RUN_FILES - {"config.json"} for path in folder.iterdir())
    return _train(config, datasets(config), folder, device, folder / "last" if begun else None)


def _train(
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


def prepare(folder: Path, overwrite: bool) -> None:
    """Make the folder of a new run; ArgumentError if it holds something already.

    With `overwrite` an earlier run there is removed first: the files of a run, and nothing else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ArgumentError(f"{folder} is a file; choose another folder with --out") from None
    held = {path.name for path in folder.iterdir()}
    if held == {"config.json"}:  # a run that failed before its first checkpoint: nothing to keep
        held = set()
    if held and not overwrite:
        raise ArgumentError(
            f"{folder} is not empty; go on with --resume {folder}, start over with --overwrite, "
            f"or choose another folder with --out"
        )
    foreign = {n for n in held - _RUN_FILES if not (n[0] == "." and n.endswith(".partial"))}
    if foreign:
        raise ArgumentError(
            f"{folder} holds {sorted(foreign)[0]!r}, which no run made; choose another with --out"
        )
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def trained(folder: Path, device: str) -> tuple[Config, Trainer]:
    """The config of a run and a Trainer around its best model, for evaluation and prediction."""
    config = Config.load(folder / "config.json")
    model = make_model(config)
    best = folder / "best"
    state = checkpoint.load(best)  # checks sizes and SHA-256, which the bare file cannot
    try:
        model.load_state_dict(state["model"])
    except (KeyError, ArgumentError) as error:
        raise FileError(f"{best}: holds another model than config.json says: {error}") from error
    return config, Trainer(model, None, device=device, progress=False)


def evaluate(folder: Path, device: str, other: str | None = None) -> dict[str, Any]:
    """Loss and accuracy of a run's best model on the test part of its data, or of `other` data."""
    config, trainer = trained(folder, device)
    source = config if other is None else replace(config, data=other)
    _, testing = datasets(source)
    if testing.classes != config.classes:
        raise ArgumentError(
            f"{source.data} has the classes {testing.classes}, the run was trained on "
            f"{config.classes}"
        )
    result = trainer.evaluate(loader(config, testing, training=False))
    return {"data": source.data, "images": len(testing), **result}


def predict(
    folder: Path, paths: list[Path], device: str, invert: bool = False
) -> list[dict[str, float]]:
    """For each image its classes and their probabilities, by a run's best model."""
    config, trainer = trained(folder, device)
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
