"""Every layer against its twin in torch: names, values, and gradients of input and parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import nn
from gpuconv.autograd import Tensor
from gpuconv.errors import ArgumentError

IMAGE = (2, 4, 7, 6)


@dataclass(frozen=True)
class Row:
    """A layer built with the same arguments here and in torch, and the shape of its input."""

    name: str
    args: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    shape: tuple[int, ...] = IMAGE

    def __str__(self) -> str:
        given = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.options)]
        return f"{self.name}({', '.join(given)}) of {self.shape}".replace(" ", "")

    def build(self, module: Any) -> Any:
        return getattr(module, self.name)(*self.args, **dict(self.options))


def row(name: str, *args: Any, shape: tuple[int, ...] = IMAGE, **options: Any) -> Row:
    return Row(name, args, tuple(options.items()), shape)


LINE, VOLUME = (2, 4, 9), (2, 4, 5, 4, 6)
ROWS = [
    row("Conv1d", 4, 6, 3, shape=LINE),
    row("Conv1d", 4, 6, 3, 2, 1, 2, 2, False, "circular", shape=LINE),
    row("Conv2d", 4, 6, 3),
    row("Conv2d", 4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2),
    row("Conv2d", 4, 8, 3, padding="same", groups=4, bias=False),
    row("Conv2d", 4, 6, 3, padding="valid"),
    row("Conv2d", 4, 6, 3, padding=1, padding_mode="reflect"),
    row("Conv2d", 4, 6, 3, padding=(2, 1), padding_mode="replicate"),
    row("Conv2d", 4, 6, (4, 3), padding="same", padding_mode="circular"),
    row("Conv3d", 4, 2, 3, shape=VOLUME),
    row("Conv3d", 4, 2, (1, 2, 3), 2, (0, 1, 1), groups=2, shape=VOLUME),
    row("ConvTranspose1d", 4, 6, 3, 2, 1, 1, 2, shape=LINE),
    row("ConvTranspose2d", 4, 6, 3),
    row("ConvTranspose2d", 4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2, False, (1, 2)),
    row("ConvTranspose3d", 4, 2, 2, 2, shape=VOLUME),
    row("Linear", 5, 3, shape=(4, 5)),
    row("Linear", 5, 3, False, shape=(2, 3, 5)),
    row("BatchNorm1d", 4, shape=(6, 4)),
    row("BatchNorm1d", 4, 1e-3, 0.3, shape=LINE),
    row("BatchNorm2d", 4),
    row("BatchNorm2d", 4, momentum=None),
    row("BatchNorm2d", 4, affine=False),
    row("BatchNorm2d", 4, track_running_stats=False),
    row("BatchNorm2d", 4, bias=False),
    row("BatchNorm3d", 4, shape=VOLUME),
    row("InstanceNorm1d", 4, shape=LINE),
    row("InstanceNorm2d", 4, affine=True, track_running_stats=True),
    row("InstanceNorm2d", 4, 1e-2, 0.5, True, bias=False),
    row("InstanceNorm3d", 4, track_running_stats=True, shape=VOLUME),
    row("GroupNorm", 2, 4),
    row("GroupNorm", 4, 4, 1e-3, False),
    row("GroupNorm", 1, 4, bias=False),
    row("LayerNorm", 6),
    row("LayerNorm", (4, 7, 6), 1e-3),
    row("LayerNorm", [7, 6], elementwise_affine=False),
    row("LayerNorm", (6,), bias=False),
    row("LocalResponseNorm", 3),
    row("LocalResponseNorm", 2, 1e-2, 0.5, 2.0),
    row("MaxPool1d", 3, 2, 1, shape=LINE),
    row("MaxPool2d", 2),
    row("MaxPool2d", (3, 2), (2, 1), (1, 0), (1, 2)),
    row("MaxPool2d", 3, 2, ceil_mode=True),
    row("MaxPool3d", 2, shape=VOLUME),
    row("AvgPool1d", 3, 2, 1, True, False, shape=LINE),
    row("AvgPool2d", 2),
    row("AvgPool2d", (3, 2), (2, 1), (1, 0), count_include_pad=False),
    row("AvgPool2d", 3, 2, ceil_mode=True, divisor_override=5),
    row("AvgPool3d", 2, 1, shape=VOLUME),
    row("AdaptiveAvgPool1d", 4, shape=LINE),
    row("AdaptiveAvgPool2d", 1),
    row("AdaptiveAvgPool2d", (3, None)),
    row("AdaptiveAvgPool3d", (2, 3, 4), shape=VOLUME),
    row("AdaptiveMaxPool1d", 3, shape=LINE),
    row("AdaptiveMaxPool2d", (5, 3)),
    row("AdaptiveMaxPool3d", 2, shape=VOLUME),
    row("ReLU"),
    row("ReLU", True),
    row("ReLU6"),
    row("LeakyReLU"),
    row("LeakyReLU", 0.2, True),
    row("PReLU"),
    row("PReLU", 4, 0.1),
    row("ELU"),
    row("ELU", 0.5),
    row("CELU", 0.25),  # torch rounds 1 / alpha to float32
    row("SELU"),
    row("SiLU"),
    row("GELU"),
    row("GELU", "tanh"),
    row("Sigmoid"),
    row("Tanh"),
    row("Softplus"),
    row("Softplus", 2.0, 1.5),
    row("Softmax", 1),
    row("Softmax", dim=-1),
    row("LogSoftmax", 1),
    row("Hardsigmoid"),
    row("Hardswish"),
    row("Hardtanh"),
    row("Hardtanh", -0.5, 2.0),
    row("Mish"),
    row("Identity"),
    row("Identity", 3, unused=True),
    row("Flatten"),
    row("Flatten", 0, 2),
    row("Unflatten", 1, (2, 2)),
    row("Unflatten", -1, (3, -1)),
    row("Upsample", (9, 11)),
    row("Upsample", None, 2),
    row("Upsample", scale_factor=2.0, mode="bilinear", align_corners=True),
    row("Upsample", scale_factor=2.0, mode="bilinear"),
    row("PixelShuffle", 2),
    row("PixelUnshuffle", 2, shape=(2, 3, 4, 6)),
    row("ZeroPad1d", (1, 2), shape=LINE),
    row("ZeroPad2d", 1),
    row("ZeroPad2d", (1, -2, 0, 3)),
    row("ZeroPad3d", 1, shape=VOLUME),
    row("ConstantPad1d", 2, 1.5, shape=LINE),
    row("ConstantPad2d", (1, 2, 3, 0), -1.0),
    row("ConstantPad3d", 1, 2.0, shape=VOLUME),
    row("ReflectionPad1d", (2, 1), shape=LINE),
    row("ReflectionPad2d", (1, 2, 3, 0)),
    row("ReflectionPad3d", 1, shape=VOLUME),
    row("ReplicationPad1d", 2, shape=LINE),
    row("ReplicationPad2d", 1),
    row("ReplicationPad3d", (0, 1, 2, 1, 1, 0), shape=VOLUME),
    row("CircularPad1d", 2, shape=LINE),
    row("CircularPad2d", (1, 2, 0, 3)),
    row("CircularPad3d", 1, shape=VOLUME),
]


def assert_close(ours: Any, theirs: Any, what: str, rel: float = 1e-9) -> None:
    assert ours.shape == tuple(theirs.shape), what
    assert ours.dtype == theirs.dtype, what
    scale = np.abs(theirs).max() if theirs.size else 0
    error = np.abs(ours - theirs).max() if theirs.size else 0
    assert error <= rel * scale, f"{what}: off by {error:.2e} where the largest is {scale:.2e}"


def step(torch: Any, ours: Any, peer: Any, inputs: list[np.ndarray]) -> None:
    """Forward and backward in both; value, gradients and state must agree."""
    mine = [Tensor(a.copy(), requires_grad=a.dtype.kind == "f") for a in inputs]
    yours = [torch.tensor(a).requires_grad_(a.dtype.kind == "f") for a in inputs]
    y, y_peer = ours(*mine), peer(*(t.clone() for t in yours))  # a clone may change in place
    assert_close(y.numpy(), y_peer.detach().numpy(), "value")
    gy = np.random.default_rng(3).standard_normal(y.shape)
    ours.zero_grad()
    peer.zero_grad()
    y.backward(gy)
    y_peer.backward(torch.tensor(gy))
    for i, (t, t_peer) in enumerate(zip(mine, yours, strict=True)):
        if t.requires_grad:
            assert_close(t.grad.numpy(), t_peer.grad.numpy(), f"gradient of input {i}")
    theirs = dict(peer.named_parameters())
    assert [n for n, _ in ours.named_parameters()] == list(theirs)
    for name, p in ours.named_parameters():
        assert_close(p.grad.numpy(), theirs[name].grad.numpy(), f"gradient of {name}")
    assert list(ours.state_dict()) == list(peer.state_dict())
    for name, value in peer.state_dict().items():
        assert_close(ours.state_dict()[name], value.numpy(), f"state {name}")


def twins(torch: Any, row: Row) -> tuple[Any, Any]:
    """The layer here and in torch, in float64, with the same random state."""
    torch.manual_seed(1)
    peer = hardsigmoid(torch) if row.name == "Hardsigmoid" else row.build(torch.nn).double()
    for p in peer.parameters():
        torch.nn.init.normal_(p)
    ours = row.build(nn).double()
    state = peer.state_dict()
    assert {n: a.shape for n, a in ours.state_dict().items()} == {
        n: tuple(a.shape) for n, a in state.items()
    }
    ours.load_state_dict(state)
    return ours, peer


def hardsigmoid(torch: Any) -> Any:
    """torch's own has the slope 1/6 rounded to float32."""

    class Hardsigmoid(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.relu6(x + 3) / 6

    return Hardsigmoid()


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_agrees_with_torch(row: Row, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    ours, peer = twins(torch, row)
    for _ in range(2):  # twice, for statistics that move
        step(torch, ours, peer, [rng.standard_normal(row.shape)])
    ours.eval()
    peer.eval()
    step(torch, ours, peer, [rng.standard_normal(row.shape)])


def test_every_layer_has_a_row() -> None:
    """A layer that is public and neither a row above nor named here has no test."""
    elsewhere = {"Module", "Parameter", "Buffer", "Sequential", "ModuleList"}
    elsewhere |= {"Dropout", "Dropout1d", "Dropout2d", "Dropout3d"}
    elsewhere |= {"MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d"}
    elsewhere |= {"FusedConv2d"}  # tests/test_fold.py
    public = {n for n, v in vars(nn).items() if isinstance(v, type)}
    assert public - elsewhere == {r.name for r in ROWS} | {r.name for r, _ in LOSSES}


# Losses.


def probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    e = np.exp(rng.standard_normal(shape))
    return e / e.sum(axis=1, keepdims=True)


def labels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 4, (6,))


def numbers(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((6, 4))


def chances(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.05, 0.95, (6, 4))


Make = Callable[[np.random.Generator], np.ndarray]
LOSSES: list[tuple[Row, tuple[Make, Make]]] = [
    (row("CrossEntropyLoss"), (numbers, labels)),
    (row("CrossEntropyLoss", ignore_index=2, label_smoothing=0.1), (numbers, labels)),
    (row("CrossEntropyLoss", reduction="none"), (numbers, labels)),
    (row("NLLLoss", reduction="sum"), (numbers, labels)),
    (row("NLLLoss", ignore_index=1), (numbers, labels)),
    (row("MSELoss"), (numbers, numbers)),
    (row("MSELoss", reduction="none"), (numbers, numbers)),
    (row("L1Loss", reduction="sum"), (numbers, numbers)),
    (row("SmoothL1Loss", beta=0.5), (numbers, numbers)),
    (row("HuberLoss", "sum", 0.7), (numbers, numbers)),
    (row("BCELoss"), (chances, chances)),
    (row("BCEWithLogitsLoss"), (numbers, chances)),
    (row("KLDivLoss", reduction="batchmean"), (numbers, chances)),
    (row("KLDivLoss", reduction="sum", log_target=True), (numbers, numbers)),
]


@pytest.mark.parametrize(
    ("row", "make"), LOSSES, ids=lambda v: str(v) if isinstance(v, Row) else ""
)
def test_losses_agree_with_torch(
    row: Row, make: tuple[Make, Make], rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    x, target = make[0](rng), make[1](rng)
    ours, peer = row.build(nn), row.build(torch.nn)
    a, b = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, y_peer = ours(a, Tensor(target)), peer(b, torch.tensor(target))
    assert_close(y.numpy(), y_peer.detach().numpy(), "value")
    gy = np.random.default_rng(3).standard_normal(y.shape)
    y.backward(gy)
    y_peer.backward(torch.tensor(gy))
    assert a.grad is not None
    assert_close(a.grad.numpy(), b.grad.numpy(), "gradient")


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("CrossEntropyLoss", (numbers, labels), {"weight": (4,)}),
        ("NLLLoss", (numbers, labels), {"weight": (4,)}),
        ("BCELoss", (chances, chances), {"weight": (4,)}),
        ("BCEWithLogitsLoss", (numbers, chances), {"weight": (6, 1), "pos_weight": (4,)}),
    ],
)
def test_weights_of_losses_are_buffers(
    name: str, make: Any, options: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    given = {k: rng.uniform(0.5, 2, shape) for k, shape in options.items()}
    ours = getattr(nn, name)(**given)
    peer = getattr(torch.nn, name)(**{k: torch.tensor(v) for k, v in given.items()})
    assert list(ours.state_dict()) == list(peer.state_dict()) == list(options)
    assert not list(ours.parameters())
    x, target = make[0](rng), make[1](rng)
    y, y_peer = ours(Tensor(x), Tensor(target)), peer(torch.tensor(x), torch.tensor(target))
    assert_close(y.numpy(), y_peer.numpy(), "value")


# Layers whose calls take more than one tensor, or are random.


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_unpooling_puts_maxima_back(nd: int, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    pool, unpool = getattr(nn, f"MaxPool{nd}d"), getattr(nn, f"MaxUnpool{nd}d")
    pool_peer = getattr(torch.nn, f"MaxPool{nd}d")
    unpool_peer = getattr(torch.nn, f"MaxUnpool{nd}d")
    for size, extra in (((8, 6, 4), ()), ((7, 5, 6), ((7, 5, 6)[:nd],))):
        x = rng.standard_normal((2, 3, *size[:nd]))
        y, at = pool(2, return_indices=True)(Tensor(x))
        y_peer, at_peer = pool_peer(2, return_indices=True)(torch.tensor(x))
        np.testing.assert_array_equal(at.numpy(), at_peer.numpy())
        z, z_peer = unpool(2)(y, at, *extra), unpool_peer(2)(y_peer, at_peer, *extra)
        assert_close(z.numpy(), z_peer.numpy(), "value")
    best, where = getattr(nn, f"AdaptiveMaxPool{nd}d")(2, return_indices=True)(Tensor(x))
    peer = getattr(torch.nn, f"AdaptiveMaxPool{nd}d")(2, return_indices=True)(torch.tensor(x))
    np.testing.assert_array_equal(best.numpy(), peer[0].numpy())
    np.testing.assert_array_equal(where.numpy(), peer[1].numpy())


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_a_transposed_convolution_takes_an_output_size(nd: int, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    ours, peer = twins(torch, row(f"ConvTranspose{nd}d", 2, 3, 3, 2, 1))
    x = rng.standard_normal((1, 2, *(4, 3, 2)[:nd]))
    for size in ([7, 5, 3][:nd], [8, 5, 4][:nd]):
        y, y_peer = ours(Tensor(x), size), peer(torch.tensor(x), size)
        assert_close(y.numpy(), y_peer.detach().numpy(), "value")
    with pytest.raises(ArgumentError, match=r"output_size=\(9,.* must be between \(7,.* and \(8,"):
        ours(Tensor(x), [9, 5, 3][:nd])


@pytest.mark.parametrize(
    ("layer", "shape", "kept"),
    [
        (nn.Dropout(0.25), (100, 100), (100, 100)),
        (nn.Dropout1d(0.25), (100, 50, 3), (100, 50, 1)),
        (nn.Dropout2d(0.25), (100, 50, 2, 3), (100, 50, 1, 1)),
        (nn.Dropout3d(0.25), (100, 50, 2, 2, 2), (100, 50, 1, 1, 1)),
    ],
)
def test_dropout_in_training_only(layer: Any, shape: tuple[int, ...], kept: Any) -> None:
    x = np.ones(shape)
    layer.train()
    y = layer(Tensor(x)).numpy()
    decided = y[tuple(slice(0, n) for n in kept)]
    np.testing.assert_array_equal(y, np.broadcast_to(decided, shape))
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    share = (decided == 0).mean()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / decided.size)
    np.testing.assert_array_equal(layer.eval()(Tensor(x)).numpy(), x)
    layer.train()
    gc.manual_seed(3)
    first = layer(Tensor(x)).numpy()
    gc.manual_seed(3)
    np.testing.assert_array_equal(layer(Tensor(x)).numpy(), first)


# What a superset takes and torch does not.


def test_padding_by_pairs_and_strided_same(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 2, 7, 8)).astype(np.float32)
    assert nn.Conv2d(2, 3, 3, padding=((0, 1), (2, 0)))(x).shape == (1, 3, 6, 8)
    assert nn.Conv2d(2, 3, (2, 4), 2, padding="same")(x).shape == (1, 3, 4, 4)
    assert nn.ConvTranspose2d(2, 3, 4, 2, padding="same")(x).shape == (1, 3, 14, 16)
    assert nn.MaxPool2d(3, 2, padding="same")(x).shape == (1, 2, 4, 4)
    assert nn.AvgPool2d(2, 1, padding=((1, 0), (0, 1)))(x).shape == (1, 2, 7, 8)


def test_float64_layers_without_a_conversion() -> None:
    x = np.ones((2, 4, 5, 5))
    for layer in (
        nn.Conv2d(4, 4, 3, dtype=np.float64),
        nn.ConvTranspose2d(4, 4, 3, dtype="float64"),
        nn.BatchNorm2d(4, dtype=float),
        nn.InstanceNorm2d(4, affine=True, dtype=np.float64),
        nn.GroupNorm(2, 4, dtype=np.float64),
        nn.LayerNorm(5, dtype=np.float64),
        nn.PReLU(dtype=np.float64),
        nn.Linear(5, 2, dtype=np.float64),
    ):
        assert layer(x).dtype == np.float64
        assert all(p.dtype == np.float64 for p in layer.parameters())


@pytest.mark.parametrize("row", [r for r in ROWS if not r.args or len(r.args) < 4], ids=str)
def test_reprs_are_one_line_that_builds_the_same(row: Row) -> None:
    layer = row.build(nn)
    text = repr(layer)
    assert "\n" not in text
    assert text.startswith(f"{row.name}(")


def test_a_whole_model_trains_one_step_as_in_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")

    def build(lib: Any) -> Any:
        return lib.Sequential(
            lib.Conv2d(1, 4, 3, padding=1, bias=False),
            lib.BatchNorm2d(4),
            lib.ReLU(),
            lib.MaxPool2d(2),
            lib.Sequential(lib.Conv2d(4, 6, 3), lib.GELU(), lib.AdaptiveAvgPool2d(2)),
            lib.Flatten(),
            lib.Linear(24, 3),
        )

    peer, ours = build(torch.nn).double(), build(nn).double()
    ours.load_state_dict(peer.state_dict())
    step(torch, ours, peer, [rng.standard_normal((3, 1, 8, 8))])
