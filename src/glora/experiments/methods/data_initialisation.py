"""Methods that look at training data before the first step: EVA at the activations, LoRA-GA at the gradients.

Both see batches in an order of their own and use up no number of the global generators, so that the training that follows
has the batches and the dropout of every other method. What they take counts as training time.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import PartialState
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora import LoraGAConfig, eva, preprocess_loraga

from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.methods.base import MethodContext
from glora.experiments.methods.uniform_lora import uniform_lora
from glora.messages import pluralize

EVA_RHO = 2.0
"""ρ: no matrix gets more than ρ·rank. 1 would leave all ranks alike; 2 redistributes them (arXiv:2410.07170)."""

EVA_BATCHES = 2000
"""Most batches that are read: PEFT's own loop never ends if the components do not converge."""

GRADIENT_EXAMPLES = 128
"""Examples of LoRA-GA's gradient estimate, as in PEFT's example (64 batches of 2)."""


class NotSettledError(ArithmeticError):
    """EVA's principal components have not settled."""


def apply_eva(to: MethodContext) -> AdaptedModel:
    """lora_A starts as principal components of each matrix's inputs, and the ranks go where they explain most variance.

    Paischer et al. 2024, arXiv:2410.07170. Σ r_k = matrices·rank and r_k ≤ ρ·rank; a matrix whose share is 0 loses its
    adapter. PEFT scales alpha by r_k / rank, so that the scaling s stays the same everywhere.
    """
    adapted = AdaptedModel(uniform_lora(to, init_lora_weights="eva", eva_config=EvaConfig(rho=EVA_RHO)))
    with _preparing(to) as clock, _without_peft_printing():
        initialize_lora_eva_weights(
            adapted.model,
            _Batches(to),
            prepare_model_inputs_fn=_token_mask,
            prepare_layer_inputs_fn=_TokenRows(),
            show_progress_bar=False,
        )
    adapted.preparation_seconds = clock()
    adapted.initial_ranks = adapted.ranks()
    return adapted


def apply_lora_ga(to: MethodContext) -> AdaptedModel:
    """A and B start along the leading singular vectors of each weight's gradient, and W gives up their product.

    Wang et al. 2024, arXiv:2407.05000, in PEFT's implementation: direction ArB2r, scale "stable", γ = 16. PEFT scales B by
    the gradient's singular values and leaves A alone; the authors' code takes no singular values and scales both by
    d_out^¼ / √γ.
    """
    config = LoraConfig(
        r=to.config.rank,
        lora_alpha=to.config.alpha,
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
        **to.lora_settings(),
    )
    with _preparing(to) as clock:
        preprocess_loraga(to.model, config, lambda: _accumulate_gradients(to))
        to.preparing("singular vectors of the gradients")
        adapted = AdaptedModel(get_peft_model(to.model, config))
    adapted.preparation_seconds = clock()
    return adapted


def _accumulate_gradients(to: MethodContext) -> None:
    """PEFT divides by the number of backward passes."""
    batches = math.ceil(GRADIENT_EXAMPLES / to.config.batch_size)
    for number, batch in enumerate(itertools.islice(_on_device(to), batches), start=1):
        to.preparing("gradients of the weights", f"batch {number} of {batches}")
        to.model(**batch).loss.backward()


class _Batches:
    """Training batches as PEFT wants them, with a length and an end."""

    def __init__(self, to: MethodContext) -> None:
        self._to = to

    def __len__(self) -> int:
        return EVA_BATCHES

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for number, batch in enumerate(itertools.islice(_on_device(self._to), EVA_BATCHES), start=1):
            self._to.preparing("principal components of the inputs", f"batch {number}, until they settle")
            yield batch
        raise NotSettledError(
            f"EVA's principal components have not settled after {pluralize(EVA_BATCHES, 'batch')} of "
            f"{self._to.config.batch_size}; use larger batches, or a smaller rank"
        )


def _token_mask(batch: dict[str, torch.Tensor], config: Any) -> torch.Tensor:
    """(batch, tokens): no padding and, where each token has a label, only what is answered, as PEFT does."""
    tokens = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(tokens)).bool()
    labels = batch.get("labels")
    if config.eva_config.use_label_mask and labels is not None and labels.shape == mask.shape:
        mask = mask & (labels != config.eva_config.label_mask_value)
    return mask


class _TokenRows:
    """The rows of a layer's input that count: those of tokens.

    DeBERTa sends its relative position embeddings through query and key too, after the tokens. They are left out, because
    PEFT takes query's components for value as well, which never sees them. An input of another shape from the beginning,
    such as an expert's share of the tokens, counts whole.
    """

    def __init__(self) -> None:
        self._sees_tokens: set[str] = set()

    def __call__(self, layer_input: Any, mask: torch.Tensor, layer: str) -> torch.Tensor:
        inputs = layer_input if isinstance(layer_input, torch.Tensor) else layer_input[0]
        if inputs.shape[:-1] == mask.shape:
            self._sees_tokens.add(layer)
            return inputs[mask]
        rows = inputs.reshape(-1, inputs.shape[-1])
        return rows[:0] if layer in self._sees_tokens else rows


@contextlib.contextmanager
def _preparing(to: MethodContext) -> Iterator[Callable[[], float]]:
    """Move the model to the device of training, restore the global generators after; yield a clock of the seconds since."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        to.model.to(_device())
        begun = _now()
        yield lambda: _now() - begun


def _now() -> float:
    """Seconds, once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def _without_peft_printing() -> Iterator[None]:
    """PEFT prints a line on each call of a layer that has too few rows, which the position embeddings have."""
    vars(eva)["print"] = lambda *_: None
    try:
        yield
    finally:
        del vars(eva)["print"]


def _on_device(to: MethodContext) -> Iterator[dict[str, torch.Tensor]]:
    return ({name: tensor.to(_device()) for name, tensor in batch.items()} for batch in to.batches())


def _device() -> torch.device:
    """Return the device on which Trainer will train."""
    return torch.device(PartialState().device)
