"""A problem to measure: its inputs on the device, the true result, and how far a result is off.

Inputs are uniform in [-1, 1), a function of the case's name alone and the same on every device. The
truth is float64, by torch's plain code (neither cuDNN nor oneDNN) where torch is installed, else by
gpuconv's reference. Errors are the largest absolute difference over the largest true number.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from math import prod
from typing import Any
from zlib import crc32

import numpy as np

import gpuconv as gc
from bench.cases import Case, Net, Op
from gpuconv.backends import Backend

Array = Any
FORMATS = ("nchw", "channels_last")
BUDGET = 4.0  # ours may be so many times as far off as plain float32 code (DESIGN's rule)
PEER_BAR = 1e-2  # a peer must compute the same operation; how exactly, is a figure in the table
LEARNING = {"lr": 0.01, "momentum": 0.9}  # of a training step


class Gap(Exception):
    """Something that cannot be measured here, and why, in one line."""


def numbers(xp: Any, shape: tuple[int, ...], seed: int) -> Array:
    """Float32 in [-1, 1): bits of a hash of the seed and the place (lowbias32)."""
    i = xp.arange(prod(shape), dtype=np.uint32)
    i += seed * 0x9E3779B9 & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        i ^= i >> shift
        i *= factor
    i ^= i >> 16
    x = (i >> 8).astype(np.float32)  # 24 bits are exact
    x *= 2**-23
    x -= 1
    return x.reshape(shape)


def in_format(xp: Any, array: Array, format: str) -> Array:
    """(N, C, H, W) with its memory in one of FORMATS."""
    if format == "nchw":
        return xp.ascontiguousarray(array)
    return xp.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


class ConvProblem:
    """One pass of a convolution: `x`, `w`, `gy` are float32 arrays of `xp`."""

    precision = "float32"

    def __init__(self, case: Case, kind: str, xp: Any) -> None:
        self.case, self.kind, self.xp, self.spec = case, kind, xp, case.spec
        seed = crc32(case.name.encode())
        shapes = {"x": case.x_shape, "w": case.w_shape, "gy": self.spec.y_shape}
        self._arrays = {
            (name, "nchw"): numbers(xp, shape, seed + i)
            for i, (name, shape) in enumerate(shapes.items())
        }

    # Not worked out beforehand: the library of an older commit (--base) may not know `whole`.
    @property
    def flops(self) -> int:
        return size(self.case, self.kind)[0]

    @property
    def bytes(self) -> int:
        return size(self.case, self.kind)[1]

    def array(self, name: str, format: str = "nchw") -> Array:
        """ "x", "w" or "gy" in that memory format, made once."""
        if (name, format) not in self._arrays:
            plain = self._arrays[name, "nchw"]
            self._arrays[name, format] = in_format(self.xp, plain, format)
        return self._arrays[name, format]

    def solve(self) -> None:
        """Work out `truth`, and `plain_error`, that of plain code in float32."""
        if has_torch(self.xp):
            self.oracle = "torch float64"
            tensors = [as_torch(self.array(name)) for name in ("x", "w", "gy")]
            with plain_torch():
                wide = torch_pass(self.case, self.kind, *(t.double() for t in tensors))()
                plain = torch_pass(self.case, self.kind, *tensors)()
            self.truth, plain = from_torch(wide, self.xp), from_torch(plain, self.xp)
        else:
            self.oracle = "gpuconv's reference in float64"
            be = Backend(self.xp, "oracle")
            self.truth, plain = (self._reference(be, kind) for kind in ("float64", "float32"))
        self.plain_error = self.error(plain)

    def _reference(self, be: Backend, dtype: str) -> Array:
        x, w, gy = (self.array(name).astype(dtype) for name in ("x", "w", "gy"))
        if self.kind == "forward":
            return be.conv(self.spec, x, w)
        if self.kind == "grad_input":
            return be.conv_grad_input(self.spec, gy, w)
        return be.conv_grad_weight(self.spec, gy, x)

    def error(self, result: Array) -> float:
        """Of a result on this device; inf where its shape is wrong, NaN where it has one."""
        return distance(self.xp, result, self.truth)

    @property
    def bar(self) -> float:
        """What ours may be off."""
        return BUDGET * self.plain_error + float(np.finfo(np.float32).eps)


class NetProblem:
    """A whole model. Of a training step the gradients of all parameters in the first one are
    compared, of inference the scores."""

    precision = "float32"
    flops = bytes = 0  # not counted: time is what is compared

    def __init__(self, case: Net, kind: str, xp: Any) -> None:
        self.case, self.kind, self.xp = case, kind, xp
        gc.manual_seed(0)
        self.model = gc.models.for_images(case.model, case.classes, case.x_shape[1:])
        if kind == "infer":
            _settle(self.model)
        self.state = {name: a.copy() for name, a in self.model.state_dict().items()}
        self.images = numbers(xp, case.x_shape, crc32(case.name.encode()))
        self.labels = xp.asarray(np.arange(case.x_shape[0]) * 7 % case.classes)

    def solve(self) -> None:
        """As ConvProblem's; Gap without torch, for the reference would be its own oracle."""
        if not has_torch(self.xp):
            raise Gap("a whole model is checked with torch, which is not installed")
        self.oracle = "torch float64"
        with plain_torch():
            found = []
            for dtype in ("float64", "float32"):
                if self.kind == "infer":
                    found.append(from_torch(torch_infer(self, "nchw", dtype)(), self.xp))
                    continue
                step, gradients = torch_step(self, "nchw", dtype)
                step()
                found.append(from_torch(gradients(), self.xp))
        self.truth = found[0]
        self.plain_error = self.error(found[1])

    error, bar = ConvProblem.error, ConvProblem.bar


