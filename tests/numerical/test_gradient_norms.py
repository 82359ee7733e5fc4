"""The norms against a gradient derived by hand, and against the exact norm on a real encoder."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from glora.lora.discovery import find_matrices
from glora.scoring.gradient_norms import GradientNorms


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(5, 7, bias=False)
        self.wide = nn.Linear(40, 7, bias=False)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.narrow(x) + self.wide(z)


def peft_model(alpha: float = 6.0, **config: object) -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(TwoLinears(), LoraConfig(r=3, lora_alpha=alpha, target_modules=["narrow", "wide"], **config))


def test_against_a_gradient_derived_by_hand() -> None:
    """L = ½‖(W + s·B·A)x − t‖² has ∂L/∂Δ = (y − t)·xᵀ, so ∂L/∂B = s·(y − t)·(A·x)ᵀ."""
    model = peft_model(alpha=6.0)
    x, z, target = torch.randn(1, 5), torch.randn(1, 40), torch.randn(1, 7)
    y = model(x, z)
    (0.5 * (y - target).square().sum()).backward()

    _, matrices = find_matrices(model)
    error, scaling = (y - target).detach(), 6.0 / 3
    for layer_name, given in (("narrow", x), ("wide", z)):
        A = matrices[layer_name].A.detach()
        of_B = scaling * (error.norm() * (A @ given[0]).norm()).item()
        k = list(matrices).index(layer_name)
        assert GradientNorms(matrices.values(), "lora_b").read()[k].item() == pytest.approx(of_B, rel=1e-5)
        corrected = of_B * math.sqrt(given.shape[1]) / (scaling * A.norm().item())
        assert GradientNorms(matrices.values(), "delta").read()[k].item() == pytest.approx(corrected, rel=1e-5)


def test_delta_is_unbiased_over_initializations_and_does_not_depend_on_rank_or_scaling() -> None:
    x, z, target = torch.randn(16, 5), torch.randn(16, 40), torch.randn(16, 7)
    base = TwoLinears()
    squares: dict[str, list[float]] = {"narrow": [], "wide": []}
    for seed in range(300):
        torch.manual_seed(seed)
        rank = 2 + seed % 4
        config = LoraConfig(r=rank, lora_alpha=1.0 + seed % 3, target_modules=["narrow", "wide"])
        model = get_peft_model(base, config)
        y = model(x, z)
        (0.5 * (y - target).square().sum()).backward()
        _, matrices = find_matrices(model)
        for layer_name, norm in zip(matrices, GradientNorms(matrices.values(), "delta").read().tolist()):
            squares[layer_name].append(norm**2)
        base = model.unload()
    error = (y - target).detach()
    for layer_name, given in (("narrow", x), ("wide", z)):
        exact = (error.T @ given).norm().item() ** 2
        mean = sum(squares[layer_name]) / len(squares[layer_name])
        assert mean == pytest.approx(exact, rel=0.1)


class ExactNorms:
    """‖∂L/∂Δ‖_F itself: Σ over the batch of (output gradient)ᵀ·input, from hooks on the LoRA layers."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        for name, layer in layers.items():
            layer.register_forward_hook(self._hook(name))

    def _hook(self, name: str):
        def forward(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            given = inputs[0].detach().flatten(0, -2)
            output.register_hook(lambda grad: self.gradients.__setitem__(name, grad.flatten(0, -2).T @ given))

        return forward


@pytest.mark.encoder
@pytest.mark.slow
def test_against_the_exact_norm_on_the_real_encoder(embedded_encoder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(embedded_encoder)
    base = AutoModelForSequenceClassification.from_pretrained(embedded_encoder, num_labels=2)
    names = [n for n, m in base.named_modules() if isinstance(m, nn.Linear) and ".layer." in n]
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=names, modules_to_save=["classifier"]))
    _, matrices = find_matrices(model)
    assert len(matrices) == 36
    corrected, raw = GradientNorms(matrices.values(), "delta"), GradientNorms(matrices.values(), "lora_b")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    subjects = [
        "A bird",
        "The train",
        "My sister",
        "Nobody here",
        "An old letter",
        "The rain",
        "This shop",
        "A committee",
    ]
    predicates = ["left an hour late", "was read twice", "sells only bread", "came to the meeting", "sings in the tree"]
    draw = random.Random(0)
    exact = ExactNorms({name: matrix.layer for name, matrix in matrices.items()})
    for _ in range(3):  # the first steps: from then on A aligns with G, and the ratio rises
        pairs = [[f"{draw.choice(subjects)} {draw.choice(predicates)}." for _ in range(2)] for _ in range(24)]
        batch = tokenizer(*map(list, zip(*pairs)), padding=True, return_tensors="pt")
        batch["labels"] = torch.tensor([int(first.split()[-1] == second.split()[-1]) for first, second in pairs])
        model(**batch).loss.backward()
        truth = torch.stack([exact.gradients[n].norm() for n in matrices])
        estimate = corrected.read()
        assert spearmanr(estimate, truth).statistic > 0.95
        assert spearmanr(estimate, truth).statistic > spearmanr(raw.read(), truth).statistic
        assert 0.9 < (estimate / truth).mean().item() < 1.1
        optimizer.step()
        optimizer.zero_grad()
