"""Several processes that train one model: how they come to the same ranks and the same factors.

Process 0 of the group decides and the others follow, so that a difference in the last bit of a norm, or in a rule of
one's own, cannot give two processes two shapes. The columns of a resized matrix, and what the optimiser holds of them,
are process 0's as well: they are drawn from the same seed everywhere, but a singular value decomposition need not give
two machines the same bits. A checksum of both is then compared, so that whatever went wrong is an error now and not a
model that falls apart.

All of this happens at a reallocation, and every collective on every process, in the same order. A training step has
none, except the first after the start and after each reallocation, whose gradients are compared once: gradients that
differ are those of processes that train apart.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from glora.distributed.ddp import await_wrapper, check_wrapper, find_wrapper
from glora.distributed.fsdp import Shards, group_of_shards
from glora.lora.adapter import RankedAdapter
from glora.lora.matrix import factors

_STAY, _CHANGE, _FAILED = range(3)
_CHUNK = 1 << 20  # elements of a checksum at a time: its integers take eight bytes each


def number_of_processes() -> int:
    """Processes of the default group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Processes:
    """The processes that train one model together.

    Args:
        adapter: The adapter that they train. Its model may be in DistributedDataParallel or sharded by `fully_shard`;
            it may also be what a wrapper holds, and the wrapper is then noticed at the first forward pass through it.

    Raises:
        ValueError: a setting of DistributedDataParallel that does not outlive a change of shapes, or a way to shard that
            glora does not support.
    """

    def __init__(self, adapter: RankedAdapter) -> None:
        present = [layer for name, layer in adapter.layers.items() if adapter.ranks[name] > 0]
        parameters = [factor for layer in present for factor in factors(layer, adapter.name)]
        self._adapter = adapter
        self._device = parameters[0].device
        self._shards = group_of_shards(parameters)
        self._waiting: RemovableHandle | None = None
        self._checksums: dict[str, torch.Tensor] = {}
        if self._shards is not None:
            Shards(adapter.model).check(parameters)
        if self.size == 1 or self._shards is not None:
            return
        wrapper = find_wrapper(adapter.model)
        if wrapper is None:
            self._waiting = await_wrapper(adapter.model, self._found)
        else:
            self._found(wrapper)

    @property
    def size(self) -> int:
        """How many there are."""
        return dist.get_world_size(self._group) if number_of_processes() > 1 else 1

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""
        return dist.get_rank(self._group) if number_of_processes() > 1 else 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every factor (FSDP2)."""
        return self._shards is not None

    def detach(self) -> None:
        """Stop looking out for a wrapper."""
        if self._waiting is not None:
            self._waiting.remove()
            self._waiting = None

    def decide(self, choose: Callable[[], Mapping[str, int] | None], names: Sequence[str]) -> dict[str, int] | None:
        """What process 0 chooses, on every process.

        Args:
            choose: Gives the rank of each matrix, or None to leave the ranks as they are; called on process 0 only.
            names: The matrices.

        Raises:
            RuntimeError: process 0 failed to choose (there: its own error), or some processes have run out of batches.
        """
        if self.size == 1:
            chosen = choose()
            return None if chosen is None else dict(chosen)
        self.refuse_joined()
        message, error = torch.zeros(len(names) + 1, dtype=torch.int64), None
        if self.rank == 0:
            try:
                chosen = choose()
                message[0] = _STAY if chosen is None else _CHANGE
                if chosen is not None:
                    message[1:] = torch.tensor([operator.index(chosen[name]) for name in names])
            except Exception as exception:  # the others wait, and must hear of it
                message[0], error = _FAILED, exception
        message = message.to(self._where(self._device))
        dist.broadcast(message, self._first, group=self._group)
        if error is not None:
            raise error
        outcome, *ranks = message.tolist()
        if outcome == _FAILED:
            raise RuntimeError("process 0 could not allocate the ranks; its own error says why")
        return dict(zip(names, ranks)) if outcome == _CHANGE else None

    def share(self, name: str, tensors: Iterable[torch.Tensor]) -> None:
        """Take process 0's values for what belongs to one resized matrix, in one collective for each dtype and device."""
        if self.size == 1:
            return
        tensors = list(tensors)
        for kind in dict.fromkeys((t.dtype, t.device) for t in tensors):
            same = [t for t in tensors if (t.dtype, t.device) == kind]
            flat = torch.cat([t.detach().reshape(-1) for t in same]).to(self._where(kind[1]))
            dist.broadcast(flat, self._first, group=self._group)
            for t, part in zip(same, torch.split(flat, [t.numel() for t in same])):
                t.detach().copy_(part.view(t.shape))
        self._checksums[name] = torch.stack([checksum(t).to(self._device) for t in tensors]).sum()

    def check_shared(self, ranks: Mapping[str, int]) -> None:
        """Compare the ranks and all that was shared since the last time.

        Raises:
            RuntimeError: processes differ.
        """
        checksums, self._checksums = self._checksums, {}
        if self.size == 1:
            return
        names = ["the ranks", *checksums]
        mine = torch.stack([torch.tensor(_of_ranks(ranks), device=self._device), *checksums.values()])
        of_all = self._gather(mine)
        if differing := [name for name, same in zip(names, (of_all == of_all[0]).all(0).tolist()) if not same]:
            raise RuntimeError(
                f"after the reallocation {', '.join(differing[:3])} differ between the {self.size} processes, so "
                "training cannot go on; do all run the same code, the same glora and the same version of PyTorch? "
                "Resume from the last checkpoint"
            )

    def agree_on(self, flags: torch.Tensor) -> torch.Tensor:
        """Whether something holds for every process's part, for each of several flags (bool, shape (n,))."""
        if not self.sharded:
            return flags
        counts = flags.to(self._where(self._device), torch.int32)
        dist.all_reduce(counts, dist.ReduceOp.MIN, group=self._group)
        return counts.bool()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Σ over the processes, for each element."""
        if self.size == 1:
            return tensor
        total = tensor.to(self._where(tensor.device), copy=True)
        dist.all_reduce(total, group=self._group)
        return total.to(tensor.device)

    def check_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Compare the norms of the gradients, as the optimiser is about to use them. Waits for the device.

        Raises:
            RuntimeError: they differ, so that each process would train a model of its own.
        """
        if self.size == 1 or self.sharded or self._joining:
            return
        zero = torch.zeros((), device=self._device)
        norms = [
            zero if p.grad is None else torch.linalg.norm(p.grad.detach().float()).to(self._device) for p in parameters
        ]
        of_all = self._gather(torch.stack(norms))
        largest = of_all.max(0).values
        odd = (largest - of_all.min(0).values > 1e-3 * largest) & of_all.isfinite().all(0)
        if odd.any():
            how = (
                "though the model is in DistributedDataParallel; was its module called directly, or no_sync() left in "
                "force?"
                if self.wrapper is not None
                else "and no forward pass went through DistributedDataParallel"
            )
            raise RuntimeError(
                f"training runs in {self.size} processes, and the gradients of {int(odd.sum())} of {len(parameters)} "
                f"LoRA factors differ between them, {how}. Each would train a model of its own. Train with what "
                "accelerator.prepare(model) or DistributedDataParallel(model) returns, and call that, not the model "
                "inside it"
            )

    def refuse_unknown_wrapper(self) -> None:
        """Refuse to change ranks while nobody knows whose reducer has to follow them.

        Raises:
            ValueError: there are several processes, and no wrapper is known.
        """
        if self.size > 1 and not self.sharded and self.wrapper is None:
            raise ValueError(
                f"training runs in {self.size} processes, and a state with other ranks cannot be loaded before it is "
                "known what reduces the gradients; make the allocator with what accelerator.prepare(model) or "
                "DistributedDataParallel(model) returns, not with the model inside it"
            )

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        """The DistributedDataParallel around the model, if one is known."""
        return self._adapter.wrapper

    def _found(self, wrapper: DistributedDataParallel) -> None:
        check_wrapper(wrapper)
        self._adapter.wrapper = wrapper
        self.detach()

    @property
    def _group(self) -> dist.ProcessGroup | None:
        """None is the default group."""
        if self._shards is not None:
            return self._shards
        return None if self.wrapper is None else self.wrapper.process_group

    @property
    def _first(self) -> int:
        """Process 0 of the group, by its number in the default group."""
        return 0 if self._group is None else dist.get_global_rank(self._group, 0)

    def _where(self, device: torch.device) -> torch.device:
        """Where a tensor has to lie for this group's collectives: gloo and MPI take those of the CPU."""
        return torch.device("cpu") if dist.get_backend(self._group) in ("gloo", "mpi") else device

    def _gather(self, mine: torch.Tensor) -> torch.Tensor:
        """What every process has, one row each."""
        mine = mine.to(self._where(self._device))
        of_all = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(of_all, mine, group=self._group)
        return torch.stack(of_all)

    @property
    def _joining(self) -> bool:
        """Whether this is within DistributedDataParallel.join(), where some processes may have left the loop."""
        return self.wrapper is not None and bool(self.wrapper._join_config.enable)

    def refuse_joined(self) -> None:
        """Within DistributedDataParallel.join(), find out whether a process has run out of batches.

        Such a process waits in an all-reduce that counts those which have not. This is the same one, seen from the
        other side; whatever else was sent, it would take for that.

        Raises:
            RuntimeError: one has.
        """
        if self.wrapper is None or not self._joining:
            return
        count = torch.ones(1, device=self.wrapper.join_device)
        dist.all_reduce(count, group=self._group)
        if (left := int(count.item())) < self.size:
            raise RuntimeError(
                f"{self.size - left} of {self.size} processes have run out of batches (DistributedDataParallel.join) "
                "before the ranks were reallocated, and cannot take part; end the warm-up earlier, or give every "
                "process as many batches"
            )


