"""Ranks from a few calibration batches, without training, as a LoraConfig takes them.

The norms are those of a warm-up's first step: LoRA's B is zero, so ∂L/∂B = s·G·Aᵀ sketches the gradient of the pretrained
model. The mean norm over the batches replaces the moving average. The model stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from glora.allocation.bounds import allocate_within_bounds
from glora.allocation.budget import check_budget, total_rank_of
from glora.config import Budget, RankAllocationConfig, is_int
from glora.lora.adapter import RankedAdapter
from glora.lora.discovery import adapted_model, base_model, peft_configs
from glora.lora.peft_config import exact_pattern, excluding
from glora.scoring.gradient_norms import GradientNorms

Loss = Callable[[nn.Module, Any], torch.Tensor]
ADAPTER = "glora_suggest"  # for a model without an adapter; removed afterwards
# get_peft_model adds these to modules_to_save, by task.
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def suggest_ranks(
    model: nn.Module,
    batches: Iterable[Any],
    config: LoraConfig | None = None,
    *,
    total_rank: int | None = None,
    budget: Budget = "rank",
    min_rank: int = 1,
    max_rank: int | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Suggest a rank for each matrix from the gradients of a few batches.

        lora = dict(r=8, lora_alpha=16, target_modules="all-linear")
        patterns = suggest_ranks(model, batches, LoraConfig(**lora))
        model = get_peft_model(model, LoraConfig(**lora, **patterns))

    With a rank_pattern alone PEFT would scale each matrix by lora_alpha/r_k. The alpha_pattern holds the scaling s: α_k is
    s·r_k, with rsLoRA s·√r_k.

    Args:
        model: A model without an adapter (give `config`), or one with a LoRA adapter that has not been trained.
        batches: Inputs of `loss`; by default dictionaries for `model(**batch).loss`, moved to the model's device. Use 8 to 32
            batches of your training's size; each costs one forward and one backward pass.
        config: The LoRA configuration for your training; its own rank_pattern and initialization are not used.
        total_rank: The sum of the ranks. Default: n·r for the n matrices of the configuration.
        budget: "rank", Σ r_k = total_rank, or "parameters", no more parameters than total_rank ranks spread evenly.
        min_rank: Lower bound of every rank, at least 1, since a rank_pattern cannot leave a matrix out.
        max_rank: Upper bound of every rank; min(d_in, d_out) is another.
        loss: The function to differentiate, loss(model, batch) -> scalar. Default: `model(**batch).loss`.
        seed: Seeds the random A. The global generators are not touched.

    Returns:
        `rank_pattern` and `alpha_pattern` for LoraConfig, by PEFT's exact patterns ("^" and the escaped module name).

    Raises:
        ValueError: there is no batch, or one that is not a dictionary; a model without LoRA and without `config`, or with both;
            layer_replication; a loss that is missing or not finite; a number out of range; bounds that cannot be met.
        TypeError: config is not a LoraConfig.
    """
    bounds = dict(total_rank=total_rank, budget=budget, min_rank=min_rank, max_rank=max_rank)
    allocation = RankAllocationConfig(**bounds, seed=seed)  # type: ignore[arg-type]
    if not is_int(allocation.min_rank, 1):
        raise ValueError(f"min_rank={min_rank!r} must be an int ≥ 1; to leave a matrix out, use exclude_modules")
    with _restored(model):
        adapter = _adapter_of(model, config, allocation.seed)
        check_budget(allocation, adapter)
        norms = _mean_norms(model, adapter, batches, loss or _loss_of_model)
        if not any(norms.values()):
            raise ValueError("no gradient reached any matrix; check that the loss depends on the adapted layers")
        total = total_rank_of(allocation, adapter)
        assert total is not None  # there is no energy
        ranks = allocate_within_bounds(adapter, allocation, int(total), norms)
        alphas = {name: adapter.matrices[name].alpha_at(rank) for name, rank in ranks.items()}
    return {
        "rank_pattern": {exact_pattern(name): rank for name, rank in ranks.items()},
        "alpha_pattern": {exact_pattern(name): alpha for name, alpha in alphas.items()},
    }


