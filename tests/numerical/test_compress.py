"""The cut of a trained adapter, against a global cut through PEFT's own Δ by brute force, for every kind of layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.conversion import convert_to_lora

from glora import compress_adapter
from glora.lora.discovery import find_matrices
from glora.lora.matrix import LoraMatrix
from integration.adapters.layer_kinds import WIDTH, linear
from numerical.test_kinds_of_layers import KINDS, RANK, kinds, matrices_of, of_rank, trained
from unit.test_export import base as two_layers
from unit.test_export import lora as two_ranks
from unit.test_export import trained as filled


def deltas(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's Δ of each matrix that has the adapter, (E, d_out, d_in)."""
    found = find_matrices(model, "default", resizable=False, trainable=False)[1]
    return {name: matrices_of(matrix.layer, name) for name, matrix in found.items()}


def costs_of(model: torch.nn.Module) -> dict[str, int]:
    return {name: matrix.cost for name, matrix in find_matrices(model, resizable=False, trainable=False)[1].items()}


def brute_force(update: dict[str, torch.Tensor], budget: float, costs: dict[str, int], low: int) -> dict[str, int]:
    """Directions by worth, one after another, each matrix in order, until the next does not fit."""
    ranks = dict.fromkeys(update, low)
    left = budget - sum(low * costs[name] for name in update)
    values = {name: torch.linalg.svdvals(delta).square().sum(0)[:RANK] for name, delta in update.items()}
    worth = sorted(((-(v / costs[n]).item(), n) for n, vs in values.items() for v in vs[low:]))
    closed = set()
    for _, name in worth:
        if costs[name] > left:
            closed.add(name)
        elif name not in closed:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def truncated(delta: torch.Tensor, rank: int) -> torch.Tensor:
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    return U[..., :rank] * S[..., None, :rank] @ Vh[..., :rank, :]


