"""Receptive fields: where they lie and how gradients fill them, against what pixels change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv import models, nn
from gpuconv.cli import app
from gpuconv.errors import ArgumentError
from gpuconv.viz.receptive import SHARE, LayerField, layer_fields

pytestmark = pytest.mark.usefixtures("array_code")


def positive(*layers: nn.Module) -> nn.Sequential:
    """Linear layers with weights above 0, so that the gradient is 0 outside the field alone."""
    model = nn.Sequential(*layers).double()
    for p in model.parameters():
        p.data[...] = np.abs(p.data) + 0.1
    return model


def touched(layer: LayerField, gaps: bool) -> None:
    """The gradient is not 0 just where the box is; with `gaps` between its borders."""
    inside = np.zeros(layer.gradient.shape, dtype=bool)
    inside[tuple(slice(*span) for span in layer.box)] = True
    if gaps:
        for numbers, (start, stop) in zip(np.nonzero(layer.gradient), layer.box, strict=True):
            assert (numbers.min(), numbers.max() + 1) == (start, stop)
    else:
        np.testing.assert_array_equal(layer.gradient > 0, inside, err_msg=layer.name)


@pytest.mark.parametrize("kernel", [1, 3, (2, 3), 4])
@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("padding", [0, 1, "same", ((0, 1), (1, 0))])
def test_boxes_are_where_gradients_are(kernel: Any, stride: Any, padding: Any) -> None:
    model = positive(
        nn.Conv2d(2, 3, kernel, stride, padding),
        nn.AvgPool2d(2, 1),
        nn.Conv2d(3, 2, 2, 1, ((1, 0), (0, 1))),
        nn.Conv2d(2, 2, (3, 1), padding=(1, 0)),
    )
    shape = (2, 19, 26)
    found = layer_fields(model, shape, ["0", "1", "2", "3"])
    for layer in found:
        touched(layer, gaps=np.any(np.array(kernel) < np.array(stride)))
        for (start, stop), field in zip(layer.box, layer.field, strict=True):
            assert stop - start == field


def test_a_dilated_kernel_reaches_as_far_as_its_box() -> None:
    (layer,) = layer_fields(positive(nn.Conv2d(1, 1, 3, dilation=(2, 3))), (1, 15, 17))
    rows, columns = np.nonzero(layer.gradient)
    assert layer.field == (5, 7)
    assert layer.box == ((rows.min(), rows.max() + 1), (columns.min(), columns.max() + 1))


def test_the_gradient_of_one_convolution_is_its_kernel() -> None:
    model = nn.Conv2d(3, 4, (3, 5), padding=(1, 2)).double()
    model.weight.data[...] = np.random.default_rng(3).standard_normal((4, 3, 3, 5))
    (layer,) = layer_fields(model, (3, 9, 12))
    expected = np.abs(model.weight.numpy().sum(axis=0)).sum(axis=0)
    (top, bottom), (left, right) = layer.box
    assert layer.box == ((3, 6), (4, 9))
    np.testing.assert_allclose(
        layer.gradient[top:bottom, left:right], expected / expected.sum(), rtol=1e-12
    )
    assert layer.gradient.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet5", (1, 28, 28)),
        ("simple_cnn", (3, 24, 40)),
        ("resnet20", (3, 16, 20)),
        ("resnet18", (3, 48, 40)),
    ],
)
def test_models_have_no_gradient_outside_their_fields(name: str, shape: tuple[int, ...]) -> None:
    model = models.for_images(name, 10, shape)
    rows = {row.name: row for row in gc.summary(model, shape).rows}
    found = layer_fields(model, shape)
    assert 4 <= len(found) <= 8
    sizes = [layer.field for layer in found]
    assert sizes == sorted(sizes)
    for layer in found:
        assert layer.field == rows[layer.name].receptive_field
        inside = np.zeros(shape[1:], dtype=bool)
        inside[tuple(slice(max(start, 0), stop) for start, stop in layer.box)] = True
        assert layer.gradient[inside].sum() == pytest.approx(1)
        assert not layer.gradient[~inside].any()
        for (start, stop), part in zip(
            layer.effective, (layer.gradient.sum(1), layer.gradient.sum(0)), strict=True
        ):
            assert part[start:stop].sum() >= SHARE - 1e-9
            assert part[:start].sum() <= (1 - SHARE) / 2
            assert part[stop:].sum() <= (1 - SHARE) / 2


def test_lenet5_by_hand() -> None:
    found = {layer.name: layer for layer in layer_fields(models.lenet5(), (1, 28, 28))}
    assert list(found) == ["conv1", "pool1", "conv2", "pool2", "fc1"]
    assert found["conv1"].box == ((12, 17), (12, 17))  # pixel 14, two before and two after
    assert found["conv2"].box == ((8, 22), (8, 22))  # pixel 5 of 10: 5 * 2 - 2 and 14 pixels
    assert found["fc1"].box == ((0, 28), (0, 28))


def test_boxes_of_layers_that_enlarge() -> None:
    model = positive(
        nn.Conv2d(1, 2, 3, 2, 1),
        nn.ConvTranspose2d(2, 4, 4, 2, 1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Conv2d(1, 1, 3, padding=1),
    )
    for layer in layer_fields(model, (1, 18, 20), ["0", "1", "2", "3", "4"]):
        touched(layer, gaps=False)


def test_boxes_of_layers_that_resample() -> None:
    model = positive(
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(1, 1, 3, padding=1),
        nn.AdaptiveAvgPool2d((5, 7)),
        nn.Conv2d(1, 1, (1, 2)),
        nn.AdaptiveAvgPool2d(1),
    )
    found = layer_fields(model, (1, 10, 13), ["0", "1", "2", "3", "4"])
    for layer in found:
        touched(layer, gaps=False)
    assert found[-1].box == ((0, 10), (0, 13))


def test_paths_are_joined() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            self.left = nn.Conv2d(1, 1, 3, 2, ((1, 1), (2, 0))).double()
            self.right = nn.Conv2d(1, 1, (1, 5), 2, ((0, 0), (2, 2))).double()

        def forward(self, x: Any) -> Any:
            return self.left(x) + self.right(x)

    (layer,) = layer_fields(nn.Sequential(Two(), nn.ReLU()), (1, 12, 16), ["1"])
    assert layer.box == ((5, 8), (6, 11))
    rows, columns = np.nonzero(layer.gradient)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 7, 6, 10)


def test_a_layer_that_is_called_twice_is_seen_at_the_call_that_grows() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    twice = nn.Sequential(conv, nn.Sequential(conv))
    found = layer_fields(twice, (1, 12, 12))
    assert [layer.field for layer in found] == [(3, 3), (5, 5)]
    assert [np.count_nonzero(layer.gradient) for layer in found] == [9, 25]
    (named,) = layer_fields(twice, (1, 12, 12), [found[0].name])
    assert named.field == (3, 3)


def test_the_model_is_left_as_it_was() -> None:
    model = models.resnet20()
    first = next(model.parameters())
    first.requires_grad = False
    before = {name: array.copy() for name, array in model.state_dict().items()}
    a = layer_fields(model, (3, 16, 16), ["conv1"])
    assert model.training
    assert not first.requires_grad
    assert sum(p.requires_grad for p in model.parameters()) == len(list(model.parameters())) - 1
    assert all(p.grad is None for p in model.parameters())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    with gc.no_grad():
        b = layer_fields(model, (3, 16, 16), ["conv1"])
    np.testing.assert_array_equal(a[0].gradient, b[0].gradient)


def test_wrong_arguments() -> None:
    model = models.lenet5()
    with pytest.raises(ArgumentError, match="there is no layer 'conv9'; use one of conv"):
        layer_fields(model, (1, 28, 28), ["conv9"])
    with pytest.raises(ArgumentError, match=r"input_shape=\(28, 28\) must be one .* or 3"):
        layer_fields(model, (28, 28))
    with pytest.raises(ArgumentError, match="no layer of the model depends on pixels"):
        layer_fields(nn.Sequential(), (1, 8, 8))
    with pytest.raises(ArgumentError, match="model 'lenet' is unknown"):
        gc.viz.receptive_field("lenet")


def test_the_picture_has_two_panels_a_layer() -> None:
    pytest.importorskip("matplotlib")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, (1, 3)))
    figure = gc.viz.receptive_field(model, (1, 9, 14))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[0] == "0 (Conv2d)\noutput 2 x 7 x 12\nreceptive field 3 x 3"
    assert titles[1] == "effective: 95% of the gradient\nin 3 x 3 pixels"
    assert titles[2].endswith("receptive field 3 x 5")
    assert len(titles) == 4


def test_the_command(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.png"
    line = ["viz", "receptive-field", "lenet5", "--input", "1x28x28", "-o", str(path)]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{path}\n"
    with image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
    for options, message in (
        (["lenet6"], "model 'lenet6' is unknown"),
        (["lenet5", "--layer", "fc9"], "there is no layer 'fc9'"),
        (["lenet5", "--input", "1x28"], "--input '1x28' is no size: write CxHxW"),
        (["lenet5", "--input", "1x28x30"], "lenet5 takes square images"),
    ):
        failed = CliRunner().invoke(app, ["viz", "receptive-field", *options])
        assert failed.exit_code == 1
        (line_,) = failed.stderr.splitlines()
        assert line_.startswith("gpuconv: error: ")
        assert message in line_
