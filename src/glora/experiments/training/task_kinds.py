"""What differs between the kinds of tasks when a run is made; all else is `train`'s, and the same for all of them.

So a method, a budget, a clock and a record mean the same whether a label or a written answer is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from glora.experiments.config import RunConfig
    from glora.experiments.data.task import Kind, TaskData
    from glora.experiments.methods.adapted_model import AdaptedModel
    from glora.experiments.models.tokenization import TokenizedTask
    from glora.experiments.training.timed_trainer import RunRecorder, Timed


class TaskKind(Protocol):
    """One kind of task."""

    adapter_task_type: str
    """PEFT's name for it, `LoraConfig(task_type=...)`."""

    def load_model(self, config: RunConfig, task: TaskData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in float32 on the CPU, and its tokenizer.

        Raises:
            ModelNotFoundError: there is none.
        """
        ...

    def tokenize(
        self, config: RunConfig, task: TaskData, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TokenizedTask:
        """The task's examples as token ids, neither padded nor batched.

        Raises:
            ValueError: `max_length` is more than the model reads.
        """
        ...

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """What makes a batch with labels of tokenized examples."""
        ...

    def target_modules(self, model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
        """Full names of the matrices to adapt: all, or those whose name is or ends with a wanted one.

        Raises:
            ValueError: a wanted name matches none, naming the nearest.
        """
        ...

    def target_parameters(self, model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
        """Full names of the parameters with stacked experts to adapt, likewise."""
        ...

    def head_modules(self, model: PreTrainedModel) -> list[str]:
        """Full names of the modules that are trained whole, beside the adapters."""
        ...

    def trainer(
        self,
        config: RunConfig,
        adaptation: AdaptedModel,
        tokens: TokenizedTask,
        tokenizer: PreTrainedTokenizerBase,
        task: TaskData,
        recorder: RunRecorder,
        scratch: Path,
    ) -> Timed:
        """A Trainer, ready to train; it evaluates every epoch and tells the recorder."""
        ...


def find_kind(name: Kind) -> TaskKind:
    """The kind of this name; its packages are imported only when it is asked for."""
    if name == "generation":
        from glora.experiments.training.generative import Generation

        return Generation()
    from glora.experiments.training.classification import Classification

    return Classification()
