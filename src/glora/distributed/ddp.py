"""DistributedDataParallel around a model whose parameters are replaced by others of another shape.

DistributedDataParallel hangs its reducer on the parameters that it finds when it is made. One that is replaced
afterwards is not reduced: the processes train apart, for one step or, with find_unused_parameters, for good. So the
reducer is made anew, under the same wrapper, because a training loop holds the wrapper in a variable of its own.

It is made the way that PyTorch makes one for a wrapper that was pickled: `__setstate__` keeps every attribute
(settings, hooks, no_sync, join, what others have put there) and builds a reducer for the parameters of the moment. What
belongs to the old reducer's buckets begins again: the buckets' order, a static graph's first pass, and the state of
PowerSGD. No weights are broadcast, as a new wrapper would do with the whole frozen model; the processes' factors have
been made the same before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

_USED = ("__setstate__", "_get_active_ddp_module", "_join_config", "_comm_hooks", "_has_rebuilt_buckets")


def find_wrapper(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel that this model is, or that its outer wrappers hold."""
    while not isinstance(model, DistributedDataParallel):
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model


def await_wrapper(model: nn.Module, found: Callable[[DistributedDataParallel], None]) -> RemovableHandle:
    """Call `found` with the wrapper as soon as a forward pass comes through one; Trainer does not tell which it has made."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def look(*_: Any) -> None:
        active = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]
        if active is not None and active.module is not None:
            found(active)

    return model.register_forward_pre_hook(look)


def check_wrapper(wrapper: DistributedDataParallel) -> None:
    """Refuse settings whose state lies in the parameters themselves, which are replaced.

    Raises:
        ValueError: there is one, or a version of PyTorch whose wrapper has not what is used here.
    """
    if lacking := [name for name in _USED if not hasattr(wrapper, name)]:
        raise ValueError(
            f"DistributedDataParallel of PyTorch {torch.__version__} keeps its reducer in a way that this glora does not "
            f"know ({lacking[0]} is missing); use another version, or glora.suggest_ranks"
        )
    settings = {
        "mixed_precision": (getattr(wrapper, "mixed_precision", None) is not None, "use torch.autocast"),
        "delay_all_reduce_named_params": (bool(getattr(wrapper, "_delay_all_reduce_params", ())), "leave it out"),
        'torch._dynamo.config.optimize_ddp="python_reducer"': (
            getattr(wrapper, "_use_python_reducer", False),
            "keep the default",
        ),
    }
    for setting, (is_set, remedy) in settings.items():
        if is_set:
            raise ValueError(
                f"DistributedDataParallel with {setting} ties its state to the parameters it was made with, and glora "
                f"replaces those; {remedy}"
            )


def rebuild_reducer(wrapper: DistributedDataParallel) -> None:
    """Give the wrapper a reducer for the parameters that its module has now. To be called between two training steps."""
    hooks = list(wrapper._comm_hooks)
    wrapper.__setstate__(dict(vars(wrapper)))  # type: ignore[no-untyped-call]
    wrapper._has_rebuilt_buckets = False
    if wrapper.static_graph:
        wrapper._static_graph_delay_allreduce_enqueued = False
    if hasattr(wrapper, "_module_parameters"):
        ignored = wrapper.parameters_to_ignore
        wrapper._module_parameters = [p for name, p in wrapper.module.named_parameters() if name not in ignored]
    wrapper._comm_hooks = []
    for hook, state in hooks:
        _restart(state)
        wrapper.register_comm_hook(state, hook)


def _restart(state: object) -> None:
    """PowerSGD keeps errors and factors for each bucket, by its number; the first iterations fill them."""
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

    if isinstance(state, PowerSGDState):
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
        state.iter = 0
