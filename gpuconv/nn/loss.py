"""Losses as modules: arguments and defaults as in torch.nn, without its deprecated ones.

`reduction` is "mean", "sum" or "none". Weights are buffers: they move with `.to` and are saved.
"""

from typing import Any

from gpuconv import ops
from gpuconv.errors import ArgumentError
from gpuconv.nn.module import Buffer, Module
from gpuconv.ops.loss import REDUCTIONS, check_reduction


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        check_reduction(type(self).__name__, reduction)
        self.reduction = reduction

    def extra_repr(self) -> str:
        return "" if self.reduction == "mean" else f"reduction={self.reduction!r}"


class CrossEntropyLoss(_Loss):
    """-log(softmax(x)) at the labels, of scores (N, C, *in); see `gpuconv.cross_entropy`."""

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        if not 0 <= label_smoothing <= 1:
            raise ArgumentError(
                f"CrossEntropyLoss: label_smoothing={label_smoothing} must be between 0 and 1"
            )
        self.weight = _buffer(weight)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(self, x: Any, target: Any) -> Any:
        return ops.cross_entropy(
            x, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )


class NLLLoss(_Loss):
    """-x at the labels, of log-probabilities (N, C, *in)."""

    def __init__(
        self, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.weight, self.ignore_index = _buffer(weight), ignore_index

    def forward(self, x: Any, target: Any) -> Any:
        return ops.nll_loss(x, target, self.weight, self.ignore_index, self.reduction)


class MSELoss(_Loss):
    """(x - target)^2."""

    def forward(self, x: Any, target: Any) -> Any:
        return ops.mse_loss(x, target, self.reduction)


class L1Loss(_Loss):
    """|x - target|."""

    def forward(self, x: Any, target: Any) -> Any:
        return ops.l1_loss(x, target, self.reduction)


class SmoothL1Loss(_Loss):
    """d^2 / (2 beta) where d = |x - target| is under `beta`, else d - beta / 2."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        if not beta >= 0:
            raise ArgumentError(f"SmoothL1Loss: beta={beta} must not be negative")
        self.beta = beta

    def forward(self, x: Any, target: Any) -> Any:
        return ops.smooth_l1_loss(x, target, self.reduction, self.beta)


class HuberLoss(_Loss):
    """d^2 / 2 where d = |x - target| is under `delta`, else delta (d - delta / 2)."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ArgumentError(f"HuberLoss: delta={delta} must be positive")
        self.delta = delta

    def forward(self, x: Any, target: Any) -> Any:
        return ops.huber_loss(x, target, self.reduction, self.delta)


class BCELoss(_Loss):
    """-(t log x + (1 - t) log(1 - x)) of probabilities x."""

    def __init__(self, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.weight = _buffer(weight)

    def forward(self, x: Any, target: Any) -> Any:
        return ops.binary_cross_entropy(x, target, self.weight, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """`BCELoss` of sigmoid(x), with no digits lost for large |x|."""

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self.weight, self.pos_weight = _buffer(weight), _buffer(pos_weight)

    def forward(self, x: Any, target: Any) -> Any:
        return ops.binary_cross_entropy_with_logits(
            x, target, self.weight, self.pos_weight, self.reduction
        )


class KLDivLoss(Module):
    """t (log t - x) of log-probabilities x; `reduction` also "batchmean"."""

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        check_reduction("KLDivLoss", reduction, (*REDUCTIONS, "batchmean"))
        self.reduction, self.log_target = reduction, log_target

    def forward(self, x: Any, target: Any) -> Any:
        return ops.kl_div(x, target, self.reduction, self.log_target)


def _buffer(value: Any) -> Buffer | None:
    return None if value is None else Buffer(value)