def test_a_uniform_cut_is_what_pefts_conversion_makes() -> None:
    """`convert_to_lora` with an int decomposes the whole Δ; the compress benchmark counts both as one."""
    model, _ = trained("Linear")
    _, tensors = convert_to_lora(model, 2)
    compress_adapter(model, average_rank=2, uniform=True)
    for name, delta in deltas(model).items():
        A, B = (tensors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        torch.testing.assert_close(B @ A, delta[0], rtol=1e-4, atol=1e-5)


@kinds
@pytest.mark.parametrize("budget", ["parameters", "rank"])
def test_against_the_global_cut_by_brute_force(kind: str, budget: str, tmp_path: Path) -> None:
    """The model and the folder that PEFT loads agree with it; scalings differ between the matrices."""
    model, layers = trained(kind)
    for number, layer in enumerate(layers.values()):
        layer.lora_alpha["default"] = 4 * (number + 1)
        layer.set_scale("default", 1)
    config = model.peft_config["default"]
    config.alpha_pattern = {f"^{name}": layer.lora_alpha["default"] for name, layer in layers.items()}
    before, low = deltas(model), 1 if "experts" in kind else 0
    prices = costs_of(model) if budget == "parameters" else dict.fromkeys(before, 1)
    expected = brute_force(before, 1.7 * sum(prices.values()), prices, low)
    assert len(set(expected.values())) > 1

    saved = compress_adapter(model, average_rank=1.7, budget=budget, output=tmp_path)
    assert deltas(model).keys() == before.keys(), "with an output, the model stays"
    live = compress_adapter(model, average_rank=1.7, budget=budget)
    loaded = PeftModel.from_pretrained(KINDS[kind][0](), str(tmp_path))
    assert saved.ranks == live.ranks == expected
    assert saved.path == tmp_path
    kept = sum(truncated(delta, expected[name]).square().sum() for name, delta in before.items())
    assert saved.energy == pytest.approx((kept / sum(d.square().sum() for d in before.values())).item(), rel=1e-4)
    for found in (deltas(model), deltas(loaded)):
        assert found.keys() == {name for name, rank in expected.items() if rank}
        for name, delta in found.items():
            torch.testing.assert_close(delta, truncated(before[name], expected[name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_what_else_belongs_to_lora_stays(fields: dict[str, Any], tmp_path: Path) -> None:
    """The function is that of the truncated B·A, with DoRA's magnitude and biases as they were: from model and folder."""
    model = filled(two_ranks(**fields))
    compress_adapter(model, average_rank=1, output=tmp_path / "from model")
    model.save_pretrained(tmp_path / "saved")
    compress_adapter(tmp_path / "saved", average_rank=1, output=tmp_path / "from folder")
    twin = PeftModel.from_pretrained(two_layers(), str(tmp_path / "saved"))
    made = compress_adapter(model, average_rank=1)
    for name, matrix in find_matrices(twin, "default", resizable=False, trainable=False)[1].items():
        rank, s = made.ranks[name], matrix.scaling
        delta = truncated(matrix.B.detach() @ matrix.A.detach() * s, rank)
        with torch.no_grad():
            U, S, Vh = torch.linalg.svd(delta / s, full_matrices=False)
            matrix.B.copy_((U * S)[:, : matrix.rank])
            matrix.A.copy_(Vh[: matrix.rank])
    x = torch.linspace(-1, 1, 18).view(3, 6)
    expected = twin.eval()(x)
    for folder in ("from model", "from folder"):
        loaded = PeftModel.from_pretrained(two_layers(), str(tmp_path / folder)).eval()
        torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-5)


@kinds
def test_all_the_energy_changes_nothing(kind: str) -> None:
    """A direction without a singular value goes: the second matrix has two of them."""
    model, layers = trained(kind)
    with torch.no_grad():
        A, _ = of_rank(list(layers.values())[1])
        A[:, 3] = A[:, 2]
        A[:, 1] = 0
    before = deltas(model)
    made = compress_adapter(model, energy=1.0)
    assert list(made.ranks.values())[:3] == [RANK, RANK - 2, RANK]
    assert made.energy == 1
    for name, delta in deltas(model).items():
        torch.testing.assert_close(delta, before[name], rtol=1e-5, atol=1e-5)
        if made.ranks[name] == RANK:
            assert torch.equal(delta, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_cut_in_float32_and_stays_half(dtype: torch.dtype, tmp_path: Path) -> None:
    model, _ = trained("Linear")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    exact = {name: (m.B.float() @ m.A.float()).detach() * m.scaling for name, m in find_matrices(model)[1].items()}
    made = compress_adapter(model, parameters=0.5, output=tmp_path)
    loaded = PeftModel.from_pretrained(linear(), str(tmp_path), autocast_adapter_dtype=False)
    for name, matrix in find_matrices(loaded, resizable=False, trainable=False)[1].items():
        assert matrix.A.dtype in (dtype, torch.float32)  # PEFT follows the base model
        delta = (matrix.B.float() @ matrix.A.float()).detach() * matrix.scaling
        error = (delta - truncated(exact[name], made.ranks[name])).norm() / exact[name].norm()
        assert error < 2 * torch.finfo(dtype).eps


def test_uniform_gives_one_rank_and_its_own_best_approximation() -> None:
    model, _ = trained("Linear")
    before = deltas(model)
    made = compress_adapter(model, parameters=0.6, uniform=True)
    assert set(made.ranks.values()) == {2}, "2.4 ranks each are paid for"
    for name, delta in deltas(model).items():
        torch.testing.assert_close(delta, truncated(before[name], 2), rtol=1e-4, atol=1e-4)
    values = {name: torch.linalg.svdvals(delta[0]).square()[:RANK] for name, delta in before.items()}
    share = sum(v[:2].sum() for v in values.values()) / sum(v.sum() for v in values.values())
    assert made.energy == pytest.approx(share.item(), rel=1e-4)
    model, _ = trained("Linear")
    assert compress_adapter(model, energy=share.item() + 1e-4, uniform=True).ranks == dict.fromkeys(made.ranks, 3)


def test_no_smaller_adapter_has_the_energy_that_was_asked_for(tmp_path: Path) -> None:
    model, _ = trained("Linear")
    made = compress_adapter(model, energy=0.9, output=tmp_path / "energy")
    assert made.energy >= 0.9
    fewer = made.parameters - 2 * WIDTH
    assert compress_adapter(model, parameters=fewer, output=tmp_path / "fewer").energy < 0.9


@pytest.mark.parametrize("kind", ["Linear", "Embedding"])
def test_directions_that_were_not_learned_can_be_trained(kind: str, tmp_path: Path) -> None:
    """Train them in the model, and from the folder."""
    model, layers = trained(kind)
    with torch.no_grad():
        LoraMatrix("first", layers["first"]).zero_factor.zero_()
    for output in (tmp_path, None):
        made = compress_adapter(model, average_rank=1, min_rank=1, output=output)
    assert made.ranks["first"] == 1
    for each in (model, PeftModel.from_pretrained(KINDS[kind][0](), str(tmp_path), is_trainable=True)):
        matrix = find_matrices(each)[1]["first"]
        assert not matrix.zero_factor.any()
        assert matrix.random_factor.any()
        assert matrix.zero_factor.requires_grad


@kinds
def test_the_factors_do_not_matter(kind: str) -> None:
    """(B·M)·(M⁻¹·A) is cut as B·A is."""
    results = []
    for rotated in (False, True):
        model, layers = trained(kind)
        M = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(RANK)
        for layer in layers.values() if rotated else ():
            A, B = of_rank(layer)
            A.copy_(torch.linalg.inv(M) @ A)
            B.copy_(torch.einsum("dre,rk->dke", B, M))
        made = compress_adapter(model, parameters=0.4)
        results.append((made.ranks, deltas(model)))
    assert results[0][0] == results[1][0]
    for name, delta in results[0][1].items():
        torch.testing.assert_close(delta, results[1][1][name], rtol=1e-3, atol=1e-3)
