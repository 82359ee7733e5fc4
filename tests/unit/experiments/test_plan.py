"""Planning a comparison and going through it. No model is loaded: runs are made by a stand-in."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.data.task import TaskData
from glora.experiments.models.weights import weights_fingerprint
from glora.experiments.plan import InvalidComparisonError, Plan, plan_comparison
from glora.experiments.records import store as record_keeping
from glora.experiments.records.interrupts import hold_interrupts
from glora.experiments.records.provenance import collect_provenance
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import NotWrittenError, RecordKeptElsewhereError, read_records, write_record
from glora.experiments.runs import make_runs
from glora.experiments.training.progress import RunProgress


def finished(config: RunConfig) -> RunRecord:
    return RunRecord(
        config=config,
        key=config.key,
        status="finished",
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:01:00+00:00",
        primary_metric="accuracy",
        final={"accuracy": 0.5},
        train_seconds=1.0,
        steps=18,
        provenance=collect_provenance(),
    )


def failed(config: RunConfig) -> RunRecord:
    return finished(config).model_copy(update={"status": "failed", "error": "ArithmeticError: loss is nan"})


class FakeRuns:
    """Makes runs without training; `broken` says which fail."""

    def __init__(self, broken: Callable[[RunConfig], bool] = lambda _: False) -> None:
        self.made: list[RunConfig] = []
        self._broken = broken

    def __call__(self, config: RunConfig, _task: object = None, *, progress: RunProgress) -> RunRecord:
        self.made.append(config)
        return failed(config) if self._broken(config) else finished(config)


@pytest.fixture
def plan(tiny_deberta: Path, glue_folder: Path, tmp_path: Path) -> Callable[..., Plan]:
    def make(**arguments: Any) -> Plan:
        settings = {
            "model": str(tiny_deberta),
            "task": "rte",
            "data_dir": str(glue_folder),
            "epochs": 3,
            "max_length": 32,
        }
        output = arguments.pop("output", tmp_path / "out")
        return plan_comparison(output, **{**arguments, "settings": {**settings, **arguments.get("settings", {})}})

    return make


def errors(plan: Callable[..., Plan], **arguments: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidComparisonError) as caught:
        plan(**arguments)
    return caught.value.errors


# The plan


def test_seeds_are_gone_through_with_the_methods_side_by_side(plan) -> None:
    planned = plan(methods=("lora", "glora"), seeds=(3, 1))
    assert [(run.config.method, run.config.seed) for run in planned.runs] == [
        ("lora", 3),
        ("glora", 3),
        ("lora", 1),
        ("glora", 1),
    ]
    assert planned.task.example_counts == {"train": 192, "validation": 48}
    assert {run.schedule.total_steps for run in planned.runs} == {18}
    assert planned.steps_to_make == 4 * 18


def test_a_task_has_one_name_however_it_is_spelled(plan) -> None:
    keys = [{run.config.key for run in plan(settings={"task": name}).runs} for name in ("rte", "RTE", "GLUE RTE")]
    assert keys[0] == keys[1] == keys[2]


def test_planning_writes_nothing(plan, tmp_path: Path) -> None:
    plan()
    assert not (tmp_path / "out").exists()


def test_all_errors_are_told_at_once_with_the_nearest_names(plan, tmp_path: Path) -> None:
    found = errors(
        plan,
        methods=("lroa", "glora"),
        seeds=(0, 0, -1),
        settings={"task": "rtee", "model": "./no-such-folder"},
    )
    text = "\n".join(found)
    assert "unknown method 'lroa'; did you mean 'lora'" in text
    assert "seeds: 0 is given more than once" in text
    assert "seed=-1" in text
    assert len(found) == 3, "names are looked up once the settings are valid"
    text = "\n".join(
        errors(
            plan,
            methods=("lroa", "glora"),
            settings={"task": "rtee", "model": "./no-such-folder", "min_rank": 9},
        )
    )
    for part in ("did you mean 'lora'", "unknown task 'rtee'", "no model folder './no-such-folder'", "glora: "):
        assert part in text


def test_wrong_values_are_named_with_the_rule(plan) -> None:
    text = "\n".join(errors(plan, settings={"beta": 1.0, "rank": 0, "precision": "float16", "learnrate": 1}))
    assert "beta=1.0 must be in [0, 1)" in text
    assert "rank=0: input should be greater than or equal to 1" in text
    assert "precision='float16'" in text
    assert "learnrate: there is no such setting; did you mean 'learning_rate'" in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr_scheduler": "cosin"}, "is unknown; did you mean 'cosine'"),
        *(
            ({"lr_scheduler": name}, "needs arguments")
            for name in ("greedy", "reduce_lr_on_plateau", "warmup_stable_decay")
        ),
        ({"lr_scheduler": "cosine_with_min_lr"}, "needs arguments"),
        ({"lr_scheduler": "polynomial", "learning_rate": 1e-8}, "does not work with learning_rate=1e-08"),
    ],
)
def test_a_schedule_that_cannot_run_is_refused_with_those_that_can(
    plan, settings: dict[str, Any], expected: str
) -> None:
    (error,) = errors(plan, settings=settings)
    assert f"lr_scheduler={settings['lr_scheduler']!r} {expected}" in error
    assert "choose one of linear, cosine, " in error
    assert "greedy," not in error


@pytest.mark.parametrize(
    ("methods", "settings", "expected"),
    [
        (("lora", "glora"), {"rank": 10_000}, "rank=10000 is more than any matrix of"),
        (("lora",), {"target_modules": ("querry_proj",)}, "target_modules: 'querry_proj' matches no linear layer"),
        (("lora", "glora"), {"total_rank": 9999}, "glora: "),
        (("lora", "glora"), {"total_rank": 3, "min_rank": 1}, "glora: "),
        (("lora", "lora:total_rank=3"), {}, "lora:total_rank=3: total_rank=3 must be from "),
        (("lora", "lora:total_rank=9999"), {}, "lora:total_rank=9999: total_rank=9999 must be from "),
    ],
)
def test_what_the_models_matrices_cannot_hold_is_found_without_weights(
    plan, monkeypatch: pytest.MonkeyPatch, methods: tuple[str, ...], settings: dict[str, Any], expected: str
) -> None:
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("weights"))
    (error,) = errors(plan, methods=methods, settings=settings)
    assert error.startswith(expected)


@pytest.mark.parametrize("what", ["seeds", "methods"])
def test_more_than_anybody_means_is_one_message(plan, what: str) -> None:
    values = [*range(200_000)] if what == "seeds" else ["lora"] * 200_000
    assert errors(plan, **{what: values}) == (f"{what}: 200,000 are given; give at most 1,000",)


def test_a_record_under_the_key_of_another_configuration_is_refused(plan, tmp_path: Path) -> None:
    config = plan(methods=("lora",), seeds=(0,)).runs[0].config
    write_record(
        tmp_path / "out", finished(config.with_settings({"learning_rate": 0.5})).model_copy(update={"key": config.key})
    )
    (error,) = errors(plan, methods=("lora",), seeds=(0,))
    assert error.startswith(f"{config.key}: this record is of a run with other settings")


def test_one_error_reads_as_a_sentence(plan) -> None:
    with pytest.raises(InvalidComparisonError, match=r"^rank=0: input should be") as caught:
        plan(settings={"rank": 0})
    assert len(caught.value.errors) == 1


@pytest.mark.parametrize("empty", ["methods", "seeds"])
def test_nothing_to_compare_is_an_error(plan, empty: str) -> None:
    assert any(error.startswith(f"{empty} is empty") for error in errors(plan, **{empty: ()}))


def test_a_warmup_as_long_as_the_training_is_refused_before_a_model_is_loaded(plan) -> None:
    found = errors(plan, methods=("lora", "glora", "shuffled"), settings={"epochs": 1})
    assert len(found) == 2
    assert found[0].startswith("glora: a warm-up of 6 steps (the default is one epoch)")
    assert plan(methods=("lora",), settings={"epochs": 1}).steps_to_make == 3 * 6


def test_a_data_file_that_is_missing_is_told_with_its_name(plan, tmp_path: Path) -> None:
    (error,) = errors(plan, settings={"data_dir": str(tmp_path)})
    assert "train.tsv" in error


def test_an_output_that_is_a_file_is_refused(plan, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (error,) = errors(plan, output=tmp_path / "notes.txt" / "out")
    assert "is a file" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission_is_refused(plan, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    (error,) = errors(plan, output=locked / "out")
    assert "no permission" in error


def test_an_output_that_refuses_a_folder_is_known_before_the_first_run(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.access is not the last word: root may write anywhere, and some file systems still refuse."""
    runs = FakeRuns()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    planned = plan(methods=("lora",))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match="Read-only"):
        make_runs([planned], RunProgress(), make_run=runs)
    assert not runs.made


