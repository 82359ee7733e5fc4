"""A tiny causal language model that can learn sums, with its tokenizer and its data: nothing is downloaded."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = [*map(str, range(10)), "how", "much", "is", "plus", "minus", "?", "####", "user", "assistant", "system"]
SPECIAL = ["<pad>", "<eos>", "<unk>", "<turn>", "<end>"]
TEMPLATE = (
    "{% for message in messages %}<turn> {{ message['role'] }} {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<turn> assistant {% endif %}"
)


def build_tokenizer(template: str | None = TEMPLATE, **fields):
    """Words and numbers by white space. `<end>` ends a turn, and is not the end of text, as in Gemma and Qwen's base models."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        **dict(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=48) | fields,
        extra_special_tokens=["<turn>", "<end>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def build_tiny_writer(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Save a random Qwen3 of 2 layers and its tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=48,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    build_tokenizer(template).save_pretrained(folder)
    return folder


def sums(count: int, seed: int) -> list[dict[str, str]]:
    """Questions and answers as GSM8K writes them: a line of reasoning, and the number behind `####`."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(5), draw.randrange(5)) for _ in range(count)]
    return [
        {"question": f"how much is {a} plus {b} ?", "answer": f"{a} plus {b} is {a + b} #### {a + b}"} for a, b in pairs
    ]


def write_sums(folder: Path, *, train: int = 400, test: int = 60) -> Path:
    """Write sums in GSM8K's layout."""
    for seed, (split, count) in enumerate((("train", train), ("test", test))):
        write_lines(folder / f"{split}.jsonl", sums(count, seed))
    return folder


def write_lines(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
