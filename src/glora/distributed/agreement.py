"""Processes that train one model, and how they agree on the same ranks and the same factors.

Process 0 of the group decides, and the others follow. A difference in the last bit of a norm, or in a custom rule, can then
not give two processes two shapes. Process 0 also sends the columns of a resized matrix, and the optimizer's state of them:
they come from the same seed everywhere, but a singular value decomposition need not give two machines the same bits. The
processes then compare a checksum of both, so that a difference is an error at once and not a model that falls apart.

All of this happens at a reallocation, with every collective on every process in the same order. A training step has no
collective, except the first one after the start and after each reallocation: there the processes compare their gradients.
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

from glora.distributed.ddp import Replicated, await_wrapper, find_wrapper
from glora.distributed.fsdp import Sharded
from glora.lora.adapter import RankedAdapter
from glora.lora.layout import is_sharded

_STAY, _CHANGE, _FAILED = range(3)
_CHUNK = 1 << 20  # elements of a checksum at a time: its integers take eight bytes each


class Processes:
    """The processes that train one model together.

    They give the adapter its layout, so that its changes of rank reach DistributedDataParallel or `fully_shard`.

    Args:
        adapter: The adapter that they train. Its model may be in DistributedDataParallel or sharded by `fully_shard`. It may
            also be the model inside a wrapper; the first forward pass through the wrapper then shows it.

    Raises:
        ValueError: DistributedDataParallel has a setting that does not survive a change of shapes, or the model is sharded
            in a way that glora does not support.
    """

    def __init__(self, adapter: RankedAdapter) -> None:
        parameters = adapter.factors
        self._adapter = adapter
        self._device = parameters[0].device
        self._awaiting: RemovableHandle | None = None
        self._checksums: dict[str, torch.Tensor] = {}
        if any(map(is_sharded, parameters)):
            adapter.layout = Sharded(adapter.model, parameters)
        elif dist.is_available() and dist.is_initialized():  # a single process may have a wrapper, too
            wrapper = find_wrapper(adapter.model)
            if wrapper is None:
                self._awaiting = await_wrapper(adapter.model, self._found)
            else:
                self._found(wrapper)

    @property
    def size(self) -> int:
        """Number of processes."""
        started = dist.is_available() and dist.is_initialized()
        return dist.get_world_size(self._group) if started and dist.get_world_size() > 1 else 1

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return dist.get_rank(self._group) if self.size > 1 else 0

    @property
    def sharded(self) -> bool:
        """True if each process holds a part of every factor (FSDP2)."""
        return isinstance(self._adapter.layout, Sharded)

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        """The DistributedDataParallel around the model, once it is known."""
        layout = self._adapter.layout
        return layout.wrapper if isinstance(layout, Replicated) else None

    def detach(self) -> None:
        """Stop looking for a wrapper."""
        if self._awaiting is not None:
            self._awaiting.remove()
            self._awaiting = None

    def decide(self, choose: Callable[[], Mapping[str, int] | None], names: Sequence[str]) -> dict[str, int] | None:
        """Return what process 0 chooses, on every process.

        Args:
            choose: Returns the rank of each matrix, or None to leave the ranks; called on process 0 only.
            names: The matrices.

        Raises:
            RuntimeError: process 0 failed to choose (there: its own error), or some processes have run out of batches.
        """
        if self.size == 1:
            chosen = choose()
            return None if chosen is None else dict(chosen)
        self.check_all_have_batches()
        message, error = torch.zeros(len(names) + 1, dtype=torch.int64), None
        if self.rank == 0:
            try:
                chosen = choose()
                message[0] = _STAY if chosen is None else _CHANGE
                if chosen is not None:
                    message[1:] = torch.tensor([operator.index(chosen[name]) for name in names])
            except Exception as exception:  # the others wait for a message
                message[0], error = _FAILED, exception
        message = message.to(self._device_for_collectives(self._device))
        dist.broadcast(message, self._first, group=self._group)
        if error is not None:
            raise error
        outcome, *ranks = message.tolist()
        if outcome == _FAILED:
            raise RuntimeError("process 0 could not allocate the ranks; see the error of process 0")
        return dict(zip(names, ranks)) if outcome == _CHANGE else None

    def share(self, name: str, tensors: Iterable[torch.Tensor]) -> None:
        """Copy process 0's values of what belongs to one resized matrix, in one collective for each dtype and device."""
        if self.size == 1:
            return
        tensors = list(tensors)
        for kind in dict.fromkeys((t.dtype, t.device) for t in tensors):
            same = [t for t in tensors if (t.dtype, t.device) == kind]
            flat = torch.cat([t.detach().reshape(-1) for t in same]).to(self._device_for_collectives(kind[1]))
            dist.broadcast(flat, self._first, group=self._group)
            for t, part in zip(same, torch.split(flat, [t.numel() for t in same])):
                t.detach().copy_(part.view(t.shape))
        self._checksums[name] = torch.stack([checksum(t).to(self._device) for t in tensors]).sum()

    def check_shared(self, ranks: Mapping[str, int]) -> None:
        """Compare the ranks, and everything that was shared since the last call."""
        checksums, self._checksums = self._checksums, {}
        if self.size == 1:
            return
        names = ["the ranks", *checksums]
        mine = torch.stack([torch.tensor(_checksum_of_ranks(ranks), device=self._device), *checksums.values()])
        gathered = self._gather(mine)
        if differing := [name for name, same in zip(names, (gathered == gathered[0]).all(0).tolist()) if not same]:
            raise RuntimeError(
                f"after the reallocation {', '.join(differing[:3])} differ between the {self.size} processes; run the same "
                "code, glora and PyTorch everywhere, and resume from the last checkpoint"
            )

    def all_agree(self, flags: torch.Tensor) -> torch.Tensor:
        """Return whether each flag holds in every process, where each process holds a part of the factors."""
        if not self.sharded:
            return flags
        counts = flags.to(self._device_for_collectives(self._device), torch.int32)
        dist.all_reduce(counts, dist.ReduceOp.MIN, group=self._group)
        return counts.bool()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over the processes, for each element."""
        if self.size == 1:
            return tensor
        total = tensor.to(self._device_for_collectives(tensor.device), copy=True)
        dist.all_reduce(total, group=self._group)
        return total.to(tensor.device)

    def check_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Compare the norms of the gradients that the optimizer is about to use. Waits for the device."""
        if self.size == 1 or self.sharded or self._joining:
            return
        zero = torch.zeros((), device=self._device)
        norms = [
            zero if p.grad is None else torch.linalg.norm(p.grad.detach().float()).to(self._device) for p in parameters
        ]
        gathered = self._gather(torch.stack(norms))
        largest = gathered.max(0).values
        differing = (largest - gathered.min(0).values > 1e-3 * largest) & gathered.isfinite().all(0)
        if differing.any():
            why = (
                "was the module called directly, or no_sync() left on?"
                if self.wrapper is not None
                else "no forward pass went through DistributedDataParallel."
            )
            raise RuntimeError(
                f"the gradients of {int(differing.sum())} of {len(parameters)} LoRA factors differ between {self.size} "
                f"processes: {why} Call the model that accelerator.prepare(model) or DistributedDataParallel(model) returns"
            )

    def check_wrapper_is_known(self) -> None:
        """Check that it is known whose reducer has to follow a change of ranks."""
        if self.size > 1 and not self.sharded and self.wrapper is None:
            raise ValueError(
                f"a state with other ranks cannot be loaded in {self.size} processes before DistributedDataParallel is "
                "known; make the allocator with what accelerator.prepare(model) or DistributedDataParallel(model) returns"
            )

    def check_all_have_batches(self) -> None:
        """Within DistributedDataParallel.join(), check that no process has run out of batches.

        Such a process waits in an all-reduce that counts those which have not. This call makes the same all-reduce; the
        process would mistake any other collective for it.
        """
        if self.wrapper is None or not self._joining:
            return
        count = torch.ones(1, device=self.wrapper.join_device)
        dist.all_reduce(count, group=self._group)
        if (left := int(count.item())) < self.size:
            raise RuntimeError(
                f"{self.size - left} of {self.size} processes have run out of batches (DistributedDataParallel.join) before "
                "the reallocation; end the warm-up earlier, or give every process as many batches"
            )

    def _found(self, wrapper: DistributedDataParallel) -> None:
        self._adapter.layout = Replicated(wrapper, self._adapter)
        self.detach()

    @property
    def _group(self) -> dist.ProcessGroup | None:
        """None is the default group."""
        layout = self._adapter.layout
        if isinstance(layout, Sharded):
            return layout.group
        return layout.wrapper.process_group if isinstance(layout, Replicated) else None

    @property
    def _first(self) -> int:
        """Process 0 of the group, by its number in the default group."""
        return 0 if self._group is None else dist.get_global_rank(self._group, 0)

    @property
    def _joining(self) -> bool:
        """True within DistributedDataParallel.join(), where some processes may have left the loop."""
        return self.wrapper is not None and bool(self.wrapper._join_config.enable)

    def _device_for_collectives(self, device: torch.device) -> torch.device:
        """Device of the tensors that this group sends: gloo and MPI take those of the CPU."""
        return torch.device("cpu") if dist.get_backend(self._group) in ("gloo", "mpi") else device

    def _gather(self, mine: torch.Tensor) -> torch.Tensor:
        """Tensors of all processes, stacked."""
        mine = mine.to(self._device_for_collectives(self._device))
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(gathered, mine, group=self._group)
        return torch.stack(gathered)


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Σ_i (i+1)·(bits of element i), modulo 2⁶⁴, on the device. Integers, so every device gets the same sum."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, part in enumerate(torch.split(tensor.detach().contiguous().view(-1).view(bits), _CHUNK)):
        places = torch.arange(1 + number * _CHUNK, 1 + number * _CHUNK + part.numel(), device=tensor.device)
        total += (part.long() * places).sum()
    return total


def _checksum_of_ranks(ranks: Mapping[str, int]) -> int:
    """A checksum of names and ranks, within 63 bits."""
    listing = ",".join(f"{name}={rank}" for name, rank in sorted(ranks.items()))
    return int.from_bytes(hashlib.sha256(listing.encode()).digest()[:8], "big") >> 1