class SameGradients:
    """Compares the gradients of all processes at an optimiser's next step, and only then.

    Args:
        optimizer: The optimiser, without accelerate's wrapper.
        processes: The processes.
        parameters: Gives the adapter's parameters as they are at that moment.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, processes: Processes, parameters: Callable[[], list[nn.Parameter]]
    ) -> None:
        self._processes, self._parameters = processes, parameters
        self._checked = False
        self._hook: RemovableHandle | None = None
        if processes.size > 1:
            self._hook = optimizer.register_step_pre_hook(lambda *_: self._check())

    def made(self) -> None:
        """The optimiser has made its step: there is no need to watch any more."""
        if self._checked:
            self.detach()

    def detach(self) -> None:
        """Stop watching."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _check(self) -> None:
        if not self._checked:
            self._processes.check_gradients(self._parameters())
            self._checked = True


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Σ_i (i+1)·(bits of element i), modulo 2⁶⁴, on the device; integers, so every device adds up to the same number."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, part in enumerate(torch.split(tensor.detach().contiguous().view(-1).view(bits), _CHUNK)):
        places = torch.arange(1 + number * _CHUNK, 1 + number * _CHUNK + part.numel(), device=tensor.device)
        total += (part.long() * places).sum()
    return total


def _of_ranks(ranks: Mapping[str, int]) -> int:
    """A checksum of names and ranks, within 63 bits."""
    listing = ",".join(f"{name}={rank}" for name, rank in sorted(ranks.items()))
    return int.from_bytes(hashlib.sha256(listing.encode()).digest()[:8], "big") >> 1
