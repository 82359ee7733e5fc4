"""`resize_lora_layer`: one LoRA layer to another rank, for methods of your own."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from glora.config import Keep
from glora.lora.following import adapter_in
from glora.lora.matrix import LoraMatrix
from glora.lora.rollback import undone_if_it_fails, uninterrupted


def resize_lora_layer(
    layer: LoraLayer,
    rank: int,
    *,
    model: nn.Module | None,
    optimizer: torch.optim.Optimizer | None = None,
    adapter_name: str = "default",
    keep: Keep = "norm",
    init_lora_weights: bool | str = True,
    generator: torch.Generator | None = None,
) -> None:
    """Give a LoRA layer another rank, in place: its parameters stay the same objects.

    Call it between an optimizer step and the next forward pass: the gradients of the factors are dropped.

    Args:
        layer: A LoRA layer of any kind that glora supports, with A of shape (r, d_in) and B of shape (d_out, r).
        rank: The new rank, from 0 to min(d_in, d_out). 0 takes the adapter out of this layer, which then computes what the
            base layer computes.
        model: The model that the layer is in: its PEFT configuration follows, so that what `save_pretrained` writes can be
            loaded. A layer does not know its model. None is for a layer that is in no PEFT model.
        optimizer: The optimizer that holds A and B. Their state for kept columns stays; see glora.lora.optimizer_state for the
            state of new columns.
        adapter_name: The adapter to resize; other adapters of the layer stay as they are.
        keep: Columns that stay when the rank shrinks: "norm" the largest ‖A_i‖·‖B_i‖, "svd" the best approximation of
            B·A, "first" the first ones.
        init_lora_weights: Initialization of new rows of A: "gaussian" as PEFT's option of that name, N(0, 1/rank²); anything
            else as LoRA's default, uniform in ±1/√d_in. (An embedding's new columns of B are N(0, 1), as PEFT's.)
        generator: A CPU generator for the new rows. Default: torch's global one.

    Raises:
        ValueError: the rank is out of range, `keep` is unknown, the layer does not carry the adapter or is of a kind that is
            not supported, the optimizer's state cannot be carried over, or the layer is not in the model. The layer is then
            as it was.
    """
    how: dict[str, Any] = dict(optimizer=optimizer, keep=keep, init_lora_weights=init_lora_weights, generator=generator)
    if model is None:
        matrix = LoraMatrix(type(layer.get_base_layer()).__name__, layer, adapter_name)
        resized = matrix.resized(rank, **how)
        with uninterrupted(), undone_if_it_fails([matrix], optimizer):
            resized.commit()
            if rank == 0:
                matrix.remove()
        return
    adapter = adapter_in(model, adapter_name)
    found = next((matrix for matrix in adapter.matrices.values() if matrix.layer is layer), None)
    if found is None:
        raise ValueError(
            f"this LoRA layer is not one of the model's {len(adapter.matrices)} with adapter {adapter_name!r}; "
            "give its own model"
        )
    resized = found.resized(rank, **how)
    with adapter.layout.resizing([]), uninterrupted():
        adapter.put_in_place([resized])
