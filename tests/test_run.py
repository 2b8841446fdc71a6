"""Run folders: what is replaced, what is kept, who may write; what a config decides."""

import json
import multiprocessing
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuconv import data, run
from gpuconv.data import transforms
from gpuconv.errors import ArgumentError, FileError, TrainingError
from gpuconv.run import Config

SMALL = Config(epochs=1, limit=64, batch_size=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of one epoch."""
    made = tmp_path / "run"
    run.start(SMALL, made, "cpu")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_that_fails_leaves_the_one_it_was_to_replace(folder: Path) -> None:
    before = contents(folder)
    with np.errstate(all="ignore"), pytest.raises(TrainingError):
        run.start(replace(SMALL, lr=1e30), folder, "cpu", overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_overwriting_replaces_the_whole_run(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(ArgumentError, match="is not empty; go on with --resume"):
        run.start(SMALL, folder, "cpu")
    run.start(replace(SMALL, seed=1), folder, "cpu", overwrite=True)
    after = contents(folder)
    assert before.keys() == after.keys()
    assert before["last/model.safetensors"] != after["last/model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("place", ["notes.txt", "best/thesis.txt", "last/deep/er.txt"])
def test_what_no_run_made_is_never_deleted(folder: Path, place: str) -> None:
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text("mine")
    before = contents(folder)
    with pytest.raises(ArgumentError, match="which no run made"):
        run.start(SMALL, folder, "cpu", overwrite=True)
    assert contents(folder) == before


def test_links_are_not_followed_to_be_emptied(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    os.rename(folder / "best", elsewhere)
    (folder / "best").symlink_to(elsewhere)
    with pytest.raises(ArgumentError, match="'best', which no run made"):
        run.start(SMALL, folder, "cpu", overwrite=True)
    assert (elsewhere / "model.safetensors").exists()


def test_a_run_that_failed_before_its_first_checkpoint_does_not_block(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with np.errstate(all="ignore"), pytest.raises(TrainingError):
        run.start(replace(SMALL, lr=1e30), folder, "cpu")
    run.start(SMALL, folder, "cpu")
    assert Config.load(folder / "config.json").lr == SMALL.lr


def hold(folder: str, ready: Any, done: Any) -> None:
    with run._locked(Path(folder)):
        ready.set()
        done.wait(60)


def test_a_second_training_in_a_folder_is_refused(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(folder), ready, done))
    process.start()
    try:
        assert ready.wait(60)
        for call in (
            lambda: run.resume(folder, "cpu"),
            lambda: run.start(SMALL, folder, "cpu", overwrite=True),
        ):
            with pytest.raises(ArgumentError, match="another training is under way"):
                call()
    finally:
        done.set()
        process.join()
    assert len(run.resume(folder, "cpu").rows) == 1


def test_a_run_without_its_last_checkpoint_is_not_started_over(folder: Path) -> None:
    os.rename(folder / "last", folder.parent / "gone")
    before = contents(folder)
    with pytest.raises(FileError, match="holds no checkpoint"):
        run.resume(folder, "cpu")
    assert contents(folder) == before
    os.rename(
        folder.parent / "gone", folder / "last.old"
    )  # as a kill between two renames leaves it
    assert len(run.resume(folder, "cpu").rows) == 1


def test_a_limit_takes_items_of_every_class() -> None:
    labels = np.repeat(np.arange(3), 100)
    sorted_by_class = data.Dataset(np.zeros((300, 1, 2, 2), np.uint8), labels)
    counts = np.bincount(run._some(sorted_by_class, 60, seed=0).labels)
    assert counts.sum() == 60
    assert counts.min() >= 10


def test_the_statistics_are_those_of_the_training_images(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (500, 3, 4, 5), dtype=np.uint8)
    images[:, 1] //= 4
    config = run.with_statistics(SMALL, data.Dataset(images, np.arange(500) % 7))
    assert config.classes == tuple("0123456")
    assert (config.channels, config.image_size) == (3, (4, 5))
    np.testing.assert_allclose(config.mean, images.mean(axis=(0, 2, 3)) / 255, rtol=1e-4)
    np.testing.assert_allclose(config.std, images.std(axis=(0, 2, 3)) / 255, rtol=1e-4)


def test_a_config_decides_how_batches_are_made() -> None:
    dataset = data.fashion_mnist_mini("test")
    config = run.with_statistics(replace(SMALL, batch_size=48, seed=3), dataset)
    training, plain = (run.loader(config, dataset, training=t) for t in (True, False))
    assert (training.batch_size, training.shuffle, training.seed) == (48, True, 3)
    assert len(training) == 1000 // 48, "the last, smaller batch is left out"
    assert not plain.shuffle
    kinds = [type(step) for step in training.transform.transforms]
    last = [transforms.ToFloat, transforms.Normalize]
    assert kinds == [transforms.RandomHorizontalFlip, transforms.RandomCrop, *last]
    assert [type(step) for step in plain.transform.transforms] == last
    unaugmented = run.loader(replace(config, augment=False), dataset, training=True)
    assert [type(step) for step in unaugmented.transform.transforms] == last
    models = [run.make_model(replace(config, seed=seed)).state_dict() for seed in (0, 0, 1)]
    first = next(iter(models[0]))
    assert np.array_equal(models[0][first], models[1][first])
    assert not np.array_equal(models[0][first], models[2][first])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 10**400, "epochs"),
        ("image_size", [28], "image_size=(28,) must be two numbers"),
        ("image_size", [-1, -1], "must be two numbers of 1 to 4096"),
        ("weight_decay", -1.0, "weight_decay=-1.0 must be at least 0"),
        ("lr", float("nan"), "lr=nan must be greater than 0, and finite"),
        ("lr", float("inf"), "lr=inf must be greater than 0, and finite"),
        ("channels", 10**9, "channels=1000000000 must be at most"),
        ("seed", -1, "seed=-1 must be at least 0"),
        ("classes", "ab", "classes='ab' must be a tuple"),
        ("mean", ["x"], "mean=['x'] must be a tuple"),
        ("augment", 1, "augment=1 must be a bool"),
        ("data", None, "data=None must be a str"),
    ],
)
def test_a_wrong_config_names_file_and_field(
    tmp_path: Path, field: str, value: Any, message: str
) -> None:
    path = tmp_path / "config.json"
    SMALL.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(FileError, match=re.escape(message)) as caught:
        Config.load(path)
    assert str(caught.value).startswith(str(path))


def test_a_config_of_absurd_depth_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[" * 200_000)
    with pytest.raises(FileError, match="cannot be read as JSON"):
        Config.load(path)


def test_both_parts_of_a_folder_must_have_the_same_classes(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for place in ("train/a", "train/b", "val/a", "val/c"):
        (tmp_path / place).mkdir(parents=True)
        pillow.new("RGB", (8, 8)).save(tmp_path / place / "1.png")
    config = replace(SMALL, data=str(tmp_path), image_size=(8, 8))
    with pytest.raises(FileError, match=r"train has the classes .*, val has"):
        run.datasets(config)
    os.rename(tmp_path / "val" / "c", tmp_path / "val" / "b")
    assert [len(part) for part in run.datasets(config)] == [2, 2]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("besides", [(), ("results.csv",), ("best/model.safetensors",)])
def test_a_config_of_another_program_is_not_replaced(
    tmp_path: Path, besides: tuple[str, ...], overwrite: bool
) -> None:
    (tmp_path / "best").mkdir()
    for place in ("config.json", *besides):
        (tmp_path / place).write_text('{"hf": 1}')
    before = contents(tmp_path)
    with pytest.raises(ArgumentError, match=r"is not empty|no config.json of a run"):
        run.start(SMALL, tmp_path, "cpu", overwrite=overwrite)
    assert contents(tmp_path) == before
