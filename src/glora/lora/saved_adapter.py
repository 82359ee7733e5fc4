"""A LoRA adapter as files hold it: read, so that every error is one message that names the file, and written.

An adapter comes from anywhere: cut off by a full disk, edited by hand, or hostile. `read_adapter` checks what a later step
relies on: the configuration is a LoRA configuration, the weights are whole, and both have the same ranks. `adapter_of` gives
what PEFT would save of a model in memory in the same form.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from peft.utils import (
    CONFIG_NAME,
    SAFETENSORS_WEIGHTS_NAME,
    WEIGHTS_NAME,
    get_peft_model_state_dict,
    load_peft_weights,
)
from safetensors.torch import save_file
from torch import nn
from transformers.utils import CONFIG_NAME as MODEL_CONFIG_NAME

from glora.lora.discovery import adapted_model, base_model, find_matrices, initialization_from_base, peft_configs
from glora.lora.peft_config import exact_pattern
from glora.paths import named_folder, regular_file

BASE_BIAS = ".base_layer.bias"
PREFIX = "base_model.model."  # PEFT's, of every name in an adapter's file
FACTORS = {  # endings of the keys of A and B
    "lora_A.weight": "lora_B.weight",
    "lora_embedding_A": "lora_embedding_B",
}
PLAIN_PRODUCTS = ("use_dora", "alora_invocation_tokens")  # variants whose B·A is as in plain LoRA
MAX_ALPHA = 1e30
MAX_QUANTIFIERS = 3  # unbounded ones in a pattern: matching a name of length L then takes L⁴ steps at most
UNBOUNDED = re.compile(r"[*+]|\{\d*,\}")


@dataclass
class SavedMatrix:
    """One matrix of an adapter, or a stack of experts' matrices, as files hold it.

    Attributes:
        name: The matrix's name, as in PEFT's patterns.
        prefix: What the keys of its tensors begin with.
        A, B: The factors as PEFT stores them.
        rank, alpha: r and α.
        scaling: s, by which B·A is multiplied.
        min_supported_rank: The smallest rank it can have, and the reason; see `LoraMatrix`.
        experts: E.
        embedding: Whether it updates an embedding.
    """

    name: str
    prefix: str
    A: torch.Tensor
    B: torch.Tensor
    rank: int
    alpha: float
    scaling: float
    min_supported_rank: tuple[int, str] = (0, "")
    experts: int = 1
    embedding: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the weight matrix, or of each expert's."""
        return self.B.shape[0], math.prod(self.A.shape[1:])

    @property
    def cost(self) -> int:
        """Parameters of one rank: E·(d_in + d_out)."""
        return self.experts * sum(self.shape)


