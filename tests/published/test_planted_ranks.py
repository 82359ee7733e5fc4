"""The benchmark of planted ranks: its teacher is what it says, its cut and its interval are right, and it runs and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.planted import grid, report
from benchmarks.planted.comparison import Share, compare, share_of_gap
from benchmarks.planted.task import PLANTED_RANKS, PlantedTask, Setting
from benchmarks.planted.variants import GradientColumnsAllocator, InverseScalingAllocator, ZeroMomentAllocator
from benchmarks.planted.wide import ADALORA, VARIANTS
from benchmarks.records import read_lines

from glora import RankAllocationConfig, RankAllocator

TINY = Setting(width=16, layers=1, rank=2, steps=8, warmup=0.5)


def test_the_teacher_differs_by_updates_of_the_planted_ranks_and_equal_norms() -> None:
    task = PlantedTask(Setting(width=32, layers=1), seed=3)
    assert sorted(task.planted.values()) == sorted(PLANTED_RANKS[i % 5] for i in range(6))
    norms = set()
    for name, update in task.updates.items():
        assert torch.linalg.matrix_rank(update, rtol=1e-4) == task.planted[name]
        if task.planted[name]:
            norms.add(round(float(update.norm()), 4))
    assert norms == {round(0.25 * 32**0.5, 4)}

    # with the updates added the student is the teacher: so a loss of zero is within reach, and the targets are the teacher's
    assert task.held_out_loss() > 1e-3
    with torch.no_grad():
        for name, update in task.updates.items():
            task.student.get_base_model().get_submodule(name).base_layer.weight += update
    assert task.held_out_loss() < 1e-9


def test_noise_is_in_the_training_data_alone() -> None:
    clean, noisy = PlantedTask(TINY, 0), PlantedTask(Setting(**vars(TINY) | {"noise": 0.5}), 0)
    assert torch.equal(clean.targets, noisy.targets)
    difference = noisy.training_targets - clean.training_targets
    assert difference.std().item() == pytest.approx(0.5, rel=0.02)


def test_an_epoch_sees_every_sequence_once_and_each_in_another_order() -> None:
    task = PlantedTask(TINY, 0)
    epochs = [torch.cat([task.batch()[0] for _ in range(150)]) for _ in range(2)]
    assert not torch.equal(*epochs)
    for epoch in epochs:
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, task.training_tokens.tolist()))


def test_runs_are_chosen_by_variant_and_setting() -> None:
    chosen = list(grid.only(grid.runs(), ["uniform", "delta"], ["base", "parameter budget"]))
    assert {(s.budget, variant) for s, variant, _ in chosen} == {
        (b, v) for b in ("rank", "parameters") for v in ("uniform", "delta")
    }
    assert {seed for *_, seed in chosen} == set(grid.SEEDS)
    assert list(grid.only(grid.runs(), None, None)) == list(grid.runs())
    with pytest.raises(SystemExit, match="'delat' .*benchmark; .*uniform, planted"):
        grid.only(grid.runs(), ["delat"], None)


def test_share_of_the_gap() -> None:
    reference = {0: 5.0, 1: 7.0, 2: 6.0, 3: 9.0}
    truth = {seed: value - 2.0 for seed, value in reference.items()}
    assert share_of_gap(truth, reference, truth) == Share(1.0, 1.0, 1.0)
    # where the gap is 2 for every seed, the interval is Student's, halved: gains 0, 1, 1, 2 have mean 1 and sd 0.8165
    values = {0: 5.0, 1: 6.0, 2: 5.0, 3: 7.0}
    share = share_of_gap(values, reference, truth)
    half = 3.1824 * 0.8165 / 4**0.5 / 2
    assert (share.mean, share.low, share.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-3)


def test_no_share_where_there_is_no_clear_gap() -> None:
    reference, truth = {0: 1.0, 1: 1.0, 2: 1.0}, {0: 0.0, 1: 2.0, 2: 0.5}
    assert share_of_gap({0: 0.5, 1: 1.0, 2: 0.5}, reference, truth) is None
    worse = {0: 2.0, 1: 2.1, 2: 1.9}
    assert share_of_gap({0: 0.5, 1: 1.0, 2: 0.5}, reference, worse) is None


def warmed_up(allocator_class: type, steps: int = 4) -> tuple[PlantedTask, torch.optim.Optimizer, object]:
    class OnlyGrows(allocator_class):
        def allocate(self) -> dict[str, int]:
            return {name: rank + 3 for name, rank in self.ranks.items()}

    task = PlantedTask(TINY, 0)
    optimizer = torch.optim.AdamW([p for p in task.student.parameters() if p.requires_grad], lr=1e-2)
    allocator = OnlyGrows(task.student, optimizer, RankAllocationConfig(warmup_steps=steps))
    return task, optimizer, allocator


def step(task: PlantedTask, optimizer: torch.optim.Optimizer, allocator: object) -> None:
    optimizer.zero_grad()
    task.loss(*task.batch()).backward()
    allocator.step()
    optimizer.step()


def test_columns_along_the_gradient_change_no_output_and_learn_at_once() -> None:
    task, optimizer, allocator = warmed_up(GradientColumnsAllocator)
    plain = warmed_up(RankAllocator)  # whose new columns of B are zero
    for _ in range(4):
        step(task, optimizer, allocator)
        step(*plain)
    assert allocator.allocated
    assert task.held_out_loss() == pytest.approx(plain[0].held_out_loss(), rel=1e-6)
    optimizer.zero_grad()
    task.loss(task.held_out, task.targets).backward()
    for matrix in allocator.adapter.matrices.values():
        A, B = matrix.factors
        new = B[:, 2:4]  # as many as the old rank are known
        torch.testing.assert_close(new.T @ new, torch.eye(2) / 3, atol=1e-5, rtol=0)
        assert (B[:, :2].T @ new).abs().max() < 1e-5
        assert not A[2:4].any()
        assert A.grad[2:4].norm() > 0


def test_zero_moments_are_of_the_new_columns_alone() -> None:
    task, optimizer, allocator = warmed_up(ZeroMomentAllocator)
    for _ in range(4):
        step(task, optimizer, allocator)
    for matrix in allocator.adapter.matrices.values():
        A, B = matrix.factors
        assert not optimizer.state[A]["exp_avg_sq"][2:].any()
        assert not optimizer.state[B]["exp_avg_sq"][:, 2:].any()
        assert optimizer.state[A]["exp_avg_sq"][:2].all()
        assert optimizer.state[B]["exp_avg_sq"][:, :2].any(0).all()


def test_a_scaling_that_falls_with_the_rank_changes_no_output() -> None:
    task, optimizer, allocator = warmed_up(InverseScalingAllocator)
    plain_task, plain_optimizer, plain = warmed_up(RankAllocator)
    for _ in range(4):
        step(task, optimizer, allocator)
        step(plain_task, plain_optimizer, plain)
    assert task.held_out_loss() == pytest.approx(plain_task.held_out_loss(), rel=1e-5)
    for name, matrix in allocator.adapter.matrices.items():
        other, c = plain.adapter.matrices[name], 5 / 2
        assert matrix.scaling == pytest.approx(other.scaling / c)
        torch.testing.assert_close(matrix.B, c * other.B)
        mine, theirs = optimizer.state[matrix.B], plain_optimizer.state[other.B]
        torch.testing.assert_close(mine["exp_avg"], theirs["exp_avg"] / c)
        torch.testing.assert_close(mine["exp_avg_sq"], theirs["exp_avg_sq"] / c**2)
        matrix.layer.set_scale("default", 1)  # PEFT's own, from alpha and r
        assert matrix.scaling == pytest.approx(other.scaling / c)


def test_every_variant_runs_once_is_not_run_again_and_is_reported(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    wanted = [(TINY, variant, 0) for variant in VARIANTS]
    assert grid.run_missing(records, iter(wanted), limit=2) == 2
    with records.open("a") as file:
        file.write('{"setting": {"wid')  # killed while it wrote
    made = grid.run_missing(records, iter(wanted))
    assert made == len(VARIANTS) - 2
    assert grid.run_missing(records, iter(wanted)) == 0

    by_variant = {r["variant"]: r for r in read_lines(records)}
    assert by_variant.keys() == VARIANTS.keys()
    for name, record in by_variant.items():
        total = 6 * 2 * (4 if name == "wide" else 1)
        assert sum(record["ranks"].values()) == total or name in ADALORA, name  # AdaLoRA has hardly begun
        assert 0 < record["loss"] < record["loss_before_training"], name
    ranks = {name: tuple(r["ranks"].values()) for name, r in by_variant.items()}
    assert ranks["uniform"] == (2,) * 6
    assert ranks["planted"] != ranks["delta"] != ranks["gradient_cut"]

    report.write_report(records, tmp_path, {"base": TINY})
    text = (tmp_path / "report.md").read_text()
    assert all(variant.what in text for variant in VARIANTS.values())
    assert (tmp_path / "planted.png").stat().st_size > 5000


def test_adalora_is_compared_at_the_learning_rate_that_was_best_on_other_seeds() -> None:
    losses = {"adalora_1.5_0.05": (3.0, 3.0), "adalora_1.5_0.02": (1.0, 4.0), "adalora_4_0.1": (9.0, 9.0)}
    records = [
        {"variant": variant, "seed": seed, "loss": loss}
        for variant, of in losses.items()
        for seed, loss in enumerate(of)
    ]
    unseen = {"variant": "adalora_1.5_0.05", "seed": grid.WIDE_SEEDS.start, "loss": 1e-9}
    assert grid.tuned([*records, unseen]) == ["adalora_1.5_0.02", "adalora_4_0.1"]
    made = list(grid.wide(grid.tuned(records)))
    assert {seed for _, _, seed in made} == set(grid.WIDE_SEEDS)
    assert len(made) == len(set(made))


def test_uniform_lora_serves_every_warmup_and_budget() -> None:
    cells = {"base": Setting(), "longer": Setting(warmup=0.5, budget="parameters")}
    record = {"setting": grid.settings_of(Setting()), "variant": "uniform", "seed": 0, "loss": 1.0, "parameters": 1}
    record |= {"ranks": {"a": 2, "b": 2}, "planted": {"a": 0, "b": 8}}
    found = report.by_cell([record, record | {"variant": "delta", "ranks": {"a": 3, "b": 1}}], cells, grid.SEEDS)
    assert set(found["base"]) == {"uniform", "delta"}
    assert set(found["longer"]) == {"uniform"}
    row, other = compare(found["base"])
    assert row.difference is row.share is row.correlation is None
    assert other.correlation == pytest.approx(-1)


def test_unseen_seeds_are_reported_apart_and_change_no_other_figure(tmp_path: Path) -> None:
    record = {
        "setting": grid.settings_of(Setting()),
        "parameters": 1,
        "planted": {"a": 0, "b": 8},
        "ranks": {"a": 1, "b": 3},
    }
    seen = [record | {"variant": v, "seed": 0, "loss": loss} for v, loss in (("uniform", 1.0), ("delta", 0.9))]
    unseen = [record | {"variant": v, "seed": 10, "loss": loss} for v, loss in (("uniform", 1.0), ("delta", 1.1))]

    def reported(records: list[dict[str, Any]]) -> str:
        (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        report.write_report(tmp_path / "records.jsonl", tmp_path, {"base": Setting()})
        return (tmp_path / "report.md").read_text()

    alone, both = reported(seen), reported(seen + unseen)
    assert both.startswith(alone.rstrip())
    assert "+10.0%" in both.removeprefix(alone.rstrip())
    assert not set(grid.UNSEEN) & set(grid.SEEDS)
