"""The program, run as a user runs it: what it prints where, its status, a line for a mistake."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpuconv.data import fashion_mnist_mini
from gpuconv.data.idx import write_idx

SMALL = ("--epochs", "1", "--limit", "128")


def gpuconv(
    *arguments: object, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpuconv", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "error", "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = gpuconv("train", "--out", folder, "--epochs", 2, "--limit", 256)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def write_png(path: Path, image: np.ndarray) -> Path:
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(image).save(path)
    return path


def test_training_leaves_a_run_folder(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()} - {"stdout", "stderr"}
    assert names == {".lock", "config.json", "last", "best", "results.csv", "results.png"}
    for checkpoint in ("last", "best"):
        held = {path.name for path in (trained / checkpoint).iterdir()}
        assert held == {"model.safetensors", "optimizer.safetensors", "state.json"}
    with open(trained / "results.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    config = json.loads((trained / "config.json").read_text())
    assert config["epochs"] == 2
    assert config["classes"][0] == "T-shirt/top"


def test_results_go_to_stdout_and_progress_to_stderr(trained: Path) -> None:
    (line,) = (trained / "stdout").read_text().splitlines()
    assert line.startswith("test accuracy 0.")
    shown = (trained / "stderr").read_text().splitlines()
    assert shown[0] == "computing with cpu on cpu"
    told = [part.split(":")[0] for part in shown[1:] if not part.startswith("compiling CPU")]
    assert told == ["epoch 1/2", "epoch 2/2"]


def test_evaluating_gives_the_figures_of_the_history(trained: Path) -> None:
    with open(trained / "results.csv", encoding="utf-8") as file:
        history = [float(row["valid_accuracy"]) for row in csv.DictReader(file)]
    result = json.loads(gpuconv("eval", trained, "--json").stdout)
    assert result["images"] == 256
    assert result["accuracy"] == pytest.approx(history[-1])
    assert f"test accuracy {history[-1]:.4f}" in gpuconv("eval", trained).stdout
    best = json.loads(gpuconv("eval", trained, "--json", "--checkpoint", "best").stdout)
    assert best["accuracy"] == pytest.approx(max(history))
    fails(gpuconv("eval", trained, "--checkpoint", "first"), "'first' is unknown; use last or best")


def test_predicting_an_image_file(trained: Path, tmp_path: Path) -> None:
    image = np.asarray(fashion_mnist_mini("test").images[0, 0])
    path = write_png(tmp_path / "clothes.png", image)
    done = gpuconv("predict", path, path, "--run", trained, "--json", "--top", 10)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2
    assert rows[0]["classes"] == pytest.approx(rows[1]["classes"], rel=1e-4)
    probabilities = list(rows[0]["classes"].values())
    assert len(probabilities) == 10
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)
    plain = gpuconv("predict", path, "--run", trained).stdout
    assert plain.startswith(f"{path}: {next(iter(rows[0]['classes']))} 0.")
    inverted = write_png(tmp_path / "inverted.png", 255 - image)
    again = gpuconv("predict", inverted, "--invert", "--run", trained).stdout
    assert again.split(": ")[1] == plain.split(": ")[1]


def test_an_interrupted_run_goes_on_as_it_was_configured(tmp_path: Path) -> None:
    whole = gpuconv("train", "--out", tmp_path / "whole", "--epochs", 3, "--limit", 256)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuconv", "train", "--out", folder, "--epochs=3", "--limit=256"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            if line.startswith("epoch 2/3"):
                process.kill()
                break
        process.stderr.read()
    process.wait()
    resumed = gpuconv("train", "--resume", folder)
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1/3" not in resumed.stderr
    for name in ("model", "optimizer"):
        ours, theirs = (tmp_path / run / f"last/{name}.safetensors" for run in ("stopped", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    damaged = folder / "last" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    fails(gpuconv("train", "--resume", folder), "such as best")
    best = gpuconv("train", "--resume", folder / "best")
    assert best.returncode == 0, best.stderr
    assert best.stdout.startswith("test accuracy")
    refused = gpuconv("train", "--resume", folder, "--epochs", 9)
    assert refused.returncode == 1
    assert "leave out --epochs" in refused.stderr


def test_a_folder_of_images_is_data(tmp_path: Path, rng: np.random.Generator) -> None:
    for name, level in (("dark", 40), ("light", 215)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            noise = rng.integers(-30, 30, (20, 24, 3))
            write_png(tmp_path / "photos" / name / f"{i}.png", (level + noise).astype(np.uint8))
    done = gpuconv(
        "train", "--data", tmp_path / "photos", "--image-size", 16, "--epochs", 8,
        "--batch-size", 8, "--lr", 0.003, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["classes"] == ["dark", "light"]
    assert config["channels"] == 3
    assert gpuconv("eval", tmp_path / "run").stdout.startswith("test accuracy 1.0000")
    other = gpuconv("eval", tmp_path / "run", "--data", "fashion-mnist-mini")
    assert other.returncode == 1
    assert "the run was trained on" in other.stderr


def test_summary_as_a_table_and_as_json() -> None:
    table = gpuconv("summary", "lenet5").stdout
    assert "61,706" in table
    report = json.loads(gpuconv("summary", "simple_cnn", "--input", "3x32x32", "--json").stdout)
    assert report["totals"]["parameters"] == sum(row["parameters"] for row in report["rows"])


def test_both_names_are_the_same_program() -> None:
    version = gpuconv("--version").stdout
    assert version.startswith("gpuconv ")
    script = Path(sys.executable).with_name("gpuconv")
    if script.exists():
        assert subprocess.check_output([script, "--version"], text=True) == version


def fails(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Status 1, nothing on stdout, and one line on stderr with all of `parts`; no traceback."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("computing with")]
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("gpuconv: error: ")
    for part in parts:
        assert part in lines[0]


def test_mistakes_get_one_line(tmp_path: Path) -> None:
    fails(
        gpuconv("train", "--backend", "tpu"),
        "backend 'tpu' is unknown; use one of cpu, numpy, emulated, cuda",
    )
    fails(gpuconv("train", "--model", "vgg99", "--out", tmp_path / "a"), "vgg99", "lenet5")
    fails(gpuconv("train", "--data", "nowhere", "--out", tmp_path / "b"), "'nowhere' is neither")
    fails(gpuconv("train", "--epochs", 0), "epochs=0 must be at least 1")
    fails(gpuconv("train", "--lr", -1), "lr=-1.0 must be greater than 0")
    fails(gpuconv("eval", tmp_path), "config.json does not exist", "gpuconv train")
    fails(gpuconv("summary", "lenet5", "--input", "28"), "--input '28' is no shape; write CxHxW")
    fails(gpuconv("summary", "lenet5", "--input", "1x4x4"), "image_size=4 must be 28 or 32")
    fails(gpuconv("train", "--resume", tmp_path), "config.json does not exist")
    (tmp_path / "photo.txt").write_text("mine")
    fails(gpuconv("train", *SMALL, "--out", tmp_path), "is not empty", "--overwrite")
    fails(
        gpuconv("train", *SMALL, "--out", tmp_path, "--overwrite"), "'photo.txt', which no run made"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["photo.txt"], "a mistake left a folder"
    assert (tmp_path / "photo.txt").read_text() == "mine"
    fails(
        gpuconv("train", *SMALL, "--out", tmp_path / "photo.txt"),
        "cannot be made (File exists); choose another",
    )


def test_a_loss_that_is_no_number_stops_with_one_line(tmp_path: Path) -> None:
    done = gpuconv("train", *SMALL, "--lr", "1e30", "--out", tmp_path / "run")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "loss is" in line
    assert "learning rate" in line


def test_damaged_files_get_one_line(trained: Path, tmp_path: Path) -> None:
    picture = tmp_path / "broken.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 30)
    fails(gpuconv("predict", picture, "--run", trained), str(picture))
    fails(gpuconv("predict", tmp_path / "none.png", "--run", trained), "none.png")

    copy = tmp_path / "run"
    (copy / "last").mkdir(parents=True)
    config = (trained / "config.json").read_text()
    (copy / "config.json").write_text(config)
    fails(gpuconv("eval", copy), "no checkpoint")
    weights = (trained / "last" / "model.safetensors").read_bytes()
    for name in ("state.json", "optimizer.safetensors"):
        (copy / "last" / name).write_bytes((trained / "last" / name).read_bytes())
    (copy / "last" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    fails(gpuconv("eval", copy), "model.safetensors")
    (copy / "last" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    fails(gpuconv("eval", copy), "model.safetensors", "SHA-256")
    (copy / "last" / "model.safetensors").write_bytes(weights)
    assert gpuconv("eval", copy).returncode == 0

    for text, part in (
        ("{", "cannot be read as JSON"),
        ("[]", "no config of this version"),
        (config.replace('"lr"', '"rate"'), "check lr, rate"),
        (config.replace('"epochs": 2', '"epochs": "2"'), "epochs='2' must be a int"),
        (config.replace('"simple_cnn"', '"nothing"'), "model 'nothing' is unknown"),
        (config.replace('"simple_cnn"', '"lenet5"'), "holds another model than config.json says"),
    ):
        (copy / "config.json").write_text(text)
        fails(gpuconv("eval", copy), part)


def test_damaged_data_gets_one_line(tmp_path: Path) -> None:
    images, labels = np.zeros((20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    arguments = ("train", "--data", "fashion-mnist", "--epochs", 1, "--batch-size", 4, "--out")
    env = {"GPUCONV_DATA": str(tmp_path)}
    done = gpuconv(*arguments, tmp_path / "good", **env)
    assert done.returncode == 0, done.stderr
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.full(20, 10, dtype=np.uint8))
    fails(gpuconv(*arguments, tmp_path / "a", **env), "label 10")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-6])
    fails(gpuconv(*arguments, tmp_path / "b", **env), path.name)


def test_a_reader_that_leaves_early_is_no_error(trained: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuconv", "summary", "lenet5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    process.wait()


def test_wrong_usage_is_status_2() -> None:
    assert gpuconv("train", "--epoch").returncode == 2
    assert gpuconv("predict").returncode == 2
    assert gpuconv("fly").returncode == 2
    helped = gpuconv("train", "--help")
    assert helped.returncode == 0
    assert "--resume" in helped.stdout
