"""Answers that a model writes: the same alone as in a batch, and over when they are over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, Qwen3ForCausalLM

from glora.experiments.training.generation import generate_answers, left_padded

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [5, 13, 6], [20, 21, 7, 9]]


@pytest.fixture(scope="module")
def model(tiny_writer: Path) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(tiny_writer, dtype=torch.float32)


def write(model, prompts=PROMPTS, **changes) -> list[list[int]]:
    settings = dict(stop_ids=[1], pad_id=0, max_new_tokens=12, batch_size=8)
    return generate_answers(model, prompts, **settings | changes)


def greedily(model, prompt: list[int], count: int, stop_ids) -> list[int]:
    """An independent loop: no batch, no padding, no cache."""
    ids, model = list(prompt), model.eval()
    while len(ids) < len(prompt) + count:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


def test_a_batch_writes_what_each_prompt_alone_would(model: Qwen3ForCausalLM) -> None:
    together = write(model)
    assert together == [greedily(model, prompt, 12, [1]) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in together}) == len(PROMPTS), "or the order would not show"
    for size in (1, 3):
        assert write(model, batch_size=size) == together


def test_padding_is_on_the_left_and_masked() -> None:
    batch = left_padded([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_an_answer_ends_at_any_stop_token_and_takes_no_padding_along(model: Qwen3ForCausalLM) -> None:
    free = write(model)
    stop_ids = [1, free[0][4], free[2][1]]
    stopped = write(model, stop_ids=stop_ids)
    assert stopped == [greedily(model, prompt, 12, stop_ids) for prompt in PROMPTS]
    assert len({len(answer) for answer in stopped}) > 1
    assert [len(answer) for answer in write(model, max_new_tokens=3)] == [3] * 4


def test_the_models_own_generation_config_does_not_count_and_stays(model: Qwen3ForCausalLM) -> None:
    expected = write(model)
    own = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_new_tokens=1, min_new_tokens=1)
    model.generation_config, before = own, model.generation_config
    try:
        model.train()
        assert write(model) == expected
        assert model.generation_config is own
        assert model.training
    finally:
        model.generation_config = before
        model.eval()


def test_sampling_follows_its_seed_and_leaves_torch_alone(model: Qwen3ForCausalLM) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (write(model, temperature=2.0, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first != write(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_adapter_writes_along(tiny_writer: Path) -> None:
    base = Qwen3ForCausalLM.from_pretrained(tiny_writer, dtype=torch.float32)
    before = write(base)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert write(adapted) == before
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert write(adapted) != before
    ticks = []
    write(adapted, batch_size=3, after_batch=lambda: ticks.append(1))
    assert len(ticks) == 2
