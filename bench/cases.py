"""What is measured: one registry of layers and nets; the only runner is `bench.run`.

`LAYERS` holds each layer once; a *case* is a layer at a batch size, and a *layer-pass* is a case
and one of its passes (forward, gradient by input, gradient by weight). The sets:

    main    84 layer-passes of ResNet-50, VGG-16, AlexNet, MobileNet, LeNet-5 and a CIFAR net
    hard    30 more, where kernels have most to lose: few channels with stride 2, deep 1x1 at 7x7
    gpu     the layers of both at batch 1, 8, 32 and 256
    ops     batch normalisation, pooling, ReLU
    nets    whole models: training steps, and inference with folded batch normalisation

A net's first layer has no gradient by input: nothing in training needs it.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from gpuconv.shapes import ConvSpec, Ints

PASSES = ("forward", "grad_input", "grad_weight")
GPU_BATCHES = (32, 1, 256, 8)  # in the order of measuring, should the time be up before the end


@dataclass(frozen=True)
class Layer:
    """A convolution of C channels of H x H pixels to K channels, square throughout."""

    name: str  # net.layer
    c: int
    h: int
    k: int
    r: int
    stride: int
    pad: int
    batches: Ints  # in the sets "main" and "hard"
    groups: int = 1
    first: bool = False


@dataclass(frozen=True)
class Case:
    """A layer at a batch size: what goes to `gpuconv.conv2d`, and which passes are measured."""

    name: str  # net.layer.nBATCH
    set: str
    x_shape: Ints
    w_shape: Ints
    stride: int
    padding: int
    groups: int
    passes: tuple[str, ...]

    @property
    def spec(self) -> ConvSpec:
        return ConvSpec.infer(
            self.x_shape, self.w_shape, self.stride, self.padding, groups=self.groups
        )

    @property
    def options(self) -> dict[str, int]:
        """The keyword arguments of `gpuconv.conv2d` and its gradients, and of torch's conv2d."""
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}


@dataclass(frozen=True)
class Net:
    """A model by name, and what is timed.

    "step": a training step (forward, loss, backward, SGD with momentum). "infer": the forward pass
    in evaluation, with batch normalisation folded into the convolutions (`gpuconv.nn.fold`); on
    CPU kernels traced (`gpuconv.trace`).
    """

    name: str
    model: str  # in gpuconv.models
    x_shape: Ints
    classes: int = 10
    set: str = "nets"
    passes: tuple[str, ...] = ("step",)


@dataclass(frozen=True)
class Op:
    """An operation beside convolution; see `bench.operations`."""

    name: str
    op: str
    x_shape: Ints
    set: str = "ops"
    passes: tuple[str, ...] = ("forward", "both")


MAIN = (
    Layer("resnet50.7x7s2-3-64@224", 3, 224, 64, 7, 2, 3, (1, 8), first=True),
    Layer("resnet50.1x1-64-256@56", 64, 56, 256, 1, 1, 0, (1, 8)),
    Layer("resnet50.1x1-256-64@56", 256, 56, 64, 1, 1, 0, (1, 8)),
    Layer("resnet50.3x3-64@56", 64, 56, 64, 3, 1, 1, (1, 8)),
    Layer("resnet50.3x3-128@28", 128, 28, 128, 3, 1, 1, (1, 8)),
    Layer("resnet50.3x3-256@14", 256, 14, 256, 3, 1, 1, (1, 8)),
    Layer("resnet50.3x3-512@7", 512, 7, 512, 3, 1, 1, (1, 8)),
    Layer("resnet50.1x1s2-256-512@56", 256, 56, 512, 1, 2, 0, (1, 8)),
    Layer("vgg16.3x3-64@224", 64, 224, 64, 3, 1, 1, (1, 8)),
    Layer("vgg16.3x3-512@28", 512, 28, 512, 3, 1, 1, (1, 8)),
    Layer("alexnet.11x11s4-3-64@224", 3, 224, 64, 11, 4, 2, (1, 8), first=True),
    Layer("mobilenet.depthwise-32@112", 32, 112, 32, 3, 1, 1, (1, 8), groups=32),
    Layer("mobilenet.depthwise-512@14", 512, 14, 512, 3, 1, 1, (1, 8), groups=512),
    Layer("lenet5.5x5-1-6@28", 1, 28, 6, 5, 1, 2, (64,), first=True),
    Layer("lenet5.5x5-6-16@14", 6, 14, 16, 5, 1, 0, (64,)),
    Layer("cifar.3x3-3-32@32", 3, 32, 32, 3, 1, 1, (128,), first=True),
    Layer("cifar.3x3-32@32", 32, 32, 32, 3, 1, 1, (128,)),
)
HARD = (
    Layer("resnet20.3x3-16@32", 16, 32, 16, 3, 1, 1, (64,)),
    Layer("resnet20.3x3-32@16", 32, 16, 32, 3, 1, 1, (64,)),
    Layer("resnet20.3x3-64@8", 64, 8, 64, 3, 1, 1, (64,)),
    Layer("resnet20.3x3s2-16-32@32", 16, 32, 32, 3, 2, 1, (64,)),
    Layer("resnet50.3x3s2-128@56", 128, 56, 128, 3, 2, 1, (1, 8)),
    Layer("resnet50.1x1-1024-256@14", 1024, 14, 256, 1, 1, 0, (1, 8)),
    Layer("resnet50.1x1-512-2048@7", 512, 7, 2048, 1, 1, 0, (1, 8)),
)
NETS = (
    Net("lenet5.n64", "lenet5", (64, 1, 28, 28)),
    Net("simple_cnn.n64", "simple_cnn", (64, 1, 28, 28)),
    Net("simple_cnn.n256", "simple_cnn", (256, 1, 28, 28)),
    Net("resnet20.n64", "resnet20", (64, 3, 32, 32)),
    Net("resnet50.n1", "resnet50", (1, 3, 224, 224), 1000, passes=("infer",)),
    Net("resnet50.n8", "resnet50", (8, 3, 224, 224), 1000, passes=("infer",)),
)
OPS = tuple(
    Op(f"{op}.{'x'.join(map(str, shape))}", op, shape)
    for op, shapes in (
        ("batch_norm", ((8, 64, 56, 56), (64, 16, 32, 32), (8, 512, 7, 7))),
        ("max_pool 3x3/2", ((8, 64, 112, 112),)),
        ("max_pool 2x2/2", ((64, 16, 28, 28), (8, 64, 56, 56))),
        ("avg_pool 2x2/2", ((64, 16, 28, 28), (8, 64, 112, 112))),
        ("relu", ((64, 6, 28, 28), (8, 64, 56, 56), (8, 64, 224, 224))),
    )
    for shape in shapes
)


