"""Limits and fingerprints: what makes two runs use the same examples, and shows that they did."""

from __future__ import annotations

import pytest

from glora.experiments.data.loading import build_task_data
from glora.experiments.data.task import Examples, Task, limited

TASK = Task("t", "", ("accuracy",), ("no", "yes"))


def rows(n: int) -> Examples:
    return examples([f"a{i}" for i in range(n)], [f"b{i}" for i in range(n)], [i % 2 for i in range(n)])


def examples(first: list, second: list | None, labels: list) -> Examples:
    return Examples.labelled([first] if second is None else [first, second], labels)


def test_a_limit_draws_whole_rows_at_random_the_same_every_time() -> None:
    kept = limited(rows(100), 20)
    numbers = [int(text[1:]) for text in kept.columns["text_a"]]
    assert kept == limited(rows(100), 20)
    assert numbers == sorted(set(numbers))
    assert numbers != list(range(20))
    assert kept.columns["text_b"] == [f"b{i}" for i in numbers]
    assert kept.columns["label"] == [i % 2 for i in numbers]


def test_a_smaller_limit_draws_a_part_of_a_larger_one() -> None:
    small, large = (set(limited(rows(100), limit).columns["text_a"]) for limit in (10, 40))
    assert small < large


def test_no_limit_and_a_large_one_keep_everything() -> None:
    assert limited(rows(5), None) == limited(rows(5), 5) == limited(rows(5), 9) == rows(5)


def test_data_sets_have_the_same_columns_for_every_task() -> None:
    data = build_task_data(TASK, rows(4), {"validation": rows(2)})
    assert data.train.column_names == ["text_a", "text_b", "label"]
    assert (len(data.train), len(data.evaluation["validation"])) == (4, 2)
    assert (data.num_labels, data.regression, data.text_columns) == (2, False, ("text_a", "text_b"))
    scored = Task("t", "", ("pearson",))
    single = build_task_data(scored, examples(["a", "b"], None, [0.5, 3]), {"validation": examples(["c"], None, [1.0])})
    assert single.train.column_names == ["text_a", "label"]
    assert single.train[1] == {"text_a": "b", "label": 3.0}
    assert isinstance(single.train[1]["label"], float)
    assert (single.num_labels, single.regression, single.text_columns) == (1, True, ("text_a",))


def fingerprint(train: Examples, validation: Examples, task: Task = TASK) -> str:
    return build_task_data(task, train, {"validation": validation}).fingerprint


def test_fingerprint_is_that_of_the_examples() -> None:
    assert fingerprint(rows(4), rows(2)) == fingerprint(rows(4), rows(2))


@pytest.mark.parametrize(
    "other",
    [
        examples(["a0", "a1"], ["b0", "b1"], [0, 0]),  # a label
        examples(["a0", "a1"], ["b0", "b2"], [0, 1]),  # a text
        examples(["a0", "a1b0"], ["", "b1"], [0, 1]),  # a boundary
        examples(["a1", "a0"], ["b1", "b0"], [1, 0]),  # the order
        examples(["a0", "a1"], None, [0, 1]),  # a column
        rows(3),
    ],
)
def test_fingerprint_tells_different_examples_apart(other: Examples) -> None:
    assert fingerprint(other, rows(2)) != fingerprint(rows(2), rows(2))


def test_fingerprint_tells_splits_and_class_names_apart() -> None:
    assert fingerprint(rows(2), rows(4)) != fingerprint(rows(4), rows(2))
    turned = Task("t", "", ("accuracy",), ("yes", "no"))
    assert fingerprint(rows(2), rows(2), turned) != fingerprint(rows(2), rows(2))
