"""Reading prompts and answers: from what people have, in the layouts of the hub, and with every error by its line."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from glora.experiments.data.conversations import conversations, split_by_prompt
from glora.experiments.data.generative import MATH_SUBJECTS
from glora.experiments.data.loading import load_task
from glora.experiments.data.registry import SOURCES, resolve_task
from glora.experiments.data.task import DataError, DataNotFoundError, TaskData
from glora.experiments.data.tuning_split import hold_out
from tiny_writer import sums, write_lines

ALPACA = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Translate.", "input": "un chat", "output": "a cat"},
] + [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(200)]
DOLLY = [{"instruction": r["instruction"], "context": r["input"], "response": r["output"]} for r in ALPACA]
MATH = [{"problem": f"{i} + 1?", "solution": rf"It is $\boxed{{{i + 1}}}$."} for i in range(3)]


def prompts(data: TaskData, split: str | None = None) -> list[str]:
    rows = data.train if split is None else data.evaluation[split]
    return [message["content"] for prompt in rows["prompt"] for message in prompt]


# The data sets


def test_gsm8k_is_trained_on_train_and_scored_on_test(sums_folder: Path) -> None:
    data = load_task("GSM8K", data_dir=str(sums_folder), train_limit=100)
    assert (data.kind, data.scoring, data.primary_metric, data.label_names) == (
        "generation", "final_number", "exact_match", None,
    )  # fmt: skip
    assert {split: len(rows) for split, rows in data.evaluation.items()} == {"test": 60}
    assert len(data.train) == 100
    row = data.evaluation["test"][0]
    written = sums(60, 1)[0]
    assert row == {"prompt": [{"role": "user", "content": written["question"]}], "answer": written["answer"]}
    assert not data.regression


def test_alpaca_and_dolly_hold_out_a_twentieth_by_what_is_asked(tmp_path: Path) -> None:
    (tmp_path / "alpaca_data_cleaned.json").write_text(json.dumps(ALPACA))
    write_lines(tmp_path / "databricks-dolly-15k.jsonl", DOLLY)
    alpaca = load_task("alpaca-cleaned", data_dir=str(tmp_path))
    dolly = load_task("databricks-dolly-15k", data_dir=str(tmp_path))
    held_out = prompts(alpaca, "validation")
    assert 2 <= len(held_out) <= 25
    assert sorted(prompts(alpaca) + held_out) == sorted(
        f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"] for row in ALPACA
    )
    assert prompts(dolly, "validation") == held_out, "the same questions are on the same side, wherever they are from"
    assert (alpaca.scoring, alpaca.metrics) == (None, ("loss", "perplexity"))


def test_what_is_held_out_depends_on_nothing_but_the_prompt() -> None:
    asked = [f"Say {i // 2}" for i in range(400)]  # each question twice, with another answer
    spelled = [f"  {text.upper()}" if i % 2 else text for i, text in enumerate(asked)]
    examples = conversations([[{"role": "user", "content": text}] for text in spelled], list(map(str, range(400))))
    rest, held_out = split_by_prompt(examples, 0.1)
    assert 20 < len(held_out) < 60
    assert len(rest) + len(held_out) == 400
    questions = [{int(answer) // 2 for answer in side.columns["answer"]} for side in (rest, held_out)]
    assert not questions[0] & questions[1], "both answers to a question are on one side, however it is spelled"
    backwards = split_by_prompt(examples.at(list(reversed(range(400)))), 0.1)[1]
    fewer = split_by_prompt(examples.at(range(100)), 0.1)[1]
    assert set(backwards.columns["answer"]) == set(held_out.columns["answer"])
    assert set(fewer.columns["answer"]) == {answer for answer in held_out.columns["answer"] if int(answer) < 100}
    train, tuning = hold_out(examples, 0.2)
    questions = [{int(answer) // 2 for answer in side.columns["answer"]} for side in (train, tuning)]
    assert not questions[0] & questions[1], "nor does the tuning split divide a question"
    assert len(tuning) == 80


def test_tuning_reads_neither_the_test_split_nor_what_is_held_out(tmp_path: Path, sums_folder: Path) -> None:
    write_lines(tmp_path / "train.jsonl", sums(100, 0))
    (tmp_path / "test.jsonl").write_text("not JSON")
    data = load_task("gsm8k", data_dir=str(tmp_path), held_out=0.2)
    assert set(data.evaluation) == {"tuning"}
    (tmp_path / "alpaca_data_cleaned.json").write_text(json.dumps(ALPACA))
    whole = load_task("alpaca-cleaned", data_dir=str(tmp_path))
    tuned = load_task("alpaca-cleaned", data_dir=str(tmp_path), held_out=0.2)
    assert set(prompts(tuned) + prompts(tuned, "tuning")) == set(prompts(whole))


def test_math_in_the_hubs_layout_and_in_its_authors(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for subject in MATH_SUBJECTS:
            folder = tmp_path / "hub" / subject
            folder.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(MATH).to_parquet(folder / f"{split}-00000-of-00001.parquet")
            for i, row in enumerate(MATH):
                file = tmp_path / "authors" / split / subject / f"{i}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(row | {"level": "Level 1", "type": subject}))
    hub = load_task("MATH", data_dir=str(tmp_path / "hub"))
    assert (len(hub.train), len(hub.evaluation["test"]), hub.scoring) == (21, 21, "boxed")
    assert hub.fingerprint == load_task("MATH", data_dir=str(tmp_path / "authors")).fingerprint


def test_files_are_found_as_people_have_them(tmp_path: Path) -> None:
    for inner in ("gsm8k", "main", "data", "."):
        folder = tmp_path / inner.replace(".", "flat")
        inside = folder / inner
        for split in ("train", "test"):
            write_lines(inside / f"{split}.jsonl", sums(5, 0))
        assert SOURCES["gsm8k"].find_files(folder)["test"] == [inside / "test.jsonl"]
    parts = tmp_path / "parts"
    parts.mkdir()
    for split in ("train", "test"):
        for part in (1, 0):
            rows = datasets.Dataset.from_list(sums(3, part))
            rows.to_parquet(parts / f"{split}-{part:05}-of-00002.parquet")
    data = load_task("gsm8k", data_dir=str(parts))
    assert data.train["answer"] == [row["answer"] for part in (0, 1) for row in sums(3, part)]


def test_the_hub_is_asked_for_every_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(source: str, config: str | None) -> dict[str, datasets.Dataset]:
        asked.append((source, config))
        return dict.fromkeys(("train", "test"), datasets.Dataset.from_list(MATH))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_task("MATH").train) == 21
    assert asked == [("EleutherAI/hendrycks_math", subject) for subject in MATH_SUBJECTS]

    def unreachable(*_: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataNotFoundError, match=r"openai/gsm8k \(main\) .*: no network Without"):
        load_task("gsm8k")


def test_what_is_missing_or_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="data_dir: .*absent"):
        resolve_task("gsm8k", str(tmp_path / "absent"))
    with pytest.raises(DataNotFoundError, match=r"gsm8k needs train.jsonl \(or .parquet\) and test.jsonl .* looked in"):
        resolve_task("gsm8k", str(tmp_path))
    with pytest.raises(DataNotFoundError, match=r"needs train.jsonl \(or .parquet\) or databricks-dolly-15k.jsonl"):
        resolve_task("Dolly", str(tmp_path))
    write_lines(tmp_path / "train.jsonl", sums(5, 0))
    test = write_lines(tmp_path / "test.jsonl", [*sums(2, 0), {"question": "?", "answer": "#### none"}])
    with pytest.raises(DataError, match=r"test.jsonl, line 3: .*no final number, .*gsm8k"):
        load_task("gsm8k", data_dir=str(tmp_path))
    write_lines(test, [{"question": "?"}])
    with pytest.raises(DataError, match=r"test.jsonl, line 1: .*'answer' holds None"):
        load_task("gsm8k", data_dir=str(tmp_path))


# Custom data


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "2 + 2?", "completion": "4"}, ["2 + 2?"], "4"),
        ({"question": "2 + 2?", "answer": "4", "note": "x"}, ["2 + 2?"], "4"),
        ({"instruction": "Add.", "input": "2 2", "output": "4"}, ["Add.\n\n2 2"], "4"),
        ({"instruction": "Add.", "input": None, "output": "4"}, ["Add."], "4"),
        ({"instruction": "Add.", "context": " ", "response": "4"}, ["Add."], "4"),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be short."},
                    {"role": "user", "content": "2 + 2?"},
                    {"role": "assistant", "content": "4"},
                ]
            },
            ["Be short.", "2 + 2?"],
            "4",
        ),
        (
            {
                "prompt": [{"role": "user", "content": "2 + 2?"}],
                "completion": [{"role": "assistant", "content": "4"}],
            },
            ["2 + 2?"],
            "4",
        ),
    ],
)
def test_custom_columns(tmp_path: Path, row: dict, prompt: list[str], answer: str) -> None:
    train = write_lines(tmp_path / "train.jsonl", [row, row])
    write_lines(tmp_path / "validation.jsonl", [row])
    assert resolve_task(str(train)).kind == "generation"
    data = load_task(str(train))
    assert [message["content"] for message in data.train[0]["prompt"]] == prompt
    assert data.train[0]["answer"] == answer
    assert (data.scoring, data.primary_metric) == (None, "loss")


def test_how_custom_answers_are_scored_follows_from_them(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", sums(5, 0))
    dev = write_lines(tmp_path / "dev.jsonl", sums(5, 1))
    data = load_task(str(train))
    assert (data.scoring, data.reading) == ("final_number", "written answers, scored by final number")
    write_lines(dev, [*sums(1, 0), {"question": "?", "answer": "nothing"}])
    with pytest.raises(DataError, match="dev.jsonl, line 2: .*no final number"):
        load_task(str(train))
    write_lines(train, [*sums(20, 0), {"question": "?", "answer": "nothing"}])
    with pytest.raises(DataError, match="train.jsonl, line 21: .*no final number, 20 others"):
        load_task(str(train))
    write_lines(train, MATH)
    write_lines(dev, MATH)
    assert load_task(str(train)).primary_metric == "exact_match"
    write_lines(dev, sums(1, 0))
    with pytest.raises(DataError, match="question, answer; .*train.jsonl: problem, solution"):
        load_task(str(train))


def test_labels_make_it_a_classification(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": "4", "label": i % 2} for i in range(4)]
    train = write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "dev.jsonl", rows)
    assert resolve_task(str(train)).kind == load_task(str(train)).kind == "classification"
    assert resolve_task(f"{train}:question:answer").kind == "classification"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "answer": " "}, "the answer is empty"),
        ({"question": 3, "answer": "4"}, "the column 'question' holds 3, not a text"),
        ({"messages": "hello"}, "'messages' holds 'hello', not a list of messages"),
        ({"messages": [{"role": "user", "content": "?"}]}, "the last message of 'messages' must be the assistant's"),
        ({"messages": [{"role": "bot", "content": "?"}, {"role": "assistant", "content": "!"}]}, "has the role 'bot'"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "!"}]}, 'a message is {"role": "user"'),
        ({"prompt": [{"role": "user", "content": "?"}], "completion": "4"}, "'completion' holds '4'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, row: dict, message: str) -> None:
    train = write_lines(tmp_path / "train.jsonl", [row])
    write_lines(tmp_path / "dev.jsonl", [row])
    with pytest.raises(DataError) as refused:
        load_task(str(train))
    assert f"{train}, line 1: " in str(refused.value)
    assert message in str(refused.value)
