"""Files for others: an adapter with one rank in every layer, and the record of an allocation beside an adapter.

Some servers read one rank for all layers. `export_uniform` pads every layer to the largest rank: A gets zero rows and B zero
columns, so B·A and every logit stay as they are. Where the layers' scalings differ, B takes the difference. Modules at rank 0
stay without an adapter: they are not in the file, and `exclude_modules` names them.

`save_allocation` writes allocation.json for programs, and a section of the model card for people. PEFT needs neither; the
adapter's own configuration has its ranks.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from glora._version import __version__
from glora.allocator import RankAllocator
from glora.lora.discovery import adapted_model, base_model, find_matrices, initialization_from_base, peft_configs
from glora.lora.resize import by_rank_A, by_rank_B
from glora.lora.saved_adapter import PREFIX, read_adapter
from glora.messages import pluralize

PADDED_VARIANTS = ("use_dora", "alora_invocation_tokens")  # their B·A is as in plain LoRA
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
    directory = Path(directory)
    saved = isinstance(model, str | os.PathLike)
    if not saved and not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be a model with an adapter, or the folder of a saved adapter")
    if saved and directory.resolve() == Path(model).resolve():  # type: ignore[arg-type]
        raise ValueError(f"{directory} is the adapter itself; give another folder for the padded one")
    files = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
    if not overwrite and (present := [name for name in files if (directory / name).exists()]):
        raise ValueError(
            f"{directory} already holds an adapter ({' and '.join(present)}); give another folder, or --overwrite "
            "(overwrite=True in Python)"
        )
    if saved:
        return _export_saved(model, directory)  # type: ignore[arg-type]
    return _export_live(model, directory, adapter_name)  # type: ignore[arg-type]


def _export_live(model: nn.Module, directory: Path, adapter_name: str) -> Path:
    _, matrices = find_matrices(model, adapter_name, trainable=False)
    model = adapted_model(model)
    config = copy.deepcopy(peft_configs(model)[adapter_name])
    _check_padding(config, f"adapter {adapter_name!r}")
    widest = max(matrices.values(), key=lambda matrix: matrix.rank)
    if widest.scaling == 0:
        raise ValueError(f"{widest.name} has the scaling 0, so the adapter does nothing; set its lora_alpha above 0")
    root = base_model(model)
    paths = {module: path for path, module in root.named_modules()}
    is_peft = isinstance(model, PeftModel)
    state = get_peft_model_state_dict(model if is_peft else root, adapter_name=adapter_name)
    tensors = {("" if is_peft else PREFIX) + key: value for key, value in state.items()}
    for matrix in matrices.values():
        factor = matrix.scaling / widest.scaling
        _pad(tensors, f"{PREFIX}{paths[matrix.layer]}.", matrix.rank, widest.rank, matrix.experts, factor)
    return _write(config, widest.rank, widest.layer.lora_alpha[adapter_name], tensors, directory)


def _export_saved(adapter: str | Path, directory: Path) -> Path:
    saved = read_adapter(adapter)
    _check_padding(saved.config, str(adapter))
    widest = max(saved.ranks, key=lambda prefix: saved.ranks[prefix])
    for prefix, rank in saved.ranks.items():
        factor = saved.scaling(prefix) / saved.scaling(widest)
        _pad(saved.tensors, prefix, rank, saved.ranks[widest], 1, factor)
    return _write(saved.config, saved.ranks[widest], saved.alphas[widest], saved.tensors, directory)


def _check_padding(config: LoraConfig, adapter: str) -> None:
    """Reject an adapter whose function padding would change.

    Raises:
        ValueError: its initialization changed the base weights, or it is more than B·A.
    """
    if how := initialization_from_base(config):
        raise ValueError(
            f"{adapter} began with init_lora_weights={how!r}, which changed the base weights, so it cannot be padded; first "
            "convert it by save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    for field in dataclasses.fields(config):
        if field.metadata.get("is_lora_variant") and field.name not in PADDED_VARIANTS and getattr(config, field.name):
            raise ValueError(f"{adapter} uses {field.name}, which is more than B·A, so it cannot be padded; merge it")


def save_allocation(allocator: RankAllocator, directory: str | Path) -> Path:
    """Write allocation.json into a folder, and a section into its model card if it has one.

    RankAllocationCallback calls it for each checkpoint. After your own `model.save_pretrained(folder)`, call it for that
    folder. A second call replaces what the first wrote.

    Args:
        allocator: The allocator of the adapter that is saved.
        directory: The folder with the adapter; made if it does not exist.

    Returns:
        The path of allocation.json: a version, the configuration, `total_rank`, `parameters` before and after, `reallocation`
        (null before it, and where the model has other ranks, as the best model from before it), package versions, and for
        each matrix `rank`, `initial_rank`, `shape` (d_out, d_in) and `norm`, the moving average g_k (null where there was no
        adapter to measure).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    adapter, norms = allocator.adapter, allocator.norms
    initial = sum(adapter.initial_ranks[name] * matrix.cost for name, matrix in adapter.matrices.items())
    content = {
        "version": 1,
        "config": allocator.config.to_dict(),
        "total_rank": allocator.total_rank,
        "parameters": {"before": initial, "after": allocator.parameters},
        "reallocation": vars(allocator.reallocation) if allocator.reallocation and allocator.in_effect else None,
        "versions": {"glora": __version__} | {name: version(name) for name in ("peft", "transformers", "torch")},
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
    _replace(path, json.dumps(content, indent=1) + "\n")
    card = directory / MODEL_CARD
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="surrogateescape")  # whatever its encoding, its bytes stay
        _replace(card, _with_section(text, _section(allocator, initial)))
    return path


