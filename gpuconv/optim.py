"""Optimizers and gradient clipping, with the arguments and the arithmetic of `torch.optim`.

An optimizer takes parameters, or groups of them: a list of dicts, each with its "params" and the
options that are its own. `step` changes the parameters' arrays in place, as nothing else does; a
parameter without a gradient is left alone. The options of each group are in `param_groups`, where
schedules change them.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from gpuconv.autograd import Tensor
from gpuconv.backends import Array, Backend, backend_of
from gpuconv.errors import ArgumentError

Params = Iterable[Tensor] | Iterable[Mapping[str, Any]]


class Optimizer:
    """What optimizers share; derive, list the state arrays' names, and write `update`."""

    arrays: ClassVar[tuple[str, ...]] = ()  # names, as in torch, of the state arrays there can be

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        name = type(self).__name__
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: list[
            dict[str, Any]
        ] = []  # one a parameter, in their order; empty until stepped
        if isinstance(params, (Tensor, Mapping)) or not isinstance(params, Iterable):
            raise ArgumentError(
                f"{name}: params is one {type(params).__name__}; pass model.parameters() or a list"
            )
        given: list[Any] = list(params)
        if not given:
            raise ArgumentError(f"{name}: there are no parameters; pass model.parameters()")
        seen: set[int] = set()
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self._add_group(group, seen)

    def _add_group(self, given: Any, seen: set[int]) -> None:
        name, number = type(self).__name__, len(self.param_groups)
        if not isinstance(given, Mapping) or "params" not in given:
            raise ArgumentError(f"{name}: group {number} must be a dict with 'params' in it")
        unknown = sorted(given.keys() - {"params"} - self.defaults.keys())
        if unknown:
            raise ArgumentError(
                f"{name}: group {number} has an unknown {', '.join(unknown)}; its options are "
                f"{', '.join(self.defaults)}"
            )
        params = given["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        if not params:
            raise ArgumentError(f"{name}: group {number} has no parameters")
        for p in params:
            if not isinstance(p, Tensor) or p.dtype.kind != "f":
                raise ArgumentError(
                    f"{name}: a parameter must be a floating-point Tensor, not {p!r:.60}"
                )
            if p._node is not None:
                raise ArgumentError(
                    f"{name}: a tensor of shape {p.shape} is the result of an operation; "
                    f"pass the parameters it was computed from"
                )
            if id(p) in seen:
                raise ArgumentError(
                    f"{name}: a parameter of shape {p.shape} is given twice; list each once, "
                    f"in one group"
                )
            seen.add(id(p))
        options = {key: given.get(key, value) for key, value in self.defaults.items()}
        self.check(options)
        self.param_groups.append({**options, "params": params})
        self.state.extend({} for _ in params)

    def check(self, options: dict[str, Any]) -> None:
        """ArgumentError if a group's options cannot be used; numbers become Python's."""
        for key in ("lr", "momentum", "weight_decay", "eps", "alpha"):
            if key in options:
                options[key] = self._number(key, options[key])
        if "betas" in options:
            betas = options["betas"]
            if not isinstance(betas, (tuple, list)) or len(betas) != 2:
                raise ArgumentError(f"{type(self).__name__}: betas={betas!r} must be two numbers")
            options["betas"] = tuple(self._number("betas", beta, below=1) for beta in betas)

    def _number(self, key: str, value: Any, below: float = math.inf) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < below:
            bound = "" if below == math.inf else f" and below {below}"
            raise ArgumentError(
                f"{type(self).__name__}: {key}={value!r} must be a number of at least 0{bound}"
            )
        return number

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self) -> None:
        """Change each parameter that has a gradient by it."""
        states = iter(self.state)
        for group in self.param_groups:
            for p, state in zip(group["params"], states, strict=False):
                if p.grad is not None:
                    self.update(backend_of(p.data, p.grad.data), p.data, p.grad.data, state, group)

    def update(self, be: Backend, w: Array, gw: Array, state: dict[str, Any], group: Any) -> None:
        """One step of the parameter `w` with its gradient; what is to be kept goes to `state`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """As torch's: {"state": {"0": {name: array or number}}, "param_groups": [options]}.

        Parameters are numbered in their order. The arrays are the ones in use, not copies.
        """
        numbers = iter(range(len(self.state)))
        return {
            "state": {str(i): dict(state) for i, state in enumerate(self.state) if state},
            "param_groups": [
                {**group, "params": [next(numbers) for _ in group["params"]]}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state (ours or torch's, as arrays); its arrays are copied.

        ArgumentError, and no change, if it is of other parameters or of another optimizer.
        """
        name = type(self).__name__
        if not {"state", "param_groups"} <= state_dict.keys():
            raise ArgumentError(f"{name}: the state lacks 'state' or 'param_groups'")
        groups = state_dict["param_groups"]
        ours = [len(group["params"]) for group in self.param_groups]
        theirs = [len(group["params"]) for group in groups]
        if ours != theirs:
            raise ArgumentError(
                f"{name}: the state has groups of {theirs} parameters, this optimizer of {ours}; "
                f"load it into an optimizer of the same model and groups"
            )
        states = {str(key): value for key, value in state_dict["state"].items()}
        params = [p for group in self.param_groups for p in group["params"]]
        loaded = [self._load(p, i, states.get(str(i), {})) for i, p in enumerate(params)]
        options = [
            {key: group.get(key, mine[key]) for key in self.defaults}
            for group, mine in zip(groups, self.param_groups, strict=True)
        ]
        for group in options:
            self.check(group)
        for mine, group in zip(self.param_groups, options, strict=True):
            mine.update(group)
        self.state = loaded

    def _load(self, p: Tensor, number: int, given: Mapping[str, Any]) -> dict[str, Any]:
        be = backend_of(p.data)
        state: dict[str, Any] = {}
        for key, value in given.items():
            if value is None:
                continue  # torch's SGD without momentum
            if key == "step":
                state[key] = int(value)
            elif key not in self.arrays or tuple(getattr(value, "shape", ())) != p.shape:
                raise ArgumentError(
                    f"{type(self).__name__}: the state of parameter {number} has {key} of shape "
                    f"{tuple(getattr(value, 'shape', ()))}; {', '.join(self.arrays)} of shape "
                    f"{p.shape} can be loaded"
                )
            else:
                state[key] = be.xp.zeros_like(p.data)
                state[key][...] = be.asarray(value, dtype=p.data.dtype)
        return state


