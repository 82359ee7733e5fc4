"""Every optimizer that torch ships: kept columns step as if nothing had happened, new ones take no leap."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from glora import resize_lora_layer
from numerical.test_resize import D_IN, D_OUT, RANK, lora_model

OPTIMIZERS = {
    "Adadelta": dict(lr=1.0),
    "Adafactor": dict(lr=1e-2),
    "Adagrad": dict(lr=1e-2),
    "Adam": dict(lr=1e-2),
    "Adam-amsgrad": dict(lr=1e-2, amsgrad=True),
    "AdamW": dict(lr=1e-2, weight_decay=0.0),
    "Adamax": dict(lr=1e-2),
    "ASGD": dict(lr=1e-2, t0=2),
    "Muon": dict(lr=1e-2),
    "NAdam": dict(lr=1e-2),
    "RAdam": dict(lr=1e-2),
    "RMSprop": dict(lr=1e-2),
    "RMSprop-centered": dict(lr=1e-2, centered=True, momentum=0.9),
    "Rprop": dict(lr=1e-2),
    "SGD": dict(lr=1e-2),
    "SGD-momentum": dict(lr=1e-2, momentum=0.9),
}
# Their update of one element depends on the whole matrix: Adafactor's clipping, Muon's orthogonalization.
COUPLED = {"Adafactor", "Muon"}
# What a new column begins with, where it is not the mean of the kept columns'; written out once more, so that a slip in glora's
# own table shows.
AT_ZERO = {"exp_avg", "momentum_buffer", "grad_avg", "prev"}
AT_THE_COLUMN = {"ax"}
NO_ELEMENT_STATE = {"LBFGS", "SparseAdam", "Optimizer"}  # refused by name; takes sparse gradients only; the base class


def make(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return getattr(torch.optim, name.split("-", maxsplit=1)[0])(parameters, **OPTIMIZERS[name])


def factors(layer: nn.Module) -> list[nn.Parameter]:
    return [layer.lora_A["default"].weight, layer.lora_B["default"].weight]


def give_gradients(layer: nn.Module, seed: int) -> None:
    """The same numbers for the same column, however many columns there are."""
    A, B = factors(layer)
    generator = torch.Generator().manual_seed(seed)
    of_A = torch.randn(16, D_IN, generator=generator)
    of_B = torch.randn(16, D_OUT, generator=generator)
    A.grad, B.grad = of_A[: A.shape[0]].clone(), of_B[: B.shape[1]].T.contiguous()


def trained(name: str, steps: int = 20) -> tuple[nn.Module, torch.optim.Optimizer]:
    _, layer = lora_model()
    optimizer = make(name, factors(layer))
    for seed in range(steps):
        give_gradients(layer, seed)
        optimizer.step()
    return layer, optimizer


def test_every_optimizer_of_torch_is_covered() -> None:
    shipped = {
        name
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    }
    assert shipped == {name.split("-")[0] for name in OPTIMIZERS} | NO_ELEMENT_STATE


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rank", [2, 4, 7])
def test_kept_columns_step_as_without_resize(name: str, rank: int) -> None:
    layer, optimizer = trained(name)
    twin, twin_optimizer = copy.deepcopy((layer, optimizer))
    resize_lora_layer(layer, rank, model=None, optimizer=optimizer, keep="first")
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in factors(layer)]
    assert set(optimizer.state) <= set(factors(layer))
    for parameter in factors(layer):
        for key, value in optimizer.state[parameter].items():
            if torch.is_tensor(value) and value.dim() and key not in ("row_var", "col_var"):
                assert value.shape == parameter.shape, key
    for seed in range(100, 105):
        for x, o in ((layer, optimizer), (twin, twin_optimizer)):
            give_gradients(x, seed)
            o.step()
    (A, B), (twin_A, twin_B) = factors(layer), factors(twin)
    kept = min(rank, RANK)
    if name in COUPLED and rank != RANK:
        assert torch.isfinite(A).all()
        assert torch.isfinite(B).all()
        return
    torch.testing.assert_close(A[:kept], twin_A[:kept], rtol=0, atol=0)
    torch.testing.assert_close(B[:, :kept], twin_B[:, :kept], rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_new_columns_start_with_what_their_kind_says(name: str) -> None:
    layer, optimizer = trained(name)
    before = [{k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)} for p in factors(layer)]
    resize_lora_layer(layer, 7, model=None, optimizer=optimizer, keep="first")
    for dim, (old, parameter) in enumerate(zip(before, factors(layer))):
        for key, value in optimizer.state[parameter].items():
            if not torch.is_tensor(value) or value.shape != parameter.shape:
                continue
            added, column = value.narrow(dim, RANK, 7 - RANK), parameter.detach().narrow(dim, RANK, 7 - RANK)
            expected = old[key].mean(dim, keepdim=True).expand_as(added)
            if key in AT_ZERO | AT_THE_COLUMN:
                expected = column if key in AT_THE_COLUMN else torch.zeros_like(added)
            torch.testing.assert_close(added, expected, msg=key)


def give_equal_gradients(layer: nn.Module) -> None:
    """±1 in every element, the same signs at every step: then only what a column starts with tells it from others."""
    for parameter in factors(layer):
        rows = torch.arange(parameter.shape[0])[:, None] + torch.arange(parameter.shape[1])
        parameter.grad = torch.where(rows % 2 == 0, 1.0, -1.0)


def updates(layer: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One step, as (sizes of the kept columns' updates, of the new ones') for A and for B."""
    before = [p.detach().clone() for p in factors(layer)]
    give_equal_gradients(layer)
    optimizer.step()
    A, B = ((p.detach() - old).abs() for p, old in zip(factors(layer), before))
    return [(A[:RANK], A[RANK:]), (B[:, :RANK], B[:, RANK:])]