@dataclass
class SavedAdapter:
    """An adapter's files."""

    config: LoraConfig
    matrices: dict[str, SavedMatrix]
    others: dict[str, torch.Tensor]

    def write(self, directory: Path) -> Path:
        """Write the adapter into a folder, whole or not at all, as stock PEFT loads it."""
        factors = {
            f"{matrix.prefix}{end}": factor
            for matrix in self.matrices.values()
            for end, factor in zip(_endings(matrix.embedding), (matrix.A, matrix.B))
        }
        # cloned, because safetensors rejects tensors that share memory, as tied modules_to_save do
        plain = {
            key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, tensor in {**self.others, **factors}.items()
        }
        self.config.init_lora_weights = True  # loading overwrites it, and another may not allow these ranks
        self.config.inference_mode = True
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".glora-", dir=directory) as scratch:
            save_file(plain, Path(scratch, SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pt"})
            self.config.save_pretrained(scratch)
            for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
                os.replace(Path(scratch, name), directory / name)
        return directory


def load_adapter(model: nn.Module | str | Path, adapter_name: str = "default") -> SavedAdapter:
    """Return an adapter of a model, or of a folder or the hub, as files hold it."""
    if isinstance(model, str | os.PathLike):
        named_folder(model, "the adapter's folder")
        return read_adapter(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be a model with an adapter, or the folder of a saved adapter")
    return adapter_of(model, adapter_name)


def check_output(directory: str | Path, source: object, overwrite: bool) -> Path:
    """Return the folder to write an adapter into.

    Raises:
        ValueError: its name is empty, a file is in its place, it is the source itself, or holds an adapter that may not be
            replaced.
    """
    directory = named_folder(directory)
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file, and the output needs a folder; give another one")
    if isinstance(source, str | os.PathLike) and directory.resolve() == Path(source).resolve():
        raise ValueError(f"{directory} is the adapter itself; give another folder for the output")
    if (directory / MODEL_CONFIG_NAME).exists():
        raise ValueError(
            f"{directory} holds a model ({MODEL_CONFIG_NAME}), which would load with the adapter; give another folder"
        )
    files = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
    if not overwrite and (present := [name for name in files if (directory / name).exists()]):
        raise ValueError(
            f"{directory} already holds an adapter ({' and '.join(present)}); give another folder, or --overwrite "
            "(overwrite=True in Python)"
        )
    return directory


def check_product(config: LoraConfig, adapter: object, done: str) -> None:
    """Reject an adapter whose function depends on more than B·A."""
    if how := initialization_from_base(config):
        raise ValueError(
            f"{adapter} began with init_lora_weights={how!r}, which changed the base weights, so it cannot be {done}; "
            "first convert it by save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    for field in dataclasses.fields(config):
        if field.metadata.get("is_lora_variant") and field.name not in PLAIN_PRODUCTS and getattr(config, field.name):
            raise ValueError(f"{adapter} uses {field.name}, which is more than B·A, so it cannot be {done}; merge it")


def adapter_of(model: nn.Module, adapter_name: str) -> SavedAdapter:
    """Return an adapter of a model in memory in the form of its files; the model stays as it is."""
    _, found = find_matrices(model, adapter_name, resizable=False, trainable=False)
    adapted = adapted_model(model)
    root, is_peft = base_model(adapted), isinstance(adapted, PeftModel)
    paths = {module: path for path, module in root.named_modules()}
    state = get_peft_model_state_dict(adapted if is_peft else root, adapter_name=adapter_name)
    tensors = {("" if is_peft else PREFIX) + key: tensor.detach() for key, tensor in state.items()}
    matrices = {}
    for matrix in found.values():
        prefix, alpha = f"{PREFIX}{paths[matrix.layer]}.", matrix.layer.lora_alpha[adapter_name]
        embedding = f"{prefix}lora_embedding_A" in tensors
        A, B = (tensors.pop(f"{prefix}{end}") for end in _endings(embedding))
        matrices[matrix.name] = SavedMatrix(
            *(matrix.name, prefix, A, B, matrix.rank, alpha, matrix.scaling),
            *(matrix.min_supported_rank, matrix.experts, embedding),
        )
    return SavedAdapter(copy.deepcopy(peft_configs(adapted)[adapter_name]), matrices, tensors)


def read_adapter(adapter: str | Path) -> SavedAdapter:
    """Read an adapter from a folder, or from the hub by its id.

    Raises:
        ValueError: there is no adapter, it is not a LoRA adapter, it adapts parameters of experts, whose layout only the model
            has, or a file is damaged or contradicts the other.
    """
    config, file = _read_config(adapter)
    if config.target_parameters:
        raise ValueError(
            f"{adapter} adapts expert parameters ({config.target_parameters}), whose layout only the model has; "
            "load the model with it, and give the model in place of the folder"
        )
    tensors, weights = _read_weights(adapter)
    ranks: dict[str, tuple[int, bool]] = {}  # by the prefix of the keys, with whether it is an embedding's
    for key in tensors:
        for end_A, end_B in FACTORS.items():
            if key.endswith(f".{end_B}") and key.removesuffix(end_B) + end_A not in tensors:
                raise _damaged(weights, f"has {key} without its {end_A}")
            if key.endswith(f".{end_A}"):
                rank = _rank_of(tensors, key, end_A, end_B, weights)
                ranks[key.removesuffix(end_A)] = rank, end_A == "lora_embedding_A"
    if not ranks:
        raise _damaged(weights, "has no LoRA weights")
    if odd := next((prefix for prefix in ranks if not prefix.startswith(PREFIX)), None):
        raise ValueError(
            f"{weights}: {odd}lora_... does not begin with {PREFIX}, so PEFT would not load it; rename the keys"
        )
    rank_of = _matcher(config.rank_pattern or {}, file)
    alpha_of = _matcher(config.alpha_pattern or {}, file)
    matrices: dict[str, SavedMatrix] = {}
    for prefix, (rank, embedding) in ranks.items():
        name = prefix.removeprefix(PREFIX).removesuffix(".")
        alpha = alpha_of(name, config.lora_alpha)
        if (expected := rank_of(name, config.r)) != rank:
            raise ValueError(
                f"{weights}: {name} has rank {rank}, but {file} gives it {expected}; PEFT cannot load such an adapter. Save "
                "it again with save_pretrained"
            )
        A, B = (tensors.pop(f"{prefix}{end}") for end in _endings(embedding))
        scaling = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        matrices[name] = SavedMatrix(name, prefix, A, B, rank, alpha, scaling, embedding=embedding)
    for key in tensors:
        module, _, what = key.removeprefix(PREFIX).rpartition(".base_layer." if key.endswith(BASE_BIAS) else ".lora_")
        if (matrix := matrices.get(module)) and (what != "bias" or config.bias == "lora_only"):
            kinds = {"magnitude_vector": "DoRA's magnitude", "bias": 'bias="lora_only"'}
            matrix.min_supported_rank = 1, kinds.get(what.partition(".")[0], "lora_bias")
    return SavedAdapter(config, matrices, tensors)


def _endings(embedding: bool) -> tuple[str, str]:
    return list(FACTORS.items())[embedding]


def _read_config(adapter: str | Path) -> tuple[LoraConfig, str]:
    file = Path(adapter) / CONFIG_NAME
    if Path(adapter).exists() and not file.exists():  # what is here is not looked for on the hub
        below = (f"for example {path.parent}" for path in Path(adapter).glob(f"*/{CONFIG_NAME}"))
        raise ValueError(f"{adapter} has no {CONFIG_NAME}; give {next(below, 'a folder that save_pretrained wrote')}")
    try:
        if file.exists() and not isinstance(json.loads(regular_file(file).read_text(encoding="utf-8")), dict):
            raise TypeError("it is not a JSON object")
        config = PeftConfig.from_pretrained(str(adapter))
    except Exception as error:  # PEFT gives a hostile file to a dozen constructors, which raise anything
        if file.exists():
            raise _damaged(file, f"is not a readable configuration ({_shortened(error)})") from error
        raise ValueError(
            f"there is no folder {str(adapter)!r}, and no adapter of this name was found on the hub; give a folder with "
            f"{CONFIG_NAME}, as save_pretrained writes it, or an adapter's id on the hub"
        ) from error  # no such folder, no such id, no connection
    if not isinstance(config, LoraConfig) or config.peft_type != PeftType.LORA:  # AdaLoRA's is a subclass
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(f"{adapter} is of type {kind}; only a LoRA adapter can be read")
    for name, value in {"r": config.r, **(_mapping(config, "rank_pattern", file))}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _damaged(file, f"gives {name} the rank {value!r}, not an int of at least 1,")
    for name, value in {"lora_alpha": config.lora_alpha, **_mapping(config, "alpha_pattern", file)}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < MAX_ALPHA:
            raise _damaged(file, f"gives {name} the α {value!r}, not a finite number other than 0,")
    return config, str(file)


def _mapping(config: LoraConfig, name: str, file: Path) -> dict[str, Any]:
    patterns = getattr(config, name) or {}
    if not isinstance(patterns, dict):
        raise _damaged(file, f"has a {name} that is not an object")
    return patterns


def _read_weights(adapter: str | Path) -> tuple[dict[str, torch.Tensor], str]:
    present = [path for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME) if (path := Path(adapter) / name).exists()]
    file = present[0] if present else Path(adapter) / SAFETENSORS_WEIGHTS_NAME
    if Path(adapter).is_dir() and not present:
        raise _damaged(file, "does not exist")
    try:
        if present:
            regular_file(file)
        tensors = load_peft_weights(str(adapter), device="cpu")
        if not isinstance(tensors, Mapping):
            raise TypeError("it is not a dictionary")
        for key, value in tensors.items():
            if not isinstance(key, str) or not isinstance(value, torch.Tensor):
                raise TypeError(f"{key!r} is not a tensor")
    except Exception as error:  # cut off, not a tensor file, a pickle that torch does not load
        raise _damaged(file, f"is not a whole file of tensors ({_shortened(error)})") from error
    return dict(tensors), str(file)


def _rank_of(tensors: Mapping[str, torch.Tensor], key_A: str, end_A: str, end_B: str, file: str) -> int:
    key_B = key_A.removesuffix(end_A) + end_B
    if key_B not in tensors:
        raise _damaged(file, f"has {key_A} without its {end_B}")
    A, B = tensors[key_A], tensors[key_B]
    if A.dim() > 2 and B.dim() > 2 and 0 < B.shape[1] < A.shape[0] and A.shape[0] % B.shape[1] == 0:
        raise ValueError(f"{file}: {key_A} belongs to a grouped convolution, which is not supported; merge the adapter")
    if A.dim() < 2 or B.dim() < 2 or A.shape[0] != B.shape[1] or A.shape[0] < 1:
        raise _damaged(file, f"has {key_A} of shape {tuple(A.shape)} beside a {end_B} of shape {tuple(B.shape)}")
    for tensor in (A, B):
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ValueError(
                f"{file}: {key_A} or its B is in {str(tensor.dtype).removeprefix('torch.')}; convert the adapter to float32, "
                "float16 or bfloat16"
            )
    return int(A.shape[0])


def _matcher(patterns: Mapping[str, Any], file: str) -> Callable[[str, Any], Any]:
    """Return a function (name, default) -> value of the first pattern that matches, by PEFT's rule, in bounded time.

    A pattern of one whole name, as glora writes it, is looked up; others are matched as PEFT matches them.
    """
    values = list(patterns.values())
    exact: dict[str, int] = {}
    others: list[tuple[int, re.Pattern[str]]] = []
    for place, key in enumerate(patterns):
        if key == exact_pattern(name := re.sub(r"\\(.)", r"\1", key[1:])):
            exact[name] = place
            continue
        if _may_take_forever(key):
            raise ValueError(
                f"{file}: the pattern {_shortened(key)!r} repeats a repetition or has more than {MAX_QUANTIFIERS} of * and +; "
                "name the modules instead"
            )
        try:
            re.compile(key)
            others.append((place, re.compile(rf"(.*\.)?({key})$")))
        except (re.error, RecursionError, OverflowError) as error:
            raise _damaged(file, f"has the pattern {_shortened(key)!r}, not a regular expression,") from error

    def find(name: str, default: Any) -> Any:
        last = exact.get(name, len(values))
        for place, expression in others:
            if place > last:
                break
            if expression.match(name):
                return values[place]
        return values[last] if last < len(values) else default

    return find


def _may_take_forever(pattern: str) -> bool:
    """Return whether a backtracking matcher may need more than a polynomial of low degree of steps.

    That takes a repeated group with a repetition or a choice inside, such as `(a+)+` or `(a|a)*`, or many repetitions.
    """
    # an escaped character and a set of characters are one character
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern)
    if len(UNBOUNDED.findall(plain)) > MAX_QUANTIFIERS:
        return True
    inner = re.compile(r"\(([^()]*)\)")
    while group := inner.search(plain):
        repeated = UNBOUNDED.match(plain, group.end()) or re.match(r"\{", plain[group.end() :])
        if repeated and re.search(r"[*+{|]", group[1]):
            return True
        # what is left of a group in the pattern around it: a repetition stays one
        plain = plain[: group.start()] + ("x*" if UNBOUNDED.search(group[1]) else "x") + plain[group.end() :]
    return False


def _damaged(file: str | Path, what: str) -> ValueError:
    return ValueError(f"{file} {what}; save the adapter again with save_pretrained, or download it again")


def _shortened(what: object, most: int = 120) -> str:
    text = " ".join(str(what).split()) or type(what).__name__
    return text if len(text) <= most else text[:most] + "..."
