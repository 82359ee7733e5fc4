"""No backward pass below the first adapter, with gradient checkpointing too.

Where the first layers have no adapter (any more), nothing below the first one needs a gradient, and PyTorch's back-propagation
ends there. But transformers and PEFT make the embedding's output require a gradient as soon as gradient checkpointing is on
(`enable_input_require_grads`), and then the backward pass, and the recomputation before it, runs through all layers. Only the
reentrant kind of checkpointing needs that: it records nothing of a segment whose input requires no gradient. With
use_reentrant=False, which is transformers' default, nobody asks for that gradient.
"""

from __future__ import annotations

from torch import nn

_HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad")  # transformers' and PEFT's


def release_input_gradients(root: nn.Module) -> bool:
    """Let the embedding's output require no gradient, where only non-reentrant gradient checkpointing asks for it.

    No gradient of a parameter changes: an embedding that is trained gets its own as before.

    Args:
        root: The base model.

    Returns:
        True if a hook was removed.
    """
    checkpointed = [
        getattr(module, "_gradient_checkpointing_func", None)
        for module in root.modules()
        if getattr(module, "gradient_checkpointing", False)
    ]
    if not checkpointed or not all(_is_non_reentrant(function) for function in checkpointed):
        return False
    released = False
    for module in root.modules():
        # by name and not by model.disable_input_require_grads(), which forgets all but the last hooks that were set
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") in _HOOKS and hook.__module__.startswith(("transformers.", "peft.")):
                del module._forward_hooks[key]
                released = True
    return released


def _is_non_reentrant(function: object) -> bool:
    return getattr(function, "keywords", {}).get("use_reentrant") is False
