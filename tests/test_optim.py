"""Optimizers and clipping against torch, over many steps in float64; states; bad arguments."""

import itertools
from typing import Any

import numpy as np
import pytest

from gpuconv import optim
from gpuconv.autograd import Tensor
from gpuconv.backends import Backend, backend
from gpuconv.errors import ArgumentError
from tests.strict import strict

SHAPES = [(4, 3, 3, 3), (7,), (), (5, 0)]

SGD = [
    {"momentum": m, "dampening": d, "weight_decay": w, "nesterov": n}
    for m, d, w, n in itertools.product((0, 0.9), (0, 0.3), (0, 0.05), (False, True))
    if not n or (m and not d)
]
ADAM = [
    {"betas": b, "eps": e, "weight_decay": w, "amsgrad": a}
    for b, e, w, a in itertools.product(
        ((0.9, 0.999), (0.3, 0.8)), (1e-8, 1e-2), (0.0, 0.05), (False, True)
    )
]
RMSPROP = [
    {"alpha": al, "eps": e, "weight_decay": w, "momentum": m, "centered": c}
    for al, e, w, m, c in itertools.product(
        (0.99, 0.5), (1e-8, 1e-2), (0, 0.05), (0, 0.9), (False, True)
    )
]
OPTIONS = [
    *(("SGD", o) for o in SGD),
    *(("Adam", o) for o in ADAM),
    *(("AdamW", o) for o in ADAM),
    *(("RMSprop", o) for o in RMSPROP),
]
EVERY = pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
BUSY: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
}


def parameters(seed: int = 0, dtype: Any = np.float64) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.standard_normal(s)).astype(dtype) for s in SHAPES]
    return [Tensor(a, requires_grad=True) for a in arrays]


def give_gradients(params: list[Tensor], rng: np.random.Generator) -> list[np.ndarray]:
    grads = [np.asarray(rng.standard_normal(p.shape)).astype(p.dtype) for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad = Tensor(g)
    return grads


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_agrees_with_torch(name: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    ours = parameters()
    theirs = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in ours]
    a = getattr(optim, name)(ours, lr=0.03, **options)
    b = getattr(torch.optim, name)(theirs, lr=0.03, foreach=False, **options)
    rng = np.random.default_rng(1)
    for step in range(20):
        grads = give_gradients(ours, rng)
        for t, g in zip(theirs, grads, strict=True):
            t.grad = torch.tensor(g)
        if step % 7 == 3:  # one parameter has no gradient now and then
            ours[1].grad = theirs[1].grad = None
        before = [g.copy() for g in grads]
        a.step()
        b.step()
        for g, kept in zip(grads, before, strict=True):
            np.testing.assert_array_equal(g, kept, err_msg="a gradient was changed")
    for p, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), t.detach().numpy(), rtol=1e-12)


@EVERY
def test_groups_and_a_rate_that_changes(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    ours = parameters()
    theirs = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in ours]

    def groups(p: list[Any]) -> list[dict[str, Any]]:
        return [{"params": p[:1], "lr": 0.1}, {"params": p[1:], "weight_decay": 0.2}]

    a = getattr(optim, name)(groups(ours), **BUSY[name])
    b = getattr(torch.optim, name)(groups(theirs), foreach=False, **BUSY[name])
    rng = np.random.default_rng(1)
    for step in range(5):
        for t, g in zip(theirs, give_gradients(ours, rng), strict=True):
            t.grad = torch.tensor(g)
        for opt in (a, b):
            for group in opt.param_groups:
                group["lr"] *= 0.9**step
            opt.step()
    for p, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), t.detach().numpy(), rtol=1e-12)
    a.zero_grad()
    assert all(p.grad is None for p in ours)


@EVERY
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dtype_is_kept(name: str, dtype: Any, rng: np.random.Generator) -> None:
    params = parameters(dtype=dtype)
    arrays = [p.data for p in params]
    options = {} if name == "SGD" else {"eps": 1e-3}
    opt = getattr(optim, name)(params, lr=np.float64(0.01), **options, **BUSY[name])
    for _ in range(3):
        give_gradients(params, rng)
        opt.step()
    for p, array in zip(params, arrays, strict=True):
        assert p.data is array, "the array is changed in place"
        assert p.dtype == dtype
    assert all(v.dtype == dtype for s in opt.state for v in s.values() if isinstance(v, np.ndarray))


