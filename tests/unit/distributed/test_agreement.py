"""Agreement, as far as one process shows it: checksums, settings that are errors, and which process logs."""

from __future__ import annotations

import logging
import types

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from glora.distributed.agreement import Processes, checksum
from glora.distributed.ddp import Replicated, find_wrapper, rebuild_reducer
from glora.lora.adapter import RankedAdapter
from glora.messages import get_logger


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_a_checksum_knows_every_bit_and_its_place(dtype: torch.dtype) -> None:
    t = torch.arange(12).reshape(3, 4).to(dtype)
    expected = sum((i + 1) * int(bits) for i, bits in enumerate(t.view(-1).view(_integers(dtype)).tolist()))
    assert checksum(t).item() == (expected + 2**63) % 2**64 - 2**63
    other = t.clone()
    other.view(-1).view(_integers(dtype))[5] ^= 1
    swapped = t[[1, 0, 2]]
    assert len({checksum(t).item(), checksum(other).item(), checksum(swapped).item()}) == 3
    assert checksum(t.T).item() == checksum(t.T.contiguous()).item()


def _integers(dtype: torch.dtype) -> torch.dtype:
    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def test_a_checksum_of_many_elements_takes_them_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    t = torch.randn(50)
    whole = checksum(t).item()
    monkeypatch.setattr("glora.distributed.agreement._CHUNK", 7)
    assert checksum(t).item() == whole


@pytest.fixture
def _group_of_two():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def adapter() -> RankedAdapter:
    return RankedAdapter(get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"])))


@pytest.mark.usefixtures("_group_of_two")
def test_settings() -> None:
    wrapper = DistributedDataParallel(nn.Linear(2, 2), init_sync=False)
    Replicated(wrapper, adapter())
    wrapper.mixed_precision = types.SimpleNamespace()
    with pytest.raises(ValueError, match=r"mixed_precision.*use torch.autocast"):
        Replicated(wrapper, adapter())
    wrapper.mixed_precision, wrapper._delay_all_reduce_params = None, [nn.Parameter(torch.zeros(1))]
    with pytest.raises(ValueError, match="delay_all_reduce_named_params"):
        Replicated(wrapper, adapter())
    del wrapper._comm_hooks  # as of another version of PyTorch
    with pytest.raises(ValueError, match=r"\(_comm_hooks is missing\); use another version"):
        Replicated(wrapper, adapter())


@pytest.mark.usefixtures("_group_of_two")
def test_a_rule_of_ones_own_has_to_give_integers() -> None:
    """As in one process; a tensor would take 2.5 for 2."""
    processes = Processes(adapter())
    assert processes.decide(lambda: {"0": 3}, ["0"]) == {"0": 3}
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        processes.decide(lambda: {"0": 2.5}, ["0"])


@pytest.mark.usefixtures("_group_of_two")
def test_a_new_reducer_keeps_everything_else() -> None:
    group = dist.new_group([0, 1])
    settings = dict(find_unused_parameters=True, gradient_as_bucket_view=True, bucket_cap_mb=3, process_group=group)
    module = nn.Linear(2, 2)
    wrapper = DistributedDataParallel(module, init_sync=False, broadcast_buffers=False, **settings)
    wrapper.eval()
    wrapper.marker = object()
    wrapper.register_forward_hook(lambda *_: None)
    wrapper.require_backward_grad_sync = False
    wrapper.register_comm_hook(None, allreduce_hook)
    before, reducer = dict(vars(wrapper)), wrapper.reducer
    module.weight = nn.Parameter(torch.zeros(3, 2))
    rebuild_reducer(wrapper)
    after = dict(vars(wrapper))
    assert after.keys() == before.keys()
    made_again = {"reducer", "logger", "modules_buffers", "named_module_buffers", "_module_parameters"}
    assert not [name for name in after.keys() - made_again if after[name] != before[name]]
    assert wrapper.reducer is not reducer
    assert wrapper._module_parameters[0].shape == (3, 2)
    assert find_wrapper(wrapper) is wrapper
    assert find_wrapper(torch.compile(wrapper, backend="eager")) is wrapper
    assert find_wrapper(module) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_speaks_for_all(rank: int, caplog: pytest.LogCaptureFixture) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
    try:
        get_logger().warning("once")
    finally:
        dist.destroy_process_group()
    assert [record.message for record in caplog.records] == ["once"] * (rank == 0)
    assert logging.getLogger("glora").filters
