"""No backward pass below the first adapter, with gradient checkpointing too.

Where the first layers have no adapter (any more), nothing below the first one needs a gradient, and PyTorch's back-propagation
ends there. But transformers and PEFT make the embedding's output require a gradient as soon as gradient checkpointing is on
(`enable_input_require_grads`), and then the backward pass, and the recomputation before it, runs through all layers. Only the
reentrant kind of checkpointing needs that: it records nothing of a segment whose input requires no gradient. With
use_reentrant=False, which is transformers' default, nobody asks for that gradient.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from torch import nn

_HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad")  # transformers' and PEFT's


def asked_by_user(root: nn.Module) -> frozenset[int]:
    """Return the keys of the hooks that make an embedding's output require a gradient though no layer is checkpointed yet.

    Checkpointing sets the same hook, which cannot be distinguished from a user's. So they are noted when glora first sees the
    model. TRL's trainers set one before that, which `asked_by_last_call` returns.
    """
    return frozenset() if _checkpointing_functions(root) else frozenset(key for _, key in _input_hooks(root))


def asked_by_last_call(root: nn.Module) -> frozenset[int]:
    """Return the keys of the hooks that the last `root.enable_input_require_grads()` set."""
    return frozenset(handle.id for handle in getattr(root, "_require_grads_hooks", ()))


def release_input_gradients(root: nn.Module, keep: Container[int] = ()) -> bool:
    """Let the embedding's output require no gradient, where only non-reentrant gradient checkpointing asks for it.

    No gradient of a parameter changes: an embedding that is trained gets its own as before. An embedding with a backward hook
    keeps the gradient that the hook reads.

    Args:
        root: The base model.
        keep: Keys of hooks that the user has asked for.

    Returns:
        True if a hook was removed.
    """
    functions = _checkpointing_functions(root)
    if not functions or not all(_is_non_reentrant(function) for function in functions):
        return False
    released = False
    # by name and not by model.disable_input_require_grads(), which forgets all but the last hooks that were set
    for module, key in list(_input_hooks(root)):
        if key not in keep and not module._backward_hooks and not module._backward_pre_hooks:
            del module._forward_hooks[key]
            released = True
    return released


def _input_hooks(root: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    for module in root.modules():
        for key, hook in module._forward_hooks.items():
            if getattr(hook, "__name__", "") in _HOOKS and hook.__module__.startswith(
                ("transformers.", "peft.", "trl.")
            ):
                yield module, key


def _checkpointing_functions(root: nn.Module) -> list[object]:
    return [
        getattr(module, "_gradient_checkpointing_func", None)
        for module in root.modules()
        if getattr(module, "gradient_checkpointing", False)
    ]


def _is_non_reentrant(function: object) -> bool:
    return getattr(function, "keywords", {}).get("use_reentrant") is False
