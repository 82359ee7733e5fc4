"""The answers that a model writes: generated in batches, greedily unless a temperature is given, and scored."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase

from glora.experiments.config import DEFAULT_MAX_NEW_TOKENS, RunConfig
from glora.experiments.data.answers import SCORINGS
from glora.experiments.data.task import TaskData
from glora.experiments.models.chat_format import ChatFormat
from glora.experiments.models.tokenization import TokenizedTask
from glora.experiments.records.schema import WrittenAnswer
from glora.lora.discovery import base_model
from glora.messages import pluralize


class AnswerEvaluation:
    """Write the answers of a task's splits with a model, and score them."""

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
            ValueError: the prompts leave no room for answers; better known before training than after.
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
        """Return the number of batches that are generated for a split."""
        return math.ceil(len(split) / self._batch_size) if self._scoring else 0

    def write(self, model: Any, split: Dataset, after_batch: Callable[[], None]) -> list[WrittenAnswer]:
        """Return the model's scored answers to a split's prompts; none where the task scores none."""
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
    """Tokens that an answer may have: what is given, else the default or what the model can still read.

    Raises:
        ValueError: the model cannot read that many behind the longest prompt.
    """
    room = limit - longest_prompt
    if room < (max_new_tokens or 1):
        raise ValueError(
            f"the longest prompt has {pluralize(longest_prompt, 'token')}, and this model reads {limit}: no room for "
            + (f"max_new_tokens={max_new_tokens}; lower it to {room} or less" if room > 0 else "an answer")
        )
    return max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, room)


def generate_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
    temperature: float | None = None,
    seed: int = 0,
    after_batch: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Return the tokens that a model writes behind each prompt, without padding; a stop token ends a complete answer.

    Prompts are padded on the left and masked there, so an answer does not depend on its batch, except for rounding. Prompts of
    similar length share a batch. The model's own generation config is not used: many contain sampling or a repetition penalty,
    with which a score would change every time. Sampling uses `seed` and leaves torch's generators unchanged.

    Args:
        model: a causal language model, with or without adapters; keeps its mode.
        prompts: token ids.
        stop_ids: tokens that end an answer.
        pad_id: the token to pad with.
        max_new_tokens: an answer is cut off after this many.
        batch_size: prompts per batch.
        temperature: None takes the most likely token each time.
        seed: of sampling.
        after_batch: called after each batch.
    """
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature is not None,
        temperature=temperature,
        top_k=0 if temperature is not None else None,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        use_cache=True,
    )
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # if memory runs out, then in the first batch
    answers: dict[int, list[int]] = {}
    with _for_generation(base_model(model), config, seed) as writer:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = left_padded([prompts[i] for i in batch], pad_id, writer.device)
            written = writer.generate(**inputs)[:, inputs["input_ids"].shape[1] :].tolist()
            answers |= {i: _cut_off(tokens, stop_ids) for i, tokens in zip(batch, written)}
            after_batch()
    return [answers[i] for i in range(len(prompts))]


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return prompts as one batch, with the mask that hides the padding before them."""
    ids = [torch.tensor(prompt, device=device) for prompt in prompts]
    pad = functools.partial(pad_sequence, batch_first=True, padding_side="left")
    return {"input_ids": pad(ids, padding_value=pad_id), "attention_mask": pad([torch.ones_like(i) for i in ids])}


def _cut_off(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    """An answer without the padding that generate() appends when it ends before the others of its batch."""
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens) - 1)
    return tokens[: end + 1]


@contextlib.contextmanager
def _for_generation(model: Any, config: GenerationConfig, seed: int) -> Iterator[Any]:
    """The model in evaluation mode, with this config in place of its own, and torch's generators seeded meanwhile."""
    own, training = model.generation_config, model.training
    model.generation_config = config
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield model
    finally:
        model.generation_config = own
        model.train(training)