# Going through it


def test_each_record_is_written_as_soon_as_its_run_ends(plan, tmp_path: Path) -> None:
    planned = plan(methods=("lora", "glora"), seeds=(0, 1))
    written = []

    def make_run(config: RunConfig, _task: object = None, *, progress: RunProgress) -> RunRecord:
        written.append(len(read_records(tmp_path / "out")))
        return finished(config)

    records = make_runs([planned], RunProgress(), make_run=make_run)
    assert written == [0, 1, 2, 3]
    assert [record.key for record in records] == [run.config.key for run in planned.runs]


def test_what_is_finished_is_not_run_again_and_what_failed_is(plan) -> None:
    runs = FakeRuns(broken=lambda config: config.method == "glora" and config.seed == 0)
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
        return finished(config).model_copy(update={"provenance": collect_provenance(data_fingerprint=task.fingerprint)})

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
    assert "2 finished runs on other data 'rte'" in error, "one mean is not taken over two data sets"
    assert len(plan(methods=("lora",), seeds=(1,), settings={"train_limit": 32, "data_dir": str(other)}).to_make) == 1


def test_runs_of_another_model_are_not_taken_for_finished(plan, tiny_deberta: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_deberta, tmp_path / "model")
    arguments: dict[str, Any] = {"methods": ("lora",), "settings": {"model": str(model)}}

    def of_its_model(config: RunConfig, task: TaskData, *, progress: RunProgress) -> RunRecord:
        here = collect_provenance().model_copy(update={"model_fingerprint": weights_fingerprint(config.model)})
        return finished(config).model_copy(update={"provenance": here})

    make_runs([plan(seeds=(0,), **arguments)], RunProgress(), make_run=of_its_model)
    make_runs([plan(seeds=(2,), **arguments)], RunProgress(), make_run=FakeRuns())
    assert plan(seeds=(0, 2), **arguments).to_make == (), "a record from before this field is one of the same model"
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for seed in (0, 1):
        (error,) = errors(plan, seeds=(seed,), **arguments)
        now = str(weights_fingerprint(str(model))).removeprefix("sha256:")[:8]
        assert f"1 finished run of another model {str(model)!r}" in error
        assert f"now {now}); choose another folder" in error
    other = shutil.copytree(model, tmp_path / "other" / "model")
    assert len(plan(seeds=(0,), methods=("lora",), settings={"model": str(other)}).to_make) == 1


