"""Examples whose answer is written: a prompt (one message or a conversation) and the answer that is learned.

The columns by which a file or a data set says which is which:

    prompt, completion                 text, or messages as TRL has them
    question, answer                   GSM8K
    problem, solution                  MATH
    instruction, input, output         Alpaca; without `input` too
    instruction, context, response     Dolly; without `context` too
    messages                           a conversation, whose last message is the assistant's and is the answer
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glora.experiments.data.task import DataError, Task

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Columns:
    """Names of columns: what is asked, what it is asked about, and the answer."""

    prompt: str
    answer: str
    context: str | None = None

    def read(self, row: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
        """A row's prompt, as messages, and its answer.

        Raises:
            ValueError: what a column holds is not what it should hold.
        """
        prompt = row.get(self.prompt)
        if isinstance(prompt, list):
            return _messages(prompt, self.prompt), _only_message(row.get(self.answer), self.answer)
        asked = [_text(row, self.prompt)]
        if self.context and row.get(self.context) is not None:
            asked.append(_text(row, self.context))
        content = "\n\n".join(text for text in asked if text.strip())
        return [{"role": "user", "content": content}], _text(row, self.answer)


@dataclass(frozen=True)
class Conversation:
    """The name of a column with a conversation."""

    messages: str = "messages"

    def read(self, row: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
        """All messages but the last, and the text of the last.

        Raises:
            ValueError: they are no messages, or the last is not the assistant's.
        """
        messages = _messages(row.get(self.messages), self.messages)
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(
                f"the last message of {self.messages!r} must be the assistant's, with at least one before it"
            )
        return messages[:-1], messages[-1]["content"]


LAYOUTS: tuple[tuple[tuple[str, ...], Columns | Conversation], ...] = (
    (("messages",), Conversation()),
    (("prompt", "completion"), Columns("prompt", "completion")),
    (("question", "answer"), Columns("question", "answer")),
    (("problem", "solution"), Columns("problem", "solution")),
    (("instruction", "output"), Columns("instruction", "output", "input")),
    (("instruction", "response"), Columns("instruction", "response", "context")),
)
"""Columns that must be there -> what they are."""


def find_layout(columns: Sequence[str]) -> Columns | Conversation | None:
    """What the columns of a file are, by their names; None if they are not those of prompts and answers."""
    return next((layout for needed, layout in LAYOUTS if set(needed) <= set(columns)), None)


@dataclass
class Conversations:
    """Prompts and answers, one of each an example."""

    prompts: list[list[dict[str, str]]] = field(default_factory=list)
    """Messages with `role` and `content`."""
    answers: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def groups(self) -> list[str]:
        """What is asked, in one spelling: the same question with another answer is no other question."""
        return [
            "\x00".join(" ".join(message["content"].casefold().split()) for message in prompt)
            for prompt in self.prompts
        ]

    def at(self, indices: Sequence[int]) -> Conversations:
        """The examples at these places, in this order."""
        return Conversations([self.prompts[i] for i in indices], [self.answers[i] for i in indices])

    def dataset(self, task: Task) -> Dataset:
        """Columns `prompt` (messages) and `answer`."""
        from datasets import Dataset, Features, List, Value

        message = {"role": Value("string"), "content": Value("string")}
        features = Features({"prompt": List(message), "answer": Value("string")})
        return Dataset.from_dict({"prompt": self.prompts, "answer": self.answers}, features=features)

    def contents(self, task: Task) -> Iterator[str]:
        """Every prompt and answer."""
        yield from (json.dumps(prompt) for prompt in self.prompts)
        yield from self.answers


def split_by_prompt(examples: Conversations, share: float) -> tuple[Conversations, Conversations]:
    """Split off a share of the examples by what is asked: the same ones wherever and however often it is done.

    An example is held out if the hash of its prompt says so. Neither the order nor the number of the others matters, and two
    examples that ask the same are on the same side.

    Returns:
        The rest, and what is held out.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for i, asked in enumerate(examples.groups):
        place = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8], "big") / 2**64
        sides[place < share].append(i)
    return examples.at(sides[False]), examples.at(sides[True])


def read_conversations(
    rows: Sequence[Mapping[str, Any]], layout: Columns | Conversation, where: Sequence[str], *, empty_answers: bool
) -> Conversations:
    """Rows of a file or of the hub as prompts and answers.

    Args:
        rows: column -> value.
        layout: what the columns are.
        where: how errors begin, for each row.
        empty_answers: whether an answer may be empty (some of Alpaca's are).

    Raises:
        DataError: a row is not as its columns say.
    """
    examples = Conversations()
    for place, row in zip(where, rows):
        try:
            prompt, answer = layout.read(row)
        except ValueError as error:
            raise DataError(f"{place}: {error}.") from error
        if not answer.strip() and not empty_answers:
            raise DataError(f"{place}: the answer is empty; there is nothing to learn from it. Leave the line out.")
        examples.prompts.append(prompt)
        examples.answers.append(answer)
    return examples


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"the column {column!r} holds {value!r}, which is no text")
    return value


def _messages(value: Any, column: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"the column {column!r} holds {value!r:.60}, which is no list of messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'{column!r} holds {message!r:.60}; a message is {{"role": "user", "content": "..."}}')
        if message.get("role") not in ROLES:
            raise ValueError(f"{column!r} has the role {message.get('role')!r}; there are {', '.join(ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _only_message(value: Any, column: str) -> str:
    messages = _messages(value, column)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise ValueError(f"the column {column!r} must hold one message of the assistant")
    return messages[0]["content"]
