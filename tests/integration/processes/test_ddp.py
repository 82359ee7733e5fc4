"""More than one process: DistributedDataParallel in your own training loop, across the reallocation."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands import launch

from integration.processes.process_cases import (
    STEPS,
    WARMUP,
    Fate,
    Job,
    custom_rule,
    deaf,
    hear,
    other_seed,
    rule_that_fails,
    train,
    train_all,
    train_in_parts,
    train_with_accelerate,
    train_within_join,
    unwrapped,
)
from integration.processes.process_group import TIMEOUT, start, together, wait
from integration.training.resume_case import differences
from new_process import run_program

Results = dict[str, list[dict[str, Any]]]


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


SPECTRUM = dict(rule="spectrum", average_rank=1.5, reallocate_every=2, max_reallocations=2)
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
    "spectrum, two cuts": Job(config=SPECTRUM),
    "with accelerate_lora": Job(accelerated=True, accumulate=2),
    "compiled, not given the wrapper": Job(compiled=True, give_wrapper=False),
}
HOOKS = {
    "counted": Job(comm_hook="counted", config=dict(total_rank=30)),
    "fp16": Job(comm_hook="fp16", learning_rate=1e-3),
    "PowerSGD": Job(comm_hook="PowerSGD", learning_rate=1e-3),
}
DECIDED = {
    "another seed": Job(before=other_seed),
    "another rule": Job(before=custom_rule),
    "another seed, SVD": Job(before=other_seed, config=dict(keep="svd")),
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results of two processes, for every job."""
    jobs = JOBS | HOOKS | DECIDED
    results = together(train_all, 2, tmp_path_factory.mktemp("two"), jobs, limit=200)
    return {name: [result[name] for result in results] for name in jobs}


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_end_as_one(name: str, of_two: Results) -> None:
    job = JOBS[name]
    # in one process, each micro-batch is what one of the two has seen
    same(of_two[name], train(dataclasses.replace(job, accumulate=2 * job.accumulate)))


def test_four_processes_and_what_they_say(tmp_path: Path) -> None:
    results = together(train, 4, tmp_path, Job(before=hear))
    same(results, train(Job()))
    heard = [result["heard"] for result in results]
    assert len(heard[0]) == 1
    assert heard[0][0].startswith(f"step {WARMUP}: ")
    assert heard[1:] == [[], [], []]
    assert all(result["wrapper"] == "kept" and not result["training"] for result in results)


def test_a_communication_hook_sees_every_gradient(of_two: Results) -> None:
    """One bucket a step, with all trained parameters, before the reallocation and after it."""
    result, _ = of_two["counted"]
    before, after = result["reduced"][:WARMUP], result["reduced"][WARMUP:]
    trained = sum(weight.numel() for weight in result["weights"].values())
    assert len(after) == STEPS - WARMUP
    assert set(after) == {trained}
    assert set(before) < {*range(trained)}


@pytest.mark.parametrize("hook", ["fp16", "PowerSGD"])
def test_communication_hooks_go_on(hook: str, of_two: Results) -> None:
    results, alone = of_two[hook], train(Job(learning_rate=1e-3))
    assert results[0]["ranks"] == alone["ranks"]
    assert not differences(results[0]["weights"], results[1]["weights"])
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(results[0]["weights"][name], weight, rtol=0.1, atol=2e-3, msg=name)


@pytest.mark.parametrize("name", DECIDED)
def test_process_0_decides(name: str, of_two: Results) -> None:
    """Any seed or rule of the other processes is ignored."""
    alone = train(DECIDED[name])
    if "seed" in name:
        same(of_two[name], alone)
    one, other = of_two[name]
    assert one["ranks"] == other["ranks"] == alone["ranks"]
    assert not differences(one["weights"], other["weights"])
    assert not differences(one["optimizer"], other["optimizer"])


