"""Modules: finding what is inside, containers, hooks, moving, and errors that name the layer."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import nn
from gpuconv.errors import ArgumentError, DeviceError, DtypeError, Error


class Scaled(nn.Module):
    """A model with every kind of attribute, and no call of a base constructor."""

    def __init__(self) -> None:
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.blocks = [nn.Linear(3, 3), nn.Linear(3, 3, bias=False)]
        self.pair = (nn.Identity(), [nn.Linear(3, 2)])
        self.steps = nn.Buffer(np.zeros((), np.int64))
        self.nothing = None
        self.number = 3

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x) * self.scale
        return self.pair[1][0](x)


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Sequential(nn.Identity(), nn.Conv2d(4, 2, (1, 3), padding="same"))
    )


def test_parameters_are_found_in_attributes_and_lists() -> None:
    model = Scaled()
    assert [n for n, _ in model.named_parameters()] == [
        "scale",
        "blocks.0.weight",
        "blocks.0.bias",
        "blocks.1.weight",
        "pair.1.0.weight",
        "pair.1.0.bias",
    ]
    assert [n for n, _ in model.named_buffers()] == ["steps"]
    assert [n for n, _ in model.named_modules()] == [
        "",
        "blocks.0",
        "blocks.1",
        "pair.0",
        "pair.1.0",
    ]
    assert [n for n, _ in model.named_children()] == ["blocks.0", "blocks.1", "pair.0", "pair.1.0"]
    assert len(list(model.parameters())) == 6
    assert len(list(model.buffers())) == 1
    assert model(gc.tensor(np.ones((2, 3), np.float32))).shape == (2, 2)


def test_shared_modules_count_once_but_keep_their_names() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, shared)
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert len(list(model.children())) == 1
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert [n for n, _ in tied.named_parameters()] == ["0.weight", "0.bias", "1.bias"]


def test_a_new_value_for_an_attribute_keeps_its_place() -> None:
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter([[1.0, 2.0], [3.0, 4.0]])
    assert list(model.state_dict()) == ["weight", "bias"]
    assert model.weight.dtype == np.float32


def test_modes_gradients_and_apply() -> None:
    model = small()
    assert model.training
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())
    model(gc.tensor(np.ones((1, 1, 5, 5), np.float32))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    model.requires_grad_(False)
    assert not model(gc.tensor(np.ones((1, 1, 5, 5), np.float32))).requires_grad
    visited: list[str] = []
    assert model.apply(lambda m: visited.append(type(m).__name__)) is model
    assert visited == ["Conv2d", "Identity", "Conv2d", "Sequential", "Sequential"]


def test_to_converts_floats_in_place_and_the_gradients_with_them() -> None:
    model = Scaled()
    model(gc.tensor(np.ones((2, 3), np.float32))).sum().backward()
    weight = model.blocks[0].weight
    assert model.double() is model
    assert model.blocks[0].weight is weight
    assert weight.dtype == np.float64
    assert weight.grad is not None
    assert weight.grad.dtype == np.float64
    assert model.steps.dtype == np.int64
    assert model.float().scale.dtype == np.float32
    assert model.to("cpu", "float64").scale.dtype == np.float64


@pytest.mark.parametrize("dtype", ["int64", "nonsense", bool])
def test_to_refuses_a_dtype_that_is_no_float(dtype: Any) -> None:
    with pytest.raises(DtypeError, match=r"Linear\.to: dtype=.* must be floating point"):
        nn.Linear(2, 2).to(dtype=dtype)


def test_to_refuses_an_unknown_device_and_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(DeviceError, match="device 'gpu' is unknown; use one of cpu, cuda, auto"):
        model.to("gpu", np.float64)
    assert model.weight.dtype == np.float32


def test_hooks_see_and_may_replace_the_output_until_removed() -> None:
    layer = nn.Linear(2, 2)
    x = gc.tensor(np.ones((1, 2), np.float32))
    plain = layer(x)
    seen: list[Any] = []
    watch = layer.register_forward_hook(lambda m, inputs, y: seen.append((m, inputs, y)))
    double = layer.register_forward_hook(lambda m, inputs, y: y * 2)
    np.testing.assert_array_equal(layer(x).numpy(), 2 * plain.numpy())
    assert seen[0][0] is layer
    assert seen[0][1] == (x,)
    double.remove()
    double.remove()
    watch.remove()
    np.testing.assert_array_equal(layer(x).numpy(), plain.numpy())
    assert len(seen) == 1
    assert not nn.Linear(2, 2)._hooks


def test_errors_name_the_innermost_layer_by_its_longest_name() -> None:
    model = nn.Sequential({"stem": nn.Identity(), "features": small()})
    with pytest.raises(ArgumentError) as caught:
        model(gc.tensor(np.zeros((1, 3, 8, 8), np.float32)))
    assert str(caught.value).startswith(
        "features.0 (Conv2d(1, 4, kernel_size=3)): conv2d: the input (1, 3, 8, 8) has 3 channels"
    )
    assert caught.value.module is model.features[0]
    with pytest.raises(Error, match=r"^Linear\(2, 3, bias=True\): linear: the input \(1, 5\)"):
        nn.Linear(2, 3)(np.zeros((1, 5), np.float32))
    with pytest.raises(DtypeError, match=r"^1 \(Linear.*: linear: dtypes are mixed"):
        nn.Sequential(nn.Identity(), nn.Linear(2, 3))(np.zeros((1, 2)))


def test_plain_arrays_in_give_tensors_out() -> None:
    y = nn.Linear(2, 3)(np.zeros((1, 2), np.float32))
    assert isinstance(y, gc.Tensor)
    assert y.requires_grad


def test_repr_is_nested() -> None:
    assert repr(small()) == (
        "Sequential(\n"
        "  (0): Conv2d(1, 4, kernel_size=3)\n"
        "  (1): Sequential(\n"
        "    (0): Identity()\n"
        "    (1): Conv2d(4, 2, kernel_size=(1, 3), padding='same')\n"
        "  )\n"
        ")"
    )


def test_sequential_is_indexed_sliced_and_extended_like_a_list() -> None:
    a, b, c = nn.Linear(2, 3), nn.Identity(), nn.Linear(3, 1)
    model = nn.Sequential(a, b).append(c)
    assert (len(model), model[0], model[-1]) == (3, a, c)
    assert list(model) == [a, b, c]
    assert list(model[:2]) == [a, b]
    assert isinstance(model[1:], nn.Sequential)
    replacement = nn.Linear(2, 3)
    model[0] = replacement
    assert list(model) == [replacement, b, c]
    with pytest.raises(IndexError, match="Sequential: index 3 of 3 modules"):
        model[3]
    named = nn.Sequential({"first": a, "second": c})
    assert named.first is a
    assert list(named.state_dict()) == [
        "first.weight",
        "first.bias",
        "second.weight",
        "second.bias",
    ]


def test_module_list_leaves_the_calls_to_its_owner() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2)).extend([nn.Identity()])

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    model = Twice()
    assert next(iter(model.state_dict())) == "layers.0.weight"
    assert model(np.zeros((1, 2), np.float32)).shape == (1, 2)
    with pytest.raises(NotImplementedError, match="ModuleList has no forward"):
        model.layers(1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(len), "Sequential: <built-in function len> is no Module"),
        (lambda: nn.Sequential({"a.b": nn.Identity()}), "cannot be called 'a.b'"),
        (lambda: nn.Sequential({"": nn.Identity()}), "cannot be called ''"),
        (lambda: nn.Sequential({"forward": nn.Identity()}), "cannot be called 'forward'"),
    ],
)
def test_containers_refuse(build: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build()


def test_models_can_be_copied_and_pickled() -> None:
    model = small()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin[0].weight is not model[0].weight
        assert isinstance(twin[0].weight, nn.Parameter)
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(twin.state_dict()[name], array)


def test_buffers_take_numbers_and_never_require_gradients() -> None:
    buffer = nn.Buffer(3)
    assert (buffer.shape, buffer.dtype, buffer.requires_grad) == ((), np.int64, False)
    with pytest.raises(DtypeError, match="only floating-point tensors can require gradients"):
        nn.Parameter([1, 2])


def test_a_parameter_is_not_replaced_by_what_would_not_be_saved() -> None:
    layer = nn.Linear(2, 2)
    for value in (layer.weight * 0.5, np.zeros((2, 2), np.float32), 3):
        with pytest.raises(ArgumentError, match=r"Linear.weight is a Parameter \(2, 2\).*\.data"):
            layer.weight = value
    layer.weight = nn.Parameter(np.ones((2, 2), np.float32))
    layer.bias = None
    assert list(layer.state_dict()) == ["weight"]


def test_register_buffer_is_an_assignment() -> None:
    layer = nn.Identity()
    layer.register_buffer("scale", np.ones(3))
    assert isinstance(layer.scale, nn.Buffer)
    assert list(layer.state_dict()) == ["scale"]
    assert not list(layer.parameters())