def grown(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    _, layer = lora_model()
    optimizer = make(name, factors(layer))
    for _ in range(300):
        give_equal_gradients(layer)
        optimizer.step()
    resize_lora_layer(layer, 8, model=None, optimizer=optimizer)
    return layer, optimizer


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "Muon"])
def test_new_columns_take_no_leap(name: str) -> None:
    """If all gradients are of one size, none of a new column's first 100 updates exceeds a kept column's."""
    layer, optimizer = grown(name)
    for step in range(100):
        for kept, new in updates(layer, optimizer):
            assert kept.max() > 0
            assert new.max() <= 1.001 * kept.max(), step


def test_svd_carries_moments_by_the_chain_rule() -> None:
    """If B' = B·T and A' = U·A, the first moment of B' is that of B times Uᵀ: both are linear in ∂L/∂Δ."""
    torch.manual_seed(3)
    _, layer = lora_model()
    optimizer = torch.optim.Adam(factors(layer), lr=0.0)
    G = torch.randn(D_OUT, D_IN)
    A, B = (p.detach().clone() for p in factors(layer))
    for parameter, gradient in zip(factors(layer), (B.T @ G, G @ A.T)):
        parameter.grad = gradient
    optimizer.step()
    resize_lora_layer(layer, 2, model=None, optimizer=optimizer, keep="svd")
    new_A, new_B = (p.detach() for p in factors(layer))
    torch.testing.assert_close(optimizer.state[factors(layer)[0]]["exp_avg"], 0.1 * new_B.T @ G, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(optimizer.state[factors(layer)[1]]["exp_avg"], 0.1 * G @ new_A.T, rtol=1e-4, atol=1e-5)
    # where the gradients of the old columns were uncorrelated, the mean square of Σ t_i·g_i is Σ t_i²·v_i
    T_A = torch.linalg.lstsq(A.T, new_A.T).solution.T  # A' = T_A·A
    T_B = torch.linalg.lstsq(B, new_B).solution  # B' = B·T_B
    for parameter, expected in zip(
        factors(layer), (T_B.T.square() @ (B.T @ G).square(), (G @ A.T).square() @ T_A.T.square())
    ):
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg_sq"], 0.001 * expected, rtol=1e-3, atol=1e-6)


def test_no_group_is_added_and_order_is_kept() -> None:
    _, layer = lora_model()
    A, B = factors(layer)
    other = nn.Parameter(torch.zeros(3))
    last = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([{"params": [other, A, last]}, {"params": [B], "lr": 0.5}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    optimizer.step()
    resize_lora_layer(layer, 6, model=None, optimizer=optimizer)
    first, second = optimizer.param_groups
    assert first["params"][0] is other
    assert first["params"][1] is layer.lora_A["default"].weight
    assert first["params"][2] is last
    assert second["params"][0] is layer.lora_B["default"].weight
    resize_lora_layer(layer, 0, model=None, optimizer=optimizer)
    assert [len(g["params"]) for g in optimizer.param_groups] == [3, 1], "an empty group could not be resumed"
    assert [p.numel() for p in (A, B)] == [0, 0]
    assert set(optimizer.state).isdisjoint([A, B])
    optimizer.step()
    scheduler.step()
    assert second["lr"] == pytest.approx(0.45)


def test_what_cannot_follow_is_refused_before_anything_changes() -> None:
    _, layer = lora_model()
    with pytest.raises(ValueError, match="LBFGS .*use AdamW"):
        resize_lora_layer(layer, 6, model=None, optimizer=torch.optim.LBFGS(factors(layer)))
    optimizer = torch.optim.SGD(factors(layer))
    optimizer.state[factors(layer)[0]]["shampoo"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"SGD .*'shampoo' .*\(3, 3\)"):
        resize_lora_layer(layer, 6, model=None, optimizer=optimizer)
    assert layer.r["default"] == RANK