def test_a_run_that_is_finished_since_the_plan_is_not_made_again(plan, tmp_path: Path) -> None:
    planned = plan(methods=("lora",), seeds=(0, 1))
    earlier = finished(planned.runs[1].config)
    made = FakeRuns()

    def make_run(config: RunConfig, _task: object = None, *, progress: RunProgress) -> RunRecord:
        write_record(tmp_path / "out", earlier)
        return made(config, progress=progress)

    assert make_runs([planned], RunProgress(), make_run=make_run)[1].key == earlier.key
    assert [config.seed for config in made.made] == [0]


def without_model(config: RunConfig, _task: object = None, *, progress: RunProgress) -> RunRecord:
    return finished(config).model_copy(
        update={"status": "failed", "error": "no network", "exception": "ModelNotFoundError"}
    )


def test_if_the_first_run_has_no_model_no_other_is_made(plan, tmp_path: Path) -> None:
    said: list[str] = []

    class Said(RunProgress):
        def say(self, message: str) -> None:
            said.append(message)

    arguments = {"methods": ("lora", "glora"), "seeds": (0, 1)}
    make_runs([plan(methods=("lora",), seeds=(0,))], RunProgress(), make_run=FakeRuns())
    (record,) = make_runs([plan(**arguments)], Said(), make_run=without_model)
    assert said == ["2 runs more would need the same model: not made"]
    assert {r.key: r.status for r in read_records(tmp_path / "out")}[record.key] == "failed"
    assert len(plan(**arguments).to_make) == 3, "what was finished before still is"

    broken = FakeRuns()

    def later(config: RunConfig, _task: object = None, *, progress: RunProgress) -> RunRecord:
        first = not broken.made
        record = broken(config, progress=progress)
        return record if first else without_model(config, progress=progress)

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


def test_ctrl_c_keeps_what_was_finished(plan, tmp_path: Path) -> None:
    def make_run(config: RunConfig, _task: object = None, *, progress: RunProgress) -> RunRecord:
        if config.method == "glora":
            raise KeyboardInterrupt
        return finished(config)

    arguments = {"methods": ("lora", "glora"), "seeds": (0, 1)}
    with pytest.raises(KeyboardInterrupt):
        make_runs([plan(**arguments)], RunProgress(), make_run=make_run)
    assert [record.config.method for record in read_records(tmp_path / "out")] == ["lora"]
    assert len(plan(**arguments).to_make) == 3


def test_ctrl_c_after_the_last_evaluation_does_not_lose_the_run(plan, tmp_path: Path) -> None:
    def make_run(config: RunConfig, _task: object = None, *, progress: RunProgress) -> RunRecord:
        hold_interrupts()
        signal.raise_signal(signal.SIGINT)
        return finished(config)

    with pytest.raises(KeyboardInterrupt):
        make_runs([plan(methods=("lora",), seeds=(0, 1))], RunProgress(), make_run=make_run)
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
    class Told(RunProgress):
        begun: tuple[int, int] | None = None

        def begin(self, runs: int, steps: int) -> None:
            self.begun = (runs, steps)

    arguments = {"methods": ("lora",), "seeds": (0, 1, 2)}
    make_runs([plan(methods=("lora",), seeds=(1,))], RunProgress(), make_run=FakeRuns())
    progress = Told()
    make_runs([plan(**arguments)], progress, make_run=FakeRuns())
    assert progress.begun == (2, 2 * 18)
