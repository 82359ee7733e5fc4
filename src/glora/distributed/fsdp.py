"""A model that `fully_shard` (FSDP2) has spread over the processes, and whose factors get other shapes.

Each process holds some rows of a factor, of its gradient and of its moments. `fully_shard` has no way to give a sharded
parameter another shape, but it keeps one record for each parameter, through which it does everything with that parameter. So
a factor is gathered, resized as in one process, and sharded again by a new record, in the place of the old one. Only
the factors of one layer are whole at a time.

The records are not a public interface of PyTorch. We have read and tested them in 2.13; their attributes are checked before
training starts, and other versions are errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from glora.lora.adapter import Gather, Layout
from glora.lora.layout import is_sharded, is_unit, sharded_dimension, whole
from glora.lora.matrix import LoraMatrix
from glora.lora.optimizer_state import replace_parameter

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Replicate

_USED = (
    "fsdp_placement",
    "mesh_info",
    "post_forward_mesh_info",
    "device",
    "mp_policy",
    "offload_to_cpu",
    "init_dtype_attrs",
    "_module_info",
    "_param_fqn",
    "_post_load_hook_handle",
)
_MADE_OF = (
    "param",
    "module_info",
    "mesh_info",
    "post_forward_mesh_info",
    "device",
    "shard_placement_fn",
    "mp_policy",
    "offload_policy",
)


class Sharded(Layout):
    """A model under `fully_shard`.

    Attributes:
        group: The processes that the factors are sharded over.
    """

    one_by_one = True

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self._model = model
        self.group = _group_of(parameters)
        _Records(model).check(parameters)

    @contextmanager
    def resizing(self, returning: Sequence[str]) -> Iterator[Gather]:
        """Change ranks within this context; the factors of a layer are whole while its gather is open."""
        if returning:
            raise ValueError(
                f"{returning[0]}: fully_shard cannot take back an adapter that was removed; load the weights into a new model"
            )
        yield _Records(self._model).whole_factors


def _group_of(parameters: Sequence[nn.Parameter]) -> dist.ProcessGroup:
    sharded = [cast(DTensor, p) for p in parameters if is_sharded(p)]
    mesh = sharded[0].device_mesh
    if len(sharded) < len(parameters) or any(p.device_mesh != mesh for p in sharded):
        raise ValueError(
            f"only {len(sharded)} of the adapter's {len(parameters)} factors are sharded by fully_shard over the same "
            "processes; shard all of them (see ignored_params, shard_placement_fn)"
        )
    if any(not p.placements[sharded_dimension(p)].is_shard(0) for p in sharded):
        raise ValueError(
            "the adapter's factors are sharded along another dimension than their first, which other ranks may not divide; "
            "leave them out of shard_placement_fn"
        )
    if mesh.size() == dist.get_world_size():
        return cast(dist.ProcessGroup, dist.group.WORLD)
    if mesh.ndim == 1:
        return mesh.get_group()
    raise ValueError(
        f"the model is sharded over {mesh.size()} of {dist.get_world_size()} processes in {mesh.ndim} dimensions; use "
        "fully_shard over all processes, or over a mesh of one dimension"
    )


class _Records:
    """The records that `fully_shard` keeps of a model's parameters, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._units = [module for module in model.modules() if is_unit(module)]
        self._places: dict[torch.Tensor, tuple[Any, Any]] = {}
        for unit in self._units:
            for group in _groups(unit):
                _check_has(group, "fsdp_params", "offload_policy")
                for record in group.fsdp_params:
                    self._places[record.sharded_param] = group, record
        if record := next((record for _, record in self._places.values()), None):
            _check_has(record, *_USED)
            if tuple(signature(type(record)).parameters) != _MADE_OF:
                raise _unknown(f"other parameters of {type(record).__name__}")
            if record.offload_to_cpu:
                raise ValueError(
                    "fully_shard with CPUOffloadPolicy is not supported by glora; leave out offload_policy"
                )

    def check(self, parameters: Sequence[nn.Parameter]) -> None:
        if any(parameter not in self._places for parameter in parameters):
            raise ValueError(
                "the adapter's factors are sharded, but not by fully_shard (FSDP2) on this model; pass the model that "
                "fully_shard was called on, use DistributedDataParallel, or get ranks with glora.suggest_ranks"
            )

    @contextmanager
    def whole_factors(self, matrix: LoraMatrix, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
        """Make a matrix's factors and their moments whole on every process; they may change shape or go."""
        if not matrix.present or not any(map(is_sharded, matrix.factors)):
            yield
            return
        for unit in self._units:
            cast(FSDPModule, unit).reshard()
        places, gathered = [], []
        for factor in matrix.factors:
            places.append(self._places.pop(factor))
            factor.grad = None
            plain = nn.Parameter(whole(factor.detach()), requires_grad=factor.requires_grad)
            replace_parameter(optimizer, factor, plain, lambda _, state: whole(state))
            gathered.append(plain)
        matrix.set_factors(*gathered)
        try:
            yield
        finally:
            for plain, (group, record) in zip(gathered, places):
                record._post_load_hook_handle.remove()
                if matrix.present:
                    self._shard(plain, group, record, optimizer)
                else:
                    group.fsdp_params.remove(record)
                    # the state of a sharded optimizer is saved by the names of the model's parameters
                    replace_parameter(optimizer, plain, None)

    def _shard(self, plain: nn.Parameter, group: Any, old: Any, optimizer: torch.optim.Optimizer | None) -> None:
        record = type(old)(
            plain,
            old._module_info,
            old.mesh_info,
            old.post_forward_mesh_info,
            old.device,
            lambda _: old.fsdp_placement,
            old.mp_policy,
            group.offload_policy,
        )
        record.init_dtype_attrs(old.mp_policy)
        record._param_fqn = old._param_fqn
        group.fsdp_params[group.fsdp_params.index(old)] = record
        factor = record.sharded_param
        self._places[factor] = group, record

        def spread(_: str, state: torch.Tensor) -> torch.Tensor:
            if state.shape != factor.shape:
                return state
            mesh = factor.device_mesh
            everywhere = DTensor.from_local(state, mesh, [Replicate()] * mesh.ndim, run_check=False)
            return everywhere.redistribute(placements=factor.placements)

        replace_parameter(optimizer, plain, factor, spread)


def _groups(unit: nn.Module) -> list[Any]:
    _check_has(unit, "_get_fsdp_state", "reshard")
    state = cast(Any, unit)._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    _check_has(state, "_fsdp_param_group")
    return [group for group in [state._fsdp_param_group] if group is not None]


def _check_has(thing: object, *names: str) -> None:
    for name in names:
        if not hasattr(thing, name):
            raise _unknown(f"{name} is missing")


def _unknown(what: str) -> ValueError:
    return ValueError(
        f"this glora does not know fully_shard of PyTorch {torch.__version__} ({what}); use another version, "
        "DistributedDataParallel, or glora.suggest_ranks"
    )