def _pad(tensors: dict[str, torch.Tensor], prefix: str, old_rank: int, rank: int, E: int, factor: float) -> None:
    """Pad one module's factors in place, and multiply the output of B by a factor."""
    embedding = f"{prefix}lora_embedding_A" in tensors
    key_A, key_B = (f"{prefix}lora_embedding_{f}" if embedding else f"{prefix}lora_{f}.weight" for f in "AB")
    A, B = tensors[key_A], tensors[key_B]
    missing = (0, 0, 0, rank - old_rank)
    tensors[key_A] = F.pad(by_rank_A(A, E, old_rank), missing).reshape(E * rank, *A.shape[1:])
    tensors[key_B] = F.pad(by_rank_B(B, E, old_rank) * factor, missing).reshape(B.shape[0], rank * E, *B.shape[2:])
    if (key_bias := f"{prefix}lora_B.bias") in tensors:
        tensors[key_bias] = tensors[key_bias] * factor


def _write(config: LoraConfig, rank: int, alpha: float, tensors: dict[str, torch.Tensor], directory: Path) -> Path:
    config.r, config.lora_alpha = rank, alpha
    config.rank_pattern, config.alpha_pattern = {}, {}
    config.init_lora_weights = True  # loading overwrites it, and another may not allow this rank
    config.inference_mode = True
    directory.mkdir(parents=True, exist_ok=True)
    # cloned, because safetensors rejects tensors that share memory, as tied modules_to_save do
    plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    with tempfile.TemporaryDirectory(prefix=".glora-", dir=directory) as scratch:  # whole, or not at all
        save_file(plain, Path(scratch, SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pt"})
        config.save_pretrained(scratch)
        for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
            os.replace(Path(scratch, name), directory / name)
    return directory


def _section(allocator: RankAllocator, parameters_before: int) -> str:
    ranks, config = allocator.ranks, allocator.config
    reallocation = allocator.reallocation
    if reallocation is not None and allocator.in_effect:
        status = (
            f"GLoRA {__version__} allocated the ranks of this LoRA adapter. After {pluralize(reallocation.step, 'step')} of "
            f"warm-up it shared out {sum(ranks.values()):,} ranks over "
            f"{pluralize(len(ranks), 'matrix')} by gradient norm (signal `{config.signal}`), under the {config.budget} "
            f"budget: {min(ranks.values())} to {max(ranks.values())} a matrix, {sum(r == 0 for r in ranks.values())} without "
            f"an adapter. Adapter parameters: {parameters_before:,} before, {allocator.parameters:,} after."
        )
    else:
        made = (
            f"These weights do not have the ranks of the reallocation at step {reallocation.step}"
            if reallocation is not None
            else f"The warm-up has made {allocator.steps} of {config.warmup_steps} steps"
        )
        which = "those that training began with" if ranks == allocator.initial_ranks else "from earlier in the training"
        status = f"GLoRA {__version__} recorded gradient norms. {made}; the ranks are {which}."
    return (
        f"{BEGIN}\n## Rank allocation\n\n{status} It is a plain PEFT LoRA adapter and loads without glora. `{FILE_NAME}` has "
        f"the rank and norm of each matrix.\n{END}\n"
    )


def _with_section(card: str, section: str) -> str:
    old = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END) + "\n?", re.DOTALL)
    if old.search(card):
        return old.sub(lambda _: section, card)
    return card.rstrip("\n") + "\n\n" + section


def _replace(path: Path, text: str) -> None:
    """Write all of a file or none of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    os.replace(temporary, path)