def _settle(model: Any) -> None:
    """Statistics such that a net that was never trained passes numbers on, neither lost nor huge.

    Every normalisation gets those of its own input, of a small batch.
    """
    be = gc.backends.get_backend("numpy")
    for module in model.modules():
        if isinstance(module, gc.nn.BatchNorm2d):
            module.momentum = 1.0
    images = np.random.default_rng(1).standard_normal((2, 3, 64, 64), dtype=np.float32)
    with gc.backend(be), gc.no_grad():
        model(images)
    model.eval()


def size(case: Any, kind: str) -> tuple[int, int]:
    """(operations, bytes that must be moved at the least); zeros of a net, for its time counts."""
    if isinstance(case, Op):
        return import_module("bench.operations").size(case, kind)
    if isinstance(case, Net):
        return 0, 0
    return case.spec.flops, case.spec.bytes(whole=kind == "grad_input")


def make(case: Any, kind: str, xp: Any) -> Any:
    """The problem, not yet solved."""
    if isinstance(case, Op):
        return import_module("bench.operations").OpProblem(case, kind, xp)
    return (NetProblem if isinstance(case, Net) else ConvProblem)(case, kind, xp)


def distance(xp: Any, result: Array, truth: Array) -> float:
    """max |result - truth| / max |truth|, a part of the arrays at a time."""
    if result.shape != truth.shape:
        return float("inf")
    step = max(1, 2**24 // max(1, prod(truth.shape[1:])))
    off, size = [], []
    for i in range(0, truth.shape[0], step):
        part = truth[i : i + step]
        off.append(float(xp.abs(result[i : i + step].astype(np.float64) - part).max()))
        size.append(float(xp.abs(part).max()))
    return float(np.max(off) / np.max(size))


# torch, as oracle and as peer.


def has_torch(xp: Any) -> bool:
    """Whether torch is installed, and computes where `xp` does."""
    try:
        torch = import_module("torch")
    except ImportError:
        return False
    return xp is np or torch.cuda.is_available()


def as_torch(array: Array) -> Any:
    """The array as a tensor, in the same memory."""
    torch = import_module("torch")
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else torch.from_dlpack(array)


def from_torch(tensor: Any, xp: Any) -> Array:
    """The tensor as an array of `xp`, in the same memory."""
    tensor = tensor.detach()
    return tensor.numpy() if xp is np else xp.from_dlpack(tensor)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Torch without cuDNN and oneDNN: unfolded images, a matrix product; no Winograd, no TF32."""
    torch = import_module("torch")
    with (
        torch_settings(tf32=False, cudnn=False),
        torch.backends.mkldnn.flags(enabled=False),
    ):
        yield


@contextmanager
def torch_settings(tf32: bool, cudnn: bool = True, benchmark: bool = False) -> Iterator[None]:
    """Torch's global switches inside a block."""
    torch = import_module("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the names of these switches, which are changing
        matmul = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            with torch.backends.cudnn.flags(
                enabled=cudnn, benchmark=benchmark, deterministic=False, allow_tf32=tf32
            ):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = matmul


def torch_pass(case: Case, kind: str, x: Any, w: Any, gy: Any) -> Callable[[], Any]:
    """A call that computes one pass of `case` by torch."""
    torch = import_module("torch")
    pair = [case.stride] * 2, [case.padding] * 2, [1, 1]
    if kind == "forward":
        conv = torch.nn.functional.conv2d
        return lambda: conv(x, w, None, *pair, case.groups)
    which = ("grad_input", "grad_weight").index(kind)
    mask = [which == 0, which == 1, False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(gy, x, w, None, *pair, False, [0, 0], case.groups, mask)[which]


def torch_net(model: Any) -> Any:
    """The same network of torch.nn's layers, to which our weights fit by name."""
    nn = import_module("torch").nn
    name = type(model).__name__
    if name == "Sequential":
        return nn.Sequential(OrderedDict((n, torch_net(m)) for n, m in model.named_children()))
    if name == "Conv2d":
        return nn.Conv2d(
            model.in_channels,
            model.out_channels,
            model.kernel_size,
            model.stride,
            model.padding,
            model.dilation,
            model.groups,
            bias=model.bias is not None,
        )
    if name == "Linear":
        return nn.Linear(model.in_features, model.out_features)
    if name == "BatchNorm2d":
        return nn.BatchNorm2d(model.num_features)
    if name == "MaxPool2d":
        return nn.MaxPool2d(model.kernel_size, model.stride, model.padding)
    if name == "ResNet":
        return torch_resnet(model)
    if name == "AdaptiveAvgPool2d":
        return nn.AdaptiveAvgPool2d(model.output_size)
    if name in ("ReLU", "Flatten", "Identity"):
        return getattr(nn, name)()
    raise Gap(f"bench.problems.torch_net does not know {name}; add it there")


def torch_resnet(model: Any) -> Any:
    """Torch's module for a `gpuconv.models.resnet.ResNet`, with the same names."""
    nn = import_module("torch").nn

    class Residual(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.count = len(block.layers())
            for i, (conv, norm) in enumerate(block.layers(), 1):
                setattr(self, f"conv{i}", torch_net(conv))
                setattr(self, f"bn{i}", torch_net(norm))
            self.relu = nn.ReLU(inplace=True)
            self.downsample = block.downsample and torch_net(block.downsample)

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                if i < self.count:
                    y = self.relu(y)
            y += x if self.downsample is None else self.downsample(x)
            return self.relu(y)

    class Network(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            for name, layer in model.named_children():  # in our order, for gradients are compared
                if name.startswith("layer"):
                    setattr(self, name, nn.Sequential(*(Residual(block) for block in layer)))
                elif name != "relu":
                    setattr(self, name, torch_net(layer))

        def forward(self, x: Any) -> Any:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            for i in range(1, model.stages + 1):
                x = getattr(self, f"layer{i}")(x)
            return self.fc(self.avgpool(x).flatten(1))

    return Network()


def torch_folded(model: Any) -> Any:
    """Torch's module for one of `gpuconv.nn.fold`'s: its own folded convolutions, ReLU in place."""
    torch = import_module("torch")
    nn, name = torch.nn, type(model).__name__

    class Convolution(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            k, c, *kernel = model.weight.shape
            stride, padding, dilation, groups, _ = model.options
            self.conv = nn.Conv2d(c * groups, k, kernel, stride, padding, dilation, groups)
            self.conv.weight.data = torch.from_numpy(model.weight.numpy().copy())
            self.conv.bias.data = torch.from_numpy(model.bias.numpy().copy())

        def forward(self, x: Any, residual: Any = None) -> Any:
            y = self.conv(x)
            y = y if residual is None else y.add_(residual)
            return y.relu_() if model.relu else y

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(torch_folded(conv) for conv in model.convs)
            self.down = None if model.downsample is None else torch_folded(model.downsample)

        def forward(self, x: Any) -> Any:
            shortcut = x if self.down is None else self.down(x)
            for conv in self.convs[:-1]:
                x = conv(x)
            return self.convs[-1](x, shortcut)

    if name == "Sequential":
        return nn.Sequential(*(torch_folded(m) for m in model))
    if name == "FusedConv2d":
        return Convolution()
    if name == "FoldedBlock":
        return Block()
    found = torch_net(model)
    found.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in model.state_dict().items()})
    return found


def torch_infer(problem: NetProblem, format: str, dtype: str = "float32") -> Callable[[], Any]:
    """A call that gives the scores of torch's network, folded as ours is."""
    torch = import_module("torch")
    layout = torch.channels_last if format == "channels_last" else torch.contiguous_format
    net = torch_folded(gc.nn.fold(problem.model)).eval()
    net = net.to(dtype=getattr(torch, dtype), memory_format=layout)
    images = as_torch(problem.images).to(dtype=getattr(torch, dtype), memory_format=layout)

    def infer() -> Any:
        with torch.inference_mode():
            return net(images)

    return infer


def torch_step(problem: NetProblem, format: str, dtype: str = "float32") -> tuple[Any, Any]:
    """(a call that trains torch's network one step, a call for all its gradients, flat)."""
    torch = import_module("torch")
    images, labels = as_torch(problem.images), as_torch(problem.labels)
    net = torch_net(problem.model)
    net.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in problem.state.items()})
    layout = torch.channels_last if format == "channels_last" else torch.contiguous_format
    kind = getattr(torch, dtype)
    net = net.to(device=images.device, dtype=kind, memory_format=layout)
    images = images.to(dtype=kind, memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), **LEARNING)
    loss = torch.nn.functional.cross_entropy

    def step() -> None:
        optimizer.zero_grad()
        loss(net(images), labels).backward()
        optimizer.step()

    return step, lambda: torch.cat([p.grad.flatten() for p in net.parameters()])
