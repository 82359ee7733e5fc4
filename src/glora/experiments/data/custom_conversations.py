r"""A generative task of one's own: files of prompts and written answers.

How answers are scored follows from the training answers. If each one has a final number behind `####`, that number is scored,
as in GSM8K; if each has a `\boxed{}`, its content is, as in MATH; otherwise only their loss is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from glora.experiments.data.boxed_answer import find_boxed
from glora.experiments.data.conversations import Conversations, find_layout, read_conversations
from glora.experiments.data.final_number import MARK, find_final_number
from glora.experiments.data.generative_tasks import EXACT_MATCH_METRICS, LOSS_METRICS, check_references
from glora.experiments.data.table_files import MISSING, Table
from glora.experiments.data.task import DataError, Scoring, Task


def read_custom_conversations(tables: Mapping[str, Table], name: str) -> tuple[Task, dict[str, Conversations]]:
    """Make a task of tables: what it turned out to be, and split -> examples.

    Args:
        tables: split -> table, `train` first.
        name: what the task is called.

    Raises:
        DataError: a table has other columns than the first, or a row is not as its columns say, or an
            evaluation example has nothing of what is scored.
    """
    train = tables["train"]
    layout = find_layout(train.columns)
    assert layout is not None, "custom_data.kind_of() says whether these are prompts and answers"
    splits: dict[str, Conversations] = {}
    task = Task(name, f"data from {train.path}", LOSS_METRICS, LOSS_METRICS[0], None, kind="generation")
    for split, table in tables.items():
        if find_layout(table.columns) != layout:
            raise DataError(
                f"{table.path}: the columns are {', '.join(table.columns)}, and not those of {train.path.name}: "
                f"{', '.join(train.columns)}."
            )
        rows = [{n: value for n, value in zip(table.columns, row) if value is not MISSING} for row in table.rows]
        where = [table.where(i) for i in range(len(rows))]
        splits[split] = read_conversations(rows, layout, where, empty_answers=False)
        if split == "train":
            scoring = find_scoring(splits[split])
            if scoring:
                metrics = EXACT_MATCH_METRICS
                task = replace(task, metrics=metrics, primary_metric=metrics[0], scoring=scoring)
        else:
            check_references(task, splits[split], where)
    return task, splits


def find_scoring(examples: Conversations) -> Scoring | None:
    """What can be scored of every answer; None if there is nothing."""
    if all(MARK in answer and find_final_number(answer) is not None for answer in examples.answers):
        return "final_number"
    if all(find_boxed(answer) is not None for answer in examples.answers):
        return "boxed"
    return None
