"""What is measured of a model that writes: its own answers, scored; and what its loss means as a perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glora.experiments.config import DEFAULT_MAX_NEW_TOKENS
from glora.experiments.data.answers import SCORINGS
from glora.experiments.records.schema import WrittenAnswer
from glora.experiments.training.generation import generate_answers
from glora.messages import pluralize

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from glora.experiments.config import RunConfig
    from glora.experiments.data.task import TaskData
    from glora.experiments.models.chat_format import ChatFormat
    from glora.experiments.models.tokenization import TokenizedTask

ANSWERS_KEPT = 5
"""So many written answers stand in a record."""


class AnswerEvaluation:
    """The answers that a model writes itself, and whether they are right."""

    def __init__(
        self,
        config: RunConfig,
        task: TaskData,
        tokens: TokenizedTask,
        chat: ChatFormat,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """See the class.

        Raises:
            ValueError: the prompts leave no room for answers; better known before a model is trained than after.
        """
        self._config = config
        self._chat = chat
        self._tokenizer = tokenizer
        self._scoring = SCORINGS[task.scoring] if task.scoring else None
        self._batch_size = 2 * config.batch_size
        if self._scoring is not None:
            prompts = [prompt for split in tokens.evaluation.values() for prompt in split["prompt_ids"]]
            self._max_new_tokens = _room(config.max_new_tokens, max(map(len, prompts)), tokenizer.model_max_length)

    def batches(self, split: Dataset) -> int:
        """How many batches are generated for a split."""
        return math.ceil(len(split) / self._batch_size) if self._scoring else 0

    def write(self, model: Any, split: Dataset, after_batch: Callable[[], None]) -> list[WrittenAnswer]:
        """The model's answers to a split's prompts, and whether they are right; none where the task scores none."""
        if self._scoring is None:
            return []
        tokens = generate_answers(
            model,
            list(split["prompt_ids"]),
            stop_ids=self._chat.stop_ids,
            pad_id=self._tokenizer.pad_token_id,
            max_new_tokens=self._max_new_tokens,
            batch_size=self._batch_size,
            temperature=self._config.temperature,
            seed=self._config.seed,
            after_batch=after_batch,
        )
        return [
            WrittenAnswer(
                prompt=asked, reference=reference, written=written, right=self._scoring.matches(written, reference)
            )
            for asked, reference, written in zip(split["asked"], split["answer"], map(self._chat.decode, tokens))
        ]


def _room(max_new_tokens: int | None, longest_prompt: int, limit: int) -> int:
    """How many tokens an answer may have: as many as are asked for, else the default or what the model still reads.

    Raises:
        ValueError: that is more than the model reads behind the longest prompt, or nothing.
    """
    room = limit - longest_prompt
    if room < (max_new_tokens or 1):
        raise ValueError(
            f"the longest prompt has {pluralize(longest_prompt, 'token')}, and this model reads {limit}: there is no room for "
            + (f"max_new_tokens={max_new_tokens}; lower it to {room} or less" if room > 0 else "an answer")
        )
    return max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, room)


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is more than a float can hold."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
