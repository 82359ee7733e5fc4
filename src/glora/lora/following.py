"""An adapter follows what is loaded into its model: the ranks of the weights become the model's.

Trainer loads a checkpoint before any event of training, and the best model after the last; PEFT's `load_adapter` into an
adapter that exists does not read the configuration again, and fails where the shapes differ. A matrix that the weights do not
have is at rank 0 only where the configuration beside them, or the base weights among them, say so: otherwise they are a part of
an adapter, which is left to PEFT. Other ranks of another scaling are an error, as in PEFT: the weights were trained to compute
another function.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.utils.hooks import RemovableHandle

from glora.lora.adapter import RankedAdapter
from glora.lora.discovery import adapted_model, base_model
from glora.lora.layout import is_sharded
from glora.lora.matrix import LoraMatrix
from glora.lora.peft_config import check_scalings

# A factor's key in the file of an adapter, and in the model's state dict.
_KEYS = {
    "lora_A.weight": "lora_A.{}.weight",
    "lora_B.weight": "lora_B.{}.weight",
    "lora_embedding_A": "lora_embedding_A.{}",
    "lora_embedding_B": "lora_embedding_B.{}",
}

# DistributedDataParallel's attribute of the model that it wraps: names of parameters that it leaves alone.
_IGNORED_BY_DDP = "_ddp_params_and_buffers_to_ignore"


class Hook:
    """A function of an owner that its model calls; a copied or saved model comes without."""

    def __init__(self, owner: object, call: Callable[..., None]) -> None:
        self.owner, self.call = owner, call

    def __call__(self, *arguments: Any) -> None:
        """Call the function."""
        self.call(*arguments)

    def __reduce__(self) -> Any:
        return partial, (_do_nothing,)


def _do_nothing(*_: Any) -> None:
    pass


class OwnMethod:
    """A method that one model has in place of its class's; a copied or saved model comes without."""

    def __init__(self, model: nn.Module, name: str, call: Callable[..., Any]) -> None:
        self._model, self._name, self._call = model, name, call
        vars(model)[name] = self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return self._call(*arguments, **options)

    def __reduce__(self) -> Any:
        return getattr, (self._model, self._name)  # the class's own, of the copy


