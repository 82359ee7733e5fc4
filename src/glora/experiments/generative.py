"""Causal language models and data sets of questions with written answers: their names and where they lie on the hub.

An experiment file may name them. The models can be trained as classifiers, as any model can for which transformers has a
classification head; the data sets are known by name, and refused as long as generative tasks cannot be run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CANNOT_RUN = "generative tasks cannot be run yet"

CAUSAL_MODELS: tuple[tuple[str, str, str], ...] = (
    ("Llama-4-Scout-17B-16E", "meta-llama/Llama-4-Scout-17B-16E", "Llama 4 Scout, 109 B parameters, 17 B active"),
    ("Llama-4-Maverick-17B-128E", "meta-llama/Llama-4-Maverick-17B-128E", "Llama 4 Maverick, 400 B, 17 B active"),
    ("Qwen3-0.6B", "Qwen/Qwen3-0.6B", "Qwen3, 0.6 B parameters"),
    ("Qwen3-1.7B", "Qwen/Qwen3-1.7B", "Qwen3, 1.7 B parameters"),
    ("Qwen3-4B", "Qwen/Qwen3-4B", "Qwen3, 4 B parameters"),
    ("Qwen3-8B", "Qwen/Qwen3-8B", "Qwen3, 8 B parameters"),
    ("Qwen3-14B", "Qwen/Qwen3-14B", "Qwen3, 14 B parameters"),
    ("Qwen3-32B", "Qwen/Qwen3-32B", "Qwen3, 32 B parameters"),
    ("DeepSeek-V3", "deepseek-ai/DeepSeek-V3", "DeepSeek V3, 671 B parameters, 37 B active"),
    ("DeepSeek-V3.1", "deepseek-ai/DeepSeek-V3.1", "DeepSeek V3.1, 671 B parameters, 37 B active"),
    ("DeepSeek-V3.2-Exp", "deepseek-ai/DeepSeek-V3.2-Exp", "DeepSeek V3.2 Exp, 671 B parameters, 37 B active"),
    ("gpt-oss-20b", "openai/gpt-oss-20b", "gpt-oss, 21 B parameters, 3.6 B active"),
    ("gemma-3-1b-it", "google/gemma-3-1b-it", "Gemma 3, 1 B parameters, instruction-tuned"),
    ("gemma-3-4b-it", "google/gemma-3-4b-it", "Gemma 3, 4 B parameters, instruction-tuned"),
    ("gemma-3-27b-it", "google/gemma-3-27b-it", "Gemma 3, 27 B parameters, instruction-tuned"),
)
"""Name, hub id, summary."""


@dataclass(frozen=True)
class GenerativeTask:
    """A data set whose answers are texts."""

    name: str
    source: str
    """Hub id."""
    aliases: tuple[str, ...] = ()
    kind: str = "generative"


GENERATIVE_TASKS: dict[str, GenerativeTask] = {
    task.name: task
    for task in (
        GenerativeTask("alpaca-cleaned", "yahma/alpaca-cleaned", ("Alpaca",)),
        GenerativeTask("databricks-dolly-15k", "databricks/databricks-dolly-15k", ("dolly-15k", "Dolly")),
        GenerativeTask("gsm8k", "openai/gsm8k"),
        # hendrycks/competition_math, where the authors put it, is no longer there
        GenerativeTask("MATH", "EleutherAI/hendrycks_math", ("hendrycks/competition_math",)),
    )
}


class GenerativeTaskError(ValueError):
    """The task is known, but its answers are texts, which cannot be scored yet."""

    def __init__(self, task: GenerativeTask) -> None:
        super().__init__(f"{task.name} ({task.source}): {CANNOT_RUN}")


def find_generative_task(name: str) -> GenerativeTask | None:
    """The data set of this name, hub id or alias, in any case and with any separators; None if there is none, or a path."""
    if name.startswith((".", "~", "/")):
        return None
    spelled = {
        plain(spelling): task
        for task in GENERATIVE_TASKS.values()
        for spelling in (task.name, task.source, *task.aliases)
    }
    return spelled.get(plain(name))


def plain(name: str) -> str:
    """A name's letters and digits: `GSM-8K` -> `gsm8k`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
