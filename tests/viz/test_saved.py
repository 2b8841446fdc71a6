"""Saved models read again: run folders, their checkpoints, and files of weights alone."""

from pathlib import Path

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import models, run
from gpuconv.errors import ArgumentError, FileError
from gpuconv.viz.saved import listed, read_model, read_photo, unknown

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "run"
    run.start(run.Config(epochs=1, batch_size=32, limit=64), place, "cpu")
    return place


def same(model: gc.nn.Module, path: Path) -> bool:
    held = gc.load(path)
    state = model.state_dict()
    return held.keys() == state.keys() and all((held[n] == state[n]).all() for n in held)


def test_a_run_folder_and_its_checkpoints(folder: Path) -> None:
    for path, checkpoint, file in (
        (folder, "best", "best"),
        (folder, "last", "last"),
        (folder / "last", "best", "last"),
        (str(folder / "best" / "model.safetensors"), "last", "best"),
    ):
        config, model = read_model(path, checkpoint)
        assert same(model, folder / file / "model.safetensors")
        assert config == run.Config.load(folder / "config.json")
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["lenet5", "simple_cnn", "resnet20", "resnet18"])
def test_weights_alone(name: str, tmp_path: Path) -> None:
    built = models.create(name, num_classes=7, in_channels=2)
    gc.save(tmp_path / "w.safetensors", built)
    config, model = read_model(tmp_path / "w.safetensors", model=name)
    assert same(model, tmp_path / "w.safetensors")
    assert config.channels == 2
    assert config.classes == tuple("0123456")
    side = {"lenet5": 28, "simple_cnn": 32, "resnet20": 32}.get(name, 224)
    assert config.image_size == (side, side)
    assert (config.mean, config.std) == ((0.0, 0.0), (1.0, 1.0))


def test_a_photo_as_the_model_takes_it(tmp_path: Path, rng: np.random.Generator) -> None:
    gc.save(tmp_path / "w.safetensors", models.simple_cnn(in_channels=3))
    config, _ = read_model(
        tmp_path / "w.safetensors",
        model="simple_cnn",
        size=(9, 12),
        mean=(0.5, 0.25, 0),
        std=(0.5, 1, 2),
    )
    pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    x, shown = read_photo(config, tmp_path / "p.png")
    expected = pixels.transpose(2, 0, 1) / 255
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    scaled = (expected - [[[0.5]], [[0.25]], [[0]]]) / [[[0.5]], [[1]], [[2]]]
    np.testing.assert_allclose(x, scaled, atol=1e-6)
    _, inverted = read_photo(config, str(tmp_path / "p.png"), invert=True)
    np.testing.assert_allclose(inverted, 1 - expected, atol=1e-6)


def test_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    gc.save(path, models.lenet5())
    for options, said in (
        ({}, r"say with model \(--model\) what they are of, one of lenet5"),
        ({"model": "lenet6"}, "model 'lenet6' is unknown; use one of lenet5"),
        ({"model": "simple_cnn"}, "is no simple_cnn: it has no block1.conv.weight of 4 axes"),
        ({"model": "resnet20"}, "is no resnet20: it has no fc.weight of 2 axes"),
        ({"model": "lenet5", "size": (28, 30)}, "lenet5 takes square images, not 28 x 30"),
    ):
        with pytest.raises(ArgumentError, match=said):
            read_model(path, **options)
    gc.save(path, models.simple_cnn(width=8))
    with pytest.raises(ArgumentError, match=r"holds another model: .*of another shape"):
        read_model(path, model="simple_cnn")
    with pytest.raises(ArgumentError, match="is a run folder, which says itself"):
        read_model(folder, model="simple_cnn")
    with pytest.raises(FileError, match="is no run folder"):
        read_model(tmp_path)
    path.write_bytes(b"no weights")
    with pytest.raises(FileError, match="not a safetensors file"):
        read_model(path, model="lenet5")


def test_names_in_errors() -> None:
    assert str(unknown("layer", "cov", ("fc", "conv", "pool"))) == (
        "there is no layer 'cov'; use one of conv, fc, pool"
    )
    assert listed([str(i) for i in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert listed(["a"]) == "a"
