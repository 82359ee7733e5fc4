"""Norms, shrinking and Adam's state of each kind of layer, against the base weight's own gradient and PEFT's own Δ.

The layouts are written out here once more, as PEFT documents them, so that a slip in glora's own does not hide: row e·r + i of
an A belongs to expert e and rank i, column i·E + e of a B to rank i and expert e.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from glora import resize_lora_layer
from glora.lora.discovery import find_matrices
from glora.lora.matrix import LoraMatrix
from glora.scoring.gradient_norms import GradientNorms
from glora.scoring.sketch_ratios import SketchRatios
from glora.scoring.spectrum import spectra
from integration.adapters.layer_kinds import (
    WIDTH,
    Mixture,
    ThreeLayers,
    conv1d,
    conv2d,
    conv3d,
    indices,
    linear,
    lora,
    of,
    seeded,
    tables,
)

RANK = 4
EXPERT_TARGETS = dict(target_modules=[], target_parameters=["experts.up_proj", "experts.down_proj"])
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], LoraConfig], Callable[[], dict[str, Any]]]] = {
    "Linear": (linear, lora(), of(6, WIDTH)),
    "Conv1D": (seeded(lambda: ThreeLayers(lambda: Conv1D(WIDTH, WIDTH))), lora(fan_in_fan_out=True), of(6, WIDTH)),
    "Embedding": (tables, lora(), indices),
    "Conv1d": (conv1d, lora(), of(6, WIDTH, 5)),
    "Conv2d": (conv2d, lora(), of(6, WIDTH, 5, 5)),
    "Conv3d": (conv3d, lora(), of(6, WIDTH, 3, 3, 3)),
    "experts (E, d_out, d_in)": (seeded(lambda: Mixture(False)), lora(**EXPERT_TARGETS), of(6, WIDTH)),
    "experts (E, d_in, d_out)": (seeded(lambda: Mixture(True)), lora(**EXPERT_TARGETS), of(6, WIDTH)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def factors(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    return LoraMatrix("", layer).factors


def adapted(kind: str) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    base, config, inputs = KINDS[kind]
    model = get_peft_model(base(), config())
    layers = {name: matrix.layer for name, matrix in find_matrices(model)[1].items()}
    return model, layers, inputs()


def matrices(layers: dict[str, Any]) -> list[LoraMatrix]:
    return [LoraMatrix(name, layer) for name, layer in layers.items()]


def trained(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """As after some training: both factors are random, and the columns differ in size, in each expert otherwise."""
    sizes = torch.tensor([[0.3, 3.0, 0.5, 1.0], [4.0, 0.2, 0.3, 0.5], [0.5, 0.3, 6.0, 0.1]]).T
    model, layers, _ = adapted(kind)
    with torch.no_grad():
        for layer in layers.values():
            for factor in factors(layer):
                factor.normal_()
            A, B = of_rank(layer)
            A.div_(A.norm(dim=2, keepdim=True))
            B.div_(B.norm(dim=0)).mul_(sizes[:, : B.shape[2]])
    return model, layers


def of_rank(layer: nn.Module, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of A as (E, rank, d_in) and of B as (d_out, rank, E)."""
    E = layer.num_experts if isinstance(layer, ParamWrapper) else 1
    A, B = (factor.detach() for factor in factors(layer))
    return A.view(E, rank, -1), B.view(B.shape[0], rank, E)


def kind_is_linear(layer: nn.Module) -> bool:
    return isinstance(layer.lora_A["default"], nn.Linear)


def base_weight(layer: nn.Module) -> torch.Tensor:
    return layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight


@kinds
def test_delta_is_unbiased_over_initializations(kind: str) -> None:
    """W and Δ are added, so the gradient of the base weight is G itself."""
    model, layers, inputs = adapted(kind)
    for layer in layers.values():
        base_weight(layer).requires_grad_(True)
    norms = GradientNorms(matrices(layers), "delta")
    squares = []
    for _ in range(150):
        for layer in layers.values():
            layer.reset_lora_parameters("default", True)
        model.zero_grad()
        model(**inputs).square().mean().backward()
        squares.append(norms.read().square())
    exact = torch.stack([base_weight(layer).grad.norm() for layer in layers.values()]).square()
    torch.testing.assert_close(torch.stack(squares).mean(0), exact, rtol=0.15, atol=0)


@kinds
def test_spectra_are_those_of_peft_s_own_delta(kind: str) -> None:
    _, layers = trained(kind)
    for number, layer in enumerate(layers.values()):
        layer.scaling["default"] = 1.5 + number
    found = spectra(matrices(layers))
    assert list(found) == list(layers)
    for name, layer in layers.items():
        expected = torch.linalg.svdvals(matrices_of(layer, name))[:, :RANK].square().sum(0).sqrt()
        torch.testing.assert_close(torch.tensor(found[name]), expected, rtol=1e-4, atol=1e-5)


