"""Files for others: an adapter with one rank in every layer, and the record of an allocation beside an adapter.

Some servers read one rank for all layers. `export_uniform` pads every layer to the largest rank: A gets zero rows and B zero
columns, so B·A and every logit stay as they are. Where the layers' scalings differ, B takes the difference. Modules at rank 0
stay without an adapter: they are not in the file, and `exclude_modules` names them.

`save_allocation` writes allocation.json for programs, and a section of the model card for people. PEFT needs neither; the
adapter's own configuration has its ranks.
"""

from __future__ import annotations

import json
import os
import re
import weakref
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from glora._version import __version__
from glora.allocator import RankAllocator
from glora.config import RankAllocationConfig
from glora.lora.following import OwnMethod
from glora.lora.resize import as_stored, by_rank_A, by_rank_B
from glora.lora.saved_adapter import SavedMatrix, check_output, check_product, load_adapter
from glora.messages import is_main_process, pluralize
from glora.paths import named_folder, replace_file
from glora.reallocation import Reallocation

FILE_NAME = "allocation.json"
MODEL_CARD = "README.md"
BEGIN, END = "<!-- glora: begin -->", "<!-- glora: end -->"


def export_uniform(
    model: nn.Module | str | Path, directory: str | Path, adapter_name: str = "default", *, overwrite: bool = False
) -> Path:
    """Save an adapter with every layer padded to the largest rank.

    Args:
        model: A PeftModel, or a transformers model with an adapter; or a saved adapter, by its folder or its id on the hub,
            which needs no base model.
        directory: Folder for adapter_config.json and adapter_model.safetensors; made if it does not exist.
        adapter_name: The adapter to export, of a model.
        overwrite: Replace an adapter that the folder holds. Other files in it stay as they are.

    Returns:
        The directory.

    Raises:
        ValueError: there is no such LoRA adapter, its files are damaged, its initialization changed the base weights (PiSSA,
            for example), or it is more than B·A; or the directory holds an adapter.
        TypeError: the model is neither a model nor a folder.
    """
    directory = check_output(directory, model, overwrite)
    saved = load_adapter(model, adapter_name)
    check_product(
        saved.config, model if isinstance(model, str | os.PathLike) else f"adapter {adapter_name!r}", "padded"
    )
    widest = max(saved.matrices.values(), key=lambda matrix: matrix.rank)
    rank, scaling = widest.rank, widest.scaling
    if scaling == 0:
        raise ValueError(f"{widest.name} has the scaling 0, so the adapter does nothing; set its lora_alpha above 0")
    for matrix in saved.matrices.values():
        _pad(matrix, rank, matrix.scaling / scaling)
        if (bias := f"{matrix.prefix}lora_B.bias") in saved.others:
            saved.others[bias] = saved.others[bias] * (matrix.scaling / scaling)
    saved.config.r, saved.config.lora_alpha = rank, widest.alpha
    saved.config.rank_pattern, saved.config.alpha_pattern = {}, {}
    return saved.write(directory)


def save_allocation(allocator: RankAllocator, directory: str | Path) -> Path:
    """Write allocation.json into a folder, and a section into its model card if it has one.

    With RankAllocationCallback, checkpoints, `trainer.save_model` and `model.save_pretrained` write it by themselves. In your
    own training loop, call it after `model.save_pretrained(folder)`. A second call replaces what the first wrote.

    Args:
        allocator: The allocator of the adapter that is saved.
        directory: The folder with the adapter; made if it does not exist. An empty name is an error.

    Returns:
        The path of allocation.json: a version, the configuration, `total_rank`, `parameters` before and after, `reallocation`
        (null before it, and where the model has other ranks, as the best model from before it), package versions, and for
        each matrix `rank`, `initial_rank`, `shape` (d_out, d_in) and `norm`, the moving average g_k (null where there was no
        adapter to measure).
    """
    directory = named_folder(directory)
    directory.mkdir(parents=True, exist_ok=True)
    adapter, norms, costs = allocator.adapter, allocator.norms, allocator.adapter.costs
    initial = sum(rank * costs[name] for name, rank in adapter.initial_ranks.items())
    content = {
        "version": 1,
        "config": allocator.config.to_dict(),
        "total_rank": allocator.total_rank,
        "parameters": {"before": initial, "after": allocator.parameters},
        "reallocation": vars(allocator.reallocation) if allocator.reallocation and allocator.in_effect else None,
        "versions": {"glora": __version__}
        | {package.__name__: package.__version__ for package in (peft, transformers, torch)},
        "matrices": {
            name: {
                "rank": matrix.rank,
                "initial_rank": adapter.initial_ranks[name],
                "shape": matrix.shape,
                "norm": norms.get(name),
            }
            for name, matrix in adapter.matrices.items()
        },
    }
    path = directory / FILE_NAME
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
    card = directory / MODEL_CARD
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="surrogateescape")  # its bytes stay, in any encoding
        replace_file(card, _with_section(text, _section(allocator, initial)).encode(errors="surrogateescape"))
    return path


