"""One LoRA adapter of one model: its matrices by name, their ranks, and how the ranks change under a live model.

Whoever changes ranks does it here, so that the layers, the optimiser, PEFT's configuration and the module tree always
agree: the allocator at the reallocation, and the loading of a checkpoint whose ranks are others than the model's.
"""

from __future__ import annotations

import copy
import hashlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from glora.lora.discovery import find_lora_layers, min_supported_rank
from glora.lora.layout import Gather, Layout, is_sharded, is_unit
from glora.lora.matrix import (
    adapted_model,
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
from glora.lora.optimizer_state import group_of, insert_parameter, states_of
from glora.lora.peft_config import describe_ranks
from glora.lora.rank_scaling import RankScaling, scaling_at
from glora.lora.resize import Keep, resize_lora_layer

# Takes a matrix's name, and tensors that all processes shall have alike.
Share = Callable[[str, Iterable[torch.Tensor]], None]

# A factor's key in the file of an adapter, and in the model's state dict.
_KEYS = {
    "lora_A.weight": "lora_A.{}.weight",
    "lora_B.weight": "lora_B.{}.weight",
    "lora_embedding_A": "lora_embedding_A.{}",
    "lora_embedding_B": "lora_embedding_B.{}",
}

# The adapter of a model that follows what is loaded into it, by the base model.
_FOLLOWERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[RankedAdapter]] = weakref.WeakKeyDictionary()