@kinds
def test_shrinking_keeps_the_columns_whose_update_is_largest(kind: str) -> None:
    _, layers = trained(kind)
    for layer in layers.values():
        whole = copy.deepcopy(layer)
        parts = []
        for i in range(RANK):
            of_rank(layer)[0][:, torch.arange(RANK) != i] = 0
            parts.append(layer.get_delta_weight("default").detach())
            for factor, kept in zip(factors(layer), factors(whole)):
                factor.data.copy_(kept.data)
        largest = sorted(range(RANK), key=lambda i: -parts[i].norm().item())[:2]
        assert set(largest) != {0, 1}, "the case must tell the largest from the first"
        resize_lora_layer(layer, 2, model=None)
        if "default" in layer.lora_A:
            down, up = layer.lora_A["default"], layer.lora_B["default"]
            says = (down.out_features, up.in_features) if kind_is_linear(layer) else (down.out_channels, up.in_channels)
            assert says == (down.weight.shape[0], up.weight.shape[1])
        torch.testing.assert_close(layer.get_delta_weight("default"), sum(parts[i] for i in largest))


@kinds
def test_svd_leaves_the_discarded_singular_values(kind: str) -> None:
    """The error is that of each expert in a stack."""
    _, layers = trained(kind)
    for name, layer in layers.items():
        before = matrices_of(layer, name)
        resize_lora_layer(layer, 2, model=None, keep="svd")
        error = (matrices_of(layer, name) - before).norm()
        discarded = torch.linalg.svdvals(before)[:, 2:].norm()
        torch.testing.assert_close(error, discarded, rtol=1e-4, atol=1e-5)


def matrices_of(layer: nn.Module, name: str) -> torch.Tensor:
    """PEFT's Δ of each expert, or of the one matrix: three dimensions."""
    delta, matrix = layer.get_delta_weight("default").detach(), LoraMatrix(name, layer)
    if not isinstance(layer, ParamWrapper):
        return delta.flatten(1)[None]
    stack = delta if delta.shape[0] == matrix.experts else delta.movedim(-1, 0)
    assert sorted(stack.shape[1:]) == sorted(matrix.shape)
    return stack


@kinds
def test_adam_goes_on_for_kept_columns(kind: str) -> None:
    """The next step on a kept column is the one it would have made without the resize."""
    _, layers = trained(kind)
    for layer in layers.values():
        twin = copy.deepcopy(layer)
        optimizers = {}
        for x in (layer, twin):
            optimizers[x] = torch.optim.Adam(factors(x), lr=0.1)
            generator = torch.Generator().manual_seed(7)
            for _ in range(3):
                for factor in factors(x):
                    factor.grad = torch.randn(factor.shape, generator=generator)
                optimizers[x].step()
        resize_lora_layer(layer, 3, model=None, optimizer=optimizers[layer], keep="first")
        gradients = [torch.randn_like(factor) for factor in factors(twin)]
        for factor, gradient in zip(factors(twin), gradients):
            factor.grad = gradient
        E = twin.num_experts if isinstance(twin, ParamWrapper) else 1
        of_A, of_B = gradients[0].view(E, RANK, -1)[:, :3], gradients[1].view(-1, RANK, E)[:, :3]
        for factor, gradient in zip(factors(layer), (of_A, of_B)):
            factor.grad = gradient.reshape(factor.shape)
        for optimizer in optimizers.values():
            optimizer.step()
        for kept, old in zip(of_rank(layer, 3), of_rank(twin)):
            torch.testing.assert_close(kept, old[:, :3])


def test_an_A_that_follows_the_inputs_needs_the_exact_signal() -> None:
    """As EVA initializes it: the sketch G·Aᵀ then shows nearly all of G, and not the share that a random A would."""
    model, layers, inputs = adapted("Linear")
    layers = {"first": layers["first"]}
    with torch.no_grad():
        layers["first"].lora_A["default"].weight.copy_(torch.linalg.svd(inputs["x"]).Vh[:RANK])
    base_weight(layers["first"]).requires_grad_(True)
    ratios = SketchRatios(matrices(layers), torch.device("cpu"))
    ratios.arm()
    model(**inputs).square().mean().backward()
    ratios.measure()
    ratios.disarm()
    exact = base_weight(layers["first"]).grad.norm().item()
    norms = GradientNorms(matrices(layers), "delta_exact")
    assert norms.read(ratios.ratios).item() == pytest.approx(exact, rel=1e-5)
    assert norms.read().item() > 1.3 * exact
