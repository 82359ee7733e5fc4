"""Making the runs of a comparison: finished ones are skipped, and what fails or is interrupted loses none."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.data.task import TaskData
from glora.experiments.models.registry import ModelNotFoundError
from glora.experiments.models.weights import weights_fingerprint
from glora.experiments.records import store as record_keeping
from glora.experiments.records.interrupts import hold_interrupts
from glora.experiments.records.provenance import collect_provenance
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import NotWrittenError, RecordKeptElsewhereError, read_records, write_record
from glora.experiments.runs import make_runs
from glora.experiments.training.progress import RunProgress
from unit.experiments.plan_case import BROKEN, FakeRuns, change_weights, errors, made_record, raising


def test_each_record_is_written_as_soon_as_its_run_ends(plan, tmp_path: Path) -> None:
    planned = plan(methods=("lora", "glora"), seeds=(0, 1))
    written = []

    def accuracy(_config: RunConfig) -> float:
        written.append(len(read_records(tmp_path / "out")))
        return 0.5

    records = make_runs([planned], RunProgress(), make_run=FakeRuns(accuracy))
    assert written == [0, 1, 2, 3]
    assert [record.key for record in records] == [run.config.key for run in planned.runs]


def test_what_is_finished_is_not_run_again_and_what_failed_is(plan) -> None:
    runs = FakeRuns(raising(BROKEN, lambda config: config.method == "glora" and config.seed == 0))
    arguments = {"methods": ("lora", "glora"), "seeds": (0, 1)}
    make_runs([plan(**arguments)], RunProgress(), make_run=runs)
    assert len(runs.made) == 4, "the runs after the broken one are made"

    again = plan(**arguments)
    assert [(run.config.method, run.config.seed) for run in again.to_make] == [("glora", 0)]
    make_runs([again], RunProgress(), make_run=FakeRuns())
    assert plan(**arguments).to_make == ()

    more = plan(methods=("lora", "glora", "shuffled"), seeds=(0, 1, 2))
    assert [(run.config.method, run.config.seed) for run in more.to_make] == [
        ("shuffled", 0),
        ("shuffled", 1),
        ("lora", 2),
        ("glora", 2),
        ("shuffled", 2),
    ]


def test_runs_on_other_data_are_not_taken_for_finished(plan, glue_folder: Path, tmp_path: Path) -> None:
    def on_its_data(config: RunConfig, task: TaskData, *, progress: RunProgress) -> RunRecord:
        return made_record(config, 0.5, provenance=collect_provenance(data_fingerprint=task.fingerprint))

    make_runs([plan(methods=("lora", "glora"), seeds=(0,))], RunProgress(), make_run=on_its_data)
    other = shutil.copytree(glue_folder, tmp_path / "edited")
    train = other / "RTE" / "train.tsv"
    train.write_text("\n".join(train.read_text().splitlines()[:-1]) + "\n")
    (error,) = errors(plan, methods=("lora", "glora"), seeds=(0,), settings={"data_dir": str(other)})
    assert "2 finished runs" in error
    assert "choose another folder" in error
    moved = shutil.copytree(glue_folder, tmp_path / "moved")
    assert plan(methods=("lora", "glora"), seeds=(0,), settings={"data_dir": str(moved)}).to_make == ()
    (error,) = errors(plan, methods=("lora",), seeds=(1,), settings={"data_dir": str(other)})
    assert re.search("2 finished runs .*data 'rte'", error), "one mean is not taken over two data sets"
    assert len(plan(methods=("lora",), seeds=(1,), settings={"train_limit": 32, "data_dir": str(other)}).to_make) == 1


def test_runs_of_another_model_are_not_taken_for_finished(plan, tiny_deberta: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_deberta, tmp_path / "model")
    arguments: dict[str, Any] = {"methods": ("lora",), "settings": {"model": str(model)}}

    def of_its_model(config: RunConfig, task: TaskData, *, progress: RunProgress) -> RunRecord:
        here = collect_provenance().model_copy(update={"model_fingerprint": weights_fingerprint(config.model)})
        return made_record(config, 0.5, provenance=here)

    make_runs([plan(seeds=(0,), **arguments)], RunProgress(), make_run=of_its_model)
    make_runs([plan(seeds=(2,), **arguments)], RunProgress(), make_run=FakeRuns())
    assert plan(seeds=(0, 2), **arguments).to_make == (), "a record from before this field is one of the same model"
    change_weights(model)
    for seed in (0, 1):
        (error,) = errors(plan, seeds=(seed,), **arguments)
        now = str(weights_fingerprint(str(model))).removeprefix("sha256:")[:8]
        assert re.search(f"1 finished run .*model {str(model)!r}", error)
        assert f"now {now}); choose another folder" in error
    other = shutil.copytree(model, tmp_path / "other" / "model")
    assert len(plan(seeds=(0,), methods=("lora",), settings={"model": str(other)}).to_make) == 1


def test_a_run_that_is_finished_since_the_plan_is_not_made_again(plan, tmp_path: Path) -> None:
    planned = plan(methods=("lora",), seeds=(0, 1))
    earlier = made_record(planned.runs[1].config, 0.5)

    def accuracy(_config: RunConfig) -> float:
        write_record(tmp_path / "out", earlier)
        return 0.5

    made = FakeRuns(accuracy)
    assert make_runs([planned], RunProgress(), make_run=made)[1].key == earlier.key
    assert [config.seed for config in made.made] == [0]


def test_if_the_first_run_has_no_model_no_other_is_made(plan, tmp_path: Path) -> None:
    said: list[str] = []

    class Said(RunProgress):
        def say(self, message: str) -> None:
            said.append(message)

    arguments = {"methods": ("lora", "glora"), "seeds": (0, 1)}
    make_runs([plan(methods=("lora",), seeds=(0,))], RunProgress(), make_run=FakeRuns())
    (record,) = make_runs([plan(**arguments)], Said(), make_run=FakeRuns(raising(ModelNotFoundError("no network"))))
    (line,) = said
    assert re.match("2 runs .*same model: not made", line)
    assert {r.key: r.status for r in read_records(tmp_path / "out")}[record.key] == "failed"
    assert len(plan(**arguments).to_make) == 3, "what was finished before still is"

    later = FakeRuns()
    later.accuracy = raising(ModelNotFoundError("no network"), lambda _: bool(later.made))
    assert len(make_runs([plan(**arguments)], RunProgress(), make_run=later)) == 3, (
        "a model that was there may be again"
    )


def test_what_is_finished_needs_no_model(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is asked only where there is a run to make."""
    arguments = {"methods": ("lora",), "seeds": (0,), "settings": {"model": "someone/some-model"}}
    with monkeypatch.context() as patch:
        patch.setattr("glora.experiments.plan.length_errors", lambda _config: [])
        patch.setattr("glora.experiments.plan._matrix_errors", lambda *_: [])
        make_runs([plan(**arguments)], RunProgress(), make_run=FakeRuns())
    assert plan(**arguments).to_make == ()
    (error,) = errors(plan, **{**arguments, "seeds": (0, 1)})
    assert "cannot load the model 'someone/some-model'" in error


