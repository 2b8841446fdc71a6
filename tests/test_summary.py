"""The summary against numbers worked out by hand, and against torch's counts."""

import json
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import models, nn, ops, random
from gpuconv.errors import ArgumentError, DtypeError
from gpuconv.nn.summary import Row, Summary, summary


def by_name(table: Summary) -> dict[str, Row]:
    return {row.name: row for row in table.rows}


def test_lenet5_by_hand() -> None:
    table = summary(models.lenet5(), (1, 28, 28))
    rows = by_name(table)
    assert list(rows) == [
        *("conv1", "act1", "pool1", "conv2", "act2", "pool2", "flatten"),
        *("fc1", "act3", "fc2", "act4", "fc3"),
    ]
    assert rows["conv1"] == Row(
        name="conv1",
        type="Conv2d",
        input_shape=(1, 1, 28, 28),
        output_shape=(1, 6, 28, 28),
        kernel=(5, 5),
        parameters=5 * 5 * 6 + 6,
        macs=28 * 28 * 6 * 25,
        memory=4 * 6 * 28 * 28,
        receptive_field=(5, 5),
    )
    assert rows["conv2"].macs == 10 * 10 * 16 * 150 == 240_000
    assert rows["conv2"].parameters == 2_416
    assert rows["fc1"].macs == 400 * 120
    assert rows["fc1"].parameters == 48_120
    assert rows["pool2"].kernel == (2, 2)
    assert rows["flatten"].memory == 0  # a view
    fields = {name: row.receptive_field for name, row in rows.items()}
    assert fields["pool1"] == (6, 6)
    assert fields["conv2"] == (14, 14)
    assert fields["act2"] == (14, 14)
    assert fields["pool2"] == (16, 16)
    assert fields["flatten"] == fields["fc3"] == (28, 28)
    totals = table.totals
    assert totals.parameters == totals.trainable == 61_706
    assert totals.macs == 117_600 + 240_000 + 48_000 + 10_080 + 840
    assert totals.parameter_bytes == 4 * 61_706
    assert totals.input_bytes == 4 * 28 * 28
    assert totals.activation_bytes == sum(row.memory for row in table.rows)
    assert table.model == "Sequential"
    assert table.dtype == "float32"


def test_the_table_as_text() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten())
    model[0].requires_grad_(False)
    assert str(summary(model, (1, 16, 16))).splitlines() == [
        "layer  type        input       output      kernel  parameters    MACs    memory  field",
        "--------------------------------------------------------------------------------------",
        "0      Conv2d      1x1x16x16   1x16x16x16  3x3            160  36,864  16.0 KiB  3x3",
        "1      ReLU        1x16x16x16  1x16x16x16  -                0       0  16.0 KiB  3x3",
        "2      Flatten     1x16x16x16  1x4096      -                0       0       0 B  16x16",
        "--------------------------------------------------------------------------------------",
        "total  Sequential  1x1x16x16                              160  36,864  32.0 KiB",
        "float32, parameters 640 B, 160 frozen, input 1.0 KiB",
    ]


def test_the_dict_is_fit_for_json() -> None:
    table = summary(models.lenet5(), (1, 28, 28))
    back = json.loads(json.dumps(table.to_dict()))
    assert back == table.to_dict()
    assert back["rows"][0]["kernel"] == [5, 5]
    assert back["totals"]["parameters"] == 61_706
    assert back["input_shape"] == [1, 1, 28, 28]


