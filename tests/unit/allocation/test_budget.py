"""A budget that a cut could not meet is reported before the warm-up, and what could not be cut stays as it is."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glora import RankAllocationCallback, RankAllocationConfig, RankAllocator, save_allocation
from glora.allocation.budget import check_start
from glora.lora.adapter import RankedAdapter
from unit.test_allocator import config, lora, sgd, started, train


class Pair(nn.Module):
    """A cheap matrix, 8 × 8, and a dear one, 64 × 64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(64, 64)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rule": "spectra"}, "did you mean 'spectrum'"),
        ({"average_rank": 2, "total_rank": 4}, "total_rank and average_rank are given; give one"),
        ({"energy": 0.9}, "energy=0.9 needs rule='spectrum'"),
        ({"rule": "spectrum", "energy": 1.5}, "energy=1.5 must be a share above 0 and at most 1"),
        ({"rule": "spectrum", "average_rank": 0}, "average_rank=0.0 must be a number above 0"),
        ({"rule": "spectrum", "average_rank": 2, "keep": "norm"}, "keep='norm' must be 'svd'"),
        ({"rule": "spectrum", "average_rank": 2, "reallocate_every": 5}, "needs max_reallocations"),
        ({"rule": "uniform", "average_rank": 1.5}, "average_rank=1.5 must be a whole number"),
    ],
    ids=str,
)
def test_fields_that_contradict_each_other(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        RankAllocationConfig(**fields)


def test_a_cut_needs_a_budget_at_once() -> None:
    with pytest.raises(ValueError, match="give average_rank"):
        RankAllocationCallback(rule="spectrum")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rule": "uniform", "average_rank": 1, "min_rank": 2}, "2 short of min_rank"),
        ({"average_rank": 1, "min_rank": 5}, "min_rank=5 is above the rank 4 of 'first'"),
        ({"average_rank": 1, "min_rank": 2}, "2 short of min_rank"),
        ({"rule": "uniform", "total_rank": 3}, "total_rank=3 is not a multiple of the 2 matrices"),
        ({"average_rank": 2, "min_rank": 3, "max_rank": {"first": 2}}, "min_rank=3 is above max_rank=2 for 'first'"),
        ({"average_rank": 2, "max_rank": {"third": 1}}, "max_rank names 'third'"),
        ({"average_rank": 2, "max_rank": 1}, "the matrices hold 2 ranks at most under max_rank"),
        ({"total_rank": 100}, "and 100 are asked for; ask for less"),
        (
            {"average_rank": 0.2, "budget": "rank"},
            "total_rank=0.4 with budget='rank' and these bounds pays for no rank",
        ),
    ],
    ids=str,
)
def test_refused_before_the_first_step(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        started(**{"rule": "spectrum"} | fields)


@pytest.mark.parametrize(("fields", "start"), [({"average_rank": 4}, 12), ({"total_rank": 9}, 12)], ids=str)
def test_a_start_that_is_not_wider_is_an_error_at_the_first_step(fields: dict, start: int) -> None:
    """The remedy is four times the average, here more than the 12 that a matrix can hold."""
    model, optimizer, allocator = started(**{"rule": "spectrum"} | fields)
    with pytest.raises(ValueError, match=re.escape(f"start with LoraConfig(r={start}) and lora_alpha")):
        train(model, optimizer, allocator, 1)


def test_wider_is_meant_in_parameters_under_their_budget() -> None:
    """Rank 8 in the cheap matrix and 1 in the dear one: more ranks than 8, and fewer parameters."""
    ranks = {"second": 1}
    lora_config = LoraConfig(r=8, lora_alpha=8, target_modules=["first", "second"], rank_pattern=ranks)
    adapter = RankedAdapter(get_peft_model(Pair(), lora_config))
    fields = dict(rule="spectrum", total_rank=8)
    check_start(config(**fields, budget="rank"), adapter)
    with pytest.raises(ValueError, match=r"r=8, .* for .*LoraConfig\(r=16\)"):
        check_start(config(**fields), adapter)


def test_singular_values_that_overflow_keep_the_ranks(caplog: pytest.LogCaptureFixture) -> None:
    model = lora()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-30)
    allocator = RankAllocator(model, optimizer, config(rule="spectrum", average_rank=2, warmup_steps=1))
    (model(torch.ones(2, 6)).sum() * 1e-6).backward()
    allocator.step()
    with torch.no_grad():
        for factor in allocator.adapter.matrices["first"].factors:
            factor.fill_(1e25)
    optimizer.step()
    assert allocator.ranks == {"first": 4, "second": 4}
    assert "first" in caplog.text


