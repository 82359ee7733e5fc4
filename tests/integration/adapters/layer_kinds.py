"""Small networks of every kind of layer, and the ways in which LoRA comes to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, initialize_lora_eva_weights, preprocess_loraga
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

WIDTH, VOCABULARY, EXPERTS = 12, 20, 3
TARGETS = ["first", "second", "third"]
ATTENTION = ["q_proj", "k_proj", "v_proj"]


# small networks


class ThreeLayers(nn.Module):
    """Three layers of one kind, one after the other, and a head; positions are averaged."""

    def __init__(self, make: Callable[[], nn.Module], times: int = 1) -> None:
        super().__init__()
        self.first, self.second, self.third = make(), make(), make()
        self.head = nn.Linear(WIDTH, 5)
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second, self.third) * self.times:
            x = torch.tanh(layer(x))
        if x.dim() > 2:
            x = x.flatten(2).mean(2)
        return self.head(x)


class ThreeTables(nn.Module):
    """Three embeddings, one for each column of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Embedding(VOCABULARY, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tables = (self.first, self.second, self.third)
        return self.head(torch.tanh(sum(table(column) for table, column in zip(tables, x.unbind(1)))))


class Experts(nn.Module):
    """A stack of experts in two parameters, as transformers keeps them: (E, d_out, d_in) or, transposed, (E, d_in, d_out)."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed  # the name that PEFT looks for
        inner = WIDTH + 4
        shapes = ((WIDTH, inner), (inner, WIDTH)) if transposed else ((inner, WIDTH), (WIDTH, inner))
        self.up_proj, self.down_proj = (nn.Parameter(torch.randn(EXPERTS, *shape) / 3) for shape in shapes)

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        up, down = (self.up_proj, self.down_proj) if self.is_transposed else (self.up_proj.mT, self.down_proj.mT)
        return torch.einsum("ebw,be->bw", torch.tanh(x @ up) @ down, weights)


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight.T).softmax(-1)


class MixtureLayer(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.router, self.experts = Router(), Experts(transposed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.experts(x, self.router(x))


class Mixture(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MixtureLayer(transposed) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.attention(x, x, x, need_weights=False)[0])


class CustomLinear(nn.Linear):
    """A layer that PEFT does not know."""


class CustomLora(LoraLinear):
    """The LoRA layer that a user registers with PEFT for it."""


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def base() -> nn.Module:
        torch.manual_seed(0)
        return make()

    return base


linear = seeded(lambda: ThreeLayers(lambda: nn.Linear(WIDTH, WIDTH)))
conv1d = seeded(lambda: ThreeLayers(lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1)))
conv2d = seeded(lambda: ThreeLayers(lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1)))
conv3d = seeded(lambda: ThreeLayers(lambda: nn.Conv3d(WIDTH, WIDTH, 3, padding=1)))
tables = seeded(ThreeTables)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCABULARY, n_positions=16, n_embd=WIDTH, n_layer=1, n_head=2, initializer_range=0.2)
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def llama(tied: bool = False, layers: int = 1, width: int = WIDTH) -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCABULARY, hidden_size=width, intermediate_size=max(width, 16), num_hidden_layers=layers)
    heads = dict(num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16)
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **tokens, initializer_range=0.2))


def tied_llama() -> nn.Module:
    return llama(tied=True)


def of(*shape: int) -> Callable[[], dict[str, Any]]:
    def inputs() -> dict[str, Any]:
        return {"x": torch.randn(*shape, generator=torch.Generator().manual_seed(2))}

    return inputs


def indices() -> dict[str, Any]:
    return {"x": torch.randint(VOCABULARY, (6, 3), generator=torch.Generator().manual_seed(2))}


def text() -> dict[str, Any]:
    tokens = torch.randint(3, VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(2))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}


def lora(**fields: Any) -> Callable[[], LoraConfig]:
    def config() -> LoraConfig:
        return LoraConfig(**dict(r=4, lora_alpha=8, target_modules=list(TARGETS)) | fields)

    return config


def causal(targets: list[str] = ATTENTION, **fields: Any) -> Callable[[], LoraConfig]:
    return lora(target_modules=list(targets), task_type="CAUSAL_LM", **fields)


# how LoRA gets there, where it is not by get_peft_model alone


def add_adapter(base: nn.Module, config: LoraConfig) -> nn.Module:
    base.add_adapter(config)
    return base


def load_adapter(base: nn.Module, folder: Path) -> nn.Module:
    base.load_adapter(str(folder))
    return base


def with_eva(base: nn.Module, config: LoraConfig) -> nn.Module:
    model = get_peft_model(base, config)
    initialize_lora_eva_weights(model, [text()], show_progress_bar=False)
    assert len({m.r["default"] for m in model.modules() if hasattr(m, "lora_A")}) > 1, "EVA must have redistributed"
    return model


def with_lora_ga(base: nn.Module, config: LoraConfig) -> nn.Module:
    preprocess_loraga(base, config, train_step=lambda: base(**of(6, WIDTH)()).square().mean().backward())
    return get_peft_model(base, config)


def with_corda(base: nn.Module, config: LoraConfig) -> nn.Module:
    for name in TARGETS:  # what preprocess_corda leaves there
        U, S, V = torch.svd_lowrank(base.get_submodule(name).weight, q=config.r)
        base.get_submodule(name).eigens = SimpleNamespace(U_WC=U, S_WC=S, V_WC=V)
    return get_peft_model(base, config)


def with_custom_layer() -> nn.Module:
    config = lora()()
    config._register_custom_module({CustomLinear: CustomLora})
    return get_peft_model(ThreeLayers(lambda: CustomLinear(WIDTH, WIDTH)), config)


def in_a_copied_module() -> nn.Module:
    base = linear()
    base.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5))
    model = get_peft_model(base, lora(target_modules=[*TARGETS, "head.0"])())
    model.add_adapter("second", lora(modules_to_save=["head"])())
    return model


def two_adapted() -> nn.Module:
    return nn.ModuleDict({name: get_peft_model(linear(), lora()()) for name in ("queries", "documents")})


def loraplus(model: nn.Module) -> torch.optim.Optimizer:
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=4)
