"""More than one process: DistributedDataParallel in a loop of one's own, across the reallocation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from integration.process_cases import Job, train
from integration.process_group import together
from integration.resume_case import differences


def same(results: list[dict[str, Any]], alone: dict[str, Any], rtol: float = 1e-4) -> None:
    """All processes have the same bits, and what one process has to rounding; the reallocation has changed something."""
    assert len(set(alone["ranks"].values())) > 1
    for result in results:
        assert result["ranks"] == alone["ranks"]
        assert not differences(result["weights"], results[0]["weights"])
        assert not differences(result["optimizer"], results[0]["optimizer"])
        assert result["norms"] == pytest.approx(alone["norms"], rel=rtol)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=rtol, atol=rtol / 10, msg=name)


JOBS = {
    "plain": Job(),
    "not given the wrapper": Job(give_wrapper=False),
    "accumulation": Job(accumulate=4),
    "find_unused_parameters": Job(wrap=dict(find_unused_parameters=True), branch=True),
    "static_graph": Job(wrap=dict(static_graph=True)),
    "static_graph with checkpointing": Job(wrap=dict(static_graph=True), checkpointed=True),
    "checkpointing, accumulation, views": Job(wrap=dict(gradient_as_bucket_view=True), checkpointed=True, accumulate=2),
    "small buckets": Job(wrap=dict(bucket_cap_mb=0.001)),
    "ranks that become 0, parameters": Job(config=dict(budget="parameters", max_rank=12, total_rank=6)),
    "SVD, again and again": Job(config=dict(keep="svd", reallocate_every=2)),
    "delta_exact": Job(config=dict(signal="delta_exact", exact_every=2), accumulate=2),
    "compiled": Job(compiled=True),
}


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_end_as_one(name: str, tmp_path: Path) -> None:
    job = JOBS[name]
    results = together(train, 2, tmp_path, job)
    # in one process, each micro-batch is what one of the two has seen
    same(results, train(dataclasses.replace(job, accumulate=2 * job.accumulate)))
