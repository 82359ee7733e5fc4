"""One LoRA adapter of one model: its matrices by name, their ranks, and how the ranks change under a live model.

Whoever changes ranks does it here, so that the layers, the optimiser, PEFT's configuration and the module tree always agree:
the allocator at the reallocation, and the loading of a checkpoint whose ranks are others than the model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from glora.adapter import describe_ranks
from glora.adapter_discovery import find_lora_layers, floor_of
from glora.lora_layers import (
    adapter_entries,
    base_model,
    cost,
    dimensions,
    experts,
    factors,
    peft_configs,
    put_adapter,
    rank_in,
)
from glora.optimizer_state import group_of, insert_parameter
from glora.resize import Keep, resize_lora_layer


class RankedAdapter:
    """The matrices of one adapter and their ranks.

    Args:
        model: A PeftModel, or a transformers model with an adapter; may be wrapped for parallel training.
        adapter_name: Which adapter; None takes the active one.

    Attributes:
        name: The adapter's name.
        root: The base model, which module names are relative to.
        layers: The LoRA layers by module name, those at rank 0 included.
        shapes: (d_out, d_in) of each matrix, or of each expert's.
        costs: Parameters of one rank of each matrix, d_in + d_out (times the number of experts).
        floors: The smallest rank each matrix can have, 0 or 1, and why.
        initial_ranks: The ranks when this object was made.
        ranks: The ranks now; 0 where the adapter was taken out.

    Raises:
        ValueError: for what `find_lora_layers` refuses.
    """

    def __init__(self, model: nn.Module, adapter_name: str | None = None) -> None:
        self.name, self.layers = find_lora_layers(model, adapter_name)
        self.root = base_model(model)
        self.shapes = {name: dimensions(layer, self.name) for name, layer in self.layers.items()}
        self.costs = {name: cost(layer, self.name) for name, layer in self.layers.items()}
        self.floors = {name: floor_of(layer, self.name) for name, layer in self.layers.items()}
        self.initial_ranks = {name: layer.r[self.name] for name, layer in self.layers.items()}
        self.ranks = dict(self.initial_ranks)
        self._config = peft_configs(model).get(self.name)
        self._exclude_modules = getattr(self._config, "exclude_modules", None)
        self._removed: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, tuple[int, int]] = {}
        self._following: RemovableHandle | None = None
        paths = {module: path for path, module in self.root.named_modules()}
        self._paths = {name: paths[layer] for name, layer in self.layers.items()}

    @property
    def parameters(self) -> int:
        """Parameters at the present ranks: Σ r_k·(d_in + d_out)."""
        return sum(rank * self.costs[name] for name, rank in self.ranks.items())

    def set_ranks(
        self,
        ranks: Mapping[str, int],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        keep: Keep = "norm",
        seed: str = "0",
    ) -> None:
        """Give every matrix its rank: layers, optimiser, module tree and PEFT's configuration.

        Args:
            ranks: The rank of each matrix, by name. At 0 the LoRA layer is taken out of the model.
            optimizer: The optimiser that trains the adapter, if there is one yet.
            keep: Which columns a shrinking matrix keeps.
            seed: Seeds the new rows of A; each module draws by its name.
        """
        for name in self.layers:
            if ranks[name] == self.ranks[name]:
                continue
            if self.ranks[name] == 0:
                self._put_back(name)
            elif ranks[name] == 0:
                self._remember(name, optimizer)
            layer = self.layers[name]
            generator = _generator(seed, name)
            resize_lora_layer(
                layer,
                ranks[name],
                optimizer=optimizer,
                adapter_name=self.name,
                keep=keep,
                init_lora_weights=getattr(self._config, "init_lora_weights", True),
                generator=generator,
            )
            if ranks[name] == 0:
                self._take_out(name)
            elif self.ranks[name] == 0 and optimizer is not None:
                for parameter, group in zip(factors(layer, self.name), self._groups.pop(name, (0, 0))):
                    insert_parameter(optimizer, parameter, group)
        self.ranks = {name: ranks[name] for name in self.layers}
        if self._config is not None:
            present = {name: layer for name, layer in self.layers.items() if ranks[name] > 0}
            removed = [name for name, rank in self.ranks.items() if rank == 0]
            describe_ranks(self._config, present, removed, self.name, self._exclude_modules)

    def follow_loading(self) -> None:
        """Until `stop_following`, let weights of other ranks be loaded into the model, by taking on their ranks first.

        Trainer loads a checkpoint before any event of training, and the best model after the last; PEFT's `load_adapter` into
        an adapter that exists does not read the configuration again, and fails where the shapes differ.
        """
        if self._following is None:
            hook = self._before_loading
            self._following = self.root.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]

    def stop_following(self) -> None:
        """Undo `follow_loading`."""
        if self._following is not None:
            self._following.remove()
            self._following = None

    def _before_loading(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        rows = {name: rank_in(state_dict, prefix + path, self.name) for name, path in self._paths.items()}
        if not any(rows.values()):
            return  # other weights than this adapter's
        found = {name: (rows[name] or 0) // experts(layer) for name, layer in self.layers.items()}
        if found != self.ranks:
            self.set_ranks(found)

    def _remember(self, name: str, optimizer: torch.optim.Optimizer | None) -> None:
        layer = self.layers[name]
        self._removed[name] = adapter_entries(layer, self.name)
        if optimizer is not None:
            A, B = factors(layer, self.name)
            self._groups[name] = group_of(optimizer, A), group_of(optimizer, B)

    def _take_out(self, name: str) -> None:
        """Put the base layer in the LoRA layer's place, unless that still serves another adapter."""
        layer = self.layers[name]
        if len(layer.lora_A) == len(layer.lora_embedding_A) == 0:
            parent, _, child = name.rpartition(".")
            setattr(self.root.get_submodule(parent), child, layer.base_layer)

    def _put_back(self, name: str) -> None:
        layer = self.layers[name]
        put_adapter(layer, self.name, self._removed.pop(name))
        parent, _, child = name.rpartition(".")
        setattr(self.root.get_submodule(parent), child, layer)


def _generator(seed: str, name: str) -> torch.Generator:
    """New columns depend on the seed and the module's name alone, not on the order of modules or any global state."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
