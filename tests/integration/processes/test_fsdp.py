"""FSDP2: norms of sharded gradients, and matrices that change shape while they are sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from integration.processes.process_cases import WARMUP, Job, errors_of_sharded_models, train, train_all, train_in_parts
from integration.processes.process_group import together
from integration.processes.test_ddp import SPECTRUM, Results, same

JOBS = {
    "plain": Job(sharded=True),
    "accumulation": Job(sharded=True, accumulate=2),
    "ranks that become 0": Job(sharded=True, config=dict(budget="parameters", max_rank=12, total_rank=6)),
    "SVD, again and again": Job(sharded=True, config=dict(keep="svd", reallocate_every=2)),
    "spectrum, two cuts": Job(sharded=True, config=SPECTRUM),
    "with accelerate_lora": Job(sharded=True, accelerated=True),
    "SGD with momentum": Job(sharded=True, optimizer=torch.optim.SGD),
    "checkpointing": Job(sharded=True, checkpointed=True),
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = together(train_all, 2, tmp_path_factory.mktemp("two"), JOBS, limit=200)
    return {name: [result[name] for result in results] for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_end_as_one(name: str, of_two: Results) -> None:
    same(of_two[name], train(JOBS[name]))
    assert of_two[name][0]["kinds"] == ["DTensor"]


def test_replicas_of_shards(tmp_path: Path) -> None:
    """HSDP: four processes, two shards, two replicas of each."""
    same(together(train, 4, tmp_path, Job(sharded=True, mesh=(2, 2))), train(Job()))


EXPECTED = {
    "supported": "",
    "delta_exact": 'use signal="delta"',
    "offloaded": "leave out offload_policy",
    "columns": "leave them out of shard_placement_fn",
    "tensor parallel": "not by fully_shard (FSDP2) on this model",
    "partly": "only 2 of the adapter's 8 factors",
    "no policy": "(mp_policy is missing); use another version",
    "other parameters": "(other parameters of FSDPParam); use another version",
    "other groups": "(_fsdp_param_group is missing); use another version",
    "grown again": "second: fully_shard cannot take back an adapter",
    "loaded too late": "callback.take_ranks_from(checkpoint)",
}


def test_refused(tmp_path: Path) -> None:
    for errors in together(errors_of_sharded_models, 2, tmp_path):
        assert errors.keys() == EXPECTED.keys()
        assert errors["supported"] == ""
        for case, error in errors.items():
            assert EXPECTED[case] in error, case


def test_resumed_by_another_number_of_processes(tmp_path: Path) -> None:
    job, path = Job(sharded=True), tmp_path / "sharded.pt"
    whole = together(train_in_parts, 2, tmp_path / "two", job, path, WARMUP + 1, True)
    for result in together(train_in_parts, 4, tmp_path / "four", job, path, WARMUP + 1, False):
        assert result["ranks"] == whole[0]["ranks"]
        for name, weight in whole[0]["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-3, atol=1e-5, msg=name)
