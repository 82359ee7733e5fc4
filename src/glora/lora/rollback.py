"""A change of ranks that fails on its way is undone: layers, factors, gradients, state and module tree. Ctrl-C waits for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn

from glora.lora.matrix import LoraMatrix
from glora.lora.optimizer_state import set_state, unwrap_optimizer


@contextmanager
def undone_if_it_fails(
    matrices: Iterable[LoraMatrix], optimizer: torch.optim.Optimizer | None, root: nn.Module | None = None
) -> Iterator[None]:
    """Make the matrices as they are now again if the block raises."""
    undo = [step for matrix in matrices for step in _undo(matrix, optimizer, root)]
    try:
        yield
    except BaseException:
        for step in undo:
            step()
        raise


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C, and a SIGTERM that Python handles, to the end of this context."""
    received: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
    handlers: dict[signal.Signals, Callable[..., Any]] = {}
    if threading.current_thread() is threading.main_thread():  # handlers run there alone
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                signal.signal(number, lambda *arguments, handler=handler: received.append((handler, arguments)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for handler, arguments in received[:1]:
            handler(*arguments)


def _undo(
    matrix: LoraMatrix, optimizer: torch.optim.Optimizer | None, root: nn.Module | None
) -> Iterator[Callable[[], None]]:
    layers = [matrix.layer]
    if root is not None and not isinstance(matrix.layer, ParamWrapper):  # a stack of experts never leaves the tree
        parent, _, child = matrix.name.rpartition(".")
        there = root.get_submodule(matrix.name)
        if isinstance(there, LoraLayer) and there is not matrix.layer:
            layers.append(there)
        yield partial(setattr, root.get_submodule(parent), child, there)
    for layer in layers:
        for attribute in matrix.containers(layer):
            yield _entry(getattr(layer, attribute), matrix.adapter_name)
    for factor in matrix.factors:
        yield _factor(factor, optimizer)
    yield partial(_own, matrix, matrix.layer, dict(matrix._removed))


def _entry(container: Any, name: str) -> Callable[[], None]:
    """Return what puts the adapter's part of one of a layer's containers back."""
    if name in container:
        return partial(container.__setitem__, name, container[name])
    return lambda: container.pop(name) if name in container else None


def _factor(factor: nn.Parameter, optimizer: torch.optim.Optimizer | None) -> Callable[[], None]:
    tensor, gradient, trained = factor.detach(), factor.grad, factor.requires_grad
    state = {} if optimizer is None else unwrap_optimizer(optimizer).state.get(factor, {})

    def undo() -> None:
        with torch.no_grad():
            factor.set_(tensor)  # type: ignore[call-overload]
        factor.requires_grad_(trained)
        factor.grad = gradient
        if optimizer is not None:
            set_state(optimizer, factor, state)

    return undo


def _own(matrix: LoraMatrix, layer: LoraLayer, removed: dict[str, Any]) -> None:
    matrix.layer, matrix._removed = layer, removed
    matrix.note_rank()
