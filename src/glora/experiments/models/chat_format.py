"""A prompt and its answer as token ids, with labels (a loss) at the answer's tokens only.

The model's own chat template writes both. The prompt's tokens are exactly those from which answers are generated; the answer's
follow them, tokenized separately, as they are generated. So the model learns what the template puts before an answer (gpt-oss's
channel, Qwen3's empty thoughts) and the token that ends the turn; the rest is cut off.

TRL's `apply_chat_template` keeps the common prefix of prompt and conversation instead: where a template opens an answer only
when it asks for one (a thought that has begun), training would not start where generation does, and scores would change.

A model without a template gets `FALLBACK_TEMPLATE`, Alpaca's without its preamble:

    ### Instruction:
    How many eggs are left?

    ### Response:
    There are 3.<end of text>
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label that PyTorch's cross-entropy leaves out."""

FALLBACK_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'assistant' %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)

_PROBE = "a8f1c0de"
"""A text that no template contains."""


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        prompt: the tokens from which an answer is generated.
        answer: the tokens of the answer, with the one that ends it.
    """

    prompt: list[int]
    answer: list[int]

    def inputs(self, max_length: int) -> dict[str, list[int]]:
        """Return prompt and answer, with the answer's tokens as labels, cut off at `max_length`."""
        ids = self.prompt + self.answer
        labels = [IGNORED] * len(self.prompt) + self.answer
        return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


class ChatFormat:
    """A model's way to write conversations.

    Attributes:
        stop_ids: the tokens that end an answer: the tokenizer's end of text, those of the model's generation config, and the
            token with which the template ends a turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> None:
        """See the class.

        Raises:
            ValueError: there is nothing that could end an answer.
        """
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template or _fallback(tokenizer)
        ends = [tokenizer.eos_token_id, *_as_list(getattr(model, "generation_config", None)), self._turn_end()]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(end for end in ends if end is not None))
        if not self.stop_ids:
            raise ValueError(
                "neither the tokenizer nor its chat template has a token that ends an answer; set eos_token in "
                "tokenizer_config.json"
            )
        self._warned = False

    def encode(self, prompts: Sequence[Sequence[Mapping[str, str]]], answers: Sequence[str]) -> list[Encoded]:
        """Tokenize prompts (messages with `role` and `content`) and their answers.

        Raises:
            ValueError: the template rejects a conversation, or leaves the answer out.
        """
        asked = [self._written(prompt, ask=True) for prompt in prompts]
        replies = [self._reply(*example) for example in zip(prompts, asked, answers)]
        return [Encoded(prompt, self._ended(answer)) for prompt, answer in zip(self._ids(asked), self._ids(replies))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that a model wrote, up to its end and without special tokens."""
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return str(self._tokenizer.decode(ids[:end], skip_special_tokens=True))

    def _reply(self, prompt: Sequence[Mapping[str, str]], asked: str, answer: str) -> str:
        """Return the text that follows the prompt: the answer with the template's text around it."""
        whole = self._written([*prompt, {"role": "assistant", "content": answer}], ask=False)
        follows = whole.startswith(asked)
        reply = whole[len(asked) :] if follows else whole
        where = reply.rfind(answer.strip())
        if where < 0:
            raise ValueError(f"the model's chat template leaves out the answer {answer[:60]!r}")
        if follows:
            return reply
        if not self._warned:
            self._warned = True
            logger.warning(
                "the chat template ends a prompt with %r only if no answer follows; answers are learned right after that "
                "prompt, where they are generated",
                asked[-30:],
            )
        return whole[where:]

    def _written(self, messages: Sequence[Mapping[str, str]], *, ask: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), chat_template=self._template, tokenize=False, add_generation_prompt=ask
                )
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(f"the model's chat template rejects a conversation of {roles}: {error}") from error

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return list(self._tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def _ended(self, answer: list[int]) -> list[int]:
        """Return an answer's tokens up to its last end; with an end added where the template wrote none."""
        for i in reversed(range(len(answer))):
            if answer[i] in self.stop_ids:
                return answer[: i + 1]
        return [*answer, self.stop_ids[0]]

    def _turn_end(self) -> int | None:
        """Return the special token that the template writes right after an answer, if there is one."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        behind = self._written(messages, ask=False).rpartition(_PROBE)[2].lstrip()
        ids = self._ids([behind])[0] if behind else []
        special = set(self._tokenizer.all_special_ids) | {
            token for token, added in self._tokenizer.added_tokens_decoder.items() if added.special
        }
        return ids[0] if ids and ids[0] in special else None


def _fallback(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return `FALLBACK_TEMPLATE`, after the beginning-of-text token if the tokenizer puts one before every text."""
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + FALLBACK_TEMPLATE


def _as_list(generation_config: Any) -> list[int]:
    ends = getattr(generation_config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
