"""Arguments and inputs that cannot be right: errors that name the layer, the values and a fix."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpuconv import nn
from gpuconv.errors import ArgumentError, DtypeError

# Arguments that cannot be right are refused when the layer is made.

REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (lambda: nn.Conv2d(3, 4, 3, groups=2), r"Conv2d: in_channels \(=3\) must be divisible by grou"),
    (lambda: nn.Conv2d(4, 3, 3, groups=2), r"Conv2d: out_channels \(=3\) must be divisible by gro"),
    (lambda: nn.Conv2d(0, 4, 3), "Conv2d: in_channels=0 must be at least 1"),
    (lambda: nn.Conv2d(3, 2.5, 3), "Conv2d: out_channels=2.5 must be an integer"),
    (
        lambda: nn.Conv2d(3, 4, (3, 3, 3)),
        r"Conv2d: kernel_size=\(3, 3, 3\) must be one integer or 2",
    ),
    (lambda: nn.Conv2d(3, 4, 3, stride=0), "Conv2d: stride=0 must be at least 1"),
    (lambda: nn.Conv2d(3, 4, 3, dilation=(1, 0)), r"dilation=\(1, 0\) must be at least 1"),
    (lambda: nn.Conv2d(3, 4, 3, padding=-1), "padding=-1 must be at least 0"),
    (lambda: nn.Conv2d(3, 4, 3, padding="some"), "padding='some' is unknown; use 'same', 'valid'"),
    (lambda: nn.Conv1d(3, 4, 3, padding_mode="wrap"), "padding_mode='wrap' is unknown; use one of"),
    (lambda: nn.ConvTranspose2d(3, 4, 3, output_padding=1), "output_padding 1 .* must be smaller"),
    (lambda: nn.ConvTranspose2d(3, 4, 3, output_padding=-1), "output_padding=-1 must be at least"),
    (lambda: nn.ConvTranspose2d(3, 4, 3, padding_mode="reflect"), "'reflect' must be 'zeros'"),
    (lambda: nn.ConvTranspose2d(3, 4, 3, groups=2), r"in_channels \(=3\) must be divisible by gro"),
    (lambda: nn.Linear(0, 3), "Linear: in_features=0 must be at least 1"),
    (lambda: nn.Linear(3, -1), "Linear: out_features=-1 must be at least 1"),
    (lambda: nn.BatchNorm2d(0), "BatchNorm2d: num_features=0 must be at least 1"),
    (lambda: nn.BatchNorm2d(3, momentum=2), "BatchNorm2d: momentum=2 must be between 0 and 1"),
    (lambda: nn.GroupNorm(2, 3), r"GroupNorm: num_channels \(=3\) must be divisible by num_groups"),
    (lambda: nn.LayerNorm(()), r"LayerNorm: normalized_shape=\(\) must have at least one size"),
    (lambda: nn.LocalResponseNorm(0), "LocalResponseNorm: size=0 must be at least 1"),
    (lambda: nn.MaxPool2d(0), "MaxPool2d: kernel_size=0 must be at least 1"),
    (lambda: nn.MaxPool2d(2, padding=2), "leaves windows of 2 pixels wholly in the padding"),
    (lambda: nn.AvgPool2d(2, stride=(1, 2, 3)), r"stride=\(1, 2, 3\) must be one integer or 2"),
    (lambda: nn.AdaptiveAvgPool2d((1, 2, 3)), r"output_size=\(1, 2, 3\) must be one integer or 2"),
    (lambda: nn.AdaptiveMaxPool2d(0), "must be at least 1"),
    (lambda: nn.Dropout(1.5), "Dropout: p=1.5 is no probability"),
    (lambda: nn.CELU(0), "CELU: alpha=0 must be positive"),
    (lambda: nn.GELU("fast"), "GELU: approximate='fast', use 'none' or 'tanh'"),
    (lambda: nn.Softplus(0), "Softplus: beta=0 must not be 0"),
    (lambda: nn.Hardtanh(2, 1), "Hardtanh: min_val=2 must not exceed max_val=1"),
    (lambda: nn.Softmax("c"), "Softmax: dim='c' must be an integer"),
    (lambda: nn.PReLU(0), "PReLU: num_parameters=0 must be at least 1"),
    (lambda: nn.Upsample(), "Upsample: size=None and scale_factor=None; give one of them"),
    (lambda: nn.PixelShuffle(0), "PixelShuffle: upscale_factor=0 must be at least 1"),
    (lambda: nn.PixelUnshuffle(-1), "PixelUnshuffle: downscale_factor=-1 must be at least 1"),
    (lambda: nn.ReflectionPad2d(-1), "ReflectionPad2d: padding=-1 must be at least 0"),
    (lambda: nn.ZeroPad2d((1, 2)), r"ZeroPad2d: padding=\(1, 2\) must be one integer or 4"),
    (lambda: nn.CrossEntropyLoss(reduction="avg"), "reduction='avg' is unknown"),
    (lambda: nn.CrossEntropyLoss(label_smoothing=2), "label_smoothing=2 must be between 0 and 1"),
    (lambda: nn.SmoothL1Loss(beta=-1), "beta=-1 must not be negative"),
    (lambda: nn.HuberLoss(delta=0), "delta=0 must be positive"),
    (lambda: nn.KLDivLoss("avg"), "KLDivLoss: reduction='avg' is unknown"),
]


@pytest.mark.parametrize(("build", "message"), REFUSALS, ids=[m[:40] for _, m in REFUSALS])
def test_wrong_arguments_are_refused_at_construction(build: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build()


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose1d])
def test_parameters_must_be_floating_point(layer: Any) -> None:
    with pytest.raises(DtypeError, match=r"Conv\w+: dtype='int32' must be floating point"):
        layer(3, 4, 3, dtype="int32")


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.BatchNorm1d(4), (2, 4, 3, 3), r"must be \(N, C\) or \(N, C, L\); reshape it, or use"),
        (nn.BatchNorm2d(4), (2, 4), r"the input \(2, 4\) must be \(N, C, H, W\)"),
        (nn.BatchNorm2d(4), (2, 3, 5, 5), "has 3 channels"),
        (nn.BatchNorm3d(4), (2, 4, 3, 3), r"must be \(N, C, D, H, W\)"),
        (nn.InstanceNorm2d(4), (4, 3, 3), r"must be \(N, C, H, W\)"),
        (nn.GroupNorm(2, 4), (2, 6, 3), r"the input \(2, 6, 3\) must be \(N, 4, \*in\)"),
        (nn.LayerNorm(4), (2, 3), "does not end in normalized_shape"),
        (nn.Dropout2d(), (2, 3), "must have 4 axes"),
        (nn.ZeroPad2d(1), (2, 3, 4), "must have 4 axes"),
        (nn.Unflatten(5, (2, 2)), (2, 4), r"axis 5 is out of range for shape \(2, 4\)"),
        (nn.Unflatten(1, (3, 2)), (2, 4), "8 values of shape"),
        (nn.Flatten(), (3,), "axes 1 to -1 are no range"),
    ],
    ids=str,
)
def test_wrong_inputs_are_refused_with_the_name_of_the_layer(
    layer: Any, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        layer(np.zeros(shape, np.float32))
    assert str(caught.value).startswith(f"{type(layer).__name__}(")
    assert "\n" not in str(caught.value)
