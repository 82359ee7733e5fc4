"""Planning a comparison: what is planned, and what is refused. No model is loaded."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.records.store import write_record
from glora.experiments.runs import make_runs
from glora.experiments.training.progress import RunProgress
from unit.experiments.plan_case import FakeRuns, errors, made_record


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
    assert re.search("method 'lroa'; .*'lora'", text)
    assert re.search("seeds: 0 .*more than once", text)
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
    assert re.search("rank=0: .*equal to 1", text)
    assert "precision='float16'" in text
    assert re.search("learnrate: .*no such setting; .*'learning_rate'", text)


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
    assert "linear, cosine, " in error
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


def test_a_record_under_the_key_of_another_configuration_is_refused(plan, tmp_path: Path) -> None:
    config = plan(methods=("lora",), seeds=(0,)).runs[0].config
    other = made_record(config.with_settings({"learning_rate": 0.5}), 0.5)
    write_record(tmp_path / "out", other.model_copy(update={"key": config.key}))
    (error,) = errors(plan, methods=("lora",), seeds=(0,))
    assert error.startswith(f"{config.key}: ")
    assert "other settings" in error


@pytest.mark.parametrize("empty", ["methods", "seeds"])
def test_nothing_to_compare_is_an_error(plan, empty: str) -> None:
    assert any(error.startswith(f"{empty} is empty") for error in errors(plan, **{empty: ()}))


def test_a_warmup_as_long_as_the_training_is_refused_before_a_model_is_loaded(plan) -> None:
    found = errors(plan, methods=("lora", "glora", "shuffled"), settings={"epochs": 1, "warmup_steps": 6})
    assert len(found) == 2
    assert re.match("glora: .*6 steps .*not shorter", found[0])
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