class RankedAdapter:
    """The matrices of one adapter and their ranks.

    Args:
        model: A PeftModel, a transformers model with an adapter, or a module that holds one such model; may be wrapped for
            parallel training.
        adapter_name: Which adapter; None takes the active one.

    Attributes:
        name: The adapter's name.
        model: The model as it was given.
        root: The base model, which module names are relative to.
        layers: The LoRA layers by module name, those at rank 0 included.
        shapes: (d_out, d_in) of each matrix, or of each expert's.
        costs: Parameters of one rank of each matrix, d_in + d_out (times the number of experts).
        min_supported_ranks: The smallest rank each matrix can have, 0 or 1, and why.
        initial_ranks: The ranks when this object was made.
        ranks: The ranks now; 0 where the adapter was taken out.
        rank_scaling: How the scaling of a matrix follows its rank, in every change of ranks.
        layout: How processes hold the model; changes of rank go through it. `glora.distributed` sets it.

    Raises:
        ValueError: for what `find_lora_layers` refuses.
    """

    def __init__(self, model: nn.Module, adapter_name: str | None = None) -> None:
        self.name, self.layers = find_lora_layers(model, adapter_name)
        self.model = model
        adapted = adapted_model(model)
        self.root = base_model(adapted)
        self.layout = Layout()
        self._configs = peft_configs(adapted)
        self._config = self._configs.get(self.name)
        self._exclude_modules = getattr(self._config, "exclude_modules", None)
        self.shapes = {name: dimensions(layer, self.name) for name, layer in self.layers.items()}
        self.costs = {name: cost(layer, self.name) for name, layer in self.layers.items()}
        self.min_supported_ranks = {
            name: min_supported_rank(layer, self.name, self._config) for name, layer in self.layers.items()
        }
        self.initial_ranks = {name: layer.r[self.name] for name, layer in self.layers.items()}
        self.ranks = dict(self.initial_ranks)
        self.rank_scaling: RankScaling = "held"
        self._last_ranks: dict[str, int] = {}  # of those at rank 0, before they came to it
        self._removed: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, tuple[int | None, int | None]] = {}
        self._following: RemovableHandle | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self.asked_by: object = None
        paths = {module: path for path, module in self.root.named_modules()}
        self._paths = {name: paths[layer] for name, layer in self.layers.items()}

    @classmethod
    def following(cls, model: nn.Module) -> RankedAdapter | None:
        """The one that follows what is loaded into this model, if there is one; whoever asked it to.

        It alone knows the matrices whose adapter was taken out.
        """
        return _FOLLOWERS.get(base_model(adapted_model(model)), lambda: None)()

    def describes(self, model: nn.Module, adapter_name: str | None = None) -> bool:
        """Whether the model still has this adapter, in these layers: it may have been merged since, or given a new one."""
        try:
            name, layers = find_lora_layers(model, adapter_name)
        except ValueError:
            return False
        present = {name: layer for name, layer in self.layers.items() if self.ranks[name] > 0}
        return name == self.name and layers == present

    @property
    def initialisation(self) -> bool | str:
        """PEFT's init_lora_weights."""
        how: bool | str = getattr(self._config, "init_lora_weights", True)
        return how

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
        share: Share | None = None,
    ) -> None:
        """Give every matrix its rank: layers, optimiser, module tree and PEFT's configuration.

        Args:
            ranks: The rank of each matrix, by name. At 0 the LoRA layer is taken out of the model.
            optimizer: The optimiser that trains the adapter, if there is one yet.
            keep: Which columns a shrinking matrix keeps.
            seed: Seeds the new rows of A; each module draws by its name.
            share: Makes the factors of a resized matrix, and their moments, the same on all processes.
        """
        returning = [name for name, rank in ranks.items() if rank > self.ranks[name] == 0]
        with self.layout.resizing(returning) as gather:
            # Those that leave come last, because those that come back go by their neighbours' places in the optimiser.
            for name in sorted(self.layers, key=lambda name: ranks[name] == 0):
                if ranks[name] != self.ranks[name]:
                    self._set_rank(name, ranks[name], gather, optimizer, keep, seed, share)
            self.ranks = {name: ranks[name] for name in self.layers}
            if self.name in self._configs:
                # PEFT keeps the very object that it was given; other adapters and models that were given it keep it as it is
                config = self._configs[self.name] = copy.deepcopy(self._configs[self.name])
                present = {name: layer for name, layer in self.layers.items() if ranks[name] > 0}
                removed = [name for name, rank in self.ranks.items() if rank == 0]
                describe_ranks(config, present, removed, self.name, self._exclude_modules)

    def _set_rank(
        self,
        name: str,
        rank: int,
        gather: Gather,
        optimizer: torch.optim.Optimizer | None,
        keep: Keep,
        seed: str,
        share: Share | None,
    ) -> None:
        scaling = self._scaling(name, rank)
        if self.ranks[name] == 0:
            self._put_back(name)
        elif rank == 0:
            self._remember(name, optimizer)
        layer = self.layers[name]
        with gather(layer, self.name, optimizer):
            resize_lora_layer(
                layer,
                rank,
                optimizer=optimizer,
                adapter_name=self.name,
                keep=keep,
                init_lora_weights=getattr(self._config, "init_lora_weights", True),
                generator=_generator(seed, name),
                scaling=scaling,
            )
            if share is not None and rank > 0:
                share(name, self._tensors_of(name, optimizer))
        if rank == 0:
            self._take_out(name)
        elif self.ranks[name] == 0 and optimizer is not None:
            self._enter(name, optimizer)

    def follow_loading(self, optimizer: torch.optim.Optimizer | None = None, asked_by: object = None) -> None:
        """Until `stop_following`, let weights of other ranks be loaded into the model, by taking on their ranks first.

        Trainer loads a checkpoint before any event of training, and the best model after the last; PEFT's
        `load_adapter` into an adapter that exists does not read the configuration again, and fails where the shapes
        differ.

        Args:
            optimizer: The optimiser that trains the adapter, if there is one yet.
            asked_by: Who asks; kept as `asked_by`.
        """
        self._optimizer, self.asked_by = optimizer, asked_by
        if self._following is None:
            hook = self._before_loading
            self._following = self.root.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]
            _FOLLOWERS[self.root] = weakref.ref(self)

    def stop_following(self) -> None:
        """Undo `follow_loading`."""
        if self._following is not None:
            self._following.remove()
            self._following = self._optimizer = self.asked_by = None
            _FOLLOWERS.pop(self.root, None)

    def _before_loading(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in self._removed:
            # PEFT's keys have the adapter's name in them only for modules that have the adapter
            path = prefix + self._paths[name]
            for stored, loaded in _KEYS.items():
                if (key := f"{path}.{stored}") in state_dict:
                    state_dict[f"{path}.{loaded.format(self.name)}"] = state_dict.pop(key)
        rows = {name: rank_in(state_dict, prefix + path, self.name) for name, path in self._paths.items()}
        if not any(rows.values()):
            return  # other weights than this adapter's
        found = {name: (rows[name] or 0) // experts(layer) for name, layer in self.layers.items()}
        if found != self.ranks:
            present = (layer for name, layer in self.layers.items() if self.ranks[name] > 0)
            if any(is_sharded(factor) for layer in present for factor in factors(layer, self.name)):
                raise ValueError(
                    "what is being loaded has other ranks than the model, which fully_shard has spread over the processes "
                    "already. To resume, call callback.take_ranks_from(checkpoint) before "
                    "trainer.train(resume_from_checkpoint=checkpoint); in a loop of your own, load the allocator's state "
                    "before the weights. (With load_best_model_at_end the best model is from before the reallocation: "
                    "load it from its checkpoint, into a new model)"
                )
            self.set_ranks(found, optimizer=self._optimizer)

    def _scaling(self, name: str, rank: int) -> float | None:
        """What `rank_scaling` makes of this matrix's scaling at another rank; None to hold it."""
        if rank == 0:
            return None
        layer = self.layers[name]
        if self.ranks[name] == 0:
            return scaling_at(rank, self._last_ranks[name], self._removed[name]["scaling"], self.rank_scaling)
        return scaling_at(rank, self.ranks[name], layer.scaling[self.name], self.rank_scaling)

    def _remember(self, name: str, optimizer: torch.optim.Optimizer | None) -> None:
        layer = self.layers[name]
        self._removed[name] = adapter_entries(layer, self.name)
        self._last_ranks[name] = layer.r[self.name]
        if optimizer is not None:
            A, B = factors(layer, self.name)
            self._groups[name] = group_of(optimizer, A), group_of(optimizer, B)

    def _tensors_of(self, name: str, optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
        pair = factors(self.layers[name], self.name)
        states = [] if optimizer is None else [state for factor in pair for state in states_of(optimizer, factor)]
        return [*pair, *states]

    def _take_out(self, name: str) -> None:
        """Put the base layer in the LoRA layer's place, unless that serves another adapter, or gathers the base's shards."""
        layer = self.layers[name]
        if len(layer.lora_A) == len(layer.lora_embedding_A) == 0 and not is_unit(layer):
            parent, _, child = name.rpartition(".")
            setattr(self.root.get_submodule(parent), child, layer.base_layer)

    def _put_back(self, name: str) -> None:
        layer = self.layers[name]
        put_adapter(layer, self.name, self._removed.pop(name))
        # outside the tree it has missed what happened to the model
        layer.train(layer.get_base_layer().training)
        layer._move_adapter_to_device_of_base_layer(self.name)
        parent, _, child = name.rpartition(".")
        setattr(self.root.get_submodule(parent), child, layer)

    def _enter(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Give the factors of a matrix that was at rank 0 their places in the optimiser.

        The group is the one that they were in or, if the optimiser is younger than that, that of the nearest matrix;
        within it they stand in the model's order, as in an optimiser that is made from the model.
        """
        places = {parameter: place for place, parameter in enumerate(self.root.parameters())}
        names = list(self.layers)
        present = (other for other in names if other != name and self.ranks[other] > 0)
        nearest = min(present, key=lambda other: abs(names.index(other) - names.index(name)))
        siblings = factors(self.layers[nearest], self.name)
        groups = self._groups.pop(name, None) or tuple(group_of(optimizer, sibling) for sibling in siblings)
        for parameter, group in zip(factors(self.layers[name], self.name), groups):
            if group is not None:
                insert_parameter(optimizer, parameter, group, places)


def _generator(seed: str, name: str) -> torch.Generator:
    """New columns depend on the seed and the module's name alone, not on the order of modules or any global state."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
