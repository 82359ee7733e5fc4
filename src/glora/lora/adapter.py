"""One LoRA adapter of one model: its matrices by name, their ranks, and how the ranks change under a live model.

Every change of ranks goes through `RankedAdapter.set_ranks`, so that the layers, the optimizer, PEFT's configuration and the
module tree always agree: the allocator's reallocation, and the loading of a checkpoint with other ranks than the model's.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from glora.config import Keep
from glora.lora.discovery import adapted_model, base_model, find_matrices, peft_configs
from glora.lora.layout import is_sharded, is_unit
from glora.lora.matrix import LoraMatrix
from glora.lora.optimizer_state import group_of, insert_parameter, states_of
from glora.lora.peft_config import describe_ranks

# (matrix, optimizer) -> a context within which the matrix's factors and their state are whole, and may change shape
Gather = Callable[[LoraMatrix, "torch.optim.Optimizer | None"], AbstractContextManager[None]]

# (name of a matrix, its tensors): makes the tensors the same on all processes
Share = Callable[[str, Iterable[torch.Tensor]], None]

# A factor's key in the file of an adapter, and in the model's state dict.
_KEYS = {
    "lora_A.weight": "lora_A.{}.weight",
    "lora_B.weight": "lora_B.{}.weight",
    "lora_embedding_A": "lora_embedding_A.{}",
    "lora_embedding_B": "lora_embedding_B.{}",
}


class Layout:
    """A model in one process: nothing has to follow when its ranks change.

    glora.distributed has the layouts of DistributedDataParallel and FSDP2.
    """

    @contextmanager
    def resizing(self, returning: Sequence[str]) -> Iterator[Gather]:
        """Change ranks within this context.

        Args:
            returning: The matrices that come back from rank 0.
        """
        yield lambda *_: nullcontext()


class RankedAdapter:
    """The matrices of one adapter and their ranks.

    Args:
        model: A PeftModel, a transformers model with an adapter, or a module that holds one such model; may be wrapped for
            parallel training.
        adapter_name: The adapter. Default: the active one.

    Attributes:
        name: The adapter's name.
        model: The model as it was given.
        root: The base model, which module names are relative to.
        matrices: The matrices by name, those at rank 0 included.
        initial_ranks: The ranks when this object was made.
        layout: How processes hold the model; changes of rank go through it. `glora.distributed` sets it.

    Raises:
        ValueError: for what `find_matrices` rejects.
    """

    def __init__(self, model: nn.Module, adapter_name: str | None = None) -> None:
        self.name, self.matrices = find_matrices(model, adapter_name)
        self.model = model
        adapted = adapted_model(model)
        self.root = base_model(adapted)
        self.initial_ranks = self.ranks
        self.layout = Layout()
        self._configs = peft_configs(adapted)
        self._config = self._configs.get(self.name)
        self._exclude_modules = getattr(self._config, "exclude_modules", None)
        self._groups: dict[str, tuple[int | None, int | None]] = {}
        self._following: RemovableHandle | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self.asked_by: object = None
        paths = {module: path for path, module in self.root.named_modules()}
        self._paths = {name: paths[matrix.layer] for name, matrix in self.matrices.items()}

    @classmethod
    def following(cls, model: nn.Module) -> RankedAdapter | None:
        """Return the adapter that follows what is loaded into this model, if there is one.

        It alone knows the matrices whose adapter was taken out.
        """
        for wrapped in base_model(adapted_model(model))._load_state_dict_pre_hooks.values():
            adapter = getattr(getattr(wrapped, "hook", None), "__self__", None)
            if isinstance(adapter, cls):
                return adapter
        return None

    def describes(self, model: nn.Module, adapter_name: str | None = None) -> bool:
        """Return whether the model still has this adapter, in these layers: it may have been merged, or replaced."""
        try:
            name, found = find_matrices(model, adapter_name)
        except ValueError:
            return False
        layers = {name: matrix.layer for name, matrix in found.items()}
        return name == self.name and layers == {matrix.name: matrix.layer for matrix in self.present}

    @property
    def ranks(self) -> dict[str, int]:
        """r_k by name; 0 where the adapter was taken out."""
        return {name: matrix.rank for name, matrix in self.matrices.items()}

    @property
    def present(self) -> list[LoraMatrix]:
        """The matrices that have an adapter."""
        return [matrix for matrix in self.matrices.values() if matrix.rank > 0]

    @property
    def factors(self) -> list[nn.Parameter]:
        """A and B of every matrix that has an adapter."""
        return [factor for matrix in self.present for factor in matrix.factors]

    @property
    def initialization(self) -> bool | str:
        """PEFT's init_lora_weights."""
        how: bool | str = getattr(self._config, "init_lora_weights", True)
        return how

    @property
    def parameters(self) -> int:
        """Parameters at the present ranks: Σ r_k·(d_in + d_out)."""
        return sum(matrix.rank * matrix.cost for matrix in self.matrices.values())

    def set_ranks(
        self,
        ranks: Mapping[str, int],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        keep: Keep = "norm",
        seed: str = "0",
        share: Share | None = None,
    ) -> None:
        """Give every matrix its rank: layers, optimizer, module tree and PEFT's configuration.

        Args:
            ranks: The rank of each matrix, by name. At 0 the LoRA layer is taken out of the model.
            optimizer: The optimizer that trains the adapter, if there is one yet.
            keep: Columns that a shrinking matrix keeps.
            seed: Seeds the new rows of A, together with the matrix's name.
            share: Makes the factors of a resized matrix, and their moments, the same on all processes.
        """
        returning = [name for name, matrix in self.matrices.items() if ranks[name] > matrix.rank == 0]
        with self.layout.resizing(returning) as gather:
            # Those that leave come last, because those that come back go by their neighbours' places in the optimizer.
            for matrix in sorted(self.matrices.values(), key=lambda matrix: ranks[matrix.name] == 0):
                rank, old_rank = ranks[matrix.name], matrix.rank
                if rank == old_rank:
                    continue
                if old_rank == 0:
                    matrix.restore()
                    self._put_into_tree(matrix, matrix.layer)
                elif rank == 0 and optimizer is not None:
                    self._groups[matrix.name] = group_of(optimizer, matrix.A), group_of(optimizer, matrix.B)
                with gather(matrix, optimizer):
                    matrix.resize(
                        rank,
                        optimizer=optimizer,
                        keep=keep,
                        init_lora_weights=self.initialization,
                        generator=_generator(seed, matrix.name),
                    )
                    if share is not None and rank > 0:
                        share(matrix.name, _tensors_of(matrix, optimizer))
                layer = matrix.layer
                if rank == 0 and len(layer.lora_A) == len(layer.lora_embedding_A) == 0 and not is_unit(layer):
                    # unless the layer serves another adapter, or gathers the base's shards
                    self._put_into_tree(matrix, layer.base_layer)
                elif old_rank == 0 and optimizer is not None:
                    self._enter(matrix, optimizer)
            if self.name in self._configs:
                # PEFT keeps the very object that it was given; other adapters and models with the same one keep it as it is
                config = self._configs[self.name] = copy.deepcopy(self._configs[self.name])
                describe_ranks(config, self.matrices.values(), self._exclude_modules)

    def follow_loading(self, optimizer: torch.optim.Optimizer | None = None, asked_by: object = None) -> None:
        """Until `stop_following`, take on the ranks of weights that are loaded into the model.

        Trainer loads a checkpoint before any event of training, and the best model after the last; PEFT's
        `load_adapter` into an adapter that exists does not read the configuration again, and fails where the shapes
        differ.

        Args:
            optimizer: The optimizer that trains the adapter, if there is one yet.
            asked_by: The caller; kept as `asked_by`.
        """
        self._optimizer, self.asked_by = optimizer, asked_by
        if self._following is None:
            hook = self._before_loading
            self._following = self.root.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]

    def stop_following(self) -> None:
        """Undo `follow_loading`."""
        if self._following is not None:
            self._following.remove()
            self._following = self._optimizer = self.asked_by = None

    def _before_loading(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, matrix in self.matrices.items():
            if matrix.rank > 0:
                continue
            # PEFT's keys have the adapter's name in them only for modules that have the adapter
            path = prefix + self._paths[name]
            for stored, loaded in _KEYS.items():
                if (key := f"{path}.{stored}") in state_dict:
                    state_dict[f"{path}.{loaded.format(self.name)}"] = state_dict.pop(key)
        rows = {name: _rows_of_A(state_dict, prefix + path, self.name) for name, path in self._paths.items()}
        if not any(rows.values()):
            return  # other weights than this adapter's
        found = {name: rows[name] // matrix.experts for name, matrix in self.matrices.items()}
        if found != self.ranks:
            if any(map(is_sharded, self.factors)):
                raise ValueError(
                    "the weights to load have other ranks than the model, which fully_shard has spread over the processes "
                    "already. To resume, call callback.take_ranks_from(checkpoint) before "
                    "trainer.train(resume_from_checkpoint=checkpoint); in your own training loop, load the allocator's state "
                    "before the weights. (With load_best_model_at_end the best model is from before the reallocation: "
                    "load it from its checkpoint, into a new model)"
                )
            self.set_ranks(found, optimizer=self._optimizer)

    def _put_into_tree(self, matrix: LoraMatrix, module: nn.Module) -> None:
        parent, _, child = matrix.name.rpartition(".")
        setattr(self.root.get_submodule(parent), child, module)

    def _enter(self, matrix: LoraMatrix, optimizer: torch.optim.Optimizer) -> None:
        """Give the factors of a matrix that was at rank 0 their places in the optimizer.

        The group is the one that they were in or, if the optimizer is younger than that, that of the nearest matrix;
        within it they follow the model's order, as in an optimizer that is made from the model.
        """
        places = {parameter: place for place, parameter in enumerate(self.root.parameters())}
        names = list(self.matrices)
        others = (other for other in self.present if other is not matrix)
        nearest = min(others, key=lambda other: abs(names.index(other.name) - names.index(matrix.name)))
        groups = self._groups.pop(matrix.name, None) or tuple(group_of(optimizer, factor) for factor in nearest.factors)
        for parameter, group in zip(matrix.factors, groups):
            if group is not None:
                insert_parameter(optimizer, parameter, group, places)


def _rows_of_A(state_dict: Mapping[str, torch.Tensor], module_name: str, adapter_name: str) -> int:
    """Return the rows of A that a state dict holds for one module's adapter (E·r for experts); 0 where it holds none."""
    for key in (f"{module_name}.lora_A.{adapter_name}.weight", f"{module_name}.lora_embedding_A.{adapter_name}"):
        if key in state_dict:
            return state_dict[key].shape[0]
    return 0


def _tensors_of(matrix: LoraMatrix, optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
    states = [] if optimizer is None else [state for factor in matrix.factors for state in states_of(optimizer, factor)]
    return [*matrix.factors, *states]


def _generator(seed: str, name: str) -> torch.Generator:
    """New columns depend on the seed and the module's name alone, not on the order of modules or any global state."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
