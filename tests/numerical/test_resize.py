"""A resize keeps the function, but for the columns that shrinking drops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glora import resize_lora_layer
from glora.lora.discovery import find_matrices

D_IN, D_OUT, RANK = 12, 9, 4


def lora_model(dtype: torch.dtype = torch.float32, **config: object) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(D_IN, D_OUT)).to(dtype)
    settings = dict(r=RANK, lora_alpha=6, target_modules=["0"]) | config
    model = get_peft_model(base, LoraConfig(**settings), autocast_adapter_dtype=False)
    layer = find_matrices(model)[1]["0"].layer
    with torch.no_grad():  # as after some training: B is no longer zero, and columns differ in size
        layer.lora_B["default"].weight.normal_().mul_(torch.tensor([0.1, 3.0, 0.5, 1.0]).to(dtype))
    return model, layer


def product(layer: nn.Module) -> torch.Tensor:
    return (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [5, 9])
def test_growth_changes_no_output(dtype: torch.dtype, rslora: bool, rank: int) -> None:
    model, layer = lora_model(dtype, use_rslora=rslora)
    x = torch.randn(3, D_IN, dtype=dtype)
    before, scaling = model(x), layer.scaling["default"]
    resize_lora_layer(layer, rank, model=None)
    assert layer.lora_A["default"].weight.shape == (rank, D_IN)
    assert layer.lora_B["default"].weight.shape == (D_OUT, rank)
    assert layer.lora_A["default"].weight.dtype == dtype
    assert layer.r["default"] == layer.lora_A["default"].out_features == layer.lora_B["default"].in_features == rank
    torch.testing.assert_close(model(x), before)
    assert layer.scaling["default"] == scaling
    layer.set_scale("default", 1)  # PEFT recomputes the scaling from alpha and r
    assert layer.scaling["default"] == pytest.approx(scaling, rel=1e-12)


def test_new_rows_are_drawn_as_lora_draws_them_and_can_be_drawn_again() -> None:
    _, layer = lora_model()
    _, twin = lora_model()
    other = copy.deepcopy(twin)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    resize_lora_layer(layer, 9, model=None, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"
    resize_lora_layer(twin, 9, model=None, generator=torch.Generator().manual_seed(5))
    resize_lora_layer(other, 9, model=None, generator=torch.Generator().manual_seed(6))
    new, again, differing = (x.lora_A["default"].weight[RANK:] for x in (layer, twin, other))
    assert torch.equal(new, again)
    assert not torch.equal(new, differing)
    bound = D_IN**-0.5  # kaiming_uniform with a = √5
    assert new.abs().max() <= bound
    assert new.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert not layer.lora_B["default"].weight[:, RANK:].any()


@pytest.mark.parametrize("keep", ["norm", "first"])
def test_kept_columns_stay_in_their_order(keep: str) -> None:
    _, layer = lora_model()
    A, B = layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()
    largest = sorted((A.norm(dim=1) * B.norm(dim=0)).argsort(descending=True)[:2].tolist())
    assert largest != [0, 1], "the case must tell `norm` from `first`"
    kept = largest if keep == "norm" else [0, 1]
    resize_lora_layer(layer, 2, model=None, keep=keep)
    assert torch.equal(layer.lora_A["default"].weight, A[kept])
    assert torch.equal(layer.lora_B["default"].weight, B[:, kept])


def test_svd_replaces_directions_that_hold_nothing_by_new_columns() -> None:
    """If B·A has rank 1, a second SVD column would be zero in A and in B, and would never learn."""
    _, layer = lora_model()
    with torch.no_grad():
        layer.lora_B["default"].weight[:, 1:] = 0
    before = product(layer)
    resize_lora_layer(layer, 3, model=None, keep="svd")
    torch.testing.assert_close(product(layer), before, rtol=1e-5, atol=1e-6)
    assert (layer.lora_A["default"].weight.norm(dim=1) > 0.1).all()

    _, untrained = lora_model()
    with torch.no_grad():
        untrained.lora_B["default"].weight.zero_()
    resize_lora_layer(untrained, 2, model=None, keep="svd")
    assert (untrained.lora_A["default"].weight.norm(dim=1) > 0.1).all()
    assert not untrained.lora_B["default"].weight.any()


def test_rank_zero_leaves_the_base_layer_and_other_adapters() -> None:
    model, layer = lora_model()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0"]))
    with torch.no_grad():
        layer.lora_B["second"].weight.normal_()
    x = torch.randn(3, D_IN)
    model.set_adapter("second")
    second = model(x)
    model.set_adapter("default")
    resize_lora_layer(layer, 0, model=None)
    torch.testing.assert_close(model(x), layer.get_base_layer()(x))
    assert layer.active_adapters == ["default"], "another adapter became active"
    model.set_adapter("second")
    torch.testing.assert_close(model(x), second)


def test_frozen_factors_stay_frozen() -> None:
    _, layer = lora_model()
    layer.lora_A["default"].weight.requires_grad_(False)
    resize_lora_layer(layer, 6, model=None)
    assert not layer.lora_A["default"].weight.requires_grad
    assert layer.lora_B["default"].weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(rank=-1), "rank=-1 .*from 0 to .* = 9"),
        (dict(rank=10), "rank=10 .*from 0 to .* = 9"),
        (dict(rank=2.0), r"rank=2.0 must be an integer"),
        (dict(rank=2, keep="norms"), "keep='norms' .*norm, svd, first; .*'norm'"),
        (dict(rank=2, adapter_name="other"), r"adapter 'other'; .*\['default'\]"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    _, layer = lora_model()
    with pytest.raises(ValueError, match=message):
        resize_lora_layer(layer, model=None, **arguments)
    assert layer.r["default"] == RANK


def test_a_rank_of_numpy_is_an_int() -> None:
    _, layer = lora_model()
    resize_lora_layer(layer, np.int64(2), model=None)
    assert type(layer.r["default"]) is int


def test_only_the_state_of_the_layer_itself_has_to_follow() -> None:
    """And only it is looked at: with every layer's, the time would grow with the square of the number of layers."""
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), LoraConfig(r=4, target_modules=["0", "1"]))
    layers = {name: matrix.layer for name, matrix in find_matrices(model)[1].items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    optimizer.state[layers["1"].lora_A["default"].weight] = {"unheard of": torch.zeros(4, 8)}
    resize_lora_layer(layers["0"], 2, model=None, optimizer=optimizer)
    assert layers["0"].r["default"] == 2
    with pytest.raises(ValueError, match="SGD keeps 'unheard of'"):
        resize_lora_layer(layers["1"], 2, model=None, optimizer=optimizer)
    assert layers["1"].r["default"] == 4
