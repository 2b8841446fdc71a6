"""Who computes: the reference backend in array code, and the choice of a backend for given arrays.

A *device* is where an array lives ("cpu": numpy.ndarray, "cuda": cupy.ndarray); a *backend* is who
computes on it. `Backend(xp)` is complete in array code: with NumPy it is the fallback and the
reference, with CuPy the same code runs on a GPU. A faster backend derives from it and overrides
what it has kernels for; what a kernel cannot take goes to `super()`, on the same device.

(The module is `backends` because `gpuconv.backend("numpy")` is the function that chooses one.)
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import numpy as np

from gpuconv import driver
from gpuconv.errors import DeviceError, DtypeError
from gpuconv.reference.activation import Activation
from gpuconv.reference.conv import Conv
from gpuconv.reference.linear import Linear
from gpuconv.reference.loss import Loss
from gpuconv.reference.norm import Norm
from gpuconv.reference.pool import Pool
from gpuconv.reference.step import Step
from gpuconv.shapes import ConvSpec

Array = Any  # numpy.ndarray, cupy.ndarray, or an array of whatever module a Backend was given
BACKENDS = ("cpu", "numpy", "emulated", "cuda")
DEVICES = ("cpu", "cuda", "auto")

_chosen: ContextVar["Backend | None"] = ContextVar("gpuconv_backend", default=None)
_log = logging.getLogger("gpuconv")


class Backend(Conv, Linear, Pool, Norm, Activation, Loss, Step):
    """Every operation in array code over the module `xp` (NumPy, CuPy).

    Contract: arguments are validated, of one dtype and on this device; results are new arrays;
    nothing is mutated but by the `*_step` methods; a result keeps the memory format of its input.
    """

    def __init__(self, xp: Any, name: str) -> None:
        self.xp = xp
        self.name = name
        self.calls: dict[Any, Any] = {}  # the convolutions that `ops.conv` knows

    def __repr__(self) -> str:
        return f"Backend({self.name!r})"

    @property
    def number(self) -> int:
        """Which of its devices is the current one."""
        return 0

    def prepared(
        self,
        which: str,
        spec: ConvSpec,
        algo: str,
        precision: str,
        a: Array,
        b: Array,
        bias: Array | None = None,
        add: Array | None = None,
        relu: bool = False,
    ) -> Callable[..., Array]:
        """What computes pass `which` ("conv", "conv_grad_input", "conv_grad_weight") again.

        It takes arrays of the same shapes, strides and dtypes as these, on the same device: two for
        a gradient, and x, w, b, add for "conv".
        """
        if which == "conv":
            return lambda x, w, b, add: self.conv(spec, x, w, b, algo=algo, add=add, relu=relu)
        method: Callable[..., Array] = getattr(self, which)
        return partial(method, spec, algo=algo)

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        """`array` (of this device, the host, or a list) on this device, copied only if needed."""
        return self.xp.asarray(array, dtype=dtype)

    def random(self, shape: tuple[int, ...], seed: int) -> Array:
        """Uniform float32 in [0, 1) of `shape`, a function of `seed` alone."""
        return self.xp.asarray(np.random.default_rng(seed).random(shape, dtype=np.float32))


@contextmanager
def backend(chosen: "str | Backend") -> Iterator[Backend]:
    """`with gpuconv.backend("numpy"):` computes with that backend inside the block.

    Takes a name from `gpuconv.backends.BACKENDS` or a `Backend`. It decides for the arrays of its
    own device only: CuPy arrays are still computed by "cuda" inside `backend("numpy")`.
    """
    be = get_backend(chosen) if isinstance(chosen, str) else chosen
    token = _chosen.set(be)
    try:
        yield be
    finally:
        _chosen.reset(token)


@cache
def get_backend(name: str) -> Backend:
    """The backend called `name`; DeviceError if it is unknown or not usable on this machine."""
    if name == "numpy":
        return Backend(np, "numpy")
    if name == "cpu":
        from gpuconv.cpu import CpuBackend

        return CpuBackend()
    if name in ("emulated", "cuda"):
        return _cuda_backend(name)
    raise DeviceError(f"backend {name!r} is unknown; use one of {', '.join(BACKENDS)}")


def _cuda_backend(name: str) -> Backend:
    cupy = _cupy() if name == "cuda" else None
    try:
        from gpuconv.cuda import CudaBackend
        from gpuconv.cuda.device import CupyDevice, EmulatedDevice
    except ModuleNotFoundError as error:
        if str(error.name).startswith("gpuconv"):
            raise
        raise DeviceError(
            f"backend {name!r} needs the kernels' compiler ({error}); install the extra cuda13 or "
            f"cuda12 (pip install '.[cuda13]' in the checkout), or use backend 'numpy'"
        ) from error
    return CudaBackend(CupyDevice(cupy) if cupy else EmulatedDevice(), name)


def backend_of(*arrays: Array) -> Backend:
    """The backend that computes on `arrays` (None and Python scalars are skipped).

    DeviceError if they live on different devices, DtypeError for something that is no array.
    """
    be: Backend | None = None
    chosen = _chosen.get()
    for array in arrays:
        if array is None or isinstance(array, (int, float)):
            continue
        if chosen is not None and isinstance(array, chosen.xp.ndarray):
            mine = chosen
        elif isinstance(array, np.ndarray):
            mine = host_backend()
        elif _is_cupy(array):
            mine = get_backend("cuda")
        else:
            raise DtypeError(
                f"{type(array).__module__}.{type(array).__name__} is no array gpuconv computes on; "
                f"pass a NumPy or CuPy array, or wrap it with gpuconv.tensor(...)"
            )
        if be is None:
            be = mine
        elif mine is not be:
            raise DeviceError(
                f"arrays of {be.name} and {mine.name} are mixed; use .to(...) to move them together"
            )
    return be if be is not None else chosen if chosen is not None else host_backend()


def is_array(value: Any) -> bool:
    """True for an array that some backend computes on as it is."""
    if isinstance(value, np.ndarray) or _is_cupy(value):
        return True
    chosen = _chosen.get()
    return chosen is not None and isinstance(value, chosen.xp.ndarray)


def plain_backend(value: Any) -> Backend | None:
    """The backend of an array of just its library's type; None for anything else."""
    kind, chosen = type(value), _chosen.get()
    if chosen is not None and kind is chosen.xp.ndarray:
        return chosen
    if kind is np.ndarray:
        return host_backend()
    be = get_backend("cuda") if _is_cupy(value) else None
    return be if be is not None and kind is be.xp.ndarray else None


