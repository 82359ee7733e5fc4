"""The split that settings are tuned on: out of the training examples, the same for every seed, and nothing else is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.data import custom_data, glue
from glora.experiments.data.loading import load_hub_dataset, load_task
from glora.experiments.data.stdlib_docs import StdlibDocs
from glora.experiments.data.table_files import read_table
from glora.experiments.data.task import DataError, Examples
from glora.experiments.data.tuning_split import hold_out
from glora.experiments.plan import TaskLoader


def rows(labels: list, groups: list[str] | None = None) -> Examples:
    return Examples.labelled([[f"text {i}" for i in range(len(labels))]], labels, groups)


def test_every_example_is_in_one_part_and_classes_keep_their_shares() -> None:
    every = rows([0] * 70 + [1] * 25 + [2] * 5)
    train, tuning = hold_out(every, 0.2)
    assert sorted(train.columns["text_a"] + tuning.columns["text_a"]) == sorted(every.columns["text_a"])
    assert Counter(tuning.columns["label"]) == {0: 14, 1: 5, 2: 1}
    assert train.columns["text_a"] == [
        text for text in every.columns["text_a"] if text in set(train.columns["text_a"])
    ], "in their order"
    assert len({int(text.split()[1]) // 10 for text in tuning.columns["text_a"]}) > 6, (
        "drawn from all over, and not the first ones"
    )


def test_a_regression_is_divided_as_one() -> None:
    train, tuning = hold_out(rows([i / 7 for i in range(40)]), 0.25)
    assert (len(train), len(tuning)) == (30, 10)


def test_groups_stay_whole() -> None:
    groups = [f"module {i // 7}" for i in range(140)]
    train, tuning = hold_out(rows([i % 2 for i in range(140)], groups), 0.2)
    assert not set(train.groups or ()) & set(tuning.groups or ())
    assert len(tuning) == 28


@pytest.mark.parametrize(("count", "groups"), [(1, None), (2, None), (6, ["one"] * 6)])
def test_a_part_that_would_be_empty_is_refused(count: int, groups: list[str] | None) -> None:
    with pytest.raises(DataError, match=r"held_out=0\.2 of .* leaves none"):
        hold_out(rows(list(range(count)), groups), 0.2)


def test_modules_of_the_standard_library_are_in_one_part_only() -> None:
    data = load_task("stdlib-docs", held_out=0.2)
    whole = StdlibDocs().read(None, load_hub_dataset, only_train=True)["train"]
    module = dict(zip(whole.columns["text_b"], whole.groups))  # a docstring occurs in one module only
    parts = [{module[text] for text in split["text_b"]} for split in (data.train, data.evaluation["tuning"])]
    assert not parts[0] & parts[1]
    assert len(data.train) + len(data.evaluation["tuning"]) == len(whole)
    assert 0.15 < len(data.evaluation["tuning"]) / len(whole) < 0.25


def test_the_limit_comes_first(glue_folder: Path) -> None:
    """The held-out part belongs to the examples that the reported runs train on, and they never see more."""
    limited = set(load_task("rte", data_dir=str(glue_folder), train_limit=60).train["text_b"])
    data = load_task("rte", data_dir=str(glue_folder), train_limit=60, held_out=0.2, eval_limit=10)
    assert len(data.train) == 48
    assert len(data.evaluation["tuning"]) == 10
    assert {*data.train["text_b"], *data.evaluation["tuning"]["text_b"]} <= limited


def test_the_dev_split_is_not_read(glue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def recording(path: Path, *arguments: object, **options: object) -> object:
        read.append(Path(path).name)
        return read_table(path, *arguments, **options)

    monkeypatch.setattr(glue, "read_table", recording)
    monkeypatch.setattr(custom_data, "read_table", recording)
    for name in ("train", "validation"):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"{name} {i},{i % 2}\n" for i in range(20)))
    assert set(load_task("mnli", data_dir=str(glue_folder), held_out=0.25).evaluation) == {"tuning"}
    assert set(load_task(str(tmp_path / "train.csv"), held_out=0.25).evaluation) == {"tuning"}
    assert read == ["train.tsv", "train.csv"]
    load_task(str(tmp_path / "train.csv"))
    assert "validation.csv" in read


def test_a_run_of_a_tuning_configuration_sees_other_data_than_a_reported_one(glue_folder: Path) -> None:
    reported = RunConfig(task="rte", data_dir=str(glue_folder))
    tuning = reported.model_copy(update={"held_out": 0.25})
    load = TaskLoader()
    assert load(tuning).example_counts == {"train": 144, "tuning": 48}
    assert load(reported).example_counts == {"train": 192, "validation": 48}
    assert load(tuning).fingerprint != load(reported).fingerprint
    assert load(tuning) is load(tuning.model_copy(update={"seed": 7}))
    assert tuning.key != reported.key
