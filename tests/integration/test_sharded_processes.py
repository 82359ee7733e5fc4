"""FSDP2: norms of sharded gradients, and matrices that change shape while they are sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from integration.process_cases import Job, train_sharded
from integration.process_group import together
from integration.test_processes import same

JOBS = {
    "plain": Job(),
    "accumulation": Job(accumulate=2),
    "ranks that become 0": Job(config=dict(budget="parameters", max_rank=12, total_rank=6)),
    "SVD, again and again": Job(config=dict(keep="svd", reallocate_every=2)),
    "SGD with momentum": Job(optimizer=torch.optim.SGD, learning_rate=1e-2),
    "checkpointing": Job(checkpointed=True),
}


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_end_as_one(name: str, tmp_path: Path) -> None:
    job = JOBS[name]
    results = together(train_sharded, 2, tmp_path, job)
    alone = train_sharded(job)
    same(results, alone)
    assert results[0]["kinds"] == ["DTensor"]


def test_replicas_of_shards(tmp_path: Path) -> None:
    """HSDP: four processes, two shards, two replicas of each."""
    job = Job(mesh=(2, 2))
    same(together(train_sharded, 4, tmp_path, job), train_sharded(Job()))