def _case(layer: Layer, batch: int, name: str) -> Case:
    return Case(
        name=f"{layer.name}.n{batch}",
        set=name,
        x_shape=(batch, layer.c, layer.h, layer.h),
        w_shape=(layer.k, layer.c // layer.groups, layer.r, layer.r),
        stride=layer.stride,
        padding=layer.pad,
        groups=layer.groups,
        passes=tuple(p for p in PASSES if not (layer.first and p == "grad_input")),
    )


SETS: dict[str, tuple[Case | Net | Op, ...]] = {
    "main": tuple(_case(layer, n, "main") for layer in MAIN for n in layer.batches),
    "hard": tuple(_case(layer, n, "hard") for layer in HARD for n in layer.batches),
    "gpu": tuple(_case(layer, n, "gpu") for n in GPU_BATCHES for layer in (*MAIN, *HARD)),
    "nets": NETS,
    "ops": OPS,
}


def select(names: str, passes: str = "", patterns: str = "") -> list[tuple[Case | Net | Op, str]]:
    """(case, pass) of the sets `names`, restricted to `passes` and to names with a pattern in them.

    All three are lists with commas; an empty one restricts nothing. ValueError for a set or a pass
    that is unknown, for a pattern that no name has, and where nothing is left.
    """
    wanted = [p for p in passes.split(",") if p]
    for given, known in ((names.split(","), [*SETS]), (wanted, [*PASSES, "step", "infer", "both"])):
        for name in given:
            if name not in known:
                raise ValueError(f"{name!r} is unknown; use some of {', '.join(known)}")
    parts = [p for p in patterns.split(",") if p]
    all_names = [case.name for name in names.split(",") for case in SETS[name]]
    for part in parts:
        if not any(part in name for name in all_names):
            raise ValueError(
                f"no case of {names} has {part!r} in its name; {_hint(part, all_names)}"
            )
    found = [
        (case, kind)
        for name in names.split(",")
        for case in SETS[name]
        for kind in case.passes
        if (not wanted or kind in wanted) and (not parts or any(p in case.name for p in parts))
    ]
    if not found:
        raise ValueError(
            f"no case of {names} that fits --filter {patterns!r} has a pass {passes!r}"
        )
    return found


def _hint(pattern: str, names: list[str]) -> str:
    """Where else it is, or what is spelt like it, or what there is."""
    sets = [name for name, found in SETS.items() if any(pattern in case.name for case in found)]
    if sets:
        return f"of {', '.join(sets)} there is one"
    # A name is net.layer.nBATCH, and any part of it might have been meant.
    parts = dict.fromkeys(part for name in names for part in (*name.split(".")[:2], name))
    near = get_close_matches(pattern.lower(), parts, n=3)
    if near:
        return f"closest: {', '.join(near)}"
    return f"its nets: {', '.join(dict.fromkeys(name.split('.')[0] for name in names))}"
