"""More than one process in transformers' Trainer: DistributedDataParallel and FSDP2, resumed by other numbers of processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from glora import RankAllocationCallback, last_complete_checkpoint
from integration.adapters.test_saved_adapter import stock_logits
from integration.processes.process_group import start, together, wait
from integration.processes.process_trainer import (
    kill_the_second_at_the_reallocation,
    train,
    train_sharded,
    train_twice,
)
from integration.training.resume_case import STEPS, WARMUP, Job, differences


def same(result: dict[str, Any], alone: dict[str, Any]) -> None:
    assert result["allocation"]["ranks"] == alone["allocation"]["ranks"]
    assert len(set(alone["allocation"]["ranks"].values())) > 3
    assert result["allocation"]["norms"] == pytest.approx(alone["allocation"]["norms"], rel=1e-3)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(result["weights"][name], weight, rtol=2e-3, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def alone(
    tiny_deberta: Path, glue_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, dict[str, Any]]:
    """A run in one process, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("alone")
    job = Job(tiny_deberta, glue_folder, folder / "run")
    (result,) = together(train, 1, folder, job)
    return job, result


def test_two_processes_end_as_one(alone: tuple[Job, dict[str, Any]], tmp_path: Path) -> None:
    arguments = dict(gradient_accumulation_steps=2, save_steps=WARMUP)
    job = alone[0].replace(output=tmp_path / "run", arguments=arguments)
    results = together(train, 2, tmp_path, job)
    for result in results:
        same(result, alone[1])
        assert result["wrapped"] == "DistributedDataParallel"
        assert not differences(result["weights"], results[0]["weights"])
        assert not differences(result["optimizer"], results[0]["optimizer"])
    assert ["adapter parameters" in "".join(result["heard"]) for result in results] == [True, False]
    assert results[1]["heard"] == []
    files = {path.name for path in job.checkpoint(WARMUP).iterdir()}
    assert {"adapter_model.safetensors", "allocation.json", "rng_state_0.pth", "rng_state_1.pth"} < files


def test_resumed_by_more_and_by_fewer_processes(alone: tuple[Job, dict[str, Any]], tmp_path: Path) -> None:
    """Two before the reallocation, one after it."""
    (job, result), step = alone, WARMUP - 1
    arguments = dict(save_steps=step + 2)
    more = job.replace(output=tmp_path / "more", resume=job.checkpoint(step), arguments=arguments)
    results = together(train, 2, tmp_path, more)
    same(results[0], result)
    assert not differences(results[0]["weights"], results[1]["weights"])
    fewer = more.replace(output=tmp_path / "fewer", resume=more.checkpoint(step + 2))
    same(together(train, 1, tmp_path / "one", fewer)[0], result)


def test_a_killed_process_ends_the_others_and_the_run_goes_on(
    alone: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    job, result = alone
    killed = job.replace(output=tmp_path / "run", prepare=kill_the_second_at_the_reallocation)
    processes = start(train, 2, tmp_path, killed)
    errors = wait(processes, tmp_path)
    assert processes[1].exitcode == -signal.SIGKILL
    assert errors[0]
    last = last_complete_checkpoint(killed.output)
    assert last == str(killed.checkpoint(WARMUP - 1))
    resumed = job.replace(output=killed.output, resume=Path(last), arguments=dict(save_strategy="no"))
    same(together(train, 2, tmp_path / "again", resumed)[0], result)


def test_a_second_training_under_the_same_wrapper(alone: tuple[Job, dict[str, Any]], tmp_path: Path) -> None:
    """The best model's ranks are not those that the reducer was made for."""
    arguments = dict(eval_strategy="steps", eval_steps=3, save_steps=3, load_best_model_at_end=True)
    results = together(train_twice, 2, tmp_path, alone[0].replace(output=tmp_path / "run", arguments=arguments))
    assert not differences(results[0]["weights"], results[1]["weights"])
    assert len(set(results[0]["allocation"]["ranks"].values())) > 3


def test_sharded(alone: tuple[Job, dict[str, Any]], batch: dict, tmp_path: Path) -> None:
    arguments = dict(gradient_accumulation_steps=2, save_steps=WARMUP + 1)
    job = alone[0].replace(output=tmp_path / "run", arguments=arguments)
    results = together(train_sharded, 2, tmp_path, job)
    for result in results:
        same(result, alone[1])
        assert result["wrapped"].startswith("FSDP")
    stock_logits(job.base, batch, tmp_path, job.output / "saved")
    saved, of_one = (
        load_file(d / "adapter_model.safetensors") for d in (job.output / "saved", alone[0].checkpoint(STEPS))
    )
    assert saved.keys() == of_one.keys()
    for name, weight in of_one.items():
        torch.testing.assert_close(saved[name], weight, rtol=2e-3, atol=1e-4, msg=name)

    assert last_complete_checkpoint(job.output) == str(job.checkpoint(STEPS))
    arguments = dict(save_strategy="no")
    resumed = job.replace(output=tmp_path / "more", resume=job.checkpoint(WARMUP + 1), arguments=arguments)
    same(together(train_sharded, 2, tmp_path / "resumed", resumed)[0], alone[1])


def test_ranks_are_taken_from_a_checkpoint_that_has_them(trainer_of, tmp_path: Path) -> None:
    callback = RankAllocationCallback()
    with pytest.raises(ValueError, match=r"Trainer\(callbacks="):
        callback.take_ranks_from(tmp_path)
    trainer_of(callback)
    for content in ("", "[]", "null", "[" * 100_000):
        (tmp_path / "trainer_state.json").write_text(content)
        with pytest.raises(ValueError, match=r"trainer_state.json .*last_complete_checkpoint"):
            callback.take_ranks_from(tmp_path)
    state = TrainerState(global_step=3)
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    with pytest.raises(ValueError, match="RankAllocationCallback.*another checkpoint"):
        callback.take_ranks_from(tmp_path)
    state.stateful_callbacks = {"RankAllocationCallback": {"attributes": {"saved_state": {"ranks": {"elsewhere": 4}}}}}
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    with pytest.raises(ValueError, match="version None"):
        callback.take_ranks_from(tmp_path)