def test_bounds_hold_in_a_cut() -> None:
    fields = dict(rule="spectrum", average_rank=2, budget="rank", min_rank={"second": 1}, max_rank={"first": 1})
    model, optimizer, allocator = started(**fields)
    train(model, optimizer, allocator, 3)
    assert allocator.ranks == {"first": 1, "second": 3}


@pytest.mark.parametrize("average", [0.5, 1.5, 2.5])
def test_half_a_rank_on_average_is_not_rounded_up(average: float) -> None:
    """A rank costs 16 and 128 parameters, 144 in both."""
    lora_config = LoraConfig(r=8, lora_alpha=8, target_modules=["first", "second"], init_lora_weights=False)
    model = get_peft_model(Pair(), lora_config)
    fields = dict(rule="spectrum", average_rank=average, warmup_steps=1)
    allocator = RankAllocator(model, sgd(model), config(**fields))
    ranks = allocator.allocate()
    assert 0 < 16 * ranks["first"] + 128 * ranks["second"] <= average * 144


def test_an_energy_that_keeps_every_direction_says_that_more_may_be_needed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="glora")
    train(*started(rule="spectrum", energy=1.0), 3)
    assert "in 8 of 8 ranks" in caplog.text
    assert "a larger r" in caplog.text


def test_a_cut_reads_no_gradient_norms() -> None:
    model, optimizer, allocator = started(rule="spectrum", average_rank=2)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    train(model, optimizer, allocator, 2)
    assert allocator.norms == allocator.scores == {}
    assert allocator.allocate() == allocator.allocate()
    assert not allocator.allocated


def test_nothing_learned_keeps_the_ranks(caplog: pytest.LogCaptureFixture) -> None:
    model = lora()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-30)
    allocator = RankAllocator(model, optimizer, config(rule="spectrum", average_rank=2))
    train(model, optimizer, allocator, 3)
    assert allocator.ranks == {"first": 4, "second": 4}
    assert "learned nothing" in caplog.text


def test_the_line_names_the_matrices_without_an_adapter(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="glora")
    model, optimizer, allocator = started(rule="spectrum", average_rank=1, budget="rank", max_rank={"first": 0})
    train(model, optimizer, allocator, 3)
    (line,) = caplog.messages
    kept = allocator.reallocation.energy_kept
    assert re.fullmatch(
        rf"step 3: kept {kept:.1%} .*2 of 8 ranks, .*0 to 2 in 2 matrices; .*"
        r"168 -> 48 \(-71\.4%\); 1 matrix without .*: first",
        line,
    )


def test_what_is_saved_beside_the_adapter_says_how_it_was_cut(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    model, optimizer, allocator = started(rule="spectrum", energy=0.9)
    save_allocation(allocator, tmp_path)
    assert "0 of 3 steps" in (tmp_path / "README.md").read_text()
    train(model, optimizer, allocator, 3)
    save_allocation(allocator, tmp_path)
    card, kept = (tmp_path / "README.md").read_text(), allocator.reallocation.energy_kept
    assert "gradient norm" not in card
    assert re.search(rf"\(rule `spectrum`, .*{kept:.1%} ", card)
    saved = json.loads((tmp_path / "allocation.json").read_text())
    assert saved["reallocation"]["energy_kept"] == kept >= 0.9
    assert saved["total_rank"] is None
