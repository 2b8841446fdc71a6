"""Who is measured: gpuconv, and what others have for the same operation.

A contender has a name, the memory formats it can be given, `load(problem, format)` which gives a
`Loaded` or raises Gap, and `active()`, a block inside which its calls are made. `PEERS` makes each
peer by name; Gap says why one cannot run here. Every one takes float32 and gives float32; TF32,
which keeps 10 of 23 bits of each factor, is on only where the name says so.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

import gpuconv as gc
from bench import onnx_net, problems
from bench.operations import OpProblem
from bench.problems import FORMATS, Array, Gap
from gpuconv.backends import get_backend

CUPYX_CALLS = 4096  # of one channel each; more is not worth waiting for


@dataclass
class Loaded:
    """A problem ready to be computed; `array(call())` is the result as an array of the device."""

    call: Callable[[], Any]
    array: Callable[[Any], Array] = lambda result: result


class Gpuconv:
    """Ours, through the public functions, on one backend."""

    name, formats, exact = "gpuconv", FORMATS, True

    def __init__(self, backend: str) -> None:
        self.be = get_backend(backend)

    def active(self) -> Any:
        return gc.backend(self.be)

    def load(self, problem: Any, format: str) -> Loaded:
        if isinstance(problem, OpProblem):
            return Loaded(*problem.ours(format))
        if problem.kind == "step":
            return self._step(problem, format)
        if problem.kind == "infer":
            return self._infer(problem, format)
        options, spec = problem.case.options, problem.spec
        x, w, gy = problem.array("x", format), problem.array("w"), problem.array("gy", format)
        if problem.kind == "forward":
            return Loaded(lambda: gc.conv2d(x, w, **options))
        if problem.kind == "grad_input":
            return Loaded(lambda: gc.conv2d_grad_input(gy, w, spec.x_shape, **options))
        return Loaded(lambda: gc.conv2d_grad_weight(gy, x, spec.w_shape, **options))

    def _step(self, problem: Any, format: str) -> Loaded:
        xp, case = problem.xp, problem.case
        model = gc.models.for_images(case.model, case.classes, case.x_shape[1:])
        model.load_state_dict(problem.state)
        if xp is not np:
            model.to("cuda")
        images = gc.tensor(problems.in_format(xp, problem.images, format))
        labels = gc.tensor(problem.labels)
        optimizer = gc.optim.SGD(model.parameters(), **problems.LEARNING)

        def step() -> None:
            optimizer.zero_grad()
            gc.cross_entropy(model(images), labels).backward()
            optimizer.step()

        def gradients(_: None) -> Array:
            return xp.concatenate([p.grad.data.reshape(-1) for p in model.parameters()])

        return Loaded(step, gradients)

    def _infer(self, problem: Any, format: str) -> Loaded:
        xp, model = problem.xp, gc.nn.fold(problem.model)
        if xp is not np:
            model.to("cuda")
        images = gc.tensor(problems.in_format(xp, problem.images, format))
        if gc.backends.backend_of(images.data).name == "cpu":  # as ONNX Runtime has its graph
            traced = gc.trace(model, images)
            return Loaded(lambda: traced(images), lambda y: y.data)

        def infer() -> Any:
            with gc.no_grad():
                return model(images)

        return Loaded(infer, lambda y: y.data)


class Torch:
    """PyTorch: oneDNN on a CPU, cuDNN on a GPU."""

    formats = FORMATS

    def __init__(self, name: str, device: str, tf32: bool, benchmark: bool) -> None:
        try:
            torch = import_module("torch")
        except ImportError as error:
            raise Gap(f"torch is not installed ({error})") from None
        self.name, self.tf32, self.benchmark, self.exact = name, tf32, benchmark, not tf32
        if device == "cuda" and not torch.cuda.is_available():
            raise Gap(f"torch {torch.__version__} has no usable GPU")
        if device == "cuda" and torch.cuda.current_stream().cuda_stream != _stream():
            raise Gap("torch's stream is not CuPy's, on which times are taken")
        self.device = device

    def active(self) -> Any:
        if self.device == "cpu":
            return nullcontext()
        return problems.torch_settings(self.tf32, benchmark=self.benchmark)

    def load(self, problem: Any, format: str) -> Loaded:
        xp = problem.xp
        if isinstance(problem, OpProblem):
            return Loaded(problem.torch(format), lambda y: problems.from_torch(y, xp))
        if problem.kind == "step":
            step, gradients = problems.torch_step(problem, format)
            return Loaded(step, lambda _: problems.from_torch(gradients(), xp))
        if problem.kind == "infer":
            infer = problems.torch_infer(problem, format)
            return Loaded(infer, lambda y: problems.from_torch(y, xp))
        # The weight too is in the format, as it is in a model moved to channels_last.
        x, w, gy = (problems.as_torch(problem.array(name, format)) for name in ("x", "w", "gy"))
        call = problems.torch_pass(problem.case, problem.kind, x, w, gy)
        return Loaded(call, lambda y: problems.from_torch(y, xp))


class OnnxRuntime:
    """ONNX Runtime, inference only: the weight is a constant, which it may rearrange beforehand."""

    formats, exact = ("nchw",), True

    def __init__(self, name: str, device: str, tune: bool, threads: int) -> None:
        try:
            self.onnx, self.ort = import_module("onnx"), import_module("onnxruntime")
        except ImportError as error:
            raise Gap(f"onnx and onnxruntime are needed ({error})") from None
        self.name, self.threads = name, threads
        self.provider: Any = "CPUExecutionProvider"
        if device == "cuda":
            search = "EXHAUSTIVE" if tune else "HEURISTIC"
            options = {"use_tf32": "0", "cudnn_conv_algo_search": search}
            self.provider = ("CUDAExecutionProvider", options)
            if self.provider[0] not in self.ort.get_available_providers():
                raise Gap(f"onnxruntime {self.ort.__version__} has no CUDA provider")

    def active(self) -> Any:
        return nullcontext()

    def load(self, problem: Any, format: str) -> Loaded:
        if isinstance(problem, OpProblem) or problem.kind not in ("forward", "infer"):
            raise Gap("inference only")
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        # Its threads would go on spinning while the others are measured.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        whole = problem.kind == "infer"
        graph = self._net(problem) if whole else self._model(problem)
        model = graph.SerializeToString()
        session = self.ort.InferenceSession(model, options, providers=[self.provider])
        x = problem.images if whole else problem.array("x")
        if isinstance(x, np.ndarray):
            return Loaded(lambda: session.run(None, {"x": x})[0])
        if session.get_providers()[0] != self.provider[0]:
            raise Gap("the CUDA provider did not start")
        shape = (len(x), problem.case.classes) if whole else problem.spec.y_shape
        y, binding = problem.xp.empty(shape, dtype="float32"), session.io_binding()
        for bind, name, array in ((binding.bind_input, "x", x), (binding.bind_output, "y", y)):
            bind(name, "cuda", 0, np.float32, array.shape, array.data.ptr)
        problem.xp.cuda.get_current_stream().synchronize()  # its stream is its own

        def run() -> Array:
            session.run_with_iobinding(binding)
            return y

        return Loaded(run)

    def _net(self, problem: Any) -> Any:
        return onnx_net.model(self.onnx, gc.nn.fold(problem.model), problem.case.x_shape)

    def _model(self, problem: Any) -> Any:
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        case, spec, w = problem.case, problem.spec, problem.array("w")
        conv = helper.make_node(
            "Conv",
            ["x", "w"],
            ["y"],
            strides=[case.stride] * 2,
            pads=[case.padding] * 4,
            group=case.groups,
        )
        graph = helper.make_graph(
            [conv],
            "conv",
            [helper.make_tensor_value_info("x", float32, case.x_shape)],
            [helper.make_tensor_value_info("y", float32, spec.y_shape)],
            [self.onnx.numpy_helper.from_array(w if problem.xp is np else w.get(), "w")],
        )
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)


class CupyScipy:
    """cupyx.scipy.signal.correlate2d: one channel of one image at a time, no gradients."""

    name, formats, exact = "cupyx", ("nchw",), True

    def __init__(self) -> None:
        try:
            self.signal = import_module("cupyx.scipy.signal")
        except ImportError as error:
            raise Gap(f"cupyx.scipy.signal cannot be imported ({error})") from None

    def active(self) -> Any:
        return nullcontext()

    def load(self, problem: Any, format: str) -> Loaded:
        if problem.kind != "forward":
            raise Gap("cupyx.scipy has no gradient of a convolution")
        case, spec, xp = problem.case, problem.spec, problem.xp
        x, w = problem.array("x"), problem.array("w")
        each, calls = spec.w_shape[0] // case.groups, spec.y_shape[0] * w.shape[0] * w.shape[1]
        if calls > CUPYX_CALLS:
            raise Gap(f"cupyx.scipy has no batched convolution: this one is {calls} correlate2d")
        pad, step, correlate = case.padding, case.stride, self.signal.correlate2d

        def run() -> Array:
            padded = xp.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
            y = xp.empty(spec.y_shape, dtype=x.dtype)
            for n in range(y.shape[0]):
                for k in range(y.shape[1]):
                    first = k // each * w.shape[1]
                    y[n, k] = sum(
                        correlate(padded[n, first + c], w[k, c], mode="valid")[::step, ::step]
                        for c in range(w.shape[1])
                    )
            return y

        return Loaded(run)


# By name: what makes the contender, given (threads, whether cuDNN tries its algorithms out).
PEERS: dict[str, Callable[[int, bool], Any]] = {
    "torch-cpu": lambda threads, tune: Torch("torch-cpu", "cpu", False, False),
    "torch-cudnn-fp32": lambda threads, tune: Torch("torch-cudnn-fp32", "cuda", False, tune),
    "torch-cudnn-tf32": lambda threads, tune: Torch("torch-cudnn-tf32", "cuda", True, tune),
    "onnxruntime-cpu": lambda threads, tune: OnnxRuntime("onnxruntime-cpu", "cpu", tune, threads),
    "onnxruntime-cuda": lambda threads, tune: OnnxRuntime(
        "onnxruntime-cuda", "cuda", tune, threads
    ),
    "cupyx": lambda threads, tune: CupyScipy(),
}
ON = {
    "cpu": ("torch-cpu", "onnxruntime-cpu"),
    "cuda": ("torch-cudnn-fp32", "torch-cudnn-tf32", "onnxruntime-cuda", "cupyx"),
}


def _stream() -> int:
    """The address of CuPy's current stream."""
    return int(get_backend("cuda").xp.cuda.get_current_stream().ptr)
