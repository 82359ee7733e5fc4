"""End to end: the time until LoRA's final loss, from made-up curves; and one run on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.end_to_end import training
from benchmarks.end_to_end.design import Entry, Race, entries
from benchmarks.end_to_end.records import best_rate, read
from benchmarks.end_to_end.report import seconds_to, write_report
from benchmarks.end_to_end.training import Track
from benchmarks.study.design import TASKS, TUNING_SEED
from benchmarks.study.records import append

MIDDLE = TASKS["sst2"].learning_rate
MACHINE = {"cpu": "any", "accelerator": None, "torch_threads": 2}


def record(entry: Entry, curve: list[tuple[int, float, float]], seconds: float, memory: int = 100) -> dict[str, Any]:
    return {
        "task": "sst2",
        **entry._asdict(),
        "steps": curve[-1][0],
        "curve": curve,
        "seconds": seconds,
        "peak_memory": memory,
        "memory_source": "made up",
        "others_during": 0.1,
        "provenance": {"machine": MACHINE},
    }


def curve(pace: float, losses: tuple[float, ...]) -> list[tuple[int, float, float]]:
    return [(20 * i, 10 * pace * i, loss) for i, loss in enumerate(losses, 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LoRA reaches 0.4 after 30 s; spectrum as fast a step, but half-way between 10 and 20 s; AdaLoRA on one seed of three."""
    losses = {"uniform": (0.8, 0.5, 0.4), "spectrum": (0.6, 0.2, 0.1), "adalora": (0.9, 0.8, 0.7)}
    tuning = list(entries("sst2", lambda _: None))
    assert {entry.seed for entry in tuning} == {TUNING_SEED}
    made = [record(e, curve(1, (1.0, 1.0, abs(e.learning_rate - MIDDLE))), 30) for e in tuning]
    for seed in range(3):
        for arm, found in losses.items():
            shown = (0.9, 0.4, 0.3) if (arm, seed) == ("adalora", 2) else found
            made.append(record(Entry(arm, MIDDLE, seed), curve(1, shown), 30, 100 + 10 * (arm == "spectrum")))
    append(made, tmp_path)
    return tmp_path


def test_seconds_to_a_loss_are_interpolated() -> None:
    falling = {"curve": curve(1, (0.8, 0.6, 0.4))}
    assert seconds_to(falling, 0.5) == pytest.approx(25)
    assert seconds_to(falling, 0.9) == 10
    assert seconds_to(falling, 0.4) == 30
    assert seconds_to(falling, 0.3) is None
    assert seconds_to({"curve": curve(1, (0.8, 0.4, 0.6, 0.5))}, 0.5) == pytest.approx(17.5), "the first time counts"


def test_the_table_counts_what_did_not_reach_the_goal(folder: Path) -> None:
    write_report(folder)
    rows = {
        cells[1].strip(): cells
        for line in (folder / "report.md").read_text().splitlines()
        if (cells := line.split("|"))[1:]
    }
    assert [c.strip() for c in rows["spectrum, from 4r̄"][3:5]] == ["3 of 3", "0.500 [0.500, 0.500]"]
    assert rows["spectrum, from 4r̄"][7].strip() == "1.100 [1.100, 1.100]"
    assert rows["uniform LoRA"][4].strip() == "1.000 [1.000, 1.000]"
    assert rows["AdaLoRA"][3].strip() == "1 of 3"
    assert rows["AdaLoRA"][4].strip().startswith("≥ 0.889")  # (1 + 1 + 20/30) / 3
    assert (folder / "curves.png").stat().st_size > 1000


def test_accelerated_arms_have_the_learning_rate_of_the_plain_ones(folder: Path) -> None:
    records = read("sst2", folder)
    wanted = list(dict.fromkeys(entries("sst2", lambda arm: best_rate(records, "sst2", arm))))
    missing = [entry for entry in wanted if entry not in records]
    assert missing[:2] == [Entry(f"{arm}_accelerated", MIDDLE, 0) for arm in ("uniform", "spectrum")]
    assert len(wanted) == len(records) + 3 * 2 + 2 * 5


def test_a_run_leaves_a_curve(tiny_deberta: Path, study_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.RACES, "tiny", Race("sst2", 32, 8, 3, (0,), {}))
    monkeypatch.setattr(Race, "study_task", study_task)
    track = Track("tiny", Path(), str(tiny_deberta))
    plain = track.make(Entry("spectrum", 1e-2, 0))
    assert [step for step, _, _ in plain["curve"]] == [3, 6, 8]
    seconds = [at for _, at, _ in plain["curve"]]
    assert 0 < seconds[0] < seconds[1] < seconds[2] <= plain["seconds"]
    fast = track.make(Entry("spectrum_accelerated", 1e-2, 0))
    assert fast["parameters"] == plain["parameters"]
    assert [loss for *_, loss in fast["curve"]] == pytest.approx([loss for *_, loss in plain["curve"]], rel=1e-3)
    assert plain["peak_memory"] > 1e8
    assert "/" not in json.dumps(plain["provenance"]["machine"]["cpu"])
