"""Answers written by a model: in batches, padded on the left, greedily unless a temperature is given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from glora.lora.discovery import base_model


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
    """The tokens that a model writes behind each prompt, without padding; the last is a stop token unless it was cut off.

    Prompts are padded on the left, so that all answers of a batch begin at the same place, and masked there: what a model
    writes does not depend on what else is in its batch, but for rounding. Those of like length go together.

    Nothing of the model's own generation config counts: many come with sampling or a repetition penalty, with which a score
    would be another one every time. Sampling draws from `seed`, and leaves torch's generators as they were.

    Args:
        model: a causal language model, with or without adapters; it is left in the mode in which it was.
        prompts: token ids.
        stop_ids: tokens that end an answer.
        pad_id: the token to pad with.
        max_new_tokens: an answer is cut off after so many.
        batch_size: prompts at a time.
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
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # if memory runs out, then at once
    answers: dict[int, list[int]] = {}
    with _for_generation(base_model(model), config) as writer, _drawing_from(seed):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = left_padded([prompts[i] for i in batch], pad_id, writer.device)
            written = writer.generate(**inputs)[:, inputs["input_ids"].shape[1] :].tolist()
            answers |= {i: _cut_off(tokens, stop_ids) for i, tokens in zip(batch, written)}
            after_batch()
    return [answers[i] for i in range(len(prompts))]


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Prompts as one batch, and the mask that hides the padding before them."""
    longest = max(map(len, prompts))
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _cut_off(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    """Without what generate() fills up an answer with that ended before the others of its batch."""
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens) - 1)
    return tokens[: end + 1]


@contextlib.contextmanager
def _for_generation(model: Any, config: GenerationConfig) -> Iterator[Any]:
    """A model in evaluation mode, with this configuration in the place of its own, which generate() would mix in."""
    own, training = model.generation_config, model.training
    model.generation_config = config
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.generation_config = own
        model.train(training)


@contextlib.contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