def _is_cupy(value: Any) -> bool:
    return _library(value.__class__) == "cupy"


@cache
def _library(kind: Any) -> str:
    return str(kind.__module__.partition(".")[0])


def from_foreign(value: Any) -> Array:
    """An array of another library, through DLPack or `__cuda_array_interface__`, without a copy."""
    if hasattr(value, "__cuda_array_interface__"):
        return get_backend("cuda").xp.asarray(value)
    if hasattr(value, "__dlpack__"):
        kind = value.__dlpack_device__()[0] if hasattr(value, "__dlpack_device__") else 1
        if int(kind) in (2, 13):  # kDLCUDA, kDLCUDAManaged
            return get_backend("cuda").xp.from_dlpack(value)
        try:
            return np.from_dlpack(value)
        except BufferError as error:  # torch's for a tensor that requires gradients, for instance
            raise DtypeError(f"{type(value).__name__} cannot be shared: {error}") from error
    raise DtypeError(
        f"{type(value).__name__} is neither an array nor something with __dlpack__; "
        f"wrap lists with gpuconv.tensor(...) or numpy.asarray(...)"
    )


def to_device(array: Array, device: str) -> Array:
    """`array` on "cpu", "cuda" or "auto" (CUDA where usable); itself if it is there already."""
    device = resolve_device(device)
    if device == "cpu":
        return array if isinstance(array, np.ndarray) else array.get()
    return get_backend("cuda").asarray(array)


def resolve_device(device: str) -> str:
    """One of `DEVICES` as "cpu" or "cuda": "auto" is the GPU if one is usable."""
    if device not in DEVICES:
        raise DeviceError(f"device {device!r} is unknown; use one of {', '.join(DEVICES)}")
    return _auto_device() if device == "auto" else device


def device_of(array: Array) -> str:
    """Where the array lives: "cpu" for a NumPy array, "cuda" otherwise."""
    return "cpu" if isinstance(array, np.ndarray) else "cuda"


@cache
def _auto_device() -> str:
    try:
        _cupy()
    except DeviceError as error:
        _log.info("device 'auto' is the CPU: %s", error)
        return "cpu"
    _log.info("device 'auto' is the GPU")
    return "cuda"


@cache
def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"device 'cuda' needs CuPy ({error}); install the extra cuda13 or cuda12 "
            f"(pip install '.[cuda13]' in the checkout), or use device 'cpu'"
        ) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        why = f"{error}; check the driver with nvidia-smi"
        if str(error).startswith(("cudaErrorInsufficientDriver", "cudaErrorNoDevice")):
            found = driver.find()
            if found is None:
                why = "this machine has no NVIDIA driver"
            elif not found.gpus:
                why = "the driver shows no GPU"
        raise DeviceError(f"device 'cuda' is not usable: {why}; use device 'cpu'") from None
    if count == 0:
        raise DeviceError("device 'cuda' is not usable: no GPU is visible; use device 'cpu'")
    return cupy


@cache  # to look at the environment takes longer than to begin a kernel
def host_backend() -> Backend:
    """The backend for NumPy arrays when none was chosen: $GPUCONV_BACKEND, else "cpu"."""
    name = os.environ.get("GPUCONV_BACKEND") or "cpu"
    try:
        be = get_backend(name)
    except DeviceError as error:
        raise DeviceError(f"GPUCONV_BACKEND={name!r}: {error}") from None
    if be.xp is not np:
        raise DeviceError(
            f"GPUCONV_BACKEND={name!r} does not compute on NumPy arrays; use 'numpy', and move "
            f"arrays to the GPU with device='cuda'"
        )
    return be
