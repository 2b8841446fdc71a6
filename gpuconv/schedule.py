"""Learning-rate schedules, with the names and the values of `torch.optim.lr_scheduler`.

The arguments are torch's with these exceptions. There is no `last_epoch` (`load_state_dict` goes on
where a state was taken) and no `verbose`; `LambdaLR` takes one function and no list of them;
`OneCycleLR` takes one `base_momentum` and one `max_momentum`, while `max_lr` may be a list, one
number a parameter group, and so may `min_lr` of `ReduceLROnPlateau`. `per_batch`, `monitor` and
`LinearWarmup` are ours.

A schedule is made after its optimizer, sets the learning rates of its parameter groups at once, and
changes them at each `step()`. `per_batch` says when that is due: after every batch or after every
epoch; a `Trainer` calls `batch_end` and `epoch_end` of any schedule and they do the right one.

Rates are computed from the first ones by a closed form, not from the last ones as in torch. The
values are the same, but a rate changed by hand lasts until the next step only.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from gpuconv.errors import ArgumentError
from gpuconv.optim import Optimizer


class Schedule:
    """Rates that follow from the number of steps; derive and write `rate(base, n)`."""

    def __init__(self, optimizer: Optimizer, per_batch: bool = False) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                f"{type(self).__name__}: the first argument must be an optimizer, not "
                f"{type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        self.per_batch = per_batch
        self.count = 0
        self.base_lrs: list[float] = [float(group["lr"]) for group in optimizer.param_groups]
        self.apply()

    def rate(self, base: float, n: int) -> float:
        """The learning rate after `n` steps of a group that began with `base`."""
        raise NotImplementedError

    def apply(self) -> None:
        """Set the optimizer's rates to those after `self.count` steps."""
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = float(self.rate(base, self.count))  # NumPy's numbers are no JSON

    def step(self, metric: float | None = None) -> None:
        """Go one step on: one batch if `per_batch`, else one epoch. Few schedules use `metric`."""
        self.count += 1
        self.apply()

    def batch_end(self) -> None:
        """To be called after each batch; steps if `per_batch`."""
        if self.per_batch:
            self.step()

    def epoch_end(self, metrics: Mapping[str, float | None]) -> None:
        """To be called after each epoch with its row of the history; steps unless `per_batch`."""
        if not self.per_batch:
            self.step()

    def get_last_lr(self) -> list[float]:
        """The rate in use, one a parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for `load_state_dict`. The rates in use are in the optimizer's state."""
        return {"count": self.count, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken; ArgumentError if it is of another kind or groups."""
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise ArgumentError(
                f"{type(self).__name__}: the state has {', '.join(sorted(state))}, but "
                f"{', '.join(sorted(mine))} are needed; resume with the same schedule"
            )
        rates = state.get("base_lrs", self.base_lrs)
        if len(rates) != len(self.base_lrs):
            raise ArgumentError(
                f"{type(self).__name__}: the state is of {len(rates)} parameter groups, the "
                f"optimizer has {len(self.base_lrs)}"
            )
        self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        count, rates = int(state["count"]), [float(rate) for rate in state["base_lrs"]]
        self.count, self.base_lrs = count, rates


class StepLR(Schedule):
    """Times `gamma` every `step_size` steps. Per epoch, unless `per_batch`."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, per_batch: bool = False
    ) -> None:
        self.step_size = _positive(type(self).__name__, "step_size", step_size)
        self.gamma = gamma
        super().__init__(optimizer, per_batch)

    def rate(self, base: float, n: int) -> float:
        return base * self.gamma ** (n // self.step_size)


class MultiStepLR(Schedule):
    """Times `gamma` at each of the steps `milestones`. Per epoch, unless `per_batch`."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        per_batch: bool = False,
    ) -> None:
        self.milestones = sorted(milestones)
        self.gamma = gamma
        super().__init__(optimizer, per_batch)

    def rate(self, base: float, n: int) -> float:
        return base * self.gamma ** bisect_right(self.milestones, n)


class ExponentialLR(Schedule):
    """Times `gamma` at each step. Per epoch, unless `per_batch`."""

    def __init__(self, optimizer: Optimizer, gamma: float, per_batch: bool = False) -> None:
        self.gamma = gamma
        super().__init__(optimizer, per_batch)

    def rate(self, base: float, n: int) -> float:
        return base * self.gamma**n


class LambdaLR(Schedule):
    """Times `lr_lambda(n)` after n steps; the function is not saved. Per epoch by default."""

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Callable[[int], float], per_batch: bool = False
    ) -> None:
        self.lr_lambda = lr_lambda
        super().__init__(optimizer, per_batch)

    def rate(self, base: float, n: int) -> float:
        return base * float(self.lr_lambda(n))


class CosineAnnealingLR(Schedule):
    """Down to `eta_min` in `T_max` steps along half a cosine, then up again; no restarts.

    Per epoch, unless `per_batch`. Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, per_batch: bool = False
    ) -> None:
        self.T_max = _positive(type(self).__name__, "T_max", T_max)
        self.eta_min = eta_min
        super().__init__(optimizer, per_batch)

    def rate(self, base: float, n: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * n / self.T_max)) / 2