class SGD(Optimizer):
    """Stochastic gradient descent, also with momentum, also Nesterov's; as torch.optim.SGD."""

    arrays = ("momentum_buffer",)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
            },
        )

    def check(self, options: dict[str, Any]) -> None:
        super().check(options)
        options["dampening"] = float(options["dampening"])
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ArgumentError(
                f"SGD: nesterov=True needs a momentum above 0 and no dampening, but momentum="
                f"{options['momentum']} and dampening={options['dampening']}; set momentum=0.9"
            )

    def update(self, be: Backend, w: Array, gw: Array, state: dict[str, Any], group: Any) -> None:
        momentum = group["momentum"]
        first = "momentum_buffer" not in state
        be.sgd_step(
            w,
            gw,
            _array(be, w, state, "momentum_buffer") if momentum > 0 else None,
            first,
            lr=float(group["lr"]),
            momentum=float(momentum),
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
        )


class Adam(Optimizer):
    """Adam, and AMSGrad; as torch.optim.Adam. `weight_decay` is added to the gradient."""

    arrays = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
            },
        )

    def update(self, be: Backend, w: Array, gw: Array, state: dict[str, Any], group: Any) -> None:
        state["step"] = state.get("step", 0) + 1
        be.adam_step(
            w,
            gw,
            _array(be, w, state, "exp_avg"),
            _array(be, w, state, "exp_avg_sq"),
            _array(be, w, state, "max_exp_avg_sq") if group["amsgrad"] else None,
            state["step"],
            lr=float(group["lr"]),
            beta1=float(group["betas"][0]),
            beta2=float(group["betas"][1]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=self.decoupled,
        )


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameter itself; as torch.optim.AdamW."""

    decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)


class RMSprop(Optimizer):
    """RMSprop, also centered and with momentum; as torch.optim.RMSprop.

    Where rounding would make a centered variance negative, and torch's step NaN, it counts as 0.
    """

    arrays = ("square_avg", "grad_avg", "momentum_buffer")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
            },
        )

    def update(self, be: Backend, w: Array, gw: Array, state: dict[str, Any], group: Any) -> None:
        momentum = group["momentum"]
        be.rmsprop_step(
            w,
            gw,
            _array(be, w, state, "square_avg"),
            _array(be, w, state, "grad_avg") if group["centered"] else None,
            _array(be, w, state, "momentum_buffer") if momentum > 0 else None,
            lr=float(group["lr"]),
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=float(momentum),
        )


def _array(be: Backend, w: Array, state: dict[str, Any], key: str) -> Array:
    """The state array called `key`, zeros the first time it is asked for."""
    if key not in state:
        state[key] = be.xp.zeros_like(w)
    return state[key]


def clip_grad_norm_(
    params: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0
) -> Tensor:
    """Scale all gradients together so that their norm is at most `max_norm`; the norm before that.

    The norm is that of all gradients as one vector, a Tensor of no axes in float64; `norm_type` is
    above 0 and may be infinite. The gradients are replaced, not changed. As
    torch.nn.utils.clip_grad_norm_. Source: Pascanu et al., arXiv 1211.5063.
    """
    if not (max_norm >= 0 and norm_type > 0):
        raise ArgumentError(
            f"clip_grad_norm_: max_norm={max_norm!r} must be at least 0, "
            f"norm_type={norm_type!r} above 0"
        )
    params = _with_grad(params)
    be = backend_of(*(p.grad.data for p in params if p.grad is not None))
    xp = be.xp
    total = xp.zeros((), dtype=xp.float64)
    for p in params:
        # float16 squares overflow at 256: at least float32 for the powers, float64 for the total.
        size = xp.abs(p.grad.data.astype(xp.float32) if p.dtype.itemsize < 4 else p.grad.data)
        if not size.size:
            continue
        if norm_type == math.inf:
            total = xp.maximum(total, xp.asarray(size.max()).astype(xp.float64))
        else:
            powers = size * size if norm_type == 2 else size**norm_type
            total = total + xp.asarray(powers.sum()).astype(xp.float64)
    if norm_type != math.inf:
        total = total ** (1.0 / norm_type)
    scale = xp.asarray(xp.minimum(max_norm / (total + 1e-6), 1.0))
    for p in params:
        p.grad = Tensor(xp.asarray(p.grad.data * scale.astype(p.grad.data.dtype)))
    return Tensor(xp.asarray(total))


def clip_grad_value_(params: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Replace each gradient by itself clipped to [-clip_value, clip_value]."""
    if not clip_value >= 0:
        raise ArgumentError(f"clip_grad_value_: clip_value={clip_value!r} must be at least 0")
    for p in _with_grad(params):
        xp = backend_of(p.grad.data).xp
        p.grad = Tensor(xp.asarray(xp.clip(p.grad.data, -float(clip_value), float(clip_value))))


def _with_grad(params: Tensor | Iterable[Tensor]) -> list[Any]:
    params = [params] if isinstance(params, Tensor) else params
    return [p for p in params if p.grad is not None]
