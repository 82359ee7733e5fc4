"""A search that is not possible is refused before anything is made; a request of a file and of options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.plan import InvalidComparisonError
from glora.experiments.search.plan import parse_ranges, search_request_of_file
from unit.experiments.plan_case import errors
from unit.experiments.search.plan_case import RANGES


@pytest.mark.parametrize(
    ("change", "expected", "absent"),
    [
        ({"trials": -3, "held_out": 1.0, "seed": -1}, ["trials=-3", "held_out=1 must", "search_seed=-1"], "rank"),
        ({"held_out": 0.001}, ["held_out=0.001 of 192"], "trials="),
        ({"ranges": {"warmup_steps": "5-40"}}, ["warmup_steps=40 can never be trained with glora"], "warmup_steps=5 "),
        (
            {"methods": ("glora",), "ranges": {"warmup_steps": "40-50", "beta": "0.8-0.9"}},
            ["warmup_steps=40 can never", "warmup_steps=50 can never"],
            "beta",  # which is not to blame
        ),
        (
            {"methods": ("glora",), "ranges": {"warmup_steps": "400-500", "epochs": "2-3"}},
            ["glora can be trained with no values of these ranges; warmup_steps=400, epochs=2: a warm-up"],
            "can never",
        ),
        (
            {"methods": ("glora",), "settings": {"min_rank": 9}, "ranges": {"beta": "0.8-0.9"}},
            ["glora: min_rank=9 is more than the budget"],
            "can never",
        ),
        (
            {"methods": ("lora",), "ranges": {**RANGES, "total_rank": "24,48"}},
            ["total_rank: none of the methods"],
            "beta",
        ),
        (
            {"methods": ("lora",), "ranges": {}, "settings": {"learning_rate": 1e-3}},
            ["nothing to search"],
            "total_rank",
        ),
        ({"methods": ("lroa",)}, ["'lroa'"], "search"),
    ],
)
def test_an_impossible_search_is_refused_before_anything_is_made(
    plan, tmp_path: Path, change: dict[str, Any], expected: list[str], absent: str
) -> None:
    text = "\n".join(errors(plan, **change))
    assert [part for part in expected if part not in text] == []
    assert absent not in text
    assert not (tmp_path / "out").exists()


def test_a_request_of_a_file_has_its_ranges_and_the_command_lines(tmp_path: Path) -> None:
    file = tmp_path / "experiment.json"
    searches = [{"name": "learning rate", "range": "1e-4-5e-4"}, {"name": "beta (EMA)", "range": "0.8-0.99"}]
    file.write_text(
        json.dumps(
            {
                "models_to_use": ["all-MiniLM-L6-v2"],
                "datasets_to_use": ["stdlib-docs"],
                "hyperparameters_to_search": searches,
                "seeds": [4],
            }
        )
    )
    request = search_request_of_file(file, {"settings": {"epochs": 1}}, ranges={"beta": "0.5-0.6", "r": "4,8"})
    assert [str(found) for found in request["ranges"]] == [
        "beta 0.5 to 0.6 (linear)",
        "rank one of 4, 8",
        "learning_rate 0.0001 to 0.0005 (log)",
    ]
    assert (request["methods"], request["seeds"]) == (("lora", "adalora", "glora"), (4,))
    assert request["pairs"][0]["epochs"] == 1
    with pytest.raises(ValueError, match="'bta'.*did you mean 'beta'"):
        parse_ranges({"bta": "0-1"})
    with pytest.raises(InvalidComparisonError) as caught:
        parse_ranges({"lr": "5e-4-1e-4", "bta": "0-1", "beta": "0.8-0.9", "beta (EMA)": "0.9,0.99"})
    assert [
        part in error
        for part, error in zip(("5e-4 below and 1e-4 above", "'beta'", "range: beta is given"), caught.value.errors)
    ] == [True] * 3
