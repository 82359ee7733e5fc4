"""A LoRA adapter in files, read so that every error is one message that names the file.

An adapter comes from anywhere: cut off by a full disk, edited by hand, or hostile. `read_adapter` checks what a later step
relies on: the configuration is a LoRA configuration, the weights are whole, and both have the same ranks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights

from glora.lora.peft_config import exact_pattern

PREFIX = "base_model.model."  # PEFT's, of every name in an adapter's file
FACTORS = {  # endings of the keys of A and B
    "lora_A.weight": "lora_B.weight",
    "lora_embedding_A": "lora_embedding_B",
}
MAX_ALPHA = 1e30
MAX_QUANTIFIERS = 3  # unbounded ones in a pattern: matching a name of length L then takes L⁴ steps at most
UNBOUNDED = re.compile(r"[*+]|\{\d*,\}")


@dataclass
class SavedAdapter:
    """An adapter's files.

    Attributes:
        config: The configuration.
        tensors: The weights, by their keys in the file.
        ranks: r_k of each matrix, by the prefix of its keys, as the weights have it.
        alphas: α_k of each matrix.
    """

    config: LoraConfig
    tensors: dict[str, torch.Tensor]
    ranks: dict[str, int]
    alphas: dict[str, float]

    def scaling(self, prefix: str) -> float:
        """Return s_k: α_k/r_k, or α_k/√r_k with rsLoRA."""
        rank = self.ranks[prefix]
        return self.alphas[prefix] / (math.sqrt(rank) if self.config.use_rslora else rank)


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
            "load the model with it and use glora.export_uniform(model, directory)"
        )
    tensors, weights = _read_weights(adapter)
    ranks: dict[str, int] = {}
    for key in tensors:
        for end_A, end_B in FACTORS.items():
            if key.endswith(f".{end_B}") and key.removesuffix(end_B) + end_A not in tensors:
                raise _damaged(weights, f"has {key} without its {end_A}")
            if key.endswith(f".{end_A}"):
                ranks[key.removesuffix(end_A)] = _rank_of(tensors, key, end_A, end_B, weights)
    if not ranks:
        raise _damaged(weights, "has no LoRA weights")
    rank_of = _matcher(config.rank_pattern or {}, file)
    alpha_of = _matcher(config.alpha_pattern or {}, file)
    alphas: dict[str, float] = {}
    for prefix, rank in ranks.items():
        name = prefix.removeprefix(PREFIX).removesuffix(".")
        alphas[prefix] = alpha_of(name, config.lora_alpha)
        if (expected := rank_of(name, config.r)) != rank:
            raise ValueError(
                f"{weights}: {name} has rank {rank}, but {file} gives it {expected}; PEFT cannot load such an adapter. Save "
                "it again with save_pretrained"
            )
    return SavedAdapter(config, tensors, ranks, alphas)


def _read_config(adapter: str | Path) -> tuple[LoraConfig, str]:
    file = Path(adapter) / CONFIG_NAME
    if not Path(adapter).is_dir() or not file.is_file():
        try:
            config = PeftConfig.from_pretrained(str(adapter))
        except Exception as error:  # no such folder, no such id, no connection
            raise ValueError(
                f"there is no adapter at {str(adapter)!r}; give a folder with {CONFIG_NAME}, as save_pretrained writes it, "
                "or an adapter's id on the hub"
            ) from error
    else:
        try:
            if not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
                raise TypeError("it is not a JSON object")
            config = PeftConfig.from_pretrained(str(adapter))
        except Exception as error:  # PEFT gives a hostile file to a dozen constructors, which raise anything
            raise _damaged(file, f"is not a readable configuration ({_shortened(error)})") from error
    if not isinstance(config, LoraConfig):
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
    plain = re.sub(
        r"\\.|\[\^?\]?[^\]]*\]", "x", pattern
    )  # an escaped character and a set of characters are one character
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