def test_batch_and_dtype() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    assert summary(model, (3, 4, 4)).input_shape == (1, 3, 4, 4)
    assert summary(model, [5, 3, 4, 4]).rows[0].macs == 5 * 4 * 4 * 6
    assert summary(model.double(), (3, 4, 4)).totals.input_bytes == 8 * 48
    assert summary(nn.ReLU(), (3, 4, 4), dtype="float64").rows[0].memory == 8 * 48
    assert summary(nn.Conv1d(2, 3, 3), (2, 9), batch=1).rows[0].output_shape == (1, 3, 7)
    assert summary(nn.Conv3d(2, 3, 3), (2, 4, 5, 6), batch=2).rows[0].receptive_field == (3, 3, 3)
    assert summary(nn.Linear(4, 2), (7, 4)).rows[0].macs == 7 * 8


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((), ArgumentError, r"summary: the input \(\) must have positive sizes"),
        ((3, 0, 4), ArgumentError, r"the input \(3, 0, 4\) must have positive sizes"),
        ((3, 4.5, 4), ArgumentError, r"the input \(3, 4.5, 4\) must have positive sizes"),
        ((4, 8, 8), ArgumentError, r"^0 \(Conv2d\(3, 2, kernel_size=1\)\): conv2d: .*4 channels"),
    ],
)
def test_inputs_that_do_not_fit(shape: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        summary(nn.Sequential(nn.Conv2d(3, 2, 1)), shape)


def test_a_dtype_that_is_no_float() -> None:
    with pytest.raises(DtypeError, match="summary: dtype='int8' must be floating point"):
        summary(nn.ReLU(), (1, 2, 2), dtype="int8")


# Receptive fields: one step each, and those of the literature.


@pytest.mark.parametrize(
    ("layers", "field"),
    [
        ([nn.Identity()], (1, 1)),
        ([nn.Conv2d(1, 1, (3, 5))], (3, 5)),
        ([nn.Conv2d(1, 1, 3, dilation=(1, 2)), nn.Conv2d(1, 1, 3)], (5, 7)),
        ([nn.Conv2d(1, 1, 3, stride=2), nn.Conv2d(1, 1, 3)], (7, 7)),
        ([nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(1, 1, 3)], (6, 6)),
        ([nn.AvgPool2d(3, 1), nn.AvgPool2d((1, 2))], (3, 4)),
        ([nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Softmax()], (1, 1)),
        ([nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3)], (2, 2)),
        ([nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(1, 1, 3)], (3, 3)),
        ([nn.ConvTranspose2d(1, 1, 2, 2)], (1, 1)),
        ([nn.ConvTranspose2d(1, 1, 4, 2), nn.Conv2d(1, 1, 3)], (3, 3)),
        ([nn.ConvTranspose2d(1, 1, 3)], (3, 3)),
        ([nn.AdaptiveAvgPool2d(8)], (2, 2)),
        ([nn.AdaptiveAvgPool2d(6)], (4, 4)),
        ([nn.AdaptiveMaxPool2d(6)], (4, 4)),
        ([nn.AdaptiveAvgPool2d((1, None))], (16, 1)),
        ([nn.AdaptiveMaxPool2d(1), nn.Conv2d(1, 1, 3, padding=1)], (16, 16)),
        ([nn.MaxPool2d(16)], (16, 16)),
        ([nn.ZeroPad2d(2), nn.Conv2d(1, 1, 3)], (3, 3)),
        ([nn.Conv2d(1, 4, 3), nn.PixelShuffle(2), nn.Conv2d(1, 1, 3)], (4, 4)),
        ([nn.PixelUnshuffle(2), nn.Conv2d(4, 1, 3)], (6, 6)),
        ([nn.Flatten(), nn.Linear(256, 2)], (16, 16)),
        ([nn.Linear(16, 2)], (16, 16)),
        ([nn.Unflatten(1, (1, 1)), nn.Flatten(1, 2), nn.Conv2d(1, 1, 3)], (3, 3)),
        ([nn.Flatten(2), nn.Conv1d(1, 1, 3)], (16, 16)),
        ([nn.Flatten(2), nn.Unflatten(2, (16, 16))], (16, 16)),
    ],
    ids=lambda v: "-".join(map(repr, v)) if isinstance(v, list) else "",
)
def test_receptive_fields(layers: list[nn.Module], field: tuple[int, int]) -> None:
    assert summary(nn.Sequential(*layers), (1, 16, 16)).rows[-1].receptive_field == field


class Functional(nn.Module):
    """One operation without a layer, after a convolution."""

    def __init__(self, f: Any) -> None:
        self.conv, self.f, self.last = nn.Conv2d(1, 2, 3), f, nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.last(self.f(self.conv(x)))


@pytest.mark.parametrize(
    ("f", "field"),
    [
        (lambda x: x + 1, (3, 3)),
        (lambda x: x.mean((2, 3)), (16, 16)),
        (lambda x: x.sum(2, keepdims=True), (16, 3)),
        (lambda x: x.max(1, keepdims=True), (3, 3)),
        (lambda x: x[:, :, 2:-1], (3, 3)),
        (lambda x: ops.concat([x, ops.max_pool2d(x, 3, 1, 1)], axis=1), (5, 5)),
        (lambda x: x * ops.sigmoid(ops.global_avg_pool(x)), (16, 16)),
        (lambda x: ops.matmul(x, x.transpose(0, 1, 3, 2)), (16, 16)),
        (lambda x: x.detach(), ()),
        (lambda x: ops.max_unpool2d(*ops.max_pool2d(x, 2, return_indices=True), 2), (4, 4)),
    ],
)
def test_receptive_fields_of_functions(f: Any, field: tuple[int, ...]) -> None:
    assert summary(Functional(f), (1, 16, 16)).rows[-1].receptive_field == field


