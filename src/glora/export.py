"""An adapter whose layers all have one rank, for servers that read one rank for all layers.

Every layer is padded to the largest rank: A gets zero rows and B zero columns, so B·A and every logit stay as they are. Where
the layers' scalings differ, the difference goes into B. Modules without an adapter (rank 0) stay without: they are not in the
file, and `exclude_modules` names them.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict, load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import nn

from glora.lora.discovery import adapted_model, base_model, find_matrices, peft_configs
from glora.lora.resize import by_rank_A, by_rank_B

PREFIX = "base_model.model."  # PEFT's, of every name in an adapter's file


def export_uniform(model: nn.Module, directory: str | Path, adapter_name: str = "default") -> Path:
    """Save a model's adapter with every layer padded to the largest rank.

    Args:
        model: A PeftModel, or a transformers model with an adapter.
        directory: Where adapter_config.json and adapter_model.safetensors are written; made if it does not exist.
        adapter_name: The adapter to export.

    Returns:
        The directory.

    Raises:
        ValueError: the model has no such LoRA adapter.
    """
    _, matrices = find_matrices(model, adapter_name, trainable=False)
    widest = max(matrices.values(), key=lambda matrix: matrix.rank)
    rank, scaling = widest.rank, widest.scaling

    model = adapted_model(model)
    root = base_model(model)
    paths = {module: path for path, module in root.named_modules()}
    peft = isinstance(model, PeftModel)
    state = get_peft_model_state_dict(model if peft else root, adapter_name=adapter_name)
    tensors = {("" if peft else PREFIX) + key: value for key, value in state.items()}
    for matrix in matrices.values():
        factor = matrix.scaling / scaling
        _pad(tensors, f"{PREFIX}{paths[matrix.layer]}.", matrix.rank, rank, matrix.experts, factor)
    config = copy.deepcopy(peft_configs(model)[adapter_name])
    return _write(config, rank, widest.layer.lora_alpha[adapter_name], tensors, Path(directory))


def export_saved_adapter(adapter: str | Path, directory: str | Path, *, overwrite: bool = False) -> Path:
    """Do the same to an adapter that lies in a folder or on the hub; its base model is not needed.

    Args:
        adapter: The folder with adapter_config.json, or the hub's id.
        directory: Where the padded adapter is written; made if it does not exist.
        overwrite: Whether an adapter that is there already may be replaced. Other files in the folder stay as they are.

    Returns:
        The directory.

    Raises:
        ValueError: there is none, it is not a LoRA adapter, or it adapts parameters of experts, whose layout only the model
            knows; or the directory holds an adapter.
    """
    if Path(directory).resolve() == Path(adapter).resolve():
        raise ValueError(f"{directory} is the adapter itself; give another folder for the padded one")
    present = [name for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME) if (Path(directory) / name).exists()]
    if present and not overwrite:
        raise ValueError(
            f"{directory} already holds an adapter ({' and '.join(present)}), which would be overwritten; give another folder, "
            "or say that it may be: --overwrite, in Python overwrite=True"
        )
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except ValueError as error:
        raise ValueError(
            f"there is no adapter at {str(adapter)!r}: it is no folder with an adapter_config.json, which save_pretrained "
            "writes, and no adapter that can be had from the hub"
        ) from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{adapter} is of type {config.peft_type.value}; only a LoRA adapter can be padded")
    if config.target_parameters:
        raise ValueError(
            f"{adapter} adapts expert parameters ({', '.join(config.target_parameters)}), whose layout only the model knows; "
            "load the model with this adapter and use glora.export_uniform(model, directory)"
        )
    tensors = load_peft_weights(str(adapter), device="cpu")
    endings = ("lora_A.weight", "lora_embedding_A")
    prefixes = {
        key[: -len(end)]: tensors[key].shape[0] for key in tensors for end in endings if key.endswith("." + end)
    }
    alphas = {}
    for prefix in prefixes:
        name = prefix.removeprefix(PREFIX).removesuffix(".")
        alphas[prefix] = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, name), config.lora_alpha)
    widest = max(prefixes, key=lambda prefix: prefixes[prefix])
    rank = prefixes[widest]

    def scaling(prefix: str) -> float:
        root = math.sqrt(prefixes[prefix]) if config.use_rslora else prefixes[prefix]
        return float(alphas[prefix] / root)

    for prefix, old_rank in prefixes.items():
        _pad(tensors, prefix, old_rank, rank, 1, scaling(prefix) / scaling(widest))
    return _write(config, rank, alphas[widest], tensors, Path(directory))


def _pad(tensors: dict[str, torch.Tensor], prefix: str, old_rank: int, rank: int, E: int, factor: float) -> None:
    """Pad one module's factors in place, and multiply what B gives by a factor."""
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
    config.inference_mode = True
    directory.mkdir(parents=True, exist_ok=True)
    # cloned, because safetensors refuses tensors that share memory, as tied modules_to_save do
    plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    save_file(plain, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(directory))
    return directory