@EVERY
def test_state_round_trip_is_exact(name: str) -> None:
    def run(reload: bool) -> list[np.ndarray]:
        params = parameters(dtype=np.float32)
        opt = getattr(optim, name)(params, lr=0.03, **BUSY[name])
        rng = np.random.default_rng(1)
        for step in range(8):
            if reload and step in (0, 3):
                state = opt.state_dict()
                opt = getattr(optim, name)(params, lr=0.5, **BUSY[name])
                opt.load_state_dict(state)
            give_gradients(params, rng)
            if step == 2:
                params[1].grad = None
            opt.step()
        return [p.numpy() for p in params]

    for a, b in zip(run(False), run(True), strict=True):
        np.testing.assert_array_equal(a, b)


@EVERY
def test_takes_over_the_state_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    ours = parameters()
    theirs = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in ours]
    b = getattr(torch.optim, name)(theirs, lr=0.03, foreach=False, **BUSY[name])
    rng = np.random.default_rng(1)
    for _ in range(3):
        for t in theirs:
            t.grad = torch.tensor(rng.standard_normal(t.shape))
        b.step()
    state = b.state_dict()
    state["state"] = {
        number: {key: v.numpy().copy() for key, v in values.items()}
        for number, values in state["state"].items()
    }
    for p, t in zip(ours, theirs, strict=True):
        p.data[...] = t.detach().numpy()
    a = getattr(optim, name)(ours, **BUSY[name])
    a.load_state_dict(state)
    for t, g in zip(theirs, give_gradients(ours, rng), strict=True):
        t.grad = torch.tensor(g)
    a.step()
    b.step()
    for p, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), t.detach().numpy(), rtol=1e-12)


def test_loaded_arrays_are_copies() -> None:
    params = parameters()
    opt = optim.SGD(params, 0.1, momentum=0.9)
    give_gradients(params, np.random.default_rng(0))
    opt.step()
    state = opt.state_dict()
    other = optim.SGD(params, 0.1, momentum=0.9)
    other.load_state_dict(state)
    before = state["state"]["0"]["momentum_buffer"].copy()
    other.step()
    np.testing.assert_array_equal(state["state"]["0"]["momentum_buffer"], before)


def test_centered_rmsprop_survives_a_constant_gradient() -> None:
    p = Tensor(np.array([1.0]), requires_grad=True)
    opt = optim.RMSprop([p], lr=1e-6, alpha=0.5, centered=True)
    for _ in range(200):  # the mean square is the squared mean, up to rounding of either sign
        p.grad = Tensor(np.array([0.1]))
        opt.step()
    assert np.isfinite(p.numpy()).all()


@EVERY
@pytest.mark.usefixtures("array_code")
def test_runs_on_a_device_that_is_not_numpy(name: str, rng: np.random.Generator) -> None:
    host = parameters(dtype=np.float32)
    with backend(Backend(strict, "strict")):
        device = [Tensor(strict.asarray(p.numpy()), requires_grad=True) for p in host]
        a = getattr(optim, name)(host, 0.03, weight_decay=0.1, **BUSY[name])
        b = getattr(optim, name)(device, 0.03, weight_decay=0.1, **BUSY[name])
        for _ in range(3):
            for p, g in zip(device, give_gradients(host, rng), strict=True):
                p.grad = Tensor(strict.asarray(g))
            norms = [optim.clip_grad_norm_(ps, 1.0).item() for ps in (host, device)]
            assert norms[0] == norms[1]
            optim.clip_grad_norm_(device, 1.0, float("inf"))
            optim.clip_grad_norm_(host, 1.0, float("inf"))
            optim.clip_grad_value_(device, 0.01)
            optim.clip_grad_value_(host, 0.01)
            a.step()
            b.step()
        b.load_state_dict(a.state_dict())
        for p, q in zip(host, device, strict=True):
            np.testing.assert_array_equal(p.numpy(), q.data.get())


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.5, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e6, 0.0])
def test_clip_grad_norm_agrees_with_torch(norm_type: float, max_norm: float) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    ours = parameters()[:3]
    theirs = [torch.tensor(p.numpy(), requires_grad=True) for p in ours]
    grads = give_gradients(ours, np.random.default_rng(3))
    for t, g in zip(theirs, grads, strict=True):
        t.grad = torch.tensor(g)
    kept = [g.copy() for g in grads]
    norm = optim.clip_grad_norm_((p for p in ours), max_norm, norm_type)
    norm_peer = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type, foreach=False)
    assert norm.item() == pytest.approx(norm_peer.item(), rel=1e-12)
    for p, t, g, k in zip(ours, theirs, grads, kept, strict=True):
        assert p.grad is not None
        np.testing.assert_allclose(p.grad.numpy(), t.grad.numpy(), rtol=1e-12)
        np.testing.assert_array_equal(g, k, err_msg="a shared gradient was changed")


def test_clip_grad_value_replaces() -> None:
    p = Tensor(np.zeros(4), requires_grad=True)
    g = np.array([-3.0, -0.5, 0.5, 3.0])
    p.grad = Tensor(g)
    optim.clip_grad_value_(p, 1.0)
    np.testing.assert_array_equal(p.grad.numpy(), [-1, -0.5, 0.5, 1])
    np.testing.assert_array_equal(g, [-3, -0.5, 0.5, 3])


