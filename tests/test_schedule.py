"""Schedules against torch over whole runs; resuming at any step; bad arguments."""

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpuconv import optim, schedule
from gpuconv.autograd import Tensor
from gpuconv.errors import ArgumentError
from gpuconv.optim import Optimizer

Make = Callable[[Optimizer], schedule.Schedule]


def optimizer(kind: str = "SGD") -> Optimizer:
    params = [Tensor(np.ones(2), requires_grad=True) for _ in range(2)]
    groups = [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.02}]
    return getattr(optim, kind)(groups)


def peer(kind: str = "SGD") -> Any:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    params = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    groups = [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.02}]
    return getattr(torch.optim, kind)(groups)


CASES: list[tuple[str, str, dict[str, Any], int]] = [
    ("StepLR", "SGD", {"step_size": 3}, 20),
    ("StepLR", "SGD", {"step_size": 1, "gamma": 0.7}, 20),
    ("MultiStepLR", "SGD", {"milestones": [2, 5, 5, 11]}, 20),
    ("MultiStepLR", "SGD", {"milestones": [0, 4], "gamma": 0.3}, 20),
    ("ExponentialLR", "SGD", {"gamma": 0.93}, 40),
    ("LambdaLR", "SGD", {"lr_lambda": lambda n: 1 / (1 + n)}, 20),
    ("CosineAnnealingLR", "SGD", {"T_max": 10}, 45),
    ("CosineAnnealingLR", "SGD", {"T_max": 7, "eta_min": 0.01}, 30),
    ("OneCycleLR", "SGD", {"max_lr": 0.5, "total_steps": 30}, 30),
    ("OneCycleLR", "Adam", {"max_lr": [0.5, 0.2], "epochs": 4, "steps_per_epoch": 9}, 36),
    ("OneCycleLR", "RMSprop", {"max_lr": 0.5, "total_steps": 33, "three_phase": True}, 33),
    (
        "OneCycleLR",
        "AdamW",
        {
            "max_lr": 0.5,
            "total_steps": 50,
            "pct_start": 0.1,
            "anneal_strategy": "linear",
            "base_momentum": 0.8,
            "max_momentum": 0.9,
            "div_factor": 10.0,
            "final_div_factor": 100.0,
        },
        50,
    ),
    ("OneCycleLR", "SGD", {"max_lr": 0.5, "total_steps": 12, "cycle_momentum": False}, 12),
    ("OneCycleLR", "SGD", {"max_lr": 0.5, "total_steps": 12, "pct_start": 1.0}, 11),
    ("OneCycleLR", "SGD", {"max_lr": 0.5, "total_steps": 12, "pct_start": 0.0}, 12),
]


def observed(groups: list[dict[str, Any]]) -> list[float]:
    """Rates and momenta."""
    return [
        v
        for g in groups
        for v in (g["lr"], g.get("momentum", 0.0), g["betas"][0] if "betas" in g else 0.0)
    ]


@pytest.mark.parametrize(("name", "kind", "options", "steps"), CASES)
def test_agrees_with_torch(name: str, kind: str, options: dict[str, Any], steps: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    a, b = optimizer(kind), peer(kind)
    ours = getattr(schedule, name)(a, **options)
    theirs = getattr(torch.optim.lr_scheduler, name)(b, **options)
    b.step()
    for n in range(steps + 1):
        np.testing.assert_allclose(
            observed(a.param_groups),
            observed(b.param_groups),
            rtol=1e-12,
            atol=1e-14,
            err_msg=f"{n}",
        )
        assert ours.get_last_lr() == [g["lr"] for g in a.param_groups]
        if n < steps:
            ours.step()
            theirs.step()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 2])
@pytest.mark.parametrize("min_lr", [0.0, [0.02, 0.001]])
def test_plateau_agrees_with_torch(
    mode: str, threshold_mode: str, cooldown: int, min_lr: Any
) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    options = {
        "mode": mode,
        "factor": 0.4,
        "patience": 2,
        "threshold": 0.05,
        "threshold_mode": threshold_mode,
        "cooldown": cooldown,
        "min_lr": min_lr,
        "eps": 1e-4,
    }
    a, b = optimizer(), peer()
    ours = schedule.ReduceLROnPlateau(a, **options)  # type: ignore[arg-type]
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(b, **options)
    rng = np.random.default_rng(4)
    for n in range(60):
        metric = float(np.exp(-n / 20) + 0.1 * rng.standard_normal()) if n != 7 else float("nan")
        ours.step(metric)
        theirs.step(metric)
        assert observed(a.param_groups) == observed(b.param_groups), n


