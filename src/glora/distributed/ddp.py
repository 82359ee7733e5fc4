"""DistributedDataParallel around a model whose parameters get other shapes.

DistributedDataParallel makes buckets for the parameters and shapes that it finds when it is made, and hooks onto their
gradient accumulators. After a change of shape the processes would train apart, for one step or, with find_unused_parameters,
for good. So the wrapper gets a new reducer. It stays the same object, because a training loop holds it in a local variable.

PyTorch makes a new reducer for a wrapper that was pickled: `__setstate__` keeps every attribute (settings, hooks, no_sync,
join, what others have put there) and builds a reducer for the present parameters. We call that. What belongs to the old
reducer's buckets starts again: the order of the buckets, the first pass of a static graph, and the state of PowerSGD. No
weights are broadcast, as a new wrapper would do with the whole frozen model; the factors are the same everywhere already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from glora.lora.adapter import Gather, Layout, RankedAdapter

_USED = ("__setstate__", "_get_active_ddp_module", "_join_config", "_comm_hooks", "_has_rebuilt_buckets")


class Replicated(Layout):
    """A model in DistributedDataParallel, whose reducer follows the ranks.

    Raises:
        ValueError: a setting of the wrapper keeps state in the parameters, whose shapes change; or this version of PyTorch
            keeps its reducer in an unknown way.
    """

    def __init__(self, wrapper: DistributedDataParallel, adapter: RankedAdapter) -> None:
        _check(wrapper)
        self.wrapper, self._adapter = wrapper, adapter

    @contextmanager
    def resizing(self, returning: Sequence[str]) -> Iterator[Gather]:
        """Change ranks within this context; the new reducer is made at its end."""
        with super().resizing(returning) as gather:
            yield gather
        # those that were at rank 0 when the wrapper was made are known to it by name
        factors = set(self._adapter.factors)
        self.wrapper.parameters_to_ignore -= {n for n, p in self.wrapper.module.named_parameters() if p in factors}
        rebuild_reducer(self.wrapper)


def find_wrapper(model: nn.Module) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel that this model is, or that torch.compile has wrapped."""
    while not isinstance(model, DistributedDataParallel):
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model


def await_wrapper(model: nn.Module, found: Callable[[DistributedDataParallel], None]) -> RemovableHandle:
    """Call `found` with the wrapper at the first forward pass through one; Trainer does not say which it has made."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def look(*_: Any) -> None:
        active = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]
        if active is not None and active.module is not None:
            found(active)

    return model.register_forward_pre_hook(look)


def rebuild_reducer(wrapper: DistributedDataParallel) -> None:
    """Give the wrapper a reducer for the parameters that its module has now. Call it between two training steps."""
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
        _restart_power_sgd(state)
        wrapper.register_comm_hook(state, hook)


def _check(wrapper: DistributedDataParallel) -> None:
    if lacking := [name for name in _USED if not hasattr(wrapper, name)]:
        raise ValueError(
            f"this glora does not know DistributedDataParallel of PyTorch {torch.__version__} ({lacking[0]} is missing); "
            "use another version, or glora.suggest_ranks"
        )
    settings = {
        "mixed_precision": (getattr(wrapper, "mixed_precision", None) is not None, "use torch.autocast"),
        "delay_all_reduce_named_params": (bool(getattr(wrapper, "_delay_all_reduce_params", ())), "leave it out"),
        'torch._dynamo.config.optimize_ddp="python_reducer"': (
            getattr(wrapper, "_use_python_reducer", False),
            "keep the default",
        ),
    }
    for setting, (is_set, fix) in settings.items():
        if is_set:
            raise ValueError(
                f"DistributedDataParallel with {setting} keeps state in its parameters, whose shapes glora changes; {fix}"
            )


def _restart_power_sgd(state: object) -> None:
    """Clear errors and factors, which PowerSGD keeps by the number of the bucket; its first iterations fill them again."""
    if isinstance(state, PowerSGDState):
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
        state.iter = 0
