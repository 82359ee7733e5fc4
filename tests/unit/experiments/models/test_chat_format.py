"""The loss is at the answer and its end, and nowhere else."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from conftest import SHARED_DATA
from glora.experiments.data.answers import SCORINGS
from glora.experiments.data.loading import load_task
from glora.experiments.models.chat_format import IGNORED, ChatFormat
from glora.experiments.training.generative import Generation
from tiny_writer import TEMPLATE, build_tokenizer

ASK = [{"role": "user", "content": "how much is 1 plus 2 ?"}]
ANSWER = "1 plus 2 is 3 #### 3"


def encoded(tokenizer, prompt=ASK, answer=ANSWER, model=None):
    chat = ChatFormat(tokenizer, model)
    (example,) = chat.encode([prompt], [answer])
    return chat, example


def words(tokenizer, ids) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_labels_are_the_answers_tokens_and_the_end_of_its_turn() -> None:
    tokenizer = build_tokenizer()
    _, example = encoded(tokenizer)
    row = example.inputs(48)
    assert words(tokenizer, row["input_ids"]) == (
        "<turn> user how much is 1 plus 2 ? <end> <turn> assistant 1 plus 2 is 3 #### 3 <end>"
    )
    learned = [token for token in row["labels"] if token != IGNORED]
    assert words(tokenizer, learned) == "1 plus 2 is 3 #### 3 <end>"
    assert row["labels"][: len(example.prompt)] == [IGNORED] * len(example.prompt)
    assert len(row["labels"]) == len(row["input_ids"])


def test_the_prompt_is_that_from_which_answers_are_generated() -> None:
    tokenizer = build_tokenizer()
    _, example = encoded(tokenizer)
    asked = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, tokenize=False)
    assert example.prompt == tokenizer(asked, add_special_tokens=False)["input_ids"]


def test_no_loss_on_padding_but_on_the_end_though_both_are_one_token() -> None:
    """Many causal models have no padding token, and use the end of text instead; a mask by its id would lose the end."""
    tokenizer = build_tokenizer(None, pad_token="<eos>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = [encoded(tokenizer, answer=answer)[1].inputs(48) for answer in ("3", ANSWER)]
    batch = Generation().collator(tokenizer)(rows)
    short, length = batch["labels"][0], len(rows[0]["labels"])
    assert short[length - 1] == tokenizer.eos_token_id, "the end is learned"
    assert (short[length:] == IGNORED).all(), "the padding is not"
    assert (batch["attention_mask"][0][length:] == 0).all()
    assert torch.equal(batch["labels"] != IGNORED, batch["labels"] >= 0)


def test_what_a_template_puts_around_an_answer_is_learned_but_not_what_follows_its_end() -> None:
    thinking = TEMPLATE.replace(
        "<turn> {{ message['role'] }} {{ message['content'] }} <end> ",
        "<turn> {{ message['role'] }} {% if message['role'] == 'assistant' %}plus minus {% endif %}"
        "{{ message['content'] }} <end> ? ",
    )
    tokenizer = build_tokenizer(thinking)
    _, example = encoded(tokenizer, answer="3")
    assert words(tokenizer, example.answer) == "plus minus 3 <end>"


def test_a_template_that_opens_an_answer_only_when_it_asks(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = build_tokenizer(TEMPLATE.replace("<turn> assistant {% endif %}", "<turn> assistant minus {% endif %}"))
    with caplog.at_level(logging.WARNING, logger="glora"):
        _, example = encoded(tokenizer, answer="3")
    assert words(tokenizer, example.prompt).endswith("<turn> assistant minus")
    assert words(tokenizer, example.answer) == "3 <end>"
    assert "assistant minus ' only if" in caplog.text


def test_whatever_can_end_an_answer_stops_it() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    assert ChatFormat(tokenizer).stop_ids == (ids("<eos>"), ids("<end>"))
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[1, ids("<turn>")]))
    chat = ChatFormat(tokenizer, model)
    assert chat.stop_ids == (ids("<eos>"), ids("<turn>"), ids("<end>"))
    assert chat.decode(ids(["3", "<end>", "4", "<end>"])) == "3"
    assert chat.decode(ids(["3", "4"])) == "3 4"
    with pytest.raises(ValueError, match="set eos_token"):
        ChatFormat(build_tokenizer("{% for m in messages %}{{ m['content'] }} {% endfor %}", eos_token=None))


def test_the_fallback_template() -> None:
    tokenizer = build_tokenizer(None)
    chat = ChatFormat(tokenizer)
    assert chat.stop_ids == (tokenizer.eos_token_id,)
    conversation = [{"role": "system", "content": "how"}, *ASK, {"role": "assistant", "content": "3"}, *ASK]
    asked = chat._written(conversation, ask=True)
    assert asked == (
        "how\n\n### Instruction:\nhow much is 1 plus 2 ?\n\n### Response:\n3<eos>\n\n"
        "### Instruction:\nhow much is 1 plus 2 ?\n\n### Response:\n"
    )
    (example,) = chat.encode([ASK], ["3"])
    assert words(tokenizer, example.answer) == "3 <eos>"
    assert tokenizer.chat_template is None, "the user's tokenizer is left alone"


def test_the_fallback_begins_as_the_tokenizer_does() -> None:
    tokenizer = build_tokenizer(None, bos_token="<turn>")
    assert ChatFormat(tokenizer).encode([ASK], ["3"])[0].prompt[0] != tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<turn> $A", special_tokens=[("<turn>", tokenizer.bos_token_id)]
    )
    prompt = ChatFormat(tokenizer).encode([ASK], ["3"])[0].prompt
    assert prompt.count(tokenizer.bos_token_id) == 1 == prompt.index(tokenizer.bos_token_id) + 1


def test_too_long_an_example_loses_its_end_and_not_its_place() -> None:
    _, example = encoded(build_tokenizer())
    row = example.inputs(len(example.prompt) + 2)
    assert row["labels"] == [IGNORED] * len(example.prompt) + example.answer[:2]
    assert set(example.inputs(5)["labels"]) == {IGNORED}


def test_a_conversation_that_a_template_refuses_is_said_to_be_one() -> None:
    refusing = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' }}" + TEMPLATE
    with pytest.raises(ValueError, match="system, user: no system role"):
        encoded(build_tokenizer(refusing), prompt=[{"role": "system", "content": "how"}, *ASK])
    without = TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'].strip('3') }}")
    with pytest.raises(ValueError, match="leaves out the answer '3'"):
        encoded(build_tokenizer(without), answer="3")


def test_every_reference_of_the_real_gsm8k_comes_back_from_its_tokens() -> None:
    """A byte-level vocabulary, as Llama, Qwen and GPT have: the learned tokens, decoded, are scored as right."""
    if not (SHARED_DATA / "gsm8k").is_dir():
        pytest.skip("the real GSM8K is not here")
    rows = load_task("gsm8k", data_dir=str(SHARED_DATA / "gsm8k"), train_limit=300).train
    vocabulary = tokenizers.ByteLevelBPETokenizer()
    vocabulary.train_from_iterator(
        rows["answer"], vocab_size=600, special_tokens=["<eos>", "<turn>", "<end>"], length=300
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary._tokenizer, eos_token="<eos>", extra_special_tokens=["<turn>", "<end>"]
    )
    lines = "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    for template in (None, lines + "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"):
        tokenizer.chat_template = template
        chat = ChatFormat(tokenizer)
        examples = chat.encode(list(rows["prompt"]), list(rows["answer"]))
        for example, answer in zip(examples, rows["answer"]):
            assert example.answer[-1] in chat.stop_ids
            assert not set(example.answer[:-1]) & set(chat.stop_ids)
            written = chat.decode(example.answer)
            assert written.strip() == answer.strip()
            assert SCORINGS["final_number"].matches(written, answer)