def test_plateau_chooses_its_metric() -> None:
    row: dict[str, float | None] = {"train_loss": 1.0, "valid_loss": 2.0, "valid_accuracy": 0.5}
    for options, metric in (({}, 2.0), ({"mode": "max"}, 0.5), ({"monitor": "train_loss"}, 1.0)):
        plateau = schedule.ReduceLROnPlateau(optimizer(), **options)  # type: ignore[arg-type]
        plateau.epoch_end(row)
        assert plateau.best == metric
    plateau = schedule.ReduceLROnPlateau(optimizer())
    plateau.epoch_end({"train_loss": 3.0, "valid_loss": None})
    assert plateau.best == 3.0
    with pytest.raises(
        ArgumentError, match=r"there is no train_accuracy .* monitor one of train_lo"
    ):
        schedule.ReduceLROnPlateau(optimizer(), mode="max").epoch_end({"train_loss": 3.0})


def test_warmup_agrees_with_torch() -> None:
    """torch's LinearLR from 1/6 over 5 steps, then its cosine."""
    lrs = pytest.importorskip("torch", reason="torch is the oracle of this test").optim.lr_scheduler
    a, b = optimizer(), peer()
    ours = schedule.LinearWarmup(a, 5, schedule.CosineAnnealingLR(a, 10, per_batch=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on how it steps inside SequentialLR
        parts = [lrs.LinearLR(b, 1 / 6, total_iters=5), lrs.CosineAnnealingLR(b, 10)]
        theirs = lrs.SequentialLR(b, parts, milestones=[5])
        b.step()
        for n in range(15):
            np.testing.assert_allclose(
                observed(a.param_groups), observed(b.param_groups), rtol=1e-12, err_msg=f"step {n}"
            )
            ours.batch_end()
            theirs.step()


def test_warmup_alone_reaches_the_rate_and_stays() -> None:
    a = optimizer()
    warmup = schedule.LinearWarmup(a, 3)
    rates = []
    for _ in range(6):
        rates.append(a.param_groups[0]["lr"])
        warmup.batch_end()
        warmup.epoch_end({})
    np.testing.assert_allclose(rates, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-15)


def test_warmup_hands_over_to_a_schedule_of_epochs() -> None:
    a = optimizer()
    warmup = schedule.LinearWarmup(a, 5, schedule.StepLR(a, 1, gamma=0.5))
    rates = []
    for _epoch in range(4):  # of 3 batches: the warm-up ends in the second epoch
        for _ in range(3):
            warmup.batch_end()
        warmup.epoch_end({})
        rates.append(a.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, [0.1 * 4 / 6, 0.05, 0.025, 0.0125], rtol=1e-15)


def test_each_steps_when_it_says() -> None:
    a = optimizer()
    assert schedule.OneCycleLR(a, 0.1, 9, cycle_momentum=False).per_batch
    assert schedule.LinearWarmup(a, 9).per_batch
    for s in (schedule.StepLR(a, 1), schedule.MultiStepLR(a, [1]), schedule.ExponentialLR(a, 0.5)):
        assert not s.per_batch
        s.batch_end()
        assert s.count == 0
        s.epoch_end({})
        assert s.count == 1
    s = schedule.CosineAnnealingLR(a, 9, per_batch=True)
    s.epoch_end({})
    assert s.count == 0
    s.batch_end()
    assert s.count == 1


RESUMABLE: dict[str, Make] = {
    "step": lambda o: schedule.StepLR(o, 2),
    "multi": lambda o: schedule.MultiStepLR(o, [1, 4]),
    "exponential": lambda o: schedule.ExponentialLR(o, 0.9),
    "cosine": lambda o: schedule.CosineAnnealingLR(o, 7, 0.001),
    "one cycle": lambda o: schedule.OneCycleLR(o, 0.3, 40),
    "plateau": lambda o: schedule.ReduceLROnPlateau(o, patience=1, cooldown=1),
    "warm-up": lambda o: schedule.LinearWarmup(o, 4),
    "warm-up, cosine": lambda o: schedule.LinearWarmup(o, 4, schedule.CosineAnnealingLR(o, 5)),
    "warm-up, plateau": lambda o: schedule.LinearWarmup(
        o, 2, schedule.ReduceLROnPlateau(o, patience=0)
    ),
}


@pytest.mark.parametrize("make", RESUMABLE.values(), ids=RESUMABLE)
def test_resumes_exactly(make: Make) -> None:
    metrics = np.random.default_rng(3).random(40).tolist()

    def run(reload: bool) -> list[list[float]]:
        opt = optimizer()
        s = make(opt)
        seen = []
        for n, metric in enumerate(metrics):
            s.batch_end()
            if n % 3 == 2:
                s.epoch_end({"valid_loss": metric})
            if reload:
                saved = json.loads(json.dumps([opt.state_dict(), s.state_dict()]))
                opt = optimizer()
                if n % 2:
                    s = make(opt)
                    opt.load_state_dict(saved[0])
                else:  # the other order must do as well
                    opt.load_state_dict(saved[0])
                    s = make(opt)
                    opt.load_state_dict(saved[0])
                s.load_state_dict(saved[1])
            seen.append(observed(opt.param_groups))
        return seen

    assert run(True) == run(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: schedule.StepLR(o, 0), "StepLR: step_size=0 must be an int of at least 1"),
        (lambda o: schedule.StepLR(0.1, 1), "StepLR: the first argument must be an optimizer, not"),
        (lambda o: schedule.CosineAnnealingLR(o, 2.5), "T_max=2.5 must be an int"),
        (lambda o: schedule.OneCycleLR(o, 0.1), "give total_steps, or epochs and steps_per_epoch"),
        (lambda o: schedule.OneCycleLR(o, 0.1, 0), "total_steps=0 must be"),
        (lambda o: schedule.OneCycleLR(o, 0.1, epochs=0, steps_per_epoch=2), "epochs=0 must be"),
        (lambda o: schedule.OneCycleLR(o, 0.1, 9, pct_start=1.5), "pct_start=1.5 must be 0 to 1"),
        (lambda o: schedule.OneCycleLR(o, 0.1, 9, anneal_strategy="sin"), "'sin' is unknown; use"),
        (lambda o: schedule.OneCycleLR(o, [0.1], 9), "max_lr has 1 values for 2 parameter groups"),
        (lambda o: schedule.ReduceLROnPlateau(o, "up"), "mode='up' must be 'min' or 'max'"),
        (lambda o: schedule.ReduceLROnPlateau(o, factor=1.0), "factor=1.0 must be"),
        (lambda o: schedule.ReduceLROnPlateau(o).step(), "needs the metric of the epoch"),
        (lambda o: schedule.LinearWarmup(o, 0), "steps=0 must be an int of at least 1"),
        (
            lambda o: schedule.LinearWarmup(o, 2, schedule.StepLR(optimizer(), 1)),
            "a schedule of another optimizer",
        ),
    ],
)
def test_bad_arguments(make: Make, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make(optimizer())


def test_one_cycle_ends() -> None:
    s = schedule.OneCycleLR(optimizer(), 0.1, 2)
    s.step()
    s.step()
    with pytest.raises(ArgumentError, match="step 3 of 2; make total_steps the number of batches"):
        s.step()


def test_states_of_something_else() -> None:
    opt = optimizer()
    step, plateau = schedule.StepLR(opt, 1), schedule.ReduceLROnPlateau(opt)
    with pytest.raises(ArgumentError, match=r"StepLR: the state has bad_epochs, .* same schedule"):
        step.load_state_dict(plateau.state_dict())
    with pytest.raises(ArgumentError, match="is of 1 parameter groups, the optimizer has 2"):
        step.load_state_dict({"count": 1, "base_lrs": [0.1]})
    warm = schedule.LinearWarmup(opt, 2)
    with pytest.raises(ArgumentError, match="differ in having a `then`"):
        warm.load_state_dict(schedule.LinearWarmup(opt, 2, step).state_dict())


def test_numbers_of_numpy_do_not_get_into_the_state() -> None:
    """A checkpoint writes rates as JSON, which takes float and not np.float32."""

    class Halves(schedule.Schedule):
        def rate(self, base: float, n: int) -> float:
            return np.float32(base / 2)

    assert [type(rate) for rate in Halves(optimizer()).get_last_lr()] == [float, float]
    sgd = optimizer()
    rates = schedule.LambdaLR(sgd, lambda n: np.float32(0.5))
    rates.step()
    plateau = schedule.ReduceLROnPlateau(sgd, factor=np.float32(0.5), patience=0)
    for metric in (1.0, np.float32(2.0)):
        plateau.step(metric)
    assert json.dumps([sgd.state_dict()["param_groups"], plateau.state_dict()])
    assert [type(rate) for rate in plateau.get_last_lr()] == [float, float]
    assert plateau.get_last_lr() == [0.025, 0.005], "computed in float64"
