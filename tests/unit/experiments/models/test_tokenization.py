"""Token ids as Trainer takes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from glora.experiments.data.loading import build_task_data
from glora.experiments.data.task import Examples, Task, TaskData
from glora.experiments.models.tokenization import tokenize

PAIR = Examples.labelled([["a red fox", "a dog"], ["in the barn", "in the garden near the red barn"]], [1, 0])


def data(rows: Examples, label_names: tuple[str, ...] | None = ("no", "yes")) -> TaskData:
    return build_task_data(Task("t", "", ("accuracy",), label_names), rows, {"validation": rows})


@pytest.fixture
def tokenizer(tiny_deberta: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_deberta)


def test_pairs_become_what_the_tokenizer_makes_of_them(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(data(PAIR), tokenizer, 32)
    for split in (tokens.train, tokens.evaluation["validation"]):
        assert sorted(split.column_names) == ["attention_mask", "input_ids", "labels", "token_type_ids"]
        assert split["labels"][:] == [1, 0]
        for i in (0, 1):
            expected = tokenizer(PAIR.columns["text_a"][i], PAIR.columns["text_b"][i])
            assert {name: split[i][name] for name in expected} == dict(expected)


def test_single_texts_and_float_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(data(Examples.labelled([["a red fox", "a dog"]], [0.5, 3.0]), None), tokenizer, 32)
    assert tokens.train[1]["input_ids"] == tokenizer("a dog")["input_ids"]
    assert tokens.train["labels"][:] == [0.5, 3.0]


def test_truncation_takes_from_the_longer_text(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(data(PAIR), tokenizer, 10)
    row = tokens.train[1]
    assert len(row["input_ids"]) == 10
    whole_first = tokenizer("a dog")["input_ids"]
    assert row["input_ids"][: len(whole_first)] == whole_first


def test_more_tokens_than_the_model_reads(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenize(data(PAIR), tokenizer, 64)
    with pytest.raises(ValueError, match="max_length=65 .*more than .*to 64"):
        tokenize(data(PAIR), tokenizer, 65)


def test_nothing_is_cached_or_printed(tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]) -> None:
    before = set(Path(os.environ["HF_HOME"]).rglob("*"))
    tokens = tokenize(data(PAIR), tokenizer, 32)
    assert tokens.train.cache_files == []
    assert {path for path in Path(os.environ["HF_HOME"]).rglob("*") if path.is_file()} <= before
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
