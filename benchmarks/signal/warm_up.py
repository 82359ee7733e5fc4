"""One warm-up of a real model: at each step the exact G of every matrix, and everything that the estimates are made from.

G = ∂L/∂Δ = Σ (gradient of the layer's output)ᵀ·(its input), by brute force from hooks on the whole LoRA layer; no code of
glora.scoring takes part. Sketches are stored as squared norms of their columns, ‖G·ω_j‖². One training run therefore gives
every estimate, at every number of columns k and at every interval m.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from benchmarks.signal.settings import Setting
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DataCollatorWithPadding, get_scheduler

from glora import accelerate_lora
from glora.acceleration.products import product
from glora.experiments.data.loading import load_task
from glora.experiments.data.task import TaskData
from glora.experiments.methods.adapted_model import adapted_layers
from glora.experiments.models.loading import load_classifier
from glora.experiments.models.modules import find_head_modules, find_target_modules
from glora.experiments.models.tokenization import tokenize
from glora.experiments.training.training_arguments import training_batches

COLUMNS = 32


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """Measurements; every array has one row a step and one column a matrix.

    Attributes:
        names: The matrices.
        shapes: (d_out, d_in) of each.
        exact: ‖G‖².
        by_A: ‖G·Aᵀ‖².
        of_A: ‖A‖².
        of_input, of_output: ‖X‖² and ‖dY‖², the input of the layer and the gradient of its output, over all tokens of a step.
        clipping: The factor by which clipping scaled the gradient, shape (steps,).
        columns: ‖G·ω_j‖², shape (steps, matrices, COLUMNS), where ω_j has entries ±1; its mean over j has the expectation ‖G‖².
        losses: Shape (steps,).
    """

    names: list[str]
    shapes: list[tuple[int, int]]
    exact: np.ndarray
    by_A: np.ndarray
    of_A: np.ndarray
    of_input: np.ndarray
    of_output: np.ndarray
    clipping: np.ndarray
    columns: np.ndarray
    losses: np.ndarray


def warm_up(
    setting: Setting, seed: int, data_dir: str | None, report: Callable[[int, float], None]
) -> Iterator[WarmUp]:
    """Train uniform LoRA, and give what was seen after each number of steps in the setting.

    The seed decides the head, A, the data order and the sketches.
    """
    base, tokenizer = load_classifier("all-MiniLM-L6-v2", num_labels=2, seed=seed)
    rows = tokenize(read_task(setting.task, data_dir), tokenizer, setting.max_length).train
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=setting.rank,
        lora_alpha=setting.alpha,
        target_modules=find_target_modules(base),
        modules_to_save=find_head_modules(base),
        task_type="SEQ_CLS",
    )
    model = get_peft_model(base, lora).train()
    accelerate_lora(model)
    layers = adapted_layers(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting.learning_rate, weight_decay=0.0)
    steps = setting.steps[-1]
    schedule = get_scheduler(setting.schedule, optimizer, int(0.06 * 3 * steps), 3 * steps)
    batches = training_batches(rows, DataCollatorWithPadding(tokenizer), setting.batch_size, seed)
    gradients = _watch(layers)
    generator = torch.Generator().manual_seed(seed)

    seen: list[dict[str, Any]] = []
    for step in range(steps):
        loss = model(**next(batches)).loss
        loss.backward()
        of_matrices = [_quantities(*gradients.pop(name), layer, generator) for name, layer in layers.items()]
        norm = nn.utils.clip_grad_norm_(trained, 1.0).item()
        clipping = min(1.0, 1.0 / (norm + 1e-6))
        _check_against_lora_b(layers, of_matrices, clipping)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen.append({"loss": loss.item(), "clipping": clipping, "matrices": of_matrices})
        report(step + 1, loss.item())
        if step + 1 in setting.steps:
            yield _gathered(layers, seen)


def read_task(name: str, data_dir: str | None) -> TaskData:
    """Read a task of glora's, or "pairs": does RTE's second text belong to the first, or to that of another example?

    RTE itself is not learned in so few steps, and then A does not align with G.
    """
    if name != "pairs":
        return load_task(name, data_dir=data_dir)
    data = load_task("rte", data_dir=data_dir)
    first, second = data.text_columns
    columns = data.train.to_dict()
    draw = random.Random(0)
    labels = [draw.randrange(2) for _ in data.train]
    texts = columns[second]
    columns[second] = [text if label else texts[i - 1] for i, (text, label) in enumerate(zip(texts, labels))]
    columns["label"] = labels
    return dataclasses.replace(
        data, train=Dataset.from_dict({name: columns[name] for name in (first, second, "label")})
    )


def _gathered(layers: dict[str, Any], seen: list[dict[str, Any]]) -> WarmUp:
    def stacked(name: str) -> np.ndarray:
        return np.array([[matrix[name] for matrix in one["matrices"]] for one in seen])

    return WarmUp(
        names=list(layers),
        shapes=[(layer.out_features, layer.in_features) for layer in layers.values()],
        **{name: stacked(name) for name in ("exact", "by_A", "of_A", "of_input", "of_output", "columns")},
        clipping=np.array([one["clipping"] for one in seen]),
        losses=np.array([one["loss"] for one in seen]),
    )


def _watch(layers: dict[str, Any]) -> dict[str, tuple[torch.Tensor, float, float]]:
    """Hook the layers so that the dictionary holds G, ‖X‖² and ‖dY‖² by name after each backward pass."""
    gradients: dict[str, tuple[torch.Tensor, float, float]] = {}

    def hook(name: str) -> Any:
        def forward(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = inputs[0].detach()

            def backward(gradient: torch.Tensor) -> None:
                G = product(gradient.flatten(0, -2).T, x.flatten(0, -2).T)
                gradients[name] = G, x.square().sum().item(), gradient.square().sum().item()

            output.register_hook(backward)

        return forward

    for name, layer in layers.items():
        layer.register_forward_hook(hook(name))
    return gradients


def _quantities(
    G: torch.Tensor, of_input: float, of_output: float, layer: Any, generator: torch.Generator
) -> dict[str, Any]:
    A = layer.lora_A["default"].weight.detach()
    omega = torch.randint(0, 2, (G.shape[1], COLUMNS), generator=generator).float() * 2 - 1
    return {
        "exact": G.square().sum().item(),
        "by_A": (G @ A.T).square().sum().item(),
        "of_A": A.square().sum().item(),
        "of_input": of_input,
        "of_output": of_output,
        "columns": (G @ omega).square().sum(0).tolist(),
    }


def _check_against_lora_b(layers: dict[str, Any], seen: list[dict[str, Any]], clipping: float) -> None:
    """s·‖G·Aᵀ‖ has to be the norm of B's gradient, after clipping as before."""
    for (name, layer), matrix in zip(layers.items(), seen):
        expected = layer.scaling["default"] * clipping * matrix["by_A"] ** 0.5
        found = layer.lora_B["default"].weight.grad.norm().item()
        if abs(found - expected) > 1e-3 * expected:
            raise RuntimeError(f"{name}: ‖∂L/∂B‖ is {found}, and s·‖G·Aᵀ‖ is {expected}; the hooks missed something")
