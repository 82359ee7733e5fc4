"""`glora ranks`: a rank_pattern for a model and a data set, from a few batches of its training data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import yaml
from peft import LoraConfig
from torch.utils.data import DataLoader

from glora.experiments.config import RunConfig
from glora.experiments.data.loading import load_task
from glora.experiments.training.task_kinds import find_kind
from glora.suggest import suggest_ranks


@dataclass(frozen=True)
class SuggestedRanks:
    """Ranks by PEFT's exact patterns, and the adapter they belong to."""

    rank: int
    alpha: float
    patterns: dict[str, dict[str, Any]]
    """`rank_pattern` and `alpha_pattern`, as `suggest_ranks` returns them."""
    batches: int = 0
    """Number of batches that were read: fewer than asked for if the training data has no more."""

    def text(self, form: Literal["json", "yaml", "python"]) -> str:
        """Return the patterns as text.

        Args:
            form: "json"; "yaml", with the keys of axolotl's configuration; or "python", the arguments of LoraConfig.
        """
        alpha, patterns = _plain(self.alpha), self.patterns
        if form == "json":
            return json.dumps({"r": self.rank, "lora_alpha": alpha, **patterns}, indent=2)
        if form == "yaml":
            named = {f"lora_{name}": pattern for name, pattern in patterns.items()}
            fields = {"lora_r": self.rank, "lora_alpha": alpha, **named}
            return yaml.safe_dump(fields, sort_keys=False, width=math.inf).rstrip()
        lines = [f"r={self.rank},", f"lora_alpha={alpha},"]
        for key, pattern in patterns.items():
            lines += [f"{key}={{", *(f"    {name!r}: {value}," for name, value in pattern.items()), "},"]
        return "\n".join(lines)


def suggest(config: RunConfig, batches: int) -> SuggestedRanks:
    """Read the gradients of a few batches of a task's training data.

    Args:
        config: Model, task, rank, target modules, batch size, seed and GLoRA's budget and bounds; the rest is not used.
        batches: How many batches to read.

    Raises:
        ValueError: batches is below 1, or the task, the model or the bounds are not valid.
    """
    if batches < 1:
        raise ValueError(f"batches={batches} must be at least 1")
    limit = min(batches * config.batch_size, config.train_limit or batches * config.batch_size)
    task = load_task(config.task, data_dir=config.data_dir, train_limit=limit, eval_limit=1)
    kind = find_kind(task.kind)
    model, tokenizer = kind.load_model(config, task)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = kind.tokenize(config, task, model, tokenizer).train
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=kind.target_modules(model, config.target_modules),
        target_parameters=kind.target_parameters(model, config.target_modules) or None,
    )
    allocation = config.allocation
    loader = DataLoader(rows, batch_size=config.batch_size, collate_fn=kind.collator(tokenizer))
    patterns = suggest_ranks(
        model,
        loader,
        lora,
        total_rank=allocation.total_rank,
        budget=allocation.budget_unit,
        min_rank=max(config.setting("min_rank"), 1),
        max_rank=config.setting("max_rank"),
        seed=config.seed,
    )
    return SuggestedRanks(config.rank, config.alpha, patterns, len(loader))


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number
