"""An adapter's hooks on its live model, which copies come without, and a `load_adapter` that says where weights come from.

And the moment in which a model changes, which Ctrl-C may not interrupt.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from peft import PeftConfig
from torch import nn


class Following(Protocol):
    """The adapter.

    Attributes:
        name: The adapter's name.
        loading: The configuration beside the weights that are being loaded; None if there is none.
        loaded: The configuration beside the weights that were loaded last into this adapter.
    """

    name: str
    loading: PeftConfig | None
    loaded: PeftConfig | None


class Hook:
    """A method of an adapter that its model calls; a copied or saved model comes without."""

    def __init__(self, adapter: Following, call: Callable[..., None]) -> None:
        self.adapter, self.call = adapter, call

    def __call__(self, *arguments: Any) -> None:
        """Call the method."""
        self.call(*arguments)

    def __reduce__(self) -> Any:
        return NoHook, ()


class NoHook:
    """A hook's place in a copy."""

    def __call__(self, *_: Any) -> None:
        """Do nothing."""


class LoadAdapter:
    """The model's `load_adapter`, which also tells the adapter where the weights come from."""

    def __init__(self, adapter: Following, model: nn.Module) -> None:
        self._adapter, self._model = adapter, model

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Load an adapter, as the model's class does."""
        folder = arguments[0] if arguments else options.get("model_id", options.get("peft_model_id"))
        where = {key: options[key] for key in ("subfolder", "revision", "cache_dir", "token") if key in options}
        try:
            self._adapter.loading = PeftConfig.from_pretrained(str(folder), **where)
        except (ValueError, OSError, TypeError):
            self._adapter.loading = None  # PEFT says what is wrong there
        name = arguments[1] if len(arguments) > 1 else options.get("adapter_name", self._adapter.name)
        if name == self._adapter.name:
            self._adapter.loaded = self._adapter.loading
        try:
            return type(self._model).load_adapter(self._model, *arguments, **options)  # type: ignore[attr-defined]
        finally:
            self._adapter.loading = None

    def __reduce__(self) -> Any:
        return getattr, (self._model, "load_adapter")  # the class's own, of the copy


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
