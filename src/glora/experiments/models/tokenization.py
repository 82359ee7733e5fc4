"""A task's texts as token ids, ready for Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from glora.experiments.data.task import TaskData


@dataclass(frozen=True)
class TokenizedTask:
    """A task as token ids: what Trainer takes. Columns: the tokenizer's own, and `labels`."""

    train: Dataset
    evaluation: dict[str, Dataset]


def tokenize(task_data: TaskData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedTask:
    """Turn texts into token ids, truncated to `max_length` (of a pair the longer text gives way), not padded.

    Padding is left to the collator, batch by batch. The data is in memory, so nothing is written to a cache.

    Raises:
        ValueError: `max_length` is more than the model can read.
    """
    limit = tokenizer.model_max_length
    if max_length > limit:
        raise ValueError(f"max_length={max_length} is more than this model reads; lower it to {limit} or less.")

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [batch[column] for column in task_data.text_columns]
        encoded: dict[str, list[Any]] = dict(tokenizer(*texts, truncation=True, max_length=max_length))
        encoded["labels"] = batch["label"]
        return encoded

    def convert(split: Dataset) -> Dataset:
        # named, since a name by a hash of the tokenizer is for a cache, takes time and fails for some, with a warning
        return split.map(encode, batched=True, remove_columns=split.column_names, new_fingerprint="tokenized")

    with _without_progress_bars():
        return TokenizedTask(
            train=convert(task_data.train),
            evaluation={name: convert(split) for name, split in task_data.evaluation.items()},
        )


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    from datasets.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