class OneCycleLR(Schedule):
    """Up from max_lr / div_factor to `max_lr`, and down to a `final_div_factor`-th of the start.

    Per batch. The length is `total_steps`, or `epochs` times `steps_per_epoch`; a step beyond it is
    an ArgumentError. With `cycle_momentum` the momentum (Adam: beta1) moves against the rate.
    Source: Smith and Topin, "Super-convergence", arXiv 1708.07120; `three_phase` is their form.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        name = type(self).__name__
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ArgumentError(f"{name}: give total_steps, or epochs and steps_per_epoch")
            total_steps = _positive(name, "epochs", epochs) * _positive(
                name, "steps_per_epoch", steps_per_epoch
            )
        self.total_steps = _positive(name, "total_steps", total_steps)
        if not 0 <= pct_start <= 1:
            raise ArgumentError(f"{name}: pct_start={pct_start!r} must be 0 to 1")
        if anneal_strategy not in ("cos", "linear"):
            raise ArgumentError(
                f"{name}: anneal_strategy={anneal_strategy!r} is unknown; use 'cos' or 'linear'"
            )
        if cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise ArgumentError(
                f"{name}: {type(optimizer).__name__} has no momentum to cycle; set "
                f"cycle_momentum=False"
            )
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        self.max_lrs = _per_group(name, "max_lr", max_lr, optimizer)
        self.momenta = (float(base_momentum), float(max_momentum))
        self.div_factor, self.final_div_factor = float(div_factor), float(final_div_factor)
        # The turning points: step, which rate (first, highest, last), which momentum (low, high).
        top = float(pct_start * self.total_steps) - 1
        down = float(2 * pct_start * self.total_steps) - 2
        middle = [(top, 1, 0), (down, 0, 1)] if three_phase else [(top, 1, 0)]
        self._turns = [(0.0, 0, 1), *middle, (float(self.total_steps - 1), 2, 1)]
        super().__init__(optimizer, per_batch=True)

    def apply(self) -> None:
        n = self.count
        if n > self.total_steps:
            raise ArgumentError(
                f"OneCycleLR: step {n} of {self.total_steps}; make total_steps the number of "
                f"batches of the whole run"
            )
        phases = list(pairwise(self._turns))
        (begin, *start), (end, *goal) = next((p for p in phases if n <= p[1][0]), phases[-1])
        part = (n - begin) / (end - begin) if end != begin else 1.0
        for group, top in zip(self.optimizer.param_groups, self.max_lrs, strict=True):
            first = top / self.div_factor
            rates = (first, top, first / self.final_div_factor)
            group["lr"] = self._between(rates[start[0]], rates[goal[0]], part)
            if self.cycle_momentum:
                momentum = self._between(self.momenta[start[1]], self.momenta[goal[1]], part)
                if "betas" in group:
                    group["betas"] = (momentum, group["betas"][1])
                else:
                    group["momentum"] = momentum

    def _between(self, start: float, goal: float, part: float) -> float:
        if self.anneal_strategy == "cos":
            return goal + (start - goal) / 2.0 * (math.cos(math.pi * part) + 1)
        return (goal - start) * part + start


class ReduceLROnPlateau(Schedule):
    """Times `factor` after more than `patience` epochs without a better metric.

    Per epoch: `step(metric)`. In a `Trainer` the metric is the column `monitor` of the history;
    unless given, the loss for mode "min" and the accuracy for "max", of validation if there is one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0.0,
        eps: float = 1e-8,
        monitor: str | None = None,
    ) -> None:
        name = type(self).__name__
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ArgumentError(
                f"{name}: mode={mode!r} must be 'min' or 'max', and threshold_mode="
                f"{threshold_mode!r} 'rel' or 'abs'"
            )
        if not 0 <= factor < 1:
            raise ArgumentError(f"{name}: factor={factor!r} must be at least 0 and below 1")
        self.mode, self.factor, self.patience = mode, float(factor), patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.eps, self.monitor = cooldown, eps, monitor
        self.best = math.inf if mode == "min" else -math.inf
        self.bad_epochs = 0
        self.cooldown_left = 0
        super().__init__(optimizer)
        self.min_lrs = _per_group(name, "min_lr", min_lr, optimizer)

    def apply(self) -> None:
        """Nothing: these rates follow from metrics, not from the number of steps."""

    def step(self, metric: float | None = None) -> None:
        """Take note of an epoch's metric; ArgumentError without one."""
        if metric is None:
            raise ArgumentError("ReduceLROnPlateau: step() needs the metric of the epoch")
        self.count += 1
        if self._is_better(metric):
            self.best, self.bad_epochs = float(metric), 0
        else:
            self.bad_epochs += 1
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.bad_epochs = 0
        if self.bad_epochs > self.patience:
            for group, least in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                rate = max(group["lr"] * self.factor, least)
                if group["lr"] - rate > self.eps:
                    group["lr"] = rate
            self.cooldown_left, self.bad_epochs = self.cooldown, 0

    def _is_better(self, metric: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "rel":
            bound = self.best * (1.0 + sign * self.threshold)
        else:
            bound = self.best + sign * self.threshold
        return metric > bound if self.mode == "max" else metric < bound

    def epoch_end(self, metrics: Mapping[str, float | None]) -> None:
        column = "loss" if self.mode == "min" else "accuracy"
        has_valid = metrics.get(f"valid_{column}") is not None
        monitor = self.monitor or f"{'valid' if has_valid else 'train'}_{column}"
        if metrics.get(monitor) is None:
            raise ArgumentError(
                f"ReduceLROnPlateau: there is no {monitor} after this epoch; monitor one of "
                f"{', '.join(key for key, value in metrics.items() if value is not None)}"
            )
        self.step(metrics[monitor])

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "best": self.best,
            "bad_epochs": self.bad_epochs,
            "cooldown_left": self.cooldown_left,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        names = ("count", "bad_epochs", "cooldown_left")
        best, numbers = float(state["best"]), [int(state[name]) for name in names]
        self.best, (self.count, self.bad_epochs, self.cooldown_left) = best, numbers


class LinearWarmup(Schedule):
    """Up in a line to the rate that `then` begins with (or the optimizer's), and on with `then`.

    Per batch: batch n of the `length` first ones has (n + 1) / (length + 1) of the rate. `then`, a
    schedule made before on the same optimizer, starts when the warm-up is over; if it is one per
    epoch, epochs that end before that do not count. Source: Goyal et al., arXiv 1706.02677.
    """

    def __init__(self, optimizer: Optimizer, steps: int, then: Schedule | None = None) -> None:
        if then is not None and then.optimizer is not optimizer:
            raise ArgumentError(
                "LinearWarmup: `then` is a schedule of another optimizer; make both with the same"
            )
        self.length = _positive(type(self).__name__, "steps", steps)
        self.then = then
        super().__init__(optimizer, per_batch=True)

    def rate(self, base: float, n: int) -> float:
        return base * ((n + 1) / (self.length + 1))

    def step(self, metric: float | None = None) -> None:
        if self.count < self.length:
            super().step()
        elif self.then is not None:
            self.then.batch_end()

    def epoch_end(self, metrics: Mapping[str, float | None]) -> None:
        if self.count >= self.length and self.then is not None:
            self.then.epoch_end(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "then": self.then.state_dict() if self.then else None}

    def _load(self, state: Mapping[str, Any]) -> None:
        if (self.then is None) != (state["then"] is None):
            raise ArgumentError(
                "LinearWarmup: the state and this schedule differ in having a `then`; resume with "
                "the same schedule"
            )
        if self.then is not None:
            self.then.load_state_dict(state["then"])
        super()._load(state)


def _positive(schedule: str, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"{schedule}: {name}={value!r} must be an int of at least 1")
    return value


def _per_group(schedule: str, name: str, value: Any, optimizer: Optimizer) -> list[float]:
    count = len(optimizer.param_groups)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise ArgumentError(
            f"{schedule}: {name} has {len(values)} values for {count} parameter groups"
        )
    return [float(v) for v in values]
