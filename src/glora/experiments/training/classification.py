"""Fine-tuning a classifier (or a regression): an encoder with adapters, and a head that is trained whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import DataCollatorWithPadding, TrainingArguments

from glora.experiments.models.loading import load_classifier
from glora.experiments.models.modules import choose_modules, find_head_modules, find_target_modules
from glora.experiments.models.tokenization import TokenizedTask, tokenize
from glora.experiments.training.metrics import compute
from glora.experiments.training.timed_trainer import RunRecorder, TimedTrainer
from glora.experiments.training.training_arguments import training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from glora.experiments.config import RunConfig
    from glora.experiments.data.task import TaskData
    from glora.experiments.methods.adapted_model import AdaptedModel


class Classification:
    """A label is learned; see `TaskKind`."""

    adapter_task_type = "SEQ_CLS"

    def load_model(self, config: RunConfig, task: TaskData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """With a head drawn from the run's seed."""
        return load_classifier(
            config.model,
            num_labels=task.num_labels,
            label_names=task.label_names,
            regression=task.regression,
            seed=config.seed,
        )

    def tokenize(
        self, config: RunConfig, task: TaskData, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TokenizedTask:
        """Columns: the tokenizer's own, and `labels`."""
        return tokenize(task, tokenizer, config.max_length)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads to the longest of a batch."""
        return DataCollatorWithPadding(tokenizer)

    def target_modules(self, model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
        """Of the encoder's linear layers."""
        return choose_modules(
            find_target_modules(model), wanted, what=f"linear layer of the encoder of {type(model).__name__}"
        )

    def target_parameters(self, model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
        """None: a classifier's experts are left as they are."""
        return []

    def head_modules(self, model: PreTrainedModel) -> list[str]:
        """All that lies after the last hidden states."""
        return find_head_modules(model)

    def trainer(
        self,
        config: RunConfig,
        adaptation: AdaptedModel,
        tokens: TokenizedTask,
        tokenizer: PreTrainedTokenizerBase,
        task: TaskData,
        recorder: RunRecorder,
        scratch: Path,
    ) -> TimedTrainer:
        """`transformers.Trainer`, as its users have it."""
        return TimedTrainer(
            model=adaptation.model,
            args=training_arguments(
                config,
                scratch,
                TrainingArguments,
                label_names=["labels"],  # Trainer cannot find them out behind PEFT's forward
            ),
            train_dataset=tokens.train,
            eval_dataset=tokens.evaluation,
            data_collator=self.collator(tokenizer),
            compute_metrics=lambda evaluated: compute(task.metrics, evaluated.predictions, evaluated.label_ids),
            callbacks=list(adaptation.callbacks),
            recorder=recorder,
        )
