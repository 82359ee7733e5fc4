"""Supervised fine-tuning of a causal language model on written answers, by TRL's `SFTTrainer`.

The loss is that of the answers' tokens alone. After each epoch, with the clock stopped, the loss of the held-out answers is
measured, and where the task says how to score an answer, the model writes its own.

The tokens are made here (`ChatFormat`) and not by TRL's `completion_only_loss`. TRL also trains on what the template writes
after the token that ends an answer, which generation never reaches, and drops examples whose answer is cut off, which changes
the number of steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from typing_extensions import override

from glora.experiments.config import RunConfig
from glora.experiments.data.task import TaskData
from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.models.chat_format import IGNORED, ChatFormat, Encoded
from glora.experiments.models.loading import load_causal_lm
from glora.experiments.models.modules import choose_modules, find_expert_parameters, find_linear_layers
from glora.experiments.models.tokenization import TokenizedTask, check_length
from glora.experiments.training.classification import Classification
from glora.experiments.training.generation import AnswerEvaluation
from glora.experiments.training.timed_trainer import RunRecorder, TimedTrainer
from glora.experiments.training.training_arguments import training_arguments

logger = logging.getLogger(__name__)

ANSWERS_KEPT = 5
"""Number of written answers in a record."""


class Generation(Classification):
    """Learn a written answer: a causal language model, whose pretrained head is not trained."""

    adapter_task_type = "CAUSAL_LM"

    @override
    def load_model(self, config: RunConfig, task: TaskData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        return load_causal_lm(config.model, dtype=dtype, trust_remote_code=config.trust_remote_code)

    @override
    def tokenize(
        self, config: RunConfig, task: TaskData, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TokenizedTask:
        """Columns `input_ids` and `labels`; in evaluation splits also `prompt_ids`, `asked` and `answer`."""
        check_length(tokenizer, config.max_length)
        chat = ChatFormat(tokenizer, model)
        return TokenizedTask(
            train=_encoded(chat, task.train, "training", config.max_length, to_evaluate=False),
            evaluation={
                name: _encoded(chat, split, name, config.max_length, to_evaluate=True)
                for name, split in task.evaluation.items()
            },
        )

    @override
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pad as TRL does: on the right, and labels with -100."""
        pad = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
        return lambda rows: pad([{name: row[name] for name in ("input_ids", "labels")} for row in rows])

    @override
    def target_modules(self, model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
        return self._chosen(model, wanted)[0]

    @override
    def target_parameters(self, model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
        return self._chosen(model, wanted)[1]

    @staticmethod
    def _chosen(model: PreTrainedModel, wanted: Sequence[str] | None) -> tuple[list[str], list[str]]:
        linear, experts = find_linear_layers(model), find_expert_parameters(model)
        what = f"linear layer or stack of experts of the decoder of {type(model).__name__}"
        chosen = set(choose_modules([*linear, *experts], wanted, what=what))
        return [name for name in linear if name in chosen], [name for name in experts if name in chosen]

    @override
    def head_modules(self, model: PreTrainedModel) -> list[str]:
        return []

    @override
    def trainer(
        self,
        config: RunConfig,
        adapted: AdaptedModel,
        tokens: TokenizedTask,
        tokenizer: PreTrainedTokenizerBase,
        task: TaskData,
        recorder: RunRecorder,
        folder: Path,
    ) -> TimedSFTTrainer:
        return TimedSFTTrainer(
            model=adapted.model,
            args=training_arguments(
                config,
                folder,
                SFTConfig,
                max_length=None,  # they are cut off already
                dataset_kwargs={"skip_prepare_dataset": True},
                gradient_checkpointing=False,
                router_aux_loss_coef=0.0,  # routers are not trained
            ),
            train_dataset=tokens.train,
            eval_dataset=tokens.evaluation,
            processing_class=tokenizer,
            callbacks=list(adapted.callbacks),
            recorder=recorder,
            answers=AnswerEvaluation(config, task, tokens, ChatFormat(tokenizer, adapted.model), tokenizer),
        )


class TimedSFTTrainer(TimedTrainer, SFTTrainer):
    """TRL's trainer for supervised fine-tuning, which reports evaluations to the recorder."""

    not_metrics = TimedTrainer.not_metrics - {"loss"}

    def __init__(self, *args: Any, answers: AnswerEvaluation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._answers = answers

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of the model's forward, through TRL's fused head.

        TRL sums the returned log-probabilities instead, which leaves out the orthogonality penalty that PEFT's AdaLoRA adds to
        the loss.
        """
        outputs = model(**self._fused(inputs), num_items_in_batch=num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluation_batches(self, split: str) -> int:
        """Return the number of batches of the loss and of the generated answers."""
        return super().evaluation_batches(split) + self._answers.batches(self.eval_dataset[split])

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the held-out loss, its perplexity, and the score of the answers that the model writes."""
        name = metric_key_prefix.removeprefix("eval_")
        split = self.eval_dataset[name]
        model = self.model
        model.eval()
        written = self._answers.write(model, split, self._after_batch)
        loss = self._held_out_loss(model, dataloader)
        metrics = {"loss": loss, "perplexity": perplexity(loss)}
        if written:
            metrics = {"exact_match": sum(answer.right for answer in written) / len(written), **metrics}
            self._recorder.answers_written(name, written[:ANSWERS_KEPT])
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=named, num_samples=len(split))

    @torch.no_grad()
    def _held_out_loss(self, model: Any, dataloader: Any) -> float:
        """Return -Σ log p / number of the answers' tokens, over the whole split: a long answer counts by its length.

        Raises:
            ValueError: no answer has a token left.
        """
        total, count = 0.0, 0
        for inputs in dataloader:
            with self.compute_loss_context_manager():
                outputs = model(**self._fused(self._prepare_inputs(inputs)))
            total -= float(outputs.log_probs.double().sum())
            count += int(outputs.label_mask.sum())
            self._after_batch()
        if not count:
            raise ValueError("max_length leaves no token of any answer to be evaluated on; raise it")
        return total / count

    @staticmethod
    def _fused(inputs: dict[str, Any]) -> dict[str, Any]:
        return {**inputs, "use_cache": False, "fused_lm_head": True}

    def _after_batch(self) -> None:
        self.callback_handler.on_prediction_step(self.args, self.state, self.control)


def _encoded(chat: ChatFormat, examples: Dataset, name: str, max_length: int, *, to_evaluate: bool) -> Dataset:
    """A split's examples as token ids; warns how many were cut off.

    Raises:
        ValueError: no answer has a token left.
    """
    encoded = chat.encode(list(examples["prompt"]), list(examples["answer"]))
    inputs = [example.inputs(max_length) for example in encoded]
    _report_cuts(encoded, inputs, name, max_length)
    columns: dict[str, list[Any]] = {key: [row[key] for row in inputs] for key in ("input_ids", "labels")}
    if to_evaluate:
        columns |= {
            "prompt_ids": [example.prompt for example in encoded],
            "asked": [prompt[-1]["content"] for prompt in examples["prompt"]],
            "answer": list(examples["answer"]),
        }
    return Dataset.from_dict(columns)


def _report_cuts(
    encoded: Sequence[Encoded], inputs: Sequence[dict[str, list[int]]], name: str, max_length: int
) -> None:
    cut = sum(len(example.prompt) + len(example.answer) > max_length for example in encoded)
    empty = sum(all(label == IGNORED for label in row["labels"]) for row in inputs)
    longest = max(len(example.prompt) + len(example.answer) for example in encoded)
    if empty == len(encoded):
        raise ValueError(
            f"max_length={max_length} leaves no token of any answer of the {name} examples; the longest example has {longest}"
        )
    if cut:
        logger.warning(
            "%s of %s %s examples are longer than max_length=%s and cut off, so that their answers do not end%s; the longest "
            "has %s tokens",
            f"{cut:,}",
            f"{len(encoded):,}",
            name,
            max_length,
            f" ({empty:,} have no answer left)" if empty else "",
            f"{longest:,}",
        )


def perplexity(loss: float) -> float:
    """Return exp(loss); infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
