"""Progress of a comparison, on a terminal and in a log."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.records.provenance import collect_provenance
from glora.experiments.records.schema import EpochMetrics, RunRecord
from glora.experiments.terminal import Terminal
from glora.experiments.training.progress import BarProgress, LineProgress, RunProgress, duration, open_progress


def terminal(width: int = 140) -> Terminal:
    return Terminal(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})


def log_file() -> Terminal:
    return Terminal(file=io.StringIO(), width=140, _environ={})


def written(console: Terminal) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]


def metrics(epoch: float, accuracy: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch, step=int(4 * epoch), split="validation", train_seconds=2 * epoch, values={"accuracy": accuracy}
    )


def ended(config: RunConfig, *, error: str | None = None) -> RunRecord:
    return RunRecord(
        config=config,
        key=config.key,
        status="failed" if error else "finished",
        error=error,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:00:08+00:00",
        primary_metric="accuracy",
        final={"accuracy": 0.75},
        train_seconds=8.0,
        steps=3 if error else 8,
        provenance=collect_provenance(),
    )


def play(progress: RunProgress, look: Callable[[str], None] = lambda _: None) -> None:
    """Two runs of eight steps and two epochs; the second breaks after three steps."""
    with progress:
        progress.begin(2, 16)
        config = RunConfig(method="lora", seed=5)
        progress.run_begins(config, 8)
        for batch in (1, 2):
            progress.preparing("gradients of [all] weights", f"batch {batch} of 2")
        look("preparing")
        progress.preparing("their singular vectors")
        look("prepared")
        for epoch in (1, 2):
            for _ in range(4):
                progress.step()
            progress.evaluation_begins("validation", 3)
            progress.evaluation_batch()
            look(f"evaluating {epoch}")
            progress.evaluated(metrics(epoch, 0.5 + epoch / 8))
            look(f"evaluated {epoch}")
        progress.say("glora: 3 of [4] matrices changed rank")
        progress.run_ends(ended(config))
        config = RunConfig(method="glora", seed=5)
        progress.run_begins(config, 8)
        for _ in range(3):
            progress.step()
        look("second run")
        progress.run_ends(ended(config, error="ValueError: [red]broken"))
        look("over")


def test_a_terminal_gets_bars_and_a_log_gets_lines() -> None:
    assert isinstance(open_progress(terminal()), BarProgress)
    assert isinstance(open_progress(log_file()), LineProgress)
    dumb = Terminal(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(open_progress(dumb), LineProgress)


def test_a_log_has_a_line_for_what_matters() -> None:
    console = log_file()
    play(open_progress(console))
    lines = written(console).splitlines()
    assert [re.sub(r"about .* left", "about N left", line) for line in lines] == [
        "[1/2] lora, seed 5: 8 steps",
        "[1/2] before the first step: gradients of [all] weights",
        "[1/2] before the first step: their singular vectors",
        "[1/2] epoch 1, step 4, validation: accuracy 0.6250 (2 s of training; about N left in all)",
        "[1/2] epoch 2, step 8, validation: accuracy 0.7500 (4 s of training; about N left in all)",
        "glora: 3 of [4] matrices changed rank",
        "[1/2] lora, seed 5: accuracy 0.7500 after 8 s of training",
        "[2/2] glora, seed 5: 8 steps",
        "[2/2] glora, seed 5 failed: ValueError: [red]broken",
    ]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the clock shows; a test moves it on."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_estimates_the_time_left_from_all_steps(now: list[float]) -> None:
    console = log_file()
    progress = LineProgress(console)
    progress.begin(2, 16)
    progress.run_begins(RunConfig(), 8)
    for _ in range(4):
        now[0] += 10
        progress.step()
    progress.evaluated(metrics(1, 0.5))
    assert "about 2 min 00 s left" in written(console)


def test_a_log_shows_after_a_silent_minute_that_a_run_is_alive(now: list[float]) -> None:
    console = log_file()
    progress = LineProgress(console)
    progress.begin(1, 1000)
    progress.run_begins(RunConfig(), 1000)
    for _ in range(100):
        now[0] += 2
        progress.step()
    progress.evaluation_begins("validation", 20)
    for _ in range(10):
        now[0] += 10
        progress.evaluation_batch()
    assert written(console).splitlines()[1:] == [
        "[1/1] step 31 of 1,000 (about 32 min 18 s left in all)",
        "[1/1] step 62 of 1,000 (about 31 min 16 s left in all)",
        "[1/1] step 93 of 1,000 (about 30 min 14 s left in all)",
        "[1/1] validation: batch 5 of 20",
    ]


def test_a_terminal_of_80_columns_shows_the_metric_and_the_time_left() -> None:
    console = terminal(80)
    with BarProgress(console) as progress:
        progress.begin(9, 12_000)
        progress.run_begins(RunConfig(method="lora_plus", seed=10), 1200)
        progress.step()
        found = EpochMetrics(
            epoch=1, step=1, split="validation", train_seconds=1, values={"matthews_correlation": 0.625}
        )
        progress.evaluated(found)
        before = len(written(console))
        progress._bars.refresh()
    _, line, *_ = (text for text in written(console)[before:].splitlines() if text.strip())
    assert "lora_plus, seed 10" in line
    assert "left" in line
    assert "0.625 " in line


def test_bars_show_runs_steps_evaluation_and_values() -> None:
    console = terminal()
    progress = BarProgress(console)
    seen: dict[str, str] = {}

    def look(moment: str) -> None:
        before = len(console.file.getvalue())  # type: ignore[attr-defined]
        progress._bars.refresh()
        shown = console.file.getvalue()[before:]  # type: ignore[attr-defined]
        seen[moment] = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)

    play(progress, look)
    assert "[all] weights, batch 2 of 2" in seen["preparing"]
    assert "their singular vectors" in seen["prepared"]
    assert "batch 2" not in seen["prepared"]
    assert "singular" not in seen["evaluating 1"]
    assert "run 1 of 2" in seen["evaluating 1"]
    assert "4/16" in seen["evaluating 1"]
    assert "lora, seed 5" in seen["evaluating 1"]
    assert "4/8" in seen["evaluating 1"]
    assert "evaluating validation" in seen["evaluating 1"]
    assert "1/3" in seen["evaluating 1"]
    assert "left" in seen["evaluating 1"]
    assert "evaluating" not in seen["evaluated 2"]
    assert "0.750 accuracy" in seen["evaluated 2"]
    assert "run 2 of 2" in seen["second run"]
    assert "11/16" in seen["second run"]
    assert "glora, seed 5" in seen["second run"]
    assert "lora, seed 5" not in seen["second run"].replace("glora, seed 5", "")
    assert "16/16" in seen["over"], "the steps that a broken run did not make are not waited for"
    assert "glora: 3 of [4] matrices changed rank" in written(console)
    assert "glora, seed 5 failed: ValueError: [red]broken" in written(console)


def search_shared(progress: RunProgress) -> None:
    """Four trials: one is made here, two by other processes, which are at work on the last."""
    progress.begin(4, 32, noun="trial")
    progress.run_begins(RunConfig(method="glora"), 8, name="glora, trial 1")
    for _ in range(8):
        progress.step()
    progress.show_outcome("glora, trial 1: accuracy 0.7 [beta=0.9]", 8)
    progress.left(1)
    progress.waiting("other processes are making 1 trial")
    progress.waiting("other processes are making 1 trial")


def test_a_log_of_a_shared_search_counts_what_others_make_and_waits_once() -> None:
    console = log_file()
    search_shared(LineProgress(console))
    assert written(console).splitlines() == [
        "[1/4] glora, trial 1: 8 steps",
        "[1/4] glora, trial 1: accuracy 0.7 [beta=0.9]",
        "other processes are making 1 trial",
    ]


def test_bars_of_a_shared_search_count_what_others_make() -> None:
    console = terminal()
    progress = BarProgress(console)
    with progress:
        progress.begin(4, 32, noun="trial")
        progress.left(1)
        progress._bars.refresh()
        assert "trial 4 of 4" in written(console)
        assert "24/32" in written(console)
        progress.waiting("other processes are making 1 trial")
        progress._bars.refresh()
    assert re.search("other processes .*1 trial", written(console))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
