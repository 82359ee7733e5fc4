"""Examples whose answer is written: a prompt (one message or a conversation) and the answer to learn.

Columns that a file or a hub data set may have:

    prompt, completion                 text, or messages as in TRL
    question, answer                   GSM8K
    problem, solution                  MATH
    instruction, input, output         Alpaca; without `input` too
    instruction, context, response     Dolly; without `context` too
    messages                           a conversation whose last message is the assistant's answer

TRL reads prompts and messages too, but does not check them; an error here names the file and the line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glora.experiments.data.answers import SCORINGS
from glora.experiments.data.table_files import Table
from glora.experiments.data.task import DataError, Examples, Task

ROLES = ("system", "user", "assistant")
Message = dict[str, str]
"""`role` and `content`."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns with the prompt, its context, and the answer.

    Without an answer column, the prompt column holds a conversation whose last message is the answer.
    """

    prompt: str
    answer: str | None = None
    context: str | None = None

    def read(self, row: Mapping[str, Any]) -> tuple[list[Message], str]:
        """Return a row's prompt, as messages, and its answer.

        Raises:
            ValueError: a column holds something else.
        """
        prompt = row.get(self.prompt)
        if self.answer is None:
            messages = _messages(prompt, self.prompt)
            if len(messages) < 2 or messages[-1]["role"] != "assistant":
                raise ValueError(
                    f"the last message of {self.prompt!r} must be the assistant's, after at least one other"
                )
            return messages[:-1], messages[-1]["content"]
        if isinstance(prompt, list):
            completion = _messages(row.get(self.answer), self.answer)
            if [message["role"] for message in completion] != ["assistant"]:
                raise ValueError(f"the column {self.answer!r} must hold one message of the assistant")
            return _messages(prompt, self.prompt), completion[0]["content"]
        texts = [_text(row, self.prompt)]
        if self.context and row.get(self.context) is not None:
            texts.append(_text(row, self.context))
        return [{"role": "user", "content": "\n\n".join(filter(str.strip, texts))}], _text(row, self.answer)


LAYOUTS: tuple[tuple[set[str], Columns], ...] = (
    ({"messages"}, Columns("messages")),
    ({"prompt", "completion"}, Columns("prompt", "completion")),
    ({"question", "answer"}, Columns("question", "answer")),
    ({"problem", "solution"}, Columns("problem", "solution")),
    ({"instruction", "output"}, Columns("instruction", "output", "input")),
    ({"instruction", "response"}, Columns("instruction", "response", "context")),
)
"""Columns that a file must have, and their meaning."""


def find_columns(names: Iterable[str]) -> Columns | None:
    """Recognize prompts and answers by the names of a file's columns; None if it holds something else."""
    return next((columns for needed, columns in LAYOUTS if needed <= set(names)), None)


def split_by_prompt(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """Hold out a share of the examples by the hash of their prompts; return the rest and the held-out part.

    Neither the order nor the number of the other examples matters, and examples with the same prompt are on the same side.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for i, prompt in enumerate(examples.groups or ()):
        position = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64
        sides[position < share].append(i)
    return examples.at(sides[False]), examples.at(sides[True])


def conversations(prompts: list[list[Message]], answers: list[str]) -> Examples:
    """Return prompts and answers as examples. A prompt with several answers, in any spelling, is one group."""
    groups = ["\x00".join(" ".join(message["content"].casefold().split()) for message in prompt) for prompt in prompts]
    return Examples({"prompt": prompts, "answer": answers}, groups)


def read_conversations(table: Table, columns: Columns, *, empty_answers: bool) -> Examples:
    """Read rows as prompts and answers.

    Args:
        table: a file, or a split of the hub.
        columns: the meaning of its columns.
        empty_answers: whether an answer may be empty (some of Alpaca's are).

    Raises:
        DataError: a row does not hold what its columns promise.
    """
    prompts, answers = [], []
    for i, row in enumerate(table.records()):
        try:
            prompt, answer = columns.read(row)
        except ValueError as error:
            raise DataError(f"{table.where(i)}: {error}.") from error
        if not answer.strip() and not empty_answers:
            raise DataError(f"{table.where(i)}: the answer is empty; remove the line.")
        prompts.append(prompt)
        answers.append(answer)
    return conversations(prompts, answers)


def check_references(task: Task, examples: Examples, table: Table) -> None:
    """Check that every answer can be scored.

    Raises:
        DataError: an answer lacks the part that is scored; names the first.
    """
    if task.scoring is None:
        return
    scoring = SCORINGS[task.scoring]
    for i, answer in enumerate(examples.columns["answer"]):
        if scoring.extract(answer) is None:
            raise DataError(
                f"{table.where(i)}: the answer has no {scoring.part}, which {task.name} scores: {answer[-60:]!r}."
            )


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"the column {column!r} holds {value!r}, not a text")
    return value


def _messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"the column {column!r} holds {value!r:.60}, not a list of messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'{column!r} holds {message!r:.60}; a message is {{"role": "user", "content": "..."}}')
        if message.get("role") not in ROLES:
            raise ValueError(f"{column!r} has the role {message.get('role')!r}; the roles are {', '.join(ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in value]
