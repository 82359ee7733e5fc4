"""A model that `fully_shard` (FSDP2) has spread over the processes: norms of whole gradients, and other shapes.

Each process holds some rows of a factor, of its gradient and of its moments. The norm of a whole matrix follows from
the shards':

    ‖G‖² = Σ_p ‖G_p‖²

so one all-reduce of n numbers a step gives the norms of all n matrices; the device does it, and nobody waits.

`fully_shard` has no way to give a sharded parameter another shape, but it keeps one record for each parameter, and what
it does with a parameter is done through that record. So a factor is gathered, resized as it would be in one process,
and sharded again by a record of its own, in the old one's place. Only the factors of one layer are whole at a time.

The records are not a public interface of PyTorch. What is used of them was read and tested in 2.13, and is looked for before
training begins; a version that has it otherwise is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, cast

import torch
import torch.distributed as dist
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from glora.lora.matrix import factors, has_adapter, set_factors
from glora.lora.optimizer_state import Carry, replace_parameter

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


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether other processes hold parts of this tensor."""
    return dist.is_available() and isinstance(tensor, DTensor)


def is_unit(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on this very module, which then has to be called for its parameters to be gathered."""
    return dist.is_available() and isinstance(module, FSDPModule)


def class_of(module: nn.Module) -> type:
    """The class of a module before `fully_shard`, which gives it one that derives from its own."""
    return (
        next(kind for kind in type(module).__mro__[1:] if kind is not FSDPModule) if is_unit(module) else type(module)
    )


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds."""
    return cast(DTensor, tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, gathered from all processes if need be."""
    return cast(DTensor, tensor).full_tensor() if is_sharded(tensor) else tensor


def norms_of_whole(norms: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """From the norms of shards those of the whole tensors, by one all-reduce.

    Args:
        norms: ‖T_p‖ of this process's shards of several tensors, shape (n,).
        factor: One of the tensors; all are spread alike.
    """
    if not is_sharded(factor):
        return norms
    factor = cast(DTensor, factor)
    group = factor.device_mesh.get_group(_sharded_dimension(factor))
    squares = norms.square()
    if dist.get_backend(group) == "gloo":
        squares = squares.cpu()
    dist.all_reduce(squares, group=group)
    return squares.sqrt().to(norms.device)


def group_of_shards(parameters: Sequence[nn.Parameter]) -> dist.ProcessGroup | None:
    """The processes that these parameters are spread over; None if each process has them whole.

    Raises:
        ValueError: they are spread in a way that glora does not support.
    """
    sharded = [cast(DTensor, p) for p in parameters if is_sharded(p)]
    if not sharded:
        return None
    mesh = sharded[0].device_mesh
    if len(sharded) < len(parameters) or any(p.device_mesh != mesh for p in sharded):
        raise ValueError(
            f"{len(sharded)} of the adapter's {len(parameters)} factors are sharded by fully_shard and the others are "
            "not, or not over the same processes; let fully_shard have all of them (ignored_params, "
            "shard_placement_fn)"
        )
    if any(not p.placements[_sharded_dimension(p)].is_shard(0) for p in sharded):
        raise ValueError(
            "the adapter's factors are sharded along another dimension than their first, which another rank may not "
            "be divided by; leave them out of shard_placement_fn"
        )
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    if mesh.ndim == 1:
        return mesh.get_group()
    raise ValueError(
        f"the model is sharded over {mesh.size()} of {dist.get_world_size()} processes in {mesh.ndim} dimensions; "
        "glora supports fully_shard over all processes, or over a mesh of one dimension"
    )


class Shards:
    """The records that `fully_shard` keeps of a model's parameters.

    Args:
        model: The model that `fully_shard` was called on; one that is not sharded has none.

    Raises:
        ValueError: the records are not as this version of glora knows them, or parameters are offloaded to the CPU.
    """

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
                raise _unknown(f"{type(record).__name__} is made otherwise")
            if record.offload_to_cpu:
                raise ValueError(
                    "fully_shard with CPUOffloadPolicy is not supported by glora; leave the offload_policy out"
                )

    def check(self, parameters: Sequence[nn.Parameter]) -> None:
        """Refuse parameters that something else has sharded.

        Raises:
            ValueError: there is no record of one.
        """
        if any(parameter not in self._places for parameter in parameters):
            raise ValueError(
                "the adapter's factors are sharded, but not by fully_shard (FSDP2) on this model; glora supports "
                "fully_shard and DistributedDataParallel. Give it the model that fully_shard was called on, or get "
                "ranks with glora.suggest_ranks"
            )

    @property
    def present(self) -> bool:
        """Whether there are any."""
        return bool(self._units)

    @contextmanager
    def whole_factors(
        self, layer: LoraLayer, adapter_name: str, optimizer: torch.optim.Optimizer | None
    ) -> Iterator[None]:
        """Within, the layer's factors and their moments are whole on every process, and may change shape or go."""
        if not has_adapter(layer, adapter_name) or not any(map(is_sharded, factors(layer, adapter_name))):
            yield
            return
        for unit in self._units:
            cast(FSDPModule, unit).reshard()
        places, gathered = [], []
        for factor in factors(layer, adapter_name):
            places.append(self._places.pop(factor))
            plain = nn.Parameter(whole(factor.detach()), requires_grad=factor.requires_grad)
            _swap(optimizer, factor, plain, lambda _, state: whole(state))
            gathered.append(plain)
        set_factors(layer, adapter_name, *gathered)
        yield
        for _, record in places:
            record._post_load_hook_handle.remove()
        if not has_adapter(layer, adapter_name):
            for group, record in places:
                group.fsdp_params.remove(record)
            return
        for plain, (group, record) in zip(factors(layer, adapter_name), places):
            self._shard(plain, group, record, optimizer)

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

        _swap(optimizer, plain, factor, spread)


def _swap(optimizer: torch.optim.Optimizer | None, old: nn.Parameter, new: nn.Parameter, carry: Carry) -> None:
    if optimizer is not None:
        replace_parameter(optimizer, old, new, carry)


def _unknown(what: str) -> ValueError:
    return ValueError(
        f"fully_shard of PyTorch {torch.__version__} keeps its parameters in a way that this glora does not know ({what}); "
        "use another version, DistributedDataParallel, or glora.suggest_ranks"
    )


def _check_has(thing: object, *names: str) -> None:
    for name in names:
        if not hasattr(thing, name):
            raise _unknown(f"{name} is missing")


def _groups(unit: nn.Module) -> list[Any]:
    _check_has(unit, "_get_fsdp_state", "reshard")
    state = cast(Any, unit)._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    _check_has(state, "_fsdp_param_group")
    return [group for group in [state._fsdp_param_group] if group is not None]


def _sharded_dimension(factor: DTensor) -> int:
    """The dimension of the mesh along which a factor is sharded.

    Raises:
        ValueError: there are several, or none, as with tensor parallelism.
    """
    along = [i for i, placement in enumerate(factor.placements) if placement.is_shard()]
    if len(along) != 1 or any(not p.is_shard() and not p.is_replicate() for p in factor.placements):
        raise ValueError(
            f"the adapter's factors are spread over the processes as {factor.placements}, as tensor parallelism does; "
            "glora supports fully_shard (FSDP2) and DistributedDataParallel. Train without tp_plan, or get ranks with "
            "glora.suggest_ranks"
        )
    return along[0]