def test_clip_of_float16_does_not_overflow() -> None:
    p = Tensor(np.zeros(3, np.float16), requires_grad=True)
    p.grad = Tensor(np.array([300, 400, 0], np.float16))
    assert optim.clip_grad_norm_([p], 5.0).item() == 500.0
    np.testing.assert_allclose(p.grad.numpy(), [3, 4, 0], rtol=1e-3)


def test_clip_without_gradients_is_nothing() -> None:
    assert optim.clip_grad_norm_(parameters(), 1.0).item() == 0.0


W = Tensor(np.zeros(3), requires_grad=True)
V = Tensor(np.zeros(2), requires_grad=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.SGD([W], lr=-1), r"SGD: lr=-1 must be a number of at least 0"),
        (lambda: optim.SGD([W], lr=float("nan")), r"SGD: lr=nan must be a number"),
        (lambda: optim.SGD([W], lr="fast"), r"SGD: lr='fast' must be a number"),
        (lambda: optim.SGD([W], 0.1, momentum=-0.9), r"SGD: momentum=-0.9 must"),
        (lambda: optim.SGD([W], 0.1, weight_decay=-1), r"SGD: weight_decay=-1 must"),
        (lambda: optim.SGD([W], 0.1, nesterov=True), r"nesterov=True needs a momentum above 0"),
        (
            lambda: optim.SGD([W], 0.1, momentum=0.9, dampening=0.1, nesterov=True),
            r"no dampening, but momentum=0.9 and dampening=0.1",
        ),
        (lambda: optim.Adam([W], eps=-1), r"Adam: eps=-1 must"),
        (lambda: optim.Adam([W], betas=(0.9, 1.0)), r"Adam: betas=1.0 must be .* below 1"),
        (lambda: optim.Adam([W], betas=0.9), r"Adam: betas=0.9 must be two numbers"),
        (lambda: optim.RMSprop([W], alpha=-0.1), r"RMSprop: alpha=-0.1 must"),
        (lambda: optim.SGD([], 0.1), r"SGD: there are no parameters; pass model.parameters"),
        (lambda: optim.SGD(W, 0.1), r"SGD: params is one Tensor; pass model.param"),
        (lambda: optim.SGD([W, V, W], 0.1), r"a parameter of shape \(3,\) is given twice"),
        (lambda: optim.SGD([{"params": [W]}, {"params": W}], 0.1), r"given twice"),
        (lambda: optim.SGD([{"params": []}], 0.1), r"SGD: group 0 has no parameters"),
        (lambda: optim.SGD([{"params": [W], "lrate": 1}], 0.1), r"has an unknown lrate; its opt"),
        (lambda: optim.SGD([{"params": [W], "lr": -1}], 0.1), r"lr=-1 must"),
        (lambda: optim.SGD([{"params": [W]}, V], 0.1), r"group 1 must be a dict with 'params'"),
        (lambda: optim.SGD([W + 1], 0.1), r"\(3,\) is the result of an operation"),
        (lambda: optim.SGD([np.zeros(3)], 0.1), r"must be a floating-point Tensor"),
        (lambda: optim.clip_grad_norm_([W], -1), r"max_norm=-1 must be at least 0"),
        (lambda: optim.clip_grad_norm_([W], 1, 0), r"norm_type=0 above 0"),
        (lambda: optim.clip_grad_value_([W], -1), r"clip_value=-1 must be at least 0"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_states_of_something_else_change_nothing() -> None:
    params = parameters()
    opt = optim.Adam(params, 0.1)
    give_gradients(params, np.random.default_rng(0))
    opt.step()
    before = opt.state_dict()
    sgd = optim.SGD(params, 0.1, momentum=0.9)
    sgd.step()
    fewer = optim.Adam(params[:2], 0.1)
    with pytest.raises(ArgumentError, match="parameter 0 has momentum_buffer of shape"):
        opt.load_state_dict(sgd.state_dict())
    with pytest.raises(ArgumentError, match=r"groups of \[2\] parameters, this optimizer of \[4\]"):
        opt.load_state_dict(fewer.state_dict())
    with pytest.raises(ArgumentError, match="lacks 'state' or 'param_groups'"):
        opt.load_state_dict({})
    wrong = opt.state_dict()
    wrong["state"]["0"]["exp_avg"] = np.zeros((4, 3))
    with pytest.raises(ArgumentError, match=r"exp_avg of shape \(4, 3\)"):
        opt.load_state_dict(wrong)
    np.testing.assert_equal(opt.state_dict(), before)
