"""Filters and feature maps: against the layers called by hand, and what the pictures say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv import nn
from gpuconv.cli import app
from gpuconv.errors import ArgumentError
from gpuconv.viz.layers import _table, feature_maps, filter_weights

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


class Twice(nn.Module):
    """A net whose ReLU is called twice, whose `spare` never, and which has a name in a list."""

    def __init__(self) -> None:
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, (2, 3)), nn.Conv2d(4, 5, 1)])
        self.relu, self.spare = nn.ReLU(), nn.Conv2d(1, 1, 1)

    def forward(self, x: Any) -> Any:
        return self.relu(self.convs[1](self.relu(self.convs[0](x))))


@pytest.mark.parametrize("size", [(28, 28), (17, 30)])
def test_maps_are_what_the_layers_give(size: tuple[int, int], rng: np.random.Generator) -> None:
    model = gc.models.simple_cnn()
    x = rng.normal(size=(1, *size)).astype(np.float32)
    model.eval()
    y, expected = x[None], {}
    for name, block in model.named_children():
        if name.startswith("block"):
            for part, layer in block.named_children():
                y = layer(y)
                expected[f"{name}.{part}"] = y
        else:
            y = layer_of(model, name)(y)
        expected[name] = y
    model.train()
    for name, value in expected.items():
        found = feature_maps(model, x, name)
        value = gc.Tensor(value).numpy() if isinstance(value, np.ndarray) else value.numpy()
        flat = value.ndim == 2 or value.shape[2:] == (1, 1)
        np.testing.assert_array_equal(found.maps, value.reshape(-1) if flat else value[0])
        assert (found.layer, found.calls) == (name, 1)
        assert found.kind == type(layer_of(model, name)).__name__
    assert feature_maps(model, x).layer == "block1.conv"
    assert all(module.training and not module._hooks for module in model.modules())


def layer_of(model: nn.Module, name: str) -> nn.Module:
    return dict(model.named_modules())[name]


def test_of_several_calls_it_is_the_last(rng: np.random.Generator) -> None:
    model, x = Twice(), rng.normal(size=(3, 6, 8)).astype(np.float32)
    found = feature_maps(model, x, "relu")
    assert found.calls == 2
    np.testing.assert_array_equal(found.maps, model(gc.tensor(x[None])).numpy()[0])
    np.testing.assert_array_equal(feature_maps(model, x[None], "relu").maps, found.maps)
    figure = gc.viz.features(model, x, "relu", most=3)
    said = "relu (ReLU): 5 feature maps of 5 x 6, of the last of 2 calls; the first 3 of them"
    assert figure.get_suptitle() == said
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["map 0", "map 1", "map 2", "input 3 x 6 x 8"]
    for i, axes in enumerate(figure.axes[:3]):
        np.testing.assert_array_equal(axes.images[0].get_array(), found.maps[i])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_input_takes_the_models_dtype(dtype: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, dtype=dtype))
    assert feature_maps(model, np.zeros((1, 5, 4))).maps.dtype == dtype


def test_wrong_layers_and_inputs() -> None:
    model, x = Twice(), np.zeros((3, 5, 5), np.float32)
    with pytest.raises(ArgumentError, match=r"no layer 'conv\.0'; use one of convs\.0, convs\.1"):
        feature_maps(model, x, "conv.0")
    with pytest.raises(ArgumentError, match="spare gives no tensor for this image"):
        feature_maps(model, x, "spare")
    with pytest.raises(ArgumentError, match=r"convs.0 \(Conv2d\(3, 4.*has 2 channels"):
        feature_maps(model, x[:2])
    with pytest.raises(ArgumentError, match=r"the input \(5, 5\) must be one image"):
        feature_maps(model, x[0])
    with pytest.raises(ArgumentError, match=r"no layer such as nn.Conv2d; choose a layer: 0, 1"):
        feature_maps(nn.Sequential(nn.ReLU(), nn.Flatten()), x)
    with pytest.raises(ArgumentError, match="most=0 must be 1 to 256"):
        gc.viz.features(model, x, most=0)
    with pytest.raises(ArgumentError, match=r"relu \(ReLU\) has no filters.*convs.0, convs.1"):
        filter_weights(model, "relu")
    with pytest.raises(ArgumentError, match="no layer 'rely'; use one of relu"):
        filter_weights(model, "rely")
    with pytest.raises(ArgumentError, match="so no filters"):
        filter_weights(nn.Sequential(nn.Linear(3, 3)))


def test_filters_are_the_weights() -> None:
    model = gc.models.simple_cnn()
    found = filter_weights(model, "block3.conv")
    np.testing.assert_array_equal(found.weight, model.state_dict()["block3.conv.weight"])
    assert filter_weights(model).layer == "block1.conv"
    folded = nn.fold(model.eval())
    name = next(n for n, m in folded.named_modules() if isinstance(m, nn.FusedConv2d))
    assert filter_weights(folded).layer == name
    signal = nn.Conv1d(2, 4, 5)
    flat = filter_weights(nn.Sequential(signal)).weight
    np.testing.assert_array_equal(flat[:, :, 0], signal.weight.numpy())


@pytest.mark.parametrize(("channels", "out", "groups"), [(3, 5, 1), (4, 6, 2), (3, 3, 3)])
def test_transposed_filters_are_what_an_impulse_leaves(
    channels: int, out: int, groups: int
) -> None:
    layer = nn.ConvTranspose2d(channels, out, (2, 3), groups=groups, bias=False)
    weight = filter_weights(nn.Sequential(layer)).weight
    assert weight.shape == (out, channels // groups, 2, 3)
    for c in range(channels):
        impulse = np.zeros((1, channels, 1, 1), np.float32)
        impulse[0, c] = 1
        left = layer(gc.tensor(impulse)).numpy()[0]
        group, place = divmod(c, channels // groups)
        for k in range(out):
            mine = k // (out // groups) == group
            np.testing.assert_allclose(left[k], weight[k, place] if mine else 0 * left[k])


def test_many_channels_are_a_table(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(4, 6, 3, 2))
    cells = np.ma.filled(_table(weight, 1.0).axes[0].images[0].get_array(), np.nan)
    assert cells.shape == (4 * 4 - 1, 6 * 3 - 1)
    for k, c in np.ndindex(4, 6):
        tile = cells[4 * k : 4 * k + 3, 3 * c : 3 * c + 2]
        np.testing.assert_allclose(tile, weight[k, c])
    assert np.isnan(cells[3::4]).all()
    assert np.isnan(cells[:, 2::3]).all()


@pytest.mark.parametrize(
    ("layer", "said", "panels"),
    [
        (nn.Conv2d(1, 20, 3), "20 filters of 1 x 3 x 3; the first 16 of them", 16),
        (nn.Conv2d(3, 2, (3, 5)), "2 filters of 3 x 3 x 5\nthe three channels as red", 2),
        (nn.Conv2d(1, 1, (5, 2)), "1 filter of 1 x 5 x 2", 1),
        (nn.Conv2d(6, 6, 3, groups=6), "6 filters of 1 x 3 x 3", 6),
        (
            nn.Conv2d(40, 30, 1),
            "30 filters of 40 x 1 x 1; the first 16 of them, the first 16 of their channels",
            1,
        ),
    ],
)
def test_pictures_of_filters_say_what_is_shown(layer: nn.Module, said: str, panels: int) -> None:
    figure = gc.viz.filters(nn.Sequential(layer))
    assert figure.get_suptitle().startswith(f"0 (Conv2d): {said}")
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == panels
    figure.canvas.draw()


def test_a_layer_without_pixels_is_bars(rng: np.random.Generator) -> None:
    model = gc.models.lenet5()
    x = rng.normal(size=(1, 28, 28)).astype(np.float32)
    figure = gc.viz.features(model, x, "fc3")
    assert figure.get_suptitle() == "fc3 (Linear): 10 values"
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    np.testing.assert_allclose(heights, model(gc.tensor(x[None])).numpy()[0], rtol=1e-6)


def test_the_commands(tmp_path: Path, rng: np.random.Generator) -> None:
    weights, photo = tmp_path / "net.safetensors", tmp_path / "photo.png"
    gc.save(weights, gc.models.simple_cnn(num_classes=3, in_channels=3))
    Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)).save(photo)
    out = tmp_path / "out.png"

    def run(command: str, *options: str) -> tuple[int, str, str]:
        arguments = ["viz", command, str(weights), "-o", str(out), *options]
        if command == "features":
            arguments += ["--image", str(photo), "--size", "12x16"]
        done = CliRunner().invoke(app, arguments)
        return done.exit_code, done.stdout, done.stderr

    model = ("--model", "simple_cnn")
    for command, *options in (
        ("filters",),
        ("filters", "--layer", "block2.conv", "--most", "4"),
        ("features",),
        ("features", "--layer", "fc", "--invert", "--mean", "0.5 0.5 0.5", "--std", "1,1,2"),
    ):
        out.unlink(missing_ok=True)
        status, printed, error = run(command, *model, *options)
        assert (status, printed) == (0, f"{out}\n"), error
        with Image.open(out) as picture:
            picture.load()
            assert picture.format == "PNG"
    for arguments, said in (
        (("filters", *model, "--layer", "block2.con"), "no layer 'block2.con'; use one of block2."),
        (("features", *model, "--layer", "fb"), "no layer 'fb'; use one of fc, "),
        (("features", *model, "--mean", "a"), "--mean 'a' is no matrix"),
        (("filters",), "holds weights alone: say with model (--model)"),
    ):
        status, _, error = run(*arguments)
        assert status == 1
        assert error.startswith("gpuconv: error: ")
        assert said in error
        assert error.count("\n") == 1
    assert run("filters", "--most", "0")[0] == 2