def test_branches_take_the_larger_field_and_count_once() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            self.a, self.b, self.end = nn.Conv2d(2, 2, 3, 1, 1), nn.Conv2d(2, 2, 5, 1, 2), nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.end(x + self.b(self.a(x)))

    rows = by_name(summary(Residual(), (2, 8, 8)))
    assert rows["b"].receptive_field == rows["end"].receptive_field == (7, 7)
    assert rows["a"].macs == 64 * 36
    assert rows["b"].macs == 64 * 100
    assert rows["end"].macs == 0


def test_a_module_called_twice_has_two_rows_and_counts_its_parameters_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Any) -> Any:
            return self.conv(self.conv(x))

    table = summary(Twice(), (2, 8, 8))
    assert [(r.name, r.parameters) for r in table.rows] == [("conv", 38), ("conv", 0)]
    assert [r.receptive_field for r in table.rows] == [(3, 3), (5, 5)]
    assert [r.macs for r in table.rows] == [2304, 2304]
    assert table.totals.parameters == 38


def test_modules_that_work_between_their_children_have_rows() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            self.scale = nn.Parameter(np.ones((1, 2, 1, 1), np.float32))
            self.weight = nn.Parameter(np.ones((3, 2, 1, 1), np.float32))
            self.act = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return ops.conv2d(self.act(x) * self.scale, self.weight)

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            self.inner = Own()
            self.unused = nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    table = summary(Wrapper(), (2, 4, 4))
    assert [(r.name, r.type, r.parameters, r.macs) for r in table.rows] == [
        ("inner.act", "ReLU", 0, 0),
        ("inner", "Own", 8, 96),
    ]
    assert table.totals.parameters == 8 + 6
    assert table.totals.macs == 96


def test_several_inputs_and_outputs() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x: Any) -> Any:
            y, at = self.pool(x)
            return self.unpool(y, at)

    rows = by_name(summary(Pooled(), (1, 4, 4)))
    assert rows["pool"].memory == 4 * 4 + 4 * 8
    assert rows["unpool"].receptive_field == (2, 2)


def test_attention_counts_its_products() -> None:
    table = summary(Functional(lambda x: ops.matmul(x, x.transpose(0, 1, 3, 2))), (1, 16, 16))
    assert table.totals.macs == 2 * 14 * 14 * 9 + 2 * 14 * 14 * 14


# The model is left as it was.


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten())
    model[1].eval()
    before = {n: a.copy() for n, a in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    state = random.get_state()
    with gc.no_grad():  # a tape is recorded nevertheless
        table = summary(model, (1, 5, 5))
        assert not model(gc.tensor(np.zeros((1, 1, 5, 5), np.float32))).requires_grad
    random.set_state(state)
    assert table.rows[0].macs == 9 * 2 * 9
    assert [m.training for m in model.modules()] == modes
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._hooks for m in model.modules())


def test_the_model_is_left_as_it_was_after_an_error_too() -> None:
    class Rude(nn.Module):
        def __init__(self) -> None:
            self.count = nn.Buffer(np.zeros(2, np.float32))
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, x: Any) -> Any:
            self.count.data += 1
            random.generator().random()
            return self.conv(self.conv(x))

    model = Rude()
    state = random.get_state()
    with pytest.raises(ArgumentError, match=r"^conv \(Conv2d.*the output would be empty"):
        summary(model, (1, 4, 4))
    assert random.get_state() == state
    assert model.training
    assert model.conv.training
    assert (model.count.data == 0).all()
    assert not any(m._hooks for m in model.modules())


def test_counts_agree_with_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")

    def build(lib: Any) -> Any:
        return lib.Sequential(
            lib.Conv2d(3, 8, 3, groups=1, bias=False),
            lib.BatchNorm2d(8),
            lib.PReLU(8),
            lib.Conv2d(8, 8, 3, groups=8),
            lib.ConvTranspose2d(8, 4, 2, 2),
            lib.GroupNorm(2, 4),
            lib.AdaptiveAvgPool2d(2),
            lib.Flatten(),
            lib.LayerNorm(16),
            lib.Linear(16, 5),
        )

    table, peer = summary(build(nn), (3, 12, 12)), build(torch.nn)
    counts = [sum(p.numel() for p in layer.parameters()) for layer in peer]
    assert [row.parameters for row in table.rows] == counts
    assert table.totals.parameters == sum(counts)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        peer(torch.zeros(1, 3, 12, 12))
    assert 2 * table.totals.macs == counter.get_total_flops()