def test_changing_glora_leaves_lora_finished(plan) -> None:
    arguments = {"methods": ("lora", "glora"), "seeds": (0,)}
    make_runs([plan(**arguments)], RunProgress(), make_run=FakeRuns())
    changed = plan(**arguments, settings={"beta": 0.5})
    assert [run.config.method for run in changed.to_make] == ["glora"]
    assert [run.config.method for run in plan(**arguments, settings={"learning_rate": 1e-3}).to_make] == [
        "lora",
        "glora",
    ]


def test_ctrl_c_after_the_last_evaluation_does_not_lose_the_run(plan, tmp_path: Path) -> None:
    def accuracy(_config: RunConfig) -> float:
        hold_interrupts()
        signal.raise_signal(signal.SIGINT)
        return 0.5

    with pytest.raises(KeyboardInterrupt):
        make_runs([plan(methods=("lora",), seeds=(0, 1))], RunProgress(), make_run=FakeRuns(accuracy))
    assert len(read_records(tmp_path / "out")) == 1


def test_a_full_disk_ends_the_comparison_and_loses_no_run(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: Path, record: RunRecord) -> Path:
        if Path(directory) == tmp_path / "out":
            raise NotWrittenError(28, "not written (No space left on device)", "the record")
        return write_record(directory, record)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(record_keeping.tempfile, "gettempdir", lambda: str(tmp_path / "elsewhere"))
    monkeypatch.setattr(record_keeping, "write_record", full)
    runs = FakeRuns()
    with pytest.raises(RecordKeptElsewhereError) as caught:
        make_runs([plan(methods=("lora",), seeds=(0, 1))], RunProgress(), make_run=runs)
    assert len(runs.made) == 1, "the next would find no room either"
    assert read_records(caught.value.kept.parents[1])[0].key == runs.made[0].key


def test_progress_is_told_what_is_left(plan) -> None:
    class Recorder(RunProgress):
        begun: tuple[int, int] | None = None

        def begin(self, runs: int, steps: int) -> None:
            self.begun = (runs, steps)

    arguments = {"methods": ("lora",), "seeds": (0, 1, 2)}
    make_runs([plan(methods=("lora",), seeds=(1,))], RunProgress(), make_run=FakeRuns())
    progress = Recorder()
    make_runs([plan(**arguments)], progress, make_run=FakeRuns())
    assert progress.begun == (2, 2 * 18)
