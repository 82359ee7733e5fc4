"""A task's texts as token ids, ready for Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from datasets.utils import logging

from glora.experiments.data.task import TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedTask:
    """A task as token ids for Trainer. Columns: the tokenizer's own, and `labels`."""

    train: Dataset
    evaluation: dict[str, Dataset]


def tokenize(task_data: TaskData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedTask:
    """Tokenize texts, truncated to `max_length` (a pair's longer text first), not padded: the collator pads each batch.

    Raises:
        ValueError: `max_length` is more than the model reads.
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
        # without a name datasets hashes the tokenizer for its cache, which takes time and fails for some, with a warning
        return split.map(encode, batched=True, remove_columns=split.column_names, new_fingerprint="tokenized")

    with _without_progress_bars():
        evaluation = {name: convert(split) for name, split in task_data.evaluation.items()}
        return TokenizedTask(convert(task_data.train), evaluation)


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