def save_with(allocator: RankAllocator) -> None:
    """Have the model's `save_pretrained` write the allocation too, as long as the allocator is there."""
    model: Any = allocator.adapter.adapted
    reference = weakref.ref(allocator)

    def save_pretrained(save_directory: str | Path, *arguments: Any, **options: Any) -> Any:
        saved = type(model).save_pretrained(model, save_directory, *arguments, **options)
        there = reference()
        if there is not None and options.get("is_main_process", True) and is_main_process():
            save_allocation(there, save_directory)
        return saved

    if hasattr(type(model), "save_pretrained"):
        OwnMethod(model, "save_pretrained", save_pretrained)


def _pad(matrix: SavedMatrix, rank: int, factor: float) -> None:
    """Pad the factors, and multiply the output of B by a factor."""
    missing = (0, 0, 0, rank - matrix.rank)
    A, B = by_rank_A(matrix.A, matrix.experts, matrix.rank), by_rank_B(matrix.B, matrix.experts, matrix.rank)
    matrix.A, matrix.B = as_stored(F.pad(A, missing), F.pad(B * factor, missing), like=(matrix.A, matrix.B))


def _section(allocator: RankAllocator, parameters_before: int) -> str:
    ranks, config = allocator.ranks, allocator.config
    reallocation = allocator.reallocation
    if reallocation is not None and allocator.in_effect:
        status = (
            f"GLoRA {__version__} allocated the ranks of this LoRA adapter. After {pluralize(reallocation.step, 'step')} of "
            f"warm-up it shared out {sum(ranks.values()):,} ranks over "
            f"{pluralize(len(ranks), 'matrix')} {_how(config, reallocation)}, under the {config.budget_unit} budget: "
            f"{min(ranks.values())} to {max(ranks.values())} a matrix, {sum(r == 0 for r in ranks.values())} without an "
            f"adapter. Adapter parameters: {parameters_before:,} before, {allocator.parameters:,} after."
        )
    else:
        progress = (
            f"These weights do not have the ranks of the reallocation at step {reallocation.step}"
            if reallocation is not None
            else f"The warm-up has made {allocator.steps} of {config.warmup_steps} steps"
        )
        which = "those that training began with" if ranks == allocator.initial_ranks else "from earlier in the training"
        status = f"GLoRA {__version__} allocates ranks {_how(config)}. {progress}; the ranks are {which}."
    return (
        f"{BEGIN}\n## Rank allocation\n\n{status} It is a plain PEFT LoRA adapter and loads without glora. `{FILE_NAME}` has "
        f"the rank and norm of each matrix.\n{END}\n"
    )


def _how(config: RankAllocationConfig, reallocation: Reallocation | None = None) -> str:
    if not config.cuts:
        return f"by gradient norm (signal `{config.signal}`)"
    kept = reallocation.energy_kept if reallocation is not None else None
    share = "" if kept is None else f", which kept {kept:.1%} of their energy"
    return f"by a cut through the singular values of the learned updates (rule `{config.rule}`{share})"


def _with_section(card: str, section: str) -> str:
    old = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END) + "\n?", re.DOTALL)
    if old.search(card):
        return old.sub(lambda _: section, card)
    return card.rstrip("\n") + "\n\n" + section
