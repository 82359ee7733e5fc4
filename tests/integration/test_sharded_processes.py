"""FSDP2: norms of sharded gradients, and matrices that change shape while they are sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from integration.process_cases import (
    Job,
    accelerated,
    refusals,
    resume_sharded,
    rule_by_scores,
    train_sharded,
)
from integration.process_group import together
from integration.test_processes import same

JOBS = {
    "plain": Job(),
    "accumulation": Job(accumulate=2),
    "ranks that become 0": Job(config=dict(budget="parameters", max_rank=12, total_rank=6)),
    "SVD, again and again": Job(config=dict(keep="svd", reallocate_every=2)),
    "by what has been learned": Job(before=rule_by_scores, config=dict(score="last_singular_value")),
    "with accelerate_lora": Job(before=accelerated),
    "SGD with momentum": Job(optimizer=torch.optim.SGD, learning_rate=1e-2),
    "checkpointing, other scalings": Job(checkpointed=True, config=dict(rank_scaling="inverse_sqrt")),
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


def test_what_is_refused(tmp_path: Path) -> None:
    for said in together(refusals, 2, tmp_path):
        exact, relative, offloaded, columns, tensor_parallel, partly, *other_versions, again, late, none = said
        assert 'signal="delta_exact" needs whole factors' in exact
        assert 'relative_to="weight" needs whole base weights' in relative
        assert "CPUOffloadPolicy is not supported by glora; leave out offload_policy" in offloaded
        assert "sharded along another dimension than their first" in columns
        assert "not by fully_shard (FSDP2) on this model" in tensor_parallel
        assert "only 2 of the adapter's 8 factors are sharded" in partly
        missing = ["mp_policy is missing", "other parameters of FSDPParam", "_fsdp_param_group is missing"]
        for what, other_version in zip(missing, other_versions, strict=True):
            assert f"({what}); use another version" in other_version
        assert "second: fully_shard cannot take back an adapter" in again
        assert "has other ranks than the model, which fully_shard has spread over the processes already" in late
        assert "callback.take_ranks_from(checkpoint) before trainer.train(resume_from_checkpoint=checkpoint)" in late
        assert none == ""


def test_resumed_by_another_number_of_processes(tmp_path: Path) -> None:
    whole = together(resume_sharded, 2, tmp_path / "two", tmp_path, True)
    for result in together(resume_sharded, 4, tmp_path / "four", tmp_path, False):
        assert result["ranks"] == whole[0]["ranks"]
        for name, weight in whole[0]["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-3, atol=1e-5, msg=name)
