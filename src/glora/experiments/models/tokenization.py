"""A task's texts as token ids, ready for Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets

from glora.experiments.data.task import TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class TokenizedTask:
    """A task as token ids for Trainer. Columns: the tokenizer's own, and `labels`."""

    train: Dataset
    evaluation: dict[str, Dataset]


def check_length(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Check that a model reads as many tokens.

    Raises:
        ValueError: `max_length` is more.
    """
    limit = tokenizer.model_max_length
    if max_length > limit:
        raise ValueError(f"max_length={max_length} is more than this model reads; lower it to {limit} or less.")


def tokenize(task_data: TaskData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedTask:
    """Tokenize texts, truncated to `max_length` (a pair's longer text first), not padded: the collator pads each batch.

    Raises:
        ValueError: `max_length` is more than the model reads.
    """
    check_length(tokenizer, max_length)

    def encode(batch: dict[str, list[Any]]) -> Dataset:
        texts = [batch[column] for column in task_data.text_columns]
        return Dataset.from_dict(
            {**tokenizer(*texts, truncation=True, max_length=max_length), "labels": batch["label"]}
        )

    def convert(split: Dataset) -> Dataset:
        # not map(), which hashes the tokenizer for its cache (some cannot be) and draws a bar
        return concatenate_datasets([encode(batch) for batch in split.iter(ROWS_AT_ONCE)])

    return TokenizedTask(
        convert(task_data.train), {name: convert(split) for name, split in task_data.evaluation.items()}
    )
