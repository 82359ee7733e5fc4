"""Learning a label. `generative.Generation` overrides what differs when a written answer is learned.

Everything else of a run is the same for both kinds of task, so a method, a budget, a clock and a record mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from glora.experiments.config import RunConfig
from glora.experiments.data.task import TaskData
from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.models.loading import load_classifier
from glora.experiments.models.modules import choose_modules, find_head_modules, find_target_modules
from glora.experiments.models.tokenization import TokenizedTask, tokenize
from glora.experiments.training.metrics import compute
from glora.experiments.training.timed_trainer import RunRecorder, TimedTrainer
from glora.experiments.training.training_arguments import training_arguments


class Classification:
    """Learn a label, a class or a number: an encoder with adapters, and a head that is trained whole.

    Attributes:
        adapter_task_type: PEFT's name of the kind, `LoraConfig(task_type=...)`.
    """

    adapter_task_type = "SEQ_CLS"

    def load_model(self, config: RunConfig, task: TaskData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model on the CPU, and its tokenizer; the run's seed initializes a new head.

        Raises:
            ModelNotFoundError: the model cannot be found.
        """
        return load_classifier(
            config.model,
            num_labels=task.num_labels,
            label_names=task.label_names,
            regression=task.regression,
            seed=config.seed,
            trust_remote_code=config.trust_remote_code,
        )

    def tokenize(
        self, config: RunConfig, task: TaskData, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TokenizedTask:
        """Return the task's examples as token ids, neither padded nor batched.

        Raises:
            ValueError: `max_length` is more than the model reads.
        """
        return tokenize(task, tokenizer, config.max_length)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return what makes a batch with labels, padded to its longest, of tokenized examples."""
        return DataCollatorWithPadding(tokenizer)

    def target_modules(self, model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
        """Return the full names of the matrices to adapt: all, or those whose name is or ends with a wanted name.

        Raises:
            ValueError: a wanted name matches none.
        """
        what = f"linear layer of the encoder of {type(model).__name__}"
        return choose_modules(find_target_modules(model), wanted, what=what)

    def target_parameters(self, model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
        """Return the full names of the parameters with stacked experts to adapt, likewise; a classifier's are not adapted."""
        return []

    def head_modules(self, model: PreTrainedModel) -> list[str]:
        """Return the full names of the modules that are trained whole: those behind the last hidden states."""
        return find_head_modules(model)

    def trainer(
        self,
        config: RunConfig,
        adapted: AdaptedModel,
        tokens: TokenizedTask,
        tokenizer: PreTrainedTokenizerBase,
        task: TaskData,
        recorder: RunRecorder,
        folder: Path,
    ) -> TimedTrainer:
        """Return a Trainer that evaluates every epoch and reports to the recorder; Trainer's own files go to `folder`."""
        return TimedTrainer(
            model=adapted.model,
            # Trainer cannot see the labels' name behind PEFT's forward
            args=training_arguments(config, folder, TrainingArguments, label_names=["labels"]),
            train_dataset=tokens.train,
            eval_dataset=tokens.evaluation,
            data_collator=self.collator(tokenizer),
            compute_metrics=lambda evaluated: compute(task.metrics, evaluated.predictions, evaluated.label_ids),
            callbacks=list(adapted.callbacks),
            recorder=recorder,
        )
