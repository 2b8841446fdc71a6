"""The models: what they are made of, what they take, and that they learn real images."""

from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import data, models, nn, ops, optim
from gpuconv.errors import ArgumentError
from gpuconv.nn.summary import summary


def test_names_and_create() -> None:
    residual = ("resnet20", "resnet18", "resnet34", "resnet50")
    assert ("lenet5", "simple_cnn", *residual) == models.NAMES
    for name in models.NAMES:
        model = models.create(name, num_classes=7, in_channels=3)
        assert isinstance(model, nn.Module)
        assert model(np.zeros((2, 3, 28, 28), np.float32)).shape == (2, 7)
    with pytest.raises(ArgumentError, match="model 'resnet' is unknown; use one of lenet5, simple"):
        models.create("resnet")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 272_474),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
    ],
)
def test_resnets_have_torchvisions_names_and_as_many_parameters(name: str, parameters: int) -> None:
    """The counts of ResNet-18, 34 and 50 are those that torchvision's documentation states."""
    model = models.create(name)
    assert sum(p.size for p in model.parameters()) == parameters
    names = {n for n, _ in model.named_state()}
    expected = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.bn2.bias"}
    expected |= {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.num_batches_tracked"}
    expected |= {"fc.weight", "fc.bias"}
    assert expected <= names
    assert ("layer4.2.conv3.weight" in names) == (name == "resnet50")
    with gc.no_grad():
        scores = model.eval()(np.ones((1, 3, 33, 47), np.float32))
    assert scores.shape == (1, 10 if name == "resnet20" else 1000)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
def test_resnets_agree_with_torch(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    from bench.problems import torch_net

    model = models.create(name, num_classes=5).double()
    peer = torch_net(model).double()
    peer.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in model.state_dict().items()})
    x, labels = rng.standard_normal((3, 3, 33, 40)), np.array([1, 0, 4])
    loss = ops.cross_entropy(model(gc.tensor(x)), gc.tensor(labels))
    loss_peer = torch.nn.functional.cross_entropy(peer(torch.tensor(x)), torch.tensor(labels))
    loss.backward()
    loss_peer.backward()
    assert loss.item() == pytest.approx(loss_peer.item(), rel=1e-9)
    for (n, p), q in zip(model.named_parameters(), peer.parameters(), strict=True):
        scale = float(q.grad.abs().max())
        assert np.abs(p.grad.numpy() - q.grad.numpy()).max() <= 1e-9 * scale + 1e-15, n


def test_lenet5_has_the_parameters_of_the_paper_as_it_is_built_today() -> None:
    model = models.lenet5()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert shapes == {
        "conv1.weight": (6, 1, 5, 5),
        "conv1.bias": (6,),
        "conv2.weight": (16, 6, 5, 5),
        "conv2.bias": (16,),
        "fc1.weight": (120, 400),
        "fc1.bias": (120,),
        "fc2.weight": (84, 120),
        "fc2.bias": (84,),
        "fc3.weight": (10, 84),
        "fc3.bias": (10,),
    }
    assert sum(p.size for p in model.parameters()) == 61_706
    assert models.lenet5(image_size=32)(np.zeros((1, 1, 32, 32), np.float32)).shape == (1, 10)
    kinds = {type(m) for m in models.lenet5(classic=True).modules()}
    assert {nn.Tanh, nn.AvgPool2d} <= kinds
    assert not {nn.ReLU, nn.MaxPool2d} & kinds


@pytest.mark.parametrize("classic", [False, True])
def test_lenet5_agrees_with_torch(classic: bool, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    t = torch.nn
    act, pool = (t.Tanh, t.AvgPool2d) if classic else (t.ReLU, t.MaxPool2d)
    peer = t.Sequential(
        *(t.Conv2d(1, 6, 5, padding=2), act(), pool(2), t.Conv2d(6, 16, 5), act(), pool(2)),
        *(t.Flatten(), t.Linear(400, 120), act(), t.Linear(120, 84), act(), t.Linear(84, 10)),
    ).double()
    model = models.lenet5(classic=classic).double()
    names = list(model.state_dict())
    model.load_state_dict(dict(zip(names, peer.state_dict().values(), strict=True)))
    x, labels = rng.standard_normal((3, 1, 28, 28)), np.array([1, 5, 9])
    loss = ops.cross_entropy(model(gc.tensor(x)), gc.tensor(labels))
    loss_peer = t.functional.cross_entropy(peer(torch.tensor(x)), torch.tensor(labels))
    assert loss.item() == pytest.approx(loss_peer.item(), rel=1e-9)
    loss.backward()
    loss_peer.backward()
    for p, q in zip(model.parameters(), peer.parameters(), strict=True):
        assert p.grad is not None
        g, h = p.grad.numpy(), q.grad.numpy()
        assert np.abs(g - h).max() <= 1e-9 * np.abs(h).max()


def test_simple_cnn_is_what_its_docstring_says() -> None:
    table = summary(models.simple_cnn(), (1, 28, 28))
    assert table.totals.parameters == 61_050
    assert 2.2e6 < table.totals.macs < 2.3e6
    assert len([r for r in table.rows if r.type == "Conv2d"]) == 4
    for size in (8, 9, 32, 57):
        assert models.simple_cnn()(np.zeros((2, 1, size, size), np.float32)).shape == (2, 10)
    assert summary(models.simple_cnn(5, 3, width=4), (3, 32, 40)).rows[-1].output_shape == (1, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.lenet5(image_size=64), "lenet5: image_size=64 must be 28 or 32; resize"),
        (lambda: models.simple_cnn(width=0), "simple_cnn: width=0 must be at least 1"),
        (lambda: models.simple_cnn(num_classes=0), "Linear: out_features=0 must be at least 1"),
        (
            lambda: models.simple_cnn().eval()(np.zeros((1, 1, 4, 4), np.float32)),
            r"^block3.pool \(MaxPool2d.*the output would be empty",
        ),
        (
            lambda: models.lenet5()(np.zeros((1, 1, 32, 32), np.float32)),
            r"^fc1 \(Linear\(400, 120, bias=True\)\): linear: the input \(1, 576\) has 576",
        ),
        (
            lambda: models.simple_cnn()(np.zeros((1, 3, 32, 32), np.float32)),
            r"^block1.conv \(Conv2d\(1, 16.*\): conv2d: the input \(1, 3, 32, 32\) has 3 channels",
        ),
    ],
)
def test_errors_name_the_layer(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize("name", ["lenet5", "simple_cnn", "resnet20"])
def test_models_learn_real_images(name: str) -> None:
    """128 images almost by heart in 25 steps: layers, tape and optimizer together."""
    images, labels = data.fashion_mnist_mini("train")[:128]
    x = gc.tensor(((images / 255 - 0.29) / 0.35).astype(np.float32))
    y = gc.tensor(labels)
    model = models.create(name, in_channels=1)
    optimizer = optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        model.zero_grad()
        loss = ops.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(10), abs=0.5)
    assert losses[-1] < 0.5 * losses[0]
    counts = [b.item() for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
    assert counts == [25] * {"lenet5": 0, "simple_cnn": 4, "resnet20": 21}[name]
