"""A run that is resumed, in a new process, ends with the same bits as one that was not interrupted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from integration.resume_case import WARMUP, Job, differences, run

REMOVED = "deberta.encoder.layer.0.attention.self.key_proj"
VARIANTS = {
    "default": {},
    "a matrix without adapter": dict(config=dict(max_rank={REMOVED: 0})),
    "callbacks restored by Trainer": dict(
        config=dict(max_rank={REMOVED: 0}), arguments=dict(restore_callback_states_from_checkpoint=True)
    ),
    "an optimiser of one's own": dict(config=dict(max_rank={REMOVED: 0}), own_optimizer=True),
    "measured norms": dict(config=dict(signal="delta_exact", exact_every=3)),
    "reallocated again": dict(config=dict(reallocate_every=3, max_rank={REMOVED: 0}, keep="svd")),
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_same_bits(tiny_deberta: Path, glue_folder: Path, tmp_path: Path, fields: dict) -> None:
    job = Job(tiny_deberta, glue_folder, tmp_path / "whole", **fields)
    whole = run(job)
    assert whole["allocation"]["allocated"]
    assert (whole["allocation"]["ranks"][REMOVED] == 0) == ("max_rank" in fields.get("config", {}))
    for step in (WARMUP - 1, WARMUP, WARMUP + 1, 2 * WARMUP):
        again = run(dataclasses.replace(job, output=tmp_path / f"from-{step}", resume=job.checkpoint(step)))
        assert not differences(whole, again), step