def _mean_norms(model: nn.Module, adapter: RankedAdapter, batches: Iterable[Any], loss: Loss) -> dict[str, float]:
    reader = GradientNorms(adapter.present, "delta")
    total, count = torch.zeros(len(reader.names), device=reader.device), 0
    for batch in batches:
        value = loss(model, batch)
        if not torch.is_tensor(value) or value.dim() > 0:
            found = f"a tensor of shape {tuple(value.shape)}" if torch.is_tensor(value) else f"a {type(value).__name__}"
            raise ValueError(f"the loss of batch {count} is {found}; return a scalar tensor, from a batch with labels")
        if not value.requires_grad:
            raise ValueError(f"the loss of batch {count} has no gradient; compute it from the model, without no_grad()")
        value.backward()  # type: ignore[no-untyped-call]
        norms = reader.read()
        if not torch.isfinite(norms).all():
            raise ValueError(f"batch {count} has gradients with inf or NaN (its loss is {value.item()}); leave it out")
        total += norms
        count += 1
        for factor in adapter.factors:
            factor.grad = None
    if count == 0:
        raise ValueError("batches is empty; give at least one batch (8 to 32 are better)")
    return dict(zip(reader.names, (total / count).tolist()))


def _loss_of_model(model: nn.Module, batch: Any) -> torch.Tensor:
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"a batch is a {type(batch).__name__}, not a dictionary of the model's inputs; give dictionaries, or "
            "loss=lambda model, batch: ..."
        )
    device = next(model.parameters()).device
    outputs = model(**{k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()})
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0] if isinstance(outputs, tuple) else None
    if loss is None:
        raise ValueError(
            f"the model returned no loss for a batch with {', '.join(map(str, batch))}; add labels, or give "
            "loss=lambda model, batch: ..."
        )
    return cast(torch.Tensor, loss)


def _adapter_of(model: nn.Module, config: LoraConfig | None, seed: int) -> RankedAdapter:
    """Return the model's adapter, or a temporary one; nothing else requires a gradient."""
    root = base_model(model)
    if config is None:
        try:
            adapter = RankedAdapter(model)
        except ValueError as error:
            raise ValueError(f"{error}; or give `config`, your LoraConfig") from None
    elif not isinstance(config, LoraConfig):
        raise TypeError(f"config is a {type(config).__name__}; give a peft.LoraConfig")
    else:
        if adapters := list(peft_configs(adapted_model(model))):
            raise ValueError(
                f"the model has an adapter already ({', '.join(adapters)}); leave out `config` to get its ranks, or remove it "
                "with model.unload()"
            )
        if config.layer_replication:
            raise ValueError(
                "layer_replication changes the model; give get_peft_model(model, config) instead, without `config`"
            )
        plain = {"rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True, "modules_to_save": None}
        exclude = {"exclude_modules": _without_heads(config)}
        fields = {**config.to_dict(), **plain, **exclude, "use_dora": False, "inference_mode": False}
        fields = {k: v for k, v in fields.items() if k in LoraConfig.__dataclass_fields__}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            inject_adapter_in_model(LoraConfig(**fields), root, ADAPTER)
        adapter = RankedAdapter(root, ADAPTER)
    root.requires_grad_(False)
    for factor in adapter.factors:
        factor.requires_grad_(True)
    return adapter


def _without_heads(config: LoraConfig) -> Any:
    """Return the excluded modules, and those that training will train whole, which get no adapter from PEFT."""
    heads = {*(config.modules_to_save or ()), *HEADS.get(config.task_type or "", ())}
    return excluding([rf"(?:.*\.)?(?:{'|'.join(sorted(heads))})(?:\..*)?"] if heads else [], config.exclude_modules)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Turn dropout off, and restore module tree, attributes, gradients and flags at the end, also after an error."""
    modules = list(model.modules())
    children = [(module, dict(module._modules), set(vars(module)), module.training) for module in modules]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    for parameter, _, _ in parameters:
        parameter.grad = None
    model.eval()
    try:
        yield
    finally:
        for module, submodules, attributes, training in children:
            module._modules.clear()
            module._modules.update(submodules)
            for added in set(vars(module)) - attributes:
                delattr(module, added)
            module.training = training
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