class Following:
    """Until `stop_following`, an adapter takes on the ranks of weights that are loaded into its model.

    Attributes:
        adapter: The adapter.
        asked_by: The configuration of the callback that asked for it.
        optimizer: Gives the optimizer that trains the adapter; None if there is none yet.
        loading: The configuration beside the weights that are being loaded; None if there is none.
        loaded: The configuration beside the weights that were loaded last into this adapter.
    """

    def __init__(self, adapter: RankedAdapter) -> None:
        self.adapter = adapter
        self.asked_by: object = None
        self.optimizer: Callable[[], torch.optim.Optimizer | None] = lambda: None
        self.loading: PeftConfig | None = None
        self.loaded: PeftConfig | None = None
        self._places: list[RemovableHandle] = []
        self._ignored_by_ddp: tuple[str, ...] = ()
        hook = Hook(self, self._before_loading)
        self._handle = adapter.root.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]
        if hasattr(adapter.adapted, "load_adapter"):
            OwnMethod(adapter.adapted, "load_adapter", self._load_adapter)

    def take_ranks(
        self, ranks: Mapping[str, int], optimizer: torch.optim.Optimizer | None = None, *, keep_places: bool
    ) -> None:
        """Give the adapter the ranks of a checkpoint.

        Args:
            ranks: The rank of each matrix, by name.
            optimizer: The optimizer that trains the adapter, if there is one yet.
            keep_places: Leave the LoRA layers at rank 0 in the model until `take_out_empty`, the next forward pass or
                state dict, for an optimizer that is still to be made.
        """
        adapter, model = self.adapter, self.adapter.model
        adapter.set_ranks(ranks, optimizer=optimizer, keep_places=keep_places)
        if not keep_places:
            return
        if not self._places:
            # PEFT reads the state dict to load another adapter: that is not yet a use of the model
            hook = Hook(self, lambda *_: None if self.loading else self.take_out_empty())
            self._places = [
                adapter.root.register_forward_pre_hook(hook),
                adapter.root.register_state_dict_pre_hook(hook),  # type: ignore[no-untyped-call]
            ]
            self._ignored_by_ddp = tuple(getattr(model, _IGNORED_BY_DDP, ()))
        empty = {factor for m in adapter.matrices.values() if m.present and m.rank == 0 for factor in m.factors}
        names = [name for name, parameter in model.named_parameters() if parameter in empty]
        vars(model)[_IGNORED_BY_DDP] = [*self._ignored_by_ddp, *names]

    def take_out_empty(self) -> None:
        """Take the adapters of rank 0 out that `take_ranks(..., keep_places=True)` has left in the model."""
        if self._places:
            for handle in self._places:
                handle.remove()
            self._places = []
            vars(self.adapter.model).pop(_IGNORED_BY_DDP, None)
            if self._ignored_by_ddp:
                vars(self.adapter.model)[_IGNORED_BY_DDP] = list(self._ignored_by_ddp)
        self.adapter.take_out_empty()

    def _before_loading(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        adapter = self.adapter
        for name, matrix in adapter.matrices.items():
            if matrix.present:
                continue
            # PEFT's keys have the adapter's name in them only for modules that have the adapter
            path = prefix + adapter.paths[name]
            for stored, loaded in _KEYS.items():
                if (key := f"{path}.{stored}") in state_dict:
                    state_dict[f"{path}.{loaded.format(adapter.name)}"] = state_dict.pop(key)
        rows = {name: _rows_of_A(state_dict, prefix + path, adapter.name) for name, path in adapter.paths.items()}
        if not any(rows.values()):
            return  # other weights than this adapter's
        bases = {key.rpartition(".")[0].removesuffix(".base_layer") for key in state_dict if ".lora_" not in key}
        removed = self._excluded() | {name for name, path in adapter.paths.items() if prefix + path in bases}
        found = {name: rows[name] // matrix.experts for name, matrix in adapter.matrices.items()}
        layers = {path for path, m in adapter.root.named_modules(remove_duplicate=False) if isinstance(m, LoraLayer)}
        unknown = _modules_in(state_dict, adapter.name) - {prefix + path for path in {*layers, *adapter.paths.values()}}
        if unknown or any(rank == 0 < adapter.matrices[n].rank and n not in removed for n, rank in found.items()):
            return  # a part of an adapter, or an adapter of other modules too, which PEFT rejects if its ranks differ
        if found != adapter.ranks:
            if any(map(is_sharded, adapter.factors)):
                raise ValueError(
                    "the weights to load have other ranks than the model, which fully_shard has spread over the processes "
                    "already. To resume, call callback.take_ranks_from(checkpoint) before "
                    "trainer.train(resume_from_checkpoint=checkpoint); in your own training loop, load the allocator's state "
                    "before the weights. (With load_best_model_at_end the best model is from before the reallocation: "
                    "load it from its checkpoint, into a new model)"
                )
            in_weights = {name: scaling for name, scaling in adapter.scalings.items() if found[name]}
            check_scalings(in_weights, adapter.scalings_beside(self.loading))
            optimizer = self.optimizer()
            self.take_ranks(found, optimizer, keep_places=optimizer is None)
        for name, matrix in adapter.matrices.items():
            if matrix.present and matrix.rank == 0:
                _fill(state_dict, prefix + adapter.paths[name], matrix)

    def _load_adapter(self, *arguments: Any, **options: Any) -> Any:
        """Load as the model's class does, and note the configuration beside the weights."""
        folder = arguments[0] if arguments else options.get("model_id", options.get("peft_model_id"))
        where = {key: options[key] for key in ("subfolder", "revision", "cache_dir", "token") if key in options}
        try:
            self.loading = PeftConfig.from_pretrained(str(folder), **where)
        except (ValueError, OSError, TypeError):
            self.loading = None  # PEFT says what is wrong there
        name = arguments[1] if len(arguments) > 1 else options.get("adapter_name", self.adapter.name)
        if name == self.adapter.name:
            self.loaded = self.loading
        model: Any = self.adapter.adapted
        try:
            return type(model).load_adapter(model, *arguments, **options)
        finally:
            self.loading = None

    def _excluded(self) -> set[str]:
        """Return the matrices that the configuration of the adapter that is being loaded says to be at rank 0."""
        exclude = getattr(self.loading, "exclude_modules", None)
        patterns = set(exclude.split("|")) if isinstance(exclude, str) else set()
        return {name for name in self.adapter.matrices if re.escape(name) in patterns}


def following(model: nn.Module) -> Following | None:
    """Return the first that follows this model's loads, if any does. Its adapter alone knows matrices that were taken out."""
    return next(_all_following(base_model(adapted_model(model))), None)


def _all_following(root: nn.Module) -> Iterator[Following]:
    owners = (getattr(getattr(w, "hook", None), "owner", None) for w in root._load_state_dict_pre_hooks.values())
    return (owner for owner in owners if isinstance(owner, Following))


def follow_loading(
    adapter: RankedAdapter, optimizer: torch.optim.Optimizer | None = None, asked_by: object = None
) -> Following:
    """Let an adapter follow what is loaded into its model.

    Args:
        adapter: The adapter.
        optimizer: The optimizer that trains it. Until there is one, matrices at rank 0 keep their places in the model (empty),
            so that an optimizer made from it has the parameter groups of the run that saved its state.
        asked_by: The caller's configuration.
    """
    known = next((one for one in _all_following(adapter.root) if one.adapter is adapter), None) or Following(adapter)
    known.optimizer = (lambda: None) if optimizer is None else weakref.ref(optimizer)
    known.asked_by = asked_by
    return known


def stop_following(adapter: RankedAdapter) -> None:
    """Undo `follow_loading`: what is loaded is left to PEFT again."""
    for one in list(_all_following(adapter.root)):
        if one.adapter is adapter:
            one._handle.remove()
            vars(adapter.adapted).pop("load_adapter", None)


def adapter_in(model: nn.Module, adapter_name: str, *, trainable: bool = True) -> RankedAdapter:
    """Return the adapter of this name that follows what is loaded, or a new description of it."""
    known = following(model)
    if known is not None and known.adapter.name == adapter_name:
        return known.adapter
    return RankedAdapter(model, adapter_name, trainable=trainable)


def _fill(state_dict: dict[str, Any], path: str, matrix: LoraMatrix) -> None:
    """Give weights to load the names and the empty factors of a matrix at rank 0 that is still in its LoRA layer."""
    for key in [key for key in state_dict if key.startswith(f"{path}.")]:
        rest = key.removeprefix(f"{path}.")
        if not rest.startswith(("base_layer.", "lora_")):
            state_dict[f"{path}.base_layer.{rest}"] = state_dict.pop(key)
    for name, parameter in matrix.layer.named_parameters():
        if parameter is matrix.A or parameter is matrix.B:
            state_dict[f"{path}.{name}"] = parameter.detach()


def _rows_of_A(state_dict: Mapping[str, torch.Tensor], module_name: str, adapter_name: str) -> int:
    """Return the rows of A that a state dict holds for one module's adapter (E·r for experts); 0 where it holds none."""
    for key in (f"{module_name}.lora_A.{adapter_name}.weight", f"{module_name}.lora_embedding_A.{adapter_name}"):
        if key in state_dict:
            return state_dict[key].shape[0]
    return 0


def _modules_in(state_dict: Mapping[str, torch.Tensor], adapter_name: str) -> set[str]:
    """Return the modules that have this adapter in a state dict, by a file's keys or by the model's."""
    ends = [f".{key}" for pair in _KEYS.items() for key in (pair[0], pair[1].format(adapter_name))]
    return {key.removesuffix(end) for key in state_dict for end in ends if key.endswith(end)}