MISTAKES = {
    "the module called directly": (Job(before=unwrapped), ["8 of 8 LoRA factors differ between 2 processes"] * 2),
    "never wrapped": (
        Job(before=unwrapped, give_wrapper=False),
        [r"no forward pass went through DistributedDataParallel.*accelerator.prepare\(model\)"] * 2,
    ),
    "a rule that fails": (
        Job(before=rule_that_fails),
        ["ZeroDivisionError: the rule of process 0", "see the error of process 0"],
    ),
    "columns that differ": (Job(before=deaf), ["after the reallocation .* differ between the 2 processes"] * 2),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_errors_in_every_process(name: str, tmp_path: Path) -> None:
    job, errors = MISTAKES[name]
    found = wait(start(train, 2, tmp_path, job), tmp_path)
    assert all(re.search(expected, error) for expected, error in zip(errors, found)), "\n".join(found)


@pytest.mark.parametrize(
    ("when", "rank"), [("before", 1), ("deciding", 0), ("sharing", 0), ("sharing", 1), ("checking", 1), ("after", 0)]
)
def test_a_process_that_is_killed_ends_the_others(when: str, rank: int, tmp_path: Path) -> None:
    processes = start(train, 3, tmp_path, Job(before=Fate(rank, when)))
    errors = wait(processes, tmp_path, limit=30)
    assert processes[rank].exitcode == -signal.SIGKILL
    assert all(errors[other] for other in range(3) if other != rank), errors


def test_a_process_that_stops_ends_the_others(tmp_path: Path) -> None:
    """A process stopped while ranks change closes no connection: the group's own limit of time has to end the wait."""
    processes = start(train, 2, tmp_path, Job(before=Fate(1, "sharing", signal.SIGSTOP)))
    deadline = time.monotonic() + 4 * TIMEOUT
    while processes[0].is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].kill()
    errors = wait(processes, tmp_path)
    assert processes[0].exitcode == 1
    assert "imed out" in errors[0], errors[0]


@pytest.mark.parametrize("middle", [WARMUP - 2, WARMUP, WARMUP + 2])
def test_resumed_by_another_number_of_processes(middle: int, tmp_path: Path) -> None:
    one, three = tmp_path / "one.pt", tmp_path / "three.pt"
    alone = train_in_parts(Job(), one, middle, True)
    same(together(train_in_parts, 2, tmp_path / "two", Job(), one, middle, False), alone)
    if middle == WARMUP:
        of_three = together(train_in_parts, 3, tmp_path / "three", Job(), three, middle, True)
        assert train_in_parts(Job(), three, middle, False)["ranks"] == of_three[0]["ranks"]


def test_a_state_of_other_ranks_needs_the_wrapper(tmp_path: Path) -> None:
    path, folder = tmp_path / "one.pt", tmp_path / "two"
    train_in_parts(Job(), path, WARMUP + 1, True)
    errors = wait(start(train_in_parts, 2, folder, Job(give_wrapper=False), path, WARMUP + 1, False), folder)
    assert all("accelerator.prepare(model)" in error for error in errors)


def test_within_join(tmp_path: Path) -> None:
    """Uneven numbers of batches: who has run out before the reallocation cannot take part, and afterwards it may."""
    results = together(train_within_join, 2, tmp_path / "after", Job(), (STEPS, WARMUP + 2))
    assert not differences(results[0]["weights"], results[1]["weights"])
    for config in (dict(), dict(signal="delta_exact", exact_every=1)):
        folder = tmp_path / str(len(config))
        errors = wait(start(train_within_join, 2, folder, Job(config=config), (STEPS, WARMUP - 2)), folder)
        assert re.search("1 of 2 processes .*out of batches", errors[0])
        assert errors[1]


def test_accelerate_with_an_uneven_last_batch(tmp_path: Path) -> None:
    results = together(train_with_accelerate, 2, tmp_path / "whole", 2)
    (alone,) = together(train_with_accelerate, 1, tmp_path / "alone", 1)
    same(results, alone)
    # accelerate fills up each process's last batch, so this is not what one process sees
    uneven = together(train_with_accelerate, 2, tmp_path / "uneven", 2, 69)
    same(uneven, uneven[0])
    assert differences(uneven[0]["weights"], results[0]["weights"])


@pytest.mark.slow
def test_started_by_accelerate_launch(tmp_path: Path) -> None:
    """It starts torchrun, whose processes find each other by their environment.

    On a CPU it starts several processes only if its options name several GPUs; port 0 is one that is free.
    """
    options = ("--multi_gpu", "--num_processes=2", "--main_process_port=0")
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    program = ("-m", "integration.processes.launched", tmp_path / "result.pt")
    done = run_program(launch.main, "launch", *options, *program, PYTHONPATH=path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("glora: step 4:") == 1
    (alone,) = together(train_with_accelerate, 1, tmp_path / "alone", 1)
    result = torch.load(tmp_path / "result.pt")
    same([result], alone)
    assert result["processes"] == 2
